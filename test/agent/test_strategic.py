"""StrategicMemory in an agent: what it learns from, hindsight, resuming, what it refuses."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_specs import MEMORIES, make_spec
from test_agent import live, parts
from torch import Tensor
from worlds import OBS_SPACES, Worlds, world

from slm_lab.agent.agent import Agent
from slm_lab.agent.algorithm.base import Learned
from slm_lab.agent.algorithm.policy_gradient import drawn_steps
from slm_lab.agent.build import build_agent
from slm_lab.agent.memory.strategic.core import Entries, StrategicCore
from slm_lab.agent.memory.strategic.hindsight import Hindsight, _mean_actor_critic, _use, surprising
from slm_lab.agent.memory.strategic.memory import StrategicMemory
from slm_lab.agent.net.distribution import Categorical
from slm_lab.experiment.run_dir import RunDir
from slm_lab.experiment.session import Session
from slm_lab.lib.errors import SpecError
from slm_lab.lib.tree import map_batch, tree_leaves, tree_map
from slm_lab.lib.types import Batch

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
    core: StrategicCore = agent.algorithm.net._part("shared").core  # type: ignore[assignment]
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


# --- hindsight ---


def taught(agent: Agent, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
    """The batch with gradient at its observations, and what hindsight makes of it, its gate open."""
    batch, _ = agent.algorithm._prepared(batch)
    batch = batch.replace(obs=tree_map(lambda x: x.clone().requires_grad_(), batch.obs))
    out, hindsight = agent.algorithm.net(batch.obs, batch.carry, batch.is_first), hindsight_of(agent)
    hindsight.gate = 1.0
    return batch, dict(hindsight.losses(batch, out, agent.algorithm.net).terms)


def test_credit_reaches_what_had_been_dropped() -> None:
    """Through the critic's attention and through usefulness, but not through the policy, which reads the slots."""
    agent = build(retention="fifo", recall_events=False, swap=0.0, replay=0, horizon=1000, slots=2)
    found = [taught(agent, batch) for batch in batches(agent, steps=60)]
    batch, terms = max(found, key=lambda pair: pair[0].mask.shape[1])
    b = int(batch.mask.sum(dim=1).argmax())
    at = batch.notes["hindsight"]["at"][b]
    m, dropped = int(at.argmax()), int(at.max()) - 1  # a fifo of two holds the newest, itself included
    assert dropped >= 2
    for name, reaches in {
        "hindsight_loss": True,
        "usefulness_loss": True,
        "decay_loss": True,
        "actor_loss": False,
    }.items():
        (gradient,) = torch.autograd.grad(terms[name][b, m], batch.obs["obs"], retain_graph=True)
        assert bool(gradient[b, :dropped].any(dim=-1).all()) == reaches, name
        assert bool(gradient[b, :dropped].any()) == reaches, name


@pytest.mark.parametrize("persist", [False, True])
def test_hindsight_sees_no_other_episode(persist: bool) -> None:
    """The carry of an episode's first step still holds the slots of the one before."""
    agent = build(swap=0.0, replay=0, horizon=1000, persist=persist)
    batch, _ = agent.algorithm._prepared(batches(agent)[-1])
    held = batch.carry["shared"]["held"]
    assert bool(batch.is_first[:, 0].all()) and bool((held["count"] >= 0).any())
    other = {**held, "u": held["u"] + 1.0}
    found = []
    for slots in (held, other):
        carry = {"shared": {**batch.carry["shared"], "held": slots}}
        out = agent.algorithm.net(batch.obs, carry, batch.is_first)
        hindsight_of(agent).rng.manual_seed(0)
        found.append(hindsight_of(agent).losses(batch, out, agent.algorithm.net).terms)
        assert (out.inner["shared"].before > 0) == persist
    for name in ("hindsight_loss", "usefulness_loss", "decay_loss"):
        assert torch.equal(found[0][name], found[1][name]) != persist, name


def test_the_critic_knows_nothing_but_what_actions_cause() -> None:
    agent = build(swap=0.0)
    hindsight, net = hindsight_of(agent), agent.algorithm.net
    batch, _ = agent.algorithm._prepared(batches(agent, 40)[0])
    notes = batch.notes["hindsight"]
    out = net(batch.obs, batch.carry, batch.is_first)
    value, _, logits = hindsight._judge(notes, out.inner["shared"], core_of(agent))
    attention = logits.softmax(dim=-1)
    assert float(value.detach().abs().max()) > 1e-3
    torch.testing.assert_close(
        (notes["policy"] * value).sum(dim=-1), torch.zeros_like(value[..., 0]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones_like(attention[..., 0]))
    later = torch.arange(attention.shape[-1]) - out.inner["shared"].before > notes["at"][:, :, None, None]
    assert not attention.masked_select(later).any(), "what came later"


def toy(agent: Agent, attention: Tensor, **data: Tensor) -> Any:
    """What hindsight teaches of one window, its attention [M, N] given; each query is at the last step."""
    hindsight, (M, N) = hindsight_of(agent), attention.shape
    seen = torch.zeros(1, M, int(hindsight.critic[0].in_features), requires_grad=True)  # type: ignore[arg-type]
    logits = attention.log()[None, :, None]
    core: Any = SimpleNamespace(match_all=lambda *_: logits, recall_all=lambda *_: seen, slots=N)
    nothing = torch.zeros(1, M)
    notes = {"at": torch.full((1, M), N - 1), "mask": torch.ones(1, M, dtype=torch.bool), "action": nothing,
             "error": nothing, "policy": torch.full((1, M, 3), 1 / 3)}  # fmt: skip
    data |= {name: torch.zeros(1, N, 1, 1) for name in ("key", "value")} | {"count": torch.arange(N)[None]}
    entries = Entries(data, 0, torch.full((1, N, 2), -1))
    return hindsight._teach(notes, entries, core)[0]


WANTED = torch.tensor([1.0, 0.0])  # what the critic makes of a memory: its first number


def use(own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], off: float = 0.0) -> Tensor:
    """[N] of a critic that is linear and too high by `off`, for logits [N] and values [N, d]."""
    (logits, value), (logits2, value2) = own, other
    read = torch.cat([torch.zeros(3), logits.softmax(dim=0) @ value])[None, None].requires_grad_()  # [h; m]
    one = torch.ones(1, 1, dtype=torch.bool)
    pair = ((x[None, None, None], v[None, :, None]) for x, v in ((logits, value), (logits2, value2)))
    judged = read[..., 3:] @ WANTED
    return _use(judged, judged.detach() - off, read, *pair, one)[0, 0]


def test_use_is_how_much_worse_the_critic_would_do_with_another_entry_in_its_place() -> None:
    """None where the other episode has none there: an entry that says what the others say is then of no use."""
    logits, other = torch.tensor([2.0, 1.5, 0.8, -0.3]), torch.tensor([0.3, -torch.inf, 2.5, -0.3])
    value = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-2.0, 5.0], [1.0, 9.0]])
    value2 = torch.tensor([[3.0, 0.0], [7.0, 7.0], [1.0, 0.0], [1.0, 9.0]])
    moved = []
    for i in range(4):
        here = torch.arange(4) == i
        swapped = torch.where(here, other, logits).softmax(dim=0) @ torch.where(here[:, None], value2, value)
        moved.append((swapped - logits.softmax(dim=0) @ value) @ WANTED)
    step = torch.stack(moved)
    for off in (0.0, 0.5, -2.0):
        found = use((logits, value), (other, value2), off)
        torch.testing.assert_close(found, ((off + step).square() - off**2) / step.square().sum())
        assert abs(found[3]) < 1e-5, "the same in both"


def test_what_misleads_is_of_less_than_no_use() -> None:
    """Without the entry that was learned by heart the critic, too high by 1 here, would do better."""
    logits, value = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([[1.5, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert use((logits, value), (logits, torch.zeros(3, 2)), off=1.0)[0] < -0.1


def test_a_cue_is_of_use_where_only_its_absence_is_told() -> None:
    """Looked at if it says one thing and passed over if it says the other: it says as much both times."""
    told, value = torch.tensor([5.0, 0.0, 0.0]), torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    silent = torch.tensor([-5.0, 0.0, 0.0])
    for own, other in ((told, silent), (silent, told)):
        assert use((own, value), (other, value))[0] > 0.95


def looked_at(judged: Tensor, error: Tensor, read: Tensor, own: tuple[Tensor, Tensor], *_: Any) -> Tensor:
    return own[0].softmax(dim=-1).mean(dim=2)


def test_usefulness_settles_where_weights_are_the_use_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_lab.agent.memory.strategic.hindsight._use", looked_at)
    agent = build(swap=0.0, awake=False)
    attention = torch.tensor([[0.8, 0.1, 0.05, 0.03, 0.02], [0.2, 0.3, 0.15, 0.27, 0.08]])  # of two surprising steps
    worth = torch.zeros(1, 5, requires_grad=True)
    optimiser = torch.optim.Adam([worth], lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        toy(agent, attention, worth=worth)["usefulness_loss"].mean().backward()
        optimiser.step()
    torch.testing.assert_close(worth.softmax(dim=1)[0].detach(), attention.mean(dim=0), atol=0.01, rtol=0)


def test_decay_learns_from_each_step_and_leaves_worth_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_lab.agent.memory.strategic.hindsight._use", looked_at)
    agent = build(swap=0.0, awake=False)
    worth, decay = torch.zeros(1, 5, requires_grad=True), torch.full((1, 5), 0.1, requires_grad=True)
    recent = torch.tensor([[0.0, 0.0, 0.0, 0.1, 0.9]])
    loss = toy(agent, recent, worth=worth, decay=decay)["decay_loss"].sum()
    of_worth, of_decay = torch.autograd.grad(loss, [worth, decay], allow_unused=True)
    assert of_worth is None
    assert bool((of_decay[0, :4] < 0).all()), "where only the newest is looked at, entries should age faster"


def test_surprising_steps() -> None:
    error = torch.tensor([[0.0, 5.0, -9.0, 1.0, 99.0], [0.0, 0.0, 0.0, 0.0, 0.0]])  # 99: padding
    mask = torch.tensor([[True] * 4 + [False], [True] * 2 + [False] * 3])
    drawn = []
    for seed in range(60):
        at, real = surprising(error, mask, 4, torch.Generator().manual_seed(seed))
        assert at.shape == real.shape == (2, 4)
        assert set(at[0, :2].tolist()) == {1, 2} and bool(real[0].all())
        assert torch.equal(real, mask.gather(1, at)) and bool(real[1, 2:].all())
        drawn += at[0, 2:].tolist()
    assert 0.45 < drawn.count(2) / len(drawn) < 0.75, "in proportion: 9 of 15"


def test_hindsight_finds_a_share_of_the_entries_by_the_key_of_another_episode() -> None:
    agent = build(swap=0.3)
    hindsight = hindsight_of(agent)
    batch, _ = agent.algorithm._prepared(batches(agent, 40)[0])
    data = agent.algorithm.net(batch.obs, batch.carry, batch.is_first).inner["shared"].data
    other = hindsight._others(data)
    swapped = hindsight._swapped(data, other)
    there, moved = other["count"] >= 0, swapped["worth"] != data["worth"]
    assert 0.15 < float(moved[there].float().mean()) < 0.45 and not moved[~there].any()
    assert torch.equal(swapped["key"][moved], other["key"][moved]), "key and worth of the same one"
    assert swapped["value"] is data["value"], "what it says stays its own"
    assert not any(torch.equal(other["key"][b], data["key"][b]) for b in range(len(there)))


def test_one_window_alone_has_no_others() -> None:
    """Use is then what would change without an entry."""
    agent = build()
    data = tree_map(lambda x: x[:1], agent.algorithm.net(*first_inputs(agent)).inner["shared"].data)
    assert bool((hindsight_of(agent)._others(data)["count"] == -1).all())


def first_inputs(agent: Agent) -> tuple[Any, Any, Any]:
    batch = batches(agent, 40)[0]
    return batch.obs, batch.carry, batch.is_first


def test_rare_surprises_get_few_questions_and_common_ones_many() -> None:
    hindsight, mask = hindsight_of(build(queries=4, max_queries=20)), torch.ones(2, 40, dtype=torch.bool)
    rare = torch.zeros(2, 40)
    rare[:, 7] = 1.0
    common = torch.ones(2, 40)
    assert hindsight._count(rare, mask) == 4
    assert hindsight._count(common, mask) == 20
    assert hindsight._count(torch.where(torch.arange(40) < 3, common, 0.0), mask) == 12
    assert hindsight._count(1e-6 * rare, mask) == 4


def test_what_is_learned_does_not_depend_on_the_scale_of_rewards() -> None:
    agent = build(swap=0.0, replay=0)
    batch = batches(agent, 40)[0]
    found = []
    for scale in (1.0, 1000.0):
        prepared, _ = agent.algorithm._prepared(batch)
        prepared.extras["td_error"] *= scale
        hindsight_of(agent).rng.manual_seed(0)
        found.append(hindsight_of(agent).prepare(prepared, agent.algorithm.net)[0].notes["hindsight"]["error"])
    torch.testing.assert_close(found[0], found[1])


def test_the_mean_actor_critic_makes_better_actions_likelier() -> None:
    logits = torch.zeros(1, 1, 3, requires_grad=True)
    _mean_actor_critic(Categorical(logits), torch.tensor([[[1.0, -1.0, 0.0]]])).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 0, 0] < -0.1 < 0.1 < logits.grad[0, 0, 1] and abs(logits.grad[0, 0, 2]) < 1e-6


def test_replay_teaches_hindsight_alone() -> None:
    """Of the last batches, as many as `replay` says, and nothing of it reaches the policy."""
    agent = build(swap=0.0, replay=2)
    hindsight, net = hindsight_of(agent), agent.algorithm.net
    for batch in batches(agent, 60):
        prepared, _ = agent.algorithm._prepared(batch)
    assert len(hindsight.past) == 2
    out = net(prepared.obs, prepared.carry, prepared.is_first)
    loss = hindsight.losses(prepared, out, net).terms["hindsight_replay_loss"]
    assert loss.shape == prepared.notes["hindsight"]["mask"].shape
    loss.mean().backward()
    assert hindsight.critic[0].weight.grad.abs().max() > 0
    assert all(p.grad is None or not p.grad.any() for p in net.heads.parameters())


def test_noise_keeps_the_gate_shut_and_a_cause_opens_it() -> None:
    """Rewards by chance are nobody's doing; the same rewards for one of the actions are."""
    gates = {}
    for caused in (False, True):
        agent = build(awake=False, horizon=1000, actor_coef=0.0)
        worlds, carry = Worlds(OBS_SPACES["vector"], E), agent.initial(E)
        step, rows = worlds.reset(), []
        for _ in range(130):
            act = agent.act(step, carry)
            following = worlds.step(act.action)
            if caused:
                reward = torch.where(act.action == 0, 1.0, -1.0).numpy() * ~following.is_first
                following = dataclasses.replace(following, reward=reward.astype("float32"))
            rows += agent.update(step, carry, act, following)
            step, carry = following, act.carry
        last = [row["hindsight_gate"] for row in rows[-5:]]
        gates[caused] = sum(last) / len(last)
    assert gates[False] < 0.1 < 0.2 < gates[True]


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
    (
        {"algorithm": {"name": "DQN"}},
        ["agent.memory.name: StrategicMemory doesn't fit: DQN learns off-policy and needs an off-policy memory: use Replay"],
    ),
    ({"algorithm": {"name": "SARSA"}}, ["agent.memory.name", "SARSA"]),
    ({"net__core": {"name": "GRU"}}, ["agent.net.core: would go unused: StrategicMemory brings its own"]),
    ({"net__shared": False}, ["agent.net.shared: false; StrategicMemory is one memory for policy and value. Use true."]),
    (
        {"memory__entry": {"name": "Transformer", "window": 9}},
        ["agent.memory.entry: reads 9 steps, more than the 3 slots: too long a window"],
    ),
    ({"memory__entry": {"name": "RNN"}}, ["agent.memory.entry", "no entry encoder", "MLP | Transformer"]),
    ({"memory__entry": "MLP"}, ["agent.memory.entry", "no entry encoder", "MLP | Transformer"]),
    ({"memory__entry": {"name": "MLP", "hidlayers": [4]}}, ["agent.memory.entry", "hidlayers", "hid_layers"]),
    ({"memory__entry": {"name": "Transformer", "window": 2, "size": 10, "heads": 4}}, ["agent.memory.entry", "size", "heads"]),
    ({"memory__decay_init": 1000.0}, ["agent.memory.decay_init"]),
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
