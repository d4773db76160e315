"""What a part makes of a minibatch, and the one place where loss terms become a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Losses:
    """What an algorithm or an auxiliary makes of a minibatch."""

    terms: dict[str, Tensor]  # name -> [B, Q]
    shown: dict[str, Tensor] = field(default_factory=dict)  # worth showing: scalars, or [B, Q] to be averaged
    td_error: Tensor | None = None  # [B, Q], how far the prediction was off: priorities come from it
    mask: Tensor | None = None  # [B, Q] bool, the rows that the terms are of; None: the batch's own, with its weight
    weight: Tensor | None = None  # [B] or [B, Q] importance of the rows of `mask`


def reduce_losses(
    losses: Mapping[str, Tensor], mask: Tensor, weight: Tensor | None = None, scales: Mapping[str, float] | None = None,
    shown: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Weighted mean over the valid rows of each `[B, Q]` term, and their scaled sum.

    `mask` [B, Q] leaves out autoreset rows, padding and burn-in; `weight` [B] or [B, Q] carries importance weights to
    every term alike; `scales` multiplies terms by name (1 where not named). Of `shown` [B, Q] the means have no weights
    and no gradient. A term of another shape is a bug and is refused: a silent broadcast of [B] with [B, 1] trains on
    nonsense.
    """
    if weight is not None:
        assert weight.shape in (mask.shape[:1], mask.shape), (
            f"weight has shape {tuple(weight.shape)}, expected [B] or [B, Q] of {tuple(mask.shape)}"
        )
        weight = weight[:, None] if weight.dim() == 1 else weight
    count = int(mask.sum())
    means = {}
    for name, term in losses.items():
        assert term.shape == mask.shape, (
            f"loss '{name}' has shape {tuple(term.shape)}, expected [B, Q] = {tuple(mask.shape)}"
        )
        if weight is not None:
            term = term * weight
        means[name] = _mean(term, mask, count)
    assert means, "no loss terms"
    total = mask.new_zeros((), dtype=torch.float32)
    for name, mean in means.items():
        total = torch.add(total, mean, alpha=(scales or {}).get(name, 1.0))
    with torch.no_grad():
        means |= {name: _mean(x, mask, count) if x.dim() else x for name, x in (shown or {}).items()}
    return total, means


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` [B, Q] over the valid rows, to show it."""
    return _mean(x, mask, int(mask.sum()))


def _mean(x: Tensor, mask: Tensor, count: int) -> Tensor:
    if count == mask.numel():
        return x.mean()
    # chosen, not multiplied by 0: a masked row may hold anything, and 0 · inf is NaN
    return torch.where(mask, x, 0.0).sum() / max(count, 1)
