"""What off-policy actor-critics share: twin critics of a given action, and a random warm-up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from slm_lab.agent.algorithm.base import acted
from slm_lab.agent.algorithm.off_policy import OffPolicy
from slm_lab.agent.net.base import NetSpec
from slm_lab.agent.net.distribution import Distribution
from slm_lab.agent.net.heads import ActionQHead, QHead
from slm_lab.agent.net.net import Head
from slm_lab.lib.errors import Problem
from slm_lab.lib.reduce import Slope
from slm_lab.lib.types import ActOut, Tree

if TYPE_CHECKING:
    from slm_lab.env.base import World
    from slm_lab.spec.lab_spec import LabSpec

TWINS, PARTS = ("q1", "q2"), ("critic", "critic2")


class OffPolicyActor(OffPolicy):
    """An actor and two critics, each with encoder and core of its own (or all shared).

    Until the first gradient step actions are uniform: the memory begins with some of everything
    (`training_start_step: 0` means none of it).
    """

    @classmethod
    def critics(cls, net_spec: NetSpec, action_space: spaces.Space) -> dict[str, Head]:
        """Two heads: the values of all actions of a Discrete space, or Q(s, a) of a Box."""
        if isinstance(action_space, spaces.Discrete):
            n = int(action_space.n)
            return {q: Head(part, lambda F: QHead(net_spec, F, n)) for q, part in zip(TWINS, PARTS, strict=True)}
        size = int(np.prod(action_space.shape or ()))
        heads = [Head(part, lambda F: ActionQHead(net_spec, F, size), takes_action=True) for part in PARTS]
        return dict(zip(TWINS, heads, strict=True))

    @torch.no_grad()
    def act(self, obs: Tree, is_first: Tensor, carry: Tree, explore: bool, frame: int) -> ActOut:
        out = self.net.forward(obs, carry, is_first, heads=("policy",))
        policy: Distribution = out.heads["policy"]
        action = policy.sample(self.rng.torch) if explore else policy.mode()  # [E, 1, *A]
        if explore and self.spec.training_start_step > 0 and self.optim.opt_step == 0:
            action = self.uniform(action, policy)
        return acted(action, out)

    def uniform(self, like: Tensor, policy: Any) -> Tensor:
        """Actions by chance alone: any of a Discrete space, in [-1, 1] of a Box."""
        if like.is_floating_point():
            return (torch.rand(like.shape, generator=self.rng.torch) * 2 - 1).to(like.device)
        return torch.randint(policy.log_probs.shape[-1], like.shape, generator=self.rng.torch).to(like.device)

    def critic_loss(self, qs: list[Tensor], target: Tensor) -> tuple[Tensor, list[Slope], Tensor]:
        """Both critics' error, summed, its derivative by each, and their mean |δ|; each [B, T]."""
        (q1, q2), ((error1, slope1), (error2, slope2)) = qs, (self.error(q, target) for q in qs)
        td_error = ((target - q1.detach()).abs() + (target - q2.detach()).abs()) / 2
        return error1 + error2, [Slope(q1, slope1), Slope(q2, slope2)], td_error

    @staticmethod
    def problems(spec: LabSpec, world: World) -> list[Problem]:
        algorithm, space = spec.agent.algorithm, world.action_space
        box = isinstance(space, spaces.Box)
        where = "agent.algorithm.name"
        if box and not (np.all(space.low == -1) and np.all(space.high == 1)):  # type: ignore[attr-defined]
            return [Problem(where, f"{algorithm.name} acts within bounds; {space} has dimensions without them")]
        if box and not spec.agent.net.head_hid_layers:
            message = "Q(s, a) needs a hidden layer to join action and features in. Use e.g. [256]."
            return [Problem("agent.net.head_hid_layers", message)]
        return OffPolicy.problems(spec, world)
