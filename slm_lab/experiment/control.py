"""What the modes train and dev and the command plot do.

What draws is imported when there is something to draw: pandas and plotly take half a second, and the first frame would
wait for them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from slm_lab import __version__
from slm_lab.experiment.display import Display, agent_line, number, say
from slm_lab.experiment.evaluate import random_return
from slm_lab.experiment.run_dir import RunDir, unwritable
from slm_lab.experiment.session import refuse_another
from slm_lab.experiment.trial import run_alone, run_sessions
from slm_lab.lib.errors import LabError, plural
from slm_lab.lib.log import log_to, note
from slm_lab.spec.lab_spec import LabSpec
from slm_lab.spec.space import Variable, encode, label, labels
from slm_lab.spec.validate import NAME_BYTES, resolve

logger = logging.getLogger("slm_lab")

LABEL_CHARS = 40  # of a run in a comparison's legend


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


def compare(runs: Sequence[RunDir], data: Path, console: Console, given: Sequence[str] = ()) -> None:
    """Several runs in one graph, `data/graph/{env}_{runs}_multi_trial_graph_...`: mean and band of each, a line a run;
    of a search its best trial's. Then a table of what each came to. `given`: labels, '' for the lab's own.
    """
    from slm_lab.experiment.plot import multi_trial_graph
    from slm_lab.experiment.search.ledger import best_run

    places = [str(run.path.resolve()) for run in runs]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice:
        raise LabError(f"{twice} is there twice: a comparison takes each run once")
    runs = [best_run(run) for run in runs]
    specs = [run.read_spec() for run in runs]
    _warn_of_tasks([spec["env"] for spec in specs])
    found = _labels(specs) or [run.path.name for run in runs]
    shown = [(own or told, run.path, run.trial)
             for own, told, run in zip(given or [""] * len(runs), found, runs, strict=True)]  # fmt: skip
    envs = dict.fromkeys(spec["env"]["name"] for spec in specs)
    # other runs get another file; of many worlds their names may be longer than a file's can be
    mark = hashlib.sha256("\n".join(sorted(places)).encode()).hexdigest()[:6]
    name = "_".join(re.sub(r"\W+", "_", env) for env in envs).encode()[: NAME_BYTES - 7].decode(errors="ignore")
    drawn = multi_trial_graph(shown, data / "graph", f"{name}_{mark}", title=", ".join(envs))
    console.print(_returns(shown))
    for file in drawn:
        say(console, str(file))
    if not drawn:
        say(console, "no graph was drawn: a run has a curve once an episode of it has ended")


def _returns(shown: list[tuple[str, Path, int]]) -> Table:
    """What each run came to: mean ± sample std over its sessions."""
    from slm_lab.experiment.analysis import load_run, session_metrics

    rows = []
    for name, path, trial in shown:
        run = load_run(path, trial)
        final = [session_metrics(df, None)["scalar"]["final_return"] for df in run.whole]
        evaluated = [df["total_reward"].dropna() for s, df in run.evaluation.items() if s not in run.left_out]
        last = [float(returns.iloc[-1]) for returns in evaluated if len(returns)]
        rows.append([name, str(len(run.whole)), _spread(final), _spread(last)])
    heads = ["run", "sessions", "final return", "last greedy eval"]
    table = Table(expand=False)
    for head in heads if any(last != "–" for *_, last in rows) else heads[:-1]:
        table.add_column(head, justify="left" if head == "run" else "right")
    for row in rows:
        table.add_row(*map(Text, row[: len(table.columns)]))
    return table


def _spread(values: list[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    mean = number(statistics.mean(known) if known else math.nan)
    return f"{mean} ± {number(statistics.stdev(known))}" if len(known) > 1 else mean


def _warn_of_tasks(envs: list[dict[str, Any]]) -> None:
    keys = dict.fromkeys(key for env in envs for key in env if key not in ("num_envs", "max_frame", "vectorization"))
    differing = [f"env.{key}" for key in keys if len({encode(env.get(key)) for env in envs}) > 1]
    if differing:
        logger.warning("the runs are of different tasks: they differ in %s", ", ".join(differing))


def _labels(specs: list[dict[str, Any]]) -> list[str]:
    """What tells runs apart: the values that differ in their specs, or the parts; [] where long or ambiguous."""
    agents = [{key: value for key, value in spec["agent"].items() if key != "name"} for spec in specs]  # free text
    found = dict(_differing([{"agent": agent, "env": spec["env"]} for agent, spec in zip(agents, specs, strict=True)]))
    for paths in (list(found), [path for path in found if path.endswith(".name")]):
        names = labels([Variable(path, "choice", ()) for path in paths])
        parts = [[f"{names[path].removesuffix('.name')} {label(value)}" for value in found[path]] for path in paths]
        told = [", ".join(values).replace("_", " ") for values in zip(*parts, strict=True)]
        if len(set(told)) == len(specs) and max(map(len, told)) <= LABEL_CHARS:
            return told
    return []


def _differing(values: list[Any], path: str = "") -> Iterator[tuple[str, list[Any]]]:
    """The keys that all have, with values that aren't all the same: what one part alone has goes with its name."""
    if all(isinstance(value, dict) for value in values):
        for key in values[0]:
            if all(key in value for value in values):
                yield from _differing([value[key] for value in values], f"{path}.{key}".removeprefix("."))
    elif any(value != values[0] for value in values):
        yield path, values


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
            with Display(f"{title}\n{run.path}{_so_far(run)}", spec.meta, spec.env.max_frame, console) as d:
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
