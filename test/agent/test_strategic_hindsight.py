"""What teaches StrategicMemory: what hindsight sees, what it makes of it, and where it stops."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_strategic import E, batches, build, core_of, hindsight_of
from torch import Tensor
from worlds import OBS_SPACES, Worlds

from slm_lab.agent.agent import Agent
from slm_lab.agent.memory.strategic.core import Entries
from slm_lab.agent.memory.strategic.hindsight import (
    EVEN,
    RATE,
    _mean_actor_critic,
    _preference,
    _use,
    surprising,
)
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
    for name in ("hindsight_loss", "usefulness_loss", "decay_loss"):
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


def toy(
    agent: Agent, use: Tensor, promise: Tensor | None = None, weight: float = 1.0, logits: Tensor | None = None,
    **data: Tensor,
) -> Any:  # fmt: skip
    """What hindsight teaches of one window, use [M, N], promise [N] and attention's logits [N] given; each query is at
    the last step."""
    hindsight, (M, N) = hindsight_of(agent), use.shape
    seen = torch.zeros(1, M, int(hindsight.critic[0].in_features), requires_grad=True)  # type: ignore[arg-type]
    match = torch.zeros(1, M, 1, N) if logits is None else logits.expand(1, M, 1, N)
    core: Any = SimpleNamespace(match_all=lambda *_: match, recall_all=lambda *_: seen, slots=N)
    nothing = torch.zeros(1, M)
    notes = {"at": torch.full((1, M), N - 1), "mask": torch.ones(1, M, dtype=torch.bool), "action": nothing,
             "error": nothing, "policy": torch.full((1, M, 3), 1 / 3), "use": use[None], "weight": torch.full((1, 1), weight),
             "promise": torch.zeros(1, N) if promise is None else promise[None]}  # fmt: skip
    data |= {name: torch.zeros(1, N, 1, 1) for name in ("key", "value")}
    data |= {"count": torch.arange(N)[None], "time": torch.zeros(1, N)}
    entries = Entries(data, 0, torch.full((1, N, 2), -1), torch.arange(N)[None])
    return hindsight._teach(notes, entries, core)[0]


WANTED = torch.tensor([1.0, 0.0])  # what the critic makes of a memory: its first number


def use(own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], off: float = 0.0) -> Tensor:
    """[N] of a critic that is linear and too high by `off`, for logits [N] and values [N, d]."""
    (logits, value), (logits2, value2) = own, other
    read = torch.cat([torch.zeros(3), logits.softmax(dim=0) @ value])[None, None]  # [h; m]
    pair = ((x[None, None, None], v[None, :, None]) for x, v in ((logits, value), (logits2, value2)))
    return _use(torch.full((1, 1), -off), WANTED[None, None, None], read, *pair)[0, 0]


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
        torch.testing.assert_close(found, (off + step).square() - off**2)
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


def test_usefulness_settles_where_weights_are_the_use_to_come() -> None:
    """Of two steps that surprise; what is of no use, or misleads, keeps a little weight."""
    agent = build(swap=0.0, awake=False)
    use = torch.tensor([[1.6, 0.2, 0.05, 0.03, 0.0], [0.4, 0.6, 0.15, 0.27, -0.02]])
    worth = torch.zeros(1, 5, requires_grad=True)
    optimiser = torch.optim.Adam([worth], lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        toy(agent, use, worth=worth)["usefulness_loss"].mean().backward()
        optimiser.step()
    wanted = use.mean(dim=0) + EVEN / 5
    torch.testing.assert_close(worth.softmax(dim=1)[0].detach(), wanted / wanted.sum(), atol=0.01, rtol=0)
    assert float(wanted[4]) > 0


def test_without_any_use_all_entries_are_worth_the_same() -> None:
    worth = torch.tensor([[3.0, -1.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(
        toy(build(awake=False), torch.zeros(2, 3), worth=worth)["usefulness_loss"].sum(), worth
    )
    assert gradient[0, 0] > 0 > gradient[0, 1], "down, and up"


def test_promise_raises_worth_and_spares_age_as_far_as_the_gate_is_shut() -> None:
    """To decay too: else it would age out what is kept for its promise."""
    agent, moved, spared = build(awake=False), [], []
    for gate in (0.0, 0.5, 1.0):
        worth, decay = torch.zeros(1, 4, requires_grad=True), torch.zeros(1, 4, requires_grad=True)
        hindsight_of(agent).gate = gate
        terms = toy(agent, torch.zeros(2, 4), torch.tensor([1.0, 0.0, 0.0, 0.0]), worth=worth, decay=decay)
        (of_worth,) = torch.autograd.grad(terms["usefulness_loss"].mean(), worth)
        (of_decay,) = torch.autograd.grad(terms["decay_loss"].mean(), decay)
        moved.append(-float(of_worth[0, 0]))
        spared.append(float(of_decay[0, 0]))
    whole = hindsight_of(agent).spec.usefulness_coef * hindsight_of(agent).spec.promise_coef
    assert moved == pytest.approx([whole * 0.75, whole * 0.375, 0.0], abs=1e-6)
    assert spared == pytest.approx([3 * x for x in moved], abs=1e-6), "it is 3 steps old"
    worth = torch.zeros(1, 4, requires_grad=True)
    silent = toy(build(awake=False, promise_coef=0.0), torch.zeros(2, 4), torch.tensor([1.0, 0, 0, 0]), worth=worth)
    assert float(torch.autograd.grad(silent["usefulness_loss"].mean(), worth)[0].abs().max()) < 1e-6, "one key"


def test_a_batch_teaches_retention_as_much_as_it_surprises() -> None:
    """Beside the largest yet: once a task is solved, its errors are noise, and what is worth keeping stays so."""
    agent = build(swap=0.0)
    hindsight, batch = hindsight_of(agent), batches(agent, 40)[-1]
    prepared, _ = agent.algorithm._prepared(batch)
    hindsight.largest, hindsight.square, weights, errors = 0.0, 0.0, [], []
    for scale in (1.0, 0.1, 2.0, 1.0):
        prepared.extras["td_error"] = torch.where(prepared.mask, scale, 0.0)
        notes = hindsight.prepare(prepared, agent.algorithm.net)[0].notes["hindsight"]
        weights.append(float(notes["weight"].unique()))
        errors.append(float(notes["error"][notes["mask"]].unique()))
    assert weights == pytest.approx([1.0, 0.01, 1.0, 0.25])
    square = 1 + RATE * (0.01 - 1)
    assert errors[:2] == pytest.approx([1.0, 0.1 / square**0.5]), "in units of the last batches, not of its own"
    assert errors[2] == pytest.approx(2 / (square + RATE * (4 - square)) ** 0.5)
    data = {"worth": torch.tensor([[3.0, -1.0, 0.0]]), "decay": torch.zeros(1, 3)}
    much, little = (toy(agent, torch.ones(2, 3), weight=weight, **data) for weight in (1.0, 0.25))
    for name, loss in much.items():
        part = 0.25 if name in ("usefulness_loss", "decay_loss") else 1.0
        torch.testing.assert_close(little[name].detach(), part * loss.detach(), msg=name)


@pytest.mark.parametrize(
    ("worth", "counts"),
    [([4.0, 0.0, -9.0], 1.0), ([30.0, 0.0, 28.0], 0.7332784), ([0.2, 0.0, 0.1], 0.003325), ([1.0, 1.0, 1.0], 0.0)],
)
def test_retention_leads_attention_among_what_is_looked_at(worth: list[float], counts: float) -> None:
    """Of two that are looked at, to the one worth more; little where all are worth nearly the same."""
    agent = build(swap=0.0, awake=False)
    logits = torch.tensor([3.0, 3.0, -9.0], requires_grad=True)
    terms = toy(agent, torch.zeros(2, 3), weight=0.0, logits=logits, worth=torch.tensor([worth]))
    (gradient,) = torch.autograd.grad(terms["prior_loss"].mean(), logits)
    moved = -gradient / hindsight_of(agent).spec.prior_coef
    target = (logits + torch.tensor(worth)).softmax(dim=0) - logits.softmax(dim=0)
    torch.testing.assert_close(moved, counts * target.detach(), atol=1e-6, rtol=0)
    assert counts < 1 or moved[0] > 0.3


def test_retention_prefers_by_how_far_its_weights_are_from_even() -> None:
    """Among what there is: log n where one entry has it all, at most 1, and 0 where all are alike."""
    worth = torch.tensor([[9.0, 0.0, 50.0], [1.0, 1.0, 50.0], [50.0, 1.0, 1.0], [2.0, 50.0, 50.0]])
    valid = torch.tensor([[True, True, False], [True, True, False], [True, True, True], [True, False, False]])
    torch.testing.assert_close(_preference(worth, valid), torch.tensor([0.6919128, 0.0, 1.0, 0.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("weight", "gate", "led"),
    [(1.0, 0.0, True), (0.0, 0.0, False), (1.0, 1.0, False)],
    ids=["", "no surprise", "known"],
)
def test_attention_is_led_to_what_retention_prefers_though_none_lies_on_it(
    weight: float, gate: float, led: bool
) -> None:
    """While something is to be found: in T-maze 256 a cue that was always kept was never looked at."""
    agent = build(swap=0.0, awake=False)
    hindsight_of(agent).gate = gate
    logits = torch.tensor([-30.0, 0.0, 0.0, 9.0], requires_grad=True)
    worth = torch.tensor([[5.0, 0.0, 0.0, 0.0]])
    loss = toy(agent, torch.zeros(1, 4), weight=weight, logits=logits, worth=worth)["prior_loss"].sum()
    (slope,) = torch.autograd.grad(loss, logits)
    assert bool(slope[0] < -1e-3) == led and bool(slope[3] > 1e-3) == led


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


def test_decay_learns_from_each_step_and_leaves_worth_alone() -> None:
    agent = build(swap=0.0, awake=False)
    worth, decay = torch.zeros(1, 5, requires_grad=True), torch.full((1, 5), 0.1, requires_grad=True)
    recent = torch.tensor([[0.0, 0.0, 0.0, 0.1, 0.9]])
    loss = toy(agent, recent, worth=worth, decay=decay)["decay_loss"].sum()
    of_worth, of_decay = torch.autograd.grad(loss, [worth, decay], allow_unused=True)
    assert of_worth is None
    assert bool((of_decay[0, :4] < 0).all()), "where only the newest is looked at, entries should age faster"


def test_what_misleads_is_of_no_use_and_no_less() -> None:
    """A target below 0 has no fixed point: worth and decay would run off."""
    agent = build(swap=0.0, awake=False)
    keys = {"worth": torch.zeros(1, 4, requires_grad=True), "decay": torch.full((1, 4), 0.1, requires_grad=True)}
    found = []
    for misleads in (0.0, -5.0):
        terms = toy(agent, torch.tensor([[misleads, 0.0, 0.5, 0.5]]).expand(2, 4), **keys)
        found.append(
            torch.autograd.grad(terms["usefulness_loss"].sum() + terms["decay_loss"].sum(), list(keys.values()))
        )
    assert all(torch.equal(*both) for both in zip(*found, strict=True))


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


def test_retention_is_taught_as_far_as_the_critic_explains_what_it_once_could() -> None:
    """Before it has explained anything all counts, for promise comes first; afterwards noise of its own doesn't."""
    hindsight = hindsight_of(build())
    said = [hindsight._trusted(explained, 256) for explained in (-0.5, 0.0, 0.05, 0.0, 0.5, 0.25, -0.1, 0.8, 0.4)]
    assert said == pytest.approx([1.0, 1.0, 1.0, 0.8, 1.0, 0.5, 0.0, 1.0, 0.5])


def test_what_is_explained_of_few_steps_is_luck() -> None:
    hindsight = hindsight_of(build())
    assert [hindsight._trusted(explained, 8) for explained in (0.4, 0.0)] == [1.0, 1.0]
    assert hindsight.explains == 0.0
    hindsight.explains = 0.02
    assert hindsight._trusted(0.5, 8) == 1.0, "never more than all"
    assert hindsight.explains == 0.02


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_who_reads_the_clock_of_events_bends_it_as_much_as_retention_is_taught(weight: float) -> None:
    agent = build(swap=0.0, replay=0)
    core, net, found = core_of(agent), agent.algorithm.net, []
    for batch in batches(agent, steps=40):
        batch, _ = agent.algorithm._prepared(batch)
        assert core.taught == pytest.approx(float(batch.notes["hindsight"]["weight"][0]))
        core.taught = weight
        out = net(batch.obs, batch.carry, batch.is_first)
        critic = hindsight_of(agent).losses(batch, out, net).terms["hindsight_loss"].sum()
        for loss in (critic, out.features["shared"].sum()):
            by_worth = torch.autograd.grad(loss, [*core.worth.parameters()], retain_graph=True, allow_unused=True)
            found.append(any(gradient is not None and bool(gradient.any()) for gradient in by_worth))
    assert found.count(weight > 0) == len(found)
