"""Storage of rows, typed once for every memory: one ring of contiguous arrays, time-major, the env's own dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from slm_lab.env.base import Space, Stack
from slm_lab.lib.tree import tree_map
from slm_lab.lib.types import Batch, Row, Tree

Allocate = Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray]  # zeros of a shape and dtype, in RAM or on disk
DONE = ("reward", "terminated", "truncated")  # what an action caused


class Rows:
    """The last `capacity` steps of E worlds, `{key: [slots, E, ...]}`; one slice write per key and step.

    Rows have numbers that only grow: row t is written at slot t mod slots, and rows `first` to `count - 1` are held.
    The observation that row t led to is row t+1's own and stands at the slot after it, so nothing is stored twice;
    slots are one more than the capacity, so that the newest row's next observation doesn't cover the oldest row. Which
    rows were really played follows from `is_first` of the row after.

    Stacked observations (`stacks`) are stored as single frames and stacked again when read. For that the frames before
    the oldest row are kept too, `count - 1` slots more; before row 0, which may be amid an episode, they are its own.

    Discrete actions are kept in the smallest integer type that holds them and come back in their own.
    """

    def __init__(
        self, capacity: int, stacks: dict[str, Stack] | None = None, action_space: Space | None = None,
        grows: bool = False, extras: bool = True, allocate: Allocate = np.zeros,
    ) -> None:  # fmt: skip
        self.capacity, self.stacks, self.grows, self.extras = capacity, stacks or {}, grows, extras
        self.margin = max((stack.count for stack in self.stacks.values()), default=1) - 1
        self.slots = capacity + 1 + self.margin
        self.small = small_dtype(action_space)
        self.allocate = allocate
        self.reset()

    def reset(self) -> None:
        """Forget everything; the arrays stay."""
        self.count = self.first = 0
        self.data: Tree = getattr(self, "data", {})
        self.action_dtype: np.dtype[Any] | None = getattr(self, "action_dtype", None)

    @property
    def size(self) -> int:
        """Rows held, of each world."""
        return self.count - self.first

    def append(self, row: Row) -> None:
        """Write one row for all worlds; when full, the oldest is forgotten (or the room is doubled, if it `grows`)."""
        if not self.data:
            self._allocate(row)
        if self.size == self.capacity:
            if self.grows:
                self._grow()
            else:
                self.first += 1
        if self.count == 0:  # later rows find their observation already there
            self._write_seen(0, row.obs, row.is_first)
            self._write_before(row.obs)
        self._write_seen((self.count + 1) % self.slots, row.next_obs, row.next_is_first)
        tree_map(
            lambda store, leaf: store.__setitem__(self.count % self.slots, leaf), self.data["done"], self._done(row)
        )
        self.count += 1

    def drop(self, until: int) -> None:
        """Forget the rows before number `until`."""
        self.first = max(self.first, until)

    def truncate_last(self) -> None:
        """The episodes under way end with the newest row: nothing follows it."""
        if not self.size:
            return
        slot = (self.count - 1) % self.slots
        played = ~self.data["is_first"][self.count % self.slots]
        truncated, terminated = self.data["done"]["truncated"], self.data["done"]["terminated"]
        truncated[slot] |= played & ~terminated[slot]

    # --- reading: t and env are whole arrays of row numbers and worlds that broadcast with each other ---

    def is_first(self, t: np.ndarray, env: np.ndarray) -> np.ndarray:
        flags: np.ndarray = self.data["is_first"][t % self.slots, env]
        return flags

    def played(self, t: np.ndarray, env: np.ndarray) -> np.ndarray:
        """Whether the action of row t was taken (False: the worlds began anew)."""
        return ~self.is_first(t + 1, env)

    def obs(self, t: np.ndarray, env: np.ndarray) -> Tree:
        """{key: [..., *O]}, stacked again where frames are."""
        found = {}
        for key, store in self.data["obs"].items():
            stack = self.stacks.get(key)
            found[key] = store[t % self.slots, env] if stack is None else self._stacked(store, stack, t, env)
        return found

    def done(self, t: np.ndarray, env: np.ndarray) -> Tree:
        """`action`, `reward`, `terminated`, `truncated` (and `extras`, if kept), each [..., *]."""
        slot = t % self.slots
        found: Tree = tree_map(lambda store: store[slot, env], self.data["done"])
        found["action"] = found["action"].astype(self.action_dtype, copy=False)
        return found

    def _stacked(self, store: np.ndarray, stack: Stack, t: np.ndarray, env: np.ndarray) -> np.ndarray:
        """The last frames up to row t joined, oldest first; an episode's first one repeated before it."""
        rows = [np.broadcast_to(t, np.broadcast_shapes(np.shape(t), np.shape(env)))]
        for _ in range(stack.count - 1):
            rows.append(np.where(self.is_first(rows[-1], env), rows[-1], rows[-1] - 1))
        frames = [store[row % self.slots, env] for row in reversed(rows)]
        lead = rows[0].ndim
        return np.concatenate(frames, axis=stack.axis + lead if stack.axis >= 0 else stack.axis)

    # --- writing ---

    def _write_seen(self, slot: int, obs: Tree, is_first: np.ndarray) -> None:
        self.data["is_first"][slot] = is_first
        for key, store in self.data["obs"].items():
            store[slot] = self._frame(key, obs[key])

    def _write_before(self, obs: Tree) -> None:
        """The older frames of row 0's observation, as those of rows -1, -2, ..."""
        for key, stack in self.stacks.items():
            for back in range(1, stack.count):
                self.data["obs"][key][-back] = self._frame(key, obs[key], back)
                self.data["is_first"][-back] = False

    def _frame(self, key: str, leaf: np.ndarray, back: int = 0) -> np.ndarray:  # [E, *O] -> [E, *one frame]
        stack = self.stacks.get(key)
        if stack is None:
            return leaf
        axis = stack.axis % (leaf.ndim - 1) + 1
        size = leaf.shape[axis] // stack.count
        end = leaf.shape[axis] - back * size
        return leaf[(slice(None),) * axis + (slice(end - size, end),)]

    def _done(self, row: Row) -> Tree:
        kept = {"action": row.action, **{name: getattr(row, name) for name in DONE}}
        return {**kept, "extras": row.extras} if self.extras else kept

    def _allocate(self, row: Row) -> None:
        def empty(leaf: Any) -> np.ndarray:
            return self.allocate((self.slots, *np.shape(leaf)), np.asarray(leaf).dtype)

        frames = {key: self._frame(key, leaf) for key, leaf in row.obs.items()}
        self.action_dtype = row.action.dtype
        done = self._done(row) | {"action": row.action.astype(self.small or row.action.dtype)}
        self.data = {"obs": tree_map(empty, frames), "is_first": empty(row.is_first), "done": tree_map(empty, done)}

    def _grow(self) -> None:
        """Twice the room; what is held moves to its new slots."""
        t = np.arange(self.first - self.margin, self.count + 1)
        old, self.capacity = self.slots, 2 * self.capacity
        self.slots = self.capacity + 1 + self.margin

        def moved(store: np.ndarray) -> np.ndarray:
            new = self.allocate((self.slots, *store.shape[1:]), store.dtype)
            new[t % self.slots] = store[t % old]
            return new

        self.data = tree_map(moved, self.data)

    # --- saving ---

    def state_dict(self) -> Tree:
        """What is held, as views: to be written before anything changes."""
        held = min(self.count + 1, self.slots)
        dtype = None if self.action_dtype is None else self.action_dtype.str
        state = {"count": self.count, "first": self.first, "capacity": self.capacity, "action_dtype": dtype}
        before = {key: self.data["obs"][key][self.slots - self.margin :] for key in self.stacks if self.data}
        return {**state, "before": before, "data": tree_map(lambda store: store[:held], self.data)}

    def load_state_dict(self, state: Tree) -> None:
        self.count, self.first, self.capacity = int(state["count"]), int(state["first"]), int(state["capacity"])
        self.action_dtype = None if state["action_dtype"] is None else np.dtype(state["action_dtype"])
        self.slots = self.capacity + 1 + self.margin
        self.data = tree_map(lambda leaf: self.placed(leaf, self.slots), state["data"])
        for key, frames in state["before"].items():
            self.data["obs"][key][self.slots - self.margin :] = frames

    def placed(self, leaf: np.ndarray, size: int) -> np.ndarray:
        """A saved array in `size` places of our own; what a checkpoint maps from disk is so never held twice in RAM."""
        store = self.allocate((size, *leaf.shape[1:]), leaf.dtype)
        store[: len(leaf)] = leaf
        return store


def small_dtype(space: Space | None) -> np.dtype[Any] | None:
    """The smallest unsigned type for the actions of a discrete space; None: as they come."""
    most = getattr(space, "nvec", getattr(space, "n", None)) if hasattr(space, "start") else None
    return None if most is None else np.min_scalar_type(int(np.max(most)) - 1)


def window(rows: Rows, t: np.ndarray, env: np.ndarray, carry: Tree, **fields: Any) -> Batch:
    """The batch of rows `t` [B, T+1] (the last column gives the last observation only) of worlds `env` [B, 1]."""
    is_first = rows.is_first(t, env)
    done = rows.done(t[:, :-1], env)
    done.setdefault("extras", {})
    return Batch(rows.obs(t, env), is_first, mask=~is_first[:, 1:], carry=carry, **done, **fields)
