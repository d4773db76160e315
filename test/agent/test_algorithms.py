"""Losses against numbers computed by hand, and the switches of each algorithm's spec."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces
from pydantic import ValidationError
from small_specs import make_spec
from torch.nn import functional as F

from slm_lab.agent.algorithm import a2c
from slm_lab.agent.algorithm.a2c import A2C
from slm_lab.agent.algorithm.base import Algorithm
from slm_lab.agent.algorithm.policy_gradient import standardize
from slm_lab.agent.algorithm.ppo import PPO, single_steps
from slm_lab.agent.algorithm.reinforce import REINFORCE
from slm_lab.agent.build import build_net
from slm_lab.agent.net.mlp import MLP
from slm_lab.agent.net.optim import Optim
from slm_lab.lib.errors import LabError, SpecError
from slm_lab.lib.reduce import reduce_losses
from slm_lab.lib.rng import Rng
from slm_lab.lib.tree import tree_map
from slm_lab.lib.types import Batch
from slm_lab.spec.model import OptimSpec, ScheduleSpec

OBS, ACTIONS = {"obs": spaces.Box(-1, 1, (2,))}, spaces.Discrete(3)


def build(cls: type[Algorithm], net: dict[str, Any] | None = None, **keys: Any) -> Any:
    torch.manual_seed(0)
    net_spec = MLP.Spec(hid_layers=[8], **(net or {}))
    spec = cls.Spec(**keys)
    built = build_net(net_spec, OBS, cls.heads(spec, net_spec, ACTIONS))
    return cls(spec, built, Optim(built, net_spec), Rng(0))


def batch(B: int = 2, T: int = 3) -> Batch:
    """Rows with one episode's end and the masked row after it."""
    generator = torch.Generator().manual_seed(0)
    terminated, mask = torch.zeros(B, T, dtype=torch.bool), torch.ones(B, T, dtype=torch.bool)
    terminated[0, 0], mask[0, 1] = True, False
    is_first = torch.zeros(B, T + 1, dtype=torch.bool)
    is_first[0, 2] = True
    return Batch(
        obs={"obs": torch.randn(B, T + 1, 2, generator=generator)},
        is_first=is_first,
        action=torch.randint(3, (B, T), generator=generator),
        reward=torch.randn(B, T, generator=generator) * mask,
        terminated=terminated,
        truncated=torch.zeros_like(terminated),
        mask=mask,
        carry={"actor": {}, "critic": {}},
        extras={"log_prob": torch.full((B, T), -1.1)},
    )


def test_ppo_clips_the_ratio_on_the_side_that_gains() -> None:
    ppo = build(PPO, clip_eps_spec=ScheduleSpec(start_val=0.2))
    advantage = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5]])
    extras = {"advantage": advantage, "log_prob": torch.zeros(1, 4)}
    flags = torch.ones(1, 4, dtype=torch.bool)
    loss, slope, shown = ppo.policy_loss(ratio.log(), batch().replace(extras=extras, mask=flags), 0)
    torch.testing.assert_close(loss, torch.tensor([[-1.2, -0.5, 1.5, 0.8]]))
    torch.testing.assert_close(slope, torch.tensor([[0.0, -0.5, 1.5, 0.0]]))
    assert shown["clip_fraction"].all()
    torch.testing.assert_close(shown["approx_kl"], ratio - 1 - ratio.log())


def test_whoever_acts_the_ratio_is_between_policies() -> None:
    """By the chance with which it explored, ρ began beyond the clip: what explored was never learned from."""
    ppo = build(PPO, action_policy="epsilon_greedy", explore_var_spec=ScheduleSpec(start_val=0.5))
    obs, first = {"obs": torch.randn(50, 1, 2)}, torch.ones(50, 1, dtype=torch.bool)
    act = ppo.act(obs, first, {"actor": {}, "critic": {}}, explore=True, frame=0)
    policy = ppo.net.forward(obs, {"actor": {}, "critic": {}}, first, heads=("policy",)).heads["policy"]
    torch.testing.assert_close(act.extras["log_prob"], policy.log_prob(act.action[:, None])[:, 0])


def test_a_lone_return_is_not_centred_to_nothing() -> None:
    rows = batch(1, 2).replace(mask=torch.tensor([[True, False]]), reward=torch.tensor([[1.0, 0.0]]))
    advantage = build(REINFORCE, center_return=True).advantage(rows)[0].extras["advantage"]
    assert advantage[0, 0] == 1.0


def test_a_run_too_short_to_learn_says_so() -> None:
    for frames, notes in ((63, 1), (64, 0)):
        assert len(make_spec(env__max_frame=frames).notes) == notes
    assert "the first update may come at frame 64" in make_spec(env__max_frame=63).notes[0]


def test_ppo_clips_the_value_only_when_asked() -> None:
    extras = {"value": torch.zeros(1, 2), "v_target": torch.ones(1, 2)}
    value, rows = torch.tensor([[0.1, 0.9]]), batch().replace(extras=extras)
    torch.testing.assert_close(build(PPO).value_loss(value, rows, 0)[0], torch.tensor([[0.81, 0.01]]))
    torch.testing.assert_close(build(PPO, clip_vloss=True).value_loss(value, rows, 0)[0], torch.tensor([[0.81, 0.64]]))


@pytest.mark.parametrize("cls", [REINFORCE, A2C, PPO])
def test_the_slopes_of_terms_are_what_autograd_would_find(cls: Any) -> None:
    """Control for those of PPO: its ratio and its values are beyond their bounds at some steps, not at others."""
    algorithm = build(cls, **({"clip_vloss": True} if cls is PPO else {}))
    g = torch.Generator().manual_seed(0)
    names = ("advantage", "log_prob", "value", "v_target")
    rows = batch().replace(extras={name: torch.randn(50, 4, generator=g) for name in names})
    log_prob = rows.extras["log_prob"] + 0.3 * torch.randn(50, 4, generator=g)
    value = rows.extras["value"] + 0.3 * torch.randn(50, 4, generator=g)
    found = {algorithm.policy_loss: log_prob}
    found |= {algorithm.value_loss: value} if cls is not REINFORCE else {}
    for term, at in found.items():
        slope, step = term(at, rows, 0)[1], 1e-3
        above, below = (term(at.double() + d, rows, 0)[0] for d in (step, -step))
        torch.testing.assert_close(slope, ((above - below) / (2 * step)).float(), atol=2e-2, rtol=1e-2)
        assert not slope.eq(0).all() and slope.eq(0).any() == (cls is PPO)


@pytest.mark.parametrize("coef", [None, 0.5])
def test_entropy_has_a_gradient_where_it_has_a_weight(coef: float | None) -> None:
    a2c = build(A2C, entropy_coef_spec=ScheduleSpec(start_val=coef) if coef else None)
    prepared, _ = a2c.prepare(batch())
    out = a2c.net(prepared.obs, prepared.carry, prepared.is_first)
    assert a2c.losses(prepared, out, 0).terms["entropy"].requires_grad == bool(coef)


def test_the_critic_judges_some_windows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ppo = build(PPO, net={"shared": True, "core": {"name": "GRU", "hidden_size": 4}})
    rows = batch(B=5).replace(carry=tree_map(lambda x: x + 0.3, ppo.net.initial(5)))
    whole, seen, forward = ppo.raw_value(rows), [], ppo.net.forward
    monkeypatch.setattr(
        ppo.net, "forward", lambda obs, *rest, **keys: seen.append(len(rest[1])) or forward(obs, *rest, **keys)
    )
    monkeypatch.setattr(a2c, "AT_ONCE", 9)  # steps; a window has 4
    torch.testing.assert_close(ppo.raw_value(rows), whole)
    monkeypatch.setattr(a2c, "AT_ONCE", 1)
    torch.testing.assert_close(ppo.raw_value(rows), whole)
    assert seen == [2, 2, 1] + [1] * 5
    assert whole.shape == (5, 4)


def test_entropy_is_a_bonus() -> None:
    a2c = build(A2C, entropy_coef_spec=ScheduleSpec(start_val=0.5))
    prepared, _ = a2c.prepare(batch())
    out = a2c.net(prepared.obs, prepared.carry, prepared.is_first)
    terms = a2c.losses(prepared, out, 0).terms
    torch.testing.assert_close(terms["entropy"], out.heads["policy"].entropy())
    assert a2c.scales(0)["entropy"] == -0.5
    assert 0 < terms["entropy"].mean() <= torch.log(torch.tensor(3.0)) + 1e-5


def test_minibatches_hold_each_valid_step_once_an_epoch() -> None:
    ppo = build(PPO, minibatch_size=2, training_epoch=3)
    prepared, _ = ppo.prepare(batch(B=4, T=5))
    seen = torch.cat([minibatch.obs["obs"].flatten(0, 1) for minibatch in ppo.minibatches(prepared)])
    valid = prepared.obs["obs"][prepared.mask]
    assert len(seen) == 3 * len(valid)
    for epoch in seen.split(len(valid)):
        assert torch.equal(epoch.sort(dim=0).values, valid.sort(dim=0).values)
    assert single_steps(prepared).mask.all()


def test_a_net_with_memory_is_trained_on_whole_windows_from_their_carry() -> None:
    ppo = build(PPO, net={"core": {"name": "GRU", "hidden_size": 4}}, minibatch_size=10, training_epoch=1)
    rows = batch(B=4, T=5).replace(carry=ppo.net.initial(4))
    prepared, _ = ppo.prepare(rows)
    shapes = [minibatch.mask.shape for minibatch in ppo.minibatches(prepared)]
    assert shapes == [(2, 5), (2, 5)]


def test_reinforce_centres_over_valid_rows_only() -> None:
    rows = batch()
    plain, _ = build(REINFORCE, gamma=1.0).advantage(rows)
    centred, _ = build(REINFORCE, gamma=1.0, center_return=True).advantage(rows)
    returns = plain.extras["advantage"]
    torch.testing.assert_close(returns[0, 0], rows.reward[0, 0])
    torch.testing.assert_close(returns[1, 0], rows.reward[1].sum())
    torch.testing.assert_close(centred.extras["advantage"], returns - returns[rows.mask].mean())


def test_standardize_leaves_masked_rows_out() -> None:
    x, mask = torch.tensor([[1.0, 1e9, 3.0]]), torch.tensor([[True, False, True]])
    torch.testing.assert_close(standardize(x, mask), torch.tensor([[-1.0, 0.0, 1.0]]))


def test_value_targets_can_be_scaled_and_values_are_scaled_back() -> None:
    a2c = build(A2C, normalize_v_targets=True, gamma=1.0, lam=1.0)
    rows = batch()
    rows = rows.replace(reward=rows.reward * 1000 + 5000 * rows.mask)
    for _ in range(3):
        prepared, _ = a2c.prepare(rows)
    assert prepared.extras["v_target"][rows.mask].abs().max() < 5
    state = a2c.state_dict()["v_moments"]
    assert state["count"] == 3 * int(rows.mask.sum())


def test_what_the_critic_says_stays_the_same_as_its_scale_changes() -> None:
    a2c, rows = build(A2C, normalize_v_targets=True), batch()

    def said() -> torch.Tensor:
        with torch.no_grad():
            return a2c._unscale(a2c.raw_value(rows))

    a2c.prepare(rows)
    before = said()
    prepared, _ = a2c.prepare(rows.replace(reward=rows.reward * 10 + 5 * rows.mask))
    torch.testing.assert_close(said(), before)
    torch.testing.assert_close(a2c._unscale(prepared.extras["value"]), before[:, :-1])


@pytest.mark.parametrize("earned", [[1.0], [1000.0], [0.0, 1000.0], [0.0, 0.0, 0.01, 1000.0]])
def test_where_there_was_no_scale_yet_the_critic_takes_the_new_one(earned: list[float]) -> None:
    """Kept what it was, in units a thousandth of those to come, it would take long to grow."""
    a2c, rows = build(A2C, normalize_v_targets=True), batch()
    weight = a2c.net.heads["value"][-1].weight.detach()
    before = weight.clone()
    for reward in earned:
        a2c.prepare(rows.replace(reward=rows.reward * reward))
    assert len(earned) > 1 or torch.equal(weight, before)
    assert weight.norm() > 0.3 * before.norm()


def test_n_step_and_lambda_exclude_each_other() -> None:
    spec = A2C.Spec(num_step_returns=3)
    assert spec.lam is None
    assert A2C.Spec(**spec.model_dump()) == spec
    with pytest.raises(ValidationError, match="give lam or num_step_returns"):
        A2C.Spec(num_step_returns=3, lam=0.9)


def test_weights_go_with_their_windows() -> None:
    rows = batch(B=4, T=5).replace(weight=torch.arange(4.0))
    steps = single_steps(build(PPO).prepare(rows)[0])
    assert torch.equal(steps.weight, torch.arange(4.0)[:, None].expand(4, 5)[rows.mask])
    ppo = build(PPO, net={"core": {"name": "GRU", "hidden_size": 4}}, minibatch_size=5, training_epoch=1)
    prepared, _ = ppo.prepare(rows.replace(carry=ppo.net.initial(4)))
    for minibatch in ppo.minibatches(prepared):
        assert torch.equal(minibatch.reward, rows.reward[minibatch.weight.long()])


def test_rows_that_no_one_played_teach_nothing() -> None:
    a2c, rows = build(A2C), batch()
    before = [p.detach().clone() for p in a2c.net.parameters()]
    metrics = a2c.update(rows.replace(mask=torch.zeros_like(rows.mask)), 0).metrics
    assert a2c.optim.opt_step == 0
    assert all(torch.equal(a, b) for a, b in zip(before, a2c.net.parameters(), strict=True))
    assert "loss" not in metrics


def test_one_advantage_is_not_standardised_away() -> None:
    x, mask = torch.tensor([[2.5, 9.0]]), torch.tensor([[True, False]])
    assert standardize(x, mask).tolist() == [[2.5, 0.0]]


def test_the_value_is_clipped_around_what_the_critic_said() -> None:
    """With scaled targets too: before any gradient step the critic has moved from its old value by nothing."""
    ppo = build(PPO, normalize_v_targets=True, clip_vloss=True)
    for scale in (300, 1000):
        prepared, _ = ppo.prepare(batch().replace(reward=batch().reward * scale))
    out = ppo.net(prepared.obs, prepared.carry, prepared.is_first)
    torch.testing.assert_close(out.heads["value"].squeeze(-1), prepared.extras["value"])


@pytest.mark.parametrize(
    ("cls", "keys"),
    [
        (PPO, {"lam": None}),
        (PPO, {"clip_eps_spec": {"name": "no_decay", "start_val": -0.2}}),
        (OptimSpec, {"name": "SGD", "eps": 1e-5}),
        (OptimSpec, {"betas": [2.0, 2.0]}),
        (MLP, {"actor_optim_spec": {"name": "Adam", "lr": 1.0}}),
    ],
)
def test_what_can_not_be_meant_is_refused(cls: Any, keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        getattr(cls, "Spec", cls)(**keys)


def test_a_loss_that_is_not_finite_is_an_error_that_names_its_term() -> None:
    ppo = build(PPO)
    rows = batch()
    before = [p.detach().clone() for p in ppo.net.parameters()]
    rows.reward[0, 0] = torch.inf
    with pytest.raises(LabError, match=r"the loss is nan at frame 7 \(terms: .*policy_loss"):
        ppo.update(rows, 7)
    assert all(torch.equal(a, b) for a, b in zip(before, ppo.net.parameters(), strict=True))


@pytest.mark.parametrize(("cls", "keys"), [(REINFORCE, {}), (A2C, {"lam": 1.0}), (PPO, {"lam": 1.0})])
def test_a_bandit_is_learned(cls: type[Algorithm], keys: dict[str, Any]) -> None:
    """The smallest proof: one step, the first action pays. Its control: with the reward shuffled nothing is learned."""
    for paid in (True, False):
        net = {"optim_spec": OptimSpec(lr=0.02), "clip_grad_val": None}
        algorithm = build(cls, net=net, entropy_coef_spec=None, gamma=0.0, **keys)
        obs, first = {"obs": torch.ones(64, 2, 2)}, torch.ones(64, 2, dtype=torch.bool)
        carry = algorithm.net.initial(64)
        one = torch.ones(64, 1, dtype=torch.bool)
        for _ in range(60):
            act = algorithm.act({"obs": obs["obs"][:, :1]}, first[:, :1], carry, True, 0)
            reward = (
                (act.action == 0).float() if paid else torch.randint(2, (64,), generator=algorithm.rng.torch).float()
            )
            extras = {"log_prob": act.extras["log_prob"][:, None]}
            algorithm.update(
                Batch(obs, first, act.action[:, None], reward[:, None], one, ~one, one, carry, extras), frame=0
            )
        out = algorithm.net({"obs": obs["obs"][:, :1]}, carry, first[:, :1])
        probability = out.heads["policy"].log_probs[0, 0, 0].exp()
        assert (probability > 0.9) == paid


def test_entropy_counts_where_outcomes_surprise() -> None:
    """A critic that expects 0, two steps, 3 at the end: the first step's entropy is worth nothing, the last one's √2.
    What is shown is the entropy all the same. Control: without the key both count alike."""
    rows = batch(1, 2)
    rows = rows.replace(reward=torch.tensor([[0.0, 3.0]]), terminated=torch.tensor([[False, True]]))
    rows = rows.replace(mask=torch.ones(1, 2, dtype=torch.bool), is_first=torch.zeros(1, 3, dtype=torch.bool))
    found = {}
    for key in (True, False):
        algorithm = build(A2C, net={"critic_init_std": 1e-9}, entropy_by_surprise=key)
        prepared, _ = algorithm.prepare(rows)
        found[key] = algorithm.losses(prepared, algorithm.net(prepared.obs, prepared.carry, prepared.is_first), 0)
    entropy = found[False].terms["entropy"]
    torch.testing.assert_close(found[True].terms["surprised_entropy"], entropy * torch.tensor([[0.0, 2**0.5]]))
    assert reduce_losses(found[True], rows.mask)[1]["entropy"] == pytest.approx(float(entropy.mean()))


@pytest.mark.parametrize("detach", [True, False])
def test_a_detached_value_shapes_nothing_that_it_reads(detach: bool) -> None:
    algorithm, rows = build(A2C, net={"shared": True}, detach_value=detach), batch(2, 3).replace(carry={"shared": {}})
    rows = algorithm.prepare(rows)[0]
    terms = algorithm.losses(rows, algorithm.net(rows.obs, rows.carry, rows.is_first), 0)
    algorithm.net.zero_grad()
    for slope in terms.slopes["value_loss"]:
        slope.of.backward(slope.value)
    parameters = algorithm.net.named_parameters()
    learned = [name for name, parameter in parameters if parameter.grad is not None and parameter.grad.any()]
    assert any("value" in name for name in learned)
    assert any("value" not in name for name in learned) is not detach


def test_a_value_that_would_learn_nothing_of_its_own_net_is_refused() -> None:
    with pytest.raises(SpecError, match=r"agent.algorithm.detach_value: true .* Set net.shared to true"):
        make_spec(agent__algorithm={"name": "PPO", "detach_value": True}, agent__net={"name": "MLP", "shared": False})


@pytest.mark.parametrize(
    ("says", "noise", "slope", "left"),
    [(0.0, 1.0, 0.0, 1.12), (1.0, 0.0, 1.0, 0.5), (2.0, 0.0, 0.5, 0.5)],
    ids=["nothing", "what it knows", "twice what it knows"],
)
def test_a_critic_counts_as_far_as_returns_bear_it_out(
    monkeypatch: pytest.MonkeyPatch, says: float, noise: float, slope: float, left: float
) -> None:
    """Episodes of a step that pay by what is seen (deviation 1) and by chance (0.5)."""
    B, rng = 256, torch.Generator().manual_seed(0)
    real = torch.tensor([[True, False]]).expand(B, 2)
    rows = batch(B, 2).replace(mask=real, terminated=real, truncated=~real, is_first=F.pad(real, (0, 1)))
    algorithm = build(A2C, calibrate_value=True)
    for _ in range(30):
        seen, chance, wrong = torch.randn(3, B, 1, generator=rng)
        value = 3.0 + says * seen + noise * wrong
        monkeypatch.setattr(algorithm, "raw_value", lambda _, v=value: F.pad(v, (0, 2)))
        error = algorithm.prepare(rows.replace(reward=F.pad(3.0 + seen + 0.5 * chance, (0, 1))))[0].extras["td_error"]
    assert algorithm.v_slope == pytest.approx(slope, abs=0.05)
    assert float(error[:, 0].std()) == pytest.approx(left, rel=0.1)
    again = build(A2C, calibrate_value=True)
    again.load_state_dict(algorithm.state_dict())
    assert again.v_slope == algorithm.v_slope


def test_what_time_alone_tells_is_no_advantage() -> None:
    """Three episodes that pay the same but at the last step, by a critic that expects 0. Control: without the key."""
    found, rows = {}, batch(3, 4)
    reward = torch.tensor([[1.0, 5.0, 2.0, 1.0], [1.0, 5.0, 2.0, 1.0], [1.0, 5.0, 2.0, 4.0]])
    rows = rows.replace(reward=reward, terminated=torch.tensor([[False] * 3 + [True]] * 3), truncated=reward < 0)
    rows = rows.replace(mask=reward > 0, is_first=torch.tensor([[True] + [False] * 4] * 3))
    for key in (True, False):
        keys = {"baseline_by_step": key, "normalize_advantages": False, "lam": 0.0}
        found[key] = build(A2C, net={"critic_init_std": 1e-9}, **keys).prepare(rows)[0].extras
    for name in ("advantage", "td_error"):
        torch.testing.assert_close(found[False][name], reward, atol=1e-4, rtol=0)
        # less two thirds of the others' mean: the sum of two over the three that there are
        torch.testing.assert_close(found[True][name][:, :3], reward[:, :3] / 3, atol=1e-4, rtol=0)
        assert found[True][name][:, 3].tolist() == pytest.approx([1 - 5 / 3, 1 - 5 / 3, 4 - 2 / 3], abs=1e-4)
    assert torch.equal(found[True]["v_target"], found[False]["v_target"]), "what the critic learns is what is earned"
    standard = build(A2C, net={"critic_init_std": 1e-9}, baseline_by_step=True, lam=0.0).prepare(rows)[0].extras
    taken = found[True]["advantage"]
    expected = (taken - taken.mean()) / taken.std(unbiased=False)
    torch.testing.assert_close(standard["advantage"], expected, atol=1e-4, rtol=0, msg="standardised after it")
    torch.testing.assert_close(
        standard["raw_advantage"], taken, atol=1e-4, rtol=0, msg="less the others', in own units"
    )
