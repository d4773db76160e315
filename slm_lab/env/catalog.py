"""Finding an env by its name, and saying what to do when it isn't there."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec as GymSpec

import slm_lab.env.tasks  # noqa: F401  registers our tasks with Gymnasium
from slm_lab.env.base import EnvError
from slm_lab.env.spec import EnvSpec
from slm_lab.lib import registry
from slm_lab.lib.errors import LabError, did_you_mean
from slm_lab.lib.registry import PYPI_NAMES
from slm_lab.spec.parts import TASK

# Packages that have to be imported before their ids exist: {how the id begins: (module, what to install)}.
PACKAGES = {
    "ALE/": ("ale_py", '"gymnasium[atari]"'),
    "MiniGrid-": ("minigrid", "minigrid"),
    "BabyAI-": ("minigrid", "minigrid"),
    "popgym-": ("popgym", "popgym"),
}


def gym_id(spec: EnvSpec) -> str:
    """What Gymnasium calls the env of `spec`."""
    return f"slm_lab/{spec.name}-v0" if spec.name in TASK else spec.name


def find(name: str) -> GymSpec:
    """Gymnasium's entry for `name`. Raises `EnvError` saying what to install, or the nearest name."""
    module, _, plain = name.rpartition(":")
    for start, (package, install) in PACKAGES.items():
        if plain.startswith(start):
            imported(package, install)
    if module:
        imported(module)
    if plain not in gymnasium.registry:
        near = did_you_mean(plain, [*gymnasium.registry, *TASK])
        all_ids = (
            ' All ids: python -c "import gymnasium; gymnasium.pprint_registry()"; ours: python run_lab.py list task'
        )
        hint = near if near.startswith(" Did") else all_ids
        own = "" if module else f" One of your own: module:{name}."
        raise EnvError(f"unknown env {name!r}.{own}{hint}", "name")
    return gymnasium.registry[plain]


def imported(module: str, install: str = "") -> ModuleType:
    """The module of that name. Raises `EnvError` saying why it can't be imported, and what to install."""
    try:
        return registry.imported(module, install)
    except LabError as error:
        raise EnvError(str(error), "name") from error


def parameters(spec: EnvSpec) -> set[str] | None:
    """What the env's constructor takes by name; None where it takes anything. Raises `EnvError` as `find` does."""
    if spec.name in TASK:
        return set(inspect.signature(TASK.load(spec.name)).parameters)
    entry = find(spec.name)
    if spec.vectorization == "native" and entry.vector_entry_point is None:
        raise EnvError(f"{spec.name} has no vector of its own: 'sync' or 'auto' was expected", "vectorization")
    native = spec.vectorization == "native" or entry.entry_point is None
    creator: Any = entry.vector_entry_point if native else entry.entry_point
    try:
        if isinstance(creator, str):
            creator = gymnasium.envs.registration.load_env_creator(creator)
        taken = inspect.signature(creator).parameters
    except Exception as error:
        raise cannot_build(spec, error) from error
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
        return None
    return set(taken) - {"render_mode", "num_envs"}


def cannot_build(spec: EnvSpec, error: Exception) -> EnvError:
    """What an exception from an env's module or constructor means to the user."""
    if isinstance(error, EnvError):
        return error
    if isinstance(error, gymnasium.error.DependencyNotInstalled):
        told = " && ".join(re.findall(r"pip install [^`]*", str(error)))
        cure = f"Type: {told}" if told else f"Its own words: {error}"
        return EnvError(f"{spec.name} needs a package that isn't installed. {cure}", "name")
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.split(".")[0]
        command = f"pip install {PYPI_NAMES.get(package, package)}"
        return EnvError(f"{spec.name} needs the package {package!r}, which isn't installed. Type: {command}", "name")
    given = f" with {spec.model_extra}" if spec.model_extra else ""
    return EnvError(f"{spec.name} can't be built{given}: {type(error).__name__}: {error}")
