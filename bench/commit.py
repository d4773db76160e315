"""Which code a figure was measured with, and on what machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]


def commit() -> str:
    """Of the code that is run; the pages that benchmarks write don't make it dirty."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
    return git("describe", "--always") + ("-dirty" if changed else "")


def machine() -> str:
    """CPU, cores that may be used, Python and torch."""
    told = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", told.read_text()) if told.exists() else None
    cpu = found[1] if found else platform.processor() or platform.machine()
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, torch {version('torch')}"
