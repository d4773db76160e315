"""`data/index.html`: every run, newest first, on the page that a person opens."""

from __future__ import annotations

import json
import logging
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from slm_lab.experiment.display import agent_line
from slm_lab.experiment.page import duration, number, write_page
from slm_lab.experiment.run_dir import RunDir, all_runs
from slm_lab.lib.errors import LabError, plural
from slm_lab.lib.files import locked

logger = logging.getLogger("slm_lab")

TITLE = "Runs of the lab"
CURVES = ("multi_trial_graph_", "trial_graph_eval_mean_returns_vs", "trial_graph_mean_returns_ma_vs")
STYLE = """<style>
.run { display: grid; grid-template-columns: 250px 1fr; gap: 22px; padding: 14px 0; align-items: center;
  border-bottom: 1px solid var(--line) } .run img { width: 250px; height: 150px; object-fit: contain }
.none { width: 250px; height: 150px; background: var(--card); border-radius: 8px; color: var(--soft); display: grid;
  place-items: center; font-size: 13px }
.run h3 { margin: 0; font-size: 17px; overflow-wrap: anywhere } .run p { margin: 3px 0; color: var(--soft) }
.run b { color: var(--mark); font-size: 18px; font-variant-numeric: tabular-nums }
@media (max-width: 640px) { .run { grid-template-columns: 1fr } }
</style>"""


def write_index(data: Path) -> None:
    """Write `data/index.html`, if what lies there is ours. It is a convenience: what keeps it from being written is a
    warning.
    """
    file = data / "index.html"
    try:
        known = file.read_text(encoding="utf-8", errors="replace").strip() if file.exists() else ""
        if known and TITLE not in known[:4096]:
            logger.warning("%s isn't the lab's: left as it is", file)
            return
        with locked(data / ".index.lock"):  # two runs may end at once
            rows = [_row(run, data) for run in all_runs(data)]
            head = f'<h1>Runs</h1><p class="facts">{len(rows)} in {escape(data.resolve().as_posix())}, newest first</p>'
            write_page(file, TITLE, [STYLE + head, *rows])
    except OSError as error:
        logger.warning("%s not written: %s", file, error.strerror or error)


def _row(run: RunDir, data: Path) -> str:
    where = quote(run.path.relative_to(data).as_posix())
    try:
        spec = run.read_spec()
        facts = _facts(run, spec)
    except (LabError, OSError, ValueError, KeyError, TypeError) as error:
        told = f"<h3>{escape(run.path.name)}</h3><p>{escape(str(error))}</p>"
        return f'<div class="run"><div class="none">unreadable</div><div>{told}</div></div>'
    page = "report.html" if (run.path / "report.html").exists() else ""
    link = f'<a href="{where}/{page}">{escape(spec["name"])}</a>'
    told = "".join(f"<p>{line}</p>" for line in facts)
    return f'<div class="run">{_picture(run, where)}<div><h3>{link}</h3>{told}</div></div>'


def _picture(run: RunDir, where: str) -> str:
    found = [file for kind in CURVES for file in sorted(run.graph.glob(f"*_{kind}*.png"))]
    if not found:
        return '<div class="none">no picture yet</div>'
    return f'<a href="{where}/report.html"><img loading="lazy" alt="" src="{where}/graph/{quote(found[0].name)}"></a>'


def _facts(run: RunDir, spec: dict[str, Any]) -> list[str]:
    """Lines of a run: what it was, how good, when."""
    env, facts = spec["env"], spec["run"]
    world = f"{agent_line(spec['agent'])} in {env['name']}, {env['max_frame']:,} frames"
    result = _of_search(run, spec) if facts["mode"] == "search" else _of_trial(run, spec)
    return [escape(world), result, escape(f"{facts['created']} · mode {facts['mode']}")]


def _of_trial(run: RunDir, spec: dict[str, Any]) -> str:
    file = run.info / f"{spec['name']}_t0_trial_metrics.json"
    scalar = json.loads(file.read_text())["scalar"] if file.exists() else {}
    failed = _failed(run)
    if scalar.get("final_return") is None:
        return failed or "no episode has ended yet"
    sessions = f"{scalar['num_session']:g} session{'s' if scalar['num_session'] != 1 else ''}"
    facts = f"final return, {sessions} of {duration(scalar.get('wall_t') or 0.0)}"
    return f"<b>{number(scalar['final_return'])}</b> {facts}{'; ' if failed else ''}{failed}"


def _failed(run: RunDir) -> str:
    """How many sessions broke off, and the last line of the first one's error; '' where none did."""
    file = run.info / "failures.json"
    failures = json.loads(file.read_text()) if file.exists() else []
    if not failures:
        return ""
    why = (str(failures[0]["error"]).strip() or "no message").splitlines()[-1]
    return f"{plural(len(failures), 'session')} failed: {escape(why)}"


def _of_search(run: RunDir, spec: dict[str, Any]) -> str:
    file, metric = run.info / "experiment_df.csv", spec["meta"]["metric"]
    table = pd.read_csv(file) if file.exists() else pd.DataFrame({"status": []})
    done = table[table["status"] == "done"]
    if not len(done):
        return f"{len(table)} trials, none has ended well yet"
    best = done.iloc[0]
    tied = int((done[metric] == best[metric]).sum())
    who = f"{tied} of them tie" if tied > 1 else f"t{best['trial']}"
    what = f"{metric.replace('_', ' ')} of the best of {len(table)} trials ({who})"
    return f"<b>{number(float(best[metric]))}</b> {what}, {duration(float(table['seconds'].sum()))} of training"
