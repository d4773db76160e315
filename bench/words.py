"""What several commands of the benchmarks read from their command line."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1 was expected")
    return int(text)
