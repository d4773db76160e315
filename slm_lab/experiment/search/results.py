"""What a search leaves for a person: the table of trials, the best trial's spec, its checkpoints."""

from __future__ import annotations

import json
import math
import shutil

import pandas as pd

from slm_lab.experiment.run_dir import RunDir
from slm_lab.experiment.search.ledger import ENDED, Ledger, Trial
from slm_lab.lib.files import write_text
from slm_lab.spec.lab_spec import MetaSpec
from slm_lab.spec.space import Variable, encode
from slm_lab.spec.validate import MAX_NAME, NAME_BYTES

TABLE, BEST_SPEC = "experiment_df.csv", "best_spec.json"


def trial_table(ledger: Ledger, variables: list[Variable], meta: MetaSpec) -> pd.DataFrame:
    """A row a trial, best first: trial, status, the variables, metrics, seconds, attempts, node, reason."""
    ranked = ledger.ranked(meta.metric, meta.mode)
    names = list(dict.fromkeys([meta.metric, *(name for trial in ranked for name in trial.metrics)]))
    rows = [
        {
            "trial": trial.index,
            "status": trial.status,
            **{v.path: _cell(trial, v.path) for v in variables},
            **{name: trial.metrics.get(name, math.nan) for name in names},
            "seconds": trial.seconds,
            "attempts": trial.attempts,
            "node": trial.node,
            "reason": trial.reason,
        }
        for trial in ranked
    ]
    return pd.DataFrame(rows)


def write_results(run: RunDir, ledger: Ledger, variables: list[Variable], meta: MetaSpec) -> None:
    """Write the table, and the best trial's spec, ready to run."""
    write_text(run.info / TABLE, trial_table(ledger, variables, meta).to_csv(index=False))
    best = ledger.best(meta.metric, meta.mode)
    if best is None:
        return
    facts = run.of_trial(best.index).read_spec()
    found = {section: facts[section] for section in ("agent", "env", "meta")}
    found["meta"] |= {"max_session": run.read_spec()["meta"]["max_session"]}  # a scheduler's trials have one
    spec = {_named(facts["name"], f"_t{best.index}"): found}
    write_text(run.path / BEST_SPEC, json.dumps(spec, indent=2) + "\n")


def _named(name: str, end: str) -> str:
    """A spec's name with an end to it, cut where it would be longer than a name may be."""
    name = name[: MAX_NAME - len(end)]
    return name.encode()[: NAME_BYTES - len(end)].decode(errors="ignore") + end


def prune(run: RunDir, ledger: Ledger, meta: MetaSpec, kinds: tuple[str, ...] = ENDED) -> None:
    """Remove the checkpoints of trials that have ended (so), but of the best `meta.keep_trials`."""
    if meta.keep_trials is None:
        return
    kept = {
        trial.index for trial in ledger.ranked(meta.metric, meta.mode)[: meta.keep_trials] if trial.status == "done"
    }
    for trial in ledger.with_status(*kinds):
        if trial.index not in kept:
            shutil.rmtree(run.of_trial(trial.index).model, ignore_errors=True)


def _cell(trial: Trial, path: str) -> object:
    value = trial.used.get(path)
    return encode(value) if isinstance(value, dict | list) else value
