"""The command as a process: what it imports, who reads it, what stops it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import alive
from small_specs import ROOT, raw_spec
from typed import SHORT, Lab, assert_refused, save, the_run

from slm_lab.experiment.session import TRAIN_WORLDS
from slm_lab.lib.rng import world_seed


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


def begun(*words: str, say: tuple[str, ...] = ("running",), first: str = "") -> subprocess.Popen[str]:
    """The command in a process group of its own, once it has said all of `say`; it runs the lines `first` before."""
    unsaid = list(say)
    run = [sys.executable, "-c", f"{first}\nimport sys; from slm_lab.cli import main; main(sys.argv[1:])", *words]
    process = subprocess.Popen(
        run if first else command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
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
    while any(alive(pid) for pid in sessions) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in sessions)


def test_a_session_that_ends_just_when_it_is_told_to_stop_is_no_error(lab: Lab) -> None:
    save("long.json", {"long": raw_spec(env__max_frame=200_000, meta__max_session=2)})
    gone = (
        "import os; kill = os.kill\n"
        "def gone(pid, number):\n"
        "    kill(pid, 9)\n"
        "    raise ProcessLookupError(3, 'No such process')\n"
        "os.kill = gone"
    )
    process = begun("long.json", "train", say=("session 0: running", "session 1: running"), first=gone)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.count(": stopped") == 2


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
