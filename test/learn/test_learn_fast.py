"""Learning in seconds, with its control: part of make test."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from small_specs import ROOT

from slm_lab.cli import main
from slm_lab.experiment.run_dir import RunDir
from slm_lab.experiment.session import Session
from slm_lab.spec.load import apply_overrides, load_file, pick
from slm_lab.spec.validate import resolve


def trained(tmp_path: Path, file: str, name: str, seed: int, *overrides: str) -> Session:
    """A session of a spec in specs/, run to its end."""
    _, raw = pick(load_file(ROOT / file), name, file)
    raw = apply_overrides(raw, [f"meta.seed={seed}", "meta.tensorboard=false", *overrides])
    spec = resolve(raw, name)
    run = RunDir.create(tmp_path, name, {"name": name, **spec.dump()}, "train")
    session = Session(spec, run, 0, lambda progress: None)
    session.run()
    return session


def evaluated(session: Session) -> float:
    return float(session.eval_rows[-1]["total_reward"])


MEMORY = "specs/memory/memory_task.yaml"


@pytest.mark.parametrize("core", ["gru", "lstm"])
def test_a_core_recalls_a_bit_after_four_steps_and_none_does_not(tmp_path: Path, core: str) -> None:
    assert evaluated(trained(tmp_path, MEMORY, f"{core}_memory_task_4", 0)) >= 0.95
    assert evaluated(trained(tmp_path, MEMORY, "mlp_memory_task_4", 0)) <= 0.2


def test_the_command_of_the_readme_solves_its_task_and_shows_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(ROOT / "specs/ppo_memory.json"), "dev", "--data", str(tmp_path)]) == 0
    assert "eval     1.00" in capsys.readouterr().out
    (run,) = tmp_path.glob("ppo_memory_*")
    for what in ("trial_graph_mean_returns", "xray_retention", "xray_attention", "xray_worth"):
        assert list(run.glob(f"graph/*{what}*.html"))
        assert list(run.glob(f"graph/*{what}*.png"))
    report = (run / "report.html").read_text()
    assert "100 % of the cues" in report
    assert pd.read_csv(next(run.glob("info/*_df_train.csv")))["total_reward_ma"].iloc[-1] >= 0.9


def test_cartpole_is_learned_and_random_is_not(tmp_path: Path) -> None:
    short = ["env.max_frame=40000", "meta.log_frequency=2000"]
    learned = trained(tmp_path, "specs/benchmark/cartpole.json", "ppo_cartpole", 0, *short)
    assert learned.tracker.total_reward_ma >= 150
    chance = trained(tmp_path, "specs/benchmark/cartpole.json", "ppo_cartpole", 0, *short[1:], "env.max_frame=10000",
                     'agent.algorithm={"name": "Random"}')  # fmt: skip
    assert chance.tracker.total_reward_ma <= 40
