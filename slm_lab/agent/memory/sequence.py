"""Replay of sequences, for nets that carry a state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from slm_lab.agent.memory.base import MemoryContext
from slm_lab.agent.memory.prioritized import Priorities, PrioritySpec
from slm_lab.agent.memory.replay import Drawn, Replay, ReplaySpec, n_step_sums
from slm_lab.agent.memory.rows import window
from slm_lab.lib.errors import Problem
from slm_lab.lib.tree import tree_leaves, tree_map
from slm_lab.lib.types import Batch, Row, Tree
from slm_lab.spec.model import NonNegativeInt, PositiveInt
from slm_lab.spec.parts import ALGORITHM, CORE

if TYPE_CHECKING:
    from slm_lab.env.base import World
    from slm_lab.spec.lab_spec import LabSpec

TRIES = 300  # draws of a window until one has something to learn from


class SequenceReplay(Replay):
    """Replay of windows of `sequence_length` steps, from the carry that the agent had when it acted.

    The carry is stored at every `carry_every`-th step, and windows begin there; they overlap, being index views of the
    ring. Rows of the last episode and the next may share a window: the core resets its carry at `is_first`, and rows
    that were never played are masked. The first `burn_in` steps of a window bring the old carry up to date with the
    present weights, and are not learned from. With `prioritized`, windows are drawn in proportion to the priority that
    the algorithm gave them (0.9 of their largest |δ| and 0.1 of the mean), new ones at the largest.

    Source: Hausknecht & Stone 2015, arXiv 1507.06527 (windows of random start); Kapturowski et al. 2019, "Recurrent
    Experience Replay in Distributed RL" (R2D2: stored state, burn-in, priorities by sequence).

    Sample spec: `"memory": {"name": "SequenceReplay", "max_size": 100000, "batch_size": 16, "sequence_length": 20,
    "burn_in": 4, "carry_every": 5}`
    """

    class Spec(ReplaySpec, PrioritySpec):
        name: Literal["SequenceReplay"] = "SequenceReplay"
        sequence_length: PositiveInt = Field(20, description="steps of a window, burn-in included")
        burn_in: NonNegativeInt = Field(0, description="first steps of a window, not learned from")
        carry_every: PositiveInt = Field(10, description="steps between stored carries; windows begin at them")
        prioritized: bool = Field(False, description="draw windows by priority (alpha, beta, epsilon) or uniformly")

        @model_validator(mode="after")
        def _something_to_learn(self) -> SequenceReplay.Spec:
            if self.burn_in >= self.sequence_length:
                raise ValueError(
                    f"sequence_length {self.sequence_length} must be more than burn_in {self.burn_in}: it includes it"
                )
            learned = self.sequence_length - self.burn_in
            if self.carry_every > learned:
                raise ValueError(
                    f"carry_every {self.carry_every} is more than the {learned} steps of a window that are learned "
                    f"from (sequence_length {self.sequence_length} - burn_in {self.burn_in}): the rows between never "
                    f"would be. Use at most {learned}"
                )
            return self

    keeps_carry = True

    def __init__(self, spec: Any, context: MemoryContext) -> None:
        super().__init__(spec, context)
        self.every, self.length = spec.carry_every, spec.sequence_length
        self.places = self.rows.slots // self.every + 2  # for carries
        self.carry: Tree = {}  # {..: [places, E, ...]}
        size = self.places * len(self.worlds) if spec.prioritized else 1
        self.priorities = Priorities(spec, size, context.max_frame)

    def update(self, row: Row) -> None:
        self._keep_carry(row)
        super().update(row)
        self._entered()

    def _keep_carry(self, row: Row) -> None:
        """The carry before acting on `row`, if a window may begin with it."""
        t = self.rows.count
        if t % self.every:
            return
        if not self.carry:
            self.carry = tree_map(lambda leaf: self.rows.allocate((self.places, *leaf.shape), leaf.dtype), row.carry)
        place = t // self.every % self.places
        tree_map(lambda store, leaf: store.__setitem__(place, leaf), self.carry, row.carry)

    def _entered(self) -> None:
        """A window whose last row has come is one that can be drawn; one whose first row has gone no longer is."""
        if not self.spec.prioritized:
            return
        complete, gone = self.rows.count - self.length, self.rows.first - 1
        if complete >= self.rows.first and complete % self.every == 0:
            self.priorities.enter(self.index(np.full_like(self.worlds, complete), self.worlds))
        if gone >= 0 and gone % self.every == 0:
            self.priorities.leave(self.index(np.full_like(self.worlds, gone), self.worlds))

    def draw(self, count: int) -> Drawn:
        if not self.spec.prioritized:
            return Drawn(self._uniform_windows(count))
        index = self.priorities.draw(count, self.rng)
        return Drawn(index, self.priorities.weight(index, self.gate.frame))

    def _uniform_windows(self, count: int) -> np.ndarray:
        """Windows with something to learn from, each as likely as any other (where there are none, masked ones)."""
        first, last = -(-self.rows.first // self.every), (self.rows.count - self.length) // self.every
        t, env = np.zeros(count, np.int64), np.zeros(count, np.int64)
        again = np.arange(count)
        for _ in range(TRIES):
            t[again] = self.rng.integers(first, last + 1, again.size) * self.every
            env[again] = self.rng.integers(0, len(self.worlds), again.size)
            learned = t[again, None] + np.arange(self.spec.burn_in, self.length)
            again = again[~self.rows.played(self.rows.place(learned, env[again, None])).any(axis=1)]
            if not again.size:
                break
        return self.index(t, env)

    def batch(self, drawn: Drawn) -> Batch:
        begin, world = self.where(drawn.at)
        t, env = begin[:, None] + np.arange(self.length + 1), world[:, None]  # [B, T+1], [B, 1]
        carry = tree_map(lambda store: store[begin // self.every % self.places, world], self.carry)
        batch = window(self.rows, self.rows.place(t, env), carry)
        mask = batch.mask.copy()
        mask[:, : self.spec.burn_in] = False
        batch = batch.replace(mask=mask, burn_in=self.spec.burn_in)
        discount = np.full(batch.reward.shape, self.context.gamma, np.float32)
        if self.spec.n_step > 1:
            end = begin[:, None, None] + self.length
            reward, discount, following = n_step_sums(
                self.rows, t[:, :-1], env, self.spec.n_step, self.context.gamma, end
            )
            last = self.rows.done(self.rows.place(following - 1, env))
            ends = {name: last[name] for name in ("terminated", "truncated")}
            batch = batch.replace(reward=reward, after=following - t[:, :1] - 1, **ends)
        return batch.replace(discount=discount, weight=drawn.weight, index=drawn.at)

    def index(self, t: np.ndarray, env: np.ndarray) -> np.ndarray:
        """Where windows lie, as one number each: place of their carry · E + world."""
        where: np.ndarray = t // self.every % self.places * len(self.worlds) + env
        return where

    def where(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place, env = np.divmod(index, len(self.worlds))
        last = (self.rows.count - self.length) // self.every
        return (last - (last - place) % self.places) * self.every, env

    def feedback(self, index: np.ndarray, priority: np.ndarray) -> None:
        if self.spec.prioritized:
            self.priorities.feedback(index, priority)

    def reset(self) -> None:
        super().reset()
        self.priorities.table.load(np.zeros_like(self.priorities.table.leaf))

    def interrupt(self, row: Row) -> None:
        if self.rows.size:
            self._keep_carry(row)
        super().interrupt(row)
        self._entered()

    def state_dict(self) -> Tree:
        return {**super().state_dict(), "carry": self.carry, "priorities": self.priorities.table.leaf}

    def load_state_dict(self, state: Tree) -> None:
        super().load_state_dict(state)
        self.carry = tree_map(lambda leaf: self.rows.placed(leaf, self.places), state["carry"])
        self.priorities.table.load(state["priorities"])

    @classmethod
    def window_length(cls, spec: LabSpec) -> int | None:
        return int(spec.agent.memory.sequence_length - spec.agent.memory.burn_in)

    @classmethod
    def beside(cls, spec: LabSpec, world: World) -> int:
        """The carries of all parts of the net, at every `carry_every`-th row, and priorities."""
        net, algorithm = spec.agent.net, spec.agent.algorithm
        heads = ALGORITHM.load(algorithm.name).heads(algorithm, net, world.action_space)
        parts = 1 if net.shared else len({head.part for head in heads.values()})
        core = CORE.load(net.core["name"])
        carry = core(core.Spec(**net.core), 1).initial(1)
        size = sum(leaf.numel() * leaf.element_size() for _, leaf in tree_leaves(carry))
        return int(parts * size / spec.agent.memory.carry_every) + 1

    @classmethod
    def problems(cls, spec: LabSpec, world: World) -> list[Problem]:
        memory, keys = spec.agent.memory, PrioritySpec.model_fields
        unread = [] if memory.prioritized else [key for key in keys if getattr(memory, key) != keys[key].default]
        message = "goes unused: windows are drawn uniformly. Set prioritized to true, or leave it out."
        return super().problems(spec, world) + [Problem(f"agent.memory.{key}", message) for key in unread]

    @staticmethod
    def warm_up_problems(memory: Any, start: int, num_envs: int) -> list[Problem]:
        """The first batch must find a whole window in every world, and as many rows as it has windows."""
        windows, room = memory.sequence_length * num_envs, memory.max_size // num_envs
        needed, found = max(windows, memory.batch_size), []
        if start < needed:
            few = f"{memory.sequence_length} steps of each of {num_envs} worlds"
            few = few if start < windows else f"batch of {memory.batch_size}"
            message = f"{start} frames of warm-up hold no {few}: at least {needed} are needed"
            found.append(Problem("agent.algorithm.training_start_step", message))
        if room < memory.sequence_length + memory.carry_every:
            message = (
                f"{memory.max_size} rows are {room} steps of {num_envs} worlds: sequence_length + carry_every are more"
            )
            found.append(Problem("agent.memory.max_size", message))
        return found
