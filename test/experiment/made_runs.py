"""A run as the lab writes it, made up: noisy learning curves, tracked variables, an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

NAME = "ppo_gru_recall"
MakeRun = Callable[..., Path]


def log_rows(seed: int, count: int = 200, every: int = 512) -> pd.DataFrame:
    """Log rows of a session that learns from about -1 to 1."""
    rng = np.random.default_rng(seed)
    frame = np.arange(1, count + 1) * every
    progress = frame / frame[-1]
    skill = 2 / (1 + np.exp(-10 * (progress - 0.35 - 0.1 * rng.random()))) - 1
    total_reward = np.clip(skill + rng.normal(0, 0.25, count), -1.5, 1.2)
    rows = {
        "epi": frame // 64,
        "frame": frame,
        "opt_step": frame // 64,
        "wall_t": frame / 900.0,
        "fps": 900.0 + rng.normal(0, 20, count),
        "total_reward": total_reward,
        "total_reward_ma": pd.Series(total_reward).rolling(10, min_periods=1).mean().to_numpy(),
        "episode_length": 64.0,
        "loss": 0.6 * np.exp(-3 * progress) + rng.gamma(2.0, 0.02, count),
        "policy_loss": -0.02 + rng.normal(0, 0.008, count),
        "value_loss": np.exp(-4 * progress) + rng.gamma(2.0, 0.02, count),
        "entropy": 1.38 * (1 - 0.8 * progress) + rng.normal(0, 0.02, count),
        "explained_variance": 1 - np.exp(-5 * progress) + rng.normal(0, 0.05, count),
        "grad_norm": rng.gamma(3.0, 0.2, count),
        "lr": 3e-4 * (1 - progress),
        "clip_eps": 0.2,
        "memory_size": np.minimum(frame, 20_000),
        "never_known": np.nan,
    }
    df = pd.DataFrame(rows).astype(float)
    df.loc[0, ["total_reward", "total_reward_ma", "episode_length", "loss", "policy_loss"]] = np.nan
    return df


def evaluation_rows(seed: int, end: int) -> pd.DataFrame:
    """Rows of an evaluation at ten checkpoints."""
    rng = np.random.default_rng(100 + seed)
    frame = np.linspace(end / 10, end, 10).round()
    returns = np.tanh(4 * frame / end - 1.5) + rng.normal(0, 0.05, 10)
    columns = {"epi": 8 * np.arange(1, 11), "frame": frame, "opt_step": frame // 64, "total_reward": returns}
    return pd.DataFrame({**columns, "total_reward_std": 0.3 * rng.random(10), "episode_length": 64.0})
