"""SARSA."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from slm_lab.agent.algorithm.base import AlgorithmSpec, Learned, without_last
from slm_lab.agent.algorithm.value import ValueBased, ValueSpec
from slm_lab.lib.reduce import Metrics
from slm_lab.lib.types import Batch
from slm_lab.spec.model import PositiveInt, Unit


class SARSA(ValueBased):
    """On-policy control: `L = error(Q(o, a), r + γ Q(o', a'))`, a' the action that was taken next.

    Where none was taken, after a window's last row and after a truncation, a' is drawn from the present policy. No
    target network: Q' is the net itself, constant.

    Source: Rummery & Niranjan 1994; Sutton & Barto 2018, section 6.4.

    Sample spec: `"algorithm": {"name": "SARSA", "gamma": 0.99, "training_frequency": 32, "explore_var_spec": {"name":
    "linear_decay", "start_val": 1.0, "end_val": 0.05, "end_step": 10000}}`
    """

    class Spec(AlgorithmSpec, ValueSpec):
        name: Literal["SARSA"] = "SARSA"
        gamma: Unit = Field(0.99, description="discount of the future")
        training_frequency: PositiveInt = Field(
            32, description="steps per env (OnPolicyReplay: episodes) between updates"
        )

        @property
        def frequency(self) -> int:
            return self.training_frequency

    on_policy = True
    frame = 0

    def update(self, batch: Batch, frame: int) -> Learned:
        self.frame = frame  # how much a' explores where it is drawn
        return super().update(batch, frame)

    @torch.no_grad()
    def prepare(self, batch: Batch) -> tuple[Batch, Metrics]:
        q = self.net(batch.obs, batch.carry, batch.is_first, heads=("q",), go_on=False).heads["q"]  # [B, T+1, A]
        q, taken = q[:, 1:], batch.action.long().roll(-1, dims=1)  # [B, T, A], [B, T]
        none = batch.truncated.clone()
        none[:, -1] = True
        none[:, :-1] |= ~batch.mask[:, 1:] & ~batch.terminated[:, :-1]  # a row that nobody played leads on
        taken[none] = self.explored(q[none], self.frame)
        following = q.gather(-1, taken.unsqueeze(-1)).squeeze(-1)
        target = batch.reward + self.spec.gamma * ~batch.terminated * following
        return without_last(batch, target=target), {}
