"""A PettingZoo world of two agents that must remember one bit and answer it each in a way of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from pettingzoo import ParallelEnv

from slm_lab.env.tasks.base import whole

OBS, ACTION = spaces.Box(0.0, 1.0, (2,), np.float32), spaces.Discrete(2)


class MirrorCue(ParallelEnv):
    """Both agents see one bit at the first of `delay` steps; at the last `echo` must say it, `mirror` the other one.

    Observation float32 [2]: the bit as one-hot at step 0, zeros later. Actions 0 and 1. At t = delay - 1 each agent
    earns +1 if both answers are right and -1 if not; every other reward is 0; the episode is terminated there. Best
    return 1. Without memory 0 (each always says the same); with one policy for both agents -0.5, as by chance, for it
    sees the same in both roles (and -1 where it acts greedily).

    Raises `EnvError` for a delay below 1.
    """

    metadata = {"name": "mirror_cue"}
    possible_agents = ["echo", "mirror"]

    def __init__(self, delay: int = 4) -> None:
        self.delay, self.agents = whole("delay", delay, 1), list[str]()
        self.bit, self.t = 0, 0

    def observation_space(self, agent: str) -> spaces.Space:
        return OBS

    def action_space(self, agent: str) -> spaces.Space:
        return ACTION

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        if seed is not None:
            self.rng, _ = seeding.np_random(seed)
        self.agents, self.t, self.bit = list(self.possible_agents), 0, int(self.rng.integers(2))
        return self._shown(), self._each({})

    def step(self, actions: dict[str, Any]) -> tuple[Any, Any, Any, Any, Any]:
        self.t += 1
        last, right = self.t == self.delay, actions["echo"] == self.bit and actions["mirror"] != self.bit
        self.agents = [] if last else self.agents
        reward = (1.0 if right else -1.0) if last else 0.0
        return self._shown(), self._each(reward), self._each(last), self._each(False), self._each({})

    def _shown(self) -> dict[str, np.ndarray]:
        obs = np.zeros(2, np.float32)
        obs[self.bit] = self.t == 0
        return self._each(obs)

    def _each(self, value: Any) -> dict[str, Any]:
        return dict.fromkeys(self.possible_agents, value)


parallel_env = MirrorCue
