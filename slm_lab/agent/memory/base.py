"""The seam of every experience memory."""

from __future__ import annotations

from typing import Any, ClassVar

from slm_lab.agent.net.core.base import Core
from slm_lab.lib.types import Batch, Row, Tree
from slm_lab.spec.model import SpecModel


class Memory:
    """What an agent has lived through, and when it is time to learn from it.

    The memory owns the gate: `to_train` rises when an update is owed and falls when `sample` is called. Nobody else
    writes it. A memory knows neither its agent nor its algorithm, only how often to raise the gate.
    """

    Spec: ClassVar[type[SpecModel]]
    on_policy: ClassVar[bool]
    to_train: bool = False

    def __init__(self, spec: Any, num_envs: int, training_frequency: int) -> None:
        self.spec, self.num_envs, self.training_frequency = spec, num_envs, training_frequency

    def update(self, row: Row) -> None:
        """Take in one step of all envs."""
        raise NotImplementedError

    def sample(self) -> Batch:
        """Windows to learn from (numpy leaves)."""
        raise NotImplementedError

    def core(self, in_size: int) -> Core | None:
        """A working memory that reads from this experience memory, to be mounted in the net in place of `net.core`."""
        return None

    def reset(self) -> None:
        """Forget everything held, as when a run goes on in a world that couldn't be saved."""
        raise NotImplementedError

    def state_dict(self) -> Tree:
        raise NotImplementedError

    def load_state_dict(self, state: Tree) -> None:
        raise NotImplementedError
