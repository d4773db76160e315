"""Our distributions against torch's, and their draws against their probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats
from torch import distributions as D

from slm_lab.agent.algorithm.exploration import epsilon_greedy, explore
from slm_lab.agent.net.distribution import Categorical, MultiCategorical, Noisy, Normal, SquashedNormal
from slm_lab.agent.net.heads import QHead
from slm_lab.agent.net.mlp import MLP
from slm_lab.agent.net.policy_head import LOG_STD, NoisyHead, PolicyHead

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


def test_a_squashed_draw_comes_with_its_log_probability() -> None:
    """Also far out, where the draw itself has been rounded to 1 and nothing could be told from it."""
    near, far = SquashedNormal(logits, torch.zeros(4)), SquashedNormal(torch.full((4,), 30.0), torch.zeros(4))
    action, log_prob = near.sample_log_prob(generator.manual_seed(0))
    assert torch.equal(action, near.sample(generator.manual_seed(0)))
    torch.testing.assert_close(log_prob, near.log_prob(action), atol=1e-3, rtol=1e-4)
    _, log_prob = far.sample_log_prob(generator)
    assert log_prob > 4 * 2 * (30 - 5), "-log(1 - tanh² u) grows as 2u"


def test_a_squashed_draws_gradient_is_that_of_its_log_probability() -> None:
    """The mean has none by the density of the Gaussian at its own draw, only through tanh."""
    mean, log_std = (0.5 * logits).requires_grad_(), torch.tensor([0.1, -0.3, 0.0, 0.2]).requires_grad_()
    policy = SquashedNormal(mean, log_std)
    _, log_prob = policy.sample_log_prob(generator.manual_seed(0))
    u = mean + log_std.exp() * torch.randn(mean.shape, generator=generator.manual_seed(0))
    expected = (D.Normal(mean, log_std.exp()).log_prob(u) - torch.log(1 - torch.tanh(u) ** 2)).sum(dim=-1)
    torch.testing.assert_close(log_prob, expected, atol=1e-3, rtol=1e-4)
    found, wanted = (torch.autograd.grad(x.sum(), [mean, log_std], retain_graph=True) for x in (log_prob, expected))
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


def test_noise_around_an_action_stays_in_bounds() -> None:
    policy = Noisy(torch.tensor([0.0, 0.95]).expand(20_000, 2), 0.1)
    noise = policy.sample(generator.manual_seed(0)) - policy.mode()
    assert noise[:, 0].std() == pytest.approx(0.1, rel=0.05)
    assert noise[:, 1].max() == pytest.approx(0.05), "clipped at 1"


def test_exploration_policies() -> None:
    policy = Categorical(logits)
    best = policy.mode()
    assert explore(policy, "default", 0.0) is policy
    assert torch.equal(explore(policy, "epsilon_greedy", 0.0).sample(generator), best)
    greedy = explore(policy, "epsilon_greedy", 0.2)
    torch.testing.assert_close(greedy.log_prob(best).exp(), torch.full((5, 7), 0.85))  # 0.8 + 0.2 / 4
    assert torch.equal(epsilon_greedy(logits, 0.0, generator), best)
    values = logits[0, 0].expand(100_000, -1)
    drawn = torch.bincount(epsilon_greedy(values, 0.2, generator), minlength=4) / len(values)
    torch.testing.assert_close(drawn, greedy.log_probs[0, 0].exp(), atol=0.01, rtol=0)  # type: ignore[attr-defined]
    torch.testing.assert_close(explore(policy, "random", 0.0).log_prob(best).exp(), torch.full((5, 7), 0.25))
    torch.testing.assert_close(explore(policy, "boltzmann", 2.0).log_probs, torch.log_softmax(logits / 2, dim=-1))
    multi = explore(MultiCategorical(logits, [3, 1]), "random", 0.0)
    torch.testing.assert_close(multi.log_prob(multi.mode()).exp(), torch.full((5, 7), 1 / 3))


@pytest.mark.parametrize(
    ("space", "shape"),
    [(spaces.Discrete(3), ()), (spaces.MultiDiscrete([2, 5]), (2,)), (spaces.Box(-1, 1, (2, 3)), (6,))],
)
def test_policy_head_fits_the_space(space: spaces.Space, shape: tuple[int, ...]) -> None:
    head = PolicyHead(MLP.Spec(), 8, space, "default")
    assert head(torch.zeros(4, 2, 8)).sample(generator).shape == (4, 2, *shape)


def test_heads_of_actor_critics_fit_a_box() -> None:
    space, features = spaces.Box(-1, 1, (2, 3)), torch.randn(4, 2, 8, generator=generator)
    wide = PolicyHead(MLP.Spec(actor_init_std=100.0), 8, space, "SquashedNormal", state_std=True)(features)
    assert wide.sample(generator).shape == (4, 2, 6)
    assert wide.log_std.std() > 0, "the deviation depends on what is seen"
    assert LOG_STD[0] <= wide.log_std.min() <= wide.log_std.max() <= LOG_STD[1]
    assert NoisyHead(MLP.Spec(), 8, space, 0.1)(features).mode().shape == (4, 2, 6)


def test_dueling_splits_value_and_advantage() -> None:
    """Wang et al. 2016, eq. 9: the mean over actions is the value stream's."""
    head, features = QHead(MLP.Spec(), 8, 3, dueling=True), torch.randn(4, 2, 8, generator=generator)
    q = head(features)
    assert q.shape == (4, 2, 3)
    torch.testing.assert_close(q.mean(dim=-1, keepdim=True), head.value(features))
    advantage = head.advantage(features)
    torch.testing.assert_close(q[..., 0] - q[..., 1], advantage[..., 0] - advantage[..., 1])
