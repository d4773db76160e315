"""A rollout worker: worlds, and a copy of the agent that acts in them. No Ray in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from slm_lab.agent.agent import Agent
from slm_lab.agent.build import build_agent
from slm_lab.env.base import World
from slm_lab.env.vec import make_env
from slm_lab.experiment.cluster import stand_in
from slm_lab.experiment.source import Local
from slm_lab.lib.rng import Rng, world_seed
from slm_lab.lib.tree import to_numpy, to_torch, tree_map
from slm_lab.lib.types import ActOut, Step, Tree
from slm_lab.spec.lab_spec import LabSpec
from slm_lab.spec.validate import resolve

WORLDS, ACTS = 1, 2  # streams of chance of a worker
Chunk = (
    Tree  # steps of a worker: seen {step: {obs, reward, ..}, carry}, all [T+1, E, ...]; done {action, extras} [T, ..]
)


class Worker:
    """Plays chunks of steps by weights that it is given; episodes and carries go on from chunk to chunk.

    Its chance follows from `seed`, its `index`, and how many workers of that index were lost before it (`life`).
    """

    def __init__(self, dumped: dict[str, Any], folder: str, seed: int, index: int, life: int) -> None:
        self.dumped, self.folder, self.chance = dumped, folder, (seed, index, life)

    def begin(self) -> tuple[Step, int]:
        """Build the worlds; their first step, and this process."""
        stand_in(self.folder)
        torch.set_num_threads(1)
        spec = resolve(self.dumped, check_env=False)
        self.workers = workers_of(spec)
        self.env = make_env(spec.env, num_envs=spec.env.num_envs // self.workers)
        self.agent = acting_copy(spec, self.env.world)
        self.agent.rng = self.agent.algorithm.rng = Rng(*self.chance, ACTS)
        self.source = Local(self.agent, self.env)
        self.step = self.env.reset(world_seed(*self.chance, WORLDS))
        self.carry = self.agent.initial(self.env.num_envs)
        return self.step, os.getpid()

    def play(self, weights: dict[str, Any], opt_step: int, frame: int, steps: int, last: Step | None = None) -> Chunk:
        """`steps` of its worlds by these weights, after so many gradient steps; `frame`: those of the run so far, for
        schedules.

        A worker that takes the place of another begins with `last`, what the other's worlds have shown last. A row that
        nobody played leads from there to its own worlds: the episodes of the other end with it.
        """
        if last is not None:
            self.begin()
        self.agent.algorithm.net.load_acting_state(weights)
        self.agent.algorithm.optim.opt_step = opt_step  # some act by chance until there was one
        self.agent.frame = frame
        lived = [] if last is None else [self._bridge(last)]
        while len(lived) < steps:
            lived.append(self._play())
        return _chunk(lived, _seen(self.step, self.carry))

    def close(self) -> None:
        self.env.close()

    def _bridge(self, last: Step) -> tuple[Tree, Tree]:
        act = self.agent.act(last, self.carry, explore=False)  # no one plays it; it gives the row its shapes
        return _seen(last, self.carry), _done(act)

    def _play(self) -> tuple[Tree, Tree]:
        seen = _seen(self.step, self.carry)
        act, self.step = self.source.play(self.step, self.carry)
        self.carry = act.carry
        self.agent.frame += self.workers * int(np.count_nonzero(~self.step.is_first))
        return seen, _done(act)


def workers_of(spec: LabSpec) -> int:
    assert spec.meta.distributed
    return spec.meta.distributed.workers


def acting_copy(spec: LabSpec, world: World) -> Agent:
    """An agent to act with; on the CPU, since a worker's net sees few worlds at a time."""
    net = spec.agent.net.model_copy(update={"device": "cpu"})
    return build_agent(replace(spec.agent, net=net), world, seed=0, max_frame=spec.env.max_frame)


# ---- chunks ----------------------------------------------------------------------------------------------------------


def _seen(step: Step, carry: Tree) -> Tree:
    return {"step": {f.name: getattr(step, f.name) for f in fields(step)}, "carry": to_numpy(carry)}


def _done(act: ActOut) -> Tree:
    return dict(to_numpy({"action": act.action, "extras": act.extras}))


def _chunk(lived: list[tuple[Tree, Tree]], last: Tree) -> Chunk:
    """Seen and done of each step, and what was seen after the last."""
    seen = [*(seen for seen, _ in lived), last]
    return {"seen": _stacked(seen), "done": _stacked([done for _, done in lived])}


def _stacked(trees: list[Tree]) -> Tree:
    stacked: Tree = tree_map(lambda *leaves: np.stack(leaves), trees[0], *trees[1:])
    return stacked


def joined(chunks: list[Chunk]) -> Chunk:
    """The chunks of all workers as one: their worlds side by side, in the order of the workers."""
    whole: Chunk = tree_map(lambda *leaves: np.concatenate(leaves, axis=1), chunks[0], *chunks[1:])
    return whole


def last_step(chunk: Chunk) -> Step:
    """What was seen after the last step of a chunk."""
    return Step(**tree_map(lambda leaf: np.array(leaf[-1]), chunk["seen"]["step"]))


def lived(chunk: Chunk) -> Iterator[tuple[Step, Tree, ActOut, Step]]:
    """Each step of a chunk: what was seen, the carry before acting, the act, what was seen after it."""
    seen, done = chunk["seen"], chunk["done"]

    def at(t: int) -> tuple[Step, Tree]:
        return Step(**tree_map(lambda leaf: leaf[t], seen["step"])), to_torch(tree_map(lambda x: x[t], seen["carry"]))

    step, carry = at(0)
    for t in range(len(done["action"])):
        now = to_torch(tree_map(lambda leaf, t=t: leaf[t], done))
        following, after = at(t + 1)
        yield step, carry, ActOut(now["action"], after, now["extras"]), following
        step, carry = following, after
