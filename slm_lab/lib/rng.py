"""Where chance comes from: seeds of worlds, and the generator by which an agent acts and learns."""

from __future__ import annotations

import numpy as np
import torch

from slm_lab.lib.types import Tree


def world_seed(seed: int, *stream: int) -> int:
    """Seed of a vector's first world; world i takes it plus i, as Gymnasium does.

    Spread over 2^32: neighbouring session seeds, given as they are, would share all worlds but one, while the sessions
    of a trial and its evaluation (another stream) must play independent episodes.
    """
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1)[0])


class Rng:
    """A generator under one seed, independent of all other streams of the same run; a checkpoint holds its state."""

    def __init__(self, seed: int, *stream: int) -> None:
        entropy = np.random.SeedSequence([seed, *stream])
        self.torch = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def state_dict(self) -> Tree:
        return {"torch": self.torch.get_state()}

    def load_state_dict(self, state: Tree) -> None:
        self.torch.set_state(state["torch"])
