"""Worlds without an env: of every space for the contract suites, and ones that keep a diary for the memories' tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from slm_lab.agent.memory.base import MemoryContext
from slm_lab.env.base import World
from slm_lab.lib.types import Row, Step, Tree

OBS_SPACES: dict[str, dict[str, spaces.Space]] = {
    "vector": {"obs": spaces.Box(-1, 1, (3,))},
    "scalar": {"obs": spaces.Box(-1, 1, ())},
    "float64": {"obs": spaces.Box(-1, 1, (2, 2), np.float64)},
    "discrete": {"obs": spaces.Discrete(4, start=2)},
    "multi_discrete": {"obs": spaces.MultiDiscrete([3, 2])},
    "multi_binary": {"obs": spaces.MultiBinary(3)},
    "dict": {"a.b": spaces.Box(0, 1, (2,)), "0": spaces.Discrete(3)},
    "goals": {key: spaces.Box(-1, 1, (2,)) for key in ("observation", "achieved_goal", "desired_goal")},
}
IMAGE_SPACES: dict[str, dict[str, spaces.Space]] = {
    "HWC": {"obs": spaces.Box(0, 255, (12, 12, 3), np.uint8)},
    "CHW": {"obs": spaces.Box(0, 255, (4, 12, 12), np.uint8)},
    "HW": {"obs": spaces.Box(0, 255, (12, 12), np.uint8)},
    "image and vector": {"eye.left": spaces.Box(0, 255, (12, 12, 1), np.uint8), "body": spaces.Box(-1, 1, (3,))},
}
ACTION_SPACES: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(-1, 1, (2,)),
    "number": spaces.Box(-1, 1, ()),
    "table": spaces.Box(-1, 1, (2, 3)),
}


class Near:
    """The goals of "goals": pays 0 within 1 of what was desired, else -1."""

    def reward(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        return self.terminated(achieved, desired).astype(np.float32) - 1

    def terminated(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        return np.linalg.norm(achieved - desired, axis=-1) < 1


def world(obs: str, action: str, num_envs: int) -> World:
    goals = Near() if obs == "goals" else None
    return World(num_envs, OBS_SPACES[obs], ACTION_SPACES[action], goals=goals)


class Worlds:
    """E worlds that show samples of a space, with NEXT_STEP autoreset; the reward is 1 or −1 by chance."""

    def __init__(self, obs_space: dict[str, spaces.Space], E: int, seed: int = 0, end: float = 0.2) -> None:
        self.obs_space, self.E, self.end, self.rng = obs_space, E, end, np.random.default_rng(seed)
        for space in obs_space.values():
            space.seed(seed)
        self.ended = np.zeros(E, bool)

    def _obs(self) -> dict[str, np.ndarray]:
        return {key: np.stack([np.asarray(s.sample()) for _ in range(self.E)]) for key, s in self.obs_space.items()}

    def reset(self) -> Step:
        no = np.zeros(self.E, bool)
        return Step(self._obs(), np.zeros(self.E, np.float32), ~no, no, no, np.zeros(self.E))

    def step(self, action: Any) -> Step:
        is_first = self.ended
        ended = (self.rng.random(self.E) < self.end) & ~is_first
        terminated = ended & (self.rng.random(self.E) < 0.5)
        reward = np.where(is_first, 0.0, self.rng.choice([-1.0, 1.0], self.E))
        self.ended = ended
        return Step(self._obs(), reward.astype(np.float32), is_first, terminated, ended & ~terminated, reward)


def replay(cls: Any, E: int = 1, where: World | None = None, **keys: Any) -> Any:
    """A replay memory for the worlds of `Lives`; keys of `MemoryContext` go there, all others into its spec."""
    where = where or World(E, {"obs": spaces.Box(-np.inf, np.inf, (3,), np.float64)}, spaces.Discrete(9))
    around = {field.name: keys.pop(field.name) for field in fields(MemoryContext) if field.name in keys}
    return cls(cls.Spec(**keys), MemoryContext(where, **{"frequency": 1, **around}))


class Lived(NamedTuple):
    """One played row of one world, as a loop over scalar envs would have it."""

    episode: int
    step: int
    action: int
    reward: float
    terminated: bool
    truncated: bool


def plain(ids: np.ndarray) -> Tree:
    return {"obs": ids.astype(np.float64)}


class Lives:
    """E worlds under NEXT_STEP autoreset whose observation tells world, episode and step; episode lengths by chance.

    `lived[e]` is the scalar reference: world e's rows by number, None where the world began anew.
    """

    def __init__(self, E: int, seed: int = 0, longest: int = 5, show: Callable[[np.ndarray], Tree] = plain) -> None:
        self.E, self.rng, self.longest, self.show = E, np.random.default_rng(seed), longest, show
        self.episode, self.t, self.first = np.zeros(E, np.int64), np.zeros(E, np.int64), np.ones(E, bool)
        self.length = self._lengths()
        self.lived: list[list[Lived | None]] = [[] for _ in range(E)]

    def _lengths(self) -> np.ndarray:
        return self.rng.integers(1, self.longest + 1, self.E)

    def ids(self) -> np.ndarray:
        return np.stack([np.arange(self.E), self.episode, self.t], axis=1)

    def row(self) -> Row:
        """Live one more step."""
        seen, is_first, action = self.ids(), self.first, self.rng.integers(0, 9, self.E)
        self.first = self.t == self.length  # the episode was over: this action is ignored
        self.t = np.where(self.first, 0, self.t + 1)
        self.episode = self.episode + self.first
        self.length = np.where(self.first, self._lengths(), self.length)
        ended = (self.t == self.length) & ~self.first
        truncated = ended & (self.rng.random(self.E) < 0.5)
        reward = np.where(self.first, 0.0, self.t).astype(np.float32)
        for e, life in enumerate(self.lived):
            done = (int(action[e]), float(reward[e]), bool(ended[e] and not truncated[e]), bool(truncated[e]))
            life.append(None if self.first[e] else Lived(int(seen[e, 1]), int(seen[e, 2]), *done))
        return Row(
            self.show(seen), is_first, {"h": seen * 10.0}, action, {"log_prob": seen[:, 2].astype(np.float64)}, reward,
            ended & ~truncated, truncated, self.show(self.ids()), self.first,
        )  # fmt: skip

    def interrupt(self) -> Row:
        """The worlds are lost, new ones begin: the row that bridges the gap. What was under way is truncated."""
        seen, is_first, no = self.ids(), self.first, np.zeros(self.E, bool)
        for life in self.lived:
            if life[-1] and not life[-1].terminated:
                life[-1] = life[-1]._replace(truncated=True)
            life.append(None)
        self.episode, self.t, self.first, self.length = self.episode + 1, 0 * self.t, ~no, self._lengths()
        nothing = (np.zeros(self.E, np.int64), {"log_prob": np.zeros(self.E)}, np.zeros(self.E, np.float32), no, no)
        return Row(self.show(seen), is_first, {"h": seen * 10.0}, *nothing, self.show(self.ids()), self.first)
