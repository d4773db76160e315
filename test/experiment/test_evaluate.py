"""Playing without learning: how many episodes, whose, and from which seeds."""

from __future__ import annotations

import numpy as np
import pytest
from small_specs import make_spec

from slm_lab.env.base import VecEnv
from slm_lab.env.vec import make_env
from slm_lab.experiment.evaluate import play, random_agent
from slm_lab.lib.types import Step, Tree


class TwoLengths(VecEnv):
    """Worlds whose episodes last 10 or 190 steps, alternating from world to world; the return is the length."""

    def __init__(self, num_envs: int) -> None:
        inner = make_env(make_spec(env={"name": "MemoryTask", "max_frame": 1}).env, num_envs=1)
        self.num_envs, self.obs_space, self.action_space = num_envs, inner.obs_space, inner.action_space

    def _show(self, ended: np.ndarray, first: np.ndarray) -> Step:
        obs = {"obs": np.zeros((self.num_envs, 3), np.float32)}
        played = (~first).astype(float)
        return Step(obs, played.astype(np.float32), first, ended, np.zeros_like(ended), played)

    def reset(self, seed: int) -> Step:
        self.t, self.over = np.zeros(self.num_envs, int), np.zeros(self.num_envs, bool)
        self.length = np.where(np.arange(self.num_envs) % 2, 190, 10)
        return self._show(self.over, ~self.over)

    def step(self, action: np.ndarray) -> Step:
        first = self.over
        self.t = np.where(first, 0, self.t + 1)
        self.length = np.where(first, 200 - self.length, self.length)
        self.over = (self.t == self.length) & ~first
        return self._show(self.over, first)

    def state_dict(self) -> Tree | None:
        return None

    def load_state_dict(self, state: Tree) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


@pytest.mark.parametrize("episodes", [8, 10, 16, 20, 100])
def test_short_episodes_are_not_favoured(episodes: int) -> None:
    env = TwoLengths(8)
    played = play(random_agent(env), env, episodes, seed=0, explore=True)
    assert len(played.returns) == episodes
    assert played.returns.mean() == pytest.approx(100)
    np.testing.assert_array_equal(played.returns, played.lengths)


def test_fewer_episodes_than_worlds() -> None:
    env = TwoLengths(8)
    assert len(play(random_agent(env), env, 3, seed=0, explore=True).returns) == 3


@pytest.mark.parametrize("cut", [400, 1000, 3000])
def test_what_runs_when_the_frames_are_spent_may_end(cut: int) -> None:
    """Else only short ones would have ended by then: ten steps of the 100 that an episode has in the mean."""
    env = TwoLengths(8)
    played = play(random_agent(env), env, 1000, seed=0, explore=True, max_frame=cut)
    assert set(played.lengths) == {10, 190} and len(played.lengths) >= 8
    assert 60 <= played.returns.mean() <= 131


def test_worlds_that_never_end_are_cut_all_the_same() -> None:
    env = make_env(make_spec(env={"name": "Pendulum-v1", "max_frame": 1, "max_t": 29_000}).env, num_envs=2)
    assert play(random_agent(env), env, 5, seed=0, explore=True, max_frame=100).lengths.tolist() == [250, 250]


class Pair(VecEnv):
    """Worlds of two agents: `short` gets -1 a step and leaves after 2, `long` gets +1 and leaves after 5; `late` never
    comes."""

    agents = ("short", "long", "late")
    lives = np.array([2, 5, 0])

    def __init__(self, worlds: int) -> None:
        inner = make_env(make_spec(env={"name": "MemoryTask", "max_frame": 1}).env, num_envs=1)
        self.worlds, self.num_envs = worlds, 3 * worlds
        self.obs_space, self.action_space = inner.obs_space, inner.action_space

    def _show(self) -> Step:
        playing = (self.t > 0) & (self.t <= self.lives)
        ended, reward = self.t == np.maximum(self.lives, 1), playing * np.array([-1.0, 1.0, 0.0])
        shape = (self.worlds, 1)
        reward, playing, ended = (np.tile(x, shape).ravel() for x in (reward, playing, ended & playing))
        obs = {"obs": np.zeros((self.num_envs, 3), np.float32)}
        return Step(obs, reward.astype(np.float32), ~playing, ended, np.zeros_like(ended), reward)

    def reset(self, seed: int) -> Step:
        self.t = 0
        return self._show()

    def step(self, action: np.ndarray) -> Step:
        self.t = (self.t + 1) % 6
        return self._show()

    state_dict = load_state_dict = close = lambda self, *_: None  # type: ignore[assignment]


@pytest.mark.parametrize(("worlds", "episodes"), [(1, 1), (1, 4), (2, 3)])
def test_of_several_agents_each_ones_episodes_count(worlds: int, episodes: int) -> None:
    """As many of each, however many were asked for; one that never plays isn't waited for."""
    env = Pair(worlds)
    played = play(random_agent(env), env, episodes, seed=0, explore=True)
    assert sorted(played.returns) == [-2.0] * episodes + [5.0] * episodes
