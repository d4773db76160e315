"""When an off-policy agent learns, counted in frames."""

from __future__ import annotations

from slm_lab.lib.types import Tree


class Gate:
    """Updates owed: after the first `start` frames, `iterations` batches for every `frequency` frames played.

    Frames are counted over all worlds, so four worlds owe as much per frame as one (a step of four just owes it at
    once). Sums, not remainders: a frequency that the worlds step over is not missed.
    """

    def __init__(self, frequency: int, start: int, iterations: int) -> None:
        self.frequency, self.start, self.iterations = frequency, start, iterations
        self.frame = self.owed = 0

    def played(self, frames: int) -> None:
        before, self.frame = self._due(), self.frame + frames
        self.owed += self.iterations * (self._due() - before)

    def _due(self) -> int:
        return max(self.frame - self.start, 0) // self.frequency

    def take(self) -> None:
        """One batch is drawn."""
        self.owed = max(self.owed - 1, 0)

    def state_dict(self) -> Tree:
        return {"frame": self.frame, "owed": self.owed}

    def load_state_dict(self, state: Tree) -> None:
        self.frame, self.owed = int(state["frame"]), int(state["owed"])
