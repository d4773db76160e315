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


class Small(dict[str, dict[str, Any]]):
    """A small spec of every registered part of a family."""

    def __missing__(self, name: str) -> dict[str, Any]:
        raise AssertionError(f"{name} has no small spec: add one to ALGORITHMS or MEMORIES of test/small_specs.py")


LATER: dict[str, Any] = {"training_frequency": 4, "training_start_step": 24, "update_frequency": 8}  # off-policy
ALGORITHMS = Small({
    "Random": {"name": "Random"},
    "REINFORCE": {"name": "REINFORCE", "training_frequency": 2},
    "A2C": {"name": "A2C", "training_frequency": 8},
    "PPO": {"name": "PPO", "time_horizon": 8, "minibatch_size": 16, "training_epoch": 2},
    "SARSA": {"name": "SARSA", "training_frequency": 2},
    "DQN": {"name": "DQN", **LATER},
    "DoubleDQN": {"name": "DoubleDQN", "dueling": True, **LATER},
    "SAC": {"name": "SAC", **LATER},
    "TD3": {"name": "TD3", **LATER},
})  # fmt: skip  # the contract suite fails where one is missing
RING = {"max_size": 60, "batch_size": 8}
MEMORIES = Small({
    "OnPolicyReplay": {"name": "OnPolicyReplay"},
    "OnPolicyBatchReplay": {"name": "OnPolicyBatchReplay"},
    "Replay": {"name": "Replay", **RING},
    "CER": {"name": "CER", "newest": 2, **RING},
    "PrioritizedReplay": {"name": "PrioritizedReplay", "n_step": 3, **RING},
    "SequenceReplay": {
        "name": "SequenceReplay", "sequence_length": 6, "burn_in": 2, "carry_every": 3, "prioritized": True, **RING,
    },
    "HindsightReplay": {"name": "HindsightReplay", **RING},
    "StrategicMemory": {
        "name": "StrategicMemory", "slots": 3, "size": 4, "hidden_size": 8, "horizon": 9, "replay": 2,
        "entry": {"name": "MLP", "hid_layers": [8]},
    },
})  # fmt: skip
NETS: dict[str, dict[str, Any]] = {"StrategicMemory": {"shared": True}}  # what a memory needs of the net
