"""Small worlds for the tests, registered with Gymnasium as `test/...`."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from slm_lab.env.vec import EnvSpec, make_env


class Walk(gymnasium.Env):
    """A noisy walk: terminated at |place| >= 3, truncated after 7 steps (both at once now and then)."""

    observation_space = spaces.Box(-100.0, 100.0, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, drift=0.0):
        self.drift = drift
        self.place, self.number = 0.0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.number = float(self.np_random.normal()), 0
        return self._obs(), {}

    def step(self, action):
        self.place += action - 1 + self.drift + float(self.np_random.normal())
        self.number += 1
        return self._obs(), self.place, abs(self.place) >= 3, self.number >= 7, {}

    def _obs(self):
        return np.array([self.place, self.number], np.float32)


class Nested(Walk):
    """The same walk, shown as Dict and Tuple of all kinds of leaves."""

    observation_space = spaces.Dict(
        {
            "eye": spaces.Tuple((spaces.Box(0, 255, (2, 2, 3), np.uint8), spaces.Discrete(9, start=-1))),
            "body": spaces.Dict({"place": spaces.Box(-100, 100, (2,), np.float64), "bits": spaces.MultiBinary(3)}),
            "pair": spaces.MultiDiscrete([8, 9]),
        }
    )

    def _obs(self):
        n = self.number
        image = np.full((2, 2, 3), 100 + n, np.uint8)
        body = {"place": np.array([self.place, n]), "bits": np.array([n & 1, n >> 1 & 1, n >> 2 & 1], np.int8)}
        return {"eye": (image, n - 1), "body": body, "pair": np.array([n, n + 1])}


class Echo(gymnasium.Env):
    """Shows the action it was given; one step an episode... never ends."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def __init__(self, kind="box"):
        self.got = []
        self.action_space = {
            "box": spaces.Box(np.array([0, -np.inf, -2], np.float32), np.array([1, np.inf, 6], np.float32)),
            "half": spaces.Box(np.array([0, -np.inf, -2], np.float32), np.array([np.inf, 1, 6], np.float32)),
            "whole": spaces.Box(0, 10, (3,), np.int32),
            "discrete": spaces.Discrete(4, start=-2),
            "multi": spaces.MultiDiscrete([2, 3, 4], start=[5, 0, -1]),
            "bits": spaces.MultiBinary(3),
        }[kind]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3), {}

    def step(self, action):
        assert self.action_space.contains(action), (action, self.action_space)
        return np.broadcast_to(action, 3).astype(np.float64), 0.0, False, False, {}


class Faulty(Walk):
    """Goes wrong at its third step, in the way asked for."""

    def __init__(self, fault="raise"):
        super().__init__()
        self.fault, self.count = fault, 0

    def reset(self, *, seed=None, options=None):
        if self.fault == "reset":
            raise RuntimeError("no floor")
        return super().reset(seed=seed)

    def step(self, action):
        self.count += 1
        obs, reward, *_ = super().step(1)
        if self.count == 3 and self.fault == "raise":
            raise RuntimeError("a wheel came off")
        if self.count == 3 and self.fault == "reward":
            reward = np.nan
        if self.count == 3 and self.fault == "huge":  # finite in 64 bits alone
            reward = 1e39
        if self.count == 3 and self.fault == "obs":
            obs = np.array([np.inf, 0], np.float32)
        return obs, reward, False, False, {}


class TextEnv(Walk):
    observation_space = spaces.Text(5)


class Reused(VectorEnv):
    """Counts to 3 and resets in the same step; its arrays are reused at every call and final_obs is a plain batch."""

    mode = AutoresetMode.SAME_STEP

    def __init__(self, num_envs=1, max_episode_steps=None):
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": self.mode}
        self.single_observation_space, self.single_action_space = spaces.Box(0, 9, (1,), np.float32), spaces.Discrete(2)
        self.obs, self.ends = np.zeros((num_envs, 1), np.float32), np.zeros(num_envs, bool)
        self.reward = np.zeros(num_envs)

    def reset(self, *, seed=None, options=None):
        self.obs[:] = 0
        return self.obs, {}

    def step(self, action):
        self.obs += 1
        self.ends[:] = self.obs[:, 0] == 3
        info = {"final_obs": self.obs.copy()} if self.ends.any() else {}
        self.obs[self.ends] = 0
        return self.obs, np.ones(self.num_envs), self.ends, np.zeros(self.num_envs, bool), info


class ReusedNext(Reused):
    """The same, with NEXT_STEP autoreset."""

    mode = AutoresetMode.NEXT_STEP

    def step(self, action):
        self.obs[:] = np.where(self.ends[:, None], 0, self.obs + 1)
        self.reward[:] = ~self.ends * self.obs[:, 0]
        self.ends[:] = self.obs[:, 0] == 3
        return self.obs, self.reward, self.ends, np.zeros(self.num_envs, bool), {}


class Reach(Walk):
    """The walk as a goal env with a plan: be within 1 of a wanted place [2]; `kind` is how it takes goals."""

    place_space = spaces.Box(-100.0, 100.0, (2,), np.float32)
    observation_space = spaces.Dict(dict.fromkeys(("observation", "achieved_goal", "desired_goal"), place_space))

    def __init__(self, kind="together"):
        super().__init__()
        self.kind, self.asked = kind, 0
        if kind == "unequal":
            goal = spaces.Box(-100.0, 100.0, (1,), np.float32)
            self.observation_space = spaces.Dict({**self.observation_space.spaces, "desired_goal": goal})

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self.wanted = np.array([self.np_random.normal(), 3], np.float32)
        return self._goal_obs(obs), info

    def step(self, action):
        obs, _, _, truncated, info = super().step(action)
        near = self.near(obs, self.wanted)
        return self._goal_obs(obs), 3.0 * float(near) - 1.0, bool(near), truncated, info

    def near(self, achieved, desired):
        return np.linalg.norm(achieved - desired, axis=-1) <= 2.0

    def compute_reward(self, achieved, desired, info):
        self.asked += 1
        if self.kind == "told":
            return info["reward"]
        if self.kind == "scalar":  # as who never thought of batches
            return 2.0 if np.linalg.norm(achieved - desired) <= 2.0 else -1.0
        if self.kind == "single":
            x, y = achieved - desired
            return 2.0 if x * x + y * y <= 4.0 else -1.0
        if self.kind == "column":
            return 3.0 * self.near(achieved, desired)[..., None] - 1.0
        if self.kind == "crossed" and achieved.ndim == 2:  # [N], and wrong
            return 3.0 * self.near(achieved, desired[::-1]) - 1.0
        return 3.0 * self.near(achieved, desired) - 1.0

    def compute_terminated(self, achieved, desired, info):
        if self.kind == "scalar":  # PointMaze's way
            return bool(np.linalg.norm(achieved - desired) <= 2.0)
        return self.near(achieved, desired)

    def _goal_obs(self, obs):
        return {"observation": obs, "achieved_goal": obs.copy(), "desired_goal": self.wanted.copy()}


class Endless(Reach):
    """One that doesn't say when goals end an episode, nor, if `blind`, what they pay."""

    compute_terminated = None

    def __init__(self, blind=False):
        super().__init__()
        if blind:
            self.compute_reward = None


class Engine:
    """What Python can't see into."""


class Simulated(Walk):
    def __init__(self):
        super().__init__()
        self.engine = Engine()


def vector_of(scalar, mode):
    return lambda num_envs=1: SyncVectorEnv([scalar] * num_envs, autoreset_mode=mode)


WORLDS = {"Walk": Walk, "Nested": Nested, "Echo": Echo, "Faulty": Faulty, "Text": TextEnv, "Simulated": Simulated}
WORLDS |= {"Reach": Reach, "Endless": Endless}
for name, world in WORLDS.items():
    gymnasium.register(f"test/{name}-v0", entry_point=world, disable_env_checker=True)
for mode in AutoresetMode:
    for scalar in (Walk, Nested, Reach):
        gymnasium.register(f"test/{scalar.__name__}{mode.value}-v0", vector_entry_point=vector_of(scalar, mode))
gymnasium.register("test/Reused-v0", vector_entry_point=Reused)
gymnasium.register("test/ReusedNext-v0", vector_entry_point=ReusedNext)


@pytest.fixture
def build():
    """build(name, num_envs, **keys) -> VecEnv, closed after the test."""
    made = []

    def make(name, num_envs=1, gamma=0.99, **keys):
        made.append(make_env(EnvSpec(name=name, num_envs=num_envs, max_frame=1, **keys), gamma=gamma))
        return made[-1]

    yield make
    for env in made:
        env.close()
