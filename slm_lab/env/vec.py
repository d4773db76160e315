"""From the `env` section of a spec to a vector of worlds, and everything that may be wrong with it."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium

from slm_lab.env.adapter import native_vec, sync_vec
from slm_lab.env.base import EnvError, VecEnv
from slm_lab.env.catalog import cannot_build, find, gym_id, parameters
from slm_lab.env.dataset import OFFLINE, Dataset, DatasetEnv, dataset_problems
from slm_lab.env.multi import PREFIX, multi_parameters, multi_vec
from slm_lab.env.spec import EnvSpec
from slm_lab.env.tasks.base import VecTask
from slm_lab.env.wrappers import WRAPPERS, wanted
from slm_lab.lib.errors import Problem, did_you_mean
from slm_lab.spec.parts import TASK

__all__ = ["EnvError", "EnvSpec", "VecEnv", "env_problems", "make_env"]


def make_env(spec: EnvSpec, num_envs: int | None = None, render_mode: str | None = None, gamma: float = 0.99) -> VecEnv:
    """The vector of worlds that `spec` describes, wrappers around it.

    `num_envs` instead of the spec's (evaluation wants its own); `gamma` is the agent's discount, for normalize_reward.
    Raises `EnvError` for what `env_problems` would have told.
    """
    if spec.name == OFFLINE:
        return DatasetEnv(Dataset(str(spec.dataset)), num_envs)
    return wrap(bare_env(spec, num_envs or spec.num_envs, render_mode), spec, gamma)


def wrap(env: VecEnv, spec: EnvSpec, gamma: float = 0.99) -> VecEnv:
    """`env` in the wrappers that `spec` asks for."""
    for key, value in wanted(spec).items():
        env = WRAPPERS[key](env, value, gamma)
    return env


def offline_env(spec: EnvSpec, gamma: float = 0.99) -> DatasetEnv:
    """The worlds of the file in `env.dataset`, with the goals of the world that `spec` names."""
    world = make_env(spec, num_envs=1, gamma=gamma)
    if world.goals is None:  # else they are asked of that world
        world.close()
    return DatasetEnv(Dataset(str(spec.dataset)), goals=world.goals)


def env_problems(spec: EnvSpec) -> list[Problem]:
    """Everything wrong with `spec` that can be known without playing; builds one world, reads a dataset whole."""
    if spec.name == OFFLINE:
        return dataset_problems(spec, None)
    try:
        problems = _unknown_keys(spec)
        env = None if problems else bare_env(spec, 1)
    except EnvError as error:
        return [Problem(error.path, error.message)]
    if env is None:
        return problems
    for key, value in wanted(spec).items():
        try:
            env = WRAPPERS[key](env, value, 0.99)
        except EnvError as error:
            problems.append(Problem(error.path, error.message))
    if spec.dataset is not None:
        problems += dataset_problems(spec, env)
    env.close()
    return problems


def _unknown_keys(spec: EnvSpec) -> list[Problem]:
    known = multi_parameters(spec) if spec.name.startswith(PREFIX) else parameters(spec)
    if known is None:
        return []
    ours = set(EnvSpec.model_fields)
    unknown = [key for key in spec.model_extra or {} if key not in known]
    takes = f"unknown key. {spec.name} takes {', '.join(sorted(known)) or 'no keys'}."
    return [Problem(f"env.{key}", f"{takes}{_nearest(key, known | ours)}") for key in unknown]


def _nearest(key: str, known: set[str]) -> str:
    near = did_you_mean(key, known)
    return near if near.startswith(" Did") else ""


def bare_env(spec: EnvSpec, num_envs: int, render_mode: str | None = None) -> VecEnv:
    """The worlds without wrappers. Raises `EnvError`."""
    arguments: dict[str, Any] = dict(spec.model_extra or {})
    try:
        if spec.name.startswith(PREFIX):
            return multi_vec(spec, num_envs, arguments | ({"render_mode": render_mode} if render_mode else {}))
        # The native face draws nothing; the same episodes can be watched through the other one.
        if spec.name in TASK and spec.vectorization != "sync" and render_mode is None:
            return VecTask(TASK.load(spec.name)(**copy.deepcopy(arguments)), num_envs, spec.max_t)
        return _gym_env(spec, num_envs, arguments | ({"render_mode": render_mode} if render_mode else {}))
    except Exception as error:
        raise cannot_build(spec, error) from error


def _gym_env(spec: EnvSpec, num_envs: int, arguments: dict[str, Any]) -> VecEnv:
    entry = find(gym_id(spec))
    if spec.max_t is not None:
        arguments["max_episode_steps"] = spec.max_t
    if spec.vectorization == "sync" and entry.entry_point is None:
        raise EnvError(f"{spec.name} is only a vector of its own: 'native' or 'auto' was expected", "vectorization")

    def own() -> dict[str, Any]:  # a list that worlds shared, one could change for all
        return copy.deepcopy(arguments)

    if entry.entry_point is not None and (spec.vectorization != "native" or spec.name in TASK):
        return sync_vec(spec.name, lambda: gymnasium.make(entry.id, **own()), num_envs)
    vec = native_vec(
        spec.name,
        lambda count: gymnasium.make_vec(entry.id, count, vectorization_mode="vector_entry_point", **own()),
        num_envs,
    )
    vec.max_length = spec.max_t or vec.max_length  # its own spec goes on telling the registered limit
    return vec
