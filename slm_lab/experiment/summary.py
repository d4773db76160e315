"""The end of a run: metrics, graphs and report; how good it is, what failed, how to go on."""

from __future__ import annotations

import logging
import math
from typing import Any

from rich.console import Console

from slm_lab.experiment.analysis import analyze_session, analyze_trial, load_run
from slm_lab.experiment.display import say
from slm_lab.experiment.index import write_index
from slm_lab.experiment.plot import draw_run
from slm_lab.experiment.report import write_report
from slm_lab.experiment.run_dir import RunDir, unwritable
from slm_lab.experiment.session import Progress
from slm_lab.lib.errors import LabError, plural
from slm_lab.lib.log import note
from slm_lab.spec.lab_spec import LabSpec

logger = logging.getLogger("slm_lab")


def finish(run: RunDir, baseline: float | None, console: Console, png: bool = True) -> LabError | None:
    """Metrics, graphs and report from what the sessions have saved; the error if they can't be written.

    A picture that fails is a warning. Where no `baseline` could be measured now, the one of before stays.
    """
    try:
        baseline = load_run(run.path).random_return if baseline is None else baseline
        for session in range(run.read_spec()["meta"]["max_session"]):
            if run.session_file(session, "session_df_train.csv").exists():
                analyze_session(run.path, 0, session, baseline)
        scalar = analyze_trial(run.path).get("scalar", {})
        print_result(run, scalar, baseline, console)
        if console.is_terminal:
            say(console, "drawing graphs ...")
        draw_run(run.path, png=png)
        page = write_report(run.path)
        write_index(run.path.parent)
    except OSError as error:
        return LabError(f"{unwritable(run.path, error)} Then draw the graphs with: {run.command('plot')}")
    except LabError as error:
        return error
    say(console, f"report   {page}\ngraphs   {run.graph}")
    return None


def print_result(run: RunDir, scalar: dict[str, Any], baseline: float | None, console: Console) -> None:
    """The headline: how good it is, and against what."""
    read = load_run(run.path)
    if read.unfinished:
        say(console, f"left out {plural(len(read.unfinished), 'session')} that others are ahead of, not yet at the end")
    if read.last_evaluation is not None:
        say(console, f"eval     {read.last_evaluation:.2f} (mean return of the last greedy evaluation)")
    known = {name: value for name, value in scalar.items() if isinstance(value, float | int) and math.isfinite(value)}
    if "final_return" not in known:
        say(console, "return   – (no episode has ended)")
        return
    count = int(known.get("num_session", 1))
    spread = f" ± {known['final_return_std']:.2f}" if "final_return_std" in known and count > 1 else ""
    where = f", {count} sessions" if count > 1 else ""
    more = [
        f"{name} {known[key]:.2f}" for name, key in (("best", "best_return"), ("strength", "strength")) if key in known
    ]
    more += [f"random {baseline:.2f}"] if baseline is not None else []
    say(console, f"return   {known['final_return']:.2f}{spread} (last 100 episodes{where}), {', '.join(more)}")


def print_check(found: list[str], console: Console) -> None:
    for finding in found or ["every parameter got a gradient and moved; losses and gradients stayed finite"]:
        say(console, f"check    {finding}")
        note(f"check: {finding}")


def warn_untrained(run: RunDir, spec: LabSpec) -> None:
    """A run whose frames were too few for one update has learned nothing; better said."""
    tables = load_run(run.path).train.values()
    steps = [float(df["opt_step"].max()) for df in tables if "opt_step" in df]
    if steps and max(steps) == 0 and spec.agent.algorithm.name != "Random":
        logger.warning(
            "no gradient step was taken in %s frames: give more env.max_frame, or train more often",
            f"{spec.env.max_frame:,}",
        )


def print_end(last: list[Progress], run: RunDir, console: Console, problem: LabError | None) -> None:
    """How to go on; raises `LabError` when sessions failed or what they gave can't be written."""
    failed = [p for p in last if p.status == "failed"]
    if failed:
        raise LabError(_failures(failed, last, run))
    if problem:
        raise problem
    if any(p.status != "done" for p in last):
        say(console, f"stopped. Go on with: {run.command('train')}")
    elif any(run.model.glob("*_best.json")):
        say(console, f"play it  {run.command('enjoy')}")


def _failures(failed: list[Progress], last: list[Progress], run: RunDir) -> str:
    """Who failed of what (the same reason once), where the traceback is, how to go on."""
    reasons: dict[str, list[int]] = {}
    for p in failed:
        reasons.setdefault(p.message.strip(), []).append(p.session)
    parts = []
    for reason, sessions in reasons.items():
        who = f"session{'s' if len(sessions) > 1 else ''} {', '.join(map(str, sessions))}: "
        parts.append(f"{who if len(last) > 1 else ''}{reason}")
    if len(failed) < len(last):
        parts.insert(0, f"{len(failed)} of {len(last)} sessions failed; the others went on.")
    files = (
        [run.log / "run.log"] if len(last) == 1 else [run.log / f"session{p.session}.log" for p in failed if p.trace]
    )
    logs = [str(file) for file in files if file.exists()]
    if logs and any(p.trace for p in failed):
        parts.append(f"The traceback is in {', '.join(logs)}.")
    return "\n".join([*parts, f"When the cause is mended, go on with: {run.command('train')}"])
