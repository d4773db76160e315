"""The search space and its trials in Optuna's terms: what draws the next point, and what says which key mattered."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from slm_lab.experiment.search.ledger import Ledger, Trial
from slm_lab.spec.space import Point, Variable, encode

if TYPE_CHECKING:
    from slm_lab.spec.lab_spec import MetaSpec

NAME = "search"
STATES = {"done": TrialState.COMPLETE, "pruned": TrialState.PRUNED}  # the others have failed
optuna.logging.set_verbosity(optuna.logging.WARNING)


def distributions(variables: list[Variable]) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each variable. Listed values are text there, since some are mappings and lists."""
    return {variable.path: _distribution(variable) for variable in variables}


def to_optuna(point: Point, variables: list[Variable]) -> dict[str, Any]:
    """A point, or a part of one, in Optuna's values."""
    return {v.path: encode(point[v.path]) if v.listed else point[v.path] for v in variables if v.path in point}


def from_optuna(params: dict[str, Any], variables: list[Variable]) -> Point:
    """The point of Optuna's values."""
    return {v.path: json.loads(params[v.path]) if v.listed else params[v.path] for v in variables}


def make_sampler(meta: MetaSpec, drawn: int) -> optuna.samplers.BaseSampler:
    """What draws points. A search that goes on must not draw the same again: `drawn` is how many there are."""
    seed = meta.seed + drawn
    return optuna.samplers.TPESampler(seed=seed) if meta.search_alg == "optuna" else optuna.samplers.RandomSampler(seed)


def make_study(
    ledger: Ledger, variables: list[Variable], meta: MetaSpec, sampler: optuna.samplers.BaseSampler | None = None
) -> tuple[optuna.Study, optuna.storages.BaseStorage]:
    """A study that knows the trials that have ended, and the storage it is in."""
    storage = optuna.storages.InMemoryStorage()
    direction: Literal["maximize", "minimize"] = "maximize" if meta.mode == "max" else "minimize"
    study = optuna.create_study(storage=storage, sampler=sampler, study_name=NAME, direction=direction)
    space = distributions(variables)
    for trial in ledger.with_status("done", "pruned", "failed", "invalid"):
        study.add_trial(_frozen(trial, variables, space, meta.metric))
    return study, storage


def importances(ledger: Ledger, variables: list[Variable], meta: MetaSpec) -> dict[str, float]:
    """How much of what tells the better half of the trials from all is each variable's (PED-ANOVA, Watanabe, 2023).

    They sum to 1; {} where there are too few trials to say.
    """
    study, _ = make_study(ledger, variables, meta)
    values = {trial.value for trial in study.trials if trial.state == TrialState.COMPLETE}
    if len(values) < 4:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(
        target_quantile=0.5
    )  # the better half: a tenth is too few
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {path: float(share) for path, share in found.items() if math.isfinite(share)}


def _distribution(variable: Variable) -> BaseDistribution:
    if variable.listed:
        return CategoricalDistribution([encode(value) for value in variable.args])
    low, high, *step = variable.args
    match variable.distribution:
        case "uniform" | "quniform":
            return FloatDistribution(low, high, step=step[0] if step else None)
        case "loguniform":
            return FloatDistribution(low, high, log=True)
        case "randint" | "lograndint":  # as in ray.tune: without the upper end
            return IntDistribution(low, high - 1, log=variable.log)
        case _:
            return IntDistribution(low, high, step=step[0])


def _frozen(
    trial: Trial, variables: list[Variable], space: dict[str, BaseDistribution], metric: str
) -> optuna.trial.FrozenTrial:
    state = STATES.get(trial.status, TrialState.FAIL)
    value = trial.metrics[metric] if state == TrialState.COMPLETE else None
    return create_trial(state=state, value=value, params=to_optuna(trial.point, variables), distributions=space)
