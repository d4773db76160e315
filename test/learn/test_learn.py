"""The claims of docs/benchmarks: long proofs with their controls (make test-learn)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_learn_fast import evaluated, trained

from bench.learning import ROWS, Row
from slm_lab.experiment.session import Session

pytestmark = [pytest.mark.learn, pytest.mark.timeout(3600)]


def score(session: Session) -> float:
    """The figure of a row of docs/benchmarks: greedy where the spec evaluates, else of the last training episodes."""
    return evaluated(session) if session.spec.meta.rigorous_eval else session.tracker.total_reward_ma


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.file.startswith(("specs/memory", "specs/multiagent"))], ids=lambda row: row.name
)
@pytest.mark.parametrize("seed", range(3))
def test_memory_task(tmp_path: Path, row: Row, seed: int) -> None:
    got = score(trained(tmp_path, row.file, row.name, seed))
    assert got <= row.bar if row.below else got >= row.bar


@pytest.mark.parametrize("row", [row for row in ROWS if row.file.startswith("specs/bench")], ids=lambda row: row.name)
def test_classic_control(tmp_path: Path, row: Row) -> None:
    assert np.mean([score(trained(tmp_path, row.file, row.name, seed)) for seed in range(4)]) >= row.bar
