"""Who learns MemoryTask, how surely and how soon: PPO, GRU-PPO, LSTM-PPO, StrategicMemory and Stable-Baselines3's.

Every agent plays the same tasks with the same budget of frames and is judged by the same greedy episodes, 200 at a
time, equally many of each class. The page docs/bench.md says what is fixed and why.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.commit import commit
from bench.peers import Peer
from bench.race import MODES, Entrant, Job, Ours, Result, Said, sessions
from bench.words import count
from slm_lab.experiment.display import say
from slm_lab.experiment.figure import PALETTE, line, log_y, new_grid, panel
from slm_lab.experiment.png import write_pngs
from slm_lab.lib.errors import LabError, did_you_mean
from slm_lab.lib.files import write_atomic

SPECS = "specs/memory/memory_task.yaml"
LONGEST_UNCHANGED = 16  # the delay those specs, with rollouts of 34 steps, were made for


def fitted(delay: int) -> list[str]:
    """What StrategicMemory's spec shows its agent too; and rollouts of two episodes, as in the specs of delay 16: a cue
    before a rollout couldn't be learned from. Minibatches as StrategicMemory's: four episodes, or 256 steps and more.
    """
    shown = ["env.prev_reward=sign"]
    if delay <= LONGEST_UNCHANGED:
        return [*shown, f"agent.algorithm.minibatch_size={8 * 34}"]
    horizon = 2 * (delay + 1)  # an episode takes one row more, in which the next begins
    return [*shown, f"agent.algorithm.time_horizon={horizon}", f"agent.algorithm.minibatch_size={2 * horizon}"]


AGENTS: dict[str, Entrant] = {
    "PPO": Ours(SPECS, "mlp_memory_task_16", fitted),
    "GRU-PPO": Ours(SPECS, "gru_memory_task_16", fitted),
    "LSTM-PPO": Ours(SPECS, "lstm_memory_task_16", fitted),
    "StrategicMemory": Ours("specs/strategic/memory_task.json"),
    "SB3-PPO": Peer("stable_baselines3", "PPO", "MlpPolicy"),
    "SB3-RecurrentPPO": Peer("sb3_contrib", "RecurrentPPO", "MlpLstmPolicy", recurrent=True),
}
BUDGETS = {  # longest delay: frames of a session, frames between evaluations
    4: (50_000, 500),
    16: (150_000, 2_000),
    64: (400_000, 5_000),
    256: (1_000_000, 10_000),
    1024: (3_000_000, 40_000),
    4096: (8_000_000, 160_000),
}
WIDTH = 120  # of what is printed where there is no terminal
PANEL = (470, 360)  # pixels
BESIDE = 1.13  # the next cross stands so many times as far
SECONDS = "CPU seconds of one core, evaluations aside"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 if a session failed, 2 for what the user gave."""
    args = _parser().parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    try:
        agents = _agents(args.agents)
        store = Store(args.folder or Path("data") / time.strftime("bench_memory_task_%Y_%m_%d_%H%M%S"))
        if args.page:
            if args.folder is None or not store.file.exists():
                where = f"{store.file} isn't there" if args.folder else "no --folder is named"
                raise LabError(f"--page: {where}. Name a folder that holds sessions.")
            _show(store.held(), agents, store, console)
            return 0
        jobs = [job for job in _jobs(args, agents) if not AGENTS[job.agent].absent()]
        known = store.known(jobs)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say(console, f"{store.folder}: {len(jobs)} sessions, {len(known)} of them done before, {args.jobs} at a time")
    try:
        failed = _run([job for job in jobs if job not in known], store, known, args.jobs, console)
    finally:
        _show(list(known.values()), agents, store, console)
    return 1 if failed else 0


def _show(results: list[Result], agents: list[str], store: Store, console: Console) -> None:
    rows = summary(results, agents)
    _print(rows, console)
    store.conclude(rows, console)


# ---- words -----------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run_lab.py bench memory_task", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"agents: {', '.join(AGENTS)}"
    parser.add_argument("--delays", type=_delays, default=_delays("4,16,64,256"), metavar="N,N", help="4,16,64,256")
    parser.add_argument("--seeds", type=count, default=3, metavar="N", help="seeds 0 to N-1; default: 3")
    parser.add_argument(
        "--modes", choices=["hard", "easy", "both"], default="both", help="distractors or silence; both"
    )
    parser.add_argument("--agents", metavar="NAME,NAME", help="default: all")
    parser.add_argument(
        "--jobs", type=count, default=len(os.sched_getaffinity(0)), metavar="N", help="at a time; default: the cores"
    )
    parser.add_argument("--max-frame", type=count, metavar="N", help="cut all budgets to N frames, to try it out")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR",
        help="where the results go, by default a new one under data/; sessions that it holds aren't run again",
    )  # fmt: skip
    parser.add_argument("--page", action="store_true", help="run nothing: table and graph of all that --folder holds")
    return parser


def _delays(text: str) -> list[int]:
    delays = [count(part) for part in text.split(",")]
    if max(delays) > max(BUDGETS):
        raise argparse.ArgumentTypeError(f"{max(delays)}: at most {max(BUDGETS)}, no budget is set for more")
    return list(dict.fromkeys(delays))


def _agents(text: str | None) -> list[str]:
    """Names of the table. Raises `LabError` for one that isn't there."""
    by_lower = {name.lower(): name for name in AGENTS}
    asked = [word.strip() for word in text.split(",")] if text is not None else list(AGENTS)
    for word in asked:
        if word.lower() not in by_lower:
            raise LabError(f"--agents: unknown agent {word!r}.{did_you_mean(word, AGENTS)}")
    return list(dict.fromkeys(by_lower[word.lower()] for word in asked))


def _jobs(args: argparse.Namespace, agents: list[str]) -> list[Job]:
    modes = list(MODES) if args.modes == "both" else [args.modes.upper()]
    jobs = []
    for delay in args.delays:
        budget, every = BUDGETS[min(longest for longest in BUDGETS if longest >= delay)]
        budget = min(budget, args.max_frame or budget)
        for mode in modes:
            jobs += [Job(name, delay, mode, seed, budget, every) for name in agents for seed in range(args.seeds)]
    return jobs


# ---- running ---------------------------------------------------------------------------------------------------------


@dataclass
class Store:
    """The folder of the results: sessions.jsonl, a line a session; table.csv, .md; frames_to_solve.html, .png."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "sessions.jsonl"

    def held(self) -> list[Result]:
        """All results that are there, the last of each job. Raises `LabError` where they can't be read."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lines = self.file.read_text().splitlines() if self.file.exists() else []
        except OSError as error:
            raise LabError(f"--folder: can't use {self.folder}: {error.strerror or error}. Name another.") from error
        results = [self._read(number, line) for number, line in enumerate(lines, 1)]
        return list({result.job: result for result in results}.values())

    def _read(self, number: int, line: str) -> Result:
        try:
            result = Result.from_json(line)
        except (ValueError, KeyError, TypeError) as error:
            raise LabError(
                f"{self.file}, line {number}: no session ({error!r}). Delete the line if a crash cut it short, "
                "or name another --folder."
            ) from error
        if result.job.agent not in AGENTS:
            raise LabError(f"{self.file}, line {number}: there is no agent {result.job.agent!r} any more. Delete it.")
        return result

    def known(self, jobs: list[Job]) -> dict[Job, Result]:
        """The results of `jobs` that are there already. Raises `LabError` where they can't be read or trusted."""
        known = {result.job: result for result in self.held() if result.job in jobs}
        for job, result in known.items():
            if result.settings != AGENTS[job.agent].settings(job):
                raise LabError(f"{self.file}: {job.agent} was another agent then, its settings changed. New --folder.")
        return known

    def add(self, result: Result) -> None:
        with self.file.open("a") as file:
            file.write(result.to_json() + "\n")

    def conclude(self, rows: pd.DataFrame, console: Console) -> None:
        """Write table and graph."""
        write_atomic(self.folder / "table.csv", lambda file: rows.to_csv(file, index=False))
        write_atomic(self.folder / "table.md", lambda file: file.write_text(markdown(rows)))
        drawn = graph(rows)
        if drawn is not None:
            page = self.folder / "frames_to_solve.html"
            write_atomic(page, lambda file: drawn.write_html(file))
            write_pngs({page.with_suffix(".png"): drawn.to_json()})
        for file in sorted(self.folder.iterdir()):
            say(console, str(file))


def _run(jobs: list[Job], store: Store, known: dict[Job, Result], at_once: int, console: Console) -> int:
    """Run what is left, into `known`; how many failed."""
    failed, code = 0, commit()  # by the time they have trained it may be another
    text = TextColumn("{task.description}", markup=False)
    with Progress(text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console) as progress:
        whole = progress.add_task("sessions", total=len(jobs))
        bars: dict[Job, TaskID] = {}
        for job, said in sessions([(AGENTS[job.agent], job) for job in jobs], at_once):
            if isinstance(said, tuple):
                _move(progress, bars, job, *said)
                continue
            if isinstance(said, Result):
                known[job] = said = replace(said, commit=code)
                store.add(said)
            failed += isinstance(said, str)
            say(progress.console, f"{name(job)}: {_told(said)}")
            if job in bars:
                progress.remove_task(bars.pop(job))
            progress.advance(whole)
    return failed


def name(job: Job) -> str:
    return f"{job.agent}, delay {job.delay} {job.mode}, seed {job.seed}"


def _move(progress: Progress, bars: dict[Job, TaskID], job: Job, frame: int, score: float) -> None:
    if job not in bars:
        bars[job] = progress.add_task("", total=job.budget)
    progress.update(bars[job], completed=frame, description=f"{name(job)}: {score:.2f}")


def _told(said: Said) -> str:
    if not isinstance(said, Result):
        return f"FAILED, {said}"
    reached = f".95 at frame {said.reached:,.0f}" if math.isfinite(said.reached) else ".95 never reached"
    return f"{said.score:.2f} after {said.frames:,} frames and {said.seconds:.1f} s, {reached}"


# ---- what came of it -------------------------------------------------------------------------------------------------


def summary(results: list[Result], agents: list[str]) -> pd.DataFrame:
    """A row for each agent, delay, mode and budget: over its seeds the mean and standard deviation of the last
    evaluation, how many solved it, the median of frames to .95 (a seed that never got there counts as infinitely many),
    of frames a second, and of seconds. An absent agent has one row that says why.
    """
    groups: dict[tuple[int, str, int, int], list[Result]] = {}
    for result in results:
        job = result.job
        groups.setdefault((job.delay, job.mode, list(AGENTS).index(job.agent), job.budget), []).append(result)
    rows = [_row(groups[key]) for key in sorted(groups)]
    rows += [{"agent": agent, "absent": why} for agent in agents if (why := AGENTS[agent].absent())]
    columns = ["agent", "delay", "mode", "mean", "std", "solved", "seeds", "frames_to_95", "fps", "seconds"]
    columns += ["budget", "commit", "absent"]
    whole = dict.fromkeys(("delay", "solved", "seeds", "budget"), "Int64")  # an absent agent has none
    return pd.DataFrame(rows, columns=columns).astype(whole)


def _row(group: list[Result]) -> dict[str, object]:
    scores, job = [result.score for result in group], group[0].job
    return {
        "agent": job.agent,
        "delay": job.delay,
        "mode": job.mode,
        "mean": np.mean(scores),
        "std": np.std(scores),
        "solved": sum(result.solved for result in group),
        "seeds": len(group),
        "frames_to_95": np.median([result.reached for result in group]),
        "fps": np.median([result.frames / max(result.seconds, 1e-9) for result in group]),
        "seconds": np.median([result.seconds for result in group]),
        "budget": job.budget,
        "commit": ", ".join(sorted({result.commit or "not noted" for result in group})),
        "absent": "",
    }


HEAD = ("agent", "delay", "mode", "mean", "std", "solved/seeds", "frames to .95", "frames/s", "seconds")


def _cells(row: Any) -> list[str]:
    """A row of the summary, rounded."""
    numbers = [f"{row.mean:z.2f}", f"{row.std:.2f}", f"{row.solved}/{row.seeds}"]
    numbers += ["–" if math.isinf(row.frames_to_95) else f"{row.frames_to_95:,.0f}"]
    return [row.agent, str(row.delay), row.mode, *numbers, f"{row.fps:,.0f}", f"{row.seconds:.1f}"]


def markdown(rows: pd.DataFrame) -> str:
    """The table, rounded, for a page; who is absent has no line."""
    there = rows[rows["absent"] == ""]
    lines = [[*HEAD, "budget", "commit"], ["---"] * (len(HEAD) + 2)]
    lines += [[*_cells(row), f"{row.budget:,}", row.commit] for row in there.itertuples()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _print(rows: pd.DataFrame, console: Console) -> None:
    table = Table(box=box.ROUNDED, title="MemoryTask", caption=f"seconds: {SECONDS}")
    for column in HEAD:
        table.add_column(column, justify="left" if column in ("agent", "mode") else "right", no_wrap=True)
    before: tuple[int, str] | None = None
    for row in rows.itertuples():
        if row.absent:
            say(console, f"absent: {row.agent}, so nothing is said of it: {row.absent}")
            continue
        if before not in (None, (row.delay, row.mode)):
            table.add_section()
        before = (row.delay, row.mode)
        table.add_row(*_cells(row))
    console.print(table)


def graph(rows: pd.DataFrame) -> go.Figure | None:
    """Frames to .95 against the delay, a panel for each mode and a line for each agent; a cross where most never got
    there, those of one delay side by side."""
    rows = rows[rows["absent"] == ""]
    if rows.empty:
        return None
    modes = rows["mode"].unique().tolist()
    figure = new_grid(
        "MemoryTask: frames to a return of .95",
        f"median of {_span(rows['seeds'])} seeds, greedy episodes; ×: not within the budget, at whose height it stands",
        modes,
        *PANEL,
    )
    named: set[str] = set()
    for (mode, agent), group in rows.groupby(["mode", "agent"], sort=False):
        index, place = list(AGENTS).index(str(agent)), panel(modes.index(mode), len(modes))
        color, name = PALETTE[index % len(PALETTE)], None if agent in named else str(agent)
        named.add(str(agent))
        delays, frames, budget = (group[key].to_numpy(float) for key in ("delay", "frames_to_95", "budget"))
        never, group_name = np.isinf(frames), {"legendgroup": str(agent)}
        reached = line(delays, np.where(never, np.nan, frames), name, color, markers=True)
        figure.add_trace(reached.update(group_name), **place)
        cross = {"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": color}}
        beside = delays[never] * BESIDE ** (index - (len(AGENTS) - 1) / 2)
        missed = line(beside, budget[never], None, color).update(mode="markers", marker=cross)
        figure.add_trace(missed.update(group_name), **place)
    delays = sorted(rows["delay"].unique().tolist())
    ends = [math.log10(delays[0] / 1.6), math.log10(delays[-1] * 1.6)]
    figure.update_xaxes(
        type="log", range=ends, tickvals=delays, ticktext=list(map(str, delays)), title_text="delay (steps)"
    )
    figure.update_yaxes(matches="y").update_yaxes(title_text="frames", col=1)
    figure.update_layout(showlegend=True, margin={"t": 124}, height=PANEL[1] + 186)
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1 + 30 / PANEL[1], "yanchor": "bottom"})
    return log_y(figure)


def _span(seeds: pd.Series) -> str:
    low, high = int(seeds.min()), int(seeds.max())
    return str(low) if low == high else f"{low} to {high}"


if __name__ == "__main__":
    sys.exit(main())
