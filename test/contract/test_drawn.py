"""Every off-policy memory of the table gives nothing but what was lived."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from small_specs import MEMORIES
from worlds import Lived, Lives, Near, replay

from slm_lab.agent.memory.replay import Drawn, Replay
from slm_lab.env.base import World
from slm_lab.lib.types import Batch, Tree
from slm_lab.spec.parts import MEMORY

OFF_POLICY = [name for name in MEMORY if not MEMORY.load(name).on_policy]
WANTED = -100.0  # nothing comes near, so a goal that differs is one in hindsight
BOX = {size: spaces.Box(-np.inf, np.inf, (size,), np.float64) for size in (2, 3)}


def goals(ids: np.ndarray) -> Tree:
    """World, episode and step, counted from 1: what was never written is no row of world 1."""
    return {
        "observation": ids + 1.0,
        "achieved_goal": ids[:, 1:] + 0.0,
        "desired_goal": np.full((len(ids), 2), WANTED),
    }


def strangers(batch: Batch, lives: Lives) -> list[Any]:
    """Of the rows that are learned from, those that no world has lived, or that another observation followed."""
    lived = {(e, row) for e, life in enumerate(lives.lived) for row in life if row}
    whose = {(e, row.episode, row.step, row.action) for e, row in lived}
    found: list[Any] = []
    for b, t in zip(*np.nonzero(batch.mask), strict=True):
        before, after = (batch.obs["observation"][b, t + i].astype(int) - 1 for i in (0, 1))
        e, episode, step = before.tolist()
        action, *rest = (getattr(batch, n)[b, t].item() for n in ("action", "reward", "terminated", "truncated"))
        own = (batch.obs["desired_goal"][b, t] == WANTED).all()  # in hindsight pay and end are others
        known = (e, Lived(episode, step, action, *rest)) in lived if own else (e, episode, step, action) in whose
        if not known or after.tolist() != [e, episode, step + 1]:
            found.append((e, episode, step, action, *rest, after))
    return found


def drawn(cls: Any, keys: dict[str, Any], E: int) -> int:
    """How many rows were drawn over a life that wraps the memory and loses its worlds on the way; checks each."""
    shown: dict[str, spaces.Space] = {"observation": BOX[3], "achieved_goal": BOX[2], "desired_goal": BOX[2]}
    where = World(E, shown, spaces.Discrete(9), goals=Near())
    keys = keys | {
        key: value for key, value in {"max_size": 40 * E, "n_step": 1}.items() if key in cls.Spec.model_fields
    }
    lives = Lives(E, seed=E, show=goals)
    memory = replay(cls, where=where, frequency=1, start=24, **keys)
    count = 0
    for step in range(130):
        if step == 70:
            memory.interrupt(lives.interrupt())
            continue
        memory.update(lives.row())
        while memory.to_train:
            batch = memory.sample()
            assert not strangers(batch, lives)
            count += int(batch.mask.sum())
            if batch.index is not None:
                memory.feedback(batch.index, np.ones(len(batch.index)))
    return count


@pytest.mark.parametrize("E", [1, 3])
@pytest.mark.parametrize("name", OFF_POLICY)
def test_what_is_drawn_was_lived(name: str, E: int) -> None:
    assert drawn(MEMORY.load(name), MEMORIES[name], E) > 300


class Anywhere(Replay):
    def draw(self, count: int) -> Drawn:
        return Drawn(self.rng.integers(self.spec.max_size, size=count))


class Unmasked(Replay):
    def draw(self, count: int) -> Drawn:
        t = self.rng.integers(self.rows.first, self.rows.count, count)
        return Drawn(self.index(t, self.rng.integers(self.rows.E, size=count)))


@pytest.mark.parametrize("cls", [Anywhere, Unmasked])
def test_a_memory_that_draws_what_no_one_lived_is_found(cls: Any) -> None:
    """Rows that were never written; rows whose action the world ignored."""
    with pytest.raises(AssertionError, match="strangers"):
        drawn(cls, {"max_size": 40, "batch_size": 8}, 1)


def test_a_part_without_a_small_spec_is_told_where_to_put_it() -> None:
    with pytest.raises(AssertionError, match=r"Unheard has no small spec: .* test/small_specs\.py"):
        MEMORIES["Unheard"]
