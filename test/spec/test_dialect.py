"""SLM-Lab's words, with values as its own spec files have them."""

from __future__ import annotations

import copy

import pytest

from slm_lab.lib.errors import SpecError
from slm_lab.spec.dialect import translate
from slm_lab.spec.validate import resolve


def slm(algorithm="PPO", net="MLPNet", **net_keys):
    return {
        "agent": {
            "name": algorithm,
            "algorithm": {"name": algorithm, "gamma": 0.99, "lam": 0.95},
            "memory": {"name": "OnPolicyBatchReplay"},
            "net": {"type": net, "shared": False, "use_same_optim": False, "gpu": "auto", **net_keys},
        },
        "env": {"name": "CartPole-v1", "max_t": None, "max_frame": 1e4},
        "meta": {"distributed": False, "eval_frequency": 256, "max_session": 4, "max_trial": 1},
    }


def test_our_own_words_stay(raw):
    assert translate(raw) == (raw, [], [], {})


def test_the_raw_spec_stays(raw):
    raw = slm()
    before = copy.deepcopy(raw)
    translate(raw)
    assert raw == before


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "MLPNet", "gpu": True}, {"name": "MLP", "device": "cuda"}),
        ({"type": "ConvNet", "gpu": False, "normalize": True, "batch_norm": False}, {"name": "Conv", "device": "cpu"}),
        (
            {"type": "RecurrentNet", "fc_hid_layers": [8], "rnn_hidden_size": 4, "rnn_num_layers": 1, "seq_len": 4},
            {"name": "MLP", "hid_layers": [8], "core": {"name": "GRU", "hidden_size": 4, "num_layers": 1}},
        ),
        ({"type": "RecurrentNet", "cell_type": "LSTM"}, {"name": "MLP", "core": {"name": "LSTM"}}),
        (
            {
                "type": "MLPNet",
                "shared": True,
                "actor_optim_spec": {"lr": 1},
                "critic_optim_spec": {"lr": 2},
                "use_same_optim": False,
            },
            {"name": "MLP", "shared": True, "optim_spec": {"lr": 1}},
        ),
    ],
)
def test_nets(given, expected):
    spec, notes, problems, _ = translate({"agent": {"net": given}})
    silent = {"init_fn": None, "actor_init_std": None, "critic_init_std": None, "clip_grad_val": None}
    assert spec["agent"]["net"] == {**silent, **expected}
    assert not problems and len(notes) == len(given) - (1 if given.get("shared") else 0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"name": "Reinforce"}, {"name": "REINFORCE", "normalize_return": True}),
        (
            {"name": "PPO", "clip_val_loss": False, "val_loss_coef": 0.5, "training_frequency": 1},
            {"name": "PPO", "clip_vloss": False, "val_loss_coef": 0.5},
        ),
        (
            {"name": "PPO", "normalize_advantages": "standardize", "symlog": False},
            {"name": "PPO", "normalize_advantages": True, "val_loss_coef": 1.0},
        ),
        (
            {"name": "ActorCritic", "lam": None, "num_step_returns": 5, "training_frequency": 1},
            {"name": "A2C", "lam": None, "num_step_returns": 5, "training_frequency": 5, "val_loss_coef": 1.0},
        ),
        ({"name": "ActorCritic", "lam": 0.9, "num_step_returns": 5}, {"name": "A2C", "lam": 0.9, "val_loss_coef": 1.0}),
    ],
)
def test_algorithms(given, expected):
    spec, _, problems, _ = translate({"agent": {"algorithm": given, "net": {"type": "MLPNet"}}})
    assert spec["agent"]["algorithm"] == expected and not problems


@pytest.mark.parametrize(
    ("path", "value", "cure"),
    [
        ("agent.algorithm.name", "PPOSIL", "use PPO"),
        ("agent.algorithm.symlog", True, "normalize_v_targets"),
        ("agent.algorithm.normalize_advantages", "percentile", "standardize"),
        ("agent.net.type", "TorchArcNet", "use MLPNet"),
        ("agent.net.batch_norm", True, "leave it out"),
        ("agent.net.optim_spec", {"name": "GlobalAdam", "lr": 1e-3}, "use Adam"),
        ("meta.distributed", "synced", "env.num_envs"),
    ],
)
def test_what_has_no_counterpart_is_refused_once_and_with_a_cure(fakes, path, value, cure):
    raw = slm(use_same_optim=True)
    *parents, last = path.split(".")
    here = raw
    for key in parents:
        here = here[key]
    here[last] = value
    with pytest.raises(SpecError) as error:
        resolve(raw)
    [problem] = error.value.problems
    assert problem.path.startswith(path) and "no counterpart" in problem.message and cure in problem.message


def test_a_spec_of_slm_lab_runs_and_errors_keep_its_names(fakes):
    raw = slm(net="RecurrentNet", fc_hid_layers=[8], rnn_hidden_size=4, seq_len=4, use_same_optim=True)
    spec = resolve(raw)
    assert spec.agent.net.core == {"name": "GRU", "hidden_size": 4, "num_layers": 1}
    assert spec.meta.log_frequency == 10000 and any("seq_len" in note for note in spec.notes)
    raw["agent"]["net"] |= {"rnn_hidden_size": 0, "fc_hid_layers": [0]}
    with pytest.raises(SpecError) as error:
        resolve(raw)
    assert {problem.path for problem in error.value.problems} == {
        "agent.net.rnn_hidden_size",
        "agent.net.fc_hid_layers.0",
    }


def test_both_names_of_a_key():
    raw = slm(name="MLP")
    assert [problem.path for problem in translate(raw).problems] == ["agent.net.type"]
