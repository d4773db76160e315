"""That each key and statistic does what it says: every test fails on a mutation that others let pass."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import test_algorithms as TA
import test_auxiliary as TX
import test_multi_agent as TM
import test_net as TN
import test_off_policy as TO
import torch
from gymnasium import spaces
from scipy import stats
from test_agent import live, parts
from test_algorithms import A2C, PPO, REINFORCE, ScheduleSpec, standardize
from test_off_policy import BOX, DISCRETE, DQN, SARSA, TD3
from torch import nn
from torch.nn import functional as F
from worlds import OBS_SPACES, Worlds, world

from slm_lab.agent.algorithm.exploration import explore
from slm_lab.agent.build import build_agent, build_agents
from slm_lab.agent.net.conv import Conv
from slm_lab.agent.net.distribution import MultiCategorical, Normal, SquashedNormal
from slm_lab.agent.net.heads import QHead
from slm_lab.agent.net.mlp import MLP
from slm_lab.agent.net.net import NetOut
from slm_lab.agent.net.optim import Optim, make_optim
from slm_lab.agent.net.policy_head import PolicyHead
from slm_lab.lib.reduce import Losses, Slope, reduce_losses
from slm_lab.lib.returns import explained_variance, gae, n_step_returns
from slm_lab.lib.schedule import scheduled
from slm_lab.spec.model import LrScheduleSpec, OptimSpec
from slm_lab.spec.parts import CORE

FALLING = {"name": "linear_decay", "start_val": 1.0, "end_val": 0.0, "end_step": 100}


# ---------- test_algorithms.py
@pytest.mark.parametrize("keys", [{"lam": 0.5}, {"num_step_returns": 2}])
def test_advantage(keys):  # a7 a8 a11 a13
    algorithm, rows = TA.build(A2C, gamma=0.9, normalize_advantages=False, **keys), TA.batch()
    with torch.no_grad():
        value, told = algorithm.raw_value(rows), algorithm.prepare(rows)[0].extras
    about = (rows.reward, value, rows.terminated, rows.truncated, rows.mask, 0.9)
    expected = gae(*about, 0.5) if "lam" in keys else (n_step_returns(*about, 2) - value[:, :-1]) * rows.mask
    torch.testing.assert_close(told["advantage"], expected)
    torch.testing.assert_close(told["v_target"][rows.mask], (expected + value[:, :-1])[rows.mask])


def test_weights_of_terms():  # a9 p1 p2 p4 p5
    entropy = ScheduleSpec(name="linear_decay", start_val=0.5, end_val=0.1, end_step=100)
    keys = {"policy_loss_coef": 2.0, "val_loss_coef": 0.25, "log_barrier_coef": 0.1, "entropy_coef_spec": entropy}
    row = TA.build(A2C, **keys).update(TA.batch(), frame=50).metrics
    expected = 2 * row["policy_loss"] + 0.25 * row["value_loss"] + 0.1 * row["barrier_loss"] - 0.3 * row["entropy"]
    assert row["loss"] == pytest.approx(expected, rel=1e-5)


def test_clip_schedule():  # q3 q6
    falling = ScheduleSpec(name="linear_decay", start_val=0.2, end_val=0.1, end_step=100)
    ppo, one = TA.build(PPO, clip_vloss=True, clip_eps_spec=falling), torch.ones(1, 1)
    rows = TA.batch().replace(extras={"advantage": one, "log_prob": 0 * one, "value": 0 * one, "v_target": one})
    for frame, epsilon in ((0, 0.2), (100, 0.1)):
        assert ppo.policy_loss(one, rows, frame)[0].item() == pytest.approx(-1 - epsilon)
        assert ppo.value_loss(0.9 * one, rows, frame)[0].item() == pytest.approx((1 - epsilon) ** 2)


def test_pg_exploration():  # p3 p7
    ppo = TA.build(PPO, action_policy="epsilon_greedy", explore_var_spec=ScheduleSpec(**FALLING))
    obs, first, carry = (
        {"obs": torch.ones(200, 1, 2)},
        torch.ones(200, 1, dtype=torch.bool),
        {"actor": {}, "critic": {}},
    )
    kinds = [len(ppo.act(obs, first, carry, explore=True, frame=frame).action.unique()) for frame in (0, 100)]
    assert kinds == [3, 1]


def test_order():  # q1 q2
    ppo = TA.build(PPO, minibatch_size=2, training_epoch=2)
    prepared, _ = ppo.prepare(TA.batch(B=4, T=5))
    seen = torch.cat([minibatch.obs["obs"].flatten(0, 1) for minibatch in ppo.minibatches(prepared)])
    valid = prepared.obs["obs"][prepared.mask]
    one, two = seen.split(len(valid))
    assert not torch.equal(one, two) and not torch.equal(one, valid)


def test_drawn_minibatch():  # q4
    keys = {"minibatch_size": 4, "steps_per_window": 2, "training_epoch": 1}
    ppo = TA.build(PPO, net={"core": {"name": "GRU", "hidden_size": 4}}, **keys)
    prepared, _ = ppo.prepare(TA.batch(B=4, T=5).replace(carry=ppo.net.initial(4)))
    assert [minibatch.mask.shape for minibatch in ppo.minibatches(prepared)] == [(2, 2), (2, 2)]


def test_reinforce():  # r1 r2
    rows = TA.batch()
    plain, normal = (
        TA.build(REINFORCE, gamma=0.5, normalize_return=n).advantage(rows)[0].extras["advantage"] for n in (False, True)
    )
    assert float(plain[1, 0]) == pytest.approx(float(rows.reward[1] @ torch.tensor([1.0, 0.5, 0.25])))
    torch.testing.assert_close(normal, standardize(plain, rows.mask))


def test_scale_is_saved():  # a3
    one, other = (TA.build(A2C, normalize_v_targets=True) for _ in range(2))
    one.prepare(TA.batch())
    other.load_state_dict(one.state_dict())
    x = torch.arange(3.0)
    assert torch.equal(other._unscale(x), one._unscale(x)) and not torch.equal(other._unscale(x), x)


def test_masked_rows_tell_nothing():  # a4 a6
    found = []
    for junk in (0.0, 1e3):
        rows = TA.batch()
        rows.obs["obs"][0, 1] += junk
        rows.reward[0, 1] += junk
        prepared, shown = TA.build(A2C, net={"hid_layers_activation": "relu"}, entropy_by_surprise=True).prepare(rows)
        found.append((shown["explained_variance"], prepared.extras["surprise"][rows.mask].tolist()))
    assert (
        found[0] == pytest.approx(found[1])
        if False
        else (found[0][0] == pytest.approx(found[1][0]) and found[0][1] == pytest.approx(found[1][1]))
    )


def test_ev():  # a4 a6 direct
    rows, a2c = TA.batch(), TA.build(A2C, entropy_by_surprise=True, normalize_advantages=False)
    with torch.no_grad():
        value = a2c.raw_value(rows)[:, :-1]
    prepared, shown = a2c.prepare(rows)
    extras, mask = prepared.extras, rows.mask
    assert shown["explained_variance"] == pytest.approx(
        float(explained_variance(value[mask], extras["v_target"][mask]))
    )
    assert float(extras["surprise"][mask].square().mean()) == pytest.approx(1.0, abs=1e-5)


def calibrated(monkeypatch, says, noise):
    Bn, rng = 256, torch.Generator().manual_seed(0)
    real = torch.tensor([[True, False]]).expand(Bn, 2)
    rows = TA.batch(Bn, 2).replace(mask=real, terminated=real, truncated=~real, is_first=F.pad(real, (0, 1)))
    algorithm = TA.build(A2C, calibrate_value=True)
    first = None
    for _ in range(30):
        seen, chance, wrong = torch.randn(3, Bn, 1, generator=rng)
        value = 3.0 + says * seen + noise * wrong
        monkeypatch.setattr(algorithm, "raw_value", lambda _, v=value: F.pad(v, (0, 2)))
        error = algorithm.prepare(rows.replace(reward=F.pad(3.0 + seen + 0.5 * chance, (0, 1))))[0].extras["td_error"]
        first = float(error[:, 0].std()) if first is None else first
    return algorithm.v_slope, float(error[:, 0].std()), first


def test_cal(monkeypatch):  # a1 a2 a12
    assert calibrated(monkeypatch, 1.0, 0.0)[2] == pytest.approx(1.12, rel=0.1)  # a1
    slope, left, _ = calibrated(monkeypatch, -1.0, 0.0)
    assert slope == pytest.approx(-1.0, abs=0.05)
    assert left == pytest.approx(1.12, rel=0.1)


def test_cal_returns(monkeypatch):  # a10
    rng, yes = torch.Generator().manual_seed(0), torch.tensor([[False, True]]).expand(64, 2)
    rows = TA.batch(64, 2).replace(mask=yes | True, terminated=yes, truncated=yes & False, is_first=F.pad(~yes, (0, 1)))
    algorithm, seen = TA.build(A2C, calibrate_value=True, gamma=1.0), torch.randn(64, 1, generator=rng)
    monkeypatch.setattr(
        algorithm, "raw_value", lambda _: F.pad(seen, (0, 2))
    )  # tells at the first step what the last will pay
    for _ in range(30):
        algorithm.prepare(rows.replace(reward=F.pad(seen, (1, 0))))
    assert algorithm.v_slope == pytest.approx(1.0, abs=0.05)


# ---------- contract/test_agent.py
@pytest.mark.parametrize("space", ["discrete", "multi_discrete", "box"])
def test_random(space):  # d1 d2
    agent = build_agent(parts("Random"), world("vector", space, 3000), seed=0)
    action = agent.act(Worlds(OBS_SPACES["vector"], 3000).reset(), agent.initial(3000)).action.numpy().reshape(3000, -1)
    for column, n in zip(action.T, {"discrete": [3], "multi_discrete": [2, 3], "box": [0, 0]}[space], strict=True):
        even = (
            stats.chisquare(np.bincount(column, minlength=n)) if n else stats.kstest(column, stats.uniform(-1, 2).cdf)
        )
        assert even.pvalue > 0.001


def test_core_losses(monkeypatch):  # b5
    from slm_lab.agent.net.core.rnn import GRU

    forward = GRU.forward

    def losing(self, *window):
        out = forward(self, *window)
        return out._replace(losses={"own": out.features.square().mean(dim=-1)})

    monkeypatch.setattr(GRU, "forward", losing)
    row = live(
        build_agent(parts("PPO", core="GRU"), world("vector", "discrete", 3), seed=0),
        Worlds(OBS_SPACES["vector"], 3),
        24,
    )[0]
    assert row["loss"] == pytest.approx(
        row["policy_loss"] + 0.5 * row["value_loss"] + row["actor_own"] + row["critic_own"]
    )


def test_sessions_explore_differently():  # g6
    draws = [
        torch.rand(3, generator=build_agent(parts("PPO"), world("vector", "discrete", 3), seed=seed).rng.torch)
        for seed in (0, 1)
    ]
    assert not torch.equal(*draws)


# ---------- test_off_policy.py
@pytest.mark.parametrize("cls", [DQN, SARSA])
def test_value_exploration(cls):  # v1
    algorithm, first = TO.build(cls, explore_var_spec=FALLING), torch.ones(200, 1, dtype=torch.bool)
    obs = {"obs": torch.ones(200, 1, 2)}
    assert [len(algorithm.act(obs, first, {"critic": {}}, True, frame).action.unique()) for frame in (0, 100)] == [3, 1]


def test_sarsa_frame(monkeypatch):  # s1
    algorithm, frames = TO.build(SARSA, explore_var_spec=FALLING), []
    explored = algorithm.explored
    monkeypatch.setattr(algorithm, "explored", lambda q, frame: frames.append(frame) or explored(q, frame))
    algorithm.update(TO.batch(algorithm, DISCRETE), 70)
    assert frames == [70]


def test_sarsa_gamma():  # s3
    algorithm, rows = TO.build(SARSA, gamma=0.0), None
    rows = TO.batch(algorithm, DISCRETE)
    torch.testing.assert_close(algorithm.prepare(rows)[0].extras["target"], rows.reward)


def test_boltzmann():  # v2
    algorithm = TO.build(DQN, action_policy="boltzmann", explore_var_spec={"name": "no_decay", "start_val": 0.5})
    q = torch.tensor([0.0, 0.5, 1.0]).expand(100_000, 3)
    drawn = torch.bincount(algorithm.explored(q, 0), minlength=3) / len(q)
    torch.testing.assert_close(drawn, torch.softmax(q[0] / 0.5, dim=0), atol=0.01, rtol=0)


@pytest.mark.parametrize("delay", [1, 3])
def test_delay(delay):  # c2
    algorithm = TO.build(TD3, BOX, policy_delay=delay)
    rows = TO.batch(algorithm, BOX)
    trained = ["policy_loss" in algorithm.update(rows, 0).metrics for _ in range(6)]
    assert trained == [i % delay == 0 for i in range(6)]


def test_td3_noise():  # c3
    algorithm = TO.build(TD3, BOX, explore_noise=0.05, target_noise=0.4)
    obs, first = {"obs": torch.ones(5000, 1, 2)}, torch.ones(5000, 1, dtype=torch.bool)
    algorithm.optim.opt_step = 1
    carry = algorithm.net.initial(5000)
    noise = [algorithm.act(obs, first, carry, explore, 0).action for explore in (True, False)]
    assert float((noise[0] - noise[1]).std()) == pytest.approx(0.05, rel=0.1)


def test_polyak_frames():  # o5
    assert TO.follow(8, update_type="polyak", training_iter=4) == [False, False, False, True] * 2


def test_learned_opt_step():  # g2
    one, other = (TO.agent_of("SAC", "Replay", BOX, 2000, training_start_step=2000) for _ in range(2))
    for agent in (one, other):
        agent.algorithm.net.heads["policy"].body[-1].bias.detach()[:1] += 3.0
    other.load_learned(one.learned())
    assert TO.uniform(TO.acted(other))


# ---------- test_sequence.py
def test_burn_in_gradient():  # b1
    algorithm = TO.build(DQN, core="GRU")
    rows = TO.batch(algorithm, DISCRETE).replace(burn_in=2)
    assert not any(x.requires_grad for x in algorithm._warmed(rows).carry["critic"].values())


# ---------- test_distribution.py
def test_dists():  # e1 n1 n2 n3
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, 4, generator=g)
    multi = MultiCategorical(logits, [2, 2])
    greedy = explore(multi, "epsilon_greedy", 0.2)
    torch.testing.assert_close(greedy.log_prob(multi.mode()).exp(), torch.full((5, 7), 0.9**2))  # e1
    torch.testing.assert_close(SquashedNormal(logits, torch.zeros(4)).mode(), torch.tanh(logits))  # n1
    assert float(Normal(torch.zeros(20_000, 1), torch.full((1,), 0.7)).sample(g).std()) == pytest.approx(
        math.exp(0.7), rel=0.03
    )  # n2
    torch.testing.assert_close(multi.barrier(), sum(part.barrier() for part in multi.parts))  # n3


# ---------- test_net.py
def gains(layer):
    return torch.linalg.svdvals(layer.weight.detach()).tolist()


def test_weights_begin():  # h1 h2 h3 h4 h10
    spec = MLP.Spec(hid_layers=[3], head_hid_layers=[3], critic_init_std=2.0, actor_init_std=0.5, log_std_init=-1.0)
    encoder, q = MLP(spec, TN.OBS), QHead(spec, 3, 4)
    policy = PolicyHead(spec, 3, spaces.Box(-1, 1, (2,)), "default")
    expected = [(encoder.layers[0], 5 / 3), (q.advantage[0], 5 / 3), (q.advantage[-1], 2.0), (policy.body[-1], 0.5)]
    for layer, gain in expected:
        assert gains(layer) == pytest.approx([gain] * len(gains(layer)))
        assert not layer.bias.any()
    assert policy.log_std.tolist() == [-1.0, -1.0]
    own = MLP(MLP.Spec(hid_layers=[3], init_fn=None), TN.OBS).layers[0]
    assert own.bias.any() and gains(own)[0] - gains(own)[-1] > 1e-3, "torch's own"


def test_lr_applied():  # t1 t4
    keys = {
        "optim_spec": OptimSpec(lr=0.1, name="SGD"),
        "lr_scheduler_spec": LrScheduleSpec(frame=100),
        "clip_grad_val": 1.0,
    }
    net, spec = TN.net_of(core={"name": "none"}, shared=True, **keys)
    optim, obs, one = Optim(net, spec), {"obs": torch.ones(1, 1, 3)}, torch.ones(1, 1, dtype=torch.bool)
    for frame, lr in ((0, 0.1), (75, 0.025), (100, 0.0)):
        before = torch.cat([p.detach().flatten() for p in net.parameters()])
        optim.step(TN.loss_of(1e4 * net(obs, net.initial(1), one).heads["value"].sum()), frame)
        moved = (torch.cat([p.detach().flatten() for p in net.parameters()]) - before).norm()
        assert float(moved) == pytest.approx(lr, rel=1e-2, abs=1e-6)


def test_optim_of():  # t2 t3
    own = {"use_same_optim": False, "actor_optim_spec": OptimSpec(lr=0.1), "critic_optim_spec": OptimSpec(lr=0.2)}
    spec = MLP.Spec(**own)
    assert [spec.optim_of(part).lr for part in ("actor", "critic", "critic2", "log_alpha")] == [0.1, 0.2, 0.2, 0.1]


@pytest.mark.parametrize(
    ("name", "keys"), [("RMSprop", {"alpha": 0.5, "momentum": 0.3, "eps": 0.1}), ("SGD", {"momentum": 0.3})]
)
def test_optims(name, keys):  # t6 t7
    made = make_optim([nn.Parameter(torch.ones(1))], OptimSpec(name=name, lr=0.1, weight_decay=0.2, **keys))
    expected = {"lr": 0.1, "weight_decay": 0.2, **keys}
    assert {key: made.defaults[key] for key in expected} == expected


def test_conv():  # h7 h8
    space = {"obs": spaces.Box(0, 255, (12, 12), np.uint8)}
    conv = Conv(Conv.Spec(conv_hid_layers=[[4, 3, 2, 1, 3]], fc_hid_layers=[8]), space)
    layer = conv.towers["obs"][0]
    assert (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == ((3, 3), (2, 2), (1, 1), (3, 3))
    white = conv({"obs": torch.full((1, 12, 12), 255, dtype=torch.uint8)})
    torch.testing.assert_close(white, conv.layers(conv.towers["obs"](torch.ones(1, 1, 12, 12))))


# ---------- contract/test_core.py
@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_recurrent_begin(name):  # h6 h9
    cls = CORE.load(name)
    rnn = cls(cls.Spec(hidden_size=4), 4).rnn
    assert not rnn.bias_hh_l0.any()
    assert rnn.bias_ih_l0.tolist() == ([0.0] * 4 + [1.0] * 4 + [0.0] * 8 if name == "LSTM" else [0.0] * 12)
    for weight in (rnn.weight_ih_l0, rnn.weight_hh_l0):
        torch.testing.assert_close(weight.T @ weight, torch.eye(4), atol=1e-5, rtol=0)


# ---------- lib
def test_schedule_values():  # l1 l2 l3
    assert scheduled("linear_decay", 1.0, 0.0, 100, 200, 150) == pytest.approx(0.5)
    assert scheduled("rate_decay", 1.0, 0.0, 100, 200, 150) == pytest.approx(0.9**10)
    assert scheduled("periodic_decay", 1.0, 0.2, 100, 200, 150) == pytest.approx(0.2 + 0.4 * (1 + math.cos(30)) * 0.5)


def test_ev_shift():  # l6
    target = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(target + 5, target) == 1


def test_shown_and_row_weights():  # u1 u2
    mask, weight = torch.ones(2, 2, dtype=torch.bool), torch.tensor([[1.0, 0.0], [2.0, 5.0]])
    x, y = torch.ones(2, 2, requires_grad=True), torch.ones(2, 2, requires_grad=True)
    found = Losses(
        {"a": 3 * x, "b": y.detach()},
        {"c": torch.tensor([[1.0, 2.0], [3.0, 6.0]])},
        slopes={"b": [Slope(y, torch.ones(2, 2))]},
    )
    loss, means = reduce_losses(found, mask, weight)
    loss.backward()
    assert means["c"] == 3.0
    torch.testing.assert_close(x.grad, 3 * weight / 4)
    torch.testing.assert_close(y.grad, weight / 4)


# ---------- auxiliary
def test_rnd_share():  # x1 x2
    batch = TX.windows(torch.randint(8, (50, 101)))
    empty = NetOut({}, {}, {}, {}, {}, {})
    one, other = (
        TX.RND(TX.RND.Spec(share=0.3), dataclasses.replace(TX.context(TX.NOVEL["discrete"]), seed=seed))
        for seed in (0, 1)
    )
    masks = [each.losses(each.bonus(batch)[0], empty, None).mask for each in (one, other)]
    assert float(masks[0].float().mean()) == pytest.approx(0.3, abs=0.03)
    assert not torch.equal(*masks)


def test_rnd_masks():  # x3 x4
    auxiliary = TX.rnd({"obs": spaces.Box(-np.inf, np.inf, (2,))})
    obs, mask = torch.randn(4, 51, 2), torch.rand(4, 50) < 0.7
    obs[:, 1:][~mask] = 1e6
    batch = TX.windows(obs, mask=mask)
    TX.paid(auxiliary, batch)[mask]
    np.testing.assert_allclose(auxiliary.moments["obs"].mean, obs[:, 1:][mask].double().mean(dim=0))
    assert auxiliary.sums.count == mask.sum()


def test_rnd_gamma():  # x6
    spec = dataclasses.replace(parts("PPO"), auxiliary=(TX.RND.Spec(),))
    spec = dataclasses.replace(spec, algorithm=spec.algorithm.model_copy(update={"gamma": 0.5}))
    assert (
        build_agent(spec, world("vector", "discrete", 3), seed=0).algorithm.net.auxiliaries["RND"].context.gamma == 0.5
    )


def test_confidence_masked():  # x9
    found = []
    for junk in (0.0, 1e3):
        error, mask = torch.tensor([[1.0, 3.0, junk]]), torch.tensor([[True, True, False]])
        batch = TX.windows(torch.zeros(1, 4, 3), mask=mask, extras={"td_error": error})
        torch.manual_seed(0)
        head = TX.ConfidenceHead(TX.ConfidenceHead.Spec(), TX.context(OBS_SPACES["vector"], critic=2))
        losses = head.losses(batch, NetOut({}, {"critic": torch.ones(1, 3, 2)}, {}, {}, {}, {}), None)
        found.append(reduce_losses(losses, mask)[1]["confidence_gain"])
    assert found[0] == pytest.approx(found[1])


def test_cue_coef():  # x10
    batch = TX.windows(torch.randn(2, 5, 3))
    batch = TX.without_last(batch)
    batch.is_first[:, 0] = True
    found = []
    for coef in (1.0, 0.25):
        torch.manual_seed(0)
        head = TX.CueHead(TX.CueHead.Spec(coef=coef), TX.context(OBS_SPACES["vector"], shared=5))
        ready = head.prepare(batch, None)[0]
        losses = head.losses(ready, NetOut({}, {"shared": torch.ones(2, 4, 5)}, {}, {}, {}, {}), None)
        found.append(reduce_losses(losses, losses.mask)[0].value)
    assert found[1] == pytest.approx(0.25 * found[0])


def test_acting_state():  # t8
    agent = TX.build("RND", *TX.AGENTS[0])
    assert not any(name.startswith("auxiliaries.") for name in agent.learned()["net"])


# ---------- multi / offline
def test_multi_opt_step():  # g5 g4
    env = TM.world(TM.MIRROR)
    agent = build_agents(TM.parts(), env.world, seed=0, max_frame=1001)
    TM.live(agent, env, 21)
    assert agent.opt_step == sum(learner.algorithm.optim.opt_step for learner in agent.learners.values()) > 0
    assert {learner.memory.context.max_frame for learner in agent.learners.values()} == {501}


def test_study():  # g3
    agent = TO.agent_of("DQN", "Replay", DISCRETE, 3)
    agent.study(10)
    assert agent.frame == 10
