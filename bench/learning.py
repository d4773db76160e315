"""python -m bench.learning [SPEC_NAME ...]: runs benchmark specs against their bars, writes docs/benchmarks.md.

Every row is one command (`python run_lab.py FILE NAME train`), seeds 0 to max_session - 1, no run left out. A spec
named on the command line is run again; the others keep the rows of their last run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from slm_lab.experiment import control
from slm_lab.experiment.plot import multi_trial_graph
from slm_lab.experiment.run_dir import RunDir
from slm_lab.lib.errors import LabError
from slm_lab.spec.lab_spec import LabSpec
from slm_lab.spec.load import load_file, pick
from slm_lab.spec.validate import resolve

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "benchmarks"
DATA = ROOT / "data" / "bench"


@dataclass(frozen=True)
class Row:
    """A claim: this spec reaches `bar`. `published` is SLM-Lab's figure; `below` turns the bar round, for controls."""

    group: str
    file: str
    name: str
    bar: float
    published: float | None = None
    below: bool = False
    window: int = 50_000  # last frames that SLM-Lab's figure is a mean over


INTRO = """# Benchmarks

Written by `python run_lab.py bench learning`. One row is one command, `python run_lab.py FILE NAME train`, with one
torch thread a session. Seeds are 0 to n-1, none left out.

Other figures: [StrategicMemory](benchmarks/strategic.md), [who learns MemoryTask](benchmarks/memory_task.md),
beside other libraries, [speed and RAM](benchmarks/speed.md),
[what a search costs](search.md#what-it-costs), [rollout workers](distributed.md#what-it-gives).

- CartPole, Acrobot, LunarLander, and Pendulum with PPO: mean return of the last 100 training episodes; their mean over
  seeds must reach the bar.
- Pendulum with SAC and TD3: return of 100 greedy episodes after training (20,000 frames hold only 100 training ones).
- Memory tasks and MirrorCue: return of 200 greedy episodes after training; every seed must reach the bar, and the
  control without a working memory (`mlp_...`, `dqn_...`, `sac_...`) must stay below its own. MirrorCue's controls are
  in [multiagent.md](multiagent.md).
- Chance is 0 in MemoryTask and -0.5 in RepeatFirst; the mean of 200 fair +-1 episodes has a standard error of 0.07.
- BitFlip 15: an episode costs 1 a step and ends where the goal is reached. A mean of -7.0 or more means that at least
  90 % of the greedy episodes reach it, one of -14.95 or less at most 5 %.
- CartPole without velocities (both agents see the action before): training returns; every seed must reach the bar, and
  the memoryless control stay below its own.
- "SLM-Lab" is what that library's docs/BENCHMARKS.md (96be393) gives for the same env and number of frames: a mean over
  its last 100 log rows, which are the last 50,000 frames (100,000 of LunarLander). *By its mean* is ours over the same
  frames (–: of a run that wasn't kept); the mean of the last 100 episodes is of later ones. Bars are ours.
- Frames/s are of one session, most of them on a machine that was busy with other work: a rough guide.
- A picture is of the runs that its group had when all of them were last run in one place.
- A row is of the code of its commit. A commit is "dirty" also where only the results file of this page had changed.
- Settings are the same for all seeds. REINFORCE's 16 episodes a batch and falling learning rate were chosen on seeds 10
  to 13, after the first setting (8 episodes, constant rate) had given 472.9 on seeds 0 to 3. Those of the off-policy
  agents were chosen on seeds 10 to 13. DQN's first two settings had given, on seeds 0 to 3, 258.4 (rewards of 1, one
  step: values near 1/(1-γ) everywhere leave a difference between actions too small to act by) and 456.2 (γ 0.98).
- LunarLander's first setting (an update each 8 frames, 5 steps, learning rate 1e-3, ε to 0.01 by frame 50,000; chosen
  on seeds 10 and 11) had given 162.7 on seeds 0 to 3: seed 3 learned to hover and never to land. The present one was
  chosen on seeds 10 to 13 (214.0, 236.7, 226.4, 200.2).
- DRQN without velocities misses its bar of 400 on one seed of three (393.5, mean 431.1). Its setting was chosen on seed
  10, which had 448 at frame 122,000.
- Acrobot's A2C had a constant learning rate at first: -83.71 on seeds 0 to 3, no worse than now (-84.06 on a second
  make of CPU). That it falls was chosen on seeds 10 to 13 (-83.31; constant -84.56, shorter rollouts -83.41, a higher
  rate -86.23).
- RepeatFirst was learned in rollouts of 34 steps at first, less than an episode: on a second make of CPU one seed of
  LSTM's three had solved it by frame 140,000 and ended at 0.88. The present ones, of two episodes, were chosen on seeds
  20 to 39 (LSTM: the worst of twenty ends at 0.997).
"""
ROWS = [
    Row("CartPole-v1", "specs/benchmark/cartpole.json", "reinforce_cartpole", 475, 483.31),
    Row("CartPole-v1", "specs/benchmark/cartpole.json", "a2c_cartpole", 490, 496.68),
    Row("CartPole-v1", "specs/benchmark/cartpole.json", "ppo_cartpole", 495, 498.94),
    Row("CartPole-v1", "specs/benchmark/cartpole.json", "sarsa_cartpole", 430, 430.95),
    Row("CartPole-v1", "specs/benchmark/cartpole.json", "dqn_cartpole", 475, 239.94),
    Row("CartPole-v1", "specs/benchmark/cartpole.json", "ddqn_per_cartpole", 480, 451.51),
    Row("CartPole-v1", "specs/benchmark/cartpole.json", "sac_cartpole", 450, 406.09),
    Row("Acrobot-v1", "specs/benchmark/acrobot.json", "a2c_acrobot", -84, -83.99),
    Row("Acrobot-v1", "specs/benchmark/acrobot.json", "ppo_acrobot", -84, -81.28),
    Row("Acrobot-v1", "specs/benchmark/acrobot.json", "dqn_acrobot", -85, -94.17),
    Row("Acrobot-v1", "specs/benchmark/acrobot.json", "ddqn_per_acrobot", -82, -83.92),
    Row("Pendulum-v1", "specs/benchmark/pendulum.json", "ppo_pendulum", -180, -174.87),
    Row("Pendulum-v1", "specs/benchmark/pendulum.json", "sac_pendulum", -160),
    Row("Pendulum-v1", "specs/benchmark/pendulum.json", "td3_pendulum", -160),
    Row("LunarLander-v3", "specs/benchmark/lunarlander.json", "ddqn_per_lunar", 200, 265.9, window=100_000),
    Row("MemoryTask 4 HARD", "specs/memory/memory_task.yaml", "gru_memory_task_4", 0.95),
    Row("MemoryTask 4 HARD", "specs/memory/memory_task.yaml", "lstm_memory_task_4", 0.95),
    Row("MemoryTask 4 HARD", "specs/memory/memory_task.yaml", "mlp_memory_task_4", 0.2, below=True),
    Row("MemoryTask 16 HARD", "specs/memory/memory_task.yaml", "gru_memory_task_16", 0.95),
    Row("MemoryTask 16 HARD", "specs/memory/memory_task.yaml", "lstm_memory_task_16", 0.95),
    Row("MemoryTask 16 HARD", "specs/memory/memory_task.yaml", "mlp_memory_task_16", 0.2, below=True),
    Row("MemoryTask 4 HARD", "specs/memory/drqn.yaml", "drqn_memory_task_4", 0.95),
    Row("MemoryTask 4 HARD", "specs/memory/drqn.yaml", "dqn_memory_task_4", 0.2, below=True),
    Row("MemoryTask 4 HARD", "specs/memory/recurrent_sac.json", "recurrent_sac_memory_task_4", 0.95),
    Row("MemoryTask 4 HARD", "specs/memory/recurrent_sac.json", "sac_memory_task_4", 0.2, below=True),
    Row("MemoryTask 16 HARD", "specs/memory/drqn.yaml", "drqn_memory_task_16", 0.95),
    Row("MemoryTask 16 HARD", "specs/memory/drqn.yaml", "dqn_memory_task_16", 0.2, below=True),
    Row("CartPole no velocity", "specs/memory/drqn.yaml", "drqn_cartpole_no_velocity", 400),
    Row("CartPole no velocity", "specs/memory/drqn.yaml", "dqn_cartpole_no_velocity", 200, below=True),
    Row("MirrorCue 4", "specs/multiagent/mirror_cue.json", "independent_drqn_mirror_cue", 0.95),
    Row("BitFlip 15", "specs/memory/bit_flip.json", "her_bit_flip", -7.0),
    Row("BitFlip 15", "specs/memory/bit_flip.json", "dqn_bit_flip", -14.95, below=True),
    Row("RepeatFirst", "specs/memory/memory_task.yaml", "gru_repeat_first", 0.99),
    Row("RepeatFirst", "specs/memory/memory_task.yaml", "lstm_repeat_first", 0.99),
    Row("RepeatFirst", "specs/memory/memory_task.yaml", "mlp_repeat_first", -0.45, below=True),
]


def run(row: Row, console: Console) -> dict[str, Any]:
    """Train one spec; what is worth keeping of it."""
    name, raw = pick(load_file(ROOT / row.file), row.name, row.file)
    spec = resolve(raw, name)
    folder = control.train(spec, DATA, console)
    scores = [score(folder, name, i, spec) for i in range(spec.meta.max_session)]
    metrics = json.loads((folder.info / f"{name}_t0_trial_metrics.json").read_text())["scalar"]
    facts = {"seeds": [round(s, 3) for s in scores], "mean": float(np.mean(scores)), "frames": spec.env.max_frame}
    facts |= {"fps": metrics.get("fps"), "seconds": metrics.get("wall_t"), "date": time.strftime("%Y-%m-%d")}
    if row.published is not None:
        facts["by_its_mean"] = float(np.mean([lately(folder, name, i, row.window) for i in range(len(scores))]))
    return {**asdict(row), **facts, "run": folder.path.name, "sha": folder.read_spec()["run"]["git_sha"]}


def lately(folder: RunDir, name: str, session: int, frames: int) -> float:
    """Mean return of a session's log rows over its last frames, as SLM-Lab has it."""
    table = pd.read_csv(folder.info / f"{name}_t0_s{session}_session_df_train.csv")
    return float(table["total_reward"][table["frame"] > table["frame"].iloc[-1] - frames].mean())


def score(folder: RunDir, name: str, session: int, spec: LabSpec) -> float:
    """Final figure of a session. Raises `LabError` for one that stopped or failed: a row needs all its seeds."""
    evaluated = bool(spec.meta.rigorous_eval)
    file = folder.info / f"{name}_t0_s{session}_session_df_{'eval' if evaluated else 'train'}.csv"
    last = pd.read_csv(file).iloc[-1] if file.exists() else {"frame": 0}
    if last["frame"] < spec.env.max_frame:
        raise LabError(f"session {session} of {folder.path} ended at frame {last['frame']}. Run {name} again.")
    return float(last["total_reward" if evaluated else "total_reward_ma"])


def passed(row: dict[str, Any]) -> bool:
    """Does the mean over all seeds reach the bar? For memory tasks every seed must."""
    if row["below"]:
        return bool(max(row["seeds"]) <= row["bar"])
    worst = min(row["seeds"]) if row["file"].startswith(("specs/memory", "specs/multiagent")) else row["mean"]
    return bool(worst >= row["bar"])


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown page."""
    lines = [INTRO]
    columns = (
        "spec",
        "frames",
        "each seed",
        "mean",
        "bar",
        "reached",
        "SLM-Lab",
        "by its mean",
        "frames/s a session",
        "commit",
        "date",
    )
    for group in dict.fromkeys(row["group"] for row in rows):
        lines += [f"## {group}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in (r for r in rows if r["group"] == group):
            cells = [
                f"[{row['name']}](../{row['file']})",
                f"{row['frames']:,}",
                ", ".join(f"{s:g}" for s in row["seeds"]),
                f"{row['mean']:.2f}",
                f"{'≤' if row['below'] else '≥'} {row['bar']:g}",
                "yes" if passed(row) else "**no**",
                "–" if row["published"] is None else f"{row['published']:g}",
                "–" if row.get("by_its_mean") is None else f"{row['by_its_mean']:.2f}",
                "–" if row["fps"] is None else f"{row['fps']:,.0f}",
                row["sha"] or "–",
                row["date"],
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", f"![{group}](benchmarks/{picture(group)})", ""]
    return "\n".join(lines)


def picture(group: str) -> str:
    return f"{group.lower().replace(' ', '_').replace('-', '_')}_multi_trial_graph_mean_returns_ma_vs_frames.png"


def draw(rows: list[dict[str, Any]], group: str) -> None:
    """The curves of a group, as PNG beside the page; where some of its runs aren't here, the one of before stays."""
    runs = [(row["name"], DATA / row["run"]) for row in rows if row["group"] == group]
    if (OUT / picture(group)).exists() and not all(folder.exists() for _, folder in runs):
        return
    runs = [(label, folder) for label, folder in runs if folder.exists()]
    name = picture(group).split("_multi_trial")[0]
    for file in multi_trial_graph(runs, DATA, name, title=group):
        if file.suffix == ".png":
            shutil.copy(file, OUT / file.name)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 (bars that are missed are told), 2 for what the user gave."""
    parser = argparse.ArgumentParser(prog="run_lab.py bench learning", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="SPEC_NAME", help="default: all")
    names = parser.parse_args(argv).names
    OUT.mkdir(parents=True, exist_ok=True)
    store = OUT / "learning.json"
    kept = {row["name"]: row for row in json.loads(store.read_text())} if store.exists() else {}
    unknown = set(names) - {row.name for row in ROWS}
    if unknown:
        print(f"unknown: {', '.join(sorted(unknown))}. There are: {', '.join(row.name for row in ROWS)}")
        return 2
    console = Console()
    for row in ROWS:
        if not names or row.name in names:
            try:
                kept[row.name] = run(row, console)
            except LabError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            rows = [kept[r.name] for r in ROWS if r.name in kept]
            store.write_text(json.dumps(rows, indent=1) + "\n")
            (ROOT / "docs" / "benchmarks.md").write_text(table(rows))
            draw(rows, row.group)
    missed = [row["name"] for row in kept.values() if not passed(row)]
    console.print(f"missed: {', '.join(missed)}" if missed else "every bar is reached")
    return 0


if __name__ == "__main__":
    sys.exit(main())
