"""From a spec to an agent: the one place where parts meet."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slm_lab.agent.agent import Agent
from slm_lab.agent.auxiliary.base import Auxiliary, AuxiliaryContext
from slm_lab.agent.memory.base import Memory, MemoryContext
from slm_lab.agent.multi import MultiAgent
from slm_lab.agent.net.base import NetSpec
from slm_lab.agent.net.encode import ObsSpace, is_image
from slm_lab.agent.net.net import Head, Net, Part
from slm_lab.agent.net.optim import Optim
from slm_lab.env.base import World
from slm_lab.lib.errors import LabError
from slm_lab.lib.rng import Rng, world_seed
from slm_lab.spec.parts import ALGORITHM, AUXILIARY, CORE, MEMORY, NET

logger = logging.getLogger("slm_lab")

LARGE = 1_000_000  # parameters from which a GPU pays for its latency
LEARNERS = 5  # a stream of seeds


def build_agents(
    agent_spec: Any, world: World, seed: int, max_frame: int = 1, folder: Path | None = None
) -> Agent | MultiAgent:
    """What lives in `world`: one agent for all its columns, or where the spec says so one for each of its agents."""
    if agent_spec.learners == "shared":
        return build_agent(agent_spec, world, seed, max_frame, folder)
    count = len(world.agents)
    own = dataclasses.replace(world, num_envs=world.num_envs // count, agents=())
    share = -(-max_frame // count)
    built = (build_agent(agent_spec, own, seed, share, folder, learner) for learner in range(count))
    return MultiAgent(dict(zip(world.agents, built, strict=True)))


def build_agent(
    agent_spec: Any, world: World, seed: int, max_frame: int = 1, folder: Path | None = None, learner: int = 0
) -> Agent:
    """The agent of a validated spec (`LabSpec.agent`) for its worlds; equal seeds give equal agents.

    `max_frame` is how long it will live, for schedules; in `folder` its memory may keep files while it does. Several
    learners have numbers: their weights and exploration differ, while their memories, seeded alike, draw in lockstep
    the same steps of the same worlds: uniform ones do, as long as their agents have played the same steps. Draws by
    priority part, as each learner has priorities of its own.
    """
    learns = agent_spec.algorithm
    algorithm_class = ALGORITHM.load(learns.name)
    gamma = getattr(learns, "gamma", 0.99)
    memory = build_memory(agent_spec, world, seed, max_frame, folder)
    weights = world_seed(seed, LEARNERS, learner) if learner else seed
    torch.manual_seed(weights)  # the only use of torch's global generator: first weights
    net = build_net(
        agent_spec.net,
        world.obs_space,
        algorithm_class.heads(learns, agent_spec.net, world.action_space),
        memory,
        algorithm_class.free(learns),
    )
    beside = AuxiliaryContext(world, agent_spec.net, net.out_sizes, gamma, weights)
    net.auxiliaries.update(_auxiliaries(agent_spec.auxiliary, memory, beside))
    net.to(pick_device(agent_spec.net.device, net, world.obs_space))
    rng = Rng(seed, 0, learner)
    algorithm = algorithm_class(learns, net, Optim(net, agent_spec.net), rng)
    return Agent(algorithm, memory, rng)


def build_memory(agent_spec: Any, world: World, seed: int, max_frame: int = 1, folder: Path | None = None) -> Memory:
    """What an agent of that spec remembers its worlds with."""
    learns = agent_spec.algorithm
    gamma = getattr(learns, "gamma", 0.99)
    context = MemoryContext(world, learns.frequency, learns.start, learns.iterations, gamma, max_frame, seed, folder)
    memory: Memory = MEMORY.load(agent_spec.memory.name)(agent_spec.memory, context)
    return memory


def _auxiliaries(specs: Sequence[Any], memory: Memory, context: AuxiliaryContext) -> dict[str, Auxiliary]:
    """What is learned beside: what the spec asks for, and what the memory brings."""
    asked = {spec.name.replace(".", "/"): AUXILIARY.load(spec.name)(spec, context) for spec in specs}
    own = memory.auxiliary(context)
    return asked if own is None else {**asked, "memory": own}


def build_net(
    spec: NetSpec, obs_space: ObsSpace, heads: dict[str, Head], memory: Memory | None = None,
    free: dict[str, nn.Parameter] | None = None,
) -> Net:  # fmt: skip
    """Encoder, core and heads as the spec says: one part for all heads when shared, else one for each they name."""
    names = ["shared"] if spec.shared else list(dict.fromkeys(head.part for head in heads.values()))
    return Net({name: _part(spec, obs_space, memory) for name in names}, heads, free)


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
