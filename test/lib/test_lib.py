"""The reducer, schedules, registry, running moments, random streams."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from slm_lab.lib.errors import LabError, did_you_mean
from slm_lab.lib.image import channel_axis
from slm_lab.lib.reduce import Losses, Slope, reduce_losses
from slm_lab.lib.registry import Registry
from slm_lab.lib.rng import Rng, world_seed
from slm_lab.lib.running import RunningMoments
from slm_lab.lib.schedule import scheduled
from slm_lab.spec.model import ScheduleSpec
from slm_lab.spec.parts import FAMILIES


def test_reducer_masks_weighs_and_scales() -> None:
    term = torch.tensor([[1.0, 100.0], [3.0, 5.0]])
    mask = torch.tensor([[True, False], [True, True]])
    total, means = reduce_losses(Losses({"a": term, "b": term}), mask, scales={"b": 10.0})
    assert means["a"] == 3.0  # (1 + 3 + 5) / 3
    assert total.value == 33.0
    total, _ = reduce_losses(Losses({"a": term}), mask, weight=torch.tensor([2.0, 0.5]))
    assert total.value == pytest.approx((2 * 1 + 0.5 * 3 + 0.5 * 5) / 3)


def test_a_masked_row_may_hold_anything() -> None:
    term = torch.tensor([[1.0, torch.inf], [3.0, torch.nan]], requires_grad=True)
    total, _ = reduce_losses(Losses({"a": term}), torch.tensor([[True, False], [True, False]]))
    assert total.value == 2.0
    total.backward()
    assert torch.equal(term.grad, torch.tensor([[0.5, 0.0], [0.5, 0.0]]))


@pytest.mark.parametrize("weight", [None, torch.tensor([2.0, 0.5])])
@pytest.mark.parametrize("whole", [True, False])
def test_a_slope_in_closed_form_is_as_good_as_autograd(weight: torch.Tensor | None, whole: bool) -> None:
    """Whatever a masked row holds."""
    mask = torch.tensor([[True, whole], [True, True]])
    found = []
    for closed in (True, False):
        x = torch.tensor([[1.0, 100.0], [3.0, 5.0]], requires_grad=True)
        slope = (2 * x.detach()).masked_fill(~mask, torch.nan)
        slopes = {"a": [Slope(x, slope)]} if closed else {}
        terms = {"a": x.detach() ** 2 if closed else x**2, "b": 3 * x}
        total, means = reduce_losses(Losses(terms, slopes=slopes), mask, weight, {"a": 10.0, "b": 0.5})
        total.backward()
        found.append((total.value, means, x.grad.tolist()))
    assert found[0] == found[1]
    weights = torch.ones(2) if weight is None else weight
    rows = 10 * torch.tensor([[1.0, 100.0], [3.0, 5.0]]) ** 2 + 1.5 * torch.tensor([[1.0, 100.0], [3.0, 5.0]])
    assert found[0][0] == pytest.approx(float((rows * weights[:, None])[mask].sum() / mask.sum()))


def test_reducer_refuses_a_silent_broadcast() -> None:
    with pytest.raises(AssertionError, match="loss 'a' has shape"):
        reduce_losses(Losses({"a": torch.ones(4, 1)}), torch.ones(4, 3, dtype=torch.bool))


@pytest.mark.parametrize("name", ["linear_decay", "rate_decay", "periodic_decay"])
def test_schedules_begin_and_end_where_they_say(name: str) -> None:
    values = [scheduled(name, 1.0, 0.1, 100, 1100, frame) for frame in range(0, 1300, 50)]
    assert values[:3] == [1.0, 1.0, 1.0]
    assert values[-4:] == [0.1] * 4
    assert all(0.1 <= value <= 1.0 for value in values)
    assert scheduled("no_decay", 0.3, 0.1, 0, 10, 1000) == 0.3


def test_a_rate_that_would_rise_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"rate_decay falls, and end_val \(1\) is above start_val \(0\.1\)\. Use linear"
    ):
        ScheduleSpec(name="rate_decay", start_val=0.1, end_val=1.0, end_step=100)


def test_linear_schedule() -> None:
    assert scheduled("linear_decay", 1.0, 0.0, 0, 100, 25) == 0.75
    assert scheduled("linear_decay", 0.4, 1.0, 0, 100, 50) == pytest.approx(0.7)


def test_registry_answers_a_typo_with_the_nearest_name() -> None:
    registry = Registry("memory", {"OnPolicyReplay": "m:A", "Replay": "m:B"})
    with pytest.raises(LabError, match=r"unknown memory 'onpolicyreplay'\. Did you mean 'OnPolicyReplay'"):
        registry.load("onpolicyreplay")
    assert "Options: " in did_you_mean("xyz", registry)


def test_registry_knows_what_else_the_field_calls_a_part() -> None:
    registry = Registry("memory", {"CER": "m:A", "HindsightReplay": "m:B"}, {"HER": "HindsightReplay"})
    with pytest.raises(LabError, match=r"unknown memory 'her'\. It is HindsightReplay here\."):
        registry.load("her")
    assert all(here.split()[0] in family for family in FAMILIES.values() for here in family._known_as.values())
    assert "It is PrioritizedReplay here" in FAMILIES["memory"].unknown("PER")


def test_running_moments_equal_those_of_the_whole() -> None:
    data = np.random.default_rng(0).normal(3, 2, size=(100, 3))
    moments = RunningMoments((3,))
    for part in np.split(data, [1, 10, 37, 37, 90]):
        moments.update(part)
    np.testing.assert_allclose(moments.mean, data.mean(axis=0))
    np.testing.assert_allclose(moments.var, data.var(axis=0))


def test_streams_are_independent_and_resume() -> None:
    a, b = Rng(0, 0), Rng(0, 1)
    assert not torch.equal(torch.rand(3, generator=a.torch), torch.rand(3, generator=b.torch))
    state = a.state_dict()
    first = torch.rand(3, generator=a.torch)
    c = Rng(99)
    c.load_state_dict(state)
    assert torch.equal(torch.rand(3, generator=c.torch), first)


def test_sessions_and_their_evaluation_play_different_worlds() -> None:
    """World i of a vector is seeded first + i: the ranges of neighbouring sessions must not meet."""
    firsts = [world_seed(seed, stream) for seed in range(50) for stream in (1, 2, 3, 4)]
    gaps = np.diff(np.sort(firsts))
    assert gaps.min() > 10_000
    assert world_seed(3, 1) == world_seed(3, 1)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((84, 84, 3), 2),
        ((3, 84, 84), 0),
        ((7, 7, 12), 2),
        ((12, 7, 7), 0),
        ((210, 160, 3), 2),
        ((3, 210, 160), 0),
        ((4, 4, 4), 2),
    ],
)
def test_where_an_image_has_its_channels(shape: tuple[int, ...], axis: int) -> None:
    assert channel_axis(shape) == axis


def test_a_row_outside_the_lab_is_summed_up_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "outside.py").write_text('class A:\n    """First line.\n\n    Second."""')
    registry = Registry("memory", {"A": "outside:A", "Gone": "nowhere:B"})
    assert [registry.summary(name) for name in registry] == ["First line.", ""]
