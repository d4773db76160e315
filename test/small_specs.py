"""Small specs that tests run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pydash
import torch

from slm_lab.spec.lab_spec import LabSpec
from slm_lab.spec.validate import resolve

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)

CARTPOLE: dict[str, Any] = {
    "agent": {
        "name": "test",
        "algorithm": {"name": "PPO", "time_horizon": 16, "minibatch_size": 32, "training_epoch": 2},
        "memory": {"name": "OnPolicyBatchReplay"},
        "net": {"name": "MLP", "hid_layers": [16]},
    },
    "env": {"name": "CartPole-v1", "num_envs": 4, "max_frame": 2000},
    "meta": {"log_frequency": 200, "tensorboard": False, "png": False},
}


def raw_spec(**changes: Any) -> dict[str, Any]:
    """A small PPO on CartPole; `changes` are dotted paths with __ for the dot, e.g. env__num_envs=1."""
    raw = copy.deepcopy(CARTPOLE)
    for path, value in changes.items():
        pydash.set_(raw, path.replace("__", "."), value)
    return raw


def make_spec(name: str = "test", **changes: Any) -> LabSpec:
    return resolve(raw_spec(**changes), name)


ALGORITHMS: dict[str, dict[str, Any]] = {
    "Random": {"name": "Random"},
    "REINFORCE": {"name": "REINFORCE", "training_frequency": 2},
    "A2C": {"name": "A2C", "training_frequency": 8},
    "PPO": {"name": "PPO", "time_horizon": 8, "minibatch_size": 16, "training_epoch": 2},
}  # one small spec of every registered algorithm; the contract suite fails where one is missing
