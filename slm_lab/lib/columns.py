"""Files of named arrays and what they are (facts), as .npz or .hdf5: written whole, verified, read in place."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from slm_lab.lib.errors import LabError
from slm_lab.lib.files import write_atomic

SUFFIXES = {".npz": "npz", ".hdf5": "hdf5", ".h5": "hdf5"}
META = "meta"  # the facts, as JSON text beside the arrays
CHUNK = 2**22  # bytes hashed at a time
Facts = dict[str, Any]
Columns = Iterable[tuple[str, np.ndarray]]
BROKEN = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, struct.error)


def write_columns(path: Path, facts: Facts, columns: Columns) -> None:
    """Write arrays, one at a time, and `facts` (plain JSON values) as `path`, in the format of its suffix.

    The file is there whole or not at all. Each array's dtype, shape and SHA-256 go into it, and that of the facts.
    """
    writer = _write_npz if _kind(path) == "npz" else _write_hdf5
    write_atomic(path, lambda part: writer(part, facts, columns))


class ColumnFile:
    """A file that `write_columns` wrote. Opening it reads the facts; a column is read where it lies on disk.

    Raises `LabError` where it isn't there, isn't such a file, was cut short, or was changed after it was written:
    in its facts when opened, in its arrays by `verify`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        kind = _kind(path)
        if not path.is_file():
            raise LabError(f"{path} isn't there: a file made by the command export was expected")
        try:
            text = _npz_meta(path) if kind == "npz" else _hdf5_meta(path)
            facts: Facts = json.loads(text)
            digest = facts.pop("digest")
            self.columns: dict[str, Facts] = facts["columns"]
        except BROKEN as error:
            raise LabError(
                f"{path} can't be read: it was cut short, or isn't a file of this lab's. Export it again."
            ) from error
        if digest != _digest(facts):
            raise self._changed("its facts")
        self.facts, self._kind = facts, kind

    def column(self, name: str) -> np.ndarray:
        """An array of the file, mapped (read-only) where it lies there unpacked."""
        try:
            array = (_npz_column if self._kind == "npz" else _hdf5_column)(self.path, name)
        except BROKEN as error:
            raise self._changed(f"column {name!r}") from error
        told = self.columns[name]
        if array.dtype.str != told["dtype"] or list(array.shape) != told["shape"]:
            raise self._changed(f"column {name!r}")
        return array

    def verify(self) -> None:
        """Read all of it once. Raises `LabError` where a column isn't what was written."""
        for name, told in self.columns.items():
            if _sha256(self.column(name)) != told["sha256"]:
                raise self._changed(f"column {name!r}")

    def _changed(self, what: str) -> LabError:
        return LabError(f"{self.path} is damaged: {what} isn't what was written (SHA-256). Export it again.")


def _kind(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise LabError(f"{path}: the name of an experience file ends with {', '.join(SUFFIXES)}")
    return SUFFIXES[path.suffix]


def _closed(facts: Facts, columns: dict[str, Facts]) -> str:
    """The text of the facts, those of the columns and the digest of it all among them."""
    whole = {**facts, "columns": columns}
    return json.dumps({**whole, "digest": _digest(whole)}, allow_nan=False)


def _digest(facts: Facts) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _sha256(array: np.ndarray) -> str:
    digest, rows = hashlib.sha256(), max(1, CHUNK // max(array[:1].nbytes, 1))
    for start in range(0, len(array), rows):
        digest.update(np.ascontiguousarray(array[start : start + rows]).data)
    return digest.hexdigest()


def _described(columns: Columns, write: Callable[[str, np.ndarray], object]) -> dict[str, Facts]:
    """What was written, by name."""
    told = {}
    for name, array in columns:
        write(name, array)
        told[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "sha256": _sha256(array)}
    return told


# --- npz: a zip of .npy files, as numpy.savez writes it and numpy.load reads it ---


def _write_npz(path: Path, facts: Facts, columns: Columns) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def write(name: str, array: np.ndarray) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)

        told = _described(columns, write)
        write(META, np.array(_closed(facts, told)))


def _npz_meta(path: Path) -> str:
    with np.load(path, allow_pickle=False) as archive:
        return str(archive[META].item())


def _npz_column(path: Path, name: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{name}.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            with archive.open(info) as member:
                packed: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
            return packed
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)  # the local header: its fixed part ends with the lengths of two more
        file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return np.memmap(path, dtype, "r", offset=file.tell(), shape=shape)


# --- hdf5 ---


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise LabError(f'{path}: HDF5 needs the package h5py. Type: pip install -e ".[hdf5]", or use npz.') from error
    return h5py


def _write_hdf5(path: Path, facts: Facts, columns: Columns) -> None:
    with _h5py(path).File(path, "w") as file:
        told = _described(columns, lambda name, array: file.create_dataset(name, data=array))
        file[META] = _closed(facts, told)


def _hdf5_meta(path: Path) -> str:
    with _h5py(path).File(path, "r") as file:
        return str(file[META].asstr()[()])


def _hdf5_column(path: Path, name: str) -> np.ndarray:
    with _h5py(path).File(path, "r") as file:
        column = file[name]
        offset = column.id.get_offset()
        if offset is None:  # packed, or in pieces: not as we write it
            array: np.ndarray = column[()]
            return array
        dtype, shape = column.dtype, column.shape
    return np.memmap(path, dtype, "r", offset=offset, shape=shape)
