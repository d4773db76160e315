"""A net: encoder → core → heads, once for actor and critic together or once for each."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slm_lab.agent.net.base import Encoder
from slm_lab.agent.net.core.base import Core, CoreOut
from slm_lab.lib.tree import tree_leaves
from slm_lab.lib.types import Tree


@dataclass(frozen=True, slots=True)
class Head:
    """What an algorithm asks of a net: which part it reads from, and how to build it for F features."""

    part: str  # "actor", "critic" or "critic2"
    build: Callable[[int], nn.Module]
    takes_action: bool = False  # Q(s, a): it reads the features and an action beside them


@dataclass(frozen=True, slots=True)
class NetOut:
    """Result of a forward pass."""

    heads: dict[str, Any]  # name -> what the head makes of [B, Q, F]
    features: dict[str, Tensor]  # part -> [B, Q, F]
    carry: Tree  # part -> carry after the last step
    extras: Tree  # part -> what the core shows
    losses: dict[str, Tensor]  # the cores' own losses, [B, Q]
    inner: dict[str, Any]  # part -> what the core hands to an auxiliary made for it


class Part(nn.Module):
    """One encoder and one core."""

    def __init__(self, encoder: Encoder, core: Core) -> None:
        super().__init__()
        self.encoder, self.core = encoder, core

    def forward(
        self, obs: Tree, carry: Tree, is_first: Tensor, at: Tensor | None = None, rng: torch.Generator | None = None
    ) -> CoreOut:
        encode, core = self.encoder.forward, self.core.forward  # not by __call__, whose hooks no one uses here
        return core(encode(obs), carry, is_first, at, rng)


class Net(nn.Module):
    """Parts (`shared`, or `actor` and `critic`) and the heads that read from them.

    The carry of a net is a tree by part; a memoryless net's has no leaves. `free` are learned numbers that no part
    holds; `auxiliaries` is what learns beside (slm_lab/agent/auxiliary); who builds an agent puts it there.

    A step of acting is short, so parts and heads are found in plain dicts, and they and their layers run by `forward`:
    torch's own look-ups and calls, which ask for hooks that no one sets here, took a third of it.
    """

    def __init__(
        self, parts: dict[str, Part], heads: dict[str, Head], free: dict[str, nn.Parameter] | None = None
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.part_of = {name: "shared" if "shared" in parts else head.part for name, head in heads.items()}
        self.heads = nn.ModuleDict(
            {name: head.build(parts[self.part_of[name]].core.out_size) for name, head in heads.items()}
        )
        self._parts, self._heads = dict(parts), dict(self.heads.items())
        self._learned_by = {name: list(head.parameters()) for name, head in self.heads.items()}
        self.free = nn.ParameterDict(free or {})
        self.auxiliaries = nn.ModuleDict()
        self.takes_action = {name for name, head in heads.items() if head.takes_action}
        self.stateless = not list(tree_leaves(self.initial(1)))

    def initial(self, B: int) -> Tree:
        """Carry at the start of an episode."""
        return {name: part.core.initial(B) for name, part in self._parts.items()}

    def acting_state(self) -> dict[str, Tensor]:
        """What acting needs of the state: nothing of what learns beside, which may hold much."""
        return _acting(self.state_dict())

    def load_acting_state(self, state: dict[str, Any]) -> None:
        """What `acting_state` or `state_dict` told; what learns beside stays as it is."""
        found = self.load_state_dict(_acting(state), strict=False)
        if found.unexpected_keys or _acting(dict.fromkeys(found.missing_keys)):
            raise ValueError(f"the state is of another net: {found}")

    @property
    def out_sizes(self) -> dict[str, int]:
        """Size F of each part's features."""
        return {name: part.core.out_size for name, part in self._parts.items()}

    @property
    def breadth(self) -> int:
        """Items of memory that a step reads, in the part that reads most."""
        return max(part.core.breadth for part in self._parts.values())

    def forward(
        self, obs: Tree, carry: Tree, is_first: Tensor, heads: Collection[str] | None = None, go_on: bool = True,
        action: Tensor | None = None, at: Tensor | None = None, rng: torch.Generator | None = None,
    ) -> NetOut:  # fmt: skip
        """obs {key: [B, T, *O]}, carry before the first step, is_first [B, T]; the steps `at` [B, Q] are read, or all.

        `heads` limits the work to the heads named (all by default). A part with a carry runs all the same, so that its
        memory goes on; `go_on=False` says that nobody will. Heads that take an action are read for `action` [B, Q, *A],
        and left out without one (their features are there). `rng`: the chance that a core may use while it explores.
        """
        wanted = self._heads if heads is None else heads
        out = self.features(obs, carry, is_first, wanted, go_on, at, rng)
        for head in wanted:
            if action is not None or head not in self.takes_action:
                out.heads[head] = self.read(head, out.features, action)
        return out

    def features(
        self, obs: Tree, carry: Tree, is_first: Tensor, heads: Collection[str], go_on: bool = True,
        at: Tensor | None = None, rng: torch.Generator | None = None,
    ) -> NetOut:  # fmt: skip
        """As `forward`, but for the parts that `heads` read from, without the heads."""
        needed = {self.part_of[head] for head in heads}
        out = NetOut({}, {}, dict(carry), {}, {}, {})
        for name, part in self._parts.items():
            held = carry.get(name, {})  # a memory that keeps none gives {}
            if name not in needed and not (held and go_on):
                continue
            found = part.forward(obs, held, is_first, at, rng)
            out.features[name], out.carry[name], out.extras[name] = found.features, found.carry, found.extras
            out.inner[name] = found.inner
            for key, term in found.losses.items():
                out.losses[f"{name}_{key}"] = term
        return out

    def read(self, head: str, features: dict[str, Tensor], action: Tensor | None = None, frozen: bool = False) -> Any:
        """What a head makes of its part's features (and an action). `frozen`: as if its weights were constants."""
        module, x = self._heads[head], features[self.part_of[head]]
        inputs = (x, action) if head in self.takes_action else (x,)
        if not frozen:
            return module.forward(*inputs)
        learned = [parameter for parameter in self._learned_by[head] if parameter.requires_grad]
        try:
            for parameter in learned:
                parameter.requires_grad_(False)
            return module.forward(*inputs)
        finally:
            for parameter in learned:
                parameter.requires_grad_(True)

    def parameters_by_part(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of each part with its heads: what one optimiser trains and one clip bounds."""
        groups: dict[str, list[nn.Parameter]] = {name: list(self.parts[name].parameters()) for name in self.parts}
        for head, part in self.part_of.items():
            groups[part] += list(self.heads[head].parameters())
        groups |= {name: [parameter] for name, parameter in self.free.items()}
        groups |= {name: list(auxiliary.parameters()) for name, auxiliary in self.auxiliaries.items()}
        return {name: parameters for name, parameters in groups.items() if parameters}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def _acting(state: dict[str, Any]) -> dict[str, Any]:
    return {name: leaf for name, leaf in state.items() if not name.startswith("auxiliaries.")}
