"""Pieces of the lab's pages: one style, and the few blocks of HTML that they are made of."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from slm_lab.lib.files import write_text

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


def write_page(path: Path, title: str, parts: Iterable[str]) -> None:
    """Write a page that asks nothing of the network, of blocks that aren't empty."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{CSS}</style>"
    body = "\n".join(filter(None, parts))
    write_text(path, f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n')


def cards(cells: Iterable[tuple[str, str, str]]) -> str:
    """Big numbers: (kind, value, what it is); kinds are 'main', 'bad' and ''."""
    shown = (
        f'<div class="card {kind}"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for kind, value, name in cells
    )
    return f'<div class="cards">{"".join(shown)}</div>'


def graphs(folder: Path, *patterns: str, caption: str = "") -> str:
    """Graphs of a folder whose file name fits, in order of the patterns: the PNG itself, else a link to the graph."""
    stems = [stem for pattern in patterns for stem in sorted({p.stem for p in _glob(folder, pattern)})]
    figures = "".join(_graph(folder / stem, caption) for stem in stems)
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


def section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}" if body else ""


def details(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text_column: int = -1) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = ""
    for row in rows:
        kinds = (' class="text"' if i == text_column else "" for i in range(len(row)))
        body += "<tr>" + "".join(f"<td{k}>{escape(cell)}</td>" for k, cell in zip(kinds, row, strict=True)) + "</tr>"
    return f'<div class="wide"><table><tr>{cells}</tr>{body}</table></div>'


def number(value: float | None) -> str:
    """Whole numbers with spaces by thousands, others with 3 to 4 digits; – where unknown."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 999.5 or (value == int(value) and abs(value) >= 100):  # 999.5 has four digits in all
        return f"{value:,.0f}".replace(",", "\u2009").replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.3g} s"
