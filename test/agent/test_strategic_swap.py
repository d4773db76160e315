"""Another episode's entries in the place of one's own: whose key hindsight looks up, and what that leaves alone."""

from __future__ import annotations

import pytest
import torch
from test_strategic import batches, build, core_of, hindsight_of
from test_strategic_hindsight import taught

from slm_lab.agent.memory.strategic.core import Entries


def test_hindsight_finds_a_share_of_the_entries_by_the_key_of_another_episode() -> None:
    agent = build(swap=0.3)
    hindsight = hindsight_of(agent)
    batch, _ = agent.algorithm._prepared(batches(agent, 40)[0])
    entries = agent.algorithm.net(batch.obs, batch.carry, batch.is_first).inner["shared"]
    first = torch.zeros_like(entries.data["worth"]).index_fill(1, torch.tensor([0, 1, entries.before]), 4.0)
    entries = entries._replace(data={**entries.data, "worth": first})  # the same steps in all episodes
    data, drawn = entries.data, hindsight.rng.get_state()
    other = hindsight._others(entries)
    hindsight.rng.set_state(drawn)
    swapped = hindsight._swapped(entries)
    there, moved = other["count"] >= 0, (swapped["key"] != data["key"]).flatten(2).any(dim=2)
    assert 0.15 < float(moved[there].float().mean()) < 0.45 and not moved[~there].any()
    assert torch.equal(swapped["key"][moved], other["key"][moved])
    assert swapped["value"] is data["value"], "what it says stays its own"


@pytest.mark.parametrize(
    ("gap", "explains", "share"),
    [(3.0, 0.0, 1.0), (1.0, 0.0, 0.444), (1.0, 0.6, 0.6), (0.0, 0.0, 0.0), (0.0, 0.3, 0.3)],
)
def test_entries_that_differ_in_worth_are_rarely_swapped_and_none_before_anything_is_known(
    gap: float, explains: float, share: float
) -> None:
    """By the difference to the entry that would come in its place; half of each episode is worth more by `gap`, which is
    0.5, 0.11 and 0 nats from even, or the critic has explained something."""
    hindsight, N = hindsight_of(build(swap=0.5)), 4000
    hindsight.explains = explains
    more, step = torch.tensor([0.0, 0.5, 2.5]), torch.arange(N).expand(3, N)
    worth = more[:, None] + gap * (step % 2)
    data = {name: torch.randn(3, N, 1, 4) for name in ("key", "value")} | {"worth": worth, "count": step}
    drawn = hindsight.rng.get_state()
    other = hindsight._others(Entries(data, 0, step[..., None], step))
    hindsight.rng.set_state(drawn)
    swapped = hindsight._swapped(Entries(data, 0, step[..., None], step))
    moved = (swapped["key"] != data["key"]).flatten(2).any(dim=2)
    assert torch.equal(swapped["worth"][moved], other["worth"][moved]), "key and worth of the same one"
    expected = share * 0.5 * torch.exp(-(other["worth"] - worth)[:, 0].abs())
    assert moved.float().mean(dim=1).tolist() == pytest.approx(expected.tolist(), abs=0.03)


def test_what_comes_after_an_episode_has_ended_tells_nothing_of_worth() -> None:
    hindsight, N = hindsight_of(build(swap=1.0)), 2000
    count = torch.arange(N).expand(3, N)
    step = torch.where(count < N // 2, count, -1)  # the other half of each window is padding
    data = {name: torch.randn(3, N, 1, 4) for name in ("key", "value")} | {"count": count}
    for worth, moves in [(4.0 * (step < 0), False), (4.0 * (step == 0), True)]:
        swapped = hindsight._swapped(Entries({**data, "worth": worth}, 0, step[..., None], step))
        assert (swapped["key"] != data["key"]).any() == moves


def test_keys_are_swapped_where_hindsight_learns_and_not_where_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for swap in (0.0, 1.0):
        agent = build(swap=swap, prior_coef=0.0, usefulness_coef=0.0)
        first, batch = batches(agent, 60)[:2]
        monkeypatch.setattr(hindsight_of(agent), "_others", lambda entries: {  # the last entry of each window is its first
            **{name: entries.data[name].flip(1) for name in ("key", "value", "worth")}, "count": entries.data["count"]
        })  # fmt: skip
        agent.algorithm._prepared(first)
        losses = taught(agent, batch)[1]
        use = agent.algorithm._prepared(batch)[0].notes["hindsight"]["use"]
        of = (losses["hindsight_loss"].sum(), losses["hindsight_replay_loss"][0, 0], use.sum())
        found[swap] = [float(x.detach()) for x in of]
    (loss, replayed, use), (loss2, replayed2, use2) = found.values()
    assert abs(loss - loss2) > 1e-3 and abs(replayed - replayed2) > 1e-3
    assert use == pytest.approx(use2, abs=1e-4)


def test_an_entry_is_asked_for_by_the_age_it_has_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other's, in its place, too: also where the other episode has ended by then."""
    agent = build(swap=0.0)
    hindsight, core, asked = hindsight_of(agent), core_of(agent), []
    batch, _ = agent.algorithm._prepared(batches(agent, 60)[0])
    entries = agent.algorithm.net(batch.obs, batch.carry, batch.is_first).inner["shared"]
    match = core.match_all
    monkeypatch.setattr(core, "match_all", lambda data, now: asked.append(data["count"]) or match(data, now))
    others = hindsight._others
    ended = []
    monkeypatch.setattr(hindsight, "_others", lambda entries: ended.append(others(entries)) or ended[0])
    hindsight._used(batch.notes["hindsight"], entries, core)
    assert bool((ended[0]["count"] < entries.data["count"]).any()), "some have no other"
    assert len(asked) == 2 and all(torch.equal(count, entries.data["count"]) for count in asked)
