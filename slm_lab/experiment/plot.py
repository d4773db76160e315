"""Figures of a run, from its saved log rows: per session, per trial, and several runs in one.

Nothing here may break a run: a figure that fails is a warning, one without data isn't drawn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from slm_lab.experiment import figure as draw
from slm_lab.experiment.analysis import Run, list_trials, load_run
from slm_lab.experiment.figure import DASHES, PALETTE, add_band, line, new_figure, new_grid
from slm_lab.experiment.metrics import BASE_COLUMNS, Array, align, mean_std, session_metrics
from slm_lab.experiment.png import write_pngs
from slm_lab.experiment.xray_plot import xray_builders
from slm_lab.lib.errors import plural

logger = logging.getLogger("slm_lab")

LAST = "last episode, mean over worlds"
RETURN, RETURN_MA = "return", "return (mean of last 100 episodes)"
TRIAL_GRAPHS = {  # local metric: title, y axis
    "mean_returns": ("training return", f"return ({LAST})"),
    "mean_returns_ma": ("training return", RETURN_MA),
    "strengths": ("strength", "strength (return − random baseline)"),
    "sample_efficiencies": ("sample efficiency", "sample efficiency (1/frame)"),
    "training_efficiencies": ("training efficiency", "training efficiency (1/optimiser step)"),
    "stabilities": ("stability", "stability (1: no drop)"),
    "consistencies": ("consistency", "consistency (1: all sessions alike)"),
    "eval_mean_returns": ("evaluation return", "return (greedy evaluation)"),
}
LOG_GRAPHS = ("sample_efficiencies", "training_efficiencies")
WINDOW = {"stabilities": (-1.0, 1.05), "consistencies": (-1.0, 1.05)}
Builder = Callable[[], go.Figure | None]  # None: there is nothing to draw
Curve = tuple[Array, Array]  # frames [N], values [N]


# ---- what is drawn for a run -----------------------------------------------------------------------------------------


def draw_run(run_dir: str | Path, png: bool = True, timeout: float = 120.0) -> list[Path]:
    """(Re)draw all graphs of a run folder from its CSV and JSON: `graph/*.html`, then `.png`; the files written.

    `timeout` bounds the PNGs, all together, in seconds. LabError where the folder isn't one of a run.
    """
    builders: dict[str, Builder] = {}
    for trial in list_trials(run_dir):
        run = load_run(run_dir, trial)
        for session in run.train:
            builders |= _session_builders(run, session)
        builders |= _trial_builders(run) | xray_builders(run)
    return write_figures(builders, Path(run_dir) / "graph", png, timeout)


def draw_enjoyed(run_dir: str | Path, trial: int = 0) -> list[Path]:
    """Draw the memory x-ray of the episodes that mode enjoy has played; the files written."""
    return write_figures(
        dict(xray_builders(load_run(run_dir, trial), "s*_enjoy")), Path(run_dir) / "graph", png=True, timeout=120.0
    )


def multi_trial_graph(
    runs: Sequence[tuple[str, str | Path] | tuple[str, str | Path, int]],
    out_dir: str | Path,
    name: str,
    png: bool = True,
    timeout: float = 120.0,
    title: str | None = None,
) -> list[Path]:
    """Compare runs, given as (label, run folder) or with a trial: mean return ± std over its sessions, a line a run.

    Writes `{name}_multi_trial_graph_mean_returns_ma_vs_frames`. LabError where a folder isn't one of a run.
    """
    loaded = [(label, load_run(*where)) for label, *where in runs]
    stem = f"{name}_multi_trial_graph_mean_returns_ma_vs_frames"
    return write_figures({stem: lambda: _multi_trial(title or name, loaded)}, Path(out_dir), png, timeout)


def _session_builders(run: Run, session: int) -> dict[str, Builder]:
    stem, train = run.stem(session), run.train[session]
    builders: dict[str, Builder] = {
        f"{stem}_session_graph_train_mean_returns_vs_frames": lambda: _session_return(run, session, raw=True),
        f"{stem}_session_graph_train_mean_returns_ma_vs_frames": lambda: _session_return(run, session, raw=False),
        f"{stem}_session_graph_train_variables_vs_frames": lambda: _variables(
            f"{run.name}: training variables", _session_text(run, session), [train]
        ),
    }
    if session in run.evaluation:
        builders[f"{stem}_session_graph_eval_mean_returns_vs_frames"] = lambda: _session_eval(run, session)
    return builders


def _trial_builders(run: Run) -> dict[str, Builder]:
    local = run.metrics()["local"]
    frames = np.array(local["frames"])
    evaluated = [_known(df, "total_reward") for s, df in run.evaluation.items() if s not in run.left_out]
    curves = {metric: (frames, np.array(local[metric], dtype=float)) for metric in TRIAL_GRAPHS if metric in local}
    if evaluated:
        curves["eval_mean_returns"] = align([x for x, _ in evaluated], [y for _, y in evaluated])

    def build(metric: str, x: Array, values: Array) -> Builder:
        return lambda: _trial_metric(run, metric, x, values.reshape(-1, len(x)) if len(x) else np.empty((0, 0)))

    stem = run.stem()
    builders = {f"{stem}_trial_graph_{metric}_vs_frames": build(metric, *curve) for metric, curve in curves.items()}
    builders[f"{stem}_trial_graph_variables_vs_frames"] = lambda: _variables(
        f"{run.name}: training variables", _trial_text(run), run.whole
    )
    return builders


def write_figures(builders: dict[str, Builder], folder: Path, png: bool, timeout: float) -> list[Path]:
    """Build, write .html (plotly.js once a folder), then .png; what fails or is empty is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    pages, pictures = [], {}
    for stem, build in builders.items():
        page = folder / f"{stem}.html"
        try:
            for old in (page, page.with_suffix(".png")):  # nothing stale beside what is drawn now
                old.unlink(missing_ok=True)
            figure = build()
            if figure is None:
                continue
            config = {"displaylogo": False}
            figure.write_html(page, include_plotlyjs="directory", include_mathjax=False, div_id=stem, config=config)
            pages.append(page)
            pictures[folder / f"{stem}.png"] = figure.to_json()
        except OSError:  # nor would the next one be written
            raise
        except Exception as error:  # a graph is never worth a run
            logger.warning("graph %s not drawn: %r", stem, error)
    return [*pages, *(write_pngs(pictures, timeout) if png else [])]


# ---- figures ---------------------------------------------------------------------------------------------------------


def _session_return(run: Run, session: int, raw: bool) -> go.Figure | None:
    df = run.train[session]
    mean, last = _known(df, "total_reward_ma"), _known(df, "total_reward")
    if not mean[0].size and not last[0].size:
        return None
    figure = new_figure(f"{run.name}: training return", _session_text(run, session), RETURN if raw else RETURN_MA)
    if raw:
        figure.add_trace(line(*last, LAST, PALETTE[0], width=1, opacity=0.4))
    figure.add_trace(line(*mean, "mean of last 100 episodes", PALETTE[0]))
    return _finish(figure, [df], run.random_return)


def _session_eval(run: Run, session: int) -> go.Figure | None:
    df = run.evaluation[session]
    frames, returns = _known(df, "total_reward")
    if not frames.size:
        return None
    figure = new_figure(f"{run.name}: evaluation return", _session_text(run, session), "return (evaluation)")
    if "total_reward_std" in df:
        std = df.loc[df["total_reward"].notna(), "total_reward_std"].to_numpy()
        add_band(figure, frames, returns, std, PALETTE[1], "± 1 std of the episodes")
    figure.add_trace(line(frames, returns, "mean of the evaluation episodes", PALETTE[1], markers=len(frames) <= 50))
    return _finish(figure, [df], run.random_return)


def _trial_metric(run: Run, metric: str, frames: Array, sessions: Array) -> go.Figure | None:
    """Mean of the sessions with a band of one std, each session faintly; those that failed or aren't at their end
    dotted, outside the mean."""
    failed = _left_out_curves(run, metric)
    mean, std = _mean_of_most(sessions)
    if not np.isfinite(mean).any() and not failed:
        return None
    if metric in LOG_GRAPHS or metric in WINDOW:
        # the first values of a few would spread the axis by decades
        sessions = np.where(np.isfinite(mean), sessions, np.nan)
    if metric in WINDOW:
        std[mean < WINDOW[metric][0]] = np.nan
    title, y_title = TRIAL_GRAPHS[metric]
    figure = new_figure(f"{run.name}: {title}", _trial_text(run), y_title)
    if len(sessions) > 1:
        for index, session in enumerate(sessions):
            figure.add_trace(line(frames, session, None if index else "sessions", PALETTE[0], width=1, opacity=0.35))
        if metric not in LOG_GRAPHS:
            add_band(figure, frames, mean, std, PALETTE[0], "± 1 std")
    kinds = [kind for kind, found in (("failed", run.failed), ("unfinished", run.unfinished)) if found]
    for index, curve in enumerate(failed):
        name = None if index else f"{' or '.join(kinds)} sessions"
        figure.add_trace(line(*curve, name, PALETTE[1], width=1.4, dash="dot"))
    if np.isfinite(mean).any():
        name = f"mean of {len(sessions)} sessions" if len(sessions) > 1 else y_title.split(" (")[0]
        figure.add_trace(line(frames, mean, name, PALETTE[0]))
    baseline = 0.0 if metric == "strengths" and run.random_return is not None else None
    baseline = run.random_return if "mean_returns" in metric else baseline
    return _focus(_finish(figure, list(run.train.values()), baseline), metric, sessions)


def mean_return(run: Run) -> Curve:
    """Frames and mean over the sessions of the mean return of 100 episodes."""
    local = run.metrics()["local"]
    frames = np.array(local["frames"])
    return frames, _mean_of_most(np.reshape(local["mean_returns_ma"], (-1, len(frames) or 1)))[0]


def _multi_trial(title: str, runs: Sequence[tuple[str, Run]]) -> go.Figure | None:
    curves = []
    for label, run in runs:
        local = run.metrics()["local"]
        frames = np.array(local["frames"])
        mean, std = _mean_of_most(np.reshape(local["mean_returns_ma"], (-1, len(frames) or 1)))
        if np.isfinite(mean).any():
            curves.append((label, run, frames, mean, std))
    if not curves:
        return None
    counts = sorted({len(run.whole) for _, run, *_ in curves})
    each = plural(counts[0], "session") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} sessions"
    figure = new_figure(f"{title}: training return", f"mean ± 1 std, {each} each", RETURN_MA)
    for index, (_, _, frames, mean, std) in enumerate(curves):
        add_band(figure, frames, mean, std, PALETTE[index % len(PALETTE)], None)
    for index, (label, _, frames, mean, _) in enumerate(curves):
        dash = DASHES[index // len(PALETTE) % len(DASHES)]
        figure.add_trace(line(frames, mean, label, PALETTE[index % len(PALETTE)], dash=dash))
    baselines = {run.random_return for _, run, *_ in curves}
    _finish(figure, [df for _, run, *_ in curves for df in run.whole], baselines.pop() if len(baselines) == 1 else None)
    return draw.legend_right(figure)


def _variables(title: str, subtitle: str, sessions: list[pd.DataFrame]) -> go.Figure | None:
    """A panel for each tracked variable of one session (raw, and its moving average) or of several (mean and band)."""
    skip = {*BASE_COLUMNS} - {"episode_length"}
    names = list(dict.fromkeys(c for df in sessions for c in df.columns if c not in skip and df[c].notna().any()))
    if not names:
        return None
    window = max(map(len, sessions)) // 40 * 2 + 1  # odd: as many points on either side
    smooth = f"centred moving average of {plural(window, 'log point')}"
    how = f"bold: {smooth}" if len(sessions) == 1 else f"mean ± 1 std, {smooth}"
    figure = new_grid(title, f"{subtitle}; {how}" if window > 1 else subtitle, [n.replace("_", " ") for n in names])
    draw.fit_x(figure, max(float(df["frame"].max()) for df in sessions))
    for index, name in enumerate(names):
        place = draw.panel(index, len(names))
        curves = [_known(df, name) for df in sessions]
        _fill_panel(figure, place, curves, window)
        figure.update_yaxes(**place, **draw.fit_y(np.concatenate([y for _, y in curves])))
        if index + draw.PANEL_COLUMNS >= len(names):
            figure.update_xaxes(**place, title={"text": "frames", "standoff": 6})
    return figure


def _fill_panel(figure: go.Figure, place: dict[str, int], curves: list[Curve], window: int) -> None:
    smooth = [pd.Series(y).rolling(window, min_periods=1, center=True).mean().to_numpy() for _, y in curves]
    if len(curves) == 1:
        frames, mean = curves[0][0], smooth[0]
        if window > 1:
            figure.add_trace(line(*curves[0], None, PALETTE[0], width=1, opacity=0.4), **place)
    else:
        frames, values = align([x for x, _ in curves], smooth)
        mean, std = _mean_of_most(values)
        add_band(figure, frames, mean, std, PALETTE[0], None, **place)
    figure.add_trace(line(frames, mean, None, PALETTE[0], width=2), **place)


# ---- small helpers ---------------------------------------------------------------------------------------------------


def _finish(figure: go.Figure, sessions: list[pd.DataFrame], random_return: float | None) -> go.Figure:
    draw.fit_x(figure, max(float(df["frame"].max()) for df in sessions))
    if random_return is not None:
        draw.add_baseline(figure, random_return, "random baseline")
    values = [np.asarray(trace.y, dtype=float) for trace in figure.data]
    figure.update_yaxes(**draw.fit_y(np.concatenate(values)))
    if sum(trace.showlegend is not False for trace in figure.data) > 1:
        return figure
    return figure.update_layout(showlegend=False, height=draw.HEIGHT - 30, margin={"t": 70})


def _focus(figure: go.Figure, metric: str, sessions: Array) -> go.Figure:
    """Efficiencies fall like 1/t: a logarithmic axis. The others are huge and negative while strength is near 0: show
    where their meaning is, the reader of the .html may zoom out.
    """
    if metric in LOG_GRAPHS:
        return draw.log_y(figure)
    if metric in WINDOW:
        low, high = WINDOW[metric]
        figure.update_yaxes(range=[max(low, min(0.0, np.nanmin(sessions, initial=0.0))), high])
    return figure


def _mean_of_most(sessions: Array) -> tuple[Array, Array]:
    """Mean and std [N] where more than half of the sessions [S, N] have a value: with fewer it would jump.

    A point between two gaps goes too, unless it is all there is: a line doesn't show it, yet the axis would reach to
    it.
    """
    mean, std = mean_std(sessions)
    known = 2 * np.isfinite(sessions).sum(axis=0) > len(sessions)
    beside = np.append(known[1:], False) | np.insert(known[:-1], 0, False)
    if (known & beside).any():
        known &= beside
    mean[~known] = std[~known] = np.nan
    return mean, std


def _left_out_curves(run: Run, metric: str) -> list[Curve]:
    if metric not in ("mean_returns", "mean_returns_ma", "strengths"):
        return []
    failed = [session_metrics(df, run.random_return)["local"] for s, df in run.train.items() if s in run.left_out]
    curves = [(np.array(local["frames"]), np.array(local[metric])) for local in failed]
    return [curve for curve in curves if np.isfinite(curve[1]).any()]


def _known(df: pd.DataFrame, column: str) -> Curve:
    """Frames and values of the rows where a column has one."""
    known = df[df[column].notna()] if column in df else df.iloc[:0]
    return known["frame"].to_numpy(), known.get(column, known["frame"]).to_numpy()


def _session_text(run: Run, session: int) -> str:
    return f"trial {run.trial}, session {session}{run.ended(session)}"


def _trial_text(run: Run) -> str:
    failed = f", {len(run.failed)} failed" if run.failed else ""
    unfinished = f", {len(run.unfinished)} unfinished" if run.unfinished else ""
    return f"trial {run.trial}, {plural(len(run.train.keys() | run.failed), 'session')}{failed}{unfinished}"
