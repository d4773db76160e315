"""The seam between worlds and agents: a vector of worlds, its flat observations, the checks of each step."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from gymnasium import spaces

from slm_lab.lib.errors import LabError
from slm_lab.lib.types import Step, Tree

if TYPE_CHECKING:
    from slm_lab.env.action import ActionUnits

logger = logging.getLogger("slm_lab")

Space = spaces.Space[Any]
LEAVES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


@dataclass(frozen=True, slots=True)
class Stack:
    """An observation of `count` frames joined along `axis` of [*O], the newest last: one frame is all that is new."""

    count: int
    axis: int


class Goals(Protocol):
    """What a goal env pays for reaching `desired` by `achieved`, both [N, *G], as the agent would see it."""

    def reward(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray: ...  # [N] float32
    def terminated(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray: ...  # [N] bool


@dataclass(frozen=True, slots=True)
class World:
    """What the parts of an agent may know of the worlds they will live in."""

    num_envs: int
    obs_space: dict[str, Space]
    action_space: Space
    stacks: dict[str, Stack] = field(default_factory=dict)  # of the stacked keys
    goals: Goals | None = None  # of goal envs
    agents: tuple[str, ...] = ()  # of worlds with several: `num_envs` counts their columns (multi.py)
    max_length: int | None = None  # steps of the longest episode, where that is known


class EnvError(LabError):
    """Something wrong with a world or with what the spec says of it; `key` is the key of the `env` section at fault."""

    def __init__(self, message: str, key: str = "") -> None:
        self.message, self.path = message, f"env.{key}" if key else "env"
        super().__init__(f"{self.path}: {message}")
        self.key = key

    def __reduce__(self) -> tuple[type[EnvError], tuple[str, str]]:
        return type(self), (self.message, self.key)  # it comes whole out of another process


class VecEnv(ABC):
    """`num_envs` worlds that are stepped together, with NEXT_STEP autoreset (see `Step`).

    `obs_space` is flat, `{key: leaf space}`: a plain space has the key "obs", Dict and Tuple spaces have dotted paths
    ("camera.left", "0"). `action_space` is what ONE world takes in `step`, in the policy's units: Discrete counts from
    0, and the bounded dimensions of a Box are [-1, 1]. World i of a vector seeded with `seed` is seeded `seed + i`.
    Every array of a `Step` is fresh: the caller may keep it.
    """

    name: str
    num_envs: int
    obs_space: dict[str, Space]
    action_space: Space
    units: ActionUnits | None = None  # to the world's own actions; None: a file has no world
    stacks: dict[str, Stack] = {}  # of the keys that FrameStack has stacked; never changed in place
    goals: Goals | None = None  # how a goal env pays, seen through its wrappers
    agents: tuple[str, ...] = ()  # where a world has several: column w * A + a is agent a of world w
    blank: np.ndarray | None = None  # [E], columns that have just shown no agent; None: there are none
    max_length: int | None = None  # steps of the longest episode, where that is known
    opaque: str = ""  # why state_dict() is None: the attribute that can't be saved

    @property
    def world(self) -> World:
        """What an agent is built from."""
        seen = (self.obs_space, self.action_space, self.stacks, self.goals, self.agents)
        return World(self.num_envs, *seen, max_length=self.max_length)

    @abstractmethod
    def reset(self, seed: int) -> Step:
        """Begin anew; every `is_first` is True. Raises `EnvError` where the world raises."""

    @abstractmethod
    def step(self, action: np.ndarray) -> Step:
        """Take `action` [E, *A]. Raises `EnvError` where the world raises, or shows a NaN or an infinity."""

    @abstractmethod
    def state_dict(self) -> Tree | None:
        """Everything the future depends on, statistics of wrappers included; None where a world can't be saved."""

    @abstractmethod
    def load_state_dict(self, state: Tree) -> None:
        """Go on from `state`; works on a vector that was never reset."""

    @abstractmethod
    def close(self) -> None:
        """Free what the worlds hold."""

    def render(self) -> list[Any]:
        """One frame (or text) per world; [] without a render_mode."""
        return []

    def freeze(self) -> None:
        """Stop the wrappers' statistics from changing: for evaluation."""

    def wrapper_state(self) -> Tree:
        """What the wrappers have learned (running statistics), without the state of any episode."""
        return {}

    def load_wrapper_state(self, state: Tree) -> None:
        """Take over another vector's `wrapper_state()`; the number of envs may differ."""

    def target(self) -> np.ndarray | None:  # [E]
        """The right answer, -1 where there is none at this step, in a task of ours; else None."""
        return None

    def cue_steps(self) -> np.ndarray | None:  # [E, C]
        """The steps of this episode at which what must be remembered is shown, in a task of ours; else None."""
        return None


def leaf_spaces(space: Space, path: str = "") -> dict[str, Space]:
    """The leaves of `space` by dotted path, in the space's order. Raises `EnvError` for a kind that isn't supported."""
    if isinstance(space, LEAVES):
        return {path or "obs": space}
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        raise EnvError(
            f"observations {path or 'of kind'} {type(space).__name__} aren't supported, only "
            "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these. Wrap the env to give one of them."
        )
    leaves: dict[str, Space] = {}
    for key, child in _children(space):
        for name, leaf in leaf_spaces(child, f"{path}.{key}" if path else str(key)).items():
            if name in leaves:
                raise EnvError(f"two observations have the same dotted path {name!r}: rename a key of the Dict space")
            leaves[name] = leaf
    return leaves


def leaf_arrays(space: Space, obs: Any, count: int, path: str = "") -> dict[str, np.ndarray]:
    """Fresh arrays [count, *O] for the leaves of `obs`, which comes batched or, for one world, plain. Raises
    `ValueError`, `TypeError` for what isn't of the space's shape or kind.
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        leaves: dict[str, np.ndarray] = {}
        for key, child in _children(space):
            leaves.update(leaf_arrays(child, obs[key], count, f"{path}.{key}" if path else str(key)))
        return leaves
    array, shape = np.array(obs), space.shape or ()
    if array.shape != (count, *shape) and not (count == 1 and array.shape == shape):
        raise ValueError(f"observation {path or 'obs'} has shape {array.shape}, {(count, *shape)} was expected")
    return {path or "obs": array.reshape(count, *shape).astype(space.dtype, casting="same_kind", copy=False)}


def stacked_leaves(space: Space, worlds: list[Any], path: str = "") -> dict[str, np.ndarray]:
    """Fresh arrays [E, *O] for the leaves of what `worlds` show one by one. Raises `ValueError`, `TypeError` for what
    isn't of the space's shape or kind.
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        leaves: dict[str, np.ndarray] = {}
        for key, child in _children(space):
            leaves |= stacked_leaves(child, [obs[key] for obs in worlds], f"{path}.{key}" if path else str(key))
        return leaves
    array = np.array(worlds)
    if array.shape[1:] != space.shape:
        raise ValueError(f"observation {path or 'obs'} has shape {array.shape[1:]}, its space {space.shape}")
    return {path or "obs": array.astype(space.dtype, casting="same_kind", copy=False)}


def _children(space: Space) -> list[tuple[Any, Space]]:
    assert isinstance(space, (spaces.Dict, spaces.Tuple))
    return list(space.spaces.items()) if isinstance(space, spaces.Dict) else list(enumerate(space.spaces))


def first_step(obs: Tree, count: int) -> Step:
    """What `reset` returns."""
    nothing = np.zeros(count, dtype=bool)
    return Step(obs, np.zeros(count, np.float32), np.ones(count, dtype=bool), nothing, nothing.copy(), np.zeros(count))


def check_finite(name: str, number: int, step: Step, agents: tuple[str, ...] = ()) -> Step:
    """`step` itself. Raises `EnvError` naming the first world and agent with a NaN or an infinity in what it shows, or
    a reward that is one in 32 bits."""
    for what, array in (("reward", step.reward), *step.obs.items()):
        if array.dtype.kind != "f" or np.count_nonzero(np.isfinite(array)) == array.size:  # a third of what all() takes
            continue
        world = int(np.nonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0][0])
        shown = "reward" if what == "reward" else f"observation {what!r}"
        who = f"agent {agents[world % len(agents)]} of world {world // len(agents)}" if agents else f"world {world}"
        value = step.raw_reward[world] if what == "reward" else array[world]
        raise EnvError(
            f"{name}: the {shown} of {who} is {value} at step {number} since reset; finite numbers, of 32 bits, "
            "were expected. Learning from it would spoil every weight: mend the env."
        )
    return step


def own(array: Any) -> np.ndarray:
    """A copy of an array that was saved; a checkpoint may have made a tensor of it."""
    return np.asarray(array).copy()


def close_all(name: str, worlds: Iterable[Any]) -> None:
    """Close each; one that raises is a warning, as what it was needed for is over."""
    for world in worlds:
        try:
            world.close()
        except Exception as error:  # the user's own world may raise anything
            logger.warning("%s: close() raised %s: %s", name, type(error).__name__, error)
