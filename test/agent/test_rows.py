"""The ring of rows, and the table of weights: against what they were given, at every place and after every wrap."""

from __future__ import annotations

import tempfile
import tracemalloc
from itertools import pairwise
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import Lives, replay

from slm_lab.agent.memory.onpolicy import OnPolicyBatchReplay, OnPolicyReplay
from slm_lab.agent.memory.prioritized import PrioritizedReplay
from slm_lab.agent.memory.replay import Replay
from slm_lab.agent.memory.rows import Rows, small_dtype
from slm_lab.agent.memory.storage import storage
from slm_lab.agent.memory.sum_table import SumTable
from slm_lab.env.base import Stack, World
from slm_lab.lib.types import Row

quick = settings(max_examples=40, deadline=None, derandomize=True)


def frames(ids: np.ndarray) -> dict[str, np.ndarray]:
    """Stacks of 4 frames CHW and of 2 frames HWC beside a plain key: an episode's first frame repeated before it."""

    def frame(back: int) -> np.ndarray:  # [E, 2, 3]
        env, episode, t = ids.T
        number = env * 101 + episode * 13 + np.maximum(t - back, 0)
        return (number[:, None, None] * 7 + np.arange(6).reshape(2, 3)).astype(np.uint8)

    chw = np.stack([frame(back) for back in (3, 2, 1, 0)], axis=1)  # [E, 4, 2, 3]
    hwc = np.concatenate([np.stack([frame(b), frame(b)], axis=-1) for b in (1, 0)], axis=-1)  # [E, 2, 3, 2 * 2]
    return {"chw": chw, "hwc": hwc, "plain": ids.astype(np.float32)}


STACKS = {"chw": Stack(4, 0), "hwc": Stack(2, -1)}


def check_held(rows: Rows, shown: list[Row]) -> None:
    """Every held row shows what was seen when acting, and after it what its action led to."""
    env = np.arange(len(shown[0].is_first))
    for t in range(rows.first, rows.count):
        for key in shown[t].obs:
            np.testing.assert_array_equal(rows.obs(rows.place(np.array(t), env))[key], shown[t].obs[key])
            np.testing.assert_array_equal(rows.obs(rows.place(np.array(t + 1), env))[key], shown[t].next_obs[key])
            assert rows.obs(rows.place(np.array(t), env))[key].dtype == shown[t].obs[key].dtype
        done = rows.done(rows.place(np.array(t), env))
        for name in ("action", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(done[name], getattr(shown[t], name))
            assert done[name].dtype == getattr(shown[t], name).dtype
        np.testing.assert_array_equal(rows.is_first(rows.place(np.array(t), env)), shown[t].is_first)
        np.testing.assert_array_equal(rows.played(rows.place(np.array(t), env)), shown[t].mask)


@quick
@given(
    st.sampled_from([1, 4]), st.integers(1, 9), st.integers(1, 40), st.integers(1, 9), st.booleans(), st.integers(0, 9)
)
def test_what_was_shown_is_what_is_held(
    E: int, capacity: int, steps: int, longest: int, grows: bool, seed: int
) -> None:
    """At every place of the ring, right behind the write head too, and wherever in an episode the memory begins."""
    lives = Lives(E, seed, longest, show=frames)
    for _ in range(seed):
        lives.row()  # the memory comes later
    rows, shown = Rows(capacity, STACKS, spaces.Discrete(9), grows=grows), []
    for _ in range(steps):
        shown.append(lives.row())
        rows.append(shown[-1])
        assert rows.size == (len(shown) if grows else min(len(shown), capacity))
    check_held(rows, shown)
    assert {key: store.shape[2:] for key, store in rows.data["obs"].items()} == {
        "chw": (1, 2, 3), "hwc": (2, 3, 2), "plain": (3,)
    }, "one frame is stored"  # fmt: skip


@settings(quick, max_examples=15)
@given(st.integers(1, 9), st.integers(1, 30), st.booleans())
def test_saved_anywhere_the_ring_holds_the_same(capacity: int, cut: int, grows: bool) -> None:
    lives, shown = Lives(3, seed=cut, longest=9, show=frames), []
    rows, other = (Rows(capacity, STACKS, spaces.Discrete(9), grows=grows) for _ in range(2))
    for i in range(40):
        shown.append(lives.row())
        rows.append(shown[-1])
        if i == cut:
            other.load_state_dict(rows.state_dict())
            check_held(other, shown)
        elif i > cut:
            other.append(shown[-1])
    check_held(rows, shown)
    check_held(other, shown)


@pytest.mark.parametrize("cls", [OnPolicyBatchReplay, OnPolicyReplay])
def test_on_policy_windows_show_the_stacks_that_were_acted_on(cls: Any) -> None:
    """Also where a window begins amid an episode."""
    where = World(2, {}, spaces.Discrete(9), STACKS)
    memory, lives = replay(cls, where=where, frequency=5), Lives(2, longest=9, show=frames)
    batches = 0
    for _ in range(100):
        memory.update(lives.row())
        if memory.to_train:
            batch, batches = memory.sample(), batches + 1
            for window, mask, ids in zip(batch.obs["chw"], batch.mask, batch.obs["plain"], strict=True):
                np.testing.assert_array_equal(window[:-1][mask], frames(ids.astype(int))["chw"][:-1][mask])
    assert batches > 5


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(np.uint8, 255), (np.int64, 2**62 + 1), (np.float64, 70_000.123), (np.float32, 2049), (np.int8, -1), (bool, True)],
)
def test_numbers_come_back_as_they_were(dtype: Any, value: Any) -> None:
    rows, flags = Rows(3), np.zeros(2, bool)
    obs = {"a.b": np.full((2, 3), value, dtype)}
    rows.append(Row(obs, flags, {}, np.zeros(2), {}, np.zeros(2, np.float32), flags, flags, obs, flags))
    found = rows.obs(np.array([0, 3]))["a.b"]
    assert found.dtype == dtype
    assert (found == obs["a.b"][0]).all()


@pytest.mark.parametrize(
    ("space", "small"),
    [
        (spaces.Discrete(256), np.uint8), (spaces.Discrete(257), np.uint16), (spaces.MultiDiscrete([2, 70_000]), np.uint32),
        (spaces.Box(-1, 1, (2,)), None), (spaces.MultiBinary(3), None),
    ],
)  # fmt: skip
def test_discrete_actions_take_little_room(space: spaces.Space, small: Any) -> None:
    assert small_dtype(space) == small


@pytest.mark.parametrize("action", [np.uint8, np.uint16, np.int64, np.float32, np.float64])
def test_torch_takes_what_is_read_as_it_is(action: Any) -> None:
    """Fields of one record are views with strides; torch wants these to be whole numbers of elements."""
    rows, no = Rows(3), np.zeros(2, bool)
    row = Row({}, no, {}, np.ones((2, 3), action), {}, np.full(2, 0.5, np.float32), no, ~no, {}, no)
    for _ in range(2):
        rows.append(row)
    found = rows.done(np.array([[0, 1], [2, 3]]))
    for name in ("action", "reward", "terminated", "truncated"):
        held = torch.from_numpy(found[name]).numpy()
        np.testing.assert_array_equal(held, np.stack([getattr(row, name)] * 2))


def test_what_was_read_outlives_later_writes() -> None:
    lives, rows = Lives(1, show=frames), Rows(3, STACKS)
    rows.append(lives.row())
    found = rows.obs(np.array([0])) | rows.done(np.array([0]))
    before = {key: np.array(leaf) for key, leaf in found.items() if key != "extras"}
    for _ in range(9):
        rows.append(lives.row())
    for key, leaf in before.items():
        np.testing.assert_array_equal(found[key], leaf)


def test_what_is_on_disk_has_its_room_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with holes would kill the process at the write that finds the disk full."""
    named = tmp_path / "rows"
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: named.open("w+b"))
    array = storage("memmap", tmp_path)((500, 1000), np.dtype(np.int16))
    assert not array.any()
    assert named.stat().st_blocks * 512 >= array.nbytes


def test_on_disk_it_is_the_same(tmp_path: Path) -> None:
    lives, shown = Lives(2, longest=9, show=frames), []
    rows = Rows(7, STACKS, allocate=storage("memmap", tmp_path))
    for _ in range(20):
        shown.append(lives.row())
        rows.append(shown[-1])
    check_held(rows, shown)
    assert isinstance(rows.data["obs"]["chw"].base, mmap), "in the file, not a copy in RAM"
    assert not list(tmp_path.iterdir()), "a file without a name can't be left behind"


FRAMES = World(1, {"obs": spaces.Box(0, 255, (4, 84, 84), np.uint8)}, spaces.Discrete(6), {"obs": Stack(4, 0)})
VECTORS = World(1000, {"obs": spaces.Box(-1, 1, (4,))}, spaces.Discrete(2))


@pytest.mark.parametrize(
    ("cls", "world", "size", "megabytes"),
    [
        (Replay, FRAMES, 10_000, 80), (PrioritizedReplay, FRAMES, 10_000, 80),
        (Replay, VECTORS, 1_000_000, 28), (PrioritizedReplay, VECTORS, 1_000_000, 40),
    ],
)  # fmt: skip
def test_ram_of_a_full_memory(cls: Any, world: World, size: int, megabytes: float) -> None:
    """Of everything it holds, at its most: filled and wrapped (the frames only begun: all is allocated by then)."""
    E, space = world.num_envs, world.obs_space["obs"]
    obs, no = {"obs": np.zeros((E, *space.shape), space.dtype)}, np.zeros(E, bool)
    row = Row(obs, no, {}, np.zeros(E, np.int64), {}, np.zeros(E, np.float32), no, no, obs, no)
    tracemalloc.start()
    memory = replay(cls, where=world, max_size=size)
    for _ in range(size // E + 5 if E > 1 else 50):
        memory.update(row)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.5 * megabytes < peak / 1e6 <= megabytes


# --- the table of weights ---


def naive(weights: np.ndarray, share: float) -> int:
    """The first index whose weights so far exceed `share` of them all."""
    return int(np.flatnonzero(np.cumsum(weights) > share * weights.sum())[0])


@quick
@given(st.integers(1, 3000), st.integers(0, 10_000))
def test_the_table_against_a_plain_list(size: int, seed: int) -> None:
    """Whole numbers as weights, so that sums are exact: any size, zeros, indices given twice, many changes."""
    rng = np.random.default_rng(seed)
    table, weights = SumTable(size), np.zeros(size)
    for _ in range(6):
        index = rng.integers(0, size, rng.integers(1, 40))
        value = rng.integers(0, 4, len(index)).astype(float)
        table.set(index, value)
        weights[index] = table.leaf[index]
        last = {int(i): {float(v) for j, v in zip(index, value, strict=True) if j == i} for i in index}
        assert all(weights[i] in given for i, given in last.items())
        assert table.max() == weights.max()
        if weights.any():
            share = rng.random(20)
            assert table.draw(share).tolist() == [naive(weights, s) for s in share]
            assert weights[table.draw(np.array([0.0, np.nextafter(1.0, 0.0)]))].all()
    other = SumTable(size)
    other.load(table.leaf)
    assert other.max() == table.max()
    for name in ("leaf", "row", "row_max", "group", "group_max"):
        np.testing.assert_array_equal(getattr(other, name), getattr(table, name))


def test_each_whole_share_is_its_own_weights() -> None:
    """At exact bounds: weights of 2^12 in all, and as many shares, each exact; every weight gets as many as it is."""
    weights = np.random.default_rng(0).integers(0, 4, 2000).astype(float)
    weights[-1] = 4096 - weights[:-1].sum()
    table = SumTable(2000)
    table.set(np.arange(2000), weights)
    drawn = table.draw(np.arange(4096) / 4096)
    np.testing.assert_array_equal(np.bincount(drawn, minlength=2000), weights)


def test_rounding_never_draws_what_has_no_weight() -> None:
    """A row's sum and its running sum differ in the last bit: at the end of the row that must not lead beyond it."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        weights = np.zeros(64)
        weights[:20], weights[32:50] = rng.random(20), rng.random(18)
        table = SumTable(64)
        table.set(np.arange(64), weights)
        edge = weights[:20].sum() / weights.sum() + np.arange(-20, 21) * 2**-53
        assert weights[table.draw(np.append(edge, np.nextafter(1.0, 0.0)))].all()


@pytest.mark.parametrize("weight", [0.0, np.nan, np.inf])
def test_what_can_not_be_drawn_from_is_told(weight: float) -> None:
    table = SumTable(40)
    table.set(np.array([3]), weight)
    with pytest.raises(ValueError, match=f"add up to {weight}"):
        table.draw(np.array([0.5]))


def test_a_million_weights_of_all_magnitudes() -> None:
    rng = np.random.default_rng(0)
    table = SumTable(1_000_000)
    weights = np.where(rng.random(1_000_000) < 0.3, 0.0, 10.0 ** rng.uniform(-9, 9, 1_000_000))
    table.load(weights)
    index = rng.integers(0, 1_000_000, 20_000)
    weights[index] *= 3
    table.set(index, weights[index])
    share = np.sort(rng.random(5000))
    drawn = table.draw(share)
    assert (weights[drawn] > 0).all()
    total = np.cumsum(weights)
    near = 1e-6 * total[-1]  # float32
    assert (total[drawn] >= share * total[-1] - near).all()
    assert (total[drawn] - weights[drawn] <= share * total[-1] + near).all()
    table.load(np.zeros(1_000_000))
    table.set(np.array([777_777]), 1e-30)
    assert set(table.draw(rng.random(100)).tolist()) == {777_777}, "what was taken out leaves no trace"


def test_sums_do_not_drift() -> None:
    """After a million changes a table's sums are those of its weights."""
    rng, table = np.random.default_rng(0), SumTable(1000)
    for _ in range(1000):
        table.set(rng.integers(0, 1000, 1000), 10.0 ** rng.uniform(-6, 6, 1000))
    np.testing.assert_allclose(table.group.sum(), table.leaf.sum(dtype=float), rtol=1e-6)
    steps = [int(table.draw(np.array([s]))[0]) for s in np.linspace(0, 1, 200, endpoint=False)]
    assert all(a <= b for a, b in pairwise(steps))


def test_a_table_loaded_draws_as_the_one_that_was_saved() -> None:
    """To the last bit, or a resumed run would draw differently: sums don't depend on how many were changed at once."""
    rng = np.random.default_rng(0)
    table, other = SumTable(5000), SumTable(5000)
    for count in (1, 2, 3, 7, 32, 256, 1000):
        table.set(rng.integers(0, 5000, count), 10.0 ** rng.uniform(-9, 9, count))
        other.load(table.leaf)
        assert other.max() == table.max() == table.leaf.max()
        for name in ("row", "row_max", "group", "group_max"):
            np.testing.assert_array_equal(getattr(other, name), getattr(table, name))
