"""One turn of the speed benchmark: `python -m bench.turn WORKLOAD SIDE SHARE` prints what one side came to, as JSON.

A turn has a process of its own, pinned to one core by whoever starts it; `SHARE` (0.1: a tenth) scales its work.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from bench.workload import Sample, Workload


def workloads() -> dict[str, Workload]:
    """All of them, by name."""
    from bench import memories, runs, trainings

    return {workload.name: workload for workload in (*trainings.WORKLOADS, *runs.WORKLOADS, *memories.WORKLOADS)}


def run(name: str, side: str, share: float) -> Sample:
    """One turn in this process, with one thread."""
    import torch

    torch.set_num_threads(1)
    return workloads()[name].sides[side].run(share)


if __name__ == "__main__":
    print(json.dumps(asdict(run(sys.argv[1], sys.argv[2], float(sys.argv[3])))))
