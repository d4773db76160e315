"""Checkpoints: whole or not at all, verified, and never running code."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slm_lab.agent import checkpoint
from slm_lab.lib.errors import LabError

STATE: dict[str, Any] = {
    "tensor": torch.arange(5.0),
    "array": np.arange(6, dtype=np.uint16).reshape(2, 3),
    "flags": np.array([True, False]),
    "nested": [{"x": np.float32(0.5)}, (1, None, "text", float("nan"))],
    "rng": np.random.default_rng(0).bit_generator.state,
}


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


def test_there_may_be_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path, "s") is None


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    for frame in range(5):
        checkpoint.save(tmp_path, "s", {"frame": frame}, frame)
    assert checkpoint.load(tmp_path, "s") == {"frame": 4}
    assert len(list(tmp_path.glob("*.pt"))) == 1
    assert not list(tmp_path.glob(".*"))


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


def test_a_full_disk_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, "s", {"frame": 1}, 1)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(LabError, match=r"No space left.*frame 1 is intact"):
        checkpoint.save(tmp_path, "s", {"frame": 2}, 2)
    assert checkpoint.load(tmp_path, "s") == {"frame": 1}


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


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"format": "other", "file": "x"})])
def test_a_foreign_pointer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(LabError, match="isn't a checkpoint of this lab"):
        checkpoint.load(tmp_path, "s")
