"""Experience in files: the same rows as the memory's, in the same order, to fill memories and DataLoaders from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from torch.utils.data import DataLoader
from worlds import Lives, replay

from slm_lab.agent.memory.base import MemoryContext
from slm_lab.agent.memory.offline import ExperienceDataset, lived, read_rows, write_rows
from slm_lab.agent.memory.onpolicy import OnPolicyBatchReplay
from slm_lab.agent.memory.prioritized import PrioritizedReplay
from slm_lab.agent.memory.replay import CER, Replay
from slm_lab.agent.memory.rows import Rows
from slm_lab.agent.memory.sequence import SequenceReplay
from slm_lab.env.base import Stack, World
from slm_lab.env.dataset import Dataset
from slm_lab.lib.tree import tree_map
from slm_lab.lib.types import Row, Tree

STACKED = World(3, {"obs": spaces.Box(-np.inf, np.inf, (9,), np.float64)}, spaces.Discrete(9), {"obs": Stack(3, -1)})
PLAIN = World(3, {"obs": spaces.Box(-np.inf, np.inf, (3,), np.float64)}, spaces.Discrete(9))
FACTS: Tree = {"env": {"name": "Lives"}, "wrappers": {}}


def stacked(ids: np.ndarray) -> Tree:
    """[E, 9]: the last three observations, an episode's first repeated before it."""
    worlds, episode, t = ids.T
    frames = [np.stack([worlds, episode, np.maximum(t - back, 0)], axis=1) for back in (2, 1, 0)]
    return {"obs": np.concatenate(frames, axis=1).astype(np.float64)}


def played(world: World, steps: int, capacity: int = 1000, seed: int = 0) -> tuple[Rows, list[Row]]:
    """Rows after so many steps of the worlds of a diary, and all that was lived."""
    lives = Lives(3, seed, longest=7, **({"show": stacked} if world.stacks else {}))
    rows, all_rows = Rows(capacity, world.stacks, world.action_space, extras=False), []
    for _ in range(steps):
        all_rows.append(lives.row())
        rows.append(all_rows[-1])
    return rows, all_rows


def exported(path: Path, world: World = PLAIN, steps: int = 60, **keys: Any) -> tuple[Dataset, list[Row]]:
    rows, all_rows = played(world, steps, **keys)
    write_rows(path, rows, world, FACTS)
    return Dataset(path), all_rows[-rows.size :]


def same(a: Row, b: Row) -> bool:
    names = ("is_first", "action", "reward", "terminated", "truncated", "next_is_first")
    pairs = [(getattr(a, name), getattr(b, name)) for name in names]
    pairs += [(a.obs[key], b.obs[key]) for key in a.obs] + [(a.next_obs[key], b.next_obs[key]) for key in a.obs]
    return all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in pairs)


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
@pytest.mark.parametrize("world", [PLAIN, STACKED], ids=["plain", "stacked"])
@pytest.mark.parametrize("capacity", [1000, 23])
def test_a_file_gives_back_the_rows_that_were_held(tmp_path: Path, kind: str, world: World, capacity: int) -> None:
    data, held = exported(tmp_path / f"a.{kind}", world, capacity=capacity)
    back = list(lived(data, {"h": np.zeros(3)}))
    assert len(back) == len(held) == min(capacity, 60) == data.rows
    assert all(same(a, b) for a, b in zip(back, held, strict=True))
    assert data.played == sum(int(row.mask.sum()) for row in held)
    size = {"obs.obs": data.file.column("obs.obs").shape[-1]}
    assert size == {"obs.obs": 3}, "stacks are stored as single frames"


def test_exporting_what_was_read_gives_an_equal_file(tmp_path: Path) -> None:
    data, _ = exported(tmp_path / "a.npz", STACKED, capacity=23)
    write_rows(tmp_path / "b.npz", read_rows(data), data.world, FACTS)
    again = Dataset(tmp_path / "b.npz")
    assert again.file.facts == data.file.facts


@pytest.mark.parametrize("cls", [Replay, CER, PrioritizedReplay, SequenceReplay])
def test_a_memory_is_filled_as_if_it_had_lived_it_and_owes_nothing(tmp_path: Path, cls: Any) -> None:
    data, held = exported(tmp_path / "a.npz", STACKED)
    keys = {"where": STACKED, "max_size": 300, "batch_size": 8, "start": 6, "frequency": 3}
    filled, living = replay(cls, **keys), replay(cls, **keys)
    filled.fill(lived(data, {"h": held[0].carry["h"] * 0}))
    for row in held:
        living.update(row)
    assert not filled.to_train
    assert filled.gate.frame == 0
    for name, store in living.rows.data["done"].items():
        np.testing.assert_array_equal(filled.rows.data["done"][name], store)
    for attempt in (filled, living):
        attempt.gate.frame = 6
    drawn = [memory.sample() for memory in (filled, living)]
    np.testing.assert_array_equal(drawn[0].obs["obs"], drawn[1].obs["obs"])
    if drawn[0].weight is not None:
        np.testing.assert_array_equal(drawn[0].weight, drawn[1].weight)


def test_the_clock_owes_updates_as_play_does() -> None:
    memory = replay(Replay, E=3, frequency=3, start=6, iterations=2)
    owed = []
    for _ in range(5):
        memory.tick(3)
        owed.append(memory.gate.owed)
    assert owed == [0, 0, 2, 4, 6]


def test_a_window_that_begins_amid_an_episode_has_the_stacks_that_were_seen() -> None:
    memory = OnPolicyBatchReplay(OnPolicyBatchReplay.Spec(), MemoryContext(STACKED, 4))
    lives, shown = Lives(3, 1, longest=50, show=stacked), []
    for _ in range(12):
        shown.append(lives.row())
        memory.update(shown[-1])
        if memory.to_train:
            batch = memory.sample()
            seen = np.stack([row.obs["obs"] for row in shown[-4:]] + [shown[-1].next_obs["obs"]], axis=1)
            np.testing.assert_array_equal(batch.obs["obs"], seen)


def test_the_frames_before_the_first_row_are_saved_with_it() -> None:
    rows, all_rows = Rows(30, STACKED.stacks, STACKED.action_space), []
    lives = Lives(3, 1, longest=50, show=stacked)
    for t in range(12):
        all_rows.append(lives.row())
        if t >= 4:
            rows.append(all_rows[-1])
    back = Rows(1, STACKED.stacks, STACKED.action_space)
    back.load_state_dict(tree_map(copy.deepcopy, rows.state_dict()))
    np.testing.assert_array_equal(back.obs(back.place(np.array(0), np.arange(3)))["obs"], all_rows[4].obs["obs"])


# ---- windows for a DataLoader ----------------------------------------------------------------------------------------


def keys(window: Tree) -> list[tuple[int, ...]]:
    """World, episode and step of a window's real rows."""
    return [tuple(int(x) for x in obs) for obs in window["obs"]["obs"][:-1][window["mask"]].tolist()]


@pytest.mark.parametrize("length", [1, 3, None])
def test_every_played_row_is_in_one_window_of_its_episode(tmp_path: Path, length: int | None) -> None:
    _, held = exported(tmp_path / "a.npz", capacity=23)
    windows = list(ExperienceDataset(tmp_path / "a.npz", length))
    rows = [key for window in windows for key in keys(window)]
    real = [tuple(int(x) for x in row.obs["obs"][e]) for row in held for e in range(3) if row.mask[e]]
    assert sorted(rows) == sorted(real)
    for window in windows:
        key, size = keys(window), int(window["mask"].sum())
        assert key == [(*key[0][:2], key[0][2] + i) for i in range(size)], "one episode, step by step"
        assert window["mask"][:size].all()
        end = window["obs"]["obs"][size].tolist()
        assert tuple(end) == (*key[0][:2], key[-1][2] + 1), "what the last row led to"
        assert (window["obs"]["obs"][size:] == window["obs"]["obs"][size]).all(), "repeated, never the next episode's"
        assert all(not window[name][size:].any() for name in ("action", "reward", "terminated", "truncated"))
        assert window["reward"][:size].tolist() == [k[2] + 1 for k in key]
        assert len(window["mask"]) == (length or max(len(keys(w)) for w in windows))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_workers_of_a_loader_share_the_windows_out(tmp_path: Path, workers: int) -> None:
    exported(tmp_path / "a.hdf5")
    data = ExperienceDataset(tmp_path / "a.hdf5", 3, seed=0)
    batches = list(DataLoader(data, batch_size=4, num_workers=workers))
    assert batches[0]["obs"]["obs"].shape == (4, 4, 3)
    found = sorted(key for batch in batches for i in range(len(batch["mask"])) for key in keys(_item(batch, i)))
    assert found == sorted(key for window in ExperienceDataset(tmp_path / "a.hdf5", 3) for key in keys(window))


def _item(batch: Tree, i: int) -> Tree:
    return {"obs": {"obs": batch["obs"]["obs"][i]}, "mask": batch["mask"][i]}


def test_the_order_is_of_the_seed_and_the_epoch(tmp_path: Path) -> None:
    exported(tmp_path / "a.npz")

    def order(seed: int, epoch: int) -> list[Any]:
        data = ExperienceDataset(tmp_path / "a.npz", 3, seed)
        data.set_epoch(epoch)
        return [keys(window)[0] for window in data]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    assert sorted(order(1, 0)) == sorted(order(2, 5))
