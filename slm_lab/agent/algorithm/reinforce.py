"""REINFORCE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from slm_lab.agent.algorithm.policy_gradient import PolicyGradient, PolicyGradientSpec, standardize
from slm_lab.lib.errors import Problem
from slm_lab.lib.reduce import Metrics
from slm_lab.lib.returns import gae
from slm_lab.lib.types import Batch
from slm_lab.spec.model import PositiveInt
from slm_lab.spec.parts import MEMORY

if TYPE_CHECKING:
    from slm_lab.env.base import World
    from slm_lab.spec.lab_spec import LabSpec


class REINFORCE(PolicyGradient):
    """REINFORCE: the policy gradient by whole returns, no critic.

    `A_t = G_t = Σ_k γ^k r_{t+k}` to the end of the episode, less the batch's mean with `center_return`, over its
    deviation with `normalize_return`. Use it with OnPolicyReplay: a return needs its episode's end. With
    OnPolicyBatchReplay (as in SLM-Lab's specs), and in an episode longer than StrategicMemory's `horizon`, returns are
    cut at the window's end: steps before it get nothing of what is earned after it. A truncated episode's return is
    what was earned, since nothing estimates the rest.

    Source: Williams 1992. Differs: the factor γ^t of the discounted objective is left out, as everywhere.

    Sample spec: `"algorithm": {"name": "REINFORCE", "gamma": 0.99, "center_return": true, "training_frequency": 1}`
    """

    class Spec(PolicyGradientSpec):
        name: Literal["REINFORCE"] = "REINFORCE"
        training_frequency: PositiveInt = Field(
            1, description="episodes (OnPolicyReplay, StrategicMemory) or steps per env between updates"
        )
        center_return: bool = Field(False, description="subtract the batch's mean return")
        normalize_return: bool = Field(False, description="divide centred returns by their deviation")

        @property
        def frequency(self) -> int:
            return self.training_frequency

    @staticmethod
    def problems(spec: LabSpec, world: World) -> list[Problem]:
        found = PolicyGradient.problems(spec, world)
        if not spec.agent.net.use_same_optim:
            message = "REINFORCE has no critic, so one optimiser. Use true, and optim_spec alone."
            found.append(Problem("agent.net.use_same_optim", message))
        return found

    @staticmethod
    def notes(spec: LabSpec, world: World) -> list[str]:
        """Whether returns are cut short."""
        length, known = MEMORY.load(spec.agent.memory.name).window_length(spec), world.max_length
        if length is None or (known is not None and known <= length):
            return []
        episodes = f"have up to {known}" if known else "may have more"
        return [
            f"REINFORCE learns from windows of at most {length} steps and episodes {episodes}: what is earned after a "
            "window teaches nothing within it. Use longer windows, or a critic (A2C, PPO)"
        ]

    def advantage(self, batch: Batch) -> tuple[Batch, Metrics]:
        zeros = torch.zeros_like(batch.is_first, dtype=batch.reward.dtype)  # [B, T+1]: no value estimates
        returns = gae(batch.reward, zeros, batch.terminated, batch.truncated, batch.mask, self.spec.gamma, lam=1.0)
        if self.spec.normalize_return:
            returns = standardize(returns, batch.mask)
        elif self.spec.center_return and int(batch.mask.sum()) > 1:  # one return less its own mean would teach nothing
            returns = returns - returns[batch.mask].mean()
        return batch.replace(extras={**batch.extras, "advantage": returns, "td_error": batch.reward}), {}
