"""Promise: what goes with how things turn out, found before a critic knows what it means."""

from __future__ import annotations

import pytest
import torch
from test_strategic import batches, build, core_of, hindsight_of
from torch.nn import functional as F

from slm_lab.agent.memory.strategic.hindsight import LONGEST
from slm_lab.agent.memory.strategic.usefulness import CHANCE, RATE, promising
from slm_lab.lib.tree import map_batch


@pytest.mark.parametrize("better", [0.0, 1.0], ids=["even", "one_better"])
def test_a_cue_is_of_promise_before_a_critic_knows_anything(better: float) -> None:
    """Entry 0 says which action will turn out well, 1 something else, louder, 2 the same in all episodes; `better`: one
    action is, whatever the cue says. Control: actions that turn out by chance."""
    rng, B, found = torch.Generator().manual_seed(0), 64, {}
    step = torch.arange(3).expand(B, 3)
    for pays in (True, False):
        hindsight = hindsight_of(build())
        for _ in range(12):
            told, noise, action, chance = (torch.randint(2, (B,), generator=rng) * 2.0 - 1.0 for _ in range(4))
            value = torch.stack([told, 3 * noise, torch.ones(B)], dim=1)[..., None]  # [B, N, D]
            error = (told * action if pays else chance) + better * action
            credit = error[:, None] * torch.stack([action > 0, action < 0], dim=1)
            found[pays] = hindsight._promise(credit[:, None].expand(B, 3, 2), value, step)
            assert bool((found[pays] >= 0).all()) and bool((found[pays] <= 1).all())
    assert float(found[True][:, 0].min()) > 0.08 > 0.03 > float(found[True][:, 1].max()) and not found[True][:, 2].any()
    assert float(found[False].max()) < 0.03


def test_a_cue_is_of_promise_where_always_the_same_is_done() -> None:
    """How it turns out goes with the cue, though of what the other action would have brought nothing is known."""
    rng, hindsight, step = torch.Generator().manual_seed(0), hindsight_of(build()), torch.arange(2).expand(64, 2)
    for _ in range(12):
        told, noise = (torch.randint(2, (64,), generator=rng) * 2.0 - 1.0 for _ in range(2))
        credit = told[:, None] * torch.tensor([1.0, 0.0])
        found = hindsight._promise(credit[:, None].expand(64, 2, 2), torch.stack([told, noise], 1)[..., None], step)
    assert float(found[:, 0].min()) > 0.5 > 0.05 > float(found[:, 1].max())


def test_promise_is_of_what_differs_and_is_not_known_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a batch whose first entries tell which action pays at the steps that surprise, all others being alike."""
    agent = build(swap=0.0, replay=0)
    hindsight, batch = hindsight_of(agent), batches(agent, 40)[0]
    batch = map_batch(lambda x: x.repeat_interleave(40, dim=0), batch)
    prepared, _ = agent.algorithm._prepared(batch)
    entries = agent.algorithm.net(batch.obs, batch.carry, batch.is_first).inner["shared"]
    (B, N), M = entries.step.shape, prepared.notes["hindsight"]["at"].shape[1]
    rng = torch.Generator().manual_seed(0)
    told, action = torch.randint(2, (B,), generator=rng) * 2.0 - 1.0, torch.randint(2, (B, M), generator=rng)
    first = entries.step == 0
    value = torch.where(first[..., None, None], told[:, None, None, None], entries.data["value"][:1, :1])
    error, policy = told[:, None] * (2.0 * action - 1), torch.tensor([0.5, 0.5, 0.0]).expand(B, M, 3)
    notes = {**prepared.notes["hindsight"], "action": action, "policy": policy, "error": error}
    found = {}
    for known in (0.0, 1.0):
        read = torch.zeros(B, M, entries.data["h"].shape[-1] + value[0, 0].numel())
        logits = torch.zeros(B, M, value.shape[2], N)
        judged = F.one_hot(action, 3) * known * error[..., None]
        monkeypatch.setattr(hindsight, "_looked", lambda *_, made=(logits, read): made)
        monkeypatch.setattr(
            hindsight, "_valued", lambda _, read, made=judged: made + 0 * read.sum(dim=-1, keepdim=True)
        )
        hindsight.promise = torch.zeros(0)
        planted = entries._replace(data={**entries.data, "value": value})
        found[known] = hindsight._used(notes, planted, core_of(agent))[2][:, -N:]
    assert float(found[0.0][first].mean()) > 0.1 and not found[0.0][~first].any() and not found[1.0].any()


@pytest.mark.parametrize("actions", ["discrete", "multi_discrete", "box"])
def test_credit_is_how_what_was_done_after_an_entry_turned_out(actions: str) -> None:
    agent = build(actions=actions)
    batch, _ = agent.algorithm._prepared(batches(agent, 40)[0])
    hindsight, notes = hindsight_of(agent), batch.notes["hindsight"]
    entries = agent.algorithm.net(batch.obs, batch.carry, batch.is_first).inner["shared"]
    missed = torch.randn(notes["mask"].shape, generator=torch.Generator().manual_seed(0))
    credit, action = hindsight._credit(notes, missed, entries), notes["action"]
    if actions == "discrete":
        taken = F.one_hot(action.long(), 3).float()
    else:
        told = (
            action
            if actions == "box"
            else torch.cat([F.one_hot(action[..., i].long(), n) for i, n in enumerate((2, 3))], -1)
        )
        taken = torch.cat([torch.ones_like(missed)[..., None], told], dim=-1)
        taken = taken / taken[notes["mask"]].square().mean(dim=0).sqrt()
    b = int(notes["mask"].sum(dim=1).argmax())
    for t in range(int(batch.mask[b].sum())):
        after = notes["mask"][b] & (notes["at"][b] >= t)
        expected = (missed[b, after, None] * taken[b, after]).sum(dim=0)
        torch.testing.assert_close(credit[b, entries.before + t], expected, msg=f"step {t}")


def test_promise_compares_what_is_of_the_same_step() -> None:
    """Windows that begin at different steps; of a step that no other episode has there is none."""
    step = torch.tensor([[5, 6, 7], [6, 7, 8], [5, 6, -1]])
    g = torch.tensor([[1.0, 1.0, -1.0], [-1.0, 2.0, 1.0], [-2.0, -1.5, 9.0]])
    there = torch.tensor([[True, True, True], [True, True, False], [True, True, False]])
    one = torch.tensor([0.6, 0.0, -0.8])  # a length of 1, whatever its direction
    value = torch.tensor([[5.0, 4.0, 1.0], [4.0, 7.0, 0.0], [4.0, 1.0, 0.0]])
    found, steps = promising(g[..., None], value[..., None] * one, there, step)
    # of the step: credit and value, each less its mean; step 8 has one, and the last windows' last entries aren't there
    pairs = [([1.0, -2.0], [5.0, 4.0]), ([1.0, -1.0, -1.5], [4.0, 4.0, 1.0]), ([-1.0, 2.0], [1.0, 7.0])]
    product = [(torch.tensor(c) - sum(c) / len(c)) * (torch.tensor(v) - sum(v) / len(v)) for c, v in pairs]
    mean = sum(float(x.square().sum()) for x in product) / 7
    expected = [float(x.sum() ** 2 - (1 + CHANCE) * x.square().sum()) / (len(x) * (len(x) - 1)) / mean for x in product]
    assert steps.tolist() == [5, 6, 7]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_promise_knows_steps_apart_up_to_a_limit() -> None:
    """Late steps of an endless episode cost no memory, and promise nothing."""
    hindsight, step = hindsight_of(build()), torch.tensor([[3, LONGEST], [3, LONGEST]])
    credit = value = torch.tensor([[[1.0]], [[-1.0]]]).expand(2, 2, 1)
    hindsight._promise(credit, value, step)
    assert len(hindsight.promise) == 4
    late, _ = promising(credit, value, step >= 0, step + 3_000_000)
    assert len(late) == 2, "as many as there are, not as the steps' numbers"


def test_promise_of_steps_that_no_batch_has_had_lately_stays() -> None:
    hindsight = hindsight_of(build())
    hindsight.promise = torch.tensor([0.5, 0.25, 0.125])
    step = torch.tensor([[0, 1], [0, -1]])
    found = hindsight._promise(torch.zeros(2, 2, 1), torch.zeros(2, 2, 1), step)
    assert hindsight.promise.tolist() == [0.5 * (1 - RATE), 0.25, 0.125]
    assert found.tolist() == [[0.5 * (1 - RATE), 0.25], [0.5 * (1 - RATE), 0.0]]
