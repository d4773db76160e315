"""The tasks against their rules, written a second time in the plainest way, one world at a time."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_lab.env.tasks.base import VecTask
from slm_lab.env.tasks.bit_flip import BitFlip
from slm_lab.env.tasks.memory_task import MemoryTask
from slm_lab.env.tasks.multi_cue import MultiCueRecall
from slm_lab.env.tasks.repeat import RepeatFirst, RepeatPrevious
from slm_lab.env.tasks.tmaze import PassiveTMaze

E = 5


def episode(rules, seed, actions):
    """One episode of E worlds: observations [length+1, E, *O], rewards [length, E]."""
    env = VecTask(rules, E)
    steps = [env.reset(seed)] + [env.step(action) for action in actions[: rules.length]]
    assert steps[-1].terminated.all()
    assert not any(step.terminated.any() for step in steps[:-1])
    return np.array([s.obs["obs"] for s in steps]), np.array([s.raw_reward for s in steps[1:]])


def drawn(seed, length, choices):
    return np.random.default_rng(seed).integers(choices, size=(length, E))


quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 10**6)


@quick
@given(seeds, st.integers(1, 20), st.integers(0, 1))
def test_memory_task(seed, delay, difficulty):
    actions = drawn(seed, delay, 2)
    obs, rewards = episode(MemoryTask(delay, difficulty), seed, actions)
    assert obs.dtype == np.float32
    assert obs.shape == (delay + 1, E, 3)
    assert set(np.unique(obs)) <= {0.0, 1.0}
    assert (obs[..., 2] == 0).all()
    if difficulty == 0:
        assert (obs[0, :, 1] == 0).all()
        assert (obs[1:] == 0).all()
    for world in range(E):
        for t in range(delay):
            expected = 0.0
            if t == delay - 1:
                expected = 1.0 if actions[t, world] == obs[0, world, 0] else -1.0
            assert rewards[t, world] == expected


def test_a_continuous_memory_task_is_answered_by_a_sign():
    discrete, signs = (MemoryTask(3, 1, continuous) for continuous in (False, True))
    answers = drawn(0, 3, 2)
    numbers = np.where(answers == 1, 0.1, -0.7)[..., None].astype(np.float32)
    (obs, rewards), (same, paid) = episode(discrete, 5, answers), episode(signs, 5, numbers)
    assert np.array_equal(obs, same) and np.array_equal(rewards, paid)
    env = gymnasium.make("slm_lab/MemoryTask-v0", delay=1, continuous=True)
    bit = env.reset(seed=1)[0][0]
    assert env.step(np.float32([bit - 0.5]))[1] == 1.0


def test_hard_memory_task_hides_the_cue_among_fair_coins():
    env = VecTask(MemoryTask(8, 1), 2000)
    obs = np.array([env.reset(0).obs["obs"]] + [env.step(np.zeros(2000, int)).obs["obs"] for _ in range(8)])
    assert np.abs(obs[..., :2].mean(axis=1) - 0.5).max() < 0.06
    flat = obs[..., :2].transpose(0, 2, 1).reshape(-1, 2000)
    off_diagonal = np.corrcoef(flat) - np.eye(len(flat))
    assert np.abs(off_diagonal).max() < 0.1  # no channel of any step tells of another


@quick
@given(seeds, st.integers(1, 8), st.integers(8, 60), st.integers(2, 5))
def test_repeat_previous(seed, k, length, symbols):
    actions = drawn(seed, length, symbols)
    obs, rewards = episode(RepeatPrevious(k, length, symbols), seed, actions)
    for world in range(E):
        hand = []
        for t in range(length):
            hand.append(obs[t, world])
            expected = 0.0
            if len(hand) >= k:
                expected = (1 if hand[-k] == actions[t, world] else -1) / (length + 1 - k)
            assert rewards[t, world] == pytest.approx(expected)


@quick
@given(seeds, st.integers(1, 60), st.integers(2, 5))
def test_repeat_first(seed, length, symbols):
    actions = drawn(seed, length, symbols)
    obs, rewards = episode(RepeatFirst(length, symbols), seed, actions)
    expected = np.where(actions == obs[0], 1.0, -1.0) / length
    np.testing.assert_allclose(rewards, expected)


def test_popgyms_deck_has_thirteen_cards_of_each_suit():
    obs, _ = episode(RepeatPrevious(), 0, np.zeros((51, E), int))
    assert all(np.bincount(obs[:, world]).tolist() == [13] * 4 for world in range(E))


@quick
@given(seeds, st.integers(1, 12), st.booleans())
def test_tmaze(seed, corridor, mostly_right):
    actions = drawn(seed, corridor + 1, 4)
    if mostly_right:  # so that the junction is met
        actions[:-1] = np.where(drawn(seed + 1, corridor, 20) > 0, 0, actions[:-1])
    obs, rewards = episode(PassiveTMaze(corridor), seed, actions)
    moves = {0: (1, 0), 1: (0, 1), 2: (-1, 0), 3: (0, -1)}
    for world in range(E):
        side, place = obs[0, world, 1], (0, 0)
        assert side in (-1, 1)
        assert obs[0, world, 0] == 0
        for t in range(corridor + 1):
            dx, dy = moves[actions[t, world]]
            there = (place[0] + dx, place[1] + dy)
            free = {(x, 0) for x in range(corridor + 1)} | {(corridor, 1), (corridor, -1)}
            place = there if there in free else place
            if t == corridor:
                expected = 1.0 if place[1] == side else 0.0
            else:
                expected = -1 / corridor if place[0] < t + 1 else 0.0
            assert rewards[t, world] == pytest.approx(expected)
            seen = (1, place[1]) if place[0] == corridor else (0, 0)
            assert tuple(obs[t + 1, world]) == seen


def test_standing_still_in_the_tmaze_costs_one():
    _, rewards = episode(PassiveTMaze(10), 0, np.full((11, E), 2))
    np.testing.assert_allclose(rewards.sum(axis=0), -1.0)


@quick
@given(seeds, st.integers(1, 4), st.integers(2, 5), st.integers(0, 20))
def test_multi_cue(seed, cues, symbols, extra):
    length = 3 * cues + extra
    actions = drawn(seed, length, symbols)
    obs, rewards = episode(MultiCueRecall(length, cues, symbols), seed, actions)
    shown = length - cues
    for world in range(E):
        flags = np.flatnonzero(obs[:, world, symbols])
        assert len(flags) == cues
        assert flags.max() < shown // 2
        assert (obs[:shown, world, :symbols].sum(axis=1) == 1).all()
        assert (obs[shown:, world, :symbols] == 0).all()
        queries = obs[:, world, symbols + 1 :]
        assert (queries[:shown] == 0).all()
        assert (queries[-1] == 0).all()
        assert sorted(queries[shown:length].argmax(axis=1)) == list(range(cues))
        for t in range(length):
            expected = 0.0
            if t >= shown:
                answer = obs[flags[queries[t].argmax()], world, :symbols].argmax()
                expected = (answer == actions[t, world]) / cues
            assert rewards[t, world] == pytest.approx(expected)


@quick
@given(seeds, st.integers(2, 6))
def test_bit_flip(seed, n):
    env, actions = VecTask(BitFlip(n), E), drawn(seed, 30, n)
    for world in range(E):
        step, flipped = env.reset(seed), 0
        for action in actions:
            bits, desired = (step.obs[key][world].tolist() for key in ("observation", "desired_goal"))
            step = env.step(action)
            if step.is_first[world]:
                flipped = 0
                continue
            bits[action[world]] = 1 - bits[action[world]]
            flipped += 1
            assert step.obs["observation"][world].tolist() == step.obs["achieved_goal"][world].tolist() == bits
            assert step.obs["desired_goal"][world].tolist() == desired
            assert step.raw_reward[world] == (0 if bits == desired else -1)
            assert step.terminated[world] == (bits == desired)
            assert step.truncated[world] == (flipped == n and bits != desired)


def test_flipping_each_wrong_bit_once_reaches_the_goal():
    env = VecTask(BitFlip(15), 200)
    step, returns, reached = env.reset(0), np.zeros(200), np.zeros(200, bool)
    wrong = (step.obs["observation"] != step.obs["desired_goal"]).sum(axis=1)
    for _ in range(15):
        step = env.step(np.maximum(env.target(), 0))
        returns += np.where(reached, 0, step.raw_reward)
        reached |= step.terminated
    assert reached.all()
    np.testing.assert_array_equal(returns, 1 - wrong)


def test_fifteen_bits_are_hardly_ever_reached_by_chance():
    env, rng = VecTask(BitFlip(), 2000), np.random.default_rng(0)
    env.reset(0)
    steps = [env.step(rng.integers(15, size=2000)) for _ in range(159)]
    reached, missed = (sum(step.terminated.sum() for step in steps), sum(step.truncated.sum() for step in steps))
    assert reached / (reached + missed) == pytest.approx(43e-5, abs=40e-5)
