"""Twin delayed deep deterministic policy gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from gymnasium import spaces
from pydantic import Field

from slm_lab.agent.algorithm.actor import TWINS, OffPolicyActor
from slm_lab.agent.algorithm.base import without_last
from slm_lab.agent.algorithm.off_policy import OffPolicySpec, ahead, bootstrapped
from slm_lab.agent.net.base import NetSpec
from slm_lab.agent.net.net import Head, NetOut
from slm_lab.agent.net.policy_head import NoisyHead
from slm_lab.lib.errors import Problem
from slm_lab.lib.reduce import Losses, Metrics
from slm_lab.lib.types import Batch
from slm_lab.spec.model import PositiveInt

if TYPE_CHECKING:
    from slm_lab.env.base import World
    from slm_lab.spec.lab_spec import LabSpec


class TD3(OffPolicyActor):
    """Twin delayed DDPG: a deterministic actor for Box actions, two critics, the lesser one believed.

    Critics learn `r + γ min Q⁻(o', clip(μ⁻(o') + ε))`, ε clipped noise; every `policy_delay`-th step the actor climbs
    `Q1(o, μ(o))`. It explores by Gaussian noise.

    Source: Fujimoto et al. 2018, arXiv 1802.09477. Differs: the target networks follow at every batch, not only when
    the actor is trained.

    Sample spec: `"algorithm": {"name": "TD3", "gamma": 0.99, "explore_noise": 0.1, "target_noise": 0.2, "noise_clip":
    0.5, "policy_delay": 2}`
    """

    class Spec(OffPolicySpec):
        name: Literal["TD3"] = "TD3"
        update_type: Literal["replace", "polyak"] = Field("polyak", description="how the target networks follow")
        explore_noise: float = Field(0.1, ge=0, description="deviation of the noise on actions, of [-1, 1]")
        target_noise: float = Field(0.2, ge=0, description="deviation of the noise on the target's actions")
        noise_clip: float = Field(0.5, ge=0, description="bound of that noise")
        policy_delay: PositiveInt = Field(2, description="critic steps per actor step")

    @classmethod
    def heads(cls, spec: Spec, net_spec: NetSpec, action_space: spaces.Space) -> dict[str, Head]:
        policy = Head("actor", lambda F: NoisyHead(net_spec, F, action_space, spec.explore_noise))
        return {"policy": policy, **cls.critics(net_spec, action_space)}

    @torch.no_grad()
    def prepare(self, batch: Batch) -> tuple[Batch, Metrics]:
        target, spec = self.target.net, self.spec
        features = ahead(target, batch, ("policy", *TWINS))
        action = target.read("policy", features).mode()  # [B, T, A]
        noise = torch.randn(action.shape, generator=self.rng.torch).to(action.device) * spec.target_noise
        action = (action + noise.clamp(-spec.noise_clip, spec.noise_clip)).clamp(-1, 1)
        value = torch.minimum(*(target.read(q, features, action) for q in TWINS))
        return without_last(batch, target=bootstrapped(batch, value)), {}

    def losses(self, batch: Batch, out: NetOut, frame: int) -> Losses:
        target = batch.extras["target"]
        qs = [out.heads[name] for name in TWINS]
        q_loss, slopes, td_error = self.critic_loss(qs, target)
        terms = {"q_loss": q_loss}
        if self.optim.opt_step % self.spec.policy_delay == 0:
            still = {part: x.detach() for part, x in out.features.items()}
            terms["policy_loss"] = -self.net.read("q1", still, out.heads["policy"].mode(), frozen=True)
        return Losses(terms, {"q": qs[0]}, td_error, slopes={"q_loss": slopes})

    @staticmethod
    def problems(spec: LabSpec, world: World) -> list[Problem]:
        if isinstance(world.action_space, spaces.Box):
            return OffPolicyActor.problems(spec, world)
        return [Problem("agent.algorithm.name", f"TD3 can't act in {world.action_space}; it can in Box spaces")]
