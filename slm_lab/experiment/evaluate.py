"""Playing without learning: evaluation, and the random baseline."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm_lab.agent.agent import Agent
from slm_lab.agent.algorithm.random import Random
from slm_lab.agent.build import build_agent
from slm_lab.agent.memory.onpolicy import OnPolicyBatchReplay
from slm_lab.agent.multi import MultiAgent
from slm_lab.agent.net.mlp import MLP
from slm_lab.env.vec import VecEnv, make_env
from slm_lab.experiment.tracker import count_step
from slm_lab.experiment.xray import Xray
from slm_lab.lib.files import locked, write_atomic
from slm_lab.lib.types import Step
from slm_lab.spec.lab_spec import AgentSpec, LabSpec

logger = logging.getLogger("slm_lab")

BASELINE_EPISODES = 1_000
BASELINE_FRAMES = 20_000
RULE = "1,000 whole episodes"  # of how it is measured: what another rule has given is measured anew
GRACE = 5  # times as many frames until episodes that run are cut
LONGEST = 30_000  # steps of an episode in worlds that tell no bound of their own; Atari's longest have 27 000


@dataclass(frozen=True)
class Played:
    """Finished episodes."""

    returns: np.ndarray  # [N]
    lengths: np.ndarray  # [N]


def play(
    agent: Agent | MultiAgent, env: VecEnv, episodes: int, seed: int, explore: bool = False,
    max_frame: int | None = None, on_step: Callable[[], object] | None = None, xray: Xray | None = None,
) -> Played:  # fmt: skip
    """Play `episodes` from a seed, equally many in each world (so that short ones are not favoured), without learning;
    where a world has several agents, each one's return counts.

    After `max_frame` frames no episode begins any more. Worlds may never end: an episode of `longest(env)` steps, or
    `GRACE` times `max_frame` frames, end the play; what is cut so counts as it stands when no episode has finished.
    `on_step` is called after every step, e.g. to film it; `xray` watches what is recalled.
    """
    E, bound, quota = env.num_envs, longest(env), Quota(env, episodes)
    step, carry = env.reset(seed), agent.initial(E)
    total, length, frame = np.zeros(E), np.zeros(E, np.int64), 0
    returns: list[float] = []
    lengths: list[int] = []
    while quota.open.any() and (max_frame is None or frame < GRACE * max_frame) and length.max() <= bound:
        act = agent.act(step, carry, explore)
        if xray is not None:
            xray.look(act, env)
        step, carry = env.step(act.action.cpu().numpy()), act.carry
        if on_step is not None:
            on_step()
        total, length, ended = count_step(total, length, step)
        frame += int(np.count_nonzero(~step.is_first))
        ended &= quota.open
        returns += total[ended].tolist()
        lengths += length[ended].tolist()
        quota.count(step, ended)
        if max_frame is not None and frame >= max_frame:  # what runs may end: only short ones would have, by now
            quota.close(running=(length > 0) & ~(step.terminated | step.truncated))
        if xray is not None:
            xray.follow(step, ended, total)
    if length.max() > bound:
        logger.warning(
            "play was ended at an episode of %s steps: %d of %d episodes had ended. Bound them by env.max_t",
            f"{bound:,}",
            len(returns),
            episodes,
        )
    if not returns:
        returns, lengths = total.tolist(), length.tolist()
    return Played(np.array(returns), np.array(lengths))


class Quota:
    """How many episodes each column of a vector still has to play: as many in each world, of each of its agents.

    An agent that doesn't play in an episode of its world is not waited for.
    """

    def __init__(self, env: VecEnv, episodes: int) -> None:
        self.agents = max(1, len(env.agents))
        worlds = np.arange(env.num_envs // self.agents)
        self.left = np.repeat(episodes // len(worlds) + (worlds < episodes % len(worlds)), self.agents)  # [E]
        self.worlds_left = self.left.copy()  # episodes of the world that each column is in
        self.closed = False

    @property
    def open(self) -> np.ndarray:
        """The columns [E] whose episodes count."""
        return (self.left > 0) & (self.worlds_left > 0)

    def count(self, step: Step, ended: np.ndarray) -> None:
        """A step was taken, and those of `ended` [E] have counted."""
        self.left = self.left - ended
        if self.agents > 1:  # where all of a world's columns begin, an episode of it is over
            over = step.is_first.reshape(-1, self.agents).all(axis=1)
            self.worlds_left = self.worlds_left - np.repeat(over, self.agents)

    def close(self, running: np.ndarray) -> None:
        """No episode begins any more that counts; those of `running` [E] may end."""
        if not self.closed:
            self.closed, self.left = True, np.minimum(self.left, running)


def longest(env: VecEnv) -> int:
    """Steps after which an episode is taken for an endless one: 30 000, or what the worlds are known to need."""
    return max(LONGEST, env.max_length or 0)


def random_return(spec: LabSpec, data: Path) -> float:
    """Mean return of random actions in the spec's env, measured once and kept in `data`: 1,000 episodes, or those
    that began within 20 000 frames.
    """
    keys = {
        key: value
        for key, value in spec.env.model_dump().items()
        if key not in ("num_envs", "max_frame", "vectorization", "dataset")
    }
    key = json.dumps({**keys, "rule": RULE}, sort_keys=True)
    file = data / "random_baseline.json"
    known = _read(file)
    if key in known:
        return float(known[key]["mean"])
    with locked(file.with_name(f".{file.name}.lock")):  # another run may be measuring this very env
        known = _read(file)
        if key not in known:
            known[key] = _measured(spec)
            write_atomic(file, lambda path: path.write_text(json.dumps(known, indent=1)))
    return float(known[key]["mean"])


def _measured(spec: LabSpec) -> dict[str, float]:
    logger.info("measuring the return of random actions, once for this env ...")
    env = make_env(spec.env, num_envs=8)
    try:
        played = play(random_agent(env), env, BASELINE_EPISODES, seed=0, explore=True, max_frame=BASELINE_FRAMES)
    finally:
        env.close()
    returns = played.returns
    return {"mean": float(returns.mean()), "std": float(returns.std()), "episodes": len(returns)}


def random_agent(env: VecEnv) -> Agent:
    """An agent that acts by chance alone."""
    parts = AgentSpec(
        name="Random",
        algorithm=Random.Spec(),
        memory=OnPolicyBatchReplay.Spec(),
        net=MLP.Spec(hid_layers=[], device="cpu"),
    )
    return build_agent(parts, env.world, seed=0)


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return {}
