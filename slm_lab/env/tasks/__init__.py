"""Tasks of ours. Importing this package registers each of them with Gymnasium as `slm_lab/<Name>-v0`."""

from __future__ import annotations

import gymnasium

from slm_lab.spec.parts import TASK

for _name in TASK:
    gymnasium.register(f"slm_lab/{_name}-v0", entry_point="slm_lab.env.tasks.base:TaskEnv", kwargs={"task": _name})
