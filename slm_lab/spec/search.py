"""What must hold of a spec before its search begins: beyond `resolve`, which reads the section alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from slm_lab.lib.errors import LabError, Problem, SpecError
from slm_lab.spec.lab_spec import LabSpec
from slm_lab.spec.load import PARTS, get_at
from slm_lab.spec.space import Point, Variable, flat, grid, make_raw, read_space
from slm_lab.spec.validate import resolve
from slm_lab.spec.variables import reads

TRIALS = 16  # of a search that has no grid and doesn't say
OF_THE_SEARCH = [
    f"meta.{key}"
    for key in (
        "max_trial", "max_session", "metric", "mode", "search_alg", "search_resources", "search_scheduler", "max_retry",
        "keep_trials",
    )
]  # fmt: skip


def searched(raw: Mapping[str, Any], spec: LabSpec) -> list[Variable]:
    """What varies in a spec that was written as `raw`. A `${...}` in a list of values is each trial's to fill in."""
    written = {variable.path: variable for variable in read_space(raw.get("search") or {})[0] if variable.listed}
    return [written.get(variable.path, variable) for variable in read_space(spec.search or {})[0]]


def check_search(raw: Mapping[str, Any], spec: LabSpec) -> list[Variable]:
    """The variables of a valid spec's search. Raises `SpecError` with all that can't be searched.

    Each value is tried alone, with every part that the search may put around it; one that is wrong in each of them is
    refused here. What is wrong only in combination is for its trial to tell.
    """
    variables = searched(raw, spec)
    problems = [*_meta_problems(spec, variables)]
    if not variables:
        problems.append(
            Problem("search", "nothing to search. Name a key: agent.algorithm.gamma__uniform: [0.9, 0.999]")
        )
    around = _around(raw, variables)
    for variable in variables:
        if variable.path.startswith("vars.") and not reads(raw, variable.path[5:]):
            where = f"search.{variable.path}__{variable.distribution}"
            problems.append(Problem(where, f"the spec has no ${{{variable.path[5:]}}}, so this would change nothing"))
        else:
            problems += _value_problems(raw, variable, [*around, *_beside(variable, variables)])
    if problems:
        raise SpecError(problems, f"spec '{spec.name}' can't be searched")
    return variables


def trial_count(spec: LabSpec, variables: list[Variable]) -> int:
    """How many trials: meta.max_trial, else the whole grid, else 16."""
    points = grid_points(spec, variables)
    return spec.meta.max_trial or (len(points) if points else TRIALS)


def grid_points(spec: LabSpec, variables: list[Variable]) -> list[Point]:
    """The points that are tried in order; [] where there is no grid."""
    everything = spec.meta.search_alg == "grid"
    gridded = everything or any(variable.distribution == "grid_search" for variable in variables)
    return grid(variables, everything) if gridded else []


def _meta_problems(spec: LabSpec, variables: list[Variable]) -> Iterable[Problem]:
    meta = spec.meta
    sets = [path for variable in variables for path in _sets(variable)]
    if meta.distributed or any(_overlap(path, "meta.distributed") for path in sets):
        message = "a search plays its trials side by side, and has no cores for their rollout workers. Use false"
        yield Problem("meta.distributed", message)
    if spec.env.dataset is not None or "env.dataset" in sets:
        message = "trials are compared by returns in training, and a file that is learned from gives none. Use null"
        yield Problem("env.dataset", f"{message}, or mode train for each point: --set KEY=VALUE")
    if meta.metric == "consistency" and (meta.max_session == 1 or meta.search_scheduler):
        message = "consistency compares the sessions of a trial, and there is one. Use max_session 2 or more"
        yield Problem("meta.metric", f"{message}, or another metric")
    rungs = meta.search_scheduler
    if rungs and rungs.grace_period < min(meta.log_frequency, spec.env.max_frame):
        message = (
            f"{rungs.name} judges by the rows of the metrics, and the first comes at {meta.log_frequency:,} frames"
        )
        yield Problem(
            "meta.search_scheduler.grace_period",
            f"{rungs.grace_period:,}: {message} (meta.log_frequency). Use at least as many, or rows more often",
        )
    for variable in variables:
        where = f"search.{variable.path}__{variable.distribution}"
        for key in OF_THE_SEARCH:
            if any(_overlap(path, key) for path in _sets(variable)):
                yield Problem(where, f"{key} is of the search as a whole: no trial can have its own")
        if meta.search_alg == "grid" and not variable.listed:
            yield Problem(
                where, "a grid has no points on a range (expected: choice or grid_search). Or use search_alg 'optuna'"
            )


def _sets(variable: Variable) -> list[str]:
    """The keys that it gives values to."""
    values = variable.args if variable.listed else (0,)
    return list(dict.fromkeys(path for value in values for path, _ in flat(variable.path, value)))


def _overlap(path: str, key: str) -> bool:
    return path == key or path.startswith(f"{key}.") or key.startswith(f"{path}.")


def _around(raw: Mapping[str, Any], variables: list[Variable]) -> list[Point]:
    """The spec as it is, and each sound way in which one variable changes its parts."""
    points: list[Point] = [{}]
    for variable in variables:
        swaps = [value for value in variable.args if variable.listed and _swaps(variable.path, value)]
        points += [{variable.path: v} for v in swaps if not _problems_at(raw, {variable.path: v}, variable.path)]
    return points


def _beside(variable: Variable, variables: list[Variable]) -> list[Point]:
    """What else is searched in the same mapping, value by value: a start may fit only an end that is searched too. A
    variable may stand beside anything.
    """
    above = variable.path.rpartition(".")[0]
    others = [v for v in variables if v is not variable and (_is_var(variable) or v.path.rpartition(".")[0] == above)]
    return [{other.path: value} for other in others for value in other.samples()]


def _is_var(variable: Variable) -> bool:
    return variable.path.split(".")[0] == "vars"


def _swaps(path: str, value: Any) -> bool:
    return isinstance(value, dict) or path.endswith(".name") or path.startswith("vars.")


def _value_problems(raw: Mapping[str, Any], variable: Variable, around: list[Point]) -> list[Problem]:
    """Of each value that is wrong everywhere, what is wrong with it."""
    found: list[Problem] = []
    for value in variable.samples():
        tried: list[list[Problem]] = []
        for point in around:
            tried.append(_problems_at(raw, {**point, variable.path: value}, variable.path))
            if not tried[-1]:  # it is sound there
                break
        own = [problems for problems in tried if any(p.path == variable.path for p in problems)]
        found += (own or tried)[0] if all(tried) else []
    return list(dict.fromkeys(found))


def _problems_at(raw: Mapping[str, Any], point: Point, path: str) -> list[Problem]:
    """What is wrong near the path when the spec is at that point."""
    try:
        spec, _ = make_raw(raw, {key: value for key, value in point.items() if key != path})
        spec, lost = make_raw(spec, {path: point[path]})
        if lost:
            return [Problem(path, f"{get_at(spec, path.rpartition('.')[0])['name']} has no such key")]
        resolve(spec, check_env=path.split(".")[0] == "env")  # only the world knows what its own keys may be
    except SpecError as error:
        fair = [p for p in error.problems if not _is_misfit(spec, p.path)]
        return fair if path.split(".")[0] == "vars" else [p for p in fair if _near(p.path, path)]
    except LabError as error:
        return [Problem(f"search.{path}", str(error))]
    return []


def _near(problem: str, path: str) -> bool:
    """Whether a problem is at the path, above or below it; or that the part which it is a key of has no name."""
    part = path.rpartition(".")[0]
    return problem in (path, f"{part}.name") or problem.startswith(f"{path}.") or path.startswith(f"{problem}.")


def _is_misfit(spec: dict[str, Any], path: str) -> bool:
    """Whether there is such a part, and it only doesn't go with the others."""
    part = path.removesuffix(".name")
    return part != path and get_at(spec, path) in PARTS.get(part, ())
