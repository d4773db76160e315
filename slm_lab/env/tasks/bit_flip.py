"""Bring a row of bits to a wanted state, where only arriving there pays."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from slm_lab.env.tasks.base import Rules, State, whole


class _AllEqual:
    """0 and the end where all bits are as desired, else -1."""

    def reward(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        return self.terminated(achieved, desired).astype(np.float32) - np.float32(1.0)

    def terminated(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        equal: np.ndarray = (np.asarray(achieved) == desired).all(axis=-1)
        return equal


class BitFlip(Rules):
    """Flip one of `n` bits a step until they are as desired: a goal task that is hopeless for larger n by chance alone.

    Observation Dict of int8 [n], each bits: "observation" and "achieved_goal" (the present ones), "desired_goal";
    action Discrete(n), the bit to flip. Present and desired bits are drawn uniformly; if they are equal, that counts
    only once a step leads there. A step earns -1, but 0 if it reaches the goal; that terminates the episode, and n
    steps without success truncate it. Success can be read twice: the episode ended terminated; its return is above -n.
    The best policy always succeeds, its mean return is 1 - n/2 - 2^(1-n). Random play with n = 15 succeeds in 43 of
    100,000 episodes, its mean return is -14.997.

    Raises `EnvError` for n < 2 (one bit that begins as desired can't come back in one step).
    Source: Andrychowicz et al. 2017, arXiv 1707.01495, section 3.1. We differ: success ends the episode, as in the
    usual implementations; the paper's goes on.
    """

    goals = _AllEqual()

    def __init__(self, n: int = 15) -> None:
        self.length = whole("n", n, 2)
        keys = ("observation", "achieved_goal", "desired_goal")
        self.obs_space = spaces.Dict({key: spaces.MultiBinary(self.length) for key in keys})
        self.action_space = spaces.Discrete(self.length)

    def script(self, rng: np.random.Generator) -> State:
        bits, desired = rng.integers(2, size=(2, self.length), dtype=np.int8)
        return {"bits": bits, "desired": desired}

    def observe(self, state: State) -> dict[str, Any]:
        bits = state["bits"].copy()
        return {"observation": bits, "achieved_goal": bits.copy(), "desired_goal": state["desired"].copy()}

    def act(self, state: State, action: np.ndarray) -> np.ndarray:
        state["bits"][np.arange(len(action)), action] ^= 1
        return self.goals.reward(state["bits"], state["desired"]).astype(np.float64)

    def terminated(self, state: State) -> np.ndarray:
        return self.goals.terminated(state["bits"], state["desired"])

    def target(self, state: State) -> np.ndarray:
        """The first bit that is wrong; -1 where none is."""
        wrong = state["bits"] != state["desired"]
        return np.where(wrong.any(axis=1), wrong.argmax(axis=1), -1)

    def cue_steps(self, state: State) -> np.ndarray:
        """None, [E, 0]: all that matters is in sight."""
        return np.zeros((len(state["t"]), 0), np.int64)
