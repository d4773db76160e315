"""The claims of docs/benchmarks: long proofs with their controls (make test-learn)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_learn_fast import evaluated, trained

from bench.learning import ROWS, Row

pytestmark = [pytest.mark.learn, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("row", [row for row in ROWS if row.file.startswith("specs/memory")], ids=lambda row: row.name)
@pytest.mark.parametrize("seed", range(3))
def test_memory_task(tmp_path: Path, row: Row, seed: int) -> None:
    score = evaluated(trained(tmp_path, row.file, row.name, seed))
    assert score <= row.bar if row.below else score >= row.bar


@pytest.mark.parametrize("row", [row for row in ROWS if row.file.startswith("specs/bench")], ids=lambda row: row.name)
def test_classic_control(tmp_path: Path, row: Row) -> None:
    sessions = [trained(tmp_path, row.file, row.name, seed) for seed in range(4)]
    assert np.mean([session.tracker.total_reward_ma for session in sessions]) >= row.bar
