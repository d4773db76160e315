"""Files of experience: what was written comes back, and what isn't whole is refused in one line."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from slm_lab.env.base import Stack, World
from slm_lab.env.dataset import Dataset, write_dataset
from slm_lab.lib.columns import write_columns
from slm_lab.lib.errors import LabError

FORMATS = ("npz", "hdf5")
OBS: dict[str, spaces.Space] = {
    "low.high": spaces.Box(np.array([-np.inf, -1.5, 0], np.float32), np.array([np.inf, 0.1, 4.8], np.float32)),
    "image": spaces.Box(0, 255, (2, 3, 1), np.uint8),
    "number": spaces.Box(-1, 1, (), np.float64),
    "start": spaces.Discrete(4, start=-2),
    "many": spaces.MultiDiscrete([3, 2]),
    "bits": spaces.MultiBinary(3),
}
ACTIONS: list[spaces.Space] = [spaces.Discrete(3), spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 3])]
T, E = 5, 2


def columns(action: spaces.Space) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {f"obs.{key}": rng.integers(0, 2, (T + 1, E, *(s.shape or ()))).astype(s.dtype) for key, s in OBS.items()}
    made["is_first"] = rng.random((T + 1, E)) < 0.3
    made["action"] = rng.integers(0, 2, (T, E, *(action.shape or ()))).astype(action.dtype)
    made["reward"] = rng.random((T, E), np.float32)
    return made | {name: rng.random((T, E)) < 0.2 for name in ("terminated", "truncated")}


def write(path: Path, action: spaces.Space = ACTIONS[0], rows: int = T, played: int = 3) -> Path:
    facts: dict[str, Any] = {"rows": rows, "played": played, "lead": 0, "action_dtype": np.dtype(action.dtype).str}
    facts |= {"env": {"name": "X"}, "wrappers": {"normalize_obs": {"obs": {"mean": np.array([0.1, 1e-9])}}}}
    world = World(E, OBS, action, {"image": Stack(3, -1)}, agents=("a", "b"))
    write_dataset(path, world, facts, columns(action).items())
    return path


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("action", ACTIONS, ids=str)
def test_what_was_written_comes_back(tmp_path: Path, kind: str, action: spaces.Space) -> None:
    data = Dataset(write(tmp_path / f"a.{kind}", action))
    data.file.verify()
    assert data.world == World(E, OBS, action, {"image": Stack(3, -1)}, agents=("a", "b"))
    assert (data.rows, data.played, data.lead, data.env) == (T, 3, 0, {"name": "X"})
    assert data.wrappers["normalize_obs"]["obs"]["mean"] == [0.1, 1e-9]
    found, given = data.columns(), columns(action)
    assert list(found) == list(given)
    for name, column in given.items():
        assert found[name].dtype == column.dtype
        assert found[name].tobytes() == column.tobytes()
        assert isinstance(found[name], np.memmap), "columns are read where they lie, not held"


def test_numpy_alone_reads_an_npz(tmp_path: Path) -> None:
    with np.load(write(tmp_path / "a.npz"), allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["reward"], columns(ACTIONS[0])["reward"])
        assert json.loads(archive["meta"].item())["env"] == {"name": "X"}


def test_a_packed_npz_is_read_too(tmp_path: Path) -> None:
    with np.load(write(tmp_path / "a.npz")) as archive:
        np.savez_compressed(tmp_path / "b.npz", **archive)
    Dataset(tmp_path / "b.npz").file.verify()


def flip(path: Path, at: bytes) -> None:
    """Change one byte of a file, in the first place where `at` stands."""
    content = bytearray(path.read_bytes())
    content[content.index(at) + len(at) // 2] ^= 1
    path.write_bytes(content)


def refused(path: Path, *words: str) -> None:
    with pytest.raises(LabError) as error:
        Dataset(path).file.verify()
    assert "\n" not in str(error.value)
    for word in (path.name, *words):
        assert word in str(error.value)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    refused(path, "isn't there")
    whole = write(path).read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:size])
        refused(path, "cut short")
    path.write_text("reward,action\n1,0\n")
    refused(path, "cut short, or isn't a file of this lab's")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["reward", "obs.image", "is_first"])
def test_a_changed_column_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    path = write(tmp_path / f"a.{kind}")
    flip(path, columns(ACTIONS[0])[name].tobytes())
    refused(path, "damaged", repr(name))


def test_changed_facts_are_refused(tmp_path: Path) -> None:
    with np.load(write(tmp_path / "a.npz")) as archive:
        held = dict(archive)
    held["meta"] = np.array(held["meta"].item().replace('"played": 3', '"played": 4'))
    np.savez(tmp_path / "a.npz", **held)
    refused(tmp_path / "a.npz", "its facts")


def test_another_format_and_another_suffix_are_refused(tmp_path: Path) -> None:
    write_columns(tmp_path / "a.npz", {"format": "slm_lab experience 9"}, [])
    refused(tmp_path / "a.npz", "slm_lab experience 9")
    refused(tmp_path / "a.csv", ".npz, .hdf5")


def test_a_file_of_nothing_is_refused(tmp_path: Path) -> None:
    refused(write(tmp_path / "a.npz", played=0), "no step that was played")
    refused(write(tmp_path / "a.npz", rows=T + 1), "'obs.low.high'", f"[{T + 2}, {E}]")


def test_a_missing_h5py_is_told_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(path, 'pip install -e ".[hdf5]"')


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz")
    before = path.read_bytes()

    def broken() -> Any:
        yield "reward", np.ones(3)
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_columns(path, {}, broken())
    assert path.read_bytes() == before
    assert zipfile.is_zipfile(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
