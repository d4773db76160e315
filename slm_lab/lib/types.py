"""What passes between the parts. Legend of letters, everywhere in the lab:

`E` envs · `B` windows in a batch · `T` steps, `Q` those of them that are read · `*O` observation shape · `A` actions ·
`D`/`F` features · `K` slots · `N` entries.

Observations are always a flat dict `{key: array}`, also when the env has a single space (key "obs"): a Dict or Tuple
env, and the previous action that a wrapper adds, are then more keys and no special case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Tree = dict[str, Any]  # nested dict whose leaves are arrays or tensors; {} is the carry of a memoryless net


@dataclass(frozen=True, slots=True)
class Step:
    """What a vector of worlds shows after a step (NEXT_STEP autoreset).

    At the end of an episode `obs` is its true last observation. The step after that has `is_first`: `obs` begins the
    next episode, the action given was ignored, the reward is 0, and no frame is counted.
    """

    obs: Tree  # {key: [E, *O]}
    reward: np.ndarray  # [E] float32, what the agent learns from
    is_first: np.ndarray  # [E] bool
    terminated: np.ndarray  # [E] bool, the world ended: no value beyond
    truncated: np.ndarray  # [E] bool, the clock ended it: the value goes on
    raw_reward: np.ndarray  # [E] float64, before any wrapper changed it; what returns are reported from


@dataclass(frozen=True, slots=True)
class ActOut:
    """What an agent gives back when it acts."""

    action: Any  # [E, *A] tensor, in the policy's own units
    carry: Tree  # {..: [E, ...]} after this step
    extras: Tree  # {..: [E, ...]}, e.g. log_prob, value


@dataclass(frozen=True, slots=True)
class Row:
    """One step of all envs, as a memory gets it: what was known when acting, and what the action caused (numpy)."""

    obs: Tree  # {key: [E, *O]}
    is_first: np.ndarray  # [E]
    carry: Tree  # {..: [E, ...]} before acting
    action: np.ndarray  # [E, *A]
    extras: Tree  # {..: [E, ...]}
    reward: np.ndarray  # [E]
    terminated: np.ndarray  # [E]
    truncated: np.ndarray  # [E]
    next_obs: Tree  # {key: [E, *O]}, kept once: it is the next row's obs
    next_is_first: np.ndarray  # [E], True where the action was ignored: that row is masked

    @property
    def mask(self) -> np.ndarray:  # [E]
        """Rows that really were played."""
        return ~self.next_is_first


class Batch(NamedTuple):
    """Windows drawn from a memory (torch). Row t's outcome is reward[t]; the observation it led to is obs[t+1].

    A named tuple because one is made several times an update: a frozen dataclass takes five times as long to make.
    """

    obs: Tree  # {key: [B, T+1, *O]}
    is_first: Any  # [B, T+1] bool
    action: Any  # [B, T, *A]
    reward: Any  # [B, T]
    terminated: Any  # [B, T] bool
    truncated: Any  # [B, T] bool
    mask: Any  # [B, T] bool, False: autoreset rows and padding, never learned from
    carry: Tree  # {..: [B, ...]} before the first row
    extras: Tree  # {..: [B, T, ...]}
    weight: Any = None  # [B] importance weight, None: all 1
    discount: Any = None  # [B, T] γ^m, of the value that follows the m rewards summed up in reward[t]
    after: Any = None  # [B, T] that value belongs to obs[after + 1], None: after = t
    notes: Tree = {}  # {auxiliary: {..: [B, ...]}} what it noted for its losses
    at: Any = None  # [B, Q] the steps of the windows that action, reward, mask, extras ... are of; None: all T
    index: Any = None  # [B] where the windows lie in the memory, maybe counted from its end; numpy, as only it asks
    burn_in: int = 0  # leading steps that only bring the carry up to date

    def replace(self, **changes: Any) -> Batch:
        """A copy with some fields changed; a batch is never edited in place."""
        return self._replace(**changes)
