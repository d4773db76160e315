"""Files that are there whole or not at all."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_atomic(path: Path, write: Callable[[Path], object], sync: bool = True) -> None:
    """Let `write(temporary)` write a file, sync it, and rename it to `path`: readers see the old file or the new.

    Without `sync` the machine may lose the newest one when its power fails: for what will be written again anyway.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        if sync:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Write strict JSON (NaN and ±inf become null), atomically."""
    write_text(path, json.dumps(_finite(data), allow_nan=False, indent=1))


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, waiting for whoever has it; it ends with its process."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
