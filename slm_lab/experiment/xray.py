"""Memory x-ray: what an agent held in memory and looked at while it played, for cores that show what they recall.

A core shows it in the extras `recall_step`, `recall_weight` and `recall_worth` (see `Core`); of one that doesn't,
nothing is recorded. Here an entry is called by the step of the running episode at which it was written, one of an
earlier episode `EARLIER`. Where the task knows its cue, `figures` says how often it was held at the last decision of an
episode, of all that were played; `episodes` has a few of them step by step, for the pictures (xray_plot.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slm_lab.lib.errors import LabError, plural
from slm_lab.lib.files import write_atomic, write_json
from slm_lab.lib.types import ActOut, Step, Tree

if TYPE_CHECKING:  # drawing needs neither torch nor a world
    from slm_lab.env.base import VecEnv
    from slm_lab.lib.reduce import Metrics

KEYS = ("recall_step", "recall_weight", "recall_worth")
BEGIN = "recall_begin"  # shown too where entries outlive the episode
EMPTY, EARLIER = -1, -2  # in place of the step of an entry
SHOWN = 2  # episodes that are kept for the pictures: the first one of each right answer
WORLDS = 4  # in which they are looked for
COLUMNS = 256  # steps that are kept of an episode: at least so many of a longer one, at most twice as many
ANSWERS = 8  # right answers that are told apart


@dataclass(frozen=True)
class Episode:
    """C steps of an episode (all, or every 2nd, 4th ... and the last), K entries held at each."""

    at: np.ndarray  # [C] step of the episode
    step: np.ndarray  # [C, K] when the entry was written; EMPTY: none, EARLIER: in an earlier episode
    weight: np.ndarray  # [C, K] attention on it
    worth: np.ndarray  # [C, K]
    cue: np.ndarray  # [C, n] steps at which what must be remembered is shown, -1: none
    target: int | None  # the right answer at the last decision, where the task knows it
    total: float  # return


class _Reel:
    """The steps of a running episode, thinned out by half whenever they become too many."""

    def __init__(self) -> None:
        self.rows: list[list[np.ndarray]] = []
        self.every = 1

    def add(self, t: int, arrays: Sequence[np.ndarray], last: bool) -> None:
        if len(self.rows) == 2 * COLUMNS:
            self.rows, self.every = self.rows[::2], 2 * self.every
        if t % self.every == 0 or last:
            self.rows.append([np.array(t), *(array.copy() for array in arrays)])

    def episode(self, target: int | None, total: float) -> Episode:
        at, step, weight, worth, cue = map(np.stack, zip(*self.rows, strict=True))
        return Episode(at, step, weight, worth, cue, target, total)


class Xray:
    """Watches `play`: `look` before a step of the worlds, `follow` after it."""

    def __init__(self) -> None:
        self.episodes: list[Episode] = []
        self.slots = 0
        self.count = 0  # episodes that have ended
        self._blind = False  # the core shows nothing
        self._t = np.zeros(0, np.int64)  # [E] steps of the running episodes
        self._reels: list[_Reel] = []
        self._judged: list[np.ndarray] = []  # of each ended episode with a cue: answer, kept, attention, by chance

    def look(self, act: ActOut, env: VecEnv) -> None:
        """Take in what is recalled at this decision, and what the worlds say of it as they stand."""
        recalled = None if self._blind else _recalled(act.extras, env.agents)
        self._blind = recalled is None
        if recalled is None:
            return
        E = env.num_envs
        count, self._weight, self._worth, self._begin = recalled  # [E, K], and [E]
        begin = self._begin[:, None]
        self._step = np.where(count == EMPTY, EMPTY, np.where(count < begin, EARLIER, count - begin))
        cue, self._target = env.cue_steps(), env.target()
        self._cue = np.full((E, 0), -1) if cue is None else cue
        if not self.slots:
            self.slots, self._t = self._step.shape[1], np.zeros(E, np.int64)
            self._reels = [_Reel() for _ in range(min(E, WORLDS))]

    def follow(self, step: Step, ended: np.ndarray, total: np.ndarray) -> None:
        """What came of it: `ended` [E] episodes that count, `total` [E] returns. A row that wasn't played is passed
        over."""
        if self._blind:
            return
        played = ~step.is_first
        for world, reel in enumerate(self._reels):
            if not self._reels:  # one before it was the last that is kept
                break
            if not played[world]:
                self._reels[world] = _Reel()
                continue
            arrays = [a[world] for a in (self._step, self._weight, self._worth, self._cue)]
            reel.add(int(self._t[world]), arrays, last=bool(step.terminated[world] | step.truncated[world]))
            if ended[world]:
                self._keep(reel, world, float(total[world]))
        self.count += int(ended.sum())
        if ended.any() and self._cue.shape[1]:
            self._judge(ended)
        self._t = np.where(played, self._t + 1, 0)

    def _keep(self, reel: _Reel, world: int, total: float) -> None:
        """Keep an episode if it is the first of its right answer."""
        target = None if self._target is None else int(self._target[world])
        if len(self.episodes) < SHOWN and target not in [episode.target for episode in self.episodes]:
            self.episodes.append(reel.episode(target, total))
        if len(self.episodes) == SHOWN or target is None:
            self._reels = []

    def _judge(self, ended: np.ndarray) -> None:
        """The last decisions of episodes: were their cues held, how much attention did they get, and what is chance?"""
        held, weight, cue, t = self._step[ended], self._weight[ended], self._cue[ended], self._t[ended]
        shown = (cue >= 0) & (cue < t[:, None])  # [N, n] before: what is in sight needn't be held
        hit = (held[:, None, :] == cue[:, :, None]) & shown[:, :, None]  # [N, n, K]
        cues, full = np.maximum(shown.sum(1), 1), (held != EMPTY).sum(1)
        answer = np.full(len(t), -1) if self._target is None else self._target[ended]
        kept, attention = hit.any(2).sum(1) / cues, (weight * hit.any(1)).sum(1)
        blind = np.minimum(full / (self._begin[ended] + t + 1), 1)
        even = np.where(full > 0, np.minimum(cues / np.maximum(full, 1), 1), 0)
        rows = np.stack([answer, kept, attention, blind, even], axis=1)
        self._judged += list(rows[shown.any(1)])

    def figures(self) -> dict[str, Any] | None:
        """Numbers over all episodes; None where the core shows nothing, key `cue` None where the task knows no cue.

        `kept`: share of the cues held at the last decision; `attention`: what they get of it, all together;
        `kept_by_chance`: by as many entries, chosen blindly; `attention_if_even`: if the cues were held and all entries
        got the same.
        """
        if not self.count or not self.slots:
            return None
        return {"episodes": self.count, "slots": self.slots, "cue": self._cue_figures()}

    def row(self) -> Metrics:
        """What a table of evaluations shows: `cue_kept`, `cue_attention`; {} where they aren't known."""
        cue = (self.figures() or {"cue": None})["cue"]
        return {f"cue_{name}": cue[name] for name in ("kept", "attention")} if cue else {}

    def _cue_figures(self) -> dict[str, Any] | None:
        if not self._judged:
            return None
        rows = np.stack(self._judged)
        answers = np.unique(rows[:, 0]).astype(int).tolist()
        by_target = {
            str(answer): {"episodes": int(one.sum()), **_means(rows[one])}
            for answer in answers
            if (one := rows[:, 0] == answer).any()
        }
        told_apart = 2 <= len(answers) <= ANSWERS
        chance = dict(zip(("kept_by_chance", "attention_if_even"), rows[:, 3:].mean(0).tolist(), strict=True))
        return {"episodes": len(rows), **_means(rows), **chance, "by_target": by_target if told_apart else {}}

    def write(self, file: Path, **facts: Any) -> None:
        """Write `file` (.json: figures and `facts`) and, beside it, .npz (episodes); nothing where there is nothing."""
        figures = self.figures()
        if figures is None:
            return
        arrays = {
            f"{i}_{field.name}": np.asarray(np.nan if value is None else value)
            for i, episode in enumerate(self.episodes)
            for field in fields(episode)
            for value in [getattr(episode, field.name)]
        }
        write_atomic(file.with_suffix(".npz"), lambda path: _save(path, arrays))
        write_json(file, {**facts, **figures})


def _means(rows: np.ndarray) -> dict[str, float]:
    return {"kept": float(rows[:, 1].mean()), "attention": float(rows[:, 2].mean())}


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:  # given a name, numpy would append .npz to it
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub takes a key for allow_pickle


def _recalled(extras: Tree, agents: tuple[str, ...]) -> list[np.ndarray] | None:
    """The arrays [E, K] of `KEYS` and `BEGIN` [E] of the first core that shows them; of independent learners, world by
    world.
    """
    each = [extras[name] for name in agents] if agents and set(agents) <= extras.keys() else [extras]
    shown = [found for found in map(_find, each) if found is not None]
    if len(shown) < len(each):
        return None
    joined = [np.stack(leaves, axis=1) for leaves in zip(*map(_arrays, shown), strict=True)]
    return [leaf.reshape(-1, *leaf.shape[2:]) for leaf in joined]  # [E / A, A, K] to [E, K]


def _arrays(recall: Tree) -> list[np.ndarray]:
    held = [recall[key].cpu().numpy() for key in KEYS]
    return [*held, recall[BEGIN].cpu().numpy() if BEGIN in recall else np.zeros(len(held[0]), np.int64)]


def _find(extras: Tree) -> Tree | None:
    if set(KEYS) <= extras.keys():
        return extras
    found = (_find(child) for child in extras.values() if isinstance(child, dict))
    return next((recall for recall in found if recall is not None), None)


# ---- read back and told ----------------------------------------------------------------------------------------------


def load_episodes(file: Path) -> list[Episode]:
    """The episodes beside `file` (.json). LabError where they can't be read."""
    path = file.with_suffix(".npz")
    try:
        with np.load(path, allow_pickle=False) as data:
            count = 1 + max((int(key.partition("_")[0]) for key in data.files), default=-1)
            rows = [{field.name: data[f"{i}_{field.name}"] for field in fields(Episode)} for i in range(count)]
    except (OSError, ValueError, KeyError) as error:
        raise LabError(f"{path} can't be read: {error}. Train on, or `enjoy` the run: it is written again.") from error
    for row in rows:
        row["target"] = None if np.isnan(row["target"]) else int(row["target"])
        row["total"] = float(row["total"])
    return [Episode(**row) for row in rows]


def load_figures(file: Path) -> dict[str, Any]:
    """What `write` wrote. LabError where it can't be read."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise LabError(f"{file} can't be read: {error}. Train on, or `enjoy` the run: it is written again.") from error


def sentences(figures: dict[str, Any]) -> list[str]:
    """What the figures say, for one who hasn't read the code."""
    cue, slots = figures["cue"], figures["slots"]
    if cue is None:
        return [f"The memory has {plural(slots, 'slot')}. The task doesn't say what must be remembered."]
    told = [
        f"At the last decision of {plural(cue['episodes'], 'episode')}, {percent(cue['kept'])} of the cues (what the "
        f"task asks to be remembered) were still in memory. Its {plural(slots, 'slot')}, filled blindly, would hold "
        f"{percent(cue['kept_by_chance'])}.",
        f"At that decision {percent(cue['attention'])} of the attention was on the cues; spread evenly over all that "
        f"is held it would be {percent(cue['attention_if_even'])}.",
    ]
    if cue["by_target"]:
        each = "; ".join(
            f"{answer}: held {percent(of['kept'])}, attention {percent(of['attention'])}"
            for answer, of in cue["by_target"].items()
        )
        kept = [of["kept"] for of in cue["by_target"].values()]
        absent = " A cue that is seldom held can only be told by its absence." if min(kept) < 0.5 * max(kept) else ""
        told.append(f"By right answer: {each}.{absent}")
    return told


def percent(share: float) -> str:
    """'98.5 %'."""
    return f"{100 * share:.3g} %"
