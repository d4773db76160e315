"""Every algorithm with every memory, core and space it may meet: it acts, learns, saves, and repeats itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_specs import ALGORITHMS, MEMORIES, NETS, make_spec
from worlds import ACTION_SPACES, IMAGE_SPACES, OBS_SPACES, Worlds, world

from slm_lab.agent import checkpoint
from slm_lab.agent.agent import Agent
from slm_lab.agent.algorithm.base import Learned
from slm_lab.agent.build import build_agent
from slm_lab.env.base import World
from slm_lab.lib.tree import tree_leaves, tree_map
from slm_lab.spec.lab_spec import AgentSpec
from slm_lab.spec.parts import ALGORITHM, CORE, MEMORY, NET

E = 3
LAB = make_spec(env__num_envs=E)


def parts(
    algorithm: str, memory: str | None = None, core: str = "none", net: dict[str, Any] | None = None
) -> AgentSpec:
    memory = memory or ("OnPolicyBatchReplay" if ALGORITHM.load(algorithm).on_policy else "Replay")
    keys = net or {"name": "MLP", "hid_layers": [8], "head_hid_layers": [8]}
    core_spec = CORE.load(core).Spec().model_dump()
    if "hidden_size" in core_spec:
        core_spec["hidden_size"] = 6
    return AgentSpec(
        "test",
        ALGORITHM.load(algorithm).Spec(**ALGORITHMS[algorithm]),
        MEMORY.load(memory).Spec(**MEMORIES[memory]),
        NET.load(keys["name"]).Spec(core=core_spec, **{**keys, **NETS.get(memory, {})}),
    )


def live(agent: Agent, worlds: Worlds, steps: int) -> list[dict[str, float]]:
    """Act and learn; the metrics of every update."""
    step, carry = worlds.reset(), agent.initial(worlds.E)
    metrics = []
    for _ in range(steps):
        act = agent.act(step, carry)
        assert act.action.shape == (worlds.E, *agent.action_space.shape)  # type: ignore[misc]
        next_step = worlds.step(act.action)
        metrics += agent.update(step, carry, act, next_step)
        step, carry = next_step, act.carry
    return metrics


def fits(spec: AgentSpec, obs: str, action: str) -> bool:
    """Whether algorithm and memory have nothing to object to, as when a spec is resolved."""
    lab, classes = (
        dataclasses.replace(LAB, agent=spec),
        (ALGORITHM.load(spec.algorithm.name), MEMORY.load(spec.memory.name)),
    )
    return not any(cls.problems(lab, world(obs, action, 1)) for cls in classes if hasattr(cls, "problems"))


def worlds_for(algorithm: str, memory: str | None = None, core: str = "none") -> list[tuple[str, str]]:
    """Names of the observation and action spaces that an algorithm (with a memory and a core) can be used in."""
    spec = parts(algorithm, memory, core)
    return [(obs, action) for obs in ("vector", "goals") for action in ACTION_SPACES if fits(spec, obs, action)]


def memories_for(algorithm: str, core: str = "none") -> list[str]:
    """Memories that forget, or don't, as the algorithm needs, and have room for a core and for the carry it needs."""
    fitting = [name for name in MEMORIES if MEMORY.load(name).on_policy == ALGORITHM.load(algorithm).on_policy]
    keeping = [name for name in fitting if core == "none" or MEMORY.load(name).keeps_carry]
    return [name for name in keeping if worlds_for(algorithm, name, core)]


def world_for(algorithm: str, memory: str | None = None) -> World:
    return world(*worlds_for(algorithm, memory)[0], E)


def actions_for(algorithm: str, memory: str | None = None) -> list[str]:
    return [action for obs, action in worlds_for(algorithm, memory) if obs == "vector"]


def check_learning(spec: AgentSpec, where: World) -> None:
    agent = build_agent(spec, where, seed=0)
    before = {name: p.detach().clone() for name, p in agent.named_parameters()}
    metrics = live(agent, Worlds(where.obs_space, E), 70 if spec.memory.name in NETS else 24)  # layers that begin at 0
    assert metrics or spec.algorithm.name == "Random"
    assert all(np.isfinite(v) for row in metrics for k, v in row.items() if "explained" not in k)
    if spec.algorithm.name != "Random":
        still = [name for name, p in agent.named_parameters() if torch.equal(before[name], p)]
        assert not still, f"weights that did not move: {still}"


COMBINATIONS = [(a, m, c) for a in ALGORITHMS for c in CORE for m in memories_for(a, c)]


def test_every_part_is_under_test_here() -> None:
    assert all(ALGORITHMS[name] for name in ALGORITHM)
    assert all(MEMORIES[name] for name in MEMORY)
    assert {a for a, _, _ in COMBINATIONS} == set(ALGORITHM)
    assert {m for _, m, _ in COMBINATIONS} == set(MEMORY)
    for algorithm in ALGORITHM:
        assert {c for a, _, c in COMBINATIONS if a == algorithm} == set(CORE), f"{algorithm} goes with every core"


@pytest.mark.parametrize(("algorithm", "memory", "core"), COMBINATIONS)
def test_learns_with_every_memory_and_core(algorithm: str, memory: str, core: str) -> None:
    check_learning(parts(algorithm, memory, core), world_for(algorithm, memory))


STRATEGIC = [(algorithm, "StrategicMemory") for algorithm in ("REINFORCE", "A2C", "PPO")]
ACTING = [(a, m, space) for a, m in [*((a, None) for a in ALGORITHMS), *STRATEGIC] for space in actions_for(a, m)]


@pytest.mark.parametrize(("algorithm", "memory", "space"), ACTING)
def test_learns_in_every_action_space(algorithm: str, memory: str | None, space: str) -> None:
    check_learning(parts(algorithm, memory), world("vector", space, E))


@pytest.mark.parametrize(("algorithm", "memory"), [("PPO", None), ("DQN", None), ("TD3", None), STRATEGIC[2]])
@pytest.mark.parametrize("space", OBS_SPACES)
def test_learns_from_every_observation_space(algorithm: str, memory: str | None, space: str) -> None:
    check_learning(parts(algorithm, memory), world(space, actions_for(algorithm)[0], E))


@pytest.mark.parametrize(("algorithm", "memory"), [("PPO", None), ("DQN", None), STRATEGIC[2]])
@pytest.mark.parametrize("space", IMAGE_SPACES)
@pytest.mark.parametrize("shared", [True, False])
def test_learns_from_images(algorithm: str, memory: str | None, space: str, shared: bool) -> None:
    if memory in NETS and not shared:
        pytest.skip("needs a shared net")
    net = {
        "name": "Conv",
        "conv_hid_layers": [[4, 3, 2], [4, 3, 1, 1]],
        "fc_hid_layers": [8],
        "shared": shared,
        "init_fn": None,
    }
    net |= {"hid_layers_activation": "elu"}  # some relu units of so small a net are dead from the start
    check_learning(parts(algorithm, memory, net=net), World(E, IMAGE_SPACES[space], ACTION_SPACES["discrete"]))


@pytest.mark.parametrize(("algorithm", "memory", "core"), COMBINATIONS)
def test_saved_and_loaded_it_goes_on_alike(algorithm: str, memory: str, core: str, tmp_path: Path) -> None:
    where = world_for(algorithm, memory)

    def fresh() -> Agent:
        return build_agent(parts(algorithm, memory, core), where, seed=0)

    agent, worlds = fresh(), Worlds(where.obs_space, E)
    live(agent, worlds, 13)
    other = fresh()
    checkpoint.save(tmp_path, "agent", agent.state_dict(), agent.frame)
    other.load_state_dict(checkpoint.load(tmp_path, "agent"))
    assert other.frame == agent.frame
    for one in (agent, other):
        live(one, Worlds(where.obs_space, E, seed=5), 20)
    for (name, a), (_, b) in zip(tree_leaves(agent.state_dict()), tree_leaves(other.state_dict()), strict=True):
        same = (
            np.array_equal(a, b) if isinstance(a, np.ndarray) else torch.equal(a, b) if torch.is_tensor(a) else a == b
        )
        assert same, name


@pytest.mark.parametrize(("algorithm", "memory"), [*((a, None) for a in ALGORITHM if a != "Random"), STRATEGIC[2]])
def test_greedy_acting_uses_no_chance(algorithm: str, memory: str | None) -> None:
    agent = build_agent(parts(algorithm, memory), world("vector", actions_for(algorithm)[-1], E), seed=0)
    step, before = Worlds(OBS_SPACES["vector"], E).reset(), agent.rng.torch.get_state()
    a, b = (agent.act(step, agent.initial(E), explore=False).action for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(agent.rng.torch.get_state(), before)


@pytest.mark.parametrize(("core", "memory"), [(core, memory) for core in CORE for memory in memories_for("PPO", core)])
def test_learning_repeats_the_acting_log_prob(core: str, memory: str) -> None:
    """With unchanged weights the log-probability computed when learning is the one recorded when acting, to 1e-6."""
    agent = build_agent(parts("PPO", memory, core), world("vector", "discrete", E), seed=0)
    batches = []
    agent.algorithm.update = lambda batch, frame: batches.append(batch) or Learned({})  # type: ignore[method-assign,func-returns-value]
    live(agent, Worlds(OBS_SPACES["vector"], E), 100)
    assert len(batches) >= 3
    for batch in batches:
        T = batch.mask.shape[1]
        obs = tree_map(lambda x, T=T: x[:, :T], batch.obs)
        out = agent.algorithm.net(obs, batch.carry, batch.is_first[:, :T])
        log_prob = out.heads["policy"].log_prob(batch.action)
        torch.testing.assert_close(log_prob[batch.mask], batch.extras["log_prob"][batch.mask], atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_envs", [1, 2, 8])
def test_frames_are_those_really_played(num_envs: int) -> None:
    """Rows whose action the world ignored are no frames and no experience."""
    agent = build_agent(parts("Random"), world("vector", "discrete", num_envs), seed=0)
    worlds = Worlds(OBS_SPACES["vector"], num_envs, end=0.5)
    step, carry, played = worlds.reset(), agent.initial(num_envs), 0
    for _ in range(50):
        act = agent.act(step, carry)
        next_step = worlds.step(act.action)
        agent.update(step, carry, act, next_step)
        played += int((~next_step.is_first).sum())
        step = next_step
    assert agent.frame == played < 50 * num_envs


@pytest.mark.parametrize("memory", memories_for("PPO", "GRU"))
def test_what_a_core_shows_reaches_the_batch(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from slm_lab.agent.net.core.rnn import GRU

    forward = GRU.forward

    def showing(self: GRU, x: torch.Tensor, *rest: Any) -> Any:
        return forward(self, x, *rest)._replace(extras={"slots": torch.ones(*x.shape[:2], 7)})

    monkeypatch.setattr(GRU, "forward", showing)
    agent = build_agent(parts("PPO", memory, "GRU"), world("vector", "discrete", E), seed=0)
    batches = []
    agent.algorithm.update = lambda batch, frame: batches.append(batch) or Learned({})  # type: ignore[method-assign,func-returns-value]
    live(agent, Worlds(OBS_SPACES["vector"], E), 60)
    assert batches[0].extras["actor"]["slots"].shape == (*batches[0].mask.shape, 7)
