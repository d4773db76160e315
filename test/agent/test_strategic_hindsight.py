"""What teaches StrategicMemory: what hindsight sees, what it makes of it, and where it stops."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from test_strategic import E, batches, build, core_of, hindsight_of
from torch import Tensor
from worlds import OBS_SPACES, Worlds

from slm_lab.agent.agent import Agent
from slm_lab.agent.memory.strategic.hindsight import Hindsight, _mean_actor_critic, surprising
from slm_lab.agent.net.distribution import Categorical
from slm_lab.lib.tree import map_batch, tree_copy, tree_map
from slm_lab.lib.types import Batch


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
    for name in ("hindsight_loss", "usefulness_loss", "decay_loss", "prior_loss"):
        assert torch.equal(found[0][name], found[1][name]) != persist, name


def test_the_critic_knows_nothing_but_what_actions_cause() -> None:
    agent = build(swap=0.0)
    hindsight, net = hindsight_of(agent), agent.algorithm.net
    batch, _ = agent.algorithm._prepared(batches(agent, 40)[0])
    notes = batch.notes["hindsight"]
    out = net(batch.obs, batch.carry, batch.is_first)
    logits, read = hindsight._looked(notes, out.inner["shared"], core_of(agent))
    value = hindsight._valued(notes, read)
    attention = logits.softmax(dim=-1)
    assert float(value.detach().abs().max()) > 1e-3
    torch.testing.assert_close(
        (notes["policy"] * value).sum(dim=-1), torch.zeros_like(value[..., 0]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones_like(attention[..., 0]))
    later = torch.arange(attention.shape[-1]) - out.inner["shared"].before > notes["at"][:, :, None, None]
    assert not attention.masked_select(later).any(), "what came later"


def test_the_critic_of_actions_that_cannot_be_counted_knows_nothing_else_either() -> None:
    """What depends on no action drops out of Q: the mean over actions drawn from the policy is taken off."""
    agent = build(actions="box", swap=0.0)
    hindsight = hindsight_of(agent)
    batch, _ = agent.algorithm._prepared(batches(agent, 40)[0])
    notes, entries = (
        batch.notes["hindsight"],
        agent.algorithm.net(batch.obs, batch.carry, batch.is_first).inner["shared"],
    )
    core, last = core_of(agent), hindsight.critic[2]
    _, read = hindsight._looked(notes, entries, core)
    before = hindsight._valued(notes, read)
    last.bias.data += 7.0  # type: ignore[union-attr,operator]
    torch.testing.assert_close(hindsight._valued(notes, read), before, atol=1e-5, rtol=0)
    drawn = torch.stack([hindsight._valued({**notes, "action": notes["drawn"][:, :, i]}, read) for i in range(4)])
    torch.testing.assert_close(drawn.mean(dim=0), torch.zeros_like(before), atol=1e-5, rtol=0)
    assert float(before.detach().abs().max()) > 1e-3 and read.requires_grad


def test_what_the_critic_has_learned_by_heart_is_of_no_use() -> None:
    """Use is measured before a batch is learned from; learning it does not change what is noted."""
    agent = build(swap=0.0)
    batch, _ = agent.algorithm._prepared(batches(agent, 60)[-1])
    before = batch.notes["hindsight"]["use"].clone()
    optimiser, hindsight = torch.optim.Adam(agent.algorithm.net.parameters(), lr=0.01), hindsight_of(agent)
    for _ in range(60):
        out = agent.algorithm.net(batch.obs, batch.carry, batch.is_first)
        terms = hindsight.losses(batch, out, agent.algorithm.net).terms
        optimiser.zero_grad()
        terms["hindsight_loss"][batch.notes["hindsight"]["mask"]].mean().backward()
        optimiser.step()
    assert torch.equal(batch.notes["hindsight"]["use"], before)
    entries = agent.algorithm.net(batch.obs, batch.carry, batch.is_first).inner["shared"]
    _, after, _ = hindsight._used(batch.notes["hindsight"], entries, core_of(agent))
    mask = batch.notes["hindsight"]["mask"]
    assert float(after[mask].sum(dim=-1).mean()) > 3 * abs(float(before[mask].sum(dim=-1).mean())), "now it would be"


def test_windows_looked_at_a_few_at_a_time_find_what_all_at_once_do(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = build(swap=0.0)
    hindsight, net = hindsight_of(agent), agent.algorithm.net
    batch, _ = agent.algorithm._prepared(batches(agent, 60)[0])
    entries = net(batch.obs, batch.carry, batch.is_first).inner["shared"]
    state, found = hindsight.get_extra_state(), []
    for at_once in (2**20, 3 * entries.step.shape[1] * batch.notes["hindsight"]["at"].shape[1]):  # 3: not a divisor
        monkeypatch.setattr("slm_lab.agent.memory.strategic.hindsight.AT_ONCE", at_once)
        hindsight.set_extra_state(tree_copy(state))
        found.append(hindsight._used(batch.notes["hindsight"], entries, core_of(agent)))
    assert len(batch.mask) % 3
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, parts)


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


def test_one_window_alone_has_no_others() -> None:
    """Use is then what would change without an entry."""
    agent = build()
    one = map_batch(lambda x: x[:1], batches(agent, 40)[0])
    entries = agent.algorithm.net(one.obs, one.carry, one.is_first).inner["shared"]
    assert bool((hindsight_of(agent)._others(entries)["count"] == -1).all())
    batch, _ = agent.algorithm._prepared(one)
    assert not batch.notes["hindsight"]["promise"].any(), "and of no promise"


@pytest.mark.parametrize("keys", [{}, {"horizon": 4}, {"persist": True}], ids=["whole", "cut", "persist"])
def test_what_another_episode_has_is_a_step_that_was_played_there_at_the_same_time(keys: dict[str, Any]) -> None:
    """Not what follows its end, where its last observation stands on, nor a step of another part of a long one."""
    agent, there, ended = build(**keys), 0, 0
    for batch in batches(agent):
        entries, T = agent.algorithm.net(batch.obs, batch.carry, batch.is_first).inner["shared"], batch.mask.shape[1]
        begin = torch.where(batch.is_first[:, 0], 0, batch.carry["shared"]["clock"])
        step = torch.where(batch.mask, begin[:, None] + torch.arange(T), -1)
        other = hindsight_of(agent)._others(entries)
        by = next(i for i in range(1, len(step)) if torch.equal(other["key"], entries.data["key"].roll(i, dims=0)))
        same = (step.roll(by, dims=0) == step) & (step >= 0)
        found = other["count"] >= 0
        assert torch.equal(found[:, entries.before : entries.before + T], same)
        assert not found[:, : entries.before].any() and not found[:, entries.before + T :].any()
        there, ended = there + int(same.sum()), ended + int((batch.mask & ~batch.mask.roll(by, dims=0)).sum())
    assert there > 10 and ended > 10


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
        hindsight_of(agent).square = 0.0
        found.append(hindsight_of(agent).prepare(prepared, agent.algorithm.net)[0].notes["hindsight"]["error"])
    torch.testing.assert_close(found[0], found[1])


def test_the_mean_actor_critic_is_one_key() -> None:
    for coef in (0.0, 1.0):
        agent = build(actor_coef=coef)
        _, terms = taught(agent, batches(agent, 40)[0])
        assert ("actor_loss" in terms) == (coef > 0)


@pytest.mark.parametrize("gated", [True, False])
def test_the_gate_is_one_key(gated: bool) -> None:
    """Without it the mean-actor-critic counts in full, however little the critic explains."""
    agent = build(actor_gate=gated, replay=0, swap=0.0)
    batch, _ = agent.algorithm._prepared(batches(agent, 40)[0])
    out, hindsight = agent.algorithm.net(batch.obs, batch.carry, batch.is_first), hindsight_of(agent)
    found = []
    for hindsight.gate in (0.0, 0.5, 1.0):
        terms = hindsight.losses(batch, out, agent.algorithm.net).terms
        found.append(terms.get("actor_loss", torch.zeros_like(batch.notes["hindsight"]["error"])))
    for gate, loss in zip((0.0, 0.5, 1.0), found, strict=True):
        torch.testing.assert_close(loss, (gate if gated else 1.0) * found[-1])
    assert bool(found[-1].any())


def test_the_mean_actor_critic_weighs_a_step_as_the_policy_loss_does() -> None:
    """The surprising steps stand for their share of all steps; drawn more often than there are steps, for all."""
    agent = build(swap=0.0, replay=0)
    batch = max(batches(agent, 40), key=lambda batch: int(batch.mask.sum()))
    shares = {}
    for queries in (1, 64):
        hindsight_of(agent).spec = hindsight_of(agent).spec.model_copy(
            update={"queries": queries, "max_queries": queries}
        )
        notes = agent.algorithm._prepared(batch)[0].notes["hindsight"]
        shares[queries] = float(notes["share"][0])
    assert shares == {1: pytest.approx(len(batch.mask) / int(batch.mask.sum())), 64: 1.0}


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


@pytest.mark.parametrize(("grows", "gate"), [(-1.0, 0.0), (0.0, 0.0), (0.3, 0.3), (1.0, 1.0), (5.0, 1.0), (None, 1.0)])
def test_the_gate_opens_as_far_as_the_advantage_bears_the_critic_out(grows: float | None, gate: float) -> None:
    """What is wrong with V is all of a TD error and explained best; of the advantage it is little."""
    agent = build(swap=0.0)
    hindsight, batch = hindsight_of(agent), batches(agent, 40)[-1]
    prepared, _ = agent.algorithm._prepared(batch)
    error = torch.randn(prepared.mask.shape, generator=torch.Generator().manual_seed(0))
    extras = {**prepared.extras, "td_error": error}
    extras.pop("raw_advantage")
    if grows is not None:
        extras["raw_advantage"] = grows * error + 7  # what is the same for all says nothing
    used = hindsight._used
    hindsight._used = lambda notes, *rest: (notes["error"], *used(notes, *rest)[1:])  # type: ignore[method-assign]
    _, metrics = hindsight.prepare(prepared.replace(extras=extras), agent.algorithm.net)
    assert metrics["hindsight_explained"] == pytest.approx(1.0)
    assert hindsight.gate == pytest.approx(gate, abs=1e-4)


def test_noise_keeps_the_gate_shut_and_a_cause_opens_it() -> None:
    """Rewards by chance are nobody's doing; the same rewards for one of the actions are."""
    gates = {}
    for caused in (False, True):
        agent = build(awake=False, horizon=1000, actor_coef=0.0)
        worlds, carry = Worlds(OBS_SPACES["vector"], E), agent.initial(E)
        step, rows = worlds.reset(), []
        for _ in range(200):
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


def trusted(hindsight: Hindsight, explained: float, steps: int) -> float:
    """How far it trusts itself after a batch."""
    hindsight._note(explained, steps)
    return hindsight._trusted(explained)


def test_retention_is_taught_as_far_as_the_critic_explains_what_it_once_could() -> None:
    """Before it has explained anything all counts, for promise comes first; afterwards noise of its own doesn't."""
    hindsight = hindsight_of(build())
    said = [trusted(hindsight, explained, 256) for explained in (-0.5, 0.0, 0.05, 0.0, 0.5, 0.25, -0.1, 0.8, 0.4)]
    assert said == pytest.approx([1.0, 1.0, 1.0, 0.8, 1.0, 0.5, 0.0, 1.0, 0.5])


def test_what_is_explained_of_few_steps_is_luck() -> None:
    hindsight = hindsight_of(build())
    assert [trusted(hindsight, explained, 8) for explained in (0.4, 0.0)] == [1.0, 1.0]
    assert hindsight.explains == 0.0
    hindsight.explains = 0.02
    assert trusted(hindsight, 0.5, 8) == 1.0, "never more than all"
    assert hindsight.explains == 0.02


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_who_reads_the_clock_of_events_bends_it_as_much_as_retention_is_taught(weight: float) -> None:
    agent = build(swap=0.0, replay=0)
    core, net, found = core_of(agent), agent.algorithm.net, []
    for batch in batches(agent, steps=40):
        batch, _ = agent.algorithm._prepared(batch)
        assert core.events_teach == pytest.approx(float(batch.notes["hindsight"]["weight"][0]))
        core.events_teach = weight
        out = net(batch.obs, batch.carry, batch.is_first)
        critic = hindsight_of(agent).losses(batch, out, net).terms["hindsight_loss"].sum()
        for loss in (critic, out.features["shared"].sum()):
            by_worth = torch.autograd.grad(loss, [*core.worth.parameters()], retain_graph=True, allow_unused=True)
            found.append(any(gradient is not None and bool(gradient.any()) for gradient in by_worth))
    assert found.count(weight > 0) == len(found)
