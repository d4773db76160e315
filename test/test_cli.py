"""The command line, as a person meets it: every mode, and every bad input with one clear message and exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from small_specs import ROOT, raw_spec

from slm_lab.cli import main
from slm_lab.experiment.session import TRAIN_WORLDS
from slm_lab.lib.registry import Registry
from slm_lab.lib.rng import world_seed
from slm_lab.spec import parts as tables

SHORT = {"env__max_frame": 400, "meta__checkpoint_frequency": 100}
BAD_ENV = """
import os
import gymnasium, numpy as np

class Bad(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    seen = 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        self.seen += 1
        reward = 1.0
        if self.seen == 50:
            reward = self.trouble()
        return np.zeros(2, np.float32), reward, self.t >= 10, False, {}

class Raises(Bad):
    def trouble(self):
        raise ValueError("the [wheel] fell off")

class NaN(Bad):
    def trouble(self):
        return float("nan")

class Broken(Bad):
    def __init__(self):
        raise RuntimeError("no licence")

class Endless(Bad):
    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, False, {}

for cls in (Raises, NaN, Broken, Endless):
    gymnasium.registry.pop(cls.__name__ + "-v0", None)
    gymnasium.register(cls.__name__ + "-v0", entry_point=cls)
"""


class Said(NamedTuple):
    code: int
    out: str
    err: str


Lab = Callable[..., Said]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lab:
    """Type a command in an empty folder that has some spec files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "bad_env.py").write_text(BAD_ENV)
    (tmp_path / "needs_more.py").write_text("import a_package_nobody_has")
    (tmp_path / "syntax.py").write_text("x = = 1")
    monkeypatch.delitem(sys.modules, "bad_env", raising=False)
    monkeypatch.setattr("slm_lab.experiment.enjoy.GIF_FRAMES", 20)  # quantising pictures is slow
    save("ok.json", {"ok": raw_spec(**SHORT)})
    save("two.json", {"first": raw_spec(**SHORT), "second": raw_spec(**SHORT)})
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "broken.json").write_text('{"a": {\n  "agent": {,}\n}}')
    (tmp_path / "broken.yaml").write_text("a:\n  agent: {name: x\n  env: 3\n")
    (tmp_path / "text.yaml").write_text(
        "a:\n  agent: {algorithm: {name: PPO}, memory: {name: OnPolicyBatchReplay}, net: {name: MLP}}\n"
        "  env: {name: CartPole-v1, max_frame: 2e5}\n"
    )

    def type_(*words: str | Path) -> Said:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Said(code, *capsys.readouterr())

    return type_


def save(file: str, specs: dict[str, Any]) -> None:
    Path(file).write_text(json.dumps(specs))


def assert_refused(said: Said, *parts: str) -> None:
    """Exit code 2 and one message, without a traceback, that holds all of `parts`."""
    assert said.code == 2, said
    assert sum(line.startswith("error: ") for line in said.err.splitlines()) == 1, said.err
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err + said.out
    for part in parts:
        assert part in said.err, said.err


def the_run(data: str = "data") -> Path:
    (spec,) = Path(data).glob("*/spec.json")
    return spec.parent


# ---- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("", ["required", "--help"]),
        ("ok.json", ["which mode?", "dev, train"]),
        ("dev", ["which spec?"]),
        ("ok.json trian", ["unknown mode 'trian'", "Did you mean 'train'?"]),
        ("ok.json Train", ["Did you mean 'train'?"]),
        ("lst", ["Did you mean 'list'?"]),
        ("train ok.json", ["the mode goes last", "ok.json train"]),
        ("ok.json check", ["'check' goes first", "check ok.json"]),
        ("ok.json ok ok dev", ["too many words"]),
        ("ok.json dev --sett a=1", ["--sett", "--help"]),
        ("ok.json dev --set env.max_frame=10 env.num_envs=1", ["'env.num_envs=1'", "--set of its own"]),
        ("ok.json search", ["search: nothing to search"]),
        ("ok.json search --max-trial 0", ["--max-trial 0", "at least one"]),
        ("ok.json train --max-trial 3", ["--max-trial is for search"]),
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
        ("train@latest --set env.max_frame=10", ["--set can't change a run that was started"]),
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
    listed = [line.split()[0] for line in said.out.splitlines()]
    assert sorted(listed) == sorted(word for table in families for word in (table.family, *table))
    assert "the last steps" in lab("list", "entry").out


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
        ({"env__gravity": 3}, ["env.gravity: unknown key. CartPole-v1 takes"]),
        ({"env__name": "LunarLander-v3"}, ["needs a package", "pip install", "box2d"]),
        ({"env__name": "ALE/Pong-v5"}, ['pip install "gymnasium[atari]"']),
        ({"env__name": "nobody_has_this:Env-v0"}, ["pip install nobody_has_this"]),
        ({"env__name": "needs_more:Env-v0"}, ["can't import needs_more", "pip install a_package_nobody_has"]),
        ({"env__name": "syntax:Env-v0"}, ["can't import syntax: SyntaxError", "line 1"]),
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
            ["nothing is ever dropped and retention has nothing to learn; 15 or fewer make it choose"],
        ),
        ({"slots": 15}, "PPO", []),
        ({"slots": 100, "persist": True}, "PPO", []),
        (
            {"horizon": 8, "slots": 8},
            "REINFORCE",
            [
                "agent.memory.horizon 8: episodes may have 16 steps and are then cut into windows",
                "REINFORCE learns from windows of at most 8 steps and episodes have up to 16",
            ],
        ),
        ({"horizon": 16, "slots": 8}, "REINFORCE", []),
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


@pytest.mark.parametrize("name", ["a/b", "..", "", "../../evil", "x" * 200, "a\nb", "[red]x[/red]", ".hidden", "a*"])
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


# ---- running ---------------------------------------------------------------------------------------------------------


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


# ---- processes -------------------------------------------------------------------------------------------------------


def command(*words: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "run_lab.py"), *map(str, words)]


@pytest.mark.parametrize("words", [["--help"], ["list"], ["--version"], ["list", "net"], ["bench"]])
def test_help_and_list_import_nothing_heavy_and_are_instant(words: list[str]) -> None:
    heavy = "torch numpy pydantic gymnasium pandas rich yaml plotly"
    program = (
        "import sys; from slm_lab.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        f"print(sorted(set({heavy.split()}) & set(sys.modules)))"
    )
    fastest = 9.0
    for _ in range(5):  # other work on this machine must not decide
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=ROOT)
        fastest = min(fastest, time.perf_counter() - begin)
    assert done.stdout.splitlines()[-1] == "[]"
    assert fastest <= 0.3


def test_training_imports_nothing_that_it_does_not_need(lab: Lab) -> None:
    """Each of these takes longer to import than a thousand steps take to play."""
    unneeded = "pandas plotly ray optuna matplotlib torch._dynamo"
    program = (
        "import os, sys; from slm_lab.cli import main; from slm_lab.experiment.session import Session\n"
        "def finish(self):\n"
        f"    print(self.agent.opt_step > 0, sorted(set({unneeded.split()}) & set(sys.modules)), flush=True); os._exit(0)\n"
        "Session.finish = finish; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, "ok.json", "train"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.stdout.splitlines()[-1] == "True []", done.stderr


def test_a_reader_that_stops_reading_is_no_error(lab: Lab) -> None:
    process = subprocess.Popen(command("show", "ok.json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def begun(*words: str, say: tuple[str, ...] = ("running",)) -> subprocess.Popen[str]:
    """The command in a process group of its own, once it has said all of `say`."""
    unsaid = list(say)
    process = subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout
    for line in process.stdout:
        unsaid = [part for part in unsaid if part not in line]
        if not unsaid:
            return process
    pytest.fail(f"it never said {say!r}: {process.communicate()[1]}")


def test_ctrl_c_stops_all_sessions_cleanly_and_kill_9_leaves_none_behind(lab: Lab) -> None:
    save("long.json", {"long": raw_spec(env__max_frame=200_000, meta__max_session=2)})
    process = begun("long.json", "train", say=("session 0: running", "session 1: running"))
    run = the_run()
    refused = lab("train@latest")  # while it runs
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err == ""
    assert_refused(refused, f"is being trained by process {process.pid}")
    assert out.count(": stopped") == 2
    assert f"train@{run}" in out
    assert not (run / "info" / "failures.json").exists()
    assert list((run / "graph").glob("*.html"))
    frames = [json.loads((run / "model" / f"session{i}.json").read_text())["frame"] for i in range(2)]
    assert min(frames) > 0

    process = begun("train@latest")
    sessions = [int((run / "model" / f"session{i}.lock").read_text()) for i in range(2)]
    process.kill()
    process.communicate()
    until = time.monotonic() + 10
    while any(_alive(pid) for pid in sessions) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(_alive(pid) for pid in sessions)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_session_that_raises_is_reported_and_the_other_finishes(lab: Lab) -> None:
    (Path("one_bad.py")).write_text(
        "import gymnasium, os\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class OneBad(CartPoleEnv):\n"
        "    def reset(self, seed=None, options=None):\n"
        f"        if seed == {world_seed(1, TRAIN_WORLDS)}: self.bad = True\n"  # the world of session 1
        "        return super().reset(seed=seed)\n"
        "    def step(self, action):\n"
        "        if getattr(self, 'bad', False) and os.path.exists('go_wrong'): raise ValueError('it is broken')\n"
        "        return super().step(action)\n"
        "gymnasium.register('OneBad-v0', entry_point=OneBad, max_episode_steps=100)\n"
    )
    spec = raw_spec(**SHORT, env__name="one_bad:OneBad-v0", env__num_envs=1, meta__max_session=2)
    save("spec.json", {"spec": spec})
    Path("go_wrong").touch()
    said = lab("spec.json", "train")
    assert_refused(said, "1 of 2 sessions failed", "session 1: ", "it is broken", "log/session1.log")
    assert "session 0: done" in said.out
    run = the_run()
    assert "Traceback" in (run / "log" / "session1.log").read_text()
    (failure,) = json.loads((run / "info" / "failures.json").read_text())
    assert failure["session"] == 1
    assert "Traceback" in failure["error"]
    assert list((run / "graph").glob("*.html"))
    Path("go_wrong").unlink()
    assert lab("train@latest").code == 0
    assert not (run / "info" / "failures.json").exists()
