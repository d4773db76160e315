"""Agents of other libraries in the lab's races: Stable-Baselines3 and its contrib package (extra `[bench]`)."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import gymnasium
import torch

import slm_lab.env.tasks  # noqa: F401  registers our tasks with Gymnasium
from bench.race import Job
from slm_lab.env.base import VecEnv
from slm_lab.lib.types import ActOut, Step, Tree

# As ours where ours is common practice; all else is the library's own default.
PEER_KEYS = {"gamma": 0.99, "gae_lambda": 0.95, "ent_coef": 0.01, "learning_rate": 1e-3}
LSTM_STEPS = 128  # of a rollout, RecurrentPPO's default


@dataclass(frozen=True)
class Peer:
    """`package.algorithm` with `policy`, in one world: the library's default when it is given a Gymnasium env."""

    package: str
    algorithm: str
    policy: str
    recurrent: bool = False

    def absent(self) -> str:
        return "" if find_spec(self.package) else f"{self.package} isn't installed: pip install -e '.[bench]'"

    def settings(self, job: Job) -> dict[str, Any]:
        return {"package": self.package, "version": version(self.package), **self._arguments(job)}

    def begin(self, job: Job) -> PeerLearner:
        algorithm = getattr(importlib.import_module(self.package), self.algorithm)
        world = gymnasium.make("slm_lab/MemoryTask-v0", **job.task)
        return PeerLearner(algorithm(env=world, seed=job.seed, device="cpu", **self._arguments(job)))

    def _arguments(self, job: Job) -> dict[str, Any]:
        """A recurrent net learns nothing of a cue that lies before its rollout: two episodes must fit into one."""
        rollout = {"n_steps": max(LSTM_STEPS, 2 * job.delay)} if self.recurrent else {}
        return {"policy": self.policy, **PEER_KEYS, **rollout}


class PeerLearner:
    """A model of Stable-Baselines3, one rollout and what is learned from it at a time. It is its own player."""

    def __init__(self, model: Any) -> None:
        self.model, self.agent = model, self

    @property
    def frame(self) -> int:
        return int(self.model.num_timesteps)

    def advance(self, until: int) -> None:
        """One rollout; its length is the library's, so the last may end beyond `until`."""
        self.model.learn(1, reset_num_timesteps=False)  # goes on with the running episode and counts on

    def seen(self, env: VecEnv) -> VecEnv:
        return env

    def initial(self, E: int) -> Tree:
        return {}

    def act(self, step: Step, carry: Tree, explore: bool = True) -> ActOut:
        action, state = self.model.predict(
            step.obs["obs"], carry.get("state"), episode_start=step.is_first, deterministic=not explore
        )
        return ActOut(torch.as_tensor(action), {"state": state}, {})
