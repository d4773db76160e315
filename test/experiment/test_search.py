"""A search without Ray: the ledger, a trial's work, what is drawn and told of them."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psutil
import pytest
from rich.console import Console
from small_specs import raw_spec

from slm_lab.agent.memory.storage import memories
from slm_lab.experiment import control
from slm_lab.experiment.evaluate import random_return
from slm_lab.experiment.run_dir import RunDir
from slm_lab.experiment.search import control as search
from slm_lab.experiment.search.display import SearchDisplay
from slm_lab.experiment.search.graphs import Experiment, importance, multi_trial, parallel
from slm_lab.experiment.search.ledger import Ledger, best_run
from slm_lab.experiment.search.redraw import Redraw
from slm_lab.experiment.search.results import prune, trial_table, write_results
from slm_lab.experiment.search.study import from_optuna, importances, make_sampler, make_study, to_optuna
from slm_lab.experiment.search.work import Work, make_work
from slm_lab.lib.errors import LabError
from slm_lab.spec.space import make_raw, read_space
from slm_lab.spec.validate import resolve

GAMMA, CORE = "agent.algorithm.gamma", "agent.net.core.name"
SPACE = {f"{GAMMA}__uniform": [0.9, 0.99], f"{CORE}__choice": ["none", "GRU"]}
VARIABLES, _ = read_space(SPACE)
TINY = {"env__max_frame": 200, "meta__log_frequency": 50, "meta__checkpoint_frequency": 50}


def new_search(data: Path, **changes: Any) -> tuple[RunDir, dict[str, Any]]:
    """The folder of a search before its first trial."""
    raw = {**raw_spec(**{**TINY, **changes}), "search": SPACE}
    spec = resolve(raw, "x", check_env=False)
    return RunDir.create(data, "x", {"name": "x", **spec.dump(), "raw": raw}, "search"), raw


def plan(run: RunDir, raw: dict[str, Any], ledger: Ledger, point: dict[str, Any]) -> int:
    """A trial as the engine plans it."""
    index = len(ledger.trials)
    spec = resolve(make_raw(raw, point)[0], "x", check_env=False)
    facts = {"name": "x", **spec.dump(), "run": run.read_spec()["run"]}
    run.of_trial(index).spec_file.write_text(json.dumps(facts))
    ledger.append("planned", index, point=point)
    return index


def ended(
    ledger: Ledger, gamma: float, value: float | None, kind: str = "done", core: str = "none", std: float | None = None
) -> None:
    index = len(ledger.trials)
    ledger.append("planned", index, point={GAMMA: gamma, CORE: core})
    if value is None:
        ledger.append(kind, index, reason="it broke", trace="Traceback ...")
    else:
        spread = {} if std is None else {"final_return_std": std}
        ledger.append(kind, index, metrics={"final_return": value, **spread}, seconds=1.5)


def played(work: Work) -> dict[str, Any]:
    """The last report of a trial."""
    report = work.advance(60.0)
    while report["status"] in ("running", "retry"):
        report = work.advance(60.0)
    return report


# ---- the ledger ------------------------------------------------------------------------------------------------------


def test_an_event_that_was_cut_short_never_happened(tmp_path):
    run, _ = new_search(tmp_path)
    ledger = Ledger(run)
    ended(ledger, 0.9, 1.0)
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole + b'{"time": "now", "event": "plan')
    again = Ledger(run)
    assert {t.index: t.status for t in again.trials.values()} == {0: "done"}
    ended(again, 0.95, 2.0)
    assert ledger.path.read_bytes().startswith(whole), "what was written has changed"
    assert Ledger(run).best("final_return", "max").index == 1


def test_a_damaged_line_is_told_by_its_number(tmp_path):
    run, _ = new_search(tmp_path)
    ledger = Ledger(run)
    ended(ledger, 0.9, 1.0)
    ledger.path.write_bytes(b"garbage\n" + ledger.path.read_bytes())
    with pytest.raises(LabError, match=r"ledger.jsonl:1 is damaged"):
        Ledger(run)


def test_a_trial_that_was_never_planned_is_damage_too(tmp_path):
    run, _ = new_search(tmp_path)
    ended(Ledger(run), 0.9, 1.0)
    _, *others = Ledger(run).path.read_bytes().splitlines(keepends=True)
    Ledger(run).path.write_bytes(b"".join(others))
    with pytest.raises(LabError, match=r"ledger.jsonl:1 is damaged \(trial 0 was never planned\)"):
        Ledger(run)


def test_what_comes_after_the_end_changes_nothing(tmp_path):
    """Ray Tune calls a trial failed where a callback raises after its end."""
    run, _ = new_search(tmp_path)
    ledger = Ledger(run)
    ended(ledger, 0.9, 1.0)
    ledger.append("failed", 0, reason="RecursionError")
    assert Ledger(run).trials[0].status == ledger.trials[0].status == "done"


def test_seconds_are_of_all_attempts(tmp_path):
    run, _ = new_search(tmp_path)
    ledger = Ledger(run)
    ledger.append("planned", 0, point={GAMMA: 0.9, CORE: "none"})
    ledger.append("running", 0, seconds=2.0)
    ledger.append("running", 0, seconds=0.5)
    ledger.append("done", 0, seconds=3.0, metrics={"final_return": 1.0})
    assert (ledger.trials[0].seconds, ledger.trials[0].attempts) == (5.0, 2)


def test_what_an_attempt_took_is_known_though_it_was_broken_off(tmp_path):
    from slm_lab.experiment.search.engine import Bookkeeper, Trouble

    run, _ = new_search(tmp_path)
    ledger = Ledger(run)
    ledger.append("planned", 0, point={GAMMA: 0.9, CORE: "none"})
    display = SimpleNamespace(report=lambda *_: None, ended=lambda *_: None)
    told = {"status": "running", "node": "n", "pid": 1}
    for _ in range(2):  # killed with its worker, then with the search
        book = Bookkeeper(ledger, "final_return", display, lambda: None, Trouble())  # type: ignore[arg-type]
        for seconds in (1.0, 30.0):
            trial = SimpleNamespace(config={"trial": 0}, pickled_error_file=None, error_file="none")
            book.on_trial_result(0, [], trial, {**told, "seconds": seconds})
        if ledger.trials[0].attempts == 1:
            book.on_trial_recover(0, [], trial)
        else:
            book.close()
    assert (Ledger(run).trials[0].seconds, Ledger(run).trials[0].attempts) == (60.0, 2)
    assert Ledger(run).with_status("running")


def test_an_attempt_that_fails_counts_and_its_reason_goes_with_it(tmp_path, monkeypatch):
    from slm_lab.experiment.search.engine import Bookkeeper, Trouble

    run, raw = new_search(tmp_path)
    ledger = Ledger(run)
    plan(run, raw, ledger, {GAMMA: 0.93, CORE: "none"})
    display = SimpleNamespace(report=lambda *_: None, ended=lambda *_: None)
    book = Bookkeeper(ledger, "final_return", display, lambda: None, Trouble())  # type: ignore[arg-type]
    work, began = make_work(str(run.path), 0, "final_return", 2), time.monotonic()

    def told() -> SimpleNamespace:
        result = {**work.advance(60.0), "node": "n", "pid": 1}
        trial = SimpleNamespace(config={"trial": 0}, last_result=result, pickled_error_file=None, error_file="none")
        book.on_trial_result(0, [], trial, result)
        return trial

    with monkeypatch.context() as patch:
        patch.setattr("slm_lab.experiment.session.Session.play_for", lambda *_: time.sleep(0.1) or 1 / 0)
        told()
        told()
    assert (ledger.trials[0].status, ledger.trials[0].reason) == ("retry", "division by zero")
    trial = told()
    book.on_trial_complete(0, [], trial)
    table = trial_table(Ledger(run), VARIABLES, run.stored_spec().meta)
    assert dict(table.loc[0, ["status", "attempts", "reason"]]) == {"status": "done", "attempts": 3, "reason": ""}
    assert 0.2 < table.loc[0, "seconds"] < time.monotonic() - began, "none of them twice"


def test_what_a_trial_took_that_ray_lost_is_known(tmp_path):
    from slm_lab.experiment.search.engine import Bookkeeper, Trouble

    run, _ = new_search(tmp_path)
    ledger = Ledger(run)
    ledger.append("planned", 0, point={GAMMA: 0.9, CORE: "none"})
    display = SimpleNamespace(report=lambda *_: None, ended=lambda *_: None)
    book = Bookkeeper(ledger, "final_return", display, lambda: None, Trouble())  # type: ignore[arg-type]
    trial = SimpleNamespace(config={"trial": 0}, pickled_error_file=None, error_file="none")
    for seconds in (1.0, 30.0):
        book.on_trial_result(0, [], trial, {"status": "running", "node": "n", "pid": 1, "seconds": seconds})
    book.on_trial_error(0, [], trial)
    assert (Ledger(run).trials[0].status, Ledger(run).trials[0].seconds) == ("failed", 30.0)


def test_a_search_may_be_moved_and_called_otherwise(tmp_path):
    run, raw = new_search(tmp_path)
    plan(run, raw, Ledger(run), {GAMMA: 0.9, CORE: "none"})
    moved = RunDir(run.path.rename(tmp_path / "mine"))
    assert moved.of_trial(0).read_spec()["name"] == "x"


def test_a_session_that_has_come_to_its_end_says_so_at_once(tmp_path):
    """Else a scheduler would stop it there, as one that might have gone on."""
    run, raw = new_search(tmp_path, meta__search_scheduler={"grace_period": 200})
    work = make_work(str(run.path), plan(run, raw, Ledger(run), {GAMMA: 0.9, CORE: "none"}), "final_return", 0)
    assert work.advance(60.0)["status"] == "done"


def test_a_full_disk_leaves_the_ledger_whole(tmp_path):
    run, _ = new_search(tmp_path)
    ledger = Ledger(run)
    ended(ledger, 0.9, 1.0)
    before = ledger.path.read_bytes()
    child = multiprocessing.get_context("fork").Process(target=_append_beyond_the_limit, args=(run, len(before) + 20))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert Ledger(run).with_status("done")[0].metrics == {"final_return": 1.0} and len(Ledger(run).trials) == 1


def _append_beyond_the_limit(run: RunDir, size: int) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    ledger = Ledger(run)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        ledger.append("planned", 1, point={GAMMA: 0.9, CORE: "none"})
    except LabError as error:
        os._exit(0 if "can't write" in str(error) else 1)
    os._exit(2)


def test_failures_never_win_whatever_the_direction(tmp_path):
    run, _ = new_search(tmp_path)
    ledger = Ledger(run)
    ended(ledger, 0.9, None, "failed")
    ended(ledger, 0.91, -1500.0)
    ended(ledger, 0.92, -200.0)
    ended(ledger, 0.93, None, "invalid")
    ended(ledger, 0.94, None, "pruned")
    assert [t.index for t in ledger.ranked("final_return", "max")] == [2, 1, 4, 0, 3]
    assert [t.index for t in ledger.ranked("final_return", "min")][:2] == [1, 2]
    table = trial_table(ledger, VARIABLES, resolve(raw_spec(), "x", check_env=False).meta)
    assert list(table["trial"]) == [2, 1, 4, 0, 3] and table["reason"][3] == "it broke"
    assert list(table.columns[:5]) == ["trial", "status", GAMMA, CORE, "final_return"]


# ---- drawing points --------------------------------------------------------------------------------------------------


def test_a_search_that_goes_on_draws_other_points_and_knows_the_old(tmp_path):
    run, _ = new_search(tmp_path)
    ledger = Ledger(run)
    meta = resolve(raw_spec(), "x", check_env=False).meta
    for gamma in (0.9, 0.93, 0.96):
        ended(ledger, gamma, gamma)
    ended(ledger, 0.97, None, "failed")
    study, _ = make_study(ledger, VARIABLES, meta, make_sampler(meta, len(ledger.trials)))
    assert study.best_value == 0.96 and len(study.trials) == 4
    assert from_optuna(study.best_params, VARIABLES) == {GAMMA: 0.96, CORE: "none"}
    assert make_sampler(meta, 0)._rng.rng.random() != make_sampler(meta, 4)._rng.rng.random()


def test_importance_finds_the_key_that_matters(tmp_path):
    run, _ = new_search(tmp_path)
    ledger = Ledger(run)
    meta = resolve(raw_spec(), "x", check_env=False).meta
    assert importances(ledger, VARIABLES, meta) == {}
    for i in range(16):
        ended(ledger, 0.9 + i / 200, 10.0 * (i % 2) + i / 100, core=["none", "GRU"][i % 2])
    found = importances(ledger, VARIABLES, meta)
    assert found[CORE] > 0.5 and sum(found.values()) == pytest.approx(1)


def test_values_go_to_optuna_and_back():
    variables, _ = read_space({"a__choice": [[64], [64, 64], None, {"name": "GRU"}], "b__randint": [1, 4]})
    for value in variables[0].args:
        assert from_optuna(to_optuna({"a": value, "b": 2}, variables), variables) == {"a": value, "b": 2}


# ---- a trial ---------------------------------------------------------------------------------------------------------


def test_a_trial_cut_short_goes_on_to_the_same_numbers(tmp_path):
    run, raw = new_search(tmp_path, meta__max_session=2)
    ledger = Ledger(run)
    point = {GAMMA: 0.95, CORE: "GRU"}
    whole, cut = plan(run, raw, ledger, point), plan(run, raw, ledger, point)
    there = played(make_work(str(run.path), whole, "final_return", 0))
    assert there["status"] == "done" and there["value"] == there["metrics"]["final_return"]
    first = make_work(str(run.path), cut, "final_return", 0)
    assert first.advance(0.0)["status"] == "running"
    first.close()  # as a worker is told to stop
    again = played(make_work(str(run.path), cut, "final_return", 0))
    clocks = ("wall_t", "fps")
    assert {k: v for k, v in again["metrics"].items() if k not in clocks} == {
        k: v for k, v in there["metrics"].items() if k not in clocks
    }
    assert sorted(p.name for p in run.info.glob("x_t1_s*_session_df_train.csv")) == [
        "x_t1_s0_session_df_train.csv", "x_t1_s1_session_df_train.csv",
    ]  # fmt: skip


def test_train_on_a_trials_spec_gives_its_numbers(tmp_path):
    run, raw = new_search(tmp_path)
    ledger = Ledger(run)
    index = plan(run, raw, ledger, {GAMMA: 0.93, CORE: "GRU"})
    report = played(make_work(str(run.path), index, "final_return", 0))
    ledger.append("done", index, metrics=report["metrics"], seconds=1.0)
    search.redraw(run, Console(quiet=True))
    ((name, best),) = json.loads((run.path / "best_spec.json").read_text()).items()
    trained = control.train(resolve(best, name), tmp_path, Console(quiet=True))
    columns = ["frame", "opt_step", "total_reward", "total_reward_ma", "loss"]
    one, other = (pd.read_csv(f)[columns] for f in (run.of_trial(index).session_file(0, "session_df_train.csv"),
                                                    trained.session_file(0, "session_df_train.csv")))  # fmt: skip
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert best_run(run).trial == index and best_run(trained) is trained


def test_a_trial_that_raises_is_reported_and_tried_again(tmp_path, monkeypatch):
    run, raw = new_search(tmp_path)
    plan(run, raw, Ledger(run), {GAMMA: 0.93, CORE: "none"})
    calls = []
    from slm_lab.experiment.session import Session

    def play_for(self, *until):
        calls.append(1)
        raise ValueError("the wheel fell off")

    monkeypatch.setattr(Session, "play_for", play_for)
    work = make_work(str(run.path), 0, "final_return", 1)
    assert work.advance(1.0)["status"] == "retry"
    report = work.advance(1.0)
    assert report["status"] == "failed" and report["reason"] == "the wheel fell off" and len(calls) == 2
    assert "in play_for" in report["trace"]


def test_a_trial_that_raises_leaves_nothing_open(tmp_path, monkeypatch):
    from slm_lab.experiment.session import Session

    run, raw = new_search(tmp_path, meta__tensorboard=True)
    plan(run, raw, Ledger(run), {GAMMA: 0.93, CORE: "none"})
    closed: list[Session] = []

    def breaks(self: Session, *until: float) -> None:
        self.env.close = lambda: closed.append(self)  # type: ignore[method-assign]
        raise ValueError("the wheel fell off")

    work = make_work(str(run.path), 0, "final_return", 0)
    for part in ("play_for", "_begin"):
        with monkeypatch.context() as patch:
            patch.setattr(Session, part, breaks)
            assert work.advance(1.0)["status"] == "failed"
    assert len(closed) == 2 and closed[0].board.all_writers is None
    assert played(work)["status"] == "done", "a warm worker can go on"


def test_what_other_trials_hold_makes_none_invalid(tmp_path, monkeypatch):
    from slm_lab.experiment.search.engine import Planner, Trouble, _check_memory

    parts = {"agent__algorithm": {"name": "DQN", "training_start_step": 100}, "agent__memory": {"name": "Replay"}}
    run, raw = new_search(tmp_path, **parts, meta__max_session=8)
    ledger, spec = Ledger(run), run.stored_spec()
    _check_memory(spec, raw, run, 2)
    ram = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: ram._replace(available=4_000_000))  # a memory has 2.4 MB
    _check_memory(spec, raw, run, 1)
    with pytest.raises(LabError, match=r"in each of 2 memories need 4.8 MB(.|\n)*meta.search_resources"):
        _check_memory(spec, raw, run, 2)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: ram._replace(available=1000))
    planner = Planner(spec, raw, run, ledger, VARIABLES, 2, Trouble())
    assert planner.suggest("a") == {"trial": 0} and ledger.trials[0].status == "planned"
    assert played(make_work(str(run.path), 0, "final_return", 0))["status"] == "done"
    monkeypatch.setattr(psutil, "virtual_memory", lambda: ram._replace(total=1000))
    planner.suggest("b")
    assert ledger.trials[1].status == "invalid", "it could never fit"


def test_sessions_at_once_share_the_cores_with_their_rollout_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    world = SimpleNamespace(num_envs=1)
    for workers, count in ((False, 6), ({"workers": 3}, 2), ({"workers": 16}, 1)):
        spec = resolve(raw_spec(meta__max_session=6, meta__distributed=workers), "x", check_env=False)
        assert memories(spec, world) == count  # type: ignore[arg-type]


def test_trials_report_at_the_rungs_where_asha_compares_them(tmp_path):
    from slm_lab.experiment.search.engine import _scheduler

    rungs = {"grace_period": 40, "reduction_factor": 2}
    run, raw = new_search(tmp_path, env__num_envs=1, meta__search_scheduler=rungs)
    plan(run, raw, Ledger(run), {GAMMA: 0.93, CORE: "none"})
    work = make_work(str(run.path), 0, "final_return", 0)
    frames = []
    while (report := work.advance(60.0))["status"] == "running":
        frames.append(report["frame"])
    assert frames == [40, 80, 160] and report["frame"] == 200 and report["stride"] == 1

    asha = _scheduler(run.stored_spec())
    decisions = []
    for name, value in (("good", 3.0), ("bad", 1.0), ("unknown", float("nan")), ("better", 4.0)):
        trial = SimpleNamespace(trial_id=name, config={}, stub=False)
        asha.on_trial_add(None, trial)
        decisions.append(asha.on_trial_result(None, trial, {"frame": 40, "value": value, "stride": 1}))
    assert decisions == ["CONTINUE", "STOP", "CONTINUE", "CONTINUE"]


@pytest.mark.filterwarnings("ignore:All-NaN")  # as in a search
def test_a_trial_that_goes_on_is_no_measure_for_those_that_begin(tmp_path):
    from slm_lab.experiment.search.engine import _scheduler

    run, _ = new_search(tmp_path, meta__search_scheduler={"grace_period": 100, "reduction_factor": 2})
    asha = _scheduler(run.stored_spec())

    def told(name: str, frame: int, value: float) -> str:
        trial = SimpleNamespace(trial_id=name, config={}, stub=False)
        if name not in asha._trial_info:
            asha.on_trial_add(None, trial)
        return str(asha.on_trial_result(None, trial, {"frame": frame, "value": value, "stride": 4}))

    for frame in range(6500, 7500, 100):
        assert told("goes on", frame, 90.0) == "CONTINUE"
    assert told("ends", 0, math.nan) == "CONTINUE"
    asha.on_trial_complete(None, SimpleNamespace(trial_id="ends"), {"frame": 7500, "value": 90.0, "stride": 4})
    assert [told("begins", frame, 2.0) for frame in (100, 203, 6400)] == ["CONTINUE"] * 3
    assert told("lags", 100, 1.0) == "STOP", "beside one that began as it did"


def test_a_full_disk_is_no_fault_of_the_trial(tmp_path, monkeypatch):
    from slm_lab.experiment.search.engine import Bookkeeper, Trouble

    run, raw = new_search(tmp_path)
    ledger = Ledger(run)
    plan(run, raw, ledger, {GAMMA: 0.93, CORE: "none"})

    def play_for(self, *until):
        raise OSError(28, "No space left on device")

    def save(path, *args):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    reports = []
    for place, broken in (("slm_lab.experiment.session.Session.play_for", play_for), ("torch.save", save)):
        with monkeypatch.context() as patch:
            patch.setattr(place, broken)
            work = make_work(str(run.path), 0, "final_return", 1)
            reports.append(work.advance(60.0))
            work._drop()
    assert [report["status"] for report in reports] == ["full", "full"]
    assert all("Free some space" in report["reason"] for report in reports)

    trouble = Trouble()
    display = SearchDisplay("", ledger, VARIABLES, run.stored_spec().meta, 1, Console(quiet=True))
    book = Bookkeeper(ledger, "final_return", display, lambda: None, trouble)
    result = {**reports[0], "node": "here", "pid": 1}
    trial = SimpleNamespace(config={"trial": 0}, last_result=result)
    book.on_trial_result(0, [], trial, result)
    book.on_trial_complete(0, [], trial)
    assert trouble.stop_all() and "trial 0: can't write" in str(trouble.found)
    assert [t.index for t in Ledger(run).with_status("running")] == [0], "a search that goes on runs it again"


def test_a_trial_waits_for_the_worker_of_a_killed_search(tmp_path, monkeypatch):
    run, raw = new_search(tmp_path)
    trial = run.of_trial(plan(run, raw, Ledger(run), {GAMMA: 0.93, CORE: "none"}))
    trial.model.mkdir(parents=True)
    monkeypatch.setattr("slm_lab.experiment.search.work.PATIENCE", 0.1)
    with trial.lock(0):
        report = make_work(str(run.path), 0, "final_return", 0).advance(1.0)
    assert report["status"] == "failed" and "is being trained by process" in report["reason"]


@pytest.mark.parametrize("name", ["n" * 100, "ä" * 75])
def test_the_best_spec_has_a_name_that_it_can_be_trained_by(tmp_path, name):
    run = RunDir.create(tmp_path, name, {"name": name, **resolve(raw_spec(), name, check_env=False).dump()}, "search")
    ended(Ledger(run), 0.9, 1.0)
    run.of_trial(0).spec_file.write_text(run.spec_file.read_text())
    write_results(run, Ledger(run), VARIABLES, run.stored_spec().meta)
    ((best, raw),) = json.loads((run.path / "best_spec.json").read_text()).items()
    assert resolve(raw, best, check_env=False).name == best and best.endswith("_t0")


def test_checkpoints_of_the_best_are_kept(tmp_path):
    run, _ = new_search(tmp_path, meta__keep_trials=2)
    ledger = Ledger(run)
    for i, value in enumerate((1.0, 3.0, None, 2.0)):
        ended(ledger, 0.9 + i / 100, value, "done" if value else "failed")
        run.of_trial(i).model.mkdir(parents=True)
    ledger.append("planned", 4, point={GAMMA: 0.95, CORE: "none"})
    run.of_trial(4).model.mkdir(parents=True)
    prune(run, ledger, run.stored_spec().meta)
    assert sorted(p.name for p in run.model.glob("t*")) == ["t1", "t3", "t4"]


def test_a_baseline_is_measured_once_by_all(tmp_path):
    spec = resolve(raw_spec(), "x", check_env=False)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.starmap(random_return, [(spec, tmp_path)] * 2)
    assert len(set(found)) == 1 and len(json.loads((tmp_path / "random_baseline.json").read_text())) == 1


# ---- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[], [None], [1.0], [1.0, None, 2.0, 3.0, 1.5, 0.5]], ids=str)
def test_the_page_has_no_empty_panels(tmp_path, values):
    run, _ = new_search(tmp_path, meta__png=False)
    ledger = Ledger(run)
    for i, value in enumerate(values):
        ended(ledger, 0.9 + i / 100, value, "done" if value else "failed", ["none", "GRU"][i % 2])
        run.of_trial(i).spec_file.write_text(run.spec_file.read_text())
    search.redraw(run, Console(quiet=True))
    drawn = {p.stem.removeprefix("x_experiment_graph_") for p in run.graph.glob("*_experiment_graph_*.html")}
    done = [value for value in values if value is not None]
    assert drawn == ({"variables", "parallel_coordinates"} if done else set()) | (
        {"importance"} if len(done) > 3 else set()
    )
    assert (run.info / "experiment_df.csv").exists() == bool(values), "an empty table can't be read"
    if values:
        page = (run.path / "report.html").read_text()
        assert "nan" not in page.split("The resolved spec")[0].replace("final", "")
        assert ("it broke" in page) == (None in values)


@pytest.mark.parametrize("value", [1.0, 0.0, -200.0])
def test_trials_that_tie_are_drawn_at_their_value(tmp_path, value):
    run, _ = new_search(tmp_path)
    ledger = Ledger(run)
    for gamma in (0.9, 0.95):
        ended(ledger, gamma, value)
    figure = parallel(Experiment(run, "x", ledger, VARIABLES, run.stored_spec().meta))
    marks = {float(a.text): a.y for a in figure.layout.annotations if a.x == len(VARIABLES)}
    assert [trace.y[-1] for trace in figure.data] == [pytest.approx(marks[value])] * 2


@pytest.mark.parametrize("count", [1, 2])
def test_the_importance_of_one_variable_says_nothing(tmp_path, count):
    run, _ = new_search(tmp_path)
    ledger = Ledger(run)
    for i in range(6):
        ended(ledger, 0.9 + i / 100, i * i, core=["none", "GRU"][i % 2])
    figure = importance(Experiment(run, "x", ledger, VARIABLES[:count], run.stored_spec().meta))
    assert (figure is None) == (count == 1)
    assert figure is None or figure.layout.height * (1 - figure.layout.title.y) == pytest.approx(22)  # or it is cut


def last_words(run: RunDir) -> str:
    page = io.StringIO()
    search.redraw(run, Console(file=page, width=200))
    return page.getvalue()


def planned_of(run: RunDir, *values: tuple[float, float | None]) -> None:
    for i, (value, std) in enumerate(values):
        ended(Ledger(run), 0.9 + i / 100, value, std=std)
        run.of_trial(i).spec_file.write_text(run.spec_file.read_text())


def test_the_spread_over_seeds_is_told(tmp_path):
    run, _ = new_search(tmp_path, meta__png=False, meta__max_session=3)
    planned_of(run, (1.0, 0.25), (0.5, 0.125))
    assert "trial 0: final_return 1 ± 0.25 (mean of 3 seeds)" in last_words(run)
    page = (run.path / "report.html").read_text()
    assert "1 ± 0.25<" in page and "0.5 ± 0.125<" in page and "± std over the 3 seeds" in page
    lone, _ = new_search(tmp_path / "lone", meta__png=False)
    planned_of(lone, (1.0, None))
    assert "trial 0: final_return 1\n" in last_words(lone)
    assert "±" not in (lone.path / "report.html").read_text().split("The resolved spec")[0]


def test_the_learning_curves_say_that_they_are_means_over_seeds(tmp_path):
    run, raw = new_search(tmp_path, meta__max_session=2)
    index = plan(run, raw, Ledger(run), {GAMMA: 0.9, CORE: "none"})
    table = "epi,frame,opt_step,wall_t,total_reward,total_reward_ma\n1,100,1,1,1,1\n2,200,2,2,2,2\n"
    for session in range(2):
        run.of_trial(index).session_file(session, "session_df_train.csv").write_text(table)
    Ledger(run).append("done", index, metrics={"final_return": 2.0}, seconds=1.0)
    figure = multi_trial(Experiment(run, "x", Ledger(run), VARIABLES, run.stored_spec().meta))
    assert "1 trial, each the mean of 2 seeds" in figure.layout.title.text


def test_trials_that_tie_are_all_named_and_the_first_is_taken(tmp_path):
    run, _ = new_search(tmp_path, meta__png=False)
    planned_of(run, (0.5, None), (1.0, None), (1.0, None))
    words = last_words(run)
    assert "2 trials tie at final_return 1: 1, 2" in words and "best_spec.json and enjoy are of trial 1" in words
    assert "_t1" in (run.path / "best_spec.json").read_text() and best_run(run).trial == 1
    page = (run.path / "report.html").read_text()
    assert "final return of 2 trials that tie" in page and "The best trial's spec (t1)" in page.replace("&#x27;", "'")
    assert "of the best of 3 trials (2 of them tie)" in (tmp_path / "index.html").read_text()
    display = SearchDisplay("", Ledger(run), VARIABLES, run.stored_spec().meta, 3, Console(quiet=True))
    assert "best: 2 trials tie at final_return 1" in shown(display)


def test_a_search_where_nothing_ended_well_is_an_error(tmp_path):
    run, _ = new_search(tmp_path, meta__max_trial=2, meta__png=False)
    ledger = Ledger(run)
    ended(ledger, 0.9, None, "failed")
    ended(ledger, 0.91, None, "failed")
    page = io.StringIO()
    with pytest.raises(LabError, match="no trial has ended well"):
        search.resume(run, None, False, Console(file=page), None, None)
    assert page.getvalue().count("it broke") == 1, "the same reason once"


def test_a_ledger_that_cannot_be_written_ends_the_search(tmp_path, monkeypatch):
    from slm_lab.experiment.search.engine import Bookkeeper, Trouble

    run, raw = new_search(tmp_path)
    ledger = Ledger(run)
    plan(run, raw, ledger, {GAMMA: 0.95, CORE: "none"})
    display = SearchDisplay("", ledger, VARIABLES, run.stored_spec().meta, 1, Console(quiet=True))
    trouble = Trouble()
    book = Bookkeeper(ledger, "final_return", display, lambda: None, trouble)
    result = {"status": "done", "frame": 200, "value": 3.0, "metrics": {"final_return": 3.0}, "seconds": 1.0,
              "node": "here", "pid": 1, "max_frame": 200, "fps": 1.0, "return": 3.0}  # fmt: skip
    trial = SimpleNamespace(config={"trial": 0}, last_result=result)
    monkeypatch.setattr(ledger, "path", tmp_path / "gone" / "ledger.jsonl")
    book.on_trial_result(0, [], trial, result)
    assert trouble.stop_all() and "can't write" in str(trouble.found)
    monkeypatch.undo()
    book.on_trial_complete(0, [], trial)
    assert Ledger(run).trials[0].status == "planned", "it goes on with the trial that it could not write about"


# ---- what is seen while it runs --------------------------------------------------------------------------------------


def test_the_live_view_shows_the_running_the_best_and_the_failed(tmp_path):
    run, _ = new_search(tmp_path)
    ledger = Ledger(run)
    meta = run.stored_spec().meta
    ended(ledger, 0.9, 12.5)
    ended(ledger, 0.91, None, "failed")
    ledger.append("planned", 2, point={GAMMA: 0.95, CORE: "GRU"})
    screen = Console(force_terminal=True, width=120, file=io.StringIO())
    display = SearchDisplay("x: search", ledger, VARIABLES, meta, 5, screen)
    display.wait_for("starting Ray")
    assert "starting Ray" in shown(display)
    report = {"status": "running", "frame": 50, "max_frame": 200, "fps": 10.0, "return": 3.25}
    display.report(ledger.trials[2], report)
    view = shown(display)
    assert "starting Ray" not in view and "of 5 trials 1 done, 1 failed, best: trial 0, final_return 12.5" in view
    for part in ("50", "10", "3.25", "15 s", "gamma 0.95, core.name GRU"):
        assert part in view


def shown(display: SearchDisplay) -> str:
    page = Console(width=140, file=io.StringIO())
    page.print(display._view())
    return page.file.getvalue()


def test_a_drawing_that_fails_stops_nothing(monkeypatch, caplog):
    monkeypatch.setattr("slm_lab.experiment.search.redraw.FIRST", 0.0)
    drawn = threading.Event()

    def draw() -> None:
        drawn.set()
        raise OSError("no space")

    with Redraw(draw) as redraw:
        redraw.wanted.set()
        assert drawn.wait(10)
    assert "weren't drawn" in caplog.text
