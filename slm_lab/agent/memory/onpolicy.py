"""On-policy memories: what was lived under the present policy, used once, then forgotten."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from slm_lab.agent.memory.base import Memory, MemoryContext
from slm_lab.agent.memory.rows import Rows
from slm_lab.lib.tree import tree_map
from slm_lab.lib.types import Batch, Row, Tree
from slm_lab.spec.model import SpecModel


class OnPolicyBatchReplay(Memory):
    """A fixed horizon of steps from every env, then trained on and forgotten (A2C, PPO).

    An update is owed every `training_frequency` (PPO: `time_horizon`) steps per env, that is every `training_frequency
    * num_envs` rows. The batch is `[B = E, T = training_frequency]`; windows begin and end in the middle of episodes,
    with the carry of their first row.

    Sample spec: `"memory": {"name": "OnPolicyBatchReplay"}`
    """

    class Spec(SpecModel):
        name: Literal["OnPolicyBatchReplay"] = "OnPolicyBatchReplay"

    on_policy = True

    def __init__(self, spec: Spec, context: MemoryContext) -> None:
        super().__init__(spec, context)
        self.rows = Rows(context.frequency)
        self.carry: Tree = {}

    def update(self, row: Row) -> None:
        if self.rows.size == 0:
            self.carry = tree_map(np.array, row.carry)
        self.rows.append(row)
        self.to_train = self.rows.size >= self.context.frequency

    def sample(self) -> Batch:
        def windows(store: np.ndarray) -> np.ndarray:  # [T, E, ...] -> [B = E, T, ...]
            return np.array(store.swapaxes(0, 1), order="C")

        batch = _batch(tree_map(windows, self.rows.data), self.carry)
        self.reset()
        return batch

    def reset(self) -> None:
        self.rows.size, self.to_train = 0, False

    def state_dict(self) -> Tree:
        return {"rows": self.rows.state_dict(), "carry": self.carry, "to_train": self.to_train}

    def load_state_dict(self, state: Tree) -> None:
        self.rows.load_state_dict(state["rows"])
        self.carry, self.to_train = state["carry"], bool(state["to_train"])


class OnPolicyReplay(Memory):
    """Complete episodes, then trained on and forgotten (REINFORCE).

    An update is owed when `training_frequency` episodes have ended, whichever envs they come from. The batch is `[B
    episodes, T longest]`, shorter ones masked. Episodes still running are kept: they go on under the new policy, which
    is the price of several envs (dropping them would favour short episodes).

    Sample spec: `"memory": {"name": "OnPolicyReplay"}`
    """

    class Spec(SpecModel):
        name: Literal["OnPolicyReplay"] = "OnPolicyReplay"

    on_policy = True

    def __init__(self, spec: Spec, context: MemoryContext) -> None:
        super().__init__(spec, context)
        self.reset()

    def reset(self) -> None:
        self.rows = Rows(256)
        self.begin = np.zeros(self.context.world.num_envs, np.int64)  # first row of each env's running episode
        self.carry: Tree = {}  # {..: [E, ...]} each env's carry at that row
        self.ended: list[Tree] = []  # for each step that ended some: env, begin, end [n], carry {..: [n, ...]}
        self.to_train = False

    def update(self, row: Row) -> None:
        t = self.rows.size
        self.begin = np.where(row.is_first, t, self.begin)
        self.carry = tree_map(lambda new, old: _choose(row.is_first, new, old), row.carry, self.carry or row.carry)
        self.rows.append(row)
        env = np.flatnonzero((row.terminated | row.truncated) & row.mask)
        if env.size:
            carry = tree_map(lambda leaf: leaf[env], self.carry)
            self.ended.append({"env": env, "begin": self.begin[env], "end": np.full(env.size, t + 1), "carry": carry})
        self.to_train = sum(len(part["env"]) for part in self.ended) >= self.context.frequency

    def sample(self) -> Batch:
        episodes = {key: np.concatenate([part[key] for part in self.ended]) for key in ("env", "begin", "end")}
        carry = tree_map(lambda *leaves: np.concatenate(leaves), *[part["carry"] for part in self.ended])
        env, end = episodes["env"][:, None], episodes["end"][:, None]  # [B, 1]
        T = int((episodes["end"] - episodes["begin"]).max())
        t = episodes["begin"][:, None] + np.arange(T + 1)  # [B, T+1]

        def gather(rows: np.ndarray, last: np.ndarray) -> Any:  # rows past the end repeat the last one, under the mask
            index = np.minimum(rows, last)
            return lambda store: store[index, env]

        seen = tree_map(gather(t, end), self.rows.data["seen"])
        done = tree_map(gather(t[:, :-1], end - 1), self.rows.data["done"])
        for flag in ("terminated", "truncated", "mask"):
            done[flag] = done[flag] & (t[:, :-1] < end)
        self._forget()
        return _batch({"seen": seen, "done": done}, carry)

    def _forget(self) -> None:
        """Drop all rows before the earliest running episode."""
        last = np.zeros(self.context.world.num_envs, np.int64)
        for part in self.ended:
            last[part["env"]] = part["end"]
        self.begin = np.maximum(
            self.begin, last
        )  # an env whose episode has ended holds nothing until its next one begins
        oldest = int(self.begin.min())
        self.rows.drop(oldest)
        self.begin = self.begin - oldest
        self.ended, self.to_train = [], False

    def state_dict(self) -> Tree:
        ended = {str(i): part for i, part in enumerate(self.ended)}
        return {
            "rows": self.rows.state_dict(),
            "begin": self.begin,
            "carry": self.carry,
            "ended": ended,
            "to_train": self.to_train,
        }

    def load_state_dict(self, state: Tree) -> None:
        self.rows.load_state_dict(state["rows"])
        self.begin, self.carry, self.ended = state["begin"], state["carry"], list(state["ended"].values())
        self.to_train = bool(state["to_train"])


def _choose(where: np.ndarray, new: np.ndarray, old: np.ndarray) -> np.ndarray:
    return np.where(where.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _batch(data: Tree, carry: Tree) -> Batch:
    return Batch(**data["seen"], **data["done"], carry=carry)
