"""The table of contents of the lab: every part that a spec can name.

To add a part, write its file (a class with a pydantic `Spec` beside it) and add one line here. The rows are strings, so
this page imports nothing heavy and sits below all the parts it names. A part outside the lab needs no line: a spec
names it `module:Class`.
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
        "SARSA": "slm_lab.agent.algorithm.sarsa:SARSA",
        "DQN": "slm_lab.agent.algorithm.dqn:DQN",
        "DoubleDQN": "slm_lab.agent.algorithm.dqn:DoubleDQN",
        "SAC": "slm_lab.agent.algorithm.sac:SAC",
        "TD3": "slm_lab.agent.algorithm.td3:TD3",
    },
    {
        "DDQN": "DoubleDQN",
        "DRQN": "DQN with the memory SequenceReplay and a recurrent core",
        "R2D2": "DoubleDQN with the memory SequenceReplay and a recurrent core",
        "VPG": "REINFORCE",
    },
    base="slm_lab.agent.algorithm.base:Algorithm",
)
MEMORY = Registry(
    "memory",
    {
        "OnPolicyReplay": "slm_lab.agent.memory.onpolicy:OnPolicyReplay",
        "OnPolicyBatchReplay": "slm_lab.agent.memory.onpolicy:OnPolicyBatchReplay",
        "Replay": "slm_lab.agent.memory.replay:Replay",
        "CER": "slm_lab.agent.memory.replay:CER",
        "PrioritizedReplay": "slm_lab.agent.memory.prioritized:PrioritizedReplay",
        "SequenceReplay": "slm_lab.agent.memory.sequence:SequenceReplay",
        "HindsightReplay": "slm_lab.agent.memory.hindsight:HindsightReplay",
        "StrategicMemory": "slm_lab.agent.memory.strategic.memory:StrategicMemory",
    },
    {"HER": "HindsightReplay", "PER": "PrioritizedReplay"},
    base="slm_lab.agent.memory.base:Memory",
)
NET = Registry(
    "net",
    {
        "MLP": "slm_lab.agent.net.mlp:MLP",
        "Conv": "slm_lab.agent.net.conv:Conv",
    },
    base="slm_lab.agent.net.base:Encoder",
)
CORE = Registry(
    "core",
    {
        "none": "slm_lab.agent.net.core.none:NoCore",
        "GRU": "slm_lab.agent.net.core.rnn:GRU",
        "LSTM": "slm_lab.agent.net.core.rnn:LSTM",
    },
    base="slm_lab.agent.net.core.base:Core",
)
ENTRY = Registry(
    "entry",
    {
        "MLP": "slm_lab.agent.memory.strategic.entry:MLPEntry",
        "Transformer": "slm_lab.agent.memory.strategic.entry:TransformerEntry",
    },
    base="slm_lab.agent.memory.strategic.entry:Entry",
)
AUXILIARY = Registry(
    "auxiliary",
    {
        "RND": "slm_lab.agent.auxiliary.rnd:RND",
        "CueHead": "slm_lab.agent.auxiliary.cue:CueHead",
        "ConfidenceHead": "slm_lab.agent.auxiliary.confidence:ConfidenceHead",
    },
    base="slm_lab.agent.auxiliary.base:Auxiliary",
)
TASK = Registry(
    "task",
    {
        "MemoryTask": "slm_lab.env.tasks.memory_task:MemoryTask",
        "RepeatPrevious": "slm_lab.env.tasks.repeat:RepeatPrevious",
        "RepeatFirst": "slm_lab.env.tasks.repeat:RepeatFirst",
        "PassiveTMaze": "slm_lab.env.tasks.tmaze:PassiveTMaze",
        "MultiCueRecall": "slm_lab.env.tasks.multi_cue:MultiCueRecall",
        "BitFlip": "slm_lab.env.tasks.bit_flip:BitFlip",
    },
)

FAMILIES = {registry.family: registry for registry in (ALGORITHM, MEMORY, NET, CORE, ENTRY, AUXILIARY, TASK)}
INNER = {"core": CORE, "entry": ENTRY}  # key of a net, of a memory: the family that its value is a part of
