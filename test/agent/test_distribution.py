"""Our distributions against torch's, and their draws against their probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats
from torch import distributions as D

from slm_lab.agent.exploration import explore
from slm_lab.agent.net.distribution import Categorical, MultiCategorical, Normal, SquashedNormal
from slm_lab.agent.net.policy_head import PolicyHead

logits = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0))
generator = torch.Generator()


def test_categorical_equals_torch() -> None:
    ours, theirs = Categorical(logits), D.Categorical(logits=logits)
    action = ours.sample(generator.manual_seed(0))
    assert action.shape == (5, 7)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), logits.argmax(-1))


def test_categorical_draws_by_its_probabilities() -> None:
    policy = Categorical(logits[0, 0].expand(20_000, 4))
    counts = np.bincount(policy.sample(generator.manual_seed(0)).numpy(), minlength=4)
    expected = torch.softmax(logits[0, 0].double(), dim=-1).numpy() * counts.sum()
    assert stats.chisquare(counts, expected).pvalue > 0.001


def test_multi_categorical_is_several() -> None:
    policy = MultiCategorical(logits, [3, 1])
    parts = [D.Categorical(logits=part) for part in logits.split([3, 1], dim=-1)]
    action = policy.sample(generator)
    assert action.shape == (5, 7, 2)
    torch.testing.assert_close(
        policy.log_prob(action), sum(part.log_prob(action[..., i]) for i, part in enumerate(parts))
    )
    torch.testing.assert_close(policy.entropy(), sum(part.entropy() for part in parts))


def test_normal_equals_torch() -> None:
    log_std = torch.tensor([0.1, -0.3, 0.0, 1.0])
    ours, theirs = Normal(logits, log_std), D.Independent(D.Normal(logits, log_std.exp().expand_as(logits)), 1)
    action = ours.sample(generator)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())


def test_squashed_normal_equals_torch() -> None:
    log_std = torch.tensor([0.1, -0.3, 0.0, 0.2])
    base = D.Normal(logits, log_std.exp().expand_as(logits))
    theirs = D.Independent(D.TransformedDistribution(base, D.transforms.TanhTransform(cache_size=1)), 1)
    ours = SquashedNormal(logits, log_std)
    action = torch.tanh(logits + 0.3)
    assert ours.sample(generator).abs().max() <= 1
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action), atol=1e-3, rtol=1e-4)


def test_exploration_policies() -> None:
    policy = Categorical(logits)
    best = policy.mode()
    assert explore(policy, "default", 0.0) is policy
    assert torch.equal(explore(policy, "epsilon_greedy", 0.0).sample(generator), best)
    greedy = explore(policy, "epsilon_greedy", 0.2)
    torch.testing.assert_close(greedy.log_prob(best).exp(), torch.full((5, 7), 0.85))  # 0.8 + 0.2 / 4
    torch.testing.assert_close(explore(policy, "random", 0.0).log_prob(best).exp(), torch.full((5, 7), 0.25))
    torch.testing.assert_close(explore(policy, "boltzmann", 2.0).log_probs, torch.log_softmax(logits / 2, dim=-1))
    multi = explore(MultiCategorical(logits, [3, 1]), "random", 0.0)
    torch.testing.assert_close(multi.log_prob(multi.mode()).exp(), torch.full((5, 7), 1 / 3))


@pytest.mark.parametrize(
    ("space", "shape"),
    [(spaces.Discrete(3), ()), (spaces.MultiDiscrete([2, 5]), (2,)), (spaces.Box(-1, 1, (2, 3)), (6,))],
)
def test_policy_head_fits_the_space(space: spaces.Space, shape: tuple[int, ...]) -> None:
    head = PolicyHead(8, space, "default")
    assert head(torch.zeros(4, 2, 8)).sample(generator).shape == (4, 2, *shape)
