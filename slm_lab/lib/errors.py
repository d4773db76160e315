"""Errors that are meant for a person.

`LabError` is the one exception that the command line turns into a clear message and exit code 2, without a
traceback. Everything else is a bug in the lab and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


def plural(number: int, thing: str) -> str:
    """'1 session', '4 sessions'."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


class LabError(Exception):
    """Something the user gave or the machine refused: says what, where, what was expected and what to do."""


class DiskError(LabError):
    """A file can't be written (a full disk, mostly): no fault of what was run, which can go on once it can be."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec: where it is and what to do about it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class SpecError(LabError):
    """Every problem of a spec at once."""

    def __init__(self, problems: Iterable[Problem], title: str = "the spec can't be run") -> None:
        self.problems = list(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{title}: {plural(len(self.problems), 'problem')}\n{lines}")


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """' Did you mean 'x'?' for the option nearest to `word`; without a near one, the options themselves."""
    options = sorted(options)
    by_lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{by_lower[near[0]]}'?"
    return f" Options: {', '.join(options)}." if options else ""
