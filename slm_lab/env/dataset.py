"""Files of experience: what E worlds showed and what was done in them, in order of time, to learn from without them.

A file (.npz or .hdf5) has columns as a replay memory holds them, T rows of E worlds:

    obs.KEY                        [L + T + 1, E, *O]   row t's observation at L + t, the one it led to at L + t + 1
    is_first                       [L + T + 1, E] bool
    action                         [T, E, *A]           in the policy's units
    reward, terminated, truncated  [T, E]

Row t of a world was played where `is_first[L + t + 1]` is False; elsewhere the world began anew and the action counts
for nothing. Stacked observations are stored as single frames: L is how many more of them the first row needs, else 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from slm_lab.env.base import EnvError, Goals, Space, Stack, VecEnv, World, first_step
from slm_lab.env.wrappers import wanted
from slm_lab.lib.columns import ColumnFile, Columns, Facts, write_columns
from slm_lab.lib.errors import LabError, Problem
from slm_lab.lib.tree import tree_map
from slm_lab.lib.types import Step, Tree

if TYPE_CHECKING:
    from slm_lab.env.spec import EnvSpec

FORMAT = "slm_lab experience 1"
OFFLINE = "Dataset"  # the `env.name` of a spec that has no world, only a file


class Dataset:
    """A file of experience, opened: its facts are read, its columns when asked for.

    `world` has the file's spaces; `rows` is T, `played` how many of its T · E rows were, `lead` is L; `wrappers` what
    the wrappers had learned, `env` the `env` section of the spec it comes from. Raises `LabError` as `ColumnFile` does,
    and where no step was played or the columns aren't as long as the facts say.
    """

    def __init__(self, path: str | Path) -> None:
        self.file = ColumnFile(Path(path).expanduser())
        facts = self.file.facts
        if facts.get("format") != FORMAT:
            raise LabError(f"{path} isn't of this lab's format {FORMAT!r}: its own is {facts.get('format')!r}")
        self.rows, self.played, self.lead = int(facts["rows"]), int(facts["played"]), int(facts["lead"])
        self.action_dtype = np.dtype(facts["action_dtype"])
        self.env, self.wrappers = facts["env"], facts["wrappers"]
        self.world = World(
            facts["worlds"],
            {key: _space(told) for key, told in facts["spaces"]["obs"].items()},
            _space(facts["spaces"]["action"]),
            {key: Stack(*told) for key, told in facts["stacks"].items()},
            agents=tuple(facts["agents"]),
        )
        self._check(path)

    def _check(self, path: str | Path) -> None:
        """Whoever writes such a file by hand may count wrong."""
        if not self.played:
            raise LabError(f"{path} has no step that was played: there is nothing to learn. Export a run that has.")
        for name, told in self.file.columns.items():
            seen = name == "is_first" or name.startswith("obs.")
            expected = [self.lead + self.rows + 1 if seen else self.rows, self.world.num_envs]
            if told["shape"][:2] != expected:
                raise LabError(f"{path}: column {name!r} is {told['shape']}, but its facts say {expected}")

    def columns(self) -> dict[str, np.ndarray]:
        """All columns by name, mapped where they lie."""
        return {name: self.file.column(name) for name in self.file.columns}


def write_dataset(path: Path, world: World, facts: Facts, columns: Columns) -> None:
    """Write a file of experience. `facts` are what `Dataset` reads beside the spaces, and the run it comes from."""
    told = {
        "format": FORMAT,
        "worlds": world.num_envs,
        "spaces": {
            "obs": {key: _told(space) for key, space in world.obs_space.items()},
            "action": _told(world.action_space),
        },
        "stacks": {key: [stack.count, stack.axis] for key, stack in world.stacks.items()},
        "agents": list(world.agents),
    }
    plain = tree_map(lambda leaf: leaf.tolist() if isinstance(leaf, np.ndarray) else leaf, facts)
    write_columns(path, told | plain, columns)


class DatasetEnv(VecEnv):
    """The worlds of a file: their spaces, and nothing going on. Who asks them to step is told so by an `EnvError`."""

    def __init__(self, data: Dataset, num_envs: int | None = None, goals: Goals | None = None) -> None:
        world = data.world
        self.data, self.name, self.num_envs = data, OFFLINE, num_envs or world.num_envs
        self.obs_space, self.action_space = world.obs_space, world.action_space
        self.stacks, self.agents, self.goals = world.stacks, world.agents, goals

    def reset(self, seed: int) -> Step:
        shapes = {key: (self.num_envs, *(space.shape or ())) for key, space in self.obs_space.items()}
        blank = {key: np.zeros(shape, self.obs_space[key].dtype) for key, shape in shapes.items()}
        return first_step(blank, self.num_envs)

    def step(self, action: np.ndarray) -> Step:
        raise EnvError(f"{OFFLINE} is no world that can be played in: name the one that the file is from", "name")

    def state_dict(self) -> Tree | None:
        return {}

    def load_state_dict(self, state: Tree) -> None:
        pass

    def wrapper_state(self) -> Tree:
        return dict(self.data.wrappers)

    def close(self) -> None:
        pass


def dataset_problems(spec: EnvSpec, env: VecEnv | None) -> list[Problem]:
    """What keeps the file of `spec` from being learned from; `env` is one world as the spec has it, if it names one.

    All of the file is read and verified.
    """
    if spec.dataset is None:
        return [Problem("env.dataset", f"missing: the name {OFFLINE} stands for a file of experience, not for a world")]
    try:
        data = Dataset(spec.dataset)
        data.file.verify()
    except LabError as error:
        return [Problem("env.dataset", str(error))]
    worlds = data.world.num_envs // max(1, len(data.world.agents))
    found = []
    if spec.num_envs != worlds:
        found.append(
            Problem("env.num_envs", f"{spec.num_envs} worlds, but the dataset has {worlds}: set it to {worlds}")
        )
    if env is not None:
        return found + (_wrapper_problems(spec, data) or _mismatch(data.world, env))
    keys = [*wanted(spec), *(spec.model_extra or {}), *(["max_t"] if spec.max_t else [])]
    message = f"{OFFLINE} has no world for this key: take it out, or name the world that the file is from"
    return found + [Problem(f"env.{key}", message) for key in keys]


def _wrapper_problems(spec: EnvSpec, data: Dataset) -> list[Problem]:
    """The file shows what wrappers made of the world, so an evaluation must have the same."""
    then, now = wanted(spec.model_validate(data.env | {"dataset": None})), wanted(spec)
    return [
        Problem(f"env.{key}", f"{now.get(key)}, but the dataset was made with {then.get(key)}: the same was expected")
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]


def _mismatch(file: World, env: VecEnv) -> list[Problem]:
    """Where a file isn't of a world's kind."""
    keys = dict.fromkeys([*env.obs_space, *file.obs_space])
    pairs = [(f"observation {key!r}", file.obs_space.get(key), env.obs_space.get(key)) for key in keys]
    pairs.append(("action", file.action_space, env.action_space))
    found = [f"{what} is {_brief(theirs)}, not {_brief(ours)}" for what, theirs, ours in pairs if theirs != ours]
    if file.agents != env.agents:
        found.append(f"its agents are {', '.join(file.agents) or 'one'}, not {', '.join(env.agents) or 'one'}")
    message = f"doesn't match {env.name}: {'; '.join(found)}. Name the env that it is from."
    return [Problem("env.dataset", message)] if found else []


def _brief(space: Space | None) -> str:
    """A space in a word or two; one line, however large its bounds are."""
    if not isinstance(space, spaces.Box):
        return str(space).replace("\n", "")
    low, high = (", ".join(f"{x:.4g}" for x in np.unique(bound)[:3]) for bound in (space.low, space.high))
    return f"Box{space.shape} {space.dtype} from {low} to {high}"


# --- spaces as JSON ---


def _told(space: Space) -> Facts:
    kind = {"kind": type(space).__name__, "dtype": np.dtype(space.dtype).str}
    if isinstance(space, spaces.Box):
        return {**kind, "shape": list(space.shape), "low": _bound(space.low), "high": _bound(space.high)}
    if isinstance(space, spaces.Discrete):
        return {**kind, "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {**kind, "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    assert isinstance(space, spaces.MultiBinary)
    return {"kind": "MultiBinary", "n": np.array(space.n).tolist()}  # a number, or several for more axes


def _space(told: Facts) -> Space:
    if told["kind"] == "Box":
        dtype = np.dtype(told["dtype"])
        low, high = (_bounds(told[name], told["shape"], dtype) for name in ("low", "high"))
        return spaces.Box(low, high, dtype=dtype.type)
    if told["kind"] == "Discrete":
        return spaces.Discrete(told["n"], start=told["start"], dtype=np.dtype(told["dtype"]).type)
    if told["kind"] == "MultiDiscrete":
        return spaces.MultiDiscrete(told["nvec"], dtype=np.dtype(told["dtype"]).type, start=told["start"])
    return spaces.MultiBinary(told["n"] if isinstance(told["n"], int) else tuple(told["n"]))


def _bound(bound: np.ndarray) -> Any:
    """One number where all are the same; infinities as text, which JSON has no number for."""
    same = bound.size > 0 and (bound == bound.flat[0]).all()
    flat = bound.ravel()[:1].tolist() if same else bound.ravel().tolist()
    return [x if np.isfinite(x) else str(x) for x in flat]


def _bounds(told: list[Any], shape: list[int], dtype: np.dtype[Any]) -> np.ndarray:
    values = np.array([float(x) if isinstance(x, str) else x for x in told], dtype)
    return np.full(shape, values[0], dtype) if len(values) == 1 else values.reshape(shape)
