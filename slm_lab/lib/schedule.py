"""Values that change with the frames played: exploration, entropy, clipping."""

from __future__ import annotations

import math


def scheduled(name: str, start_val: float, end_val: float, start_step: int, end_step: int, frame: int) -> float:
    """The value at `frame`: `start_val` up to `start_step`, `end_val` from `end_step` on, between them as `name` says.

    Names are SLM-Lab's. Differs from it: `linear_decay` may also rise, and `periodic_decay` is
    `end + ½(start − end)(1 + cos x)(1 − x/60)` as its own comment gives it (its code multiplies where it should add).
    """
    if name == "no_decay" or frame <= start_step:
        return start_val
    if frame >= end_step:
        return end_val
    progress = (frame - start_step) / (end_step - start_step)
    span = start_val - end_val
    if name == "linear_decay":
        return start_val - span * progress
    if name == "rate_decay":  # 20 compounding steps of 0.9
        return max(start_val * float(0.9 ** (20 * progress)), end_val)
    if name == "periodic_decay":  # a falling sinusoid
        return end_val + 0.5 * span * (1 + math.cos(60 * progress)) * (1 - progress)
    raise ValueError(f"unknown schedule {name!r}")
