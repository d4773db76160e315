"""Storage of rows, typed once for every memory: one ring of contiguous arrays, time-major, the env's own dtypes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from slm_lab.env.base import Space, Stack
from slm_lab.lib.tree import tree_map
from slm_lab.lib.types import Batch, Row, Tree

Allocate = Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray]  # zeros of a shape and dtype, in RAM or on disk
DONE = ("action", "reward", "terminated", "truncated")  # and what it caused


class Rows:
    """The last `capacity` steps of E worlds, `{key: [slots, E, ...]}`; one slice write per key and step.

    Rows have numbers that only grow: row t is written at slot t mod slots, and rows `first` to `count - 1` are held.
    The observation that row t led to is row t+1's own and stands at the slot after it, so nothing is stored twice;
    slots are one more than the capacity, so that the newest row's next observation doesn't cover the oldest row. Which
    rows were really played follows from `is_first` of the row after.

    Stacked observations (`stacks`) are stored as single frames and stacked again when read. For that the frames before
    the oldest row are kept too, `count - 1` slots more; before row 0, which may be amid an episode, they are its own.

    Discrete actions are kept in the smallest integer type that holds them and come back in their own. They lie beside
    their row's reward and flags, as fields of one record, so that a draw reads one place in RAM for all of these;
    `data` shows each field as an array.

    Rows are read by their places in the ring, slot · E + world, a whole array of them at a time. Places wrap: the row
    after is at + E wherever `at` is, and the one before at − E.
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
        slot, done = self.count % self.slots, self.data["done"]
        for name in DONE:
            done[name][slot] = getattr(row, name)
        if self.extras:
            tree_map(lambda store, leaf: store.__setitem__(slot, leaf), done["extras"], row.extras)
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

    # --- reading: `at` [...] are places; what is found is an array of its own, or in `out` ---

    def place(self, t: np.ndarray | int, env: np.ndarray) -> np.ndarray:
        """Where rows `t` of worlds `env` lie; they broadcast with each other."""
        where: np.ndarray = t % self.slots * self.E + env
        return where

    def draw(self, share: np.ndarray) -> np.ndarray:
        """Places of the rows at each `share` [N] in [0, 1) of all that are held, without those that no one played."""
        places = self.slots * self.E
        # From the end of the ring backwards: numpy counts negative places so itself, and none lies beyond the end.
        at = (share * (self.size * self.E)).astype(np.int64) + (self.first * self.E % places - places)
        played: np.ndarray = at[~self.firsts[at + self.E]]
        return played

    def is_first(self, at: np.ndarray) -> np.ndarray:
        flags: np.ndarray = self.items["steps"].take(at)["is_first"]
        return flags

    def played(self, at: np.ndarray) -> np.ndarray:
        """Whether the action of the row was taken (False: the worlds began anew)."""
        return ~self.is_first(at + self.E)

    def obs(self, at: np.ndarray) -> Tree:
        """{key: [..., *O]}, stacked again where frames are."""
        return {
            key: self.stacked(key, at) if key in self.stacks else items.take(at)
            for key, items in self.items["obs"].items()
        }

    def done(self, at: np.ndarray) -> Tree:
        """`action`, `reward`, `terminated`, `truncated` (and `extras`, if kept), each [..., *]."""
        found = self._done_of(self.items["steps"].take(at))
        return found | {"extras": self._extras(at)} if self.extras else found

    def window(self, at: np.ndarray) -> Tree:
        """`obs` and `is_first` of the rows at [B, T+1]; `mask` and what was done of all but the last column [B, T]."""
        steps = self.items["steps"].take(at)
        is_first = steps["is_first"]
        found = {"obs": self.obs(at), "is_first": is_first, "mask": ~is_first[:, 1:], **self._done_of(steps[:, :-1])}
        if self.extras:
            found["extras"] = self._extras(at[:, :-1])
        return found

    def _done_of(self, steps: np.ndarray) -> Tree:
        return {
            "action": steps["action"].astype(self.action_dtype, copy=False),
            "reward": steps["reward"],
            "terminated": steps["terminated"],
            "truncated": steps["truncated"],
        }

    def _extras(self, at: np.ndarray) -> Tree:
        found: Tree = tree_map(lambda items: items.take(at), self.items["extras"])
        return found

    def stacked(self, key: str, at: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The last frames up to the row joined, oldest first; an episode's first one repeated before it."""
        items, stack, places = self.items["obs"][key], self.stacks[key], [at]
        for _ in range(stack.count - 1):
            places.append(places[-1] - self.E * ~self.is_first(places[-1]))
        frames = [items.take(place) for place in reversed(places)]
        return np.concatenate(frames, axis=stack.axis + at.ndim if stack.axis >= 0 else stack.axis, out=out)

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

    def _allocate(self, row: Row) -> None:
        frames = {key: self._frame(key, leaf) for key, leaf in row.obs.items()}
        self.action_dtype = row.action.dtype
        done = {name: getattr(row, name) for name in DONE} | ({"extras": row.extras} if self.extras else {})
        done["action"] = row.action.astype(self.small or row.action.dtype)
        self._make({"obs": frames, "is_first": row.is_first, "done": done})

    def _make(self, row: Tree) -> None:
        """Room for rows with the dtypes and shapes [E, ...] of this one."""

        def empty(leaf: Any) -> np.ndarray:
            return self.allocate((self.slots, *np.shape(leaf)), np.asarray(leaf).dtype)

        steps = self.allocate((self.slots, len(row["is_first"])), record(row["is_first"], row["done"]))
        self.hold(tree_map(empty, row["obs"]), steps, tree_map(empty, row["done"].get("extras", {})))

    def hold(self, obs: Tree, steps: np.ndarray, extras: Tree) -> None:
        """Let these arrays [slots, E, ...] be the ring; `steps` has records of all that isn't in the others."""
        self.E = steps.shape[1]
        self.after = np.array([[0], [self.E]])  # from rows [B] to themselves and the ones after them [2, B]
        self.items: Tree = tree_map(Items, {"obs": obs, "steps": steps, "extras": extras})
        fields = {name: np.asarray(steps[name]) for name in steps.dtype.names or ()}
        is_first = fields.pop("is_first")
        self.firsts = is_first.reshape(-1)  # by place; a view
        done = {**fields, "extras": extras} if self.extras else fields
        self.data = {"obs": obs, "is_first": is_first, "done": done}

    def _grow(self) -> None:
        """Twice the room; what is held moves to its new slots."""
        t = np.arange(self.first - self.margin, self.count + 1)
        old, slots, self.capacity = self.data, self.slots, 2 * self.capacity
        self.slots = self.capacity + 1 + self.margin
        self._make(tree_map(lambda store: store[0], old))
        tree_map(lambda store, before: store.__setitem__(t % self.slots, before[t % slots]), self.data, old)

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
        self.data = {}
        if state["data"]:
            self._make(tree_map(lambda leaf: leaf[0], state["data"]))
            tree_map(lambda store, leaf: store.__setitem__(slice(len(leaf)), leaf), self.data, state["data"])
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


class Items:
    """A store [slots, E, ...] as slots · E opaque items: taken as bytes, they may begin anywhere in a file."""

    def __init__(self, store: np.ndarray) -> None:
        self.shape, self.dtype = store.shape[2:], store.dtype
        size = store.dtype.itemsize * math.prod(self.shape)
        self.items: np.ndarray = np.ndarray(math.prod(store.shape[:2]), f"V{size}", store)

    def take(self, at: np.ndarray) -> np.ndarray:
        """What lies at places [...], as an array [..., *] of its own."""
        found = np.empty((*at.shape, *self.shape), self.dtype)
        self.take_into(self.opaque(found, at.shape), at)
        return found

    def opaque(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """An array [*shape, *] of what is stored here, seen as items [*shape]."""
        return np.ndarray(shape, self.items.dtype, array)

    def take_into(self, room: np.ndarray, at: np.ndarray) -> None:
        """What lies at places [...], into items [...]."""
        self.items.take(at, out=room, mode="wrap")


class Pairs:
    """Windows [B, T = 1] of single rows that were played, in arrays that can be filled again: `batch` shows them.

    They lie [2, B], rows and those that the observations after them are of, because numpy goes along few long lines
    sooner than along many short ones. Where they are read from is told in `at` [2, B].
    """

    def __init__(self, rows: Rows, size: int, weighted: bool, gamma: float) -> None:
        self.rows, self.at = rows, np.zeros((2, size), np.int64)
        items, obs, steps = rows.items, rows.obs(self.at), rows.items["steps"].take(self.at)
        self.stacked = {key: x for key, x in obs.items() if key in rows.stacks}
        self.plain = {key: items["obs"][key].opaque(x, (2, size)) for key, x in obs.items() if key not in rows.stacks}
        self.steps, done = items["steps"].opaque(steps, (2, size)), steps[:1].T
        self.action = done["action"]
        self.batch = Batch(
            obs={key: x.swapaxes(0, 1) for key, x in obs.items()},
            is_first=steps["is_first"].T,
            action=self.action.astype(rows.action_dtype),
            mask=np.ones((size, 1), bool),
            discount=np.full((size, 1), gamma, np.float32),
            weight=np.empty(size, np.float32) if weighted else None,
            index=self.at[0],
            carry={},
            extras={},
            **{name: done[name] for name in ("reward", "terminated", "truncated")},
        )

    def fill(self) -> None:
        """Read the rows at `at`; `weight` is the caller's, and for sums of several rewards what is paid and when."""
        items = self.rows.items
        items["steps"].take_into(self.steps, self.at)
        np.copyto(self.batch.action, self.action)
        for key, room in self.plain.items():
            items["obs"][key].take_into(room, self.at)
        for key, x in self.stacked.items():
            self.rows.stacked(key, self.at, x)


def record(is_first: np.ndarray, done: Tree) -> np.dtype[Any]:
    """What one world's part of these leaves [E, ...] takes, extras aside. Aligned: torch takes no other views of it."""
    fields = {"is_first": is_first, **{name: done[name] for name in DONE}}
    order = sorted(fields, key=lambda name: -fields[name].dtype.alignment)  # so that next to nothing lies between them
    return np.dtype([(name, fields[name].dtype, fields[name].shape[1:]) for name in order], align=True)


def window(rows: Rows, at: np.ndarray, carry: Tree, **fields: Any) -> Batch:
    """The batch of the rows at places `at` [B, T+1] (the last column gives the last observation only)."""
    return Batch(**{"extras": {}, "carry": carry, **rows.window(at), **fields})
