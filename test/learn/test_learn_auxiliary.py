"""What auxiliaries are for, each with its control: finding a reward that chance never meets, keeping a cue."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_learn_fast import evaluated, trained

pytestmark = pytest.mark.timeout(900)
LONG = [pytest.param(seed, marks=pytest.mark.learn) for seed in range(3)]


@pytest.mark.parametrize("seed", LONG)
def test_a_reward_that_chance_never_meets_is_found_by_novelty_and_not_without(tmp_path: Path, seed: int) -> None:
    """49 places to the right within 100 steps of four directions: seven deviations of a random walk."""
    for name, found in (("rnd_corridor", True), ("ppo_corridor", False)):
        score = trained(tmp_path, "specs/auxiliary/rnd.json", name, seed, "meta.png=false").tracker.total_reward_ma
        assert score >= 0.95 if found else score == 0.0


@pytest.mark.parametrize("seed", [0, *LONG[1:]])
def test_a_cue_is_kept_where_it_must_be_told_and_not_without(tmp_path: Path, seed: int) -> None:
    """At 44,000 frames; the same GRU without the loss needs about twice as many to find the bit by reward alone."""
    short = ["env.max_frame=44000", "meta.png=false"]
    assert evaluated(trained(tmp_path, "specs/auxiliary/cue.json", "gru_cue", seed, *short)) >= 0.95
    control = trained(tmp_path, "specs/auxiliary/cue.json", "gru_cue", seed, *short, "agent.auxiliary.0.coef=0.0")
    assert evaluated(control) <= 0.3
