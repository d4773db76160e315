"""Whatever an env's autoreset mode: the stored sequence is that of scalar envs played one by one."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from slm_lab.spec.parts import TASK

T = 60


def scalar_reference(name, seed, actions):
    """(obs, reward, terminated, truncated, is_first) of one env, played naively: one more row begins each episode."""
    env = gymnasium.make(name)
    obs, _ = env.reset(seed=seed)
    rows, ended = [(obs, 0.0, False, False, True)], False
    for action in actions:
        if ended:
            obs, _ = env.reset()
            rows.append((obs, 0.0, False, False, True))
            ended = False
            continue
        obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, reward, terminated, truncated, False))
        ended = terminated or truncated
    return rows


def play(env, seed, actions):
    return [env.reset(seed), *(env.step(action) for action in actions)]


def same(step, world, row):
    obs, reward, terminated, truncated, is_first = row
    np.testing.assert_array_equal(step.obs["obs"][world], obs)
    assert step.raw_reward[world] == reward
    assert step.reward[world] == np.float32(reward)
    assert (step.terminated[world], step.truncated[world], step.is_first[world]) == (terminated, truncated, is_first)


@pytest.mark.parametrize("num_envs", [1, 4, 16])
@pytest.mark.parametrize(
    "name", ["test/Walk-v0", "test/WalkNextStep-v0", "test/WalkSameStep-v0", "test/WalkDisabled-v0"]
)
def test_stored_sequence_equals_the_scalar_envs(build, name, num_envs):
    actions = np.random.default_rng(0).integers(3, size=(T, num_envs))
    steps = play(build(name, num_envs), 5, actions)
    ends = set()
    for world in range(num_envs):
        for step, row in zip(steps, scalar_reference("test/Walk-v0", 5 + world, actions[:, world]), strict=True):
            same(step, world, row)
            ends.add(row[2:4])
    if num_envs > 1:
        assert ends >= {(True, False), (False, True)}  # both kinds of end were met


def test_reset_in_the_middle_forgets_what_was_under_way(build):
    actions = np.random.default_rng(1).integers(3, size=(T, 2))
    for name in ("test/Walk-v0", "test/WalkSameStep-v0", "test/WalkDisabled-v0"):
        env = build(name, 2)
        steps = env.reset(3)
        while not (steps.terminated | steps.truncated).any():
            steps = env.step(np.array([2, 2]))
        again, fresh = play(env, 5, actions), play(build("test/Walk-v0", 2), 5, actions)
        for one, two in zip(again, fresh, strict=True):
            np.testing.assert_array_equal(one.obs["obs"], two.obs["obs"])
            np.testing.assert_array_equal(one.is_first, two.is_first)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_nested_observations_keep_their_true_last_value(build, mode):
    actions = np.random.default_rng(2).integers(3, size=(T, 3))
    reference, adapted = build("test/Nested-v0", 3), build(f"test/Nested{mode}-v0", 3)
    for one, two in zip(play(reference, 0, actions), play(adapted, 0, actions), strict=True):
        assert list(one.obs) == list(two.obs)
        for key in one.obs:
            np.testing.assert_array_equal(one.obs[key], two.obs[key])
            assert one.obs[key].dtype == two.obs[key].dtype


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("name", ["test/Reused-v0", "test/ReusedNext-v0"])
def test_a_vector_that_reuses_its_arrays(build, name, num_envs):
    steps = play(build(name, num_envs), 0, np.zeros((8, num_envs), int))
    shown = [step.obs["obs"][:, 0].tolist() for step in steps]
    assert shown == [[value] * num_envs for value in (0, 1, 2, 3, 0, 1, 2, 3, 0)]
    assert [step.is_first.all() for step in steps] == [True, False, False, False, True, False, False, False, True]
    assert [step.terminated.any() for step in steps] == [False, False, False, True, False, False, False, True, False]


@pytest.mark.parametrize("name", ["test/Walk-v0", "test/WalkSameStep-v0", "test/ReusedNext-v0", *TASK])
def test_arrays_are_fresh_and_stay_as_they_were(build, name):
    env = build(name, 3)
    steps, copies = [], []
    step = env.reset(0)
    for _ in range(40):
        steps.append(step)
        steps[-1] = steps[-1], env.target(), env.cue_steps()
        copies.append([np.array(a) for a in arrays(*steps[-1])])
        step = env.step(np.ones(3, int))
    for step, copy in zip(steps, copies, strict=True):
        for array, before in zip(arrays(*step), copy, strict=True):
            np.testing.assert_array_equal(array, before)


def arrays(step, *answers):
    shown = [*step.obs.values(), step.reward, step.is_first, step.terminated, step.truncated, step.raw_reward]
    return shown + [answer for answer in answers if answer is not None]


def test_a_row_in_which_nothing_is_played_earns_nothing_whatever_the_vector_pays_there(build):
    class Paying(gymnasium.spec("test/ReusedNext-v0").vector_entry_point):
        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, reward * 0 + 1, *rest

    gymnasium.register("test/Paying-v0", vector_entry_point=Paying)
    steps = play(build("test/Paying-v0", 2, prev_reward=True), 0, np.zeros((8, 2), int))
    for step in steps[1:]:
        np.testing.assert_array_equal(step.reward, ~step.is_first)
        np.testing.assert_array_equal(step.obs["prev_reward"][:, 0], ~step.is_first)


@pytest.mark.parametrize(
    ("name", "keys"), [("CartPole-v1", {"vectorization": "native"}), ("CartPole-v1", {}), ("MemoryTask", {})]
)
def test_the_longest_episode_is_known_under_max_t(build, name, keys):
    assert build(name, 2, max_t=9, **keys).max_length == 9


def test_worlds_do_not_share_what_the_spec_gives_them(build):
    """One that shuffles its deck in place shuffles no other's."""

    class Deck(gymnasium.spec("test/Walk-v0").entry_point):
        def __init__(self, deck):
            super().__init__()
            self.deck = deck

        def _obs(self):
            self.deck.append(0)
            return np.array([len(self.deck), 0], np.float32)

    gymnasium.register("test/Deck-v0", entry_point=Deck, disable_env_checker=True)
    given = [1, 2]
    env = build("test/Deck-v0", 2, deck=given)
    assert env.reset(0).obs["obs"][:, 0].tolist() == [3, 3]
    assert given == [1, 2]


def test_max_t_truncates_and_the_last_observation_is_true(build):
    for name, keys in (("CartPole-v1", {}), ("MemoryTask", {}), ("MemoryTask", {"vectorization": "sync"})):
        steps = play(build(name, 2, max_t=5, **keys), 0, np.tile([0, 1], (12, 1))[:, :2])
        truncated = np.array([step.truncated for step in steps])
        is_first = np.array([step.is_first for step in steps])
        assert truncated[5].all()
        assert is_first[6].all()
        assert truncated.sum() == 4
        assert steps[5].obs["obs"].tolist() != steps[6].obs["obs"].tolist()


def test_an_action_in_the_first_row_of_an_episode_is_ignored(build):
    one, two = build("test/WalkSameStep-v0", 1), build("test/WalkSameStep-v0", 1)
    rng, ended = np.random.default_rng(3), False
    one.reset(0), two.reset(0)
    for _ in range(T):
        action = rng.integers(3, size=1)
        a, b = one.step(action), two.step((action + ended) % 3)
        np.testing.assert_array_equal(a.obs["obs"], b.obs["obs"])
        ended = bool((a.terminated | a.truncated)[0])
