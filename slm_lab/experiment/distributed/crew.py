"""Rollout workers of a session: they play, one learner learns."""

from __future__ import annotations

import logging
import os
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from slm_lab.agent.agent import Agent
from slm_lab.env.base import EnvError, VecEnv
from slm_lab.env.vec import make_env
from slm_lab.experiment.cluster import started_ray
from slm_lab.experiment.distributed.replay import RemoteMemory, ReplayKeeper
from slm_lab.experiment.distributed.worker import Chunk, Worker, joined, last_step, lived, workers_of
from slm_lab.lib.errors import LabError
from slm_lab.lib.log import note
from slm_lab.lib.tree import tree_map
from slm_lab.lib.types import ActOut, Step, Tree
from slm_lab.spec.lab_spec import LabSpec

logger = logging.getLogger("slm_lab")

STEPS = 8  # of a chunk, where the memory doesn't say how many it needs
AHEAD = 2  # rounds ordered at a time off-policy: one is played by the weights from before the one before it
DEATHS = 3  # in a row, of workers that never sent anything
PATIENCE = 5.0  # seconds for worlds to be closed


class Order(NamedTuple):
    """A chunk that a worker was told to play."""

    weights: Any
    opt_step: int
    frame: int
    steps: int


@dataclass
class Post:
    """A worker's place. Who holds it may change; its worlds' columns don't."""

    index: int
    actor: Any
    seen: Step  # what its worlds showed last, in the chunks received
    pid: int
    life: int = 0  # workers lost here
    failed: int = 0  # of them, since the last chunk
    orders: deque[tuple[Order, Any]] = field(default_factory=deque)  # and the chunks to come


class Crew(VecEnv):
    """The worlds of all rollout workers as one vector, played by the workers themselves: `play` in place of `step`.

    On-policy a round is what the memory needs until its gate rises (8 steps where that depends on what is lived): all
    workers play it with the newest weights, then wait. Off-policy they play on in rounds of 8 steps while the learner
    learns from the round before, and the rows go to a replay memory in a process of its own. Either way the session
    gets the steps of all workers joined, world by world, and counts, learns and saves as it does with local ones.

    A worker that dies is replaced by one with new worlds; a row that nobody played leads over to their first episodes.
    Raises `LabError` where that doesn't help, `EnvError` where a world raises.
    """

    def __init__(self, spec: LabSpec, gamma: float) -> None:
        self.spec, self.face = spec, make_env(spec.env, num_envs=1, gamma=gamma)
        self.name, self.num_envs = self.face.name, spec.env.num_envs
        self.obs_space, self.action_space = self.face.obs_space, self.face.action_space
        self.stacks, self.goals, self.max_length = self.face.stacks, self.face.goals, self.face.max_length
        self.opaque = "its rollout workers keep the worlds"
        self.dumped = spec.dump()
        self.ray = ExitStack()
        self.posts: list[Post] = []
        self.replay: RemoteMemory | None = None
        self.ready: deque[tuple[ActOut, Step]] = deque()
        self.put: tuple[int, Any] = (-1, None)  # gradient steps, and the weights after so many

    def start(self, agent: Agent, seed: int, files: Path) -> None:
        """Play for this agent from now on. Starts Ray; what is off-policy gets its memory in another process."""
        workers = workers_of(self.spec)
        if not ray.is_initialized():
            logger.info("starting Ray for %d rollout workers ...", workers)
            self.ray.enter_context(started_ray(cpus=workers))
        _check_room(workers)
        self.agent = agent
        self.ahead = 1 if agent.memory.on_policy else AHEAD
        if not agent.memory.on_policy:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            keeper = ray.remote(ReplayKeeper).options(num_cpus=0, scheduling_strategy=here)
            actor = keeper.remote(self.dumped, os.getcwd(), seed, files)
            self.replay = agent.memory = RemoteMemory(agent.memory.context, actor)

    def reset(self, seed: int) -> Step:
        self.seed = seed
        actors = [self._hire(index) for index in range(workers_of(self.spec))]
        try:
            begun = ray.get([actor.begin.remote() for actor in actors])
        except ray.exceptions.RayError as error:
            raise _told(error) from error
        self.posts = [Post(i, actor, *first) for i, (actor, first) in enumerate(zip(actors, begun, strict=True))]
        for post in self.posts:
            note(f"rollout worker {post.index} is process {post.pid}")
        steps = [{f.name: getattr(post.seen, f.name) for f in fields(Step)} for post in self.posts]
        return Step(**tree_map(lambda *leaves: np.concatenate(leaves), steps[0], *steps[1:]))

    def play(self, step: Step, carry: Tree) -> tuple[ActOut, Step]:
        """The next step that the workers have played; it goes on from the one given before."""
        if not self.ready:
            self._next_round()
        return self.ready.popleft()

    def _next_round(self) -> None:
        """Order what is to be played meanwhile, and take in the oldest chunk of each worker."""
        while len(self.posts[0].orders) < self.ahead:
            self._order()
        received = [self._receive(post) for post in self.posts]
        if self.replay is not None:
            self.replay.receive([reference for reference, _ in received])
        self.ready.extend((act, step) for _, _, act, step in lived(joined([chunk for _, chunk in received])))

    def _order(self) -> None:
        """A chunk more of each worker, by the weights of now."""
        done, weights = self.put
        if done != self.agent.opt_step:
            net = self.agent.algorithm.net.acting_state()
            done, weights = self.put = (self.agent.opt_step, ray.put({k: x.detach().cpu() for k, x in net.items()}))
        before = sum(order.steps for order, _ in self.posts[0].orders)
        order = Order(weights, done, self.agent.frame + before * self.num_envs, self.agent.memory.missing or STEPS)
        for post in self.posts:
            post.orders.append((order, post.actor.play.remote(*order)))

    def _receive(self, post: Post) -> tuple[Any, Chunk]:
        """The oldest chunk of a worker, and its reference."""
        while True:
            reference = post.orders[0][1]
            try:
                chunk = ray.get(reference)
            except ray.exceptions.RayActorError as error:
                self._replace(post, error)
            except ray.exceptions.RayError as error:
                raise _told(error) from error
            else:
                post.orders.popleft()
                post.seen, post.failed = last_step(chunk), 0
                return reference, chunk

    def _replace(self, post: Post, error: Exception) -> None:
        """A new worker plays what the one that died still had to."""
        post.life, post.failed = post.life + 1, post.failed + 1
        if post.failed == DEATHS:
            raise LabError(f"rollout worker {post.index} died {DEATHS} times before it sent anything: {error}")
        logger.warning(
            "rollout worker %d (process %d) died: another one takes its place, from new episodes", post.index, post.pid
        )
        post.actor = self._hire(post.index, post.life)
        first, *others = [order for order, _ in post.orders]
        bridged = (first, post.actor.play.remote(*first, post.seen))
        post.orders = deque([bridged, *((order, post.actor.play.remote(*order)) for order in others)])

    def _hire(self, index: int, life: int = 0) -> Any:
        return ray.remote(Worker).options(num_cpus=1).remote(self.dumped, os.getcwd(), self.seed, index, life)

    def step(self, action: np.ndarray) -> Step:
        raise EnvError("the worlds of rollout workers are played by these: they take no actions")

    def state_dict(self) -> Tree | None:
        return None  # the workers' episodes go with them

    def load_state_dict(self, state: Tree) -> None:
        raise EnvError("the worlds of rollout workers are never saved")

    def wrapper_state(self) -> Tree:
        return self.face.wrapper_state()

    def load_wrapper_state(self, state: Tree) -> None:
        self.face.load_wrapper_state(state)

    def close(self) -> None:
        """Let the workers close their worlds, for a while; then they and Ray end."""
        leaving = [post.actor.close.remote() for post in self.posts]
        if leaving:
            ray.wait(leaving, num_returns=len(leaving), timeout=PATIENCE)
        for actor in [post.actor for post in self.posts] + ([self.replay.keeper] if self.replay else []):
            ray.kill(actor)
        self.ray.close()
        self.face.close()


def _check_room(workers: int) -> None:
    """Ray would wait for ever for cores that aren't there."""
    there = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
    if there < workers:
        raise LabError(
            f"meta.distributed: {workers} workers need a core each, and the Ray cluster has {there:g}. "
            "Use fewer, or add a machine."
        )


def _told(error: Exception) -> Exception:
    """What went wrong in another process: an error for people as it was told there."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, LabError) else LabError(f"a rollout worker failed: {error}")
