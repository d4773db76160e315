"""From features to a distribution over actions, by the action space."""

from __future__ import annotations

from typing import Literal

import torch
from gymnasium import spaces
from torch import Tensor, nn

from slm_lab.agent.net.distribution import Categorical, Distribution, MultiCategorical, Normal, SquashedNormal

ActionPd = Literal["default", "Categorical", "MultiCategorical", "Normal", "SquashedNormal"]

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
    on-policy learning.
    """

    def __init__(
        self, features: int, action_space: spaces.Space, action_pd: ActionPd, log_std_init: float = 0.0
    ) -> None:
        super().__init__()
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
            self.log_std = nn.Parameter(torch.full((size,), log_std_init))
        self.linear = nn.Linear(features, size)

    def forward(self, features: Tensor) -> Distribution:
        params = self.linear(features)
        if self.action_pd == "Categorical":
            return Categorical(params)
        if self.action_pd == "MultiCategorical":
            return MultiCategorical(params, self.nvec)
        return (Normal if self.action_pd == "Normal" else SquashedNormal)(params, self.log_std)
