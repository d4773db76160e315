"""Nets: parts, heads, what each optimiser trains, and how weights begin."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from slm_lab.agent.algorithm.ppo import PPO
from slm_lab.agent.build import build_agent, build_net, pick_device
from slm_lab.agent.memory.onpolicy import OnPolicyBatchReplay
from slm_lab.agent.net.base import NetSpec
from slm_lab.agent.net.core.base import Core
from slm_lab.agent.net.core.rnn import GRU
from slm_lab.agent.net.encode import vectors
from slm_lab.agent.net.layers import ONEDNN, linear
from slm_lab.agent.net.mlp import MLP
from slm_lab.agent.net.net import Net
from slm_lab.agent.net.optim import Optim, make_optim
from slm_lab.env.base import World
from slm_lab.lib.errors import LabError
from slm_lab.lib.reduce import Loss
from slm_lab.spec.lab_spec import AgentSpec
from slm_lab.spec.model import LrScheduleSpec, OptimSpec

OBS = {"obs": spaces.Box(-1, 1, (3,))}
ACTIONS = spaces.Discrete(4)


def loss_of(total: Tensor) -> Loss:
    loss = Loss()
    loss.begin(total, torch.ones_like(total))
    return loss


def net_of(**keys: object) -> tuple[Net, NetSpec]:
    spec = MLP.Spec(hid_layers=[16], **keys)  # type: ignore[arg-type]
    return build_net(spec, OBS, PPO.heads(PPO.Spec(), spec, ACTIONS)), spec


def test_one_hot_and_flat_in_the_order_of_the_space() -> None:
    space = {
        "d": spaces.Discrete(3, start=1),
        "m": spaces.MultiDiscrete([2, 2]),
        "b": spaces.Box(0, 1, (2,)),
        "i": spaces.Box(0, 255, (1, 1), np.uint8),
    }
    obs = {
        "d": torch.tensor([3]),
        "m": torch.tensor([[1, 0]]),
        "b": torch.tensor([[0.5, 0.25]]),
        "i": torch.full((1, 1, 1), 51, dtype=torch.uint8),
    }
    assert vectors(space, obs).tolist() == [pytest.approx([0, 0, 1, 0, 1, 1, 0, 0.5, 0.25, 0.2])]


onednn = pytest.mark.skipif(not ONEDNN, reason="this torch has no oneDNN")


@onednn
@pytest.mark.parametrize("learns", [(1, 1, 1), (0, 1, 1), (1, 0, 0), (1, 1, 0), (0, 0, 1), (0, 0, 0)])
def test_large_products_are_onednns_and_differ_from_torchs_by_rounding(learns: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    layer, x = linear(256, 128), torch.randn(256, 128).t()  # not in order, as a transpose is
    ours = [
        leaf.detach().requires_grad_(bool(does)) for leaf, does in zip((x, *layer.parameters()), learns, strict=True)
    ]
    layer.weight.requires_grad_(bool(learns[1]))
    layer.bias.requires_grad_(bool(learns[2]))
    y = layer(ours[0])
    theirs = [leaf.detach().clone().requires_grad_(leaf.requires_grad) for leaf in ours]
    wanted = nn.functional.linear(*theirs)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    assert y.requires_grad == any(learns)
    if any(learns):
        assert "OneDnn" in str(y.grad_fn)
        slope = torch.randn(128, 1).expand(128, 128)
        asked = [part for part in (ours[0], layer.weight, layer.bias) if part.requires_grad]
        found = torch.autograd.grad(y, asked, slope)
        of_torch = torch.autograd.grad(wanted, [leaf for leaf in theirs if leaf.requires_grad], slope)
        torch.testing.assert_close(found, of_torch, rtol=1e-4, atol=1e-4)


@onednn
def test_a_second_derivative_through_onednn_is_refused() -> None:
    layer, x = linear(256, 256), torch.randn(256, 256, requires_grad=True)
    (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (linear(64, 64), torch.randn(4096, 64)),  # narrow
        (linear(256, 256), torch.randn(32, 256)),  # small
        (linear(256, 256), torch.randn(300, 256)),  # one of many sizes, which oneDNN would all keep
        (linear(256, 256).double(), torch.randn(256, 256).double()),
        (linear(256, 256), torch.randn(64, 2, 256)),
    ],
)
def test_other_products_are_torchs_own(layer: nn.Linear, x: Tensor) -> None:
    assert "OneDnn" not in str(layer(x).grad_fn)


def test_policy_begins_near_uniform_and_shared_nets_have_one_part() -> None:
    net, _ = net_of(shared=True, core={"name": "none"})
    out = net({"obs": torch.randn(5, 2, 3)}, net.initial(5), torch.zeros(5, 2, dtype=torch.bool))
    assert set(net.parts) == {"shared"}
    assert out.heads["policy"].log_probs.exp().sub(0.25).abs().max() < 0.05
    assert out.heads["value"].shape == (5, 2, 1)


def test_each_part_has_its_own_optimiser_and_clip() -> None:
    optims = {
        "use_same_optim": False,
        "actor_optim_spec": OptimSpec(lr=0.1, name="SGD"),
        "critic_optim_spec": OptimSpec(lr=0.2, name="SGD"),
    }
    net, spec = net_of(clip_grad_val=1.0, **optims)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optim = Optim(net, spec)
    out = net({"obs": torch.ones(1, 1, 3)}, net.initial(1), torch.ones(1, 1, dtype=torch.bool))
    total = 1e4 * out.heads["value"].sum() + 1e4 * out.heads["policy"].log_prob(torch.zeros(1, 1)).sum()
    optim.step(loss_of(total), frame=0)
    for part, lr in (("actor", 0.1), ("critic", 0.2)):
        own = [name for name, p in net.named_parameters() if any(p is q for q in optim.groups[part])]
        now = dict(net.named_parameters())
        moved = torch.cat([(now[name].detach() - before[name]).flatten() for name in own]).norm()
        assert moved == pytest.approx(lr * 1.0, rel=1e-3)  # lr times the clipped norm


def test_learning_rate_follows_its_schedule() -> None:
    net, spec = net_of(
        optim_spec=OptimSpec(lr=0.1), lr_scheduler_spec=LrScheduleSpec(name="LinearToMin", frame=100, min_factor=0.5)
    )
    optim = Optim(net, spec)
    assert [optim.lr("actor", frame) for frame in (0, 25, 50, 1000)] == pytest.approx([0.1, 0.075, 0.05, 0.05])


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    net, spec = net_of()
    before = [p.detach().clone() for p in net.parameters()]
    optim = Optim(net, spec)
    out = net({"obs": torch.ones(1, 1, 3)}, net.initial(1), torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(LabError, match=r"gradient is not finite at frame 5.*value"):
        optim.step(loss_of(out.heads["value"].sum() * torch.inf), frame=5)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_untrained_parameters_are_named() -> None:
    net, spec = net_of()
    optim = Optim(net, spec)
    optim.watch()
    out = net({"obs": torch.ones(1, 1, 3)}, net.initial(1), torch.ones(1, 1, dtype=torch.bool))
    optim.step(loss_of(out.heads["value"].sum()), frame=0)
    assert optim.untrained
    assert all("critic" not in name and "value" not in name for name in optim.untrained)
    assert any("policy" in name for name in optim.untrained)


def test_only_the_heads_asked_for_are_run() -> None:
    net, _ = net_of(core={"name": "none"})
    out = net({"obs": torch.ones(1, 1, 3)}, net.initial(1), torch.ones(1, 1, dtype=torch.bool), heads=("policy",))
    assert set(out.heads) == {"policy"}
    assert set(out.features) == {"actor"}
    recurrent, _ = net_of(core={"name": "GRU"})
    out = recurrent(
        {"obs": torch.ones(1, 1, 3)}, recurrent.initial(1), torch.ones(1, 1, dtype=torch.bool), heads=("policy",)
    )
    assert out.carry["critic"]["h"].any(), "a critic with a memory must see every step"


def test_a_small_net_stays_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    net, _ = net_of()
    assert pick_device("auto", net, OBS) == torch.device("cpu")
    assert pick_device("auto", net, {"obs": spaces.Box(0, 255, (8, 8), np.uint8)}) == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LabError, match=r"agent.net.device: 'cuda'"):
        pick_device("cuda", net, OBS)


def test_a_memory_may_bring_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """The door by which an experience memory gives the policy something to read."""

    def core(self: OnPolicyBatchReplay, in_size: int) -> Core:
        return GRU(GRU.Spec(hidden_size=5), in_size)

    monkeypatch.setattr(OnPolicyBatchReplay, "core", core)
    spec = AgentSpec("test", PPO.Spec(), OnPolicyBatchReplay.Spec(), MLP.Spec(shared=True))
    agent = build_agent(spec, World(2, OBS, ACTIONS), seed=0)
    assert agent.initial(2)["shared"]["h"].shape == (2, 1, 5)
    both = AgentSpec("test", PPO.Spec(), OnPolicyBatchReplay.Spec(), MLP.Spec(core={"name": "LSTM"}))
    with pytest.raises(LabError, match=r"agent.net.core: LSTM would go unused"):
        build_agent(both, World(2, OBS, ACTIONS), seed=0)


def test_equal_seeds_give_equal_nets() -> None:
    def weights(seed: int) -> Tensor:
        spec = AgentSpec("test", PPO.Spec(), OnPolicyBatchReplay.Spec(), MLP.Spec())
        agent = build_agent(spec, World(2, OBS, ACTIONS), seed=seed)
        return torch.cat([p.flatten() for p in agent.algorithm.net.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_adam_is_torchs_own_to_the_bit(name: str) -> None:
    """Also where a parameter gets no gradient for a step, and after a checkpoint."""
    torch.manual_seed(0)
    own = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))]
    others = copy.deepcopy(own)
    spec = OptimSpec(name=name, lr=0.1, weight_decay=0.1, betas=[0.8, 0.9])
    optim = make_optim(own, spec)
    reference = getattr(torch.optim, name)(others, lr=0.1, weight_decay=0.1, betas=(0.8, 0.9), fused=True)
    for step in range(4):
        for i, (parameter, other) in enumerate(zip(own, others, strict=True)):
            parameter.grad = None if step == 1 and i == 0 else torch.randn_like(parameter)
            other.grad = parameter.grad
        with torch.no_grad():
            optim.step()
        reference.step()
        saved, optim = copy.deepcopy(optim.state_dict()), make_optim(own, spec)
        optim.load_state_dict(saved)
    assert all(torch.equal(a, b) for a, b in zip(own, others, strict=True))


def test_a_frozen_head_passes_the_gradient_on_and_keeps_none() -> None:
    net, _ = net_of(core={"name": "none"})
    features = {"critic": torch.randn(1, 1, net.out_sizes["critic"], requires_grad=True)}
    learned = net.read("value", features)
    net.read("value", features, frozen=True).sum().backward()
    assert features["critic"].grad is not None and features["critic"].grad.any()
    assert all(p.grad is None and p.requires_grad for p in net.heads["value"].parameters())
    learned.sum().backward()  # what was read before learns all the same
    assert all(p.grad is not None for p in net.heads["value"].parameters())
