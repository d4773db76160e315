"""What every core must do, over the registry: being in the table is being tested."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from slm_lab.agent.net.core import rnn
from slm_lab.agent.net.core.base import Core, take
from slm_lab.lib.tree import tree_leaves, tree_map
from slm_lab.lib.types import Tree
from slm_lab.spec.parts import CORE

B, T, D = 3, 9, 5


def build(name: str) -> Core:
    torch.manual_seed(0)
    cls = CORE.load(name)
    core: Core = cls(cls.Spec(), D)
    return core


def inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, T, D, generator=generator)
    is_first = torch.rand(B, T, generator=generator) < 0.25
    is_first[:, 0] = torch.tensor([True, False, True])
    return x, is_first


def act(core: Core, x: Tensor, carry: dict, is_first: Tensor) -> tuple[Tensor, list[dict]]:
    """One step at a time; features [B, T, F] and the carry before each step."""
    features, carries = [], []
    for t in range(x.shape[1]):
        carries.append(carry)
        out, carry, *_ = core(x[:, t : t + 1], carry, is_first[:, t : t + 1])
        features.append(out)
    return torch.cat(features, dim=1), carries


@pytest.mark.parametrize("name", CORE)
def test_learning_sees_what_acting_saw(name: str) -> None:
    """Features of a whole window from its stored carry equal those of acting step by step, wherever the window begins."""
    core, (x, is_first) = build(name), inputs()
    carry = tree_map(lambda leaf: leaf + 0.5, core.initial(B))  # a carry in mid-episode
    acted, carries = act(core, x, carry, is_first)
    for begin in (0, 3):
        learned, *_ = core(x[:, begin:], carries[begin], is_first[:, begin:])
        torch.testing.assert_close(learned, acted[:, begin:], atol=1e-6, rtol=0)
    assert acted.shape == (B, T, core.out_size)


@pytest.mark.parametrize("name", CORE)
def test_the_steps_asked_for_are_those_of_the_window(name: str) -> None:
    core, (x, is_first) = build(name), inputs()
    at = torch.tensor([[0, T - 1, 3]] * B)
    whole, found = (core(x, core.initial(B), is_first, asked) for asked in (None, at))
    torch.testing.assert_close(found.features, take(whole.features, at))
    for (path, a), (_, b) in zip(tree_leaves(whole.carry), tree_leaves(found.carry), strict=True):
        assert torch.equal(a, b), path


@pytest.mark.parametrize("name", CORE)
def test_is_first_forgets(name: str) -> None:
    """From a first step on, nothing that came before matters."""
    core, (x, is_first) = build(name), inputs()
    is_first[:, 4] = True
    dirty = tree_map(lambda leaf: leaf + 3.0, core.initial(B))
    other, _ = inputs(seed=1)
    mixed = torch.cat([other[:, :4], x[:, 4:]], dim=1)
    a, *_ = core(mixed, dirty, is_first)
    b, *_ = core(x[:, 4:], core.initial(B), is_first[:, 4:])
    torch.testing.assert_close(a[:, 4:], b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", CORE)
def test_rows_do_not_mix(name: str) -> None:
    core, (x, is_first) = build(name), inputs()
    whole, *_ = core(x, core.initial(B), is_first)
    alone, *_ = core(x[1:2], core.initial(1), is_first[1:2])
    torch.testing.assert_close(whole[1:2], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name in CORE if name != "none"])
def test_it_remembers_and_gradient_reaches_the_past(name: str) -> None:
    core, (x, _) = build(name), inputs()
    is_first = torch.zeros(B, T, dtype=torch.bool)
    x.requires_grad_()
    features, *_ = core(x, core.initial(B), is_first)
    features[:, -1].sum().backward()
    assert x.grad is not None
    assert x.grad[:, 0].abs().sum() > 0
    assert all(p.grad is not None and p.grad.any() for p in core.parameters())


@pytest.mark.parametrize("name", CORE)
def test_carry_keeps_its_shape(name: str) -> None:
    core, (x, is_first) = build(name), inputs()
    _, carry, extras, losses, _ = core(x, core.initial(B), is_first)
    before = {path: leaf.shape for path, leaf in tree_leaves(core.initial(B))}
    assert {path: leaf.shape for path, leaf in tree_leaves(carry)} == before
    assert all(shape[0] == B for shape in before.values())
    assert all(term.shape == (B, T) for term in losses.values())
    assert all(leaf.shape[:2] == (B, T) for _, leaf in tree_leaves(extras))


def scattered(B: int, T: int, chance: float) -> Tensor:
    return torch.rand(B, T, generator=torch.Generator().manual_seed(2)) < chance


def at(B: int, T: int, step: int) -> Tensor:
    """Every row but the first is reset at one step."""
    is_first = torch.zeros(B, T, dtype=torch.bool)
    is_first[1:, step] = True
    return is_first


RESETS = {
    "scattered": scattered(6, 13, 0.3),
    "few": scattered(6, 13, 0.03),
    "one row": scattered(1, 13, 0.3),
    "every step": scattered(4, 5, 1.1),
    "only at the start": at(4, 7, 0),
    "only at the end": at(4, 7, -1),
    "none": scattered(4, 7, 0.0),
    "one step": at(4, 1, 0),
}


def plainly(core: rnn.Recurrent, x: Tensor, carry: Tree, is_first: Tensor) -> tuple[Tensor, Tree]:
    """Torch's own net, one row and one step at a time, from a carry that a first step zeroes."""
    features, ends = [], []
    for row in range(len(x)):
        state = [carry[name][row, :, None] for name in core.state_names]  # [layers, 1, H]
        for t in range(x.shape[1]):
            state = [torch.zeros_like(part) if is_first[row, t] else part for part in state]
            out, new = core.rnn(x[row : row + 1, t : t + 1], state[0] if len(state) == 1 else tuple(state))
            state = [new] if len(state) == 1 else list(new)
            features.append(out[0, 0])
        ends.append([part[:, 0] for part in state])
    carry = {name: torch.stack(parts) for name, parts in zip(core.state_names, zip(*ends, strict=True), strict=True)}
    return torch.stack(features).view(*x.shape[:2], -1), carry


def learn(core: rnn.Recurrent, resets: str, forward: Any) -> dict[str, Tensor]:
    """All that learning on a window gives: features, final carry, and the gradient of everything that went in.

    As in a batch, the row before a reset is masked: it may read its own episode but must not be learned from.
    """
    is_first = RESETS[resets]
    dtype = next(core.parameters()).dtype
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    x = normal(*is_first.shape, D).requires_grad_()
    carry = tree_map(lambda leaf: normal(*leaf.shape).requires_grad_(), core.initial(len(x)))
    features, end, *_ = forward(x, carry, is_first)
    mask = torch.cat([~is_first[:, 1:], torch.ones(len(x), 1, dtype=torch.bool)], dim=1)[..., None]
    loss = (features * normal(*features.shape) * mask).sum()
    loss = loss + sum((end[name] * normal(*end[name].shape)).sum() for name in core.state_names)
    inputs = {"x": x, **carry, **dict(core.named_parameters())}
    gradients = torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True)
    found = {"features": features, **{f"end {name}": end[name] for name in core.state_names}}
    return found | {f"gradient {name}": gradient for name, gradient in zip(inputs, gradients, strict=True)}


def recurrent(name: str, layers: int, dtype: torch.dtype) -> rnn.Recurrent:
    torch.manual_seed(0)
    cls = CORE.load(name)
    core: rnn.Recurrent = cls(cls.Spec(hidden_size=7, num_layers=layers), D)
    for parameter in core.parameters():  # biases are zero at first
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return core.to(dtype)


@pytest.mark.parametrize("step_cost", [0, 1000])
@pytest.mark.parametrize("resets", RESETS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_resets_equal_a_plain_loop(
    name: str, layers: int, resets: str, step_cost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever way a recurrent core takes through a window with resets: features, final carry and gradients."""
    monkeypatch.setattr(CORE.load(name), "step_cost", step_cost)
    core = recurrent(name, layers, torch.float64)
    expected = learn(core, resets, lambda *window: plainly(core, *window))
    torch.testing.assert_close(learn(core, resets, core), expected, atol=1e-12, rtol=1e-12)
    core = recurrent(name, layers, torch.float32)
    found, expected = learn(core, resets, core), learn(core, resets, lambda *window: plainly(core, *window))
    for key in ("features", *(f"end {name}" for name in core.state_names)):
        torch.testing.assert_close(found[key], expected[key], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_scattered_resets_give_the_same_bits_twice(name: str) -> None:
    core = recurrent(name, 2, torch.float32)
    a, b = learn(core, "scattered", core), learn(core, "scattered", core)
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
@pytest.mark.parametrize("resets", RESETS)
def test_a_window_is_one_call_and_acting_none(name: str, resets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many resets there are, a layer calls torch's net once; a single step takes the cell."""
    core, count = recurrent(name, 2, torch.float32), list[int]()
    run = core._run
    monkeypatch.setattr(core, "_run", lambda *arguments: count.append(1) or run(*arguments))
    learn(core, resets, core)
    assert len(count) == (0 if resets == "one step" else 2)


def resets_at(B: int, T: int, *places: tuple[int, int]) -> Tensor:
    is_first = torch.zeros(B, T, dtype=torch.bool)
    is_first[tuple(zip(*places, strict=True))] = True
    return is_first


@pytest.mark.parametrize(
    ("is_first", "shape"),
    [
        (resets_at(4, 34, *[(row, 17) for row in range(4)]), (8, 17)),  # episodes of one length, aligned
        (resets_at(4, 34, (0, 17)), (4, 35)),  # three rows would wait for nothing
        (resets_at(2, 30, *[(row, 10 * i + row) for row in range(2) for i in (1, 2)]), (6, 11)),  # not quite aligned
        (resets_at(3, 20, *[(0, t) for t in range(20)]), (4, 20)),  # twenty of one step fill two lanes
    ],
)
def test_a_window_lies_where_it_runs_fastest(is_first: Tensor, shape: tuple[int, int]) -> None:
    """As few lanes as hold the stretches of episodes, as short as the longest of them or as long as a row with resets."""
    lanes = rnn.lay_out(is_first, rnn.LSTM.step_cost)
    assert (len(lanes.begin), lanes.length) == shape
    assert (lanes.place is None) == (len(lanes.begin) * lanes.length == is_first.numel())
