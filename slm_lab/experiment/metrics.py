"""How good a run was: SLM-Lab's metrics as pure functions.

Letters: `N` checkpoints (log points of a session) · `S` sessions (seeds) of a trial.
The formulae are SLM-Lab's (Keng, Graesser, 2017, `experiment/analysis.py`). Where a formula divides by a strength it
means something only while that strength is positive; there we give NaN (null in the files) instead of a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Metrics = dict[str, dict[str, Any]]  # {"scalar": {name: float}, "local": {name: [N] or [S][N]}}

MA_WINDOW = 100  # checkpoints, as in SLM-Lab
LOCAL = ("mean_returns", "mean_returns_ma", "strengths", "sample_efficiencies", "training_efficiencies", "stabilities")
# what a log row holds besides the tracked variables
BASE_COLUMNS = ("epi", "frame", "opt_step", "wall_t", "fps", "total_reward", "total_reward_ma", "episode_length")


# ---- formulae --------------------------------------------------------------------------------------------------------


def calc_strength(returns: ArrayLike, random_return: float) -> tuple[float, Array]:
    """Strength: `str = 1/N Σ_i (R_i − R_random)`; also the local strengths [N]. Units of the return."""
    local = _floats(returns) - random_return
    return (float(local.mean()) if local.size else math.nan), local


def calc_efficiency(strengths: ArrayLike, times: ArrayLike) -> tuple[float, Array]:
    """Efficiency: `e = Σ_i str_i / t_i ÷ Σ_i str_i`, the mean of 1/t weighted by strength; also that up to each i [N].

    `times` [N] are frames (sample efficiency, 1/frame) or optimiser steps (training efficiency, 1/step).
    Differs from SLM-Lab: checkpoints at t = 0 leave both sums, not just the upper. NaN where the strengths don't sum to
    more than 0, and where negative ones push the result out of the range of 1/t, so that it is no mean any more.
    """
    ts = _floats(times)
    known = ts > 0
    inverse = np.divide(1.0, ts, out=np.zeros_like(ts), where=known)
    weight = np.where(known, _floats(strengths), 0.0)
    local = _ratio(np.cumsum(weight * inverse), np.cumsum(weight))
    least = np.minimum.accumulate(np.where(known, inverse, np.inf)) * (1 - 1e-9)
    most = np.maximum.accumulate(inverse) * (1 + 1e-9)
    local[(local < least) | (local > most)] = math.nan
    return (float(local[-1]) if local.size else math.nan), local


def calc_stability(strengths: ArrayLike) -> tuple[float, Array]:
    """Stability: `sta = 1 − |Σ_{i<N−1} min(str_{i+1} − str_i, 0) ÷ Σ_{i<N−1} str_i|`; also that up to each i [N].

    1: never drops. NaN up to fewer than 2 checkpoints and where the strengths don't sum to more than 0. Differs from
    SLM-Lab: its local ones are ratios of single terms, noise wherever a strength is near 0; ours run to the metric.
    """
    strs = _floats(strengths)
    drops, base = np.minimum(np.diff(strs), 0.0), strs[:-1]
    local = np.full(strs.shape, math.nan)
    local[1:] = 1 - np.abs(_ratio(np.cumsum(drops), np.cumsum(base)))
    return (float(local[-1]) if local.size else math.nan), local


def calc_consistency(strengths: ArrayLike) -> tuple[float, Array]:
    """Consistency: `con = 1 − 2 Σ_i std_s(str_{s,i}) ÷ Σ_i mean_s(str_{s,i})` of strengths [S, N], i up to each [N].

    1: all sessions learn the same curve. std is the sample one (n − 1), as in SLM-Lab. NaN for fewer than 2 sessions
    and where the means don't sum to more than 0; a checkpoint that fewer than 2 sessions reached is left out of both
    sums. Differs from SLM-Lab in the local ones, as `calc_stability` does.
    """
    mean, std = mean_std(strengths)
    known = np.isfinite(std)
    local = 1 - 2 * _ratio(np.cumsum(np.where(known, std, 0.0)), np.cumsum(np.where(known, mean, 0.0)))
    return (float(local[-1]) if local.size else math.nan), local


def mean_std(values: ArrayLike) -> tuple[Array, Array]:
    """Mean and sample std [N] over the sessions of [S, N], NaNs left out; NaN of none (std: of fewer than 2)."""
    table = np.atleast_2d(_floats(values))
    known = np.isfinite(table)
    count = known.sum(axis=0).astype(float)
    mean = _ratio(np.where(known, table, 0.0).sum(axis=0), count)
    square = np.where(known, table - mean, 0.0) ** 2
    return mean, np.sqrt(_ratio(square.sum(axis=0), count - 1))


def align(frames: Sequence[ArrayLike], values: Sequence[ArrayLike]) -> tuple[Array, Array]:
    """Sessions whose log rows differ, on one axis: frames [N] of the session with most rows, and values [S, N] there.

    Between its rows a session is interpolated linearly, and is NaN where its nearest row is; beyond its first and last
    row a value is held for one log interval, so that sessions that end some frames apart share the last point.
    """
    grid = max(map(_floats, frames), key=len, default=np.empty(0))
    slack = float(np.median(np.diff(grid))) if grid.size > 1 else math.inf
    rows = [_resample(grid, slack, _floats(f), _floats(v)) for f, v in zip(frames, values, strict=True)]
    return grid, np.array(rows).reshape(len(frames), grid.size)


def _resample(grid: Array, slack: float, frame: Array, value: Array) -> Array:
    known = np.isfinite(value)
    if not known.any():
        return np.full(grid.shape, math.nan)
    nearest = np.searchsorted((frame[1:] + frame[:-1]) / 2, grid)
    inside = (grid >= frame[0] - slack) & (grid <= frame[-1] + slack) & known[nearest]
    return np.where(inside, np.interp(grid, frame[known], value[known]), math.nan)


def _floats(values: ArrayLike) -> Array:
    return np.asarray(values, dtype=float)


def _ratio(upper: ArrayLike, lower: ArrayLike) -> Array:
    """upper / lower, NaN where lower isn't positive."""
    top, base = _floats(upper), _floats(lower)
    quotient: Array = np.divide(top, base, out=np.full(base.shape, math.nan), where=base > 0)
    return quotient


# ---- metrics of a session and of a trial -----------------------------------------------------------------------------


def clean(df: pd.DataFrame) -> pd.DataFrame:
    """Log rows in order of frame, one a frame (the last written: a resumed run repeats some), all numbers, no ±inf."""
    columns = list(dict.fromkeys([*BASE_COLUMNS, *df.columns]))
    df = df.reindex(columns=columns).apply(pd.to_numeric, errors="coerce").astype(float)
    df = df.where(np.isfinite(df)).dropna(subset=["frame"]).drop_duplicates("frame", keep="last")
    return df.sort_values("frame", ignore_index=True)


def session_metrics(df: pd.DataFrame, random_return: float | None) -> Metrics:
    """Metrics of one session's log rows: {"scalar": {name: float}, "local": {name: list of N floats}}, NaN if unknown.

    `total_reward_ma` is SLM-Lab's (mean return of the last 100 checkpoints); `final_return` and `best_return` are the
    last and the highest mean over 100 episodes. Rows before the first finished episode don't count. Without a
    `random_return` strength is the return itself, as in SLM-Lab.
    """
    df = clean(df)
    last = df.ffill().iloc[-1] if len(df) else pd.Series(math.nan, index=df.columns)
    known = df[df["total_reward"].notna()]
    returns, frames, opt_steps = (known[c].to_numpy() for c in ("total_reward", "frame", "opt_step"))
    baseline = math.nan if random_return is None else float(random_return)
    strength, strengths = calc_strength(returns, 0.0 if math.isnan(baseline) else baseline)
    sample_efficiency, sample_efficiencies = calc_efficiency(strengths, frames)
    training_efficiency, training_efficiencies = calc_efficiency(strengths, opt_steps)
    stability, stabilities = calc_stability(strengths)
    scalar = {
        "frame": last["frame"],
        "opt_step": last["opt_step"],
        "wall_t": last["wall_t"],
        "fps": _ratio(last["frame"], last["wall_t"]),
        "random_return": baseline,
        "final_return": last["total_reward_ma"],
        "best_return": _best_return(df),
        "total_reward_ma": returns[-MA_WINDOW:].mean() if returns.size else math.nan,
        "strength": strength,
        "max_strength": strengths.max() if strengths.size else math.nan,
        "final_strength": strengths[-1] if strengths.size else math.nan,
        "sample_efficiency": sample_efficiency,
        "training_efficiency": training_efficiency,
        "stability": stability,
    }
    curves = (
        returns,
        known["total_reward_ma"].to_numpy(),
        strengths,
        sample_efficiencies,
        training_efficiencies,
        stabilities,
    )
    local = {"frames": frames, "opt_steps": opt_steps, **dict(zip(LOCAL, curves, strict=True))}
    return {"scalar": {k: float(v) for k, v in scalar.items()}, "local": {k: v.tolist() for k, v in local.items()}}


def _best_return(df: pd.DataFrame) -> float:
    """Highest mean over 100 episodes; of a shorter run, the mean over what there is."""
    full = df["total_reward_ma"][df["epi"] >= MA_WINDOW]
    return (
        float(full.max())
        if full.notna().any()
        else float(df["total_reward_ma"].ffill().iloc[-1] if len(df) else math.nan)
    )


def trial_metrics(sessions: Sequence[Metrics], num_failed: int = 0) -> Metrics:
    """Metrics of a trial: means of the scalars over the sessions that have them, and each local metric as [S][N].

    Adds `final_return_std` (sample std over sessions), `consistency`, `num_session` and `num_failed`; local
    `consistencies` [N]. Sessions are aligned by frame. Give it sessions that ran to their end: one that failed midway
    has no final return.
    """
    names = sessions[0]["scalar"] if sessions else session_metrics(pd.DataFrame(), None)["scalar"]
    table = np.array([[s["scalar"][name] for name in names] for s in sessions], dtype=float).reshape(-1, len(names))
    mean, std = mean_std(table) if sessions else (np.full(len(names), math.nan),) * 2
    scalar = dict(zip(names, mean.tolist(), strict=True))
    frames = [s["local"]["frames"] for s in sessions]
    local: dict[str, Any] = {"frames": align(frames, frames)[0].tolist()}
    for name in LOCAL:
        local[name] = align(frames, [s["local"][name] for s in sessions])[1].tolist()
    consistency, consistencies = calc_consistency(
        np.reshape(local["strengths"], (len(sessions), -1 if sessions else 0))
    )
    scalar |= {"final_return_std": float(std[list(names).index("final_return")]), "consistency": consistency}
    scalar |= {"num_session": len(sessions), "num_failed": num_failed}
    return {"scalar": scalar, "local": local | {"consistencies": consistencies.tolist()}}
