"""Wrappers around a `VecEnv`, chosen by keys of the `env` section, in the order of `WRAPPERS`.

Reward: scale, then normalise, then clip. Observations: hide, normalise, clip, stack; the previous action and reward are
added last, so that they are neither normalised nor stacked, and the reward shown is the one the agent learns from.
`raw_reward` is never touched. In the row that begins an episode the reward is 0 and no statistic of rewards is taken.

Goal envs: the observations achieved_goal and desired_goal are left as the world shows them, and `goals` pays what the
changed reward would be. Where that can't be told (normalize_reward, prev_reward), `goals` is None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from slm_lab.env.base import EnvError, Stack, VecEnv, own
from slm_lab.env.goals import Repaid
from slm_lab.env.spec import EnvSpec
from slm_lab.env.wrapper_base import VecWrapper, add_key, is_float, like, with_reward
from slm_lab.lib.image import channel_axis
from slm_lab.lib.running import RunningMoments
from slm_lab.lib.types import Step, Tree


class ScaleReward(VecWrapper):
    """Multiplies the reward."""

    key = "reward_scale"

    def __init__(self, env: VecEnv, scale: float) -> None:
        super().__init__(env)
        self._scale = scale
        self.goals = self.goals and Repaid(self.goals, self._changed)

    def _changed(self, reward: np.ndarray) -> np.ndarray:
        return reward * self._scale

    def _show(self, step: Step, action: np.ndarray | None) -> Step:
        return with_reward(step, self._changed(step.reward))


class NormalizeReward(VecWrapper):
    """Divides the reward by the running standard deviation of the discounted return (centring it would pay for time).

    Source: Engstrom et al. 2020, arXiv 2005.12729, "reward scaling". We differ: each env's sum starts anew with each
    episode, and the reward passes unchanged until returns differ at all.
    """

    key = "normalize_reward"

    def __init__(self, env: VecEnv, gamma: float) -> None:
        super().__init__(env)
        self._gamma, self._moments = gamma, RunningMoments()
        self.goals = None  # what a goal would have paid then, by the statistics of then, is lost
        self._returns = np.zeros(self.num_envs)

    def _show(self, step: Step, action: np.ndarray | None) -> Step:
        if not self._frozen:
            played = ~step.is_first
            self._returns = np.where(played, self._returns * self._gamma + step.reward, 0.0)
            self._moments.update(self._returns[played])
        std = float(np.sqrt(self._moments.var))
        return with_reward(step, step.reward / (std if std > 1e-4 else 1.0))

    def _stats(self) -> Tree:
        return self._moments.state_dict()

    def _load_stats(self, state: Tree) -> None:
        self._moments.load_state_dict(state)

    def _episode(self) -> Tree:
        return {"returns": self._returns.copy()}

    def _load_episode(self, state: Tree) -> None:
        self._returns = own(state["returns"])


class ClipReward(VecWrapper):
    """Clips the reward to [-bound, bound]."""

    key = "clip_reward"

    def __init__(self, env: VecEnv, bound: float) -> None:
        super().__init__(env)
        self._bound = bound
        self.goals = self.goals and Repaid(self.goals, self._changed)

    def _changed(self, reward: np.ndarray) -> np.ndarray:
        clipped: np.ndarray = np.clip(reward, -self._bound, self._bound)
        return clipped

    def _show(self, step: Step, action: np.ndarray | None) -> Step:
        return with_reward(step, self._changed(step.reward))


class HideObs(VecWrapper):
    """Shows 0 in place of some numbers of each float vector: what they say has to be inferred and remembered."""

    key = "hide_obs"

    def __init__(self, env: VecEnv, hidden: list[int]) -> None:
        super().__init__(env)
        self._hidden = hidden
        self._vectors = self._boxes("float vector", lambda box: is_float(box) and len(box.shape) == 1)
        for key, box in self._vectors.items():
            if max(hidden) >= box.shape[0]:
                raise EnvError(
                    f"{hidden}: {max(hidden)} is outside observation {key!r} of {self.name}, which has {box.shape[0]} "
                    f"numbers. Numbers from 0 to {box.shape[0] - 1} were expected.",
                    self.key,
                )
            low, high = self._without(box.low[None])[0], self._without(box.high[None])[0]
            self.obs_space[key] = spaces.Box(low, high, dtype=box.dtype.type)

    def _without(self, vectors: np.ndarray) -> np.ndarray:  # [E, D], fresh
        vectors = vectors.copy()
        vectors[:, self._hidden] = 0
        return vectors

    def _show(self, step: Step, action: np.ndarray | None) -> Step:
        obs = {key: self._without(step.obs[key]) for key in self._vectors}
        return dataclasses.replace(step, obs={**step.obs, **obs})


class NormalizeObs(VecWrapper):
    """Running mean 0 and variance 1 for each number of each float observation; shown as float32."""

    key = "normalize_obs"

    def __init__(self, env: VecEnv) -> None:
        super().__init__(env)
        boxes = self._boxes("float Box", is_float)
        self._moments = {key: RunningMoments(box.shape) for key, box in boxes.items()}
        self.obs_space |= {key: spaces.Box(-np.inf, np.inf, box.shape, np.float32) for key, box in boxes.items()}

    def _show(self, step: Step, action: np.ndarray | None) -> Step:
        obs, blank = dict(step.obs), self.blank
        for key, moments in self._moments.items():
            if not self._frozen:
                moments.update(obs[key] if blank is None else obs[key][~blank])
            obs[key] = ((obs[key] - moments.mean) / moments.std()).astype(np.float32)
        return dataclasses.replace(step, obs=obs)

    def _stats(self) -> Tree:
        return {key: moments.state_dict() for key, moments in self._moments.items()}

    def _load_stats(self, state: Tree) -> None:
        for key, moments in self._moments.items():
            moments.load_state_dict(state[key])


class ClipObs(VecWrapper):
    """Clips each float observation to [-bound, bound]."""

    key = "clip_obs"

    def __init__(self, env: VecEnv, bound: float) -> None:
        super().__init__(env)
        self._bound, self._clipped = bound, self._boxes("float Box", is_float)
        for key, box in self._clipped.items():
            low, high = np.clip(box.low, -bound, bound), np.clip(box.high, -bound, bound)
            self.obs_space[key] = spaces.Box(low, high, dtype=box.dtype.type)

    def _show(self, step: Step, action: np.ndarray | None) -> Step:
        obs = {key: np.clip(step.obs[key], -self._bound, self._bound) for key in self._clipped}
        return dataclasses.replace(step, obs={**step.obs, **obs})


class FrameStack(VecWrapper):
    """Shows the last `count` values of each Box as one, oldest first; an episode begins with its first one repeated.

    Vectors are joined end to end. Pictures are joined along their channels: the last axis of [H, W, C], the first of
    [C, H, W] (see `lib/image.py`), a new last one for [H, W]. A single number becomes
    a vector. Other keys show the present value only.
    """

    key = "frame_stack"

    def __init__(self, env: VecEnv, count: int) -> None:
        super().__init__(env)
        self._count, self._boxes_stacked = count, self._boxes("Box", lambda box: True)
        self._frames: Tree = {}  # {key: [count, E, *O]}
        for key, box in self._boxes_stacked.items():
            low, high = (self._join(np.stack([bound] * count)[:, None], box)[0] for bound in (box.low, box.high))
            self.obs_space[key] = spaces.Box(low, high, dtype=box.dtype.type)
            self._check(key, box)
            self.stacks = {**self.stacks, key: Stack(count, self._axis(box))}

    def _check(self, key: str, box: spaces.Box) -> None:
        """Raises `EnvError` where a reader of the pictures would take another axis than they are joined along."""
        stacked = self.obs_space[key].shape or ()
        if box.dtype == np.uint8 and len(stacked) == 3 and channel_axis(stacked) != self._axis(box) % 3:
            raise EnvError(
                f"env.frame_stack {self._count}: pictures {box.shape} of '{key}' become {stacked}, where channels "
                "can't be told from height and width. Use another number of frames."
            )

    @staticmethod
    def _axis(box: spaces.Box) -> int:
        """The axis of [*O] that frames are joined along: the first of [C, H, W], else the last."""
        return 0 if len(box.shape) == 3 and channel_axis(box.shape) == 0 else -1

    def _join(self, frames: np.ndarray, box: spaces.Box) -> np.ndarray:
        """[count, E, *O] to [E, *O'], fresh."""
        if len(box.shape) in (0, 2):
            return np.stack(list(frames), axis=-1)
        return np.concatenate(list(frames), axis=1 if self._axis(box) == 0 else -1)

    def _show(self, step: Step, action: np.ndarray | None) -> Step:
        obs = dict(step.obs)
        for key, box in self._boxes_stacked.items():
            now = step.obs[key]
            frames = np.stack([now] * self._count)
            if action is not None:
                frames[:-1] = np.where(like(step.is_first, now), now, self._frames[key][1:])
            self._frames[key], obs[key] = frames, self._join(frames, box)
        return dataclasses.replace(step, obs=obs)

    def _episode(self) -> Tree:
        return {key: frames.copy() for key, frames in self._frames.items()}

    def _load_episode(self, state: Tree) -> None:
        self._frames = {key: own(frames) for key, frames in state.items()}


class PrevAction(VecWrapper):
    """Adds the observation "prev_action", in the policy's units: what led here; zeros where an episode begins."""

    key = "prev_action"

    def __init__(self, env: VecEnv) -> None:
        super().__init__(env)
        add_key(self, self.action_space)

    def _show(self, step: Step, action: np.ndarray | None) -> Step:
        space = self.action_space
        shown = np.zeros((self.num_envs, *(space.shape or ())), space.dtype)
        if action is not None:
            # A Gaussian policy may leave the bounds; the world clips it, so that is what was done.
            done = np.clip(action, space.low, space.high) if isinstance(space, spaces.Box) else action
            shown = np.where(like(step.is_first, shown), shown, done).astype(space.dtype)
        return dataclasses.replace(step, obs={**step.obs, self.key: shown})


class PrevReward(VecWrapper):
    """Adds the observation "prev_reward" [E, 1]: the reward that came with this step; 0 where an episode begins.

    `sign`: only whether it was good or bad (-1, 0, 1), seen alike however small rewards are.
    """

    key = "prev_reward"

    def __init__(self, env: VecEnv, sign: bool = False) -> None:
        super().__init__(env)
        self._sign, most = sign, 1.0 if sign else np.inf
        add_key(self, spaces.Box(-most, most, (1,), np.float32))
        self.goals = None  # with another goal, the reward in sight would be another one too

    def _show(self, step: Step, action: np.ndarray | None) -> Step:
        reward = np.sign(step.reward) if self._sign else step.reward.copy()
        return dataclasses.replace(step, obs={**step.obs, self.key: reward[:, None]})


# From the innermost to the outermost: what the key means, given its value and the agent's gamma.
WRAPPERS: dict[str, Callable[[VecEnv, Any, float], VecWrapper]] = {
    "reward_scale": lambda env, value, gamma: ScaleReward(env, value),
    "normalize_reward": lambda env, value, gamma: NormalizeReward(env, gamma),
    "clip_reward": lambda env, value, gamma: ClipReward(env, value),
    "hide_obs": lambda env, value, gamma: HideObs(env, value),
    "normalize_obs": lambda env, value, gamma: NormalizeObs(env),
    "clip_obs": lambda env, value, gamma: ClipObs(env, value),
    "frame_stack": lambda env, value, gamma: FrameStack(env, value),
    "prev_action": lambda env, value, gamma: PrevAction(env),
    "prev_reward": lambda env, value, gamma: PrevReward(env, value == "sign"),
}


def wanted(spec: EnvSpec) -> dict[str, Any]:
    """The wrapper keys that `spec` sets, innermost first."""
    values = {key: getattr(spec, key) for key in WRAPPERS}
    return {key: value for key, value in values.items() if value is not None and value is not False}
