"""The agent: an algorithm and its memory, between numpy worlds and torch nets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from slm_lab.agent.algorithm.base import Algorithm
from slm_lab.agent.memory.base import Memory, Tensors
from slm_lab.agent.memory.offline import lived
from slm_lab.env.dataset import Dataset
from slm_lab.lib.reduce import Metrics
from slm_lab.lib.rng import Rng
from slm_lab.lib.tree import map_batch, to_numpy
from slm_lab.lib.types import ActOut, Batch, Row, Step, Tree


class Agent:
    """Acts in E worlds at once and learns when its memory says so. Counts the frames it has lived.

    Algorithms know actions as flat vectors; here is the door where they leave in the shape that the space has, and come
    back flat.
    """

    def __init__(self, algorithm: Algorithm, memory: Memory, rng: Rng) -> None:
        self.algorithm, self.memory, self.rng = algorithm, memory, rng
        self.action_space = memory.context.world.action_space
        self.action_shape = self.action_space.shape or ()
        self.device = algorithm.net.device
        self.batches = Tensors()
        self.frame = 0

    def initial(self, E: int) -> Tree:
        """Carry of E worlds at the start of an episode."""
        return self.algorithm.net.initial(E)

    @torch.inference_mode()  # beyond no_grad, torch keeps no versions and views of these tensors: a tenth of the time
    def act(self, step: Step, carry: Tree, explore: bool = True) -> ActOut:
        """Actions [E, *A] for what the worlds show; without `explore` the best ones, without chance."""
        obs = {key: self._one_step(x) for key, x in step.obs.items()}  # [E, 1, *O]
        out = self.algorithm.act(obs, self._one_step(step.is_first), carry, explore, self.frame)
        return ActOut(out.action.reshape(-1, *self.action_shape), out.carry, out.extras)

    def _one_step(self, x: np.ndarray) -> Tensor:
        """What E worlds show, [E, ...], as a window [E, 1, ...]."""
        return torch.from_numpy(x[:, None]).to(self.device)

    def update(self, step: Step, carry: Tree, act: ActOut, next_step: Step) -> list[Metrics]:
        """Remember a step (`carry` as before acting) and learn while the memory says so; the metrics of each update."""
        row = make_row(step, carry, act, next_step)
        self.frame += int(np.count_nonzero(row.mask))
        self.memory.update(row)
        return self._learn()

    def remember(self, data: Dataset) -> None:
        """Take in a file of experience, before the first frame. It has no carries: the initial one stands for each."""
        self.memory.fill(lived(data, to_numpy(self.initial(data.world.num_envs))))

    def study(self, frames: int) -> list[Metrics]:
        """Learn from what is remembered, as much as if `frames` had been played; the metrics of each update."""
        self.frame += frames
        self.memory.tick(frames)
        return self._learn()

    def _learn(self) -> list[Metrics]:
        learned: list[Metrics] = []
        while self.memory.to_train:
            batch = self.batches.sample(self.memory)
            if self.device.type != "cpu":
                batch = map_batch(lambda leaf: leaf.to(self.device), batch)
            metrics, priority = self.algorithm.update(self._flat(batch), self.frame)
            learned.append(metrics)
            if priority is not None:
                self.memory.feedback(batch.index, priority.cpu().numpy())
        return learned

    def _flat(self, batch: Batch) -> Batch:
        """The batch with actions as algorithms know them: [B, T] of a Discrete space, [B, T, A] of all others."""
        if isinstance(self.action_space, spaces.Discrete):
            return batch
        return batch.replace(action=batch.action.reshape(*batch.action.shape[:2], -1))

    def interrupt(self, step: Step, carry: Tree, next_step: Step) -> None:
        """The run goes on in new worlds, which show `next_step`; those that showed `step` could not be saved."""
        act = self.act(step, carry, explore=False)  # no one plays it; it gives the row its shapes
        self.memory.interrupt(make_row(step, carry, act, next_step))

    # --- what a session asks, of one learner or of several (multi.py) ---

    @property
    def opt_step(self) -> int:
        """Gradient steps taken."""
        return self.algorithm.optim.opt_step

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.algorithm.net.named_parameters()

    def watch(self) -> None:
        """Note which parameters ever get a gradient (dev mode)."""
        self.algorithm.optim.watch()

    @property
    def untrained(self) -> set[str]:
        """Names of parameters without any gradient so far, when watched."""
        return self.algorithm.optim.untrained or set()

    def learned(self) -> Tree:
        """What acting needs, without what it was learned by."""
        return {"net": self.algorithm.net.acting_state(), "opt_step": self.opt_step}  # some act by chance until a step

    def load_learned(self, state: Tree) -> None:
        self.algorithm.net.load_acting_state(state["net"])
        self.algorithm.optim.opt_step = int(state.get("opt_step", 1))  # files of before have none

    def state_dict(self) -> Tree:
        return {
            "algorithm": self.algorithm.state_dict(),
            "memory": self.memory.state_dict(),
            "rng": self.rng.state_dict(),
            "frame": self.frame,
        }

    def load_state_dict(self, state: Tree) -> None:
        self.algorithm.load_state_dict(state["algorithm"])
        self.memory.load_state_dict(state["memory"])
        self.rng.load_state_dict(state["rng"])
        self.frame = int(state["frame"])


def make_row(step: Step, carry: Tree, act: ActOut, next_step: Step) -> Row:
    """What a memory gets of a step; `carry` as before acting."""
    return Row(
        step.obs, step.is_first, to_numpy(carry), act.action.cpu().numpy(), to_numpy(act.extras),
        next_step.reward, next_step.terminated, next_step.truncated, next_step.obs, next_step.is_first,
    )  # fmt: skip
