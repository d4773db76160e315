"""What the contract suite asks of every algorithm, memory and core, on a GPU; skipped where torch sees none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_agent import COMBINATIONS, E, check_learning, live, parts, world_for
from worlds import ACTION_SPACES, IMAGE_SPACES, Worlds, world

from slm_lab.agent import checkpoint
from slm_lab.agent.build import build_agent
from slm_lab.env.base import World
from slm_lab.lib.tree import tree_leaves
from slm_lab.spec.lab_spec import AgentSpec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

CONV = {"name": "Conv", "conv_hid_layers": [[4, 3, 2], [4, 3, 1, 1]], "fc_hid_layers": [8], "shared": True}
CONV |= {"init_fn": None, "hid_layers_activation": "elu"}


def on(device: str, spec: AgentSpec) -> AgentSpec:
    return replace(spec, net=spec.net.model_copy(update={"device": device}))


@pytest.mark.parametrize(("algorithm", "memory", "core"), COMBINATIONS)
def test_learns_on_a_gpu(algorithm: str, memory: str, core: str) -> None:
    check_learning(on("cuda", parts(algorithm, memory, core)), world_for(algorithm, memory))


@pytest.mark.parametrize("space", ACTION_SPACES)
def test_strategic_memory_acts_in_every_space_on_a_gpu(space: str) -> None:
    check_learning(on("cuda", parts("PPO", "StrategicMemory")), world("vector", space, E))


@pytest.mark.parametrize(("algorithm", "memory"), [("PPO", None), ("DQN", None), ("PPO", "StrategicMemory")])
@pytest.mark.parametrize("space", IMAGE_SPACES)
def test_learns_from_images_on_a_gpu(algorithm: str, memory: str | None, space: str) -> None:
    spec = on("cuda", parts(algorithm, memory, net=CONV))
    check_learning(spec, World(E, IMAGE_SPACES[space], ACTION_SPACES["discrete"]))


@pytest.mark.parametrize(("algorithm", "memory", "core"), COMBINATIONS)
@pytest.mark.parametrize(("there", "here"), [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_what_is_saved_on_one_device_goes_on_on_the_other(
    algorithm: str, memory: str, core: str, there: str, here: str, tmp_path: Path
) -> None:
    where = world_for(algorithm, memory)
    agent = build_agent(on(there, parts(algorithm, memory, core)), where, seed=0)
    live(agent, Worlds(where.obs_space, E), 13)
    checkpoint.save(tmp_path, "agent", agent.state_dict(), agent.frame)
    other = build_agent(on(here, parts(algorithm, memory, core)), where, seed=0)
    other.load_state_dict(checkpoint.load(tmp_path, "agent"))
    for (name, a), (_, b) in zip(tree_leaves(agent.learned()), tree_leaves(other.learned()), strict=True):
        assert not torch.is_tensor(a) or torch.equal(a.cpu(), b.cpu()), name
    live(other, Worlds(where.obs_space, E, seed=5), 20)
