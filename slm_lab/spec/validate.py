"""From a raw spec to a `LabSpec`, or to every one of its problems at once."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from slm_lab.lib.errors import LabError, Problem, SpecError, did_you_mean
from slm_lab.lib.registry import Registry
from slm_lab.spec.dialect import translate
from slm_lab.spec.distributed import distributed_problems
from slm_lab.spec.explain import check, show
from slm_lab.spec.lab_spec import ENV, AgentSpec, LabSpec, MetaSpec, Room
from slm_lab.spec.parts import ALGORITHM, AUXILIARY, CORE, INNER, MEMORY, NET
from slm_lab.spec.space import read_space
from slm_lab.spec.variables import substitute

SECTIONS = {"agent": True, "env": True, "meta": False, "search": False, "vars": False}  # section: must be there
LEARNERS = ("shared", "independent")
FAMILIES = {"algorithm": ALGORITHM, "memory": MEMORY, "net": NET}
MAX_NAME = 100
NAME_BYTES = 150  # of the 255 that file names may have; a graph's adds up to 65 of its own
DATA = Path("data")  # where runs are kept, unless one says otherwise
ROOM = Room()  # for a trial
_NAME = re.compile(r"\w(?:[\w .+=-]*[\w.+=-])?")
DEFAULT_NET = {"name": "MLP"}  # for agents that need none, as Random; SLM-Lab writes "net": {}


class Findings:
    """The problems so far, each in the user's own path; the first one at a place is the one that counts."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.renamed: Mapping[str, str] = {}

    def add(self, problems: Iterable[Problem]) -> None:
        """Note the problems that no earlier stage has explained, at their path or above it."""
        known = [problem.path for problem in self.problems]
        for problem in problems:
            path = self._user_path(problem.path)
            if not any(path == above or path.startswith(f"{above}.") for above in known):
                self.problems.append(Problem(path, problem.message))

    def _user_path(self, path: str) -> str:
        for ours, theirs in self.renamed.items():
            if path == ours or path.startswith(f"{ours}."):
                return theirs + path[len(ours) :]
        return path


def resolve(
    raw: Mapping[str, Any], name: str = "spec", check_env: bool = True, data: Path = DATA, room: Room = ROOM
) -> LabSpec:
    """The spec validated by its parts and against each other; raises `SpecError` with all that is wrong.

    `check_env=False` builds no env: nothing that depends on its spaces is checked. `data`: where its run will be kept,
    `room`: for how many sessions at once.
    """
    found = Findings()
    found.add(_name_problems(name))
    found.add(_shape_problems(raw))
    if not isinstance(raw, Mapping):
        raise SpecError(found.problems, _title(name))
    filled, problems = substitute(raw)
    found.add(problems)
    translation = translate(filled)
    found.renamed = translation.renamed
    found.add(translation.problems)

    sections = {section: _mapping(translation.spec.get(section)) for section in SECTIONS}
    agent, classes = _agent(sections["agent"], found)
    env, problems = check(ENV.load("EnvSpec"), sections["env"], "env")
    found.add(problems)
    meta, problems = check(MetaSpec, sections["meta"], "meta")
    found.add(problems)
    search = translation.spec.get("search")
    found.add(read_space(_mapping(search))[1])
    found.add(_fit_problems(classes))
    if check_env and env is not None:  # the world is looked at even where other parts are wrong: all errors at once
        found.add(ENV.load("env_problems")(env))
    _finish(found, name)

    assert env is not None and meta is not None  # else they had problems
    meta = meta.filled(env.max_frame)
    spec = LabSpec(name, agent, env, meta, search, tuple(translation.notes), data, room)
    if check_env:
        problems, notes = _said_by_parts(spec, classes)
        found.add(problems)
        spec = dataclasses.replace(spec, notes=(*spec.notes, *notes))
    _finish(found, name)
    return spec


def _title(name: str) -> str:
    return f"spec '{name}' can't be run"


def _finish(found: Findings, name: str) -> None:
    if found.problems:
        raise SpecError(found.problems, _title(name))


def _mapping(value: Any) -> dict[str, Any]:
    """A section that can be read on; what is wrong with another is already told."""
    return value if isinstance(value, dict) else {}


def _name_problems(name: str) -> list[Problem]:
    """A run's folder and files are called after its spec, so the name must be fit for that."""
    if isinstance(name, str) and len(name) <= MAX_NAME and _NAME.fullmatch(name) and len(name.encode()) <= NAME_BYTES:
        return []
    return [
        Problem(
            "",
            f"its name is also that of the run's folder (expected: at most {MAX_NAME} letters, digits, spaces and "
            f"_ - . + =, the first a letter, digit or _; in UTF-8 at most {NAME_BYTES} bytes)",
        )
    ]


def _shape_problems(raw: Any) -> list[Problem]:
    """Sections that are missing, unknown, or no mappings."""
    if not isinstance(raw, Mapping):
        return [Problem("", f"{show(raw)} is no spec (expected: mapping with {', '.join(SECTIONS)})")]
    problems = []
    for key in [key for key in raw if key not in SECTIONS]:
        inside = key in FAMILIES or key == "auxiliary"
        cure = f" It belongs under agent: agent.{key}" if inside else did_you_mean(str(key), SECTIONS)
        problems.append(Problem(str(key), f"unknown section.{cure}"))
        if inside and key not in _mapping(raw.get("agent")):
            problems.append(Problem(f"agent.{key}", f"missing: {key} stands beside agent"))
    for section, needed in SECTIONS.items():
        if section not in raw and needed:
            problems.append(Problem(section, "missing section (expected: mapping)"))
        elif section in raw and not isinstance(raw[section], dict):
            problems.append(Problem(section, f"{show(raw[section])} is no section (expected: mapping)"))
    return problems


# --- the parts of the agent ---


def _agent(raw: Mapping[str, Any], found: Findings) -> tuple[AgentSpec, dict[str, Any]]:
    """The agent's validated parts and their classes by path; those that fail are None, and told in `found`."""
    options = ["name", "learners", *FAMILIES, "auxiliary"]
    unknown = [key for key in raw if key not in options]
    found.add(Problem(f"agent.{key}", f"unknown key.{did_you_mean(str(key), options)}") for key in unknown)
    parts: dict[str, Any] = {}
    classes: dict[str, Any] = {}
    for family, registry in FAMILIES.items():
        value = DEFAULT_NET if family == "net" and raw.get("net") in (None, {}) else raw.get(family)
        classes[f"agent.{family}"], parts[family] = _part(registry, value, f"agent.{family}", found)
    for family, key in (("net", "core"), ("memory", "entry")):
        field = classes[f"agent.{family}"] and classes[f"agent.{family}"].Spec.model_fields.get(key)
        if field:  # any, to the part around it: which it is and what keys that has is known here only
            value = _mapping(raw.get(family)).get(key, field.get_default(call_default_factory=True))
            classes[f"agent.{family}.{key}"], inner = _part(INNER[key], value, f"agent.{family}.{key}", found)
            if inner and parts[family]:
                parts[family] = parts[family].model_copy(update={key: inner.model_dump(mode="json")})
    name = raw.get("name", getattr(parts["algorithm"], "name", ""))
    if not isinstance(name, str):
        found.add([Problem("agent.name", f"{show(name)} is no name (expected: text)")])
    learners = raw.get("learners", "shared")
    if learners not in LEARNERS:
        found.add([Problem("agent.learners", f"unknown learners {show(learners)} (expected: {' | '.join(LEARNERS)})")])
    auxiliary = _auxiliary(raw.get("auxiliary", []), classes, found)
    return AgentSpec(str(name), **parts, learners=learners, auxiliary=auxiliary), classes


def _auxiliary(raw: Any, classes: dict[str, Any], found: Findings) -> tuple[Any, ...]:
    """The Specs of what is learned beside, each once; their classes go into `classes`."""
    if not isinstance(raw, list):
        found.add([Problem("agent.auxiliary", f"{show(raw)} is no list (expected: list of mappings with name)")])
        return ()
    specs: list[Any] = []
    for i, value in enumerate(raw):
        path = f"agent.auxiliary.{i}"
        classes[path], spec = _part(AUXILIARY, value, path, found)
        if spec and spec.name in [other.name for other in specs if other]:
            found.add([Problem(f"{path}.name", f"{spec.name} is there already (expected: each once)")])
        specs.append(spec)
    return tuple(specs)


def _part(registry: Registry, raw: Any, path: str, found: Findings) -> tuple[Any, Any]:
    """The class that `raw["name"]` names and its validated Spec; None and None where that can't be."""
    if not isinstance(raw, dict):
        what = "missing" if raw is None else f"{show(raw)} is no mapping"
        cure = f"write {{name: {raw}}}" if isinstance(raw, str) and raw in registry else ""
        expected = f"(expected: mapping with name: {' | '.join(registry)})"
        found.add([Problem(path, f"{what}: {cure}" if cure else f"{what} {expected}")])
        return None, None
    try:
        if "name" not in raw:
            raise LabError(f"missing (expected: {' | '.join(registry)})")
        cls = registry.load(raw["name"])
    except LabError as error:
        found.add([Problem(f"{path}.name", str(error))])
        return None, None
    spec, problems = check(cls.Spec, raw, path)
    found.add(problems)
    return cls, spec


# --- do they fit each other ---


def summary(cls: Any) -> str:
    """First line of a part's docstring."""
    return (inspect.getdoc(cls) or "").split("\n")[0]


def _fit_problems(classes: Mapping[str, Any]) -> list[Problem]:
    """The memory must forget what older policies did where the algorithm is on-policy, and keep carries for a core."""
    algorithm, memory, core = (classes.get(f"agent.{part}") for part in ("algorithm", "memory", "net.core"))
    if any(path.startswith("agent.auxiliary.") for path in classes) and not getattr(algorithm, "learns", True):
        return [Problem("agent.auxiliary", f"{algorithm.__name__} learns nothing, so nothing beside it. Use []")]  # type: ignore[union-attr]
    wanted = getattr(algorithm, "on_policy", None)
    given = getattr(memory, "on_policy", None)
    if wanted is None or given is None:
        return []
    if wanted != given:
        kind = "on-policy" if wanted else "off-policy"
        why = f"{algorithm.__name__} learns {kind} and needs an {kind} memory"  # type: ignore[union-attr]
        return [_misfit(memory, why, on_policy=wanted)]
    if core is None or core is CORE.load("none") or getattr(memory, "keeps_carry", True):
        return []
    why = f"the core {core.__name__} needs a memory that keeps the carry it acted with"
    return [_misfit(memory, why, on_policy=wanted, keeps_carry=True)]


def _misfit(memory: Any, why: str, **wanted: bool) -> Problem:
    """`wanted`: what must hold of the memories that fit."""
    fitting = [
        name for name, cls in MEMORY.classes().items() if all(getattr(cls, key, None) == x for key, x in wanted.items())
    ]
    cure = f"use {' or '.join(fitting)}" if fitting else "there is none yet"
    return Problem("agent.memory.name", f"{memory.__name__} doesn't fit: {why}: {cure}")


def _said_by_parts(spec: LabSpec, classes: Mapping[str, Any]) -> tuple[list[Problem], list[str]]:
    """What the parts say of the world they are to live in (optional `problems` and `notes` of their class)."""
    problems: list[Problem] = []
    notes: list[str] = []
    try:
        env = ENV.load("make_env")(spec.env, num_envs=1)
    except LabError as error:
        return [Problem("env", str(error))], []
    if spec.agent.learners == "independent" and not env.world.agents:
        message = f"{spec.env.name} has one agent: 'shared' was expected, or a world of several ('pettingzoo:module')"
        problems.append(Problem("agent.learners", message))
    problems += distributed_problems(spec, env.world)
    for cls in classes.values():
        if hasattr(cls, "problems"):
            problems += cls.problems(spec, env.world)
        if hasattr(cls, "notes"):
            notes += cls.notes(spec, env.world)
    if hasattr(env, "close"):
        env.close()
    return problems, notes
