"""The `search` section of a spec: which keys vary, over what, and the spec that a point of that space makes.

A key is written `path.to.key__distribution`, nested or dotted, and may be any key of the spec: a part's `name`, a whole
mapping (its keys are set together), a `vars.x` that stands in several places.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from slm_lab.lib.errors import Problem, did_you_mean
from slm_lab.spec.explain import number_hint, show
from slm_lab.spec.load import PARTS, drop_foreign_keys, get_at, of_another, set_at

LISTED = ("choice", "grid_search")  # their arguments are the values; of the others they are bounds, and a step
BOUNDS = {  # name: (arguments, whole numbers, logarithmic)
    "uniform": (2, False, False),
    "quniform": (3, False, False),
    "loguniform": (2, False, True),
    "randint": (2, True, False),
    "qrandint": (3, True, False),
    "lograndint": (2, True, True),
}
DISTRIBUTIONS = (*LISTED, *BOUNDS)
Point = dict[str, Any]  # a value for each variable, by its path


@dataclass(frozen=True)
class Variable:
    """A key that varies. The names and arguments of distributions are those of `ray.tune`."""

    path: str
    distribution: str
    args: tuple[Any, ...]  # the values of choice and grid_search; else low, high and perhaps a step

    @property
    def listed(self) -> bool:
        return self.distribution in LISTED

    @property
    def log(self) -> bool:
        """Whether it varies by factors."""
        return not self.listed and BOUNDS[self.distribution][2]

    def samples(self) -> tuple[Any, ...]:
        """Each value of a list; of a range the least and largest drawn and, where not of whole numbers, one between."""
        if self.listed:
            return self.args
        low, high, *step = self.args
        if step:  # the last one may end below `high`
            high = min(high, low + step[0] * math.floor((high - low) / step[0] + 1e-9))
        if BOUNDS[self.distribution][1]:
            return (low, high - 1) if self.distribution in ("randint", "lograndint") else (low, high)
        return (low, high, low + (step[0] if step else min(0.5, (high - low) / 2)))


def read_space(section: Mapping[str, Any]) -> tuple[list[Variable], list[Problem]]:
    """The variables of a `search` section, and what is wrong with it."""
    variables: dict[str, Variable] = {}
    problems = []
    for key, args in _leaves(section, ""):
        where = f"search.{key}"
        path, mark, distribution = key.rpartition("__")
        if not mark:
            problems.append(
                Problem(where, f"no distribution: write {key}__choice, or another of {', '.join(DISTRIBUTIONS)}")
            )
        elif distribution not in DISTRIBUTIONS:
            problems.append(
                Problem(where, f"unknown distribution '{distribution}'.{did_you_mean(distribution, DISTRIBUTIONS)}")
            )
        elif fault := _values_fault(args) if distribution in LISTED else _bounds_fault(args, *BOUNDS[distribution]):
            problems.append(Problem(where, fault))
        elif path in variables:
            problems.append(Problem(where, f"{path} varies already, by {variables[path].distribution}: give it once"))
        else:
            whole = distribution in BOUNDS and BOUNDS[distribution][1]
            variables[path] = Variable(path, distribution, tuple(map(int, args) if whole else args))
    return list(variables.values()), [*problems, *_overlaps(list(variables.values()))]


def _overlaps(variables: list[Variable]) -> Iterator[Problem]:
    """Keys that one variable sets, and that another one sets as part of a whole mapping."""
    for inner, outer in itertools.permutations(variables, 2):
        if inner.path.startswith(f"{outer.path}.") and any(
            path == inner.path or path.startswith(f"{inner.path}.")
            for value in outer.args
            for path, _ in flat(outer.path, value)
        ):
            where = f"search.{inner.path}__{inner.distribution}"
            yield Problem(where, f"{outer.path} varies with a value of this key in it: give it once")


def grid(variables: list[Variable], everything: bool) -> list[Point]:
    """The points of the grid, in order: over the grid_search keys, or over `everything` that is listed."""
    axes = [v for v in variables if v.distribution == "grid_search" or (everything and v.listed)]
    return [dict(zip([v.path for v in axes], values, strict=True)) for values in itertools.product(*_args(axes))]


def make_raw(raw: Mapping[str, Any], point: Point) -> tuple[dict[str, Any], list[str]]:
    """The raw spec at a point, without its search section, and the variables that have no place in it.

    Keys of the point that its parts lack, though others have them, go (GRU has a hidden_size, none has not); so do the
    old part's keys where the point names another. Raises `LabError` where a value can't be set.
    """
    spec = {key: copy.deepcopy(value) for key, value in raw.items() if key != "search"}
    leaves = [leaf for path, value in point.items() for leaf in flat(path, value)]
    for path, value in leaves:
        set_at(spec, path.split("."), copy.deepcopy(value))
    gone = {path: place for path, _ in leaves if (place := _foreign_place(spec, path))}
    for part, key in gone.values():
        get_at(spec, part).pop(key, None)
    for path, name in leaves:
        part = path.removesuffix(".name")
        if part != path and get_at(spec, path) == name:
            drop_foreign_keys(spec, part.split("."), name)
    return spec, [path for path in point if path in gone]


def _foreign_place(spec: dict[str, Any], path: str) -> tuple[str, str] | None:
    """The outermost part that a path lies in which lacks the key that it goes on with, though another one that might
    stand there has it, and that key. Typos stay, and are told.
    """
    for part in sorted((part for part in PARTS if path.startswith(f"{part}.")), key=len):
        key = path.removeprefix(f"{part}.").split(".")[0]
        registry, name = PARTS[part], get_at(spec, f"{part}.name")
        if name in registry and of_another(registry, name, key):
            return part, key
    return None


def flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A mapping as the keys that it sets, anything else as it is."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from flat(f"{path}.{key}", child)
    else:
        yield path, value


def labels(variables: list[Variable]) -> dict[str, str]:
    """A short name for each variable: as much of the end of its path as tells it from the others."""
    paths = [variable.path for variable in variables]
    found = {}
    for path in paths:
        keys = path.split(".")
        ends = [".".join(keys[-n:]) for n in range(1, len(keys) + 1)]
        first = 1 if keys[-1] == "name" and len(keys) > 1 else 0  # core.name says more than name
        found[path] = next(e for e in ends[first:] if sum(f".{p}".endswith(f".{e}") for p in paths) == 1 or e == path)
    return found


def label(value: Any) -> str:
    """A value in a few letters: a mapping by the names in it."""
    if not isinstance(value, dict) or not value:
        return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    leaves = list(flat("", value))
    names = [str(v) for path, v in leaves if path.endswith(".name")]
    return " + ".join(names or [f"{path.split('.')[-1]} {label(v)}" for path, v in leaves])


def encode(value: Any) -> str:
    """A listed value as text, the same for equal values; `json.loads` gives it back."""
    return json.dumps(value, sort_keys=True)


# --- reading ---


def _leaves(section: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of what isn't a mapping; below a distribution nothing is nested."""
    for key, value in section.items():
        path = f"{above}{key}"
        if isinstance(value, dict) and "__" not in str(key):
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value


def _values_fault(args: Any) -> str:
    if not isinstance(args, list) or not args:
        return f"{show(args)} has no values (expected: list of at least one)"
    known = [encode(value) for value in args]
    twice = [value for value in args if known.count(encode(value)) > 1]
    return f"{show(twice[0])} is there twice (expected: each value once)" if twice else ""


def _bounds_fault(args: Any, count: int, whole: bool, log: bool) -> str:
    """What is wrong with `[low, high]` or `[low, high, step]`; '' if nothing is."""
    shape = "[low, high, step]" if count == 3 else "[low, high]"
    kind = "whole numbers" if whole else "numbers"
    if not isinstance(args, list) or len(args) != count:
        return f"{show(args)} is no range (expected: {shape}, {kind})"
    fits: Callable[[Any], bool] = _is_whole if whole else _is_number
    wrong = [value for value in args if not fits(value)]
    if wrong:
        cure = f" {number_hint(wrong[0])}" if isinstance(wrong[0], str) and _reads_as_number(wrong[0]) else ""
        return f"{show(wrong[0])} isn't {'a whole number' if whole else 'a number'} (expected: {shape}, {kind}).{cure}"
    low, high = args[:2]
    if low >= high:
        return f"the range from {low} to {high} is empty (expected: low < high)"
    if log and low <= 0:
        return f"a logarithmic range can't begin at {low} (expected: low > 0)"
    if count == 3 and not 0 < args[2] <= high - low:
        return f"the step {args[2]} doesn't fit between {low} and {high} (expected: from 0 to {high - low:g})"
    return ""


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**63


def _is_whole(value: Any) -> bool:
    return _is_number(value) and abs(value) <= 2**63 and value == int(value)


def _reads_as_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _args(variables: list[Variable]) -> list[tuple[Any, ...]]:
    return [variable.args for variable in variables]
