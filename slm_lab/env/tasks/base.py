"""A task's rules, written once, and its two faces: a Gymnasium env of one world, a vector of many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding

from slm_lab.env.action import ActionUnits
from slm_lab.env.base import EnvError, Goals, Space, VecEnv, first_step, leaf_arrays, leaf_spaces, own
from slm_lab.lib.types import Step, Tree
from slm_lab.spec.parts import TASK

State = dict[str, np.ndarray]  # {"t": [E] steps taken in this episode, and what the task's script holds: [E, ...]}


class Rules(ABC):
    """What a task is, for E worlds at once. The constructor's arguments are the keys of the spec.

    An episode's whole script is drawn when it begins, from its world's own generator, so the two faces show the same
    episodes. Every memory task lasts `length` steps and is then terminated: nothing follows, so there is nothing to
    bootstrap. The observation at `t == length` is the last one; nothing is asked there. A task that is terminated by
    what is done in it says so in `terminated`, and is truncated after `length` steps.
    """

    obs_space: Space
    action_space: gymnasium.spaces.Discrete | gymnasium.spaces.Box
    length: int
    goals: Goals | None = None  # of a goal task

    @abstractmethod
    def script(self, rng: np.random.Generator) -> State:
        """One world's episode: arrays of fixed shapes, without the E."""

    @abstractmethod
    def observe(self, state: State) -> Any:  # [E, *O], or {key: [E, *O]} where obs_space is a Dict
        """What is shown now."""

    @abstractmethod
    def act(self, state: State, action: np.ndarray) -> np.ndarray:  # [E] float64
        """The reward of `action` [E], in a Box [E, *A], at `t`; may move the world by changing `state` in place."""

    @abstractmethod
    def target(self, state: State) -> np.ndarray:  # [E]
        """The right answer; -1 where there's none at this step."""

    @abstractmethod
    def cue_steps(self, state: State) -> np.ndarray:  # [E, C]
        """The steps at which what must be remembered is shown; -1 where there's none."""

    def terminated(self, state: State) -> np.ndarray:  # [E] bool
        """Where the episode has come to its end, after `t` steps."""
        return state["t"] >= self.length

    def ends(self, state: State) -> tuple[np.ndarray, np.ndarray]:  # [E] bool, [E] bool
        """Terminated, and truncated: no episode is longer than `length`."""
        terminated = self.terminated(state)
        return terminated, (state["t"] >= self.length) & ~terminated


def whole(key: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int. Raises `EnvError` unless it is a whole number in [low, high]."""
    # JSON's 1e3 is a float: a whole one is welcome, as everywhere in a spec.
    number = not isinstance(value, bool) and isinstance(value, (int, float, np.integer)) and value == int(value)
    if not number or value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise EnvError(f"{value!r}: a whole number {bounds} was expected", key)
    return int(value)


def rows(state: State, key: str) -> np.ndarray:  # [E, ...]
    """Row `t` of the script's table `key` [E, length+1, ...] for each world, fresh."""
    table = state[key]
    return table[np.arange(len(table)), state["t"]]


def _stacked(scripts: list[State]) -> State:
    return {"t": np.zeros(len(scripts), np.int64), **{k: np.stack([s[k] for s in scripts]) for k in scripts[0]}}


class VecTask(VecEnv):
    """`num_envs` worlds of a task, stepped as arrays: no Python loop over worlds except where episodes begin."""

    units: ActionUnits

    def __init__(self, rules: Rules, num_envs: int, max_t: int | None = None) -> None:
        self.rules, self.num_envs, self.max_t = rules, num_envs, max_t
        self.name = type(rules).__name__
        self.units = ActionUnits(rules.action_space)
        self.obs_space, self.action_space = leaf_spaces(rules.obs_space), self.units.space
        self.goals, self.max_length = rules.goals, min(rules.length, max_t or rules.length)
        self._rngs: list[np.random.Generator] = []
        self._state: State = {}
        self._ended = np.zeros(num_envs, dtype=bool)

    def reset(self, seed: int) -> Step:
        # As Gymnasium seeds the envs of a vector, so that both faces play the same episodes.
        self._rngs = [seeding.np_random(int(seed) + world)[0] for world in range(self.num_envs)]
        self._state = _stacked([self.rules.script(rng) for rng in self._rngs])
        self._ended = np.zeros(self.num_envs, dtype=bool)
        return first_step(self._shown(), self.num_envs)

    def step(self, action: np.ndarray) -> Step:
        if not self._state:
            raise EnvError(f"{self.name}: step before reset")
        reward = self.rules.act(self._state, self.units.to_world(action))
        self._state["t"] = np.minimum(self._state["t"] + 1, self.rules.length)
        terminated, truncated = self.rules.ends(self._state)
        if self.max_t is not None:
            truncated = truncated | (self._state["t"] >= self.max_t)
        # A world whose episode had ended took no action: its reward and end are wiped and its next script drawn.
        is_first = self._ended
        if is_first.any():
            self._begin(np.flatnonzero(is_first))
            reward = np.where(is_first, 0.0, reward)
            terminated, truncated = terminated & ~is_first, truncated & ~is_first
        self._ended = terminated | truncated
        return Step(self._shown(), reward.astype(np.float32), is_first, terminated, truncated, reward)

    def _shown(self) -> Tree:
        return leaf_arrays(self.rules.obs_space, self.rules.observe(self._state), self.num_envs)

    def _begin(self, worlds: np.ndarray) -> None:
        fresh = _stacked([self.rules.script(self._rngs[world]) for world in worlds])
        for key, value in fresh.items():
            self._state[key][worlds] = value

    def target(self) -> np.ndarray:
        return self.rules.target(self._state).copy()

    def cue_steps(self) -> np.ndarray:
        return self.rules.cue_steps(self._state).copy()

    def state_dict(self) -> Tree:
        state = {key: value.copy() for key, value in self._state.items()}
        rngs = [rng.bit_generator.state for rng in self._rngs]
        return {"env": {"state": state, "rngs": rngs, "ended": self._ended.copy()}}

    def load_state_dict(self, state: Tree) -> None:
        saved = state["env"]
        if len(saved["rngs"]) not in (0, self.num_envs):
            raise EnvError(f"the saved state has {len(saved['rngs'])} worlds, not {self.num_envs}", "num_envs")
        self._state = {key: own(value) for key, value in saved["state"].items()}
        self._ended = own(saved["ended"])
        self._rngs = [np.random.Generator(np.random.PCG64()) for _ in saved["rngs"]]
        for rng, bits in zip(self._rngs, saved["rngs"], strict=True):
            rng.bit_generator.state = bits

    def close(self) -> None:
        pass


class TaskEnv(gymnasium.Env[Any, Any]):
    """One world of a task as a plain Gymnasium env, for other libraries: `slm_lab/<Name>-v0`."""

    metadata = {"render_modes": ["ansi"]}

    def __init__(self, task: str, render_mode: str | None = None, **arguments: Any) -> None:
        self.rules: Rules = TASK.load(task)(**arguments)
        self.render_mode = render_mode
        self.observation_space, self.action_space = self.rules.obs_space, self.rules.action_space
        self._state: State = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._state = _stacked([self.rules.script(self.np_random)])
        return self._shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(self.rules.act(self._state, np.array([action]))[0])
        self._state["t"] = np.minimum(self._state["t"] + 1, self.rules.length)
        terminated, truncated = self.rules.ends(self._state)
        return self._shown(), reward, bool(terminated[0]), bool(truncated[0]), {}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:  # [N] float32
        """Gymnasium-Robotics' question to a goal env: what reaching `desired` by `achieved`, [N, *G], pays."""
        return self._goals().reward(achieved, desired)

    def compute_terminated(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:  # [N] bool
        return self._goals().terminated(achieved, desired)

    def _goals(self) -> Goals:
        if self.rules.goals is None:
            raise EnvError(f"{type(self.rules).__name__} has no goals, so none can be replaced")
        return self.rules.goals

    def _shown(self) -> Any:
        obs = self.rules.observe(self._state)
        if isinstance(obs, dict):
            return {key: value[0] for key, value in obs.items()}
        return obs[0] if obs[0].shape else int(obs[0])

    def render(self) -> str | None:
        if self.render_mode is None:
            return None
        return f"t={self._state['t'][0]} obs={self._shown()} target={self.rules.target(self._state)[0]}"

    def get_state(self) -> Tree:
        """For checkpoints (see snapshot.py)."""
        state = {key: value.copy() for key, value in self._state.items()}
        return {"state": state, "rng": self.np_random.bit_generator.state}

    def set_state(self, state: Tree) -> None:
        self._state = {key: own(value) for key, value in state["state"].items()}
        self.np_random.bit_generator.state = state["rng"]
