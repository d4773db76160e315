"""A trial: the same spec under several seeds, in processes of their own."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
import traceback
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm_lab.agent.checkpoint import write_atomic
from slm_lab.experiment.run_dir import RunDir
from slm_lab.experiment.session import Progress, Report, Session
from slm_lab.lib.errors import LabError

if TYPE_CHECKING:
    from slm_lab.spec.lab_spec import LabSpec

logger = logging.getLogger("slm_lab")


def run_sessions(spec: LabSpec, run: RunDir, report: Report, workers: int | None = None) -> list[Progress]:
    """All sessions of a spec, at most `workers` (default: the cores) at a time; the last word of each.

    A session that raises or dies is reported as failed with its traceback, and the others finish. Ctrl-C stops them
    all after the step at hand.
    """
    pool = _Pool(spec, run, report, workers or len(os.sched_getaffinity(0)))
    last = pool.run()
    failures = [{"session": p.session, "error": p.message} for p in last if p.status == "failed"]
    file = run.info / "failures.json"
    if failures:
        write_atomic(file, lambda path: path.write_text(json.dumps(failures, indent=1)))
    else:
        file.unlink(missing_ok=True)
    return last


def run_here(spec: LabSpec, run: RunDir, index: int, report: Report, check: bool = False) -> tuple[Progress, Session]:
    """One session in this process."""
    with run.lock(index):
        session = Session(spec, run, index, report, check)
        return session.run(), session


class _Pool:
    """Session processes and the pipes they report through."""

    def __init__(self, spec: LabSpec, run: RunDir, report: Report, workers: int) -> None:
        self.spec, self.run_dir, self.report, self.workers = spec, run, report, workers
        self.waiting = list(range(spec.meta.max_session))
        self.last = [Progress(i, 0, spec.env.max_frame, status="waiting") for i in self.waiting]
        self.running: dict[Connection, tuple[int, Any]] = {}
        self.stopping = False
        # forkserver: torch is imported once, in a clean process without threads, and each session is forked from that
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["slm_lab.experiment.session"])

    def run(self) -> list[Progress]:
        before = signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            while self.running or (self.waiting and not self.stopping):
                while self.waiting and len(self.running) < self.workers and not self.stopping:
                    self._start(self.waiting.pop(0))
                for pipe in wait(list(self.running), timeout=1.0):
                    assert isinstance(pipe, Connection)
                    self._hear(pipe)
        finally:
            signal.signal(signal.SIGINT, before)
        return self.last

    def _start(self, index: int) -> None:
        here, there = self.context.Pipe(duplex=False)
        process = self.context.Process(
            target=_session_process, args=(self.spec.dump(), self.spec.name, self.run_dir.path, index, there)
        )
        process.start()
        there.close()
        self.running[here] = (index, process)

    def _hear(self, pipe: Connection) -> None:
        index, process = self.running[pipe]
        try:
            progress = pipe.recv()
        except (EOFError, OSError):  # the process is gone
            process.join()
            del self.running[pipe]
            if self.last[index].status in ("waiting", "running"):
                code = process.exitcode
                how = f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
                progress = Progress(
                    index,
                    self.last[index].frame,
                    self.spec.env.max_frame,
                    status="failed",
                    message=f"the process was {how}",
                )
            else:
                return
        self.last[index] = progress
        self.report(progress)

    def _on_interrupt(self, number: int, frame: object) -> None:
        """Ctrl-C reaches the sessions too (same process group, or passed on here): wait for them to save."""
        self.stopping = True
        for _, process in self.running.values():
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM)


def _session_process(dumped: dict[str, Any], name: str, run_path: Path, index: int, pipe: Connection) -> None:
    """Body of a session's process."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trial passes Ctrl-C on as SIGTERM, once
    from slm_lab.spec.validate import resolve

    def report(progress: Progress) -> None:
        pipe.send(progress)

    max_frame = dumped["env"]["max_frame"]
    try:
        run_here(resolve(dumped, name, check_env=False), RunDir(run_path), index, report)
    except LabError as error:
        report(Progress(index, 0, max_frame, status="failed", message=str(error)))
    except BaseException:
        report(Progress(index, 0, max_frame, status="failed", message=traceback.format_exc()))


def _die_with_parent() -> None:
    """A session must not outlive a killed trial: it would write into a run that is being resumed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
