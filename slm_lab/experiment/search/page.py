"""A search's `report.html`: which trial won, what each variable did, what failed, how to go on."""

from __future__ import annotations

import json
import shlex
from html import escape
from typing import Any

from slm_lab.experiment.page import cards, details, duration, graphs, number, section, table, write_page
from slm_lab.experiment.search.graphs import UNITS, Experiment
from slm_lab.experiment.search.ledger import ENDED, Trial
from slm_lab.experiment.search.results import BEST_SPEC
from slm_lab.spec.space import label

CAPTIONS = {
    "multi_trial_graph": "Mean return over the sessions of each trial; the best trials by name.",
    "experiment_graph_variables": "Each dot is a trial; a bar is the mean of a listed value. –: no such key there.",
    "experiment_graph_parallel": "Each line is a trial through its values; the last axis is the metric.",
    "experiment_graph_importance": "Which variables tell good trials from bad ones: what went together in these "
    "trials, not what would come of a change.",
}


def write_search_report(experiment: Experiment, facts: dict[str, Any]) -> None:
    """Write the page from the ledger and the graphs that are there; `facts`: the run's spec.json."""
    e, run = experiment, experiment.run
    drawn = "".join(graphs(run.graph, f"{e.name}_{kind}*", caption=text) for kind, text in CAPTIONS.items())
    open_trials = [t for t in e.ledger.trials.values() if t.status not in ENDED]
    parts = [
        f'<h1>{escape(e.name)}</h1><p class="facts">{escape(_facts(facts, len(open_trials)))}</p>',
        _cards(e),
        drawn or "<p>No trial has ended well yet, so there is nothing to draw.</p>",
        section("Trials, best first", _trials(e)),
        section("Failed and invalid trials", _failures(e)),
        section("Go on", f"<pre>{escape(_commands(e))}</pre>"),
        _best_spec(e),
        details("The resolved spec", f"<pre>{escape(json.dumps(_spec(facts), indent=2, ensure_ascii=False))}</pre>"),
    ]
    write_page(run.path / "report.html", e.name, parts)


def _facts(facts: dict[str, Any], running: int) -> str:
    run = facts["run"]
    state = [f"still running: {running} trials have not ended"] if running else []
    return " · ".join([run["created"], "mode search", f"git {run['git_sha']}", *state])


def _cards(e: Experiment) -> str:
    meta = e.meta
    counts = {kind: len(e.ledger.with_status(kind)) for kind in ENDED}
    bad = counts["failed"] + counts["invalid"]
    seconds = sum(t.seconds for t in e.ledger.trials.values() if t.seconds == t.seconds)
    best = e.done[0] if e.done else None
    who = (
        f"{len(e.tied)} trials that tie" if len(e.tied) > 1 else "the best trial" + (f", t{best.index}" if best else "")
    )
    what = f"{meta.metric.replace('_', ' ')} of {who}"
    return cards(
        [
            ("main", number(e.value(best)) if best else "–", what),
            ("", str(counts["done"]), "trials done"),
            *([("", str(counts["pruned"]), "stopped early")] if counts["pruned"] else []),
            ("bad" if bad else "", str(bad), "failed or invalid"),
            ("", str(meta.max_session), "sessions a trial"),
            ("", duration(seconds), "training, all trials"),
        ]
    )


def _trials(e: Experiment) -> str:
    shown = [e.meta.metric, *(name for name in ("final_return", "best_return", "strength") if name != e.meta.metric)]
    head = ["trial", *e.names.values(), *(name.replace("_", " ") for name in shown), "seconds", "status"]
    rows = [
        [
            f"t{trial.index}",
            *(_cell(trial, variable.path) for variable in e.variables),
            *(trial.result(name, number) or "–" for name in shown),
            number(trial.seconds),
            trial.status,
        ]
        for trial in e.ledger.ranked(e.meta.metric, e.meta.mode)
    ]
    direction = "largest" if e.meta.mode == "max" else "smallest"
    spread = f"; ± std over the {e.meta.max_session} seeds" if e.meta.max_session > 1 else ""
    order = f"By {e.meta.metric.replace('_', ' ')} ({UNITS[e.meta.metric]}), {direction} first{spread}."
    return f"<p>{escape(order)}</p>{table(head, rows)}" if rows else ""


def _cell(trial: Trial, path: str) -> str:
    return label(trial.used[path]) if path in trial.used else "–"


def _failures(e: Experiment) -> str:
    blocks = []
    for trial in e.ledger.with_status("failed", "invalid"):
        values = ", ".join(f"{e.names[path]} {label(value)}" for path, value in trial.used.items())
        title = f"t{trial.index} {trial.status}: {trial.reason.splitlines()[0]}"
        blocks.append(details(title, f"<p>{escape(values)}</p><pre>{escape(trial.trace or trial.reason)}</pre>"))
    return "".join(blocks)


def _commands(e: Experiment) -> str:
    where = shlex.quote(e.run.path.as_posix())
    best = shlex.quote((e.run.path / BEST_SPEC).as_posix())
    lines = [f"python run_lab.py search@{where} --max-trial N   # go on, or add trials"]
    if e.done:
        lines.append(f"python run_lab.py enjoy@{where}   # watch the best trial play")
        lines.append(
            f"python run_lab.py {best} train   # train the best trial's spec: the same seeds, the same numbers"
        )
    return "\n".join([*lines, f"python run_lab.py plot {where}   # draw the graphs again"])


def _best_spec(e: Experiment) -> str:
    file = e.run.path / BEST_SPEC
    if not (e.done and file.exists()):
        return ""
    return details(f"The best trial's spec (t{e.done[0].index})", f"<pre>{escape(file.read_text())}</pre>")


def _spec(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key != "raw"}
