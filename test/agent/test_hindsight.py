"""Hindsight replay against a scalar reference: goals of the row's own episode, and what they would have paid."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from small_specs import make_spec

from slm_lab.agent.memory.base import MemoryContext
from slm_lab.agent.memory.hindsight import HindsightReplay
from slm_lab.env.base import World
from slm_lab.lib.errors import SpecError
from slm_lab.lib.types import Batch, Row

GAMMA = 0.9
OWN = -1  # what the goals that the world set are numbered with
GOAL = spaces.Box(-np.inf, np.inf, (2,), np.float64)


class ByKind:
    """A goal is (number, kind); it is reached by anything of its kind, and the pay tells both numbers."""

    def reward(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        return ((7 * achieved[:, 0] + 3 * desired[:, 0]) % 11).astype(np.float32)

    def terminated(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        return achieved[:, 1] == desired[:, 1]


class Worlds:
    """E worlds under NEXT_STEP autoreset that show (env, episode, step); what is achieved is numbered by the row."""

    def __init__(self, E: int, seed: int = 0) -> None:
        self.E, self.rng, self.count = E, np.random.default_rng(seed), 0
        self.lived: list[list[dict[str, Any]]] = [
            [] for _ in range(E)
        ]  # episodes: achieved, desired, pay, how it ended
        self.first = np.ones(E, bool)
        for e in range(E):
            self._begin(e)

    def _begin(self, e: int) -> None:
        desired = np.array([OWN, self.rng.integers(4)], float)
        length = self.rng.choice([1, 2, 5, 30])
        episode = {"achieved": [], "desired": desired, "pay": [], "end": None, "length": length}
        self.lived[e].append(episode)
        self._achieve(e, self.count)

    def _achieve(self, e: int, number: int) -> None:
        self.lived[e][-1]["achieved"].append(np.array([number, self.rng.integers(4)], float))

    def obs(self) -> dict[str, np.ndarray]:
        now = [episodes[-1] for episodes in self.lived]
        place = [[e, len(self.lived[e]) - 1, len(now[e]["achieved"]) - 1] for e in range(self.E)]
        return {
            "observation": np.array(place, float),
            "achieved_goal": np.stack([episode["achieved"][-1] for episode in now]),
            "desired_goal": np.stack([episode["desired"] for episode in now]),
        }

    def row(self) -> Row:
        obs, is_first = self.obs(), self.first
        self.count += 1
        reward, ends = np.zeros(self.E, np.float32), np.zeros((2, self.E), bool)
        self.first = np.array([episodes[-1]["end"] is not None for episodes in self.lived])
        for e in range(self.E):
            if self.first[e]:
                self._begin(e)
                continue
            self._achieve(e, self.count)
            episode, reward[e] = self.lived[e][-1], self.rng.normal()
            episode["pay"].append(reward[e])
            if len(episode["pay"]) == episode["length"]:
                episode["end"] = self.rng.integers(2)  # terminated or truncated
                ends[episode["end"], e] = True
        action = self.rng.integers(0, 9, self.E)
        return Row(obs, is_first, {}, action, {}, reward, *ends, self.obs(), self.first)


def memory_for(E: int, seed: int = 0, steps: int = 23, **keys: Any) -> HindsightReplay:
    obs_space = {"observation": spaces.Box(-np.inf, np.inf, (3,)), "achieved_goal": GOAL, "desired_goal": GOAL}
    world = World(E, obs_space, spaces.Discrete(9), goals=ByKind())
    spec = HindsightReplay.Spec(max_size=steps * E, **{"batch_size": 64, **keys})
    return HindsightReplay(spec, MemoryContext(world, 1, gamma=GAMMA, seed=seed))


def told(batch: Batch, b: int) -> dict[str, Any]:
    """What window b of a batch says, as plain numbers."""
    obs = {key: x[b] for key, x in batch.obs.items()}
    np.testing.assert_array_equal(obs["desired_goal"][0], obs["desired_goal"][1])
    (e, episode, step), (e_after, episode_after, after) = obs["observation"].astype(int).tolist()
    assert (e, episode) == (e_after, episode_after), "the observation after is of another episode"
    names = ("reward", "discount", "terminated", "truncated")
    return {
        "where": (e, episode, step), "goal": obs["desired_goal"][0], "after": after,
        "achieved": obs["achieved_goal"], **{name: getattr(batch, name)[b, 0].item() for name in names},
    }  # fmt: skip


def expected(episode: dict[str, Any], step: int, goal: np.ndarray, n: int) -> dict[str, Any]:
    """The same from what was lived, a step at a time."""
    goals, own = ByKind(), goal[0] == OWN
    reward, terminated, after = 0.0, False, step
    for k in range(min(n, len(episode["pay"]) - step)):
        achieved = episode["achieved"][step + k + 1]
        pay = episode["pay"][step + k] if own else goals.reward(achieved[None], goal[None])[0]
        reward, after = reward + GAMMA**k * pay, after + 1
        over = episode["end"] is not None and after == len(episode["pay"])
        terminated = over and episode["end"] == 0 if own else bool(goals.terminated(achieved[None], goal[None])[0])
        if terminated:
            break
    return {
        "after": after, "reward": pytest.approx(reward, abs=1e-4), "discount": pytest.approx(GAMMA ** (after - step)),
        "terminated": terminated, "truncated": over and not terminated,
    }  # fmt: skip


def candidates(episode: dict[str, Any], step: int, strategy: str, first: int) -> list[int]:
    """Numbers of what may become the goal, where rows before `first` are forgotten."""
    numbers = [int(achieved[0]) for achieved in episode["achieved"]]
    if strategy == "final":
        return numbers[-1:]
    return numbers[step + 1 :] if strategy == "future" else [n for n in numbers[1:] if n > first]


@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
@pytest.mark.parametrize(("E", "n", "cer"), [(1, 1, False), (1, 4, False), (5, 1, True), (5, 3, False)])
def test_new_goals_are_of_the_same_episode_and_pay_as_they_would_have(strategy: str, E: int, n: int, cer: bool) -> None:
    worlds, memory = Worlds(E), memory_for(E, goal_strategy=strategy, n_step=n, use_cer=cer)
    seen: Counter[str] = Counter()
    for i in range(150):  # the ring is written six times over
        memory.update(worlds.row())
        if i % 5:
            continue
        batch = memory.sample()
        for b in range(64):
            row = told(batch, b)
            e, number, step = row["where"]
            episode = worlds.lived[e][number]
            np.testing.assert_array_equal(row["achieved"], [episode["achieved"][k] for k in (step, row["after"])])
            truth = expected(episode, step, row["goal"], n)
            assert {name: row[name] for name in truth} == truth
            own = row["goal"][0] == OWN
            if own:
                np.testing.assert_array_equal(row["goal"], episode["desired"])
            else:
                assert int(row["goal"][0]) in candidates(episode, step, strategy, memory.rows.first)
            ended = episode["end"] is not None and row["after"] == len(episode["pay"])
            seen["own" if own else "new", row["terminated"], "over" if ended else "on"] += 1
            assert strategy != "final" or own or not ended or row["terminated"], "what was achieved last is reached"
    cases = {("own", True, "over"), ("new", True, "over"), ("new", True, "on"), ("new", False, "on")}
    assert set(seen) >= cases | (set() if strategy != "episode" else {("new", False, "over")})


@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
def test_each_goal_there_is_comes_as_often_as_any_other(strategy: str) -> None:
    worlds = Worlds(2, seed=3)
    memory = memory_for(2, goal_strategy=strategy, her_ratio=1e9, batch_size=20_000)
    for _ in range(60):
        memory.update(worlds.row())
    found: dict[tuple[int, ...], Counter[int]] = {}
    batch = memory.sample()
    where = batch.obs["observation"][:, 0].astype(int)
    for place, goal in zip(map(tuple, where.tolist()), batch.obs["desired_goal"][:, 0, 0], strict=True):
        found.setdefault(place, Counter())[int(goal)] += 1
    lengths = set()
    for (e, number, step), chosen in found.items():
        there = candidates(worlds.lived[e][number], step, strategy, memory.rows.first)
        assert set(chosen) == set(there)
        share = chosen.total() / len(there)
        assert all(abs(count - share) < 5 * share**0.5 for count in chosen.values())
        lengths.add(len(there))
    assert strategy == "final" or max(lengths) > 4


@pytest.mark.parametrize("k", [0.0, 1.0, 4.0])
def test_k_of_k_plus_1_rows_get_a_new_goal(k: float) -> None:
    worlds, memory = Worlds(4), memory_for(4, her_ratio=k, batch_size=4000)
    for _ in range(40):
        memory.update(worlds.row())
    share = (memory.sample().obs["desired_goal"][:, 0, 0] != OWN).mean()
    chance = k / (k + 1)
    assert abs(share - chance) <= 4 * (chance * (1 - chance) / 4000) ** 0.5


@pytest.mark.parametrize("storage", ["ram", "memmap"])
@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
def test_saved_anywhere_it_draws_alike(strategy: str, storage: str) -> None:
    def fresh() -> HindsightReplay:
        return memory_for(3, goal_strategy=strategy, storage=storage, steps=9, batch_size=16)

    for cut in (0, 1, 5, 12, 31):
        worlds, memory, other = Worlds(3, seed=cut), fresh(), fresh()
        for i in range(cut + 25):
            row = worlds.row()
            memory.update(row)
            if i == cut:
                other.load_state_dict(memory.state_dict())
            elif i > cut:
                other.update(row)
                a, b = memory.sample(), other.sample()
                for key in a.obs:
                    np.testing.assert_array_equal(a.obs[key], b.obs[key])
                np.testing.assert_array_equal(a.reward, b.reward)


def test_a_batch_filled_again_gets_its_new_goals() -> None:
    """Of small batches some have none; such a one is filled again, with goals."""
    new, again = (memory_for(3, her_ratio=1, steps=30, batch_size=2) for _ in range(2))
    worlds, spent, filled = Worlds(3), None, 0
    for _ in range(60):
        row = worlds.row()
        new.update(row)
        again.update(row)
        a, b = new.sample(), again.sample() if spent is None else again.refill(spent)
        for key in a.obs:
            np.testing.assert_array_equal(a.obs[key], b.obs[key])
        np.testing.assert_array_equal(a.reward, b.reward)
        filled += b is spent
        spent = b
    assert filled


@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
def test_episodes_that_were_interrupted_stay_apart(strategy: str) -> None:
    memory = memory_for(2, goal_strategy=strategy, her_ratio=1e9, steps=60, batch_size=3000)
    lives = [Worlds(2, seed=1), Worlds(2, seed=2)]
    lives[1].count = 1000  # tells its goals from those of the first life
    for e in range(2):
        lives[1].lived[e].clear()
        lives[1]._begin(e)
    for _ in range(13):
        memory.update(lives[0].row())
    last, begin = lives[0], lives[1]
    yes, no = np.ones(2, bool), np.zeros(2, bool)
    memory.interrupt(
        Row(last.obs(), last.first, {}, np.zeros(2, int), {}, np.zeros(2, np.float32), no, no, begin.obs(), yes)
    )
    for _ in range(13):
        memory.update(lives[1].row())
    batch = memory.sample()
    achieved, goal = batch.obs["achieved_goal"][:, 1, 0], batch.obs["desired_goal"][:, 0, 0]
    np.testing.assert_array_equal(achieved >= 1000, goal >= 1000)
    cut = np.isin(achieved, 13) & ~batch.terminated[:, 0]
    assert (batch.obs["desired_goal"][achieved == 13, 0, 0] <= 13).all()
    assert (achieved == 13).any() and batch.truncated[cut, 0].all(), "the interrupted episodes end, with a value beyond"


def test_forgotten_is_forgotten() -> None:
    worlds, memory = Worlds(2), memory_for(2, goal_strategy="episode", her_ratio=1e9)
    for _ in range(40):
        memory.update(worlds.row())
    memory.reset()
    began = worlds.count
    for _ in range(8):  # in the middle of an episode
        memory.update(worlds.row())
    assert (memory.sample().obs["desired_goal"][:, 0, 0] > began).all()


HER = {
    "agent__algorithm": {"name": "DQN"}, "agent__memory__name": "HindsightReplay", "env__name": "BitFlip", "env__n": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env__name": "CartPole-v1"}, "agent.memory.name: HindsightReplay needs a goal env.*achieved_goal.*CartPole-v1 shows obs"),
        ({"env__normalize_reward": True}, "env.normalize_reward: HindsightReplay can't tell .* under normalize_reward: take it out"),
        ({"env__prev_reward": True}, "env.prev_reward: HindsightReplay can't tell .* under prev_reward: take it out"),
        ({"agent__memory__goal_strategy": "nearest"}, "agent.memory.goal_strategy: .*future"),
        ({"agent__memory__her_ratio": -1.0}, "agent.memory.her_ratio"),
        ({"agent__memory__batch_size": 2000}, "agent.algorithm.training_start_step"),
    ],
    ids=str,
)  # fmt: skip
def test_what_can_not_be_is_refused(changes: dict[str, Any], message: str) -> None:
    make_spec(**HER)
    keys = {**HER, **changes}
    if "env__name" in changes:
        del keys["env__n"]
    with pytest.raises(SpecError, match=message):
        make_spec(**keys)


def test_an_env_that_says_nothing_of_other_goals_is_refused() -> None:
    spec = make_spec(**HER)
    keys = {key: spaces.MultiBinary(4) for key in ("observation", "achieved_goal", "desired_goal")}
    (problem,) = HindsightReplay.problems(spec, World(1, keys, spaces.Discrete(4)))
    assert "no method compute_reward(achieved_goal, desired_goal, info)" in str(problem)
