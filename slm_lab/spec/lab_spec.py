"""A resolved spec: validated, every default written out, nothing left to guess."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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


class MetaSpec(SpecModel):
    """How the lab runs the spec: how often, how long between logs, which seed."""

    distributed: Literal[False] = Field(False, description="SLM-Lab's Hogwild; always false here")
    max_session: PositiveInt = Field(1, description="sessions (seeds) of a trial")
    max_trial: PositiveInt | None = Field(1, description="trials of a search")
    log_frequency: PositiveInt = Field(1000, description="frames between rows of the metrics")
    eval_frequency: PositiveInt | None = Field(None, description="frames between evaluations; null: 10 log_frequency")
    rigorous_eval: NonNegativeInt = Field(
        0, description="greedy episodes per evaluation; 0: metrics come from training"
    )
    checkpoint_frequency: PositiveInt | None = Field(
        None, description="frames between checkpoints; null: max_frame / 20"
    )
    dev_max_frame: PositiveInt = Field(20000, description="most frames of a session in dev mode")
    seed: NonNegativeInt = Field(0, description="session i uses seed + i")
    torch_threads: PositiveInt = Field(1, description="CPU threads of torch in a session")
    tensorboard: bool = Field(True, description="write TensorBoard events")
    png: bool = Field(True, description="write graphs as .png beside .html")
    search_resources: dict[str, Any] | None = Field(None, description="search: resources of a trial, e.g. {cpu: 1}")
    search_scheduler: dict[str, Any] | None = Field(None, description="search: early stopping of trials")
    search_alg: dict[str, Any] | str | None = Field(None, description="search: how the next trial is chosen")
    metric: dict[str, Any] | str | None = Field(None, description="search: the metric to optimise")
    mode: dict[str, Any] | str | None = Field(None, description="search: max or min")

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
class LabSpec:
    """All of one spec. `env` is `slm_lab.env.vec.EnvSpec`; `notes` say what was read differently than written, or
    is worth knowing.

    `data` is the folder that its run will be kept in: the disk that must have room for it.
    """

    name: str
    agent: AgentSpec
    env: Any
    meta: MetaSpec
    search: dict[str, Any] | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)
    data: Path = field(default=Path("data"), compare=False)

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
