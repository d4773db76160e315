"""What every wrapper around a `VecEnv` is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from slm_lab.env.base import EnvError, Space, VecEnv
from slm_lab.env.goals import ACHIEVED, DESIRED, shows_goals
from slm_lab.lib.types import Step, Tree


class VecWrapper(VecEnv):
    """Passes everything on; a subclass changes what is shown (`_show`) and keeps two states apart: what it has learned
    (`_stats`, shared with evaluation) and what belongs to the episodes under way (`_episode`)."""

    key = ""  # of the spec, and of its states

    def __init__(self, env: VecEnv) -> None:
        self.env, self.name, self.num_envs = env, env.name, env.num_envs
        self.obs_space, self.action_space = dict(env.obs_space), env.action_space
        self.stacks, self.goals, self.agents = env.stacks, env.goals, env.agents
        self.max_length = env.max_length
        self.units = env.units
        self._frozen = False

    @property
    def blank(self) -> np.ndarray | None:  # type: ignore[override]
        return self.env.blank

    def _show(self, step: Step, action: np.ndarray | None) -> Step:
        """`step` changed; `action` [E, *A] led to it (None: reset)."""
        raise NotImplementedError

    def _stats(self) -> Tree:
        return {}

    def _load_stats(self, state: Tree) -> None:
        pass

    def _episode(self) -> Tree:
        return {}

    def _load_episode(self, state: Tree) -> None:
        pass

    def reset(self, seed: int) -> Step:
        return self._show(self.env.reset(seed), None)

    def step(self, action: np.ndarray) -> Step:
        return self._show(self.env.step(action), action)

    def state_dict(self) -> Tree | None:
        inner = self.env.state_dict()
        if inner is None:
            self.opaque = self.env.opaque
            return None
        return {**inner, self.key: {"stats": self._stats(), "episode": self._episode()}}

    def load_state_dict(self, state: Tree) -> None:
        self.env.load_state_dict(state)
        self._load_stats(state[self.key]["stats"])
        self._load_episode(state[self.key]["episode"])

    def wrapper_state(self) -> Tree:
        return {**self.env.wrapper_state(), self.key: self._stats()}

    def load_wrapper_state(self, state: Tree) -> None:
        self.env.load_wrapper_state(state)
        self._load_stats(state[self.key])

    def freeze(self) -> None:
        self._frozen = True
        self.env.freeze()

    def close(self) -> None:
        self.env.close()

    def render(self) -> list[Any]:
        return self.env.render()

    def target(self) -> np.ndarray | None:
        return self.env.target()

    def cue_steps(self) -> np.ndarray | None:
        return self.env.cue_steps()

    def _boxes(self, what: str, fits: Callable[[spaces.Box], bool]) -> dict[str, spaces.Box]:
        boxes = {key: space for key, space in self.obs_space.items() if isinstance(space, spaces.Box)}
        fitting = {key: box for key, box in boxes.items() if fits(box)}
        if shows_goals(self.env.obs_space):  # goals stay in the world's own units, in which it pays for them
            fitting = {key: box for key, box in fitting.items() if key not in (ACHIEVED, DESIRED)}
        if not fitting:
            has = ", ".join(f"{key}: {space}" for key, space in self.obs_space.items())
            raise EnvError(f"needs a {what} observation, {self.name} shows {has}. Take the key out.", self.key)
        return fitting


def is_float(box: spaces.Box) -> bool:
    return box.dtype.kind == "f"


def add_key(wrapper: VecWrapper, space: Space) -> None:
    if wrapper.key in wrapper.obs_space:
        raise EnvError(f"{wrapper.name} has an observation of that name already. Take the key out.", wrapper.key)
    wrapper.obs_space[wrapper.key] = space


def with_reward(step: Step, reward: np.ndarray) -> Step:
    return dataclasses.replace(step, reward=reward.astype(np.float32))


def like(flag: np.ndarray, array: np.ndarray) -> np.ndarray:
    """[E] shaped to broadcast against [E, ...]."""
    return flag.reshape(len(flag), *[1] * (array.ndim - 1))
