"""No working memory."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from slm_lab.agent.net.core.base import Core, CoreOut, take
from slm_lab.lib.types import Tree
from slm_lab.spec.model import SpecModel


class NoCore(Core):
    """No working memory: each step is seen alone. The control of every memory experiment.

    Sample spec: `"core": {"name": "none"}`
    """

    class Spec(SpecModel):
        name: Literal["none"] = "none"

    def __init__(self, spec: Spec, in_size: int) -> None:
        super().__init__()
        self.out_size = in_size

    def initial(self, B: int) -> Tree:
        return {}

    def forward(
        self, x: Tensor, carry: Tree, is_first: Tensor, at: Tensor | None = None, rng: torch.Generator | None = None
    ) -> CoreOut:
        return CoreOut(take(x, at), {})
