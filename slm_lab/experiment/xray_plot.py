"""Pictures of the memory x-ray: what was held and for how long, what was looked at, what an entry is worth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from slm_lab.experiment import figure as draw
from slm_lab.experiment.analysis import Run
from slm_lab.experiment.figure import GREY, PALETTE
from slm_lab.experiment.xray import EARLIER, Episode, load_episodes, load_figures
from slm_lab.lib.errors import plural

BLUE, ORANGE, RED = PALETTE[5], PALETTE[4], PALETTE[1]
CAPTIONS = {  # of each picture, for one who hasn't read the code
    "retention": "What is held in memory: each blue line is an entry, from the step at which it was written to the "
    "step at which it was dropped; the number behind it is the slot that it was in (those held longest have one, and "
    "others where there is room; in the .html, point at an end of a line). Orange: the cue, what must be remembered, "
    "while it is held; red: when it is not. Where memory outlives the episode, a grey line below all says when entries "
    "of earlier ones are held.",
    "attention": "What the agent looks at: at each step (across) the entries that it holds, by when they were written "
    "(up); the darker, the more attention. The shares of a column sum to 1. Orange: the cue. Where memory outlives the "
    "episode, the squares below all are the entries of earlier ones together.",
    "worth": "What the memory thinks its entries are worth, by when they were written: filled, held at the last "
    "decision; hollow, dropped before, as it last was. The scale is the core's own: of two entries of one age the "
    "higher stays. What an entry loses with age (StrategicMemory: its decay) isn't in it, so a newer one may outlast a "
    "higher. Entries of earlier episodes are left out.",
}
SHADES = [[0, "#E3EDF5"], [0.1, "#A8CCE4"], [0.35, "#3F8FC4"], [1, "#08264F"]]  # of attention
WRITTEN, NOW, WORTH = "step when written", "step of the episode", "worth (the core's own scale)"
BAR = {
    "title": {"text": "attention", "side": "right", "font": {"size": 13}},
    "thickness": 12,
    "outlinewidth": 0,
    "tickformat": ".0%",
    "tickfont": {"size": 12},
}
WIDE, NARROW, HIGH = 720, 440, 320  # of one panel, of each of two
LINE = 10  # pixels, of a number's height; it is as wide
TRIED = 500  # entries, held longest, for whose numbers room is looked for


def xray_builders(run: Run, pattern: str = "*") -> dict[str, Callable[[], go.Figure | None]]:
    """{name of the graph: what draws it}, of the x-rays of a trial whose files fit."""
    files = sorted((run.path / "info").glob(f"{run.stem()}_{pattern}_xray.json"))
    return {
        f"{file.stem.removesuffix('_xray')}_graph_xray_{kind}": partial(_figure, run, file, kind)
        for file in files
        for kind in CAPTIONS
    }


def _figure(run: Run, file: Path, kind: str) -> go.Figure | None:
    what, fill = {
        "retention": ("what is kept", _retention),
        "attention": ("what is looked at", _attention),
        "worth": ("what entries are worth", _worth),
    }[kind]
    shown = sorted(load_episodes(file), key=lambda episode: episode.target or 0)
    if not shown:  # none ended in the worlds that are watched
        return None
    width, subtitle = NARROW if len(shown) > 1 else WIDE, _subtitle(load_figures(file), shown, file)
    figure = draw.new_grid(f"{run.name}: {what}", subtitle, list(map(_name, shown)), width=width, height=HIGH)
    figure.update_layout(hovermode="closest", showlegend=True, margin={"t": 128, "b": 66}, height=HIGH + 194)
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1 + 34 / HIGH, "yanchor": "bottom"})
    figure.update_layout(coloraxis={"colorscale": SHADES, "cmin": 0, "cmax": 1, "colorbar": BAR})
    told: set[str] = set()
    for index, episode in enumerate(shown):
        place = draw.panel(index, len(shown))
        for trace in fill(episode, width - 90):
            if len(trace.x):
                trace.update(showlegend=bool(trace.name) and trace.name not in told, legendgroup=trace.name)
                told |= {trace.name}
                figure.add_trace(trace, **place)
        _axes(figure, episode, kind, place)
    return figure


def _subtitle(figures: dict[str, Any], episodes: list[Episode], file: Path) -> str:
    *_, session, mode, _ = file.stem.split("_")  # ..._s0_session_xray
    which = f"session {session[1:]}" + (", played by enjoy" if mode == "enjoy" else "")
    every = max(_stride(episode) for episode in episodes)
    thinned = f"; one step in {every} is shown" if every > 1 else ""
    return f"{which} at frame {figures['frame']:,}, {plural(figures['slots'], 'slot')}; greedy episodes{thinned}"


def _name(episode: Episode) -> str:
    answer = "" if episode.target is None or episode.target < 0 else f"right answer {episode.target}, "
    return f"{answer}return {episode.total:.3g}".replace("-", "−")


def _axes(figure: go.Figure, episode: Episode, kind: str, place: dict[str, int]) -> None:
    end, pad = float(episode.at[-1]), _pad(episode)
    steps = {"range": [-pad, end + pad], **draw.ticks(episode.at)}
    written = {**steps, "range": [_below(episode) - pad, end + pad]} if (episode.step == EARLIER).any() else steps
    x_title, y_title, y_axis = (WRITTEN, WORTH, {"matches": "y"}) if kind == "worth" else (NOW, WRITTEN, written)
    figure.update_xaxes(title={"text": x_title, "standoff": 8}, **steps, **place)
    figure.update_yaxes(title={"text": y_title, "standoff": 6}, **y_axis, **place)


# ---- what is drawn of an episode -------------------------------------------------------------------------------------


def _retention(episode: Episode, width: int) -> list[go.Scatter]:
    size = _mark(episode, width)
    at, cue, held = _cue(episode)
    entries, first, last, slots = _entries(episode)
    half = 0.5 * _stride(episode)
    gaps = np.full(len(entries), np.nan)
    x = np.stack([np.minimum(entries, first) - 0.5, last + half, gaps], axis=1).ravel()
    y = np.stack([entries, entries, gaps], axis=1).ravel()
    lines = draw.line(x, y, "an entry", BLUE, width=max(1.5, min(6.0, 0.45 * size)))
    told = [f"the entry of step {entry}, in slot {slot}" for entry, slot in zip(entries, slots, strict=True)]
    lines.update(connectgaps=False, mode="lines", text=np.repeat(told, 3), hovertemplate="%{text}<extra></extra>")
    return [
        _diagonal(episode),
        lines,
        _slot_numbers(episode, last + half, entries, slots, width),
        _marks(*_earlier(episode)[:2], "of earlier episodes", GREY, 0.6 * size),
        _marks(at[held], cue[held], "the cue, held", ORANGE, size),
        _marks(at[~held], cue[~held], "the cue, not held", RED, max(3.0, 0.6 * size)),
    ]


def _slot_numbers(episode: Episode, x: np.ndarray, y: np.ndarray, slots: np.ndarray, width: int) -> go.Scatter:
    """The slot of each entry behind the end x of its line at y: of those held longest first, wherever there is room
    beside other numbers and lines."""
    scale = np.array([width, HIGH]) / (episode.at[-1] + 2 * _pad(episode))  # pixels a step
    right, up, left = x * scale[0], y * scale[1], y * scale[0]
    numbered = np.zeros(len(x), bool)
    for n in np.argsort(y - x, kind="stable")[:TRIED]:
        beside = numbered & (np.abs(right - right[n]) < 2 * LINE)
        across = (left < right[n] + 2 * LINE) & (right > right[n])  # lines that go on where it would stand
        numbered[n] = not ((np.abs(up - up[n]) < LINE) & (beside | across)).any()
    numbers = draw.line(x[numbered], y[numbered], None, GREY)
    numbers.update(mode="text", text=[f"\u00a0{slot}" for slot in slots[numbered]], textposition="middle right")
    return numbers.update(textfont={"size": LINE, "color": GREY}, cliponaxis=False)


def _attention(episode: Episode, width: int) -> list[go.Scatter]:
    size = _mark(episode, width)
    column, slot = np.nonzero(episode.step >= 0)
    weight = episode.weight[column, slot]
    order = np.argsort(weight, kind="stable")  # the darkest on top
    x, y, weight = episode.at[column][order], episode.step[column, slot][order], weight[order]
    entries, earlier = _shades(x, y, weight, size, "the entry of step %{y}"), _earlier(episode)
    at, cue, _ = _cue(episode)
    return [
        _diagonal(episode),
        entries,
        _shades(*earlier, size, "entries of earlier episodes"),
        _marks(at, cue, "the cue", ORANGE, max(2.0, 0.3 * size)),
    ]


def _shades(x: np.ndarray, y: np.ndarray, weight: np.ndarray, size: float, what: str) -> go.Scatter:
    """Squares as dark as the attention `weight` on `what`."""
    squares = _marks(x, y, "", BLUE, size)
    squares.marker = {
        "symbol": "square", "size": size, "color": [float(f"{w:.3g}") for w in weight], "coloraxis": "coloraxis",
    }  # fmt: skip
    squares.hovertemplate = f"step %{{x}}: %{{marker.color:.0%}} on {what}<extra></extra>"
    return squares


def _worth(episode: Episode, width: int) -> list[go.Scatter]:
    entries, _, last, _ = _entries(episode)
    column = np.searchsorted(episode.at, last)
    worth = np.array([episode.worth[c][episode.step[c] == entry][0] for c, entry in zip(column, entries, strict=True)])
    held = last == episode.at[-1]
    is_cue = np.isin(entries, episode.cue[-1])
    kinds = [
        (~held & ~is_cue, "dropped", GREY, 6, "circle-open"),
        (held & ~is_cue, "held at the last decision", PALETTE[0], 8, "circle"),
        (held & is_cue, "the cue, held", RED, 15, "star"),
        (~held & is_cue, "the cue, dropped", RED, 15, "star-open"),
    ]
    return [
        _marks(entries[which], worth[which], name, color, size, symbol) for which, name, color, size, symbol in kinds
    ]


# ---- pieces ----------------------------------------------------------------------------------------------------------


def _entries(episode: Episode) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The entries that are seen, by when they were written [N], the first and last step at which each was held, and the
    slot in which it was last.
    """
    column, slot = np.nonzero(episode.step >= 0)
    entries, which = np.unique(episode.step[column, slot], return_inverse=True)
    first, last = np.full(len(entries), episode.at[-1]), np.zeros(len(entries), np.int64)
    np.minimum.at(first, which, episode.at[column])
    np.maximum.at(last, which, episode.at[column])
    slots = np.zeros(len(entries), np.int64)
    slots[which] = slot
    return entries, first, last, slots


def _earlier(episode: Episode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The steps at which entries of earlier episodes are held, where they are drawn, and their attention, each [N]."""
    earlier = episode.step == EARLIER
    held = earlier.any(axis=1)
    share = (episode.weight * earlier).sum(axis=1)[held]
    return episode.at[held], np.full(len(share), _below(episode)), share


def _pad(episode: Episode) -> float:
    return 0.03 * float(episode.at[-1]) + 0.6


def _below(episode: Episode) -> float:
    return -2 * _pad(episode)


def _cue(episode: Episode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The steps at which a cue had been shown, when that was, and whether it was held, each [N]."""
    column, which = np.nonzero((episode.cue >= 0) & (episode.cue <= episode.at[:, None]))
    cue = episode.cue[column, which]
    return episode.at[column], cue, (episode.step[column] == cue[:, None]).any(axis=1)


def _stride(episode: Episode) -> int:
    return int(np.diff(episode.at).max(initial=1))


def _mark(episode: Episode, width: int) -> float:
    """Size of a square that fills a step of a panel `width` wide; still seen where the steps are many."""
    return float(np.clip(min(width, HIGH) * _stride(episode) / (episode.at[-1] + 1), 4.0, 15.0))


def _marks(
    x: np.ndarray, y: np.ndarray, name: str, color: str, size: float, symbol: str = "square"
) -> go.Scatter:  # fmt: skip
    marks = draw.line(x, y, name or None, color)
    return marks.update(mode="markers", marker={"color": color, "size": size, "symbol": symbol})


def _diagonal(episode: Episode) -> go.Scatter:
    """Nothing is above it: an entry can't be held before it is written."""
    end = np.array([0.0, float(episode.at[-1])])
    return draw.line(end, end, "now", GREY, width=1, dash="dot")
