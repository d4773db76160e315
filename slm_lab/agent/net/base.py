"""The encoder seam, and the keys that every net's spec shares."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from slm_lab.agent.net.layers import Activation, InitFn
from slm_lab.lib.types import Tree
from slm_lab.spec.model import LrScheduleSpec, OptimSpec, PositiveInt, SpecModel


class LossSpec(SpecModel):
    """Error of value-like predictions."""

    name: Literal["MSELoss", "SmoothL1Loss"] = "MSELoss"


class NetSpec(SpecModel):
    """Keys of every net: its working memory, how it is trained, where it runs."""

    core: Any = Field(
        {"name": "none"}, description="working memory between encoder and heads: a part of the family core"
    )
    shared: bool = Field(False, description="one encoder and core for policy and value, or one each")
    hid_layers_activation: Activation = "tanh"
    head_hid_layers: list[PositiveInt] = Field(
        [],
        description="units of hidden layers in each head, after the core; Q(s, a) needs some: the action joins there",
    )
    init_fn: InitFn | None = Field("orthogonal_", description="how weights begin; null: torch's own way")
    actor_init_std: float | None = Field(0.01, gt=0, description="gain of the policy head's weights; null: torch's own")
    critic_init_std: float | None = Field(1.0, gt=0, description="gain of the value head's weights; null: torch's own")
    log_std_init: float = Field(0.0, description="first log standard deviation of a Gaussian policy")
    clip_grad_val: float | None = Field(0.5, gt=0, description="largest gradient norm of each part; null: no clipping")
    loss_spec: LossSpec = Field(LossSpec(), description="error of the value head")
    use_same_optim: bool = Field(
        True, description="train all parts by optim_spec, or actor and critic each by their own"
    )
    optim_spec: OptimSpec = Field(OptimSpec(), description="optimiser")
    actor_optim_spec: OptimSpec | None = Field(None, description="actor's optimiser when use_same_optim is false")
    critic_optim_spec: OptimSpec | None = Field(None, description="critic's optimiser when use_same_optim is false")
    lr_scheduler_spec: LrScheduleSpec | None = Field(None, description="how the learning rate falls")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU only where the net is large enough to gain by it"
    )

    @model_validator(mode="after")
    def _optimisers(self) -> NetSpec:
        if not self.use_same_optim and self.shared:
            raise ValueError("use_same_optim: false needs shared: false (a shared part can't have two optimisers)")
        own = (self.actor_optim_spec, self.critic_optim_spec)
        if not self.use_same_optim and None in own:
            raise ValueError("use_same_optim: false needs actor_optim_spec and critic_optim_spec")
        if self.use_same_optim and own != (None, None):
            raise ValueError("actor_optim_spec and critic_optim_spec need use_same_optim: false")
        return self

    def optim_of(self, part: str) -> OptimSpec:
        """The optimiser of one part of the net."""
        own = self.critic_optim_spec if part.startswith("critic") else self.actor_optim_spec
        return self.optim_spec if self.use_same_optim or own is None else own


HidLayers = list[PositiveInt]


class Encoder(nn.Module):
    """The seam of what reads observations: {key: [..., *O]} to [..., D]."""

    Spec: ClassVar[type[NetSpec]]
    out_size: int  # D

    def forward(self, obs: Tree) -> Tensor:
        raise NotImplementedError
