"""What a row of the speed benchmark is: who does the work, what a turn came to, what is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
