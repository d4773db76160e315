"""Each wrapper against its definition, across episode ends."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from slm_lab.env.base import EnvError, VecEnv, first_step
from slm_lab.env.wrappers import WRAPPERS, FrameStack
from slm_lab.lib.types import Step

T = 80


def both(build, name, num_envs=3, gamma=0.99, **keys):
    """Steps of the bare and of the wrapped env under the same actions."""
    bare, wrapped = build(name, num_envs), build(name, num_envs, gamma=gamma, **keys)
    rng = np.random.default_rng(0)
    actions = [rng.integers(2, size=num_envs) for _ in range(T)]
    steps = [(bare.reset(1), wrapped.reset(1))] + [(bare.step(a), wrapped.step(a)) for a in actions]
    return *zip(*steps, strict=True), [None, *actions], wrapped


def test_rewards_are_scaled_then_clipped_and_the_raw_one_is_kept(build):
    bare, wrapped, _, _ = both(build, "test/Walk-v0", reward_scale=2.0, clip_reward=1.5)
    for one, two in zip(bare, wrapped, strict=True):
        np.testing.assert_allclose(two.reward, np.clip(2 * one.reward, -1.5, 1.5), rtol=1e-6)
        np.testing.assert_array_equal(two.raw_reward, one.raw_reward)
        assert two.reward.dtype == np.float32
        assert two.raw_reward.dtype == np.float64


def test_reward_is_divided_by_the_std_of_the_discounted_return(build):
    bare, wrapped, _, _ = both(build, "test/Walk-v0", gamma=0.9, normalize_reward=True)
    sums, seen = np.zeros(3), []
    for one, two in zip(bare, wrapped, strict=True):
        for world in range(3):
            if one.is_first[world]:
                sums[world] = 0.0
            else:
                sums[world] = 0.9 * sums[world] + one.reward[world]
                seen.append(sums[world])
        std = np.std(seen) if len(seen) else 1.0
        np.testing.assert_allclose(two.reward, one.reward / std, rtol=1e-5)
        assert (two.reward[two.is_first] == 0).all()


def test_equal_rewards_do_not_explode_before_returns_differ(build):
    _, wrapped, _, _ = both(build, "CartPole-v1", num_envs=1, normalize_reward=True)
    assert max(step.reward[0] for step in wrapped) < 5


def test_observations_are_normalised_by_all_that_was_shown(build):
    bare, wrapped, _, env = both(build, "test/Walk-v0", normalize_obs=True)
    seen = []
    for one, two in zip(bare, wrapped, strict=True):
        seen.extend(one.obs["obs"].astype(np.float64))
        expected = (one.obs["obs"] - np.mean(seen, axis=0)) / np.sqrt(np.var(seen, axis=0) + 1e-8)
        np.testing.assert_allclose(two.obs["obs"], expected, rtol=1e-4, atol=1e-5)
        assert two.obs["obs"].dtype == np.float32 == env.obs_space["obs"].dtype


def test_only_float_keys_are_normalised_and_clipped(build):
    bare, wrapped, _, env = both(build, "test/Nested-v0", normalize_obs=True, clip_obs=0.5)
    for one, two in zip(bare, wrapped, strict=True):
        assert np.abs(two.obs["body.place"]).max() <= 0.5
        for key in set(one.obs) - {"body.place"}:
            np.testing.assert_array_equal(one.obs[key], two.obs[key])
    assert env.obs_space["body.place"] == spaces.Box(-0.5, 0.5, (2,), np.float32)


def test_frozen_statistics_are_used_and_not_changed(build):
    keys = {"normalize_obs": True, "normalize_reward": True}
    *_, train = both(build, "test/Walk-v0", **keys)
    evaluation, bare = build("test/Walk-v0", 5, **keys), build("test/Walk-v0", 5)
    evaluation.load_wrapper_state(train.wrapper_state())
    evaluation.freeze()
    before = train.wrapper_state()
    evaluation.reset(9), bare.reset(9)
    for _ in range(20):
        one, two = bare.step(np.ones(5, int)), evaluation.step(np.ones(5, int))
        moments = before["normalize_obs"]["obs"]
        expected = (one.obs["obs"] - moments["mean"]) / np.sqrt(moments["var"] + 1e-8)
        np.testing.assert_allclose(two.obs["obs"], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(two.reward, one.reward / np.sqrt(before["normalize_reward"]["var"]), rtol=1e-5)
    for state in (evaluation.wrapper_state(), train.wrapper_state()):
        np.testing.assert_equal(state, before)


def test_frames_are_stacked_within_an_episode_only(build):
    bare, wrapped, _, env = both(build, "test/Walk-v0", frame_stack=3)
    history = [[] for _ in range(3)]
    assert env.obs_space["obs"].shape == (6,)
    for one, two in zip(bare, wrapped, strict=True):
        for world in range(3):
            now = one.obs["obs"][world]
            history[world] = [now] * 3 if one.is_first[world] else [*history[world], now][-3:]
            np.testing.assert_array_equal(two.obs["obs"][world], np.concatenate(history[world]))


def test_pictures_whose_channels_a_stack_would_hide_are_refused():
    """Joined along the last axis, then read along the first. Numbers that no one takes for pictures may be so."""
    world = Camera(spaces.Box(0, 255, (10, 20, 3), np.uint8))
    with pytest.raises(EnvError, match=r"frame_stack 4: pictures \(10, 20, 3\) of 'obs' become \(10, 20, 12\)"):
        FrameStack(world, 4)
    assert FrameStack(world, 3).obs_space["obs"].shape == (10, 20, 9)
    with pytest.raises(EnvError, match=r"frame_stack 4: pictures \(84, 4\) of 'obs' become \(84, 4, 4\)"):
        FrameStack(Camera(spaces.Box(0, 255, (84, 4), np.uint8)), 4)
    assert FrameStack(Camera(spaces.Box(0, 1, (5, 6, 3), np.float32)), 2).obs_space["obs"].shape == (5, 6, 6)


def test_hidden_numbers_are_zero_and_the_others_as_they_were(build):
    bare, wrapped, _, env = both(build, "CartPole-v1", hide_obs=[1, 3])
    for one, two in zip(bare, wrapped, strict=True):
        np.testing.assert_array_equal(two.obs["obs"], one.obs["obs"] * np.float32([1, 0, 1, 0]))
        assert one.obs["obs"][:, [1, 3]].all()
        assert all(env.obs_space["obs"].contains(shown) for shown in two.obs["obs"])
    assert env.obs_space["obs"].high[[1, 3]].tolist() == [0, 0]
    assert env.env.obs_space["obs"].high[1] > 0  # what lies inside wasn't edited


def test_numbers_are_hidden_before_they_are_normalised_and_stacked(build):
    _, wrapped, _, _ = both(build, "test/Walk-v0", hide_obs=[1], normalize_obs=True, frame_stack=2)
    shown = np.stack([step.obs["obs"] for step in wrapped])
    assert (shown[..., [1, 3]] == 0).all()
    assert shown[..., [0, 2]].std() > 0.5


def test_only_float_vectors_are_hidden(build):
    bare, wrapped, _, _ = both(build, "test/Nested-v0", hide_obs=[0])
    for one, two in zip(bare, wrapped, strict=True):
        assert (two.obs["body.place"][:, 0] == 0).all()
        np.testing.assert_array_equal(two.obs["body.place"][:, 1], one.obs["body.place"][:, 1])
        for key in set(one.obs) - {"body.place"}:
            np.testing.assert_array_equal(one.obs[key], two.obs[key])


class Camera(VecEnv):
    """Shows samples of a Box; episodes of 4 steps, out of step with each other, with NEXT_STEP autoreset."""

    def __init__(self, box):
        self.name, self.num_envs = "camera", 3
        self.obs_space, self.action_space = {"obs": box}, spaces.Discrete(2)

    def _shown(self):
        return {"obs": np.stack([np.asarray(self.obs_space["obs"].sample()) for _ in range(3)])}

    def reset(self, seed):
        self.obs_space["obs"].seed(seed)
        self.number = np.arange(3)
        return first_step(self._shown(), 3)

    def step(self, action):
        is_first = self.number == 4
        self.number = np.where(is_first, 0, self.number + 1)
        no = np.zeros(3, bool)
        return Step(self._shown(), np.zeros(3, np.float32), is_first, self.number == 4, no, np.zeros(3))

    def state_dict(self):
        return None

    def load_state_dict(self, state):
        raise NotImplementedError

    def close(self):
        pass


@pytest.mark.parametrize(
    ("shape", "stacked"),
    [((), (4,)), ((5,), (20,)), ((8, 9), (8, 9, 4)), ((18, 9, 3), (18, 9, 12)), ((3, 13, 14), (12, 13, 14))],
)
def test_a_stack_splits_into_its_frames_oldest_first(shape, stacked):
    bare, env = (Camera(spaces.Box(0, 255, shape, np.uint8)) for _ in range(2))
    env = FrameStack(env, 4)
    stack, history, firsts = env.world.stacks["obs"], [[], [], []], 0
    pairs = [(bare.reset(1), env.reset(1))] + [(bare.step(None), env.step(np.zeros(3, int))) for _ in range(20)]
    for one, two in pairs:
        assert two.obs["obs"].shape == (3, *stacked)
        assert all(env.obs_space["obs"].contains(shown) for shown in two.obs["obs"])
        for world in range(3):
            now, shown = one.obs["obs"][world], two.obs["obs"][world]
            history[world] = [now] * 4 if one.is_first[world] else [*history[world], now][-4:]
            frames = [frame.reshape(shape) for frame in np.split(shown, stack.count, axis=stack.axis)]
            np.testing.assert_array_equal(frames, history[world])
            np.testing.assert_array_equal(frames[-1], now)  # the present one, also where an episode ends or begins
        firsts += one.is_first.sum()
    assert firsts > 10


def test_only_stacked_keys_have_a_stack(build):
    env = build("test/Nested-v0", 2, frame_stack=3, prev_action=True, prev_reward=True)
    assert set(env.world.stacks) == {"body.place", "eye.0"}
    assert build("test/Nested-v0", 2).world.stacks == {}


def test_previous_action_and_reward_are_what_led_here(build):
    bare, wrapped, actions, env = both(
        build, "test/Walk-v0", reward_scale=3.0, prev_action=True, prev_reward=True, frame_stack=2
    )
    assert env.obs_space["prev_action"] == spaces.Discrete(3)
    assert env.obs_space["prev_reward"].shape == (1,)
    for one, two, action in zip(bare, wrapped, actions, strict=True):
        expected = np.where(one.is_first, 0, action if action is not None else 0)
        np.testing.assert_array_equal(two.obs["prev_action"], expected)
        np.testing.assert_allclose(two.obs["prev_reward"][:, 0], 3 * one.reward, rtol=1e-6)
        assert all(env.obs_space["prev_action"].contains(one) for one in two.obs["prev_action"])


def test_sign_of_the_previous_reward(build):
    bare, wrapped, _, env = both(build, "test/Walk-v0", reward_scale=0.01, prev_reward="sign")
    assert env.obs_space["prev_reward"] == spaces.Box(-1, 1, (1,), np.float32)
    shown = np.concatenate([two.obs["prev_reward"][:, 0] for two in wrapped])
    np.testing.assert_array_equal(shown, np.sign(np.concatenate([one.reward for one in bare])))
    assert len(set(shown)) > 1
    assert all(two.obs["prev_reward"].dtype == np.float32 for two in wrapped)


def test_previous_box_action_is_clipped_to_its_space(build):
    env = build("Pendulum-v1", 2, prev_action=True)
    env.reset(0)
    step = env.step(np.array([[7.0], [0.5]]))
    assert step.obs["prev_action"].tolist() == [[1.0], [0.5]]
    assert step.obs["prev_action"].dtype == np.float32


def test_each_wrapper_key_of_the_spec_is_in_the_table():
    from slm_lab.env.spec import EnvSpec

    others = {"name", "num_envs", "max_t", "max_frame", "dataset", "vectorization"}
    assert list(WRAPPERS) == [key for key in EnvSpec.model_fields if key not in others]


ALL = {
    "reward_scale": 0.5,
    "normalize_reward": True,
    "clip_reward": 5.0,
    "hide_obs": [1],
    "normalize_obs": True,
    "clip_obs": 5.0,
    "frame_stack": 3,
    "prev_action": True,
    "prev_reward": True,
}


def test_all_wrappers_resume_to_the_bit(build):
    env, other = build("test/Walk-v0", 3, **ALL), build("test/Walk-v0", 3, **ALL)
    rng = np.random.default_rng(0)
    env.reset(0)
    for _ in range(20):
        env.step(rng.integers(3, size=3))
    other.load_state_dict(env.state_dict())
    for _ in range(30):
        action = rng.integers(3, size=3)
        one, two = env.step(action), other.step(action)
        np.testing.assert_equal(one.obs, two.obs)
        np.testing.assert_array_equal(one.reward, two.reward)
    np.testing.assert_equal(env.state_dict(), other.state_dict())
