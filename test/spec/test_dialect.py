"""SLM-Lab's words, with values as its own spec files have them."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch

from slm_lab.agent.algorithm.off_policy import Target
from slm_lab.agent.memory.gate import Gate
from slm_lab.agent.net.net import Net
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


def off_policy(algorithm="DQN", net=(), memory=(), num_envs=4, **keys):
    explore = {"name": "linear_decay", "start_val": 1.0, "end_val": 0.1, "start_step": 0, "end_step": 3000}
    acting = {"action_pdtype": "Argmax", "action_policy": "epsilon_greedy", "explore_var_spec": explore}
    if algorithm == "SoftActorCritic":
        acting = {"action_pdtype": "Normal", "action_policy": "default"}
    counts = {"training_iter": 2, "training_frequency": 1, "training_start_step": 32}
    layers = {"hid_layers_activation": "relu", "gpu": "auto"}
    if "fc_hid_layers" not in dict(net):
        layers["hid_layers"] = [32, 16]
    return {
        "agent": {
            "name": algorithm,
            "algorithm": {"name": algorithm, "gamma": 0.9, **acting, **counts, **keys},
            "memory": {"name": "Replay", "batch_size": 64, "max_size": 5000, "use_cer": False, **dict(memory)},
            "net": {"type": "MLPNet", **layers, **dict(net)},
        },
        "env": {"name": "CartPole-v1", "max_t": None, "max_frame": 1e4, "num_envs": num_envs},
        "meta": {"distributed": False, "eval_frequency": 1000, "max_session": 4, "max_trial": 1},
        "search": {"agent.net.update_frequency__choice": [50, 100]},
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
    silent |= {"optim_spec": {"lr": 0.001}}
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
        ("agent.net.out_layer_activation", "tanh", "heads are linear"),
        ("agent.net.type", "DuelingMLPNet", "DQN, DoubleDQN and SARSA"),
        ("agent.algorithm.name", "CrossQ", "use SoftActorCritic"),
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


def test_hogwild_sessions_are_rollout_workers_of_one_learner(fakes):
    raw = slm(optim_spec={"name": "GlobalAdam", "lr": 0.01}, use_same_optim=True)
    raw["env"]["num_envs"], raw["meta"] = 2, {"distributed": "synced", "max_session": 4}
    spec = resolve(raw, check_env=False)
    assert spec.meta.distributed.workers == 4 and spec.meta.max_session == 1 and spec.env.num_envs == 8
    assert spec.agent.net.optim_spec.name == "Adam"
    [note] = [note for note in spec.notes if note.startswith("meta.distributed 'synced'")]
    assert "workers" in note and "env.num_envs 8" in note
    raw["meta"]["distributed"] = True
    with pytest.raises(SpecError, match="says not how many workers"):
        resolve(raw, check_env=False)


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


def test_what_is_off_or_null_is_left_out():
    given = {"type": "MLPNet", "batch_norm": False, "out_layer_activation": None}
    spec, notes, problems, _ = translate({"agent": {"net": given}})
    assert not problems and not {"batch_norm", "out_layer_activation"} & spec["agent"]["net"].keys()
    assert len(notes) == 3


# --- off-policy ---

POLYAK = {"update_type": "polyak", "polyak_coef": 0.1, "update_frequency": 7}
RNN = {"type": "RecurrentNet", "fc_hid_layers": [], "rnn_hidden_size": 8, "rnn_num_layers": 1, "seq_len": 4}
PER = {"name": "PrioritizedReplay", "alpha": 0.7, "epsilon": 0.001}


def resolved(raw):
    """The parts of the agent, as plain data."""
    return resolve(raw, check_env=False).dump()["agent"]


@pytest.mark.parametrize(
    ("raw", "algorithm", "memory", "net"),
    [
        (off_policy("VanillaDQN"), {"name": "DQN", "update_type": "replace", "update_frequency": 1}, {}, {}),
        (off_policy("DQNBase"), {"name": "DQN", "update_type": "replace", "update_frequency": 1}, {}, {}),
        (off_policy("DQN"), {"name": "DQN", "update_type": "replace", "update_frequency": 4}, {}, {"clip_grad_val": None}),
        (off_policy("DoubleDQN", {"update_frequency": 75, "polyak_coef": 0}), {"update_frequency": 75}, {}, {}),
        (off_policy(net={"type": "DuelingMLPNet"}), {"name": "DQN", "dueling": True}, {}, {"name": "MLP"}),
        (off_policy(net={"shared": True, "actor_optim_spec": {"lr": 1}}), {}, {}, {"shared": False}),
        (off_policy(net=POLYAK), {"update_type": "polyak", "polyak_coef": 0.1, "update_frequency": 4}, {}, {}),
        (off_policy(memory=PER), {}, {**PER, "beta": 0.0, "beta_end": 0.0, "use_cer": False}, {}),
        (off_policy(memory={**PER, "beta": 0.5, "beta_end": 1.0}), {}, {"beta": 0.5, "beta_end": 1.0}, {}),
        (
            off_policy(net=RNN),
            {},
            {"name": "SequenceReplay", "sequence_length": 4, "carry_every": 1, "prioritized": False},
            {"core": {"name": "GRU", "hidden_size": 8, "num_layers": 1}},
        ),
        (off_policy(net=RNN, memory=PER), {}, {"name": "SequenceReplay", "prioritized": True, "beta_end": 0.0}, {}),
        (
            off_policy("SoftActorCritic", POLYAK, target_entropy="auto", fixed_alpha=0.2, policy_delay=1, alpha_lr=None),
            {"name": "SAC", "temperature": 0.2, "target_entropy": None, "update_frequency": None, "polyak_coef": 0.1},
            {},
            {"hid_layers": [], "head_hid_layers": [32, 16]},
        ),
    ],
)  # fmt: skip
def test_off_policy_specs_of_slm_lab(raw, algorithm, memory, net):
    agent = resolved(raw)
    assert agent["algorithm"] | algorithm == agent["algorithm"]
    assert agent["memory"] | memory == agent["memory"]
    assert agent["net"] | net == agent["net"]


def test_sarsa():
    raw = slm("SARSA", update_type="replace")
    raw["agent"]["algorithm"] = {"name": "SARSA", "action_pdtype": "Argmax", "training_frequency": 8}
    agent = resolved(raw)
    assert agent["algorithm"]["training_frequency"] == 8 and agent["net"]["use_same_optim"]


def test_an_off_policy_spec_is_read_with_notes_and_its_search_stays():
    raw = off_policy("VanillaDQN", net={"type": "DuelingMLPNet"}, memory=PER)
    spec = resolve(raw, check_env=False)
    for said in ("update_frequency 1", "dueling true", "beta 0.0", "'Argmax' is left out", "training_frequency 1 is"):
        assert any(said in note for note in spec.notes), said
    assert spec.search == raw["search"]


def test_what_slm_lab_takes_where_an_off_policy_spec_is_silent():
    raw = off_policy("SoftActorCritic", memory={"batch_size": 256})
    for key in ("training_iter", "training_start_step"):
        del raw["agent"]["algorithm"][key]
    sac = resolved(raw)["algorithm"]
    assert (sac["training_iter"], sac["training_start_step"], sac["update_type"]) == (4, 1000, "replace")
    raw = off_policy(memory={"batch_size": 48})
    del raw["agent"]["algorithm"]["training_start_step"]
    assert resolved(raw)["algorithm"]["training_start_step"] == 48


@pytest.mark.parametrize(
    ("raw", "path", "cure"),
    [
        (off_policy(action_policy="default"), "agent.algorithm.action_policy", "use 'boltzmann'"),
        (off_policy(net={**POLYAK, "polyak_coef": 0.0}), "agent.net.polyak_coef", "e.g. 0.005"),
        (off_policy(net={**POLYAK, "polyak_coef": 2}), "agent.net.polyak_coef", "1"),
        (off_policy(net={"update_frequency": "often"}), "agent.net.update_frequency", "often"),
        (off_policy(training_frequency="4"), "agent.algorithm.training_frequency", "4"),
        (off_policy(net=RNN, memory={"use_cer": True}), "agent.memory.use_cer", "leave it out"),
        (off_policy("SoftActorCritic", {"hid_layers": [0]}), "agent.net.hid_layers.0", "0"),
        (off_policy("SoftActorCritic", {"type": "DuelingMLPNet"}), "agent.net.type", "DQN, DoubleDQN and SARSA"),
        (off_policy("SoftActorCritic", action_policy="boltzmann"), "agent.algorithm.action_policy", "Leave it out"),
        (off_policy("SoftActorCritic", policy_delay=2), "agent.algorithm.policy_delay", "use TD3"),
        (off_policy("SoftActorCritic", log_alpha_max=2.0), "agent.algorithm.log_alpha_max", "fixed_alpha"),
        (off_policy("SoftActorCritic", spectral_norm=True), "agent.algorithm.spectral_norm", "leave it out"),
        (off_policy("SoftActorCritic", symlog=True), "agent.algorithm.symlog", "env.normalize_reward"),
    ],
)
def test_off_policy_keys_without_counterpart_are_refused_under_the_users_name(raw, path, cure):
    with pytest.raises(SpecError) as error:
        resolve(raw, check_env=False)
    [problem] = error.value.problems
    assert problem.path == path and cure in problem.message


# --- the pace of learning ---


def pace_there(envs, frequency, iterations, start, update_frequency, share, sac, frames):
    """SLM-Lab's counters as a plain loop: batches learned from, copies to the target, how much is left of the first
    target after moves by `share` towards 0."""
    seen, batches, copies, left = 0, 0, 0, 1.0
    for frame in range(envs, frames + 1, envs):
        to_train = False
        for _ in range(envs):
            seen += 1
            to_train |= seen > start and (seen - 1) % frequency == 0
        batches += iterations * to_train
        if seen > start:
            copies += frame % update_frequency < envs
            left *= (1 - share) ** (iterations * to_train if sac else 1)
    return batches, copies, left


def pace_here(algorithm, envs, frames):
    """The same of our gate and target network, by a translated spec."""
    spec = SimpleNamespace(**algorithm)
    gate = Gate(spec.training_frequency, spec.training_start_step, spec.training_iter)
    source = Net({}, {}, {"weight": torch.nn.Parameter(torch.ones(1))})
    target = Target(source, spec)
    weight, batches, copies = target.net.free["weight"], 0, 0
    for _ in range(0, frames, envs):
        gate.played(envs)
        while gate.owed:
            gate.take()
            batches += 1
            torch.nn.init.constant_(source.free["weight"], batches if spec.update_type == "replace" else 0)
            before = weight.item()
            target.follow()
            copies += weight.item() != before
    return batches, copies, weight.item()


@pytest.mark.parametrize("algorithm", ["DQN", "SoftActorCritic"])
@pytest.mark.parametrize("polyak", [False, True])
@pytest.mark.parametrize(
    ("envs", "frequency", "iterations", "update_frequency"),
    [(4, 1, 2, 75), (1, 4, 4, 100), (8, 32, 2, 1), (4, 6, 1, 10), (16, 4, 3, 1000), (2, 1, 8, 1)],
)
def test_it_learns_as_often_as_in_slm_lab(algorithm, polyak, envs, frequency, iterations, update_frequency):
    frames, start, share = 6000, 100, 0.0005
    net = {"update_type": "polyak", "polyak_coef": share} if polyak else {"update_frequency": update_frequency}
    counts = {"training_frequency": frequency, "training_iter": iterations, "training_start_step": start}
    sac = algorithm == "SoftActorCritic"
    batches, copies, left = pace_there(envs, frequency, iterations, start, update_frequency, share, sac, frames)
    here = pace_here(resolved(off_policy(algorithm, net, num_envs=envs, **counts))["algorithm"], envs, frames)
    assert here[0] == pytest.approx(batches, abs=2 * iterations)
    if polyak:
        assert math.log(here[2]) == pytest.approx(math.log(left), rel=0.02)
    else:  # copies of a net that has not changed are none
        assert here[1] == pytest.approx(min(copies, batches / iterations), rel=0.03, abs=2)


def test_warm_up_grows_to_the_first_batch():
    for memory, net, start in (
        ({"batch_size": 64}, {}, 64),
        ({"batch_size": 16}, {}, 32),
        ({}, {**RNN, "seq_len": 20}, 80),
    ):
        assert resolved(off_policy(memory=memory, net=net))["algorithm"]["training_start_step"] == start


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"optim_spec": {"name": "RMSprop"}}, {"optim_spec": {"name": "RMSprop", "lr": 0.01}}),
        ({"optim_spec": {"name": "Adam", "lr": 0.5}}, {"optim_spec": {"name": "Adam", "lr": 0.5}}),
        ({}, {"optim_spec": {"lr": 0.001}}),
        (
            {"shared": True, "actor_optim_spec": {"name": "Adam"}, "critic_optim_spec": {"name": "Adam", "lr": 1}},
            {"optim_spec": {"name": "Adam", "lr": 0.001}},
        ),
        (
            {
                "use_same_optim": True,
                "actor_optim_spec": {"name": "Adam", "lr": 0.5},
                "critic_optim_spec": {"name": "Adam"},
            },
            {"optim_spec": {"name": "Adam", "lr": 0.5}},
        ),
        (
            {"actor_optim_spec": {"name": "RMSprop"}, "critic_optim_spec": {"name": "SGD"}},
            {"actor_optim_spec": {"name": "RMSprop", "lr": 0.01}, "critic_optim_spec": {"name": "SGD", "lr": 0.001}},
        ),
    ],
)
def test_an_optimiser_without_a_learning_rate_has_torchs(given, expected):
    """Also where it is the actor's that all are trained by."""
    spec, _, problems, _ = translate({"agent": {"algorithm": {"name": "PPO"}, "net": {"type": "MLPNet", **given}}})
    assert {key: value for key, value in spec["agent"]["net"].items() if "optim_spec" in key} == expected
    assert not problems
