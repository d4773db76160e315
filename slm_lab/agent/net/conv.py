"""Convolutional encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from gymnasium import spaces
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from slm_lab.agent.net.base import Encoder, HidLayers, NetSpec
from slm_lab.agent.net.encode import ObsSpace, is_image, vector_size, vectors
from slm_lab.agent.net.layers import ACTIVATIONS, Activation, init_weights, mlp
from slm_lab.lib.errors import Problem
from slm_lab.lib.image import channel_axis
from slm_lab.lib.types import Tree
from slm_lab.spec.model import NonNegativeInt

if TYPE_CHECKING:
    from slm_lab.env.base import World
    from slm_lab.spec.lab_spec import LabSpec


def _layer(values: list[int]) -> list[int]:
    if min(values[:3]) < 1 or (len(values) == 5 and values[4] < 1):
        raise ValueError(f"{values}: channels, kernel, stride and dilation must be 1 or more")
    return values


ConvLayer = Annotated[list[NonNegativeInt], Field(min_length=3, max_length=5), AfterValidator(_layer)]


class Conv(Encoder):
    """Convolutions over each uint8 image, other observations beside them, then fully connected layers.

    Images are [H, W], [H, W, C] or [C, H, W] (see `slm_lab.lib.image`), scaled to
    [0, 1]. Source of the default: Mnih et al. 2015 (Nature DQN).

    Sample spec: `"net": {"name": "Conv", "conv_hid_layers": [[32, 8, 4], [64, 4, 2], [64, 3, 1]], "fc_hid_layers":
    [512]}`
    """

    class Spec(NetSpec):
        name: Literal["Conv"] = "Conv"
        conv_hid_layers: list[ConvLayer] = Field(
            [[32, 8, 4], [64, 4, 2], [64, 3, 1]],
            description="[channels, kernel, stride, padding, dilation] of each layer, the last two optional",
        )
        fc_hid_layers: HidLayers = Field([512], description="units of the fully connected layers after them")
        hid_layers_activation: Activation = "relu"

    def __init__(self, spec: Spec, obs_space: ObsSpace) -> None:
        super().__init__()
        self.images = {key: space for key, space in obs_space.items() if is_image(space)}
        self.others = {key: space for key, space in obs_space.items() if key not in self.images}
        # ModuleDict refuses dots in names, which flattened Dict spaces have
        self.towers = nn.ModuleDict(
            {key.replace(".", "/"): self._tower(spec, space) for key, space in self.images.items()}
        )
        with torch.no_grad():
            flat = sum(
                self._conv(key, torch.zeros(1, *(space.shape or ()))).shape[-1] for key, space in self.images.items()
            )
        sizes = [flat + sum(vector_size(space) for space in self.others.values()), *spec.fc_hid_layers]
        self.layers = mlp(sizes, spec.hid_layers_activation)
        self.out_size = sizes[-1]
        init_weights(self, spec.init_fn, spec.hid_layers_activation)

    @staticmethod
    def _tower(spec: Spec, space: spaces.Space) -> nn.Sequential:
        layers: list[nn.Module] = []
        channels = _channels_first(torch.zeros(1, *(space.shape or ()))).shape[1]
        for out, kernel, stride, *rest in spec.conv_hid_layers:
            padding, dilation = (*rest, 0, 1)[:2] if len(rest) != 1 else (rest[0], 1)
            layers += [
                nn.Conv2d(channels, out, kernel, stride, padding, dilation),
                ACTIVATIONS[spec.hid_layers_activation](),
            ]
            channels = out
        return nn.Sequential(*layers, nn.Flatten())

    def _conv(self, key: str, images: Tensor) -> Tensor:  # [N, *O] -> [N, D]
        x: Tensor = self.towers[key.replace(".", "/")](_channels_first(images).float() / 255)
        return x

    def forward(self, obs: Tree) -> Tensor:
        parts = []
        for key, space in self.images.items():
            lead = obs[key].shape[: obs[key].dim() - len(space.shape or ())]
            parts.append(self._conv(key, obs[key].reshape(-1, *space.shape or ())).reshape(*lead, -1))
        if self.others:
            parts.append(vectors(self.others, obs))
        x: Tensor = self.layers(torch.cat(parts, dim=-1))
        return x

    @staticmethod
    def problems(spec: LabSpec, world: World) -> list[Problem]:
        images = [space for space in world.obs_space.values() if is_image(space)]
        if not images:
            return [Problem("agent.net.name", "'Conv' reads uint8 images, but the env shows none. Use 'MLP'.")]
        small = [space.shape for space in images if not Conv._fits(spec.agent.net, space)]
        where = "agent.net.conv_hid_layers"
        return [
            Problem(where, f"don't fit an image of {shape}: smaller kernels or strides are needed") for shape in small
        ]

    @staticmethod
    def _fits(spec: Spec, space: spaces.Space) -> bool:
        image = _channels_first(torch.zeros(1, *(space.shape or ())))
        try:
            return bool(Conv._tower(spec, space)(image).numel() > 0)
        except RuntimeError:  # torch: kernel larger than what is left of the image
            return False


def _channels_first(x: Tensor) -> Tensor:
    """[N, H, W], [N, H, W, C] or [N, C, H, W] to [N, C, H, W]."""
    if x.dim() == 3:
        return x.unsqueeze(1)
    return x if channel_axis(tuple(x.shape[1:])) == 0 else x.permute(0, 3, 1, 2)
