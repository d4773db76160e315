"""What heads are made of, and those that give the values of actions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slm_lab.agent.net.base import NetSpec
from slm_lab.agent.net.layers import Layers, init_head, init_weights, linear, mlp


def body(spec: NetSpec, in_size: int, out_size: int, out_std: float | None) -> Layers:
    """The layers of a head: hidden ones by `head_hid_layers`, then a linear one that begins with gain `out_std`."""
    hidden = mlp([in_size, *spec.head_hid_layers], spec.hid_layers_activation)
    init_weights(hidden, spec.init_fn, spec.hid_layers_activation)
    last = linear([in_size, *spec.head_hid_layers][-1], out_size)
    init_head(last, out_std)
    return Layers(*hidden, last)


class QHead(nn.Module):
    """Features [..., F] to the value of each of A actions, [..., A].

    Dueling: `Q(s, a) = V(s) + A(s, a) − mean_a A(s, a)`, two streams. Source: Wang et al. 2016, arXiv 1511.06581,
    eq. 9.
    """

    def __init__(self, spec: NetSpec, features: int, actions: int, dueling: bool = False) -> None:
        super().__init__()
        self.advantage = body(spec, features, actions, spec.critic_init_std)
        self.value = body(spec, features, 1, spec.critic_init_std) if dueling else None

    def forward(self, features: Tensor) -> Tensor:
        advantage = self.advantage.forward(features)
        if self.value is None:
            return advantage
        value = self.value.forward(features)
        return value + advantage - advantage.mean(dim=-1, keepdim=True)


class ActionQHead(nn.Module):
    """Features [..., F] and an action [..., A] to its value [...].

    The action joins after the core: a core's history must be of actions that were played, not of those being judged.
    """

    def __init__(self, spec: NetSpec, features: int, action_size: int) -> None:
        super().__init__()
        self.q = body(spec, features + action_size, 1, spec.critic_init_std)

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        lead = features.shape[:-1]
        return self.q.forward(torch.cat([features, action.reshape(*lead, -1)], dim=-1)).squeeze(-1)
