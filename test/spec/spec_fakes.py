"""Parts as small as parts can be, so that the spec's own tests hang on nothing above its floor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from slm_lab.lib.errors import Problem
from slm_lab.spec.model import OptimSpec, PositiveInt, ScheduleSpec, SpecModel, Unit


class PPO:
    """Fake PPO."""

    on_policy = True

    class Spec(SpecModel):
        name: Literal["PPO"] = "PPO"
        gamma: Unit = Field(0.99, description="discount factor")
        lam: Unit | None = 0.95
        time_horizon: PositiveInt = Field(128, description="steps per env between updates")
        minibatch_size: PositiveInt = 64
        clip_eps_spec: ScheduleSpec = ScheduleSpec(start_val=0.2)
        entropy_coef_spec: ScheduleSpec | None = None
        normalize_advantages: bool = True
        clip_vloss: bool = False
        val_loss_coef: float = 0.5

    @staticmethod
    def problems(spec, world):
        return [Problem("agent.algorithm.name", "no such actions")] if world.action_space == "strange" else []


class DQN:
    """Fake off-policy algorithm."""

    on_policy = False

    class Spec(SpecModel):
        name: Literal["DQN"] = "DQN"
        gamma: Unit = 0.99


class OnPolicyBatchReplay:
    """Fake on-policy memory."""

    on_policy = True

    class Spec(SpecModel):
        name: Literal["OnPolicyBatchReplay"] = "OnPolicyBatchReplay"


class Replay:
    """Fake off-policy memory."""

    on_policy = False

    class Spec(SpecModel):
        name: Literal["Replay"] = "Replay"
        max_size: PositiveInt = Field(10000, description="rows kept")
        batch_size: PositiveInt = 32


class MLP:
    """Fake net."""

    class Spec(SpecModel):
        name: Literal["MLP"] = "MLP"
        hid_layers: list[PositiveInt] = Field([64, 64])
        hid_layers_activation: Literal["relu", "tanh"] = "tanh"
        shared: bool = False
        init_fn: str | None = "orthogonal_"
        actor_init_std: float | None = 0.01
        critic_init_std: float | None = 1.0
        clip_grad_val: float | None = 0.5
        use_same_optim: bool = True
        optim_spec: OptimSpec = OptimSpec()
        actor_optim_spec: OptimSpec | None = None
        critic_optim_spec: OptimSpec | None = None
        loss_spec: dict = Field({"name": "MSELoss"})
        device: Literal["auto", "cpu", "cuda"] = "auto"
        core: object = {"name": "none"}

        @model_validator(mode="after")
        def _deep_enough(self):
            if len(self.hid_layers) > 5:
                raise ValueError("more than 5 layers")
            return self


class NoCore:
    """Fake core without memory."""

    class Spec(SpecModel):
        name: Literal["none"] = "none"


class GRU:
    """Fake recurrent core."""

    class Spec(SpecModel):
        name: Literal["GRU"] = "GRU"
        hidden_size: PositiveInt = Field(64, description="units of the hidden state")
        num_layers: PositiveInt = 1


class EnvSpec(SpecModel):
    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)

    name: str = Field(description="a Gymnasium id")
    num_envs: PositiveInt = 1
    max_t: PositiveInt | None = None
    max_frame: PositiveInt = Field(description="frames of a session")


def env_problems(spec):
    return [Problem("env.name", "no such env")] if spec.name == "NoSuchEnv-v0" else []


def make_env(spec, num_envs):
    world = SimpleNamespace(obs_space="box", action_space="strange" if spec.name == "Strange-v0" else "discrete")
    return SimpleNamespace(world=world)


def make_raw():
    return {
        "agent": {
            "name": "Tester",
            "algorithm": {"name": "PPO", "gamma": 0.9},
            "memory": {"name": "OnPolicyBatchReplay"},
            "net": {"name": "MLP", "hid_layers": [32], "core": {"name": "GRU", "hidden_size": 8}},
        },
        "env": {"name": "CartPole-v1", "max_frame": 10000, "size": 3},
        "meta": {"max_session": 2, "log_frequency": 100},
        "search": {"agent.algorithm.gamma__uniform": [0.9, 0.99]},
    }
