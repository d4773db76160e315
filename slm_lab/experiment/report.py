"""`report.html`: a run on one page that asks nothing of the network, for a reader who hasn't seen the run."""

from __future__ import annotations

import base64
import json
import math
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from slm_lab.experiment.analysis import Run, load_run, plural, write_text
from slm_lab.experiment.metrics import BASE_COLUMNS, session_metrics
from slm_lab.experiment.xray import load_figures, percent, sentences
from slm_lab.experiment.xray_plot import CAPTIONS

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
CSS = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #646a73; --line: #dfe2e6; --card: #f6f7f9; --page: #fff;
  --mark: #0072b2; --bad: #b23c00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa1ab; --line: #363b42; --card: #20242a;
  --page: #15181c; --mark: #56b4e9; --bad: #ff9a62 } }
body { margin: 0 auto; max-width: 1080px; padding: 28px 24px 64px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, Helvetica, Arial, "DejaVu Sans", sans-serif }
h1 { font-size: 26px; margin: 0; overflow-wrap: anywhere } h2 { font-size: 18px; margin: 36px 0 12px }
.facts { color: var(--soft); margin: 4px 0 22px; overflow-wrap: anywhere }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(155px, 1fr)); gap: 12px }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px }
.card b { display: block; font-size: 21px; font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap }
.card span { color: var(--soft); font-size: 13px } .card.main { grid-column: span 2 }
.card.main b { color: var(--mark) } .card.bad b { color: var(--bad) }
figure { margin: 14px 0 } img { max-width: 100%; height: auto; background: #fff; border-radius: 8px;
  border: 1px solid var(--line); display: block } figcaption { font-size: 13px }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 0 16px; align-items: start }
.pair .full { grid-column: 1 / -1 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: 600; white-space: normal; vertical-align: bottom }
th:first-child, td:first-child, td.text { text-align: left } td.text { color: var(--soft) }
details { border: 1px solid var(--line); border-radius: 8px; padding: 8px 14px; margin: 10px 0 }
summary { cursor: pointer; font-weight: 600 } a { color: var(--mark) }
pre { background: var(--card); border-radius: 8px; padding: 12px 14px; overflow-x: auto; font-size: 13px;
  line-height: 1.45 }
"""


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
        _graphs(run, f"{run.stem()}_trial_graph_eval_mean_returns_vs*"),
        _graphs(run, f"{run.stem()}_trial_graph_mean_returns_ma_vs*"),
        "<h2>Metrics of the trial</h2>" + _trial_table(scalar),
        "<h2>Sessions</h2>" + _session_table(run, sessions),
        _section("Memory x-ray", _xrays(run)),
        _section("Tracked variables", _graphs(run, f"{run.stem()}_trial_graph_variables*") + _last_table(run)),
        _failures(run),
        _section("Graphs", _more_graphs(run)),
        "<h2>Go on</h2>" + _commands(run),
        _details("The resolved spec", f"<pre>{escape(json.dumps(run.spec, indent=2, ensure_ascii=False))}</pre>"),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(run.name)}</title><style>{CSS}</style>"
    body = "\n".join(filter(None, parts))
    path = run.path / "report.html"
    write_text(path, f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n')
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
    cards = [
        ("main", _final_return(scalar), f"final return, mean of {plural(count, 'session')}"),
        ("", _number(scalar["best_return"]), "best return"),
        ("", _number(run.random_return), "random baseline"),
        ("", _number(scalar["frame"]), "frames a session"),
        ("", _number(scalar["fps"]), "frames/s"),
        ("", _duration(scalar["wall_t"]), "wall time a session"),
        ("bad" if run.failed else "", str(len(run.failed)), "failed sessions"),
    ]
    if last := [
        df["total_reward"].dropna().iloc[-1] for df in run.evaluation.values() if df["total_reward"].notna().any()
    ]:
        cards.insert(2, ("", _number(sum(last) / len(last)), "last evaluation return"))
    cells = (
        f'<div class="card {kind}"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for kind, value, name in cards
    )
    return f'<div class="cards">{"".join(cells)}</div>'


def _trial_table(scalar: Scalars) -> str:
    rows = []
    for name, meaning in METRICS.items():
        value = _final_return(scalar) if name == "final_return" else _number(scalar[name])
        rows.append([_label(name), value, meaning])
    return _table(["metric", "mean over sessions", ""], rows, text_column=2)


def _session_table(run: Run, sessions: dict[int, Scalars]) -> str:
    names = [name for name in METRICS if name != "consistency"]
    rows = [
        [f"{s} (failed)" if s in run.failed else str(s), *(_number(scalar[name]) for name in names)]
        for s, scalar in sessions.items()
    ]
    rows += [[f"{s} (failed)", *["–"] * len(names)] for s in sorted(run.failed - sessions.keys())]
    return _table(["session", *map(_label, names)], rows) if rows else "<p>No log rows.</p>"


def _last_table(run: Run) -> str:
    """Last value of each tracked variable, a column a session."""
    frames = run.train.values()
    names = dict.fromkeys(c for df in frames for c in df.columns if c not in BASE_COLUMNS and df[c].notna().any())
    rows = [[name, *(_number(_last(df, name)) for df in frames)] for name in names]
    return _details("Last values", _table(["variable", *(f"session {s}" for s in run.train)], rows)) if rows else ""


def _xrays(run: Run) -> str:
    """What was kept and recalled in the last evaluation (or in mode enjoy); '' where the core shows nothing."""
    files = sorted((run.path / "info").glob(f"{run.stem()}_s*_xray.json"), key=lambda file: "enjoy" in file.stem)
    blocks = []
    for file in files:
        figures, stem = load_figures(file), file.stem.removesuffix("_xray")
        told = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences(figures))
        drawn = "".join(_graphs(run, f"{stem}_graph_xray_{kind}*", caption=text) for kind, text in CAPTIONS.items())
        blocks.append((_xray_title(file, figures), told + drawn))
    if not blocks:
        return ""
    (title, first), others = blocks[0], blocks[1:]
    return f"<p>{escape(title)}.</p>{first}" + "".join(_details(title, body) for title, body in others)


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
    drawn = ((title, _graphs(run, *patterns)) for title, patterns in blocks)
    return "".join(_details(title, graphs) for title, graphs in drawn if graphs)


def _failures(run: Run) -> str:
    blocks = []
    for failure in run.failures:
        error = str(failure.get("error", "")).strip()
        last = error.splitlines()[-1] if error else "no message"
        blocks.append(_details(f"Session {failure.get('session')}: {last}", f"<pre>{escape(error)}</pre>"))
    return _section("Failures", "".join(blocks))


def _commands(run: Run) -> str:
    where = shlex.quote(run.path.as_posix())
    lines = [
        f"python run_lab.py train@{where}   # train on, from the last checkpoint",
        f"python run_lab.py enjoy@{where}   # watch it play",
        f"python run_lab.py plot {where}   # draw the graphs again",
    ]
    return "<pre>" + escape("\n".join(lines)) + "</pre>"


# ---- pieces of HTML --------------------------------------------------------------------------------------------------


def _graphs(run: Run, *patterns: str, caption: str = "") -> str:
    """Graphs whose file name fits, in order of the patterns: the PNG itself, or a link where it wasn't drawn."""
    stems = [stem for pattern in patterns for stem in sorted({p.stem for p in _glob(run.path / "graph", pattern)})]
    figures = "".join(_graph(run.path / "graph" / stem, caption) for stem in stems)
    return f'<div class="{"pair" if len(stems) > 1 else ""}">{figures}</div>' if figures else ""


def _graph(stem: Path, caption: str = "") -> str:
    png, page = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.html")
    name = escape(stem.name)
    link = f'<a href="graph/{escape(page.name)}">interactive graph</a>' if page.exists() else ""
    if not png.exists():
        return f"<figure><figcaption>{name}: {link} {escape(caption)}</figcaption></figure>"
    data = base64.b64encode(png.read_bytes()).decode()
    kind = ' class="full"' if "variables" in name else ""  # a grid of panels needs the width
    text = f"{escape(caption)} {link}".strip()
    return (
        f'<figure{kind}><img alt="{name}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
    )


def _glob(folder: Path, pattern: str) -> Iterable[Path]:
    return (p for p in folder.glob(pattern) if p.suffix in (".png", ".html"))


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}" if body else ""


def _details(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], text_column: int = -1) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = ""
    for row in rows:
        kinds = (' class="text"' if i == text_column else "" for i in range(len(row)))
        body += "<tr>" + "".join(f"<td{k}>{escape(cell)}</td>" for k, cell in zip(kinds, row, strict=True)) + "</tr>"
    return f'<div class="wide"><table><tr>{cells}</tr>{body}</table></div>'


def _number(value: float | None) -> str:
    """Whole numbers with spaces by thousands, others with 3 to 4 digits; – where unknown."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1000 or (value == int(value) and abs(value) >= 100):
        return f"{value:,.0f}".replace(",", "\u2009")
    return f"{value:.3g}".replace("-", "−")


def _final_return(scalar: Scalars) -> str:
    std = scalar["final_return_std"]
    return _number(scalar["final_return"]) + (f" ± {_number(float(f'{std:.2g}'))}" if math.isfinite(std) else "")


def _label(name: str) -> str:
    return {"wall_t": "wall time", "fps": "frames/s", "opt_step": "optimiser steps"}.get(name, name.replace("_", " "))


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.3g} s"


def _last(df: pd.DataFrame, name: str) -> float | None:
    known = df[name].dropna() if name in df else df["frame"].iloc[:0]
    return float(known.iloc[-1]) if len(known) else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
