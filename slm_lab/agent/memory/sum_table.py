"""Drawing an index in proportion to its weight, for millions of weights that keep changing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

FAN = 32  # leaves in a row, rows in a group


class SumTable:
    """`size` weights, their sums by rows of 32 and groups of 32 rows: `set` and `draw` work on whole arrays.

    A sum tree with a fan of 32 and the top searched as one cumulative sum: three array operations deep, where a binary
    tree of a million leaves is twenty. Sums are taken anew from what is below them, so rounding errors don't add up.
    """

    def __init__(self, size: int) -> None:
        groups = -(-size // FAN**2)
        self.leaf = np.zeros(groups * FAN**2)
        self.row, self.row_max = np.zeros(groups * FAN), np.zeros(groups * FAN)
        self.group, self.group_max = np.zeros(groups), np.zeros(groups)

    def set(self, index: np.ndarray, value: np.ndarray | float) -> None:
        """Weights at `index` [N], 0 or more; of an index given twice one value counts."""
        self.leaf[index] = value
        rows = index // FAN
        leaves = self.leaf.reshape(-1, FAN)[rows]  # [N, FAN]
        self.row[rows], self.row_max[rows] = leaves.sum(axis=1), leaves.max(axis=1)
        groups = rows // FAN
        self.group[groups] = self.row.reshape(-1, FAN)[groups].sum(axis=1)
        self.group_max[groups] = self.row_max.reshape(-1, FAN)[groups].max(axis=1)

    def max(self) -> float:
        """The largest weight now; 0 if there is none."""
        return float(self.group_max.max())

    def draw(self, share: np.ndarray) -> np.ndarray:
        """The index [B] at each `share` [B] of the total, in [0, 1). At least one weight must be above 0."""
        top = np.cumsum(self.group)
        rest = np.minimum(share * top[-1], np.nextafter(top[-1], 0.0))
        group = np.minimum(np.searchsorted(top, rest, side="right"), len(top) - 1)
        rest -= top[group] - self.group[group]
        row = group * FAN + _step(self.row.reshape(-1, FAN)[group], rest)
        index: np.ndarray = row * FAN + _step(self.leaf.reshape(-1, FAN)[row], rest)
        return index

    def load(self, leaf: np.ndarray) -> None:
        """All weights at once."""
        self.leaf[: len(leaf)] = leaf
        self.row[:], self.row_max[:] = _folded(self.leaf, np.sum), _folded(self.leaf, np.max)
        self.group[:], self.group_max[:] = _folded(self.row, np.sum), _folded(self.row_max, np.max)


def _step(weights: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Which of `weights` [B, FAN] holds `rest` [B], which is lessened in place by those before it.

    Rounding may carry `rest` to the end of the row or onto a weight of 0: the last one above 0 is meant then.
    """
    below = np.cumsum(weights, axis=1)
    lines = np.arange(len(weights))
    found: np.ndarray = np.minimum((below <= rest[:, None]).sum(axis=1), FAN - 1)
    empty = np.flatnonzero(weights[lines, found] == 0)
    found[empty] = FAN - 1 - (weights[empty, ::-1] > 0).argmax(axis=1)
    rest -= below[lines, found] - weights[lines, found]
    return found


def _folded(values: np.ndarray, by: Callable[..., np.ndarray]) -> np.ndarray:
    return by(values.reshape(-1, FAN), axis=1)
