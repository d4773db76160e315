"""What StrategicMemory's hindsight teaches retention and attention, on made-up use: worth, age, preference."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_strategic import batches, build, hindsight_of
from torch import Tensor

from slm_lab.agent.agent import Agent
from slm_lab.agent.memory.strategic.core import Entries
from slm_lab.agent.memory.strategic.hindsight import EVEN, _preference
from slm_lab.agent.memory.strategic.usefulness import RATE, use_of


def toy(
    agent: Agent, use: Tensor, promise: Tensor | None = None, weight: float = 1.0, logits: Tensor | None = None,
    at: int = -1, **data: Tensor,
) -> Any:  # fmt: skip
    """What hindsight teaches of one window, use [M, N], promise [N] and attention's logits [N] given; each query is at
    the last step, or at `at`."""
    hindsight, (M, N) = hindsight_of(agent), use.shape
    seen = torch.zeros(1, M, int(hindsight.critic[0].in_features), requires_grad=True)  # type: ignore[arg-type]
    match = torch.zeros(1, M, 1, N) if logits is None else logits.expand(1, M, 1, N)
    core: Any = SimpleNamespace(match_all=lambda *_: match, recall_all=lambda *_: seen, slots=N)
    nothing = torch.zeros(1, M)
    notes = {"at": torch.full((1, M), at % N), "mask": torch.ones(1, M, dtype=torch.bool), "action": nothing,
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
    return use_of(torch.full((1, 1), -off), WANTED[None, None, None], read, *pair)[0, 0]


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
    hindsight_of(agent).explains = 1.0
    logits, rho = torch.tensor([3.0, 3.0, -9.0], requires_grad=True), torch.tensor(worth)
    terms = toy(agent, torch.zeros(2, 3), weight=0.0, logits=logits, worth=rho[None])
    (gradient,) = torch.autograd.grad(terms["prior_loss"].mean(), logits)
    moved = -gradient / hindsight_of(agent).spec.prior_coef
    looked = logits.detach().softmax(dim=0)
    missed = 1 - (looked * (rho - rho.max()).exp()).sum()
    target = ((looked + missed / 3).log() + rho).softmax(dim=0) - looked
    torch.testing.assert_close(moved, counts * target, atol=1e-6, rtol=0)
    assert counts < 1 or moved[0] > 0.3


def test_retention_prefers_by_how_far_its_weights_are_from_even() -> None:
    """Among what there is: log n where one entry has it all, at most 1, and 0 where all are alike."""
    worth = torch.tensor([[9.0, 0.0, 50.0], [1.0, 1.0, 50.0], [50.0, 1.0, 1.0], [2.0, 50.0, 50.0]])
    valid = torch.tensor([[True, True, False], [True, True, False], [True, True, True], [True, False, False]])
    torch.testing.assert_close(_preference(worth, valid), torch.tensor([0.6919128, 0.0, 1.0, 0.0]), atol=1e-6, rtol=0)


def test_attention_is_led_to_what_retention_prefers_though_none_lies_on_it() -> None:
    """In T-maze 256 a cue that was always kept was never looked at."""
    logits = torch.tensor([-30.0, 0.0, 0.0, 9.0], requires_grad=True)
    worth = torch.tensor([[5.0, 0.0, 0.0, 0.0]])
    loss = toy(build(swap=0.0, awake=False), torch.zeros(1, 4), logits=logits, worth=worth)["prior_loss"].sum()
    (slope,) = torch.autograd.grad(loss, logits)
    assert bool(slope[0] < -1e-3) and bool(slope[3] > 1e-3)


def test_attention_is_not_led_away_by_what_is_yet_to_come() -> None:
    """What is worth most comes after the question: of what there was, attention lies on the best."""
    agent = build(swap=0.0, awake=False)
    hindsight_of(agent).explains = 1.0
    logits = torch.tensor([9.0, -30.0, -30.0, 0.0], requires_grad=True)
    worth = torch.tensor([[5.0, 0.0, 0.0, 20.0]])
    loss = toy(agent, torch.zeros(1, 4), logits=logits, worth=worth, at=2)["prior_loss"].sum()
    (slope,) = torch.autograd.grad(loss, logits)
    assert float(slope.abs().max()) < 1e-3


def test_attention_on_one_of_two_that_retention_prefers_alike_is_not_led_to_the_other() -> None:
    """With several cues it would be spread over all of them."""
    agent = build(swap=0.0, awake=False)
    hindsight_of(agent).explains = 1.0
    logits = torch.tensor([9.0, -30.0, -30.0, -30.0], requires_grad=True)
    worth = torch.tensor([[5.0, 5.0, 0.0, 0.0]])
    loss = toy(agent, torch.zeros(1, 4), logits=logits, worth=worth)["prior_loss"].sum()
    (slope,) = torch.autograd.grad(loss, logits)
    assert float(slope.abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("explains", "worth", "held"),
    [(0.0, 0.0, 1.0), (0.125, 0.0, 0.5), (0.25, 0.0, 0.0), (0.0, 9.0, 0.0)],
    ids=["nothing known", "half", "the critic explains", "retention prefers one"],
)
def test_attention_is_held_even_until_anything_is_known(explains: float, worth: float, held: float) -> None:
    """It came to rest on a few entries by which noise was learned by heart: MultiCue 128 then never began."""
    agent = build(swap=0.0, awake=False)
    hindsight_of(agent).explains = explains
    logits = torch.tensor([4.0, 0.0, 0.0, 0.0], requires_grad=True)
    rho = torch.tensor([[worth, 0.0, 0.0, 0.0]])
    loss = toy(agent, torch.zeros(1, 4), weight=0.0, logits=logits, worth=rho)["prior_loss"].mean()
    (slope,) = torch.autograd.grad(loss, logits)
    even = logits.detach().softmax(dim=0) - 0.25
    if worth:
        assert slope[0] < 0  # to what retention prefers
    else:
        torch.testing.assert_close(slope, hindsight_of(agent).spec.prior_coef * held * even, atol=1e-6, rtol=0)


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
