"""StrategicMemory: an agent that learns what to keep and what to recall."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from gymnasium import spaces
from pydantic import Field, model_validator

from slm_lab.agent.auxiliary.base import AuxiliaryContext
from slm_lab.agent.memory.base import MemoryContext
from slm_lab.agent.memory.onpolicy import OnPolicyReplay
from slm_lab.agent.memory.storage import SHARE, free_ram, gigabytes, memories
from slm_lab.agent.memory.strategic.clock import CLOCK
from slm_lab.agent.memory.strategic.core import UNKNOWN, StrategicCore
from slm_lab.agent.memory.strategic.hindsight import ENOUGH, Hindsight
from slm_lab.agent.memory.strategic.retention import Rule
from slm_lab.agent.net.core.base import Core
from slm_lab.env.base import World
from slm_lab.lib.errors import Problem, plural
from slm_lab.lib.types import Batch, Row
from slm_lab.spec.model import NonNegativeInt, PositiveInt, SpecModel, Unit
from slm_lab.spec.parts import ENTRY

if TYPE_CHECKING:
    from slm_lab.spec.lab_spec import LabSpec

HELD = 3  # times a world's slots are held: as they were, with the new entry, and where the episode began


class StrategicMemory(OnPolicyReplay):
    """Whole episodes to learn from, and K slots that the policy reads: it learns what to keep and what to recall.

    An experience memory of complete episodes (as OnPolicyReplay: updates are owed by episodes; one longer than
    `horizon` is cut into windows, each of which counts as one) that brings the net its working memory
    (`StrategicCore`) and what teaches it (`Hindsight`). For policy gradients; takes the place of `net.core`. See
    docs/strategic.md.

    Sample spec: `"memory": {"name": "StrategicMemory", "slots": 16}`
    """

    class Spec(SpecModel):
        name: Literal["StrategicMemory"] = "StrategicMemory"
        slots: PositiveInt = Field(16, description="K: entries kept at a time")
        entry: Any = Field({"name": "MLP"}, description="what makes an entry of a step: a part of the family entry")
        hidden_size: PositiveInt = Field(64, description="units of hidden layers and of the features")
        size: PositiveInt = Field(32, description="d: numbers in a key, a value and a query of each head")
        heads: PositiveInt = Field(1, description="attention heads")
        retention: Rule = Field(
            "learned", description="which entries stay: by learned weights, evenly, the newest, none"
        )
        decay_init: float = Field(
            0.05,
            ge=0,
            le=10,
            description="first λ, by how much an entry's priority falls a step; none with 0, or where usefulness "
            "doesn't teach it",
        )
        clock: bool = Field(True, description="an entry is told the step of its episode")
        recall_age: bool = Field(True, description="attention may ask for an age")
        recall_events: bool = Field(True, description="attention may ask for an age counted in entries worth keeping")
        persist: bool = Field(False, description="slots outlive the episode")
        horizon: PositiveInt = Field(16384, description="longest window; of longer episodes the rest is another one")
        queries: PositiveInt = Field(
            4,
            description="hindsight looks at M steps of an episode: so many for each that surprises, at least this many",
        )
        max_queries: PositiveInt = Field(64, description="most of them, where rewards are dense")
        swap: Unit = Field(
            0.5,
            description="chance that hindsight finds an entry by the key of another episode's that is worth the same",
        )
        replay: NonNegativeInt = Field(16, description="batches that hindsight learns from again")
        hindsight_coef: float = Field(4.0, ge=0, description="weight of the hindsight critic; 0 turns hindsight off")
        usefulness_coef: float = Field(0.1, ge=0, description="weight of what teaches retention by hindsight")
        promise_coef: float = Field(
            0.3,
            ge=0,
            description="weight, beside use, of what may come to be of use, as far as hindsight explains nothing yet",
        )
        prior_coef: float = Field(
            0.3,
            ge=0,
            description="weight of what leads attention to what retention prefers, and keeps it even at first",
        )
        actor_coef: float = Field(
            1.0, ge=0, description="weight of the gated mean-actor-critic term; discrete actions only"
        )
        actor_gate: bool = Field(
            True,
            description="the actor term counts as far as hindsight explains what it hasn't learned from; false: fully",
        )

        @property
        def taught(self) -> bool:
            """Whether anything teaches what to keep."""
            return self.hindsight_coef > 0 and self.usefulness_coef > 0

        @property
        def rule(self) -> Rule:
            """Of retention. What nobody teaches is chance: of entries all worth the same the first K would stay."""
            return "reservoir" if self.retention == "learned" and not self.taught else self.retention

        @property
        def decays(self) -> bool:
            """Whether priority falls with age; not where nothing would teach how fast."""
            return self.decay_init > 0 and self.taught

        @model_validator(mode="after")
        def _few_to_many(self) -> StrategicMemory.Spec:
            if self.max_queries < self.queries:
                raise ValueError(
                    f"max_queries {self.max_queries} is less than queries {self.queries}. Raise it, or lower queries"
                )
            return self

    def __init__(self, spec: Spec, context: MemoryContext) -> None:
        self.longest = spec.horizon
        super().__init__(spec, context)

    def core(self, in_size: int) -> Core:
        entry = ENTRY.load(self.spec.entry["name"])
        built = entry(entry.Spec(**self.spec.entry), in_size + CLOCK)
        self.seen_size = built.out_size + self.spec.heads * self.spec.size  # what hindsight reads; it is built later
        return StrategicCore(self.spec, built, in_size)

    def auxiliary(self, context: AuxiliaryContext) -> Hindsight | None:
        return Hindsight(self.spec, context, self.seen_size) if self.spec.hindsight_coef else None

    def update(self, row: Row) -> None:
        """Of what the core shows, learning needs only which steps were kept."""
        extras = {name: shown for name, shown in row.extras.items() if not isinstance(shown, dict)}
        kept = {name: {"recall_step": x["recall_step"]} for name, x in row.extras.items() if isinstance(x, dict)}
        super().update(dataclasses.replace(row, extras=extras | kept))

    def sample(self) -> Batch:
        batch = super().sample()
        carry, extras = dict(batch.carry), dict(batch.extras)
        for part in carry:
            kept = extras.pop(part)["recall_step"]  # [B, T, K]
            carry[part] = {**carry[part], "trace": np.where(batch.mask[..., None], kept, UNKNOWN)}
        return batch.replace(carry=carry, extras=extras)

    @classmethod
    def window_length(cls, spec: LabSpec) -> int | None:
        return int(spec.agent.memory.horizon)

    @staticmethod
    def notes(spec: LabSpec, world: World) -> list[str]:
        """Whether retention has a choice at all, episodes are cut, and a batch has enough to compare."""
        keys, length, found = spec.agent.memory, world.max_length, []
        by_step = getattr(spec.agent.algorithm, "baseline_by_step", False)
        if length is not None and keys.slots >= length and keys.retention != "none" and not keys.persist:
            steps = f"no episode has more than {plural(length, 'step')}"
            less = f"; {length - 1} or fewer make it choose" if length > 1 else ""
            found.append(
                f"agent.memory.slots {keys.slots}: {steps}, so nothing is dropped and retention has no choice{less}"
            )
        if keys.rule != keys.retention:
            key = "usefulness_coef" if keys.hindsight_coef else "hindsight_coef"
            found.append(f"agent.memory.retention 'learned': with {key} 0 nothing teaches it, so it is a reservoir")
        if length is not None and keys.horizon < length:
            found.append(
                f"agent.memory.horizon {keys.horizon}: episodes may have {length} steps and are then cut into windows; "
                f"what was dropped before a window gets no credit from it{', nor its steps a baseline' * by_step}"
            )
        episodes = max(spec.agent.algorithm.frequency, spec.env.num_envs)  # worlds may end together
        if keys.taught and episodes * keys.queries < ENOUGH:
            few = plural(episodes, "episode")
            found.append(
                f"agent.memory.queries {keys.queries}: where few steps surprise, {few} an update may have fewer than "
                f"{ENOUGH} of them, too few to tell what hindsight explains from chance: it may teach retention noise, "
                "and holds attention even. Use a larger training_frequency (PPO: time_horizon), or more queries"
            )
        if keys.hindsight_coef and keys.actor_coef and not isinstance(world.action_space, spaces.Discrete):
            found.append(
                f"agent.memory.actor_coef goes unused: its term is for discrete actions, not {world.action_space}; 0 "
                "leaves it out"
            )
        if by_step and episodes == 1:
            found.append(
                "agent.algorithm.baseline_by_step takes nothing: an update sees one episode, and there is no other to "
                "compare it with. Use a larger training_frequency (PPO: time_horizon)"
            )
        return found

    @classmethod
    def problems(cls, spec: LabSpec, world: World) -> list[Problem]:
        found, keys = super().problems(spec, world), spec.agent.memory
        found += _room_problems(spec, world)
        steps = _window(keys)
        if steps > keys.slots:
            message = f"reads {steps} steps, more than the {keys.slots} slots: too long a window"
            found.append(Problem("agent.memory.entry.window", f"{message}. Use {keys.slots} or fewer, or more slots."))
        if not hasattr(spec.agent.algorithm, "steps_per_window"):
            name = spec.agent.algorithm.name
            message = (
                f"{name} can't teach StrategicMemory, a policy gradient can. Use REINFORCE, A2C or PPO, or another"
            )
            found.append(Problem("agent.memory.name", f"{message} memory: OnPolicyReplay or OnPolicyBatchReplay."))
        if spec.agent.net.core["name"] != "none":
            found.append(
                Problem(
                    "agent.net.core.name",
                    "would go unused: StrategicMemory brings its own working memory. Use 'none', or leave core out.",
                )
            )
        if not spec.agent.net.shared:
            alone = (
                "" if spec.agent.net.use_same_optim else ", and use_same_optim: true without optimisers of their own"
            )
            message = f"false; StrategicMemory is one memory for policy and value. Use true{alone}."
            found.append(Problem("agent.net.shared", message))
        return found


def _window(keys: StrategicMemory.Spec) -> int:
    """Steps that make an entry."""
    steps: int = ENTRY.load(keys.entry["name"]).Spec(**keys.entry).steps
    return steps


def _room_problems(spec: LabSpec, world: World) -> list[Problem]:
    """What is held in acting and where the episodes of a batch began, and which entries were in which slot at each of
    its steps: both told twice, as kept and as learned from. Episodes that may have any length count as one step."""
    keys, episodes = spec.agent.memory, spec.agent.algorithm.frequency
    steps = min(world.max_length or 1, keys.horizon)
    numbers = 2 * keys.heads * keys.size + _window(keys) * CLOCK  # of an entry, at least: there is more, by the encoder
    held = 4 * numbers * (HELD * spec.env.num_envs + 2 * episodes)
    need, free = keys.slots * (2 * 8 * steps * episodes + held) * memories(spec, world), free_ram(spec.room)
    if need <= SHARE * free:
        return []
    held_for = f"{plural(spec.env.num_envs, 'world')} and {plural(episodes, 'episode')} of {plural(steps, 'step')}"
    message = f"{keys.slots:,} for {held_for} need {gigabytes(need)} and more, but {gigabytes(free)} of RAM are free. "
    message += f"Use at most {int(keys.slots * SHARE * free / need):,}, or fewer worlds or episodes an update."
    return [Problem("agent.memory.slots", message)]
