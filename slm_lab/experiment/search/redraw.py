"""Draws a search's results while it runs: in a thread of its own, and seldom enough not to slow the trials down."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger("slm_lab")

FIRST = 5.0  # seconds of a search before its first picture: shorter ones need but the last
SHARE = 20  # a drawing of one second is followed by twenty without


class Redraw:
    """Calls `draw` after trials have ended; never twice at once, and a drawing that fails is a warning."""

    def __init__(self, draw: Callable[[], None]) -> None:
        self.draw = draw
        self.wanted, self.stopped = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Redraw:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self.wanted.set()
        self.thread.join()

    def _loop(self) -> None:
        pause = FIRST
        while not self.stopped.wait(pause):
            self.wanted.wait()
            if self.stopped.is_set():
                return
            self.wanted.clear()
            began = time.monotonic()
            try:
                self.draw()
            except Exception as error:  # the search goes on, and draws all of it at its end
                logger.warning("the search's graphs weren't drawn: %r", error)
            pause = SHARE * (time.monotonic() - began)
