"""One source of chance for a session: everything random draws from here, and a checkpoint holds its state."""

from __future__ import annotations

import numpy as np
import torch

from slm_lab.lib.types import Tree


class Rng:
    """A numpy and a torch generator under one seed, independent of all other streams of the same run."""

    def __init__(self, seed: int, *stream: int) -> None:
        entropy = np.random.SeedSequence([seed, *stream])
        self.numpy = np.random.default_rng(entropy)
        self.torch = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def state_dict(self) -> Tree:
        return {"numpy": self.numpy.bit_generator.state, "torch": self.torch.get_state()}

    def load_state_dict(self, state: Tree) -> None:
        self.numpy.bit_generator.state = state["numpy"]
        self.torch.set_state(state["torch"])
