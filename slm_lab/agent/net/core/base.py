"""Working memory: what a net carries from step to step.

Acting is `forward` with T = 1, learning is `forward` with T = L: one code path, so what is learned is what was acted.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from slm_lab.lib.types import Tree
from slm_lab.spec.model import SpecModel


class CoreOut(NamedTuple):
    """What a core makes of a window, at the Q steps that are read."""

    features: Tensor  # [B, Q, F]
    carry: Tree  # {..: [B, ...]} after the last step
    extras: Tree = {}  # {..: [B, Q, ...]} what it shows of itself; kept with the step when acting
    losses: dict[str, Tensor] = {}  # {name: [B, Q]} of its own
    inner: Any = None  # with gradient, for an auxiliary made for this core; never kept


class Core(nn.Module):
    """The seam of every working memory.

    `is_first` [B, T] resets the carry INSIDE the core, before the step it marks is read; nobody else ever touches a
    carry. A carry is a tree of `[B, ...]` tensors; `losses` join the update. A core that recalls shows it in `extras`:
    `recall_step` (step of the episode at which each of K items was written, -1: none), `recall_weight` (attention on
    it now) and `recall_worth` (how much it is worth keeping), each [B, Q, K]. Where items outlive the episode, their
    steps are counted on through all episodes, and `recall_begin` [B, Q] is the count at which this one began.
    """

    Spec: ClassVar[type[SpecModel]]
    out_size: int  # F
    breadth: int = 1  # items that each step reads: what learning takes of RAM grows with it

    def initial(self, B: int) -> Tree:
        """The carry at the start of an episode."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, carry: Tree, is_first: Tensor, at: Tensor | None = None, rng: torch.Generator | None = None
    ) -> CoreOut:
        """x [B, T, D] to features [B, Q, F] of the steps `at` [B, Q] (None: all T).

        `rng` is the chance that a core may use while it explores; without it there is none, as in evaluation and in
        learning from what was acted.
        """
        raise NotImplementedError


def take(x: Tensor, at: Tensor | None) -> Tensor:
    """The steps `at` [B, Q] of x [B, T, ...]; None: all of them."""
    if at is None:
        return x
    return x.gather(1, at.reshape(*at.shape, *[1] * (x.dim() - 2)).expand(*at.shape, *x.shape[2:]))
