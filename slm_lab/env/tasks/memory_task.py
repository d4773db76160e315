"""Recall one bit after a delay."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from slm_lab.env.base import EnvError
from slm_lab.env.tasks.base import Rules, State, rows, whole

EASY, HARD = 0, 1


class MemoryTask(Rules):
    """Say at the last of `delay` steps the bit shown at the first (EASY: silence between; HARD: random bits).

    Observation float32 [3], `[bit or distractor, distractor, 0]`. Step 0 shows the target bit in channel 0 and, if HARD
    (`difficulty` 1), a random bit in channel 1; the later ones, the last observation included, show zeros (EASY,
    `difficulty` 0) or random bits in both channels (HARD). No flag marks the cue: in HARD only *when* it came tells it
    apart. Actions 0 and 1, or with `continuous` one number of [-1, 1] that says 1 where it is above 0. The action at
    t = delay - 1 earns +1 if it equals the bit and -1 if not; every other reward is 0; the episode is terminated there.
    Best return 1; without memory 0 on average.

    Raises `EnvError` for a delay below 1, a difficulty other than 0 and 1, or a `continuous` that is no bool.
    Ours. The class, by which evaluations are balanced, is the first bit.
    """

    def __init__(self, delay: int = 16, difficulty: int = HARD, continuous: bool = False) -> None:
        self.length = whole("delay", delay, 1)
        self.difficulty = whole("difficulty", difficulty, EASY, HARD)
        self.obs_space = spaces.Box(0.0, 1.0, (3,), np.float32)
        if not isinstance(continuous, bool):
            raise EnvError(f"{continuous!r}: true or false was expected", "continuous")
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32) if continuous else spaces.Discrete(2)

    def script(self, rng: np.random.Generator) -> State:
        bits = rng.integers(2, size=(self.length + 1, 2), dtype=np.int8)
        if self.difficulty == EASY:
            bits[0, 1] = 0
            bits[1:] = 0
        return {"bits": bits}

    def observe(self, state: State) -> np.ndarray:
        obs = np.zeros((len(state["t"]), 3), np.float32)
        obs[:, :2] = rows(state, "bits")
        return obs

    def act(self, state: State, action: np.ndarray) -> np.ndarray:
        if action.ndim == 2:  # [E, 1], continuous
            action = action[:, 0] > 0
        right = np.where(action == state["bits"][:, 0, 0], 1.0, -1.0)
        return np.where(state["t"] == self.length - 1, right, 0.0)

    def target(self, state: State) -> np.ndarray:
        """The class, at the last step; -1 before it."""
        return np.where(state["t"] == self.length - 1, state["bits"][:, 0, 0].astype(np.int64), -1)

    def cue_steps(self, state: State) -> np.ndarray:
        return np.zeros((len(state["t"]), 1), np.int64)
