"""Gymnasium's vectors, all autoreset modes, as a `VecEnv`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from slm_lab.env import snapshot
from slm_lab.env.action import ActionUnits
from slm_lab.env.base import (
    EnvError,
    Space,
    VecEnv,
    check_finite,
    close_all,
    first_step,
    leaf_arrays,
    leaf_spaces,
    own,
    stacked_leaves,
)
from slm_lab.env.goals import gym_goals
from slm_lab.lib.errors import LabError
from slm_lab.lib.types import Step, Tree

Vector = VectorEnv[Any, Any, Any]
# arrays of one's own: obs leaves, reward float64, terminated and truncated bool
Shown = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]


def _raised(who: str, where: str, error: Exception) -> EnvError:
    return EnvError(f"{who} raised {type(error).__name__} {where}: {error}")


class GymVec(VecEnv):
    """What Gymnasium's vectors have in common here; the subclasses differ in how an episode begins anew."""

    units: ActionUnits

    def __init__(self, name: str, num_envs: int, obs_space: Space, action_space: Space) -> None:
        self.name, self.num_envs, self._space = name, num_envs, obs_space
        self.units = ActionUnits(action_space)
        self.obs_space, self.action_space = leaf_spaces(obs_space), self.units.space
        self._ended = np.zeros(num_envs, dtype=bool)
        self._number = 0

    def reset(self, seed: int) -> Step:
        self._number, self._ended = 0, np.zeros(self.num_envs, dtype=bool)
        return check_finite(self.name, 0, first_step(self._guarded(self._reset, int(seed)), self.num_envs))

    def step(self, action: np.ndarray) -> Step:
        self._number += 1
        obs, reward, terminated, truncated = self._guarded(self._step, self.units.to_world(action))
        step = Step(obs, reward.astype(np.float32), self._ended, terminated, truncated, reward)
        self._ended = terminated | truncated
        return check_finite(self.name, self._number, step)

    def _guarded(self, call: Callable[..., Any], argument: Any) -> Any:
        try:
            return call(argument)
        except LabError:
            raise
        except Exception as error:
            raise _raised(self.name, f"at step {self._number} since reset", error) from error

    @abstractmethod
    def _reset(self, seed: int) -> dict[str, np.ndarray]: ...

    @abstractmethod
    def _step(self, action: np.ndarray) -> Shown: ...

    def state_dict(self) -> Tree | None:
        try:
            worlds = self._capture()
        except snapshot.Opaque as reason:
            self.opaque = str(reason)
            return None
        return {"env": {"worlds": worlds, "ended": self._ended.copy(), "number": self._number}}

    def load_state_dict(self, state: Tree) -> None:
        saved = state["env"]
        if len(saved["ended"]) != self.num_envs:
            raise EnvError(f"the saved state has {len(saved['ended'])} worlds, not {self.num_envs}", "num_envs")
        self._ended, self._number = own(saved["ended"]), int(saved["number"])
        self._restore(saved["worlds"])

    @abstractmethod
    def _capture(self) -> list[Any]: ...

    @abstractmethod
    def _restore(self, worlds: list[Any]) -> None: ...


class SyncVec(GymVec):
    """Scalar envs in this process, stepped one after the other."""

    def __init__(self, name: str, worlds: list[gymnasium.Env[Any, Any]]) -> None:
        super().__init__(name, len(worlds), worlds[0].observation_space, worlds[0].action_space)
        self._worlds, self._numbers = worlds, [0] * len(worlds)  # steps of each one's episode
        self.goals, self.max_length = gym_goals(name, self.obs_space, worlds[0]), _max_length(worlds[0])

    def _reset(self, seed: int) -> dict[str, np.ndarray]:
        return stacked_leaves(self._space, [self._begin(world, seed + world) for world in range(self.num_envs)])

    def _begin(self, world: int, seed: int | None = None) -> Any:
        """A new episode's first observation."""
        self._numbers[world] = 0
        try:
            return self._worlds[world].reset(seed=seed)[0]
        except Exception as error:
            raise _raised(f"{self.name}: world {world}", "in reset", error) from error

    def _step(self, action: np.ndarray) -> Shown:
        obs, reward = [], np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)
        for world, ended in enumerate(self._ended.tolist()):
            if ended:
                obs.append(self._begin(world))
                continue
            self._numbers[world] += 1
            try:
                shown, reward[world], terminated[world], truncated[world], _ = self._worlds[world].step(action[world])
            except Exception as error:
                where = f"at step {self._numbers[world]} of its episode, with action {action[world]!r}"
                raise _raised(f"{self.name}: world {world}", where, error) from error
            obs.append(shown)
        return stacked_leaves(self._space, obs), reward, terminated, truncated

    def _capture(self) -> list[Any]:
        each = zip(self._worlds, self._numbers, strict=True)
        return [{"world": snapshot.capture(world), "number": number} for world, number in each]

    def _restore(self, worlds: list[Any]) -> None:
        for world, saved in zip(self._worlds, worlds, strict=True):
            snapshot.restore(world, saved["world"])
        self._numbers = [int(saved["number"]) for saved in worlds]

    def render(self) -> list[Any]:
        return [world.render() for world in self._worlds]

    def close(self) -> None:
        close_all(self.name, self._worlds)


class NextStepVec(GymVec):
    """An env's own vector with NEXT_STEP autoreset, which is ours as well."""

    def __init__(self, name: str, vector: Vector) -> None:
        super().__init__(name, vector.num_envs, vector.single_observation_space, vector.single_action_space)
        self._vector = vector
        self.goals, self.max_length = gym_goals(name, self.obs_space, vector), _max_length(vector)

    def _reset(self, seed: int) -> dict[str, np.ndarray]:
        return leaf_arrays(self._space, self._vector.reset(seed=seed)[0], self.num_envs)

    def _step(self, action: np.ndarray) -> Shown:
        obs, reward, terminated, truncated, _ = self._vector.step(action)
        raw, ends = np.array(reward, np.float64), (np.array(terminated, bool), np.array(truncated, bool))
        for told in (raw, *ends):
            told[self._ended] = 0  # nothing is played where an episode begins, whatever the env pays there
        return leaf_arrays(self._space, obs, self.num_envs), raw, *ends

    def _capture(self) -> list[Any]:
        return [snapshot.capture(self._vector)]

    def _restore(self, worlds: list[Any]) -> None:
        snapshot.restore(self._vector, worlds[0])

    def render(self) -> list[Any]:
        return list(self._vector.render() or ())

    def close(self) -> None:
        close_all(self.name, [self._vector])


class PausedVec(GymVec):
    """Vectors of ONE world each, for those that reset in the same step (SAME_STEP) or not at all (DISABLED).

    Our order has one step in which the new episode is shown and nothing is played. A vector can't be paused for one
    of its worlds only, so each world gets a vector of its own.
    """

    def __init__(self, name: str, vectors: list[Vector]) -> None:
        super().__init__(name, len(vectors), vectors[0].single_observation_space, vectors[0].single_action_space)
        self._vectors = vectors
        self._same_step = vectors[0].metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
        world = vectors[0].envs[0] if isinstance(vectors[0], SyncVectorEnv) else vectors[0]
        self.goals, self.max_length = gym_goals(name, self.obs_space, world), _max_length(world)
        self._begun: list[Any] = [None] * len(vectors)  # SAME_STEP: the next episode's first obs, waiting to be shown

    def _reset(self, seed: int) -> dict[str, np.ndarray]:
        self._begun = [None] * self.num_envs
        return _joined([self._leaves(v.reset(seed=seed + i)[0]) for i, v in enumerate(self._vectors)])

    def _step(self, action: np.ndarray) -> Shown:
        shown = [self._step_world(world, action[world : world + 1]) for world in range(self.num_envs)]
        reward, terminated, truncated = (np.array([one[i] for one in shown]) for i in (1, 2, 3))
        return _joined([one[0] for one in shown]), reward, terminated, truncated

    def _step_world(self, world: int, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool]:
        vector = self._vectors[world]
        if self._ended[world]:
            begun = self._begun[world] if self._same_step else self._leaves(vector.reset()[0])
            self._begun[world] = None
            return begun, 0.0, False, False
        obs, reward, terminated, truncated, info = vector.step(action)
        leaves = self._leaves(obs)
        if self._same_step and (terminated[0] or truncated[0]):
            if "final_obs" not in info:
                raise EnvError(
                    f"{self.name} resets in the same step but its info has no 'final_obs' at an episode's end"
                )
            self._begun[world], leaves = leaves, self._leaves(_single(info["final_obs"]))
        return leaves, float(reward[0]), bool(terminated[0]), bool(truncated[0])

    def _leaves(self, obs: Any) -> dict[str, np.ndarray]:
        return leaf_arrays(self._space, obs, 1)

    def _capture(self) -> list[Any]:
        worlds = [snapshot.capture(vector) for vector in self._vectors]
        return [{"vector": world, "begun": begun} for world, begun in zip(worlds, self._begun, strict=True)]

    def _restore(self, worlds: list[Any]) -> None:
        for vector, saved in zip(self._vectors, worlds, strict=True):
            snapshot.restore(vector, saved["vector"])
        begun = [saved["begun"] for saved in worlds]
        self._begun = [leaves and {key: own(leaf) for key, leaf in leaves.items()} for leaves in begun]

    def render(self) -> list[Any]:
        return [frame for vector in self._vectors for frame in vector.render() or ()]

    def close(self) -> None:
        close_all(self.name, self._vectors)


def _max_length(world: Any) -> int | None:
    """Gymnasium's time limit, where there is one."""
    limit: int | None = getattr(world.spec, "max_episode_steps", None)
    return limit


def _single(final_obs: Any) -> Any:
    """`info["final_obs"]` of one world: Gymnasium's vectors give an array of objects, others a batch of one."""
    return final_obs[0] if isinstance(final_obs, np.ndarray) and final_obs.dtype == object else final_obs


def _joined(worlds: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([world[key] for world in worlds]) for key in worlds[0]}


def sync_vec(name: str, make: Callable[[], gymnasium.Env[Any, Any]], num_envs: int) -> GymVec:
    """`num_envs` scalar envs. Raises `EnvError` where they aren't alike."""
    worlds = [make() for _ in range(num_envs)]
    spaces = [(world.observation_space, world.action_space) for world in worlds]
    if any(other != spaces[0] for other in spaces):
        raise EnvError(f"{name}: two worlds of one constructor have different spaces; the same were expected")
    return SyncVec(name, worlds)


def native_vec(name: str, make: Callable[[int], Vector], num_envs: int) -> GymVec:
    """An env's own vector, whatever its autoreset mode. Raises `EnvError` where it doesn't tell its mode."""
    vector = make(num_envs)
    mode = vector.metadata.get("autoreset_mode")
    if mode == AutoresetMode.NEXT_STEP:  # Gymnasium's loop over scalar envs is ours, which can be saved
        return SyncVec(name, list(vector.envs)) if type(vector) is SyncVectorEnv else NextStepVec(name, vector)
    vector.close()
    if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
        raise EnvError(
            f"{name}: its vector doesn't say how episodes begin anew: metadata['autoreset_mode'] is {mode!r}, "
            "an AutoresetMode was expected. Use vectorization 'sync' if it has a scalar env."
        )
    return PausedVec(name, [make(1) for _ in range(num_envs)])
