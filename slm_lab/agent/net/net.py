"""A net: encoder → core → heads, once for actor and critic together or once for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slm_lab.agent.net.base import Encoder
from slm_lab.agent.net.core.base import Core
from slm_lab.lib.tree import tree_leaves
from slm_lab.lib.types import Tree


@dataclass(frozen=True, slots=True)
class Head:
    """What an algorithm asks of a net: which part it reads from, and how to build it for F features."""

    part: str  # "actor" or "critic"
    build: Callable[[int], nn.Module]


@dataclass(frozen=True, slots=True)
class NetOut:
    """Result of a forward pass."""

    heads: dict[str, Any]  # name -> what the head makes of [B, T, F]
    features: dict[str, Tensor]  # part -> [B, T, F]
    carry: Tree  # part -> carry after the last step
    extras: Tree  # part -> what the core shows
    losses: dict[str, Tensor]  # the cores' own losses, [B, T]


class Part(nn.Module):
    """One encoder and one core."""

    def __init__(self, encoder: Encoder, core: Core) -> None:
        super().__init__()
        self.encoder, self.core = encoder, core

    def forward(self, obs: Tree, carry: Tree, is_first: Tensor) -> Any:
        return self.core(self.encoder(obs), carry, is_first)


class Net(nn.Module):
    """Parts (`shared`, or `actor` and `critic`) and the heads that read from them.

    The carry of a net is a tree by part; a memoryless net's has no leaves.
    """

    def __init__(self, parts: dict[str, Part], heads: dict[str, Head]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.part_of = {name: "shared" if "shared" in parts else head.part for name, head in heads.items()}
        self.heads = nn.ModuleDict(
            {name: head.build(parts[self.part_of[name]].core.out_size) for name, head in heads.items()}
        )
        self.stateless = not list(tree_leaves(self.initial(1)))

    def initial(self, B: int) -> Tree:
        """Carry at the start of an episode."""
        return {name: self._part(name).core.initial(B) for name in self.parts}

    def _part(self, name: str) -> Part:
        part = self.parts[name]
        assert isinstance(part, Part)
        return part

    def forward(
        self, obs: Tree, carry: Tree, is_first: Tensor, heads: Iterable[str] | None = None, go_on: bool = True
    ) -> NetOut:
        """obs {key: [B, T, *O]}, carry before the first step, is_first [B, T].

        `heads` limits the work to the heads named (all by default). A part with a carry runs all the same, so that its
        memory goes on; `go_on=False` says that nobody will.
        """
        wanted = set(self.heads if heads is None else heads)
        features: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        new_carry, extras = dict(carry), {}
        for name in self.parts:
            remembers = bool(carry[name]) and go_on
            if not remembers and not any(self.part_of[head] == name for head in wanted):
                continue
            features[name], new_carry[name], extras[name], own = self.parts[name](obs, carry[name], is_first)
            losses |= {f"{name}_{key}": term for key, term in own.items()}
        outputs = {head: self.heads[head](features[self.part_of[head]]) for head in self.heads if head in wanted}
        return NetOut(outputs, features, new_carry, extras, losses)

    def parameters_by_part(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of each part with its heads: what one optimiser trains and one clip bounds."""
        groups: dict[str, list[nn.Parameter]] = {name: list(self.parts[name].parameters()) for name in self.parts}
        for head, part in self.part_of.items():
            groups[part] += list(self.heads[head].parameters())
        return {name: parameters for name, parameters in groups.items() if parameters}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
