"""Working memory: what a net carries from step to step.

Acting is `forward` with T = 1, learning is `forward` with T = L: one code path, so what is learned is what was acted.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from slm_lab.lib.types import Tree
from slm_lab.spec.model import SpecModel

CoreOut = tuple[Tensor, Tree, Tree, dict[str, Tensor]]  # features [B,T,F], carry, extras [B,T,..], losses [B,T]


class Core(nn.Module):
    """The seam of every working memory.

    `is_first` [B, T] resets the carry INSIDE the core, before the step it marks is read; nobody else ever touches a
    carry. A carry is a tree of `[B, ...]` tensors; `extras` may show what was recalled; `losses` ({name: [B, T]}) join
    the update.
    """

    Spec: ClassVar[type[SpecModel]]
    out_size: int  # F

    def initial(self, B: int) -> Tree:
        """The carry at the start of an episode."""
        raise NotImplementedError

    def forward(self, x: Tensor, carry: Tree, is_first: Tensor) -> CoreOut:
        """x [B, T, D] to features [B, T, F]."""
        raise NotImplementedError
