"""Running mean and variance."""

from __future__ import annotations

import numpy as np

from slm_lab.lib.types import Tree


class RunningMoments:
    """Mean and variance of a stream, elementwise over `shape`, updated batch by batch.

    Source: Chan, Golub & LeVeque 1983, parallel update of the sum of squares.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.count = 0.0
        self.mean = np.zeros(shape)
        self.var = np.ones(shape)

    def update(self, batch: np.ndarray) -> None:
        """Take in `batch` [N, *shape]."""
        if len(batch) == 0:
            return
        batch = np.asarray(batch, dtype=np.float64)
        mean, var, n = batch.mean(axis=0), batch.var(axis=0), float(len(batch))
        total = self.count + n
        delta = mean - self.mean
        squares = (self.var * self.count if self.count else 0.0) + var * n + delta**2 * self.count * n / total
        self.mean, self.var, self.count = self.mean + delta * n / total, squares / total, total

    def std(self, epsilon: float = 1e-8) -> np.ndarray:
        return np.asarray(np.sqrt(self.var + epsilon))

    def state_dict(self) -> Tree:
        return {"count": self.count, "mean": np.array(self.mean), "var": np.array(self.var)}

    def load_state_dict(self, state: Tree) -> None:
        self.count, self.mean, self.var = float(state["count"]), np.array(state["mean"]), np.array(state["var"])
