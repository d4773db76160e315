"""The modes as they are typed: what a run says, what is done with it afterwards, and what is wrong with it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_specs import raw_spec
from typed import SHORT, Lab, assert_refused, save, the_run

from slm_lab.cli import main


def test_dev_runs_short_and_says_what_learned(lab: Lab) -> None:
    options = ["--set", "meta.max_session=3", "--set", "meta.dev_max_frame=300"]
    said = lab("ok.json", *options, "dev")  # options may stand between the words
    assert said.code == 0, said.err
    assert "1 session of 300 frames" in said.out
    assert "check    every parameter got a gradient and moved; losses and gradients stayed finite" in said.out
    run = the_run()
    assert "session 0: done" in (run / "log" / "run.log").read_text()
    assert str(run / "report.html") in said.out
    assert (run / "report.html").is_file()


def test_frames_too_few_for_one_update_are_said(lab: Lab) -> None:
    said = lab("ok.json", "train", "--set", "env.max_frame=40")
    assert said.code == 0
    assert "warning: no gradient step was taken" in said.out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; copied for each test that spoils it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "ok.json").write_text(json.dumps({"ok": raw_spec(**SHORT)}))
    assert main([str(folder / "ok.json"), "train", "--data", str(folder / "data")]) == 0
    (spec,) = (folder / "data").glob("*/spec.json")
    return spec.parent


@pytest.fixture
def run(lab: Lab, trained: Path) -> Path:
    path = Path("data", trained.name)
    shutil.copytree(trained, path)
    return path


def test_the_end_says_how_good_and_how_to_go_on(lab: Lab) -> None:
    said = lab("ok.json", "train", "--data", "with space")
    run = the_run("with space")
    assert said.out.count("\n") < 12
    assert "return   " in said.out
    assert "random " in said.out
    assert f"python run_lab.py 'enjoy@{run}'" in said.out


def test_enjoy_plays_the_best_checkpoint_and_films_it(lab: Lab, run: Path) -> None:
    from PIL import Image

    said = lab("ok.json", "enjoy@latest")
    assert said.code == 0, said.err
    assert said.out.count("episode ") == 10
    with Image.open(run / "graph" / "enjoy.gif") as film:
        assert film.n_frames > 1
        low, high = film.convert("L").getextrema()
    assert low < high == 255, "something is to be seen"


def test_plot_draws_again_what_was_deleted(lab: Lab, run: Path) -> None:
    shutil.rmtree(run / "graph")
    (run / "report.html").unlink()
    assert lab("plot", run).code == 0
    assert list((run / "graph").glob("*.html"))
    assert (run / "report.html").exists()


def test_a_comparison_takes_labels_and_tells_what_each_run_came_to(lab: Lab, run: Path) -> None:
    other = run.with_name("ok_2999_01_01_000000")
    shutil.copytree(run, other)
    said = lab("plot", f"mine={run}", other)
    assert said.code == 0, said.err
    assert "mine" in said.out and other.name in said.out and "final return" in said.out
    assert_refused(lab("plot", run, run), "is there twice")


def test_latest_is_the_newest_run_of_the_spec_and_of_the_mode(lab: Lab, run: Path) -> None:
    later = run.with_name("ok_2999_01_01_000000")
    shutil.copytree(run, later)
    facts = json.loads((later / "spec.json").read_text())
    facts["run"]["mode"] = "dev"
    (later / "spec.json").write_text(json.dumps(facts))
    (run.parent / "zzz").mkdir()
    (run.parent / "zzz" / "spec.json").write_text("{}")  # not a run of ours
    assert str(later) in lab("enjoy@latest").out
    assert str(run) in lab("train@latest").out, "a dev run is not what one wants to train on"
    assert_refused(lab("two.json", "first", f"enjoy@{run}"), "is a run of spec 'ok', not of 'first'")


def test_a_run_that_cannot_go_on_with_its_spec_keeps_what_it_had_come_to(lab: Lab, run: Path) -> None:
    facts = json.loads((run / "spec.json").read_text())
    facts["env"]["num_envs"] = 3
    (run / "spec.json").write_text(json.dumps(facts))
    results = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert_refused(lab(f"train@{run}"), "env.num_envs is 3", "4 worlds were saved", "Write 4 again")
    facts["env"]["num_envs"] = 4
    facts["agent"]["algorithm"]["gamma"] = 0.5
    (run / "spec.json").write_text(json.dumps(facts))
    assert_refused(lab(f"train@{run}"), "isn't of this run's spec")
    for file, before in results.items():
        assert file.name == "spec.json" or file.read_bytes() == before, file


def test_a_run_goes_on_as_it_was_started_and_tells_what_its_file_says_by_now(lab: Lab, run: Path) -> None:
    save("ok.json", {"ok": raw_spec(**SHORT, env__num_envs=3)})
    said = lab("ok.json", "train@latest")
    assert said.code == 0, said
    assert (
        "note: ok.json says otherwise, the run goes on as it was started: env.num_envs: it was 4, and is 3" in said.err
    )


def damaged(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)


def saved(run: Path, name: str) -> Path:
    """The file of tensors that a checkpoint's pointer names."""
    return run / "model" / json.loads((run / "model" / f"{name}.json").read_text())["file"]


def foreign(run: Path, name: str) -> None:
    """A checkpoint of another spec, whose nets have the same shapes."""
    save("other.json", {"other": raw_spec(**SHORT, agent__algorithm__gamma=0.5)})
    assert main(["other.json", "train", "--data", "elsewhere"]) == 0
    for file in (the_run("elsewhere") / "model").glob("session0*"):
        shutil.copy(file, run / "model")


SPOIL: dict[str, tuple[Callable[[Path, str], object], str]] = {
    "flipped": (lambda run, name: damaged(saved(run, name)), "is damaged"),
    "truncated": (lambda run, name: os.truncate(saved(run, name), 50), "is damaged"),
    "deleted": (lambda run, name: saved(run, name).unlink(), "is missing"),
    "pointer garbage": (lambda run, name: (run / "model" / f"{name}.json").write_text("{x"), "isn't a checkpoint"),
    "pointer empty": (lambda run, name: (run / "model" / f"{name}.json").write_text(""), "isn't a checkpoint"),
    "foreign": (foreign, "of other code"),
    "no spec.json": (lambda run, name: (run / "spec.json").unlink(), "holds no spec.json"),
    "broken spec.json": (lambda run, name: (run / "spec.json").write_text("{"), "can't be read"),
    "other spec.json": (lambda run, name: (run / "spec.json").write_text("[1]"), "isn't the resolved spec of a run"),
}


@pytest.mark.parametrize("how", SPOIL)
@pytest.mark.parametrize("mode", ["train", "enjoy"])
def test_a_spoilt_run_is_told_and_left_alone(lab: Lab, run: Path, how: str, mode: str) -> None:
    spoil, part = SPOIL[how]
    spoil(run, "session0" if mode == "train" else "session0_best")
    rows = next((run / "info").glob("*_session_df_train.csv")).read_text()
    assert_refused(lab(f"{mode}@{run}"), part)
    assert next((run / "info").glob("*_session_df_train.csv")).read_text() == rows, "nothing is lost"


def test_enjoy_without_a_finished_episode_says_so(lab: Lab) -> None:
    save("endless.json", {"endless": raw_spec(**SHORT, env__name="bad_env:Endless-v0")})
    said = lab("endless.json", "train")
    assert said.code == 0
    assert "no episode has ended" in said.out
    assert "nan" not in said.out
    assert_refused(lab("enjoy@latest"), "no best checkpoint", "train@")


def test_plot_of_a_spoilt_table_says_which(lab: Lab, run: Path) -> None:
    table = next((run / "info").glob("*_session_df_train.csv"))
    table.write_text('a,b\n1,2,3,4\n"')
    assert_refused(lab("plot", run), str(table), "is damaged")


@pytest.mark.parametrize(("env", "part"), [("Raises", "the [wheel] fell off"), ("NaN", "the reward of world 0 is nan")])
def test_an_env_that_breaks_is_told_with_its_traceback_in_the_log(lab: Lab, env: str, part: str) -> None:
    save("spec.json", {"spec": raw_spec(**SHORT, env__name=f"bad_env:{env}-v0")})
    assert_refused(lab("spec.json", "train"), part, "train@", "log/run.log")
    log = (the_run() / "log" / "run.log").read_text()
    assert "Traceback" in log
    assert part in log
    assert (the_run() / "report.html").exists()


@pytest.mark.parametrize("way", ["a file", "a file above", "a name too long"])
def test_data_that_cannot_be_written_is_told(lab: Lab, way: str) -> None:
    Path("taken").write_text("mine")
    data = {"a file": "taken", "a file above": "taken/data", "a name too long": "x" * 300}[way]
    assert_refused(lab("ok.json", "train", "--data", data), "can't write to", "--data DIR")
    assert Path("taken").read_text() == "mine"


def test_a_full_disk_is_told_and_the_last_checkpoint_kept(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from slm_lab.agent import checkpoint

    honest, count = checkpoint.write_atomic, 0

    def full(path: Path, write: Any) -> None:
        nonlocal count
        count += path.suffix == ".pt" and "best" not in path.name
        if count > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        honest(path, write)

    monkeypatch.setattr(checkpoint, "write_atomic", full)
    said = lab("ok.json", "train")
    assert_refused(said, "can't write the checkpoint", "No space left on device", "frame 101 is intact", "train@")
    monkeypatch.setattr(checkpoint, "write_atomic", honest)
    said = lab("train@latest")
    assert said.code == 0
    assert "going on from frame 101" in said.out
