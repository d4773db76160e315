"""What a goal env pays for reaching some other goal: for memories that learn in hindsight."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import count
from typing import Any, cast

import numpy as np

from slm_lab.env.base import LEAVES, EnvError, Goals, Space

Answer = Callable[[np.ndarray, np.ndarray, Any], Any]
ACHIEVED, DESIRED = "achieved_goal", "desired_goal"  # with "observation", the keys of Gymnasium-Robotics


def shows_goals(obs_space: dict[str, Space]) -> bool:
    """Whether observations have a goal env's keys, the achieved and the desired goal of one space."""
    known = all(isinstance(obs_space.get(key), LEAVES) for key in ("observation", ACHIEVED, DESIRED))
    return known and obs_space[ACHIEVED].shape == obs_space[DESIRED].shape


def gym_goals(name: str, obs_space: dict[str, Space], env: Any) -> Goals | None:
    """The goals of a Gymnasium env (or vector) by Gymnasium-Robotics' convention; None where it isn't a goal env.

    That is: observations with the keys observation, achieved_goal, desired_goal, and a method
    `compute_reward(achieved, desired, info)`, on the env or on a wrapper around it (the outermost counts);
    `compute_terminated` is optional. They must be what `step` pays and ends by, and make do with an empty info.
    """
    reward = _method(env, "compute_reward")
    if reward is None or not shows_goals(obs_space):
        return None
    return GymGoals(name, obs_space[ACHIEVED], reward, _method(env, "compute_terminated"))


def _method(env: Any, name: str) -> Answer | None:
    method = getattr(env, name, None)
    if callable(method):
        return cast(Answer, method)
    return _method(env.env, name) if hasattr(env, "env") else None


class GymGoals:
    """`compute_reward` and `compute_terminated` of one world, for batches of goals [N, *G].

    Each is asked once, about a few goals, whether it takes them together and says the same as one by one; some don't
    (PointMaze's `compute_terminated`). So it is asked ever after. Raises `EnvError` where it raises.
    """

    def __init__(self, name: str, space: Space, reward: Answer, terminated: Answer | None) -> None:
        self._name, self._space = name, space
        self._reward, self._terminated = reward, terminated
        self._together: dict[Answer, bool] = {}

    def reward(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:  # [N] float32
        return self._ask(self._reward, achieved, desired).astype(np.float32)

    def terminated(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:  # [N] bool
        if self._terminated is None:  # no goal ends an episode
            return np.zeros(len(achieved), dtype=bool)
        return self._ask(self._terminated, achieved, desired).astype(bool)

    def _ask(self, answer: Answer, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        if answer not in self._together:
            self._together[answer] = self._takes_batches(answer)
        try:
            return np.asarray((answer if self._together[answer] else _one_by_one(answer))(achieved, desired, {}))
        except Exception as error:
            raise EnvError(
                f"{self._name}: {answer.__name__}(achieved, desired, info) raised {type(error).__name__}: {error}. It "
                f"was given goals of shape {achieved.shape[1:]} and an empty info, all that a memory knows of the past."
            ) from error

    def _takes_batches(self, answer: Answer) -> bool:
        shape = self._space.shape or ()
        number = next(n for n in count(3) if n not in shape)  # so that no axis of a goal passes for the batch
        space = copy.deepcopy(self._space)  # the world's own generator draws nothing
        space.seed(0)
        some, others = (np.stack([space.sample() for _ in range(number)]) for _ in range(2))
        some[0] = others[0]  # reached and missed goals alike
        try:
            together, alone = np.asarray(answer(some, others, {})), _one_by_one(answer)(some, others, {})
        except Exception:  # one that takes single goals may raise anything when given many
            return False
        return together.shape == alone.shape and np.allclose(together, alone)


def _one_by_one(answer: Answer) -> Answer:
    def ask(achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:  # [N]
        pairs = zip(achieved, desired, strict=True)
        return np.array([np.asarray(answer(one, other, info)).item() for one, other in pairs])

    return ask


class Repaid:
    """Goals whose reward a wrapper changes."""

    def __init__(self, goals: Goals, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self._goals, self._change = goals, change

    def reward(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:  # [N] float32
        return self._change(self._goals.reward(achieved, desired)).astype(np.float32)

    def terminated(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:  # [N] bool
        return self._goals.terminated(achieved, desired)
