"""How steps and ages are told to StrategicMemory's nets: by bounded features, since what was learned on short episodes
must hold in long ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

DECAYS = (1.0, 4.0, 16.0)  # steps, of a clock's exponentials
PERIODS = (4, 8, 16, 32)  # steps, of its waves
RATES = -1 / torch.tensor(DECAYS)
PEAKS = -math.e * RATES  # times an age and its exponentials: at most 1, where the age is that of the decay
ANGLES = 2 * math.pi * torch.arange(max(PERIODS))[:, None] / torch.tensor(PERIODS)
WAVES = torch.cat([torch.sin(ANGLES), torch.cos(ANGLES)], dim=1)  # [32, 8] by t % 32, as exact after a million steps
CLOCK = len(DECAYS) + WAVES.shape[1]
FADED = -40.0  # exponents stop here: e^-40 comes to nothing, and far less, times a gradient, is slow to multiply
SPAN = 2048  # steps, a multiple of 32, after which exponentials have faded and only waves go on
AGE, EVENT_AGE = CLOCK + 1, 2 * len(DECAYS) + 1  # features of an age in steps, in events


def decays(t: Tensor) -> Tensor:
    """[..., S] to exponentials [..., len(DECAYS), S]."""
    return torch.exp((t.unsqueeze(-2) * RATES.to(t.device)[:, None]).clamp(min=FADED))


def clocks(steps: int) -> Tensor:
    """Features [steps, CLOCK] of the steps 0, 1, ... of an episode."""
    t = torch.arange(steps)
    return torch.cat([decays(t).T, WAVES[t % len(WAVES)]], dim=1)


def row_of(t: Tensor, span: int) -> Tensor:
    """Where whole steps [...] stand in a table that goes on for ever with the waves of its last 32 rows."""
    return torch.minimum(t, span + t % len(WAVES))


CLOCKS = clocks(SPAN + len(WAVES))


def clock_features(t: Tensor) -> Tensor:
    """Whole steps [...] to features [..., CLOCK]."""
    return F.embedding(row_of(t, SPAN), CLOCKS.to(t.device))
