"""Advantage actor-critic."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from gymnasium import spaces
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from slm_lab.agent.algorithm.policy_gradient import PolicyGradient, PolicyGradientSpec, standardize
from slm_lab.agent.net.base import NetSpec
from slm_lab.agent.net.heads import body
from slm_lab.agent.net.layers import Detach, Layers
from slm_lab.agent.net.net import Head, Net, NetOut
from slm_lab.agent.net.optim import Optim
from slm_lab.lib.errors import Problem
from slm_lab.lib.reduce import Losses, Metrics, Slope, masked_rms
from slm_lab.lib.returns import apart_by_step, explained_variance, gae, less_others, n_step_returns, slope_of, td_error
from slm_lab.lib.rng import Rng
from slm_lab.lib.running import RunningMoments
from slm_lab.lib.tree import map_batch
from slm_lab.lib.types import Batch, Tree
from slm_lab.spec.model import PositiveInt, Unit

if TYPE_CHECKING:
    from slm_lab.env.base import World
    from slm_lab.spec.lab_spec import LabSpec

AT_ONCE = 65_536  # steps that the critic judges at a time, where each reads no more than so many items of memory:
ITEMS = 16
SLOPE_RATE = 0.25  # by which a batch's slope of returns on values enters the mean of those before
LEAST_RATIO = 0.1  # of the value targets' deviation to what it is a batch later, for there to have been a scale


class ActorCriticSpec(PolicyGradientSpec):
    """Keys of policy gradients with a critic."""

    lam: Unit = Field(0.95, description="λ of the generalised advantage estimate")
    val_loss_coef: float = Field(0.5, ge=0, description="weight of the value loss")
    detach_value: bool = Field(
        False, description="the value head reads the shared net without shaping it: its loss teaches the head alone"
    )
    calibrate_value: bool = Field(
        False,
        description="how far V differs between episodes at the same step counts as far as returns "
        "bear it out: times the slope of returns on it in the last batches, 0 to 1. For batches of several episodes",
    )
    normalize_advantages: bool = Field(True, description="standardise advantages over the batch")
    normalize_v_targets: bool = Field(
        False,
        description="train the critic on targets scaled by their running mean and deviation; as these change, what it "
        "says stays the same (PopArt: van Hasselt et al. 2016, arXiv 1602.07714)",
    )
    baseline_by_step: bool = Field(
        False,
        description="take from each advantage and TD error what the batch's other windows have at the same step of an "
        "episode: what time alone tells is no action's doing. For batches of several episodes from their first step",
    )
    entropy_by_surprise: bool = Field(
        False,
        description="weigh each step's entropy bonus by its |TD error|, in units of their rms: explore where outcomes "
        "can't be told, not where nothing depends on what is done",
    )


class ActorCritic(PolicyGradient):
    """A policy gradient whose advantages come from a critic."""

    def __init__(self, spec: ActorCriticSpec, net: Net, optim: Optim, rng: Rng) -> None:
        super().__init__(spec, net, optim, rng)
        self.v_moments = RunningMoments()
        self.v_slope = 0.0  # of returns on what V tells windows apart by, mean of the last batches

    @classmethod
    def heads(cls, spec: ActorCriticSpec, net_spec: NetSpec, action_space: spaces.Space) -> dict[str, Head]:  # type: ignore[override]
        def value(features: int) -> Layers:
            layers = body(net_spec, features, 1, net_spec.critic_init_std)
            return Layers(Detach(), *layers) if spec.detach_value else layers

        return {**super().heads(spec, net_spec, action_space), "value": Head("critic", value)}

    def advantage(self, batch: Batch) -> tuple[Batch, Metrics]:
        raw = self.raw_value(batch)
        value, shown = self._unscale(raw), {}
        if self.spec.calibrate_value:
            value = self._calibrated(value, batch)
            shown = {"value_slope": self.v_slope}
        advantage, target = self.estimate(batch, value)
        variance = explained_variance(value[:, :-1][batch.mask], target[batch.mask])
        error = td_error(batch.reward, value, *ends(batch), self.spec.gamma)
        if self.spec.baseline_by_step:
            advantage, error = (less_others(x, batch.is_first, batch.mask) for x in (advantage, error))
        raw_advantage = advantage
        if self.spec.normalize_advantages:
            advantage = standardize(advantage, batch.mask)
        if self.spec.normalize_v_targets:
            raw = self._rescale(target[batch.mask], raw)
        extras = {
            **batch.extras,
            "advantage": advantage,
            "raw_advantage": raw_advantage,
            "value": raw[:, :-1],
            "td_error": error,
            "v_target": self._scale(target),
        }
        if self.spec.entropy_by_surprise:
            extras["surprise"] = error.abs() / masked_rms(error, batch.mask)
        return batch.replace(extras=extras), {"explained_variance": float(variance), **shown}

    def _calibrated(self, value: Tensor, batch: Batch) -> Tensor:
        """Values [B, T+1] that differ, at the same step of an episode, as far as returns bore that out so far.

        A critic that has learned nothing yet, or learns slowly what the policy has long solved, tells states apart by
        chance, and each TD error has all of it. The best linear use of V is its slope: returns are regressed on it, the
        part of both that time alone doesn't tell, on batches that it hasn't learned from. The batch at hand is
        calibrated by those before, so no action has a part in its own baseline.
        """
        apart = apart_by_step(value[:, :-1], batch.is_first, batch.mask)  # [B, T]
        calibrated = value - (1 - max(0.0, self.v_slope)) * F.pad(apart, (0, 1))
        returns = gae(batch.reward, value, *ends(batch), self.spec.gamma, lam=1.0) + value[:, :-1]
        came = apart_by_step(returns, batch.is_first, batch.mask)
        slope = slope_of(came[batch.mask], apart[batch.mask])
        self.v_slope += SLOPE_RATE * (min(1.0, max(-1.0, slope)) - self.v_slope)
        return calibrated

    def raw_value(self, batch: Batch) -> Tensor:
        """Values [B, T+1] as the critic gives them, of so many windows at a time that memory doesn't grow with B."""
        B, T = batch.is_first.shape
        rows = max(1, AT_ONCE * ITEMS // (T * max(ITEMS, self.net.breadth)))
        parts = (map_batch(lambda x, i=i: x[i : i + rows], batch) for i in range(0, B, rows))
        outs = (self.net(part.obs, part.carry, part.is_first, heads=("value",), go_on=False) for part in parts)
        return torch.cat([out.heads["value"].squeeze(-1) for out in outs])

    def estimate(self, batch: Batch, value: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages and value targets [B, T] from values [B, T+1]."""
        advantage = gae(batch.reward, value, *ends(batch), self.spec.gamma, self.spec.lam)
        return advantage, advantage + value[:, :-1]

    def losses(self, batch: Batch, out: NetOut, frame: int) -> Losses:
        found = super().losses(batch, out, frame)
        value = out.heads["value"].squeeze(-1)
        found.terms["value_loss"], slope = self.value_loss(value.detach(), batch, frame)
        found.slopes["value_loss"] = [Slope(value, slope)]
        if not self.spec.entropy_by_surprise:
            return found
        entropy = found.terms.pop("entropy")
        found.terms["surprised_entropy"] = entropy * batch.extras["surprise"]
        return replace(found, shown={**found.shown, "entropy": entropy})

    def value_loss(self, value: Tensor, batch: Batch, frame: int) -> tuple[Tensor, Tensor]:
        """Error of the critic [B, T], and its derivative by the value."""
        return self.error(value, batch.extras["v_target"])

    def scales(self, frame: int) -> Metrics:
        scales = super().scales(frame)
        return {**scales, "surprised_entropy": scales["entropy"], "value_loss": self.spec.val_loss_coef}

    @torch.no_grad()
    def _rescale(self, target: Tensor, raw: Tensor) -> Tensor:
        """Take the targets [N] into the scale; the raw values in the new one.

        The critic's last layer is set so that its values stay what they were: else what it tells states apart by grows
        with the scale, for nothing (threefold in four batches where a task has just been solved). Not where there was
        no scale yet: at first, and where one batch makes it ten times what it was, as the first reward does. What the
        critic says is then of no use, and kept small it would take long to grow.
        """
        moments, last = self.v_moments, [x for x in self.net.heads["value"].modules() if isinstance(x, nn.Linear)][-1]
        mean, std, first = float(moments.mean), float(moments.std()), moments.count == 0
        moments.update(target.cpu().numpy())
        ratio, shift = std / float(moments.std()), (mean - float(moments.mean)) / float(moments.std())
        if first or ratio < LEAST_RATIO:
            return raw
        last.weight.mul_(ratio)
        last.bias.mul_(ratio).add_(shift)
        return raw * ratio + shift

    def _scale(self, value: Tensor) -> Tensor:
        moments = self.v_moments
        return (value - float(moments.mean)) / float(moments.std()) if self.spec.normalize_v_targets else value

    def _unscale(self, value: Tensor) -> Tensor:
        moments = self.v_moments
        return value * float(moments.std()) + float(moments.mean) if self.spec.normalize_v_targets else value

    @staticmethod
    def problems(spec: LabSpec, world: World) -> list[Problem]:
        found = PolicyGradient.problems(spec, world)
        if spec.agent.algorithm.entropy_by_surprise and spec.agent.algorithm.entropy_coef_spec is None:
            message = "true weighs the entropy bonus, and there is none. Give entropy_coef_spec, or use false."
            found.append(Problem("agent.algorithm.entropy_by_surprise", message))
        if spec.agent.algorithm.detach_value and not spec.agent.net.shared:
            found.append(
                Problem(
                    "agent.algorithm.detach_value",
                    "true would leave the critic's net as it began: nothing else teaches it. Set net.shared to true, "
                    "or detach_value to false.",
                )
            )
        return found

    def state_dict(self) -> Tree:
        return {**super().state_dict(), "v_moments": self.v_moments.state_dict(), "v_slope": self.v_slope}

    def load_state_dict(self, state: Tree) -> None:
        super().load_state_dict(state)
        self.v_moments.load_state_dict(state["v_moments"])
        self.v_slope = float(state["v_slope"])


def ends(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Where episodes end, in the order in which returns take it."""
    return batch.terminated, batch.truncated, batch.mask


class A2C(ActorCritic):
    """Advantage actor-critic, by generalised advantage estimates or n-step returns.

    One gradient step a batch. With `num_step_returns: n` (and `lam: null`) targets are n-step returns and `A = G − V`.

    Source: Mnih et al. 2016, arXiv 1602.01783 (synchronous); Schulman et al. 2016, arXiv 1506.02438, for λ.

    Sample spec: `"algorithm": {"name": "A2C", "gamma": 0.99, "lam": 0.95, "training_frequency": 32}`
    """

    class Spec(ActorCriticSpec):
        name: Literal["A2C"] = "A2C"
        lam: Unit | None = Field(0.95, description="λ of the generalised advantage estimate")  # type: ignore[assignment]
        training_frequency: PositiveInt = Field(
            32, description="steps per env (OnPolicyReplay, StrategicMemory: episodes) between updates"
        )
        num_step_returns: PositiveInt | None = Field(None, description="n of n-step returns, in place of lam")

        @property
        def frequency(self) -> int:
            return self.training_frequency

        @model_validator(mode="before")
        @classmethod
        def _n_instead_of_lam(cls, keys: Any) -> Any:
            """n-step returns alone mean that λ is out of use."""
            if isinstance(keys, dict) and keys.get("num_step_returns") is not None and "lam" not in keys:
                return {**keys, "lam": None}
            return keys

        @model_validator(mode="after")
        def _one_estimate(self) -> A2C.Spec:
            if (self.lam is None) == (self.num_step_returns is None):
                raise ValueError("give lam or num_step_returns, the other null")
            return self

    def estimate(self, batch: Batch, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.spec.num_step_returns is None:
            return super().estimate(batch, value)
        target = n_step_returns(batch.reward, value, *ends(batch), self.spec.gamma, self.spec.num_step_returns)
        return torch.where(batch.mask, target - value[:, :-1], 0.0), target
