"""The one place where loss terms become a number."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def reduce_losses(
    losses: Mapping[str, Tensor], mask: Tensor, weight: Tensor | None = None, scales: Mapping[str, float] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted mean over the valid rows of each `[B, T]` term, and their scaled sum.

    `mask` [B, T] leaves out autoreset rows, padding and burn-in; `weight` [B] carries importance weights to every term
    alike; `scales` multiplies terms by name (1 where not named). A term of another shape is a bug and is refused: a
    silent broadcast of [B] with [B, 1] trains on nonsense.
    """
    row_weight = 1.0 if weight is None else weight[:, None]
    count = mask.sum().clamp(min=1)
    means = {}
    for name, term in losses.items():
        assert term.shape == mask.shape, (
            f"loss '{name}' has shape {tuple(term.shape)}, expected [B, T] = {tuple(mask.shape)}"
        )
        # chosen, not multiplied by 0: a masked row may hold anything, and 0 · inf is NaN
        means[name] = (torch.where(mask, term, 0.0) * row_weight).sum() / count
    total = sum((scales or {}).get(name, 1.0) * mean for name, mean in means.items())
    assert isinstance(total, Tensor), "no loss terms"
    return total, means


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` [B, T] over the valid rows, to show it."""
    return (x * mask).sum() / mask.sum()
