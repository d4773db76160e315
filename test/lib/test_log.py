"""The text log: a file that never costs a run, and warnings that are told once."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest

from slm_lab.lib.log import log_to, note, without_session

logger = logging.getLogger("slm_lab")


def test_the_file_has_everything_with_times_and_warnings_are_handed_on_once(tmp_path: Path) -> None:
    told: list[str] = []
    with log_to(tmp_path / "run.log", tell=told.append, capture=True):
        logger.info("begun")
        note("in the file alone")
        for _ in range(2):
            logger.warning("beware of %s", "x")
        warnings.warn("someone else's", stacklevel=1)
        try:
            raise ValueError("why")
        except ValueError as error:
            logger.error("failed", exc_info=error)
    logger.warning("too late")
    text = (tmp_path / "run.log").read_text()
    for part in ("INFO    begun", "in the file alone", "WARNING beware of x", "someone else's", "Traceback", "why"):
        assert part in text
    assert text.startswith("20")
    assert "too late" not in text
    assert told == ["beware of x"]


def test_a_log_that_cannot_be_written_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with log_to(tmp_path / "missing" / "run.log"):
        logger.warning("lost")
    assert capsys.readouterr().err == ""


def test_one_warning_of_several_sessions_is_one() -> None:
    assert without_session("session 3: all is lost") == without_session("session 12: all is lost") == "all is lost"
