"""Checkpoints: whole or not at all, verified, and never running code."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from bench.checkpoint import measure
from slm_lab.agent import checkpoint
from slm_lab.lib import files
from slm_lab.lib.errors import LabError

STATE: dict[str, Any] = {
    "tensor": torch.arange(5.0),
    "array": np.arange(6, dtype=np.uint16).reshape(2, 3),
    "flags": np.array([True, False]),
    "nested": [{"x": np.float32(0.5)}, (1, None, "text", float("nan"))],
    "rng": np.random.default_rng(0).bit_generator.state,
}
WIDE = np.arange(7 * 60, dtype=np.float32).reshape(7, 60)
LARGE: dict[str, np.ndarray] = {
    "whole": WIDE,
    "bytes": np.arange(2000).astype(np.uint8),
    "flags": WIDE % 3 == 0,
    "halves": WIDE.astype(np.float16).reshape(7, 5, 3, 4),
    "longs": np.arange(-50, 50),
    "every other column": WIDE[:, ::2],
    "every other row": WIDE[::2],
    "backwards": WIDE[::-1],
    "turned": WIDE.T,
    "rows above a chunk": np.arange(3000.0).reshape(1000, 3).T,
    "one number of each row": np.arange(3000.0).reshape(1000, 3)[:, 1],
    "repeated": np.broadcast_to(WIDE[0], (9, 60)),
    "a part": WIDE[2:6],
}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that arrays of a few hundred bytes are large, and end within a chunk."""
    monkeypatch.setattr(checkpoint, "LARGE", 256)
    monkeypatch.setattr(checkpoint, "CHUNK", 1000)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_round_trip_keeps_kinds_and_dtypes(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "s", STATE, frame=7)
    back = checkpoint.load(tmp_path, "s")
    assert back is not None
    assert isinstance(back["array"], np.ndarray)
    assert back["array"].dtype == np.uint16
    np.testing.assert_array_equal(back["array"], STATE["array"])
    assert back["flags"].dtype == bool
    assert torch.equal(back["tensor"], STATE["tensor"])
    assert back["nested"][0] == {"x": 0.5}
    assert back["nested"][1][:3] == (1, None, "text")
    assert back["rng"] == STATE["rng"]


@pytest.mark.usefixtures("small_chunks")
def test_large_arrays_come_back_alike(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "rows", np.int16, "w+", shape=(50, 40))
    mapped[:] = np.arange(2000).reshape(50, 40)
    state = {**LARGE, "mapped": mapped, "nested": [(WIDE, {"small": np.array(2.5), "none": np.zeros((0, 300))})]}
    checkpoint.save(tmp_path, "s", state, frame=7)
    back = checkpoint.load(tmp_path, "s")
    assert back is not None
    for name, array in [*LARGE.items(), ("mapped", mapped)]:
        assert type(back[name]) is np.ndarray, name
        assert back[name].dtype == array.dtype, name
        assert back[name].flags.writeable, name
        np.testing.assert_array_equal(back[name], array, strict=True, err_msg=name)
    (whole, small) = back["nested"][0]
    np.testing.assert_array_equal(whole, WIDE)
    assert (small["small"].shape, small["none"].shape) == ((), (0, 300))
    assert small["small"] == 2.5


@pytest.mark.usefixtures("small_chunks")
def test_large_arrays_lie_beside_with_a_manifest(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "s", {"rows": WIDE[:, ::2], "net": torch.zeros(2)}, frame=7)
    entry = torch.load(tmp_path / "s_a.pt", weights_only=True)["state"]["rows"][checkpoint.ARRAY]
    held = WIDE[:, ::2].tobytes()
    assert entry == {
        "dtype": "<f4",
        "shape": (7, 30),
        "offset": 0,
        "bytes": len(held),
        "sha256": hashlib.sha256(held).hexdigest(),
    }
    assert (tmp_path / "s_a.data").read_bytes() == held
    checkpoint.save(tmp_path, "s", {"net": torch.zeros(2)}, frame=8)
    assert sorted(content(tmp_path)) == ["s.json", "s_b.pt"], "no large array, no file for them"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from Linux's /proc")
def test_a_memory_is_saved_and_loaded_without_a_second_one_beside_it(tmp_path: Path) -> None:
    """200 MB here, in processes of their own; `python -m bench.checkpoint` does it with 2 GB."""
    for cost in measure(tmp_path, gb=0.2):
        assert cost.state > 190e6
        assert cost.share <= 0.1, cost


def test_there_may_be_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path, "s") is None


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    for frame in range(5):
        checkpoint.save(tmp_path, "s", {"frame": frame}, frame)
    assert checkpoint.load(tmp_path, "s") == {"frame": 4}
    assert sorted(content(tmp_path)) == ["s.json", "s_a.pt"]


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "s_best", STATE, frame=1)
    for name in ("s.pt", "s_a.txt", ".s_best_b.data.7.tmp", "s_a.data.old"):
        (tmp_path / name).write_text("mine")
    before = content(tmp_path)
    for frame in range(3):
        checkpoint.save(tmp_path, "s", STATE, frame)
    after = content(tmp_path)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("moment", ["state", "pointer"])
def test_a_kill_while_saving_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    checkpoint.save(tmp_path, "s", {"frame": 1}, 1)
    real = checkpoint.write_atomic

    def killed(path: Path, write: Any) -> None:
        if (path.suffix == ".json") == (moment == "pointer"):
            raise KeyboardInterrupt
        real(path, write)

    monkeypatch.setattr(checkpoint, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, "s", {"frame": 2}, 2)
    assert checkpoint.load(tmp_path, "s") == {"frame": 1}


@pytest.mark.usefixtures("small_chunks")
def test_kill_9_at_any_line_leaves_the_old_one_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda number: None)  # against a power cut, not a kill; and slow
    checkpoint.save(tmp_path, "s", {"frame": 1, "rows": WIDE + 1}, 1)
    line, frames = 1, []
    while saved_until_killed(tmp_path, {"frame": 2, "rows": WIDE + 2}, line):
        back = checkpoint.load(tmp_path, "s")
        assert back is not None
        np.testing.assert_array_equal(back["rows"], WIDE + back["frame"])
        frames.append(back["frame"])
        checkpoint.save(tmp_path, "s", {"frame": 1, "rows": WIDE + 1}, 1)
        assert len(content(tmp_path)) == 3, "the next save removes the litter"
        line += 1
    assert frames == sorted(frames)
    assert set(frames) == {1, 2}


def saved_until_killed(folder: Path, state: dict[str, Any], line: int) -> bool:
    """Save in a process that kills itself at the line-th line of the code that saves; False: it had fewer lines."""
    child = os.fork()
    if not child:
        try:
            sys.settrace(killer(line))
            checkpoint.save(folder, "s", state, 2)
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def killer(line: int) -> Callable[[FrameType, str, Any], Any]:
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in (checkpoint.__file__, files.__file__):
            return None
        count += event == "line"
        if count == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def full(*args: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_after_a_chunk(array: np.ndarray) -> Iterator[memoryview]:
    yield array.data
    full()


SHORT = {
    "small part": (torch, "save", full, "No space left"),
    "arrays": (checkpoint, "_chunks", full_after_a_chunk, "No space left"),
    "foreseen": (shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 1000), "takes 0.0 MB, and 0.0 MB"),
}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("how", SHORT)
def test_a_full_disk_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    checkpoint.save(tmp_path, "s", {"frame": 1, "rows": WIDE}, 1)
    before = content(tmp_path)
    with monkeypatch.context() as patch:
        *place, told = SHORT[how]
        patch.setattr(*place)
        with pytest.raises(LabError, match=f"{told}.*frame 1 is intact"):
            checkpoint.save(tmp_path, "s", {"frame": 2, "rows": WIDE}, 2)
    assert content(tmp_path) == before, "and no litter"
    back = checkpoint.load(tmp_path, "s")
    assert back is not None
    assert back["frame"] == 1


def test_too_little_space_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 3_000_000))
    monkeypatch.setattr(checkpoint, "write_atomic", None)
    state = {"rows": np.zeros(2_000_000, np.uint8), "net": torch.zeros(500_000)}
    with pytest.raises(LabError, match=r"takes 4\.0 MB, and 3\.0 MB are free\. There is no earlier one\. Free some"):
        checkpoint.save(tmp_path, "s", state, 2)


def test_damage_is_noticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "s", STATE, 1)
    file = next(tmp_path.glob("*.pt"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(LabError, match="is damaged"):
        checkpoint.load(tmp_path, "s")
    file.write_bytes(content[:100])
    with pytest.raises(LabError, match="is damaged"):
        checkpoint.load(tmp_path, "s")
    file.unlink()
    with pytest.raises(LabError, match="is missing"):
        checkpoint.load(tmp_path, "s")


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("moment", ["_check_file", "_mapped"])
def test_a_save_while_it_is_read_gives_the_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    checkpoint.save(tmp_path, "s", {"frame": 1, "rows": WIDE}, 1)
    real, frames = getattr(checkpoint, moment), [2]

    def meanwhile(*args: Any) -> Any:
        if frames:
            checkpoint.save(tmp_path, "s", {"frame": frames.pop(), "rows": WIDE}, 2)
        return real(*args)

    monkeypatch.setattr(checkpoint, moment, meanwhile)
    back = checkpoint.load(tmp_path, "s")
    assert back is not None
    assert back["frame"] == 2


def test_litter_of_a_kill_makes_room_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    litter = [tmp_path / name for name in ("s_b.data", "s_b.pt", ".s_b.data.7.tmp", ".s.json.7.tmp")]
    for file in litter:
        file.write_text("half")

    def room(path: Path) -> Any:
        return shutil._ntuple_diskusage(9, 9, 0 if any(file.exists() for file in litter) else 1000)

    monkeypatch.setattr(shutil, "disk_usage", room)
    checkpoint.save(tmp_path, "s", {"net": torch.zeros(2)}, 1)
    assert sorted(content(tmp_path)) == ["s.json", "s_a.pt"]


def flip(file: Path, where: int) -> None:
    data = bytearray(file.read_bytes())
    data[where] ^= 1
    file.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "first bit": (lambda file, other: flip(file, 0), "is damaged"),
    "a bit of the middle": (lambda file, other: flip(file, 1700), "is damaged"),
    "last bit": (lambda file, other: flip(file, -1), "is damaged"),
    "cut": (lambda file, other: os.truncate(file, 2000), "is damaged"),
    "longer": (lambda file, other: os.truncate(file, 5000), "is damaged"),
    "empty": (lambda file, other: os.truncate(file, 0), "is damaged"),
    "missing": (lambda file, other: file.unlink(), "is missing"),
    "another's": (lambda file, other: shutil.copy(other, file), "is damaged"),
}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("how", DAMAGE)
def test_damage_of_the_large_arrays_is_noticed(tmp_path: Path, how: str) -> None:
    spoil, told = DAMAGE[how]
    checkpoint.save(tmp_path, "s", {"rows": WIDE, "view": WIDE.T}, 1)
    checkpoint.save(tmp_path, "other", {"rows": WIDE, "view": WIDE.T + 1}, 1)
    file = tmp_path / "s_a.data"
    spoil(file, tmp_path / "other_a.data")
    with pytest.raises(LabError, match=f"{file} {told}"):
        checkpoint.load(tmp_path, "s")


FACTS = {"format": checkpoint.FORMAT, "file": "x", "sha256": "", "files": {"x": 1}, "frame": 1}
FOREIGN = ["{", "[]", "{}", "7", *(json.dumps(FACTS | wrong) for wrong in ({"files": ["x"]}, {"files": {}}))]
FOREIGN += [json.dumps({"format": name, "file": "x"}) for name in ("other", checkpoint.FORMAT)]


@pytest.mark.parametrize("pointer", FOREIGN)
def test_a_foreign_pointer_is_refused(tmp_path: Path, pointer: str) -> None:
    (tmp_path / "s.json").write_text(pointer)
    with pytest.raises(LabError, match="isn't a checkpoint of this lab"):
        checkpoint.load(tmp_path, "s")


def test_the_format_before_is_refused_and_kept(tmp_path: Path) -> None:
    facts = {"format": "slm_lab checkpoint 1", "file": "s_a.pt", "bytes": 4, "sha256": "", "frame": 9}
    (tmp_path / "s.json").write_text(json.dumps(facts))
    (tmp_path / "s_a.pt").write_text("mine")
    before = content(tmp_path)
    told = "checkpoint 2.*its format is 'slm_lab checkpoint 1'.*version of the lab that wrote it"
    with pytest.raises(LabError, match=told):
        checkpoint.load(tmp_path, "s")
    with pytest.raises(LabError, match=told):
        checkpoint.save(tmp_path, "s", STATE, 10)
    assert content(tmp_path) == before
