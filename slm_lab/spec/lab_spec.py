"""A resolved spec: validated, every default written out, nothing left to guess."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from slm_lab.lib.registry import Registry
from slm_lab.spec.model import NonNegativeInt, PositiveInt, SpecModel

# the door to the world above this floor: reached by name, when a spec is resolved
ENV = Registry(
    "env",
    {
        "EnvSpec": "slm_lab.env.vec:EnvSpec",
        "env_problems": "slm_lab.env.vec:env_problems",
        "make_env": "slm_lab.env.vec:make_env",
    },
)


Metric = Literal[
    "final_return", "best_return", "total_reward_ma", "strength", "max_strength", "final_strength", "sample_efficiency",
    "training_efficiency", "stability", "consistency",
]  # fmt: skip


class ResourcesSpec(SpecModel):
    """What a trial of a search takes up on its machine while it runs; its sessions run one after another."""

    cpu: float = Field(1.0, gt=0, description="cores")
    gpu: float = Field(0.0, ge=0, description="GPUs; 0.25: four trials share one")


class SchedulerSpec(SpecModel):
    """Stops trials that are worse than the others were after as many frames."""

    name: Literal["ASHA"] = Field("ASHA", description="asynchronous successive halving (Li et al., 2018)")
    grace_period: PositiveInt = Field(description="frames that every trial may play")
    reduction_factor: Annotated[int, Field(ge=2)] = Field(3, description="one in so many goes on at each rung")


class DistributedSpec(SpecModel):
    """Rollout workers: processes that play for one learner."""

    workers: PositiveInt = Field(description="how many; each has env.num_envs / workers worlds")


class MetaSpec(SpecModel):
    """How the lab runs the spec: how often, how long between logs, which seed."""

    distributed: DistributedSpec | Literal[False] = Field(False, description="rollout workers; false: none")
    max_session: PositiveInt = Field(1, description="sessions (seeds) of a trial")
    max_trial: PositiveInt | None = Field(None, description="trials of a search; null: the whole grid, without one 16")
    log_frequency: PositiveInt = Field(1000, description="frames between rows of the metrics")
    eval_frequency: PositiveInt | None = Field(None, description="frames between evaluations; null: 10 log_frequency")
    rigorous_eval: NonNegativeInt = Field(
        0, description="greedy episodes per evaluation, by which the best checkpoint is chosen; 0: none, by training"
    )
    checkpoint_frequency: PositiveInt | None = Field(
        None, description="frames between checkpoints; null: max_frame / 20"
    )
    dev_max_frame: PositiveInt = Field(20000, description="most frames of a session in dev mode")
    seed: NonNegativeInt = Field(0, le=10**9, description="session i uses seed + i")
    torch_threads: PositiveInt = Field(1, description="CPU threads of torch in a session")
    tensorboard: bool = Field(True, description="write TensorBoard events")
    png: bool = Field(True, description="write graphs as .png beside .html")
    search_resources: ResourcesSpec = Field(ResourcesSpec(), description="search: what a trial needs")
    search_scheduler: SchedulerSpec | None = Field(None, description="search: early stopping of trials")
    search_alg: Literal["optuna", "random", "grid"] = Field(
        "optuna", description="search: how the next trial is chosen; optuna: by TPE, from those before"
    )
    metric: Metric = Field("final_return", description="search: what the trials are compared by")
    mode: Literal["max", "min"] = Field("max", description="search: whether the metric should be large or small")
    max_retry: NonNegativeInt = Field(0, description="search: how often a trial that fails is tried again")
    keep_trials: PositiveInt | None = Field(
        5, description="search: checkpoints of so many best trials are kept; null: of all"
    )

    def filled(self, max_frame: int) -> MetaSpec:
        """A copy in which the frequencies that follow from others are written out."""
        return self.model_copy(
            update={
                "eval_frequency": self.eval_frequency or 10 * self.log_frequency,
                "checkpoint_frequency": self.checkpoint_frequency or max(1, max_frame // 20),
            }
        )


@dataclass(frozen=True)
class AgentSpec:
    """The parts of an agent, each the validated `Spec` of its class (Any: those classes live on higher floors)."""

    name: str
    algorithm: Any
    memory: Any
    net: Any
    learners: Literal["shared", "independent"] = "shared"  # of a world's several agents: one for all, or each its own
    auxiliary: tuple[Any, ...] = ()  # what is learned beside


@dataclass(frozen=True)
class Room:
    """For what there must be room: `sessions` at once (None: as many as mode train runs), beside what runs now, or on a
    machine that is `empty` by then."""

    sessions: int | None = None
    empty: bool = False


@dataclass(frozen=True)
class LabSpec:
    """All of one spec. `env` is `slm_lab.env.vec.EnvSpec`; `notes` say what was read differently than written, or
    is worth knowing.

    `data` is the folder that its run will be kept in: the disk that must have room for it; `room` says for how many.
    """

    name: str
    agent: AgentSpec
    env: Any
    meta: MetaSpec
    search: dict[str, Any] | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)
    data: Path = field(default=Path("data"), compare=False)
    room: Room = field(default=Room(), compare=False)

    @property
    def at_once(self) -> int:
        """Sessions of a trial that the cores have room for, each with its rollout workers."""
        beside = self.meta.distributed.workers if self.meta.distributed else 0
        return min(self.meta.max_session, max(1, len(os.sched_getaffinity(0)) // (1 + beside)))

    def dump(self) -> dict[str, Any]:
        """The spec as plain data, defaults written out; resolving it again gives an equal LabSpec."""
        parts = {part: getattr(self.agent, part).model_dump(mode="json") for part in ("algorithm", "memory", "net")}
        auxiliary = [part.model_dump(mode="json") for part in self.agent.auxiliary]
        spec = {
            "agent": {"name": self.agent.name, "learners": self.agent.learners, **parts, "auxiliary": auxiliary},
            "env": self.env.model_dump(mode="json"),
            "meta": self.meta.model_dump(mode="json"),
        }
        return spec if self.search is None else {**spec, "search": self.search}
