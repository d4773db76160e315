"""The lab's text log: every process of a run writes a file of its own under log/."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOGGER = "slm_lab"
FORMAT = "%(asctime)s %(levelname)-7s %(message)s"


def note(text: str) -> None:
    """A line for the log file alone: the console shows it in its own way."""
    logging.getLogger(LOGGER).info("%s", text, extra={"quiet": True})


class _LogFile(logging.FileHandler):
    """Opened with its first line. A disk that is full costs lines, never the run."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, mode="a", encoding="utf-8", delay=True)
        self.setFormatter(logging.Formatter(FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            super().emit(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:
        """Not a traceback for each line that could not be written."""


class _Told(logging.Handler):
    """Hands warnings on, each once."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.tell, self.known = tell, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno == logging.WARNING and text not in self.known:
            self.known.add(text)
            self.tell(text)


@contextmanager
def log_to(path: Path, tell: Callable[[str], None] | None = None, capture: bool = False) -> Iterator[None]:
    """Write the lab's log to a file too, with times; `tell` gets each warning once.

    `capture`: the warnings of other packages go to the file, and nowhere else.
    """
    logger, others = logging.getLogger(LOGGER), logging.getLogger("py.warnings")
    file = _LogFile(path)
    handlers: list[logging.Handler] = [file, *([_Told(tell)] if tell else [])]
    before = logger.level
    logger.setLevel(logging.DEBUG)
    for handler in handlers:
        logger.addHandler(handler)
    if capture:
        logging.captureWarnings(True)
        others.addHandler(file)
    try:
        yield
    finally:
        logger.setLevel(before)
        others.removeHandler(file)
        if capture:
            logging.captureWarnings(False)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def without_session(text: str) -> str:
    """A session's warning without its number, so that the same one from several sessions is told once."""
    return re.sub(r"^session \d+: ", "", text)
