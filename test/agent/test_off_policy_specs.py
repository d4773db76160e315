"""Specs of off-policy agents: what is refused, and what is written out."""

from __future__ import annotations

import shutil
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium import spaces
from small_specs import raw_spec

from slm_lab.lib.errors import SpecError
from slm_lab.spec.validate import resolve


class Pick(gymnasium.Env):
    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 3])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 0.0, False, False, {}


gymnasium.register("test/Pick-v0", entry_point=Pick, disable_env_checker=True)
DQN_SPEC, SAC_SPEC = {"name": "DQN", "training_start_step": 100}, {"name": "SAC", "training_start_step": 100}
GRU = {"name": "MLP", "hid_layers": [8], "core": {"name": "GRU"}}
APART = {"name": "MLP", "hid_layers": [8], "use_same_optim": False, "actor_optim_spec": {}, "critic_optim_spec": {}}
PENDULUM = {"name": "Pendulum-v1", "num_envs": 4, "max_frame": 2000}


def off_policy(memory: dict[str, Any], algorithm: dict[str, Any] = DQN_SPEC, **changes: Any) -> dict[str, Any]:
    return {"agent__algorithm": algorithm, "agent__memory": memory, **changes}


BAD = [
    ({"agent__memory": {"name": "Replay"}}, "agent.memory.name: Replay doesn't fit: PPO learns on-policy"),
    ({"agent__algorithm": DQN_SPEC}, "agent.memory.name: OnPolicyBatchReplay doesn't fit: DQN learns off-policy"),
    (off_policy({"name": "OnPolicyReplay"}, SAC_SPEC), "agent.memory.name: OnPolicyReplay doesn't fit: SAC learns"),
    (off_policy({"name": "Replay"}, SAC_SPEC, env__name="test/Pick-v0"), "agent.algorithm.name: SAC can't act in MultiDiscrete"),
    (off_policy({"name": "Replay"}, env__name="test/Pick-v0"), "agent.algorithm.name: DQN values each of a Discrete"),
    (off_policy({"name": "Replay"}, env=PENDULUM), "agent.algorithm.name: DQN values each of a Discrete"),
    (off_policy({"name": "Replay"}, {"name": "TD3"}), "agent.algorithm.name: TD3 can't act in Discrete(2)"),
    (off_policy({"name": "Replay"}, SAC_SPEC, env=PENDULUM), "agent.net.head_hid_layers: Q(s, a) needs a hidden layer"),
    *[
        (off_policy({"name": name}, agent__net=GRU), f"agent.memory.name: {name} doesn't fit: the core GRU needs a memory that "
         "keeps the carry it acted with: use SequenceReplay") for name in ("Replay", "CER", "PrioritizedReplay")
    ],
    (off_policy({"name": "Replay", "batch_size": 101}), "agent.algorithm.training_start_step: 100 frames of warm-up hold no batch of 101"),
    (off_policy({"name": "Replay", "batch_size": 64, "max_size": 63}), "agent.memory.batch_size: 64 is more than max_size 63"),
    (off_policy({"name": "CER", "newest": 5, "batch_size": 4}), "agent.memory.newest: 5 rows don't fit in a batch of 4"),
    (off_policy({"name": "SequenceReplay", "sequence_length": 5, "burn_in": 5}), "agent.memory: sequence_length 5 must be more than burn_in 5"),
    (off_policy({"name": "SequenceReplay", "sequence_length": 10, "alpha": 0.9}), "agent.memory.alpha: goes unused: windows are drawn uniformly. Set prioritized"),
    (off_policy({"name": "SequenceReplay", "sequence_length": 30}), "agent.algorithm.training_start_step: 100 frames of warm-up"),
    (off_policy({"name": "SequenceReplay", "max_size": 60}), "agent.memory.max_size: 60 rows are 15 steps of 4 worlds"),
    (off_policy({"name": "PrioritizedReplay", "epsilon": 0}), "agent.memory.epsilon: 0 isn't above 1e-30"),
    (off_policy({"name": "PrioritizedReplay", "alpha": 1.1}), "agent.memory.alpha: 1.1 is above 1"),
    (off_policy({"name": "PrioritizedReplay", "alpha": -0.1}), "agent.memory.alpha: -0.1 is below 0"),
    (off_policy({"name": "SequenceReplay", "epsilon": 0.0}), "agent.memory.epsilon: 0.0 isn't above 1e-30"),
    (off_policy({"name": "Replay"}, {**DQN_SPEC, "training_start_step": 2000}), "agent.algorithm.training_start_step: the first update would come at frame 2,001, the run ends at 2,000"),
    (off_policy({"name": "Replay"}, {**DQN_SPEC, "training_frequency": 1901}), "agent.algorithm.training_frequency: the first update would come at frame 2,001"),
    (off_policy({"name": "Replay"}, {"name": "SAC", "training_start_step": 2000}), "agent.algorithm.training_start_step: the first update would come"),
    (off_policy({"name": "Replay"}, {**DQN_SPEC, "polyak_coef": 0.01}), "agent.algorithm: polyak_coef goes with update_type polyak"),
    (off_policy({"name": "Replay"}, {**SAC_SPEC, "temperature": 0.1, "target_entropy": 0.1}), "agent.algorithm: give temperature or target_entropy"),
    (off_policy({"name": "Replay"}, {**SAC_SPEC, "target_entropy": 0.7}), "agent.algorithm.target_entropy: 0.7 is out of reach: less than 0.693"),
    (off_policy({"name": "Replay"}, {**SAC_SPEC, "target_entropy": 0.7}, env=PENDULUM, agent__net__head_hid_layers=[8]), "agent.algorithm.target_entropy: 0.7 is out of reach"),
    (off_policy({"name": "Replay"}, SAC_SPEC, agent__net__log_std_init=-1.0), "agent.net.log_std_init: goes unused: SAC"),
    ({"agent__algorithm": {"name": "PPO", "entropy_by_surprise": True}}, "agent.algorithm.entropy_by_surprise: true weighs the entropy bonus"),
    ({"agent__algorithm": {"name": "REINFORCE"}, "agent__memory": {"name": "OnPolicyReplay"}, "agent__net": APART}, "agent.net.use_same_optim: REINFORCE has no critic"),
    (off_policy({"name": "Replay"}, agent__net=APART), "agent.net.use_same_optim: DQN has no actor"),
    ({"agent__algorithm": {"name": "SARSA"}, "agent__net": APART}, "agent.net.use_same_optim: SARSA has no actor"),
    (off_policy({"name": "Replay"}, {**DQN_SPEC, "explore_var_spec": {"name": "no_decay", "start_val": 1.5}}), "agent.algorithm.explore_var_spec: an epsilon"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_what_can_not_work_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        resolve(raw_spec(**changes))
    assert len(error.value.problems) == 1
    assert str(error.value.problems[0]).startswith(message)
    assert "\n" not in str(error.value.problems[0])


FOLLOWS = [
    ({"name": "DQN"}, 100, None),
    ({"name": "DQN", "training_frequency": 200}, 100, None),  # each batch, as nothing changes between
    ({"name": "DQN", "update_type": "polyak"}, None, 0.005),
    ({"name": "DQN", "update_type": "polyak", "training_frequency": 8, "training_iter": 2}, None, 0.005),
    ({"name": "SAC", "training_frequency": 4}, None, 0.005),
    ({"name": "SAC", "update_type": "replace"}, 100, None),
    ({"name": "SAC", "update_frequency": 7, "polyak_coef": 0.1}, 7, 0.1),
]


@pytest.mark.parametrize(("keys", "every", "share"), FOLLOWS)
def test_how_the_target_follows_is_written_out(keys: dict[str, Any], every: int | None, share: float | None) -> None:
    spec = resolve(raw_spec(**off_policy({"name": "Replay"}, keys)))
    algorithm = spec.agent.algorithm
    assert (algorithm.update_frequency, algorithm.polyak_coef) == (every, share)
    assert resolve(spec.dump(), spec.name) == spec


def test_runs_that_learn_once_are_long_enough() -> None:
    for keys in ({"training_start_step": 1999}, {"training_start_step": 100, "training_frequency": 1900}):
        resolve(raw_spec(**off_policy({"name": "Replay"}, {"name": "DQN", **keys})))


def test_recurrent_cores_go_with_memories_that_keep_carries() -> None:
    for changes in ({}, off_policy({"name": "SequenceReplay"})):
        assert resolve(raw_spec(**changes, agent__net=GRU)).agent.net.core["name"] == "GRU"


@pytest.mark.parametrize("storage", ["ram", "memmap"])
def test_what_has_no_room_is_refused(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In numbers, with what would fit; 100000 rows of CartPole are 2.4 MB."""
    spec = raw_spec(**off_policy({"name": "Replay", "storage": storage}))
    ram, disk = psutil.virtual_memory(), shutil.disk_usage(".")
    free = 3_000_000
    monkeypatch.setattr(psutil, "virtual_memory", lambda: ram._replace(available=free if storage == "ram" else 0))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=free if storage == "memmap" else 0))
    resolve(spec)
    free = 2_000_000
    with pytest.raises(SpecError) as error:
        resolve(spec)
    assert [problem.path for problem in error.value.problems] == ["agent.memory.max_size"]
    message = error.value.problems[0].message
    assert message.startswith("100,000 rows need")
    assert "Use at most 75,000" in message
    assert ("or storage: memmap" in message) == (storage == "ram")
    spec["agent"]["memory"]["max_size"] = 75_000
    resolve(spec)
