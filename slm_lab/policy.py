"""A trained agent outside the lab: observations in, actions out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from slm_lab.agent.agent import Agent
from slm_lab.agent.build import build_agent
from slm_lab.env.base import VecEnv, first_step
from slm_lab.env.dataset import OFFLINE
from slm_lab.env.vec import bare_env, wrap
from slm_lab.env.wrapper_base import VecWrapper
from slm_lab.experiment.enjoy import best, step_into
from slm_lab.experiment.run_dir import RunDir
from slm_lab.experiment.search.ledger import best_run
from slm_lab.lib.errors import LabError
from slm_lab.lib.types import Step, Tree


def load_policy(run_dir: str | Path) -> Policy:
    """The best checkpoint of a run (of a search: of its best trial), to be asked for greedy actions.

    Raises `LabError` where there is none, for independent learners and worlds of several agents, and for a run in the
    worlds of a file alone.
    """
    run = best_run(RunDir.find(Path("data"), None, str(run_dir)))
    spec = run.stored_spec()
    if spec.env.name == OFFLINE:
        raise LabError(f"{run.path} was trained without a world: name one in env.name.")
    state = best(run, range(spec.meta.max_session))[1]
    elsewhere = Elsewhere(bare_env(spec.env, 1))
    if elsewhere.agents:
        raise LabError(f"{run.path}: a policy acts for one agent, {spec.env.name} has {', '.join(elsewhere.agents)}.")
    env = wrap(elsewhere, spec.env)
    agent = build_agent(spec.agent, env.world, seed=0)
    step_into(agent, env, state, run)
    return Policy(agent, elsewhere, env)


class Elsewhere(VecWrapper):
    """One world that is stepped somewhere else: it shows what it is told."""

    def __init__(self, env: VecEnv) -> None:
        super().__init__(env)
        nothing = {key: np.zeros((1, *(space.shape or ())), space.dtype) for key, space in env.obs_space.items()}
        self.told = first_step(nothing, 1)
        env.close()

    def reset(self, seed: int) -> Step:
        return self.told

    def step(self, action: np.ndarray) -> Step:
        return self.told

    def tell(self, obs: Any, reward: float | None = None) -> None:
        """What the world shows now; without a reward an episode begins. Raises `LabError` for another world's."""
        leaves = {path: self._leaf(path, leaf) for path, leaf in flat(obs)}
        if leaves.keys() != self.obs_space.keys():
            raise LabError(f"the observation holds {', '.join(leaves)}; {', '.join(self.obs_space)} was expected")
        self.told = first_step(leaves, 1)
        if reward is not None:
            no, paid = np.zeros(1, bool), np.array([reward], float)
            self.told = Step(leaves, paid.astype(np.float32), no, no, no, paid)

    def _leaf(self, path: str, leaf: Any) -> np.ndarray:
        space, array = self.obs_space.get(path), np.asarray(leaf)
        if space is not None and array.shape != space.shape:
            raise LabError(f"observation '{path}' has shape {array.shape}; {space.shape} was expected")
        return array[None].astype(space.dtype if space is not None else array.dtype)

    def wrapper_state(self) -> Tree:
        return {}

    def load_wrapper_state(self, state: Tree) -> None:
        pass


def flat(obs: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of an observation by dotted path, as `VecEnv.obs_space` has them."""
    if not isinstance(obs, (dict, tuple)):
        yield path or "obs", obs
        return
    for key, child in obs.items() if isinstance(obs, dict) else enumerate(obs):
        yield from flat(child, f"{path}.{key}" if path else str(key))


class Policy:
    """An agent in one world that is stepped elsewhere. What it remembers, and what its wrappers do with observations
    (normalise, stack, show the previous action), goes on inside.

        policy = load_policy("data/ppo_cartpole_2026_11_28_061612")
        obs, _ = env.reset()
        action, over = policy.reset(obs), False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(action)
            action, over = policy.step(obs, reward), terminated or truncated
    """

    def __init__(self, agent: Agent, elsewhere: Elsewhere, env: VecEnv) -> None:
        self.agent, self.elsewhere, self.env = agent, elsewhere, env
        self.carry: Tree = agent.initial(1)
        self.last: np.ndarray | None = None  # the action before, [1, *A] in the policy's units
        self.extras: Tree = {}  # what the agent shows of itself at this step, e.g. what StrategicMemory recalls

    def reset(self, obs: Any) -> Any:
        """The first action of an episode, as the world's own action space has it."""
        self.elsewhere.tell(obs)
        return self._act(self.env.reset(0))

    def step(self, obs: Any, reward: float = 0.0) -> Any:
        """The next action, after the world has shown `obs` and paid `reward` for the last one."""
        if self.last is None:
            raise LabError("policy.step before policy.reset: an episode begins with reset(obs).")
        self.elsewhere.tell(obs, reward)
        return self._act(self.env.step(self.last))

    def _act(self, step: Step) -> Any:
        out = self.agent.act(step, self.carry, explore=False)
        self.carry, self.extras, self.last = out.carry, out.extras, out.action.cpu().numpy()
        assert self.elsewhere.units is not None
        return self.elsewhere.units.to_world(self.last)[0]
