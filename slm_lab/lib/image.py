"""How images lie in memory, decided in one place."""

from __future__ import annotations


def channel_axis(shape: tuple[int, ...]) -> int:
    """Axis of the channels in a picture [H, W, C] (2) or [C, H, W] (0).

    Pictures are nearly always square, so the two equal axes are height and width; for others the shorter of first and
    last axis is taken.
    """
    first, middle, last = shape
    if (first == middle) != (middle == last):
        return 2 if first == middle else 0
    return 0 if first < last else 2
