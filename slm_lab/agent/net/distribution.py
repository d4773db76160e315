"""What a policy head's numbers mean: distributions over actions.

Ours rather than torch.distributions: they draw from the session's own generator, so that a resumed run repeats itself
to the bit. Every `log_prob` and `entropy` is `[...]`, summed over the action's dimensions; `sample` and `mode` are
`[..., *A]`.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

LOG_2PI = math.log(2 * math.pi)
TINY = torch.finfo(torch.float32).tiny


class Distribution(Protocol):
    """The seam between policy heads and algorithms."""

    def sample(self, generator: torch.Generator) -> Tensor: ...
    def mode(self) -> Tensor: ...
    def log_prob(self, action: Tensor) -> Tensor: ...
    def entropy(self) -> Tensor: ...


def uniform_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise in (0, 1) shaped like `like`, drawn on the CPU: seeds mean the same on every device."""
    return torch.rand(like.shape, generator=generator).clamp_(min=TINY).to(like.device)


class Categorical:
    """One of A actions; `logits` [..., A]."""

    def __init__(self, logits: Tensor) -> None:
        self.log_probs = logits.log_softmax(dim=-1)  # [..., A]

    def sample(self, generator: torch.Generator) -> Tensor:
        gumbel = uniform_noise(self.log_probs, generator).log_().neg_().log_()  # minus the noise
        return (self.log_probs - gumbel).argmax(dim=-1)  # [...], the Gumbel-max trick

    def mode(self) -> Tensor:
        return self.log_probs.argmax(dim=-1)  # [...]

    def log_prob(self, action: Tensor) -> Tensor:
        return self.log_probs.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)  # [...]

    def entropy(self) -> Tensor:
        return -(self.log_probs.exp() * self.log_probs).sum(dim=-1)  # [...]

    def barrier(self) -> Tensor:
        """`−mean_a log π(a)` [...]: grows without end as any action's probability falls to 0."""
        return -self.log_probs.mean(dim=-1)


class MultiCategorical:
    """Several independent choices; `logits` [..., ΣA] split by `nvec`."""

    def __init__(self, logits: Tensor, nvec: list[int]) -> None:
        self.parts = [Categorical(part) for part in torch.split(logits, nvec, dim=-1)]

    def sample(self, generator: torch.Generator) -> Tensor:
        return torch.stack([part.sample(generator) for part in self.parts], dim=-1)  # [..., len(nvec)]

    def mode(self) -> Tensor:
        return torch.stack([part.mode() for part in self.parts], dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        return torch.stack([part.log_prob(action[..., i]) for i, part in enumerate(self.parts)]).sum(dim=0)

    def entropy(self) -> Tensor:
        return torch.stack([part.entropy() for part in self.parts]).sum(dim=0)

    def barrier(self) -> Tensor:
        return torch.stack([part.barrier() for part in self.parts]).sum(dim=0)


class Normal:
    """Independent Gaussians; `mean`, `log_std` [..., A]. The env clips what falls outside its bounds."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean, self.log_std = mean, log_std.expand_as(mean)

    def _noise(self, generator: torch.Generator) -> Tensor:
        return torch.randn(self.mean.shape, generator=generator).to(self.mean.device)

    def sample(self, generator: torch.Generator) -> Tensor:
        return self.mean + self.log_std.exp() * self._noise(generator)

    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        z = (action - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * (z**2 + LOG_2PI) - self.log_std).sum(dim=-1)

    def entropy(self) -> Tensor:
        return (self.log_std + 0.5 * (1 + LOG_2PI)).sum(dim=-1)


class SquashedNormal(Normal):
    """A Gaussian through tanh, so that actions lie in (−1, 1).

    `log π(a) = log N(u) − Σ log(1 − tanh² u)`, `a = tanh u`. Source: Haarnoja et al. 2018, arXiv 1801.01290, eq. 21.
    The entropy has no closed form: the Gaussian's own is given, an upper bound.
    """

    def sample(self, generator: torch.Generator) -> Tensor:
        return torch.tanh(super().sample(generator))

    def sample_log_prob(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A draw and its log-probability, differentiable through the draw and exact where tanh is flat.

        The Gaussian's density at its own draw is that of the noise, whatever the mean: no gradient goes that way.
        """
        noise = self._noise(generator)
        u = self.mean + self.log_std.exp() * noise
        return torch.tanh(u), (-0.5 * (noise**2 + LOG_2PI) - self.log_std - log_slope(u)).sum(dim=-1)

    def mode(self) -> Tensor:
        return torch.tanh(self.mean)

    def log_prob(self, action: Tensor) -> Tensor:
        u = torch.atanh(action.clamp(-1 + 1e-6, 1 - 1e-6))
        return super().log_prob(u) - log_slope(u).sum(dim=-1)


def log_slope(u: Tensor) -> Tensor:
    """`log(1 − tanh² u)`, elementwise and stable for large u."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))


class Noisy:
    """A deterministic action in [−1, 1], `mean` [..., A], with Gaussian noise when it explores."""

    def __init__(self, mean: Tensor, std: float) -> None:
        self.mean, self.std = mean, std

    def sample(self, generator: torch.Generator) -> Tensor:
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean.device)
        return (self.mean + self.std * noise).clamp(-1, 1)

    def mode(self) -> Tensor:
        return self.mean
