"""Workloads of the speed benchmark: replay memories beside cpprb's, Stable-Baselines3's and Tianshou's.

All are filled with the same steps of 64 worlds. Ours goes through its public methods, and what is drawn becomes torch
tensors on every side, as a learner needs it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces

from bench.workload import Sample, Side, Workload, cpu_rate
from slm_lab.agent.memory.base import Memory, MemoryContext, Tensors
from slm_lab.env.base import Stack, World
from slm_lab.lib.types import Row
from slm_lab.spec.parts import MEMORY

E = 64  # worlds that fill it
ROWS = 1_000_000
FRAMES = 10_000  # rows of stacked pictures, of one world
ALPHA, BETA = 0.6, 0.4
ACTIONS = 2
VECTOR = spaces.Box(-1.0, 1.0, (4,), np.float32)
PICTURE = spaces.Box(0, 255, (84, 84, 4), np.uint8)  # four frames stacked


class Store(Protocol):
    """The face that each side is given."""

    def add(self, row: Row) -> object: ...  # of all worlds
    def sample(self) -> Any: ...  # tensors, and whatever `feedback` needs
    def feedback(self, drawn: Any, priority: np.ndarray) -> object: ...


Make = Callable[..., Store]  # rows held, rows of a batch, observation space, worlds


# ---- sides -----------------------------------------------------------------------------------------------------------


class Ours:
    """A memory of the lab, asked as `Agent` asks it."""

    def __init__(
        self, size: int, batch: int, space: spaces.Box = VECTOR, worlds: int = E, name: str = "Replay"
    ) -> None:
        stacks = {"obs": Stack(4, -1)} if space is PICTURE else {}
        world = World(worlds, {"obs": space}, spaces.Discrete(ACTIONS), stacks)
        made = MEMORY.load(name)
        keys = {"alpha": ALPHA, "beta": BETA, "beta_end": BETA} if name == "PrioritizedReplay" else {}
        spec = made.Spec(max_size=size, batch_size=batch, **keys)
        self.memory: Memory = made(spec, MemoryContext(world, frequency=1))
        self.add, self.tensors = self.memory.update, Tensors()

    def sample(self) -> Any:
        return self.tensors.sample(self.memory)

    def feedback(self, drawn: Any, priority: np.ndarray) -> None:
        self.memory.feedback(drawn.index, priority)


class SB3:
    """`ReplayBuffer` of Stable-Baselines3; its samples are tensors."""

    def __init__(self, size: int, batch: int, space: spaces.Box = VECTOR, worlds: int = E, **options: Any) -> None:
        from stable_baselines3.common.buffers import ReplayBuffer

        self.buffer = ReplayBuffer(size, space, spaces.Discrete(ACTIONS), "cpu", n_envs=worlds, **options)
        self.batch, self.infos = batch, [{} for _ in range(worlds)]

    def add(self, row: Row) -> None:
        done = row.terminated | row.truncated
        self.buffer.add(row.obs["obs"], row.next_obs["obs"], row.action[:, None], row.reward, done, self.infos)

    def sample(self) -> Any:
        return self.buffer.sample(self.batch)

    def feedback(self, drawn: Any, priority: np.ndarray) -> None:
        raise NotImplementedError  # it has no priorities


class Cpprb:
    """`ReplayBuffer` of cpprb, with the small types that ours has too; `compressed` keeps next observations once."""

    def __init__(
        self, size: int, batch: int, space: spaces.Box = VECTOR, worlds: int = E, compressed: bool = False,
        name: str = "ReplayBuffer", **options: Any,
    ) -> None:  # fmt: skip
        import cpprb

        seen = {"shape": space.shape, "dtype": space.dtype}
        small = {"act": {"dtype": np.uint8}, "rew": {}, "done": {"dtype": np.bool_}}
        self.compressed = compressed
        if compressed:
            options |= {"next_of": "obs"} | ({"stack_compress": "obs"} if space is PICTURE else {})
        keys = {"obs": seen, **small, **({} if compressed else {"next_obs": seen})}
        self.buffer = getattr(cpprb, name)(size, keys, **options)
        self.batch, self.prioritized = batch, name.startswith("Prioritized")

    def add(self, row: Row) -> None:
        if not self.compressed:
            self.buffer.add(
                obs=row.obs["obs"], act=row.action, rew=row.reward, done=row.terminated, next_obs=row.next_obs["obs"]
            )
            return
        for e in range(len(row.reward)):  # its rows must follow each other
            seen = {"obs": row.obs["obs"][e], "next_obs": row.next_obs["obs"][e]}
            self.buffer.add(act=row.action[e], rew=row.reward[e], done=row.terminated[e], **seen)
            if row.terminated[e]:
                self.buffer.on_episode_end()

    def sample(self) -> Any:
        drawn = self.buffer.sample(self.batch, beta=BETA) if self.prioritized else self.buffer.sample(self.batch)
        # as torch tensors, but where they lie, which only goes back: ours stays numpy too
        return {key: leaf if key == "indexes" else torch.from_numpy(leaf) for key, leaf in drawn.items()}

    def feedback(self, drawn: Any, priority: np.ndarray) -> None:
        self.buffer.update_priorities(drawn["indexes"], priority)


class Tianshou:
    """`PrioritizedVectorReplayBuffer` of Tianshou."""

    def __init__(self, size: int, batch: int, space: spaces.Box = VECTOR, worlds: int = E) -> None:
        from tianshou.data import Batch, PrioritizedVectorReplayBuffer

        self.made, self.batch = Batch, batch
        self.buffer = PrioritizedVectorReplayBuffer(size, worlds, alpha=ALPHA, beta=BETA, weight_norm=True)

    def add(self, row: Row) -> None:
        ends = {"terminated": row.terminated, "truncated": row.truncated}
        seen = {"obs": row.obs["obs"], "obs_next": row.next_obs["obs"]}
        self.buffer.add(self.made(act=row.action, rew=row.reward, **seen, **ends))

    def sample(self) -> Any:
        drawn, index = self.buffer.sample(self.batch)
        drawn.to_torch_()
        return drawn, index

    def feedback(self, drawn: Any, priority: np.ndarray) -> None:
        self.buffer.update_weight(drawn[1], priority)


# ---- work ------------------------------------------------------------------------------------------------------------


def steps(space: spaces.Box = VECTOR, worlds: int = E, distinct: int = 512) -> Iterator[Row]:
    """Steps of worlds whose episodes end by chance, one in a hundred, then begin anew; after `distinct` of them again.

    Stacked pictures take as much time to make as to store, so of them there are few.
    """
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 100, (distinct, worlds, *space.shape)).astype(space.dtype)
    action, reward = rng.integers(ACTIONS, size=(distinct, worlds)), np.ones((distinct, worlds), np.float32)
    ended = rng.random((distinct, worlds)) < 0.01
    rows, began = [], np.zeros(worlds, bool)
    for t in range(distinct):
        anew = ended[t - 1] & ~began if t else began
        ends, obs, after = ended[t] & ~anew, {"obs": seen[t]}, {"obs": seen[(t + 1) % distinct]}
        rows.append(Row(obs, began, {}, action[t], {}, reward[t], ends, np.zeros(worlds, bool), after, anew))
        began = anew
    return cycle(rows)


def fill(store: Store, count: int, space: spaces.Box = VECTOR, worlds: int = E) -> None:
    for row in islice(steps(space, worlds, 8 if space is PICTURE else 512), count // worlds):
        store.add(row)


def draw(make: Make, batch: int, count: int, share: float, rows: int = ROWS) -> Sample:
    """Batches a second from a full memory, as tensors."""
    store, count = make(rows, batch), round(count * share)
    fill(store, rows + E)

    def work(n: int) -> None:
        for _ in range(n):
            store.sample()

    work(count // 10)
    return Sample(cpu_rate(count, partial(work, count)), {"batches": count})


def draw_and_judge(make: Make, batch: int, count: int, share: float, rows: int = ROWS) -> Sample:
    """Cycles a second of drawing by priority, as tensors, and giving new priorities."""
    store, count = make(rows, batch), round(count * share)
    fill(store, rows + E)
    priority = np.random.default_rng(1).random((64, batch), np.float32)

    def work(n: int) -> None:
        for i in range(n):
            store.feedback(store.sample(), priority[i % 64])

    work(max(100, count // 10))
    return Sample(cpu_rate(count, partial(work, count)), {"batches": count})


def add(make: Make, share: float) -> Sample:
    """Rows a second into a memory that has gone round once."""
    store, count, source = make(100_000, 32), round(20_000 * share), steps()
    fill(store, 110_000)

    def work() -> None:
        for row in islice(source, count):
            store.add(row)

    return Sample(cpu_rate(count * E, work), {"rows": count * E})


def ram(make: Make, count: int, space: spaces.Box, worlds: int, share: float) -> Sample:
    """MB that the process grows by with a memory made and filled; what is imported for it is there before."""
    count = round(count * share)
    fill(make(10 * worlds, 1, space, worlds), 20 * worlds, space, worlds)
    gc.collect()
    before = resident()
    store = make(count, 1, space, worlds)
    fill(store, count, space, worlds)
    gc.collect()
    return Sample((resident() - before) / 1e6, {"rows": count})


def resident() -> int:
    """Bytes of this process in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- tables ----------------------------------------------------------------------------------------------------------

CPPRB_PER = partial(Cpprb, name="PrioritizedReplayBuffer", alpha=ALPHA)
OURS_PER = partial(Ours, name="PrioritizedReplay")
LEAN = partial(SB3, optimize_memory_usage=True, handle_timeout_termination=False)
SB3_PACKAGE = "stable_baselines3"


LENT = "Ours gives its batch until the next is drawn, which fills it again, as it is used in the lab; peers a new one"


def uniform(batch: int, count: int, ratio: float) -> Workload:
    what = f"uniform replay of 1e6 rows of float32[4]: batches of {batch} as tensors"
    sides = {
        "ours": Side(partial(draw, Ours, batch, count)),
        "cpprb": Side(partial(draw, Cpprb, batch, count), "cpprb"),
        "SB3": Side(partial(draw, SB3, batch, count), SB3_PACKAGE),
    }
    return Workload(f"replay_{batch}", what, "batches/s", sides, ratio, note=LENT)


def prioritized(batch: int, count: int, ratio: float) -> Workload:
    what = f"prioritized replay of 1e6 rows of float32[4]: batches of {batch} as tensors, then their new priorities"
    sides = {
        "ours": Side(partial(draw_and_judge, OURS_PER, batch, count)),
        "cpprb": Side(partial(draw_and_judge, CPPRB_PER, batch, count), "cpprb"),
        "Tianshou": Side(partial(draw_and_judge, Tianshou, batch, count), "tianshou"),
    }
    return Workload(f"per_{batch}", what, "cycles/s", sides, ratio, note=LENT)


def growth(name: str, what: str, count: int, space: spaces.Box, worlds: int, most: float) -> Workload:
    made: dict[str, tuple[Make, str]] = {
        "ours": (Ours, ""),
        "cpprb": (Cpprb, "cpprb"),
        "cpprb compressed": (partial(Cpprb, compressed=True), "cpprb"),
        "SB3": (SB3, SB3_PACKAGE),
        "SB3 lean": (LEAN, SB3_PACKAGE),
    }
    sides = {side: Side(partial(ram, make, count, space, worlds), package) for side, (make, package) in made.items()}
    note = "cpprb compressed: `next_of`, of pictures `stack_compress` too; SB3 lean: `optimize_memory_usage`"
    return Workload(name, what, "MB", sides, most=most, less=True, note=note)


SIZES = {f"{rows:,}": rows for rows in (10_000, 100_000, 1_000_000, 10_000_000)}

WORKLOADS = [
    uniform(32, 20_000, 1.5),
    uniform(256, 8_000, 3.0),
    prioritized(32, 8_000, 1.2),
    prioritized(256, 3_000, 2.0),
    Workload(
        "add", "one step of 64 worlds into replay", "rows/s",
        {"ours": Side(partial(add, Ours)), "cpprb": Side(partial(add, Cpprb), "cpprb"),
         "SB3": Side(partial(add, SB3), SB3_PACKAGE)},
        ratio=1.0,
    ),
    growth("ram_vector", "RAM of replay: 1e6 rows of float32[4]", ROWS, VECTOR, E, 28.0),
    growth("ram_frames", "RAM of replay: 1e4 rows of four stacked 84x84 pictures", FRAMES, PICTURE, 1, 80.0),
    Workload(
        "rows_uniform", "uniform replay, batches of 32", "batches/s",
        {size: Side(partial(draw, Ours, 32, 8_000, rows=rows)) for size, rows in SIZES.items()},
        axis="rows held",
    ),
    Workload(
        "rows_per", "prioritized replay, batches of 32 and their new priorities", "cycles/s",
        {size: Side(partial(draw_and_judge, OURS_PER, 32, 4_000, rows=rows)) for size, rows in SIZES.items()},
        axis="rows held",
    ),
    Workload(
        "rows_ram", "RAM of uniform replay of float32[4]", "MB",
        {size: Side(partial(ram, Ours, rows, VECTOR, E)) for size, rows in SIZES.items()},
        axis="rows held", less=True,
    ),
]  # fmt: skip
