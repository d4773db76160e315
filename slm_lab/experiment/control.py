"""What the modes train and dev and the command plot do.

What draws is imported when there is something to draw: pandas and plotly take half a second, and the first frame would
wait for them.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from slm_lab import __version__
from slm_lab.experiment.display import Display, agent_line, say
from slm_lab.experiment.evaluate import random_return
from slm_lab.experiment.run_dir import RunDir, unwritable
from slm_lab.experiment.session import refuse_another
from slm_lab.experiment.trial import run_alone, run_sessions
from slm_lab.lib.errors import LabError, plural
from slm_lab.lib.log import log_to, note
from slm_lab.spec.lab_spec import LabSpec
from slm_lab.spec.validate import NAME_BYTES, resolve

logger = logging.getLogger("slm_lab")


# ---- the modes -------------------------------------------------------------------------------------------------------


def train(spec: LabSpec, data: Path, console: Console) -> RunDir:
    """A new run: all sessions, then metrics, graphs and report."""
    baseline = _baseline(spec, data)
    run = RunDir.create(data, spec.name, {"name": spec.name, **spec.dump()}, "train")
    return _run_trial(spec, run, baseline, console)


def resume(run: RunDir, data: Path, console: Console) -> RunDir:
    """A run that was stopped or killed goes on from its checkpoints, with the spec it was started with."""
    spec = run.stored_spec(to_train=True)
    for i in range(spec.meta.max_session):  # before anything is written: what the run had come to stays
        refuse_another(run, spec, i)
    return _run_trial(spec, run, _baseline(spec, data), console)


def dev(spec: LabSpec, data: Path, console: Console) -> RunDir:
    """A short, checked run: one session, at most `meta.dev_max_frame` frames; says which parameters did not learn."""
    short = resolve(_shortened(spec), spec.name, check_env=False)
    baseline = _baseline(short, data)
    run = RunDir.create(data, spec.name, {"name": spec.name, **short.dump()}, "dev")
    return _run_trial(short, run, baseline, console, check=True)


def replot(run: RunDir, data: Path, console: Console) -> None:
    """Draw a run's graphs and report again."""
    from slm_lab.experiment.summary import finish

    spec = run.stored_spec()
    problem = finish(run, _baseline(spec, data), console)
    if problem:
        raise problem


def compare(runs: list[RunDir], data: Path, console: Console) -> None:
    """Several runs in one graph, `data/graph/{env}_multi_trial_graph_...`: mean and band of each, a line a run; of a
    search its best trial's.
    """
    from slm_lab.experiment.plot import multi_trial_graph
    from slm_lab.experiment.search.ledger import best_run

    specs = [run.read_spec() for run in runs]
    names = [spec["name"] for spec in specs]
    labels = names if len(set(names)) == len(names) else [run.path.name for run in runs]
    env = "_".join(dict.fromkeys(re.sub(r"\W+", "_", spec["env"]["name"]) for spec in specs))
    shown = [(label, run.path, best_run(run).trial) for label, run in zip(labels, runs, strict=True)]
    name = env.encode()[:NAME_BYTES].decode(errors="ignore")  # of many worlds it may be longer than a file's can be
    drawn = multi_trial_graph(shown, data / "graph", name)
    for file in drawn:
        say(console, str(file))
    if not drawn:
        say(console, "no graph was drawn: a run has a curve once an episode of it has ended")


# ---- a trial ---------------------------------------------------------------------------------------------------------


def _run_trial(spec: LabSpec, run: RunDir, baseline: float | None, console: Console, check: bool = False) -> RunDir:
    many = spec.meta.max_session > 1
    sessions = plural(spec.meta.max_session, "session")
    agent = agent_line(spec.dump()["agent"])
    title = f"{spec.name}: {agent} in {spec.env.name}, {sessions} of {spec.env.max_frame:,} frames"
    found: list[str] = []
    with run.lock(), log_to(run.log / "run.log"):
        note(f"slm_lab {__version__}: {shlex.join(sys.argv)}")
        note(title)
        try:
            with Display(f"{title}\n{run.path}{_so_far(run)}", spec.meta.max_session, spec.env.max_frame, console) as d:
                if many:
                    last = run_sessions(spec, run, d.update)
                else:
                    progress, found = run_alone(spec, run, d.update, check)
                    last = [progress]
            from slm_lab.experiment.summary import finish, print_check, print_end, warn_untrained

            problem = finish(run, baseline, console, spec.meta.png)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"Nothing saved is lost. Go on with: {run.command('train')}") from None
        if check and last[0].status == "done":
            print_check(found, console)
        elif not check and all(progress.status == "done" for progress in last):
            warn_untrained(run, spec)
        print_end(last, run, console, problem)
    return run


def _so_far(run: RunDir) -> str:
    """' (going on from frame ...)' for a run that has checkpoints."""
    frames = []
    for pointer in run.model.glob("session*.json"):
        try:
            frames += [] if pointer.stem.endswith("_best") else [int(json.loads(pointer.read_text())["frame"])]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # the session will tell
    span = f"{min(frames, default=0):,}" + (f" to {max(frames):,}" if len(set(frames)) > 1 else "")
    return f" (going on from frame {span})" if frames else ""


def _baseline(spec: LabSpec, data: Path) -> float | None:
    """Mean return of random play; None, and a warning, where the env breaks off."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        return random_return(spec, data)
    except LabError as error:
        logger.warning("no random baseline, so no strength: %s", error)
        return None
    except OSError as error:
        raise unwritable(data, error) from error


def _shortened(spec: LabSpec) -> dict[str, Any]:
    """The spec of a dev run: one session, capped frames, a row of metrics often enough to see something."""
    raw = spec.dump()
    max_frame = min(spec.env.max_frame, spec.meta.dev_max_frame)
    raw["env"]["max_frame"] = max_frame
    caps = {
        "log_frequency": max(1, max_frame // 50),
        "eval_frequency": max(1, max_frame // 10),
        "checkpoint_frequency": max(1, max_frame // 10),
    }
    raw["meta"] |= {"max_session": 1, **{key: min(raw["meta"][key], cap) for key, cap in caps.items()}}
    return raw
