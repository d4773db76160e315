"""Deep Q-learning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from slm_lab.agent.algorithm.base import without_last
from slm_lab.agent.algorithm.off_policy import OffPolicy, OffPolicySpec, ahead, bootstrapped
from slm_lab.agent.algorithm.value import ValueBased, ValueSpec
from slm_lab.lib.errors import Problem
from slm_lab.lib.reduce import Metrics
from slm_lab.lib.types import Batch

if TYPE_CHECKING:
    from slm_lab.env.base import World
    from slm_lab.spec.lab_spec import LabSpec


class DQN(OffPolicy, ValueBased):
    """Deep Q-learning from replay: `L = error(Q(o, a), r + γ max_a' Q⁻(o', a'))`, Q⁻ the target network.

    With SequenceReplay and a recurrent core this is DRQN (Hausknecht & Stone 2015, arXiv 1507.06527), with stored
    states and burn-in R2D2's learner (Kapturowski et al. 2019). `dueling: true` splits the head (Wang et al. 2016).

    Source: Mnih et al. 2015 (doi 10.1038/nature14236).

    Sample spec: `"algorithm": {"name": "DQN", "gamma": 0.99, "explore_var_spec": {"name": "linear_decay", "start_val":
    1.0, "end_val": 0.05, "end_step": 10000}, "training_frequency": 1, "training_start_step": 1000, "update_frequency":
    100}`
    """

    class Spec(OffPolicySpec, ValueSpec):
        name: Literal["DQN"] = "DQN"

    @staticmethod
    def problems(spec: LabSpec, world: World) -> list[Problem]:
        return [*ValueBased.problems(spec, world), *OffPolicy.problems(spec, world)]

    @torch.no_grad()
    def prepare(self, batch: Batch) -> tuple[Batch, Metrics]:
        return without_last(batch, target=bootstrapped(batch, self.next_value(batch))), {}

    def next_value(self, batch: Batch) -> Tensor:
        """Value [B, T] of the observation after each row."""
        target = self.target.net
        q: Tensor = target.read("q", ahead(target, batch, ("q",)))  # [B, T, A]
        return q.amax(dim=-1)


class DoubleDQN(DQN):
    """DQN whose next action is chosen by the trained net and valued by the target network.

    `r + γ Q⁻(o', argmax_a' Q(o', a'))`. Source: van Hasselt et al. 2016, arXiv 1509.06461, eq. 4.

    Sample spec: `"algorithm": {"name": "DoubleDQN", "gamma": 0.99, "training_frequency": 1, "update_frequency": 100}`
    """

    class Spec(OffPolicySpec, ValueSpec):
        name: Literal["DoubleDQN"] = "DoubleDQN"

    def next_value(self, batch: Batch) -> Tensor:
        target = self.target.net
        best = self.net.read("q", ahead(self.net, batch, ("q",))).argmax(dim=-1, keepdim=True)
        q: Tensor = target.read("q", ahead(target, batch, ("q",)))
        return q.gather(-1, best).squeeze(-1)
