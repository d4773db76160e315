"""Returns and advantages against loops that follow the definition, one row at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_lab.lib.returns import apart_by_step, explained_variance, gae, less_others, n_step_returns


def random_rows(seed: int, B: int, T: int) -> dict[str, torch.Tensor]:
    """Rows of NEXT_STEP autoreset: the row after an end is masked."""
    rng = np.random.default_rng(seed)
    terminated, truncated, mask = np.zeros((3, B, T), bool)
    for b in range(B):
        reset = False
        for t in range(T):
            mask[b, t] = not reset
            end = rng.choice(3, p=[0.6, 0.2, 0.2]) if not reset else 0
            terminated[b, t], truncated[b, t] = end == 1, end == 2
            reset = end > 0
    reward = rng.normal(size=(B, T)) * mask
    arrays = {
        "reward": reward,
        "value": rng.normal(size=(B, T + 1)),
        "terminated": terminated,
        "truncated": truncated,
        "mask": mask,
    }
    return {name: torch.as_tensor(array) for name, array in arrays.items()}


def brute_gae(rows: dict[str, torch.Tensor], gamma: float, lam: float) -> torch.Tensor:
    """`A_t = Σ_l (γλ)^l δ_{t+l}` within the episode."""
    r, v, term, trunc, mask = (rows[k].numpy() for k in ("reward", "value", "terminated", "truncated", "mask"))
    B, T = r.shape
    out = np.zeros((B, T))
    for b in range(B):
        for t in range(T):
            if not mask[b, t]:
                continue
            for step, u in enumerate(range(t, T)):
                bootstrap = 0.0 if term[b, u] else v[b, u + 1]
                out[b, t] += (gamma * lam) ** step * (r[b, u] + gamma * bootstrap - v[b, u])
                if term[b, u] or trunc[b, u]:
                    break
    return torch.as_tensor(out)


def brute_n_step(rows: dict[str, torch.Tensor], gamma: float, n: int) -> torch.Tensor:
    r, v, term, trunc, mask = (rows[k].numpy() for k in ("reward", "value", "terminated", "truncated", "mask"))
    B, T = r.shape
    out = np.zeros((B, T))
    for b in range(B):
        for t in range(T):
            if not mask[b, t]:
                continue
            u = t
            for k in range(n):
                u = t + k
                out[b, t] += gamma**k * r[b, u]
                if term[b, u] or trunc[b, u] or u == T - 1:
                    break
            out[b, t] += 0.0 if term[b, u] else gamma ** (u - t + 1) * v[b, u + 1]
    return torch.as_tensor(out)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 12), st.floats(0, 1), st.floats(0, 1))
def test_gae_equals_its_sum(seed: int, B: int, T: int, gamma: float, lam: float) -> None:
    rows = random_rows(seed, B, T)
    torch.testing.assert_close(gae(**rows, gamma=gamma, lam=lam), brute_gae(rows, gamma, lam), atol=1e-6, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 12), st.floats(0, 1), st.integers(1, 15))
def test_n_step_equals_its_sum(seed: int, B: int, T: int, gamma: float, n: int) -> None:
    rows = random_rows(seed, B, T)
    torch.testing.assert_close(
        n_step_returns(**rows, gamma=gamma, n=n), brute_n_step(rows, gamma, n), atol=1e-6, rtol=0
    )


def test_truncation_does_not_leak() -> None:
    """skrl#449: two truncated episodes of two steps, r = 1, γ = λ = 1, V = 0 are worth [2, 1, 2, 1], not [4, 3, 2, 1]."""
    no, truncated = torch.zeros(1, 4, dtype=torch.bool), torch.tensor([[False, True, False, True]])
    advantage = gae(torch.ones(1, 4), torch.zeros(1, 5), no, truncated, ~no, gamma=1.0, lam=1.0)
    assert advantage.tolist() == [[2, 1, 2, 1]]


def test_nothing_comes_over_a_row_that_leads_to_other_worlds() -> None:
    """Where a rollout worker was lost nothing is flagged: the masked row alone says that an episode ends."""
    no, mask = torch.zeros(1, 4, dtype=torch.bool), torch.tensor([[True, False, True, True]])
    reward, value = torch.tensor([[1.0, 0.0, 5.0, 5.0]]), torch.tensor([[0.0, 10.0, 1e3, 1e3, 1e3]])
    assert n_step_returns(reward, value, no, no, mask, gamma=0.9, n=3)[0, 0].item() == 10.0
    assert gae(reward, value, no, no, mask, gamma=0.9, lam=0.95)[0, 0].item() == 10.0


def test_truncation_bootstraps_and_termination_does_not() -> None:
    one, no, yes = torch.ones(1, 1), torch.tensor([[False]]), torch.tensor([[True]])
    value = torch.tensor([[0.0, 10.0]])
    assert gae(one, value, no, yes, yes, gamma=0.5, lam=1.0).item() == 6.0
    assert gae(one, value, yes, no, yes, gamma=0.5, lam=1.0).item() == 1.0


def test_wrong_shape_is_refused() -> None:
    flags = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(AssertionError, match="T\\+1"):
        gae(torch.ones(2, 3), torch.zeros(2, 3), flags, flags, ~flags, 0.9, 0.9)


def test_explained_variance() -> None:
    target = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(target, target) == 1
    assert explained_variance(torch.full((3,), 2.0), target) == 0
    assert explained_variance(target, torch.ones(3)).isnan()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 12))
def test_what_others_have_at_the_same_step_is_taken_off(seed: int, B: int, T: int) -> None:
    """By a loop: all that is valid of that step in other rows; what is of an episode that began earlier stays."""
    rows, rng = random_rows(seed, B, T), np.random.default_rng(seed)
    mask, x = rows["mask"], rows["reward"]
    is_first = torch.zeros(B, T + 1, dtype=torch.bool)
    is_first[:, 0] = torch.as_tensor(rng.random(B) < 0.7)
    is_first[:, 1:T] = mask[:, 1:] & ~mask[:, :-1]
    step = {}
    for b in range(B):
        t0 = None
        for t in range(T):
            t0 = t if is_first[b, t] else t0
            if t0 is not None and mask[b, t]:
                step[b, t] = t - t0
    expected, apart = x.clone(), torch.zeros_like(x)
    for at, t in step.items():
        others = [float(x[other]) for other, u in step.items() if u == t and other[0] != at[0]]
        expected[at] -= sum(others) / (len(others) + 1)
        apart[at] = x[at] - np.mean([float(x[other]) for other, u in step.items() if u == t])
    torch.testing.assert_close(less_others(x, is_first, mask), expected)
    torch.testing.assert_close(apart_by_step(x, is_first, mask), apart)


def test_a_baseline_of_time_leaves_the_gradients_mean_as_it_is() -> None:
    """Two actions, one pays 1, and a noise that all episodes share; 4,000 batches of 3. Control: with its own in the
    mean the gradient is too small by a third."""
    rng = torch.Generator().manual_seed(0)
    action = torch.randint(2, (4000, 3, 1), generator=rng).double()
    x = action + torch.randn(4000, 1, 1, generator=rng).double()
    first, mask = torch.ones(3, 1, dtype=torch.bool), torch.ones(3, 1, dtype=torch.bool)
    score = action - 0.5  # of a policy that is even
    by_others = torch.stack([less_others(one, first, mask) for one in x])
    # the shrunk mean leaves a third of the shared noise, which goes with no action
    assert float((score * by_others).mean()) == pytest.approx(0.25, abs=0.01)
    assert float((score * (x - x.mean(dim=1, keepdim=True))).mean()) == pytest.approx(0.25 * 2 / 3, abs=0.01)
    assert float((score * by_others).var()) < 0.5 * float((score * x).var())


def test_an_action_that_ends_an_episode_has_no_part_in_its_baseline() -> None:
    """Whether the next episode begins in its row is its doing: what pays the same everywhere is then no advantage."""
    rng = torch.Generator().manual_seed(0)
    gradient = torch.zeros(4000, 2, 4)
    for i in range(4000):
        ends = torch.rand(2, 4, generator=rng) < 0.5
        first = torch.cat([torch.ones(2, 1, dtype=torch.bool), ends], dim=1)
        gradient[i] = (ends.float() - 0.5) * less_others(torch.ones(2, 4), first, torch.ones(2, 4, dtype=torch.bool))
    assert float(gradient.mean()) == pytest.approx(0.0, abs=4 * float(gradient.std()) / gradient.numel() ** 0.5)
