"""Replay and CER against scalar references: what may be drawn, how often, what comes with it, and when."""

from __future__ import annotations

import dataclasses
import errno
import os
from mmap import mmap
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from worlds import Lived, Lives, replay

from slm_lab.agent import checkpoint
from slm_lab.agent.memory.gate import Gate
from slm_lab.agent.memory.prioritized import PrioritizedReplay
from slm_lab.agent.memory.replay import CER, Replay
from slm_lab.agent.memory.sequence import SequenceReplay
from slm_lab.env.base import World
from slm_lab.env.vec import EnvSpec, make_env
from slm_lab.lib.errors import LabError
from slm_lab.lib.tree import map_batch, tree_copy, tree_leaves
from slm_lab.lib.types import Batch, Row, Step, Tree

SINGLE = [Replay, CER, PrioritizedReplay]  # memories of single rows
ENVS = [1, 4, 16]
slow = settings(max_examples=60, deadline=None, derandomize=True)


def rich(ids: np.ndarray) -> Tree:
    """Who, when and where in every dtype; each row of each world is told apart by the float64s."""
    world, episode, step = ids.T
    return {
        "id": ids + 1e-9,  # float64, and no float32
        "count.big": (ids + 2**53 + 1).astype(np.int64),
        "image": np.broadcast_to((world + step)[:, None, None], (len(ids), 2, 2)).astype(np.uint8),
        "0": (episode + step) % 2 == 0,
    }


def played_rows(memory: Any, lives: Lives) -> set[tuple[int, Lived]]:
    """(world, row) of all that were played and are still held, by the reference."""
    held = -(-memory.spec.max_size // lives.E)
    return {(e, row) for e, life in enumerate(lives.lived) for row in life[-held:] if row}


def drawn_rows(batch: Batch) -> list[tuple[int, Lived]]:
    """The rows of a batch of single steps, read from its contents, which must belong together."""
    assert batch.mask.all()
    ids = np.floor(batch.obs["id"]).astype(np.int64)  # [B, 2, 3]
    for key, leaf in rich(ids.reshape(-1, 3)).items():
        found = batch.obs[key]
        assert found.dtype == leaf.dtype
        np.testing.assert_array_equal(found.reshape(leaf.shape), leaf)
    assert (ids[:, 1] == ids[:, 0] + [0, 0, 1]).all(), "the observation after is not the one that followed"
    assert batch.action.dtype == np.int64
    assert batch.reward.dtype == np.float32
    done = zip(
        ids[:, 0].tolist(), batch.action[:, 0].tolist(), batch.reward[:, 0].tolist(), batch.terminated[:, 0].tolist(),
        batch.truncated[:, 0].tolist(), strict=True,
    )  # fmt: skip
    return [(world, Lived(episode, step, *rest)) for (world, episode, step), *rest in done]


@slow
@given(
    st.sampled_from(SINGLE), st.sampled_from(ENVS), st.integers(2, 70), st.integers(1, 90), st.integers(1, 6), st.integers(0, 99),
    st.integers(1, 90),
)  # fmt: skip
def test_what_can_be_drawn_is_what_was_lived(
    cls: Any, E: int, max_size: int, steps: int, longest: int, seed: int, lost: int
) -> None:
    """At any moment of a ring that wraps many times: the played rows still held, all of them and nothing else.

    The worlds may be lost on the way: then the last rows are truncated, and the row that bridges the gap is none.
    """
    lives, memory = Lives(E, seed, longest, show=rich), replay(cls, E, max_size=max_size, batch_size=1000, seed=seed)
    for step in range(steps):
        memory.update(lives.row())
        if step == lost:
            memory.interrupt(lives.interrupt())
    expected = played_rows(memory, lives)
    if expected:
        found: set[tuple[int, Lived]] = set()
        for _ in range(3):
            found |= set(drawn_rows(memory.sample()))
        assert found == expected


@pytest.mark.parametrize("E", ENVS)
def test_draws_are_uniform(E: int) -> None:
    lives, memory = Lives(E, seed=3, show=rich), replay(Replay, E, max_size=64, batch_size=20_000)
    for _ in range(150):
        memory.update(lives.row())
    rows = drawn_rows(memory.sample())
    expected = played_rows(memory, lives)
    counts = {row: 0 for row in expected}
    for row in rows:
        counts[row] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


# --- real vectors, in all modes of autoreset ---


class Walk(gymnasium.Env):
    """A noisy walk: terminated at |place| >= 3, truncated after 7 steps (both at once now and then)."""

    observation_space = spaces.Box(-100.0, 100.0, (2,), np.float64)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.number = float(self.np_random.normal()), 0
        return np.array([self.place, 0.0]), {}

    def step(self, action: Any) -> Any:
        self.place += int(action) - 1 + float(self.np_random.normal())
        self.number += 1
        ended = abs(self.place) >= 3, self.number >= 7
        return np.array([self.place, self.number]), self.place, *ended, {}


def scalar_loop(seed: int, actions: np.ndarray) -> list[tuple[Any, ...] | None]:
    """(obs, action, reward, terminated, truncated, next obs) of one env; None where it is begun anew."""
    env, ended = Walk(), False
    obs, _ = env.reset(seed=seed)
    rows: list[tuple[Any, ...] | None] = []
    for action in actions:
        if ended:
            obs, _ = env.reset()
            rows.append(None)
            ended = False
            continue
        after, reward, terminated, truncated, _ = env.step(action)
        rows.append((*obs, int(action), float(np.float32(reward)), terminated, truncated, *after))
        obs, ended = after, terminated or truncated
    return rows


def remember(memory: Any, before: Step, action: np.ndarray, after: Step) -> None:
    memory.update(
        Row(before.obs, before.is_first, {}, action, {}, after.reward, after.terminated, after.truncated, after.obs, after.is_first)
    )  # fmt: skip


@pytest.mark.parametrize("E", ENVS)
@pytest.mark.parametrize("mode", [None, *AutoresetMode])
def test_the_stored_set_is_that_of_scalar_envs(E: int, mode: AutoresetMode | None) -> None:
    """Whoever resets the worlds and when: the rows drawn are those of loops over single envs, to the bit."""
    name = f"test/Replay{mode.value if mode else 'Scalar'}-v0"
    if name not in gymnasium.registry and mode is None:
        gymnasium.register(name, entry_point=Walk, disable_env_checker=True)
    elif name not in gymnasium.registry:
        gymnasium.register(
            name, vector_entry_point=lambda num_envs=1: SyncVectorEnv([Walk] * num_envs, autoreset_mode=mode)
        )
    T, held = 60, 25
    actions = np.random.default_rng(0).integers(3, size=(T, E))
    env = make_env(EnvSpec(name=name, num_envs=E, max_frame=1))
    memory = replay(Replay, where=env.world, max_size=held * E, batch_size=60 * held * E)
    step = env.reset(5)
    for action in actions:
        after = env.step(action)
        remember(memory, step, action, after)
        step = after
    env.close()
    batch = memory.sample()
    columns = (
        batch.obs["obs"][:, 0, 0],
        batch.obs["obs"][:, 0, 1],
        batch.action,
        batch.reward,
        batch.terminated,
        batch.truncated,
    )
    columns += (batch.obs["obs"][:, 1, 0], batch.obs["obs"][:, 1, 1])
    found = set(zip(*(column.ravel().tolist() for column in columns), strict=True))
    lived = [row for e in range(E) for row in scalar_loop(5 + e, actions[:, e])[-held:] if row]
    assert found == set(lived)
    assert E == 1 or {row[4:6] for row in lived} >= {(True, False), (False, True)}, "both kinds of end were met"


# --- n steps ---


def n_steps(life: list[Lived | None], t: int, n: int, gamma: float, end: int) -> tuple[float, int, bool, bool]:
    """Sum of discounted rewards, how many, and how the last of them ended: a plain loop."""
    total, m = 0.0, 0
    while True:
        row = life[t + m]
        assert row, "a row that no one played is part of no return"
        total += gamma**m * row.reward
        m += 1
        if m == n or row.terminated or row.truncated or t + m == end:
            return total, m, row.terminated, row.truncated


@pytest.mark.parametrize("cls", SINGLE)
@pytest.mark.parametrize("E", [1, 4])
@pytest.mark.parametrize("n", [1, 3, 5])
def test_n_steps_are_those_of_a_plain_loop(cls: Any, E: int, n: int) -> None:
    """Ends, truncations and the write head cut them short; the discount tells by how much the value after counts."""
    gamma, lives = 0.9, Lives(E, seed=n, longest=9, show=rich)
    memory = replay(cls, E, max_size=24 * E, batch_size=200, n_step=n, gamma=gamma)
    lengths, cut = set(), 0
    for step in range(60):
        if step == 30:
            memory.interrupt(lives.interrupt())
            continue
        memory.update(lives.row())
        if step % 7 < 5:
            continue
        drawn = memory.draw(200)
        batch = memory.batch(drawn)
        assert batch.mask.all()
        for b, (t, e) in enumerate(zip(*memory.where(drawn.at), strict=True)):
            life = lives.lived[e]
            total, m, terminated, truncated = n_steps(life, t, n, gamma, end=step + 1)
            assert batch.reward[b, 0] == pytest.approx(total, rel=1e-6)
            assert batch.discount[b, 0] == np.float32(gamma**m)
            assert (batch.terminated[b, 0], batch.truncated[b, 0]) == (terminated, truncated)
            before, after = batch.obs["id"][b]
            assert np.floor(before).tolist() == [e, life[t].episode, life[t].step]
            assert np.floor(after).tolist() == [e, life[t].episode, life[t].step + m]
            assert batch.action[b, 0] == life[t].action
            lengths.add(m)
            cut += m < n and not (terminated or truncated)
    assert lengths == set(range(1, n + 1))
    assert n == 1 or cut, "the write head was met"


# --- when to learn ---


@pytest.mark.parametrize(
    ("frequency", "start", "iterations"), [(1, 0, 1), (4, 10, 1), (7, 0, 3), (7, 33, 2), (100, 5, 1)]
)
def test_updates_owed_per_frame_are_the_same_for_any_number_of_worlds(
    frequency: int, start: int, iterations: int
) -> None:
    for E in (1, 3, 4, 16):
        lives, memory = Lives(E), replay(Replay, E, frequency=frequency, start=start, iterations=iterations)
        updates = frames = 0
        for _ in range(800 // E):
            memory.update(lives.row())
            while memory.to_train:
                memory.sample()
                updates += 1
            frames = sum(row is not None for life in lives.lived for row in life)
            assert updates == iterations * (max(frames - start, 0) // frequency), f"{E} worlds, {frames} frames"
        assert updates > 0


def test_a_gate_owes_what_was_stepped_over() -> None:
    gate, taken = Gate(frequency=3, start=4, iterations=2), []
    for frames in (4, 2, 1, 0, 16, 2):
        gate.played(frames)
        taken.append(gate.owed)
        while gate.owed:
            gate.take()
    assert taken == [0, 0, 2, 0, 10, 2]  # at frames 4, 6, 7, 7, 23, 25; due at 7, 10, ..., 25


# --- the newest rows ---


@pytest.mark.parametrize(
    ("cls", "keys", "k"),
    [
        (Replay, {}, 0), (Replay, {"use_cer": True}, 1), (CER, {}, 1), (CER, {"newest": 3}, 3), (CER, {"newest": 8}, 8),
        (PrioritizedReplay, {"use_cer": True}, 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("E", [1, 4])
def test_the_newest_rows_are_in_every_batch(cls: Any, keys: dict[str, Any], k: int, E: int) -> None:
    """Exactly k of them, none newer left out, each once; the rest of the batch is drawn as ever."""
    lives, memory = Lives(E, seed=1, show=rich), replay(cls, E, max_size=40, batch_size=8, **keys)
    for step in range(60):
        memory.update(lives.row())
        played = sorted(
            (t for life in lives.lived for t in range(max(step - 40 // E + 1, 0), step + 1) if life[t]), reverse=True
        )
        if not played:
            continue
        drawn = memory.draw(8)
        t, env = memory.where(drawn.at)
        assert len(t) == 8
        assert t[:k].tolist()[: len(played)] == played[:k]
        newest = list(zip(t[: len(played)][:k].tolist(), env[: len(played)][:k].tolist(), strict=True))
        assert len(set(newest)) == len(newest)
        assert all(lives.lived[e][t] for t, e in newest)
    rest = np.concatenate([memory.where(memory.draw(8).at)[0][k:] for _ in range(0 if k == 8 else 2000)] or [[]])
    counts = [np.sum(rest == t) / sum(life[t] is not None for life in lives.lived) for t in set(played)]
    assert k == 8 or stats.chisquare(counts).pvalue > 0.001


def test_of_one_step_the_newest_row_is_any_worlds() -> None:
    lives, memory = Lives(4, longest=100), replay(CER, 4, batch_size=1)
    for _ in range(2):
        memory.update(lives.row())
    counts = np.bincount([memory.where(memory.draw(1).at)[1][0] for _ in range(2000)], minlength=4)
    assert stats.chisquare(counts).pvalue > 0.001


def test_n_steps_end_before_a_row_that_no_one_played() -> None:
    """Also where an env forgets to flag the end of an episode: nothing comes through from the next one."""
    lives, flagged, bare = Lives(2, seed=1, longest=4), *(replay(Replay, 2, n_step=5) for _ in range(2))
    for _ in range(40):
        row = lives.row()
        flagged.update(row)
        bare.update(dataclasses.replace(row, terminated=np.zeros(2, bool), truncated=np.zeros(2, bool)))
    drawn = flagged.draw(500)
    a, b = flagged.batch(drawn), bare.batch(drawn)
    assert len(np.unique(a.discount)) > 3
    for name in ("reward", "discount"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.obs["obs"], b.obs["obs"])


# --- saving ---

SEQUENCES = {"sequence_length": 4, "carry_every": 2, "burn_in": 1}
MEMORIES = [
    (Replay, {"n_step": 3}), (CER, {"newest": 2}), (PrioritizedReplay, {}), (SequenceReplay, SEQUENCES),
    (SequenceReplay, SEQUENCES | {"prioritized": True, "n_step": 3}),
]  # fmt: skip


def learn(memory: Any) -> list[tuple[str, Any]]:
    """All that is drawn while updates are owed, with priorities coming home: every leaf and its path."""
    found: list[tuple[str, Any]] = []
    while memory.to_train:
        batch = memory.sample()
        memory.feedback(batch.index, np.abs(np.sin(batch.index.astype(float))))
        found += leaves(batch)
    return found


def leaves(batch: Batch) -> list[tuple[str, Any]]:
    """Every leaf of a batch and its path."""
    return list(tree_leaves({name: value for name, value in batch._asdict().items() if name != "burn_in"}))


def same(a: list[tuple[str, Any]], b: list[tuple[str, Any]]) -> None:
    for (name, x), (_, y) in zip(a, b, strict=True):
        assert (x is None and y is None) or x.dtype == y.dtype, name
        np.testing.assert_array_equal(x, y, name)


@pytest.mark.parametrize(("cls", "keys"), MEMORIES)
@pytest.mark.parametrize("storage", ["ram", "memmap"])
def test_saved_anywhere_it_goes_on_alike(
    cls: Any, keys: dict[str, Any], storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws, weights, priorities, the gate: equal to the bit, through files, large arrays streamed or not."""
    monkeypatch.setattr(checkpoint, "LARGE", 200)
    about = {"max_size": 30, "batch_size": 5, "frequency": 4, "start": 15, "storage": storage, **keys}
    for cut in (0, 3, 8, 9, 10, 11, 12, 25, 40):
        lives = Lives(3, seed=cut, show=rich)
        memory, other = replay(cls, 3, seed=1, **about), replay(cls, 3, seed=2, **about)
        learned = 0
        for step in range(55):
            row = lives.row()
            memory.update(row)
            if step == cut:  # before the updates that are owed
                checkpoint.save(tmp_path, "memory", memory.state_dict(), step)
                other.load_state_dict(checkpoint.load(tmp_path, "memory"))
            elif step > cut:
                other.update(row)
            found = learn(memory)
            learned += len(found)
            if step >= cut:
                same(found, learn(other))
        assert learned
        same(
            list(tree_leaves(memory.state_dict()["rows"]["data"])),
            list(tree_leaves(other.state_dict()["rows"]["data"])),
        )


@pytest.mark.parametrize(("cls", "keys"), MEMORIES)
def test_on_disk_it_draws_the_same(cls: Any, keys: dict[str, Any], tmp_path: Path) -> None:
    about = {"max_size": 30, "batch_size": 5, "frequency": 4, "start": 15, "folder": tmp_path, **keys}
    lives = Lives(3, show=rich)
    here, there = replay(cls, 3, **about), replay(cls, 3, storage="memmap", **about)
    for _ in range(60):
        row = lives.row()
        here.update(row)
        there.update(row)
        same(learn(here), learn(there))
    assert isinstance(there.rows.data["obs"]["id"].base, mmap)


def test_a_full_disk_is_told_as_soon_as_there_is_an_array_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each alone would find room, not all of them."""
    reserve, free = os.posix_fallocate, [300_000]

    def on_a_small_disk(file: int, start: int, size: int) -> None:
        free[0] -= size
        if free[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(file, start, size)

    monkeypatch.setattr(os, "posix_fallocate", on_a_small_disk)
    memory = replay(Replay, max_size=10_000, storage="memmap", folder=tmp_path)
    with pytest.raises(LabError, match=rf"{tmp_path} has no room for .* kB of memory rows: No space left.*Free some"):
        memory.update(Lives(1).row())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RAM is read from Linux's /proc")
@pytest.mark.parametrize(("storage", "share"), [("ram", 1.5), ("memmap", 0.25)])
def test_a_part_filled_memory_is_loaded_without_a_second_one(tmp_path: Path, storage: str, share: float) -> None:
    """Rows and carries; with memmap they don't pass through RAM either. `state` is still at hand when RAM is read."""
    wide = World(1, {"obs": spaces.Box(-1, 1, (1000,))}, spaces.Discrete(9))
    about = {"max_size": 5000, "sequence_length": 2, "carry_every": 1, "storage": storage, "folder": tmp_path}
    memory, other = (replay(SequenceReplay, where=wide, **about) for _ in range(2))
    leaf, no = np.ones((1, 1000), np.float32), np.zeros(1, bool)
    row = Row({"obs": leaf}, no, {"h": leaf}, np.zeros(1, int), {}, leaf[:, 0], no, no, {"obs": leaf}, no)
    for _ in range(3000):
        memory.update(row)
    checkpoint.save(tmp_path, "memory", memory.state_dict(), 0)
    checkpoint.load(tmp_path, "memory")  # what torch imports for it is not counted
    before = anonymous()
    state = checkpoint.load(tmp_path, "memory")
    other.load_state_dict(state)
    assert anonymous() - before < share * 2 * 3000 * leaf.nbytes
    assert isinstance(other.carry["h"].base, mmap) == (storage == "memmap")
    checkpoint.save(tmp_path, "memory", {}, 1)  # takes the files away
    checkpoint.save(tmp_path, "memory", {}, 2)
    np.testing.assert_array_equal(state["rows"]["data"]["obs"]["obs"], np.ones((3001, 1, 1000)))
    np.testing.assert_array_equal(other.carry["h"][:3000], np.ones((3000, 1, 1000)))


def anonymous() -> int:
    """Bytes of RAM that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.parametrize(("cls", "keys"), [*MEMORIES, (Replay, {}), (PrioritizedReplay, {"n_step": 2})])
def test_a_batch_filled_again_is_as_a_new_one(cls: Any, keys: dict[str, Any]) -> None:
    """Also after a checkpoint; of single rows in the same arrays, so that tensors of them show it."""
    about = {"max_size": 30, "batch_size": 5, "frequency": 4, "start": 15, **keys}
    lives, new, again = Lives(3, show=rich), replay(cls, 3, **about), replay(cls, 3, **about)
    spent, tensors, drawn = None, None, 0
    for step in range(60):
        row = lives.row()
        new.update(row)
        again.update(row)
        while new.to_train:
            a, b = new.sample(), again.sample() if spent is None else again.refill(spent)
            same(leaves(a), leaves(b))
            if b is not spent:
                spent, tensors = b, map_batch(torch.from_numpy, b)
            same(leaves(b), leaves(map_batch(lambda x: x.numpy(), tensors)))
            for memory in (new, again):
                memory.feedback(a.index, np.abs(np.sin(a.index.astype(float))))
            drawn += 1
        assert new.gate.state_dict() == again.gate.state_dict()
        if step == 30:
            again.load_state_dict(tree_copy(again.state_dict()))
    assert drawn > 5
    assert (again.refill(spent) is spent) == (cls is not SequenceReplay)


def test_what_was_drawn_is_kept_when_nobody_gave_it_back() -> None:
    lives, memory = Lives(2, show=rich), replay(Replay, 2, max_size=10)
    for _ in range(9):
        memory.update(lives.row())
    kept = memory.sample()
    before = tree_copy(leaves(kept))
    other = memory.sample()
    assert memory.refill(kept) is not kept, "only the last one made can be filled"
    assert memory.refill(other) is not other
    same(before, leaves(kept))


def test_a_batch_outlives_later_writes() -> None:
    lives, memory = Lives(2), replay(Replay, 2, max_size=10)
    for _ in range(9):
        memory.update(lives.row())
    batch = memory.sample()
    before = [
        np.array(leaf) for _, leaf in tree_leaves({"obs": batch.obs, "action": batch.action, "reward": batch.reward})
    ]
    for _ in range(9):
        memory.update(lives.row())
    after = [leaf for _, leaf in tree_leaves({"obs": batch.obs, "action": batch.action, "reward": batch.reward})]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
