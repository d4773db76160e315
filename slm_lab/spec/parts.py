"""The table of contents of the lab: every part that a spec can name.

To add a part, write its file (a class with a pydantic `Spec` beside it) and add one line here. The rows are strings, so
this page imports nothing heavy and sits below all the parts it names.
"""

from __future__ import annotations

from slm_lab.lib.registry import Registry

ALGORITHM = Registry(
    "algorithm",
    {
        "Random": "slm_lab.agent.algorithm.random:Random",
        "REINFORCE": "slm_lab.agent.algorithm.reinforce:REINFORCE",
        "A2C": "slm_lab.agent.algorithm.a2c:A2C",
        "PPO": "slm_lab.agent.algorithm.ppo:PPO",
    },
)
MEMORY = Registry(
    "memory",
    {
        "OnPolicyReplay": "slm_lab.agent.memory.onpolicy:OnPolicyReplay",
        "OnPolicyBatchReplay": "slm_lab.agent.memory.onpolicy:OnPolicyBatchReplay",
    },
)
NET = Registry(
    "net",
    {
        "MLP": "slm_lab.agent.net.mlp:MLP",
        "Conv": "slm_lab.agent.net.conv:Conv",
    },
)
CORE = Registry(
    "core",
    {
        "none": "slm_lab.agent.net.core.none:NoCore",
        "GRU": "slm_lab.agent.net.core.rnn:GRU",
        "LSTM": "slm_lab.agent.net.core.rnn:LSTM",
    },
)
TASK = Registry(
    "task",
    {
        "MemoryTask": "slm_lab.env.tasks.memory_task:MemoryTask",
        "RepeatPrevious": "slm_lab.env.tasks.repeat:RepeatPrevious",
        "RepeatFirst": "slm_lab.env.tasks.repeat:RepeatFirst",
        "PassiveTMaze": "slm_lab.env.tasks.tmaze:PassiveTMaze",
        "MultiCueRecall": "slm_lab.env.tasks.multi_cue:MultiCueRecall",
    },
)

FAMILIES = {registry.family: registry for registry in (ALGORITHM, MEMORY, NET, CORE, TASK)}
