"""Worlds of every space, whose episodes end by chance, for the contract suites."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from slm_lab.lib.types import Step

OBS_SPACES: dict[str, dict[str, spaces.Space]] = {
    "vector": {"obs": spaces.Box(-1, 1, (3,))},
    "scalar": {"obs": spaces.Box(-1, 1, ())},
    "float64": {"obs": spaces.Box(-1, 1, (2, 2), np.float64)},
    "discrete": {"obs": spaces.Discrete(4, start=2)},
    "multi_discrete": {"obs": spaces.MultiDiscrete([3, 2])},
    "multi_binary": {"obs": spaces.MultiBinary(3)},
    "dict": {"a.b": spaces.Box(0, 1, (2,)), "0": spaces.Discrete(3)},
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
}


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
