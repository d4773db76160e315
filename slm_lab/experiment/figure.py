"""How the lab's figures look: one style, and the few traces they are made of.

Colours are Okabe and Ito's (2008), told apart by colour-blind readers too. Widths and fonts leave room for DejaVu Sans,
the widest of the fonts a machine may fall back on.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from slm_lab.experiment.metrics import Array

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D3A9B", "#222222")
DASHES = ("solid", "dash", "dot", "dashdot")  # once more round the palette: the next dash
INK, GREY, GRID = "#222222", "#6B6B6B", "#EBEBEB"
FONT = "Helvetica, Arial, DejaVu Sans, sans-serif"
WIDTH, HEIGHT = 800, 480
PANEL_WIDTH, PANEL_HEIGHT, PANEL_COLUMNS = 300, 190, 3
TITLE_CHARS = 66  # of the title's size, in WIDTH


def new_figure(title: str, subtitle: str, y_title: str, x_title: str = "frames") -> go.Figure:
    """An empty figure with one pair of axes; legend on one line between title and data."""
    figure = go.Figure(
        layout=_layout(title, subtitle, WIDTH, HEIGHT, _axis(13)) | {"margin": {"l": 84, "r": 28, "t": 100, "b": 62}}
    )
    figure.update_layout(legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.015, "yanchor": "bottom"})
    figure.update_xaxes(title={"text": x_title, "standoff": 12})
    return figure.update_yaxes(title={"text": y_title, "standoff": 10})


def new_grid(
    title: str, subtitle: str, names: list[str], width: int = PANEL_WIDTH, height: int = PANEL_HEIGHT
) -> go.Figure:
    """An empty grid of panels with a name above each, filled row by row; `panel` gives the place of one."""
    cols = min(len(names), PANEL_COLUMNS)
    rows = math.ceil(len(names) / cols)
    top, bottom, inner = 96, 62, rows * height
    figure = make_subplots(
        rows,
        cols,
        subplot_titles=[_short(f"{name}: ", 38).removesuffix(": ") for name in names],
        horizontal_spacing=0.22 / cols,
        vertical_spacing=min(0.9, 62 / inner),
    )
    figure.update_annotations(font={"size": 13, "color": INK}, yshift=3)
    axis = {**_axis(11), "nticks": 5}
    figure.update_layout(_layout(title, subtitle, max(WIDTH // 2, cols * width), top + bottom + inner, axis))
    return figure.update_layout(margin={"l": 64, "r": 24, "t": top, "b": bottom}, showlegend=False)


def panel(index: int, count: int) -> dict[str, int]:
    """Row and column, from 1, of the panel `index` of a grid of `count`."""
    row, col = divmod(index, min(count, PANEL_COLUMNS))
    return {"row": row + 1, "col": col + 1}


def line(
    x: Array,
    y: Array,
    name: str | None,
    color: str,
    width: float = 2.4,
    opacity: float = 1.0,
    dash: str = "solid",
    markers: bool = False,
) -> go.Scatter:
    """A curve; a lone point, which no line would show, gets a marker. Without a name it stays out of the legend."""
    lone = np.isfinite(y).sum() == 1
    return go.Scatter(
        x=_numbers(x),
        y=_numbers(y),
        mode="markers" if lone else "lines+markers" if markers else "lines",
        name=name and plain(name),
        showlegend=name is not None,
        opacity=opacity,
        line={"color": color, "width": width, "dash": dash},
        marker={"color": color, "size": 4 + 2 * width},
    )


def add_band(figure: go.Figure, x: Array, mean: Array, std: Array, color: str, name: str | None, **place: int) -> None:
    """Shade mean ± std where std is known; a gap in it stays a gap."""
    low, high = mean - std, mean + std
    known = np.flatnonzero(np.isfinite(low))
    xs: list[float | None] = []
    ys: list[float | None] = []
    for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
        xs += [*_numbers(np.concatenate([x[run], x[run][::-1]])), None]  # None: the next shape
        ys += [*_numbers(np.concatenate([high[run], low[run][::-1]])), None]
    if known.size < 2:
        return
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    band = go.Scatter(
        x=xs,
        y=ys,
        mode="lines",
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.16)",
        line={"width": 0, "color": color},
        hoverinfo="skip",
        name=name,
        showlegend=name is not None,
    )
    figure.add_trace(band, **place)


def add_baseline(figure: go.Figure, value: float, name: str) -> None:
    """A dotted line right through the figure, with its name in the legend."""
    end = figure.layout.xaxis.range[1]
    figure.add_trace(
        go.Scatter(
            x=[0, end], y=[value, value], mode="lines", name=name, line={"color": GREY, "width": 1.4, "dash": "dot"}
        )
    )


def legend_right(figure: go.Figure) -> go.Figure:
    """For a long legend: one name a line, right of the data, in room of its own."""
    names = [str(trace.name) for trace in figure.data if trace.showlegend is not False]
    room = 60 + 8 * max(map(len, names), default=0)
    legend = {"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1.0, "yanchor": "top"}
    return figure.update_layout(legend=legend, width=WIDTH + room - 28, margin={"r": room, "t": 80})


def fit_x(figure: go.Figure, end: float) -> None:
    """All x axes from 0 to a little beyond the last frame, so that markers and the last tick are whole."""
    figure.update_xaxes(range=[0, end * 1.02 if end > 0 else 1], **ticks(np.array([end])))


def ticks(values: Array) -> dict[str, Any]:
    """How an axis writes its numbers: 50k and 2M, 3×10⁻⁴, else plain."""
    most = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    if most >= 1000:
        return {"tickformat": "~s"}
    return {"exponentformat": "power"} if most < 0.01 else {}


def fit_y(values: Array) -> dict[str, Any]:
    """`ticks`, and for a constant an axis on which 0 and the constant are told apart: plotly's own is constant ± 1."""
    known = values[np.isfinite(values)]
    # a logged constant may wobble in its last digit, and 6 digits are drawn
    if known.size and np.ptp(known) <= 1e-5 * abs(known[0]) != 0:
        return ticks(known) | {"range": sorted((0.0, 2 * float(known[0])))}
    return ticks(known)


def log_y(figure: go.Figure) -> go.Figure:
    """A logarithmic y axis with 1, 2, 5 of each decade written out: plotly's own has bare digits between powers."""
    values = np.concatenate([np.asarray(trace.y, dtype=float) for trace in figure.data])
    values = values[values > 0]
    if not values.size or values.max() < 10 * values.min():  # less than a decade is better seen on a linear axis
        return figure.update_yaxes(rangemode="tozero")
    exponents = np.floor(np.log10(values))
    decades = range(int(exponents.min()), int(exponents.max()) + 2)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    at = {}
    for power in decades:
        for step in steps:
            factor = "" if step == 1 else f"{step}×"
            at[step * 10.0**power] = f"{factor}10<sup>{power}</sup>".replace("-", "−")
    return figure.update_yaxes(type="log", tickvals=list(at), ticktext=list(at.values()))


def _layout(title: str, subtitle: str, width: int, height: int, axis: dict[str, Any]) -> dict[str, Any]:
    """Of a figure whose axes all look like `axis`: told once, in a template, as plotly takes 40 ms to style a pair."""
    room = TITLE_CHARS * width // WIDTH
    # not title.subtitle: the engine that draws the PNGs is older than that key
    text = f"<b>{_short(title, room)}</b><br><span style='font-size:13px;color:{GREY}'>{plain(subtitle)}</span>"
    return {
        "template": {"layout": {"xaxis": {**axis, "showgrid": False}, "yaxis": axis}},
        "width": width,
        "height": height,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "font": {"family": FONT, "size": 14, "color": INK},
        "title": {"text": text, "font": {"size": 17}, "x": 20 / width, "xanchor": "left", "y": 1 - 22 / height}
        | {"yanchor": "top"},
        "hovermode": "x unified",
    }


def _axis(size: int) -> dict[str, Any]:
    return {
        "showline": True,
        "linecolor": "#9A9A9A",
        "linewidth": 1,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "#9A9A9A",
        "tickfont": {"size": size},
        "title_font": {"size": size + 1},
        "gridcolor": GRID,
        "zeroline": False,
        "automargin": True,
    }


def _short(text: str, room: int) -> str:
    """Text that fits its line; of "name: what" the name is cut."""
    if len(text) > room:
        name, colon, what = text.rpartition(": ")
        text = name[: max(0, room - len(colon + what) - 1)] + "…" + colon + what
    return plain(text)


def plain(text: str) -> str:
    """Text that plotly, which reads <tags>, shows as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _numbers(values: Array) -> list[float | None]:
    """Plain lists, None for a gap: not every engine reads plotly's binary arrays, and 6 digits are enough."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in np.asarray(values, dtype=float).tolist()]
