"""Keep several marked symbols, and give each back when asked for it."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from slm_lab.env.base import EnvError
from slm_lab.env.tasks.base import Rules, State, rows, whole


class MultiCueRecall(Rules):
    """Keep `num_cues` flagged symbols among distractors, and give each back when it is asked for.

    Observation float32 [S + 1 + C] with S = `num_symbols`, C = `num_cues`: symbol (one-hot), flag, query (one-hot).
    At each of the first `length - C` steps a random symbol is shown. At C of the first `(length - C) // 2` steps, drawn
    anew each episode, the flag is 1: those symbols are the cues, numbered in time. The last C steps show no symbol and
    ask for each cue once, in random order: the query of cue i has its i-th number 1. Action Discrete(S); a right answer
    earns 1/C, everything else 0. The last observation is all zeros. Best return 1; guessing 1/S.

    Raises `EnvError` for num_cues < 1, num_symbols < 2, or a length below 3 * num_cues (no room for the cues).
    Source: ours, after the key-value recall tasks of Graves et al. 2014 (arXiv 1410.5401) and Wayne et al. 2018
    (arXiv 1803.10760).
    """

    def __init__(self, length: int = 32, num_cues: int = 3, num_symbols: int = 4) -> None:
        self.num_cues, self.num_symbols = whole("num_cues", num_cues, 1), whole("num_symbols", num_symbols, 2)
        self.length = whole("length", length, 1)
        if self.length < 3 * self.num_cues:
            raise EnvError(f"{length} is too short for {num_cues} cues: at least {3 * num_cues} was expected", "length")
        self.shown = self.length - self.num_cues  # steps before the first question
        self.obs_space = spaces.Box(0.0, 1.0, (self.num_symbols + 1 + self.num_cues,), np.float32)
        self.action_space = spaces.Discrete(self.num_symbols)

    def script(self, rng: np.random.Generator) -> State:
        size, cues = self.num_symbols, self.num_cues
        symbols = rng.integers(size, size=self.shown)
        steps = np.sort(rng.choice(self.shown // 2, size=cues, replace=False))
        order = rng.permutation(cues)
        show = np.zeros((self.length + 1, size + 1 + cues), np.int8)
        show[np.arange(self.shown), symbols] = 1
        show[steps, size] = 1
        show[self.shown + np.arange(cues), size + 1 + order] = 1
        answers = np.full(self.length + 1, -1)
        answers[self.shown : self.length] = symbols[steps[order]]
        return {"show": show, "answers": answers, "steps": steps}

    def observe(self, state: State) -> np.ndarray:
        return rows(state, "show").astype(np.float32)

    def act(self, state: State, action: np.ndarray) -> np.ndarray:
        return np.where(action == self.target(state), 1.0 / self.num_cues, 0.0)

    def target(self, state: State) -> np.ndarray:
        """The answer to this step's question; -1 where none is asked."""
        return rows(state, "answers")

    def cue_steps(self, state: State) -> np.ndarray:
        """The cues' steps; at a question only that of the cue asked for."""
        asked = rows(state, "show")[:, -self.num_cues :] == 1  # [E, C]
        return np.where(asked | ~asked.any(axis=1, keepdims=True), state["steps"], -1)
