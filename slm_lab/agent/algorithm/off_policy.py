"""What off-policy algorithms share: when they learn, target networks, targets."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from slm_lab.agent.algorithm.base import Algorithm, AlgorithmSpec
from slm_lab.agent.net.net import Net
from slm_lab.agent.net.optim import Optim
from slm_lab.lib.rng import Rng
from slm_lab.lib.types import Batch, Tree
from slm_lab.spec.model import NonNegativeInt, PositiveInt, Unit


class OffPolicySpec(AlgorithmSpec):
    """Keys of algorithms that learn from replay; all counts are of frames, over all worlds."""

    gamma: Unit = Field(0.99, description="discount of the future")
    training_frequency: PositiveInt = Field(1, description="frames between updates")
    training_start_step: NonNegativeInt = Field(1000, description="frames before the first update")
    training_iter: PositiveInt = Field(1, description="batches per update")
    training_batch_iter: PositiveInt = Field(1, description="gradient steps on each batch")
    update_type: Literal["replace", "polyak"] = Field(
        "replace", description="how the target network follows: a copy now and then, or a running average"
    )
    update_frequency: PositiveInt = Field(100, description="frames between updates of the target network")
    polyak_coef: float = Field(0.005, gt=0, le=1, description="polyak: share of the trained weights that is taken over")

    @property
    def frequency(self) -> int:
        return self.training_frequency

    @property
    def start(self) -> int:
        return self.training_start_step

    @property
    def iterations(self) -> int:
        return self.training_iter


class Target:
    """A copy of a net that follows it slowly, for targets that stand still.

    Each batch stands for `training_frequency / training_iter` frames, so the copy follows at the same pace for any
    number of worlds.

    Source: Mnih et al. 2015 (replace); Lillicrap et al. 2016, arXiv 1509.02971 (polyak).
    """

    def __init__(self, net: Net, spec: OffPolicySpec) -> None:
        self.source, self.spec = net, spec
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.batches = 0

    def follow(self) -> None:
        """One batch was learned from."""
        self.batches += 1
        frequency, iterations = self.spec.training_frequency, self.spec.training_iter
        before, now = ((self.batches - i) * frequency // (iterations * self.spec.update_frequency) for i in (1, 0))
        if now == before:
            return
        share = 1.0 if self.spec.update_type == "replace" else self.spec.polyak_coef
        with torch.no_grad():
            torch._foreach_lerp_(list(self.net.parameters()), list(self.source.parameters()), share)

    def state_dict(self) -> Tree:
        return {"net": dict(self.net.state_dict()), "batches": self.batches}

    def load_state_dict(self, state: Tree) -> None:
        self.net.load_state_dict(state["net"])
        self.batches = int(state["batches"])


class OffPolicy(Algorithm):
    """An algorithm that learns from replay, with a target network beside its net."""

    on_policy = False

    def __init__(self, spec: Any, net: Net, optim: Optim, rng: Rng) -> None:
        super().__init__(spec, net, optim, rng)
        self.target = Target(net, spec)

    def minibatches(self, batch: Batch) -> Iterator[Batch]:
        for _ in range(self.spec.training_batch_iter):
            yield batch

    def after_update(self) -> None:
        self.target.follow()

    def state_dict(self) -> Tree:
        return {**super().state_dict(), "target": self.target.state_dict()}

    def load_state_dict(self, state: Tree) -> None:
        super().load_state_dict(state)
        self.target.load_state_dict(state["target"])


def ahead(net: Net, batch: Batch, heads: Iterable[str]) -> dict[str, Tensor]:
    """Features of the parts that `heads` read from, at the observation after each row: part -> [B, T, F].

    A memoryless net reads those alone; one with a working memory the whole window, from its carry.
    """
    if net.stateless:
        later = {key: x[:, 1:] for key, x in batch.obs.items()}
        return net.features(later, {}, batch.is_first[:, 1:], heads).features
    features = net.features(batch.obs, batch.carry, batch.is_first, heads, go_on=False).features
    return {part: x[:, 1:] for part, x in features.items()}


def bootstrapped(batch: Batch, value: Tensor) -> Tensor:
    """`r + γ^m (1 − terminated) V(o_{t+m})`, [B, T], from `value` [B, T] of the observation after each row."""
    if batch.after is not None:
        value = value.gather(1, batch.after)
    target: Tensor = batch.reward + batch.discount * ~batch.terminated * value
    return target
