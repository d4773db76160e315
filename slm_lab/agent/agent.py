"""The agent: an algorithm and its memory, between numpy worlds and torch nets."""

from __future__ import annotations

import numpy as np
import torch

from slm_lab.agent.algorithm.base import Algorithm, Metrics
from slm_lab.agent.memory.base import Memory
from slm_lab.lib.rng import Rng
from slm_lab.lib.tree import map_batch, to_numpy, tree_map
from slm_lab.lib.types import ActOut, Row, Step, Tree


class Agent:
    """Acts in E worlds at once and learns when its memory says so. Counts the frames it has lived."""

    def __init__(self, algorithm: Algorithm, memory: Memory, rng: Rng) -> None:
        self.algorithm, self.memory, self.rng = algorithm, memory, rng
        self.frame = 0

    def initial(self, E: int) -> Tree:
        """Carry of E worlds at the start of an episode."""
        return self.algorithm.net.initial(E)

    def act(self, step: Step, carry: Tree, explore: bool = True) -> ActOut:
        """Actions [E, *A] for what the worlds show; without `explore` the best ones, without chance."""
        device = self.algorithm.net.device
        obs = tree_map(lambda x: torch.as_tensor(x, device=device).unsqueeze(1), step.obs)  # [E, 1, *O]
        is_first = torch.as_tensor(step.is_first, device=device).unsqueeze(1)
        return self.algorithm.act(obs, is_first, carry, explore, self.frame)

    def update(self, step: Step, carry: Tree, act: ActOut, next_step: Step) -> list[Metrics]:
        """Remember a step (`carry` as before acting) and learn while the memory says so; the metrics of each update."""
        row = Row(
            step.obs, step.is_first, to_numpy(carry), to_numpy({"action": act.action})["action"], to_numpy(act.extras),
            next_step.reward, next_step.terminated, next_step.truncated, next_step.obs, next_step.is_first,
        )  # fmt: skip
        self.frame += int(np.count_nonzero(row.mask))
        self.memory.update(row)
        device, learned = self.algorithm.net.device, []
        while self.memory.to_train:
            batch = map_batch(lambda leaf: torch.as_tensor(leaf, device=device), self.memory.sample())
            learned.append(self.algorithm.update(batch, self.frame))
        return learned

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
