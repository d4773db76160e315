"""What StrategicMemory can and can't, one setting for all.

python -m bench.strategic [ROW ...] [--seeds N] [--jobs N] [--page]

Each session trains until two greedy evaluations in a row reach the row's bar (or its frames are spent); then its
memory is looked into (is the cue kept, is it attended to), 20 more updates are made, and both are measured again.
Sessions are kept in data/bench/strategic.jsonl and the table in docs/benchmarks/strategic.md; a row named on the
command line is run anew, the others keep their last sessions. `--page` runs none and writes the table again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.race import BalancedMemoryTask, LabLearner
from slm_lab.env.base import VecEnv
from slm_lab.env.tasks.base import VecTask
from slm_lab.env.vec import make_env
from slm_lab.experiment.evaluate import play, world_action
from slm_lab.experiment.session import EVAL_WORLDS
from slm_lab.lib.files import write_atomic
from slm_lab.lib.rng import world_seed
from slm_lab.spec.load import apply_overrides, load_file, pick
from slm_lab.spec.validate import resolve

ROOT = Path(__file__).parents[1]
SESSIONS = ROOT / "data" / "bench" / "strategic.jsonl"
PAGE = ROOT / "docs" / "benchmarks" / "strategic.md"
EPISODES, WORLDS = 200, 64
MORE = 20  # updates after it is solved
FAR = (1024, 8192, 65536)  # delays at which those trained at 64 are tested
KEPT, SEEN = 0.99, 0.8  # least share of the cues that is held, least attention on them, where a row asks for it

Found = dict[str, Any]  # what a session came to


@dataclass(frozen=True)
class Row:
    """A claim: this spec with these changes reaches `bar` on each of `seeds`; an ablation on none of them."""

    name: str
    file: str
    every: int  # frames between evaluations
    max_frame: int
    changes: tuple[str, ...] = ()
    bar: float = 0.99
    seeds: int = 10
    fails: bool = False
    seconds: float | None = None  # most CPU seconds
    recalls: bool = False  # it keeps the cue and looks at it, 20 updates later too
    far: bool = False  # it holds at the delays FAR


def memory_task(delay: int, mode: str, every: int, max_frame: int, **keys: Any) -> Row:
    changes = (f"env.delay={delay}", f"env.difficulty={int(mode == 'HARD')}")
    name, file = f"MemoryTask {delay} {mode}", "specs/strategic/memory_task.json"
    return Row(name, file, every, max_frame, changes, recalls=True, **keys)


def ablation(name: str, *changes: str) -> Row:
    changes = ("env.delay=64", *changes)
    return Row(f"64 HARD, {name}", "specs/strategic/memory_task.json", 16384, 200_000, changes, seeds=3, fails=True)


ROWS = [
    *(memory_task(4, mode, 512, 50_000) for mode in ("EASY", "HARD")),
    *(memory_task(16, mode, 1024, 100_000) for mode in ("EASY", "HARD")),
    memory_task(64, "EASY", 4096, 200_000),
    memory_task(64, "HARD", 4096, 200_000, far=True),
    memory_task(256, "HARD", 16384, 300_000, seconds=20),
    memory_task(1024, "HARD", 65536, 1_200_000, seconds=60),
    memory_task(4096, "HARD", 262144, 6_000_000, seconds=240, seeds=3),
    Row("RepeatPrevious 4", "specs/strategic/repeat_previous.json", 3264, 200_000, bar=0.9, seeds=5),
    Row("MultiCue 32", "specs/strategic/multi_cue.json", 8192, 400_000, ("env.length=32",), 0.95, 5),
    Row("MultiCue 128", "specs/strategic/multi_cue.json", 32768, 1_600_000, ("env.length=128",), 0.95, 5),
    Row("PassiveTMaze 64", "specs/strategic/tmaze.json", 16640, 600_000, ("env.corridor=64",), 0.95, 5),
    Row("PassiveTMaze 256", "specs/strategic/tmaze.json", 65792, 3_000_000, ("env.corridor=256",), 0.95, 5),
    ablation("retention fifo", "agent.memory.retention=fifo"),
    ablation("retention reservoir", "agent.memory.retention=reservoir"),
    ablation("retention none", "agent.memory.retention=none"),
    ablation("no hindsight critic", "agent.memory.hindsight_coef=0"),
]


def session(row: Row, seed: int) -> Found:
    """Train one seed; everything measured of it."""
    torch.set_num_threads(1)
    name, raw = pick(load_file(ROOT / row.file), None, row.file)
    spec = resolve(apply_overrides(raw, [*row.changes, f"env.max_frame={row.max_frame}"]), name)
    learner, curve, seconds = LabLearner(spec, seed), [], 0.0
    while learner.frame < row.max_frame and not (len(curve) > 1 and min(score for _, score in curve[-2:]) >= row.bar):
        began = time.process_time()
        due = learner.frame + row.every
        while learner.frame < min(due, row.max_frame):
            learner.advance(row.max_frame)
        seconds += time.process_time() - began
        curve.append((learner.frame, round(judge(learner, seed), 4)))
    found = {"row": row.name, "seed": seed, "curve": curve, "seconds": round(seconds, 1), "commit": commit()}
    found["recall"] = recall(learner, seed)
    frame = learner.frame
    for _ in range(MORE):
        learner.advance(10**12)
    found["later"] = {"score": round(judge(learner, seed), 4), "frames": learner.frame - frame, **recall(learner, seed)}
    if row.far:
        found["far"] = {delay: round(judge(learner, seed, delay), 4) for delay in FAR}
    return found


def worlds(learner: LabLearner, delay: int | None = None) -> VecEnv:
    """Worlds to be judged in, as the agent sees them; MemoryTask asks for each answer equally often."""
    env, args = learner.spec, dict(learner.spec.model_extra or {})
    if env.name != "MemoryTask":
        return make_env(env, num_envs=WORLDS, gamma=learner.gamma)
    args |= {} if delay is None else {"delay": delay}
    return learner.seen(VecTask(BalancedMemoryTask(args["delay"], args["difficulty"]), EPISODES))


def judge(learner: LabLearner, seed: int, delay: int | None = None) -> float:
    """Mean return of 200 greedy episodes."""
    env = worlds(learner, delay)
    return float(play(learner.agent, env, EPISODES, world_seed(seed, EVAL_WORLDS)).returns.mean())


def recall(learner: LabLearner, seed: int) -> dict[str, Any]:
    """At the decisions that are paid: how often the cue is kept, how much it is attended to; worst class of answer."""
    env = worlds(learner)
    step, carry, played = env.reset(world_seed(seed, EVAL_WORLDS, 1)), learner.agent.initial(env.num_envs), 0
    kept: dict[int, list[float]] = {}
    seen: dict[int, list[float]] = {}
    while played < EPISODES:
        cues, target = env.cue_steps(), env.target()
        assert cues is not None and target is not None
        act = learner.agent.act(step, carry, explore=False)
        shown = next(x for x in act.extras.values() if isinstance(x, dict))
        after = env.step(world_action(act, env))
        ended = after.terminated | after.truncated
        for e in np.flatnonzero((after.reward != 0) & (ended | (env_name(learner) != "PassiveTMaze"))):
            hit = np.isin(shown["recall_step"][e].numpy(), cues[e][cues[e] >= 0])
            kept.setdefault(int(target[e]), []).append(float(hit.sum() / max(1, (cues[e] >= 0).sum())))
            seen.setdefault(int(target[e]), []).append(float(shown["recall_weight"][e].numpy()[hit].sum()))
        played += int(ended.sum())
        step, carry = after, act.carry
    return {name: round(min(map(np.mean, by.values())), 3) for name, by in (("kept", kept), ("seen", seen)) if by}


def env_name(learner: LabLearner) -> str:
    return str(learner.spec.name)


def commit() -> str:
    """Of the code that is run; the pages that benchmarks write don't make it dirty."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
    return git("describe", "--always") + ("-dirty" if changed else "")


# --- the page ---

HEAD = f"""# StrategicMemory, measured

Written by `python -m bench.strategic`. One setting of hyper-parameters for every row (specs/strategic), seeds 0 to n-1,
none left out; CPU seconds of training on one core, beside other work. *Reached*: whether all holds that the row claims,
and if not, what doesn't. It claims that on each of its seeds the last 200 greedy episodes reach the bar (*solved*;
class-balanced in MemoryTask) within its frames, and within its seconds where it has some; rows of MemoryTask also that
in every run the cue is kept (at least {KEPT}) and attended to (at least {SEEN}), and all of it 20 updates later too. An
ablation claims that no seed solves. *Kept*, *attended*: the cue at the paid decisions, mean of the worst class of
answer, worst seed; *later*: the worst return after 20 further updates. *Frames*, *CPU s*: median (worst) to the first
evaluation at the bar. *Commit*: of the code that was run.

| task | reached | solved | frames | CPU s | kept | attended | later | kept, attended later | commit |
|---|---|---|---|---|---|---|---|---|---|"""


def page(rows: Sequence[Row], sessions: dict[tuple[str, int], Found]) -> str:
    """The table of all sessions there are."""
    lines = [HEAD]
    far = []
    for row in rows:
        found = [sessions[row.name, seed] for seed in range(row.seeds) if (row.name, seed) in sessions]
        if found:
            lines.append(line(row, found))
        if found and row.far:
            far = [f"{delay}: worst {min(x['far'][str(delay)] for x in found):.2f}" for delay in FAR]
    return "\n".join([*lines, "", f"Trained at 64 HARD, tested at {'; '.join(far)}." if far else "", ""])


def line(row: Row, found: list[Found]) -> str:
    scores = [x["curve"][-1][1] for x in found]
    solved = sum(score >= row.bar for score in scores)
    frames, seconds = ([at[i] for x in found if (at := first(row, x))] for i in (0, 1))
    kept, seen = (worst(found, "recall", key) for key in ("kept", "seen"))
    later, kept2, seen2 = (worst(found, "later", key) for key in ("score", "kept", "seen"))
    note = f" (returns {', '.join(f'{score:.2f}' for score in scores)})" if solved < len(found) else ""
    lacks, commits = missed(row, found), sorted({x["commit"] for x in found})
    cells = [
        row.name,
        f"**no**: {', '.join(lacks)}" if lacks else "yes",
        f"{solved}/{len(found)}{note}",
        f"{np.median(frames):,.0f} ({max(frames):,.0f})" if frames else "-",
        f"{np.median(seconds):.1f} ({max(seconds):.1f})" if seconds else "-",
        *(f"{share:.2f}" for share in (kept, seen, later)),
        f"{kept2:.2f}, {seen2:.2f}",
        ("mixed: " if len(commits) > 1 else "") + ", ".join(commits),
    ]
    return f"| {' | '.join(cells)} |"


def missed(row: Row, found: list[Found]) -> list[str]:
    """What of the row's claim these sessions don't show."""
    solved, reached = [x["curve"][-1][1] >= row.bar for x in found], [first(row, x) for x in found]
    claims = {f"{len(found)} of {row.seeds} seeds": len(found) == row.seeds}
    if row.fails:
        claims["solved"] = not any(solved)
    else:
        claims["return"] = all(solved)
        claims["seconds"] = row.seconds is None or all(at and at[1] <= row.seconds for at in reached)
    for when in ("recall", "later") if row.recalls else ():
        claims[{"recall": "kept", "later": "kept later"}[when]] = worst(found, when, "kept") >= KEPT
        claims[{"recall": "attended", "later": "attended later"}[when]] = worst(found, when, "seen") >= SEEN
    claims["return later"] = not row.recalls or worst(found, "later", "score") >= row.bar
    claims["longer delays"] = not row.far or min(min(x["far"].values()) for x in found) >= row.bar
    return [what for what, holds in claims.items() if not holds]


def first(row: Row, x: Found) -> tuple[int, float] | None:
    """Frames and CPU seconds to the first evaluation at the bar."""
    last = x["curve"][-1][0]
    return next(((frame, x["seconds"] * frame / last) for frame, score in x["curve"] if score >= row.bar), None)


def worst(found: list[Found], when: str, what: str) -> float:
    return float(min(x[when].get(what, 0.0) for x in found))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench strategic", description=__doc__)
    parser.add_argument("rows", nargs="*", help="names of rows, or parts of them (default: all)")
    parser.add_argument("--seeds", type=int, help="at most so many seeds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--page", action="store_true", help="run nothing: write the table of the sessions there are")
    args = parser.parse_args(argv)
    chosen = [row for row in ROWS if not args.rows or any(part in row.name for part in args.rows)]
    known: dict[tuple[str, int], Found] = {}
    if SESSIONS.exists():
        known = {(x["row"], x["seed"]): x for x in map(json.loads, SESSIONS.read_text().splitlines())}
    if args.page:
        save(known)
        return
    jobs = [(row, seed) for row in chosen for seed in range(min(row.seeds, args.seeds or row.seeds))]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with multiprocessing.get_context("forkserver").Pool(args.jobs, maxtasksperchild=1) as pool:
        for found in pool.imap_unordered(_session, jobs):
            found = json.loads(json.dumps(found))
            known[found["row"], found["seed"]] = found
            save(known)
            print(json.dumps({key: value for key, value in found.items() if key != "curve"}), flush=True)


def save(known: dict[tuple[str, int], Found]) -> None:
    """Sessions and page, each whole or not at all."""
    SESSIONS.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(x) + "\n" for x in known.values())
    write_atomic(SESSIONS, lambda file: file.write_text(lines))
    write_atomic(PAGE, lambda file: file.write_text(page(ROWS, known)))


def _session(job: tuple[Row, int]) -> Found:
    return session(*job)


if __name__ == "__main__":
    main()
