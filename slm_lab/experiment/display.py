"""What a person sees while sessions run: a live table, or plain lines where there is no terminal."""

from __future__ import annotations

import logging
import math
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from slm_lab.experiment.session import Progress

LINE_SECONDS = 5.0  # between plain lines of a session


class Display:
    """Shows the progress of sessions; give `update` to them as their report."""

    def __init__(self, title: str, sessions: int, max_frame: int, console: Console | None = None) -> None:
        self.title, self.console = title, console or Console()
        self.rows = [Progress(i, 0, max_frame, status="waiting") for i in range(sessions)]
        self.live = (
            Live(self._table(), console=self.console, refresh_per_second=4) if self.console.is_terminal else None
        )
        self.printed = [0.0] * sessions

    def __enter__(self) -> Display:
        if self.live:
            self.live.start()
        else:
            self.console.print(self.title, highlight=False, soft_wrap=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.update(self._table())
            self.live.stop()

    def update(self, progress: Progress) -> None:
        """Take in a session's report."""
        self.rows[progress.session] = progress
        if self.live:
            self.live.update(self._table())
            return
        now = time.monotonic()
        if progress.status != "running" or now - self.printed[progress.session] >= LINE_SECONDS:
            self.printed[progress.session] = now
            self.console.print(self._line(progress), highlight=False, markup=False, soft_wrap=True)

    def _line(self, p: Progress) -> str:
        share = p.frame / p.max_frame
        return (
            f"session {p.session}: {p.status}, frame {p.frame:,} of {p.max_frame:,} ({share:.0%}), "
            f"{_number(p.fps, 0)} frames/s, return {_number(p.total_reward_ma)}, eta {_eta(p)}"
        )

    def _table(self) -> Table:
        table = Table(title=self.title, title_justify="left", expand=False)
        for column in ("session", "progress", "frames", "frames/s", "return", "eta", "status"):
            table.add_column(column, justify="left" if column in ("progress", "status") else "right")
        for p in self.rows:
            bar = ProgressBar(total=p.max_frame, completed=p.frame, width=24)
            table.add_row(
                str(p.session), bar, f"{p.frame:,}", _number(p.fps, 0), _number(p.total_reward_ma), _eta(p), p.status
            )
        return table


def _number(x: float, digits: int = 2) -> str:
    return "–" if math.isnan(x) else f"{x:,.{digits}f}"


def _eta(p: Progress) -> str:
    if p.status != "running" or not p.fps > 0:
        return "–"
    seconds = int((p.max_frame - p.frame) / p.fps)
    return f"{seconds // 60}:{seconds % 60:02d}"


class ConsoleHandler(logging.Handler):
    """Log records through the console, above the live table."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(
            f"{record.levelname.lower()}: {record.getMessage()}", highlight=False, markup=False, soft_wrap=True
        )
