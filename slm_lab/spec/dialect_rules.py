"""The table of SLM-Lab v5's dialect: what becomes of each of its keys, and what it takes where a spec is silent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ANY = object()  # any value
GIVEN = object()  # any value but null


@dataclass(frozen=True)
class Rule:
    """What becomes of the value at dotted path `key`. Tried in this order; maps go from a value, ANY, GIVEN or a set.

    only     rule applies where other keys of the original spec have these values, {path: value, ANY, GIVEN or a set}
    drop     values that change nothing here: why
    refuse   values without a counterpart: why, and what to use instead
    values   values that are called otherwise here
    to       our path for the key
    also     what it says beside, value -> {our path: value}, where the spec is silent about that
    """

    key: str
    only: Mapping[str, Any] = field(default_factory=dict)
    drop: Mapping[Any, str] = field(default_factory=dict)
    refuse: Mapping[Any, str] = field(default_factory=dict)
    values: Mapping[Any, Any] = field(default_factory=dict)
    to: str = ""
    also: Mapping[Any, Mapping[str, Any]] = field(default_factory=dict)


class From(str):
    """A default that is the value of another key of the original spec."""


ALG, MEM, NET = "agent.algorithm", "agent.memory", "agent.net"
SLM = {f"{NET}.type": ANY}  # only SLM-Lab says `type`
DUELING = frozenset({"DuelingMLPNet", "DuelingConvNet"})
RECURRENT, CONV, MLP = (
    {f"{NET}.type": names}
    for names in ("RecurrentNet", frozenset({"ConvNet", "DuelingConvNet"}), frozenset({"MLPNet", "DuelingMLPNet"}))
)
PPO, AC, REINFORCE, SARSA, SAC = (
    {**SLM, f"{ALG}.name": name} for name in ("PPO", "ActorCritic", "Reinforce", "SARSA", "SoftActorCritic")
)
UNTARGETED, TARGETED = frozenset({"VanillaDQN", "DQNBase"}), frozenset({"DQN", "DoubleDQN"})  # target networks
DQNS = {**SLM, f"{ALG}.name": UNTARGETED | TARGETED}
VALUE_BASED = {**SLM, f"{ALG}.name": UNTARGETED | TARGETED | {"SARSA"}}
WITH_TARGET = {**SLM, f"{ALG}.name": TARGETED | {"SoftActorCritic"}}
OFF_POLICY = {**SLM, f"{ALG}.name": UNTARGETED | TARGETED | {"SoftActorCritic"}}
POLYAK = {**WITH_TARGET, f"{NET}.update_type": "polyak"}
NSTEP = {**AC, f"{ALG}.lam": None, f"{ALG}.num_step_returns": GIVEN}
HOGWILD = {"meta.distributed": frozenset({"shared", "synced"})}
SHARED, SAME_OPTIM = {**SLM, f"{NET}.shared": True}, {**SLM, f"{NET}.use_same_optim": True}

_SIL = "self-imitation has no counterpart; use PPO or ActorCritic"
_HOW_MANY = "says not how many workers: give {workers: 2}, or false"
_GLOBAL = "the shared optimiser of Hogwild workers has no counterpart without meta.distributed: use {}"
_UNREAD = "SLM-Lab's {} never reads it"
OPTIMS = ("optim_spec", "actor_optim_spec", "critic_optim_spec")
TORCH_LR = {"Adam": 1e-3, "AdamW": 1e-3, "RMSprop": 1e-2, "SGD": 1e-3}
_OFF = "off is all there is here"
_UNTARGETED = {f"{ALG}.update_type": "replace", f"{ALG}.update_frequency": 1}
_UNWEIGHTED = {f"{MEM}.beta": 0.0, f"{MEM}.beta_end": 0.0}  # SLM-Lab has no importance weights
_WINDOWS = {f"{MEM}.carry_every": 1}  # that may begin anywhere

RULES = (
    Rule(
        f"{ALG}.name",
        refuse={
            frozenset({"PPOSIL", "SIL"}): _SIL,
            "CrossQ": "has no counterpart: use SoftActorCritic",
            "HydraDQN": "has no counterpart: use DQN, for one env",
        },
        values={"ActorCritic": "A2C", "Reinforce": "REINFORCE", UNTARGETED: "DQN", "SoftActorCritic": "SAC"},
        also={UNTARGETED: _UNTARGETED},
    ),
    Rule(f"{ALG}.clip_val_loss", to=f"{ALG}.clip_vloss"),
    Rule(
        f"{ALG}.symlog",
        drop={False: _OFF},
        refuse={True: "symlog targets have no counterpart; use env.normalize_reward (or PPO's normalize_v_targets)"},
    ),
    Rule(
        f"{ALG}.normalize_advantages",
        values={"standardize": True},
        refuse={"percentile": "percentile scaling has no counterpart; use 'standardize'"},
    ),
    Rule(f"{ALG}.training_frequency", only=PPO, drop={ANY: "PPO trains each time_horizon"}),
    Rule(f"{ALG}.training_frequency", only=NSTEP, drop={ANY: "SLM-Lab trains each num_step_returns"}),
    Rule(f"{ALG}.training_frequency", only={f"{ALG}.name": "Random"}, drop={ANY: _UNREAD.format("Random")}),
    Rule(f"{ALG}.num_step_returns", only={**AC, f"{ALG}.lam": GIVEN}, drop={GIVEN: "lam goes first"}),
    *(
        Rule(f"{ALG}.{key}", only=PPO, drop={ANY: _UNREAD.format("PPO")})
        for key in ("sil_policy_loss_coef", "sil_val_loss_coef", "training_batch_iter", "num_step_returns")
    ),
    *(
        Rule(f"{ALG}.{key}", only=REINFORCE, drop={ANY: _UNREAD.format("Reinforce")})
        for key in ("lam", "val_loss_coef")
    ),
    # value-based
    Rule(
        f"{ALG}.action_pdtype",
        only={**VALUE_BASED, f"{ALG}.action_policy": "boltzmann"},
        drop={"Argmax": "boltzmann draws here; by Argmax SLM-Lab always took the best action"},
    ),
    Rule(f"{ALG}.action_pdtype", only=VALUE_BASED, drop={ANY: "action_policy says how to act"}),
    Rule(
        f"{ALG}.action_policy",
        only=VALUE_BASED,
        refuse={
            "default": "has no counterpart: use 'boltzmann', at temperature 1 the same (explore_var_spec: {name: "
            "no_decay, start_val: 1.0})",
            "random": "has no counterpart: use the algorithm Random",
        },
    ),
    *(Rule(f"{NET}.{key}", only=VALUE_BASED, drop={ANY: "there is one net"}) for key in ("shared", "use_same_optim")),
    # SAC
    Rule(f"{ALG}.action_pdtype", only=SAC, drop={ANY: "SAC's policy follows the action space"}),
    Rule(
        f"{ALG}.action_policy",
        only=SAC,
        drop={"default": "SAC acts by its policy"},
        refuse={ANY: "has no counterpart: SAC acts by its policy. Leave it out"},
    ),
    *(
        Rule(path, only=SAC, drop={ANY: _UNREAD.format("SoftActorCritic")})
        for path in (f"{ALG}.training_batch_iter", f"{ALG}.explore_var_spec", f"{NET}.shared", f"{NET}.use_same_optim")
    ),
    *(
        Rule(f"{NET}.{optim}", only=only, drop={ANY: "SLM-Lab trains each net by optim_spec here"})
        for optim in OPTIMS[1:]
        for only in (SAC, VALUE_BASED)
    ),
    Rule(f"{ALG}.fixed_alpha", only=SAC, to=f"{ALG}.temperature"),
    Rule(f"{ALG}.target_entropy", only=SAC, values={"auto": None}),
    Rule(
        f"{ALG}.policy_delay",
        only=SAC,
        drop={1: "the actor learns from each batch"},
        refuse={ANY: "a delay of the actor has no counterpart in SAC: leave it out, or use TD3"},
    ),
    Rule(
        f"{ALG}.alpha_lr",
        only=SAC,
        drop={None: "the temperature learns at optim_spec's rate"},
        refuse={ANY: "has no counterpart: the temperature learns at optim_spec's rate. Leave it out"},
    ),
    *(
        Rule(f"{ALG}.{key}", only=SAC, drop={off: _OFF}, refuse={ANY: f"has no counterpart: {cure}"})
        for key, off, cure in (
            ("entropy_anneal", None, "give target_entropy as a number"),
            ("alpha_anneal_frames", 0, "use fixed_alpha alone"),
            ("log_alpha_min", None, "use fixed_alpha, or leave it out"),
            ("log_alpha_max", None, "use fixed_alpha, or leave it out"),
            ("entropy_penalty_coef", 0, "leave it out"),
            ("spectral_norm", False, "leave it out"),
        )
    ),
    # Q(s, a) joins its action before the head's hidden layers: with all layers there the nets are SLM-Lab's
    Rule(f"{NET}.hid_layers", only={**SAC, f"{NET}.type": "MLPNet"}, to=f"{NET}.head_hid_layers"),
    # replay
    Rule(
        f"{MEM}.name",
        only={**OFF_POLICY, **RECURRENT},
        values={frozenset({"Replay", "PrioritizedReplay"}): "SequenceReplay"},
        also={"Replay": _WINDOWS, "PrioritizedReplay": {f"{MEM}.prioritized": True, **_WINDOWS, **_UNWEIGHTED}},
    ),
    Rule(
        f"{MEM}.use_cer",
        only={**OFF_POLICY, **RECURRENT},
        drop={False: _OFF},
        refuse={True: "CER has no counterpart with a recurrent net: leave it out"},
    ),
    Rule(f"{NET}.seq_len", only={**OFF_POLICY, **RECURRENT}, to=f"{MEM}.sequence_length"),
    Rule(
        f"{MEM}.name",
        only=SLM,
        values={"PrioritizedReplay": "PrioritizedReplay"},
        also={"PrioritizedReplay": _UNWEIGHTED},
    ),
    # target networks
    Rule(f"{NET}.update_type", only=WITH_TARGET, to=f"{ALG}.update_type"),
    Rule(f"{NET}.update_frequency", only=POLYAK, drop={ANY: "SLM-Lab's polyak never reads it"}),
    Rule(f"{NET}.update_frequency", only=WITH_TARGET, to=f"{ALG}.update_frequency"),
    Rule(
        f"{NET}.polyak_coef",
        only=POLYAK,
        refuse={0: "the target network would stay as it began: use e.g. 0.005, or update_type 'replace'"},
        to=f"{ALG}.polyak_coef",
    ),
    Rule(f"{NET}.polyak_coef", only=WITH_TARGET, drop={ANY: "update_type 'replace' never reads it"}),
    *(
        Rule(f"{NET}.{key}", only=SLM, drop={ANY: "the algorithm has no target network"})
        for key in ("update_type", "update_frequency", "polyak_coef")
    ),
    # nets
    Rule(
        f"{NET}.type",
        only={f"{ALG}.name": frozenset({"PPO", "ActorCritic", "Reinforce", "SoftActorCritic"})},
        refuse={DUELING: "a dueling net has no counterpart but for DQN, DoubleDQN and SARSA"},
    ),
    Rule(
        f"{NET}.type",
        to=f"{NET}.name",
        values={
            frozenset({"MLPNet", "DuelingMLPNet", "RecurrentNet"}): "MLP",
            frozenset({"ConvNet", "DuelingConvNet"}): "Conv",
        },
        also={DUELING: {f"{ALG}.dueling": True}},
        refuse={
            "TorchArcNet": "nets of torcharc have no counterpart; use MLPNet, ConvNet or RecurrentNet",
            "HydraMLPNet": "a net of several envs has no counterpart; use MLPNet",
        },
    ),
    Rule(f"{NET}.gpu", to=f"{NET}.device", values={"auto": "auto", True: "cuda", False: "cpu", None: "cpu"}),
    Rule(
        f"{NET}.normalize",
        only=CONV,
        drop={True: "Conv always scales byte images to 0..1"},
        refuse={False: "has no counterpart: Conv always scales byte images to 0..1"},
    ),
    Rule(f"{NET}.normalize", only=MLP, drop={ANY: _UNREAD.format("MLPNet") + "; see env.normalize_obs"}),
    Rule(f"{NET}.normalize", only=RECURRENT, drop={ANY: _UNREAD.format("RecurrentNet") + "; see env.normalize_obs"}),
    *(
        Rule(
            f"{NET}.{key}",
            drop={False: _OFF},
            refuse={True: f"{key} has no counterpart: leave it out"},
        )
        for key in ("batch_norm", "layer_norm", "bidirectional")
    ),
    Rule(
        f"{NET}.out_layer_activation",
        drop={None: "heads have none here"},
        refuse={ANY: "has no counterpart: heads are linear, the policy's distribution bounds its action"},
    ),
    *(
        Rule(f"{NET}.{optim}.name", **how)
        for optim in OPTIMS
        for name in ("Adam", "RMSprop")
        for how in (
            {"only": HOGWILD, "values": {f"Global{name}": name}},
            {"refuse": {f"Global{name}": _GLOBAL.format(name)}},
        )
    ),
    # SLM-Lab trains a shared net, or all nets where use_same_optim, by the actor's optimiser
    *(Rule(f"{NET}.actor_optim_spec", only=only, to=f"{NET}.optim_spec") for only in (SHARED, SAME_OPTIM)),
    *(
        Rule(f"{NET}.critic_optim_spec", only=only, drop={ANY: "SLM-Lab uses the actor's for both here"})
        for only in (SHARED, SAME_OPTIM)
    ),
    Rule(f"{NET}.use_same_optim", only=SHARED, drop={False: "a shared net has one optimiser"}),
    Rule(f"{NET}.fc_hid_layers", only=RECURRENT, to=f"{NET}.hid_layers"),
    Rule(
        f"{NET}.cell_type",
        only=RECURRENT,
        to=f"{NET}.core.name",
        refuse={"RNN": "the plain RNN has no counterpart; use GRU or LSTM"},
    ),
    Rule(f"{NET}.rnn_hidden_size", only=RECURRENT, to=f"{NET}.core.hidden_size"),
    Rule(f"{NET}.rnn_num_layers", only=RECURRENT, to=f"{NET}.core.num_layers"),
    Rule(f"{NET}.seq_len", only=RECURRENT, drop={ANY: "the core carries its state over the whole time horizon"}),
    Rule("meta.num_gpus", only=SLM, drop={ANY: "a session runs on one device, agent.net.device"}),
    Rule("meta.distributed", refuse={True: _HOW_MANY}),
)
# what SLM-Lab takes where a spec is silent, and our default differs
DEFAULTS: tuple[tuple[str, Mapping[str, Any], Any], ...] = (
    (f"{NET}.core.name", RECURRENT, "GRU"),
    (f"{ALG}.training_frequency", NSTEP, From(f"{ALG}.num_step_returns")),
    *((f"{NET}.{key}", SLM, None) for key in ("init_fn", "actor_init_std", "critic_init_std", "clip_grad_val")),
    (f"{ALG}.val_loss_coef", PPO, 1.0),
    (f"{ALG}.val_loss_coef", AC, 1.0),
    (f"{ALG}.normalize_return", REINFORCE, True),
    (f"{ALG}.update_type", WITH_TARGET, "replace"),
    (f"{ALG}.update_frequency", WITH_TARGET, 1),
    (f"{ALG}.training_start_step", {**DQNS, f"{MEM}.batch_size": GIVEN}, From(f"{MEM}.batch_size")),
    (f"{ALG}.training_iter", {**SAC, "env.num_envs": GIVEN}, From("env.num_envs")),
    (f"{NET}.hid_layers", {**SAC, f"{NET}.type": "MLPNet"}, []),
    ("env.clip_obs", {**SLM, "env.normalize_obs": True}, 10.0),
    ("env.clip_reward", {**SLM, "env.normalize_reward": True}, 10.0),
    ("meta.log_frequency", SLM, 10000),
    ("meta.eval_frequency", SLM, 10000),
    ("meta.metric", SLM, "total_reward_ma"),
    ("meta.search_scheduler.reduction_factor", {**SLM, "meta.search_scheduler": GIVEN}, 4),
)
