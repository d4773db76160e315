"""A run folder as the lab writes it, made up (`made_runs`); a token for Ray."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

# a token of the tests' own, for Ray's nodes and drivers alike; Ray reads it once, when it is imported
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=uuid.uuid4().hex)

import pandas as pd
import pytest
from made_runs import NAME, MakeRun, evaluation_rows

from slm_lab.experiment.analysis import analyze_session, analyze_trial


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A function (sessions, evaluate, failures, random_return) -> run folder, analysed."""

    def make(
        sessions: list[pd.DataFrame],
        evaluate: bool = False,
        failures: list[dict] | None = None,
        random_return: float | None = -0.9,
        name: str = NAME,
        core: str = "none",
    ) -> Path:
        run_dir = tmp_path / "data" / f"{name}_2026_01_02_030405"
        info = run_dir / "info"
        info.mkdir(parents=True)
        run = {"git_sha": "0123abc", "versions": {"torch": "2.9", "numpy": "2.4"}, "created": "2026-01-02 03:04:05"}
        agent = {"name": "PPO", "algorithm": {"name": "PPO", "gamma": 0.99}, "memory": {"name": "OnPolicyReplay"}}
        agent["net"] = {"core": {"name": core}}
        spec = {"name": name, "agent": agent, "env": {"name": "Recall-v0", "max_frame": 102400}}
        spec |= {"meta": {"max_session": len(sessions)}, "run": run | {"mode": "train", "seed": 7}}
        (run_dir / "spec.json").write_text(json.dumps(spec))
        for index, df in enumerate(sessions):
            df.to_csv(info / f"{name}_t0_s{index}_session_df_train.csv", index=False)
            if evaluate:
                rows = evaluation_rows(index, int(df["frame"].max()))
                rows.to_csv(info / f"{name}_t0_s{index}_session_df_eval.csv", index=False)
        if failures:
            (info / "failures.json").write_text(json.dumps(failures))
        for index in range(len(sessions)):
            analyze_session(run_dir, 0, index, random_return)
        analyze_trial(run_dir)
        return run_dir

    return make
