"""From a spec to an agent: the one place where parts meet."""

from __future__ import annotations

import logging
from typing import Any

import torch
from gymnasium import spaces

from slm_lab.agent.agent import Agent
from slm_lab.agent.memory.base import Memory
from slm_lab.agent.net.base import NetSpec
from slm_lab.agent.net.encode import ObsSpace, is_image
from slm_lab.agent.net.net import Head, Net, Part
from slm_lab.agent.net.optim import Optim
from slm_lab.lib.errors import LabError
from slm_lab.lib.rng import Rng
from slm_lab.spec.parts import ALGORITHM, CORE, MEMORY, NET

logger = logging.getLogger("slm_lab")

LARGE = 1_000_000  # parameters from which a GPU pays for its latency


def build_agent(agent_spec: Any, obs_space: ObsSpace, action_space: spaces.Space, num_envs: int, seed: int) -> Agent:
    """The agent of a validated spec (`LabSpec.agent`), for `num_envs` worlds; equal seeds give equal agents."""
    algorithm_class = ALGORITHM.load(agent_spec.algorithm.name)
    memory = MEMORY.load(agent_spec.memory.name)(agent_spec.memory, num_envs, agent_spec.algorithm.frequency)
    torch.manual_seed(seed)  # the only use of torch's global generator: first weights
    net = build_net(
        agent_spec.net, obs_space, algorithm_class.heads(agent_spec.algorithm, agent_spec.net, action_space), memory
    )
    net.to(pick_device(agent_spec.net.device, net, obs_space))
    rng = Rng(seed, 0)
    algorithm = algorithm_class(agent_spec.algorithm, net, Optim(net, agent_spec.net), rng)
    return Agent(algorithm, memory, rng)


def build_net(spec: NetSpec, obs_space: ObsSpace, heads: dict[str, Head], memory: Memory | None = None) -> Net:
    """Encoder, core and heads as the spec says: one part for all heads when shared, else one for each they name."""
    names = ["shared"] if spec.shared else list(dict.fromkeys(head.part for head in heads.values()))
    return Net({name: _part(spec, obs_space, memory) for name in names}, heads)


def _part(spec: NetSpec, obs_space: ObsSpace, memory: Memory | None) -> Part:
    encoder = NET.load(spec.name)(spec, obs_space)  # type: ignore[attr-defined]
    core = memory.core(encoder.out_size) if memory else None
    if core is not None and spec.core["name"] != "none":
        raise LabError(f"agent.net.core: {spec.core['name']} would go unused: the memory brings its own. Use 'none'.")
    if core is None:
        core_class = CORE.load(spec.core["name"])
        core = core_class(core_class.Spec(**spec.core), encoder.out_size)
    return Part(encoder, core)


def pick_device(wanted: str, net: Net, obs_space: ObsSpace) -> torch.device:
    """`auto` takes a GPU only where it pays: nets of images or a million parameters. Raises `LabError` without one."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise LabError("agent.net.device: 'cuda' was asked for, but torch sees no GPU here. Use 'auto' or 'cpu'.")
    if wanted != "auto":
        return torch.device(wanted)
    count = sum(parameter.numel() for parameter in net.parameters())
    large = count >= LARGE or any(is_image(space) for space in obs_space.values())
    device = torch.device("cuda" if large and torch.cuda.is_available() else "cpu")
    logger.info("device auto: %s (%s parameters)", device, f"{count:,}")
    return device
