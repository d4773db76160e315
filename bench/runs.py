"""Workloads of the speed benchmark: starts and whole runs, by the clock on the wall."""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.race import LabLearner
from bench.trainings import ROOT, SB3, ppo_spec
from bench.workload import Sample, Side, Workload
from slm_lab.spec.lab_spec import LabSpec
from slm_lab.spec.load import apply_overrides, load_file, pick
from slm_lab.spec.validate import resolve


def show_help(share: float) -> Sample:
    """Wall seconds of `run_lab.py --help`."""
    command = [sys.executable, "run_lab.py", "--help"]
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    return Sample(statistics.median(seconds))


FIRST = 100  # frames
SCRIPT = f"""
from stable_baselines3 import PPO
model = PPO("MlpPolicy", "CartPole-v1", n_steps={FIRST}, batch_size=50, n_epochs=4, device="cpu").learn({FIRST})
print(model.num_timesteps, flush=True)
"""


def start_ours(share: float) -> Sample:
    """Wall seconds from the start of `run_lab.py SPEC train` until the table of the first frames is written."""
    spec = ppo_spec(1, time_horizon=FIRST, minibatch_size=50, training_epoch=4)
    spec["env"]["max_frame"] = FIRST
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "start.json"
        file.write_text(json.dumps({"start": spec}))
        began = time.perf_counter()
        command = [sys.executable, "run_lab.py", str(file), "train", "--data", folder]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            while not (frames := played(folder)):
                if process.poll() is not None:
                    raise RuntimeError(f"it ended with exit code {process.returncode}")
                time.sleep(0.005)
            seconds = time.perf_counter() - began
            process.terminate()
        return Sample(seconds, {"frames": frames})


def played(folder: str) -> int:
    """Frames of all sessions of the run in `folder`, by their tables; 0 while there is no row."""
    tables = [
        csv.DictReader(file.read_text().splitlines()) for file in Path(folder).glob("*/info/*session_df_train.csv")
    ]
    return sum(max((int(row["frame"]) for row in table), default=0) for table in tables)


def start_sb3(share: float) -> Sample:
    """The same of a script, until it has learned and says so."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        frames = int(process.stdout.readline())
        return Sample(time.perf_counter() - began, {"frames": frames})


def whole_spec(share: float, changes: Sequence[str] = ()) -> LabSpec:
    """PPO's spec for CartPole, as it comes with the lab."""
    file = "specs/benchmark/cartpole.json"
    name, raw = pick(load_file(ROOT / file), "ppo_cartpole", file)
    frames = round(raw["env"]["max_frame"] * share)
    return resolve(apply_overrides(raw, [f"env.max_frame={frames}", *changes]), name)


ALONE = "meta.max_session=1"


def whole_session(share: float) -> Sample:
    """Wall seconds of one of its sessions: with logs, TensorBoard and checkpoints."""
    from slm_lab.experiment.run_dir import RunDir
    from slm_lab.experiment.session import Session

    spec = whole_spec(share, [ALONE])
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir.create(Path(folder), spec.name, {"name": spec.name, **spec.dump()}, "train")
        began = time.perf_counter()
        Session(spec, run, 0, lambda progress: None).run()
        return Sample(time.perf_counter() - began, {"frames": played(folder)})


def whole_run(share: float) -> Sample:
    """Wall seconds of a run as `train` makes it: with graphs, their pictures and the report at its end too."""
    from rich.console import Console

    from slm_lab.experiment import control

    spec = whole_spec(share)
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "said").open("w") as said:
        began = time.perf_counter()
        control.train(spec, Path(folder), Console(file=said))
        seconds = time.perf_counter() - began
        pages, pictures = (len(list(Path(folder).glob(f"*/graph/*.{kind}"))) for kind in ("html", "png"))
        if not 0 < pages == pictures:
            raise RuntimeError(f"{pictures} pictures were drawn of {pages} graphs: it did less than it should")
        return Sample(seconds, {"frames": played(folder)})


def bare_run(share: float, changes: Sequence[str] = ()) -> Sample:
    """Wall seconds of the same trainings, one after the other, each a bare loop."""
    spec = whole_spec(share, changes)
    began, frames = time.perf_counter(), 0
    for session in range(spec.meta.max_session):
        learner = LabLearner(spec, spec.meta.seed + session)
        while learner.frame < spec.env.max_frame:
            learner.advance(spec.env.max_frame)
        frames += learner.frame
    return Sample(time.perf_counter() - began, {"frames": frames})


WORKLOADS = [
    Workload("help", "`python run_lab.py --help`", "s", {"ours": Side(show_help)}, most=0.3, less=True),
    Workload(
        "start", f"from the start of the process to {FIRST} frames of CartPole-v1 trained on", "s",
        {"ours": Side(start_ours), "SB3": Side(start_sb3, SB3)}, most=2.8, less=True,
        note="ours as a run with all its files, SB3 as a script of four lines",
    ),
    Workload(
        "full_session", "ppo_cartpole, one session, with logs, TensorBoard and checkpoints; beside it a bare loop",
        "s", {"ours": Side(whole_session), "bare loop": Side(partial(bare_run, changes=[ALONE]))},
        ratio=0.95, less=True, note="A second of 20 goes for logs, TensorBoard and checkpoints",
    ),
    Workload(
        "full_run", "ppo_cartpole as it comes, a command of four sessions, with graphs, pictures and the report at its "
        "end; beside it four bare loops", "s",
        {"ours": Side(whole_run), "bare loop": Side(bare_run)}, ratio=0.95, less=True,
        missed="The sessions lose 5 % (full_session), some 4 of the 7 s. The rest is the begin, as the process they "
        "are forked from imports torch (1.0), which the bare loops have done before the clock starts, and the end, the "
        "same for 20 graphs however long the run. Each measured alone: 1.5 until the engine that draws pictures has "
        "started, 0.1 a picture, 0.45 one of many panels; plotly and the page",
    ),
]  # fmt: skip
