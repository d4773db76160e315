"""Checkpoints: whole or not at all, verified when read.

A checkpoint is a file of tensors and plain values (`torch.load(weights_only=True)`: no code is ever run from it) and a
small pointer, `NAME.json`, that holds its name, size and SHA-256. The pointer is renamed into place last, so a kill at
any moment leaves the old pair or the new one.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slm_lab.lib.errors import LabError
from slm_lab.lib.files import write_atomic
from slm_lab.lib.types import Tree

FORMAT = "slm_lab checkpoint 1"
ARRAY = "__ndarray__"  # marks what was numpy, so that it comes back as numpy


def save(folder: Path, name: str, state: Tree, frame: int) -> None:
    """Write `state` as checkpoint `name`; the one before goes when it is complete. Raises `LabError` on a full disk."""
    pointer = folder / f"{name}.json"
    before = _read_pointer(pointer) if pointer.exists() else None
    file = (
        folder / f"{name}_{'b' if before and before['file'].endswith('_a.pt') else 'a'}.pt"
    )  # never over the one in use
    try:
        write_atomic(file, lambda path: torch.save({"format": FORMAT, "state": _plain(state)}, path))
        facts = {
            "format": FORMAT,
            "file": file.name,
            "bytes": file.stat().st_size,
            "sha256": _sha256(file),
            "frame": frame,
        }
        write_atomic(pointer, lambda path: path.write_text(json.dumps(facts, indent=1)))
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        kept = f"The checkpoint at frame {before['frame']} is intact." if before else "There is no earlier one."
        raise LabError(
            f"can't write the checkpoint {file}: {_reason(error)}. {kept} "
            "Free some space, then continue with train@latest."
        ) from error
    if before:
        (folder / before["file"]).unlink(missing_ok=True)


def _reason(error: OSError | RuntimeError) -> str:
    """torch's words for a full disk are of its file format."""
    return error.strerror if isinstance(error, OSError) and error.strerror else "it was cut short (is the disk full?)"


def load(folder: Path, name: str) -> Tree | None:
    """The state saved as `name`; None when there is none. Raises `LabError` when it was damaged or isn't ours."""
    pointer = folder / f"{name}.json"
    if not pointer.exists():
        return None
    facts = _read_pointer(pointer)
    file = folder / facts["file"]
    if not file.exists():
        raise LabError(
            f"the checkpoint {file} is missing, though {pointer.name} names it. Restore it, or start a new run."
        )
    if file.stat().st_size != facts["bytes"] or _sha256(file) != facts["sha256"]:
        raise LabError(
            f"the checkpoint {file} is damaged: its size or SHA-256 is not what {pointer.name} says. "
            "Restore it, or start a new run."
        )
    try:
        content = torch.load(file, weights_only=True, map_location="cpu")
        return _restored(content["state"])  # type: ignore[no-any-return]
    except (RuntimeError, pickle.UnpicklingError, LookupError, TypeError, EOFError, ValueError) as error:
        raise LabError(f"{file} isn't a checkpoint of this lab ({FORMAT}). Restore it, or start a new run.") from error


def _read_pointer(pointer: Path) -> dict[str, Any]:
    try:
        facts = json.loads(pointer.read_text())
        assert facts["format"] == FORMAT and {"file", "bytes", "sha256", "frame"} <= facts.keys()
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise LabError(
            f"{pointer} isn't a checkpoint of this lab ({FORMAT}). Restore it, or start a new run."
        ) from error
    return dict(facts)


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_plain(value) for value in tree)
    if isinstance(tree, np.ndarray):
        return {ARRAY: torch.from_numpy(np.array(tree, order="C"))}
    if isinstance(tree, np.generic):
        return tree.item()
    return tree


def _restored(tree: Any) -> Any:
    if isinstance(tree, dict):
        return tree[ARRAY].numpy() if ARRAY in tree else {key: _restored(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_restored(value) for value in tree)
    return tree
