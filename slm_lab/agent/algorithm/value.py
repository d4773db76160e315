"""What algorithms that act by the values of discrete actions share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from gymnasium import spaces
from pydantic import Field
from torch import Tensor

from slm_lab.agent.algorithm.base import Algorithm, acted
from slm_lab.agent.algorithm.exploration import epsilon_greedy, explore, explore_var_problems
from slm_lab.agent.net.base import NetSpec
from slm_lab.agent.net.distribution import Categorical
from slm_lab.agent.net.heads import QHead
from slm_lab.agent.net.net import Head, NetOut
from slm_lab.lib.errors import Problem
from slm_lab.lib.reduce import Losses, Slope
from slm_lab.lib.types import ActOut, Batch, Tree
from slm_lab.spec.model import ScheduleSpec, SpecModel

if TYPE_CHECKING:
    from slm_lab.env.base import World
    from slm_lab.spec.lab_spec import LabSpec


class ValueSpec(SpecModel):
    """Keys of acting by values."""

    action_policy: Literal["epsilon_greedy", "boltzmann"] = Field("epsilon_greedy", description="how to explore")
    explore_var_spec: ScheduleSpec = Field(
        ScheduleSpec(name="linear_decay", start_val=1.0, end_val=0.05, end_step=10_000),
        description="epsilon, or temperature",
    )
    dueling: bool = Field(False, description="the head is a value and advantages, in two streams")


class ValueBased(Algorithm):
    """Learns Q(o, a) for discrete actions and acts by it: the best one, but for exploration.

    Subclasses leave `target` [B, T] in the batch's extras.
    """

    @classmethod
    def heads(cls, spec: Any, net_spec: NetSpec, action_space: spaces.Space) -> dict[str, Head]:
        actions = int(getattr(action_space, "n"))  # noqa: B009  (Discrete, by `problems`)
        return {"q": Head("critic", lambda F: QHead(net_spec, F, actions, spec.dueling))}

    @torch.no_grad()
    def act(self, obs: Tree, is_first: Tensor, carry: Tree, explore: bool, frame: int) -> ActOut:
        out = self.net.forward(obs, carry, is_first, heads=("q",))
        q = out.heads["q"]  # [E, 1, A]
        action = self.explored(q, frame) if explore else q.argmax(dim=-1)
        return acted(action, out)

    def explored(self, q: Tensor, frame: int) -> Tensor:
        """Actions [...] that explore, by values [..., A]."""
        explore_var = self.spec.explore_var_spec.at(frame)
        if self.spec.action_policy == "epsilon_greedy":
            return epsilon_greedy(q, explore_var, self.rng.torch)
        return explore(Categorical(q), self.spec.action_policy, explore_var).sample(self.rng.torch)

    def losses(self, batch: Batch, out: NetOut, frame: int) -> Losses:
        q = out.heads["q"].gather(-1, batch.action.long().unsqueeze(-1)).squeeze(-1)  # [B, T]
        target = batch.extras["target"]
        shown = {"q": q, "explore_var": self.spec.explore_var_spec.at(frame)}
        error, slope = self.error(q, target)
        return Losses({"q_loss": error}, shown, target - q.detach(), slopes={"q_loss": [Slope(q, slope)]})

    @staticmethod
    def problems(spec: LabSpec, world: World) -> list[Problem]:
        algorithm = spec.agent.algorithm
        found = explore_var_problems(algorithm.action_policy, algorithm.explore_var_spec)
        if not spec.agent.net.use_same_optim:
            message = f"{algorithm.name} has no actor, so one optimiser. Use true, and optim_spec alone."
            found.append(Problem("agent.net.use_same_optim", message))
        if isinstance(world.action_space, spaces.Discrete):
            return found
        message = f"{algorithm.name} values each of a Discrete space's actions; it can't act in {world.action_space}"
        return [Problem("agent.algorithm.name", message), *found]
