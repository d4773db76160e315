"""One turn of the speed benchmark: `python -m bench.turn WORKLOAD SIDE SHARE` prints what one side came to, as JSON.

A turn has a process of its own, pinned to one core by whoever starts it; `SHARE` (0.1: a tenth) scales its work.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec


@dataclass(frozen=True)
class Sample:
    """What one turn came to: the figure, and how much was done for it, which must be alike on all sides."""

    value: float
    work: dict[str, float] = field(default_factory=dict)  # {"frames": 20480, "updates": 2400}


@dataclass(frozen=True)
class Side:
    """One who does the work of a workload; `package` is what must be installed for it."""

    run: Callable[[float], Sample]  # gets the share
    package: str = ""

    def absent(self) -> bool:
        return bool(self.package) and find_spec(self.package) is None

    def version(self) -> str:
        return version(self.package) if self.package else ""


@dataclass(frozen=True)
class Workload:
    """A row of the benchmark: the same work for all sides. With an `axis` it is a table of ours alone against it."""

    name: str
    what: str
    unit: str
    sides: dict[str, Side]  # "ours" first, then its peers; with an axis: a size each
    ratio: float | None = None  # target: so many times the fastest peer
    most: float | None = None  # target: ours is this at most
    less: bool = False  # less is better (seconds, MB)
    axis: str = ""
    note: str = ""
    missed: str = ""  # why the target is missed, told where it is


def cpu_rate(count: float, work: Callable[[], object]) -> float:
    """`count` by the CPU seconds that `work` took: what else runs on the core doesn't count."""
    began = time.process_time()
    work()
    return count / (time.process_time() - began)


def workloads() -> dict[str, Workload]:
    """All of them, by name."""
    from bench import memories, trainings

    return {workload.name: workload for workload in (*trainings.WORKLOADS, *memories.WORKLOADS)}


def run(name: str, side: str, share: float) -> Sample:
    """One turn in this process, with one thread."""
    import torch

    torch.set_num_threads(1)
    return workloads()[name].sides[side].run(share)


if __name__ == "__main__":
    from bench import turn  # not this very module again, under its name __main__

    print(json.dumps(asdict(turn.run(sys.argv[1], sys.argv[2], float(sys.argv[3])))))
