"""What a part makes of a minibatch, and the one place where loss terms become a number and its gradient begins."""

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
    shown: Mapping[str, Tensor | float] = field(default_factory=dict)  # worth showing: numbers, or [B, Q] to average
    td_error: Tensor | None = None  # [B, Q], how far the prediction was off: priorities come from it
    mask: Tensor | None = None  # [B, Q] bool, the rows that the terms are of; None: the batch's own, with its weight
    weight: Tensor | None = None  # [B] or [B, Q] importance of the rows of `mask`
    slopes: dict[str, list[Slope]] = field(default_factory=dict)  # of terms that need no autograd: all they depend on


@dataclass(frozen=True, slots=True)
class Slope:
    """The derivative [B, Q] of a term by something that it depends on [B, Q], row by row."""

    of: Tensor
    value: Tensor


class Loss:
    """A loss: its value, and where its gradient begins.

    The derivative of a weighted mean by its rows is known, so autograd is not asked for it: `backward` begins at the
    terms, or where their `slopes` are known too at what they depend on. To a small net that is a tenth of a step.
    """

    def __init__(self) -> None:
        self.value = 0.0
        self.roots: list[Tensor] = []
        self.gradients: list[Tensor] = []

    def begin(self, root: Tensor, gradient: Tensor) -> None:
        """The loss has this gradient by `root`, which requires one."""
        self.roots.append(root)
        self.gradients.append(gradient)

    def __iadd__(self, other: Loss) -> Loss:
        self.value += other.value
        self.roots += other.roots
        self.gradients += other.gradients
        return self

    def backward(self) -> None:
        # torch.autograd.backward would import sympy to compare shapes, and take 30 µs to get here
        run = torch.autograd.Variable._execution_engine.run_backward
        run(tuple(self.roots), tuple(self.gradients), False, False, (), allow_unreachable=True, accumulate_grad=True)


def reduce_losses(
    losses: Losses, mask: Tensor, weight: Tensor | None = None, scales: Mapping[str, float] | None = None
) -> tuple[Loss, Metrics]:
    """Weighted mean over the valid rows of each `[B, Q]` term, and their scaled sum.

    `mask` [B, Q] leaves out autoreset rows, padding and burn-in; `weight` [B] or [B, Q] carries importance weights to
    every term alike; `scales` multiplies terms by name (1 where not named). Of what is shown [B, Q] the means have no
    weights. A term of another shape is a bug and is refused: a silent broadcast of [B] with [B, 1] trains on nonsense.
    """
    terms, shown, scales = losses.terms, losses.shown, scales or {}
    assert terms, "no loss terms"
    assert not terms.keys() & shown.keys(), f"a term and a metric of one name: {terms.keys() & shown.keys()}"
    for name, term in terms.items():
        assert term.shape == mask.shape, (
            f"loss '{name}' has shape {tuple(term.shape)}, expected [B, Q] = {tuple(mask.shape)}"
        )
    if weight is not None:
        assert weight.shape in (mask.shape[:1], mask.shape), (
            f"weight has shape {tuple(weight.shape)}, expected [B] or [B, Q] of {tuple(mask.shape)}"
        )
        weight = weight[:, None] if weight.dim() == 1 else weight
    count, loss = int(mask.sum()), Loss()
    with torch.no_grad():
        rows = {name: term if weight is None else term * weight for name, term in terms.items()}
        rows |= {name: x for name, x in shown.items() if isinstance(x, Tensor) and x.dim()}
        means = dict(zip(rows, _means(list(rows.values()), mask, count), strict=True))
        share: Tensor | float = 1 / max(count, 1)  # that a row has in the mean
        if weight is not None:
            share = _chosen(weight.expand(mask.shape), mask, count) * share
        for name, term in terms.items():
            scale = scales.get(name, 1.0)
            loss.value += scale * means[name]
            if name not in losses.slopes and term.requires_grad:
                loss.begin(term, mask * (scale * share))
            for slope in losses.slopes.get(name, ()):
                if slope.of.requires_grad:
                    loss.begin(slope.of, _chosen(slope.value, mask, count) * (scale * share))
    return loss, {name: means[name] if name in means else float(x) for name, x in {**terms, **shown}.items()}


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` [B, Q] over the valid rows."""
    count = int(mask.sum())
    return x.mean() if count == mask.numel() else _chosen(x, mask, count).sum() / max(count, 1)


def masked_rms(x: Tensor, mask: Tensor) -> Tensor:
    """Root mean square of `x` [B, Q] over the valid rows, never 0: something to measure `x` by."""
    return x[mask].square().mean().sqrt().clamp(min=1e-8)


def _means(rows: list[Tensor], mask: Tensor, count: int) -> list[float]:
    """The mean over the valid rows of each [B, Q], all in one transfer."""
    sums = _chosen(torch.stack(rows), mask, count).flatten(1).sum(dim=1)  # [N]
    return [x / max(count, 1) for x in sums.tolist()]


def _chosen(x: Tensor, mask: Tensor, count: int) -> Tensor:
    """`x`, 0 where a row isn't valid; not multiplied by 0: a masked row may hold anything, and 0 · inf is NaN."""
    return x if count == mask.numel() else torch.where(mask, x, 0.0)
