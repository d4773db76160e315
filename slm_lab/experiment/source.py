"""Where a session's steps come from."""

from __future__ import annotations

from typing import Protocol

from slm_lab.agent.agent import Agent
from slm_lab.agent.multi import MultiAgent
from slm_lab.env.base import VecEnv
from slm_lab.lib.types import ActOut, Step, Tree


class Source(Protocol):
    """Plays for a session, here (`Local`) or in other processes (`distributed.crew.Crew`)."""

    def play(self, step: Step, carry: Tree) -> tuple[ActOut, Step]:
        """One step of all worlds, from what they showed last: how the agent acted, and what came of it."""
        ...


class Local:
    """The agent acts in the worlds of this process."""

    def __init__(self, agent: Agent | MultiAgent, env: VecEnv) -> None:
        self.agent, self.env = agent, env

    def play(self, step: Step, carry: Tree) -> tuple[ActOut, Step]:
        act = self.agent.act(step, carry)
        return act, self.env.step(act.action.cpu().numpy())
