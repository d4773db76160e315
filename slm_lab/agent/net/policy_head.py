"""From features to a distribution over actions, by the action space."""

from __future__ import annotations

import math
from typing import Literal

import torch
from gymnasium import spaces
from torch import Tensor, nn

from slm_lab.agent.net.base import NetSpec
from slm_lab.agent.net.distribution import Categorical, Distribution, MultiCategorical, Noisy, Normal, SquashedNormal
from slm_lab.agent.net.heads import body

ActionPd = Literal["default", "Categorical", "MultiCategorical", "Normal", "SquashedNormal"]

LOG_STD = (-20.0, 2.0)  # bounds where it is read from the features
FITTING: dict[type[spaces.Space], tuple[ActionPd, ...]] = {  # the first is the default
    spaces.Discrete: ("Categorical",),
    spaces.MultiDiscrete: ("MultiCategorical",),
    spaces.Box: ("Normal", "SquashedNormal"),
}


def fitting_pds(action_space: spaces.Space) -> tuple[ActionPd, ...]:
    """Names of the distributions that can act in this space; () if none."""
    return FITTING.get(type(action_space), ())


class PolicyHead(nn.Module):
    """Features [..., F] to a distribution over actions.

    A Gaussian's log standard deviation is a free parameter that doesn't depend on the features, as is usual for
    on-policy learning, or with `state_std` read from them, within `LOG_STD` (Haarnoja et al. 2018, arXiv 1801.01290).
    """

    def __init__(
        self, spec: NetSpec, features: int, action_space: spaces.Space, action_pd: ActionPd, state_std: bool = False
    ) -> None:
        super().__init__()
        self.state_std = state_std
        self.action_pd = fitting_pds(action_space)[0] if action_pd == "default" else action_pd
        self.nvec: list[int] = []
        if isinstance(action_space, spaces.Discrete):
            size = int(action_space.n)
        elif isinstance(action_space, spaces.MultiDiscrete):
            self.nvec = [int(n) for n in action_space.nvec.ravel()]
            size = sum(self.nvec)
        else:
            assert isinstance(action_space, spaces.Box)
            size = int(torch.tensor(action_space.shape).prod())
            if not state_std:
                self.log_std = nn.Parameter(torch.full((size,), spec.log_std_init))
        self.size = size
        continuous = isinstance(action_space, spaces.Box)
        self.body = body(spec, features, 2 * size if state_std and continuous else size, spec.actor_init_std)

    def forward(self, features: Tensor) -> Distribution:
        params = self.body.forward(features)
        if self.action_pd == "Categorical":
            return Categorical(params)
        if self.action_pd == "MultiCategorical":
            return MultiCategorical(params, self.nvec)
        kind = Normal if self.action_pd == "Normal" else SquashedNormal
        if not self.state_std:
            return kind(params, self.log_std)
        mean, log_std = params.chunk(2, dim=-1)
        return kind(mean, log_std.clamp(*LOG_STD))


class NoisyHead(nn.Module):
    """Features [..., F] to one action in [-1, 1], and noise of deviation `std` around it to explore."""

    def __init__(self, spec: NetSpec, features: int, action_space: spaces.Space, std: float) -> None:
        super().__init__()
        self.std = std
        self.body = body(spec, features, math.prod(action_space.shape or ()), spec.actor_init_std)

    def forward(self, features: Tensor) -> Noisy:
        return Noisy(torch.tanh(self.body.forward(features)), self.std)
