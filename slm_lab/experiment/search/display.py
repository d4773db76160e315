"""What a person sees while a search runs: what is waited for, the running trials, the best so far, the failures."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from slm_lab.experiment.display import LiveView, number, say
from slm_lab.experiment.search.ledger import Ledger, Trial
from slm_lab.lib.log import note
from slm_lab.spec.lab_spec import MetaSpec
from slm_lab.spec.space import Variable, label, labels


class SearchDisplay(LiveView):
    """A live table of the running trials, or plain lines where there is no terminal."""

    def __init__(
        self, title: str, ledger: Ledger, variables: list[Variable], meta: MetaSpec, max_trial: int, console: Console
    ) -> None:
        self.ledger, self.meta, self.max_trial = ledger, meta, max_trial
        self.names = labels(variables)
        self.reports: dict[int, dict[str, Any]] = {}  # of running trials, the last
        self.waiting = ""
        self.printed: dict[int, float] = {}
        super().__init__(title, console, self._view)  # draws at once

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.waiting = ""
        self.reports = {}
        super().__exit__(kind, error, trace)

    def wait_for(self, what: str) -> None:
        """Say what takes so long."""
        self.waiting = what
        note(what)
        if what and not self.live:
            say(self.console, f"{what} ...")

    def workers(self, count: int) -> None:
        """Worker processes are starting."""
        self.wait_for(f"starting {count} worker{'s' if count > 1 else ''}: they import torch and the lab, once")

    def report(self, trial: Trial, result: dict[str, Any]) -> None:
        """Take in how far a trial is."""
        self.waiting = ""
        self.reports[trial.index] = result
        now = time.monotonic()
        if result["status"] == "retry":
            say(self.console, f"trial {trial.index}: failed, and is tried again: {result['reason']}")
        elif self.live or result["status"] != "running":  # its end has a line of its own
            return
        elif now - self.printed.get(trial.index, self.began) >= self.line_pause(now):
            self.printed[trial.index] = now
            say(self.console, f"trial {trial.index}: {', '.join(self._progress(result))}")

    def ended(self, trial: Trial) -> None:
        """A trial has ended: a line that stays."""
        self.reports.pop(trial.index, None)
        done = trial.status == "done"
        what = f"{self.meta.metric} {trial.result(self.meta.metric)}" if done else f"{trial.status}: {trial.reason}"
        tied = self.ledger.tied(self.meta.metric, self.meta.mode)
        crown = ", the best so far" if tied == [trial] else ", as good as the best so far" if trial in tied else ""
        took = f" in {trial.seconds:.1f} s" if math.isfinite(trial.seconds) else ""
        say(self.console, f"trial {trial.index}: {what}{crown}{took}  ({self._point(trial)})")

    def _point(self, trial: Trial) -> str:
        return ", ".join(f"{self.names[path]} {label(value)}" for path, value in trial.used.items())

    def _progress(self, result: dict[str, Any]) -> list[str]:
        """Cells of a row: frames, frames/s, return, eta."""
        fps, left = result["fps"], result["max_frame"] - result["frame"]
        eta = f"eta {max(left, 0) / fps:,.0f} s" if fps > 0 else "eta –"
        frames = f"frame {result['frame']:,} of {result['max_frame']:,}"
        return [frames, f"{number(fps, 0)} frames/s", f"return {number(result['return'])}", eta]

    def _view(self) -> Group:
        table = Table(expand=False)
        for column in ("trial", "progress", "frames", "frames/s", "return", "eta", "variables"):
            table.add_column(column, justify="left" if column in ("progress", "variables") else "right")
        for index, result in sorted(self.reports.items()):
            bar = ProgressBar(total=result["max_frame"], completed=result["frame"], width=16)
            _, *cells = (cell.split(" ", 1) for cell in self._progress(result))
            values = [cells[0][0], cells[1][1], cells[2][1]]
            table.add_row(str(index), bar, f"{result['frame']:,}", *values, self._point(self.ledger.trials[index]))
        lines = [Text(self._summary())]
        if self.waiting:
            lines.append(Text(f"{self.waiting} ... ({time.monotonic() - self.began:.0f} s)"))
        return Group(*([table] if self.reports else []), *lines)

    def _summary(self) -> str:
        counts = {kind: len(self.ledger.with_status(kind)) for kind in ("done", "pruned", "failed", "invalid")}
        facts = [f"{count} {kind}" for kind, count in counts.items() if count or kind == "done"]
        tied = self.ledger.tied(self.meta.metric, self.meta.mode)
        if tied:
            who = f"{len(tied)} trials tie at" if len(tied) > 1 else f"trial {tied[0].index},"
            facts.append(f"best: {who} {self.meta.metric} {tied[0].metrics[self.meta.metric]:.4g}")
        return f"of {self.max_trial} trials " + ", ".join(facts)
