"""SLM-Lab v5's dialect: its keys become ours, or are refused with what has no counterpart and what to use instead.

Every rule is a row of `RULES`. A spec of our own meets none of them and passes unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from slm_lab.lib.errors import Problem
from slm_lab.spec.explain import show

ANY = object()  # any value
GIVEN = object()  # any value but null
_ABSENT = object()


@dataclass(frozen=True)
class Rule:
    """What becomes of the value at dotted path `key`. Tried in this order; maps go from a value, ANY or GIVEN.

    only     rule applies where other keys of the original spec have these values, {path: value, ANY or GIVEN}
    refuse   values without a counterpart: why, and what to use instead
    drop     values that change nothing here: why
    values   values that are called otherwise here
    to       our path for the key
    """

    key: str
    only: Mapping[str, Any] = field(default_factory=dict)
    refuse: Mapping[Any, str] = field(default_factory=dict)
    drop: Mapping[Any, str] = field(default_factory=dict)
    values: Mapping[Any, Any] = field(default_factory=dict)
    to: str = ""


class From(str):
    """A default that is the value of another key of the original spec."""


class Translation(NamedTuple):
    """A spec in our words. `renamed` goes from our path to the user's, for errors that come later."""

    spec: dict[str, Any]
    notes: list[str]
    problems: list[Problem]
    renamed: dict[str, str]


ALG, NET = "agent.algorithm", "agent.net"
SLM = {f"{NET}.type": ANY}  # only SLM-Lab says `type`
RECURRENT, CONV, MLP = ({f"{NET}.type": name} for name in ("RecurrentNet", "ConvNet", "MLPNet"))
PPO, AC, REINFORCE = ({**SLM, f"{ALG}.name": name} for name in ("PPO", "ActorCritic", "Reinforce"))
NSTEP = {**AC, f"{ALG}.lam": None, f"{ALG}.num_step_returns": GIVEN}
SHARED, SAME_OPTIM = {**SLM, f"{NET}.shared": True}, {**SLM, f"{NET}.use_same_optim": True}

_SIL = "self-imitation has no counterpart; use PPO or ActorCritic"
_HOGWILD = "Hogwild workers have no counterpart: use env.num_envs to gather faster, meta.max_session for more seeds"
_GLOBAL = "the shared optimiser of Hogwild workers has no counterpart: use {} (and env.num_envs)"
_UNREAD = "SLM-Lab's {} never reads it"
_OPTIMS = ("optim_spec", "actor_optim_spec", "critic_optim_spec")

RULES = (
    Rule(f"{ALG}.name", refuse={"PPOSIL": _SIL, "SIL": _SIL}, values={"ActorCritic": "A2C", "Reinforce": "REINFORCE"}),
    Rule(f"{ALG}.clip_val_loss", to=f"{ALG}.clip_vloss"),
    Rule(
        f"{ALG}.symlog",
        drop={False: "off is all there is here"},
        refuse={True: "symlog targets have no counterpart; use normalize_v_targets or env.normalize_reward"},
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
    Rule(
        f"{NET}.type",
        to=f"{NET}.name",
        values={"MLPNet": "MLP", "ConvNet": "Conv", "RecurrentNet": "MLP"},
        refuse={"TorchArcNet": "nets of torcharc have no counterpart; use MLPNet, ConvNet or RecurrentNet"},
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
            drop={False: "off is all there is here"},
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
        Rule(f"{NET}.{optim}.name", refuse={name: _GLOBAL.format(name.removeprefix("Global"))})
        for optim in _OPTIMS
        for name in ("GlobalAdam", "GlobalRMSprop")
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
    Rule("meta.distributed", refuse={"synced": _HOGWILD, "shared": _HOGWILD, True: _HOGWILD}),
)
# what SLM-Lab takes where a spec is silent, and our default differs
DEFAULTS: tuple[tuple[str, Mapping[str, Any], Any], ...] = (
    (f"{NET}.core.name", RECURRENT, "GRU"),
    (f"{ALG}.training_frequency", NSTEP, From(f"{ALG}.num_step_returns")),
    (f"{NET}.init_fn", SLM, None),
    (f"{NET}.actor_init_std", SLM, None),
    (f"{NET}.critic_init_std", SLM, None),
    (f"{NET}.clip_grad_val", SLM, None),
    (f"{ALG}.val_loss_coef", PPO, 1.0),
    (f"{ALG}.val_loss_coef", AC, 1.0),
    (f"{ALG}.normalize_return", REINFORCE, True),
    ("env.clip_obs", {**SLM, "env.normalize_obs": True}, 10.0),
    ("env.clip_reward", {**SLM, "env.normalize_reward": True}, 10.0),
    ("meta.log_frequency", SLM, 10000),
)


def translate(raw: Mapping[str, Any]) -> Translation:
    """The spec with SLM-Lab's words turned into ours; `raw` stays as it is."""
    out = Translation(copy.deepcopy(dict(raw)), [], [], {})
    for rule in RULES:
        value = _get(out.spec, rule.key)
        if value is not _ABSENT and _holds(rule.only, raw):
            _apply(rule, value, raw, out)
    for path, only, value in DEFAULTS:
        if _holds(only, raw) and _get(out.spec, path) is _ABSENT:
            _put(out.spec, path, _get(raw, value) if isinstance(value, From) else value)
    return out


def _holds(only: Mapping[str, Any], raw: Mapping[str, Any]) -> bool:
    return all(_match({value: True}, _get(raw, path)) is True for path, value in only.items())


def _apply(rule: Rule, value: Any, raw: Mapping[str, Any], out: Translation) -> None:
    said = f"{rule.key} {show(value)}"
    if (why := _match(rule.refuse, value)) is not _ABSENT:
        out.problems.append(Problem(rule.key, f"{show(value)}: {why}"))
        out.renamed[rule.to or rule.key] = rule.key  # what is now missing under our name is told here already
    elif (why := _match(rule.drop, value)) is not _ABSENT:
        _pop(out.spec, rule.key)
        out.notes.append(f"{said} is left out: {why}")
    elif rule.to and _get(raw, rule.to) is not _ABSENT:
        out.problems.append(Problem(rule.key, f"says the same as {rule.to}: give one of them"))
    elif rule.to or _match(rule.values, value) is not _ABSENT:
        ours = _match(rule.values, value)
        ours = value if ours is _ABSENT else ours
        target = rule.to or rule.key
        _pop(out.spec, rule.key)
        _put(out.spec, target, ours)
        out.renamed[target] = rule.key
        out.notes.append(f"{said} is read as {target} {show(ours)}")


def _match(table: Mapping[Any, Any], value: Any) -> Any:
    """The row whose key fits the value."""
    return next((row for key, row in table.items() if _fits(key, value)), _ABSENT)


def _fits(key: Any, value: Any) -> bool:
    if value is _ABSENT:
        return False
    if key is ANY or key is GIVEN:
        return key is ANY or value is not None
    return type(key) is type(value) and bool(key == value)  # 1 isn't True


# --- dotted paths in nested mappings ---


def _get(tree: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return _ABSENT
        tree = tree[key]
    return tree


def _pop(tree: Any, path: str) -> None:
    *parents, last = path.split(".")
    for key in parents:
        tree = tree[key]
    tree.pop(last, None)


def _put(tree: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[last] = value
