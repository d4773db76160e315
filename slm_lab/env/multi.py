"""Worlds of several agents: PettingZoo's parallel envs as a `VecEnv`, a column for each agent of each world."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from slm_lab.env import snapshot
from slm_lab.env.action import ActionUnits
from slm_lab.env.base import (
    EnvError,
    Space,
    VecEnv,
    check_finite,
    close_all,
    first_step,
    leaf_arrays,
    leaf_spaces,
    own,
)
from slm_lab.env.catalog import imported
from slm_lab.env.spec import EnvSpec
from slm_lab.lib.types import Step, Tree

PREFIX = "pettingzoo:"  # of env.name; a module that has `parallel_env` follows


def parallel_env(spec: EnvSpec) -> Callable[..., Any]:
    """What builds one world of `spec`. Raises `EnvError` saying what to install, or what the module lacks."""
    if spec.vectorization == "native":
        raise EnvError(f"{spec.name} has no vector of its own: 'sync' or 'auto' was expected", "vectorization")
    module = imported(spec.name.removeprefix(PREFIX))
    if not hasattr(module, "parallel_env"):
        raise EnvError(
            f"{module.__name__} has no parallel_env: a module of PettingZoo's form was expected, such as "
            "pettingzoo:pettingzoo.butterfly.pistonball_v6. Give yours a function parallel_env(**keys).",
            "name",
        )
    create: Callable[..., Any] = module.parallel_env
    return create


def multi_parameters(spec: EnvSpec) -> set[str] | None:
    """What `parallel_env` takes by name; None where it takes anything."""
    taken = inspect.signature(parallel_env(spec)).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
        return None
    return set(taken) - {"render_mode"}


def multi_vec(spec: EnvSpec, num_envs: int, arguments: dict[str, Any]) -> MultiVec:
    """`num_envs` worlds in one process, stepped one after the other."""
    create = parallel_env(spec)
    return MultiVec(spec.name, [create(**copy.deepcopy(arguments)) for _ in range(num_envs)], spec.max_t)


class MultiVec(VecEnv):
    """W worlds of A agents as E = W * A columns, world by world: column w * A + a is agent a of `possible_agents`.

    Each column is an episode of its own with NEXT_STEP autoreset. A column whose agent isn't playing, as it ended
    before its world or was not there yet, has `is_first` at every step and shows zeros (the nearest that its space
    has): rows that are masked. A world that no agent is left in begins anew in the next step. `max_t` truncates all
    of a world's agents, and an agent that its world drops without a flag is truncated. World w is seeded `seed + w`.

    Raises `EnvError` where the agents have unequal spaces: a column has the shape of its neighbours.
    Source: Terry et al. 2021, arXiv 2009.14471 (PettingZoo; its parallel API).
    """

    units: ActionUnits

    def __init__(self, name: str, worlds: list[Any], max_t: int | None = None) -> None:
        self.name, self.max_t, self.max_length, self._worlds = name, max_t, max_t, worlds
        self._ids = list(worlds[0].possible_agents)
        self.agents = tuple(str(agent) for agent in self._ids)
        W, A = len(worlds), len(self.agents)
        self.num_envs = W * A
        self._space = self._common("observation", worlds[0].observation_space)
        self.units = ActionUnits(self._common("action", worlds[0].action_space))
        self.obs_space, self.action_space = leaf_spaces(self._space), self.units.space
        self._blank = {key: _blank(space) for key, space in self.obs_space.items()}
        self._ended = np.zeros((W, A), dtype=bool)  # in the world's present episode
        self._length = np.zeros(W, np.int64)  # steps of it
        self._number = 0  # steps since reset
        self.blank = np.zeros(self.num_envs, dtype=bool)

    def _common(self, what: str, space_of: Callable[[Any], Space]) -> Space:
        """The space that all agents have."""
        first = space_of(self._ids[0])
        for agent in self._ids[1:]:
            if space_of(agent) != first:
                raise EnvError(
                    f"{self.name}: the {what} space of {agent} is {space_of(agent)}, of {self._ids[0]} {first}: "
                    "equal spaces were expected. Name a module of yours whose parallel_env() pads them "
                    f"(SuperSuit: pad_{what}s_v0).",
                    "name",
                )
        return first

    def reset(self, seed: int) -> Step:
        self._number = 0
        shown = [self._begin(world, int(seed) + world) for world in range(len(self._worlds))]
        return check_finite(self.name, 0, first_step(self._joined(shown), self.num_envs), self.agents)

    def step(self, action: np.ndarray) -> Step:
        W, A = self._ended.shape
        action = self.units.to_world(action)
        action = action.reshape(W, A, *action.shape[1:])
        self._number += 1
        playing = np.stack([self._playing(world) for world in range(W)])  # [W, A]
        raw, terminated, truncated = np.zeros((W, A)), np.zeros((W, A), bool), np.zeros((W, A), bool)
        shown = []
        for world in range(W):
            if not playing[world].any():
                shown.append(self._begin(world))
                continue
            obs, *outcome = self._play(world, playing[world], action[world])
            raw[world], terminated[world], truncated[world] = outcome
            shown.append(obs)
        flat = raw.ravel()
        step = Step(
            self._joined(shown), flat.astype(np.float32), ~playing.ravel(), terminated.ravel(), truncated.ravel(), flat
        )
        return check_finite(self.name, self._number, step, self.agents)

    def _playing(self, world: int) -> np.ndarray:  # [A]
        present = set(self._worlds[world].agents)
        playing: np.ndarray = np.array([agent in present for agent in self._ids]) & ~self._ended[world]
        return playing

    def _begin(self, world: int, seed: int | None = None) -> dict[Any, Any]:
        """The first observations of a world's next episode, by agent."""
        self._ended[world], self._length[world] = False, 0
        try:
            obs: dict[Any, Any] = self._worlds[world].reset(seed=seed)[0]
        except Exception as error:
            raise self._raised(world, "in reset", error) from error
        if not self._playing(world).any():
            raise EnvError(f"{self.name}: world {world} has no agent after reset; `agents` should name those that play")
        return obs

    def _play(self, world: int, playing: np.ndarray, action: np.ndarray) -> tuple[dict[Any, Any], Any, Any, Any]:
        """Observations by agent, and reward, terminated, truncated [A]; nothing for agents that weren't playing."""
        actions = {self._ids[a]: action[a] for a in np.flatnonzero(playing)}
        self._length[world] += 1
        try:
            obs, *outcome, _ = self._worlds[world].step(actions)
            reward, terminated, truncated = (
                np.array([told[agent] if agent in actions else 0 for agent in self._ids]) for told in outcome
            )
            seen = {self._ids[a]: obs[self._ids[a]] for a in np.flatnonzero(playing | self._playing(world))}
        except Exception as error:
            where = f"at step {self._length[world]} of its episode, with actions {actions}"
            raise self._raised(world, where, error) from error
        late = self.max_t is not None and self._length[world] >= self.max_t
        gone = playing & ~self._playing(world) & ~terminated.astype(bool)  # an agent may be dropped without a flag
        truncated = truncated.astype(bool) | (playing & late) | gone
        self._ended[world] |= terminated.astype(bool) | truncated | late
        return seen, reward, terminated, truncated

    def _raised(self, world: int, where: str, error: Exception) -> EnvError:
        return EnvError(f"{self.name}: world {world} raised {type(error).__name__} {where}: {error}")

    def _joined(self, shown: list[dict[Any, Any]]) -> dict[str, np.ndarray]:
        """Fresh arrays [E, *O] of the worlds' observations by agent."""
        obs = {key: np.repeat(blank[None], self.num_envs, axis=0) for key, blank in self._blank.items()}
        self.blank = np.array([agent not in by_agent for by_agent in shown for agent in self._ids])
        for world, by_agent in enumerate(shown):
            for a, agent in enumerate(self._ids):
                if agent in by_agent:
                    try:
                        leaves = leaf_arrays(self._space, by_agent[agent], 1)
                    except (ValueError, TypeError) as error:
                        raise EnvError(f"{self.name}: world {world}, agent {agent}: {error}") from error
                    for key, leaf in leaves.items():
                        obs[key][world * len(self._ids) + a] = leaf[0]
        return obs

    def state_dict(self) -> Tree | None:
        try:
            worlds = [snapshot.capture(world) for world in self._worlds]
        except snapshot.Opaque as reason:
            self.opaque = str(reason)
            return None
        ended, length = self._ended.copy(), self._length.copy()
        return {"env": {"worlds": worlds, "ended": ended, "length": length, "number": self._number}}

    def load_state_dict(self, state: Tree) -> None:
        saved = state["env"]
        if len(saved["worlds"]) != len(self._worlds):
            raise EnvError(f"the saved state has {len(saved['worlds'])} worlds, not {len(self._worlds)}", "num_envs")
        self._ended, self._length, self._number = own(saved["ended"]), own(saved["length"]), int(saved["number"])
        for world, kept in zip(self._worlds, saved["worlds"], strict=True):
            snapshot.restore(world, kept)

    def render(self) -> list[Any]:
        return [world.render() for world in self._worlds if getattr(world, "render_mode", None)]

    def close(self) -> None:
        close_all(self.name, self._worlds)


def _blank(space: Space) -> np.ndarray:
    """Zeros, or the nearest that `space` has."""
    zeros = np.zeros(space.shape or (), space.dtype)
    if isinstance(space, spaces.Box):
        return np.clip(zeros, space.low, space.high)
    if isinstance(space, spaces.Discrete):
        return np.clip(zeros, space.start, space.start + space.n - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return np.clip(zeros, space.start, space.start + space.nvec - 1)
    return zeros
