"""Retention: which of many entries a memory of K slots keeps."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from slm_lab.lib.types import Tree

Rule = Literal["learned", "reservoir", "fifo", "none"]


class Retention:
    """A new entry takes an empty slot, or that of the lowest priority if its own is higher; O(K) a step.

    - `learned`: priority `ρ + g − λ·min(age, 2K)`, with log-retention ρ, Gumbel noise g drawn once when an entry is
      written (only while exploring), and decay λ where entries have one. Without decay that is sampling with weights
      exp(ρ) (Efraimidis & Spirakis 2006): each entry stays as likely as its weight says, however many came.
    - `reservoir`: the noise alone, so every step is as likely to be held as any other (Vitter 1985).
    - `fifo`: the newest stay.
    - `none`: nothing is kept, the control without a memory.
    """

    reads: ClassVar = {"worth", "noise", "decay", "count"}  # of an entry

    def __init__(self, rule: Rule, slots: int) -> None:
        self.rule, self.slots = rule, slots

    def noise(self, count: Tensor, episode: Tensor, rng: torch.Generator | None) -> Tensor:
        """g [B, T] of the steps `count` [B, T] of a world's `episode`s [B], counted from 0.

        A reservoir is nothing but chance: without `rng` it is hashed, of world, episode and step.
        """
        if self.rule == "reservoir" and rng is None:
            row = torch.arange(1, 1 + len(count), device=count.device)  # of 0 the hash is 0, the least noise there is
            hashed = _hash(_hash(_hash(row) + episode)[:, None] + count)
            return _gumbel((hashed.double() / 2**32).float())
        if rng is None or self.rule in ("fifo", "none"):
            return torch.zeros(count.shape, device=count.device)
        return _gumbel(torch.rand(count.shape, generator=rng)).to(count.device)

    @torch.no_grad()
    def slot(self, held: Tree, filled: Tensor, new: Tree) -> Tensor:
        """Which of the slots `held` {..: [B, K]} the entry `new` {..: [B, 1]} takes: [B, K], one or none in a row."""
        if self.rule == "none":
            return torch.zeros_like(filled)
        now = new["count"]
        lowest, slot = torch.where(filled, self._aged(held, now), -torch.inf).min(dim=1, keepdim=True)  # [B, 1]
        return torch.zeros_like(filled).scatter_(1, slot, self._first(new) > lowest)

    def _first(self, entry: Tree) -> Tensor:
        """The priority that an entry begins with."""
        noise: Tensor = entry["noise"]
        if self.rule == "fifo":
            return torch.zeros_like(noise)
        return noise + entry["worth"] if self.rule == "learned" else noise

    def _aged(self, entry: Tree, now: Tensor) -> Tensor:
        """The priority of an entry by now."""
        priority, age = self._first(entry), now - entry["count"]
        if self.rule == "fifo":
            priority = priority - age
        if self.rule == "learned" and "decay" in entry:
            priority = priority - entry["decay"] * age.clamp(max=2 * self.slots)
        return priority


def _hash(x: Tensor) -> Tensor:
    """Whole numbers, int64, to ones of 32 bits that look drawn; equal ones to equal ones."""
    for _ in range(2):
        x = ((x >> 16) ^ x) * 0x45D9F3B & 0xFFFFFFFF
    return (x >> 16) ^ x


def _gumbel(uniform: Tensor) -> Tensor:
    """Of a tensor of its own, which is overwritten."""
    return uniform.clamp_(min=torch.finfo(torch.float32).tiny, max=1 - 1e-7).log_().neg_().log_().neg_()
