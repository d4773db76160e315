"""The ledger of a search: what became of each trial, a line an event, only ever appended to.

`info/{name}_ledger.jsonl` is the one truth that a search goes on from, and that tables and graphs are drawn from; what
Ray keeps is thrown away. An event is there when its line is whole; what a kill or a full disk cut short never happened.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from slm_lab.experiment.run_dir import RunDir, unwritable
from slm_lab.lib.errors import LabError
from slm_lab.spec.space import Point

OPEN = ("planned", "running", "retry")  # a search that goes on runs these again
ENDED = ("done", "pruned", "failed", "invalid")


@dataclass
class Trial:
    """What the ledger knows of one trial."""

    index: int
    point: Point
    unused: list[str] = field(default_factory=list)  # variables that have no place beside the others
    status: str = "planned"
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = math.nan  # of training, in all attempts, as far as they could be told
    reason: str = ""  # why it failed
    trace: str = ""
    attempts: int = 0
    past: float = 0.0  # seconds of the attempts before
    node: str = ""

    @property
    def used(self) -> Point:
        """The variables that made a difference to its spec."""
        return {path: value for path, value in self.point.items() if path not in self.unused}

    def result(self, metric: str, number: Callable[[float], str] = "{:.4g}".format) -> str:
        """A metric of a trial that has ended well, and ± its std over the seeds where that is known."""
        return " ± ".join(number(self.metrics[name]) for name in (metric, f"{metric}_std") if name in self.metrics)


class Ledger:
    """The trials of a search. One process at a time may write: the one that holds the run's lock."""

    def __init__(self, run: RunDir) -> None:
        self.path = run.info / f"{run.read_spec()['name']}_ledger.jsonl"
        self.trials: dict[int, Trial] = {}
        self.max_trial: int | None = None  # where the search was extended
        self.size = 0  # bytes of whole events
        for event in self._events():
            self._take_in(event)

    def _events(self) -> Iterable[dict[str, Any]]:
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise LabError(
                f"{self.path} can't be read: {error.strerror}. Restore it: a search goes on from it"
            ) from error
        self.size = content.rfind(b"\n") + 1
        for number, line in enumerate(content[: self.size].splitlines(), 1):
            try:
                event = json.loads(line)
                if event["event"] not in ("planned", "extended") and event["trial"] not in self.trials:
                    raise ValueError(f"trial {event['trial']} was never planned")
            except (ValueError, KeyError, TypeError) as error:
                raise LabError(
                    f"{self.path}:{number} is damaged ({error}). Restore the file, or take out all lines of that trial"
                ) from error
            yield event

    def append(self, event: str, trial: int | None = None, **facts: Any) -> None:
        """Write an event, synced to disk. Raises `LabError` on a full disk; the events before it are intact."""
        entry = {"time": datetime.now().isoformat(" ", "milliseconds"), "event": event, "trial": trial, **facts}
        line = json.dumps({key: value for key, value in entry.items() if value is not None}).encode() + b"\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                file.truncate(self.size)  # the rest of an event that was cut short
                if file.write(line) != len(line):
                    raise OSError(28, "No space left on device")
                os.fsync(file.fileno())
        except OSError as error:
            raise LabError(f"{unwritable(self.path, error)} All trials before are in the ledger.") from error
        self.size += len(line)
        self._take_in(json.loads(line))

    def _take_in(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "extended":
            self.max_trial = event["max_trial"]
            return
        index = event["trial"]
        if kind == "planned":
            self.trials[index] = Trial(index, event["point"], event.get("unused", []))
            return
        trial = self.trials[index]
        if trial.status in ENDED:  # what Ray Tune makes of an error after it
            return
        if kind == "spent":  # an attempt was broken off
            trial.seconds = trial.past + event["seconds"]
            return
        trial.status = kind
        trial.attempts += kind == "running"
        if kind == "running" and math.isfinite(trial.seconds):
            trial.past = trial.seconds
        if "seconds" in event:
            trial.seconds = trial.past + event["seconds"]
        trial.reason, trial.trace = event.get("reason", ""), event.get("trace", "")  # not those of an attempt before
        for name in ("metrics", "node"):
            if name in event:
                setattr(trial, name, event[name])

    def with_status(self, *kinds: str) -> list[Trial]:
        """The trials that stand so, in order."""
        return [trial for trial in self.trials.values() if trial.status in kinds]

    def ranked(self, metric: str, mode: str) -> list[Trial]:
        """Best first those that ran to their end; then those cut short, failed, invalid, and not ended, in order."""
        sign = -1 if mode == "max" else 1
        done = sorted(self.with_status("done"), key=lambda trial: (sign * trial.metrics[metric], trial.index))
        return [*done, *(trial for kind in (*ENDED[1:], *OPEN) for trial in self.with_status(kind))]

    def tied(self, metric: str, mode: str) -> list[Trial]:
        """The trials that have won so far: the best, and those that are as good."""
        done = [trial for trial in self.ranked(metric, mode) if trial.status == "done"]
        return [trial for trial in done if trial.metrics[metric] == done[0].metrics[metric]]

    def best(self, metric: str, mode: str) -> Trial | None:
        """The trial that has won so far; of some that tie the first."""
        return next(iter(self.tied(metric, mode)), None)


def best_run(run: RunDir) -> RunDir:
    """The run itself, or of a search its best trial. Raises `LabError` where no trial has ended well."""
    if run.mode() != "search":
        return run
    meta = run.read_spec()["meta"]
    best = Ledger(run).best(meta["metric"], meta["mode"])
    if best is None:
        raise LabError(f"no trial of {run.path} has ended well yet. Go on with: {run.command('search')}")
    return run.of_trial(best.index)
