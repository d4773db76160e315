"""The gradient of an update is what autograd finds of the same loss, written as in the papers: control for all slopes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_specs import make_spec
from torch import Tensor
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.nn import functional as F

from bench.race import LabLearner
from slm_lab.agent.net.net import NetOut
from slm_lab.lib.reduce import Loss
from slm_lab.lib.types import Batch

STEPS = 30  # gradient steps: the first of a batch is at ratio 1, the last beyond its bounds
HOT = {"name": "Adam", "lr": 0.01}
CORE = {"name": "GRU", "hidden_size": 8}


def mean(x: Tensor, batch: Batch) -> Tensor:
    weight = torch.ones(len(x)) if batch.weight is None else batch.weight
    return torch.where(batch.mask, x * weight[:, None], 0.0).sum() / batch.mask.sum()


def error(algorithm: Any, prediction: Tensor, target: Tensor) -> Tensor:
    kind = F.mse_loss if algorithm.optim.spec.loss_spec.name == "MSELoss" else F.smooth_l1_loss
    return kind(prediction, target, reduction="none")


def ppo(algorithm: Any, batch: Batch, out: NetOut, frame: int) -> Tensor:
    policy, told, scales = out.heads["policy"], batch.extras, algorithm.scales(frame)
    ratio = (policy.log_prob(batch.action) - told["log_prob"]).exp()
    gain = torch.minimum(ratio * told["advantage"], ratio.clamp(0.8, 1.2) * told["advantage"])
    value = out.heads["value"].squeeze(-1)
    off = error(algorithm, value, told["v_target"])
    if algorithm.spec.clip_vloss:
        near = told["value"] + (value - told["value"]).clamp(-0.2, 0.2)
        off = torch.maximum(off, error(algorithm, near, told["v_target"]))
    entropy = policy.entropy() * told.get("surprise", torch.ones_like(value))
    return mean(scales["value_loss"] * off - gain + scales["entropy"] * entropy, batch)


def dqn(algorithm: Any, batch: Batch, out: NetOut, frame: int) -> Tensor:
    q = out.heads["q"].gather(-1, batch.action.long().unsqueeze(-1)).squeeze(-1)
    return mean(error(algorithm, q, batch.extras["target"]), batch)


def still(algorithm: Any, out: NetOut) -> Callable[..., Tensor]:
    """The net's heads as they are, of features as they are: no gradient goes to either, only through an action."""
    net, features = copy.deepcopy(algorithm.net).requires_grad_(False), {k: x.detach() for k, x in out.features.items()}
    return lambda head, *action: net.read(head, features, *action)


def twins(algorithm: Any, batch: Batch, out: NetOut) -> Tensor:
    found = [out.heads[name] for name in ("q1", "q2")]
    if found[0].dim() == 3:
        found = [q.gather(-1, batch.action.long().unsqueeze(-1)).squeeze(-1) for q in found]
    return sum((error(algorithm, q, batch.extras["target"]) for q in found), torch.zeros(()))


def sac(algorithm: Any, batch: Batch, out: NetOut, frame: int) -> Tensor:
    policy, q, log_alpha = out.heads["policy"], still(algorithm, out), algorithm.net.free["log_alpha"]
    if hasattr(policy, "log_probs"):
        chance, log_prob, held = policy.log_probs.exp(), policy.log_probs, 0.5 * math.log(2)
        value = torch.minimum(q("q1"), q("q2"))
    else:
        copied = torch.Generator()
        copied.set_state(algorithm.rng.torch.get_state())
        drawn = policy.mean + policy.log_std.exp() * torch.randn(policy.mean.shape, generator=copied)
        action, held = torch.tanh(drawn), -1.0
        gaussian = TransformedDistribution(Normal(policy.mean, policy.log_std.exp()), TanhTransform())
        chance, log_prob = torch.ones(1), gaussian.log_prob(action)
        value = torch.minimum(q("q1", action), q("q2", action)).unsqueeze(-1)
    gain = (chance * (value - log_alpha.detach().exp() * log_prob)).sum(dim=-1)
    surplus = -(chance * log_prob).sum(dim=-1).detach() - held
    return mean(twins(algorithm, batch, out) - gain + log_alpha * surplus, batch)


def td3(algorithm: Any, batch: Batch, out: NetOut, frame: int) -> Tensor:
    total = twins(algorithm, batch, out)
    if algorithm.optim.opt_step % 2 == 0:
        total = total - still(algorithm, out)("q1", out.heads["policy"].mean)
    return mean(total, batch)


PPO = {"name": "PPO", "time_horizon": 32, "minibatch_size": 32, "training_epoch": 6,
       "entropy_coef_spec": {"name": "no_decay", "start_val": 0.02}}  # fmt: skip
DQN = {"training_frequency": 1, "training_start_step": 60}
REPLAY = {"name": "Replay", "max_size": 500, "batch_size": 16}
JOINED = {"head_hid_layers": [8]}  # where action and features meet
SEQUENCES = {"name": "SequenceReplay", "max_size": 2000, "batch_size": 8, "sequence_length": 12, "burn_in": 3,
             "carry_every": 4, "prioritized": True, "n_step": 2}  # fmt: skip
CASES: dict[str, tuple[Callable[..., Tensor], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "PPO": (ppo, PPO, {"name": "OnPolicyBatchReplay"}, {}),
    "clipped": (ppo, {**PPO, "clip_vloss": True, "entropy_by_surprise": True}, {"name": "OnPolicyBatchReplay"}, {}),
    "shared": (ppo, PPO, {"name": "OnPolicyBatchReplay"}, {"shared": True, "loss_spec": {"name": "SmoothL1Loss"}}),
    "recurrent": (ppo, PPO, {"name": "OnPolicyBatchReplay"}, {"core": CORE}),
    "DQN": (dqn, {"name": "DQN", **DQN}, REPLAY, {}),
    "PER": (
        dqn, {"name": "DoubleDQN", "dueling": True, **DQN},
        {"name": "PrioritizedReplay", "max_size": 500, "batch_size": 16, "n_step": 3},
        {"loss_spec": {"name": "SmoothL1Loss"}},
    ),
    "SAC": (sac, {"name": "SAC", **DQN}, REPLAY, JOINED),
    "discrete SAC": (sac, {"name": "SAC", **DQN}, REPLAY, {}),
    "TD3": (td3, {"name": "TD3", **DQN}, REPLAY, JOINED),
    "DRQN": (dqn, {"name": "DQN", **DQN}, SEQUENCES, {"core": CORE}),
}  # fmt: skip
WORLDS = dict.fromkeys(("SAC", "TD3"), "Pendulum-v1")


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_what_autograd_finds(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, algorithm, memory, net = CASES[case]
    keys = {"name": "MLP", "hid_layers": [8], "optim_spec": HOT, **net}
    parts = {"agent__algorithm": algorithm, "agent__memory": memory, "agent__net": keys}
    learner = LabLearner(make_spec(**parts, env__name=WORLDS.get(case, "CartPole-v1")), seed=0)
    learns = learner.agent.algorithm
    losses, parameters = learns.losses, list(learns.net.parameters())
    expected: list[tuple[Tensor | None, ...]] = []
    compared = 0

    def watched(batch: Batch, out: NetOut, frame: int) -> Any:
        total = plain(learns, batch, out, frame)
        expected.append(torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True))
        return losses(batch, out, frame)

    backward = Loss.backward

    def followed(self: Loss) -> None:
        nonlocal compared
        backward(self)
        for parameter, by_autograd in zip(parameters, expected.pop(), strict=True):
            assert (parameter.grad is None) == (by_autograd is None)
            if by_autograd is not None:
                scale = float(by_autograd.abs().max()) + 1e-6
                torch.testing.assert_close(parameter.grad / scale, by_autograd / scale, atol=2e-5, rtol=0)
        compared += 1

    monkeypatch.setattr(learns, "losses", watched)
    monkeypatch.setattr(Loss, "backward", followed)
    while compared < STEPS:
        learner.advance(10**9)
