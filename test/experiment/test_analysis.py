from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from made_runs import log_rows
from numpy.testing import assert_allclose

from slm_lab.experiment.analysis import analyze_trial, load_run
from slm_lab.experiment.metrics import (
    align,
    calc_consistency,
    calc_efficiency,
    calc_stability,
    calc_strength,
    mean_std,
    session_metrics,
    trial_metrics,
)
from slm_lab.lib.errors import LabError

RNG = np.random.default_rng(0)
NAN = math.nan


def rows(returns, frames=None, **columns) -> pd.DataFrame:
    frames = np.arange(1, len(returns) + 1) * 100.0 if frames is None else frames
    data = {"frame": frames, "opt_step": np.asarray(frames) / 10, "wall_t": np.asarray(frames) / 50}
    return pd.DataFrame(data | {"total_reward": returns, "total_reward_ma": returns} | columns)


# ---- formulae --------------------------------------------------------------------------------------------------------


def test_strength_by_hand():
    value, local = calc_strength([1.0, 2.0, 6.0], 1.0)
    assert value == 2.0
    assert local.tolist() == [0.0, 1.0, 5.0]


def test_efficiency_is_the_strength_weighted_mean_of_inverse_time():
    value, local = calc_efficiency([1.0, 3.0], [10, 20])
    assert_allclose(value, (1 / 10 + 3 / 20) / 4)
    assert_allclose(local, [1 / 10, value])


def test_efficiency_brute_force():
    strengths, times = RNG.uniform(0.1, 2, 50), np.cumsum(RNG.integers(1, 9, 50))
    local = calc_efficiency(strengths, times)[1]
    for i in range(50):
        upper = sum(strengths[j] / times[j] for j in range(i + 1))
        assert_allclose(local[i], upper / sum(strengths[: i + 1]))


def test_efficiency_leaves_time_zero_out_of_both_sums():
    assert_allclose(calc_efficiency([5.0, 1.0, 3.0], [0, 10, 20])[0], calc_efficiency([1.0, 3.0], [10, 20])[0])


@pytest.mark.parametrize("strengths", [[-1.0, -2.0], [0.0, 0.0], [2.0, -3.0], [-1.0, 1.5], []])
def test_efficiency_is_nan_where_it_is_no_mean(strengths):
    # [-1, 1.5]: Σ str > 0, yet Σ str/t = -1/10 + 1.5/20 < 0, which no mean of 1/t is
    assert math.isnan(calc_efficiency(strengths, [10, 20][: len(strengths)])[0])


def test_stability_by_hand():
    value, local = calc_stability([1.0, 3.0, 2.0, 4.0])
    assert_allclose(value, 1 - 1 / 6)
    assert_allclose(local, [NAN, 1.0, 1 - 1 / 4, value])
    assert calc_stability([1.0, 2.0, 3.0])[0] == 1.0


def test_stability_brute_force():
    strengths = RNG.uniform(0.1, 2, 40)
    drops = sum(min(strengths[i + 1] - strengths[i], 0) for i in range(39))
    assert_allclose(calc_stability(strengths)[0], 1 - abs(drops / sum(strengths[:39])))


@pytest.mark.parametrize("strengths", [[], [1.0], [-1.0, 2.0], [0.0, 0.0]])
def test_stability_is_nan_without_a_positive_base(strengths):
    assert math.isnan(calc_stability(strengths)[0])


def test_consistency_brute_force():
    strengths = RNG.uniform(0.5, 2, (3, 20))
    std = [np.std(strengths[:, i], ddof=1) for i in range(20)]
    mean = [np.mean(strengths[:, i]) for i in range(20)]
    value, local = calc_consistency(strengths)
    assert_allclose(value, 1 - 2 * sum(std) / sum(mean))
    assert_allclose(local[4], 1 - 2 * sum(std[:5]) / sum(mean[:5]))
    assert calc_consistency([[1.0, 2.0], [1.0, 2.0]])[0] == 1.0


def test_consistency_counts_only_what_two_sessions_reached():
    assert_allclose(
        calc_consistency([[1.0, 2.0, 9.0], [2.0, 2.0, NAN]])[0], calc_consistency([[1.0, 2.0], [2.0, 2.0]])[0]
    )
    assert math.isnan(calc_consistency([[1.0, 2.0]])[0])
    assert math.isnan(calc_consistency([[-1.0, 0.0], [0.0, -1.0]])[0])


def test_mean_std_agrees_with_numpy_and_tells_nothing_of_nothing():
    values = np.array([[1.0, NAN, NAN, 4.0], [3.0, 5.0, NAN, 8.0]])
    mean, std = mean_std(values)
    assert_allclose(mean, [2.0, 5.0, NAN, 6.0])
    assert_allclose(std, [math.sqrt(2), NAN, NAN, math.sqrt(8)])


# ---- alignment -------------------------------------------------------------------------------------------------------


def test_align_interpolates_and_does_not_extrapolate():
    grid, values = align([[100, 200, 300, 400], [100, 250]], [[1, 2, 3, 4], [10, 25]])
    assert grid.tolist() == [100, 200, 300, 400]
    # at 300 the short session is held (one log interval), at 400 it is gone
    assert_allclose(values, [[1, 2, 3, 4], [10, 20, 25, NAN]])


def test_align_keeps_gaps():
    _, values = align([[1, 2, 3], [1, 2, 3]], [[NAN, 2, NAN], [1, NAN, 3]])
    assert_allclose(values, [[NAN, 2, NAN], [1, NAN, 3]])


def test_align_of_nothing():
    assert align([], [])[1].shape == (0, 0)
    assert align([[], [1, 2]], [[], [1, 2]])[1].shape == (2, 2)


# ---- sessions and trials ---------------------------------------------------------------------------------------------


def test_one_lucky_first_episode_is_not_the_best_return():
    returns = [500.0, 100.0, 140.0, 120.0]
    scalar = session_metrics(rows(returns, epi=[1, 100, 200, 300]), 0.0)["scalar"]
    assert (scalar["best_return"], scalar["final_return"]) == (140.0, 120.0)


def test_session_metrics_by_hand():
    scalar = session_metrics(rows([1.0, 3.0, 2.0]), 1.0)["scalar"]
    assert scalar["strength"] == 1.0
    assert (scalar["max_strength"], scalar["final_strength"]) == (2.0, 1.0)
    assert (scalar["final_return"], scalar["best_return"], scalar["total_reward_ma"]) == (2.0, 2.0, 2.0)
    assert_allclose(scalar["sample_efficiency"], (0 / 100 + 2 / 200 + 1 / 300) / 3)
    assert_allclose(scalar["training_efficiency"], 10 * scalar["sample_efficiency"])
    assert_allclose(scalar["stability"], 1 - 1 / 2)
    assert (scalar["frame"], scalar["fps"], scalar["random_return"]) == (300.0, 50.0, 1.0)


def test_total_reward_ma_is_over_the_last_hundred_log_points():
    returns = RNG.normal(size=150)
    assert_allclose(session_metrics(rows(returns), 0.0)["scalar"]["total_reward_ma"], returns[50:].mean())


def test_rows_before_the_first_episode_and_repeated_rows_do_not_count():
    df = rows([NAN, 1.0, 7.0, 2.0], frames=[100, 200, 200, 300])
    metrics = session_metrics(df.sample(frac=1, random_state=1).sort_values("frame", kind="stable"), 0.0)
    assert metrics["local"]["frames"] == [200.0, 300.0]
    assert len(metrics["local"]["mean_returns"]) == 2


def test_the_last_of_repeated_rows_stays():
    assert session_metrics(rows([1.0, 9.0, 2.0], frames=[100, 100, 200]), 0.0)["scalar"]["max_strength"] == 9.0


def test_without_a_baseline_strength_is_the_return():
    scalar = session_metrics(rows([1.0, 3.0]), None)["scalar"]
    assert scalar["strength"] == 2.0
    assert math.isnan(scalar["random_return"])


@pytest.mark.parametrize("df", [pd.DataFrame(), rows([]), rows([NAN, NAN]), rows([math.inf]), rows([1.0])])
def test_sessions_with_next_to_nothing(df):
    metrics = session_metrics(df, 0.0)
    assert math.isnan(metrics["scalar"]["stability"])
    trial = trial_metrics([metrics, session_metrics(rows([1.0, 2.0, 3.0]), 0.0)])
    assert trial["scalar"]["num_session"] == 2
    assert all(len(line) == 3 for line in trial["local"]["strengths"])


def test_trial_of_sessions_of_different_length():
    long, short = session_metrics(rows([1.0, 2.0, 3.0, 4.0]), 0.0), session_metrics(rows([2.0, 4.0]), 0.0)
    trial = trial_metrics([long, short], num_failed=1)
    assert trial["scalar"]["final_return"] == 4.0
    assert trial["scalar"]["final_return_std"] == 0.0
    assert trial["scalar"]["strength"] == 2.75
    assert (trial["scalar"]["num_session"], trial["scalar"]["num_failed"]) == (2, 1)
    assert_allclose(trial["local"]["strengths"][1], [2.0, 4.0, 4.0, NAN])
    assert len(trial["local"]["consistencies"]) == 4


def test_trial_without_sessions():
    trial = trial_metrics([], num_failed=2)
    assert trial["scalar"]["num_failed"] == 2
    assert math.isnan(trial["scalar"]["final_return"])


# ---- the run folder --------------------------------------------------------------------------------------------------


def test_files_of_a_run_are_strict_json_and_leave_failed_sessions_out(make_run):
    run_dir = make_run(
        [rows([1.0, 2.0, 3.0]), rows([NAN, NAN, NAN]), rows([9.0])],
        failures=[{"session": 2, "error": "ValueError: x"}],
        name="made",
    )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    files = sorted(path.name for path in (run_dir / "info").glob("*metrics*"))
    assert files == [
        *(f"made_t0_s{s}_session_metrics_train.json" for s in range(3)),
        "made_t0_trial_metrics.csv",
        "made_t0_trial_metrics.json",
    ]
    for name in files:
        if name.endswith(".json"):
            json.loads((run_dir / "info" / name).read_text(), parse_constant=refuse)
    scalar = json.loads((run_dir / "info/made_t0_trial_metrics.json").read_text())["scalar"]
    assert (scalar["final_return"], scalar["num_session"], scalar["num_failed"]) == (3.0, 2, 1)
    assert scalar["final_return_std"] is None
    table = pd.read_csv(run_dir / "info/made_t0_trial_metrics.csv")
    assert table["session"].tolist() == ["0", "1", "2", "mean"]
    assert table["failed"].tolist()[:3] == [0, 0, 1]
    assert not list((run_dir / "info").glob(".*"))


def test_sessions_behind_those_at_their_end_stand_in_no_mean(make_run, tmp_path):
    """But where none is at its end, all count as far as they are."""
    run = load_run(make_run([log_rows(0), log_rows(1, count=20)], evaluate=True, name="stopped"))
    assert (run.unfinished, len(run.whole)) == ({1}, 1)
    assert run.last_evaluation == pytest.approx(float(run.evaluation[0]["total_reward"].iloc[-1]))
    table = pd.read_csv(run.path / "info/stopped_t0_trial_metrics.csv")
    assert table["unfinished"].tolist()[:2] == [0, 1]
    assert run.metrics()["scalar"]["num_session"] == 1
    assert load_run(make_run([log_rows(0, count=30), log_rows(1, count=20)], name="early")).unfinished == set()


def test_what_failed_counts_in_no_evaluation(make_run):
    run = load_run(make_run([log_rows(0), log_rows(1)], evaluate=True, failures=[{"session": 1, "error": "x"}]))
    assert run.last_evaluation == pytest.approx(float(run.evaluation[0]["total_reward"].iloc[-1]))


def test_analysis_reads_the_baseline_back_and_is_repeatable(make_run):
    run_dir = make_run([rows([1.0, 2.0]), rows([2.0, 3.0])], random_return=0.5, name="made")
    before = (run_dir / "info/made_t0_trial_metrics.json").read_bytes()
    assert analyze_trial(run_dir)["scalar"]["strength"] == 1.5
    assert (run_dir / "info/made_t0_trial_metrics.json").read_bytes() == before


def test_log_files_that_a_killed_session_left(make_run):
    run_dir = make_run([rows([1.0, 2.0, 3.0])], name="made")
    info = run_dir / "info"
    (info / "made_t0_s1_session_df_train.csv").write_text("")
    (info / "made_t0_s2_session_df_train.csv").write_text("epi,frame,total_reward\n")
    (info / "made_t0_s3_session_df_train.csv").write_text("epi,frame,total_reward,total_reward_ma\n1,100,2.0,2.0\n2,20")
    assert list(load_run(run_dir).train) == [0, 3]


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(LabError, match=r"spec\.json"):
        load_run(tmp_path)
