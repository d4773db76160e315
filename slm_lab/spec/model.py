"""What every part's `Spec` is made of: a strict pydantic model, and the few field types that specs share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from slm_lab.lib.schedule import scheduled


def _integral(value: Any) -> Any:
    """JSON's 2e5 is a float; a whole one is welcome where a count is asked for."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_integral)]
# the bound stands inside the BeforeValidator: outside it, the JSON Schema would lose it
PositiveInt = Annotated[int, Field(ge=1), BeforeValidator(_integral)]
NonNegativeInt = Annotated[int, Field(ge=0), BeforeValidator(_integral)]
Unit = Annotated[float, Field(ge=0.0, le=1.0)]


class SpecModel(BaseModel):
    """A part's keys: unknown ones are errors, text is never silently read as a number, and nothing changes later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ScheduleSpec(SpecModel):
    """A value that may change while the agent learns; steps are in frames."""

    name: Literal["no_decay", "linear_decay", "rate_decay", "periodic_decay"] = Field(
        "no_decay", description="how the value goes from start_val to end_val"
    )
    start_val: float = Field(description="value up to start_step")
    end_val: float | None = Field(None, description="value from end_step on (default: start_val)")
    start_step: NonNegativeInt = Field(0, description="frame at which the change begins")
    end_step: NonNegativeInt = Field(0, description="frame at which the change ends")

    @model_validator(mode="after")
    def _ordered(self) -> ScheduleSpec:
        if self.name != "no_decay" and self.end_step <= self.start_step:
            raise ValueError(f"{self.name} needs end_step ({self.end_step}) after start_step ({self.start_step})")
        if self.name != "no_decay" and self.end_val is None:
            raise ValueError(f"{self.name} needs an end_val")
        if self.name == "rate_decay" and self.end_val is not None and self.end_val > self.start_val:
            raise ValueError(
                f"rate_decay falls, and end_val ({self.end_val:g}) is above start_val ({self.start_val:g}). Use "
                "linear_decay to rise"
            )
        return self

    def at(self, frame: int) -> float:
        """The value once `frame` frames have been played."""
        end_val = self.start_val if self.end_val is None else self.end_val
        return scheduled(self.name, self.start_val, end_val, self.start_step, self.end_step, frame)


class OptimSpec(SpecModel):
    """An optimiser of torch.optim."""

    name: Literal["Adam", "AdamW", "RMSprop", "SGD"] = "Adam"
    lr: float = Field(3e-4, gt=0, description="learning rate")
    eps: float | None = Field(None, gt=0, description="denominator term of Adam, AdamW, RMSprop (default: torch's)")
    weight_decay: float = Field(0.0, ge=0)
    alpha: float | None = Field(None, ge=0, le=1, description="smoothing of RMSprop")
    momentum: float | None = Field(None, ge=0, description="momentum of RMSprop, SGD")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] | None = Field(
        None, min_length=2, max_length=2, description="betas of Adam, AdamW"
    )

    @model_validator(mode="after")
    def _only_its_own(self) -> OptimSpec:
        own = {"Adam": {"eps", "betas"}, "AdamW": {"eps", "betas"}, "RMSprop": {"eps", "alpha", "momentum"}}
        own_keys = own.get(self.name, {"momentum"})
        foreign = [
            k for k in ("eps", "alpha", "momentum", "betas") if getattr(self, k) is not None and k not in own_keys
        ]
        if foreign:
            raise ValueError(f"{self.name} has no {', '.join(foreign)}")
        return self


class LrScheduleSpec(SpecModel):
    """How the learning rate falls with the frames played."""

    name: Literal["LinearToZero", "LinearToMin"] = "LinearToZero"
    frame: PositiveInt = Field(description="frame at which it has fallen to zero, or to min_factor")
    min_factor: Unit = Field(0.0, description="LinearToMin: lowest multiple of lr")

    @model_validator(mode="after")
    def _floor(self) -> LrScheduleSpec:
        if self.name == "LinearToZero" and self.min_factor:
            raise ValueError("min_factor is for LinearToMin; LinearToZero ends at 0")
        return self
