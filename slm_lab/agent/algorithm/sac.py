"""Soft actor-critic."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from gymnasium import spaces
from pydantic import Field, model_validator
from torch import Tensor, nn

from slm_lab.agent.algorithm.actor import TWINS, OffPolicyActor
from slm_lab.agent.algorithm.base import without_last
from slm_lab.agent.algorithm.off_policy import OffPolicySpec, ahead, bootstrapped
from slm_lab.agent.net.base import NetSpec
from slm_lab.agent.net.distribution import Categorical
from slm_lab.agent.net.net import Head, Net, NetOut
from slm_lab.agent.net.policy_head import PolicyHead
from slm_lab.lib.errors import Problem
from slm_lab.lib.reduce import Losses, Metrics
from slm_lab.lib.types import Batch

if TYPE_CHECKING:
    from slm_lab.env.base import World
    from slm_lab.spec.lab_spec import LabSpec


class SAC(OffPolicyActor):
    """Soft actor-critic: reward and entropy together, for Box actions (tanh Gaussian) and Discrete ones.

    `V(o) = E_a~π [min Q⁻(o, a) − α log π(a|o)]`; critics learn `r + γ V(o')`, the actor `E_a [α log π − min Q]`, exact
    sums over the actions of a Discrete space. α is learned so that the entropy stays near `target_entropy`, or fixed.

    Source: Haarnoja et al. 2018, arXiv 1801.01290 and 1812.05905 (temperature, eq. 18); Christodoulou 2019, arXiv
    1910.07207 (discrete). Differs: actor, critics and temperature take one step together, so the actor sees the critics
    of a moment before; the temperature's loss is linear in log α, as in the authors' code.

    Sample spec: `"algorithm": {"name": "SAC", "gamma": 0.99, "training_frequency": 1, "training_start_step": 1000,
    "polyak_coef": 0.005}`
    """

    class Spec(OffPolicySpec):
        name: Literal["SAC"] = "SAC"
        update_type: Literal["replace", "polyak"] = Field("polyak", description="how the target network follows")
        temperature: float | None = Field(None, gt=0, description="α; null: learned")
        target_entropy: float | None = Field(
            None,
            description="entropy that a learned α holds; null: minus the action's size, or 0.5 log n for n actions",
        )

        @model_validator(mode="after")
        def _one_temperature(self) -> Self:
            if self.temperature is not None and self.target_entropy is not None:
                raise ValueError("give temperature or target_entropy: only a learned α (temperature null) aims at one")
            return self

    @classmethod
    def heads(cls, spec: Spec, net_spec: NetSpec, action_space: spaces.Space) -> dict[str, Head]:
        pd: Any = "Categorical" if isinstance(action_space, spaces.Discrete) else "SquashedNormal"
        policy = Head("actor", lambda F: PolicyHead(net_spec, F, action_space, pd, state_std=True))
        return {"policy": policy, **cls.critics(net_spec, action_space)}

    @classmethod
    def free(cls, spec: Spec) -> dict[str, nn.Parameter]:
        return {"log_alpha": nn.Parameter(torch.zeros(()))} if spec.temperature is None else {}

    def target_entropy(self, policy: Any) -> float:
        if self.spec.target_entropy is not None:
            return float(self.spec.target_entropy)
        if isinstance(policy, Categorical):
            return 0.5 * math.log(policy.log_probs.shape[-1])
        return -float(policy.mean.shape[-1])

    @property
    def alpha(self) -> Tensor:
        if self.spec.temperature is not None:
            return torch.tensor(self.spec.temperature)
        alpha: Tensor = self.net.free["log_alpha"].detach().exp()
        return alpha

    @torch.no_grad()
    def prepare(self, batch: Batch) -> tuple[Batch, Metrics]:
        policy = self.net.read("policy", ahead(self.net, batch, ("policy",)))
        features = ahead(self.target.net, batch, TWINS)
        value = self.soft_value(policy, self.target.net, features, frozen=False)[0]
        return without_last(batch, target=bootstrapped(batch, value)), {}

    def soft_value(self, policy: Any, net: Net, features: dict[str, Tensor], frozen: bool) -> tuple[Tensor, Tensor]:
        """`E_a [min Q(o, a) − α log π(a|o)]` and `E_a [log π(a|o)]`, [B, T]; of a Box by one draw, through which it may
        be differentiated."""
        if isinstance(policy, Categorical):
            q = torch.minimum(*(net.read(name, features, frozen=frozen) for name in TWINS))  # [B, T, A]
            chance, log_prob = policy.log_probs.exp(), policy.log_probs
            return (chance * (q - self.alpha * log_prob)).sum(-1), (chance * log_prob).sum(-1)
        action, log_prob = policy.sample_log_prob(self.rng.torch)
        q = torch.minimum(*(net.read(name, features, action, frozen) for name in TWINS))  # [B, T]
        value: Tensor = q - self.alpha * log_prob
        return value, log_prob

    def losses(self, batch: Batch, out: NetOut, frame: int) -> Losses:
        target, policy = batch.extras["target"], out.heads["policy"]
        qs = [out.heads[name] for name in TWINS]
        if isinstance(policy, Categorical):
            qs = [q.gather(-1, batch.action.long().unsqueeze(-1)).squeeze(-1) for q in qs]
        # The actor climbs the critics' values: no gradient of it goes through their heads, nor the features they read.
        # With `shared: true` it moves the shared encoder all the same, through what the policy itself reads.
        still = {part: x.detach() for part, x in out.features.items()}
        value, log_prob = self.soft_value(policy, self.net, still, frozen=True)
        q_loss, slopes, td_error = self.critic_loss(qs, target)
        terms = {"q_loss": q_loss, "policy_loss": -value}
        surplus = (-log_prob - self.target_entropy(policy)).detach()  # of entropy
        if self.spec.temperature is None:
            terms["alpha_loss"] = self.net.free["log_alpha"] * surplus
        return Losses(
            terms, {"q": qs[0], "entropy": -log_prob, "alpha": self.alpha}, td_error, slopes={"q_loss": slopes}
        )

    @staticmethod
    def problems(spec: LabSpec, world: World) -> list[Problem]:
        space, wanted = world.action_space, spec.agent.algorithm.target_entropy
        if not isinstance(space, spaces.Discrete | spaces.Box):
            return [Problem("agent.algorithm.name", f"SAC can't act in {space}; it can in Discrete and Box spaces")]
        found = OffPolicyActor.problems(spec, world)
        if spec.agent.net.log_std_init:
            message = "goes unused: SAC reads its deviation from the features. Use 0, or leave it out."
            found.append(Problem("agent.net.log_std_init", message))
        # of the uniform policy, log n or log 2 for each dimension of [-1, 1]: α would rise for ever to get beyond it
        most = math.log(space.n) if isinstance(space, spaces.Discrete) else math.prod(space.shape) * math.log(2)
        if wanted is not None and wanted >= most:
            message = f"{wanted:g} is out of reach: less than {most:.3f} was expected, the entropy of uniform actions"
            found.append(Problem("agent.algorithm.target_entropy", message))
        return found
