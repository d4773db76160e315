"""The `env` section of a spec."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from slm_lab.spec.model import NonNegativeInt, PositiveInt, SpecModel


class EnvSpec(SpecModel):
    """A world and how many of it run together. Every key that isn't named here goes to the world's constructor."""

    # The one model that lets more keys in: they are checked against the constructor's signature by `env_problems`.
    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)

    name: str = Field(
        description="a Gymnasium id, 'module:Id', 'pettingzoo:module', a task of ours (list task), or Dataset"
    )
    num_envs: PositiveInt = Field(1, description="worlds stepped together")
    max_t: PositiveInt | None = Field(
        None, description="steps after which an episode is truncated (default: the env's own)"
    )
    max_frame: PositiveInt = Field(description="frames of a session, over all its worlds")
    dataset: str | None = Field(
        None, description="a file of experience (made by `export`) to learn from, in place of playing"
    )
    vectorization: Literal["auto", "sync", "native"] = Field(
        "auto", description="sync: one Python env each; native: the env's own vector; auto: native for our tasks"
    )
    # Wrappers, in the order in which they stand around the world (wrappers.py).
    reward_scale: float | None = Field(None, description="multiplies the reward")
    normalize_reward: bool = Field(False, description="divide the reward by the running std of the discounted return")
    clip_reward: float | None = Field(None, gt=0, description="clip the reward to [-x, x]")
    hide_obs: list[NonNegativeInt] | None = Field(
        None, min_length=1, description="show 0 in place of these numbers (from 0) of each float vector"
    )
    normalize_obs: bool = Field(False, description="running mean 0 and variance 1 for each float observation")
    clip_obs: float | None = Field(None, gt=0, description="clip float observations to [-x, x]")
    frame_stack: PositiveInt | None = Field(None, description="show the last n observations as one")
    prev_action: bool = Field(False, description="show the previous action as an observation")
    prev_reward: bool | Literal["sign"] = Field(
        False, description="show the previous (wrapped) reward, or its sign, as an observation"
    )
