"""SLM-Lab v5's dialect: its keys become ours, or are refused with what has no counterpart and what to use instead.

Every rule is a row of `RULES`. A spec of our own meets none of them and passes unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

from slm_lab.lib.errors import Problem
from slm_lab.spec.dialect_rules import (
    ALG,
    ANY,
    DEFAULTS,
    GIVEN,
    HOGWILD,
    MEM,
    NET,
    OFF_POLICY,
    OPTIMS,
    POLYAK,
    RULES,
    SAC,
    SLM,
    TORCH_LR,
    WITH_TARGET,
    From,
    Rule,
)
from slm_lab.spec.explain import show
from slm_lab.spec.load import get_at

_ABSENT = object()


class Translation(NamedTuple):
    """A spec in our words. `renamed` goes from our path to the user's, for errors that come later."""

    spec: dict[str, Any]
    notes: list[str]
    problems: list[Problem]
    renamed: dict[str, str]


def translate(raw: Mapping[str, Any]) -> Translation:
    """The spec with SLM-Lab's words turned into ours; `raw` stays as it is."""
    out = Translation(copy.deepcopy(dict(raw)), [], [], {})
    for rule in RULES:
        value = _get(out.spec, rule.key)
        if value is not _ABSENT and _holds(rule.only, raw):
            _apply(rule, value, raw, out)
    for path, only, value in DEFAULTS:
        if _holds(only, raw) and _get(out.spec, path) is _ABSENT:
            _put(out.spec, path, _get(raw, value) if isinstance(value, From) else copy.copy(value))
    if _holds(SLM, raw):
        _rates(out.spec)
    if _holds(OFF_POLICY, raw):
        _pace(out, raw)
    if _holds(HOGWILD, raw):
        _crew(out)
    return out


def _rates(spec: dict[str, Any]) -> None:
    """Of optimisers without a learning rate, which is torch's there; one that isn't given is Adam."""
    given = {key: value for key in OPTIMS if isinstance(value := _get(spec, f"{NET}.{key}"), dict)}
    for key, optim in (given or {"optim_spec": {}}).items():
        name = optim.get("name", "Adam")
        if "lr" not in optim and name in TORCH_LR:
            _put(spec, f"{NET}.{key}.lr", TORCH_LR[name])


def _crew(out: Translation) -> None:
    """Hogwild's sessions, each with its own worlds and all with one net, are rollout workers of one session here."""
    spec, sessions, worlds = out.spec, *(_number(out.spec, key, 1) for key in ("meta.max_session", "env.num_envs"))
    ours = {"meta.distributed": {"workers": sessions}, "meta.max_session": 1, "env.num_envs": sessions * worlds}
    said, read = show(_get(spec, "meta.distributed")), ", ".join(f"{key} {show(value)}" for key, value in ours.items())
    why = "SLM-Lab's sessions are rollout workers of one learner, and frames are counted over all of them"
    out.notes.append(f"meta.distributed {said} is read as {read}: {why}")
    for key, value in ours.items():
        _put(spec, key, value)


def _pace(out: Translation, raw: Mapping[str, Any]) -> None:
    """SLM-Lab learns at most once per step of all envs, from however few rows; here all counts are of frames."""
    spec, envs = out.spec, max(_number(out.spec, "env.num_envs", 1), 1)
    frequency = max(_number(spec, f"{ALG}.training_frequency", 1), envs)
    _change(out, f"{ALG}.training_frequency", frequency, "SLM-Lab learns at most once per step of all envs")
    needed = max(_number(spec, f"{MEM}.batch_size", 0), _number(spec, f"{MEM}.sequence_length", 0) * envs)
    start = max(_number(spec, f"{ALG}.training_start_step", 1000), needed)
    _change(out, f"{ALG}.training_start_step", start, "fewer frames hold no batch; SLM-Lab draws the same rows again")
    if _holds(POLYAK, raw):
        _polyak_pace(out, envs, frequency, sac=_holds(SAC, raw))
    elif _holds(WITH_TARGET, raw):
        follow = max(_number(spec, f"{ALG}.update_frequency", 1), frequency)
        _change(out, f"{ALG}.update_frequency", follow, "the net changes no more often")


def _polyak_pace(out: Translation, envs: float, frequency: float, sac: bool) -> None:
    """SLM-Lab's target moves with each batch of SAC, as here but for several a frame; and with each step of DQN's envs.

    Moving n times by a share c towards a net that stands still is moving once by 1 - (1 - c)^n.
    """
    batches = max(_number(out.spec, f"{ALG}.training_iter", 1), 1)
    if sac and batches <= frequency:
        _put(out.spec, f"{ALG}.update_frequency", None)
        return
    share = _number(out.spec, f"{ALG}.polyak_coef", 0.005)
    _put(out.spec, f"{ALG}.update_frequency", 1 if sac else frequency)
    times = batches / frequency if sac else frequency / envs
    if times != 1 and 0 < share < 1:
        moved = round(1 - (1 - share) ** times, 6)
        _change(out, f"{ALG}.polyak_coef", moved, f"SLM-Lab's target moves {times:g} times as often")


def _holds(only: Mapping[str, Any], raw: Mapping[str, Any]) -> bool:
    return all(_match({value: True}, _get(raw, path)) is True for path, value in only.items())


def _apply(rule: Rule, value: Any, raw: Mapping[str, Any], out: Translation) -> None:
    said = f"{rule.key} {show(value)}"
    if (why := _match(rule.drop, value)) is not _ABSENT:
        _pop(out.spec, rule.key)
        out.notes.append(f"{said} is left out: {why}")
    elif (why := _match(rule.refuse, value)) is not _ABSENT:
        out.problems.append(Problem(rule.key, f"{show(value)}: {why}"))
        out.renamed[rule.to or rule.key] = rule.key  # what is now missing under our name is told here already
    elif rule.to and _get(raw, rule.to) is not _ABSENT:
        out.problems.append(Problem(rule.key, f"says the same as {rule.to}: give one of them"))
    elif rule.to or _match(rule.values, value) is not _ABSENT:
        ours = _match(rule.values, value)
        ours = value if ours is _ABSENT else ours
        target = rule.to or rule.key
        _pop(out.spec, rule.key)
        _put(out.spec, target, ours)
        out.renamed[target] = rule.key
        beside = _match(rule.also, value)
        added = {} if beside is _ABSENT else {k: v for k, v in beside.items() if _get(out.spec, k) is _ABSENT}
        for path, more in added.items():
            _put(out.spec, path, more)
            out.renamed[path] = rule.key
        out.notes.append(
            f"{said} is read as " + ", ".join(f"{k} {show(v)}" for k, v in {target: ours, **added}.items())
        )


def _number(spec: dict[str, Any], path: str, default: float) -> Any:
    """The number at a path, or the default; what is no number is told when its part is validated."""
    value = _get(spec, path)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default


def _change(out: Translation, path: str, ours: Any, why: str) -> None:
    given = _get(out.spec, path)
    if given is _ABSENT:
        _put(out.spec, path, ours)
    elif _number(out.spec, path, ours) != ours:
        _put(out.spec, path, ours)
        out.notes.append(f"{path} {show(given)} is read as {show(ours)}: {why}")


def _match(table: Mapping[Any, Any], value: Any) -> Any:
    """The row whose key fits the value."""
    return next((row for key, row in table.items() if _fits(key, value)), _ABSENT)


def _fits(key: Any, value: Any) -> bool:
    if value is _ABSENT:
        return False
    if key is ANY or key is GIVEN:
        return key is ANY or value is not None
    if isinstance(key, frozenset):
        return any(_fits(one, value) for one in key)
    return isinstance(key, bool) == isinstance(value, bool) and bool(key == value)  # 1 isn't True, but 1.0 is 1


# --- dotted paths in nested mappings ---


def _get(tree: Any, path: str) -> Any:
    return get_at(tree, path, _ABSENT)


def _pop(tree: Any, path: str) -> None:
    *parents, last = path.split(".")
    for key in parents:
        tree = tree[key]
    tree.pop(last, None)


def _put(tree: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[last] = value
