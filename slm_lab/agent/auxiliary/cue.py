"""A loss that makes a memory keep an early observation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import nn

from slm_lab.agent.auxiliary.base import Auxiliary, AuxiliaryContext
from slm_lab.agent.net.core.base import take
from slm_lab.agent.net.encode import is_image, vector_size, vectors
from slm_lab.agent.net.net import Net, NetOut
from slm_lab.lib.errors import Problem, plural
from slm_lab.lib.reduce import Losses, Metrics, masked_mean
from slm_lab.lib.returns import episode_begin
from slm_lab.lib.types import Batch
from slm_lab.spec.model import NonNegativeInt, SpecModel
from slm_lab.spec.parts import MEMORY

if TYPE_CHECKING:
    from slm_lab.env.base import World
    from slm_lab.spec.lab_spec import LabSpec

NOTE = "cue"  # extras: what is to be told, and in which rows


class CueHead(Auxiliary):
    """Tells from the features of later steps what was seen at step `step` of the episode; what is told must be kept.

    Squared error of a linear head of each part, mean over the numbers of the observation (one-hot where discrete,
    images left out), at all later steps whose episode has that step in the same window. A hint: it is you who says
    *when* the cue comes. Needs a working memory; without one the head can only tell the mean.

    Ours; an observation that was seen is told again, as a label of the task isn't there to be had.

    Sample spec: `"auxiliary": [{"name": "CueHead", "step": 0, "coef": 1.0}]`
    """

    class Spec(SpecModel):
        name: Literal["CueHead"] = "CueHead"
        step: NonNegativeInt = Field(0, description="step of the episode at which the cue is seen, from 0")
        coef: float = Field(1.0, ge=0, description="weight of the loss")

    def __init__(self, spec: Spec, context: AuxiliaryContext) -> None:
        super().__init__(spec, context)
        self.cue_space = {key: space for key, space in context.world.obs_space.items() if not is_image(space)}
        size = sum(vector_size(space) for space in self.cue_space.values())
        self.heads = nn.ModuleDict({part: nn.Linear(F, size) for part, F in context.features.items()})

    @torch.no_grad()
    def prepare(self, batch: Batch, net: Net) -> tuple[Batch, Metrics]:
        seen = vectors(self.cue_space, batch.obs)  # [B, T, D]
        time = torch.arange(seen.shape[1], device=seen.device).expand(seen.shape[:2])
        begin = episode_begin(batch.is_first)
        at = begin + self.spec.step
        later = (begin >= 0) & (time > at)
        cue = {"seen": take(seen, at.clamp(0, seen.shape[1] - 1)), "later": later}
        return batch.replace(extras={**batch.extras, NOTE: cue}), {}

    def losses(self, batch: Batch, out: NetOut, net: Net) -> Losses:
        cue = batch.extras[NOTE]
        told = [self.heads[part](features) for part, features in out.features.items()]
        error = torch.stack([(x - cue["seen"]).square().mean(dim=-1) for x in told]).mean(dim=0)  # [B, Q]
        mask, weight = batch.mask & cue["later"], batch.weight
        if batch.at is not None and weight is not None:  # weights of all steps drawn: these may be more or fewer
            weight = weight / masked_mean(weight, mask).clamp(min=1e-8)
        return Losses({"cue_loss": self.spec.coef * error}, mask=mask, weight=weight)

    @classmethod
    def problems(cls, spec: LabSpec, world: World) -> list[Problem]:
        i, own = next((i, x) for i, x in enumerate(spec.agent.auxiliary) if x.name == "CueHead")
        path = f"agent.auxiliary.{i}"
        if all(is_image(space) for space in world.obs_space.values()):
            return [Problem(f"{path}.name", "CueHead tells no images, and the env shows nothing else. Take it out.")]
        window = MEMORY.load(spec.agent.memory.name).window_length(spec)
        if window is not None and window < 2:
            message = f"{spec.agent.memory.name} gives single steps; CueHead tells of one what an earlier one showed"
            return [Problem("agent.memory.name", f"{message}. Use SequenceReplay")]
        for length, where in ((window, "windows"), (world.max_length, "episodes")):
            if length is not None and own.step + 1 >= length:
                message = f"step {own.step} and a later one don't fit in {where} of {plural(length, 'step')}"
                return [Problem(f"{path}.step", f"{message} (expected: at most {max(0, length - 2)})")]
        return []
