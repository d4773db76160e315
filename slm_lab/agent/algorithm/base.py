"""The seam of every algorithm, and the one update loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor

from slm_lab.agent.net.base import NetSpec
from slm_lab.agent.net.net import Head, Net, NetOut
from slm_lab.agent.net.optim import Optim
from slm_lab.lib.errors import LabError
from slm_lab.lib.reduce import reduce_losses
from slm_lab.lib.rng import Rng
from slm_lab.lib.types import ActOut, Batch, Tree
from slm_lab.spec.model import SpecModel

Metrics = dict[str, float]


class AlgorithmSpec(SpecModel):
    """Keys of every algorithm."""

    @property
    def frequency(self) -> int:
        """How often the memory raises the gate: in frames, or on-policy in steps per env or episodes."""
        raise NotImplementedError

    @property
    def start(self) -> int:
        """Frames before the first update."""
        return 0

    @property
    def iterations(self) -> int:
        """Batches per update."""
        return 1


class Algorithm:
    """How to act and how to learn. Holds the net it trains and nothing that owns it."""

    Spec: ClassVar[type[AlgorithmSpec]]
    on_policy: ClassVar[bool]

    def __init__(self, spec: Any, net: Net, optim: Optim, rng: Rng) -> None:
        self.spec, self.net, self.optim, self.rng = spec, net, optim, rng

    @classmethod
    def heads(cls, spec: Any, net_spec: NetSpec, action_space: spaces.Space) -> dict[str, Head]:
        """The heads that this algorithm asks of a net."""
        raise NotImplementedError

    def act(self, obs: Tree, is_first: Tensor, carry: Tree, explore: bool, frame: int) -> ActOut:
        """Actions for obs {key: [E, 1, *O]}, is_first [E, 1]; without `explore` the best ones, without chance."""
        raise NotImplementedError

    def prepare(self, batch: Batch) -> tuple[Batch, Metrics]:
        """Targets, once for a batch; they go into its extras."""
        return batch, {}

    def minibatches(self, batch: Batch) -> Iterator[Batch]:
        """What each gradient step sees."""
        yield batch

    def losses(self, batch: Batch, out: NetOut, frame: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Loss terms `{name: [B, T]}`, and scalars worth showing."""
        raise NotImplementedError

    def scales(self, frame: int) -> Metrics:
        """Factor of each loss term by name (1 where not named)."""
        return {}

    def update(self, batch: Batch, frame: int) -> Metrics:
        """Learn from one batch; the mean of everything worth showing. Raises `LabError` on a loss that isn't finite."""
        if not batch.mask.any():  # only rows that no one played
            return {}
        batch, prepared = self.prepare(batch)
        scales = self.scales(frame)
        shown: list[Metrics] = []
        for minibatch in self.minibatches(batch):
            if not minibatch.mask.any():
                continue
            out = self.net(minibatch.obs, minibatch.carry, minibatch.is_first)
            terms, extra = self.losses(minibatch, out, frame)
            loss, means = reduce_losses(terms | out.losses, minibatch.mask, minibatch.weight, scales)
            metrics = {name: float(value.detach()) for name, value in {"loss": loss, **means, **extra}.items()}
            _check_finite(metrics, terms | out.losses, frame)
            shown.append(metrics | self.optim.step(loss, frame))
        self.after_update()
        return prepared | {name: sum(row[name] for row in shown) / len(shown) for name in (shown[0] if shown else ())}

    def after_update(self) -> None:
        """For what follows a batch: target networks, statistics."""

    def state_dict(self) -> Tree:
        return {"net": dict(self.net.state_dict()), "optim": self.optim.state_dict()}

    def load_state_dict(self, state: Tree) -> None:
        self.net.load_state_dict(state["net"])
        self.optim.load_state_dict(state["optim"])


def _check_finite(metrics: Metrics, terms: dict[str, Tensor], frame: int) -> None:
    if not torch.isfinite(torch.tensor(metrics["loss"])):
        bad = [name for name in terms if not torch.isfinite(torch.tensor(metrics[name]))]
        raise LabError(
            f"the loss is {metrics['loss']} at frame {frame} (terms: {', '.join(bad)}). "
            "Try a smaller lr, clip_grad_val, or env.normalize_obs and env.normalize_reward."
        )
