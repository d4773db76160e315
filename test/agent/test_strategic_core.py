"""StrategicMemory's working memory: what is kept, what is recalled, and that learning sees what acting saw."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from slm_lab.agent.memory.base import MemoryContext
from slm_lab.agent.memory.strategic.clock import DECAYS, clock_features
from slm_lab.agent.memory.strategic.core import StrategicCore
from slm_lab.agent.memory.strategic.memory import StrategicMemory
from slm_lab.agent.memory.strategic.retention import Retention
from slm_lab.agent.net.core.base import CoreOut
from slm_lab.env.base import World
from slm_lab.lib.tree import tree_leaves, tree_map
from slm_lab.lib.types import Tree
from slm_lab.spec.parts import ENTRY

B, T, D, K = 3, 12, 5, 3
ONCE = torch.zeros(1, dtype=torch.int64)  # the first episode of each world
RULES = ["learned", "reservoir", "fifo", "none"]
ENTRIES: dict[str, Any] = {
    "MLP": {"name": "MLP", "hid_layers": [7]},
    "Transformer": {"name": "Transformer", "window": 3, "size": 6, "heads": 2},
}


def test_each_entry_encoder_is_tried() -> None:
    assert ENTRIES.keys() == set(ENTRY)
    assert all(ENTRY.load(name).Spec(**spec).steps == spec.get("window", 1) for name, spec in ENTRIES.items())


def build(entry: str = "MLP", **keys: Any) -> StrategicCore:
    """A small core whose weights are all awake: those that begin at zero too."""
    keys = {"slots": K, "size": 4, "heads": 2, "hidden_size": 6, "decay_init": 0.1, "entry": ENTRIES[entry], **keys}
    where = World(B, {"obs": spaces.Box(-1, 1, (D,))}, spaces.Discrete(2))
    torch.manual_seed(0)
    core = StrategicMemory(StrategicMemory.Spec(**keys), MemoryContext(where, 1)).core(D)
    assert isinstance(core, StrategicCore)
    for parameter in core.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return core


def inputs(seed: int = 0, steps: int = T) -> Tensor:
    return torch.randn(B, steps, D, generator=torch.Generator().manual_seed(seed))


def firsts(*steps: int, length: int = T) -> Tensor:
    """Episodes that begin at these steps, in all rows."""
    is_first = torch.zeros(B, length, dtype=torch.bool)
    is_first[:, list(steps)] = True
    return is_first


@torch.no_grad()
def act(
    core: StrategicCore, x: Tensor, is_first: Tensor, carry: Tree | None = None, seed: int | None = 0
) -> tuple[list[CoreOut], list[Tree]]:
    """One step at a time, exploring if there is a seed: what came out, and the carry before each step."""
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    outs, carries = [], [core.initial(len(x)) if carry is None else carry]
    for t in range(x.shape[1]):
        outs.append(core(x[:, t : t + 1], carries[-1], is_first[:, t : t + 1], rng=rng))
        carries.append(outs[-1].carry)
    return outs, carries


def shown(outs: list[CoreOut], name: str) -> Tensor:
    """[B, T, K] of what was shown while acting."""
    return torch.cat([out.extras[name] for out in outs], dim=1)


def features(outs: list[CoreOut]) -> Tensor:
    return torch.cat([out.features for out in outs], dim=1)


def learn(core: StrategicCore, x: Tensor, carry: Tree, is_first: Tensor, kept: Tensor, **keys: Any) -> CoreOut:
    out: CoreOut = core(x, {**carry, "trace": kept}, is_first, **keys)
    return out


# --- the contract of every core ---


@pytest.mark.parametrize("persist", [False, True])
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("rule", RULES)
def test_a_window_is_the_same_as_its_steps_one_by_one(rule: str, entry: str, persist: bool) -> None:
    core, x = build(entry, retention=rule, persist=persist), inputs()
    is_first = torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.2
    outs, carries = act(core, x, is_first, seed=None)
    for begin in (0, 5):
        whole = core(x[:, begin:], carries[begin], is_first[:, begin:])
        torch.testing.assert_close(whole.features, features(outs)[:, begin:], atol=1e-5, rtol=0)
        assert torch.equal(whole.extras["recall_step"], shown(outs, "recall_step")[:, begin:])
        for (path, a), (_, b) in zip(tree_leaves(whole.carry), tree_leaves(carries[-1]), strict=True):
            if "held" not in path:  # an empty slot may hold anything
                torch.testing.assert_close(a, b, atol=1e-5, rtol=0, msg=path)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("rule", RULES)
def test_is_first_forgets(rule: str, entry: str) -> None:
    core, x, other = build(entry, retention=rule), inputs(), inputs(seed=1)
    a = core(torch.cat([other[:, :5], x[:, 5:]], dim=1), core.initial(B), firsts(0, 5))
    second = core.initial(B)
    second["episode"] += 1  # a greedy reservoir's chance is of it
    b = core(x[:, 5:], second, firsts(0, length=T - 5))
    torch.testing.assert_close(a.features[:, 5:], b.features, atol=1e-5, rtol=0)
    assert torch.equal(a.extras["recall_step"][:, 5:], b.extras["recall_step"])


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("rule", RULES)
def test_rows_do_not_mix(rule: str, entry: str) -> None:
    """In learning too, from slots filled before the window. (The chance of a reservoir is each row's own.)"""
    core, x, is_first = build(entry, retention=rule), inputs(), firsts(0)
    outs, carries = act(core, x, is_first)
    kept = shown(outs, "recall_step")
    whole = learn(core, x[:, 5:], carries[5], is_first[:, 5:], kept[:, 5:])
    row = slice(1, 2)
    carry = tree_map(lambda leaf: leaf[row], carries[5])
    alone = learn(core, x[row, 5:], carry, is_first[row, 5:], kept[row, 5:])
    torch.testing.assert_close(whole.features[row], alone.features, atol=1e-5, rtol=0)
    if rule != "reservoir":
        greedy = [core(part, core.initial(len(part)), is_first[: len(part)]).features for part in (x, x[row])]
        torch.testing.assert_close(greedy[0][row], greedy[1], atol=1e-5, rtol=0)


def test_a_step_costs_the_same_however_long_the_episode() -> None:
    core = build("Transformer")
    sizes = {path: leaf.shape for path, leaf in tree_leaves(core.initial(B))}
    _, carries = act(core, inputs(steps=40), firsts(0, length=40))
    for carry in (carries[1], carries[20], carries[40]):
        assert {path: leaf.shape for path, leaf in tree_leaves(carry)} == sizes
    assert all(bool(leaf.isfinite().all()) for _, leaf in tree_leaves(carries[-1]))


# --- learning from what was acted ---

VARIANTS: dict[str, dict[str, Any]] = {
    **{rule: {"retention": rule} for rule in RULES},
    "persist": {"persist": True},
    "no decay": {"decay_init": 0.0},
    "no ages": {"recall_age": False, "recall_events": False},
    "more slots than steps": {"slots": 2 * T},
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_learning_sees_what_acting_saw(variant: str, entry: str) -> None:
    """Of whole episodes and of windows cut amid one: features, slots and attention, with all entries embedded anew."""
    core, x, is_first = build(entry, **VARIANTS[variant]), inputs(), firsts(0)
    before = act(core, inputs(seed=1, steps=4), firsts(0, length=4))[1][-1]  # an episode before this one
    outs, carries = act(core, x, is_first, carry=before)
    kept = shown(outs, "recall_step")
    for begin in (0, 6):
        out = learn(core, x[:, begin:], carries[begin], is_first[:, begin:], kept[:, begin:])
        torch.testing.assert_close(out.features, features(outs)[:, begin:], atol=1e-5, rtol=0)
        for name in ("recall_weight", "recall_step"):
            torch.testing.assert_close(out.extras[name], shown(outs, name)[:, begin:], atol=1e-5, rtol=0)


def test_only_the_steps_that_are_read_come_out() -> None:
    core, x, is_first = build(), inputs(), firsts(0)
    outs, carries = act(core, x, is_first)
    at = torch.tensor([[11, 2, 2], [0, 5, 7], [9, 10, 1]])
    out = learn(core, x, carries[0], is_first, shown(outs, "recall_step"), at=at)
    expected = torch.stack([features(outs)[row, at[row]] for row in range(B)])
    torch.testing.assert_close(out.features, expected, atol=1e-5, rtol=0)
    assert out.extras["recall_step"].shape == (B, 3, K)


def test_a_window_of_two_episodes_is_refused() -> None:
    core, x = build(), inputs()
    outs, carries = act(core, x, firsts(0, 5))
    with pytest.raises(ValueError, match="amid a window"):
        learn(core, x, carries[0], firsts(0, 5), shown(outs, "recall_step"))


def test_gradient_reaches_what_was_kept_before_the_window() -> None:
    core, x, is_first = build(), inputs(), firsts(0)
    outs, carries = act(core, x, is_first)
    kept = shown(outs, "recall_step")
    assert ((kept[:, 6] >= 0) & (kept[:, 6] < 6)).any(), "some slot was filled before the window"
    u = carries[6]["held"]["u"].requires_grad_()
    learn(core, x[:, 6:], carries[6], is_first[:, 6:], kept[:, 6:]).features[:, 0].sum().backward()
    assert u.grad is not None
    held = (carries[6]["held"]["count"][..., None] == kept[:, 6, None]).any(dim=-1)  # still there at the first step
    assert bool((u.grad.flatten(2).abs().sum(dim=-1) > 0)[held & (carries[6]["held"]["count"] >= 0)].all())


def test_hindsight_sees_what_was_dropped_and_the_policy_does_not() -> None:
    core, x, is_first = build(retention="fifo", recall_events=False), inputs(), firsts(0)
    outs, carries = act(core, x, is_first)
    x.requires_grad_()
    out = learn(core, x, carries[0], is_first, shown(outs, "recall_step"))
    (recalled,) = torch.autograd.grad(out.features[:, -1].sum(), x, retain_graph=True)
    assert not recalled[:, : T - K].any() and bool(recalled[:, T - K :].flatten(2).any(dim=2).all())
    entries, last = out.inner, torch.full((B, 1), T - 1)
    logits = core.match_all(entries.data, entries.before + last)
    assert logits.shape == (B, 1, 2, T)
    (judged,) = torch.autograd.grad(core.recall_all(entries.data, entries.before + last, logits).sum(), x)
    assert bool(judged.flatten(2).any(dim=2).all())


@pytest.mark.parametrize(("recall_events", "taught"), [(True, 1.0), (True, 0.0), (False, 1.0)])
def test_what_reads_the_slots_teaches_worth_through_the_clock_of_events_alone(
    recall_events: bool, taught: float
) -> None:
    core, x, is_first = build(recall_events=recall_events), inputs(), firsts(0)
    core.events_teach = taught
    outs, carries = act(core, x, is_first)
    out = learn(core, x, carries[0], is_first, shown(outs, "recall_step"))
    out.features.sum().backward()
    assert any(bool(p.grad is not None and p.grad.any()) for p in core.worth.parameters()) is (
        recall_events and taught > 0
    )
    assert all(p.grad is not None and p.grad.any() for p in core.address.parameters())


# --- episodes, clocks and what is shown ---


def test_persistent_slots_outlive_the_episode() -> None:
    is_first = firsts(0, 4, 8)
    kept = {persist: shown(act(build(slots=T, persist=persist), inputs(), is_first)[0], "recall_step")
            for persist in (False, True)}  # fmt: skip
    assert [set(row[row >= 0].tolist()) for row in kept[False][0]] == [set(range(t % 4 + 1)) for t in range(T)]
    assert [set(row[row >= 0].tolist()) for row in kept[True][0]] == [set(range(t + 1)) for t in range(T)]


@pytest.mark.parametrize("persist", [False, True])
def test_events_are_counted_for_as_long_as_slots_are_kept(persist: bool) -> None:
    carries = act(build(persist=persist, slots=T), inputs(), firsts(0, 6))[1]
    time = torch.stack([carry["time"] for carry in carries], dim=1)  # [B, T+1]
    assert bool((time.diff(dim=1)[:, :6] > 0).all())
    assert bool((time[:, -1:] >= carries[-1]["held"]["time"]).all())
    before = carries[-1]["held"]["time"].amin(dim=1) < 0  # what is held of the episode before is events away
    assert before.tolist() == [persist] * B


def test_events_of_many_episodes_do_not_swallow_those_of_this_one() -> None:
    """Where slots persist: only differences are read, and in a sum of 2e7 a tick would be rounded away."""
    core, x = build(persist=True), inputs()
    begun = act(core, x, firsts(0))[1][-1]
    old = {**begun, "time": begun["time"] + 2e7, "held": {**begun["held"], "time": begun["held"]["time"] + 2e7}}
    ticks = []
    for carry in (begun, old):
        carry = core(x[:, :1], carry, firsts(0, length=1)).carry
        ticks.append(core(x[:, 1:2], carry, firsts(length=1)).carry["time"] - carry["time"])
    torch.testing.assert_close(ticks[1], ticks[0])


def test_many_entries_that_are_worth_little_are_few_events() -> None:
    """What was learned of ages in events in short episodes must hold in long ones."""
    core, length = build(), 2000
    worth = torch.full((B, length), -0.5)  # 2.5 below the best: e^-5 a step would come to thirteen
    worth[:, [0, 700]] = torch.tensor([2.0, 1.9])
    best, before = torch.full((B, length), 2.0), torch.zeros(B)
    best[:, 0] = -1e3
    time = core._events(worth, best, before)
    assert 1.7 < float(time[0, -1] - time[0, 0] + 1) < 1.9
    half = core._events(worth[:, :900], best[:, :900], before)
    rest = core._events(worth[:, 900:], best[:, 900:], half[:, -1])
    torch.testing.assert_close(torch.cat([half, rest], dim=1), time, atol=1e-4, rtol=0)


def test_each_number_of_events_up_to_three_can_be_asked_for() -> None:
    """Each by weights of a moderate size: attention on the second of three was 0.64 where the others had 0.9."""
    core, ages = build(), torch.linspace(0, 64, 641)
    peaks = core._age_features("time", ages[None, None])[0, 0, len(DECAYS) : -1]  # [3, 641]
    torch.testing.assert_close(ages[peaks.argmax(dim=1)], torch.tensor(DECAYS))
    torch.testing.assert_close(peaks.amax(dim=1), torch.ones(len(DECAYS)))
    told = core._age_features("time", torch.tensor([[[1.0, 2.0, 3.0]]]))[0, 0].T  # [3, EVENT_AGE]
    weights = torch.linalg.lstsq(told, torch.eye(3), driver="gelsd").solution  # [EVENT_AGE, 3] the smallest that do
    assert float(weights.norm(dim=0).max()) < 10  # without the peaks 15


def test_what_was_dropped_is_no_measure_of_events() -> None:
    """Else the clock would remember the best entry of all, by no slot."""
    core, x = build(retention="fifo"), inputs()
    nn.init.normal_(core.worth[-1].weight, std=3.0)
    other = x.clone()
    other[:, 0] = -x[:, 0]
    ticks = [torch.stack([carry["time"] for carry in act(core, told, firsts(0))[1]], dim=1).diff(dim=1)
             for told in (x, other)]  # fmt: skip
    assert bool((ticks[0][:, 1 : K + 1] != ticks[1][:, 1 : K + 1]).any())
    torch.testing.assert_close(ticks[0][:, K + 1 :], ticks[1][:, K + 1 :])


@pytest.mark.parametrize("clock", [True, False])
def test_entries_are_told_the_step_by_one_key(clock: bool) -> None:
    core, same = build(clock=clock), inputs()[:, :1].expand(B, T, D)
    worth = core(same, core.initial(B), firsts(0)).extras["recall_worth"][:, -1]  # [B, K] of what is held at the end
    assert bool((worth.std(dim=1) > 1e-3).all()) is clock


def test_clock_features_are_bounded_and_tell_steps_apart() -> None:
    t = torch.tensor([0, 1, 2, 3, 15, 16, 31, 1000, 10**6])
    told = clock_features(t)
    assert told.abs().max() <= 1
    early = clock_features(torch.arange(32))
    assert torch.cdist(early, early).fill_diagonal_(1).min() > 0.01


@pytest.mark.parametrize("slots", [3, 1100])
def test_tables_of_times_tell_what_their_formula_tells(slots: int) -> None:
    """Also beyond their last row; ages end at twice the slots."""
    t = torch.tensor([*range(5000), 10**6, 10**6 + 7])
    faded = torch.exp(-t[:, None].double() / torch.tensor([1.0, 4.0, 16.0]))
    angle = 2 * math.pi * t[:, None].double() / torch.tensor([4.0, 8.0, 16.0, 32.0])
    clock = torch.cat([faded, angle.sin(), angle.cos()], dim=1).float()
    torch.testing.assert_close(clock_features(t), clock, atol=1e-5, rtol=0)
    assert float(clock_features(t)[:, :3].min()) >= torch.finfo(torch.float32).tiny, "products of less are slow"
    ages = torch.cat([clock, t[:, None].clamp(max=2 * slots)], dim=1)
    told = build(slots=slots)._age_features("count", t[None, None])[0, 0].T
    torch.testing.assert_close(told, ages, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("heads", [1, 2])
def test_what_is_recalled_is_shown(rule: str, heads: int) -> None:
    core, steps = build(retention=rule, heads=heads), 8
    outs, carries = act(core, inputs(steps=steps), firsts(0, length=steps))
    step, weight, worth = (shown(outs, f"recall_{name}") for name in ("step", "weight", "worth"))
    assert step.shape == weight.shape == worth.shape == (B, steps, K)
    held = step >= 0
    for t in range(steps):
        for row in range(B):
            kept = step[row, t][held[row, t]].tolist()
            assert len(set(kept)) == len(kept) == (0 if rule == "none" else min(t + 1, K))
            assert all(0 <= one <= t for one in kept)
    assert step.dtype == torch.int64 and not weight[~held].any()
    total = weight.sum(dim=-1)[held.any(dim=-1)]
    torch.testing.assert_close(total, torch.ones_like(total), msg="attention is the mean of the heads: it sums to 1")
    held_worth = carries[-1]["held"]["worth"]
    torch.testing.assert_close(worth[:, -1][held[:, -1]], held_worth[held[:, -1]])


def test_an_entry_stays_in_its_slot() -> None:
    """A slot changes only when something new was put into it: pictures of slots over time can be read."""
    step = shown(act(build(), inputs(), firsts(0))[0], "recall_step")
    now = torch.arange(1, T)[None, :, None]
    assert bool(((step[:, 1:] == step[:, :-1]) | (step[:, 1:] == now)).all())


# --- retention against a scalar reference ---


def entries(rows: int, steps: int, **leaves: Tensor) -> dict[str, Tensor]:
    zeros = torch.zeros(rows, steps)
    return {"worth": zeros, "noise": zeros, "count": torch.arange(steps).expand(rows, steps), **leaves}


def kept_by(rule: Any, slots: int, data: dict[str, Tensor]) -> Tensor:
    """What is held at the end [rows, slots], when entries come one after the other."""
    retention, (rows, steps) = Retention(rule, slots), data["count"].shape
    index = torch.full((rows, slots), -1)
    for new in range(steps):
        held = {name: leaf.gather(1, index.clamp(min=0)) for name, leaf in data.items()}
        slot = retention.slot(held, index >= 0, {name: leaf[:, new : new + 1] for name, leaf in data.items()})
        index = torch.where(slot, new, index)
    return index


def plainly(rule: str, slots: int, worth: list[float], noise: list[float], decay: list[float]) -> set[int]:
    held: list[int] = []
    for now in range(len(worth)):

        def priority(i: int, now: int = now) -> float:
            age = now - i
            if rule == "fifo":
                return -float(age)
            return noise[i] if rule == "reservoir" else worth[i] + noise[i] - decay[i] * min(age, 2 * slots)

        if rule == "none":
            continue
        if len(held) < slots:
            held.append(now)
        elif priority(now) > min(priority(i) for i in held):
            held[min(range(slots), key=lambda place: priority(held[place]))] = now
    return set(held)


@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_retention_equals_a_plain_loop(rule: str, decays: bool) -> None:
    rows, steps, slots = 20, 30, 4
    rng = torch.Generator().manual_seed(0)
    worth, noise, decay = (torch.randn(rows, steps, generator=rng) for _ in range(3))
    decay = decay.abs() * 0.3 if decays else torch.zeros(rows, steps)
    data = entries(rows, steps, worth=worth, noise=noise, **({"decay": decay} if decays else {}))
    for row, index in enumerate(kept_by(rule, slots, data)):
        expected = plainly(rule, slots, worth[row].tolist(), noise[row].tolist(), decay[row].tolist())
        assert set(index[index >= 0].tolist()) == expected


def test_the_first_in_are_the_first_out() -> None:
    assert sorted(kept_by("fifo", 3, entries(1, 10))[0].tolist()) == [7, 8, 9]
    steep = entries(1, 10, decay=torch.full((1, 10), 50.0), noise=torch.randn(1, 10))
    assert sorted(kept_by("learned", 3, steep)[0].tolist()) == [7, 8, 9], "steep decay is that too"
    assert kept_by("none", 3, entries(1, 10))[0].tolist() == [-1, -1, -1]


def included(rule: Any, slots: int, worth: Tensor, rows: int) -> np.ndarray:
    """How often each entry is held at the end, in z-scores' reach: `rows` trials."""
    steps = len(worth)
    count = torch.arange(steps).expand(rows, steps)
    noise = Retention(rule, slots).noise(count, ONCE, torch.Generator().manual_seed(0))
    index = kept_by(rule, slots, entries(rows, steps, worth=worth.expand(rows, steps), noise=noise))
    return np.bincount(index.flatten().numpy(), minlength=steps) / rows


def z_scores(found: np.ndarray, expected: np.ndarray, rows: int) -> np.ndarray:
    return (found - expected) / np.sqrt(expected * (1 - expected) / rows)


def test_learned_weights_are_those_of_efraimidis_and_spirakis() -> None:
    """Two of five are held as if drawn one after the other in proportion to exp(ρ), without putting back."""
    weight = np.array([1.0, 4.0, 0.5, 2.0, 1.0])
    expected = np.zeros(5)
    for i, j in itertools.permutations(range(5), 2):
        chance = weight[i] / weight.sum() * weight[j] / (weight.sum() - weight[i])
        expected[[i, j]] += chance
    found = included("learned", 2, torch.tensor(np.log(weight), dtype=torch.float), 20_000)
    assert abs(z_scores(found, expected, 20_000)).max() < 4.5


def test_a_reservoir_is_even_whatever_the_entries_are_worth() -> None:
    steps, slots, rows = 12, 3, 20_000
    found = included("reservoir", slots, torch.linspace(-3, 3, steps), rows)
    z = z_scores(found, np.full(steps, slots / steps), rows)
    assert (z**2).sum() * (steps - 1) / steps < 35  # χ² with 11 degrees of freedom, p < 0.0003


@pytest.mark.parametrize("untaught", ["hindsight_coef", "usefulness_coef"])
def test_what_nobody_teaches_keeps_by_chance(untaught: str) -> None:
    """All entries are worth the same then; greedy, the first K would never be replaced, and a cue is often the first."""
    core, steps = build(**{untaught: 0}), 40
    outs, _ = act(core, inputs(steps=steps), firsts(0, length=steps))
    held = shown(outs, "recall_step")[:, -1]  # [B, K]
    assert all(sorted(row) != list(range(K)) for row in held.tolist())


def test_a_greedy_reservoir_is_even_too_and_uses_no_chance() -> None:
    """In evaluation it has no generator: which entries stay differs between worlds, and repeats."""
    steps, slots, rows = 12, 3, 5_000
    retention, count = Retention("reservoir", slots), torch.arange(steps).expand(rows, steps)
    noise = retention.noise(count, ONCE, None)
    assert torch.equal(noise, retention.noise(count, ONCE, None))
    index = kept_by("reservoir", slots, entries(rows, steps, noise=noise))
    found = np.bincount(index.flatten().numpy(), minlength=steps) / rows
    z = z_scores(found, np.full(steps, slots / steps), rows)
    assert (z**2).sum() * (steps - 1) / steps < 35


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_greedy_reservoir_holds_other_steps_in_other_episodes(rows: int) -> None:
    """It held the same ones in each episode of a world: all cues of all of them, or none."""
    steps, episodes = 16, 400
    core = build(retention="reservoir", slots=4)
    carry, held = core.initial(rows), np.zeros((episodes, rows))
    for episode in range(episodes):
        _, carries = act(core, torch.zeros(rows, steps, D), torch.arange(steps).expand(rows, steps) == 0, carry, None)
        carry = carries[-1]
        held[episode] = (carry["held"]["count"] == 0).any(dim=1)
    assert held.mean(0) == pytest.approx(np.full(rows, 0.25), abs=4 * (0.25 * 0.75 / episodes) ** 0.5)


def test_the_first_step_of_a_greedy_reservoir_is_as_any_other() -> None:
    """Of the first world's first episode it always had the least noise there is."""
    noise = Retention("reservoir", 4).noise(torch.arange(1000).expand(1, 1000), ONCE, None)
    assert noise[0, 0] > noise.min()


def test_a_greedy_reservoir_of_a_long_stream_is_even() -> None:
    """Its noise had 256 values: once all slots had the greatest, nothing new got in."""
    steps, slots, rows = 4096, 16, 400
    noise = Retention("reservoir", slots).noise(torch.arange(steps).expand(rows, steps), ONCE, None)
    index = kept_by("reservoir", slots, entries(rows, steps, noise=noise))
    quarters = np.bincount(index.flatten().numpy() // (steps // 4), minlength=4) / (rows * slots)
    assert quarters == pytest.approx(np.full(4, 0.25), abs=4 * (0.25 * 0.75 / (rows * slots)) ** 0.5)


@pytest.mark.parametrize("rule", RULES)
def test_noise_only_while_exploring_and_once_for_each_entry(rule: str) -> None:
    core, x, is_first = build(retention=rule), inputs(steps=30), firsts(0, length=30)
    greedy = [shown(act(core, x, is_first, seed=None)[0], "recall_step") for _ in range(2)]
    assert torch.equal(*greedy)
    one, other = (shown(act(core, x, is_first, seed=seed)[0], "recall_step") for seed in (1, 2))
    assert torch.equal(one, other) == (rule in ("fifo", "none"))
    noise = [carry["held"]["noise"] for carry in act(core, x, is_first, seed=1)[1]]
    same = one[:, 10:11] == one[:, 9:10]  # slots that kept their entry kept its noise
    assert torch.equal(noise[11][same[:, 0]], noise[10][same[:, 0]])


def test_gumbel_noise() -> None:
    noise = Retention("learned", 3).noise(torch.zeros(1, 50_000), ONCE, torch.Generator().manual_seed(0))
    assert bool(noise.isfinite().all())
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.03)
    assert float(noise.std()) == pytest.approx(math.pi / math.sqrt(6), abs=0.03)
