"""How many updates prioritized replay saves where success is rare: `python -m bench.cliffwalk [N ...]`.

The blind cliffwalk of Schaul et al. 2016 (arXiv 1511.05952, section 3.1 and appendix B.1): of n states in a row, one
action goes on and the other ends the episode; only the last state's pays. The memory holds the 2^(n+1) − 2 transitions
of all 2^n sequences of actions, in random order, so the one that pays is there once. A tabular Q-learner (step 1/4,
γ = 1 − 1/n, Q = 0 at first) makes one update per draw until the mean squared error of Q is below 1e-3. As in that
section there are no importance weights; we differ in that priorities are proportional, and new rows at the largest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from bench.words import count
from slm_lab.agent.memory.base import MemoryContext
from slm_lab.agent.memory.prioritized import PrioritizedReplay
from slm_lab.agent.memory.replay import Replay
from slm_lab.env.base import World
from slm_lab.lib.types import Row

STEP = 0.25
ERROR = 1e-3
RIGHT = 0


def remember(memory: Any, state: int, action: int, reward: float, after: int, ended: bool, first: bool) -> None:
    """One row of one world; `first`: it is the row between two episodes, which no one plays."""
    no, obs, following = np.zeros(1, bool), {"obs": np.array([state])}, {"obs": np.array([after])}
    memory.update(
        Row(obs, no, {}, np.array([action]), {}, np.array([reward], np.float32), no | ended, no, following, no | first)
    )


def fill(memory: Any, n: int, rng: np.random.Generator) -> int:
    """Play every sequence of n actions until it ends; how many transitions that made."""
    played = 0
    for sequence in rng.permutation(2**n):
        for state in range(n):
            action = int(sequence >> state & 1)
            last = state == n - 1
            ended = action != RIGHT or last
            remember(memory, state, action, float(last and action == RIGHT), state + 1, ended, first=False)
            played += 1
            if ended:
                break
        remember(memory, state + 1, 0, 0.0, 0, ended=False, first=True)
    return played


def updates(memory: Any, n: int, most: int) -> int:
    """Updates until Q is right; `most` where it never is."""
    q, right = np.zeros((n + 1, 2)), np.zeros((n + 1, 2))
    gamma = memory.context.gamma
    right[:n, RIGHT] = gamma ** np.arange(n - 1, -1, -1)
    done = 0
    while done < most:
        batch = memory.sample()
        for i in range(len(batch.reward)):
            (state, after), action = batch.obs["obs"][i], batch.action[i, 0]
            target = batch.reward[i, 0] + batch.discount[i, 0] * (not batch.terminated[i, 0]) * q[after].max()
            error = target - q[state, action]
            q[state, action] += STEP * error
            done += 1
            if ((q - right)[:n] ** 2).mean() < ERROR:
                return done
        if memory.spec.batch_size == 1:
            memory.feedback(batch.index, np.abs([error]))
    return most


def measure(cls: type[Replay], n: int, seed: int, batch_size: int = 1, most: int = 2_000_000, **keys: Any) -> int:
    """Updates that a learner needs with this memory."""
    world = World(1, {"obs": spaces.Discrete(n + 1)}, spaces.Discrete(2))
    context = MemoryContext(world, frequency=1, gamma=1 - 1 / n, seed=seed)
    memory = cls(cls.Spec(max_size=3 * 2**n - 2, batch_size=batch_size, **keys), context)
    played = fill(memory, n, np.random.default_rng(seed))
    assert played == 2 ** (n + 1) - 2
    return updates(memory, n, most)


def uniform(n: int, seed: int) -> int:
    """What is drawn uniformly doesn't depend on what was learned, so many are drawn at a time."""
    return measure(Replay, n, seed, batch_size=512)


def prioritized(n: int, seed: int, alpha: float = 0.6) -> int:
    return measure(PrioritizedReplay, n, seed, alpha=alpha, beta=0.0, beta_end=0.0, epsilon=1e-6)


def main(argv: Sequence[str] | None = None, seeds: int = 10) -> None:
    parser = argparse.ArgumentParser(prog="run_lab.py bench cliffwalk", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("sizes", nargs="*", type=count, metavar="N", help="states in a row; default: 8 to 12")
    sizes = parser.parse_args(argv).sizes or [8, 9, 10, 11, 12]
    print(f"median updates of {seeds} seeds until the error is below {ERROR}")
    print("| n | transitions | uniform | α 0.6 | α 1 | times fewer |\n|---|---|---|---|---|---|")
    for n in sizes:
        plain = np.median([uniform(n, seed) for seed in range(seeds)])
        better = [np.median([prioritized(n, seed, alpha) for seed in range(seeds)]) for alpha in (0.6, 1.0)]
        counts = " | ".join(f"{updates:,.0f}" for updates in (2 ** (n + 1) - 2, plain, *better))
        print(f"| {n} | {counts} | {' and '.join(f'{plain / updates:.1f}' for updates in better)} |", flush=True)


if __name__ == "__main__":
    main()
