"""A trial of a search as a piece of work: its sessions one after another, a slice of time at once. No Ray in it."""

from __future__ import annotations

import math
import time
import traceback
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from slm_lab.experiment.analysis import analyze_session, analyze_trial
from slm_lab.experiment.evaluate import random_return
from slm_lab.experiment.metrics import session_metrics
from slm_lab.experiment.run_dir import FULL, RunDir, unwritable
from slm_lab.experiment.session import Progress, Session
from slm_lab.lib.errors import DiskError
from slm_lab.lib.log import log_to
from slm_lab.spec.lab_spec import LabSpec

PATIENCE = 60.0  # seconds for the workers of a killed search to die
Report = dict[str, Any]


class Work:
    """Runs one trial. Each `advance` says how far it is; a failure is a report too, and never raises."""

    def __init__(self, run: RunDir, spec: LabSpec, metric: str, retries: int = 0) -> None:
        self.run, self.spec, self.metric, self.retries = run, spec, metric, retries
        self.baseline: float | None = None
        self.index = 0  # of the session at hand
        self.session: Session | None = None
        self.held = ExitStack()  # its lock and its log
        self.seconds = 0.0  # spent so far, by the attempt at hand
        self.stride = 0  # frames of a step, at most

    def advance(self, seconds: float) -> Report:
        """Play on for so long. `status` is running, done, failed, retry where it failed and is tried again, or full
        where the disk is: then it isn't the trial that has failed.
        """
        began = time.monotonic()
        try:
            report = self._advance(seconds)
        except Exception as error:
            self._drop()
            if isinstance(error, OSError) and error.errno in FULL:
                error = unwritable(self.run.path, error)
            status = "full" if isinstance(error, DiskError) else "retry" if self.retries > 0 else "failed"
            self.retries -= status == "retry"
            report = {"status": status, "reason": _reason(error), "trace": traceback.format_exc()}
        self.seconds += time.monotonic() - began
        frames = self.spec.env.max_frame * self.spec.meta.max_session
        shown = {"frame": 0, "fps": math.nan, "return": math.nan, "value": math.nan, "session": self.index}
        told = {**shown, "max_frame": frames, "seconds": self.seconds, "stride": self.stride, **report}
        if report["status"] == "retry":
            self.seconds = 0.0
        return told

    def close(self) -> None:
        """Save the session at hand, if it can be: whoever goes on with the trial begins there."""
        if self.session is not None:
            try:
                self.session.finish()
            except Exception:  # its last checkpoint stands
                traceback.print_exc()
        self._drop()

    def _advance(self, seconds: float) -> Report:
        if self.session is None:
            self._begin()
        assert self.session is not None
        if self.session.play_for(seconds, self._next_rung(self.session.frame)):
            return self._running(self.session.progress())
        last, self.session = self.session.finish(), None
        self._drop()
        self._write_metrics()
        if self.index + 1 < self.spec.meta.max_session:
            self.index += 1
            return self._running(last, before=self.index)
        scalar = analyze_trial(self.run.path, self.run.trial)["scalar"]
        metrics = {name: value for name, value in scalar.items() if math.isfinite(value)}
        frames = self.spec.env.max_frame * self.spec.meta.max_session
        return {"status": "done", "frame": frames, "metrics": metrics, "value": metrics.get(self.metric, math.nan)}

    def _begin(self) -> None:
        for folder in (self.run.model, self.run.log):
            folder.mkdir(parents=True, exist_ok=True)
        self.held.enter_context(self.run.lock(self.index, PATIENCE))
        self.held.enter_context(log_to(self.run.log / f"session{self.index}.log", capture=True))
        if self.baseline is None:
            self.baseline = random_return(self.spec, self.run.path.parent)
        self.session = Session(self.spec, self.run, self.index, lambda progress: None)
        self.session.begin()
        self.stride = self.session.env.num_envs

    def _drop(self) -> None:
        """Let go of the session. What one that broke off has left open is closed: a warm worker goes on to others."""
        for part in (self.session.env, self.session.board) if self.session else ():
            with suppress(Exception):  # why it broke off is told already
                if part is not None:
                    part.close()
        self.session = None
        self.held.close()

    def _running(self, progress: Progress, before: int | None = None) -> Report:
        """`before`: sessions that have ended."""
        done = (self.index if before is None else before) * self.spec.env.max_frame
        frame = done + (progress.frame if before is None else 0)
        shown = {"frame": frame, "fps": progress.fps, "return": progress.total_reward_ma, "session": self.index}
        return {"status": "running", **shown, "value": self._value_so_far()}

    def _next_rung(self, frame: int) -> float:
        """Where a scheduler looks next: it compares what trials report, so each has to report there, fast or slow."""
        rungs = self.spec.meta.search_scheduler
        if rungs is None:
            return math.inf
        rung: float = min(rungs.grace_period, self.spec.env.max_frame)
        while rung <= frame:
            rung *= rungs.reduction_factor
        return rung

    def _value_so_far(self) -> float:
        """The metric of the session at hand, for a scheduler."""
        if self.session is None or self.spec.meta.search_scheduler is None:
            return math.nan
        scalar = session_metrics(pd.DataFrame(self.session.tracker.rows), self.baseline)["scalar"]
        return float(scalar.get(self.metric, math.nan))

    def _write_metrics(self) -> None:
        analyze_session(self.run.path, self.run.trial, self.index, self.baseline)


def make_work(run_path: str, trial: int, metric: str, retries: int) -> Work:
    """The work of a trial whose spec is in its file."""
    run = RunDir(Path(run_path)).of_trial(trial)
    return Work(run, run.stored_spec(), metric, retries)


def _reason(error: Exception) -> str:
    """One line that says what went wrong."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
