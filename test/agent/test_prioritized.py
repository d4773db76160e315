"""Prioritized replay against its formulas: who is drawn how often, the weights that make up for it, who enters how."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from worlds import Lives, replay

from bench import cliffwalk
from slm_lab.agent.memory.prioritized import PrioritizedReplay

EPSILON = 0.01


def filled(steps: int = 30, E: int = 2, **keys: Any) -> tuple[Any, Lives]:
    lives, memory = Lives(E, seed=4), replay(PrioritizedReplay, E, **{"epsilon": EPSILON, "max_size": 16 * E, **keys})
    for _ in range(steps):
        memory.update(lives.row())
    return memory, lives


def held(memory: Any, lives: Lives) -> tuple[np.ndarray, np.ndarray]:
    """Rows and worlds [N] of all that can be drawn, by the reference."""
    rows = range(memory.rows.first, memory.rows.count)
    t, env = np.array([(t, e) for e, life in enumerate(lives.lived) for t in rows if life[t]]).T
    return t, env


def set_priorities(memory: Any, lives: Lives, seed: int = 0) -> dict[tuple[int, int], float]:
    """Give every row that can be drawn a priority by chance, one of them 0: (row, world) -> |δ|."""
    t, env = held(memory, lives)
    error = np.random.default_rng(seed).exponential(size=len(t)).astype(np.float32)
    error[0] = 0.0
    memory.feedback(memory.index(t, env), error)
    return {key: float(e) for key, e in zip(zip(t.tolist(), env.tolist(), strict=True), error, strict=True)}


def chances(errors: dict[tuple[int, int], float], alpha: float) -> dict[tuple[int, int], float]:
    """P(i) = p_i^α / Σ p^α, p = |δ| + ε (eq. 1)."""
    powers = {key: (error + EPSILON) ** alpha for key, error in errors.items()}
    return {key: power / sum(powers.values()) for key, power in powers.items()}


def pairs(memory: Any, drawn: Any) -> list[tuple[int, int]]:
    return list(zip(*(x.tolist() for x in memory.where(drawn.at)), strict=True))


def enter_weight(memory: Any, t: int, env: int) -> float:
    """p^α of a row as it stands."""
    return float(memory.priorities.table.leaf[memory.index(np.array(t), np.array(env))])


@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_rows_are_drawn_as_often_as_they_should(alpha: float, batch_size: int) -> None:
    memory, lives = filled(alpha=alpha)
    expected = chances(set_priorities(memory, lives), alpha)
    counts = dict.fromkeys(expected, 0)
    for _ in range(6000 // batch_size):
        for key in pairs(memory, memory.draw(batch_size)):
            counts[key] += 1
    n = sum(counts.values())
    often = [key for key in expected if expected[key] * n >= 5]
    rare = set(expected) - set(often)
    observed = [counts[key] for key in often] + [sum(counts[key] for key in rare)] * bool(rare)
    chance = [expected[key] for key in often] + [sum(expected[key] for key in rare)] * bool(rare)
    assert stats.chisquare(observed, np.array(chance) * n).pvalue > 0.001
    if batch_size > 1 and alpha:  # one from each equal share: closer than chance would come
        assert stats.chisquare(observed, np.array(chance) * n).statistic < len(observed)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_are_those_of_the_formula(alpha: float, beta: float) -> None:
    """w_i = (N P(i))^−β / max w, the largest of the batch."""
    memory, lives = filled(alpha=alpha, beta=beta, beta_end=beta)
    chance = chances(set_priorities(memory, lives), alpha)
    drawn = memory.draw(20)
    raw = np.array([(len(chance) * chance[key]) ** -beta for key in pairs(memory, drawn)])
    np.testing.assert_allclose(drawn.weight, raw / raw.max(), rtol=1e-6)
    assert drawn.weight.dtype == np.float32
    batch = memory.batch(drawn)
    np.testing.assert_array_equal(batch.weight, drawn.weight)


def test_full_correction_gives_the_mean_of_a_uniform_draw() -> None:
    memory, lives = filled(alpha=0.6, beta=1.0, batch_size=32)
    t, env = held(memory, lives)
    errors = set_priorities(memory, lives)
    value = {key: error**2 + np.sin(key[0]) for key, error in errors.items()}  # large where drawn often
    total = weights = plain = 0.0
    for _ in range(500):
        index = memory.priorities.draw(32, memory.rng)
        # the formula's own weights: those divided by each batch's largest are not on one scale
        weight = 1 / memory.priorities.table.leaf[index]
        where = dict(zip(memory.index(t, env).tolist(), zip(t.tolist(), env.tolist(), strict=True), strict=True))
        x = np.array([value[where[i]] for i in index.tolist()])
        total, weights, plain = total + (weight * x).sum(), weights + weight.sum(), plain + x.mean() / 500
    uniform = float(np.mean(list(value.values())))
    assert total / weights == pytest.approx(uniform, rel=0.03)
    assert plain > 1.3 * uniform, "without weights it is another mean"


def test_weights_of_a_batch_correct_it() -> None:
    """As above, by what `sample` gives: with one batch as large as can be, the weighted mean is the uniform one."""
    memory, lives = filled(alpha=1.0, beta=1.0, batch_size=50_000)
    errors = set_priorities(memory, lives)
    batch = memory.sample()
    t, env = held(memory, lives)
    error_at = {
        int(memory.index(np.array(a), np.array(b))): errors[a, b] for a, b in zip(t.tolist(), env.tolist(), strict=True)
    }
    x = np.array([error_at[i] for i in batch.index.tolist()])
    assert (batch.weight * x).sum() / batch.weight.sum() == pytest.approx(np.mean(list(errors.values())), rel=0.02)


@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_new_rows_enter_at_the_largest_live_priority(alpha: float) -> None:
    """α applied once; a largest one that was evicted, or lowered, no longer counts."""
    lives, memory = Lives(1, longest=10**6), replay(PrioritizedReplay, alpha=alpha, epsilon=EPSILON, max_size=5)
    zero = np.array([0])

    def lived(error: float | None = None) -> float:
        """One more row: p^α that it enters with; then its error."""
        memory.update(lives.row())
        t = memory.rows.count - 1
        weight = enter_weight(memory, t, 0)
        if error is not None:
            memory.feedback(memory.index(np.array([t]), zero), np.array([error]))
        return weight

    assert lived(2.0) == 1.0, "the first one: 1"
    assert lived(7.0) == pytest.approx((2 + EPSILON) ** alpha)
    assert lived(1.0) == pytest.approx((7 + EPSILON) ** alpha)
    memory.feedback(memory.index(np.array([1]), zero), np.array([0.5]))
    assert lived(0.1) == pytest.approx((2 + EPSILON) ** alpha), "the largest was lowered"
    lived(0.1)
    assert lived(0.1) == pytest.approx((1 + EPSILON) ** alpha), "row 0 with its 2 was evicted before row 5 came"
    for _ in range(6):
        lived(0.1)
    assert lived() == pytest.approx((0.1 + EPSILON) ** alpha)


def test_beta_rises_with_frames_and_nothing_else() -> None:
    memory, lives = filled(steps=0, E=3, alpha=1.0, beta=0.4, beta_end_frame=100, batch_size=4)
    frames = 0
    for _ in range(60):
        row = lives.row()
        memory.update(row)
        frames += int(row.mask.sum())
        t, env = held(memory, lives)
        memory.feedback(memory.index(t, env), 1.0 + np.arange(len(t)))
        for _ in range(3):
            drawn = memory.draw(4)
            p = memory.priorities.table.leaf[drawn.at]
            beta = min(0.4 + 0.6 * frames / 100, 1.0)
            np.testing.assert_allclose(drawn.weight, (p.min() / p) ** beta, rtol=1e-5)
    assert frames > 100
    assert replay(PrioritizedReplay, max_frame=777).priorities.beta_end_frame == 777


def test_one_row_is_a_batch() -> None:
    memory, lives = filled(batch_size=1)
    set_priorities(memory, lives)
    batch = memory.sample()
    assert batch.reward.shape == (1, 1)
    assert batch.weight.tolist() == [1.0]
    memory.feedback(batch.index, np.array([3.0]))


def test_the_newest_row_gets_its_own_priority() -> None:
    """CER's rows are learned from like others: their error must not land on the row that was drawn in their place."""
    memory, lives = filled(E=1, use_cer=True, batch_size=4, alpha=1.0)
    errors = set_priorities(memory, lives)
    newest = max(errors)[0]
    drawn = memory.draw(4)
    batch, t = memory.batch(drawn), memory.where(drawn.at)[0]
    assert t[0] == newest
    memory.feedback(batch.index, np.array([50.0, 1.0, 1.0, 1.0]))
    again = [row for row, _ in errors if row in t[1:] and row != newest]
    # drawn once more beside being the newest, the last word counts: then it is one of the two
    assert enter_weight(memory, newest, 0) == pytest.approx(50 + EPSILON) or newest in t[1:]
    for row in again:
        assert enter_weight(memory, row, 0) == pytest.approx(1 + EPSILON)
    for row in {row for row, _ in errors} - set(t.tolist()):
        assert enter_weight(memory, row, 0) == pytest.approx(errors[row, 0] + EPSILON), "others keep theirs"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from([1, 3]), st.integers(2, 30), st.integers(1, 80), st.integers(0, 99))
def test_only_held_rows_that_were_played_have_a_weight(E: int, max_size: int, steps: int, seed: int) -> None:
    """With learning in between: the evicted and those never played are out, everyone else is in with what it got."""
    lives = Lives(E, seed)
    memory = replay(PrioritizedReplay, E, max_size=max_size, batch_size=5, alpha=1.0, epsilon=EPSILON, seed=seed)
    rng, known = np.random.default_rng(seed), {}
    for _ in range(steps):
        row = lives.row()
        t = memory.rows.count
        live = [
            known[k] for k in known if k[0] >= t - -(-max_size // E) + 1
        ]  # the evicted are gone when this one enters
        known |= {(t, e): max(live, default=1.0) for e in np.flatnonzero(row.mask).tolist()}
        memory.update(row)
        known = {key: weight for key, weight in known.items() if key[0] >= memory.rows.first}
        if known:
            drawn = memory.draw(5)
            assert set(pairs(memory, drawn)) <= set(known)
            error = rng.exponential(size=5)
            memory.feedback(drawn.at, error)
            for key in pairs(memory, drawn):
                choices = [e + EPSILON for k, e in zip(pairs(memory, drawn), error, strict=True) if k == key]
                known[key] = enter_weight(memory, *key)
                assert min(abs(known[key] / c - 1) for c in choices) < 1e-6
    leaf = memory.priorities.table.leaf.copy()
    for key, weight in known.items():
        assert enter_weight(memory, *key) == pytest.approx(weight)
        leaf[memory.index(*map(np.array, key))] = 0.0
    assert not leaf.any()


def test_rows_that_taught_nothing_come_back_now_and_then() -> None:
    memory, lives = filled(alpha=0.6, batch_size=32)
    t, env = held(memory, lives)
    memory.feedback(memory.index(t, env), np.zeros(len(t)))
    assert {key for _ in range(50) for key in pairs(memory, memory.draw(32))} == set(
        zip(t.tolist(), env.tolist(), strict=True)
    )


def test_the_blind_cliffwalk_takes_five_times_fewer_updates() -> None:
    """Schaul et al. 2016, figure 1; n = 10 to 12 by `python -m bench.cliffwalk`."""
    plain, better = (
        np.median([run(8, seed) for seed in range(3)]) for run in (cliffwalk.uniform, cliffwalk.prioritized)
    )
    assert plain > 5 * better
