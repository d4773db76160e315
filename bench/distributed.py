"""python -m bench.distributed [curves] [speed] [kill] [--seeds 3]: rollout workers against playing in one process.

curves: PPO and DoubleDQN with PER on CartPole, local and with 2 workers: mean return of the last 100 episodes.
speed: frames/s with little learning on a CartPole whose step takes 1 ms, asleep (a simulator elsewhere) or busy (one
that needs a core), with 1 and 2 workers that play by turns.
kill: a worker is killed by its pid halfway.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium

from bench.words import count

ROOT = Path(__file__).parents[1]
FILE = ROOT / "specs" / "distributed" / "cartpole.json"
SPECS = ("ppo_cartpole_workers", "ddqn_per_cartpole_workers")
WHAT = ["curves", "speed", "kill"]
STEP = 0.001  # seconds of a slow world's step
TURN = 2.0  # seconds
WORLDS = 16  # slow ones
LIGHT = {  # what learning is in speed: little, so that playing is what is waited for
    "ppo_cartpole_workers": {"agent__algorithm__training_epoch": 1, "agent__algorithm__minibatch_size": 512},
    "ddqn_per_cartpole_workers": {"agent__algorithm__training_frequency": 64},
}
TARGET = 1.6  # times the frames/s of one worker


class Slow(gymnasium.Wrapper):
    """CartPole whose step takes 1 ms, `asleep` or not."""

    def __init__(self, asleep: bool = True) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self.asleep = asleep

    def step(self, action: Any) -> Any:
        end = time.perf_counter() + STEP
        if self.asleep:
            time.sleep(STEP)
        while time.perf_counter() < end:
            pass
        return self.env.step(action)


if "Slow-v0" not in gymnasium.registry:
    gymnasium.register("Slow-v0", entry_point=Slow)


def begun(name: str, folder: str, **changes: Any) -> Any:
    """A session of a spec of `FILE` with keys changed ('env.max_frame' as env__max_frame), about to play."""
    from slm_lab.experiment.run_dir import RunDir
    from slm_lab.experiment.session import Session
    from slm_lab.spec.load import apply_overrides, load_file
    from slm_lab.spec.validate import resolve

    quiet = {"meta.tensorboard": False, "meta.png": False}
    keys = quiet | {key.replace("__", "."): value for key, value in changes.items()}
    spec = resolve(apply_overrides(load_file(str(FILE))[name], [f"{k}={_written(v)}" for k, v in keys.items()]), name)
    run = RunDir.create(Path(folder), name, {"name": name, **spec.dump()}, "train")
    session = Session(spec, run, 0, lambda progress: None)
    session.begin()
    return session


def _written(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)


def curves(folder: str, seeds: int) -> None:
    print("\nmean return of the last 100 episodes after 40,000 frames, each seed")
    for name in SPECS:
        for workers in (False, {"workers": 2}):
            returns = []
            for seed in range(seeds):
                session = begun(name, folder, meta__distributed=workers, meta__seed=seed)
                while session.play_for(60):
                    pass
                returns.append(session.finish().total_reward_ma)
                how = "2 workers" if workers else "local"
                print(f"  {name}, {how}, seed {seed}: {returns[-1]:.1f} ({session.agent.opt_step} updates)", flush=True)
            print(f"  {name}, {how}: mean {statistics.mean(returns):.1f}, std {statistics.pstdev(returns):.1f}")


def speed(folder: str, rounds: int) -> None:
    print(f"\nframes/s where a step takes 1 ms, {WORLDS} worlds; medians of {rounds} turns of {TURN:g} s each")
    for name in SPECS:
        for asleep in (True, False):
            world = {"env__name": "bench.distributed:Slow-v0", "env__asleep": asleep, "env__max_frame": 10**6}
            keys = {**world, "env__num_envs": WORLDS, **LIGHT[name]}
            sessions = [begun(name, folder, meta__distributed={"workers": n}, **keys) for n in (1, 2)]
            turns = [[_turn(session) for session in sessions] for _ in range(rounds + 1)][1:]  # the first one warms up
            one, two = (statistics.median(fps) for fps in zip(*turns, strict=True))
            ratio = statistics.median(turn[1] / turn[0] for turn in turns)
            what = "asleep" if asleep else "busy"
            told = f"{one:.0f} with one worker, {two:.0f} with two: {ratio:.2f} times"
            print(f"  {name}, {what}: {told} (target {TARGET}: {'met' if ratio >= TARGET else 'missed'})", flush=True)
            for session in sessions:
                session.finish()


def _turn(session: Any) -> float:
    """Frames/s of a session while the other one waits: what else the machine does falls on both alike."""
    frame, began = session.frame, time.perf_counter()
    session.play_for(TURN)
    return float((session.frame - frame) / (time.perf_counter() - began))


def kill(folder: str) -> None:
    print("\na worker killed halfway")
    for name in SPECS:
        session = begun(name, folder, env__max_frame=20_000)
        while session.frame < 10_000:
            session._advance()
        victim = session.source.posts[1].pid
        os.kill(victim, signal.SIGKILL)
        while session.play_for(60):
            pass
        last = session.finish()
        told = f"{last.status} at frame {last.frame:,}, return {last.total_reward_ma:.1f}"
        print(f"  {name}: process {victim} killed; {told}", flush=True)


def _what(word: str) -> str:
    if word not in WHAT:
        raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(WHAT)}")
    return word


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", type=_what, help=f"{', '.join(WHAT)} (default: all)")
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument("--rounds", type=count, default=7, help="turns of each in speed")
    args = parser.parse_args()
    what = args.what or WHAT
    os.environ["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"  # workers look for the slow world too
    from slm_lab.experiment.cluster import started_ray

    with tempfile.TemporaryDirectory(prefix="bench_distributed_") as folder, started_ray(cpus=3):
        if "speed" in what:
            speed(folder, args.rounds)
        if "kill" in what:
            kill(folder)
        if "curves" in what:
            curves(folder, args.seeds)


if __name__ == "__main__":
    main()
