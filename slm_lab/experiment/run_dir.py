"""Where a run lies on disk: `data/{spec_name}_{time}/` with spec.json, info/, graph/, log/, model/, report.html."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slm_lab import __version__
from slm_lab.agent.checkpoint import write_atomic
from slm_lab.lib.errors import LabError

FOLDERS = ("info", "graph", "log", "model")


class RunDir:
    """The folder of one run and the names of what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec_file = path / "spec.json"
        self.info, self.graph, self.log, self.model = (path / name for name in FOLDERS)

    @staticmethod
    def create(data: Path, name: str, resolved: dict[str, Any], mode: str) -> RunDir:
        """A new folder, with the resolved spec, seeds, versions, git SHA. Raises `LabError` if it can't be written."""
        stamp = time.strftime("%Y_%m_%d_%H%M%S")
        try:
            path = _unused(data / f"{name}_{stamp}")
            run = RunDir(path)
            for folder in FOLDERS:
                (path / folder).mkdir(parents=True)
            content = {**resolved, "run": _provenance(mode, resolved["meta"])}
            write_atomic(run.spec_file, lambda file: file.write_text(json.dumps(content, indent=2)))
        except OSError as error:
            raise LabError(
                f"can't write the run folder under {data}: {error.strerror or error}. "
                "Check its permissions and free space."
            ) from error
        return run

    @staticmethod
    def find(data: Path, name: str | None, which: str) -> RunDir:
        """The run `which`: 'latest' (of this spec, when named) or a folder. Raises `LabError` naming what there is."""
        if which != "latest":
            run = RunDir(Path(which))
            if not run.spec_file.is_file():
                raise LabError(
                    f"{which} isn't a run folder: it holds no spec.json. Give a folder under {data}, or 'latest'."
                )
            return run
        runs = sorted(
            path
            for path in data.glob("*/spec.json")
            if name is None or path.parent.name[: -len("_YYYY_MM_DD_HHMMSS")] == name
        )
        if not runs:
            raise LabError(
                f"there is no run{f' of {name}' if name else ''} under {data}. Start one with mode 'train' or 'dev'."
            )
        return RunDir(max(runs, key=lambda path: path.parent.name[-len("YYYY_MM_DD_HHMMSS") :]).parent)

    def read_spec(self) -> dict[str, Any]:
        """The resolved spec and the facts of the run (key "run"). Raises `LabError` when it can't be read."""
        try:
            content = json.loads(self.spec_file.read_text())
            assert {"name", "agent", "env", "meta", "run"} <= content.keys()
        except (OSError, ValueError, AttributeError, AssertionError) as error:
            raise LabError(
                f"{self.spec_file} isn't the resolved spec of a run: {error or 'sections are missing'}"
            ) from error
        return dict(content)

    def session_file(self, session: int, what: str) -> Path:
        """Path under info/ in SLM-Lab's naming, e.g. `ppo_t0_s1_session_df_train.csv`."""
        return self.info / f"{self.read_spec()['name']}_t0_s{session}_{what}"

    @contextmanager
    def lock(self, session: int) -> Iterator[None]:
        """Hold a session of the run for this process alone. Raises `LabError` if another one trains it now."""
        with open(self.model / f"session{session}.lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                owner = f"process {file.read().strip() or '?'}"
                raise LabError(
                    f"session {session} of {self.path} is being trained by {owner}. Stop it first."
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def _unused(path: Path) -> Path:
    """The path, or, when two runs of a spec begin within a second, the next second's."""
    while path.exists():
        time.sleep(0.1)
        path = path.with_name(f"{path.name[: -len('YYYY_MM_DD_HHMMSS')]}{time.strftime('%Y_%m_%d_%H%M%S')}")
    return path


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
