"""Experience replay: a ring of the past, drawn from again and again. Replay (uniform) and CER."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from slm_lab.agent.memory.base import Memory, MemoryContext
from slm_lab.agent.memory.gate import Gate
from slm_lab.agent.memory.rows import Pairs, Rows
from slm_lab.agent.memory.storage import Storage, columns, room_problems, storage
from slm_lab.lib.errors import Problem
from slm_lab.lib.types import Batch, Row, Tree
from slm_lab.spec.model import PositiveInt, SpecModel

if TYPE_CHECKING:
    from slm_lab.env.base import World
    from slm_lab.spec.lab_spec import LabSpec


class ReplaySpec(SpecModel):
    """Keys of every replay memory."""

    max_size: PositiveInt = Field(100_000, description="rows held, over all worlds; the oldest go first")
    batch_size: PositiveInt = Field(32, description="windows (rows, or sequences) in a batch")
    n_step: PositiveInt = Field(1, description="rewards summed up before the value of what followed is asked")
    storage: Storage = Field("ram", description="where the rows are: ram, or memmap (a file in the run's folder)")


class RowReplaySpec(ReplaySpec):
    """Keys of those that draw single rows."""

    use_cer: bool = Field(False, description="the newest row in every batch, in place of one that was drawn")


class Drawn(NamedTuple):
    """Which windows go into a batch: where they lie in the memory, as one number each (see `where`), their weights."""

    at: np.ndarray  # [B]
    weight: np.ndarray | None = None  # [B] float32


class Replay(Memory):
    """Uniform replay of single rows, n-step if asked.

    The ring holds `max_size` rows; each draw is uniform over all rows that were played and are held. With `n_step: n`
    the reward is `Σ_{k<m} γ^k r_{t+k}` and the observation after it that of row t+m, where m is n, or less where the
    episode or the memory ends; `discount` is γ^m. Updates are owed by frames (see `Gate`). With `use_cer` the newest
    row is in every batch.

    Source: Lin 1992; Mnih et al. 2015 (doi 10.1038/nature14236).

    Sample spec: `"memory": {"name": "Replay", "max_size": 100000, "batch_size": 32, "use_cer": false}`
    """

    class Spec(RowReplaySpec):
        name: Literal["Replay"] = "Replay"

    on_policy = False
    keeps_carry = False

    def __init__(self, spec: Any, context: MemoryContext) -> None:
        super().__init__(spec, context)
        world = context.world
        self.worlds = np.arange(world.num_envs)
        self.rng = np.random.default_rng([context.seed, 1])
        self.gate = Gate(context.frequency, context.start, context.iterations)
        capacity = -(-spec.max_size // world.num_envs)
        self.rows = Rows(
            capacity, world.stacks, world.action_space, extras=False, allocate=storage(spec.storage, context.folder)
        )
        self.pairs: Pairs | None = None  # of the last batch
        self.spare: Pairs | None = None  # the same, when nobody needs that batch any more

    @property
    def newest(self) -> int:
        """How many of the newest rows are in every batch."""
        return int(self.spec.use_cer)

    @property
    def to_train(self) -> bool:  # type: ignore[override]
        return self.gate.owed > 0

    def update(self, row: Row) -> None:
        self.rows.append(row)
        self.gate.played(int(np.count_nonzero(row.mask)))

    def fill(self, rows: Iterable[Row]) -> None:
        clock = self.gate.state_dict()
        for row in rows:
            self.update(row)
        self.gate.load_state_dict(clock)

    def tick(self, frames: int) -> None:
        self.gate.played(frames)

    def sample(self) -> Batch:
        self.gate.take()
        return self.batch(self.draw(self.spec.batch_size))

    def refill(self, spent: Batch) -> Batch:
        if self.pairs is not None and spent is self.pairs.batch:
            self.spare = self.pairs
        return self.sample()

    def draw(self, count: int) -> Drawn:
        """`count` rows, the newest ones first."""
        return Drawn(self.with_newest(count, self.uniform))

    def with_newest(self, count: int, others: Callable[[int], np.ndarray]) -> np.ndarray:
        """`count` rows: the newest ones, then as many as are missing by `others`."""
        if not self.newest:
            return others(count)
        newest = self.newest_rows(min(self.newest, count))
        return np.concatenate([newest, others(count - len(newest))])

    def uniform(self, count: int) -> np.ndarray:
        """Rows that were played, each as likely as any other: a few more are drawn, for those that no one played."""
        found = self.rows.draw(self.rng.random(count + count // 8 + 1))
        while len(found) < count:
            found = np.concatenate([found, self.rows.draw(self.rng.random(count))])
        return found[:count]

    def newest_rows(self, count: int) -> np.ndarray:
        """The `count` rows played last (fewer if there are fewer); those of one step in an order by chance."""
        found: list[int] = []
        t, env = self.rows.count - 1, np.arange(self.rows.E)
        while len(found) < count and t >= self.rows.first:
            at = self.index(np.array(t), env)
            at = at[self.rows.played(at)]
            found += (self.rng.permutation(at) if len(env) > 1 else at)[: count - len(found)].tolist()
            t -= 1
        return np.array(found, np.int64)

    def batch(self, drawn: Drawn) -> Batch:
        """The rows as windows [B, T = 1] whose observation after is n steps later."""
        pairs, self.spare = self.spare, None
        if pairs is None or len(pairs.batch.index) != len(drawn.at):
            pairs = Pairs(self.rows, len(drawn.at), drawn.weight is not None, self.context.gamma)
        rows, batch, self.pairs = self.rows, pairs.batch, pairs
        if drawn.weight is not None:
            batch.weight[:] = drawn.weight
        if self.spec.n_step == 1:
            np.add(drawn.at, rows.after, out=pairs.at)
            pairs.fill()
            return batch
        t, env = (x[:, None] for x in self.where(drawn.at))
        reward, discount, after = n_step_sums(rows, t, env, self.spec.n_step, self.context.gamma)
        after = self.index(after, env)
        pairs.at[:] = drawn.at, after[:, 0]
        pairs.fill()
        last = rows.done(after - rows.E)
        batch.reward[:], batch.discount[:] = reward, discount
        batch.terminated[:], batch.truncated[:] = last["terminated"], last["truncated"]
        return batch

    def index(self, t: np.ndarray, env: np.ndarray) -> np.ndarray:
        """Where windows lie, as one number each: the place of their first row."""
        return self.rows.place(t, env)

    def where(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row number and world of the first row of the windows at `index`."""
        slot, env = np.divmod(index, self.rows.E)
        newest = self.rows.count - 1
        return newest - (newest - slot) % self.rows.slots, env

    def reset(self) -> None:
        self.rows.reset()

    def interrupt(self, row: Row) -> None:
        self.rows.truncate_last()
        if self.rows.size:
            self.rows.append(row)

    def state_dict(self) -> Tree:
        return {"rows": self.rows.state_dict(), "gate": self.gate.state_dict(), "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: Tree) -> None:
        self.rows.load_state_dict(state["rows"])
        self.gate.load_state_dict(state["gate"])
        self.rng.bit_generator.state = state["rng"]

    @classmethod
    def window_length(cls, spec: LabSpec) -> int | None:
        return 1

    @classmethod
    def beside(cls, spec: LabSpec, world: World) -> int:
        """Bytes kept for each row beside it."""
        return 0

    @classmethod
    def problems(cls, spec: LabSpec, world: World) -> list[Problem]:
        memory, start = spec.agent.memory, spec.agent.algorithm.start
        found = super().problems(spec, world) + room_problems(spec, world, cls.beside(spec, world))
        if memory.batch_size > memory.max_size:
            found.append(
                Problem("agent.memory.batch_size", f"{memory.batch_size} is more than max_size {memory.max_size}")
            )
        if spec.env.dataset:  # it is there before the first frame, and looked at by `offline_problems`
            return found
        return found + cls.warm_up_problems(memory, start, columns(spec, world))

    @staticmethod
    def warm_up_problems(memory: Any, start: int, num_envs: int) -> list[Problem]:
        """The first batch must find as many rows as it wants."""
        if memory.batch_size <= start:
            return []
        message = f"{start} frames of warm-up hold no batch of {memory.batch_size}: at least that many are needed"
        return [Problem("agent.algorithm.training_start_step", message)]


def n_step_sums(
    rows: Rows, t: np.ndarray, env: np.ndarray, n: int, gamma: float, end: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For rows `t` [B, T]: discounted sums of up to n rewards, γ^m, and the row m steps later whose value follows.

    m is n, or less where the episode ends, the memory, or what is before row `end` [B, 1, 1]: nothing is summed beyond.
    An episode also ends before a row that no one played, flagged or not.
    """
    steps = t[..., None] + np.arange(n)  # [B, T, n]
    held = steps < (rows.count if end is None else end)
    known = np.minimum(steps, rows.count - 1)
    at = rows.place(known, env[..., None])
    done = rows.done(at)
    ended = (done["terminated"] | done["truncated"]) & held
    ended[..., :-1] |= ~rows.played(at[..., 1:])
    reward, discount, m = discounted(done["reward"], ended, held, gamma)
    return reward, discount, t + m


def discounted(
    reward: np.ndarray, ended: np.ndarray, held: np.ndarray, gamma: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Over the last axis [..., n]: `Σ_{k<m} γ^k r_k`, γ^m and m, the steps held up to the first that ended."""
    n = reward.shape[-1]
    alive = held & (np.cumsum(ended, axis=-1) - ended == 0)
    m = alive.sum(axis=-1)
    powers = (gamma ** np.arange(n + 1)).astype(np.float32)
    return (np.where(alive, reward, 0.0) * powers[:n]).sum(axis=-1, dtype=np.float32), powers[m], m


class CER(Replay):
    """Combined experience replay: the k newest rows are in every batch, the rest drawn uniformly.

    They *replace* k of the draws, so the batch stays as large. Of several worlds stepped together, those of one step
    are taken in an order by chance.

    Source: Zhang & Sutton 2017, arXiv 1712.01275 (k = 1 there).

    Sample spec: `"memory": {"name": "CER", "newest": 1, "max_size": 100000, "batch_size": 32}`
    """

    class Spec(ReplaySpec):
        name: Literal["CER"] = "CER"
        newest: PositiveInt = Field(1, description="k: how many of the newest rows are in every batch")

    @property
    def newest(self) -> int:
        return int(self.spec.newest)

    @classmethod
    def problems(cls, spec: LabSpec, world: World) -> list[Problem]:
        memory = spec.agent.memory
        found = super().problems(spec, world)
        if memory.newest > memory.batch_size:
            found.append(
                Problem("agent.memory.newest", f"{memory.newest} rows don't fit in a batch of {memory.batch_size}")
            )
        return found
