"""From observations of any space to numbers a net can read."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional as F

from slm_lab.lib.types import Tree

ObsSpace = dict[str, spaces.Space]


def is_image(space: spaces.Space) -> bool:
    """A uint8 picture, [H, W], [H, W, C] or [C, H, W]."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def vector_size(space: spaces.Space) -> int:
    """How many numbers `vector` makes of one observation of this space."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return int(np.prod(space.shape or ()))


def vector(space: spaces.Space, x: Tensor) -> Tensor:
    """[..., *O] to [..., D] float32: one-hot for Discrete and MultiDiscrete, flat otherwise, bytes scaled to [0, 1]."""
    if isinstance(space, spaces.Discrete):
        return F.one_hot(x.long() - int(space.start), int(space.n)).float()
    if isinstance(space, spaces.MultiDiscrete):
        lead = x.dim() - len(space.shape)
        columns = (x.long() - torch.as_tensor(space.start, device=x.device)).flatten(lead).unbind(-1)
        return torch.cat(
            [F.one_hot(c, int(n)).float() for c, n in zip(columns, space.nvec.ravel(), strict=True)], dim=-1
        )
    flat = x.flatten(x.dim() - len(space.shape)) if space.shape else x.unsqueeze(-1)
    return flat.float() / 255 if space.dtype == np.uint8 and isinstance(space, spaces.Box) else flat.float()


def vectors(obs_space: ObsSpace, obs: Tree) -> Tensor:
    """All keys of an observation side by side, [..., D], in the order of the space."""
    found = [vector(space, obs[key]) for key, space in obs_space.items()]
    return found[0] if len(found) == 1 else torch.cat(found, dim=-1)
