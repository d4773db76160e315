"""Drawing an index in proportion to its weight, for millions of weights that keep changing."""

from __future__ import annotations

import math

import numpy as np

BITS = 5  # a shift is sooner done than a division
FAN = 2**BITS  # leaves in a row, rows in a group
ONES = np.ones(FAN, np.float32)
RUNNING = np.triu(
    np.ones((FAN, FAN), np.float32)
)  # weights @ RUNNING: running sums, of short rows sooner than by cumsum


class SumTable:
    """`size` weights, their sums by rows of 32 and groups of 32 rows: `set` and `draw` work on whole arrays.

    A sum tree with a fan of 32 and the top searched as one cumulative sum: three array operations deep, where a binary
    tree of a million leaves is twenty. Sums are taken anew from what is below them, so rounding errors don't add up:
    float32 does for rows, the top is float64. Maxima are brought up to date when asked for, once for all that was set.
    """

    def __init__(self, size: int) -> None:
        groups = -(-size // FAN**2)
        self.leaf = np.zeros(groups * FAN**2, np.float32)
        self.row, self.row_max = np.zeros(groups * FAN, np.float32), np.zeros(groups * FAN, np.float32)
        self.group, self.group_max = np.zeros(groups), np.zeros(groups)
        self.stale = np.zeros(groups * FAN, bool)  # rows whose maximum may be another by now

    def set(self, index: np.ndarray, value: np.ndarray | float) -> None:
        """Weights at `index` [N], 0 or more; of an index given twice one value counts."""
        self.leaf[index] = value
        rows = index >> BITS
        self.stale[rows] = True
        self.row[rows] = _sums(_children(self.leaf, rows))
        groups = rows >> BITS
        self.group[groups] = _sums(_children(self.row, groups))

    def max(self) -> float:
        """The largest weight now; 0 if there is none."""
        rows = self.stale.nonzero()[0]
        if len(rows):
            self.stale[rows] = False
            self.row_max[rows] = _maxima(_children(self.leaf, rows))
            groups = rows >> BITS
            self.group_max[groups] = _maxima(_children(self.row_max, groups))
        return float(self.group_max.max())

    def draw(self, share: np.ndarray) -> np.ndarray:
        """The index [B] at each `share` [B] of the total, in [0, 1). Raises `ValueError` unless a total is there."""
        top = self.group.cumsum()
        total = float(top[-1])
        if not 0 < total < math.inf:
            raise ValueError(
                f"nothing can be drawn from weights that add up to {total}: one above 0 was expected, all finite"
            )
        rest = np.minimum(share * total, math.nextafter(total, 0.0))
        group = top.searchsorted(rest, side="right")
        rest = (rest - top.take(group) + self.group.take(group)).astype(np.float32)
        row, held, below = _step(self.row, group, rest)
        rest -= below.take(np.arange(0, below.size, FAN) + (row & FAN - 1)) - held
        return _step(self.leaf, row, rest)[0]

    def load(self, leaf: np.ndarray) -> None:
        """All weights at once."""
        self.leaf[: len(leaf)] = leaf
        self.row[:] = _sums(self.leaf.reshape(-1, FAN))
        self.group[:] = _sums(self.row.reshape(-1, FAN))
        self.stale[:] = True


def _children(weights: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """The weights [N, FAN] below each parent [N]."""
    return weights.reshape(-1, FAN).take(parent, axis=0)


def _sums(weights: np.ndarray) -> np.ndarray:
    """[N, FAN] -> [N], the same to the last bit however many there are, which a matrix product doesn't promise."""
    sums: np.ndarray = np.vecdot(weights, ONES)
    return sums


def _maxima(weights: np.ndarray) -> np.ndarray:
    """[N, FAN] -> [N]."""
    maxima: np.ndarray = np.maximum.reduceat(weights.reshape(-1), np.arange(0, weights.size, FAN))
    return maxima


def _step(weights: np.ndarray, parent: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which weight below each `parent` [B] holds `rest` [B], itself [B], and the running sums of all there [B, FAN].

    Rounding may carry `rest` to the end of the row or onto a weight of 0: the last one above 0 is meant then.
    """
    children = _children(weights, parent)  # [B, FAN]
    below = children.dot(RUNNING)
    beyond = below > rest[:, None]
    beyond[:, -1] = True
    index: np.ndarray = (parent << BITS) + beyond.argmax(axis=1)
    held = weights.take(index)
    if np.count_nonzero(held) < len(held):
        empty = np.flatnonzero(held == 0)
        index[empty] = (parent[empty] << BITS) + FAN - 1 - (children[empty, ::-1] > 0).argmax(axis=1)
        held[empty] = weights.take(index[empty])
    return index, held, below
