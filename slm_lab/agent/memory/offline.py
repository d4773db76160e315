"""Experience in files: out of a memory, into one, and as windows for torch's DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from slm_lab.agent.memory.rows import Rows, record, window
from slm_lab.env.base import World
from slm_lab.env.dataset import OFFLINE, Dataset, write_dataset
from slm_lab.lib.columns import Columns, Facts
from slm_lab.lib.errors import Problem
from slm_lab.lib.types import Row, Tree

if TYPE_CHECKING:
    from slm_lab.spec.lab_spec import LabSpec

AT_ONCE = 1024  # steps of all worlds, read together


def write_rows(path: Path, rows: Rows, world: World, facts: Facts) -> None:
    """Write what `rows` hold as a file of experience, the oldest row first, a column at a time."""
    assert rows.action_dtype is not None  # they hold something
    held = {"rows": rows.size, "lead": rows.margin, "played": count_played(rows), "action_dtype": rows.action_dtype.str}
    write_dataset(path, world, facts | held, _columns(rows))


def count_played(rows: Rows) -> int:
    seen = np.arange(rows.first + 1, rows.count + 1)
    return int(np.count_nonzero(~rows.data["is_first"][seen % rows.slots]))


def _columns(rows: Rows) -> Columns:
    seen = np.arange(rows.first - rows.margin, rows.count + 1) % rows.slots
    for key, store in rows.data["obs"].items():
        yield f"obs.{key}", _ordered(rows, store, seen)
    yield "is_first", rows.data["is_first"][seen]
    done = np.arange(rows.first, rows.count) % rows.slots
    for name, store in rows.data["done"].items():
        yield name, _ordered(rows, store, done)


def _ordered(rows: Rows, store: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """`store` at these slots: a view where they follow each other, else a copy, in RAM or on disk as the rows are."""
    if slots[0] <= slots[-1]:
        return store[slots[0] : slots[-1] + 1]
    copy = rows.allocate((len(slots), *store.shape[1:]), store.dtype)
    return np.take(store, slots, axis=0, out=copy, mode="clip")  # a mode that needs no buffer


def read_rows(data: Dataset) -> Rows:
    """The rows of a file, from number `lead` on; observations stay on disk until they are read."""
    rows = Rows(data.rows, data.world.stacks, data.world.action_space, extras=False)
    columns = data.columns()
    obs = {key: columns.pop(f"obs.{key}") for key in data.world.obs_space}
    is_first = columns.pop("is_first")
    steps = np.zeros(is_first.shape, record(is_first[0], {name: column[0] for name, column in columns.items()}))
    steps["is_first"] = is_first
    for name, column in columns.items():
        steps[name][data.lead : -1] = column  # of what was done there are no more rows
    rows.hold(obs, steps, {})
    rows.first, rows.count, rows.action_dtype = data.lead, data.lead + data.rows, data.action_dtype
    return rows


def lived(data: Dataset, carry: Tree) -> Iterator[Row]:
    """The rows of a file as a memory takes them in. Files hold no carry: `carry` {..: [E, ...]} stands for it."""
    rows, env = read_rows(data), np.arange(data.world.num_envs)[None]
    for begin in range(rows.first, rows.count, AT_ONCE):
        t = np.arange(begin, min(begin + AT_ONCE, rows.count) + 1)[:, None]
        at = rows.place(t, env)
        obs, is_first, done = rows.obs(at), rows.is_first(at), rows.done(at[:-1])
        for i in range(len(t) - 1):
            now, after = ({key: x[j] for key, x in obs.items()} for j in (i, i + 1))
            ends = {name: done[name][i] for name in ("action", "reward", "terminated", "truncated")}
            yield Row(now, is_first[i], carry, extras={}, **ends, next_obs=after, next_is_first=is_first[i + 1])


def offline_problems(memory: Any, spec: LabSpec) -> list[Problem]:
    """What keeps this agent from learning from `env.dataset`; `memory` is the class of its memory."""
    given, agent = spec.agent.memory, spec.agent
    if memory.on_policy:
        message = f"{agent.algorithm.name} learns from what its own policy does; a dataset is of others: use DQN or SAC"
        return [Problem("agent.algorithm.name", message)]
    if agent.learners == "independent":
        return [Problem("agent.learners", "independent learners can't share a dataset: 'shared' was expected")]
    data, found = Dataset(spec.env.dataset), []
    E = data.world.num_envs
    if given.max_size < data.rows * E:
        message = f"{given.max_size:,} rows don't hold the dataset's {data.rows * E:,}: give at least as many"
        found.append(Problem("agent.memory.max_size", message))
    if given.batch_size > data.played:
        message = f"{given.batch_size} is more than the {data.played:,} steps played in the dataset"
        found.append(Problem("agent.memory.batch_size", message))
    needed = getattr(given, "sequence_length", 0) + getattr(given, "carry_every", 0)
    if data.rows < needed:
        message = f"sequence_length + carry_every are {needed} steps, the dataset has {data.rows} of each world"
        found.append(Problem("agent.memory.sequence_length", message))
    if agent.net.core["name"] != "none" and getattr(given, "burn_in", None) == 0:
        message = "a dataset has no carries, so windows begin with an empty one: give it steps to fill, at least 1"
        found.append(Problem("agent.memory.burn_in", message))
    if spec.env.name == OFFLINE and spec.meta.rigorous_eval:
        message = f"{OFFLINE} has no world to evaluate in: 0 was expected, or the world's name in env.name"
        found.append(Problem("meta.rigorous_eval", message))
    return found


class ExperienceDataset(IterableDataset[Tree]):
    """Windows of a file of experience, for `torch.utils.data.DataLoader`; none goes beyond its episode.

    Every row that was played is in exactly one window: episodes are cut every `length` steps from their beginning
    (`length=None`: not cut, all windows as long as the longest episode), and the rest is padded. A window is a dict
    of tensors: `obs` {key: [length + 1, *O]}, `is_first` [length + 1], `action` [length, *A], `reward`, `terminated`,
    `truncated`, and `mask` [length] bool, False: padding, which is zero (observations: the last one repeated).

    With a `seed` the windows come in an order by chance, another one after each `set_epoch`; without, in the file's.
    The workers of a DataLoader share them out. Observations are read from disk as they are asked for.

    Raises `LabError` where the file is missing, cut short or changed; all of it is verified here, once.
    """

    def __init__(self, path: str | Path, length: int | None = None, seed: int | None = None) -> None:
        self.path, self.length, self.seed, self.epoch = Path(path), length, seed, 0
        Dataset(path).file.verify()

    def set_epoch(self, epoch: int) -> None:
        """Which order the next pass takes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tree]:
        rows = read_rows(Dataset(self.path))
        t, env, size = self._windows(rows)
        length = self.length or int(size.max())
        order = np.arange(len(t))
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        worker = get_worker_info()
        for i in order if worker is None else order[worker.id :: worker.num_workers]:
            yield _padded(rows, t[i], env[i], size[i], length)

    def _windows(self, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First row, world and number of rows of each window [N], world by world."""
        t = np.arange(rows.first, rows.count)[:, None]
        played = rows.played(rows.place(t, np.arange(rows.E))).T  # [E, T]
        edges = np.diff(np.pad(played, [(0, 0), (1, 1)]).astype(np.int8), axis=1)
        env, begin = np.nonzero(edges == 1)  # an episode's rows are together, an unplayed one is between two of them
        size = np.nonzero(edges == -1)[1] - begin
        step = self.length or max(int(size.max(initial=1)), 1)
        cuts = -(-size // step)
        which = np.repeat(np.arange(len(size)), cuts)
        into = (np.arange(len(which)) - np.repeat(np.cumsum(cuts) - cuts, cuts)) * step
        return rows.first + begin[which] + into, env[which], np.minimum(step, size[which] - into)


def _padded(rows: Rows, t: int, env: int, size: int, length: int) -> Tree:
    """The window of `size` rows from row `t` of world `env`, made `length` long."""
    steps = t + np.minimum(np.arange(length + 1), size)
    batch = window(rows, rows.place(steps[None], np.array([[env]])), {})
    mask = np.arange(length) < size
    found: Tree = {"obs": {key: torch.from_numpy(x[0]) for key, x in batch.obs.items()}}
    found |= {"is_first": torch.from_numpy(batch.is_first[0]), "mask": torch.from_numpy(mask)}
    for name in ("action", "reward", "terminated", "truncated"):
        column = getattr(batch, name)[0]
        column[~mask] = 0
        found[name] = torch.from_numpy(column)
    return found
