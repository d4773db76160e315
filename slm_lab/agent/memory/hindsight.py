"""Replay in hindsight: what was reached by chance counts as what was wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from slm_lab.agent.memory.base import MemoryContext
from slm_lab.agent.memory.replay import Drawn, Replay, RowReplaySpec, discounted
from slm_lab.env.goals import ACHIEVED, DESIRED, shows_goals
from slm_lab.lib.errors import Problem
from slm_lab.lib.types import Batch, Row, Tree

if TYPE_CHECKING:
    from slm_lab.env.base import Goals, World
    from slm_lab.spec.lab_spec import LabSpec


class HindsightReplay(Replay):
    """Hindsight experience replay (HER): k of k+1 rows are learned from as if another goal had been desired.

    The new goal of row t is one achieved in the same episode, as far as it has come: after row t or later (`future`),
    in its last observation (`final`), or after any of its rows that are still held (`episode`). It stands in place of
    `desired_goal` before and after the row, and the world's `goals` say what reward and which end it would have
    brought. With `n_step` the rewards of all rows that are summed up are the new goal's, up to where it is reached.

    Only the new goal terminates: where the world ended the episode otherwise (it reached its own goal, time was up) the
    row is truncated, so the value of its last observation, under the new goal, follows. A world that ends for other
    reasons than its goal (a fall) is so taken to go on.

    Source: Andrychowicz et al. 2017, arXiv 1707.01495, section 4.5. We differ: goals are chosen when rows are drawn,
    not stored beside them, so k is a chance, and a row gets a new goal each time.

    Sample spec: `"memory": {"name": "HindsightReplay", "goal_strategy": "future", "her_ratio": 4, "max_size": 100000,
    "batch_size": 128}`
    """

    class Spec(RowReplaySpec):
        name: Literal["HindsightReplay"] = "HindsightReplay"
        goal_strategy: Literal["future", "final", "episode"] = Field(
            "future",
            description="the new goal is what was achieved later in the episode, at its end, or anywhere in it",
        )
        her_ratio: float = Field(4.0, ge=0, description="k: rows given a new goal for each one that keeps its own")

    @classmethod
    def beside(cls, spec: LabSpec, world: World) -> int:
        return 12  # `episode` and `over`

    def __init__(self, spec: Any, context: MemoryContext) -> None:
        super().__init__(spec, context)
        assert context.world.goals is not None  # seen to by `problems`
        self.goals: Goals = context.world.goals
        self.chance = spec.her_ratio / (spec.her_ratio + 1)
        # Of each row the number of its episode; of each episode the row after its last observation so far, where the
        # next one begins. There are fewer episodes than rows, so their numbers fit in as many slots.
        # As all arrays of a memory they are allocated with the first row: an agent that only plays needs none.
        self.episode, self.over = (np.zeros((0, context.world.num_envs), kind) for kind in (np.int32, np.int64))

    def update(self, row: Row) -> None:
        self._follow(row)
        super().update(row)

    def _follow(self, row: Row) -> None:
        """The episodes go on with the row to come: by its observation, and if it is played by the one after it."""
        t, slots = self.rows.count, self.rows.slots
        if not len(self.episode):
            self.episode, self.over = (self.rows.placed(marks, slots) for marks in (self.episode, self.over))
        episode = self.episode[(t - 1) % slots] + row.is_first
        self.episode[t % slots] = episode
        self.over[episode % slots, self.worlds] = t + 1 + row.mask

    def batch(self, drawn: Drawn) -> Batch:
        batch = super().batch(drawn)
        which = np.flatnonzero(self.rng.random(len(drawn.at)) < self.chance)
        return self._relabelled(batch, which, *self.where(drawn.at[which])) if which.size else batch

    def _relabelled(self, batch: Batch, which: np.ndarray, t: np.ndarray, env: np.ndarray) -> Batch:
        """The batch with new goals for its windows `which` [R], whose rows are `t` [R] of worlds `env` [R]."""
        episode = self.episode[t % self.rows.slots, env]
        over = self.over[episode % self.rows.slots, env]
        goal = self._achieved(self._chosen(t, env, episode, over), env)  # [R, *G]
        reward, discount, terminated, after = self._outcome(t, env, over, goal)
        last = self.rows.done(self.index(after - 1, env))
        truncated = (last["terminated"] | last["truncated"]) & ~terminated
        outcome = {"reward": reward, "discount": discount, "terminated": terminated, "truncated": truncated}

        obs = {key: x.copy() for key, x in batch.obs.items()}
        for key, x in self.rows.obs(self.index(after, env)).items():
            obs[key][which, 1] = x
        obs[DESIRED][which] = goal[:, None]
        fields = {name: getattr(batch, name).copy() for name in outcome}
        for name, new in outcome.items():
            fields[name][which, 0] = new
        return batch.replace(obs=obs, **fields)

    def _outcome(
        self, t: np.ndarray, env: np.ndarray, over: np.ndarray, goal: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What `goal` [R, *G] pays after rows `t`: sums of m rewards, γ^m, whether it is reached, and the row t+m.

        m is n, or less where the goal is reached, or the episode (so far) ends.
        """
        n = self.spec.n_step
        after = t[:, None] + 1 + np.arange(n)  # [R, n]
        held = after < over[:, None]
        achieved = self._achieved(np.minimum(after, over[:, None] - 1), env[:, None])  # [R, n, *G]
        flat, desired = achieved.reshape(-1, *goal.shape[1:]), np.repeat(goal, n, axis=0)
        paid = self.goals.reward(flat, desired).reshape(after.shape)
        reached = self.goals.terminated(flat, desired).reshape(after.shape)
        reward, discount, m = discounted(paid, reached, held, self.context.gamma)  # m [R], 1 to n
        return reward, discount, reached[np.arange(len(m)), m - 1], t + m

    def _chosen(self, t: np.ndarray, env: np.ndarray, episode: np.ndarray, over: np.ndarray) -> np.ndarray:
        """Numbers [R] of the rows whose achieved goals become the desired ones."""
        if self.spec.goal_strategy == "final":
            return over - 1
        first = t
        if self.spec.goal_strategy == "episode":
            first = np.maximum(self.over[(episode - 1) % self.rows.slots, env], self.rows.first)
        return self.rng.integers(first + 1, over)

    def _achieved(self, t: np.ndarray, env: np.ndarray) -> np.ndarray:
        """[..., *G], at rows `t`; goals are never stacked, so they are read straight from the ring."""
        found: np.ndarray = self.rows.data["obs"][ACHIEVED][t % self.rows.slots, env]
        return found

    def reset(self) -> None:
        super().reset()
        self.episode[:], self.over[:] = 0, 0

    def interrupt(self, row: Row) -> None:
        if self.rows.size:
            self._follow(row)
        super().interrupt(row)

    def state_dict(self) -> Tree:
        return {**super().state_dict(), "episode": self.episode, "over": self.over}

    def load_state_dict(self, state: Tree) -> None:
        super().load_state_dict(state)
        self.episode, self.over = (self.rows.placed(state[name], self.rows.slots) for name in ("episode", "over"))

    @classmethod
    def problems(cls, spec: LabSpec, world: World) -> list[Problem]:
        return super().problems(spec, world) + goal_problems(spec, world)


def goal_problems(spec: LabSpec, world: World) -> list[Problem]:
    """Why there is no hindsight in this world."""
    if world.goals is not None:
        return []
    if not shows_goals(world.obs_space):
        message = (
            f"{spec.agent.memory.name} needs a goal env: a Dict observation with the keys observation, {ACHIEVED}, "
            f"{DESIRED} (both goals of one shape). {spec.env.name} shows {', '.join(world.obs_space)}. Use Replay."
        )
        return [Problem("agent.memory.name", message)]
    hiding = [key for key in ("normalize_reward", "prev_reward") if getattr(spec.env, key)]
    message = f"{spec.agent.memory.name} can't tell what another goal would have paid under {{}}: take it out"
    if hiding:
        return [Problem(f"env.{key}", message.format(key)) for key in hiding]
    message = (
        f"{spec.agent.memory.name} asks the env what another goal would have paid, but {spec.env.name} has no method "
        "compute_reward(achieved_goal, desired_goal, info). Add it, or use Replay."
    )
    return [Problem("agent.memory.name", message)]
