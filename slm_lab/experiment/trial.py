"""A trial: the same spec under several seeds, in processes of their own."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slm_lab.env.base import EnvError
from slm_lab.experiment.run_dir import FULL, RunDir, unwritable
from slm_lab.experiment.session import TWICE, Progress, Report, Session
from slm_lab.lib.errors import LabError
from slm_lab.lib.files import write_atomic
from slm_lab.lib.log import log_to, note, without_session
from slm_lab.spec.validate import resolve

if TYPE_CHECKING:
    from slm_lab.spec.lab_spec import LabSpec

logger = logging.getLogger("slm_lab")


def run_sessions(spec: LabSpec, run: RunDir, report: Report) -> list[Progress]:
    """All sessions of a spec, as many at a time as the cores hold; the last word of each.

    A session that raises or dies is reported as failed with its traceback, and the others finish. Ctrl-C or SIGTERM
    stops them all after the step at hand; a second Ctrl-C kills them, and raises KeyboardInterrupt.
    """
    write_failures(run, [])  # of an attempt before
    last = _Pool(spec, run, report, spec.at_once).run()
    write_failures(run, last)
    return last


def run_alone(spec: LabSpec, run: RunDir, report: Report, check: bool = False) -> tuple[Progress, list[str]]:
    """Session 0 in this process: its last word and, in dev mode, what its check found."""
    write_failures(run, [])  # of an attempt before
    played = 0

    def heard(progress: Progress) -> None:
        nonlocal played
        played = progress.frame
        report(progress)

    try:
        with run.lock(0):
            session = Session(spec, run, 0, heard, check)
            last = session.run()
        found = session.check_report() if check else []
    except Exception as error:
        last, found = replace(_failure(run, 0, spec.env.max_frame, error), frame=played), []
        report(last)
    write_failures(run, [last])
    return last, found


def write_failures(run: RunDir, last: list[Progress]) -> None:
    """`info/failures.json`, for the report; none where no session failed."""
    failures = [{"session": p.session, "error": p.trace or p.message} for p in last if p.status == "failed"]
    file = run.info / "failures.json"
    try:
        if failures:
            write_atomic(file, lambda path: path.write_text(json.dumps(failures, indent=1)))
        else:
            file.unlink(missing_ok=True)
    except OSError as error:  # full: the failure itself is told anyway
        note(f"can't write {file}: {error.strerror or error}")


def _failure(run: RunDir, index: int, max_frame: int, error: BaseException) -> Progress:
    """The last word of a session that raised; the traceback goes to the log as well."""
    logger.error("session %d failed: %s", index, error, exc_info=error)
    if isinstance(error, OSError) and error.errno in FULL:
        error = unwritable(run.path, error)
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, EnvError):  # the message says what, the traceback where in the user's own code
        return Progress(index, 0, max_frame, status="failed", message=str(error), trace=trace)
    if lacks_memory(error):
        asked = str(error).rpartition("DefaultCPUAllocator: ")[2]
        message = f"no memory is left: {asked}. Make agent.net, agent.memory or the batch smaller."
        return Progress(index, 0, max_frame, status="failed", message=message, trace=trace)
    message = str(error) if isinstance(error, LabError) else trace
    return Progress(index, 0, max_frame, status="failed", message=message)


def lacks_memory(error: BaseException) -> bool:
    """Whether an allocation failed: of Python or numpy, of a GPU, or of torch's CPU allocator, which has no class."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class _Pool:
    """Session processes and the pipes they report through."""

    def __init__(self, spec: LabSpec, run: RunDir, report: Report, workers: int) -> None:
        self.spec, self.run_dir, self.report, self.workers = spec, run, report, workers
        self.waiting = list(range(spec.meta.max_session))
        self.last = [Progress(i, 0, spec.env.max_frame, status="waiting") for i in self.waiting]
        self.running: dict[Connection, tuple[int, Any]] = {}
        self.stopping: float | None = None  # since when
        self.told: set[str] = set()
        # forkserver: torch is imported once, in a clean process without threads, and each session is forked from that
        self.context = multiprocessing.get_context("forkserver")
        beside = ["torch.utils.tensorboard"] if spec.meta.tensorboard else []
        self.context.set_forkserver_preload([__name__, *beside])

    def run(self) -> list[Progress]:
        with self._stop_on_signal():
            try:
                while self.running or (self.waiting and not self.stopping):
                    while self.waiting and len(self.running) < self.workers and not self.stopping:
                        self._start(self.waiting.pop(0))
                    for pipe in wait(list(self.running), timeout=0.25):
                        assert isinstance(pipe, Connection)
                        self._hear(pipe)
                    if self.stopping:  # again and again: a session that has just begun may not have listened yet
                        self._tell_to_stop()
            except KeyboardInterrupt:
                for _, process in self.running.values():
                    process.kill()
                raise
        return self.last

    def _start(self, index: int) -> None:
        here, there = self.context.Pipe(duplex=False)
        process = self.context.Process(
            target=_session_process, args=(self.spec.dump(), self.spec.name, self.run_dir.path, index, there)
        )
        try:
            process.start()
        except (OSError, EOFError) as error:
            self._note(replace(self.last[index], status="failed", message=f"its process can't be started: {error!r}"))
        else:
            self.running[here] = (index, process)
        there.close()

    def _hear(self, pipe: Connection) -> None:
        index, process = self.running[pipe]
        try:
            heard: Progress | str = pipe.recv()
        except (EOFError, OSError):  # the process is gone
            process.join()
            del self.running[pipe]
            if self.last[index].status in ("waiting", "running", "stopping"):
                self._note(self._gone(index, process.exitcode))
            return
        if isinstance(heard, str):
            self._warn(heard)
        else:  # one that broke off doesn't say how far it was
            self._note(replace(heard, frame=heard.frame or self.last[index].frame))

    def _gone(self, index: int, code: int | None) -> Progress:
        """The last word of a process that went without one."""
        if self.stopping:
            return replace(self.last[index], status="stopped")
        how = f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        message = f"its process was {how}{hint}; what it had saved is kept"
        logger.error("session %d: %s", index, message)
        return replace(self.last[index], status="failed", message=message)

    def _note(self, progress: Progress) -> None:
        if self.stopping and progress.status == "running":
            progress = replace(progress, status="stopping")
        self.last[progress.session] = progress
        self.report(progress)

    def _warn(self, text: str) -> None:
        """A session's warning, told once for all of them."""
        if without_session(text) not in self.told:
            self.told.add(without_session(text))
            logger.warning("%s", text)

    def _tell_to_stop(self) -> None:
        for index, process in self.running.values():
            process.terminate()  # passes over one that has just ended by itself, where os.kill would raise
            if self.last[index].status in ("waiting", "running"):
                self._note(replace(self.last[index], status="stopping"))

    @contextmanager
    def _stop_on_signal(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM are passed on to the sessions. The fork server is deaf to both: it ends with this process,
        and must not die of a Ctrl-C that the terminal sends to all while it still imports torch.
        """

        def ask(number: int, frame: object) -> None:
            if self.stopping and number == signal.SIGINT and time.monotonic() - self.stopping > TWICE:
                raise KeyboardInterrupt
            self.stopping = self.stopping or time.monotonic()

        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
        try:
            forkserver.ensure_running()
            for number in numbers:
                signal.signal(number, ask)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _session_process(dumped: dict[str, Any], name: str, run_path: Path, index: int, pipe: Connection) -> None:
    """Body of a session's process."""
    _die_with_parent()
    ended = False

    def report(progress: Progress) -> None:
        nonlocal ended
        ended = ended or progress.status not in ("waiting", "running")
        pipe.send(progress)

    def leave(number: int, frame: object) -> None:  # before the session listens itself there is nothing to save
        if not ended:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trial passes Ctrl-C on as SIGTERM
    signal.signal(signal.SIGTERM, leave)
    run, max_frame = RunDir(run_path), dumped["env"]["max_frame"]
    with log_to(run.log / f"session{index}.log", tell=pipe.send, capture=True):
        try:
            with run.lock(index):
                Session(resolve(dumped, name, check_env=False), run, index, report).run()
        except KeyboardInterrupt:
            if not ended:
                report(Progress(index, 0, max_frame, status="stopped"))
        except BaseException as error:
            report(_failure(run, index, max_frame, error))


def _die_with_parent() -> None:
    """A session must not outlive a killed trial: it would write into a run that is being resumed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
