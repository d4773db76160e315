"""The seam of everything that is learned beside the policy: extra losses and intrinsic rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from slm_lab.agent.net.base import NetSpec
from slm_lab.agent.net.net import Net, NetOut
from slm_lab.env.base import World
from slm_lab.lib.errors import Problem
from slm_lab.lib.reduce import Losses, Metrics
from slm_lab.lib.types import Batch
from slm_lab.spec.model import SpecModel

if TYPE_CHECKING:
    from slm_lab.spec.lab_spec import LabSpec


@dataclass(frozen=True, slots=True)
class AuxiliaryContext:
    """What an auxiliary may know of the agent around it."""

    world: World
    net: NetSpec
    features: dict[str, int]  # part of the net -> F
    gamma: float = 0.99
    seed: int = 0


class Auxiliary(nn.Module):
    """Something learned beside the policy, from the same batches and by the same optimiser.

    It lives in the net (`Net.auxiliaries`), so it is trained, moved, saved and resumed with it: what it holds besides
    parameters are buffers, or `get_extra_state`. A hook does nothing unless it is overridden.
    """

    Spec: ClassVar[type[SpecModel]]

    def __init__(self, spec: Any, context: AuxiliaryContext) -> None:
        super().__init__()
        self.spec, self.context = spec, context

    def bonus(self, batch: Batch) -> tuple[Batch, Metrics]:
        """The batch with intrinsic reward added, before anything is computed from it; without gradient.

        Here the last observation is still there (obs [B, T+1]); what is needed of it later goes into the extras.
        """
        return batch, {}

    def prepare(self, batch: Batch, net: Net) -> tuple[Batch, Metrics]:
        """Once a batch, when the algorithm's targets are in its extras and nothing is learned yet; without gradient."""
        return batch, {}

    def losses(self, batch: Batch, out: NetOut, net: Net) -> Losses:
        """What a minibatch teaches: terms [B, Q] times their coefficients, and the mask of their rows.

        With a mask go the weights of those rows: `batch.weight` where they are some of the batch's.
        """
        return Losses({})

    def after_update(self) -> None:
        """For what follows a batch."""

    @classmethod
    def problems(cls, spec: LabSpec, world: World) -> list[Problem]:
        """What keeps this auxiliary from serving the agent of `spec` in `world`."""
        return []
