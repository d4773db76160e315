"""Where rows are kept, and whether there is room for them."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import psutil

from slm_lab.agent.memory.rows import Allocate, record, small_dtype
from slm_lab.lib.errors import LabError, Problem

if TYPE_CHECKING:
    from slm_lab.env.base import World
    from slm_lab.spec.lab_spec import LabSpec, Room

Storage = Literal["ram", "memmap"]
SHARE = 0.9  # of the free RAM or disk that a memory may plan with


def storage(where: Storage, folder: Path | None) -> Allocate:
    """What allocates the arrays of a memory."""
    if where == "ram":
        return np.zeros  # the pages come as they are written

    def on_disk(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """A file without a name: it goes with the process, however that ends.

        All of it is reserved now: writing to a map of a file with holes kills the process when the disk is full.
        """
        size = math.prod(shape) * dtype.itemsize
        place = folder or Path(tempfile.gettempdir())
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
                return np.memmap(file, dtype, "r+", shape=shape)
        except OSError as error:
            raise LabError(
                f"{place} has no room for {gigabytes(size)} of memory rows: {error.strerror}. "
                "Free some space, or use storage: ram."
            ) from error

    return on_disk


def forecast(spec: LabSpec, world: World, beside: int = 0) -> int:
    """Bytes that a replay memory of this spec will hold when full, `beside` for each row more."""
    row = beside
    for key, space in world.obs_space.items():
        count = world.stacks[key].count if key in world.stacks else 1
        row += math.prod(space.shape or ()) * np.dtype(space.dtype).itemsize // count
    action = small_dtype(world.action_space) or np.dtype(world.action_space.dtype)
    no = np.zeros(1, bool)
    done = {"action": np.zeros((1, *(world.action_space.shape or ())), action), "reward": np.zeros(1, np.float32)}
    row += record(no, {**done, "terminated": no, "truncated": no}).itemsize
    return int(row * spec.agent.memory.max_size)


def columns(spec: LabSpec, world: World) -> int:
    """Worlds that one learner's memory holds rows of; `world` is that of one of them."""
    return int(spec.env.num_envs * (1 if spec.agent.learners == "independent" else world.num_envs))


def memories(spec: LabSpec, world: World) -> int:
    """How many memories there are at a time: one a learner, in as many sessions as run at once."""
    learners = world.num_envs if spec.agent.learners == "independent" else 1
    return learners * (spec.room.sessions or spec.at_once)


def room_problems(spec: LabSpec, world: World, beside: int = 0) -> list[Problem]:
    """A memory that can't fit is refused before anything is allocated."""
    memory = spec.agent.memory
    count = memories(spec, world)
    need = count * forecast(spec, world, beside)
    disk = memory.storage == "memmap"
    place = _existing(spec.data)
    free = _free_disk(place, spec.room) if disk else free_ram(spec.room)
    if need <= SHARE * free:
        return []
    fits = int(memory.max_size * SHARE * free / need)
    other = "" if disk else ", or storage: memmap"
    each = f" in each of {count} memories" if count > 1 else ""
    left = f"{gigabytes(free)} of {f'the disk of {place}' if disk else 'RAM'} are free"
    message = f"{memory.max_size:,} rows{each} need {gigabytes(need)}, but {left}. Use at most {fits:,}{other}."
    return [Problem("agent.memory.max_size", message)]


def free_ram(room: Room) -> int:
    """Bytes that processes may still take, or could on an empty machine."""
    ram = psutil.virtual_memory()
    return int(ram.total if room.empty else ram.available)


def _free_disk(place: Path, room: Room) -> int:
    disk = shutil.disk_usage(place)
    return disk.total if room.empty else disk.free


def _existing(folder: Path) -> Path:
    """The folder, or the one above it that it will be made in."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def gigabytes(size: float) -> str:
    scale, unit = next((pair for pair in ((1e9, "GB"), (1e6, "MB")) if size >= pair[0]), (1e3, "kB"))
    return f"{size / scale:,.1f} {unit}"
