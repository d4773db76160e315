"""Prioritized experience replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from slm_lab.agent.memory.base import MemoryContext
from slm_lab.agent.memory.replay import Drawn, Replay, RowReplaySpec
from slm_lab.agent.memory.sum_table import SumTable
from slm_lab.lib.schedule import scheduled
from slm_lab.lib.types import Row, Tree
from slm_lab.spec.model import PositiveInt, SpecModel, Unit

if TYPE_CHECKING:
    from slm_lab.env.base import World
    from slm_lab.spec.lab_spec import LabSpec


class PrioritySpec(SpecModel):
    """Keys of proportional prioritization."""

    alpha: Unit = Field(0.6, description="how much priority counts: 0 draws uniformly, 1 in proportion")
    beta: Unit = Field(0.4, description="how much importance weights correct the draw, at the start")
    beta_end: Unit = Field(1.0, description="the same at beta_end_frame; 1 corrects it fully")
    beta_end_frame: PositiveInt | None = Field(
        None, description="frame (an independent learner's own) at which beta_end is reached; null: max_frame"
    )
    epsilon: float = Field(
        1e-4, gt=1e-30, description="added to every priority, so that none is never drawn again"
    )  # of smaller ones shares and sums would be of few digits in float32


class Priorities:
    """Who is drawn how often, and the weight that makes up for it: `P(i) = p_i^α / Σ p^α`, `w_i ∝ P(i)^−β`.

    `p_i = |δ_i| + ε`, so a weight never falls to 0 while its entry is held. New entries enter at the largest weight
    that any live one has (1 if there is none), α applied once. Weights are divided by the largest of the batch.

    Source: Schaul et al. 2016, arXiv 1511.05952, eq. 1 and section 3.4; draws are stratified as in its appendix B.2.1.
    """

    def __init__(self, spec: PrioritySpec, size: int, max_frame: int) -> None:
        self.spec, self.table = spec, SumTable(size)
        self.beta_end_frame = spec.beta_end_frame or max_frame

    def enter(self, index: np.ndarray) -> None:
        self.table.set(index, self.table.max() or 1.0)

    def leave(self, index: np.ndarray) -> None:
        self.table.set(index, 0.0)

    def feedback(self, index: np.ndarray, priority: np.ndarray) -> None:
        """What has left since it was drawn (batches may be drawn ahead) stays out."""
        held = self.table.leaf.take(index) > 0
        self.table.set(index, held * (priority + self.spec.epsilon) ** self.spec.alpha)

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` indices, one from each equal share of the whole."""
        return self.table.draw((np.arange(count) + rng.random(count)) / count)

    def weight(self, index: np.ndarray, frame: int) -> np.ndarray:
        """Importance weights [B] float32, the largest 1 (what is common to all, as N and the sum, cancels out)."""
        beta = scheduled("linear_decay", self.spec.beta, self.spec.beta_end, 0, self.beta_end_frame, frame)
        chance = self.table.leaf.take(index)
        weight: np.ndarray = (np.minimum.reduce(chance) / chance) ** beta
        return weight


class PrioritizedReplay(Replay):
    """Replay in proportion to what there was to learn: rows whose prediction was wrong are drawn more often.

    The importance weights reach every loss term through the reducer; the algorithm's |δ| comes back by `feedback`. Rows
    that were never played have no weight, so they are never drawn.

    Source: Schaul et al. 2016, arXiv 1511.05952 (proportional variant). See `Priorities`.

    Sample spec: `"memory": {"name": "PrioritizedReplay", "alpha": 0.6, "beta": 0.4, "epsilon": 1e-4, "max_size":
    100000, "batch_size": 32}`
    """

    class Spec(RowReplaySpec, PrioritySpec):
        name: Literal["PrioritizedReplay"] = "PrioritizedReplay"

    @classmethod
    def beside(cls, spec: LabSpec, world: World) -> int:
        return 5  # its priority, and its share of the sums

    def __init__(self, spec: Any, context: MemoryContext) -> None:
        super().__init__(spec, context)
        self.priorities = Priorities(spec, self.rows.slots * context.world.num_envs, context.max_frame)

    def update(self, row: Row) -> None:
        super().update(row)
        self._entered(row.mask)

    def _entered(self, played: np.ndarray) -> None:
        """The newest rows come in, the one just forgotten goes."""
        rows = self.rows
        if rows.first:
            self.priorities.leave(rows.place(rows.first - 1, self.worlds))
        env = self.worlds[played]
        if env.size:
            self.priorities.enter(rows.place(rows.count - 1, env))

    def draw(self, count: int) -> Drawn:
        index = self.with_newest(count, lambda others: self.priorities.draw(others, self.rng))
        return Drawn(index, self.priorities.weight(index, self.gate.frame))

    def feedback(self, index: np.ndarray, priority: np.ndarray) -> None:
        self.priorities.feedback(index, priority)

    def reset(self) -> None:
        super().reset()
        self.priorities.table.load(np.zeros_like(self.priorities.table.leaf))

    def interrupt(self, row: Row) -> None:
        super().interrupt(row)
        self._entered(row.mask)

    def state_dict(self) -> Tree:
        return {**super().state_dict(), "priorities": self.priorities.table.leaf}

    def load_state_dict(self, state: Tree) -> None:
        super().load_state_dict(state)
        self.priorities.table.load(state["priorities"])
