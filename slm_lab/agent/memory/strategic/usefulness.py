"""What an entry is of use for, and what it may come to be of use for: measured, nothing is learned here."""

from __future__ import annotations

import torch
from torch import Tensor

RATE = 0.25  # by which a batch's promise and square error enter the means of the batches before
CHANCE = 2 * (2 * RATE / (2 - RATE)) ** 0.5  # two deviations of that mean where nothing is promised, in E|G|²/n


def use_of(
    missed: Tensor, slope: Tensor, read: Tensor, own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]
) -> Tensor:
    """By how much `missed²` [B, M] would grow without each entry [B, M, N]; less than 0 if it misleads.

    Permutation importance (Breiman 2001; Fisher, Rudin & Dominici 2019, arXiv 1801.01489): what another episode has in
    its place is put there. Errors have a mean square of about 1, so a cue that tells all is of a use of 1 or 2, and
    as long as the critic explains nothing, nothing is of much use. `missed` is the error less Q, slope [B, M, H, d]
    ∂Q/∂m, read [B, M, F + H·d] h and the memory m; own and other are logits [B, M, H, N] and values [B, N, H, d].
    Attention is exact, the critic to first order: Q would move by `∂Q/∂m · (a'(v' − m) − a(v − m)) / (1 − a + a')`.
    """
    (logits, value), (logits2, value2) = ((x.detach(), v.detach()) for x, v in (own, other))
    memory = read.detach()[..., -slope[0, 0].numel() :].view_as(slope)
    weight = torch.softmax(logits, dim=-1)
    weight2 = (logits2 - logits.logsumexp(dim=-1, keepdim=True)).clamp(max=20).exp()
    at_rest = (slope * memory).sum(dim=-1, keepdim=True)
    told, told2 = (torch.einsum("bmhd,bnhd->bmhn", slope, v) - at_rest for v in (value, value2))
    moved = ((weight2 * told2 - weight * told) / (1 - weight + weight2).clamp(min=1e-3)).sum(dim=2)  # [B, M, N]
    return moved.square() - 2 * missed[..., None] * moved


def promising(credit: Tensor, value: Tensor, there: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """`|E G|²`, G = (credit − its mean) ⊗ (value − its mean), less what chance comes to; [S], of steps [S] with two.

    In units of the mean |G|² of all steps. The square of a mean is the mean product of two episodes' G; where G is
    chance that is 0 on average (but for 1/n², as the means are those of the same episodes), with a deviation of
    `√2 E|G|²/n` at most: `CHANCE` is taken off, so that few of many steps promise what isn't there.
    credit [B, N, A], value [B, N, D], there and step [B, N].
    """
    credit, value, step = credit[there], value[there], step[there]  # [R, ...] of rows
    steps, at = torch.unique(step, return_inverse=True)

    def summed(x: Tensor) -> Tensor:
        """x [R, ...] to its sum over each step [S, ...]."""
        return x.new_zeros(len(steps), *x.shape[1:]).index_add(0, at, x)

    n = summed(torch.ones_like(value[:, 0]))
    credit, value = (x - (summed(x) / n[:, None])[at] for x in (credit, value))
    square = summed(credit.square().sum(dim=1) * value.square().sum(dim=1))
    total = torch.zeros_like(n)
    for c in credit.T:  # one action at a time: [R, A, D] may be large
        total += summed(c[:, None] * value).square().sum(dim=1)
    found = (total - (1 + CHANCE) * square) / (n * (n - 1)) / (square.sum() / n.sum()).clamp(min=1e-12)
    return found[n > 1], steps[n > 1]
