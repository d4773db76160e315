"""Storage of rows, typed once: contiguous arrays, time-major, the env's own dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np

from slm_lab.lib.tree import tree_map
from slm_lab.lib.types import Row, Tree


class Rows:
    """Arrays `{key: [capacity, E, ...]}`, one slice write per key and step.

    Observations have one row more than the rest: the observation that row t led to is written at t+1, where it is row
    t+1's own, so nothing is stored twice and a window of T rows is the view `obs[t : t+T+1]`. Arrays are allocated
    when the first row shows their shapes, and doubled when full.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.data: Tree = {}

    def append(self, row: Row) -> None:
        """Write one row for all envs."""
        if not self.data:
            self._allocate(row)
        if self.size == self.capacity:
            self._grow()
        t, data = self.size, self.data
        if t == 0:  # later rows find their observation already there
            tree_map(lambda store, leaf: store.__setitem__(0, leaf), data["seen"], _seen(row.obs, row.is_first))
        tree_map(
            lambda store, leaf: store.__setitem__(t + 1, leaf), data["seen"], _seen(row.next_obs, row.next_is_first)
        )
        tree_map(lambda store, leaf: store.__setitem__(t, leaf), data["done"], _done(row))
        self.size += 1

    def drop(self, count: int) -> None:
        """Forget the oldest `count` rows."""
        self.size -= count
        tree_map(
            lambda store: store.__setitem__(slice(0, self.size), store[count : count + self.size].copy()),
            self.data["done"],
        )
        end = self.size + 1
        tree_map(lambda store: store.__setitem__(slice(0, end), store[count : count + end].copy()), self.data["seen"])

    def _allocate(self, row: Row) -> None:
        def empty(rows: int) -> Any:
            return lambda leaf: np.zeros((rows, *np.shape(leaf)), np.asarray(leaf).dtype)

        self.data = {
            "seen": tree_map(empty(self.capacity + 1), _seen(row.obs, row.is_first)),
            "done": tree_map(empty(self.capacity), _done(row)),
        }

    def _grow(self) -> None:
        more = self.capacity
        self.data = tree_map(
            lambda store: np.concatenate([store, np.zeros((more, *store.shape[1:]), store.dtype)]), self.data
        )
        self.capacity += more

    def state_dict(self) -> Tree:
        """The rows held (not the empty room)."""
        if not self.data:
            return {"size": 0, "capacity": self.capacity}
        seen = tree_map(lambda store: store[: self.size + 1].copy(), self.data["seen"])
        done = tree_map(lambda store: store[: self.size].copy(), self.data["done"])
        return {"size": self.size, "capacity": self.capacity, "data": {"seen": seen, "done": done}}

    def load_state_dict(self, state: Tree) -> None:
        self.size, self.capacity, self.data = int(state["size"]), int(state["capacity"]), {}
        if "data" in state:
            held = state["data"]
            self.data = {
                "seen": tree_map(lambda leaf: _with_room(leaf, self.capacity + 1), held["seen"]),
                "done": tree_map(lambda leaf: _with_room(leaf, self.capacity), held["done"]),
            }


def _seen(obs: Tree, is_first: np.ndarray) -> Tree:
    return {"obs": obs, "is_first": is_first}


def _done(row: Row) -> Tree:
    names = ("action", "extras", "reward", "terminated", "truncated", "mask")
    return {name: getattr(row, name) for name in names}


def _with_room(leaf: np.ndarray, rows: int) -> np.ndarray:
    store = np.zeros((rows, *leaf.shape[1:]), leaf.dtype)
    store[: len(leaf)] = leaf
    return store
