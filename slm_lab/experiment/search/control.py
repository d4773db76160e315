"""What mode search does: a new search, one that goes on, and what is left of it at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from slm_lab import __version__
from slm_lab.experiment.display import say
from slm_lab.experiment.index import write_index
from slm_lab.experiment.run_dir import RunDir, unwritable
from slm_lab.experiment.search.display import SearchDisplay
from slm_lab.experiment.search.ledger import OPEN, Ledger
from slm_lab.experiment.search.redraw import Redraw
from slm_lab.experiment.search.results import BEST_SPEC, TABLE, prune, write_results
from slm_lab.lib.errors import LabError, plural
from slm_lab.lib.log import log_to, note
from slm_lab.spec.explain import changes
from slm_lab.spec.lab_spec import LabSpec
from slm_lab.spec.load import apply_overrides
from slm_lab.spec.search import check_search, grid_points, searched, trial_count
from slm_lab.spec.space import Variable

logger = logging.getLogger("slm_lab")


def search(
    spec: LabSpec, raw: dict[str, Any], data: Path, console: Console, max_trial: int | None, address: str | None
) -> RunDir:
    """A new search over the spec's `search` section; `raw` is the spec as it was written."""
    variables = check_search(raw, spec)
    run = RunDir.create(data, spec.name, {"name": spec.name, **spec.dump(), "raw": raw}, "search")
    _search(run, spec, raw, variables, max_trial, address, console)
    return run


def resume(
    run: RunDir, given: Mapping[str, Any] | None, force: bool, console: Console, max_trial: int | None,
    address: str | None,
) -> None:  # fmt: skip
    """Go on with a search: trials that have ended stay, those broken off go on, and `max_trial` may add more.

    `given`: the spec as it is written now. Raises `LabError` where it has changed since, unless `force`d.
    """
    spec = run.stored_spec()
    facts = run.read_spec()
    if run.mode() != "search" or "raw" not in facts:
        raise LabError(f"{run.path} is no search. Go on with: {run.command('train')}")
    raw = facts["raw"]
    changed = changes(raw, given) if given is not None else []
    if changed and not force:
        lines = "\n".join(f"  - {line}" for line in changed)
        raise LabError(
            f"the spec has changed since {run.path} was started:\n{lines}\nThe search goes on with the one that it was "
            "started with: say --force if that is what you want (--max-trial N adds trials), or start a new one with "
            "mode search."
        )
    variables = searched(raw, spec)
    _search(run, spec, raw, variables, max_trial, address, console)


def redraw(run: RunDir, console: Console) -> None:
    """Write a search's table, graphs and report again."""
    spec = run.stored_spec()
    variables = searched(run.read_spec().get("raw", {}), spec)
    spec = _of_one_session(spec)
    _finish(run, spec, Ledger(run), variables, console)


def _search(
    run: RunDir, spec: LabSpec, raw: dict[str, Any], variables: list[Variable], max_trial: int | None,
    address: str | None, console: Console,
) -> None:  # fmt: skip
    with run.lock(), log_to(run.log / "run.log"):
        note(f"slm_lab {__version__}: {shlex.join(sys.argv)}")
        if spec.meta.search_scheduler and spec.meta.max_session > 1:  # as in SLM-Lab
            told = "%s judges a trial while it runs: its trials have one session, meta.max_session %d is for mode train"
            logger.warning(told, spec.meta.search_scheduler.name, spec.meta.max_session)
            raw, spec = apply_overrides(raw, ["meta.max_session=1"]), _of_one_session(spec)
        ledger = Ledger(run)
        wanted = _wanted(spec, ledger, variables, max_trial)
        try:
            stopped = _run(run, spec, raw, ledger, variables, wanted, address, console)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"Nothing saved is lost. Go on with: {run.command('search')}") from None
        finally:
            with contextlib.suppress(OSError):
                prune(run, ledger, spec.meta)
        _finish(run, spec, ledger, variables, console)
        if stopped:
            say(console, f"stopped. Go on with: {run.command('search')}")
        elif ledger.best(spec.meta.metric, spec.meta.mode) is None:
            raise LabError("no trial has ended well. The reasons are above, tracebacks in report.html")


def _of_one_session(spec: LabSpec) -> LabSpec:
    """What a scheduler makes of it."""
    sessions = 1 if spec.meta.search_scheduler else spec.meta.max_session
    return replace(spec, meta=spec.meta.model_copy(update={"max_session": sessions}))


def _run(
    run: RunDir, spec: LabSpec, raw: dict[str, Any], ledger: Ledger, variables: list[Variable], wanted: int,
    address: str | None, console: Console,
) -> bool:  # fmt: skip
    """Run what is left to run; whether it was broken off."""
    if len(ledger.trials) >= wanted and not ledger.with_status(*OPEN):
        say(console, f"all {plural(len(ledger.trials), 'trial')} have ended; --max-trial N adds more")
        return False
    each = f"{plural(spec.meta.max_session, 'session')} of {spec.env.max_frame:,} frames"
    title = f"{spec.name}: search over {plural(len(variables), 'key')}, {plural(wanted, 'trial')} of {each}\n{run.path}"
    with SearchDisplay(title, ledger, variables, spec.meta, wanted, console) as display:
        address = address or os.environ.get("RAY_ADDRESS")
        display.wait_for("starting Ray" if not address else f"joining Ray at {address}")
        from slm_lab.experiment.cluster import started_ray  # imports Ray
        from slm_lab.experiment.search import engine

        with started_ray(address):
            try:
                with Redraw(lambda: _write(run, spec, variables, png=False)) as redraw:

                    def ended() -> None:
                        prune(run, ledger, spec.meta, ("done",))  # the worker of another may not have let go of it yet
                        redraw.wanted.set()

                    engine.run_trials(spec, raw, run, ledger, variables, wanted, display, ended)
            except engine.Stopped:
                return True
    return False


def _wanted(spec: LabSpec, ledger: Ledger, variables: list[Variable], max_trial: int | None) -> int:
    """How many trials there shall be; it is remembered when it is more than the spec says."""
    wanted = max_trial or ledger.max_trial or trial_count(spec, variables)
    points = grid_points(spec, variables)
    if wanted < len(ledger.trials):
        raise LabError(f"--max-trial {wanted}: this search has {len(ledger.trials)} trials already; it can only grow.")
    if max_trial and max_trial != ledger.max_trial:
        ledger.append("extended", max_trial=max_trial)
    if points and wanted > len(points) and all(variable.path in points[0] for variable in variables):
        told = "the grid has %s, and no key is drawn beside it: what comes after is the same trials again"
        logger.warning(told, plural(len(points), "point"))
    if points and wanted < len(points):
        logger.warning("%d of the %d points of the grid are tried: raise meta.max_trial for all", wanted, len(points))
    return wanted


def _write(run: RunDir, spec: LabSpec, variables: list[Variable], png: bool) -> None:
    """Table, best spec, graphs and report of the trials so far."""
    ledger = Ledger(run)  # as it is on disk: the search may be writing to its own
    from slm_lab.experiment.search.graphs import Experiment, draw_search
    from slm_lab.experiment.search.page import write_search_report

    write_results(run, ledger, variables, spec.meta)
    experiment = Experiment(run, spec.name, ledger, variables, spec.meta)
    draw_search(experiment, png)
    write_search_report(experiment, run.read_spec())
    write_index(run.path.parent)


def _finish(run: RunDir, spec: LabSpec, ledger: Ledger, variables: list[Variable], console: Console) -> None:
    """All results on disk, and what became of the trials in a few lines."""
    if not ledger.trials:
        say(console, "no trial has begun")
        return
    if console.is_terminal:
        say(console, "drawing graphs ...")
    try:
        _write(run, spec, variables, spec.meta.png)
    except OSError as error:
        raise LabError(f"{unwritable(run.path, error)} Then write the results with: {run.command('plot')}") from error
    reasons: dict[str, list[int]] = {}
    for trial in ledger.with_status("failed", "invalid"):
        reasons.setdefault(f"{trial.status}: {trial.reason}", []).append(trial.index)
    for reason, trials in reasons.items():
        say(console, f"trial{'s' if len(trials) > 1 else ''} {', '.join(map(str, trials))} {reason}")
    say(console, f"report   {run.path / 'report.html'}\ntable    {run.info / TABLE}")
    metric = spec.meta.metric
    tied = ledger.tied(metric, spec.meta.mode)
    if not tied:
        say(console, "best     none: no trial has ended well")
        return
    best = tied[0]
    if len(tied) > 1:
        who = ", ".join(str(trial.index) for trial in tied)
        say(console, f"best     {len(tied)} trials tie at {metric} {best.metrics[metric]:.4g}: {who}")
        say(console, f"         {BEST_SPEC} and enjoy are of trial {best.index}, the first of them")
    else:
        mean = f" (mean of {spec.meta.max_session} seeds)" if spec.meta.max_session > 1 else ""
        say(console, f"best     trial {best.index}: {metric} {best.result(metric)}{mean}")
    say(
        console,
        f"train it python run_lab.py {shlex.quote(str(run.path / BEST_SPEC))} train\nplay it  {run.command('enjoy')}",
    )
