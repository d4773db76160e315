"""A trained agent outside the lab acts as it does inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from rich.console import Console
from small_specs import raw_spec

from slm_lab.agent.build import build_agent
from slm_lab.env.vec import make_env
from slm_lab.experiment import control
from slm_lab.experiment.enjoy import best, step_into
from slm_lab.experiment.run_dir import RunDir
from slm_lab.lib.errors import LabError
from slm_lab.lib.tree import tree_leaves
from slm_lab.policy import Policy, load_policy
from slm_lab.spec.validate import resolve

WRAPPED = {"frame_stack": 2, "prev_action": True, "prev_reward": True, "normalize_obs": True}
GRU = {"name": "MLP", "hid_layers": [8], "core": {"name": "GRU", "hidden_size": 8}}
WORLDS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"name": "CartPole-v1", **WRAPPED},
    "Pendulum-v1": {"name": "Pendulum-v1", **WRAPPED},  # actions in other units
    "slm_lab/MemoryTask-v0": {"name": "MemoryTask", "delay": 4},
}


def trained(tmp_path: Path, env: dict[str, Any], **changes: Any) -> RunDir:
    env = {**env, "num_envs": 2, "max_frame": 600}
    spec = resolve(raw_spec(env=env, meta__log_frequency=100, **changes), "small")
    return control.train(spec, tmp_path, Console(quiet=True))


def played_inside(run: RunDir, steps: int, seed: int) -> list[np.ndarray]:
    """What the agent does in the lab's own worlds."""
    spec = run.stored_spec()
    env = make_env(spec.env, num_envs=1)
    agent = build_agent(spec.agent, env.world, seed=0)
    step_into(agent, env, best(run, range(spec.meta.max_session))[1], run)
    step, carry, actions = env.reset(seed), agent.initial(1), []
    for _ in range(steps):
        act = agent.act(step, carry, explore=False)
        actions.append(act.action.numpy())
        step, carry = env.step(actions[-1]), act.carry
    assert env.units is not None
    return [env.units.to_world(action)[0] for action in actions]


@pytest.mark.parametrize("name", WORLDS)
def test_a_policy_does_outside_what_it_does_inside(tmp_path: Path, name: str) -> None:
    run = trained(tmp_path, WORLDS[name], agent__net=GRU)
    inside = played_inside(run, 12, seed=3)
    policy = load_policy(run.path)
    env = gymnasium.make(name, **({"delay": 4} if "MemoryTask" in name else {}))
    obs, _ = env.reset(seed=3)
    actions, over = [policy.reset(obs)], False
    while not over and len(actions) < len(inside):
        obs, reward, terminated, truncated, _ = env.step(actions[-1])
        actions.append(policy.step(obs, float(reward)))
        over = terminated or truncated
    assert env.action_space.contains(actions[0])
    np.testing.assert_allclose(actions, inside[: len(actions)], rtol=1e-5)


def test_an_episode_begins_without_what_was_before(tmp_path: Path) -> None:
    policy = load_policy(trained(tmp_path, WORLDS["CartPole-v1"], agent__net=GRU).path)
    obs = np.zeros(4, np.float32)
    policy.reset(obs)
    first = [leaf.clone() for _, leaf in tree_leaves(policy.carry)]
    policy.step(obs + 1)
    policy.reset(obs)
    assert first and all(map(torch.equal, (leaf for _, leaf in tree_leaves(policy.carry)), first))


def test_another_worlds_observation_is_told(tmp_path: Path) -> None:
    policy: Policy = load_policy(trained(tmp_path, WORLDS["CartPole-v1"]).path)
    with pytest.raises(LabError, match="an episode begins with reset"):
        policy.step(np.zeros(4))
    with pytest.raises(LabError, match=r"observation 'obs' has shape \(3,\); \(4,\) was expected"):
        policy.reset(np.zeros(3))
    with pytest.raises(LabError, match="holds left, right; obs was expected"):
        policy.reset({"left": 0, "right": 1})
