"""What StrategicMemory can and can't, one setting for all.

python -m bench.strategic [ROW ...] [--seeds N] [--jobs N] [--page]

Each session trains until three greedy evaluations in a row reach the row's bar (or its frames are spent). Then its
memory is looked into: is the cue kept, is it attended to; all of it once more after 20 further updates. Every judgement
has 200 episodes of its own, 1,000 where a row claims that all fail. Sessions are kept in
docs/benchmarks/strategic.jsonl, the table of them in strategic.md; a row named on the command line is run anew, the
others keep their last sessions. `--page` runs none, it writes the table.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.commit import commit
from bench.race import BalancedMemoryTask, LabLearner
from bench.words import count
from slm_lab.env.base import VecEnv
from slm_lab.env.tasks.base import VecTask
from slm_lab.env.vec import make_env
from slm_lab.experiment.evaluate import play
from slm_lab.experiment.session import EVAL_WORLDS
from slm_lab.lib.files import write_atomic
from slm_lab.lib.rng import world_seed
from slm_lab.spec.load import apply_overrides, load_file, pick
from slm_lab.spec.validate import resolve

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "strategic.md"
SESSIONS = PAGE.with_suffix(".jsonl")
EPISODES, WORLDS = 200, 64
CONTROL_EPISODES = 1000  # a control has many evaluations to be lucky in: the noise of 200 is 0.07, of these 0.03
MORE = 20  # updates after it is solved
SOLVED, LATER, INSIDE = 10**6, 2 * 10**6, 3 * 10**6  # numbers of judgements beside those of the curve
CHANCE = 0.35  # what luck may earn; a reservoir's at 64 steps is K/T = 0.25
FAR = (1024, 8192, 65536)  # delays at which those trained at 64 are tested
KEPT, SEEN = 0.99, 0.8  # least share of the cues that is held, least attention on them

Found = dict[str, Any]  # what a session came to


@dataclass(frozen=True)
class Row:
    """A claim: this spec with these changes reaches `bar` on each of `seeds`; a control earns `most` at most."""

    name: str
    file: str
    every: int  # frames between evaluations
    max_frame: int
    changes: tuple[str, ...] = ()
    bar: float = 0.99
    seeds: int = 10
    most: float | None = None
    claims: bool = True  # else it is told what comes out
    seconds: float | None = None  # most CPU seconds
    far: bool = False  # it holds at the delays FAR

    @property
    def episodes(self) -> int:
        """Of each judgement."""
        return EPISODES if self.most is None else CONTROL_EPISODES


def memory_task(delay: int, mode: str, every: int, max_frame: int, **keys: Any) -> Row:
    changes = (f"env.delay={delay}", f"env.difficulty={int(mode == 'HARD')}")
    name, file = f"MemoryTask {delay} {mode}", "specs/strategic/memory_task.json"
    return Row(name, file, every, max_frame, changes, **keys)


def without(task: Row, name: str, *change: str, **keys: Any) -> Row:
    """A task's row with something taken out."""
    name = f"{task.name.removeprefix('MemoryTask ')}, {name}"
    changes = (*task.changes, *change)
    return Row(name, task.file, 4 * task.every, task.max_frame, changes, task.bar, seeds=3, **keys)


def instead(task: Row, name: str, *change: str, max_frame: int, **keys: Any) -> Row:
    """A task's row with something else in the place of what it has; 3 seeds."""
    changes = (*task.changes, *change)
    return Row(f"{task.name} with {name}", task.file, task.every, max_frame, changes, task.bar, seeds=3, **keys)


FIFO = "agent.memory.retention=fifo"
HARD_64 = memory_task(64, "HARD", 4096, 200_000, far=True)
OFTEN = "agent.algorithm.training_frequency=64"  # as PPO's time_horizon
ENTRIES = "agent.memory.entry={name: Transformer, window: 4}"
BOX = ("env.continuous=true", "agent.algorithm.log_barrier_coef=0")
BARE = ("agent.algorithm={name: PPO}", "agent.memory={name: StrategicMemory}", "agent.net={name: MLP, shared: true}")
HARD_256 = memory_task(256, "HARD", 16384, 300_000, seconds=20)
CUES_32 = Row("MultiCue 32", "specs/strategic/multi_cue.json", 8192, 400_000, ("env.length=32",), 0.95, 5)
MAZE_64 = Row("PassiveTMaze 64", "specs/strategic/tmaze.json", 16640, 600_000, ("env.corridor=64",), 0.95, 5)
ROWS = [
    *(memory_task(4, mode, 512, 50_000) for mode in ("EASY", "HARD")),
    *(memory_task(16, mode, 1024, 100_000) for mode in ("EASY", "HARD")),
    memory_task(64, "EASY", 4096, 200_000),
    HARD_64,
    HARD_256,
    memory_task(1024, "HARD", 65536, 1_200_000, seconds=60),
    memory_task(4096, "HARD", 262144, 6_000_000, seconds=240, seeds=3),
    Row("RepeatPrevious 4", "specs/strategic/repeat_previous.json", 3264, 200_000, bar=0.9, seeds=5),
    CUES_32,
    Row("MultiCue 128", "specs/strategic/multi_cue.json", 32768, 1_600_000, ("env.length=128",), 0.95, 5),
    MAZE_64,
    Row("PassiveTMaze 256", "specs/strategic/tmaze.json", 65792, 3_000_000, ("env.corridor=256",), 0.95, 5),
    *(
        instead(HARD_64, name, f"agent.algorithm.name={name}", OFTEN, max_frame=1_000_000)
        for name in ("A2C", "REINFORCE")
    ),
    instead(HARD_64, "Transformer entries", ENTRIES, max_frame=200_000),
    instead(HARD_64, "continuous actions", *BOX, max_frame=1_000_000),
    instead(HARD_64, "defaults alone", *BARE, max_frame=1_000_000, claims=False),
    without(HARD_64, "fifo", FIFO, most=CHANCE),
    without(HARD_64, "reservoir", "agent.memory.retention=reservoir", most=CHANCE),
    without(HARD_64, "no memory", "agent.memory.retention=none", most=CHANCE),
    *(without(task, "no hindsight", "agent.memory.hindsight_coef=0", most=CHANCE) for task in (HARD_64, HARD_256)),
    without(HARD_64, "no usefulness", "agent.memory.usefulness_coef=0", claims=False),
    without(HARD_64, "no actor term", "agent.memory.actor_coef=0", claims=False),
    without(HARD_64, "no gate", "agent.memory.actor_gate=false", claims=False),
    without(CUES_32, "fifo", FIFO, most=0.9),  # cues among the last 16 steps it has
    without(MAZE_64, "fifo", FIFO, most=0.6),  # one of two sides earns 0.5
]


def session(row: Row, seed: int) -> Found:
    """Train one seed; everything measured of it."""
    torch.set_num_threads(1)
    code = commit()  # by the time it is trained it may be another
    name, raw = pick(load_file(ROOT / row.file), None, row.file)
    spec = resolve(apply_overrides(raw, [*row.changes, f"env.max_frame={row.max_frame}"]), name)
    learner, seconds = LabLearner(spec, seed), 0.0
    curve: list[tuple[int, float]] = []
    while learner.frame < row.max_frame and not stays(row, curve):
        began = time.process_time()
        due = learner.frame + row.every
        while learner.frame < min(due, row.max_frame):
            learner.advance(row.max_frame)
        seconds += time.process_time() - began
        curve.append((learner.frame, judge(learner, row, seed, len(curve))))
    found: Found = {"row": row.name, "seed": seed, "curve": curve, "seconds": round(seconds, 1), "commit": code}
    found["then"] = {"score": curve[-1][1], **recall(learner, seed, SOLVED)}
    frame = learner.frame
    for _ in range(MORE):
        learner.advance(10**12)
    found["later"] = {"score": judge(learner, row, seed, LATER), **recall(learner, seed, LATER)}
    found["later"]["frames"] = learner.frame - frame
    if row.far:
        found["far"] = {delay: judge(learner, row, seed, LATER, delay) for delay in FAR}
    return found


def stays(row: Row, curve: Sequence[tuple[int, float]]) -> bool:
    """Three evaluations in a row at the bar."""
    return len(curve) > 2 and min(score for _, score in curve[-3:]) >= row.bar


def worlds(learner: LabLearner, episodes: int = EPISODES, delay: int | None = None) -> VecEnv:
    """Worlds to be judged in, as the agent sees them; MemoryTask asks for each answer equally often."""
    env, args = learner.spec, dict(learner.spec.model_extra or {})
    if env.name != "MemoryTask":
        return make_env(env, num_envs=WORLDS, gamma=learner.gamma)
    args |= {} if delay is None else {"delay": delay}
    return learner.seen(VecTask(BalancedMemoryTask(**args), episodes))


def judge(learner: LabLearner, row: Row, seed: int, number: int, delay: int | None = None) -> float:
    """Mean return of the row's greedy episodes, new ones each `number`."""
    env = worlds(learner, row.episodes, delay)
    played = play(learner.agent, env, row.episodes, world_seed(seed, EVAL_WORLDS, number))
    return round(float(played.returns.mean()), 4)


def recall(learner: LabLearner, seed: int, number: int) -> dict[str, Any]:
    """At decisions that need it: how often the cue is kept, how much it is attended to; mean of the worst answer's."""
    env = worlds(learner)
    first = world_seed(seed, EVAL_WORLDS, number + INSIDE)
    step, carry, played = env.reset(first), learner.agent.initial(env.num_envs), 0
    kept: dict[int, list[float]] = {}
    seen: dict[int, list[float]] = {}
    while played < EPISODES:
        cues, target = env.cue_steps(), env.target()
        assert cues is not None and target is not None
        act = learner.agent.act(step, carry, explore=False)
        shown = next(x for x in act.extras.values() if isinstance(x, dict))
        after = env.step(act.action.cpu().numpy())
        ended = after.terminated | after.truncated
        for e in np.flatnonzero((target >= 0) & ~after.is_first):
            hit = np.isin(shown["recall_step"][e].numpy(), cues[e][cues[e] >= 0])
            kept.setdefault(int(target[e]), []).append(float(hit.sum() / max(1, (cues[e] >= 0).sum())))
            seen.setdefault(int(target[e]), []).append(float(shown["recall_weight"][e].numpy()[hit].sum()))
        played += int(ended.sum())
        step, carry = after, act.carry
    return {name: round(min(map(np.mean, by.values())), 3) for name, by in (("kept", kept), ("seen", seen)) if by}


# --- the page ---

HEAD = f"""# StrategicMemory, measured

Written by `python -m bench.strategic`. One setting of hyper-parameters for every task (specs/strategic), seeds 0 to
n-1, none left out. The algorithm and that setting were found on these tasks and on seeds of this range
([strategic.md](../strategic.md) names them), so this is no test on tasks or seeds that nobody had seen. CPU seconds of
training on one core, beside other work. A session trains until three evaluations in a row reach the *bar*, or its
frames are spent (*at most*). An evaluation comes after every so many frames (*each*), so three such is the least that
*frames* can show. *Return*: of the last one, by {EPISODES} fresh greedy episodes (class-balanced
in MemoryTask; {CONTROL_EPISODES:,} where the row claims that all fail). *Frames*, *CPU s*: median (worst) to the end of
training; a seed that never reached the bar counts as endless. *Kept*, *attended*: the cue that a decision needs, mean
of the worst class of answer. *Later*: after {MORE} further updates. These are the worst seed's; the best seed's, where
the row claims that all fail. A row of an older commit is of the algorithm and the measurement of that time.

*Reached*: whether all holds that the row claims, and if not, what doesn't: on each of its seeds a return of the bar,
within its frames, and its seconds where it has some; that in every run the cue is kept ({KEPT}) and attended to
({SEEN}), and return, cue and attention later too. Where something is taken out (after the comma) the row
claims that no seed earns more than {CHANCE}, in two evaluations in a row, at the end or later (0.9 in MultiCue, where
some cues lie among the last 16 steps; 0.6 in the T-maze, where one of two sides earns 0.5), or claims nothing (–).
*With*: something else in the place of what the spec has; the claims are the same, but in up to five times the frames
(of *defaults alone*, PPO's and StrategicMemory's own with `shared: true`, none).

In MemoryTask 4 and 16 and RepeatPrevious 4 the 16 slots hold all that is asked for, so retention has nothing to choose:
the newest 16 steps (`fifo`) do as well. From 32 steps on it must choose.
"""
COLUMNS = (
    "row", "bar", "reached", "solved", "return", "frames", "each, at most", "CPU s", "kept, attended",
    "later: return, kept, attended", "commit",
)  # fmt: skip


def page(rows: Sequence[Row], sessions: dict[tuple[str, int], Found]) -> str:
    """The table of all sessions there are."""
    lines = [HEAD, f"| {' | '.join(COLUMNS)} |", f"{'|---' * len(COLUMNS)}|"]
    far = []
    for row in rows:
        found = [sessions[row.name, seed] for seed in range(row.seeds) if (row.name, seed) in sessions]
        if found:
            lines.append(line(row, found))
        if found and row.far:
            far = [f"{delay}: worst {min(x['far'][str(delay)] for x in found):.2f}" for delay in FAR]
    return "\n".join([*lines, "", f"Trained at 64 HARD, tested at {'; '.join(far)}." if far else "", ""])


def line(row: Row, found: list[Found]) -> str:
    lacks, commits = missed(row, found), sorted({x["commit"] for x in found})
    cells = [
        row.name,
        f"{row.bar:g}" if row.most is None else f"≤ {row.most:g}",
        f"**no**: {', '.join(lacks)}" if lacks else "yes" if row.claims else "–",
        f"{sum(stays(row, x['curve']) for x in found)}/{len(found)}",
        f"{told(row, found, 'then', 'score'):.2f}",
        spread([x["curve"][-1][0] if stays(row, x["curve"]) else math.inf for x in found], ",.0f"),
        f"{row.every:,}, {row.max_frame:,}",
        spread([x["seconds"] if stays(row, x["curve"]) else math.inf for x in found], ".1f"),
        *(", ".join(f"{told(row, found, when, key):.2f}" for key in keys) for when, keys in SHOWN),
        ("mixed: " if len(commits) > 1 else "") + ", ".join(commits),
    ]
    return f"| {' | '.join(cells)} |"


SHOWN = (("then", ("kept", "seen")), ("later", ("score", "kept", "seen")))


def spread(values: list[float], form: str) -> str:
    """Median (worst); an endless one is a dash."""
    middle, most = (f"{x:{form}}" if math.isfinite(x) else "–" for x in (float(np.median(values)), max(values)))
    return f"{middle} ({most})" if middle != "–" else middle


def missed(row: Row, found: list[Found]) -> list[str]:
    """What of the row's claim these sessions don't show."""
    held = {f"{len(found)} of {row.seeds} seeds": len(found) == row.seeds}
    if row.most is not None:
        held[f"above {row.most}"] = max(map(lasting, found)) <= row.most
    if row.most is not None or not row.claims:
        return [what for what, holds in held.items() if not holds]
    held["return"] = all(stays(row, x["curve"]) for x in found)
    held["seconds"] = row.seconds is None or all(x["seconds"] <= row.seconds for x in found)
    for when, said in (("then", ""), ("later", " later")):
        held[f"kept{said}"] = worst(found, when, "kept") >= KEPT
        held[f"attended{said}"] = worst(found, when, "seen") >= SEEN
    held["return later"] = worst(found, "later", "score") >= row.bar
    held["longer delays"] = not row.far or min(min(x["far"].values()) for x in found) >= row.bar
    return [what for what, holds in held.items() if not holds]


def lasting(x: Found) -> float:
    """The most that it had in two evaluations in a row, or at the end, or later: what it lost again counts too."""
    scores = [score for _, score in x["curve"]]
    return float(max([x["then"]["score"], x["later"]["score"], *map(min, pairwise(scores))]))


def worst(found: list[Found], when: str, what: str, of: Callable[[Iterable[float]], float] = min) -> float:
    return float(of(x[when].get(what, 0.0) for x in found))


def told(row: Row, found: list[Found], when: str, what: str) -> float:
    """What speaks most against the row's claim: the least of all seeds, or the most where they should fail."""
    return worst(found, when, what, min if row.most is None else max)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench strategic", description=__doc__)
    parser.add_argument("rows", nargs="*", help="names of rows, or parts of names (default: all)")
    parser.add_argument("--seeds", type=count, metavar="N", help="at most so many seeds")
    parser.add_argument(
        "--jobs", type=count, metavar="N", default=len(os.sched_getaffinity(0)), help="at a time; default: the cores"
    )
    parser.add_argument("--page", action="store_true", help="run nothing: write the table of the sessions there are")
    args = parser.parse_args(argv)
    unknown = [part for part in args.rows if not _named(part)]
    if unknown:
        parser.error(f"no row is called {', '.join(unknown)}; there are: {'; '.join(row.name for row in ROWS)}")
    chosen = [row for row in ROWS if not args.rows or any(row in _named(part) for part in args.rows)]
    known: dict[tuple[str, int], Found] = {}
    if SESSIONS.exists():
        known = {(x["row"], x["seed"]): x for x in map(json.loads, SESSIONS.read_text().splitlines())}
    if args.page:
        save(known)
        return 0
    jobs = [(row, seed) for row in chosen for seed in range(min(row.seeds, args.seeds or row.seeds))]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with multiprocessing.get_context("forkserver").Pool(args.jobs, maxtasksperchild=1) as pool:
        for found in pool.imap_unordered(_session, jobs):
            found = json.loads(json.dumps(found))
            known[found["row"], found["seed"]] = found
            save(known)
            print(json.dumps({key: value for key, value in found.items() if key != "curve"}), flush=True)
    return 0


def _named(part: str) -> list[Row]:
    """The row of that name; else those whose names have it in them."""
    return [row for row in ROWS if row.name == part] or [row for row in ROWS if part in row.name]


def save(known: dict[tuple[str, int], Found]) -> None:
    """Sessions and page, each whole or not at all."""
    SESSIONS.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(x) + "\n" for x in known.values())
    write_atomic(SESSIONS, lambda file: file.write_text(lines))
    write_atomic(PAGE, lambda file: file.write_text(page(ROWS, known)))


def _session(job: tuple[Row, int]) -> Found:
    return session(*job)


if __name__ == "__main__":
    sys.exit(main())
