"""On-policy memories: what was lived under the present policy, used once, then forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from slm_lab.agent.memory.base import Memory, MemoryContext
from slm_lab.agent.memory.rows import Rows, window
from slm_lab.lib.tree import tree_map
from slm_lab.lib.types import Batch, Row, Tree
from slm_lab.spec.model import SpecModel
from slm_lab.spec.parts import ALGORITHM

if TYPE_CHECKING:
    from slm_lab.env.base import World
    from slm_lab.spec.lab_spec import LabSpec


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
        self.rows = Rows(context.frequency, context.world.stacks, context.world.action_space)
        self.carry: Tree = {}

    def update(self, row: Row) -> None:
        if self.rows.size == 0:
            self.carry = tree_map(np.array, row.carry)
        self.rows.append(row)
        self.to_train = self.rows.size >= self.context.frequency

    @property
    def missing(self) -> int:
        return self.context.frequency - self.rows.size

    def sample(self) -> Batch:
        t = self.rows.first + np.arange(self.rows.size + 1)[None, :]  # [1, T+1]
        env = np.arange(self.context.world.num_envs)[:, None]  # [B = E, 1]
        batch = window(self.rows, self.rows.place(t, env), self.carry)
        self.reset()
        return batch

    def reset(self) -> None:
        self.rows.reset()
        self.to_train = False

    @classmethod
    def window_length(cls, spec: LabSpec) -> int | None:
        return int(spec.agent.algorithm.frequency)

    @staticmethod
    def notes(spec: LabSpec, world: World) -> list[str]:
        """Whether the run ends before anything is learned."""
        first = spec.agent.algorithm.frequency * spec.env.num_envs * max(1, len(world.agents))
        if first <= spec.env.max_frame or not ALGORITHM.load(spec.agent.algorithm.name).learns:
            return []
        return [f"nothing is learned: the first update may come at frame {first:,}, beyond env.max_frame. Raise that"]

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
    longest: int | None = None  # steps of a window; the rest of a longer episode is another one

    def __init__(self, spec: Any, context: MemoryContext) -> None:
        super().__init__(spec, context)
        self.reset()

    def reset(self) -> None:
        world = self.context.world
        self.rows = Rows(256, world.stacks, world.action_space, grows=True)
        self.begin = np.zeros(world.num_envs, np.int64)  # first row of each env's running episode
        self.carry: Tree = {}  # {..: [E, ...]} each env's carry at that row
        self.ended: list[Tree] = []  # for each step that ended some: env, begin, end [n], carry {..: [n, ...]}
        self.to_train = False

    def update(self, row: Row) -> None:
        t = self.rows.count
        self.begin = np.where(row.is_first, t, self.begin)
        begins = self.begin == t
        if begins.any():
            self.carry = tree_map(lambda new, old: _choose(begins, new, old), row.carry, self.carry or row.carry)
        self.rows.append(row)
        ends = row.terminated | row.truncated | (t + 1 - self.begin == (self.longest or -1))
        env = np.flatnonzero(ends & row.mask)
        if env.size:
            carry = tree_map(lambda leaf: leaf[env], self.carry)
            self.ended.append({"env": env, "begin": self.begin[env], "end": np.full(env.size, t + 1), "carry": carry})
            self.begin[env] = t + 1
        self.to_train = sum(len(part["env"]) for part in self.ended) >= self.context.frequency

    def sample(self) -> Batch:
        episodes = {key: np.concatenate([part[key] for part in self.ended]) for key in ("env", "begin", "end")}
        carry = tree_map(lambda *leaves: np.concatenate(leaves), *[part["carry"] for part in self.ended])
        env, end = episodes["env"][:, None], episodes["end"][:, None]  # [B, 1]
        T = int((episodes["end"] - episodes["begin"]).max())
        t = episodes["begin"][:, None] + np.arange(T + 1)  # [B, T+1]
        at = self.rows.place(np.minimum(t, end), env)  # past an end: the last observation, under the mask
        batch = window(self.rows, at, carry)
        lived = t[:, :-1] < end
        flags = {name: getattr(batch, name) & lived for name in ("terminated", "truncated", "mask")}
        self._forget()
        return batch.replace(**flags)

    def _forget(self) -> None:
        """Drop all rows before the earliest running episode."""
        self.rows.drop(int(self.begin.min()))
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
