"""python -m bench.search [--trials 8] [--frames 2000]: what a search costs beside its trials' own training.

PPO on CartPole, one session a trial, as many workers as cores. Overhead of a trial: the time from Ray's start to the
end of the last trial, less the training divided by the workers, over the trials. With warm workers: from the end of a
worker's trial to the end of its next, less the training of that.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.words import count

ROOT = Path(__file__).parents[1]
TARGET = 0.7  # seconds of overhead of a trial


def spec(trials: int, frames: int) -> dict[str, Any]:
    """PPO on CartPole, searched over the discount."""
    algorithm = {"name": "PPO", "time_horizon": 64, "minibatch_size": 64, "training_epoch": 4}
    agent = {"algorithm": algorithm, "memory": {"name": "OnPolicyBatchReplay"}, "net": {"name": "MLP"}}
    env = {"name": "CartPole-v1", "num_envs": 4, "max_frame": frames}
    meta = {"max_trial": trials, "tensorboard": False, "log_frequency": 200}
    search = {"agent.algorithm.gamma__uniform": [0.9, 0.999]}
    return {"bench_search": {"agent": agent, "env": env, "meta": meta, "search": search}}


def measure(trials: int, frames: int) -> dict[str, float]:
    """Run the search as a person would; seconds of its parts."""
    with tempfile.TemporaryDirectory(prefix="bench_search_") as folder:
        file = Path(folder, "bench_search.json")
        file.write_text(json.dumps(spec(trials, frames)))
        command = [sys.executable, ROOT / "run_lab.py", file, "search", "--data", folder]
        began = time.time()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
        ended = time.time()
        (ledger,) = Path(folder).glob("*/info/*_ledger.jsonl")
        events = [json.loads(line) for line in ledger.read_text().splitlines()]
    at = {kind: [_seconds(e["time"]) for e in events if e["event"] == kind] for kind in ("planned", "done")}
    training = [e["metrics"]["wall_t"] for e in events if e["event"] == "done"]  # without building and judging
    workers = min(len(os.sched_getaffinity(0)), trials)
    own = sum(training) / workers
    warm = min(_seconds(e["time"]) - e["seconds"] for e in events if e["event"] == "running")  # the first training
    return {
        "wall": ended - began,
        "ray": min(at["planned"]) - began,
        "workers": warm - min(at["planned"]),
        "training": sum(training),
        "results": ended - max(at["done"]),
        "overhead": (max(at["done"]) - min(at["planned"]) - own) / trials,
        "warm": statistics.mean(_gaps(events) or [math.nan]),
    }


def _gaps(events: list[dict[str, Any]]) -> list[float]:
    """Seconds that a warm worker spends on a trial beside its training."""
    worker = {e["trial"]: e["pid"] for e in events if e["event"] == "running"}
    last: dict[int, float] = {}  # by worker, when its trial before ended
    gaps = []
    for event in (e for e in events if e["event"] == "done"):
        pid, now = worker[event["trial"]], _seconds(event["time"])
        if pid in last:
            gaps.append(now - last[pid] - min(event["metrics"]["wall_t"], event["seconds"]))
        last[pid] = now
    return gaps


def _seconds(written: str) -> float:
    return datetime.fromisoformat(written).timestamp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=count, default=8)
    parser.add_argument("--frames", type=count, default=2000)
    args = parser.parse_args()
    cost = measure(args.trials, args.frames)
    print(f"{args.trials} trials of {args.frames} frames: {cost['wall']:.1f} s in all")
    print(f"  {cost['ray']:.1f} s until Ray has started, {cost['workers']:.1f} s until its workers have (imports)")
    print(f"  {cost['training']:.1f} s of training, all trials together")
    print(f"  {cost['results']:.1f} s for table, graphs and report at the end")
    print(f"  overhead of a trial: {cost['overhead']:.2f} s after Ray's start, {cost['warm']:.2f} s with warm workers")
    print(f"  target: {TARGET} s a trial after Ray's start: {'met' if cost['overhead'] < TARGET else 'missed'}")


if __name__ == "__main__":
    main()
