"""Pictures of plotly figures, drawn in a child process that is bounded in time.

The drawing engine (kaleido 0.2.1, which needs no browser) has been seen to hang. So it never runs inside a run of the
lab: one child draws all pictures of a call, and when its time is over it is killed with everything it started. It ends
by itself when whoever waits for it is killed.

The child: `python -m slm_lab.experiment.png MANIFEST`, where MANIFEST is a JSON list of [figure JSON file, PNG file].
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

logger = logging.getLogger("slm_lab")

SCALE = 2  # pixels per figure unit: crisp in print and on dense screens
CHILD = (sys.executable, "-m", "slm_lab.experiment.png")


def write_pngs(figures: Mapping[Path, str], timeout: float = 120.0, child: Sequence[str] = CHILD) -> list[Path]:
    """Draw {PNG path: figure JSON} in one child process, within `timeout` seconds for all; the paths that were written.

    Never raises for a picture: a warning names those that are missing. An older picture of the same name is removed
    first, so that what lies there is never stale.
    """
    if not figures:
        return []
    try:
        for path in figures:
            path.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix="slm_lab_png_") as folder:
            reason = _draw_in_child(figures, Path(folder), timeout, child)
    except OSError as error:  # a full disk, no more processes
        reason = str(error)
    missing = [path.name for path in figures if not path.exists()]
    if missing:
        logger.warning("PNG not drawn (%s), its .html is there: %s", reason or "unknown", ", ".join(missing))
    return [path for path in figures if path.exists()]


def _draw_in_child(figures: Mapping[Path, str], folder: Path, timeout: float, child: Sequence[str]) -> str:
    manifest = []
    for index, (path, figure) in enumerate(figures.items()):
        source = folder / f"{index}.json"
        source.write_text(figure, encoding="utf-8")
        manifest.append([str(source), str(path.resolve())])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with (folder / "stderr").open("w+") as stderr:
        return _run_bounded([*child, str(folder / "manifest.json")], timeout, stderr)


def _run_bounded(command: Sequence[str], timeout: float, stderr: IO[str]) -> str:
    """Run a command in a process group of its own and leave nothing of the group alive; why it failed, or ''."""
    # a file takes stderr, not a pipe: a grandchild that lives on would hold a pipe open and us with it
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=os.environ | {"PYTHONPATH": _python_path()},
        start_new_session=True,
    )
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        return f"over its time of {timeout:g} s"
    finally:
        with suppress(ProcessLookupError):  # all of the group has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    stderr.seek(0)
    lines = stderr.read().strip().splitlines()
    return lines[-1] if lines else ""


def _python_path() -> str:
    """The child must find this very package, installed or not, wherever the run was started."""
    here = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))


def end_with_parent() -> None:
    """For a child that leads a group: it ends, and the engine with it, once nobody is left who waits for it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def draw(manifest: Path) -> None:
    """What the child does: draw each figure of the manifest. One that fails is told on stderr, the others are drawn."""
    import plotly.io as pio  # only the child pays for it

    warnings.simplefilter("ignore", DeprecationWarning)  # plotly tells of kaleido < 1, which is what we want
    for source, target in json.loads(manifest.read_text()):
        try:
            figure = pio.from_json(Path(source).read_text(encoding="utf-8"), skip_invalid=True)
            part = Path(f"{target}.part")
            part.write_bytes(pio.to_image(figure, format="png", scale=SCALE))
            part.replace(target)
        except Exception as error:  # whatever the engine raises, the next picture may be fine
            print(f"{Path(target).name}: {error!r}".replace("\n", " ")[:500], file=sys.stderr)


if __name__ == "__main__":
    end_with_parent()
    draw(Path(sys.argv[1]))
