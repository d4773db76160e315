"""Fully connected encoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from slm_lab.agent.net.base import Encoder, HidLayers, NetSpec
from slm_lab.agent.net.encode import ObsSpace, vector_size, vectors
from slm_lab.agent.net.layers import init_weights, mlp
from slm_lab.lib.types import Tree


class MLP(Encoder):
    """Fully connected layers over all observations side by side (one-hot where discrete).

    Sample spec: `"net": {"name": "MLP", "hid_layers": [64, 64], "hid_layers_activation": "tanh"}`
    """

    class Spec(NetSpec):
        name: Literal["MLP"] = "MLP"
        hid_layers: HidLayers = Field([64, 64], description="units of each layer; [] hands the observation on")

    def __init__(self, spec: Spec, obs_space: ObsSpace) -> None:
        super().__init__()
        self.obs_space = obs_space
        sizes = [sum(vector_size(space) for space in obs_space.values()), *spec.hid_layers]
        self.layers = mlp(sizes, spec.hid_layers_activation)
        self.out_size = sizes[-1]
        init_weights(self, spec.init_fn, spec.hid_layers_activation)

    def forward(self, obs: Tree) -> Tensor:
        return self.layers.forward(vectors(self.obs_space, obs))
