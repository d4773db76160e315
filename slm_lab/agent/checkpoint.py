"""Checkpoints: whole or not at all, verified when read, streamed.

A checkpoint is up to three files. `NAME_a.pt` holds tensors and plain values (`torch.load(weights_only=True)`: no code
is ever run from it); `NAME_a.data` the bytes of the large arrays, written and read a chunk at a time, so that a replay
memory of gigabytes needs no second one beside it; and `NAME.json`, the small pointer, their names and sizes. The
pointer has the SHA-256 of the `.pt`, which has dtype, shape, offset, size and SHA-256 of each large array. New files
never take the names of those in use, and the pointer is renamed into place last: a kill at any moment leaves the old
checkpoint or the new one, and at most litter that the next save removes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slm_lab.lib.errors import DiskError, LabError
from slm_lab.lib.files import write_atomic
from slm_lab.lib.types import Tree

FORMAT = "slm_lab checkpoint 2"
ARRAY = "__ndarray__"  # marks what was numpy, so that it comes back as numpy
LARGE = 2**20  # bytes from which an array is streamed
CHUNK = 2**22  # bytes held at a time
Entry = dict[str, Any]  # of a large array: dtype, shape, offset, bytes, sha256
Large = list[tuple[Entry, np.ndarray]]


def save(folder: Path, name: str, state: Tree, frame: int, of: dict[str, Any] | None = None) -> None:
    """Write `state` as checkpoint `name`; the one before goes when it is complete. Raises `DiskError` on a full disk.

    `of`: what it belongs to, small values that can be read without the state (`belongs_to`). Arrays may be views and
    memory maps. Beside them it takes the memory of a chunk and of everything that is small.
    """
    pointer = folder / f"{name}.json"
    before = _read_pointer(pointer) if pointer.exists() else None
    slot = "b" if before and before["file"].endswith("_a.pt") else "a"  # never over the one in use
    file, data = folder / f"{name}_{slot}.pt", folder / f"{name}_{slot}.data"
    try:
        _sweep(folder, name)
        large: Large = []
        plain = _plain(state, large)
        _check_space(folder, _size(plain) + sum(entry["bytes"] for entry, _ in large))
        if large:
            write_atomic(data, lambda path: _write_arrays(path, large))
        write_atomic(file, lambda path: torch.save({"format": FORMAT, "state": plain}, path))
        facts = {
            "format": FORMAT,
            "file": file.name,
            "sha256": _sha256(file),
            "files": {part.name: part.stat().st_size for part in ([file, data] if large else [file])},
            "frame": frame,
            "of": of or {},
        }
        write_atomic(pointer, lambda path: path.write_text(json.dumps(facts, indent=1)))
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        kept = f"The checkpoint at frame {before['frame']} is intact." if before else "There is no earlier one."
        raise DiskError(f"can't write the checkpoint {file}: {_reason(error)}. {kept} Free some space.") from error
    finally:
        _sweep(folder, name)


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(errno.ENOSPC, f"it takes {size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free")


def _reason(error: OSError | RuntimeError) -> str:
    """torch's words for a full disk are of its file format."""
    return error.strerror if isinstance(error, OSError) and error.strerror else "it was cut short (is the disk full?)"


def _sweep(folder: Path, name: str) -> None:
    """Remove the files of `name` that its pointer doesn't name: the checkpoint before, and what a kill has left."""
    pointer = folder / f"{name}.json"
    kept = {pointer.name, *_read_pointer(pointer)["files"]} if pointer.exists() else set()
    ours = re.compile(rf"\.?{re.escape(name)}(\.json|_[ab]\.(pt|data))(\.\d+\.tmp)?")
    for file in folder.glob("*"):
        if ours.fullmatch(file.name) and file.name not in kept:
            with suppress(OSError):  # the next save tries again
                file.unlink()


def load(folder: Path, name: str) -> Tree | None:
    """The state saved as `name`; None when there is none. Raises `LabError` when it was damaged or isn't ours.

    All of it is verified before it is returned. Large arrays are mapped from the file, copy-on-write, and take no RAM
    of their own: whoever wants them copies them to where they belong. They stay good when the file is removed.
    """
    pointer = folder / f"{name}.json"
    while pointer.exists():
        facts = _read_pointer(pointer)
        try:
            return _loaded(pointer, facts)
        except (OSError, LabError):
            if _read_pointer(pointer) == facts:
                raise
            # else whoever trains it has saved meanwhile, and these files are gone: there are newer ones
    return None


def _loaded(pointer: Path, facts: dict[str, Any]) -> Tree:
    for part, size in facts["files"].items():
        _check_file(pointer.with_name(part), size, pointer)
    file = pointer.with_name(facts["file"])
    if _sha256(file) != facts["sha256"]:
        raise _damaged(file)
    try:
        content = torch.load(file, weights_only=True, map_location="cpu")
        return _restored(content["state"], file.with_suffix(".data"))  # type: ignore[no-any-return]
    except (RuntimeError, pickle.UnpicklingError, LookupError, TypeError, EOFError, ValueError) as error:
        raise LabError(f"{file} isn't a checkpoint of this lab ({FORMAT}). Restore it, or start a new run.") from error


def belongs_to(folder: Path, name: str) -> dict[str, Any]:
    """What checkpoint `name` was saved `of`; nothing where there is none that can be read (`load` tells why)."""
    try:
        return dict(_read_pointer(folder / f"{name}.json").get("of", {}))
    except (OSError, LabError):
        return {}


def _check_file(file: Path, size: int, pointer: Path) -> None:
    if not file.exists():
        raise LabError(
            f"the checkpoint {file} is missing, though {pointer.name} names it. Restore it, or start a new run."
        )
    if file.stat().st_size != size:
        raise _damaged(file)


def _damaged(file: Path) -> LabError:
    return LabError(
        f"the checkpoint {file} is damaged: its size or SHA-256 is not what was written. "
        "Restore it, or start a new run."
    )


def _read_pointer(pointer: Path) -> dict[str, Any]:
    try:
        facts = json.loads(pointer.read_text())
        given = facts["format"]
        assert given != FORMAT or {"file", "sha256", "files", "frame"} <= facts.keys()
        assert given != FORMAT or (isinstance(facts["files"], dict) and facts["file"] in facts["files"])
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise LabError(
            f"{pointer} isn't a checkpoint of this lab ({FORMAT}). Restore it, or start a new run."
        ) from error
    if given != FORMAT:
        raise LabError(
            f"{pointer} isn't a checkpoint of this lab ({FORMAT}): its format is {given!r}. "
            "Go on with the version of the lab that wrote it, or start a new run."
        )
    return dict(facts)


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _plain(tree: Any, large: Large) -> Any:
    """The tree for `torch.save`; each large array is added to `large`, and its entry stands in its place."""
    if isinstance(tree, dict):
        return {key: _plain(value, large) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_plain(value, large) for value in tree)
    if isinstance(tree, np.ndarray) and tree.nbytes >= LARGE and tree.dtype.kind in "biufc":
        entry: Entry = {"dtype": tree.dtype.str, "shape": tree.shape, "bytes": tree.nbytes}
        large.append((entry, tree))
        return {ARRAY: entry}
    if isinstance(tree, np.ndarray):
        return {ARRAY: torch.from_numpy(np.array(tree, order="C"))}
    if isinstance(tree, np.generic):
        return tree.item()
    return tree


def _size(tree: Any) -> int:
    """Bytes of the tensors of a plain tree."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return sum(_size(value) for value in tree)
    return tree.nbytes if isinstance(tree, torch.Tensor) else 0


def _write_arrays(path: Path, large: Large) -> None:
    """One array after the other; completes their entries."""
    with open(path, "wb") as stream:
        for entry, array in large:
            entry["offset"], digest = stream.tell(), hashlib.sha256()
            for chunk in _chunks(array):
                digest.update(chunk)
                stream.write(chunk)
            entry["sha256"] = digest.hexdigest()


def _chunks(array: np.ndarray) -> Iterator[memoryview]:
    """The bytes of `array` in C order, at most CHUNK at a time: views of it, or copies where it isn't contiguous."""
    if array.flags.c_contiguous:
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, len(flat), CHUNK):
            yield flat[start : start + CHUNK].data
    elif array[0].nbytes > CHUNK:
        for row in array:
            yield from _chunks(row)
    else:
        rows = CHUNK // array[0].nbytes
        for start in range(0, len(array), rows):
            yield from _chunks(np.array(array[start : start + rows], order="C"))


def _restored(tree: Any, data: Path) -> Any:
    if isinstance(tree, dict) and ARRAY in tree:
        held = tree[ARRAY]
        return held.numpy() if isinstance(held, torch.Tensor) else _mapped(data, held)
    if isinstance(tree, dict):
        return {key: _restored(value, data) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_restored(value, data) for value in tree)
    return tree


def _mapped(data: Path, entry: Entry) -> np.ndarray:
    """Raises `LabError` where the file doesn't hold what was written."""
    digest, left = hashlib.sha256(), entry["bytes"]
    with open(data, "rb") as stream:
        stream.seek(entry["offset"])
        while chunk := stream.read(min(left, CHUNK)):
            digest.update(chunk)
            left -= len(chunk)
        if digest.hexdigest() != entry["sha256"]:
            raise _damaged(data)
        return np.asarray(np.memmap(stream, entry["dtype"], "c", entry["offset"], entry["shape"]))
