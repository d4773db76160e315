"""How an agent strays from what it thinks best, in SLM-Lab's vocabulary."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from slm_lab.agent.net.distribution import Categorical, Distribution, MultiCategorical
from slm_lab.lib.errors import Problem
from slm_lab.spec.model import ScheduleSpec

ActionPolicy = Literal["default", "random", "epsilon_greedy", "boltzmann"]


def explore(policy: Distribution, action_policy: ActionPolicy, explore_var: float) -> Distribution:
    """The distribution that acts in place of `policy`, discrete ones only but for "default".

    default: the policy itself · random: uniform · epsilon_greedy: the best action, with probability `explore_var` a
    uniform one · boltzmann: logits divided by the temperature `explore_var`.
    """
    if action_policy == "default":
        return policy
    if isinstance(policy, MultiCategorical):
        logits = torch.cat([_logits(part.log_probs, action_policy, explore_var) for part in policy.parts], dim=-1)
        return MultiCategorical(logits, [part.log_probs.shape[-1] for part in policy.parts])
    assert isinstance(policy, Categorical)
    return Categorical(_logits(policy.log_probs, action_policy, explore_var))


def _logits(log_probs: Tensor, action_policy: ActionPolicy, explore_var: float) -> Tensor:  # [..., A]
    if action_policy == "random":
        return torch.zeros_like(log_probs)
    if action_policy == "boltzmann":
        return log_probs / max(explore_var, 1e-8)
    best = torch.zeros_like(log_probs).scatter_(-1, log_probs.argmax(dim=-1, keepdim=True), 1.0)
    return torch.log(explore_var / log_probs.shape[-1] + (1 - explore_var) * best)  # −inf never wins a draw


def epsilon_greedy(values: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Actions [...] drawn as by `explore`, without the distribution: the best by `values` [..., A], or any."""
    lead, A = values.shape[:-1], values.shape[-1]
    strays = torch.rand(lead, generator=generator) < epsilon
    strayed = torch.randint(A, lead, generator=generator)
    return torch.where(strays.to(values.device), strayed.to(values.device), values.argmax(dim=-1))


def explore_var_problems(action_policy: ActionPolicy, spec: ScheduleSpec | None) -> list[Problem]:
    """What is wrong with the epsilon or temperature of an action policy."""
    path, varies = "agent.algorithm.explore_var_spec", action_policy in ("epsilon_greedy", "boltzmann")
    if spec is None:
        missing = f"missing: '{action_policy}' needs its epsilon or temperature"
        return [Problem(path, missing)] if varies else []
    values = (spec.start_val, spec.at(spec.end_step + 1))
    if not varies:
        return [Problem(path, f"'{action_policy}' has nothing to vary: leave it null, or use another action_policy")]
    if action_policy == "epsilon_greedy" and not 0 <= min(values) <= max(values) <= 1:
        return [Problem(path, f"an epsilon from {values[0]} to {values[1]} is no probability (expected: from 0 to 1)")]
    if action_policy == "boltzmann" and min(values) <= 0:
        return [Problem(path, f"a temperature from {values[0]} to {values[1]} must stay above 0")]
    return []
