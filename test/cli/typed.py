"""What tests of the command line type, and what must be said to bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SHORT = {"env__max_frame": 400, "meta__checkpoint_frequency": 100}


class Said(NamedTuple):
    code: int
    out: str
    err: str


Lab = Callable[..., Said]


def save(file: str, specs: dict[str, Any]) -> None:
    Path(file).write_text(json.dumps(specs))


def assert_refused(said: Said, *parts: str) -> None:
    """Exit code 2 and one message, without a traceback, that holds all of `parts`."""
    assert said.code == 2, said
    assert sum(line.startswith("error: ") for line in said.err.splitlines()) == 1, said.err
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err + said.out
    for part in parts:
        assert part in said.err, said.err


def the_run(data: str = "data") -> Path:
    (spec,) = Path(data).glob("*/spec.json")
    return spec.parent
