"""What a person sees while sessions run: a live table, or plain lines where there is no terminal."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from slm_lab.experiment.session import Progress
from slm_lab.lib.log import note
from slm_lab.spec.lab_spec import MetaSpec

LINE_SECONDS = 5.0  # between plain lines of a session at first; a long run is told less often
MAX_LINE_SECONDS = 60.0


def say(console: Console, text: str) -> None:
    """A line as it is: no colours in numbers, no markup, a path in one piece."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def agent_line(agent: Mapping[str, Any]) -> str:
    """The parts of an agent that differ most from run to run, of its spec as a mapping."""
    core = agent["net"]["core"]["name"]
    parts = (agent["algorithm"]["name"], agent["memory"]["name"], *(() if core == "none" else (f"core {core}",)))
    return ", ".join(parts)


class LiveView:
    """Says a title; then, on a terminal, shows what `view` draws, and elsewhere leaves it to plain lines."""

    def __init__(self, title: str, console: Console, view: Callable[[], RenderableType]) -> None:
        self.title, self.console = title, console
        self.began = time.monotonic()
        live = console.is_terminal and not console.is_dumb_terminal
        self.live = Live(console=console, refresh_per_second=4, get_renderable=view) if live else None

    def __enter__(self) -> Self:
        say(self.console, self.title)
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()  # after a last look

    def line_pause(self, now: float) -> float:
        """Seconds between plain lines of one session or trial."""
        return min(max(LINE_SECONDS, (now - self.began) / 10), MAX_LINE_SECONDS)


class Display(LiveView):
    """Shows the progress of sessions; give `update` to them as their report."""

    def __init__(self, title: str, meta: MetaSpec, max_frame: int, console: Console | None = None) -> None:
        self.meta = meta
        self.rows = [Progress(i, 0, max_frame, status="waiting") for i in range(meta.max_session)]
        super().__init__(title, console or Console(), self._table)
        self.printed = [-math.inf] * meta.max_session
        self.logged = [-math.inf] * meta.max_session

    def update(self, progress: Progress) -> None:
        """Take in a session's report."""
        i, now = progress.session, time.monotonic()
        news = progress.status != self.rows[i].status and progress.status != "running"
        self.rows[i] = progress
        if news or now - self.logged[i] >= MAX_LINE_SECONDS:
            self.logged[i] = now
            note(self._line(progress))
        if not self.live and (news or now - self.printed[i] >= self.line_pause(now)):
            self.printed[i] = now
            say(self.console, self._line(progress))

    def _line(self, p: Progress) -> str:
        share = min(p.frame / p.max_frame, 1.0)
        facts = [f"session {p.session}: {p.status}", f"frame {p.frame:,} of {p.max_frame:,} ({share:.0%})"]
        facts += [f"{number(p.fps, 0)} frames/s"] if p.fps > 0 else []
        name = "eval" if self._evaluated(p) else "return"
        facts += [f"{name} {number(p.total_reward_ma)}"] if not math.isnan(p.total_reward_ma) else []
        facts += [f"eta {_eta(p)}"] if p.status == "running" else []
        return ", ".join(facts)

    def _evaluated(self, p: Progress) -> bool:
        """Whether the return told is of the last greedy evaluation: before the first, and without, it is training's."""
        first = self.meta.eval_frequency or 0
        return bool(self.meta.rigorous_eval) and (p.status == "done" or p.frame >= first)

    def _table(self) -> Table:
        table = Table(expand=False)
        evaluates = bool(self.meta.rigorous_eval)
        result = "eval" if evaluates else "return"
        for column in ("session", "progress", "frames", "frames/s", result, "eta", "status"):
            table.add_column(column, justify="left" if column in ("progress", "status") else "right")
        for p in self.rows:
            bar = ProgressBar(total=p.max_frame, completed=p.frame, width=24)
            shown = p.total_reward_ma if evaluates == self._evaluated(p) else math.nan
            table.add_row(str(p.session), bar, f"{p.frame:,}", number(p.fps, 0), number(shown), _eta(p), p.status)
        return table


def number(x: float, digits: int = 2) -> str:
    return "–" if math.isnan(x) else f"{x:,.{digits}f}"


def _eta(p: Progress) -> str:
    if p.status != "running" or not p.fps > 0:
        return "–"
    minutes, seconds = divmod(max(0, int((p.max_frame - p.frame) / p.fps)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class ConsoleHandler(logging.Handler):
    """Log records through the console, above the live table. Errors are told by who ends the run."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR and not getattr(record, "quiet", False):
            say(self.console, f"{record.levelname.lower()}: {record.getMessage()}")
