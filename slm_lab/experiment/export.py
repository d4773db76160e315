"""Command export: a run's experience as a file that others learn from (see docs/offline.md)."""

from __future__ import annotations

import dataclasses
import logging
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from slm_lab.agent import checkpoint
from slm_lab.agent.agent import Agent
from slm_lab.agent.build import build_agents
from slm_lab.agent.memory.offline import count_played, write_rows
from slm_lab.agent.memory.rows import Rows
from slm_lab.agent.memory.storage import storage
from slm_lab.agent.multi import MultiAgent
from slm_lab.env.base import VecEnv, World
from slm_lab.env.dataset import DatasetEnv
from slm_lab.env.vec import make_env
from slm_lab.experiment.display import say
from slm_lab.experiment.enjoy import best, step_into
from slm_lab.experiment.evaluate import Quota, longest
from slm_lab.experiment.run_dir import RunDir, unwritable
from slm_lab.lib.errors import LabError
from slm_lab.lib.rng import world_seed
from slm_lab.lib.types import ActOut, Row, Step, Tree
from slm_lab.spec.lab_spec import LabSpec
from slm_lab.spec.parts import MEMORY

logger = logging.getLogger("slm_lab")

EXPORT_WORLDS = 6  # a stream of seeds
AT_FIRST = 1024  # steps that there is room for; it grows
FORMATS = ("npz", "hdf5")


def export(
    run: RunDir, console: Console, kind: str = "npz", session: int | None = None, episodes: int | None = None,
    explore: bool = False,
) -> Path:  # fmt: skip
    """Write a run's experience under `export/` in its folder: what the memory of `session` (default 0) holds.

    With `episodes` that many new ones, played by the best checkpoint (of that session, where given): greedily, or as it
    explored. Raises `LabError` where there is nothing to write; a file of the same name is replaced when the new one is
    whole.
    """
    if kind not in FORMATS:
        raise LabError(f"--format {kind}: {' or '.join(FORMATS)} was expected")
    spec = run.stored_spec()
    last = spec.meta.max_session - 1
    if session is not None and not 0 <= session <= last:
        raise LabError(f"--session {session}: the run has sessions 0 to {last}")
    if episodes is None:
        if explore:
            raise LabError("--explore is how episodes are played: say how many with --episodes N")
        session, what = session or 0, "memory"
        env = make_env(spec.env, num_envs=1)
        rows, wrappers = _remembered(run, spec, session, env.world)
    else:
        session, what = best(run, range(last + 1) if session is None else [session])[0], "episodes"
        env = make_env(spec.env)
        rows, wrappers = _played(run, spec, session, env, episodes, explore)
    env.close()
    facts = {
        "env": env.data.env if isinstance(env, DatasetEnv) else spec.env.model_dump(mode="json"),
        "wrappers": wrappers,
        "run": {"name": run.path.name, "session": session, "git_sha": run.read_spec()["run"].get("git_sha")},
        "from": what,
    }
    world = dataclasses.replace(env.world, num_envs=rows.data["is_first"].shape[1])
    file = run.path / "export" / f"{spec.name}_t{run.trial}_s{session}_{what}.{kind}"
    try:
        file.parent.mkdir(exist_ok=True)
        write_rows(file, rows, world, facts)
    except OSError as error:
        raise unwritable(file, error) from error
    steps, size = f"{count_played(rows):,} steps played", file.stat().st_size / 1e6
    say(console, f"exported {file}\n         {steps} in {world.num_envs} worlds, {size:.1f} MB")
    say(console, f"learn    python run_lab.py SPEC_FILE train --set {shlex.quote(f'env.dataset={file}')}")
    return file


def _remembered(run: RunDir, spec: LabSpec, session: int, world: World) -> tuple[Rows, Tree]:
    """What a session's memory held at its last checkpoint, and what the wrappers had learned by then."""
    cure = "Let its best checkpoint play some: --episodes N."
    if MEMORY.load(spec.agent.memory.name).on_policy:
        raise LabError(f"{run.path}: {spec.agent.memory.name} keeps nothing that was learned from. {cure}")
    if spec.agent.learners == "independent":
        raise LabError(f"{run.path}: independent learners have a memory each, and no file holds several. {cure}")
    state = checkpoint.load(run.model, f"session{session}")
    if state is None:
        raise LabError(f"{run.path} has no checkpoint of session {session}. Train it on with: {run.command('train')}")
    allocate = storage(spec.agent.memory.storage, run.model)
    rows = Rows(1, world.stacks, world.action_space, extras=False, allocate=allocate)
    rows.load_state_dict(state["agent"]["memory"]["rows"])
    if not rows.size or not count_played(rows):
        raise LabError(f"{run.path}: the memory of session {session} is empty. {cure}")
    return rows, state["wrappers"]


def _played(
    run: RunDir, spec: LabSpec, session: int, env: VecEnv, episodes: int, explore: bool
) -> tuple[Rows, Tree]:  # fmt: skip
    """`episodes` played by the best checkpoint of a session, and what the wrappers had learned when it was saved."""
    if episodes < 1:
        raise LabError(f"--episodes {episodes}: 1 or more were expected")
    agent = build_agents(spec.agent, env.world, seed=spec.meta.seed, max_frame=spec.env.max_frame)
    state = best(run, [session])[1]
    step_into(agent, env, state, run)
    agent.frame = int(state["frame"])  # by which exploration is scheduled
    return _record(agent, env, episodes, world_seed(spec.meta.seed, EXPORT_WORLDS, session), explore), state["wrappers"]


def _record(agent: Agent | MultiAgent, env: VecEnv, episodes: int, seed: int, explore: bool) -> Rows:
    """Exactly `episodes`, equally many in each world; a world that has done its share shows rows that aren't played."""
    E, quota = env.num_envs, Quota(env, episodes)
    rows = Rows(AT_FIRST, env.stacks, env.action_space, grows=True, extras=False)
    step, carry = env.reset(seed), agent.initial(E)
    length, count = np.zeros(E, np.int64), 0
    while quota.open.any() and length.max() <= longest(env):
        act = agent.act(step, carry, explore)
        following = env.step(act.action.cpu().numpy())
        row = _row(step, act, following, idle=~quota.open)
        rows.append(row)
        ended = (row.terminated | row.truncated) & row.mask
        quota.count(following, ended)
        count += int(ended.sum())
        length = np.where(row.mask, length + 1, 0)
        step, carry = following, act.carry
    if length.max() > longest(env):
        logger.warning("episodes were cut at %s steps: %d of %d had ended", f"{longest(env):,}", count, episodes)
        rows.truncate_last()
    return rows


def _row(step: Step, act: ActOut, following: Step, idle: np.ndarray) -> Row:
    """A step as rows store it; `idle` [E] worlds count for nothing."""
    action = act.action.cpu().numpy()
    ends: dict[str, Any] = {name: getattr(following, name) & ~idle for name in ("terminated", "truncated")}
    return Row(
        step.obs, step.is_first, {}, action, {}, reward=np.where(idle, 0, following.reward), **ends,
        next_obs=following.obs, next_is_first=following.is_first | idle,
    )  # fmt: skip
