"""Agents of any make, trained on MemoryTask in processes of their own and judged by the same episodes."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from slm_lab.agent.build import build_agents
from slm_lab.env.base import VecEnv
from slm_lab.env.tasks.base import State, VecTask
from slm_lab.env.tasks.memory_task import EASY, HARD, MemoryTask
from slm_lab.env.vec import make_env, wrap
from slm_lab.experiment.evaluate import play
from slm_lab.experiment.session import EVAL_WORLDS, TRAIN_WORLDS
from slm_lab.lib.errors import LabError
from slm_lab.lib.rng import world_seed
from slm_lab.lib.types import ActOut, Step, Tree
from slm_lab.spec.lab_spec import LabSpec
from slm_lab.spec.load import apply_overrides, load_file, pick
from slm_lab.spec.validate import resolve

ROOT = Path(__file__).parents[1]
MODES = {"EASY": EASY, "HARD": HARD}
EPISODES = 200  # of an evaluation
REACHED = 0.95  # the return whose first frame is told
SOLVED = 0.99  # the return at which, two evaluations in a row, a session is stopped


@dataclass(frozen=True)
class Job:
    """One agent, one task, one seed."""

    agent: str
    delay: int
    mode: str
    seed: int
    budget: int  # frames
    every: int  # frames between evaluations

    @property
    def task(self) -> dict[str, Any]:
        return {"delay": self.delay, "difficulty": MODES[self.mode]}


@dataclass(frozen=True)
class Result:
    """What came of a job. `curve`: frame and greedy class-balanced return of each evaluation."""

    job: Job
    settings: dict[str, Any]  # all that the agent was made of
    curve: list[tuple[int, float]]
    seconds: float  # CPU seconds of training, evaluations aside
    commit: str = ""  # of the code when the race began

    @property
    def frames(self) -> int:
        return self.curve[-1][0]

    @property
    def score(self) -> float:
        return self.curve[-1][1]

    @property
    def solved(self) -> bool:
        return self.score >= SOLVED

    @property
    def reached(self) -> float:
        """Frames to the first evaluation of .95; infinite if there was none."""
        return next((float(frame) for frame, score in self.curve if score >= REACHED), math.inf)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Result:
        facts = json.loads(text)
        curve = [(frame, score) for frame, score in facts["curve"]]
        return Result(Job(**facts["job"]), facts["settings"], curve, facts["seconds"], facts.get("commit", ""))


class Player(Protocol):
    """What `play` asks of an agent; peers are given this face."""

    def initial(self, E: int) -> Tree: ...
    def act(self, step: Step, carry: Tree, explore: bool = True) -> ActOut: ...


class Learner(Protocol):
    """One who lives in worlds of its own."""

    frame: int
    agent: Any  # a Player

    def advance(self, until: int) -> None: ...  # play until it has learned once more; ours not beyond frame `until`
    def seen(self, env: VecEnv) -> VecEnv: ...  # worlds as its agent sees them


class Entrant(Protocol):
    """A row of the table of agents."""

    def absent(self) -> str: ...  # why it can't run here; '' if it can
    def settings(self, job: Job) -> dict[str, Any]: ...
    def begin(self, job: Job) -> Learner: ...


# ---- agents of the lab -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ours:
    """An agent of a spec file; `change` gives what its spec needs for a delay, as --set would."""

    file: str
    spec: str | None = None  # None: the only one, or the one called as the file
    change: Callable[[int], list[str]] | None = None

    def absent(self) -> str:
        return "" if (ROOT / self.file).is_file() else f"{self.file} isn't there"

    def settings(self, job: Job) -> dict[str, Any]:
        dumped = self._resolved(job).dump()
        return {"agent": dumped["agent"], "env": dumped["env"]}

    def begin(self, job: Job) -> LabLearner:
        return LabLearner(self._resolved(job), job.seed)

    def _resolved(self, job: Job) -> LabSpec:
        name, raw = pick(load_file(ROOT / self.file), self.spec, self.file)
        task = [f"env.{key}={value}" for key, value in {**job.task, "max_frame": job.budget}.items()]
        return resolve(apply_overrides(raw, task + (self.change(job.delay) if self.change else [])), name)


class LabLearner:
    """The lab's control loop without its logs and checkpoints."""

    def __init__(self, spec: LabSpec, seed: int) -> None:
        self.spec, self.gamma = spec.env, getattr(spec.agent.algorithm, "gamma", 0.99)
        self.env = make_env(spec.env, gamma=self.gamma)
        self.agent = build_agents(spec.agent, self.env.world, seed, spec.env.max_frame)
        self.step, self.carry = self.env.reset(world_seed(seed, TRAIN_WORLDS)), self.agent.initial(self.env.num_envs)

    @property
    def frame(self) -> int:
        return self.agent.frame

    def advance(self, until: int) -> None:
        learned = self.agent.opt_step
        while self.agent.opt_step == learned and self.frame < until:
            act = self.agent.act(self.step, self.carry)
            after = self.env.step(act.action.cpu().numpy())
            self.agent.update(self.step, self.carry, act, after)
            self.step, self.carry = after, act.carry

    def seen(self, env: VecEnv) -> VecEnv:
        env = wrap(env, self.spec, self.gamma)
        env.load_wrapper_state(self.env.wrapper_state())
        env.freeze()
        return env


# ---- the judge -------------------------------------------------------------------------------------------------------


class BalancedMemoryTask(MemoryTask):
    """MemoryTask whose episodes ask for each answer in turn, so that whoever always says the same earns exactly 0."""

    drawn = 0

    def script(self, rng: np.random.Generator) -> State:
        wanted = self.drawn % 2
        self.drawn += 1
        while True:
            script = super().script(rng)
            if script["bits"][0, 0] == wanted:
                return script


def evaluate(learner: Learner, job: Job, number: int) -> float:
    """Mean return of 200 greedy episodes, 100 of each class, which no agent has seen; new ones each `number`."""
    env = learner.seen(VecTask(BalancedMemoryTask(**job.task), EPISODES))
    return float(play(learner.agent, env, EPISODES, world_seed(job.seed, EVAL_WORLDS, number)).returns.mean())


def race(entrant: Entrant, job: Job, tell: Callable[[int, float], object]) -> Result:
    """Train to the budget, or until two evaluations in a row are .99; `tell` gets frame and return of each.

    An evaluation follows the first update after every `job.every` frames, so that no two judge the same weights.
    """
    settings, learner = entrant.settings(job), entrant.begin(job)
    curve: list[tuple[int, float]] = []
    seconds = 0.0
    while not _over(curve, job.budget):
        began = time.process_time()
        due = min((learner.frame // job.every + 1) * job.every, job.budget)
        while learner.frame < due:
            learner.advance(job.budget)
        seconds += time.process_time() - began
        curve.append((learner.frame, evaluate(learner, job, len(curve))))
        tell(*curve[-1])
    return Result(job, settings, curve, seconds)


def _over(curve: list[tuple[int, float]], budget: int) -> bool:
    stays = len(curve) > 1 and min(score for _, score in curve[-2:]) >= SOLVED
    return stays or (bool(curve) and curve[-1][0] >= budget)


# ---- processes -------------------------------------------------------------------------------------------------------

Said = tuple[int, float] | Result | str  # an evaluation; the end; why it failed


def sessions(jobs: Sequence[tuple[Entrant, Job]], at_once: int) -> Iterator[tuple[Job, Said]]:
    """Run each job in a process of its own, `at_once` at a time, one thread each; what they say as they say it.

    The last word of a job is its Result, or a text if it failed. Whoever stops listening stops them all.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")  # torch is imported once, and each process forked from that
    context.set_forkserver_preload(["slm_lab.experiment.session", "bench.race"])
    waiting, running = deque(jobs), dict[Connection, tuple[Job, Any]]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                entrant, job = waiting.popleft()
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=_session, args=(entrant, job, there), daemon=True)
                process.start()
                there.close()
                running[here] = (job, process)
            for pipe in wait(list(running)):
                assert isinstance(pipe, Connection)
                yield from _heard(pipe, running)
    finally:
        for _, process in running.values():
            process.kill()


def _heard(pipe: Connection, running: dict[Connection, tuple[Job, Any]]) -> Iterator[tuple[Job, Said]]:
    job, process = running[pipe]
    try:
        said: Said = pipe.recv()
    except (EOFError, OSError):
        process.join()
        said = f"its process ended with exit code {process.exitcode} (-9: out of memory?)"
    if not isinstance(said, tuple):  # the last word
        del running[pipe]
        pipe.close()
    yield job, said


def _session(entrant: Entrant, job: Job, pipe: Connection) -> None:
    """Body of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it will end it
    torch.set_num_threads(1)
    try:
        pipe.send(race(entrant, job, lambda *evaluation: pipe.send(evaluation)))
    except LabError as error:
        pipe.send(str(error))
    except Exception:
        pipe.send(traceback.format_exc())
