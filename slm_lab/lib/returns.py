"""Returns and advantages, typed once for the whole lab: pure functions over `[B, T]` tensors.

Conventions: `value[:, t]` belongs to `obs[:, t]`, so it has T+1 columns. Nothing goes from one episode into the one
before: recursions are cut at `terminated | truncated`, and where a masked row follows (autoreset, padding, or one that
leads from the worlds of a lost rollout worker to new ones).
"""

from __future__ import annotations

import torch
from torch import Tensor


def _check(reward: Tensor, value: Tensor, *others: Tensor) -> None:
    B, T = reward.shape
    assert value.shape == (B, T + 1), f"value {tuple(value.shape)} must be [B, T+1] = {(B, T + 1)}"
    for other in others:
        assert other.shape == (B, T), f"{tuple(other.shape)} must be [B, T] = {(B, T)}"


def td_error(
    reward: Tensor, value: Tensor, terminated: Tensor, truncated: Tensor, mask: Tensor, gamma: float
) -> Tensor:
    """One-step errors `δ_t = r_t + γ (1 − terminated_t) V(o_{t+1}) − V(o_t)` `[B, T]`; 0 on masked rows."""
    _check(reward, value, terminated, truncated, mask)
    return (reward + gamma * ~terminated * value[:, 1:] - value[:, :-1]) * mask


def gae(
    reward: Tensor, value: Tensor, terminated: Tensor, truncated: Tensor, mask: Tensor, gamma: float, lam: float
) -> Tensor:
    """Generalised advantage estimates `[B, T]`; 0 on masked rows.

    `A_t = δ_t + γλ (1 − ended_t) A_{t+1}`, where
    `ended = terminated | truncated`: a truncation bootstraps but lets nothing through from the next episode.
    With `value = 0` and `λ = 1` this is the discounted return to go.

    Source: Schulman et al. 2016, arXiv 1506.02438, eq. 16.
    """
    delta = td_error(reward, value, terminated, truncated, mask, gamma)
    through = gamma * lam * (~(terminated | truncated) & mask)
    advantage = [torch.zeros_like(delta[:, 0])]  # from the last step on
    for error, follows in zip(delta.unbind(1)[::-1], through.unbind(1)[::-1], strict=True):
        advantage.append(torch.addcmul(error, follows, advantage[-1]))
    return torch.stack(advantage[:0:-1], dim=1)


def n_step_returns(
    reward: Tensor, value: Tensor, terminated: Tensor, truncated: Tensor, mask: Tensor, gamma: float, n: int
) -> Tensor:
    """n-step returns `[B, T]`: `Σ_{k<n} γ^k r_{t+k} + γ^n V(o_{t+n})`, shorter at ends; 0 on masked rows.

    `G⁰_t = V(o_t)`; `Gᵐ_t = r_t + γ (1 − terminated_t) · (V(o_{t+1}) if the episode or window ends at t, or nobody
    played the next row, else Gᵐ⁻¹_{t+1})`.

    Source: Sutton & Barto 2018, eq. 7.1.
    """
    _check(reward, value, terminated, truncated, mask)
    stops = (terminated | truncated)[:, :-1] | ~mask[:, 1:]
    stops = torch.cat([stops, torch.ones_like(mask[:, -1:])], dim=1)
    returns = value[:, :-1]
    for _ in range(n):
        following = torch.cat([returns[:, 1:], value[:, -1:]], dim=1)
        returns = reward + gamma * ~terminated * torch.where(stops, value[:, 1:], following)
    return returns * mask


def episode_begin(is_first: Tensor) -> Tensor:
    """The row [B, T] of its window at which each row's episode began; -1: before the window. is_first [B, T]."""
    t = torch.arange(is_first.shape[1], device=is_first.device)
    return torch.where(is_first, t, -1).cummax(dim=1).values


def less_others(x: Tensor, is_first: Tensor, mask: Tensor) -> Tensor:
    """x [B, T] less what other rows have at the same step of an episode: a baseline that knows the time.

    `x_i − Σ_j x_j / (n + 1)` over the n valid entries j of that step in other rows: nearly their mean where they are
    many, nothing taken where there is none. No action of the row has a part in it (the one that ended an episode has in
    the next one), so where rows are of worlds apart a policy gradient keeps its mean. Steps of an episode that began
    before its window are not known, and stay as they are. is_first [B, T or more].

    Source: a baseline of time, as in the linear one of Duan et al. 2016, arXiv 1604.06778; without its own sample, as
    in Kool et al. 2019 (Buy 4 REINFORCE samples, get a baseline for free).
    """
    known, step, n, total = _by_step(x, is_first, mask)
    n, total = ((each.sum(dim=0) - each).gather(1, step) for each in (n, total))  # of the others
    return torch.where(known, x - total / (n + 1), x)


def apart_by_step(x: Tensor, is_first: Tensor, mask: Tensor) -> Tensor:
    """x [B, T] less the mean of all rows at the same step of an episode, its own part in it; 0 where that isn't known.

    As `less_others`, for what no action of the row has a part in.
    """
    known, step, n, total = _by_step(x, is_first, mask)
    n, total = (each.sum(dim=0).expand_as(each).gather(1, step) for each in (n, total))  # of all
    return torch.where(known, x - total / n.clamp(min=1), 0.0)


def _by_step(x: Tensor, is_first: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Whether the step of its episode is known of each entry [B, T], which one it is, and count and sum [B, T] of what
    each row has at step 0, 1, ...
    """
    T = x.shape[1]
    begin = episode_begin(is_first[:, :T])
    known = mask & (begin >= 0)
    step = (torch.arange(T, device=x.device) - begin).clamp(max=T - 1)
    n, total = (torch.zeros_like(x).scatter_add(1, step, part) for part in (known.to(x), torch.where(known, x, 0.0)))
    return known, step, n, total


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """`1 − Var(target − value) / Var(target)`, flat: 1 is perfect, 0 no better than the mean; NaN when constant."""
    variance = target.var(unbiased=False)
    return torch.where(variance > 0, 1 - (target - value).var(unbiased=False) / variance, torch.nan)


def slope_of(y: Tensor, x: Tensor) -> float:
    """By how much y [R] grows with x [R], by least squares; about 0 where x is constant."""
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum().clamp(min=1e-12))
