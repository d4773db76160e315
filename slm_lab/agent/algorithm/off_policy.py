"""What off-policy algorithms share: when they learn, target networks, targets."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from slm_lab.agent.algorithm.base import Algorithm, AlgorithmSpec
from slm_lab.agent.net.net import Net
from slm_lab.agent.net.optim import Optim
from slm_lab.lib.errors import Problem
from slm_lab.lib.rng import Rng
from slm_lab.lib.types import Batch, Tree
from slm_lab.spec.model import NonNegativeInt, PositiveInt, Unit

if TYPE_CHECKING:
    from slm_lab.env.base import World
    from slm_lab.spec.lab_spec import LabSpec


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
    update_frequency: PositiveInt | None = Field(
        None,
        description="frames between updates of the target network; null: replace 100, polyak at each batch, though at "
        "most once a frame",
    )
    polyak_coef: float | None = Field(
        None, gt=0, le=1, description="polyak: share of the trained weights that is taken over; null: 0.005"
    )

    @model_validator(mode="after")
    def _following(self) -> Self:
        """Write out how the target network follows."""
        polyak = self.update_type == "polyak"
        if self.polyak_coef is not None and not polyak:
            raise ValueError("polyak_coef goes with update_type polyak: replace takes over all. Leave one of them out")
        key = "polyak_coef" if polyak else "update_frequency"
        default = 0.005 if polyak else 100
        object.__setattr__(self, key, getattr(self, key) or default)  # frozen, but for the model itself
        return self

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
    number of worlds. Between batches the net stands still, so what falls due there is done at once: n polyak updates
    by a share c are one by 1 - (1 - c)^n.

    Source: Mnih et al. 2015 (replace); Lillicrap et al. 2016, arXiv 1509.02971 (polyak).
    """

    def __init__(self, net: Net, spec: OffPolicySpec) -> None:
        self.source, self.spec = net, spec
        # nobody asks the copy for what is learned beside
        self.net = copy.deepcopy(net, {id(net.auxiliaries): nn.ModuleDict()}).requires_grad_(False)
        own = dict(net.named_parameters())
        self.following: list[Tensor] = list(self.net.parameters())
        self.followed: list[Tensor] = [own[name] for name, _ in self.net.named_parameters()]
        self.batches = 0
        # a batch stands for training_frequency / training_iter frames: time is counted in frames * training_iter
        shortest = max(spec.training_frequency, spec.training_iter)  # a batch's, or a frame's
        self.period = spec.training_iter * spec.update_frequency if spec.update_frequency else shortest
        self.share = spec.polyak_coef or 1.0  # replace has none: a whole copy

    def follow(self) -> None:
        """One batch was learned from."""
        self.batches += 1
        before, now = ((self.batches - i) * self.spec.training_frequency // self.period for i in (1, 0))
        if now == before:
            return
        share = 1.0 - (1.0 - self.share) ** (now - before)
        with torch.no_grad():
            torch._foreach_lerp_(self.following, self.followed, share)

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

    @staticmethod
    def problems(spec: LabSpec, world: World) -> list[Problem]:
        """The first update must fall due within the run (of its own share, where learners are several)."""
        algorithm, learners = spec.agent.algorithm, spec.agent.learners
        frames = spec.env.max_frame // (len(world.agents) if learners == "independent" and world.agents else 1)
        first = algorithm.start + algorithm.frequency
        if first <= frames:
            return []
        key = "training_start_step" if algorithm.start >= algorithm.frequency else "training_frequency"
        message = f"the first update would come at frame {first:,}, the run ends at {frames:,} (env.max_frame"
        message += " over its learners)" if frames != spec.env.max_frame else ")"
        return [Problem(f"agent.algorithm.{key}", f"{message}. Use less, or more frames.")]


def ahead(net: Net, batch: Batch, heads: Collection[str]) -> dict[str, Tensor]:
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
    return torch.where(batch.terminated, batch.reward, torch.addcmul(batch.reward, batch.discount, value))
