"""Remember which way to turn while walking down a corridor."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from slm_lab.env.tasks.base import Rules, State, whole

UP, DOWN = 1, 3


class PassiveTMaze(Rules):
    """See the goal's side at the first step, walk `corridor` steps, turn to that side: credit and exploration as well.

    Places are (x, y): the corridor is y = 0, x = 0..L with L = `corridor`; the two goals are (L, +1) and (L, -1).
    Observation float32 [2]: at x = 0 `[0, side]` with side = +1 or -1 at t = 0 and 0 ever after; inside the corridor
    `[0, 0]`; at x = L `[1, y]`. Actions right, up, left, down (0..3); a step into a wall stays. An episode lasts
    L + 1 steps, so only a walk without a false step leaves one action for the turn. After action t (from 1) the reward
    is -1/L if x < t, that is, late; the last action earns instead 1 if y is the goal's side and 0 if not. Best
    return 1; walking well and guessing 0.5; standing still -1.

    Raises `EnvError` for a corridor below 1.
    Source: passive T-maze of Ni et al. 2023 (arXiv 2307.03864), after Bakker 2001: episode T = L + 1, penalty
    -1/(T - 1). We differ in nothing we know of.
    """

    def __init__(self, corridor: int = 64) -> None:
        self.corridor = whole("corridor", corridor, 1)
        self.length = self.corridor + 1
        self.obs_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(4)

    def script(self, rng: np.random.Generator) -> State:
        side = 2 * rng.integers(2) - 1
        return {"side": np.int64(side), "x": np.int64(0), "y": np.int64(0)}  # type: ignore[dict-item]

    def observe(self, state: State) -> np.ndarray:
        at_end = state["x"] == self.corridor
        second = np.where(at_end, state["y"], np.where(state["t"] == 0, state["side"], 0))
        return np.stack([at_end, second], axis=1).astype(np.float32)

    def act(self, state: State, action: np.ndarray) -> np.ndarray:
        x, y = state["x"], state["y"]
        dx, dy = np.array([1, 0, -1, 0])[action], np.array([0, 1, 0, -1])[action]  # right, up, left, down
        # Along the corridor only while in it; across it only at its end.
        state["x"] = np.where(y == 0, np.clip(x + dx, 0, self.corridor), x)
        state["y"] = np.where(x == self.corridor, np.clip(y + dy, -1, 1), y)
        late = np.where(state["x"] < state["t"] + 1, -1.0 / self.corridor, 0.0)
        return np.where(state["t"] == self.length - 1, (state["y"] == state["side"]).astype(np.float64), late)

    def target(self, state: State) -> np.ndarray:
        """The action that is right at the junction, UP or DOWN, at the last step; -1 before it."""
        return np.where(state["t"] == self.length - 1, np.where(state["side"] > 0, UP, DOWN), -1)

    def cue_steps(self, state: State) -> np.ndarray:
        return np.zeros((len(state["t"]), 1), np.int64)
