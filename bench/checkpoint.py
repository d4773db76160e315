"""python -m bench.checkpoint [--gb 2]: RAM and time that saving and loading a replay memory of that size takes.

Each half runs in a process of its own, so that its peak is its own. "Extra" is what the process grew by beyond the
state itself, which is there anyway: saving at its highest (VmHWM of Linux), loading at its end, the state still at hand
(RssAnon). What torch imports on its first save or load counts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from slm_lab.agent import checkpoint
from slm_lab.agent.memory.rows import Rows
from slm_lab.lib.errors import LabError
from slm_lab.lib.types import Tree

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class Cost:
    """Of one save or one load."""

    what: str
    state: int  # bytes
    extra: int  # bytes
    seconds: float

    @property
    def share(self) -> float:
        return self.extra / self.state

    def __str__(self) -> str:
        return (
            f"{self.what}: {self.extra / 1e6:.1f} MB extra = {self.share:.2%} of {self.state / 1e6:,.0f} MB, "
            f"{self.seconds:.2f} s, {self.state / 1e6 / self.seconds:,.0f} MB/s"
        )


def replay(gb: float) -> Tree:
    """A state of `gb` * 1e9 bytes in large arrays, a quarter of them in a view that isn't contiguous."""
    rng, size = np.random.default_rng(0), int(gb * 1e9)
    frames = np.empty((size // 2 // 84**2, 84, 84), np.uint8)
    vectors = np.empty((size // 4 // 64, 16), np.float32)
    wide = np.empty((size // 4 // 64, 17), np.float32)
    for array in (frames, vectors, wide):  # in pieces: the peak must not be that of the filling
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, len(flat), 2**20):
            flat[start : start + 2**20] = rng.integers(0, 256, min(2**20, len(flat) - start), np.uint8)
    return {"frames": frames, "vectors": vectors, "view": wide[:, :16], "net": torch.zeros(1000), "head": 7}


def measured_save(folder: Path, gb: float) -> Cost:
    state = replay(gb)
    before, began = _memory("VmRSS"), time.perf_counter()
    checkpoint.save(folder, "bench", state, frame=0)
    return Cost("save", _size(state), _memory("VmHWM") - before, time.perf_counter() - began)


def measured_load(folder: Path) -> Cost:
    """Into arrays of one's own, as a memory does. Mapped files aren't counted: where RAM is short they give way."""
    before, began = _memory("RssAnon"), time.perf_counter()
    state = checkpoint.load(folder, "bench")
    assert state is not None
    held = {name: Rows(1).placed(value, len(value)) for name, value in state.items() if isinstance(value, np.ndarray)}
    size = _size(held)
    return Cost("load", size, _memory("RssAnon") - before - size, time.perf_counter() - began)


def measure(folder: Path, gb: float) -> list[Cost]:
    """A save and a load. Raises `LabError` where the disk is too small."""
    costs = []
    for function, *arguments in ((measured_save, folder, gb), (measured_load, folder)):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            costs.append(fresh.submit(function, *arguments).result())
    return costs


def _size(state: Tree) -> int:
    return sum(value.nbytes for value in state.values() if isinstance(value, np.ndarray))


def _memory(what: str) -> int:
    """Bytes that this process holds (VmRSS; RssAnon: without mapped files), or held at its highest (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.checkpoint", description=__doc__)
    parser.add_argument("--gb", type=float, default=2, help="size of the state, 1e9 bytes; default: 2")
    gb = parser.parse_args().gb
    DATA.mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=DATA) as folder:
            costs = measure(Path(folder), gb)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(*costs, sep="\n")
    return 0 if all(cost.share <= 0.1 for cost in costs) else 1


if __name__ == "__main__":
    sys.exit(main())
