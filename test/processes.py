"""What tests ask of processes that they started."""

from __future__ import annotations

from pathlib import Path


def alive(pid: int) -> bool:
    """Whether a process goes on: one that nobody has waited for is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
