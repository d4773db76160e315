"""The seam of every algorithm, and the one update loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor, nn

from slm_lab.agent.auxiliary.base import Auxiliary
from slm_lab.agent.net.base import NetSpec
from slm_lab.agent.net.net import Head, Net, NetOut
from slm_lab.agent.net.optim import Optim
from slm_lab.lib.errors import LabError
from slm_lab.lib.reduce import Loss, Losses, Metrics, reduce_losses
from slm_lab.lib.rng import Rng
from slm_lab.lib.tree import map_batch, tree_map
from slm_lab.lib.types import ActOut, Batch, Tree
from slm_lab.spec.model import SpecModel

SURPRISE = 0.9  # share of the largest error in a sequence's priority, the rest is their mean's (R2D2's η)


class Learned(NamedTuple):
    """Result of an update."""

    metrics: Metrics
    priority: Tensor | None = None  # [B], how much there was to learn from each window


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
    learns: ClassVar[bool] = True

    def __init__(self, spec: Any, net: Net, optim: Optim, rng: Rng) -> None:
        self.spec, self.net, self.optim, self.rng = spec, net, optim, rng

    @classmethod
    def free(cls, spec: Any) -> dict[str, nn.Parameter]:
        """Learned numbers that belong to no part of the net."""
        return {}

    @classmethod
    def heads(cls, spec: Any, net_spec: NetSpec, action_space: spaces.Space) -> dict[str, Head]:
        """The heads that this algorithm asks of a net."""
        raise NotImplementedError

    def act(self, obs: Tree, is_first: Tensor, carry: Tree, explore: bool, frame: int) -> ActOut:
        """Actions for obs {key: [E, 1, *O]}, is_first [E, 1]; without `explore` the best ones, without chance.

        An action is a whole number [E] of a Discrete space, else a flat vector [E, A] whatever the space's shape; so is
        `batch.action` [B, T(, A)].
        """
        raise NotImplementedError

    def prepare(self, batch: Batch) -> tuple[Batch, Metrics]:
        """Targets, once for a batch; they go into its extras."""
        return batch, {}

    def minibatches(self, batch: Batch) -> Iterator[Batch]:
        """What each gradient step sees."""
        yield batch

    def losses(self, batch: Batch, out: NetOut, frame: int) -> Losses:
        """What a minibatch teaches, every term [B, T]."""
        raise NotImplementedError

    def scales(self, frame: int) -> Metrics:
        """Factor of each loss term by name (1 where not named)."""
        return {}

    def error(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Error of values by `net.loss_spec`, elementwise, and its derivative by the prediction; without gradient."""
        off = prediction.detach() - target
        if self.optim.spec.loss_spec.name == "MSELoss":
            return off * off, 2 * off
        slope = off.clamp(-1.0, 1.0)  # SmoothL1Loss: δ² / 2, and |δ| − 1/2 beyond 1
        return slope * (off - 0.5 * slope), slope

    def update(self, batch: Batch, frame: int) -> Learned:
        """Learn from one batch; the mean of everything worth showing. Raises `LabError` on a loss that isn't finite.

        What is kept of the batch beyond this call must be a copy: a memory may fill its arrays with the next one.
        """
        if not batch.mask.any():  # only rows that no one played
            return Learned({})
        auxiliaries = self.auxiliaries
        batch, prepared = self._prepared(batch)
        scales, priority = self.scales(frame), None
        shown: list[Metrics] = []
        for minibatch in self.minibatches(batch):
            if not minibatch.mask.any():
                continue
            out = self.net(minibatch.obs, minibatch.carry, minibatch.is_first, action=minibatch.action, at=minibatch.at)
            found = self.losses(minibatch, out, frame)
            beside = self._learned_beside(minibatch, out, found, auxiliaries)
            if out.losses:
                found = replace(found, terms=found.terms | out.losses)
            loss, metrics = _joined([found, *beside], minibatch, scales, frame)
            shown.append(metrics | self.optim.step(loss, frame))
            if found.td_error is not None and batch.weight is not None:
                priority = _priority(found.td_error.detach(), minibatch.mask)
        self.after_update()
        for auxiliary in auxiliaries:
            auxiliary.after_update()
        return Learned(prepared | _mean(shown), priority)

    @property
    def auxiliaries(self) -> list[Auxiliary]:
        """What is learned beside; it lives in the net."""
        return list(self.net.auxiliaries.values())  # type: ignore[arg-type]

    def _learned_beside(self, batch: Batch, out: NetOut, found: Losses, auxiliaries: list[Auxiliary]) -> list[Losses]:
        """What the auxiliaries make of a minibatch; the algorithm's TD error is in its extras, where it has one."""
        if found.td_error is not None and auxiliaries:
            batch = batch.replace(extras={**batch.extras, "td_error": found.td_error.detach()})
        return [auxiliary.losses(batch, out, self.net) for auxiliary in auxiliaries]

    def _prepared(self, batch: Batch) -> tuple[Batch, Metrics]:
        """The batch with intrinsic rewards, targets and what auxiliaries need in its extras; its burn-in is gone."""
        auxiliaries, metrics = self.auxiliaries, Metrics()
        for auxiliary in auxiliaries:
            batch, shown = auxiliary.bonus(batch)
            metrics |= shown
        batch, shown = self.prepare(batch)
        batch, metrics = self._warmed(batch), metrics | shown
        for auxiliary in auxiliaries:
            batch, shown = auxiliary.prepare(batch, self.net)
            metrics |= shown
        return batch, metrics

    def _warmed(self, batch: Batch) -> Batch:
        """The batch without its burn-in, which brings the old carry up to date (no gradient goes through it)."""
        n = batch.burn_in
        if n == 0:
            return batch
        carry = batch.carry
        if not self.net.stateless:
            first = {key: x[:, :n] for key, x in batch.obs.items()}
            with torch.no_grad():
                carry = self.net(first, carry, batch.is_first[:, :n], heads=()).carry
        whole = {"weight": batch.weight, "index": batch.index, "burn_in": 0, "carry": carry}  # these have no T
        held = batch.replace(carry={}, weight=None, index=None)
        return map_batch(lambda x: x[:, n:], held).replace(**whole)

    def after_update(self) -> None:
        """For what follows a batch: target networks, statistics."""

    def state_dict(self) -> Tree:
        return {"net": dict(self.net.state_dict()), "optim": self.optim.state_dict()}

    def load_state_dict(self, state: Tree) -> None:
        self.net.load_state_dict(state["net"])
        self.optim.load_state_dict(state["optim"])


def _joined(losses: list[Losses], batch: Batch, scales: Metrics, frame: int) -> tuple[Loss, Metrics]:
    """The sum of what an algorithm and its auxiliaries make of a minibatch, each over its own rows, and its metrics."""
    total, metrics = Loss(), Metrics()
    for found in losses:
        if found.terms:
            mask, weight = (batch.mask, batch.weight) if found.mask is None else (found.mask, found.weight)
            loss, means = reduce_losses(found, mask, weight, scales)
            total += loss
            metrics |= means
    if not math.isfinite(total.value):
        bad = [name for found in losses for name in found.terms if not math.isfinite(metrics[name])]
        raise LabError(
            f"the loss is {total.value} at frame {frame} (terms: {', '.join(bad)}). "
            "Try a smaller lr, clip_grad_val, or env.normalize_obs and env.normalize_reward."
        )
    return total, {"loss": total.value, **metrics}


def _mean(rows: list[Metrics]) -> Metrics:
    """The mean of each metric over the rows that have it."""
    if len(rows) == 1:
        return rows[0]
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def _priority(td_error: Tensor, mask: Tensor) -> Tensor:
    """[B, T] to [B]: 0.9 of the largest error of a window and 0.1 of the mean; of a single step the error itself."""
    error = torch.where(mask, td_error.abs(), 0.0)
    if error.shape[1] == 1:
        return error[:, 0]
    return SURPRISE * error.amax(dim=1) + (1 - SURPRISE) * error.sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def without_last(batch: Batch, **extras: Tensor) -> Batch:
    """The batch with more extras, without the observation after its last row, which only targets need."""
    T = batch.reward.shape[1]
    obs = {key: x[:, :T] for key, x in batch.obs.items()}
    return batch.replace(obs=obs, is_first=batch.is_first[:, :T], extras={**batch.extras, **extras})


def acted(action: Tensor, out: NetOut, **extras: Tensor) -> ActOut:
    """What was done at the one step of windows [E, 1, ...], with what the cores of parts show, for those that do."""
    shown = {part: x for part, x in out.extras.items() if x}
    return ActOut(action.squeeze(1), out.carry, tree_map(lambda x: x.squeeze(1), {**extras, **shown}))
