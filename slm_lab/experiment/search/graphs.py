"""Figures of a search, drawn from its ledger and the trials' log rows. What has no data isn't drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from slm_lab.experiment import figure as draw
from slm_lab.experiment.analysis import load_run
from slm_lab.experiment.figure import GREY, PALETTE, line, new_figure, new_grid
from slm_lab.experiment.plot import RETURN_MA, Builder, mean_return, write_figures
from slm_lab.experiment.run_dir import RunDir
from slm_lab.experiment.search.ledger import Ledger, Trial
from slm_lab.experiment.search.study import importances
from slm_lab.lib.errors import plural
from slm_lab.spec.lab_spec import MetaSpec
from slm_lab.spec.space import Variable, encode, label, labels

NAMED = 6  # trials with a colour and a name of their own
NOWHERE = "–"  # where a variable has no place in a trial's spec
UNITS = {
    "final_return": "mean return of the last 100 episodes",
    "best_return": "highest mean return over 100 episodes",
    "total_reward_ma": "mean return of the last 100 log points",
    "strength": "return above the random baseline",
    "max_strength": "highest return above the random baseline",
    "final_strength": "last return above the random baseline",
    "sample_efficiency": "1/frame",
    "training_efficiency": "1/optimiser step",
    "stability": "1: return never drops",
    "consistency": "1: all sessions alike",
}


@dataclass(frozen=True)
class Experiment:
    """What the figures are drawn from."""

    run: RunDir
    name: str
    ledger: Ledger
    variables: list[Variable]
    meta: MetaSpec

    @property
    def done(self) -> list[Trial]:
        """Trials that ran to their end, best first."""
        return [t for t in self.ledger.ranked(self.meta.metric, self.meta.mode) if t.status == "done"]

    @property
    def names(self) -> dict[str, str]:
        """Short names of the variables."""
        return {path: name.replace("_", " ") for path, name in labels(self.variables).items()}

    @property
    def metric(self) -> str:
        """The metric, with what it is."""
        return f"{self.meta.metric.replace('_', ' ')} ({UNITS[self.meta.metric]})"

    @property
    def tied(self) -> list[Trial]:
        """The best trial, and those that are as good."""
        return self.ledger.tied(self.meta.metric, self.meta.mode)

    def value(self, trial: Trial) -> float:
        """The metric of a trial that has ended well."""
        return trial.metrics[self.meta.metric]

    def told(self, trial: Trial) -> str:
        """A trial in a few words."""
        values = ", ".join(label(value) for value in trial.used.values())
        return f"t{trial.index}: {values}" if len(values) <= 28 else f"t{trial.index}: {values[:27]}…"

    def subtitle(self) -> str:
        """How many trials there are, and how each was run."""
        return f"{plural(len(self.done), 'trial')} of {plural(self.meta.max_session, 'session')} each"


def draw_search(experiment: Experiment, png: bool, timeout: float = 120.0) -> list[Path]:
    """(Re)draw the graphs of a search: `graph/*.html`, then `.png`; the files written."""
    e = experiment
    stem = f"{e.name}_experiment_graph"
    builders: dict[str, Builder] = {
        f"{e.name}_multi_trial_graph_mean_returns_ma_vs_frames": lambda: multi_trial(e),
        f"{stem}_variables": lambda: variable_grid(e),
        f"{stem}_parallel_coordinates": lambda: parallel(e),
        f"{stem}_importance": lambda: importance(e),
    }
    return write_figures(builders, e.run.graph, png, timeout)


# ---- figures ---------------------------------------------------------------------------------------------------------


def multi_trial(e: Experiment) -> go.Figure | None:
    """Mean return of each trial; the best by name, the others in grey, those that failed dotted."""
    ranked = [t for t in e.ledger.ranked(e.meta.metric, e.meta.mode) if t.status in ("done", "pruned", "failed")]
    curves = [(trial, *mean_return(load_run(e.run.path, trial.index))) for trial in ranked]
    curves = [curve for curve in curves if np.isfinite(curve[2]).any()]
    if not curves:
        return None
    seeds = e.meta.max_session
    each = f"{plural(len(e.done), 'trial')}, each the mean of {seeds} seeds" if seeds > 1 else e.subtitle()
    figure = new_figure(f"{e.name}: training return of the trials", each, RETURN_MA)
    best, tied = [trial.index for trial in e.done[:NAMED]], e.tied
    told: set[str] = set()
    for trial, frames, mean in reversed(curves):  # the best on top
        if trial.index in best:
            rank = best.index(trial.index)
            trace = line(frames, mean, e.told(trial), PALETTE[rank], width=3.2 if trial in tied else 1.8)
        else:
            kind = {"done": "other trials", "pruned": "stopped early"}.get(trial.status, trial.status)
            dash = "solid" if trial.status == "done" else "dot"
            trace = line(frames, mean, kind if kind not in told else None, GREY, width=1.2, opacity=0.6, dash=dash)
            told.add(kind)
        figure.add_trace(trace)
    draw.fit_x(figure, max(float(frames.max()) for _, frames, _ in curves))
    figure.update_yaxes(**draw.fit_y(np.concatenate([mean for *_, mean in curves])))
    return draw.legend_right(figure.update_layout(legend_traceorder="reversed"))


def variable_grid(e: Experiment) -> go.Figure | None:
    """A panel for each variable: the metric of each trial against its value; of listed ones also each value's mean."""
    if not e.done:
        return None
    figure = new_grid(f"{e.name}: what each variable does", f"{e.subtitle()}; large: the best",
                      list(e.names.values()), height=240)  # fmt: skip
    for index, variable in enumerate(e.variables):
        place = draw.panel(index, len(e.variables))
        scale = _Scale(variable, e.done)
        x = np.array([scale.at(trial) for trial in e.done])
        y = np.array([e.value(trial) for trial in e.done])
        if scale.ticks:
            for at in sorted(set(x)):
                mean = float(y[x == at].mean())
                bar = line(np.array([at - 0.3, at + 0.3]), np.array([mean, mean]), None, PALETTE[0], width=2.6)
                figure.add_trace(bar, **place)
        figure.add_trace(_dots(e, x, y), **place)
        figure.update_xaxes(**place, **scale.axis())
        figure.update_yaxes(**place, **draw.fit_y(y))
        if place["col"] == 1:
            figure.update_yaxes(**place, title={"text": e.meta.metric.replace("_", " "), "standoff": 6})
    return figure.update_layout(hovermode="closest")


def parallel(e: Experiment) -> go.Figure | None:
    """Each trial a line through its values, coloured by the metric; the last axis is the metric itself."""
    if not e.done:
        return None
    values = np.array([e.value(trial) for trial in e.done])
    low, high = float(values.min()), float(values.max())
    if low == high:  # all tie: in the middle
        low, high = low - (abs(low) or 1.0), high + (abs(high) or 1.0)
    share = (values - low) / (high - low)
    scales, tied = [_Scale(variable, e.done) for variable in e.variables], e.tied
    figure = new_figure(f"{e.name}: trials through their values", f"{e.subtitle()}; dark: good", "", "")
    shade = 1 - share if e.meta.mode == "min" else share
    for trial, value, height, tone in reversed(list(zip(e.done, values, share, shade, strict=True))):
        y = np.array([*(scale.height(trial) for scale in scales), height])
        color = sample_colorscale("Blues", [0.25 + 0.75 * float(tone)])[0]
        trace = line(np.arange(len(y), dtype=float), y, None, color, width=3.4 if trial in tied else 1.8, opacity=0.9)
        figure.add_trace(trace.update(hoverinfo="text", text=f"{e.told(trial)}: {value:.4g}"))
    axes = [*scales, _Scale(Variable("", "uniform", (low, high)), [])]
    names = [*e.names.values(), f"<b>{e.meta.metric.replace('_', ' ')}</b>"]
    for index, axis in enumerate(axes):
        figure.add_vline(x=index, line={"color": "#9A9A9A", "width": 1})
        for height, text in axis.marks():
            figure.add_annotation(
                x=index, y=height, text=draw.plain(text), showarrow=False, xanchor="left", xshift=4,
                font={"size": 12}, bgcolor="rgba(255,255,255,0.7)",
            )  # fmt: skip
    figure.update_xaxes(tickvals=list(range(len(axes))), ticktext=names, range=[-0.15, len(axes) - 0.5], side="top",
                        showline=False, ticks="")  # fmt: skip
    return figure.update_yaxes(visible=False, range=[-0.06, 1.06]).update_layout(
        hovermode="closest", margin={"l": 40, "t": 110, "b": 30}, width=max(draw.WIDTH, 150 * len(axes))
    )


def importance(e: Experiment) -> go.Figure | None:
    """How much of the difference between good and bad trials is each variable's."""
    found = importances(e.ledger, e.variables, e.meta)
    if len(found) < 2:  # of one variable it is 1
        return None
    paths = sorted(found, key=lambda path: found[path])
    figure = new_figure(f"{e.name}: what matters", f"{e.subtitle()}; PED-ANOVA", "", "share of the importance (all: 1)")
    bars = go.Bar(
        x=[found[path] for path in paths], y=[e.names[path] for path in paths], orientation="h",
        marker={"color": PALETTE[0]}, text=[f"{found[path]:.2f}" for path in paths], textposition="outside",
        cliponaxis=False,
    )  # fmt: skip
    figure.add_trace(bars)
    figure.update_xaxes(range=[0, 1.08])
    height = 140 + 44 * len(paths)
    figure.update_layout(height=height, title_y=1 - 22 / height, margin_t=70)  # the title's place is by the height
    return figure.update_layout(bargap=0.35, hovermode="closest", showlegend=False)


# ---- small helpers ---------------------------------------------------------------------------------------------------


class _Scale:
    """Where a variable's values lie on an axis: listed ones side by side, ranges by number or by its logarithm."""

    def __init__(self, variable: Variable, trials: list[Trial]) -> None:
        self.variable = variable
        self.ticks: list[str] = []
        if variable.listed:
            self.ticks = [label(value) for value in variable.args]
            self.keys = [encode(value) for value in variable.args]
        self.gap = any(variable.path not in trial.used for trial in trials)  # some trials have no such key

    def at(self, trial: Trial) -> float:
        """The place of a trial's value; of none, left of all others."""
        if self.variable.path not in trial.used:
            return -1.0 if self.ticks else float("nan")
        value = trial.used[self.variable.path]
        return float(self.keys.index(encode(value))) if self.ticks else float(value)

    def axis(self) -> dict[str, Any]:
        """What plotly needs to know of the axis."""
        if not self.ticks:
            low, high = self.variable.args[:2]
            if self.variable.log:
                ticks = _log_ticks(low, high)
                return {"type": "log", "tickvals": ticks, "ticktext": [f"{x:g}" for x in ticks]}
            return draw.ticks(np.array([low, high], dtype=float))
        places = list(range(-1 if self.gap else 0, len(self.ticks)))
        room = max(4, 36 // len(places))  # letters, side by side
        short = [text if len(text) <= room else f"{text[: room - 1]}…" for text in self.ticks]
        texts = [NOWHERE] * self.gap + [draw.plain(text) for text in short]
        span = [places[0] - 0.6, places[-1] + 0.6]
        return {"tickvals": places, "ticktext": texts, "range": span, "tickangle": 0}

    def height(self, trial: Trial) -> float:
        """The place of a trial's value from 0 to 1."""
        return self._share(self.at(trial))

    def marks(self) -> list[tuple[float, str]]:
        """Heights and texts of the ticks."""
        if self.ticks:
            marks = [(self._share(i), text) for i, text in enumerate(self.ticks)]
            return [(self._share(-1.0), NOWHERE), *marks] if self.gap else marks
        low, high = self.variable.args[:2]
        middle = (low * high) ** 0.5 if self.variable.log else (low + high) / 2
        return [(self._share(x), f"{x:.3g}") for x in (low, middle, high)]

    def _share(self, at: float) -> float:
        if self.ticks:
            first = -1 if self.gap else 0
            return (at - first + 0.5) / (len(self.ticks) - first)
        low, high = self.variable.args[:2]
        scale: Callable[[float], float] = np.log if self.variable.log else float
        return float((scale(at) - scale(low)) / (scale(high) - scale(low)))


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers of a range, as few as tell its scale."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) >= 3:
            break
    return ticks


def _dots(e: Experiment, x: np.ndarray, y: np.ndarray) -> go.Scatter:
    tied = e.tied
    sizes = [13 if trial in tied else 7 for trial in e.done]
    return go.Scatter(
        x=x.tolist(), y=y.tolist(), mode="markers", showlegend=False, hoverinfo="text+y",
        text=[e.told(trial) for trial in e.done],
        marker={"size": sizes, "color": PALETTE[0], "opacity": 0.65, "line": {"color": "white", "width": 1}},
    )  # fmt: skip
