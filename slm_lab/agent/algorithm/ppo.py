"""Proximal policy optimisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from slm_lab.agent.algorithm.a2c import ActorCritic, ActorCriticSpec
from slm_lab.lib.reduce import Metrics
from slm_lab.lib.tree import map_batch
from slm_lab.lib.types import Batch
from slm_lab.spec.model import PositiveInt, ScheduleSpec


class PPO(ActorCritic):
    """Proximal policy optimisation with a clipped ratio.

    `L = −min(ρ A, clip(ρ, 1 ± ε) A)`, `ρ = π(a|o) / π_old(a|o)`, over `training_epoch` passes of shuffled minibatches.
    A memoryless net is trained on single steps, `minibatch_size` at a time; a net with a working memory on whole
    windows of `time_horizon` steps from the carry they were acted with, as many whole ones as `minibatch_size`
    steps that are read hold (at least one).

    Source: Schulman et al. 2017, arXiv 1707.06347, eq. 7; advantages standardised and values clipped after its
    reference code.

    Sample spec: `"algorithm": {"name": "PPO", "gamma": 0.99, "lam": 0.95, "clip_eps_spec": {"name": "no_decay",
    "start_val": 0.2}, "time_horizon": 128, "minibatch_size": 64, "training_epoch": 4}`
    """

    class Spec(ActorCriticSpec):
        name: Literal["PPO"] = "PPO"
        time_horizon: PositiveInt = Field(
            128, description="steps per env between updates (OnPolicyReplay, StrategicMemory: episodes)"
        )
        minibatch_size: PositiveInt = Field(64, description="steps in a minibatch")
        training_epoch: PositiveInt = Field(4, description="passes over each batch")
        clip_eps_spec: ScheduleSpec = Field(ScheduleSpec(start_val=0.2), description="ε: how far the ratio may move")
        clip_vloss: bool = Field(False, description="clip the value's change by ε too")

        @property
        def frequency(self) -> int:
            return self.time_horizon

        @field_validator("clip_eps_spec")
        @classmethod
        def _positive(cls, spec: ScheduleSpec) -> ScheduleSpec:
            if spec.start_val <= 0 or (spec.end_val is not None and spec.end_val < 0):
                raise ValueError(f"ε from {spec.start_val} to {spec.end_val} must be above 0")
            return spec

    def minibatches(self, batch: Batch) -> Iterator[Batch]:
        T = batch.mask.shape[1]
        if self.net.stateless:
            batch, per_minibatch = single_steps(batch), self.spec.minibatch_size
        else:
            per_minibatch = max(1, self.spec.minibatch_size // min(T, self.spec.steps_per_window or T))
        count = len(batch.reward)
        for _ in range(self.spec.training_epoch):
            order = torch.randperm(count, generator=self.rng.torch).to(batch.reward.device)
            parts = map_batch(lambda x, order=order: torch.split(x.index_select(0, order), per_minibatch), batch)
            for i in range(-(-count // per_minibatch)):
                yield self.read(map_batch(lambda x, i=i: x[i], parts))

    def policy_loss(self, log_prob: Tensor, batch: Batch, frame: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        log_ratio = log_prob - batch.extras["log_prob"]  # [B, T]
        ratio, advantage = torch.exp(log_ratio), batch.extras["advantage"]
        epsilon = self.spec.clip_eps_spec.at(frame)
        gain = ratio * advantage
        bound = torch.add(advantage, advantage.abs(), alpha=epsilon)  # clip(ρ, 1 ± ε) A wherever that is the lesser one
        loss = -torch.minimum(gain, bound)
        slope = loss.masked_fill(gain > bound, 0.0)  # d(ρ A) / d log π is ρ A itself
        change = ratio - 1
        kl = change - log_ratio  # the k3 estimator: unbiased and never negative
        return loss, slope, {"clip_fraction": change.abs() > epsilon, "approx_kl": kl}

    def value_loss(self, value: Tensor, batch: Batch, frame: int) -> tuple[Tensor, Tensor]:
        loss, slope = super().value_loss(value, batch, frame)
        if not self.spec.clip_vloss:
            return loss, slope
        epsilon, old = self.spec.clip_eps_spec.at(frame), batch.extras["value"]
        change = value - old
        clipped, _ = super().value_loss(old + change.clamp(-epsilon, epsilon), batch, frame)
        still = (clipped > loss) & (change.abs() > epsilon)  # the greater one is the bound's, and doesn't move
        return torch.maximum(loss, clipped), slope.masked_fill(still, 0.0)

    def watched(self, frame: int) -> Metrics:
        return {**super().watched(frame), "clip_eps": self.spec.clip_eps_spec.at(frame)}


def single_steps(batch: Batch) -> Batch:
    """Windows [B, T] of a memoryless net as [N, 1] valid steps, each with its window's weight."""
    B, T = batch.mask.shape

    def flat(x: Tensor) -> Tensor:  # [B, T, ...] -> [N, 1, ...]
        return x[batch.mask].unsqueeze(1)

    weight = None if batch.weight is None else batch.weight[:, None].expand(B, T)[batch.mask]  # [B] -> [N]
    steps = map_batch(flat, batch.replace(carry={}, weight=None, index=None))
    return steps.replace(carry=batch.carry, weight=weight)
