"""Repeat the symbol of a while ago, or the first one."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from slm_lab.env.tasks.base import Rules, State, rows, whole


class _Deck(Rules):
    """`length + 1` cards, as many of each symbol as the number allows, shuffled, shown one by one."""

    def __init__(self, length: int, num_symbols: int) -> None:
        self.length = whole("length", length, 1)
        self.num_symbols = whole("num_symbols", num_symbols, 2)
        self.obs_space = spaces.Discrete(self.num_symbols)
        self.action_space = spaces.Discrete(self.num_symbols)

    def script(self, rng: np.random.Generator) -> State:
        return {"cards": rng.permutation(np.arange(self.length + 1) % self.num_symbols)}

    def observe(self, state: State) -> np.ndarray:
        return rows(state, "cards")


class RepeatPrevious(_Deck):
    """Say the symbol shown k - 1 steps before the present one, at every step (a delay line).

    A deck of `length + 1` = 52 cards, 13 of each of 4 suits, is shuffled and shown one card a step; observation
    Discrete(num_symbols), action Discrete(num_symbols). At step t the right answer is card t - k + 1 (k = 1: the card
    in sight; k = 4: three steps ago). It earns +1/48 = +1/(length + 1 - k), a wrong one minus as much, and the first
    k - 1 steps, at which there is no such card, 0. Best return 1; guessing among 4 symbols -0.5.

    Raises `EnvError` for k outside [1, length], length < 1, num_symbols < 2.
    Source: POPGym's RepeatPreviousEasy (Morad et al. 2023, arXiv 2303.01859): same deck, k and rewards, as its code has
    them. We differ: the end of the deck is `terminated` (there is no more to come), not `truncated`.
    """

    def __init__(self, k: int = 4, length: int = 51, num_symbols: int = 4) -> None:
        super().__init__(length, num_symbols)
        self.k = whole("k", k, 1, self.length)

    def act(self, state: State, action: np.ndarray) -> np.ndarray:
        target = self.target(state)
        earned = np.where(action == target, 1.0, -1.0) / (self.length + 1 - self.k)
        return np.where(target >= 0, earned, 0.0)

    def target(self, state: State) -> np.ndarray:
        """The right answer of this step; -1 before there is one and at the last observation."""
        step = self.cue_steps(state)[:, 0]
        return np.where(step >= 0, state["cards"][np.arange(len(step)), step], -1)

    def cue_steps(self, state: State) -> np.ndarray:
        """The step whose symbol is asked for now."""
        step = state["t"] - self.k + 1
        return np.where(state["t"] < self.length, np.maximum(step, -1), -1)[:, None]


class RepeatFirst(_Deck):
    """Say the symbol shown at the first step, at every step.

    The deck, observations and actions are those of `RepeatPrevious`. Each of the `length` = 51 answers earns +1/length
    if it is the first card's suit and -1/length if not, the very first (the card in sight) included. Best return 1;
    guessing among 4 symbols -0.5.

    Raises `EnvError` for length < 1, num_symbols < 2.
    Source: POPGym's RepeatFirstEasy (Morad et al. 2023, arXiv 2303.01859), same rewards. We differ: the end of the deck
    is `terminated`, not `truncated`.
    """

    def __init__(self, length: int = 51, num_symbols: int = 4) -> None:
        super().__init__(length, num_symbols)

    def act(self, state: State, action: np.ndarray) -> np.ndarray:
        return np.where(action == self.target(state), 1.0, -1.0) / self.length

    def target(self, state: State) -> np.ndarray:
        """The right answer; -1 at the last observation."""
        return np.where(state["t"] < self.length, state["cards"][:, 0], -1)

    def cue_steps(self, state: State) -> np.ndarray:
        return np.zeros((len(state["t"]), 1), np.int64)
