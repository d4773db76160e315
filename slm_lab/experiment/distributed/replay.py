"""A replay memory in a process of its own, and what stands for it in the learner's."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from slm_lab.agent.agent import make_row
from slm_lab.agent.build import build_memory
from slm_lab.agent.memory.base import Memory, MemoryContext
from slm_lab.agent.memory.gate import Gate
from slm_lab.env.vec import make_env
from slm_lab.experiment.cluster import stand_in
from slm_lab.experiment.distributed.worker import Chunk, joined, lived
from slm_lab.lib.errors import LabError
from slm_lab.lib.tree import map_batch
from slm_lab.lib.types import Batch, Row, Tree
from slm_lab.spec.validate import resolve

AHEAD = 1  # batches drawn while the learner still learns from the one before


class ReplayKeeper:
    """Holds the memory of a run. Rows come as the workers' chunks, and go in as the learner counts them."""

    def __init__(self, dumped: dict[str, Any], folder: str, seed: int, files: Path) -> None:
        stand_in(folder)
        spec = resolve(dumped, check_env=False)
        env = make_env(spec.env, num_envs=1)
        world = replace(env.world, num_envs=spec.env.num_envs)
        self.memory = build_memory(spec.agent, world, seed, spec.env.max_frame, files)
        self.coming: deque[Row] = deque()

    def receive(self, *chunks: Chunk) -> None:
        """The same steps of all workers."""
        self.coming.extend(make_row(*step) for step in lived(joined(list(chunks))))

    def sample(self, fresh: int) -> Batch:
        """A batch, once `fresh` rows more have gone in."""
        self._take(fresh)
        return self.memory.sample()

    def feedback(self, index: np.ndarray, priority: np.ndarray) -> None:
        self.memory.feedback(index, priority)

    def interrupt(self, row: Row) -> None:
        self.memory.interrupt(row)

    def state(self, fresh: int) -> Tree:
        self._take(fresh)
        return self.memory.state_dict()

    def load(self, state: Tree) -> None:
        self.memory.load_state_dict(state)

    def _take(self, fresh: int) -> None:
        for _ in range(fresh):
            self.memory.update(self.coming.popleft())


class RemoteMemory(Memory):
    """A memory whose rows are kept by a `ReplayKeeper`; the gate is counted here.

    Batches are drawn one ahead, so the newest row may be missing in one, and a priority comes back after the next draw.
    """

    on_policy = False

    def __init__(self, context: MemoryContext, keeper: Any) -> None:
        super().__init__(None, context)
        self.keeper = keeper
        self.gate = Gate(context.frequency, context.start, context.iterations)
        self.fresh = 0  # rows counted here that the keeper hasn't been told to take in
        self.asked: deque[Any] = deque()  # batches on their way

    @property
    def to_train(self) -> bool:  # type: ignore[override]
        return self.gate.owed > 0

    def receive(self, chunks: list[Any]) -> None:
        """References of the workers' chunks; they never pass through here."""
        self.keeper.receive.remote(*chunks)

    def update(self, row: Row) -> None:
        self.fresh += 1
        self.gate.played(int(np.count_nonzero(row.mask)))

    def sample(self) -> Batch:
        self.gate.take()
        while len(self.asked) <= AHEAD:
            self.asked.append(self.keeper.sample.remote(self._told()))
        return map_batch(np.array, self._answer(self.asked.popleft()))  # what comes is read-only

    def feedback(self, index: np.ndarray, priority: np.ndarray) -> None:
        self.keeper.feedback.remote(index, priority)

    def interrupt(self, row: Row) -> None:
        self.keeper.interrupt.remote(row)

    def state_dict(self) -> Tree:
        return {**self._answer(self.keeper.state.remote(self._told())), "gate": self.gate.state_dict()}

    def load_state_dict(self, state: Tree) -> None:
        self.gate.load_state_dict(state["gate"])
        self._answer(self.keeper.load.remote(state))

    def _told(self) -> int:
        fresh, self.fresh = self.fresh, 0
        return fresh

    def _answer(self, reference: Any) -> Any:
        try:
            return ray.get(reference)
        except ray.exceptions.RayActorError as error:
            raise LabError(
                "the process that kept the replay memory died (killed, or out of memory?), and what it held since the "
                "last checkpoint with it. Go on from there with train@latest."
            ) from error
