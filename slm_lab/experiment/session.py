"""A session: one agent in its worlds, from one seed."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from slm_lab.agent import checkpoint
from slm_lab.agent.agent import Agent
from slm_lab.agent.build import build_agent, build_agents
from slm_lab.agent.multi import MultiAgent
from slm_lab.env.base import VecEnv
from slm_lab.env.dataset import DatasetEnv
from slm_lab.env.vec import make_env, offline_env
from slm_lab.experiment.evaluate import Played, play
from slm_lab.experiment.run_dir import RunDir, unwritable
from slm_lab.experiment.source import Local, Source
from slm_lab.experiment.tracker import WINDOW, Table, Tracker, packed, unpacked
from slm_lab.experiment.xray import Xray
from slm_lab.lib.errors import LabError
from slm_lab.lib.reduce import Metrics
from slm_lab.lib.rng import world_seed
from slm_lab.lib.tree import to_torch, tree_copy, tree_leaves
from slm_lab.lib.types import Step, Tree

if TYPE_CHECKING:
    from slm_lab.spec.lab_spec import LabSpec

logger = logging.getLogger("slm_lab")

TWICE = 0.5  # seconds within which two Ctrl-C are one: a terminal and a wrapper may both send it
TRAIN_WORLDS, EVAL_WORLDS, NEW_WORLDS = 1, 2, 3  # streams of seeds


@dataclass(frozen=True)
class Progress:
    """What a session tells whoever watches."""

    session: int
    frame: int
    max_frame: int
    fps: float = math.nan
    total_reward_ma: float = math.nan
    status: str = "running"  # waiting, running, stopping, done, stopped, failed
    message: str = ""
    trace: str = ""  # of an env that raised


Report = Callable[[Progress], None]


def refuse_another(run: RunDir, spec: LabSpec, index: int) -> None:
    """Raises `LabError` where a session's checkpoint is of other worlds, or another agent, than the spec now has."""
    of = checkpoint.belongs_to(run.model, f"session{index}")
    saved, given = of.get("num_envs"), spec.env.num_envs
    if saved not in (None, given):
        raise LabError(
            f"env.num_envs is {given} in {run.spec_file}, but {saved} worlds were saved in "
            f"{run.model / f'session{index}.json'}, each with its episode and what is remembered of it. Write {saved} "
            "again, or start a new run."
        )
    if of.get("fingerprint", run.fingerprint()) != run.fingerprint():
        raise LabError(_foreign(run, index))


def _foreign(run: RunDir, index: int) -> str:
    file = run.model / f"session{index}.json"
    return f"the checkpoint {file} isn't of this run's spec, or of other code. Restore it, or start a new run."


class Session:
    """The control loop: act, step, remember, learn; log, evaluate and save at their frequencies.

    Everything that the future depends on is in the checkpoint, so a session killed at any moment and run again gives
    the numbers of one that was never stopped.
    """

    def __init__(self, spec: LabSpec, run: RunDir, index: int, report: Report, check: bool = False) -> None:
        torch.set_num_threads(spec.meta.torch_threads)
        self.spec, self.run_dir, self.index, self.report = spec, run, index, report
        self.seed = spec.meta.seed + index
        self.max_frame = spec.env.max_frame
        self.gamma = getattr(spec.agent.algorithm, "gamma", 0.99)  # one source of γ, also for normalised rewards
        self.env, self.agent, self.source = self._built(self.gamma)
        self.tracker = Tracker(self.env.num_envs, self.env.agents)
        self.eval_rows: list[Metrics] = []
        self.table, self.eval_table = (
            Table(run.session_file(index, f"session_df_{kind}.csv")) for kind in ("train", "eval")
        )
        self.best = (False, -math.inf)  # is it a mean over enough episodes, and the mean
        self.best_state: Tree | None = None  # the agent it was measured of, until the next checkpoint
        what = ("log", "eval", "checkpoint") if self.evaluated else ("log", "checkpoint")
        self.every: dict[str, int] = {name: getattr(spec.meta, f"{name}_frequency") for name in what}  # frames between
        self.due = dict(self.every)  # frame at which the next one is owed
        self.soonest = 0  # frame before which nothing is
        self.stop = False
        self.first_weights = {name: p.detach().clone() for name, p in self.agent.named_parameters()} if check else None
        if check:
            self.agent.watch()
        self.board: Any = None
        self.fingerprint = run.fingerprint()

    def _built(self, gamma: float) -> tuple[VecEnv, Agent | MultiAgent, Source]:
        """The worlds, the agent, and who plays: the agent here, or where the spec says so rollout workers."""
        spec, folder = self.spec, self.run_dir.model
        if spec.meta.distributed:
            from slm_lab.experiment.distributed.crew import Crew  # imports Ray

            crew = Crew(spec, gamma)
            learner = build_agent(spec.agent, crew.world, self.seed, self.max_frame, folder)
            crew.start(learner, self.seed, folder)
            return crew, learner, crew
        env: VecEnv = make_env(spec.env, gamma=gamma) if spec.env.dataset is None else offline_env(spec.env, gamma)
        try:
            agent = build_agents(spec.agent, env.world, self.seed, self.max_frame, folder)
        except BaseException:
            env.close()
            raise
        return env, agent, Local(agent, env)

    @property
    def frame(self) -> int:
        return self.agent.frame

    @property
    def evaluated(self) -> bool:
        """Whether the best is chosen by evaluation, else by the returns of training."""
        return bool(self.spec.meta.rigorous_eval)

    def run(self) -> Progress:
        """Play to the last frame, or until stopped (Ctrl-C, SIGTERM) at the end of a step; then save and close."""
        with self._stop_on_signal():  # the last save too: a Ctrl-C must not cut it short
            self.begin()
            while self.play_for(0.5):
                self.report(self.progress())
            return self.finish()

    def begin(self) -> None:
        """Start from the checkpoint if there is one, else from the seed."""
        self._begin()
        with self._without_board_if_full():
            self.board = self._tensorboard()

    def play_for(self, seconds: float, until: float = math.inf) -> bool:
        """Step for so long, or up to the frame `until`; whether there is more to play."""
        end = time.monotonic() + seconds
        while self.frame < self.max_frame and not self.stop:
            self._advance()
            if time.monotonic() > end or self.frame >= until:
                return bool(self.frame < self.max_frame)
        return False

    def _begin(self) -> None:
        self.started = time.monotonic()
        refuse_another(self.run_dir, self.spec, self.index)
        state = checkpoint.load(self.run_dir.model, f"session{self.index}")
        if state is None:
            first = world_seed(self.seed, TRAIN_WORLDS)
            self.step, self.carry = self.env.reset(first), self.agent.initial(self.env.num_envs)
            if isinstance(self.env, DatasetEnv):
                self._learner().remember(self.env.data)
        else:
            self._go_on(state)
        self.began_at = self.frame

    def _go_on(self, state: Tree) -> None:
        """From the checkpoint. Raises `LabError` where it is of another run."""
        try:
            self.load_state_dict(state)
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise LabError(_foreign(self.run_dir, self.index)) from error
        kept = checkpoint.belongs_to(self.run_dir.model, f"session{self.index}_best")
        if kept.get("evaluated") == self.evaluated:  # a kill may have come after it was saved, and before the session
            self.best = max(self.best, tuple(kept["best"]))

    def _advance(self) -> None:
        """One step of all worlds, or of the clock alone where there is but a dataset, and what falls due with it."""
        if isinstance(self.env, DatasetEnv):
            self.tracker.update(self.step, self._learner().study(self.env.num_envs))  # a step in which nothing happens
        else:
            self._play()
        if self.frame < self.soonest:
            return
        if self._is_due("log"):
            self._log()
        if self.evaluated and self._is_due("eval"):
            self._evaluate()
        if self._is_due("checkpoint"):
            self._save()
        self.soonest = min(self.due.values())

    def _play(self) -> None:
        act, next_step = self.source.play(self.step, self.carry)
        metrics = self.agent.update(self.step, self.carry, act, next_step)
        self.tracker.update(next_step, metrics)
        self.step, self.carry = next_step, act.carry

    def _learner(self) -> Agent:
        """The one who learns offline (the memory's `problems` refuse several)."""
        assert isinstance(self.agent, Agent)
        return self.agent

    def _is_due(self, what: str) -> bool:
        """True once for each multiple of its frequency that the frames have reached (several envs may step over it)."""
        if self.frame < self.due[what]:
            return False
        self.due[what] = self._next(what)
        return True

    def _next(self, what: str) -> int:
        return (self.frame // self.every[what] + 1) * self.every[what]

    def _log(self) -> None:
        row = self.tracker.log(self.frame, self.agent.opt_step, self._wall_t())
        self._show_on_board("train", row)
        if not self.evaluated and len(self.tracker.returns):
            self._keep_best(self.tracker.total_reward_ma, sure=len(self.tracker.returns) == WINDOW)

    def _evaluate(self) -> None:
        """Greedy episodes from a seed of their own; the same ones each time."""
        env, xray, first = self.eval_env(), Xray(), world_seed(self.seed, EVAL_WORLDS)
        try:
            played: Played = play(self.agent, env, self.spec.meta.rigorous_eval, first, xray=xray)
        finally:
            env.close()
        xray.write(self.run_dir.session_file(self.index, "session_xray.json"), frame=self.frame)
        row = {
            "epi": len(played.returns),
            "frame": self.frame,
            "opt_step": self.agent.opt_step,
            "wall_t": self._wall_t(),
            "total_reward": float(played.returns.mean()),
            "total_reward_std": float(played.returns.std()),
            "episode_length": float(played.lengths.mean()),
            **xray.row(),
        }
        self.eval_rows.append(row)
        self._show_on_board("eval", {"total_reward": row["total_reward"]})
        self._keep_best(float(row["total_reward"]))

    def eval_env(self) -> VecEnv:
        """New worlds to be judged in, seen as training sees its own now. Worlds that were played in before might go on
        from what that has left in them, and no checkpoint would know of it.
        """
        count = min(self.spec.env.num_envs, self.spec.meta.rigorous_eval)
        env = make_env(self.spec.env, num_envs=count, gamma=self.gamma)
        env.load_wrapper_state(self.env.wrapper_state())
        env.freeze()
        return env

    def _keep_best(self, score: float, sure: bool = True) -> None:
        """Keep the agent if it is the best so far; one lucky episode (not `sure`) never stands against a full mean.

        It is written with the next checkpoint: a run that is killed before finds it again, and while returns rise there
        would be a file to write at every row of the table.
        """
        if (sure, score) > self.best:
            self.best = (sure, score)
            state = {
                "algorithm": self.agent.learned(),
                "wrappers": self.env.wrapper_state(),
                "score": score,
                "sure": sure,
                "frame": self.frame,
                "fingerprint": self.fingerprint,
            }
            self.best_state = tree_copy(state)  # it learns on meanwhile

    def _save(self) -> None:
        if self.best_state is not None:
            name, of = f"session{self.index}_best", {"best": self.best, "evaluated": self.evaluated}
            checkpoint.save(self.run_dir.model, name, self.best_state, self.best_state["frame"], of)
            self.best_state = None
        of = {"fingerprint": self.fingerprint, "num_envs": self.spec.env.num_envs}
        checkpoint.save(self.run_dir.model, f"session{self.index}", self.state_dict(), self.frame, of)
        self.table.write(self.tracker.rows)
        if self.eval_rows:
            self.eval_table.write(self.eval_rows)

    def finish(self) -> Progress:
        """Save and close; 'done' when the last frame was played, else 'stopped'."""
        status = "stopped" if self.frame < self.max_frame else "done"
        if status == "done" and (not self.tracker.rows or self.tracker.rows[-1]["frame"] < self.frame):
            self._log()
        if status == "done" and self.evaluated and (not self.eval_rows or self.eval_rows[-1]["frame"] < self.frame):
            self._evaluate()
        self._save()
        self.env.close()
        with self._without_board_if_full():
            if self.board is not None:
                self.board.close()
        progress = self.progress(status)
        self.report(progress)
        return progress

    def progress(self, status: str = "running") -> Progress:
        """How far the session is; evaluation's return where there is one."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        shown = self.eval_rows[-1]["total_reward"] if self.eval_rows else self.tracker.total_reward_ma
        return Progress(self.index, self.frame, self.max_frame, (self.frame - self.began_at) / seconds, shown, status)

    def check_report(self) -> list[str]:
        """Dev mode: parameters that never got a gradient, and weights that did not move."""
        assert self.first_weights is not None
        untrained = self.agent.untrained
        if self.agent.opt_step == 0:
            return ["no gradient step was taken: raise meta.dev_max_frame, or train more often"]
        moving = ((n, p) for n, p in self.agent.named_parameters() if p.requires_grad)
        same = {n for n, p in moving if torch.equal(p, self.first_weights[n])}
        found = [f"{name}: no gradient ever reached it" for name in sorted(untrained)]
        return found + [f"{name}: its weights did not move" for name in sorted(same - untrained)]

    def _wall_t(self) -> float:
        return self.tracker.wall_t + time.monotonic() - self.started

    def _show_on_board(self, kind: str, row: Metrics) -> None:
        """A row as one event for TensorBoard; `add_scalar` makes one of each number, and takes a hundred µs to it."""
        if self.board is not None:
            from tensorboard.compat.proto.summary_pb2 import Summary

            values = [Summary.Value(tag=f"{kind}/{name}", simple_value=value) for name, value in row.items()]
            with self._without_board_if_full():
                self.board.file_writer.add_summary(Summary(value=values), self.frame)

    def _tensorboard(self) -> Any:
        if not self.spec.meta.tensorboard:
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(
            str(self.run_dir.log / f"session{self.index}"), purge_step=self.frame + 1 if self.frame else None
        )

    @contextmanager
    def _without_board_if_full(self) -> Iterator[None]:
        """A disk that is full for a moment costs the board, which would raise from then on, and never the session."""
        try:
            yield
        except OSError as error:
            self.board = None
            logger.warning("session %d: no more for TensorBoard: %s", self.index, unwritable(self.run_dir.log, error))

    @contextmanager
    def _stop_on_signal(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM ends the session after the step at hand; a second Ctrl-C is not waited for.

        Where SIGINT is ignored (a trial's session: the terminal sends it to every process) it stays so.
        """
        asked = math.inf

        def ask(number: int, frame: object) -> None:
            nonlocal asked
            if self.stop and number == signal.SIGINT and time.monotonic() - asked > TWICE:
                raise KeyboardInterrupt
            asked = min(asked, time.monotonic())
            self.stop = True

        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, ask) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def state_dict(self) -> Tree:
        """Everything that the future of the session depends on."""
        tracker = self.tracker.state_dict() | {"wall_t": self._wall_t()}
        step = {name: getattr(self.step, name) for name in self.step.__dataclass_fields__}
        return {
            "agent": self.agent.state_dict(),
            "env": self.env.state_dict(),
            "wrappers": self.env.wrapper_state(),
            "step": step,
            "carry": self.carry,
            "tracker": tracker,
            "eval_rows": packed(self.eval_rows),
            "best": self.best,
            "evaluated": self.evaluated,
            "due": self.due,
        }

    def load_state_dict(self, state: Tree) -> None:
        """Go on from a checkpoint. Where the env could not be saved, from new episodes, and says so."""
        begun = self.agent.initial(self.env.num_envs)
        if [path for path, _ in tree_leaves(state["carry"])] != [path for path, _ in tree_leaves(begun)]:
            raise KeyError("the carry has other leaves")  # of other code
        self.agent.load_state_dict(state["agent"])
        self.tracker.load_state_dict(state["tracker"])
        self.eval_rows = unpacked(state["eval_rows"])
        if self.evaluated == state.get("evaluated", self.evaluated):  # else returns in training stood against others
            self.best = state["best"]
        for what in self.every:  # evaluation may have been turned on since, or off
            self.due[what] = state["due"].get(what, self._next(what))
        self.step, self.carry = Step(**state["step"]), to_torch(state["carry"], self.agent.device)
        if state["env"] is not None:
            self.env.load_state_dict(state["env"])
            return
        self.env.state_dict()  # finds out the reason
        logger.warning(
            "session %d: this env can't be saved (%s), so the run goes on from new episodes: not exact to the bit",
            self.index,
            self.env.opaque,
        )
        self.tracker.forget_running()
        self.env.load_wrapper_state(state["wrappers"])
        first = self.env.reset(world_seed(self.seed, NEW_WORLDS, self.frame))
        self.agent.interrupt(self.step, self.carry, first)
        self.step, self.carry = first, self.agent.initial(self.env.num_envs)
