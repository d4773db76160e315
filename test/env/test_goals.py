"""Goal envs: what another goal would have paid is what the agent would have seen."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from slm_lab.env.base import EnvError
from slm_lab.spec.parts import TASK

GOALS = ("achieved_goal", "desired_goal")


def play(env, number=60):
    rng = np.random.default_rng(0)
    return [env.reset(0)] + [env.step(rng.integers(3, size=env.num_envs)) for _ in range(number)]


WORLDS = [
    ("BitFlip", {"n": 3}),
    ("BitFlip", {"n": 3, "vectorization": "sync"}),
    ("slm_lab/BitFlip-v0", {"n": 3}),
    *[("test/Reach-v0", {"kind": kind}) for kind in ("together", "scalar", "single", "column", "crossed")],
    *[(f"test/Reach{mode}-v0", {}) for mode in ("NextStep", "SameStep", "Disabled")],
]
CHANGES = [{}, {"reward_scale": 0.3}, {"clip_reward": 0.5}, {"reward_scale": 0.7, "clip_reward": 0.9}]


@pytest.mark.parametrize(("name", "keys"), WORLDS, ids=str)
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_the_goal_that_was_desired_pays_and_ends_as_the_world_did(build, name, keys, change):
    env = build(name, 4, **keys, **change)
    steps, seen = play(env), set()
    for step in steps[1:]:
        played = ~step.is_first
        achieved, desired = (step.obs[key][played] for key in GOALS)
        reward, terminated = env.goals.reward(achieved, desired), env.goals.terminated(achieved, desired)
        np.testing.assert_array_equal(reward, step.reward[played])
        np.testing.assert_array_equal(terminated, step.terminated[played])
        assert (reward.dtype, terminated.dtype) == (np.float32, np.bool_)
        seen |= set(reward.tolist())
    assert len(seen) == 2


@pytest.mark.parametrize(("name", "keys"), WORLDS, ids=str)
def test_what_was_achieved_would_have_been_reached(build, name, keys):
    env = build(name, 2, **keys)
    achieved = np.concatenate([step.obs["achieved_goal"] for step in play(env)])
    best = 0.0 if "BitFlip" in name else 2.0
    assert (env.goals.reward(achieved, achieved) == best).all()
    assert env.goals.terminated(achieved, achieved).all()
    assert env.goals.reward(achieved[:1], achieved[:1]).shape == (1,)
    assert env.goals.reward(achieved[:0], achieved[:0]).shape == (0,)


@pytest.mark.parametrize(("kind", "calls"), [("together", 1), ("scalar", 200), ("crossed", 200)])
def test_goals_are_asked_together_where_the_env_can(build, kind, calls):
    env = build("test/Reach-v0", 2, kind=kind)
    some = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    env.goals.reward(some, some)  # the first time it finds out
    world = env._worlds[0].unwrapped
    world.asked = 0
    env.goals.reward(some, some)
    assert world.asked == calls


def test_finding_out_draws_nothing_from_the_world(build):
    env = build("test/Reach-v0", 1)
    space = env.obs_space["achieved_goal"]
    space.seed(1)
    before = space.np_random.bit_generator.state
    env.goals.reward(np.zeros((2, 2)), np.zeros((2, 2)))
    assert space.np_random.bit_generator.state == before


def test_a_goal_env_that_does_not_say_when_it_ends_goes_on(build):
    env = build("test/Endless-v0", 1)
    assert env.goals.terminated(np.zeros((3, 2)), np.zeros((3, 2))).tolist() == [False] * 3


class Halved(gymnasium.Wrapper):
    """Changes the reward, and says so for other goals too."""

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        return obs, reward / 2, *rest

    def compute_reward(self, achieved, desired, info):
        return self.env.unwrapped.compute_reward(achieved, desired, info) / 2


gymnasium.register("test/Halved-v0", entry_point=lambda: Halved(gymnasium.make("test/Reach-v0")))


def test_the_outermost_wrapper_that_knows_of_goals_is_asked(build):
    env = build("test/Halved-v0", 1)
    assert env.goals.reward(np.zeros((3, 2)), np.zeros((3, 2))).tolist() == [1.0] * 3
    assert env.goals.terminated(np.zeros((1, 2)), np.zeros((1, 2))).all()  # the env itself knows of ends


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("CartPole-v1", {}),
        ("test/Nested-v0", {}),
        ("test/Endless-v0", {"blind": True}),
        ("test/Reach-v0", {"kind": "unequal"}),
        *[(name, {}) for name in TASK if name != "BitFlip"],
        *[(name, {"vectorization": "sync"}) for name in TASK if name != "BitFlip"],
        ("BitFlip", {"normalize_reward": True}),
        ("BitFlip", {"prev_reward": True}),
        ("test/Reach-v0", {"normalize_reward": True, "reward_scale": 2.0, "clip_reward": 1.0}),
    ],
    ids=str,
)
def test_no_goals_where_there_are_none_or_their_pay_can_not_be_told(build, name, keys):
    assert build(name, 2, **keys).world.goals is None


def test_wrappers_of_observations_leave_goals_alone(build):
    keys = {"hide_obs": [1], "normalize_obs": True, "clip_obs": 0.5, "frame_stack": 3, "prev_action": True}
    bare, wrapped = build("test/Reach-v0", 3), build("test/Reach-v0", 3, **keys)
    for one, two in zip(play(bare), play(wrapped), strict=True):
        for key in GOALS:
            np.testing.assert_array_equal(one.obs[key], two.obs[key])
        assert two.obs["observation"].shape == (3, 6)
    for key in GOALS:
        assert wrapped.obs_space[key] == bare.obs_space[key]
    assert list(wrapped.stacks) == ["observation"]
    assert wrapped.goals.reward(np.zeros((1, 2)), np.zeros((1, 2))).tolist() == [2.0]


def test_an_env_that_needs_to_be_told_more_is_named(build):
    env = build("test/Reach-v0", 1, kind="told")
    with pytest.raises(EnvError, match=r"test/Reach-v0: compute_reward\(.*\) raised KeyError: 'reward'.*empty info"):
        env.goals.reward(np.zeros((3, 2)), np.zeros((3, 2)))


def test_other_libraries_can_ask_bit_flip_too():
    env = gymnasium.make("slm_lab/BitFlip-v0", n=4).unwrapped
    bits = np.array([[0, 0, 0, 0], [1, 0, 0, 0]], np.int8)
    assert env.compute_reward(bits, bits[:1], {}).tolist() == [0.0, -1.0]
    assert env.compute_terminated(bits[1], bits[1], {})
    with pytest.raises(EnvError, match="MemoryTask has no goals"):
        gymnasium.make("slm_lab/MemoryTask-v0").unwrapped.compute_reward(bits, bits, {})
