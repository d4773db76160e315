"""What every core must do, over the registry: being in the table is being tested."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slm_lab.agent.net.core.base import Core
from slm_lab.lib.tree import tree_leaves, tree_map
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
        out, carry, _, _ = core(x[:, t : t + 1], carry, is_first[:, t : t + 1])
        features.append(out)
    return torch.cat(features, dim=1), carries


@pytest.mark.parametrize("name", CORE)
def test_learning_sees_what_acting_saw(name: str) -> None:
    """Features of a whole window from its stored carry equal those of acting step by step, wherever the window begins."""
    core, (x, is_first) = build(name), inputs()
    carry = tree_map(lambda leaf: leaf + 0.5, core.initial(B))  # a carry in mid-episode
    acted, carries = act(core, x, carry, is_first)
    for begin in (0, 3):
        learned, _, _, _ = core(x[:, begin:], carries[begin], is_first[:, begin:])
        torch.testing.assert_close(learned, acted[:, begin:], atol=1e-6, rtol=0)
    assert acted.shape == (B, T, core.out_size)


@pytest.mark.parametrize("name", CORE)
def test_is_first_forgets(name: str) -> None:
    """From a first step on, nothing that came before matters."""
    core, (x, is_first) = build(name), inputs()
    is_first[:, 4] = True
    dirty = tree_map(lambda leaf: leaf + 3.0, core.initial(B))
    other, _ = inputs(seed=1)
    mixed = torch.cat([other[:, :4], x[:, 4:]], dim=1)
    a, _, _, _ = core(mixed, dirty, is_first)
    b, _, _, _ = core(x[:, 4:], core.initial(B), is_first[:, 4:])
    torch.testing.assert_close(a[:, 4:], b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", CORE)
def test_rows_do_not_mix(name: str) -> None:
    core, (x, is_first) = build(name), inputs()
    whole, _, _, _ = core(x, core.initial(B), is_first)
    alone, _, _, _ = core(x[1:2], core.initial(1), is_first[1:2])
    torch.testing.assert_close(whole[1:2], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name in CORE if name != "none"])
def test_it_remembers_and_gradient_reaches_the_past(name: str) -> None:
    core, (x, _) = build(name), inputs()
    is_first = torch.zeros(B, T, dtype=torch.bool)
    x.requires_grad_()
    features, _, _, _ = core(x, core.initial(B), is_first)
    features[:, -1].sum().backward()
    assert x.grad is not None
    assert x.grad[:, 0].abs().sum() > 0
    assert all(p.grad is not None and p.grad.any() for p in core.parameters())


@pytest.mark.parametrize("name", CORE)
def test_carry_keeps_its_shape(name: str) -> None:
    core, (x, is_first) = build(name), inputs()
    _, carry, extras, losses = core(x, core.initial(B), is_first)
    before = {path: leaf.shape for path, leaf in tree_leaves(core.initial(B))}
    assert {path: leaf.shape for path, leaf in tree_leaves(carry)} == before
    assert all(shape[0] == B for shape in before.values())
    assert all(term.shape == (B, T) for term in losses.values())
    assert all(leaf.shape[:2] == (B, T) for _, leaf in tree_leaves(extras))
