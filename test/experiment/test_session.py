"""The control loop: equal seeds give equal numbers, killed and resumed runs too."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import pydash
import pytest
import torch
from gymnasium import spaces
from small_specs import ROOT, make_spec, raw_spec

from slm_lab.agent import checkpoint
from slm_lab.experiment.run_dir import RunDir
from slm_lab.experiment.session import Progress, Session
from slm_lab.experiment.tracker import WALL, Table, Tracker
from slm_lab.experiment.trial import run_alone, run_sessions
from slm_lab.lib.errors import LabError
from slm_lab.lib.types import Step
from slm_lab.spec.lab_spec import LabSpec

RECURRENT = {
    "agent__net": {"name": "MLP", "hid_layers": [8], "shared": True, "core": {"name": "GRU", "hidden_size": 8}},
    "env": {"name": "MemoryTask", "delay": 5, "num_envs": 4, "max_frame": 2000, "prev_action": True},
    "meta__rigorous_eval": 4,
    "meta__eval_frequency": 500,
}
WRAPPED = {
    "agent__algorithm": {"name": "A2C", "training_frequency": 7},
    "env": {"name": "Pendulum-v1", "num_envs": 3, "max_frame": 2000, "normalize_obs": True, "normalize_reward": True},
}
EPISODIC = {
    "agent__algorithm": {"name": "REINFORCE", "training_frequency": 3},
    "agent__memory": {"name": "OnPolicyReplay"},
    "agent__net__core": {"name": "LSTM", "hidden_size": 8},
}
LATE = {"training_frequency": 4, "training_start_step": 100}
DDQN_PER = {
    "agent__algorithm": {"name": "DoubleDQN", **LATE, "update_frequency": 20, "dueling": True},
    "agent__memory": {"name": "PrioritizedReplay", "max_size": 900, "batch_size": 16, "n_step": 3, "use_cer": True},
}
SAC = {
    "agent__algorithm": {"name": "SAC", **LATE},
    "agent__memory": {"name": "Replay", "max_size": 900, "batch_size": 16},
    "agent__net__head_hid_layers": [8],
    "env": {"name": "Pendulum-v1", "num_envs": 2, "max_frame": 2000},
}
DRQN = {
    "agent__algorithm": {"name": "DQN", **LATE, "update_type": "polyak", "update_frequency": 1},
    "agent__memory": {
        "name": "SequenceReplay", "max_size": 900, "batch_size": 4, "sequence_length": 12, "burn_in": 2, "carry_every": 5,
        "prioritized": True,
    },
    "agent__net": {"name": "MLP", "hid_layers": [8], "core": {"name": "LSTM", "hidden_size": 8}},
    "env": {"name": "MemoryTask", "delay": 5, "num_envs": 4, "max_frame": 2000, "prev_action": True},
}  # fmt: skip
OFF_POLICY: dict[str, dict[str, Any]] = {"ddqn_per": DDQN_PER, "sac": SAC, "drqn": DRQN}
KINDS: dict[str, dict[str, Any]] = {
    "memoryless": {}, "recurrent": RECURRENT, "wrapped": WRAPPED, "episodic": EPISODIC, **OFF_POLICY,
}  # fmt: skip


def start(tmp_path: Path, spec: LabSpec) -> RunDir:
    return RunDir.create(tmp_path, spec.name, {"name": spec.name, **spec.dump()}, "train")


def finish(spec: LabSpec, run: RunDir, index: int = 0) -> Progress:
    return Session(spec, run, index, lambda progress: None).run()


def tables(run: RunDir, session: int = 0) -> dict[str, pd.DataFrame]:
    """The session's numbers without those of the clock."""
    files = sorted(run.info.glob(f"*_s{session}_session_df_*.csv"))
    assert files
    return {file.name: pd.read_csv(file).drop(columns=list(WALL), errors="ignore") for file in files}


def assert_same(a: dict[str, pd.DataFrame], b: dict[str, pd.DataFrame]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        pd.testing.assert_frame_equal(a[name], b[name], check_exact=True)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_equal_numbers(tmp_path: Path, kind: str) -> None:
    spec = make_spec(**KINDS[kind])
    runs = [start(tmp_path / str(i), spec) for i in range(3)]
    for run, index in zip(runs, (0, 0, 1), strict=True):
        assert finish(spec, run, index).status == "done"
    assert_same(tables(runs[0]), tables(runs[1]))
    first, other = (next(iter(tables(run, index).values())) for run, index in ((runs[0], 0), (runs[2], 1)))
    assert not first.equals(other), "another seed gives other numbers"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [[1], [37, 38], [250, 401]])
def test_interrupted_anywhere_it_goes_on_to_the_bit(tmp_path: Path, kind: str, cuts: list[int]) -> None:
    """A session dropped without warning `cut` steps after a checkpoint, in a fresh object each time."""
    spec = make_spec(**KINDS[kind])
    whole, broken = start(tmp_path / "whole", spec), start(tmp_path / "broken", spec)
    finish(spec, whole)
    steps = 0
    for cut in cuts:
        session = Session(spec, broken, 0, lambda progress: None)
        session._begin()
        while steps < cut:
            session._advance()
            steps += 1
        session._save()
        for _ in range(11):  # lived, but lost: the checkpoint is older
            session._advance()
    finish(spec, broken)
    assert_same(tables(whole), tables(broken))


@pytest.mark.parametrize("kind", ["memoryless", "recurrent", *OFF_POLICY])
def test_kill_9_and_resume_is_exact(tmp_path: Path, kind: str) -> None:
    """The real command, killed with SIGKILL at three moments and continued, against one left alone."""
    raw = raw_spec(**KINDS[kind], env__max_frame=5000, meta__checkpoint_frequency=200)
    file = tmp_path / "specs.json"
    file.write_text(json.dumps({"test": raw}))

    def command(data: str, mode: str) -> list[str]:
        return [sys.executable, str(ROOT / "run_lab.py"), str(file), mode, "--data", str(tmp_path / data)]

    alone = subprocess.Popen(command("alone", "train"), stdout=subprocess.DEVNULL)
    mode, killed = "train", 0
    for moment in (300, 1500, 3000):
        process = subprocess.Popen(command("killed", mode), stdout=subprocess.DEVNULL)
        killed += _kill_at(process, tmp_path / "killed", moment)
        mode = "train@latest"
    subprocess.run(command("killed", mode), check=True, stdout=subprocess.DEVNULL)
    assert alone.wait() == 0
    assert killed == 3
    runs = [RunDir.find(tmp_path / data, None, "latest") for data in ("alone", "killed")]
    assert len(list((tmp_path / "killed").glob("*/spec.json"))) == 1, "the same run went on"
    assert_same(tables(runs[0]), tables(runs[1]))
    metrics = [json.loads(next(run.info.glob("*_trial_metrics.json")).read_text())["scalar"] for run in runs]
    assert pydash.omit(metrics[0], *WALL) == pydash.omit(metrics[1], *WALL)


@pytest.mark.parametrize("memory", [{}, {"name": "StrategicMemory", "persist": True}], ids=["", "persist"])
def test_another_number_of_worlds_is_told(tmp_path: Path, memory: dict[str, Any]) -> None:
    keys = {"agent__memory": memory, "agent__net__shared": True} if memory else {}
    spec = make_spec(env__max_frame=40, **keys)
    run = start(tmp_path, spec)
    finish(spec, run)
    facts = json.loads(run.spec_file.read_text())
    facts["env"] |= {"num_envs": 8, "max_frame": 80}
    run.spec_file.write_text(json.dumps(facts))
    session = Session(run.stored_spec(), run, 0, lambda progress: None)
    with pytest.raises(LabError, match=r"env\.num_envs is 8 in .*spec\.json, but 4 worlds were saved") as told:
        session.run()
    assert "\n" not in str(told.value)


def _kill_at(process: subprocess.Popen[bytes], data: Path, frame: int) -> int:
    """SIGKILL the process when its checkpoint has reached this frame; 1 if it was still running then."""
    while process.poll() is None:
        pointers = list(data.glob("*/model/session0.json"))
        if pointers and json.loads(pointers[0].read_text())["frame"] >= frame:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return 1
        time.sleep(0.002)
    return 0


def test_an_env_that_cannot_be_saved_goes_on_from_new_episodes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = make_spec(env={"name": "MemoryTask", "delay": 50, "num_envs": 2, "max_frame": 600, "normalize_obs": True})
    run = start(tmp_path, spec)
    session = Session(spec, run, 0, lambda progress: None)
    session._begin()
    for _ in range(75):  # in the middle of an episode
        session._advance()
    session.env.state_dict = lambda: None  # type: ignore[method-assign,assignment,return-value]
    session._save()
    moments = session.env.wrapper_state()
    session = Session(spec, run, 0, lambda progress: None)
    session._begin()
    assert "can't be saved" in caplog.text
    assert session.step.is_first.all()
    assert str(session.env.wrapper_state()) != "{}"
    assert max(abs(session.step.obs["obs"]).max(), 0.0) > 0, "the first observation is normalised by what was learned"
    assert moments.keys() == session.env.wrapper_state().keys()
    assert session.run().status == "done"
    lengths = next(iter(tables(run).values()))["episode_length"].dropna()
    assert set(lengths) == {50.0}, "no episode is glued from two"


def test_a_replay_survives_worlds_that_cannot_be_saved(tmp_path: Path) -> None:
    """What it holds stays; the episodes that were cut off end as truncated, with what was seen last after them."""
    spec = make_spec(**{**DDQN_PER, "env": {"name": "MemoryTask", "delay": 50, "num_envs": 2, "max_frame": 600}})
    run = start(tmp_path, spec)
    session = Session(spec, run, 0, lambda progress: None)
    session._begin()
    for _ in range(75):
        session._advance()
    session.env.state_dict = lambda: None  # type: ignore[method-assign,assignment,return-value]
    session._save()
    seen = session.step.obs["obs"]
    session = Session(spec, run, 0, lambda progress: None)
    session._begin()
    rows, worlds = session.agent.memory.rows, np.arange(2)  # type: ignore[union-attr]
    last = np.full(2, 74)
    assert rows.size == 76
    assert rows.done(rows.place(last, worlds))["truncated"].all()
    np.testing.assert_array_equal(rows.obs(rows.place(last + 1, worlds))["obs"], seen)
    assert not rows.played(rows.place(last + 1, worlds)).any(), "the row between two worlds was played by nobody"
    assert session.run().status == "done"


def test_sessions_run_in_parallel_and_one_that_dies_does_not_stop_the_others(tmp_path: Path) -> None:
    spec = make_spec(meta__max_session=3)
    run = start(tmp_path, spec)
    (run.model / "session1.json").write_text("{}")  # session 1 will find a foreign checkpoint
    seen: list[Progress] = []
    last = run_sessions(spec, run, seen.append)
    assert [p.status for p in last] == ["done", "failed", "done"]
    assert "isn't a checkpoint" in last[1].message
    assert json.loads((run.info / "failures.json").read_text())[0]["session"] == 1
    assert not tables(run, 0)["test_t0_s0_session_df_train.csv"].equals(
        tables(run, 2)["test_t0_s2_session_df_train.csv"]
    )
    (run.model / "session1.json").unlink()
    assert [p.status for p in run_sessions(spec, run, seen.append)] == ["done"] * 3
    assert not (run.info / "failures.json").exists()


@pytest.mark.parametrize("train", [run_alone, run_sessions])
def test_a_failure_of_before_is_none_while_sessions_run_again(tmp_path: Path, train: Any) -> None:
    spec = make_spec(env__max_frame=40)
    run = start(tmp_path, spec)
    failures, seen = run.info / "failures.json", list[bool]()
    failures.write_text('[{"session": 0, "error": "mended since"}]')
    train(spec, run, lambda progress: seen.append(failures.exists()))
    assert not any(seen)


def full(*args: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


class FullBoard:
    """TensorBoard's writer once its thread has met a full disk."""

    add_summary = close = full

    @property
    def file_writer(self) -> FullBoard:
        return self


@pytest.mark.parametrize("until", [0, 2000], ids=["a row", "the end"])
def test_a_full_disk_costs_the_board_not_the_session(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, until: int
) -> None:
    spec = make_spec()
    session = Session(spec, start(tmp_path, spec), 0, lambda progress: None)
    session.begin()
    while session.play_for(1.0, until=until):
        pass
    session.board = FullBoard()
    while session.play_for(1.0):
        pass
    assert session.finish().status == "done"
    assert caplog.text.count("no more for TensorBoard") == 1


def test_a_table_that_a_full_disk_cannot_hold_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(env__max_frame=40)
    monkeypatch.setattr(Table, "write", full)
    last, _ = run_alone(spec, start(tmp_path, spec), lambda progress: None)
    assert "can't write to" in last.message and "Free some space" in last.message and "\n" not in last.message


def test_what_memory_cannot_hold_is_told_in_one_line(tmp_path: Path) -> None:
    spec = make_spec(agent__net__hid_layers=[10**13])
    (last,) = run_sessions(spec, start(tmp_path, spec), lambda progress: None)
    assert last.status == "failed" and "\n" not in last.message and "Traceback" in last.trace
    assert "can't allocate memory" in last.message and "Make agent.net" in last.message


def test_processes_give_the_numbers_that_one_process_gives(tmp_path: Path) -> None:
    spec = make_spec(meta__max_session=2)
    here, there = start(tmp_path / "here", spec), start(tmp_path / "there", spec)
    for i in range(2):
        finish(spec, here, i)
    run_sessions(spec, there, lambda progress: None)
    for i in range(2):
        assert_same(tables(here, i), tables(there, i))


def test_a_run_is_trained_once_at_a_time(tmp_path: Path) -> None:
    spec = make_spec()
    run = start(tmp_path, spec)
    with run.lock(0), pytest.raises(LabError, match=f"process {os.getpid()}"), run.lock(0):
        pass


def test_a_parameter_that_cannot_learn_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slm_lab.agent.algorithm.ppo import PPO

    spec = make_spec(env__max_frame=300)
    session = Session(spec, start(tmp_path / "a", spec), 0, lambda progress: None, check=True)
    session.run()
    assert session.check_report() == []
    monkeypatch.setattr(PPO, "scales", lambda self, frame: {"value_loss": 0.0, "entropy": 0.0})
    session = Session(spec, start(tmp_path / "b", spec), 0, lambda progress: None, check=True)
    session.run()
    report = session.check_report()
    assert report
    assert all("no gradient ever reached it" in line for line in report)
    assert any(line.startswith("heads.value") for line in report)


def test_what_the_spec_leaves_untaught_is_not_reported(tmp_path: Path) -> None:
    """Without hindsight nothing teaches StrategicMemory what to keep: that is no fault to look for."""
    memory = {"name": "StrategicMemory", "slots": 8, "hindsight_coef": 0}
    spec = make_spec(agent__memory=memory, agent__net__shared=True, env__max_frame=1000)
    session = Session(spec, start(tmp_path, spec), 0, lambda progress: None, check=True)
    session.run()
    assert session.check_report() == []


def test_log_rows_come_at_their_frequency_whatever_the_envs(tmp_path: Path) -> None:
    for num_envs in (1, 3, 8):
        spec = make_spec(env__num_envs=num_envs, meta__log_frequency=250)
        run = start(tmp_path / str(num_envs), spec)
        finish(spec, run)
        frames = next(iter(tables(run).values()))["frame"].to_numpy()
        np.testing.assert_array_equal(frames // 250, np.arange(1, 9))


@pytest.mark.parametrize("was", [0, 2], ids=["evaluation turned on", "evaluation turned off"])
def test_each_thing_comes_at_its_own_frequency_also_when_evaluation_is_switched_at_resume(
    tmp_path: Path, was: int
) -> None:
    every = {"log": 250, "eval": 300, "checkpoint": 170}
    keys = {f"meta__{name}_frequency": frames for name, frames in every.items()}
    spec = make_spec(env__num_envs=1, meta__rigorous_eval=was, **keys)
    run, seen = start(tmp_path, spec), dict[str, list[int]]()
    for half, evaluates in ((1000, was), (2000, 2 - was)):
        part = make_spec(env__num_envs=1, meta__rigorous_eval=evaluates, env__max_frame=half, **keys)
        session = Session(part, run, 0, lambda progress: None)
        for name, does in (("log", "_log"), ("eval", "_evaluate"), ("checkpoint", "_save")):
            note_frames(session, does, seen.setdefault(name, []))
        session.begin()
        while session.play_for(1.0, until=half):
            pass
        session._save()
    assert seen["log"] == list(range(250, 2001, 250))
    assert seen["eval"] == (list(range(300, 1000, 300)) if was else list(range(1200, 2001, 300)))
    assert seen["checkpoint"] == sorted([*range(170, 1001, 170), 1000, *range(1020, 2001, 170), 2000])


def note_frames(session: Session, does: str, seen: list[int]) -> None:
    done = getattr(session, does)

    def noted() -> None:
        seen.append(session.frame)
        done()

    setattr(session, does, noted)


def test_tracker_counts_raw_returns_per_env() -> None:
    tracker = Tracker(2)
    no = np.zeros(2, bool)

    def step(raw: list[float], ended: list[bool], first: list[bool]) -> Step:
        return Step({}, np.zeros(2, np.float32), np.array(first), np.array(ended), no, np.array(raw))

    tracker.update(step([1, 10], [False, False], [False, False]), [])
    tracker.update(step([2, 20], [True, False], [False, False]), [])
    tracker.update(step([99, 30], [False, True], [True, False]), [])  # env 0 restarts: its reward is no one's
    tracker.update(step([4, 77], [True, False], [False, True]), [])
    assert list(tracker.returns) == [3, 60, 4]
    row = tracker.log(frame=6, opt_step=0, wall_t=1.0)
    assert row["epi"] == 3
    assert row["total_reward"] == (4 + 60) / 2
    assert row["episode_length"] == (1 + 3) / 2


def test_one_torch_thread_a_session_unless_the_spec_says_otherwise(tmp_path: Path) -> None:
    try:
        for threads in (1, 2):
            torch.set_num_threads(3)
            spec = make_spec(meta__torch_threads=threads)
            Session(spec, start(tmp_path / str(threads), spec), 0, lambda progress: None)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)


def test_the_best_agent_is_saved_as_it_was_when_it_was_best(tmp_path: Path) -> None:
    spec = make_spec()
    run = start(tmp_path, spec)
    session = Session(spec, run, 0, lambda progress: None)
    session._begin()
    then = {name: p.detach().clone() for name, p in session.agent.named_parameters()}
    session._keep_best(1.0)
    while session.agent.opt_step == 0:
        session._advance()
    session._save()
    best = checkpoint.load(run.model, "session0_best")
    assert best is not None
    assert best["frame"] == 0
    assert all(torch.equal(p, then[name]) for name, p in best["algorithm"]["net"].items() if name in then)
    assert not all(torch.equal(p, then[name]) for name, p in session.agent.named_parameters())


def test_a_table_reads_back_as_it_was(tmp_path: Path) -> None:
    rows = [
        {"frame": 1, "loss": 0.1 + 0.2, "total_reward": float("nan")},
        {"frame": 10**9, "entropy": 1e-30, "total_reward": -3.0},
    ]
    Table(tmp_path / "rows.csv").write(rows)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "rows.csv"), pd.DataFrame(rows), check_exact=True)
    assert "nan" not in (tmp_path / "rows.csv").read_text(), "nothing, where no episode has ended"
    Table(tmp_path / "none.csv").write([])
    assert (tmp_path / "none.csv").stat().st_size == 1, "what the reader takes for no table"


def test_a_table_that_grows_is_as_one_that_is_written_at_once(tmp_path: Path) -> None:
    """Also where a column comes late."""
    rows: list[dict[str, float]] = [
        {"frame": i, "loss": i / 3} | ({"late": i * 1.5} if i > 3 else {}) for i in range(6)
    ]
    growing = Table(tmp_path / "growing.csv")
    for count in (0, 0, 1, 3, 3, 5, 6):
        growing.write(rows[:count])
        at_once = Table(tmp_path / "once.csv")
        at_once.write(rows[:count])
        assert growing.path.read_bytes() == at_once.path.read_bytes()
    pd.testing.assert_frame_equal(pd.read_csv(growing.path), pd.DataFrame(rows), check_exact=True)


def test_one_lucky_episode_is_not_the_best_for_ever(tmp_path: Path) -> None:
    spec = make_spec()
    run = start(tmp_path, spec)
    session = Session(spec, run, 0, lambda progress: None)
    session._begin()
    for score, sure, kept in [
        (1.0, False, 1.0),
        (0.5, True, 0.5),
        (0.9, False, 0.5),
        (0.4, True, 0.5),
        (0.6, True, 0.6),
    ]:
        session._keep_best(score, sure)
        session._save()
        best = checkpoint.load(run.model, "session0_best")
        assert best is not None
        assert best["score"] == kept


@pytest.mark.parametrize("was", [0, 2], ids=["evaluation turned on", "evaluation turned off"])
def test_the_best_by_one_measure_never_stands_against_the_other(tmp_path: Path, was: int) -> None:
    spec, other = (make_spec(meta__rigorous_eval=n) for n in (was, 2 - was))
    run = start(tmp_path, spec)
    for part, score, best in ((spec, 195.0, 195.0), (other, None, -math.inf), (other, 150.0, 150.0)):
        session = Session(part, run, 0, lambda progress: None)
        session._begin()
        if score is not None:
            session._keep_best(score)
        assert session.best[1] == best
        session._save()
    kept = checkpoint.load(run.model, "session0_best")
    assert kept is not None
    assert kept["score"] == 150.0


def test_a_checkpoint_of_code_that_carried_other_things_is_told(tmp_path: Path) -> None:
    spec = make_spec(agent__net={"name": "MLP", "core": {"name": "GRU", "hidden_size": 4}})
    run = start(tmp_path, spec)
    session = Session(spec, run, 0, lambda progress: None)
    session._begin()
    for part in session.carry.values():
        part["now"] = part.pop("h")
    session._save()
    with pytest.raises(LabError, match="isn't of this run's spec, or of other code"):
        Session(spec, run, 0, lambda progress: None)._begin()


def test_a_kill_between_the_two_saves_leaves_the_best_to_beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec()
    run = start(tmp_path, spec)
    session = Session(spec, run, 0, lambda progress: None)
    session._begin()
    session._keep_best(150.0)
    session._save()
    session._keep_best(200.0)
    monkeypatch.setattr(session, "state_dict", full)
    with pytest.raises(OSError):
        session._save()
    session = Session(spec, run, 0, lambda progress: None)
    session._begin()
    assert session.best == (True, 200.0)


class Remembering(gymnasium.Env):
    """Pays what it was paid by the episodes that it had before: its own state outlives a reset."""

    observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)
    past = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t, self.past = self.t + 1, self.past + 1
        return np.zeros(1, np.float32), self.past, self.t == 5, False, {}


def test_evaluations_are_the_same_each_time_whatever_worlds_remember(tmp_path: Path) -> None:
    gymnasium.register("test/Remembering-v0", entry_point=Remembering, disable_env_checker=True)
    env = {"name": "test/Remembering-v0", "num_envs": 2, "max_frame": 120}
    spec = make_spec(env=env, meta__rigorous_eval=2, meta__eval_frequency=30)
    session = Session(spec, start(tmp_path, spec), 0, lambda progress: None)
    session.run()
    assert [row["total_reward"] for row in session.eval_rows] == [15.0] * 4
