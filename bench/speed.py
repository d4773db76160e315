"""How fast the lab is and how much RAM it takes, beside other libraries in the same run.

python -m bench.speed [WORKLOAD ...] [--turns N] [--core N] [--quick] [--page]

The sides of a workload take turns (A B A B ...), each turn in a fresh process with one thread, all on one core. Samples
are kept in docs/benchmarks/speed.json, table and graph in docs/benchmarks/speed.md; a workload named on the command
line is run anew, the others keep their last samples. `--quick` does a tenth of the work once and keeps nothing;
`--page` runs nothing and writes the page again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import plotly.graph_objects as go
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.commit import commit, machine
from bench.turn import workloads
from bench.words import count
from bench.workload import Workload
from slm_lab.experiment.display import say
from slm_lab.experiment.figure import INK, PALETTE, new_figure
from slm_lab.experiment.png import write_pngs
from slm_lab.lib.errors import LabError, did_you_mean
from slm_lab.lib.files import write_atomic

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "docs" / "benchmarks" / "speed.json"
PAGE = SAMPLES.with_suffix(".md")
PICTURE = SAMPLES.with_suffix(".png")
TURNS = 3
QUICK = 0.1  # of the work
PATIENCE = 600  # seconds of a turn
SAME = 0.05  # work that differs by no more is the same
OURS = "ours"

# workload, side, turn, value, work; version of the package, commit, date, machine; or absent, or failed
Sampled = dict[str, Any]


# ---- running ---------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 if a turn failed, 2 for what the user gave."""
    args = _parser().parse_args(argv)
    console, known = Console(), workloads()
    try:
        chosen = _chosen(args.workloads, known)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    kept = json.loads(SAMPLES.read_text()) if SAMPLES.exists() else []
    if args.page:
        return 0 if save(kept, known) else 1
    turns, share = (1, QUICK) if args.quick else (args.turns, 1.0)
    failed = 0
    text = TextColumn("{task.description}", markup=False)
    with Progress(text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task("", total=sum(turns * len(workload.sides) for workload in chosen))
        for workload in chosen:
            found = list[Sampled]()
            for side, number in order(workload, turns):
                progress.update(bar, description=f"{workload.name}: {side}, turn {number + 1}")
                try:
                    found.append(turn(workload, side, number, share, args.core))
                except LabError as error:
                    failed += 1
                    found.append({"workload": workload.name, "side": side, "turn": number, "failed": str(error)})
                    say(console, f"FAILED: {workload.name}, {side}: {error}")
                progress.advance(bar)
            for line in told(workload, found):
                say(console, line)
            if not args.quick:
                kept = [x for x in kept if x["workload"] != workload.name] + found
                save(kept, known)
    say(console, "" if args.quick else str(PAGE))
    return 1 if failed else 0


def order(workload: Workload, turns: int) -> Iterator[tuple[str, int]]:
    """Sides by turns, so that what else the machine does falls on all alike."""
    for number in range(turns):
        for side in workload.sides:
            yield side, number


def turn(workload: Workload, side: str, number: int, share: float, core: int) -> Sampled:
    """One turn in a process of its own. Raises `LabError` where it fails."""
    named, who = {"workload": workload.name, "side": side, "turn": number}, workload.sides[side]
    if who.absent():
        return {**named, "absent": who.package}
    said = alone([sys.executable, "-W", "ignore", "-m", "bench.turn", workload.name, side, str(share)], core)
    facts = {"version": who.version(), "commit": commit(), "date": time.strftime("%Y-%m-%d"), "machine": machine()}
    return {**named, **json.loads(said.splitlines()[-1]), **facts}


def alone(command: Sequence[str], core: int) -> str:
    """What a command says that runs with one thread on one core. Raises `LabError` with its last words if it fails."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **threads, "PYTHONPATH": path}, capture_output=True, text=True,
            timeout=PATIENCE, preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise LabError(f"not done after {PATIENCE} s") from error
    if done.returncode:
        raise LabError(done.stderr[-1500:].strip() or f"exit code {done.returncode}")
    return done.stdout


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_lab.py bench speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="default: all")
    parser.add_argument("--turns", type=count, default=TURNS, metavar="N", help=f"of each side; default: {TURNS}")
    cores = sorted(os.sched_getaffinity(0))
    parser.add_argument(
        "--core", type=int, choices=cores, default=cores[-1], help=f"that all turns run on; default: {cores[-1]}"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, once, to see it work; keeps nothing")
    parser.add_argument("--page", action="store_true", help="run nothing: write the page of the samples there are")
    return parser


def _chosen(names: Sequence[str], known: dict[str, Workload]) -> list[Workload]:
    for name in names:
        if name not in known:
            raise LabError(f"unknown workload {name!r}.{did_you_mean(name, known)}")
    return [workload for name, workload in known.items() if not names or name in names]


# ---- what came of it -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """Median, least and largest of the turns."""

    values: tuple[float, ...]

    @property
    def middle(self) -> float:
        return median(self.values)

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{number(self.middle)} ({number(low)} – {number(high)})"


class Found:
    """The samples of one workload, read together."""

    def __init__(self, workload: Workload, samples: Sequence[Sampled]) -> None:
        self.workload = workload
        self.samples = [x for x in samples if x["workload"] == workload.name]
        measured = [x for x in self.samples if "value" in x]
        # who can't be installed, or failed each turn, was not beaten
        lacking = {x["side"] for x in self.samples} - {x["side"] for x in measured}
        failed = {x["side"] for x in self.samples if "failed" in x}
        self.lacking = {side: "failed" if side in failed else "absent" for side in sorted(lacking)}
        self.by_side = {
            side: {x["turn"]: x for x in measured if x["side"] == side}
            for side in workload.sides
            if any(x["side"] == side for x in measured)
        }

    def span(self, side: str) -> Span:
        return Span(tuple(x["value"] for x in self.by_side[side].values()))

    @property
    def best(self) -> str | None:
        """The peer with the best median; None where there is none."""
        peers = [side for side in self.by_side if side != OURS]
        choose = min if self.workload.less else max
        return choose(peers, key=lambda side: self.span(side).middle, default=None)

    @property
    def ratio(self) -> Span | None:
        """How many times better ours is than the best peer, turn by turn: beyond 1 ours wins."""
        if self.best is None or OURS not in self.by_side:
            return None
        ours, best = self.by_side[OURS], self.by_side[self.best]
        both = [(ours[n]["value"], best[n]["value"]) for n in ours if n in best]
        return Span(tuple(b / a if self.workload.less else a / b for a, b in both)) if both else None

    @property
    def reached(self) -> bool | None:
        """Whether the target holds; None where it can't be told, as when all peers are absent."""
        if OURS not in self.by_side:
            return None
        if self.workload.most is not None:
            return self.span(OURS).middle <= self.workload.most
        ratio = self.ratio
        if ratio is None or self.workload.ratio is None:
            return None
        if ratio.middle < self.workload.ratio:
            return False
        return None if self.lacking else True  # the one that lacks might be the best

    @property
    def work(self) -> str:
        """What was done in a turn, and by whom it was not: those whose updates (or rows) to a frame differ."""
        if OURS not in self.by_side:
            return ""
        works = {side: [x["work"] for x in turns.values()] for side, turns in self.by_side.items()}
        done = {side: turns[0] for side, turns in works.items()}
        counts = {side: ", ".join(f"{n:,} {what}" for what, n in work.items()) for side, work in done.items()}
        other = [
            f"**{side} {counts[side]}**"
            for side, turns in works.items()
            if not all(alike(work, done[OURS]) for work in turns)
        ]
        told = "; ".join(other) or ("all sides alike" if len(done) > 1 else "")
        return "; ".join(filter(None, (counts[OURS], told)))


def alike(work: dict[str, float], ours: dict[str, float]) -> bool:
    """The same updates to a frame; where only one thing was counted, as much of it."""
    if {"frames", "updates"} <= set(work) & set(ours):
        return abs(work["updates"] / work["frames"] / (ours["updates"] / ours["frames"]) - 1) <= SAME
    return work == ours


def number(x: float) -> str:
    """Three digits, and none beyond: 12,300; 1.23; 0.0123."""
    if x == 0:
        return "0"
    if abs(x) >= 100:
        digits = len(str(int(abs(x)))) - 3
        return f"{round(x, -digits):,.0f}"
    return f"{x:.3g}"


def told(workload: Workload, samples: Sequence[Sampled]) -> list[str]:
    """For the terminal, when a workload is done."""
    found = Found(workload, samples)
    lines = [f"{workload.name}: {side} {found.span(side)} {workload.unit}" for side in found.by_side]
    lines += [f"{workload.name}: {side} {why}" for side, why in found.lacking.items()]
    if found.ratio is not None:
        lines.append(f"{workload.name}: {found.ratio} times {found.best}; done: {found.work}")
    return lines


# ---- the page --------------------------------------------------------------------------------------------------------

HEAD = """# Speed and RAM, measured

Written by `python run_lab.py bench speed`; [bench.md](../bench.md#speed) says how it measures. Medians (least –
largest) of all turns of a side; sides take turns, in processes of their own with one thread, all on one core. Rates are
by CPU seconds, times of whole commands by the clock on the wall. *Times the best peer*: turn by turn; more than 1 is in
our favour. A peer that is absent was not installed, one that failed didn't run: nothing is said of it. So is CleanRL,
which is scripts to copy and no package, and SLM-Lab, whose pins turn ours back. A row is of one hour: at others the
same code had up to a tenth less, or more. replay_256, per_32, per_256, lstm_ppo_shared and full_session reach their
targets by less than that. All samples are in [speed.json](speed.json).
"""
COLUMNS = ("workload", "ours", "peers", "times the best peer", "target", "reached")


def page(samples: Sequence[Sampled], known: dict[str, Workload]) -> str:
    """The tables of all samples there are."""
    found = [one for workload in known.values() if (one := Found(workload, samples)).samples]
    races, growths = ([one for one in found if bool(one.workload.axis) == alone] for alone in (False, True))
    lines = [HEAD, *_table(COLUMNS, [row(one) for one in races])]
    lines += ["", f"![Times the best peer]({PICTURE.name})", ""]
    if why := [one.workload for one in races if one.reached is False]:
        reasons = [f"- **{workload.name}**: {workload.missed or 'not known yet'}." for workload in why]
        lines += ["## What is missed, and why", "", *reasons, ""]
    lines += ["## What each is, and what was done in a turn", ""]
    lines += [f"- **{one.workload.name}**: {'. '.join(filter(None, about(one)))}." for one in races]
    lines += ["", "## As the work grows", "", "Ours alone."] if growths else []
    for one in growths:
        lines += ["", *growth(one)]
    lines += ["", f"Versions of the peers: {', '.join(versions(found)) or 'none there'}. Machines:", ""]
    return "\n".join([*lines, *machines(found), ""])


def row(found: Found) -> tuple[str, ...]:
    """A line of the first table."""
    workload, ratio = found.workload, found.ratio
    peers = [f"{side} {found.span(side)}" for side in found.by_side if side != OURS]
    peers += [f"{side} {why}" for side, why in found.lacking.items() if side != OURS]
    target = "–"
    if workload.most is not None:
        target = f"ours ≤ {workload.most:g} {workload.unit}"
    elif workload.ratio is not None:
        target = f"≥ {workload.ratio:g} times"
    reached = {True: "yes", False: "**no**", None: "–"}[found.reached]
    ours = f"{found.span(OURS)} {workload.unit}" if OURS in found.by_side else "–"
    return (workload.name, ours, "; ".join(peers) or "–", "–" if ratio is None else str(ratio), target, reached)


def about(found: Found) -> list[str]:
    """What a workload is, its note, what was done in a turn and by which code."""
    return [
        found.workload.what,
        found.workload.note,
        found.work and f"Done: {found.work}",
        _origin(found),
    ]


def _origin(found: Found) -> str:
    """How many turns the sides had (a median of one says little), at which commit and when."""
    turns = max(map(len, found.by_side.values()), default=0)
    commits = sorted({f"commit {x['commit']}, {x['date']}" for x in found.samples if "commit" in x})
    return f"{turns} turn{'s' * (turns != 1)}, {'; '.join(commits)}"


def versions(found: Sequence[Found]) -> list[str]:
    """`package version` of all that were measured."""
    told = set()
    for one in found:
        for side, turns in one.by_side.items():
            package = one.workload.sides[side].package
            told |= {f"{package} {x['version']}" for x in turns.values() if package}
    return sorted(told)


def machines(found: Sequence[Found]) -> list[str]:
    """What was measured on which machine; of what is there no more can be said than was noted."""
    by: dict[str, list[str]] = {}
    for one in found:
        for name in sorted({x["machine"] for x in one.samples if "machine" in x}) or ["not noted"]:
            by.setdefault(name, []).append(one.workload.name)
    return [f"- {name}: {', '.join(names)}." for name, names in by.items()]


def growth(found: Found) -> list[str]:
    """A table of ours alone: a line for each size."""
    workload = found.workload
    rows = [(side, str(found.span(side))) for side in found.by_side]
    return [f"{workload.what} ({_origin(found)}):", "", *_table((workload.axis, workload.unit), rows)]


def graph(found: Sequence[Found]) -> go.Figure:
    """A bar for each workload with a peer and a target, as long as ours is times better; a line where the target is."""
    raced = [one for one in reversed(found) if (one.workload.ratio, one.workload.most) != (None, None)]
    shown = [(one, ratio) for one in raced if (ratio := one.ratio) is not None]
    figure = new_figure(
        "Times the fastest peer", "medians, least and largest of the turns; dotted: target; orange: missed", "", "times"
    )
    names = [f"{one.workload.name} ({one.best})" for one, _ in shown]
    for at, (one, ratio) in enumerate(shown):
        low, high = ratio.middle - min(ratio.values), max(ratio.values) - ratio.middle
        whiskers = {"type": "data", "symmetric": False, "array": [high], "arrayminus": [low], "color": INK}
        color = PALETTE[1] if one.reached is False else PALETTE[0]
        bar = go.Bar(x=[ratio.middle], y=[names[at]], orientation="h", marker={"color": color}, error_x=whiskers)
        figure.add_trace(bar.update(showlegend=False))
        if one.workload.ratio is not None:
            x = one.workload.ratio
            figure.add_shape(type="line", x0=x, x1=x, y0=at - 0.45, y1=at + 0.45, line={"color": INK, "dash": "dot"})
    figure.add_shape(type="line", x0=1, x1=1, y0=-0.5, y1=len(shown) - 0.5, line={"color": INK, "width": 1})
    height = 170 + 30 * len(shown)
    most = max((max(1.0, one.workload.ratio or 0.0, *ratio.values) for one, ratio in shown), default=1.0)
    figure.update_layout(height=height, title={"y": 1 - 22 / height}).update_xaxes(range=[0, 1.03 * most])
    return figure.update_yaxes(showgrid=False)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(cells)} |" for cells in rows)]


def save(samples: list[Sampled], known: dict[str, Workload]) -> bool:
    """Samples, page and graph, each whole or not at all; whether the graph could be drawn."""
    lines = "[\n" + ",\n".join(json.dumps(x) for x in samples) + "\n]\n"
    write_atomic(SAMPLES, lambda file: file.write_text(lines))
    write_atomic(PAGE, lambda file: file.write_text(page(samples, known)))
    drawn = graph([Found(workload, samples) for workload in known.values()])
    fresh = PICTURE.with_stem(PICTURE.stem + "_new")  # the old one stays until there is another
    if not write_pngs({fresh: drawn.to_json()}):
        return False
    fresh.replace(PICTURE)
    return True


if __name__ == "__main__":
    sys.exit(main())
