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
