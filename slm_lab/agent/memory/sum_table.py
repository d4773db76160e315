"""Drawing an index in proportion to its weight, for millions of weights that keep changing."""

from __future__ import annotations

import math

import numpy as np

FAN = 32  # leaves in a row, rows in a group
RUNNING = np.triu(np.ones((FAN, FAN)))  # `weights @ RUNNING` are running sums; of rows this short sooner than by cumsum


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
        leaves = _children(self.leaf, rows)
        self.row[rows], self.row_max[rows] = _folded(leaves, np.add), _folded(leaves, np.maximum)
        groups = rows // FAN
        self.group[groups] = _folded(_children(self.row, groups), np.add)
        self.group_max[groups] = _folded(_children(self.row_max, groups), np.maximum)

    def max(self) -> float:
        """The largest weight now; 0 if there is none."""
        return float(self.group_max.max())

    def draw(self, share: np.ndarray) -> np.ndarray:
        """The index [B] at each `share` [B] of the total, in [0, 1). At least one weight must be above 0."""
        top = self.group.cumsum()
        total = float(top[-1])
        rest = np.minimum(share * total, math.nextafter(total, 0.0))
        group = top.searchsorted(rest, side="right")
        rest -= top.take(group) - self.group.take(group)
        row = _step(self.row, group, rest)
        return _step(self.leaf, row, rest)

    def load(self, leaf: np.ndarray) -> None:
        """All weights at once."""
        self.leaf[: len(leaf)] = leaf
        self.row[:], self.row_max[:] = _folded(self.leaf, np.add), _folded(self.leaf, np.maximum)
        self.group[:], self.group_max[:] = _folded(self.row, np.add), _folded(self.row_max, np.maximum)


def _children(weights: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """The weights [N, FAN] below each parent [N]."""
    return weights.reshape(-1, FAN).take(parent, axis=0)


def _folded(weights: np.ndarray, by: np.ufunc) -> np.ndarray:
    """The sum or maximum of each FAN of them [..., FAN], the same to the last bit however many there are."""
    folded: np.ndarray = by.reduceat(weights.reshape(-1), np.arange(0, weights.size, FAN))
    return folded


def _step(weights: np.ndarray, parent: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Which weight below each `parent` [B] holds `rest` [B], which is lessened in place by those before it.

    Rounding may carry `rest` to the end of the row or onto a weight of 0: the last one above 0 is meant then.
    """
    children = _children(weights, parent)  # [B, FAN]
    below = children.dot(RUNNING)
    beyond = below > rest[:, None]
    beyond[:, -1] = True
    line = np.arange(0, below.size, FAN)
    found = line + beyond.argmax(axis=1)
    held = children.take(found)
    if np.count_nonzero(held) < held.size:
        empty = np.flatnonzero(held == 0)
        found[empty] = line[empty] + FAN - 1 - (children[empty, ::-1] > 0).argmax(axis=1)
        held = children.take(found)
    rest -= below.take(found) - held
    index: np.ndarray = found + (parent * FAN - line)
    return index
