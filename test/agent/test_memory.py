"""On-policy memories against a scalar reference: what was lived, all of it, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from worlds import Lives

from slm_lab.agent.memory.base import MemoryContext
from slm_lab.agent.memory.onpolicy import OnPolicyBatchReplay, OnPolicyReplay
from slm_lab.env.base import World
from slm_lab.lib.types import Batch, Row


def context(E: int, frequency: int) -> MemoryContext:
    return MemoryContext(World(E, {"obs": spaces.Box(-np.inf, np.inf, (3,))}, spaces.Discrete(9)), frequency)


def played(worlds: Lives) -> list[list[tuple[int, ...]]]:
    """(episode, t, action) of all that each world has lived through."""
    return [[(row.episode, row.step, row.action) for row in life if row] for life in worlds.lived]


def valid(batch: Batch) -> list[list[tuple[int, ...]]]:
    """(episode, t, action) of the unmasked rows, for each window."""
    rows = np.concatenate([batch.obs["obs"][:, :-1, 1:], batch.action[..., None]], axis=-1).astype(int)
    return [[tuple(map(int, row)) for row in window[mask]] for window, mask in zip(rows, batch.mask, strict=True)]


def check_windows(batch: Batch) -> None:
    """Next observations follow, ends are where they belong, rewards are those that the action caused."""
    obs, mask = batch.obs["obs"], batch.mask
    assert batch.action.dtype == np.int64
    assert (obs[:, 1:][mask][:, 2] == obs[:, :-1][mask][:, 2] + 1).all(), (
        "the next observation is not the one that followed"
    )
    assert (batch.reward[mask] == obs[:, :-1][mask][:, 2] + 1).all()
    assert not (batch.terminated | batch.truncated)[~mask].any()
    np.testing.assert_array_equal(batch.is_first[:, :-1][mask], obs[:, :-1][mask][:, 2] == 0)


@pytest.mark.parametrize("E", [1, 4, 16])
def test_horizons_hold_everything_once(E: int) -> None:
    worlds, memory = Lives(E), OnPolicyBatchReplay(OnPolicyBatchReplay.Spec(), context(E, 7))
    stored: list[list[tuple[int, ...]]] = [[] for _ in range(E)]
    for step in range(7 * 6):
        memory.update(worlds.row())
        assert memory.to_train == ((step + 1) % 7 == 0)
        if memory.to_train:
            batch = memory.sample()
            assert not memory.to_train
            assert batch.mask.shape == (E, 7)
            assert batch.obs["obs"].shape == (E, 8, 3)
            check_windows(batch)
            np.testing.assert_array_equal(batch.carry["h"], batch.obs["obs"][:, 0] * 10)
            for e, window in enumerate(valid(batch)):
                stored[e] += window
    assert stored == played(worlds)


@pytest.mark.parametrize("E", [1, 4, 16])
@pytest.mark.parametrize("frequency", [1, 3])
def test_episodes_are_complete_and_none_is_lost(E: int, frequency: int) -> None:
    worlds, memory = Lives(E, seed=1), OnPolicyReplay(OnPolicyReplay.Spec(), context(E, frequency))
    stored: list[list[tuple[int, ...]]] = [[] for _ in range(E)]
    updates = 0
    for _ in range(600):
        memory.update(worlds.row())
        if memory.to_train:
            batch = memory.sample()
            updates += 1
            check_windows(batch)
            assert len(batch.mask) >= frequency
            assert (batch.obs["obs"][:, 0, 2] == 0).all(), "an episode begins at its first step"
            np.testing.assert_array_equal(batch.carry["h"], batch.obs["obs"][:, 0] * 10)
            last = batch.mask.sum(axis=1) - 1
            assert (batch.terminated | batch.truncated)[np.arange(len(last)), last].all(), "an episode ends at its end"
            for e, window in zip(batch.obs["obs"][:, 0, 0].astype(int), valid(batch), strict=True):
                stored[e] += window
    assert updates > 10
    for e, life in enumerate(played(worlds)):
        running = [row for row in life if row not in set(stored[e])]
        assert stored[e] + running == life
        assert len({row[0] for row in running}) <= 1 + frequency, "only running or waiting episodes may be missing"
    assert memory.rows.size < 100, "rows of past episodes are dropped"


def test_env_dtypes_are_kept() -> None:
    memory = OnPolicyBatchReplay(OnPolicyBatchReplay.Spec(), context(2, 1))
    flags = np.zeros(2, bool)
    for dtype, value in [(np.int64, 70_000), (np.float64, 70_000.123), (np.uint8, 255), (np.float32, 2049.0)]:
        memory.rows.data = {}
        obs = {"obs": np.full((2, 3), value, dtype)}
        memory.update(Row(obs, flags, {}, np.zeros(2), {}, np.zeros(2, np.float32), flags, flags, obs, flags))
        stored = memory.sample().obs["obs"]
        assert stored.dtype == dtype
        assert (stored == obs["obs"]).all(), "learning must see what acting saw"


def test_a_batch_outlives_later_writes() -> None:
    worlds, memory = Lives(1), OnPolicyBatchReplay(OnPolicyBatchReplay.Spec(), context(1, 3))
    for _ in range(3):
        memory.update(worlds.row())
    batch = memory.sample()
    before = batch.obs["obs"].copy()
    for _ in range(3):
        memory.update(worlds.row())
    np.testing.assert_array_equal(batch.obs["obs"], before)


@pytest.mark.parametrize("cls", [OnPolicyBatchReplay, OnPolicyReplay])
def test_saved_anywhere_it_goes_on_alike(cls: Any) -> None:
    for cut in range(1, 14):
        worlds, memory = Lives(3, seed=2), cls(cls.Spec(), context(3, 4))
        rows = [worlds.row() for _ in range(40)]
        other = cls(cls.Spec(), context(3, 4))
        for i, row in enumerate(rows):
            memory.update(row)
            if i == cut:
                other.load_state_dict(memory.state_dict())
            elif i > cut:
                other.update(row)
                assert other.to_train == memory.to_train
            if memory.to_train:
                a = memory.sample()
                if i >= cut:
                    b = other.sample()
                    np.testing.assert_array_equal(a.mask, b.mask)
                    np.testing.assert_array_equal(a.obs["obs"][:, :-1][a.mask], b.obs["obs"][:, :-1][b.mask])
                    np.testing.assert_array_equal(a.carry["h"], b.carry["h"])
