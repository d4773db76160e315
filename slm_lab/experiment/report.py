"""`report.html`: a run on one page that asks nothing of the network, for a reader who hasn't seen the run."""

from __future__ import annotations

import json
import math
import shlex
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from slm_lab.experiment.analysis import Run, load_run
from slm_lab.experiment.metrics import BASE_COLUMNS, session_metrics
from slm_lab.experiment.page import cards as page_cards
from slm_lab.experiment.page import details, duration, graphs, number, section, table, write_page
from slm_lab.experiment.xray import load_figures, percent, sentences
from slm_lab.experiment.xray_plot import CAPTIONS
from slm_lab.lib.errors import plural

Scalars = dict[str, float]
METRICS = {  # in the order of the tables: name -> what it is
    "final_return": "mean return of the last 100 episodes",
    "best_return": "highest mean return over 100 episodes",
    "strength": "mean return above the random baseline",
    "max_strength": "highest return above the random baseline",
    "final_strength": "last return above the random baseline",
    "sample_efficiency": "1/frame, weighted by strength",
    "training_efficiency": "1/optimiser step, weighted by strength",
    "stability": "1: return never drops",
    "consistency": "1: all sessions learn the same curve",
    "total_reward_ma": "mean return of the last 100 log points",
    "frame": "frames played",
    "opt_step": "",
    "wall_t": "seconds",
    "fps": "",
}


def write_report(run_dir: str | Path, trial: int = 0) -> Path:
    """Write a run folder's `report.html` from its spec, log rows and graphs; its path.

    PNGs are embedded, so the page may be sent alone; where there is none it links to the interactive graph. LabError
    where the folder isn't one of a run.
    """
    run = load_run(run_dir, trial)
    sessions = {s: session_metrics(df, run.random_return)["scalar"] for s, df in run.train.items()}
    scalar = run.metrics()["scalar"]
    parts = [
        _header(run),
        _cards(run, scalar),
        graphs(run.path / "graph", f"{run.stem()}_trial_graph_eval_mean_returns_vs*"),
        graphs(run.path / "graph", f"{run.stem()}_trial_graph_mean_returns_ma_vs*"),
        "<h2>Metrics of the trial</h2>" + _trial_table(scalar),
        "<h2>Sessions</h2>" + _session_table(run, sessions),
        section("Memory x-ray", _xrays(run)),
        section(
            "Tracked variables", graphs(run.path / "graph", f"{run.stem()}_trial_graph_variables*") + _last_table(run)
        ),
        _failures(run),
        section("Graphs", _more_graphs(run)),
        "<h2>Go on</h2>" + _commands(run),
        details("The resolved spec", f"<pre>{escape(json.dumps(run.spec, indent=2, ensure_ascii=False))}</pre>"),
    ]
    path = run.path / "report.html"
    write_page(path, run.name, parts)
    return path


# ---- parts of the page -----------------------------------------------------------------------------------------------


def _header(run: Run) -> str:
    facts = _dict(run.spec.get("run"))
    seeds = facts.get("seeds", facts.get("seed"))
    versions = ", ".join(f"{name} {version}" for name, version in _dict(facts.get("versions")).items())
    shown = {
        "": facts.get("created"),
        "mode": facts.get("mode"),
        "seeds" if isinstance(seeds, list) else "seed": ", ".join(map(str, seeds))
        if isinstance(seeds, list)
        else seeds,
        "git": facts.get("git_sha"),
        "versions:": versions,
    }
    text = " · ".join(f"{key} {value}".strip() for key, value in shown.items() if value not in (None, ""))
    return f'<h1>{escape(run.name)}</h1><p class="facts">{escape(text)}</p>'


def _cards(run: Run, scalar: Scalars) -> str:
    count = int(scalar["num_session"])
    cells = [
        ("main", _final_return(scalar), f"final return, mean of {plural(count, 'session')}"),
        ("", number(scalar["best_return"]), "best return"),
        ("", number(run.random_return), "random baseline"),
        ("", number(scalar["frame"]), "frames a session"),
        ("", number(scalar["fps"]), "frames/s"),
        ("", duration(scalar["wall_t"]), "wall time a session"),
        ("bad" if run.failed else "", str(len(run.failed)), "failed sessions"),
    ]
    if run.unfinished:
        cells.append(("bad", str(len(run.unfinished)), "unfinished sessions, in no mean"))
    if run.last_evaluation is not None:
        cells.insert(2, ("", number(run.last_evaluation), "last evaluation return"))
    return page_cards(cells)


def _trial_table(scalar: Scalars) -> str:
    rows = []
    for name, meaning in METRICS.items():
        value = _final_return(scalar) if name == "final_return" else number(scalar[name])
        rows.append([_label(name), value, meaning])
    return table(["metric", "mean over sessions", ""], rows, text_column=2)


def _session_table(run: Run, sessions: dict[int, Scalars]) -> str:
    names = [name for name in METRICS if name != "consistency"]
    rows = [[f"{s}{run.ended(s)}", *(number(scalar[name]) for name in names)] for s, scalar in sessions.items()]
    rows += [[f"{s}{run.ended(s)}", *["–"] * len(names)] for s in sorted(run.failed - sessions.keys())]
    return table(["session", *map(_label, names)], rows) if rows else "<p>No log rows.</p>"


def _last_table(run: Run) -> str:
    """Last value of each tracked variable, a column a session."""
    frames = run.train.values()
    names = dict.fromkeys(c for df in frames for c in df.columns if c not in BASE_COLUMNS and df[c].notna().any())
    rows = [[name, *(number(_last(df, name)) for df in frames)] for name in names]
    return details("Last values", table(["variable", *(f"session {s}" for s in run.train)], rows)) if rows else ""


def _xrays(run: Run) -> str:
    """What was kept and recalled in the last evaluation (or in mode enjoy); '' where the core shows nothing."""
    files = sorted((run.path / "info").glob(f"{run.stem()}_s*_xray.json"), key=lambda file: "enjoy" in file.stem)
    blocks = []
    for file in files:
        figures, stem = load_figures(file), file.stem.removesuffix("_xray")
        told = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences(figures))
        drawn = "".join(
            graphs(run.path / "graph", f"{stem}_graph_xray_{kind}*", caption=text) for kind, text in CAPTIONS.items()
        )
        blocks.append((_xray_title(file, figures), told + drawn))
    if not blocks:
        return ""
    (title, first), others = blocks[0], blocks[1:]
    return f"<p>{escape(title)}.</p>{first}" + "".join(details(title, body) for title, body in others)


def _xray_title(file: Path, figures: dict[str, Any]) -> str:
    *_, session, mode, _ = file.stem.split("_")  # ..._s0_session_xray
    cue = f": {percent(figures['cue']['kept'])} of the cues held at the last decision" if figures["cue"] else ""
    return f"Session {session[1:]}, {'played by enjoy' if mode == 'enjoy' else 'last evaluation'}{cue}"


def _more_graphs(run: Run) -> str:
    rest = ("mean_returns", "strengths", "sample_efficiencies", "training_efficiencies", "stabilities", "consistencies")
    blocks = [("Trial", [f"{run.stem()}_trial_graph_{name}_vs*" for name in rest])]
    for session in run.train:
        # of a lone session the trial's graph of the variables is the same
        kinds = ("train_mean_returns_vs", "eval_mean_returns_vs", "train_variables_vs")[
            : 3 if len(run.train) > 1 else 2
        ]
        blocks.append((f"Session {session}", [f"{run.stem(session)}_session_graph_{kind}*" for kind in kinds]))
    drawn = ((title, graphs(run.path / "graph", *patterns)) for title, patterns in blocks)
    return "".join(details(title, graphs) for title, graphs in drawn if graphs)


def _failures(run: Run) -> str:
    blocks = []
    for failure in run.failures:
        error = str(failure.get("error", "")).strip()
        last = error.splitlines()[-1] if error else "no message"
        blocks.append(details(f"Session {failure.get('session')}: {last}", f"<pre>{escape(error)}</pre>"))
    return section("Failures", "".join(blocks))


def _commands(run: Run) -> str:
    where = shlex.quote(run.path.as_posix())
    lines = [
        f"python run_lab.py train@{where}   # train on, from the last checkpoint",
        f"python run_lab.py enjoy@{where}   # watch it play",
        f"python run_lab.py plot {where}   # draw the graphs again",
    ]
    return "<pre>" + escape("\n".join(lines)) + "</pre>"


# ---- small helpers --------------------------------------------------------------------------------------------------


def _final_return(scalar: Scalars) -> str:
    std = scalar["final_return_std"]
    return number(scalar["final_return"]) + (f" ± {number(float(f'{std:.2g}'))}" if math.isfinite(std) else "")


def _label(name: str) -> str:
    return {"wall_t": "wall time", "fps": "frames/s", "opt_step": "optimiser steps"}.get(name, name.replace("_", " "))


def _last(df: pd.DataFrame, name: str) -> float | None:
    known = df[name].dropna() if name in df else df["frame"].iloc[:0]
    return float(known.iloc[-1]) if len(known) else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
