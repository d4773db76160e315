"""Where a run lies on disk: `data/{spec_name}_{time}/` with spec.json, info/, graph/, log/, model/, report.html."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from slm_lab import __version__
from slm_lab.lib.errors import DiskError, LabError, did_you_mean
from slm_lab.lib.files import write_atomic
from slm_lab.spec.lab_spec import LabSpec
from slm_lab.spec.validate import resolve

FULL = (errno.ENOSPC, errno.EDQUOT)  # why nothing more can be written
FOLDERS = ("info", "graph", "log", "model")
STAMP = "_YYYY_MM_DD_HHMMSS"  # what follows the spec's name
LOCK_SECONDS = 1.0


class RunDir:
    """The folder of one run and the names of what is in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.trial = path, 0
        self.spec_file = path / "spec.json"
        self.info, self.graph, self.log, self.model = (path / name for name in FOLDERS)

    def of_trial(self, trial: int) -> RunDir:
        """A trial of this search, as a run: with the trial's own spec, checkpoints and logs, in the same folder."""
        run = RunDir(self.path)
        run.trial = trial
        run.spec_file = self.info / f"{self.name}_t{trial}_spec.json"
        run.log, run.model = self.log / f"t{trial}", self.model / f"t{trial}"
        return run

    @staticmethod
    def create(data: Path, name: str, resolved: dict[str, Any], mode: str) -> RunDir:
        """A new folder, with the resolved spec, seeds, versions, git SHA. Raises `LabError` if it can't be written."""
        path = None
        try:
            data.mkdir(parents=True, exist_ok=True)
            path = _new_folder(data, name)
            run = RunDir(path)
            for folder in FOLDERS:
                (path / folder).mkdir()
            content = {**resolved, "run": _provenance(mode, resolved["meta"])}
            write_atomic(run.spec_file, lambda file: file.write_text(json.dumps(content, indent=2)))
        except OSError as error:
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)  # no half of a run
            raise unwritable(data, error) from error
        return run

    @staticmethod
    def find(data: Path, name: str | None, which: str, mode: str | None = None) -> RunDir:
        """The run `which`: 'latest' (of this spec, when named) or a folder. Raises `LabError` naming what there is.

        'latest' of a `mode` takes a run of another mode only where there is none of this.
        """
        if which != "latest":
            return _run_at(data, name, which)
        runs = [run for run in all_runs(data) if name is None or run.path.name[: -len(STAMP)] == name]
        if not runs:
            raise LabError(
                f"there is no run{f' of {name}' if name else ''} under {data}. Start one with mode 'train' or 'dev'."
            )
        if mode is None:
            return runs[0]
        return next((run for run in runs if run.mode() == mode), runs[0])

    @cached_property
    def name(self) -> str:
        """The spec's name, read once: spec.json may be under an editor while the run goes on."""
        return str(RunDir(self.path).read_spec()["name"])

    def mode(self) -> str | None:
        """The mode that the run was started in; None where its spec.json can't be read."""
        try:
            return str(self.read_spec()["run"]["mode"])
        except (LabError, KeyError, TypeError):
            return None

    def read_spec(self) -> dict[str, Any]:
        """The resolved spec and the facts of the run (key "run"). Raises `LabError` when it can't be read."""
        cure = "It is written when a run starts; restore it, or start a new run."
        try:
            content = json.loads(self.spec_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LabError(f"{self.spec_file} can't be read: {error}. {cure}") from error
        sections = {"name", "agent", "env", "meta", "run"}
        if not isinstance(content, dict) or not sections <= content.keys():
            missing = sorted(sections - set(content)) if isinstance(content, dict) else sorted(sections)
            raise LabError(f"{self.spec_file} isn't the resolved spec of a run: it has no {', '.join(missing)}. {cure}")
        return content

    def stored_spec(self, to_train: bool = False) -> LabSpec:
        """The spec that the run was started with; whether there is room for it and its dataset, if it is `to_train`."""
        facts = self.read_spec()
        raw: dict[str, Any] = {key: facts[key] for key in ("agent", "env", "meta", "search") if key in facts}
        return resolve(raw, facts["name"], check_env=to_train, data=self.path)

    def command(self, mode: str) -> str:
        """What to type to go on with this run in a mode, or to `plot` it."""
        words = ["plot", str(self.path)] if mode == "plot" else [f"{mode}@{self.path}"]
        return f"python run_lab.py {shlex.join(words)}"

    def fingerprint(self) -> str:
        """A digest of what must be the same for a checkpoint to be of this run: agent and env, but not how long."""
        facts = self.read_spec()
        env = {key: value for key, value in facts["env"].items() if key != "max_frame"}
        return hashlib.sha256(json.dumps([facts["agent"], env], sort_keys=True).encode()).hexdigest()

    def session_file(self, session: int, what: str) -> Path:
        """Path under info/ in SLM-Lab's naming, e.g. `ppo_t0_s1_session_df_train.csv`."""
        return self.info / f"{self.name}_t{self.trial}_s{session}_{what}"

    @contextmanager
    def lock(self, session: int | None = None, patience: float = LOCK_SECONDS) -> Iterator[None]:
        """Hold the run, or a session of it, for this process alone. Raises `LabError` if another one trains it now.

        `patience`: seconds to wait for the processes of a killed run to die.
        """
        what = f"session {session} of {self.path}" if session is not None else str(self.path)
        try:
            file = (self.model / ("run.lock" if session is None else f"session{session}.lock")).open("a+b", buffering=0)
        except OSError as error:
            raise unwritable(self.path, error) from error
        with file:
            if not _locked(file.fileno(), patience):
                file.seek(0)
                owner = f"process {file.read().decode().strip() or '?'}"
                raise LabError(f"{what} is being trained by {owner}. Wait for it, or stop it first.")
            with suppress(OSError):  # a full disk: the lock holds without the name of its owner
                file.truncate(0)
                file.write(str(os.getpid()).encode())
            yield


def unwritable(path: Path | str, error: OSError) -> DiskError:
    """The error of a folder that can't be written, with what to do about it."""
    cures = {
        **dict.fromkeys(FULL, "Free some space"),
        errno.EEXIST: "A file of that name is in the way: move it",
        errno.ENOTDIR: "A file is in the way where a folder should be: move it",
        errno.ENAMETOOLONG: "Give the spec a shorter name",
    }
    cure = cures.get(error.errno or 0, "Check its permissions")
    if error.errno in (errno.EEXIST, errno.ENOTDIR) and error.filename:
        path = error.filename
    return DiskError(
        f"can't write to {path}: {error.strerror or error}. {cure}, or keep runs elsewhere with --data DIR."
    )


def _locked(descriptor: int, patience: float) -> bool:
    """Whether the file is ours now, or within `patience` seconds."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)


def _run_at(data: Path, name: str | None, which: str) -> RunDir:
    """The run at a path, or of that folder name under `data`. Raises `LabError` where there is none."""
    places = [Path(which).expanduser(), data / which]
    path = next((place for place in places if (place / "spec.json").is_file()), None)
    if path is None:
        near = did_you_mean(which, ["latest", *(str(run.path) for run in all_runs(data))])
        hint = near if near.startswith(" Did") else f" Give a folder under {data}, or 'latest'."
        what = "holds no spec.json" if places[0].is_dir() else "is no folder" if places[0].exists() else "doesn't exist"
        raise LabError(f"{which} isn't a run folder: it {what}.{hint}")
    run = RunDir(path.resolve() if path.name in ("", "..") else path)  # "." has no folder beside it to speak of
    if name is not None and (owner := run.read_spec()["name"]) != name:
        raise LabError(f"{path} is a run of spec '{owner}', not of '{name}'. Leave the spec file out, or name its own.")
    return run


def all_runs(data: Path) -> list[RunDir]:
    """The runs under `data`, newest first."""
    folders = [
        path.parent for path in data.glob("*/spec.json") if re.search(r"_\d{4}(_\d\d){2}_\d{6}$", path.parent.name)
    ]
    return [
        RunDir(path) for path in sorted(folders, key=lambda path: (path.name[-len(STAMP) :], path.name), reverse=True)
    ]


def _new_folder(data: Path, name: str) -> Path:
    """A new `{name}_{time}`; when two runs of a spec begin within a second, the next second's."""
    while True:
        path = data / f"{name}_{time.strftime('%Y_%m_%d_%H%M%S')}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            time.sleep(0.1)


def _provenance(mode: str, meta: dict[str, Any]) -> dict[str, Any]:
    from importlib.metadata import version

    packages = {name: version(name) for name in ("torch", "numpy", "gymnasium", "pydantic")}
    return {
        "mode": mode,
        "created": time.strftime("%Y-%m-%d %H:%M:%S"),
        "git_sha": _git_sha(),
        "seeds": [meta["seed"] + i for i in range(meta["max_session"])],
        "versions": {"slm_lab": __version__, "python": platform.python_version(), **packages},
    }


def _git_sha() -> str | None:
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
