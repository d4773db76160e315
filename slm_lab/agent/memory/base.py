"""The seam of every experience memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from slm_lab.agent.auxiliary.base import Auxiliary, AuxiliaryContext
from slm_lab.agent.memory.offline import offline_problems
from slm_lab.agent.net.core.base import Core
from slm_lab.env.base import World
from slm_lab.lib.errors import Problem
from slm_lab.lib.tree import map_batch
from slm_lab.lib.types import Batch, Row, Tree
from slm_lab.spec.model import SpecModel

if TYPE_CHECKING:
    from slm_lab.spec.lab_spec import LabSpec


@dataclass(frozen=True, slots=True)
class MemoryContext:
    """What a memory may know of the agent around it: the worlds, when it learns, the discount, chance, room on disk."""

    world: World
    frequency: int  # between updates: frames (off-policy), steps per env or episodes (on-policy)
    start: int = 0  # frames before the first update
    iterations: int = 1  # batches per update
    gamma: float = 0.99
    max_frame: int = 1
    seed: int = 0
    folder: Path | None = None  # where it may keep files while the run lasts; None: the system's place for such


class Memory:
    """What an agent has lived through, and when it is time to learn from it.

    The memory owns the gate: `to_train` rises when an update is owed and falls when `sample` is called. Nobody else
    writes it. A memory knows neither its agent nor its algorithm, only how often to raise the gate.
    """

    Spec: ClassVar[type[SpecModel]]
    on_policy: ClassVar[bool]
    keeps_carry: ClassVar[bool] = True  # whether its windows come with the carry that a recurrent net needs
    to_train: bool = False

    def __init__(self, spec: Any, context: MemoryContext) -> None:
        self.spec, self.context = spec, context

    def update(self, row: Row) -> None:
        """Take in one step of all envs."""
        raise NotImplementedError

    def fill(self, rows: Iterable[Row]) -> None:
        """Take in what was lived before the run (off-policy): no update is owed for it."""
        raise NotImplementedError

    def tick(self, frames: int) -> None:
        """`frames` have passed in which nothing was lived: updates are owed as if they had been played."""
        raise NotImplementedError

    def sample(self) -> Batch:
        """Windows to learn from (numpy leaves)."""
        raise NotImplementedError

    def refill(self, spent: Batch) -> Batch:
        """`sample`, in the arrays of a batch that nobody needs any more where the memory can: `spent` itself then."""
        return self.sample()

    def feedback(self, index: np.ndarray, priority: np.ndarray) -> None:
        """How much there was to learn from the windows at `index` [B] of the last sample: `priority` [B], 0 or more."""

    @property
    def missing(self) -> int | None:
        """Steps of all envs until the gate rises, where that doesn't depend on what will be lived."""
        return None

    def core(self, in_size: int) -> Core | None:
        """A working memory that reads from this experience memory, to be mounted in the net in place of `net.core`."""
        return None

    def auxiliary(self, context: AuxiliaryContext) -> Auxiliary | None:
        """What teaches that working memory beside the algorithm."""
        return None

    def reset(self) -> None:
        """Forget everything held."""
        raise NotImplementedError

    def interrupt(self, row: Row) -> None:
        """The worlds could not be saved, and the run goes on in new ones: the episodes under way end here, truncated.

        `row` bridges the gap: its obs is the last one seen, its next_obs the first of the new worlds, all of it masked.
        """
        self.reset()

    @classmethod
    def window_length(cls, spec: LabSpec) -> int | None:
        """Steps of the longest windows that the agent of `spec` learns from; None: whole episodes."""
        return None

    @classmethod
    def problems(cls, spec: LabSpec, world: World) -> list[Problem]:
        """What keeps this memory from serving the agent of `spec` in `world`."""
        return offline_problems(cls, spec) if spec.env.dataset else []

    def state_dict(self) -> Tree:
        raise NotImplementedError

    def load_state_dict(self, state: Tree) -> None:
        raise NotImplementedError


class Tensors:
    """The batches of a memory as tensors, each valid until the next is drawn: the memory may fill its arrays again.

    Making arrays and tensors is over half the time of a small draw. Tensors of arrays that are filled again are there.
    """

    def __init__(self) -> None:
        self.drawn: tuple[Batch, Batch] | None = None  # the last batch, as arrays and as tensors

    def sample(self, memory: Memory) -> Batch:
        if self.drawn is None:
            arrays = memory.sample()
        else:
            arrays, tensors = memory.refill(self.drawn[0]), self.drawn[1]
            if arrays is self.drawn[0]:
                return tensors
        tensors = map_batch(torch.from_numpy, arrays)
        if not memory.on_policy:  # a rollout isn't filled again, nor to be held beside the next
            self.drawn = arrays, tensors
        return tensors
