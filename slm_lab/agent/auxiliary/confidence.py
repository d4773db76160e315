"""How far the agent should trust its own values."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from slm_lab.agent.auxiliary.base import Auxiliary, AuxiliaryContext
from slm_lab.agent.net.net import Net, NetOut
from slm_lab.lib.reduce import Losses, masked_mean
from slm_lab.lib.types import Batch
from slm_lab.spec.model import SpecModel

LEAST = 1e-6  # of an error: where all are 0 the loss had no least value, and the head ran off without end


class ConfidenceHead(Auxiliary):
    """Predicts how large the TD error will be, from the features of the part that the critic reads.

    `L = |δ| / b(o) + log b(o)`, the negative log-likelihood of a Laplace distribution of scale b, least at
    `b = E[|δ|]`. A gauge: no gradient goes into the features. Shown:

    - `confidence_ratio`: mean of |δ| / b. 1: calibrated; above: it trusts itself too much.
    - `confidence_gain`: nats that b(o) saves against the best constant. 0: it can't tell sure from unsure.

    δ is the one-step TD error (REINFORCE, without a critic: the reward); less than 1e-6 counts as that.

    Source: the loss is the heteroscedastic one of Kendall & Gal 2017, arXiv 1703.04977, eq. 8, with Laplace for Gauss.

    Sample spec: `"auxiliary": [{"name": "ConfidenceHead"}]`
    """

    class Spec(SpecModel):
        name: Literal["ConfidenceHead"] = "ConfidenceHead"

    def __init__(self, spec: Spec, context: AuxiliaryContext) -> None:
        super().__init__(spec, context)
        self.part = "critic" if "critic" in context.features else next(iter(context.features))
        self.log_scale = nn.Linear(context.features[self.part], 1)

    def losses(self, batch: Batch, out: NetOut, net: Net) -> Losses:
        log_b = self.log_scale(out.features[self.part].detach()).squeeze(-1)  # [B, Q]
        error = batch.extras["td_error"].abs().clamp(min=LEAST)
        ratio = error * torch.exp(-log_b)
        loss = ratio + log_b
        with torch.no_grad():
            constant = 1 + torch.log(masked_mean(error, batch.mask))
            shown = {
                "confidence_ratio": ratio,
                "confidence_gain": constant - loss,
            }
        return Losses({"confidence_loss": loss}, shown)
