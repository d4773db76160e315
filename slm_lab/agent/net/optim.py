"""The optimiser of a net: a learning rate for each part, clipping, a schedule, and proof that everything learns."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from slm_lab.agent.net.base import NetSpec
from slm_lab.agent.net.net import Net
from slm_lab.lib.errors import LabError
from slm_lab.lib.types import Tree
from slm_lab.spec.model import OptimSpec


class Optim:
    """Trains a net by its spec; one torch optimiser for each part."""

    def __init__(self, net: Net, spec: NetSpec) -> None:
        self.net, self.spec = net, spec
        self.groups = net.parameters_by_part()
        self.optims = {part: make_optim(parameters, spec.optim_of(part)) for part, parameters in self.groups.items()}
        self.opt_step = 0
        self.untrained: set[str] | None = None  # names without any gradient so far, when watched

    def watch(self) -> None:
        """Note which parameters ever get a gradient (dev mode)."""
        self.untrained = {name for name, _ in self.net.named_parameters()}

    def step(self, loss: Tensor, frame: int) -> dict[str, float]:
        """One update; its grad_norm and lr. Raises `LabError` on a gradient that isn't finite, and changes nothing."""
        for optim in self.optims.values():
            optim.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norms = {part: self._clip(parameters) for part, parameters in self.groups.items()}
        total = math.sqrt(sum(norm**2 for norm in norms.values()))
        if not math.isfinite(total):
            raise LabError(
                f"the gradient is not finite at frame {frame}. {self._not_finite()} Try a smaller lr or clip_grad_val."
            )
        if self.untrained:
            self.untrained -= {n for n, p in self.net.named_parameters() if p.grad is not None and bool(p.grad.any())}
        for part, optim in self.optims.items():
            for group in optim.param_groups:
                group["lr"] = self.lr(part, frame)
            optim.step()
        self.opt_step += 1
        return {"grad_norm": total, "lr": self.lr(next(iter(self.groups)), frame)}

    def lr(self, part: str, frame: int) -> float:
        """Learning rate of a part at this frame."""
        schedule, lr = self.spec.lr_scheduler_spec, self.spec.optim_of(part).lr
        if schedule is None:
            return lr
        floor = 0.0 if schedule.name == "LinearToZero" else schedule.min_factor
        return lr * max(1.0 - frame / schedule.frame, floor)

    def _clip(self, parameters: list[nn.Parameter]) -> float:
        limit = math.inf if self.spec.clip_grad_val is None else self.spec.clip_grad_val
        return float(nn.utils.clip_grad_norm_(parameters, limit))

    def _not_finite(self) -> str:
        bad = [
            n for n, p in self.net.named_parameters() if p.grad is not None and not bool(torch.isfinite(p.grad).all())
        ]
        return f"Parameters: {', '.join(bad[:3])}{' ...' if len(bad) > 3 else ''}."

    def state_dict(self) -> Tree:
        return {"opt_step": self.opt_step, "optims": {part: optim.state_dict() for part, optim in self.optims.items()}}

    def load_state_dict(self, state: Tree) -> None:
        self.opt_step = int(state["opt_step"])
        for part, optim in self.optims.items():
            optim.load_state_dict(state["optims"][part])


def make_optim(parameters: list[nn.Parameter], spec: OptimSpec) -> torch.optim.Optimizer:
    """The torch optimiser that a spec names; keys left null keep torch's defaults."""
    keys = {
        "Adam": ("eps", "betas"),
        "AdamW": ("eps", "betas"),
        "RMSprop": ("eps", "alpha", "momentum"),
        "SGD": ("momentum",),
    }[spec.name]
    options: dict[str, Any] = {key: getattr(spec, key) for key in keys if getattr(spec, key) is not None}
    if spec.name != "RMSprop":
        options["fused"] = True  # one pass over all parameters: a third of the time on small nets
    optim: torch.optim.Optimizer = getattr(torch.optim, spec.name)(
        parameters, lr=spec.lr, weight_decay=spec.weight_decay, **options
    )
    return optim
