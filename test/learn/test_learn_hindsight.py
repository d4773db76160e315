"""Hindsight solves bit flipping with n = 15, where replay without it finds nothing to learn from (make test-learn)."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_learn_fast import trained

from slm_lab.env.vec import make_env
from slm_lab.experiment.evaluate import play

pytestmark = [pytest.mark.learn, pytest.mark.timeout(900)]


def success(tmp_path: Path, name: str, seed: int) -> float:
    """Share of 400 greedy episodes that reach the goal after training: their return is above -n."""
    session = trained(tmp_path, "specs/memory/bit_flip.json", name, seed)
    env = make_env(session.spec.env)
    played = play(session.agent, env, 400, seed=1000 + seed)
    env.close()
    return float((played.returns > -15).mean())


@pytest.mark.parametrize("seed", range(3))
def test_goals_are_reached_with_hindsight_and_not_without(tmp_path: Path, seed: int) -> None:
    assert success(tmp_path, "her_bit_flip", seed) >= 0.9
    assert success(tmp_path, "dqn_bit_flip", seed) <= 0.05
