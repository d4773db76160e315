"""StrategicMemory in an agent: what it learns from, resuming, what it refuses."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_specs import MEMORIES, ROOT, make_spec
from test_agent import live, parts
from worlds import OBS_SPACES, Worlds, world

from slm_lab.agent.agent import Agent
from slm_lab.agent.algorithm.base import Learned
from slm_lab.agent.algorithm.policy_gradient import drawn_steps
from slm_lab.agent.build import build_agent
from slm_lab.agent.memory.strategic import memory
from slm_lab.agent.memory.strategic.core import StrategicCore
from slm_lab.agent.memory.strategic.hindsight import Hindsight
from slm_lab.agent.memory.strategic.memory import StrategicMemory
from slm_lab.agent.net.distribution import Categorical
from slm_lab.experiment.run_dir import RunDir
from slm_lab.experiment.session import Session
from slm_lab.lib.errors import SpecError
from slm_lab.lib.reduce import Losses, reduce_losses
from slm_lab.lib.tree import map_batch, tree_leaves, tree_map
from slm_lab.lib.types import Batch
from slm_lab.spec.load import load_file

E = 3
TRANSFORMER = {"name": "Transformer", "window": 3, "size": 8, "heads": 2}


def build(algorithm: str = "PPO", actions: str = "discrete", awake: bool = True, **keys: Any) -> Agent:
    """A small agent; `awake`: the weights of its memory are by chance, those that begin at zero too."""
    memory = StrategicMemory.Spec(**{**MEMORIES["StrategicMemory"], **keys})
    spec = dataclasses.replace(parts(algorithm, "StrategicMemory"), memory=memory)
    agent = build_agent(spec, world("vector", actions, E), seed=0)
    if awake:
        torch.manual_seed(0)
        for parameter in core_of(agent).parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return agent


def core_of(agent: Agent) -> StrategicCore:
    core: StrategicCore = agent.algorithm.net.parts["shared"].core  # type: ignore[assignment]
    return core


def hindsight_of(agent: Agent) -> Hindsight:
    (auxiliary,) = agent.algorithm.auxiliaries
    assert isinstance(auxiliary, Hindsight)
    return auxiliary


def batches(agent: Agent, steps: int = 100, end: float = 0.12) -> list[Batch]:
    """What it would have learned from."""
    found: list[Batch] = []
    update, agent.algorithm.update = agent.algorithm.update, lambda batch, frame: found.append(batch) or Learned({})  # type: ignore[method-assign,func-returns-value]
    live(agent, Worlds(OBS_SPACES["vector"], E, end=end), steps)
    agent.algorithm.update = update  # type: ignore[method-assign]
    return found


# --- what it learns from ---

VARIANTS: dict[str, dict[str, Any]] = {
    "whole episodes": {"horizon": 1000},
    "cut": {"horizon": 4},
    "cut, transformer": {"horizon": 4, "entry": TRANSFORMER},
    "cut, fifo": {"horizon": 4, "retention": "fifo"},
    "cut, reservoir": {"horizon": 4, "retention": "reservoir"},
    "persist": {"horizon": 1000, "persist": True},
    "persist, cut": {"horizon": 4, "persist": True, "entry": TRANSFORMER, "heads": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_learning_repeats_what_was_acted(variant: str) -> None:
    """Log-probabilities and slots, to 1e-5, in episodes of different lengths, cut amid an episode too."""
    agent = build(**VARIANTS[variant])
    found = batches(agent)
    assert len(found) >= 2
    for batch in found:
        net, T = agent.algorithm.net, batch.mask.shape[1]
        out = net(tree_map(lambda x, T=T: x[:, :T], batch.obs), batch.carry, batch.is_first[:, :T])
        log_prob = out.heads["policy"].log_prob(batch.action)
        torch.testing.assert_close(log_prob[batch.mask], batch.extras["log_prob"][batch.mask], atol=1e-5, rtol=0)
        assert torch.equal(out.extras["shared"]["recall_step"][batch.mask], batch.carry["shared"]["trace"][batch.mask])
    lengths = torch.cat([batch.mask.sum(dim=1) for batch in found])
    held = torch.cat([(batch.carry["shared"]["held"]["count"] >= 0).any(dim=1) for batch in found])
    begins = torch.cat([batch.is_first[:, 0] for batch in found])
    assert len(lengths.unique()) > 2 and any(batch.truncated.any() for batch in found)
    assert bool((~begins).any()) == ("cut" in variant), "windows that begin amid an episode"
    assert bool((held & (begins if "persist" in variant else ~begins)).any()) == (variant != "whole episodes")


@pytest.mark.parametrize("horizon", [4, 1000])
def test_the_value_that_follows_a_window_does_not_depend_on_its_neighbours(horizon: int) -> None:
    """The last observation of a short episode, truncated or cut, is judged with its slots, as that of the longest is."""
    agent = build(horizon=horizon)
    net, checked = agent.algorithm.net, 0
    for batch in batches(agent):
        value = net(batch.obs, batch.carry, batch.is_first, heads=("value",)).heads["value"][..., 0]  # [B, T+1]
        for b, end in enumerate(batch.mask.sum(dim=1).tolist()):
            alone = map_batch(lambda x, b=b: x[b : b + 1], batch)
            carry = {**alone.carry["shared"], "trace": alone.carry["shared"]["trace"][:, :end]}
            obs = {"obs": alone.obs["obs"][:, : end + 1]}
            expected = net(obs, {"shared": carry}, alone.is_first[:, : end + 1], heads=("value",)).heads["value"][
                ..., 0
            ]
            torch.testing.assert_close(value[b, : end + 1], expected[0], atol=1e-5, rtol=0)
            checked += end < batch.mask.shape[1]
    assert checked > 3


def test_a_cut_leaves_no_seam_in_the_values() -> None:
    """What follows a window that was cut is judged as the first step of the next one: the same slots, the same clock."""
    agent, seams = build(horizon=4, retention="fifo", entry=TRANSFORMER), 0
    for batch in batches(agent):
        value = agent.algorithm.net(batch.obs, batch.carry, batch.is_first, heads=("value",)).heads["value"][..., 0]
        end = batch.mask.sum(dim=1)
        last = batch.obs["obs"][torch.arange(len(end)), end]
        for b in (~batch.is_first[:, 0]).nonzero().flatten().tolist():
            before = (last == batch.obs["obs"][b, 0]).all(dim=1).nonzero().flatten()
            torch.testing.assert_close(value[before, end[before]], value[b, :1].expand(len(before)), atol=1e-5, rtol=0)
            seams += len(before)
    assert seams > 3


def test_more_slots_than_any_episode_has_steps() -> None:
    agent = build(slots=50)
    assert any("hindsight_loss" in row for row in live(agent, Worlds(OBS_SPACES["vector"], E), 30))


@pytest.mark.parametrize(
    ("switched", "gone"),
    [
        ({"hindsight_coef": 0.0}, {"hindsight_loss", "usefulness_loss", "decay_loss", "prior_loss", "hindsight_replay_loss", "hindsight_gate"}),
        ({"usefulness_coef": 0.0}, {"usefulness_loss", "decay_loss"}),
        ({"decay_init": 0.0}, {"decay_loss"}),
        ({"prior_coef": 0.0}, {"prior_loss"}),
        ({"replay": 0}, {"hindsight_replay_loss"}),
    ],
    ids=["hindsight", "usefulness", "decay", "prior", "replay"],
)  # fmt: skip
def test_each_ablation_is_one_key(switched: dict[str, Any], gone: set[str]) -> None:
    whole, less = (
        {key for row in live(build(awake=False, **keys), Worlds(OBS_SPACES["vector"], E), 30) for key in row}
        for keys in ({}, switched)
    )
    assert {key for key in whole - less if key.endswith(("_loss", "_gate"))} - {"actor_loss"} == gone


# --- the policy gradient's part in it ---


def windows(copies: int) -> Batch:
    """Windows of 20, 7 and 3 steps, `copies` of each; the last one's advantages are all 0."""
    mask = torch.arange(20) < torch.tensor([20, 7, 3]).repeat(copies)[:, None]
    rng = torch.Generator().manual_seed(0)
    advantage = torch.randn(3, 20, generator=rng) ** 3 * torch.tensor([1, 1, 0])[:, None]
    error = torch.randn(3, 20, generator=rng) + torch.tensor([2, -1, 5])[:, None]
    extras = {"advantage": advantage.repeat(copies, 1), "error": error.repeat(copies, 1)}
    no = torch.zeros_like(mask)
    return Batch({}, no, torch.zeros(mask.shape), torch.zeros(mask.shape), no, no, mask, {}, extras)


def test_the_mean_of_drawn_steps_is_that_of_all_steps() -> None:
    batch = windows(4000)
    drawn = drawn_steps(batch, 5, torch.Generator().manual_seed(0))
    assert drawn.weight.shape == drawn.mask.shape == drawn.reward.shape == (12_000, 5)
    assert bool(drawn.mask.all()), "padding is never read"
    expected = float((batch.extras["error"] * batch.mask).sum() / batch.mask.sum())
    found = (drawn.extras["error"] * drawn.weight).mean(dim=1).view(4000, 3)  # means of windows
    deviation = float(found.var(dim=0).sum().sqrt()) / 3 / 4000**0.5
    assert abs(float(found.mean()) - expected) < 4.5 * deviation < 0.2


def test_a_window_that_no_one_played_takes_nothing_from_the_mean() -> None:
    """Of several agents in a world one may be out of the game for a whole window."""
    batch = windows(100)
    left_out = batch.mask.clone()
    left_out[::3] = False
    drawn = drawn_steps(batch.replace(mask=left_out), 5, torch.Generator().manual_seed(0))
    one = Losses({"one": torch.ones_like(drawn.weight)})
    assert reduce_losses(one, drawn.mask, drawn.weight)[0].value == pytest.approx(1.0, abs=0.05)


def test_few_steps_are_all_read() -> None:
    batch = windows(1)
    assert drawn_steps(batch, 20, torch.Generator()) is batch


def test_the_one_step_that_matters_is_read_at_any_length() -> None:
    mask, no = torch.ones(50, 2000, dtype=torch.bool), torch.zeros(50, 2000, dtype=torch.bool)
    advantage = torch.where(torch.arange(2000) == 1234, 1.0, 0.0).expand(50, 2000)
    batch = Batch({}, no, advantage, advantage, no, no, mask, {}, {"advantage": advantage})
    drawn = drawn_steps(batch, 16, torch.Generator().manual_seed(0))
    assert bool((drawn.at == 1234).any(dim=1).all())


def test_steps_read_are_those_of_the_whole_window() -> None:
    """A minibatch of drawn steps sees features and slots of the whole episode."""
    agent = build(horizon=1000)
    spec = agent.algorithm.spec.model_copy(update={"steps_per_window": 3, "normalize_advantages": False})
    agent.algorithm.spec = spec
    batch, _ = agent.algorithm._prepared(batches(agent)[0])
    for minibatch in agent.algorithm.minibatches(batch):
        assert minibatch.mask.shape[1] == 3
        out = agent.algorithm.net(minibatch.obs, minibatch.carry, minibatch.is_first, at=minibatch.at)
        log_prob = out.heads["policy"].log_prob(minibatch.action)
        torch.testing.assert_close(log_prob, minibatch.extras["log_prob"], atol=1e-5, rtol=0)


def test_the_log_barrier_holds_where_entropy_no_longer_does() -> None:
    logits = torch.tensor([[20.0, 0.0]], requires_grad=True)
    (barrier,) = torch.autograd.grad(Categorical(logits).barrier().sum(), logits)
    (entropy,) = torch.autograd.grad(Categorical(logits).entropy().sum(), logits)
    assert float(barrier.abs().max()) == pytest.approx(0.5, abs=1e-3)
    assert float(entropy.abs().max()) < 1e-6
    assert float(Categorical(torch.zeros(1, 4)).barrier()) == pytest.approx(float(torch.tensor(4.0).log()))


def test_the_log_barrier_is_a_term_of_its_own() -> None:
    agent = build()
    assert not any("barrier_loss" in row for row in live(agent, Worlds(OBS_SPACES["vector"], E), 20))
    agent.algorithm.spec = agent.algorithm.spec.model_copy(update={"log_barrier_coef": 0.1})
    assert any("barrier_loss" in row for row in live(agent, Worlds(OBS_SPACES["vector"], E), 20))


# --- kill and resume ---

RESUMED: dict[str, Any] = {
    "agent__algorithm": {"name": "PPO", "time_horizon": 8, "minibatch_size": 64, "training_epoch": 2},
    "agent__memory": {**MEMORIES["StrategicMemory"], "horizon": 5},
    "agent__net": {"name": "MLP", "hid_layers": [8], "shared": True},
    "env": {"name": "MemoryTask", "delay": 7, "num_envs": 4, "max_frame": 500, "prev_action": True},
    "meta__rigorous_eval": 0,
}


def final(session: Session) -> dict[str, Any]:
    """All that its future would depend on."""
    return {"agent": session.agent.state_dict(), "carry": session.carry}


@pytest.mark.parametrize("keys", [{}, {"persist": True, "entry": TRANSFORMER}], ids=["", "persist"])
def test_killed_and_resumed_it_goes_on_to_the_bit(tmp_path: Path, keys: dict[str, Any]) -> None:
    """Slots, their noise, the generator and the replay of hindsight included; killed amid an episode and a window."""
    spec = make_spec(**{**RESUMED, "agent__memory": {**RESUMED["agent__memory"], **keys}})

    def start(name: str) -> RunDir:
        return RunDir.create(tmp_path / name, spec.name, {"name": spec.name, **spec.dump()}, "train")

    whole, broken = Session(spec, start("whole"), 0, lambda progress: None), start("broken")
    whole.run()
    for steps in (52, 31):
        session = Session(spec, broken, 0, lambda progress: None)
        session._begin()
        for _ in range(steps):
            session._advance()
        session._save()
        for _ in range(9):  # lived, but lost: the checkpoint is older
            session._advance()
    resumed = Session(spec, broken, 0, lambda progress: None)
    resumed.run()
    assert whole.frame == resumed.frame == 500
    for (path, a), (_, b) in zip(tree_leaves(final(whole)), tree_leaves(final(resumed)), strict=True):
        same = (
            torch.equal(a, b) if torch.is_tensor(a) else np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
        )
        assert same, path


# --- what it refuses ---

BOX = {"name": "Pendulum-v1", "num_envs": 2, "max_frame": 100}
BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"memory__slots": 0}, ["agent.memory.slots: 0 is below 1"]),
    ({"memory__retention": "lru"}, ["agent.memory.retention: 'lru' is no option"]),
    ({"memory__horizon": 0}, ["agent.memory.horizon: 0 is below 1"]),
    ({"memory__slots": 10**9}, ["agent.memory.slots: 1,000,000,000 for ", "GB of RAM are free. Use at most"]),
    (
        {"memory__slots": 60_000, "algorithm__time_horizon": 10**6},
        ["agent.memory.slots: 60,000 for ", " and 1000000 episodes of ", "GB of RAM are free. Use at most"],
    ),
    (
        {"algorithm": {"name": "DQN"}},
        ["agent.memory.name: StrategicMemory doesn't fit: DQN learns off-policy and needs an off-policy memory: use Replay"],
    ),
    ({"algorithm": {"name": "SARSA"}}, ["agent.memory.name", "SARSA"]),
    ({"net__core": {"name": "GRU"}}, ["agent.net.core.name: would go unused: StrategicMemory brings its own"]),
    ({"net__shared": False}, ["agent.net.shared: false; StrategicMemory is one memory for policy and value. Use true."]),
    (
        {"memory__entry": {"name": "Transformer", "window": 9}},
        ["agent.memory.entry.window: reads 9 steps, more than the 3 slots: too long a window. Use 3 or fewer, or more slots."],
    ),
    ({"memory__entry": {"name": "RNN"}}, ["agent.memory.entry.name: unknown entry 'RNN'", "MLP, Transformer"]),
    ({"memory__entry": {"name": "Transfomer"}}, ["agent.memory.entry.name", "Did you mean 'Transformer'?"]),
    ({"memory__entry": {"name": "Transformer", "window": 0}}, ["agent.memory.entry.window: 0 is below 1"]),
    ({"memory__entry": "MLP"}, ["agent.memory.entry: 'MLP' is no mapping: write {name: MLP}"]),
    ({"memory__entry": {"window": 2}}, ["agent.memory.entry.name: missing (expected: MLP | Transformer)"]),
    ({"memory__entry": {"name": "MLP", "hidlayers": [4]}}, ["agent.memory.entry.hidlayers", "hid_layers"]),
    ({"memory__entry": {"name": "Transformer", "window": 2, "size": 10, "heads": 4}}, ["agent.memory.entry: size 10 can't", "heads"]),
    ({"memory__decay_init": 1000.0}, ["agent.memory.decay_init"]),
    ({"memory__queries": 9, "memory__max_queries": 8}, ["agent.memory", "max_queries 8 is less than queries 9"]),
    ({"algorithm__log_barrier_coef": 0.1, "env": BOX}, ["agent.algorithm.log_barrier_coef: is for discrete actions"]),
    ({"algorithm__steps_per_window": 0}, ["agent.algorithm.steps_per_window: 0 is below 1"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), BAD, ids=lambda part: str(part)[:60])
def test_a_bad_spec_is_told_in_one_clear_line(changes: dict[str, Any], expected: list[str]) -> None:
    keys = {path if path == "env" else f"agent__{path}": value for path, value in changes.items()}
    with pytest.raises(SpecError) as error:
        make_spec(**copy.deepcopy({**RESUMED, **keys}))
    (problem,) = [str(problem) for problem in error.value.problems]
    assert all(part in problem for part in expected), problem
    assert "\n" not in problem


@pytest.mark.parametrize(("num_envs", "episodes", "fits"), [(4, 4, True), (4, 400, False), (400, 4, False)])
def test_slots_must_fit_for_all_worlds_and_episodes(
    num_envs: int, episodes: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In episodes of two steps too, in which the trace of what was kept counts next to nothing."""
    monkeypatch.setattr(memory, "free_ram", lambda room: 10**8)  # 1,000 slots are 300 kB
    keys = {"agent__memory": {"name": "StrategicMemory", "slots": 1000}, "meta__max_session": 1}
    keys["env"] = {"name": "MemoryTask", "delay": 2, "num_envs": num_envs, "max_frame": 10**6}
    keys["agent__algorithm"] = {"name": "PPO", "time_horizon": episodes}
    try:
        make_spec(**{**RESUMED, **keys})
        found = ""
    except SpecError as error:
        found = str(error)
    assert ("agent.memory.slots: 1,000 for" in found) == (not fits), found


def test_it_is_told_that_continuous_actions_have_no_mean_actor_critic() -> None:
    spec = make_spec(agent__memory=MEMORIES["StrategicMemory"], agent__net=RESUMED["agent__net"])
    told = {
        action: [note for note in StrategicMemory.notes(spec, world("vector", action, 2)) if "actor_coef" in note]
        for action in ("discrete", "box")
    }
    assert told["discrete"] == []
    assert told["box"][0].startswith("agent.memory.actor_coef goes unused")


# --- one setting for all ---


def test_the_specs_that_are_measured_have_one_agent() -> None:
    """The table of docs/benchmarks/strategic.md says so."""
    files = sorted((ROOT / "specs" / "strategic").glob("*.json"))
    agents = [raw["agent"] for file in files for raw in load_file(file).values()]
    assert len(agents) >= 4 and all(agent == agents[0] for agent in agents)
