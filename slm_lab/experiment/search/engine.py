"""A search by Ray Tune: Optuna draws the points, warm worker processes play them, the ledger keeps what came of it."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the ledger and the sessions write what is kept
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000")  # a search goes on from the ledger
os.environ.setdefault("TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S", "1000000")  # resources are checked before

import ray  # after its settings, these and those of cluster.py
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from slm_lab.experiment.run_dir import RunDir, unwritable
from slm_lab.experiment.search.display import SearchDisplay
from slm_lab.experiment.search.ledger import OPEN, Ledger
from slm_lab.experiment.search.study import NAME, distributions, from_optuna, make_sampler, make_study, to_optuna
from slm_lab.experiment.search.worker import Worker
from slm_lab.lib.errors import DiskError, LabError, SpecError
from slm_lab.lib.files import write_atomic
from slm_lab.lib.log import note
from slm_lab.spec.lab_spec import LabSpec, Room
from slm_lab.spec.search import grid_points
from slm_lab.spec.space import Point, Variable, make_raw
from slm_lab.spec.validate import resolve

logger = logging.getLogger("slm_lab")

ENDLESS = 10**12  # frames
OF_STRENGTH = ("sample_efficiency", "training_efficiency", "stability", "consistency")  # metrics
SCRATCH = "ray"  # what Ray Tune keeps while it runs


# ---- what there is room for ------------------------------------------------------------------------------------------


def _concurrent(spec: LabSpec) -> list[int]:
    """How many trials run at once on each machine. Raises `LabError` where not one ever could."""
    need = spec.meta.search_resources
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    rooms = [_room(node, need.cpu, need.gpu) for node in nodes]
    if not any(rooms):
        there = "; ".join(f"{n.get('CPU', 0):g} cpu and {n.get('GPU', 0):g} gpu" for n in nodes) or "nothing"
        raise LabError(
            f"meta.search_resources: a trial needs {need.cpu:g} cpu and {need.gpu:g} gpu on one machine, and there is "
            f"{there}. Ask for less, or add a machine to the cluster."
        )
    return rooms


def _check_memory(spec: LabSpec, raw: dict[str, Any], run: RunDir, at_once: int) -> None:
    """Raises `LabError` where the memories of so many trials, each one session at a time, don't fit side by side.

    Asked once, before any trial holds memory; other machines of a cluster are taken to be as large as this one.
    """
    try:
        resolve(raw, spec.name, data=run.path, room=Room(at_once))
    except SpecError as error:
        cure = f"\n{at_once} trials run at once: with more cpu for each (meta.search_resources) fewer do"
        raise LabError(f"{error}{cure if at_once > 1 else ''}") from error


def _room(node: dict[str, float], cpu: float, gpu: float) -> int:
    fits = int(node.get("CPU", 0) / cpu + 1e-9)
    return min(fits, int(node.get("GPU", 0) / gpu + 1e-9)) if gpu else fits


# ---- a search --------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """The search was broken off before its trials had ended."""


def run_trials(
    spec: LabSpec, raw: dict[str, Any], run: RunDir, ledger: Ledger, variables: list[Variable], max_trial: int,
    display: SearchDisplay, ended: Callable[[], None],
) -> None:  # fmt: skip
    """Run the trials of the ledger that haven't ended, and new ones up to `max_trial`. `ended()` is called after each.

    Ctrl-C stops after saving. Raises `LabError` where the ledger can't be written.
    """
    here = run.path.resolve()
    meta = spec.meta
    rooms = _concurrent(spec)
    concurrent = sum(rooms)
    _check_memory(spec, raw, run, min(max(rooms), max_trial))
    display.workers(min(concurrent, max_trial))
    trouble = Trouble()
    plan = Planner(spec, raw, run, ledger, variables, max_trial, trouble)
    book = Bookkeeper(ledger, meta.metric, display, ended, trouble)
    need = meta.search_resources
    settings: dict[str, Any] = {
        "config": {"run": str(here), "metric": meta.metric, "retries": meta.max_retry, "cwd": os.getcwd()},
        "resources_per_trial": {"cpu": need.cpu, "gpu": need.gpu},
        "search_alg": plan,
        "scheduler": _scheduler(spec),
        "callbacks": [book],
        "stop": trouble,
        "num_samples": -1,  # until there is no next trial
        "max_concurrent_trials": concurrent,
        "reuse_actors": True,
        "max_failures": meta.max_retry,
        "raise_on_failed_trial": False,
        "checkpoint_config": tune.CheckpointConfig(checkpoint_at_end=False),  # the sessions save themselves
        "storage_path": str(here),
        "name": SCRATCH,
        "verbose": 0,
    }
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told by the ledger
    before = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tune.run(Worker, **settings)
    except Exception as error:
        raise LabError(f"Ray broke off: {error}. Go on with: {run.command('search')}") from error
    finally:
        book.close()
        signal.signal(signal.SIGTERM, before)
        shutil.rmtree(here / SCRATCH, ignore_errors=True)
    if trouble.found:
        raise LabError(f"{trouble.found} Then go on with: {run.command('search')}") from trouble.found
    if ledger.with_status(*OPEN) or len(ledger.trials) < max_trial:
        raise Stopped


def _scheduler(spec: LabSpec) -> Rungs | None:
    rungs, frames = spec.meta.search_scheduler, spec.env.max_frame
    if rungs is None:
        return None
    return Rungs(
        time_attr="frame",
        metric="value",
        mode=spec.meta.mode,
        max_t=ENDLESS,  # it cuts trials there; ours end by themselves
        grace_period=min(rungs.grace_period, frames),
        reduction_factor=rungs.reduction_factor,
    )


class Rungs(tune.schedulers.ASHAScheduler):
    """ASHA for trials that may have begun before it.

    Ray counts a report at the highest rung below it that the trial has no value at, however far below: of a trial that
    goes on late, the first rungs would get the values of its end, beside which all who begin are bad.
    """

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        self._pass_by(trial, result)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._pass_by(trial, result)
        super().on_trial_complete(tune_controller, trial, result)

    def _pass_by(self, trial: Any, result: dict[str, Any]) -> None:
        """No number, which no cutoff counts, at rungs a whole step or more below: trials report at each they reach."""
        passed = result["frame"] - result["stride"] if "frame" in result else 0  # one may end before it tells anything
        for rung, values in self._trial_info[trial.trial_id]._rungs:
            if rung <= passed:
                values.setdefault(trial.trial_id, math.nan)


class Trouble(tune.Stopper):
    """Ends the search once the ledger or a trial can't write: what Ray Tune is told by an exception it blames on a
    trial.
    """

    def __init__(self) -> None:
        self.found: LabError | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.found is not None

    def stop_all(self) -> bool:
        return self.found is not None


class Planner(Searcher):
    """Gives Ray Tune the next trial: one that was broken off, else a point from Optuna whose spec is valid."""

    def __init__(
        self, spec: LabSpec, raw: dict[str, Any], run: RunDir, ledger: Ledger, variables: list[Variable],
        max_trial: int, trouble: Trouble,
    ) -> None:  # fmt: skip
        super().__init__(metric="value", mode=spec.meta.mode)
        self.spec, self.raw, self.run, self.ledger = spec, raw, run, ledger
        self.variables, self.max_trial, self.trouble = variables, max_trial, trouble
        self.again = ledger.with_status(*OPEN)
        self.index: dict[str, int] = {}  # trials by Ray's names
        sampler = make_sampler(spec.meta, len(ledger.trials))
        study, storage = make_study(ledger, variables, spec.meta, sampler)
        for point in self._given():
            study.enqueue_trial(to_optuna(point, variables))
        self.optuna = OptunaSearch(
            distributions(variables), metric="value", mode=spec.meta.mode, sampler=sampler, study_name=NAME,
            storage=storage,
        )  # fmt: skip

    def _given(self) -> Iterator[Point]:
        """Points that aren't drawn: of broken-off trials, and of the grid."""
        yield from (trial.point for trial in self.again)
        points = grid_points(self.spec, self.variables)
        if points:
            yield from (points[i % len(points)] for i in range(len(self.ledger.trials), self.max_trial))

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is text
        try:
            index = self._next()
        except (LabError, OSError) as error:  # the ledger, or the trial's spec, can't be written
            self.trouble.found = unwritable(self.run.path, error) if isinstance(error, OSError) else error
            return str(Searcher.FINISHED)
        if index is None:
            return str(Searcher.FINISHED)
        self.index[trial_id] = index
        return {"trial": index}

    def _next(self) -> int | None:
        """The number of a trial that can run; those on the way that can't are told in the ledger."""
        if self.again:
            index = self.again.pop(0).index
            self.optuna.suggest(str(index))
            return index
        while len(self.ledger.trials) < self.max_trial:
            index = max(self.ledger.trials, default=-1) + 1
            point = from_optuna(self._flat(self.optuna.suggest(str(index))), self.variables)
            if self._plan(index, point):
                return index
            self.optuna.on_trial_complete(str(index), error=True)
        return None

    def _flat(self, params: dict[str, Any] | None) -> dict[str, Any]:
        assert params is not None
        return params

    def _plan(self, index: int, point: Point) -> bool:
        """Write the trial into the ledger, and its spec; whether it is one that can run."""
        unused: list[str] = []
        try:
            made, unused = make_raw(self.raw, point)
            room = Room(1, empty=True)  # what others hold now is no fault of it
            spec = resolve(made, self.spec.name, data=self.run.path, room=room)
        except LabError as error:
            self.ledger.append("planned", index, point=point, unused=unused)
            problems = error.problems if isinstance(error, SpecError) else [error]
            self.ledger.append("invalid", index, reason="; ".join(map(str, problems)))
            return False
        facts = {"name": self.spec.name, **spec.dump(), "run": self.run.read_spec()["run"] | {"trial": index}}
        file = self.run.of_trial(index).spec_file
        write_atomic(file, lambda path: path.write_text(json.dumps(facts, indent=1)))
        self.ledger.append("planned", index, point=point, unused=unused)
        return True

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id in self.index:
            good = bool(result) and outcome(result or {}, self.spec.meta.metric)[0] == "done"
            failed = error or bool(result and result["status"] == "failed")
            self.optuna.on_trial_complete(str(self.index[trial_id]), result if good else None, failed)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Optuna learns of trials that have ended."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger knows."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger knows."""


def outcome(result: dict[str, Any], metric: str) -> tuple[str, str]:
    """What a trial's last report makes of it, and why: a metric that is no number never wins."""
    if result["status"] == "failed":
        return "failed", result["reason"]
    if result["status"] != "done":
        return "pruned", f"stopped by the scheduler at frame {result['frame']:,}"
    if math.isfinite(result["value"]):
        return "done", ""
    why = "no episode has ended, or its returns weren't finite"
    if metric in OF_STRENGTH:
        why += ", or they weren't above those of random actions, beside which it is measured"
    return "failed", f"{metric} is not a number: {why}"


class Bookkeeper(tune.Callback):
    """Writes what Ray Tune tells of trials into the ledger, and shows it."""

    def __init__(
        self, ledger: Ledger, metric: str, display: SearchDisplay, ended: Callable[[], None], trouble: Trouble
    ) -> None:
        self.ledger, self.metric, self.display, self.ended, self.trouble = ledger, metric, display, ended, trouble
        self.running: dict[int, float] = {}  # seconds of the attempt at hand

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        index = trial.config["trial"]
        known = index in self.running
        self.running[index] = round(result["seconds"], 3)
        if not known:
            self._write("running", index, node=result["node"], pid=result["pid"], seconds=self.running[index])
        if result["status"] == "retry":  # the next report is of another attempt
            self._broken_off(index)
            self._write("retry", index, reason=result["reason"], trace=result["trace"])
        if result["status"] == "full" and not self.trouble.found:  # every trial after it would fail of the same
            self.trouble.found = DiskError(f"trial {index}: {result['reason']}")
        self.display.report(self.ledger.trials[index], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        index, result = trial.config["trial"], trial.last_result
        kind, reason = outcome(result, self.metric)
        facts: dict[str, Any] = {"seconds": round(result["seconds"], 3)}
        if kind == "done":
            facts["metrics"] = result["metrics"]
        else:
            facts |= {"reason": reason, "trace": result.get("trace")}
        self._end(kind, index, **facts)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._broken_off(trial.config["trial"])
        self._write("retry", trial.config["trial"], reason=_death(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._broken_off(trial.config["trial"])
        self._end("failed", trial.config["trial"], reason=_death(trial))

    def _broken_off(self, index: int) -> None:
        if index in self.running:
            self._write("spent", index, seconds=self.running.pop(index))

    def close(self) -> None:
        """What runs is broken off."""
        for index in [*self.running]:
            self._broken_off(index)

    def _end(self, kind: str, index: int, **facts: Any) -> None:
        self.running.pop(index, None)
        self._write(kind, index, **facts)
        if not self.trouble.found:
            self.display.ended(self.ledger.trials[index])
            self.ended()

    def _write(self, kind: str, index: int, **facts: Any) -> None:
        if self.trouble.found:  # what Ray Tune tells of trials that it stops for that
            return
        try:
            self.ledger.append(kind, index, **facts)
        except LabError as error:
            self.trouble.found = error
        note(f"trial {index}: {kind} {facts.get('reason', '')}")


def _death(trial: Any) -> str:
    """Why Ray lost a trial."""
    try:
        if not trial.pickled_error_file:
            return Path(trial.error_file).read_text().strip().splitlines()[-1]
        error = pickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception as unread:  # Ray couldn't write it, or it can't be read here
        return f"Ray lost it, and why can't be read ({unread!r})"
    if isinstance(error, ray.exceptions.RayActorError):
        return "its process died (killed, or out of memory?); what it had saved is kept"
    return str(error).strip().splitlines()[-1]
