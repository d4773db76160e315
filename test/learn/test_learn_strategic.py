"""StrategicMemory recalls a bit that nothing marks among random ones; a memory of the newest steps can't.

Delays 4 and 16 are part of `make test`, rows of docs/benchmarks/strategic.md of `make test-learn`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from small_specs import ROOT
from test_learn_fast import evaluated, trained

from bench import strategic
from slm_lab.experiment.session import Session
from slm_lab.spec.load import load_file


def memory_task(tmp_path: Path, delay: int, frames: int, seed: int, *overrides: str) -> Session:
    short = [f"env.delay={delay}", f"env.max_frame={frames}", f"meta.eval_frequency={frames}", "meta.png=false"]
    return trained(tmp_path, "specs/strategic/memory_task.json", "memory_task", seed, *short, *overrides)


@pytest.mark.parametrize(("delay", "frames"), [(4, 6_000), (16, 14_000)])
@pytest.mark.parametrize("seed", range(3))
def test_a_bit_is_recalled_after_a_delay(tmp_path: Path, delay: int, frames: int, seed: int) -> None:
    """Seen first at 2,300 to 3,800 frames (delay 4) and 4,000 to 8,000 (delay 16)."""
    assert evaluated(memory_task(tmp_path, delay, frames, seed)) >= 0.99


def test_four_slots_are_enough_for_what_is_worth_keeping_and_not_for_the_newest(tmp_path: Path) -> None:
    few = "agent.memory.slots=4"
    learned = memory_task(tmp_path / "learned", 16, 14_000, 0, few)
    assert evaluated(learned) >= 0.99
    assert learned.eval_rows[-1]["cue_kept"] >= 0.99
    assert abs(evaluated(memory_task(tmp_path / "fifo", 16, 14_000, 0, few, "agent.memory.retention=fifo"))) <= 0.2


def test_a_number_can_say_the_bit_too(tmp_path: Path) -> None:
    """Seen first at 9,200 and 18,400 frames; without the mean taken off Q it was at chance after 30,000."""
    keys = ["env.continuous=true", "agent.algorithm.log_barrier_coef=0", "agent.memory.slots=8"]
    assert evaluated(memory_task(tmp_path, 16, 24_000, 0, *keys)) >= 0.99


class ToldOnce(gymnasium.Env):  # type: ignore[type-arg]
    """Each third episode shows a bit at its first step; the last action of each of the three must name it."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)
    STEPS, EPISODES = 4, 3

    def __init__(self) -> None:
        self.episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.episode = 0, 0 if seed is not None else (self.episode + 1) % self.EPISODES
        if self.episode == 0:
            self.bit = int(self.np_random.integers(2))
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        ends = self.t == self.STEPS
        return self._seen(), float(2 * (action == self.bit) - 1) * ends, ends, False, {}

    def _seen(self) -> Any:
        told = 2.0 * self.bit - 1.0 if self.episode == self.t == 0 else 0.0
        return np.array([told, self.t == self.STEPS - 1], np.float32)


gymnasium.register("test/ToldOnce-v0", ToldOnce)


@pytest.mark.learn
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("persist", "least", "most"), [(True, 0.95, 1.0), (False, 0.1, 0.6)])
def test_what_was_told_in_an_earlier_episode_is_recalled_where_slots_persist(
    tmp_path: Path, persist: bool, least: float, most: float, seed: int
) -> None:
    """Without, the episode that tells it is all that is won: a third. Seen first after 10,000 frames."""
    raw = load_file(ROOT / "specs/strategic/memory_task.json")
    raw["memory_task"]["env"] = {"name": "test/ToldOnce-v0", "num_envs": 64, "max_frame": 60_000, "prev_reward": "sign"}
    file = tmp_path / "told_once.json"
    file.write_text(json.dumps(raw))
    keys = [f"agent.memory.persist={json.dumps(persist)}", "agent.memory.slots=8", "meta.eval_frequency=60000"]
    session = trained(tmp_path, str(file), "memory_task", seed, *keys, "meta.png=false")
    assert least <= evaluated(session) <= most


@pytest.mark.learn
def test_a_bit_is_recalled_from_before_the_window_that_is_learned_from(tmp_path: Path) -> None:
    assert evaluated(memory_task(tmp_path, 16, 16_000, 0, "agent.memory.horizon=8")) >= 0.99


FAST = ["MemoryTask 64 EASY", "MemoryTask 64 HARD", "MemoryTask 256 HARD", "RepeatPrevious 4", "MultiCue 32"]
FAST += ["PassiveTMaze 64", "64 HARD, fifo", "64 HARD, reservoir"]


@pytest.mark.learn
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", FAST)
def test_a_row_of_the_table_holds(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained at 64 is tested at 1,024 too."""
    monkeypatch.setattr(strategic, "FAR", strategic.FAR[:1])
    row = replace(next(row for row in strategic.ROWS if row.name == name), seeds=1, seconds=None)
    assert strategic.missed(row, [strategic.session(row, seed)]) == []


@pytest.mark.learn
@pytest.mark.parametrize("seed", range(3))
def test_without_hindsight_it_takes_more_than_twice_as_long(seed: int) -> None:
    """With it the median of ten seeds is 20,480 frames; without it none of three had it after 200,000."""
    row = next(row for row in strategic.ROWS if row.name == "64 HARD, no hindsight")
    assert strategic.session(replace(row, max_frame=49_152), seed)["then"]["score"] <= strategic.CHANCE
