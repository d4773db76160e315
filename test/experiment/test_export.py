"""A run's experience as a file, and runs that learn from the file alone."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from rich.console import Console
from small_specs import make_spec, raw_spec

from slm_lab.agent import checkpoint
from slm_lab.agent.algorithm.actor import OffPolicyActor
from slm_lab.agent.memory.offline import _columns, read_rows
from slm_lab.agent.memory.rows import Rows
from slm_lab.cli import main
from slm_lab.env.adapter import GymVec
from slm_lab.env.dataset import Dataset, write_dataset
from slm_lab.experiment.control import replot, resume
from slm_lab.experiment.enjoy import enjoy
from slm_lab.experiment.export import export
from slm_lab.experiment.run_dir import RunDir
from slm_lab.experiment.session import Session
from slm_lab.experiment.summary import finish
from slm_lab.experiment.tracker import WALL
from slm_lab.lib.errors import LabError, SpecError
from slm_lab.lib.types import Tree

DQN = {
    "agent__algorithm": {"name": "DQN", "training_frequency": 8, "training_start_step": 64, "update_frequency": 40},
    "agent__memory": {"name": "Replay", "max_size": 500, "batch_size": 16},
    "env__max_frame": 800,
}
QUIET = Console(quiet=True)


def trained(folder: Path, name: str = "player", session: int = 0, **changes: Any) -> RunDir:
    """A run of one session, to its end."""
    spec = make_spec(name, **changes)
    run = RunDir.create(folder, spec.name, {"name": spec.name, **spec.dump()}, "train")
    Session(spec, run, session, lambda progress: None).run()
    return run


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return trained(tmp_path_factory.mktemp("data"), **DQN)


@pytest.fixture(scope="module")
def file(player: RunDir) -> Path:
    return export(player, QUIET)


def same(a: Dataset, b: Dataset) -> bool:
    mine, theirs = a.columns(), b.columns()
    return mine.keys() == theirs.keys() and all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)


# ---- export ----------------------------------------------------------------------------------------------------------


def test_export_writes_what_the_memory_holds(player: RunDir, file: Path) -> None:
    assert file == player.path / "export" / "player_t0_s0_memory.npz"
    state = checkpoint.load(player.model, "session0")
    assert state is not None
    kept = state["agent"]["memory"]["rows"]
    slots = np.arange(kept["first"], kept["count"]) % 126
    assert kept["first"] > 0, "the ring has wrapped: the oldest row is not in its first slot"
    columns = Dataset(file).columns()
    for name in ("action", "reward", "terminated", "truncated"):
        assert columns[name].tobytes() == kept["data"]["done"][name][slots].tobytes()
    assert columns["obs.obs"][:-1].tobytes() == kept["data"]["obs"]["obs"][slots].tobytes()
    assert Dataset(file).file.facts["run"]["name"] == player.path.name


def test_both_formats_hold_the_same(player: RunDir, file: Path) -> None:
    assert same(Dataset(export(player, QUIET, "hdf5")), Dataset(file))


@pytest.mark.parametrize("explore", [False, True])
def test_episodes_are_as_many_as_asked_for_and_whole(player: RunDir, explore: bool) -> None:
    data = Dataset(export(player, QUIET, episodes=6, explore=explore))
    rows, E = read_rows(data), data.world.num_envs
    at = rows.place(np.arange(data.rows)[:, None], np.arange(E))
    done, played = rows.done(at), rows.played(at)
    ends = (done["terminated"] | done["truncated"])[played]
    assert ends.sum() == 6
    begins = rows.is_first(at)[played]
    assert begins.sum() == 6, "every row played belongs to one of them"
    twice = Dataset(export(player, QUIET, episodes=6, explore=explore))
    assert same(data, twice), "the same ones each time"


def test_exploring_episodes_differ_from_greedy_ones(player: RunDir) -> None:
    greedy = Dataset(export(player, QUIET, episodes=4)).columns()["action"].copy()
    exploring = Dataset(export(player, QUIET, episodes=4, explore=True)).columns()["action"]
    assert greedy.tobytes() != exploring.tobytes()


def test_what_has_learned_explores_by_its_policy_not_by_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SAC acts uniformly until its first gradient step, and the best checkpoint said of none."""
    run = trained(tmp_path, **{**DQN, "agent__algorithm": {"name": "SAC", "training_start_step": 64}})
    monkeypatch.setattr(OffPolicyActor, "uniform", lambda *_: pytest.fail("it has learned"))
    assert Dataset(export(run, QUIET, episodes=2, explore=True)).rows


def test_an_on_policy_run_has_only_episodes_to_give(tmp_path: Path) -> None:
    run = trained(tmp_path)
    with pytest.raises(LabError, match=r"OnPolicyBatchReplay keeps nothing.*--episodes N"):
        export(run, QUIET)
    assert not (run.path / "export").exists()
    assert Dataset(export(run, QUIET, episodes=2)).played > 0


def test_the_command_line(player: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(player.path), "--format", "hdf5", "--session", "0"]) == 0
    assert "player_t0_s0_memory.hdf5" in capsys.readouterr().out.replace("\n", "")
    wrong = {
        ("export",): "which run?",
        ("export", str(player.path), "--format", "csv"): "npz or hdf5",
        ("export", str(player.path), "--session", "3"): "sessions 0 to 0",
        ("export", str(player.path), "--episodes", "0"): "1 or more",
        ("export", str(player.path), "--explore"): "--episodes N",
        ("list", "--episodes", "3"): "--episodes is for export",
    }
    for words, expected in wrong.items():
        assert main(list(words)) == 2, words
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize("first", [0, 7])
def test_a_column_is_written_without_a_second_one_unless_the_ring_has_wrapped(first: int) -> None:
    rows = Rows(8)
    rows.first, rows.count = first, first + 5
    store = np.arange(27).reshape(9, 3)
    rows.action_dtype, rows.data = np.dtype(int), {"obs": {}, "is_first": store, "done": {"action": store}}
    column = dict(_columns(rows))["action"]
    np.testing.assert_array_equal(column, store[np.arange(first, first + 5) % 9])
    assert np.shares_memory(column, store) == (first == 0)


def test_a_run_that_has_ended_needs_neither_room_nor_its_dataset(
    player: RunDir, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "file.npz"
    shutil.copy(file, data)
    keys = offline(data, env__name="CartPole-v1", meta__rigorous_eval=2, meta__eval_frequency=400)
    reader = trained(tmp_path, "reader", **keys)
    data.unlink()
    nothing = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: nothing)
    for run, missing in ((player, "500 rows need 12.0 kB, but 1.0 kB"), (reader, "file.npz isn't there")):
        replot(run, tmp_path, QUIET)
        assert enjoy(run, QUIET, episodes=1)
        assert export(run, QUIET, episodes=1).exists()
        with pytest.raises(SpecError, match=missing):
            resume(run, tmp_path, QUIET)


def test_too_small_a_disk_is_told_before_the_run_has_a_folder(
    tmp_path: Path, spec_file: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the disk of the data folder that is asked, not that of temporary files."""
    usage = shutil.disk_usage(tmp_path)
    sizes = {tmp_path: 5000}
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=sizes.get(Path(place), 10**15)))
    spec = spec_file({"player": raw_spec(**DQN | {"agent__memory__storage": "memmap"})})
    assert main([str(spec), "train", "--data", str(tmp_path / "data" / "deep")]) == 2
    assert f"5.0 kB of the disk of {tmp_path} are free" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


# ---- learning from it ------------------------------------------------------------------------------------------------


def offline(file: Path, **changes: Any) -> dict[str, Any]:
    keys = {"name": "Dataset", "dataset": str(file), "num_envs": 4, "max_frame": 800}
    return copy.deepcopy(DQN | {"env": keys} | changes)


def test_a_run_from_a_file_learns_without_a_world(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("no world was to be played in")

    monkeypatch.setattr(GymVec, "step", never)
    monkeypatch.setattr(GymVec, "reset", never)
    run = trained(tmp_path, "reader", **offline(file))
    df = pd.read_csv(run.session_file(0, "session_df_train.csv"))
    assert df["opt_step"].iloc[-1] == (800 - 64) // 8
    assert df["loss"].notna().all()
    assert df["total_reward"].isna().all()
    assert finish(run, None, QUIET, png=False) is None, "metrics, graphs and report are written"
    assert (run.path / "report.html").stat().st_size > 1000
    assert list(run.graph.glob("*_trial_graph_variables_vs_frames.html"))
    kept = checkpoint.load(run.model, "session0")
    assert kept is not None
    assert kept["agent"]["memory"]["rows"]["count"] == Dataset(file).rows, "what it holds is the file's, to the end"
    assert same(Dataset(export(run, QUIET)), Dataset(file))


def test_a_named_world_is_for_evaluation_alone(tmp_path: Path, file: Path) -> None:
    keys = offline(file, env__name="CartPole-v1", meta__rigorous_eval=2, meta__eval_frequency=400)
    run = trained(tmp_path, "reader", **keys)
    df = pd.read_csv(run.session_file(0, "session_df_eval.csv"))
    assert len(df) == 2
    assert df["total_reward"].notna().all()
    assert Dataset(export(run, QUIET, episodes=2)).played > 0, "its best checkpoint plays"


def test_wrappers_go_with_the_file(tmp_path: Path) -> None:
    wrapped = DQN | {"env__normalize_obs": True, "env__frame_stack": 2}
    file = export(trained(tmp_path, **wrapped), QUIET)
    keys = offline(file, env__name="CartPole-v1", meta__rigorous_eval=2, env__normalize_obs=True, env__frame_stack=2)
    spec = make_spec("reader", **keys)
    run = RunDir.create(tmp_path, "reader", {"name": "reader", **spec.dump()}, "train")
    session = Session(spec, run, 0, lambda progress: None)
    session.run()
    seen = session.eval_env().wrapper_state()["normalize_obs"]["obs"]
    assert seen["count"] == Dataset(file).wrappers["normalize_obs"]["obs"]["count"] > 0
    with pytest.raises(LabError, match=r"env.frame_stack: 3, but the dataset was made with 2"):
        make_spec(**keys | {"env__frame_stack": 3})


RECURRENT = {
    "agent__memory": {
        "name": "SequenceReplay",
        "max_size": 500,
        "batch_size": 4,
        "sequence_length": 8,
        "burn_in": 2,
        "carry_every": 5,
    },
    "agent__net": {"name": "MLP", "hid_layers": [8], "core": {"name": "GRU", "hidden_size": 8}},
}
PER = {"agent__memory": {"name": "PrioritizedReplay", "max_size": 500, "batch_size": 16, "n_step": 3}}


@pytest.mark.parametrize("changes", [PER, RECURRENT], ids=["per", "recurrent"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path, file: Path, changes: dict[str, Any]) -> None:
    keys = offline(file, **changes)
    whole = trained(tmp_path / "whole", "reader", **keys)
    spec = make_spec("reader", **keys)
    run = RunDir.create(tmp_path, "reader", {"name": "reader", **spec.dump()}, "train")
    session = Session(spec, run, 0, lambda progress: None)
    advance, steps = session._advance, iter(range(10**6))

    def stop_early() -> None:
        advance()
        session.stop = next(steps) == 77

    session._advance = stop_early  # type: ignore[method-assign]
    assert session.run().status == "stopped"
    assert Session(spec, run, 0, lambda progress: None).run().status == "done"
    tables = [pd.read_csv(r.session_file(0, "session_df_train.csv")).drop(columns=list(WALL)) for r in (whole, run)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    weights = [_weights(r) for r in (whole, run)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def _weights(run: RunDir) -> Tree:
    state = checkpoint.load(run.model, "session0")
    assert state is not None
    net: Tree = state["agent"]["algorithm"]["net"]
    return net


def refusal(**changes: Any) -> str:
    with pytest.raises(LabError) as error:
        make_spec("reader", **changes)
    lines = str(error.value).splitlines()
    assert len(lines) == 2, "one clear line"
    return lines[1]


ONPOLICY = {"agent__algorithm": {"name": "PPO"}, "agent__memory": {"name": "OnPolicyBatchReplay"}}
UNWARMED = RECURRENT | {"agent__memory__burn_in": 0}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"env__name": "Acrobot-v1"}, ["env.dataset", "Box(4,)", "Box(6,)", "Discrete(2)", "Discrete(3)"]),
        ({"env__num_envs": 2}, ["env.num_envs", "set it to 4"]),
        ({"env__dataset": "nowhere.npz"}, ["env.dataset", "isn't there"]),
        ({"env__dataset": None}, ["env.dataset", "missing"]),
        ({"env__hide_obs": [1]}, ["env.hide_obs", "no world"]),
        ({"env__size": 3}, ["env.size", "no world"]),
        (ONPOLICY, ["agent.algorithm.name", "PPO"]),
        ({"agent__memory__max_size": 300}, ["agent.memory.max_size", "500"]),
        ({"agent__memory__batch_size": 500}, ["agent.memory.batch_size", "500 is more than the 4", "steps played"]),
        (UNWARMED, ["agent.memory.burn_in", "carries"]),
        (RECURRENT | {"agent__memory__sequence_length": 121, "agent__algorithm__training_start_step": 500, "agent__memory__max_size": 900},
         ["sequence_length", "126", "125"]),
        ({"meta__rigorous_eval": 2}, ["meta.rigorous_eval", "no world"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(file: Path, changes: dict[str, Any], told: list[str]) -> None:
    line = refusal(**offline(file, **changes))
    for word in told:
        assert word in line


def test_a_file_needs_no_warm_up(file: Path) -> None:
    for memory in ({}, RECURRENT):
        make_spec(**offline(file, **memory, agent__algorithm__training_start_step=0))


def test_a_damaged_file_is_refused_before_a_run_begins(
    tmp_path: Path, file: Path, spec_file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.npz"
    shutil.copy(file, bad)
    content = bytearray(bad.read_bytes())
    content[len(content) // 3] ^= 1
    bad.write_bytes(content)
    spec = spec_file({"reader": raw_spec(**offline(bad))})
    assert main([str(spec), "train", "--data", str(tmp_path / "data")]) == 2
    assert "is damaged: column 'obs.obs'" in capsys.readouterr().err
    assert not list((tmp_path / "data").glob("*"))


# ---- and it learns ---------------------------------------------------------------------------------------------------


def shuffled(source: Path, path: Path, name: str) -> Path:
    """The same file, but for the order of a column."""
    data = Dataset(source)
    columns, rng = data.columns(), np.random.default_rng(0)
    columns[name] = rng.permutation(columns[name].ravel()).reshape(columns[name].shape)
    facts = {name: data.file.facts[name] for name in ("rows", "lead", "played", "action_dtype", "wrappers", "env")}
    write_dataset(path, data.world, facts, columns.items())
    return path


def test_it_learns_from_what_chance_has_played_and_not_when_rewards_are_shuffled(tmp_path: Path) -> None:
    task = {"env": {"name": "RepeatPrevious", "k": 1, "reward_scale": 51.0, "num_envs": 4, "max_frame": 1000}}
    chance = trained(tmp_path, "chance", agent__algorithm={"name": "Random"}, **copy.deepcopy(task))
    file = export(chance, QUIET, episodes=40, explore=True)
    keys = task | {
        "agent__algorithm": {"name": "DQN", "gamma": 0.5, "training_frequency": 4, "training_start_step": 32},
        "agent__memory": {"name": "Replay", "max_size": 4000},
        "agent__net": {"name": "MLP", "hid_layers": [32], "optim_spec": {"name": "Adam", "lr": 0.003}},
        "env__max_frame": 1200, "meta__rigorous_eval": 8, "meta__eval_frequency": 1200,
    }  # fmt: skip
    returns = []
    for path in (file, shuffled(file, tmp_path / "b.npz", "reward"), shuffled(file, tmp_path / "c.npz", "action")):
        run = trained(tmp_path, "reader", **copy.deepcopy(keys), env__dataset=str(path))
        returns.append(pd.read_csv(run.session_file(0, "session_df_eval.csv"))["total_reward"].iloc[-1])
    assert returns[0] > 0.99, "the best is 1, guessing earns -0.5"
    assert max(returns[1:]) < 0.5
