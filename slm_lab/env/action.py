"""From the policy's units to the world's."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from slm_lab.env.base import EnvError, Space


class ActionUnits:
    """Maps actions [E, *A] of `space` (what a policy gives) to those of `world` (what the env takes).

    Discrete and MultiDiscrete count from 0, whatever their `start`. A Box dimension with two finite bounds is [-1, 1]:
    clipped to it, then stretched to low..high, as SLM-Lab and CleanRL do; the others pass through, clipped to a bound
    they may have. Integer boxes are rounded. Raises `EnvError` for other kinds of space.
    """

    def __init__(self, world: Space) -> None:
        self.world = world
        self.space: Space
        if isinstance(world, spaces.Discrete):
            self.space, self._start, self._size = spaces.Discrete(int(world.n)), world.start, np.asarray(world.n)
        elif isinstance(world, spaces.MultiDiscrete):
            self.space, self._start, self._size = spaces.MultiDiscrete(world.nvec), world.start, world.nvec
        elif isinstance(world, spaces.Box):
            self._prepare_box(world)
        else:
            raise EnvError(
                f"actions of kind {type(world).__name__} aren't supported, only Discrete, MultiDiscrete and Box. "
                "Wrap the env to take one of them."
            )

    def _prepare_box(self, world: spaces.Box) -> None:
        low, high = world.low.astype(np.float64), world.high.astype(np.float64)
        self._bounded = np.isfinite(low) & np.isfinite(high)
        self._low, self._high = low, high
        self._safe_low, self._safe_high = np.where(self._bounded, low, 0.0), np.where(self._bounded, high, 0.0)
        dtype = world.dtype if np.issubdtype(world.dtype, np.floating) else np.dtype(np.float32)
        policy_low, policy_high = np.where(self._bounded, -1.0, low), np.where(self._bounded, 1.0, high)
        self.space = spaces.Box(policy_low.astype(dtype), policy_high.astype(dtype), dtype=dtype.type)

    def to_world(self, action: np.ndarray) -> np.ndarray:
        """[E, *A] to [E, *A] in the world's dtype. Raises `EnvError` for a wrong shape, a NaN or an unknown choice."""
        action = np.asarray(action)
        if action.shape[1:] != self.space.shape:
            raise EnvError(f"an action of one world has shape {action.shape[1:]}, {self.space.shape} was expected")
        if isinstance(self.world, spaces.Box):
            return self._stretch(action)
        if action.dtype.kind not in "iub" or np.count_nonzero((action < 0) | (action >= self._size)):
            raise EnvError(f"the actions {action.tolist()} aren't all whole numbers from 0 to {self._size - 1}")
        return np.asarray(action + self._start, dtype=self.world.dtype)

    def _stretch(self, action: np.ndarray) -> np.ndarray:
        if np.count_nonzero(np.isfinite(action)) < action.size:
            raise EnvError(f"the policy gave the actions {action.tolist()}: not all finite")
        share = (action.astype(np.float64) + 1.0) / 2.0
        # In this form -1 and 1 give low and high exactly; what lies beyond them, if by rounding only, is clipped.
        stretched = self._safe_low * (1.0 - share) + self._safe_high * share
        action = np.clip(np.where(self._bounded, stretched, action), self._low, self._high)
        dtype = np.dtype(self.world.dtype)
        return (np.rint(action) if dtype.kind in "iu" else action).astype(dtype)
