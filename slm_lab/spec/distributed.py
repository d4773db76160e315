"""What rollout workers can't do, told before anything is started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slm_lab.lib.errors import Problem

if TYPE_CHECKING:
    from slm_lab.spec.lab_spec import LabSpec

KEY = "meta.distributed"


def distributed_problems(spec: LabSpec, world: Any) -> list[Problem]:
    """What keeps rollout workers from playing for the agent of `spec`; `world` is one of its worlds."""
    if not spec.meta.distributed:
        return []
    if spec.env.dataset:
        return [Problem(KEY, "nothing is played where env.dataset is learned from, so workers have no work. Use false")]
    if world.agents:
        return [Problem(KEY, f"workers play worlds of one agent, and {spec.env.name} has several. Use false")]
    found = []
    workers, worlds = spec.meta.distributed.workers, spec.env.num_envs
    if worlds % workers:
        fit = ", ".join(str(n) for n in range(1, worlds + 1) if worlds % n == 0)
        message = f"{workers} workers can't share the {worlds} worlds of env.num_envs evenly: use one of {fit}"
        found.append(Problem(f"{KEY}.workers", f"{message}, or another num_envs"))
    for key in ("normalize_obs", "normalize_reward"):
        if getattr(spec.env, key):
            message = "true, but each of meta.distributed's workers would have running statistics of its own"
            found.append(Problem(f"env.{key}", f"{message}. Leave it out, or use distributed: false"))
    return found
