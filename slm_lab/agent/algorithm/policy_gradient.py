"""What all policy gradients share: the policy head, acting, entropy, advantages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from gymnasium import spaces
from pydantic import Field
from torch import Tensor

from slm_lab.agent.algorithm.base import Algorithm, AlgorithmSpec, Learned, acted, without_last
from slm_lab.agent.algorithm.exploration import ActionPolicy, explore, explore_var_problems
from slm_lab.agent.net.base import NetSpec
from slm_lab.agent.net.core.base import take
from slm_lab.agent.net.distribution import Distribution
from slm_lab.agent.net.net import Head, NetOut
from slm_lab.agent.net.policy_head import ActionPd, PolicyHead, fitting_pds
from slm_lab.lib.errors import Problem
from slm_lab.lib.reduce import Losses, Metrics, Slope
from slm_lab.lib.tree import tree_map
from slm_lab.lib.types import ActOut, Batch, Tree
from slm_lab.spec.model import PositiveInt, ScheduleSpec, Unit

if TYPE_CHECKING:
    from slm_lab.env.base import World
    from slm_lab.spec.lab_spec import LabSpec


class PolicyGradientSpec(AlgorithmSpec):
    """Keys of every policy gradient."""

    action_pdtype: ActionPd = Field("default", description="distribution over actions; default: by the action space")
    action_policy: ActionPolicy = Field("default", description="how to explore; default: draw from the policy")
    explore_var_spec: ScheduleSpec | None = Field(None, description="epsilon or temperature of action_policy")
    gamma: Unit = Field(0.99, description="discount of the future")
    entropy_coef_spec: ScheduleSpec | None = Field(None, description="weight of the entropy bonus; null: none")
    log_barrier_coef: float = Field(
        0.0, ge=0, description="weight of -mean_a log π(a), an entropy bonus that holds where π is nearly certain"
    )
    policy_loss_coef: float = Field(1.0, ge=0, description="weight of the policy loss")
    steps_per_window: PositiveInt | None = Field(
        None,
        description="read at most this many steps of a window (of an episode) in a gradient step, half of them drawn "
        "evenly, half by |advantage|, importance-weighted; null: all. For nets with a working memory",
    )


class PolicyGradient(Algorithm):
    """Ascends `E[∇ log π(a_t|o_t) A_t]`; subclasses say what the advantage is.

    `prepare` leaves `advantage` [B, T] in the batch's extras and cuts the last observation off, which only targets
    need.
    """

    on_policy = True

    @classmethod
    def heads(cls, spec: PolicyGradientSpec, net_spec: NetSpec, action_space: spaces.Space) -> dict[str, Head]:
        return {"policy": Head("actor", lambda F: PolicyHead(net_spec, F, action_space, spec.action_pdtype))}

    @torch.no_grad()
    def act(self, obs: Tree, is_first: Tensor, carry: Tree, explore: bool, frame: int) -> ActOut:
        out = self.net.forward(obs, carry, is_first, heads=("policy",), rng=self.rng.torch if explore else None)
        policy = out.heads["policy"]
        action = self._behaviour(out, frame).sample(self.rng.torch) if explore else policy.mode()  # [E, 1, *A]
        return acted(action, out, log_prob=policy.log_prob(action))

    def _behaviour(self, out: NetOut, frame: int) -> Distribution:
        spec = self.spec
        return explore(
            out.heads["policy"], spec.action_policy, spec.explore_var_spec.at(frame) if spec.explore_var_spec else 0.0
        )

    def advantage(self, batch: Batch) -> tuple[Batch, Metrics]:
        """The batch with `advantage` [B, T] (and what else the losses need) in its extras."""
        raise NotImplementedError

    @torch.no_grad()
    def prepare(self, batch: Batch) -> tuple[Batch, Metrics]:
        batch, metrics = self.advantage(batch)
        return without_last(batch), metrics

    def minibatches(self, batch: Batch) -> Iterator[Batch]:
        yield self.read(batch)

    def read(self, batch: Batch) -> Batch:
        """The steps of each window that a gradient step reads."""
        most = self.spec.steps_per_window
        return batch if most is None or self.net.stateless else drawn_steps(batch, most, self.rng.torch)

    def losses(self, batch: Batch, out: NetOut, frame: int) -> Losses:
        policy, scales = out.heads["policy"], self.scales(frame)
        log_prob = policy.log_prob(batch.action)  # [B, T]
        policy_loss, slope, shown = self.policy_loss(log_prob.detach(), batch, frame)
        with torch.set_grad_enabled(scales["entropy"] != 0):  # without a weight it is only shown
            terms = {"policy_loss": policy_loss, "entropy": policy.entropy()}
        if self.spec.log_barrier_coef:
            terms["barrier_loss"] = policy.barrier()
        return Losses(terms, shown, slopes={"policy_loss": [Slope(log_prob, slope)]})

    def policy_loss(self, log_prob: Tensor, batch: Batch, frame: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """`−log π(a|o) A` [B, T], its derivative by `log π` [B, T], and what is worth showing."""
        advantage = batch.extras["advantage"]
        return -log_prob * advantage, -advantage, {}

    def scales(self, frame: int) -> Metrics:
        entropy = self.spec.entropy_coef_spec
        return {
            "policy_loss": self.spec.policy_loss_coef,
            "entropy": -entropy.at(frame) if entropy else 0.0,  # a bonus
            "barrier_loss": self.spec.log_barrier_coef,
        }

    def watched(self, frame: int) -> Metrics:
        """Scheduled values worth showing."""
        explore_var = self.spec.explore_var_spec
        shown = {"explore_var": explore_var.at(frame)} if explore_var else {}
        return {"entropy_coef": -self.scales(frame)["entropy"], **shown}

    def update(self, batch: Batch, frame: int) -> Learned:
        return Learned(super().update(batch, frame).metrics | self.watched(frame))

    @staticmethod
    def problems(spec: LabSpec, world: World) -> list[Problem]:
        action_space = world.action_space
        algorithm, fitting = spec.agent.algorithm, fitting_pds(action_space)
        found = []
        if not fitting:
            found.append(
                Problem(
                    "agent.algorithm.name",
                    f"can't act in {action_space}; it can in Discrete, MultiDiscrete and Box spaces",
                )
            )
        elif algorithm.action_pdtype not in ("default", *fitting):
            found.append(
                Problem(
                    "agent.algorithm.action_pdtype",
                    f"'{algorithm.action_pdtype}' doesn't fit {action_space}. Use {' or '.join(fitting)}.",
                )
            )
        if algorithm.action_policy != "default" and isinstance(action_space, spaces.Box):
            found.append(
                Problem(
                    "agent.algorithm.action_policy",
                    f"'{algorithm.action_policy}' is for discrete actions; {action_space} takes 'default'",
                )
            )
        if algorithm.log_barrier_coef and isinstance(action_space, spaces.Box):
            found.append(
                Problem("agent.algorithm.log_barrier_coef", f"is for discrete actions; {action_space} takes 0")
            )
        return found + explore_var_problems(algorithm.action_policy, algorithm.explore_var_spec)


def drawn_steps(batch: Batch, count: int, rng: torch.Generator) -> Batch:
    """`count` steps of each window, with weights [B, Q] under which means are those of all steps.

    Half of the chance is even, half proportional to |advantage|, so that the rare steps that matter are read at any
    length.
    """
    mask, surprise = batch.mask.float(), batch.extras["advantage"].abs() * batch.mask  # [B, T]
    if mask.shape[1] <= count:
        return batch
    even = mask / mask.sum(dim=1, keepdim=True).clamp(min=1)
    total = surprise.sum(dim=1, keepdim=True)
    chance = 0.5 * even + 0.5 * torch.where(total > 0, surprise / total.clamp(min=1e-12), even)
    at = torch.multinomial(chance.cpu().clamp(min=1e-12), count, replacement=True, generator=rng).to(mask.device)
    windows = mask.any(dim=1).sum()  # all steps drawn of one that nobody played are masked, and don't count
    weight = (mask * windows / mask.sum() / chance.clamp(min=1e-12)).gather(1, at)
    parts = {name: take(getattr(batch, name), at) for name in ("action", "reward", "terminated", "truncated", "mask")}
    return batch.replace(**parts, extras=tree_map(lambda x: take(x, at), batch.extras), at=at, weight=weight)


def standardize(x: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit deviation over the valid rows; 0 elsewhere."""
    valid = x[mask]
    if valid.numel() < 2:  # one advantage less its own mean would teach nothing
        return torch.where(mask, x, 0.0)
    return torch.where(mask, (x - valid.mean()) / (valid.std(unbiased=False) + 1e-8), 0.0)
