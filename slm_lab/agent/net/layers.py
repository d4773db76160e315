"""Layers that several nets are built of, and how their weights begin."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Activation = Literal["relu", "tanh", "selu", "elu", "gelu", "silu", "sigmoid", "leakyrelu"]
InitFn = Literal["orthogonal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"]

# each follows a product, whose result no one else reads: relu, which is where nets are large, writes over it
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True), "tanh": nn.Tanh, "selu": nn.SELU, "elu": nn.ELU, "gelu": nn.GELU,
    "silu": nn.SiLU, "sigmoid": nn.Sigmoid, "leakyrelu": nn.LeakyReLU,
}  # fmt: skip
GAINS = {"relu": math.sqrt(2), "tanh": 5 / 3, "leakyrelu": math.sqrt(2), "selu": 0.75}  # others 1, as torch.nn.init

WIDE = 128 * 128  # weights of a layer
LARGE = 4_000_000  # multiply-adds of a product
ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")  # what torch.compile makes of a linear layer


def linear(fan_in: int, fan_out: int) -> nn.Linear:
    """A linear layer; a wide one makes its large products on most CPUs sooner (see `WideLinear`)."""
    return (WideLinear if ONEDNN and fan_in * fan_out >= WIDE else nn.Linear)(fan_in, fan_out)


class WideLinear(nn.Linear):
    """A linear layer over [N, D] whose large products on a CPU are made by oneDNN.

    torch has MKL make them, which on CPUs that aren't Intel's takes up to twice as long. Only where N is a power of
    two, as batches mostly are: oneDNN keeps some 2 MB for each size that it has met, and episodes come in all of them.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight, rows = self.weight, len(x)
        large = rows * weight.numel() >= LARGE and rows & (rows - 1) == 0
        if not large or x.dim() != 2 or x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32:
            return super().forward(x)
        y: Tensor = OneDnnLinear.apply(x, weight, self.bias)  # type: ignore[no-untyped-call]
        return y


class OneDnnLinear(torch.autograd.Function):
    """`x Wᵀ + b` [N, M] of x [N, D], W [M, D], b [M]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (x, weight), (x_asks, weight_asks, bias_asks) = ctx.saved_tensors, ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if x_asks else None,
            _product(gradient.t(), x.t()) if weight_asks else None,
            gradient.sum(dim=0) if bias_asks else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


class Layers(nn.Sequential):
    """Layers over the last dimension of [..., D]: all rows side by side, so that each layer is one plain product."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        for layer in self:
            rows = layer.forward(rows)  # not by __call__, whose hooks no one uses here
        return rows.view(*x.shape[:-1], -1)


class Detach(nn.Module):
    """Passes its input on, and no gradient back."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def mlp(sizes: Sequence[int], activation: Activation) -> Layers:
    """Linear layers `sizes[0] → … → sizes[-1]`, the activation after each."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [linear(fan_in, fan_out), ACTIVATIONS[activation]()]
    return Layers(*layers)


def init_weights(module: nn.Module, init_fn: InitFn | None, activation: Activation) -> None:
    """Weights of every Linear and Conv2d by `init_fn` with the activation's gain, biases 0; None keeps torch's own."""
    if init_fn is None:
        return
    gain = GAINS.get(activation, 1.0)
    for layer in module.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        if init_fn.startswith("kaiming"):
            getattr(nn.init, init_fn)(layer.weight, nonlinearity="relu")
        else:
            getattr(nn.init, init_fn)(layer.weight, gain=gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def init_head(head: nn.Module, gain: float | None) -> None:
    """A head's weights orthogonal with this gain (small for a policy: near uniform), biases 0; None: torch's own."""
    if gain is None:
        return
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain=gain)
            nn.init.zeros_(layer.bias)
