"""The optimiser of a net: a learning rate for each part, clipping, a schedule, and proof that everything learns."""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from slm_lab.agent.net.base import NetSpec
from slm_lab.agent.net.net import Net
from slm_lab.lib.errors import LabError
from slm_lab.lib.reduce import Loss
from slm_lab.lib.types import Tree
from slm_lab.spec.model import OptimSpec


class Optim:
    """Trains a net by its spec; one torch optimiser for all parts that are trained alike, since a call costs more than
    what it does to a small net. A parameter without gradient stands still."""

    def __init__(self, net: Net, spec: NetSpec) -> None:
        self.net, self.spec = net, spec
        self.groups = net.parameters_by_part()
        trained: dict[str, list[nn.Parameter]] = {}  # by the first of the parts
        for part, parameters in self.groups.items():
            first = next((name for name in trained if spec.optim_of(name) == spec.optim_of(part)), part)
            trained.setdefault(first, []).extend(parameters)
        self.optims = {part: make_optim(parameters, spec.optim_of(part)) for part, parameters in trained.items()}
        self.opt_step = 0
        self.untrained: set[str] | None = None  # names without any gradient so far, when watched

    def watch(self) -> None:
        """Note which parameters ever get a gradient (dev mode)."""
        self.untrained = {name for name, p in self.net.named_parameters() if p.requires_grad}

    def step(self, loss: Loss, frame: int) -> dict[str, float]:
        """One update; its grad_norm and lr. Raises `LabError` on a gradient that isn't finite, and changes nothing."""
        for parameters in self.groups.values():
            for parameter in parameters:
                parameter.grad = None
        loss.backward()
        with torch.no_grad():
            return self._follow(frame)

    def _follow(self, frame: int) -> dict[str, float]:
        """Clip the gradient that is there, and step."""
        total = self._clip()
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

    def _clip(self) -> float:
        """Shorten the gradient of each part to `clip_grad_val`; the norm that all of them had together."""
        groups = [[p.grad for p in parameters if p.grad is not None] for parameters in self.groups.values()]
        each = torch.stack(torch._foreach_norm([gradient for group in groups for gradient in group])).tolist()
        left, limit = iter(each), self.spec.clip_grad_val or math.inf
        for group in groups:
            norm = math.hypot(*itertools.islice(left, len(group)))
            if norm > limit:
                torch._foreach_mul_(group, limit / (norm + 1e-6))
        return math.hypot(*each)

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


class Adam(torch.optim.Adam):
    """torch's fused Adam, without what `torch.optim` does around the kernel: on a small net that takes longer.

    To be called under `torch.no_grad`.
    """

    # torch keeps these out of torch.compile, and to do so imports the compiler: 1.2 s before the first frame
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            learned = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not learned:
                continue
            states = [self.state[parameter] or self._begin(parameter) for parameter in learned]
            counts = [int(state["step"]) + 1 for state in states]
            steps = {n: torch.full((), n, dtype=torch.float32, device=learned[0].device) for n in set(counts)}
            for state, count in zip(states, counts, strict=True):
                state["step"] = count
            gradients = [parameter.grad for parameter in learned]
            means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
            kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
            kernel(
                learned, gradients, means, squares, [], [steps[n] for n in counts], lr=group["lr"],
                beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
                eps=group["eps"], amsgrad=False, maximize=False,
            )  # fmt: skip

    def _begin(self, parameter: Tensor) -> dict[str, Any]:
        """The state of a parameter before its first step; a number counts faster than torch's tensor."""
        state = {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        self.state[parameter] = state
        return state

    step.hooked = True  # type: ignore[attr-defined]  # torch.optim is not to wrap it either


def make_optim(parameters: list[nn.Parameter], spec: OptimSpec) -> torch.optim.Optimizer:
    """The torch optimiser that a spec names; keys left null keep torch's defaults."""
    keys = {
        "Adam": ("eps", "betas"),
        "AdamW": ("eps", "betas"),
        "RMSprop": ("eps", "alpha", "momentum"),
        "SGD": ("momentum",),
    }[spec.name]
    options: dict[str, Any] = {key: getattr(spec, key) for key in keys if getattr(spec, key) is not None}
    if spec.name in ("Adam", "AdamW"):
        options |= {"decoupled_weight_decay": spec.name == "AdamW"}
    if spec.name != "RMSprop":
        options["fused"] = True  # one pass over all parameters: a third of the time on small nets
    classes = {"Adam": Adam, "AdamW": Adam, "RMSprop": torch.optim.RMSprop, "SGD": torch.optim.SGD}
    optim: torch.optim.Optimizer = classes[spec.name](parameters, lr=spec.lr, weight_decay=spec.weight_decay, **options)
    return optim
