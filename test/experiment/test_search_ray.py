"""A search by Ray, on a cluster of two `ray start` processes, as a person would start it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from small_specs import ROOT, raw_spec

from slm_lab.cli import main
from slm_lab.experiment.cluster import started_ray
from slm_lab.lib.errors import LabError

RAY = Path(sys.executable).with_name("ray")
BAD_ENV = """
import gymnasium, numpy as np

class Raises(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, seed=None, options=None):
        return np.zeros(2, np.float32), {}
    def step(self, action):
        raise ValueError("the wheel fell off")

class Slow(gymnasium.Wrapper):
    def __init__(self):
        super().__init__(gymnasium.make("CartPole-v1"))
    def step(self, action):
        import time
        time.sleep(0.005)
        return self.env.step(action)

class Pays(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    def __init__(self, pay=0.0):
        self.pay = pay
    def reset(self, seed=None, options=None):
        return np.zeros(2, np.float32), {}
    def step(self, action):
        return np.zeros(2, np.float32), self.pay, True, False, {}

for cls in (Raises, Slow, Pays):
    if cls.__name__ + "-v0" not in gymnasium.registry:
        gymnasium.register(cls.__name__ + "-v0", entry_point=cls)
"""
GAMMA = {"agent.algorithm.gamma__uniform": [0.9, 0.99]}
# processes by the dozen: most of a minute on an idle machine
pytestmark = [pytest.mark.learn, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a head and a worker, each with one core."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.setenv("RAY_raylet_start_wait_time_s", "120")  # where much else is running
    environment = {**os.environ, "RAY_worker_niceness": "0", "PYTHONPATH": str(ROOT)}
    common = ["--num-cpus=1", "--block", "--disable-usage-stats", "--object-store-memory=100000000"]
    head = [f"--port={address.split(':')[1]}", "--head", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
    nodes = []
    try:
        for words in (head, [f"--address={address}", "--node-ip-address=127.0.0.1"]):
            node = subprocess.Popen([RAY, "start", *words, *common], env=environment, stdout=subprocess.PIPE, text=True,
                                    start_new_session=True)  # fmt: skip
            nodes.append(node)
            assert node.stdout is not None
            for line in node.stdout:
                if "Ray runtime started" in line:
                    break
        yield address
    finally:
        for node in reversed(nodes):
            node.terminate()
            node.wait(30)
        patch.undo()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str) -> Callable[..., int]:
    """Type a search on the cluster, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "bad_env.py").write_text(BAD_ENV)
    monkeypatch.delitem(sys.modules, "bad_env", raising=False)
    monkeypatch.setattr("slm_lab.experiment.enjoy.GIF_FRAMES", 5)  # quantising pictures is slow
    return lambda *words: main([*words, "--ray-address", cluster])


def save(search: dict[str, Any], **changes: Any) -> None:
    small = {"meta__log_frequency": 50, "meta__checkpoint_frequency": 50, "env__num_envs": 1, "env__max_frame": 300}
    Path("s.json").write_text(json.dumps({"s": {**raw_spec(**{**small, **changes}), "search": search}}))


def the_run() -> Path:
    (spec,) = Path("data").glob("*/spec.json")
    return spec.parent


def events(run: Path) -> list[dict[str, Any]]:
    lines = (run / "info" / "s_ledger.jsonl").read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def table(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "info" / "experiment_df.csv").set_index("trial")


def test_failures_are_listed_and_never_win_and_a_search_is_extended(lab, capsys):
    worlds = [{"name": "bad_env:Raises-v0"}, {"name": "Pendulum-v1", "max_frame": 100}, {"name": "Pendulum-v1"}]
    memories = ["OnPolicyBatchReplay", "Replay"]
    save({"env__grid_search": worlds, "agent.memory.name__grid_search": memories})
    assert lab("s.json", "search") == 0
    run = the_run()
    shown = table(run)
    assert dict(shown["status"]) == {4: "done", 0: "failed", 2: "failed", 1: "invalid", 3: "invalid", 5: "invalid"}
    assert shown.index[0] == 4 and shown.loc[4, "final_return"] < -300, "a negative return loses against nothing"
    assert "the wheel fell off" in shown.loc[0, "reason"]
    assert "no episode has ended" in shown.loc[2, "reason"]
    assert "Replay doesn't fit" in shown.loc[1, "reason"]
    traces = {e["trial"]: e["trace"] for e in events(run) if e["event"] == "failed" and "trace" in e}
    assert "bad_env.py" in traces[0]
    page = (run / "report.html").read_text()
    assert "the wheel fell off" in page and "Traceback" in page
    assert main(["enjoy@latest"]) == 0 and "episode 9" in capsys.readouterr().out
    assert main(["train@latest"]) == 2 and "is a search" in capsys.readouterr().err

    assert lab("search@latest") == 0 and "all 6 trials have ended" in capsys.readouterr().out
    assert lab("search@latest", "--max-trial", "8") == 0
    planned = [e["trial"] for e in events(run) if e["event"] == "planned"]
    assert planned == list(range(8)) and len(table(run)) == 8
    assert lab("search@latest", "--max-trial", "2") == 2 and "only grow" in capsys.readouterr().err
    assert lab("s.json", "search@latest", "--set", "agent.algorithm.lam=0.5") == 2
    assert "agent.algorithm.lam: 0.5 is new" in capsys.readouterr().err
    assert lab("s.json", "search@latest", "--set", "agent.algorithm.lam=0.5", "--force") == 0


def test_a_killed_driver_and_a_killed_worker_lose_nothing(lab, cluster, request):
    save(GAMMA, env__name="bad_env:Slow-v0", env__max_frame=600, meta__max_trial=4, meta__max_retry=1)

    def begins(*words: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:."}
        command = [sys.executable, ROOT / "run_lab.py", *words, "--ray-address", cluster]
        driver = subprocess.Popen(command, env=environment, text=True)
        request.addfinalizer(driver.kill)
        return driver

    def kill_when(driver: subprocess.Popen[str], so: Callable[[list[dict[str, Any]]], bool]) -> None:
        while driver.poll() is None:
            if list(Path("data").glob("*/info/s_ledger.jsonl")) and so(events(the_run())):
                break
            time.sleep(0.05)
        driver.kill()
        assert driver.wait() == -signal.SIGKILL, "it had ended before"

    def saved(_: list[dict[str, Any]]) -> bool:
        return bool(list(the_run().glob("model/t*/session0.json")))

    kill_when(begins("s.json", "search"), lambda seen: bool(seen))  # planned, not yet running
    kill_when(begins("search@latest"), saved)  # with a checkpoint
    kill_when(begins("search@latest"), lambda seen: any(e["event"] == "done" for e in seen))
    before = [e["trial"] for e in events(the_run()) if e["event"] == "done"]
    last = begins("search@latest")
    victims: list[int] = []
    while not victims and last.poll() is None:  # a worker dies in the middle of a trial
        alive = [e["pid"] for e in events(the_run())[-1:] if e["event"] == "running" and _is_ours(e["pid"], last)]
        for pid in alive[:1]:
            victims.append(pid)
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    assert last.wait() == 0
    seen = events(the_run())
    assert sorted(e["trial"] for e in seen if e["event"] == "done") == [0, 1, 2, 3], "each once"
    assert before and not {e["trial"] for e in seen if e["event"] == "running" and e["pid"] in victims} & set(before)
    assert any("its process died" in e["reason"] for e in seen if e["event"] == "retry")
    assert len({e["node"] for e in seen if e["event"] == "running"}) == 2, "both nodes had trials"
    assert list(table(the_run())["status"]) == ["done"] * 4


def test_ctrl_c_saves_and_the_search_goes_on(lab, cluster, request):
    rare = {"meta__checkpoint_frequency": 1200, "env__max_frame": 1200}  # none before the end
    save(GAMMA, env__name="bad_env:Slow-v0", meta__max_trial=2, **rare)
    command = [sys.executable, ROOT / "run_lab.py", "s.json", "search", "--ray-address", cluster]
    driver = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": f"{ROOT}:."}, text=True, stdout=subprocess.PIPE)
    request.addfinalizer(driver.kill)
    while driver.poll() is None:
        if list(Path("data").glob("*/info/s_ledger.jsonl")) and "running" in [e["event"] for e in events(the_run())]:
            break
        time.sleep(0.05)
    driver.send_signal(signal.SIGINT)
    told = driver.communicate(timeout=300)[0]
    assert driver.returncode == 0 and "stopped. Go on with" in told
    assert {e["event"] for e in events(the_run())} == {"planned", "running", "spent"}, "none is failed for that"
    assert list(the_run().glob("model/t*/session0.json")), "it has saved where it stopped"
    assert lab("search@latest") == 0
    assert list(table(the_run())["status"]) == ["done"] * 2


def test_asha_stops_trials_that_lag_behind(lab):
    rungs = {"grace_period": 100, "reduction_factor": 2}
    pay = {"env.pay__grid_search": [1.0, 0.0, 0.25, 0.5]}
    save(pay, env__name="bad_env:Pays-v0", env__max_frame=600, meta__search_scheduler=rungs)
    assert lab("s.json", "search") == 0
    shown = table(the_run())
    pruned = shown[shown["status"] == "pruned"]
    assert shown.index[0] == 0 and shown.loc[0, "status"] == "done" and len(pruned)
    assert all(re.search(r"at frame (100|200|400)$", reason) for reason in pruned["reason"])


def _is_ours(pid: int, driver: subprocess.Popen[str]) -> bool:
    """Whether it is a worker that lives now, and began after its driver."""
    try:
        return os.stat(f"/proc/{pid}").st_mtime > os.stat(f"/proc/{driver.pid}").st_mtime
    except OSError:
        return False


def test_what_can_never_be_met_is_refused_at_once(lab, capsys):
    save(GAMMA, meta__search_resources={"cpu": 64})
    assert lab("s.json", "search") == 2
    told = capsys.readouterr().err
    assert "a trial needs 64 cpu" in told and "there is 1 cpu and 0 gpu; 1 cpu and 0 gpu" in told


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "host.invalid:6379"])
def test_an_unreachable_cluster_is_told_in_seconds(tmp_path, monkeypatch, address, capsys):
    monkeypatch.chdir(tmp_path)
    save(GAMMA)
    began = time.monotonic()
    assert main(["s.json", "search", "--ray-address", address]) == 2
    assert time.monotonic() - began < 20
    told = capsys.readouterr().err
    assert address in told and re.search("ray start", told)


def test_whoever_answers_but_is_no_ray_is_told_in_seconds():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"

        def answer() -> None:
            caller, _ = other.accept()
            caller.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            caller.close()

        threading.Thread(target=answer).start()
        with pytest.raises(LabError, match="something else listens there"), started_ray(address):
            pass


def test_a_node_that_is_too_slow_is_told(monkeypatch):
    def init(**words: Any) -> None:
        raise Exception("The current node timed out during startup.")  # what Ray raises

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(LabError, match=r"timed out during startup\. .*try again"), started_ray(None):
        pass
