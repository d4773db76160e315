"""What a session knows of its progress: returns, lengths, and a row of numbers every so many frames."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import deque
from pathlib import Path

import numpy as np

from slm_lab.lib.files import write_atomic
from slm_lab.lib.reduce import Metrics
from slm_lab.lib.types import Step, Tree

WINDOW = 100  # episodes of the moving average
WALL = ("wall_t", "fps")  # the only columns that depend on the clock


def count_step(total: np.ndarray, length: np.ndarray, step: Step) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns and lengths [E] of the running episodes after a step, and which of them it has ended [E].

    From rewards as the world gave them; a row that begins an episode counts for none.
    """
    total, length, ended = total + step.raw_reward, length + 1, step.terminated | step.truncated
    if np.count_nonzero(step.is_first):
        total[step.is_first], length[step.is_first], ended[step.is_first] = 0.0, 0, False
    return total, length, ended


class Tracker:
    """Returns and lengths per env, from rewards as the world gave them, and the rows of the session's table.

    Columns: `epi` episodes ended, `frame`, `opt_step`, `updates_per_frame` (gradient steps since the row before, over
    the frames since then), `wall_t` [s], `fps`, `total_reward` (mean over envs of their
    last episode's return), `total_reward_ma` (mean of the last 100 returns), `episode_length`, the mean of every metric
    since the row before, and where a world has several agents `total_reward_NAME` of each.
    """

    def __init__(self, num_envs: int, agents: tuple[str, ...] = ()) -> None:
        self.agents = agents
        self.running_return = np.zeros(num_envs)
        self.running_length = np.zeros(num_envs, np.int64)
        self.last_return = np.full(num_envs, np.nan)
        self.last_length = np.full(num_envs, np.nan)
        self.returns: deque[float] = deque(maxlen=WINDOW)
        self.epi = 0
        self.wall_t = 0.0
        self.rows: list[Metrics] = []
        self.pending: dict[str, list[float]] = {}

    def update(self, step: Step, metrics: list[Metrics]) -> None:
        """Take in what the worlds showed after a step, and what was learned from it."""
        self.running_return, self.running_length, ended = count_step(self.running_return, self.running_length, step)
        if np.count_nonzero(ended):
            self.last_return[ended], self.last_length[ended] = self.running_return[ended], self.running_length[ended]
            self.returns.extend(self.running_return[ended].tolist())
            self.epi += int(ended.sum())
        for row in metrics:
            for name, value in row.items():
                self.pending.setdefault(name, []).append(value)

    def forget_running(self) -> None:
        """Drop the episodes that have not ended: a resumed run of an env that can't be saved begins new ones."""
        self.running_return = np.zeros_like(self.running_return)
        self.running_length = np.zeros_like(self.running_length)

    @property
    def total_reward_ma(self) -> float:
        """Mean of the last 100 returns; NaN before the first."""
        return float(np.mean(self.returns)) if self.returns else math.nan

    def log(self, frame: int, opt_step: int, wall_t: float) -> Metrics:
        """Close a row of the table."""
        before = self.rows[-1] if self.rows else {"frame": 0, "opt_step": 0, "wall_t": 0.0}
        frames = frame - before["frame"]
        seconds = max(wall_t - before["wall_t"], 1e-9)
        row = {
            "epi": self.epi,
            "frame": frame,
            "opt_step": opt_step,
            "updates_per_frame": (opt_step - before["opt_step"]) / max(frames, 1),
            "wall_t": wall_t,
            "fps": frames / seconds,
            "total_reward": _mean(self.last_return),
            "total_reward_ma": self.total_reward_ma,
            "episode_length": _mean(self.last_length),
        }
        each = {name: self.last_return[a :: len(self.agents)] for a, name in enumerate(self.agents)}
        row |= {f"total_reward_{name}": _mean(own) for name, own in each.items()}
        row |= {name: _mean(np.array(values, dtype=float)) for name, values in self.pending.items()}
        self.pending = {}
        self.rows.append(row)
        return row

    def state_dict(self) -> Tree:
        return {**vars(self), "returns": list(self.returns), "rows": packed(self.rows)}

    def load_state_dict(self, state: Tree) -> None:
        vars(self).update(state)
        self.returns, self.rows = deque(state["returns"], maxlen=WINDOW), unpacked(state["rows"])


def _mean(x: np.ndarray) -> float:
    """Of what is known: one update without, say, an explained variance doesn't hide the others'."""
    known = x[~np.isnan(x)]
    return float(known.mean()) if known.size else math.nan


def packed(rows: list[Metrics]) -> str:
    """Rows for a checkpoint, exact to the bit; as thousands of numbers they take longer to save than a net."""
    return json.dumps(rows)


def unpacked(text: str) -> list[Metrics]:
    rows: list[Metrics] = json.loads(text)
    return rows


class Table:
    """A file of rows as CSV, whole or not at all; a row is made into text once, however often the file is written.

    Numbers in full precision, nothing where a row has no number.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.columns, self.text, self.made = path, list[str](), io.StringIO(), 0

    def write(self, rows: list[Metrics]) -> None:
        """These rows: those of the last call, and more."""
        columns = list(dict.fromkeys([*self.columns, *(name for row in rows[self.made :] for name in row)]))
        if columns != self.columns:
            self.columns, self.made = columns, 0  # the lines so far lack one
        if not self.made:
            self.text = io.StringIO()
        table = csv.DictWriter(self.text, self.columns, lineterminator="\n")
        if not self.made:
            table.writeheader()
        for row in rows[self.made :]:
            table.writerow({name: value for name, value in row.items() if value == value})  # no NaN
        self.made, text = len(rows), self.text.getvalue()
        # not synced: the checkpoint has its rows, and each one writes it again
        write_atomic(self.path, lambda file: file.write_text(text, encoding="utf-8", newline=""), sync=False)
