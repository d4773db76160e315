"""The random agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from gymnasium import spaces
from torch import Tensor

from slm_lab.agent.algorithm.base import Algorithm, AlgorithmSpec, Learned
from slm_lab.agent.net.base import NetSpec
from slm_lab.agent.net.net import Head
from slm_lab.agent.net.policy_head import PolicyHead, fitting_pds
from slm_lab.lib.errors import Problem
from slm_lab.lib.types import ActOut, Batch, Tree

if TYPE_CHECKING:
    from slm_lab.env.base import World
    from slm_lab.spec.lab_spec import LabSpec


class Random(Algorithm):
    """Uniform random actions, no learning: the baseline that strength is measured from.

    Box actions are uniform over the bounds.

    Sample spec: `"algorithm": {"name": "Random"}`
    """

    class Spec(AlgorithmSpec):
        name: Literal["Random"] = "Random"

        @property
        def frequency(self) -> int:
            return 32

    on_policy = True
    learns = False

    @classmethod
    def heads(cls, spec: Spec, net_spec: NetSpec, action_space: spaces.Space) -> dict[str, Head]:
        return {"policy": Head("actor", lambda F: PolicyHead(net_spec, F, action_space, "default"))}

    def act(self, obs: Tree, is_first: Tensor, carry: Tree, explore: bool, frame: int) -> ActOut:
        head: Any = self.net.heads["policy"]
        E = is_first.shape[0]
        if hasattr(head, "log_std"):
            return ActOut(torch.rand(E, head.size, generator=self.rng.torch) * 2 - 1, carry, {})
        sizes = head.nvec or [head.size]
        action = torch.stack([torch.randint(n, (E,), generator=self.rng.torch) for n in sizes], dim=-1)
        return ActOut(action if head.nvec else action[:, 0], carry, {})

    def update(self, batch: Batch, frame: int) -> Learned:
        return Learned({})

    @staticmethod
    def problems(spec: LabSpec, world: World) -> list[Problem]:
        if fitting_pds(world.action_space):
            return []
        return [
            Problem(
                "agent.algorithm.name",
                f"can't act in {world.action_space}; it can in Discrete, MultiDiscrete and Box spaces",
            )
        ]
