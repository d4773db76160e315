"""Intrinsic reward for what was never seen: random network distillation."""

from __future__ import annotations

import math
from typing import Literal

import torch
from gymnasium import spaces
from pydantic import Field
from torch import Tensor, nn

from slm_lab.agent.auxiliary.base import Auxiliary, AuxiliaryContext
from slm_lab.agent.net.base import Encoder
from slm_lab.agent.net.core.base import take
from slm_lab.agent.net.layers import init_head
from slm_lab.agent.net.net import Net, NetOut
from slm_lab.lib.reduce import Losses, Metrics, masked_mean
from slm_lab.lib.returns import gae
from slm_lab.lib.running import RunningMoments
from slm_lab.lib.tree import tree_map
from slm_lab.lib.types import Batch, Tree
from slm_lab.spec.model import PositiveInt, SpecModel
from slm_lab.spec.parts import NET

LIMIT = 5.0  # of a normalised observation
LEAST = 0.1  # that σ is of the mean: the rows of a first batch may all lead to one observation
NOTE = "rnd"  # extras: the observation that each row led to


class RND(Auxiliary):
    """Random network distillation: a bonus for observations that a predictor doesn't know yet.

    The bonus of a row is the error of a trained net, mean over `out_size` numbers, in predicting a random net that
    stays as it is, on the observation that the row led to: `r + coef · e(o') / σ`, σ the running deviation of the
    discounted sums of e over windows (of e itself where windows are single rows), at least a tenth of their mean. Both
    nets begin as the agent's own encoder; observations of Box spaces are normalised by running moments and clipped to
    ±5.

    Source: Burda et al. 2018, arXiv 1810.12894. Differs: one value for both rewards, so the bonus is discounted by the
    algorithm's γ and ends with the episode; moments begin with the first batch, not with random play; sums for σ begin
    anew in each window; stacked frames are all seen. A row of n-step replay gets one bonus, of where it led to.

    Sample spec: `"auxiliary": [{"name": "RND", "coef": 0.5}]`
    """

    class Spec(SpecModel):
        name: Literal["RND"] = "RND"
        coef: float = Field(1.0, ge=0, description="weight of the bonus beside the reward")
        out_size: PositiveInt = Field(64, description="numbers that the random net makes of an observation")
        share: float = Field(0.25, gt=0, le=1, description="share of the rows that the predictor learns from")

    def __init__(self, spec: Spec, context: AuxiliaryContext) -> None:
        super().__init__(spec, context)
        self.random, self.predictor = self._net(deep=False), self._net(deep=True)
        for module in self.random.modules():  # it never learns: buffers, which no optimiser sees
            for name, weight in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, weight.detach())
        boxes = {key: x for key, x in context.world.obs_space.items() if isinstance(x, spaces.Box)}
        self.moments = {key: RunningMoments(space.shape) for key, space in boxes.items()}
        self.sums = RunningMoments()
        self.rng = torch.Generator().manual_seed(context.seed)

    def _net(self, deep: bool) -> nn.Sequential:
        """Observations to [..., out_size]; the predictor has a layer more."""
        encoder: Encoder = NET.load(self.context.net.name)(self.context.net, self.context.world.obs_space)  # type: ignore[attr-defined]
        size = encoder.out_size
        middle = [nn.Linear(size, size), nn.ReLU()] if deep else []
        head = nn.Sequential(*middle, nn.Linear(size, self.spec.out_size))
        init_head(head, math.sqrt(2))
        return nn.Sequential(encoder, head)

    @torch.no_grad()
    def bonus(self, batch: Batch) -> tuple[Batch, Metrics]:
        at = batch.at if batch.after is None else batch.after
        seen = tree_map(lambda x: take(x[:, 1:], at), batch.obs)  # [B, T, ...]
        for key, moments in self.moments.items():
            moments.update(seen[key][batch.mask].cpu().numpy())
        error = torch.where(batch.mask, self.error(seen), 0.0)  # [B, T]
        no, all_ = torch.zeros_like(batch.mask), torch.ones_like(batch.mask)
        value = error.new_zeros(len(error), error.shape[1] + 1)
        sums = gae(error, value, no, no, all_, self.context.gamma, 1.0)
        self.sums.update(sums[batch.mask].cpu().numpy())
        bonus = error / max(float(self.sums.std(epsilon=1e-16)), LEAST * float(self.sums.mean))
        reward = batch.reward + self.spec.coef * bonus
        shown = {"rnd_bonus": float(masked_mean(bonus, batch.mask)), "rnd_error": float(masked_mean(error, batch.mask))}
        return batch.replace(reward=reward, extras={**batch.extras, NOTE: seen}), shown

    def losses(self, batch: Batch, out: NetOut, net: Net) -> Losses:
        chosen = torch.rand(batch.mask.shape, generator=self.rng) < self.spec.share
        mask = batch.mask & chosen.to(batch.mask.device)
        return Losses({"rnd_loss": self.error(batch.extras[NOTE])}, mask=mask, weight=batch.weight)

    def error(self, obs: Tree) -> Tensor:
        """How wrong the predictor is, [B, T]; the gradient is the predictor's."""
        normal = {key: self._normal(key, x) for key, x in obs.items()}
        target: Tensor = self.random(normal)
        error: Tensor = (self.predictor(normal) - target).square().mean(dim=-1)
        return error

    def _normal(self, key: str, x: Tensor) -> Tensor:
        """Of a Box: zero mean, unit deviation, within ±5; encoders divide bytes by 255, so of those it is 255 times."""
        if key not in self.moments:
            return x
        moments = self.moments[key]
        mean, std = (torch.as_tensor(m, dtype=torch.float32, device=x.device) for m in (moments.mean, moments.std()))
        normal = ((x.float() - mean) / std).clamp(-LIMIT, LIMIT)
        return normal * 255 if x.dtype == torch.uint8 else normal

    def get_extra_state(self) -> Tree:
        moments = {key: moments.state_dict() for key, moments in self.moments.items()}
        return {"moments": moments, "sums": self.sums.state_dict(), "rng": self.rng.get_state()}

    def set_extra_state(self, state: Tree) -> None:
        for key, moments in self.moments.items():
            moments.load_state_dict(state["moments"][key])
        self.sums.load_state_dict(state["sums"])
        self.rng.set_state(state["rng"].cpu())
