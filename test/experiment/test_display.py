"""What is seen while sessions run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from small_specs import make_spec

from slm_lab.experiment.display import Display
from slm_lab.experiment.session import Progress


@pytest.mark.parametrize(("episodes", "frame", "named", "shown"),
                         [(0, 500, "return", True), (5, 500, "eval", True), (5, 50, "eval", False)])  # fmt: skip
def test_the_return_of_a_greedy_evaluation_is_called_so(episodes, frame, named, shown):
    page = Console(file=io.StringIO(), width=120)
    meta = make_spec(meta__rigorous_eval=episodes, meta__eval_frequency=100).meta
    display = Display("", meta, 1000, page)
    display.update(Progress(0, frame, 1000, 10.0, 0.25, "running"))
    line = "eval" if episodes and frame >= 100 else "return"
    assert f"{line} 0.25" in page.file.getvalue()
    page.print(display._table())
    head, row = (next(text for text in page.file.getvalue().splitlines() if mark in text) for mark in "┃│")
    assert [cell.strip() for cell in head.split("┃")][5] == named and ("0.25" in row) == shown
