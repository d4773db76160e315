"""Independent learners: an agent for each of those that share a world."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import torch
from torch import nn

from slm_lab.agent.agent import Agent
from slm_lab.lib.reduce import Metrics
from slm_lab.lib.tree import tree_map
from slm_lab.lib.types import ActOut, Step, Tree


class MultiAgent:
    """One `Agent` for each of A agents; to a session it is an agent in E = W * A columns, world by world.

    Each learner sees, remembers and learns from its own columns only, so the others are part of its world (Tan 1993,
    "independent agents"). Carry and extras are kept by the agents' names. A frame is a step of one agent; schedules run
    on the frames of all, as `max_frame` does, and a memory's `frequency` on those of its learner.
    """

    def __init__(self, learners: dict[str, Agent]) -> None:
        self.learners = learners
        self.frame = 0

    @property
    def frame(self) -> int:
        """Frames of all learners together, as each of them is told."""
        return self._frame

    @frame.setter
    def frame(self, frame: int) -> None:
        self._frame = frame
        for learner in self.learners.values():
            learner.frame = frame

    def initial(self, E: int) -> Tree:
        return {name: learner.initial(E // len(self.learners)) for name, learner in self.learners.items()}

    def act(self, step: Step, carry: Tree, explore: bool = True) -> ActOut:
        """Actions [E, *A]: each learner's for its own columns."""
        acts = {name: learner.act(own, carry[name], explore) for name, learner, own in self._split(step)}
        action = torch.stack([act.action for act in acts.values()], dim=1).flatten(0, 1)  # [W, A, ...] -> [E, ...]
        carries = {name: act.carry for name, act in acts.items()}
        return ActOut(action, carries, {name: act.extras for name, act in acts.items()})

    def update(self, step: Step, carry: Tree, act: ActOut, next_step: Step) -> list[Metrics]:
        """Each learner remembers its columns and learns while its memory says so; the metrics of every update."""
        actions = act.action.unflatten(0, (-1, len(self.learners))).unbind(1)
        metrics: list[Metrics] = []
        for action, (name, learner, own), (_, _, own_next) in zip(
            actions, self._split(step), self._split(next_step), strict=True
        ):
            metrics += learner.update(own, carry[name], ActOut(action, act.carry[name], act.extras[name]), own_next)
            self.frame = learner.frame
        return metrics

    def interrupt(self, step: Step, carry: Tree, next_step: Step) -> None:
        for (name, learner, own), (_, _, own_next) in zip(self._split(step), self._split(next_step), strict=True):
            learner.interrupt(own, carry[name], own_next)

    def _split(self, step: Step) -> Iterator[tuple[str, Agent, Step]]:
        """Each learner with the columns of its agent."""
        arrays = {field.name: getattr(step, field.name) for field in fields(step)}
        A = len(self.learners)
        for a, (name, learner) in enumerate(self.learners.items()):
            yield name, learner, Step(**tree_map(lambda leaf, a=a: leaf[a::A], arrays))

    @property
    def device(self) -> torch.device:
        return next(iter(self.learners.values())).device

    @property
    def opt_step(self) -> int:
        """Gradient steps taken, of all learners together."""
        return sum(learner.opt_step for learner in self.learners.values())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, learner in self.learners.items():
            yield from ((f"{name}.{key}", parameter) for key, parameter in learner.named_parameters())

    def watch(self) -> None:
        for learner in self.learners.values():
            learner.watch()

    @property
    def untrained(self) -> set[str]:
        return {f"{name}.{key}" for name, learner in self.learners.items() for key in learner.untrained}

    def learned(self) -> Tree:
        return {name: learner.learned() for name, learner in self.learners.items()}

    def load_learned(self, state: Tree) -> None:
        for name, learner in self.learners.items():
            learner.load_learned(state[name])

    def state_dict(self) -> Tree:
        learners = {name: learner.state_dict() for name, learner in self.learners.items()}
        return {"learners": learners, "frame": self.frame}

    def load_state_dict(self, state: Tree) -> None:
        for name, learner in self.learners.items():
            learner.load_state_dict(state["learners"][name])
        self.frame = int(state["frame"])
