"""The command line, as a person meets it: every bad input has one clear message and exit code 2."""

from __future__ import annotations

import json
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_specs import raw_spec
from typed import SHORT, Lab, assert_refused, save

from slm_lab.lib.registry import Registry
from slm_lab.spec import parts as tables


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("", ["required", "--help"]),
        ("ok.json", ["which mode?", "dev, train"]),
        ("dev", ["which spec?"]),
        ("ok.json trian", ["unknown mode 'trian'", "Did you mean 'train'?"]),
        ("ok.json Train", ["Did you mean 'train'?"]),
        ("two.json first", ["which mode?", "two.json first MODE"]),
        ("two.json third", ["unknown mode 'third'"]),
        ("lst", ["Did you mean 'list'?"]),
        ("train ok.json", ["the mode goes last", "ok.json train"]),
        ("ok.json check", ["'check' goes first", "check ok.json"]),
        ("ok.json ok ok dev", ["too many words"]),
        ("ok.json dev --sett a=1", ["--sett", "--help"]),
        ("ok.json dev --set env.max_frame=10 env.num_envs=1", ["'env.num_envs=1'", "--set of its own"]),
        ("ok.json search", ["search: nothing to search"]),
        ("ok.json search --max-trial 0", ["--max-trial 0", "at least one"]),
        ("ok.json train --max-trial 3", ["--max-trial is for search"]),
        ("ok.json search --force", ["--force is for search@"]),
        ("search", ["which spec?"]),
        ("ok.json search@latest", ["no run of ok under data"]),
        ("ok.json enjoy", ["enjoy@latest"]),
        ("ok.json dev@latest", ["only train, enjoy and search"]),
        ("ok.json train@", ["train@latest", "train@RUN_DIR"]),
        ("ok.json train@latest", ["no run of ok under data", "'train'"]),
        ("enjoy@latest", ["no run under data"]),
        ("train@lastest", ["doesn't exist", "Did you mean 'latest'?"]),
        ("train@nowhere", ["nowhere isn't a run folder"]),
        ("enjoy@ok.json", ["isn't a run folder"]),
        ("plot", ["which run?"]),
        ("plot nowhere", ["nowhere isn't a run folder"]),
        ("train@latest --set env.max_frame=10", ["--set can't change a run", "a larger env.max_frame"]),
        ("bench memory_tsk", ["unknown benchmark 'memory_tsk'", "Did you mean 'memory_task'?"]),
        ("bench race", ["unknown benchmark 'race'"]),
        ("--data here bench memory_task", ["'bench' goes first", "bench memory_task"]),
        ("memory_task bench", ["'bench' goes first", "bench memory_task"]),
        ("list nets", ["unknown family 'nets'", "Did you mean 'net'?"]),
        ("check", ["which spec file?"]),
        ("show", ["which spec file?"]),
        ("check ok.json ok ok", ["too many words"]),
        ("no.json dev", ["no.json: no such file"]),
        ("two.json dev", ["holds 2 specs", "first, second"]),
        ("two.json secnd dev", ["unknown spec 'secnd'", "Did you mean 'second'?"]),
    ],
)
def test_a_command_typed_wrong_is_told_what_was_meant(lab: Lab, words: str, parts: list[str]) -> None:
    assert_refused(lab(*words.split()), *parts)
    assert not Path("data").exists(), "nothing was started"


def test_list_tells_every_part_of_every_family(lab: Lab) -> None:
    said = lab("list")
    families = [table for table in vars(tables).values() if isinstance(table, Registry)]
    *lines, own = said.out.splitlines()
    assert "module:Class" in own
    listed = [line.split()[0] for line in lines]
    assert sorted(listed) == sorted(word for table in families for word in (table.family, *table))
    assert "the last steps" in lab("list", "entry").out


def test_a_part_outside_the_lab_is_as_good_as_one_of_it(lab: Lab) -> None:
    """The example of the page: it trains, goes on by the name that was saved, and may be searched for."""
    page = (Path(__file__).parents[2] / "docs" / "adding_a_part.md").read_text(encoding="utf-8")
    Path("recent.py").write_text(re.search(r"`recent\.py` there:\n\n```python\n(.*?)```", page, re.S)[1])  # type: ignore[index]
    memory = yaml.safe_load(re.search(r"```yml\n(.*?)```", page, re.S)[1])["memory"]  # type: ignore[index]
    agent = {"agent__algorithm": {"name": "DQN", "training_start_step": 64}, "agent__memory": memory}
    search = {"agent.memory.name__choice": ["Replay", memory["name"]]}
    save("spec.json", {"spec": raw_spec(**SHORT, **agent, search=search)})
    assert lab("check", "spec.json").code == 0
    assert lab("spec.json", "train").code == 0
    (run,) = Path("data").glob("*/spec.json")
    stored = json.loads(run.read_text())
    assert stored["agent"]["memory"]["name"] == "recent:RecentReplay"
    stored["env"]["max_frame"] = 500
    run.write_text(json.dumps(stored))
    assert lab("train@latest").code == 0
    for key in ("agent.memory.name", "vars.kept"):
        agent["agent__memory"] = {"name": "${kept}"} if key == "vars.kept" else memory
        search = {f"{key}__choice": ["Replay", "recent:Recent"]}
        save("spec.json", {"spec": raw_spec(**SHORT, **agent, vars={"kept": "Replay"}, search=search)})
        assert_refused(lab("check", "spec.json"), "can't be searched", "recent.py has no class 'Recent'")


def test_what_code_of_ones_own_can_t_import_is_told_by_its_line(lab: Lab) -> None:
    """Also long after it was imported."""
    agent = {"agent__algorithm": {"name": "DQN"}, "agent__memory": {"name": "own:Late"}}
    save("spec.json", {"spec": raw_spec(**SHORT, **agent)})
    assert_refused(lab("check", "spec.json"), "error: own.py:14: the package 'a_package_nobody_has' isn't installed")


# ---- specs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"agent__algorithm__gama": 0.9}, ["agent.algorithm.gama: unknown key", "Did you mean 'gamma'?"]),
        ({"env__num_envs": "four"}, ["env.num_envs: 'four' is text", "expected: whole number >= 1"]),
        ({"agent__algorithm__gamma": 1.5}, ["agent.algorithm.gamma: 1.5 is above 1"]),
        ({"agent__net__name": "MPL"}, ["unknown net 'MPL'", "Did you mean 'MLP'?"]),
        ({"agent__net__core": {"name": "GRUU"}}, ["unknown core 'GRUU'"]),
        ({"agent__net": {"name": "Conv"}}, ["agent.net.name: 'Conv' reads uint8 images"]),
        ({"env__name": "Cartpole-v1"}, ["unknown env 'Cartpole-v1'", "Did you mean 'CartPole-v1'?"]),
        ({"env__name": "Doors-v0"}, ["unknown env 'Doors-v0'. One of your own: module:Doors-v0."]),
        ({"env__gravity": 3}, ["env.gravity: unknown key. CartPole-v1 takes"]),
        ({"env__name": "LunarLander-v3"}, ["needs a package", "pip install", "box2d"]),
        ({"env__name": "ALE/Pong-v5"}, ['pip install "gymnasium[atari]"']),
        ({"env__name": "nobody_has_this:Env-v0"}, ["there is no nobody_has_this.py in", "start the lab in the folder"]),
        ({"env__name": "bad_evn:Raises-v0"}, ["there is no bad_evn.py in", "Did you mean 'bad_env'?"]),
        ({"env__name": "needs_more:Env-v0"}, ["can't import needs_more", "pip install a_package_nobody_has"]),
        ({"env__name": "syntax:Env-v0"}, ["can't import syntax: ", "syntax.py:1: SyntaxError"]),
        (
            {"agent__memory__name": "ownn:Mine"},
            ["agent.memory.name: can't import ownn: there is no ownn.py in", "'own'?"],
        ),
        ({"agent__memory__name": "own:Mnie"}, ["own.py has no class 'Mnie'. Did you mean 'Mine'?"]),
        ({"agent__memory__name": "own:Mine"}, ["own.py: Mine is no memory: it must derive from Memory"]),
        ({"agent__memory__name": "own:Bare"}, ["own.py: Bare has no Spec"]),
        ({"agent__memory__name": "own:CER"}, ["own:CER is a part of the lab: write CER"]),
        ({"agent__memory__name": "Mine"}, ["unknown memory 'Mine'", "One of your own: module:Mine"]),
        (
            {"agent__net__core": {"name": "uses_needs_more:X"}},
            ["core.name: can't import", "needs_more.py:1: ModuleNotF"],
        ),
        ({"env__name": "bad_env:Broken-v0"}, ["can't be built: RuntimeError: no licence"]),
    ],
)
@pytest.mark.parametrize("mode", ["train", "check"])
def test_a_bad_spec_is_told_where_and_what_was_expected(
    lab: Lab, changes: dict[str, Any], parts: list[str], mode: str
) -> None:
    package = {"LunarLander-v3": "Box2D", "ALE/Pong-v5": "ale_py"}.get(changes.get("env__name", ""))
    if package and find_spec(package):
        pytest.skip(f"{package} is installed here")
    save("spec.json", {"spec": raw_spec(**changes)})
    words = ("check", "spec.json") if mode == "check" else ("spec.json", "train")
    assert_refused(lab(*words), "spec 'spec' can't be run: 1 problem", *parts)
    assert not Path("data").exists()


STRATEGIC = {"agent__net__shared": True, "env": {"name": "MemoryTask", "delay": 16, "num_envs": 2, "max_frame": 100}}


@pytest.mark.parametrize(
    ("memory", "algorithm", "told"),
    [
        ({"slots": 100}, "PPO", ["agent.memory.slots 100: no episode has more than 16 steps"]),
        (
            {"slots": 16},
            "PPO",
            ["nothing is dropped and retention has no choice; 15 or fewer make it choose"],
        ),
        ({"slots": 15}, "PPO", []),
        ({"slots": 16, "retention": "fifo"}, "PPO", ["retention has no choice; 15 or fewer make it choose"]),
        ({"slots": 16, "retention": "none"}, "PPO", []),
        ({"slots": 100, "persist": True}, "PPO", []),
        ({"slots": 8, "hindsight_coef": 0}, "PPO", ["with hindsight_coef 0 nothing teaches it, so it is a reservoir"]),
        (
            {"slots": 8, "usefulness_coef": 0},
            "PPO",
            ["with usefulness_coef 0 nothing teaches it, so it is a reservoir"],
        ),
        ({"slots": 8, "usefulness_coef": 0, "retention": "fifo"}, "PPO", []),
        (
            {"horizon": 8, "slots": 8},
            "REINFORCE",
            [
                "agent.memory.queries 4: where few steps surprise, 2 episodes an update may have fewer than 100",
                "agent.memory.horizon 8: episodes may have 16 steps and are then cut into windows",
                "REINFORCE learns from windows of at most 8 steps and episodes have up to 16",
            ],
        ),
        ({"horizon": 16, "slots": 8, "queries": 50}, "REINFORCE", []),
        ({"horizon": 8, "slots": 8}, "A2C", ["what was dropped before a window gets no credit from it"]),
    ],
    ids=str,
)
def test_what_keeps_nothing_from_working_is_noted(
    lab: Lab, memory: dict[str, Any], algorithm: str, told: list[str]
) -> None:
    agent = {"agent__algorithm": {"name": algorithm}, "agent__memory": {"name": "StrategicMemory", **memory}}
    save("spec.json", {"spec": raw_spec(**STRATEGIC, **agent)})
    code, _, err = lab("check", "spec.json")
    assert code == 0
    assert [line[:5] for line in err.splitlines()] == ["note:"] * len(told)
    assert all(part in err for part in told)


@pytest.mark.parametrize(("envs", "frequency", "noted"), [(1, 1, True), (1, 2, False), (2, 1, False)])
def test_a_baseline_without_another_episode_is_noted(lab: Lab, envs: int, frequency: int, noted: bool) -> None:
    """Worlds that end together are in one batch."""
    algorithm = {"name": "A2C", "training_frequency": frequency, "baseline_by_step": True}
    agent = {"agent__algorithm": algorithm, "agent__memory": {"name": "StrategicMemory", "slots": 8}}
    save("spec.json", {"spec": raw_spec(**STRATEGIC, **agent, env__num_envs=envs)})
    code, _, err = lab("check", "spec.json")
    assert code == 0
    assert ("agent.algorithm.baseline_by_step takes nothing: an update sees one episode" in err) is noted


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("empty.json", ["empty.json: the file is empty"]),
        ("broken.json", ["broken.json:2:13: broken JSON", "^"]),
        ("broken.yaml", ["broken.yaml:3:6: broken YAML", "^"]),
        ("text.yaml", ["env.max_frame: '2e5' is text", "write 200000 or 2.0e+5"]),
    ],
)
def test_a_broken_file_is_told_by_line_and_column(lab: Lab, file: str, parts: list[str]) -> None:
    assert_refused(lab(file, "dev"), *parts)
    assert_refused(lab("check", file), *parts)
    assert_refused(lab("show", file), *parts)


BAD_NAMES = ["a/b", "..", "", "../../evil", "x" * 200, "漢" * 70, "a\nb", "[red]x[/red]", ".hidden", "a*"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_folder_is_refused(lab: Lab, name: str) -> None:
    save("spec.json", {name: raw_spec(**SHORT)})
    assert_refused(lab("spec.json", "train", "--data", "in/here"), "its name is also that of the run's folder")
    assert not Path("in").exists()


def test_check_tells_all_errors_of_all_specs_at_once(lab: Lab) -> None:
    bad = [raw_spec(env__num_envs=0, agent__algorithm__gama=1), raw_spec(agent__net__name="MPL")]
    save("several.json", {"good": raw_spec(), "bad": bad[0], "worse": bad[1]})
    said = lab("check", "several.json")
    assert_refused(said, "env.num_envs", "'gamma'", "spec 'worse' can't be run", "'MLP'")
    assert "good: ok" in said.out
    assert lab("check", "several.json", "good").code == 0
    assert not Path("data").exists()


def test_show_prints_the_resolved_spec_and_overrides_are_validated(lab: Lab) -> None:
    said = lab("show", "ok.json", "--set", "agent.algorithm.gamma=0.5", "--set", "env.max_frame=3e2")
    shown = json.loads(said.out)["ok"]
    assert (shown["agent"]["algorithm"]["gamma"], shown["env"]["max_frame"]) == (0.5, 300)
    assert shown["agent"]["algorithm"]["lam"] == 0.95, "defaults are written out"
    assert_refused(lab("show", "ok.json", "--set", "agent.algorithm.gamma=2"), "2 is above 1")
    assert_refused(lab("show", "ok.json", "--set", "agent.algorithm.gama=0.5"), "Did you mean 'gamma'?")


@pytest.mark.parametrize("words", ["check spec.json", "spec.json search"])
def test_what_an_override_leaves_out_is_told_once(lab: Lab, caplog: pytest.LogCaptureFixture, words: str) -> None:
    axes = {"agent.algorithm.gamma__uniform": [0.9, 0.99]} if words.startswith("check") else {}
    save("spec.json", {"spec": raw_spec(agent__net__core={"name": "GRU", "hidden_size": 8}, search=axes)})
    lab(*words.split(), "--set", "agent.net.core.name=none")
    assert caplog.text.count("which has no hidden_size: left out") == 1


# ---- benchmarks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def programs(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of benchmarks with one that can be run, and a part of it."""
    folder = tmp_path / "our_benches"
    folder.mkdir()
    (folder / "part.py").write_text("import a_package_nobody_has")
    (folder / "hello.py").write_text(
        '"""Says it back.\n\nAnd more."""\nimport sys\ndef main():\n    print(sys.argv[1:])\n    return 3\n'
        'if __name__ == "__main__":\n    sys.exit(main())\n'
    )
    monkeypatch.setattr("slm_lab.cli.BENCH", folder)
    return folder


def test_bench_lists_what_can_be_run_and_what_it_is(lab: Lab, programs: Path) -> None:
    said = lab("bench")
    assert (said.code, said.out.split()) == (0, ["hello", "Says", "it", "back."])
    assert lab("bench", "--help").out == said.out


def test_bench_hands_on_words_and_exit_code(
    lab: Lab, programs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(sys.argv)
    with pytest.raises(SystemExit) as end:
        lab("bench", "hello", "--set", "x", "-h")
    assert end.value.code == 3
    assert capsys.readouterr().out == "['--set', 'x', '-h']\n"
    assert sys.argv == before


def test_bench_without_the_repository_says_so(lab: Lab, programs: Path) -> None:
    shutil.rmtree(programs)
    assert_refused(lab("bench"), "come with the repository")
