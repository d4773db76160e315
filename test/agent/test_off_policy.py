"""Off-policy algorithms: targets and losses against plain loops, weights and priorities, target nets, rounds."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats
from small_specs import ALGORITHMS, MEMORIES
from torch import distributions as D
from worlds import Worlds

from slm_lab.agent.algorithm.base import Learned
from slm_lab.agent.algorithm.dqn import DQN, DoubleDQN
from slm_lab.agent.algorithm.off_policy import OffPolicySpec, Target
from slm_lab.agent.algorithm.sac import SAC
from slm_lab.agent.algorithm.sarsa import SARSA
from slm_lab.agent.algorithm.td3 import TD3
from slm_lab.agent.build import build_agent, build_net
from slm_lab.agent.net.mlp import MLP
from slm_lab.agent.net.optim import Optim
from slm_lab.env.base import World
from slm_lab.lib.reduce import Losses, reduce_losses
from slm_lab.lib.rng import Rng
from slm_lab.lib.types import Batch
from slm_lab.spec.lab_spec import AgentSpec
from slm_lab.spec.model import OptimSpec
from slm_lab.spec.parts import ALGORITHM, MEMORY

OBS, DISCRETE, BOX = {"obs": spaces.Box(-1, 1, (2,))}, spaces.Discrete(3), spaces.Box(-1, 1, (2,))
B, T = 3, 4
KINDS = [(DQN, DISCRETE), (DoubleDQN, DISCRETE), (SARSA, DISCRETE), (SAC, DISCRETE), (SAC, BOX), (TD3, BOX)]
CORES = ["none", "GRU"]


def build(cls: Any, space: spaces.Space = DISCRETE, core: str = "none", **keys: Any) -> Any:
    """A small algorithm whose target network is another than its net."""
    torch.manual_seed(0)
    core_spec = {"name": core} | ({"hidden_size": 5} if core != "none" else {})
    net_spec = MLP.Spec(
        hid_layers=[8],
        head_hid_layers=[8],
        core=core_spec,
        actor_init_std=1.0,
        optim_spec=OptimSpec(name="SGD", lr=0.1),
    )
    spec = cls.Spec(**keys)
    net = build_net(net_spec, OBS, cls.heads(spec, net_spec, space), free=cls.free(spec))
    algorithm = cls(spec, net, Optim(net, net_spec), Rng(0))
    if hasattr(algorithm, "target"):
        for p in algorithm.target.net.parameters():
            p.add_(torch.randn(p.shape) * 0.3)
    return algorithm


def batch(algorithm: Any, space: spaces.Space) -> Batch:
    """Windows with an episode's end, an unplayed row, a truncation; some values follow later rows than the next."""
    g = torch.Generator().manual_seed(1)
    no = torch.zeros(B, T, dtype=torch.bool)
    terminated, truncated, mask, is_first = no.clone(), no.clone(), ~no, torch.zeros(B, T + 1, dtype=torch.bool)
    terminated[0, 0], mask[0, 1], is_first[0, 2] = True, False, True
    truncated[1, 3], terminated[2, 1], mask[2, 2], is_first[2, 3] = True, True, False, True
    action = torch.randint(3, (B, T), generator=g) if space is DISCRETE else torch.rand(B, T, 2, generator=g) * 2 - 1
    after = torch.tensor([[0, 3, 3, 3], [2, 3, 3, 3], [1, 1, 3, 3]])
    return Batch(
        obs={"obs": torch.randn(B, T + 1, 2, generator=g)}, is_first=is_first, action=action,
        reward=torch.randn(B, T, generator=g), terminated=terminated, truncated=truncated, mask=mask,
        carry={part: {name: torch.randn(B, *leaf.shape[1:], generator=g) for name, leaf in held.items()}
               for part, held in algorithm.net.initial(B).items()},
        extras={}, discount=0.9 ** (1 + torch.arange(T)).expand(B, T), after=after,
    )  # fmt: skip


def stepped(net: Any, rows: Batch, b: int, head: str, action: Any = None) -> list[Any]:
    """What a head says at each of a window's T+1 observations, acting one step at a time."""
    carry = {part: {name: leaf[b : b + 1] for name, leaf in held.items()} for part, held in rows.carry.items()}
    said = []
    for t in range(T + 1):
        out = net(
            {"obs": rows.obs["obs"][b : b + 1, t : t + 1]}, carry, rows.is_first[b : b + 1, t : t + 1], heads=(head,)
        )
        carry = out.carry
        given = None if action is None else action[b : b + 1, t : t + 1]
        said.append(net.read(head, out.features, given))
    return said


def targets(rows: Batch, value: Any) -> torch.Tensor:
    """r + γ^m (1 − terminated) V of the observation after the m rewards, row by row."""
    found = torch.zeros(B, T)
    for b in range(B):
        for t in range(T):
            found[b, t] = rows.reward[b, t]
            if not rows.terminated[b, t]:
                found[b, t] += rows.discount[b, t] * value(b, int(rows.after[b, t]) + 1)
    return found


def check(algorithm: Any, rows: Batch, value: Any) -> None:
    prepared, _ = algorithm.prepare(rows)
    expected, mask = targets(rows, value), rows.mask
    torch.testing.assert_close(prepared.extras["target"][mask], expected[mask], atol=1e-5, rtol=1e-5)
    assert prepared.obs["obs"].shape[1] == prepared.is_first.shape[1] == T


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("cls", [DQN, DoubleDQN])
@torch.no_grad()
def test_q_learning_targets(cls: Any, core: str) -> None:
    algorithm = build(cls, core=core, dueling=cls is DoubleDQN)
    rows = batch(algorithm, DISCRETE)
    chosen = algorithm.net if cls is DoubleDQN else algorithm.target.net
    best = [[int(q.argmax()) for q in stepped(chosen, rows, b, "q")] for b in range(B)]
    values = [[q[0, 0] for q in stepped(algorithm.target.net, rows, b, "q")] for b in range(B)]
    check(algorithm, rows, lambda b, t: values[b][t][best[b][t]])


@pytest.mark.parametrize("core", CORES)
@torch.no_grad()
def test_sarsa_targets(core: str) -> None:
    """The action taken next; after the last row, and after a truncation, one that the policy would take."""
    algorithm = build(SARSA, core=core, gamma=0.9, explore_var_spec={"name": "no_decay", "start_val": 0.0})
    rows = batch(algorithm, DISCRETE).replace(after=torch.arange(T).expand(B, T), discount=torch.full((B, T), 0.9))
    values = [[q[0, 0] for q in stepped(algorithm.net, rows, b, "q")] for b in range(B)]
    best = [[int(value.argmax()) for value in values[b]] for b in range(B)]
    rows.truncated[1, 0], rows.action[1, 1] = True, (best[1][1] + 1) % 3  # as if never written
    taken = [[*rows.action[b].tolist(), best[b][T]] for b in range(B)]
    taken[1][1] = best[1][1]
    check(algorithm, rows, lambda b, t: values[b][t][taken[b][t]])


@torch.no_grad()
def test_sarsa_takes_no_action_that_nobody_played() -> None:
    """Where a worker died the next row is a bridge to other worlds; its action is of no policy."""
    algorithm = build(SARSA, gamma=0.9, explore_var_spec={"name": "no_decay", "start_val": 0.0})
    found = []
    for action in range(3):
        rows = batch(algorithm, DISCRETE)
        rows.terminated[0, 0], rows.truncated[0, 0], rows.mask[0, 1], rows.action[0, 1] = False, False, False, action
        found.append(float(algorithm.prepare(rows)[0].extras["target"][0, 0]))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("temperature", [None, 0.7])
@torch.no_grad()
def test_discrete_sac_targets(core: str, temperature: float | None) -> None:
    algorithm = build(SAC, DISCRETE, core, temperature=temperature)
    if temperature is None:
        algorithm.net.free["log_alpha"].fill_(math.log(0.3))
    alpha, rows = temperature or 0.3, batch(algorithm, DISCRETE)
    q1, q2 = ([stepped(algorithm.target.net, rows, b, name) for b in range(B)] for name in ("q1", "q2"))
    policy = [stepped(algorithm.net, rows, b, "policy") for b in range(B)]

    def value(b: int, t: int) -> float:
        total = 0.0
        for a in range(3):
            log_prob = float(policy[b][t].log_probs[0, 0, a])
            total += math.exp(log_prob) * (min(float(q1[b][t][0, 0, a]), float(q2[b][t][0, 0, a])) - alpha * log_prob)
        return total

    check(algorithm, rows, value)


@pytest.mark.parametrize("core", CORES)
@torch.no_grad()
def test_continuous_sac_targets(core: str) -> None:
    """By torch's own tanh Gaussian, for the same noise."""
    algorithm = build(SAC, BOX, core, temperature=0.4)
    rows = batch(algorithm, BOX)
    noise = torch.randn(B, T, 2, generator=Rng(0).torch)  # [b, t] is drawn for the observation after row t
    action, log_prob = torch.zeros(B, T + 1, 2), torch.zeros(B, T + 1)
    for b in range(B):
        for t, policy in list(enumerate(stepped(algorithm.net, rows, b, "policy")))[1:]:
            base = D.Normal(policy.mean[0, 0], policy.log_std[0, 0].exp())
            draw = D.TransformedDistribution(base, D.TanhTransform(cache_size=1))
            action[b, t] = torch.tanh(base.loc + base.scale * noise[b, t - 1])
            log_prob[b, t] = draw.log_prob(action[b, t]).sum()
    q1, q2 = ([stepped(algorithm.target.net, rows, b, name, action) for b in range(B)] for name in ("q1", "q2"))
    check(algorithm, rows, lambda b, t: min(q1[b][t].item(), q2[b][t].item()) - 0.4 * log_prob[b, t])


@pytest.mark.parametrize("core", CORES)
@torch.no_grad()
def test_td3_targets(core: str) -> None:
    """Of the target's own action, with clipped noise, within bounds: the lesser critic's value."""
    algorithm = build(TD3, BOX, core, target_noise=0.8, noise_clip=0.5)
    rows = batch(algorithm, BOX)
    noise = (torch.randn(B, T, 2, generator=Rng(0).torch) * 0.8).clamp(-0.5, 0.5)
    assert (noise.abs() == 0.5).any()
    action = torch.zeros(B, T + 1, 2)
    for b in range(B):
        for t, policy in list(enumerate(stepped(algorithm.target.net, rows, b, "policy")))[1:]:
            action[b, t] = (policy.mode()[0, 0] + noise[b, t - 1]).clamp(-1, 1)
    q1, q2 = ([stepped(algorithm.target.net, rows, b, name, action) for b in range(B)] for name in ("q1", "q2"))
    check(algorithm, rows, lambda b, t: min(q1[b][t].item(), q2[b][t].item()))


# --- losses ---


def learned(algorithm: Any, rows: Batch) -> Any:
    prepared, _ = algorithm.prepare(rows)
    out = algorithm.net(prepared.obs, prepared.carry, prepared.is_first, action=prepared.action)
    return algorithm.losses(prepared, out, 0), prepared, out


@pytest.mark.parametrize(("cls", "space"), KINDS)
def test_critics_learn_the_value_of_the_action_taken(cls: Any, space: spaces.Space) -> None:
    algorithm = build(cls, space)
    rows = batch(algorithm, space)
    losses, prepared, _ = learned(algorithm, rows)
    padded = None if space is DISCRETE else torch.cat([rows.action, rows.action[:, :1]], dim=1)
    square, size = torch.zeros(B, T), torch.zeros(B, T)
    critics = [name for name in ("q", "q1", "q2") if name in algorithm.net.heads]
    for name in critics:
        for b in range(B):
            said = stepped(algorithm.net, rows, b, name, padded)
            for t in range(T):
                q = said[t][0, 0] if space is BOX else said[t][0, 0, rows.action[b, t]]
                error = (prepared.extras["target"][b, t] - q).item()
                square[b, t] += error**2
                size[b, t] += abs(error) / len(critics)
    torch.testing.assert_close(losses.terms["q_loss"].detach(), square, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(losses.td_error.detach().abs(), size, atol=1e-5, rtol=1e-4)


def moved_by(algorithm: Any, losses: Losses, term: str) -> set[str]:
    """Which parts of the net a loss term has a gradient for."""
    algorithm.net.zero_grad()
    alone = Losses({term: losses.terms[term]}, slopes=losses.slopes)
    loss, _ = reduce_losses(alone, torch.ones_like(alone.terms[term], dtype=torch.bool))
    torch.autograd.backward(loss.roots, loss.gradients, retain_graph=True)
    names = {name.split(".")[1] for name, p in algorithm.net.named_parameters() if p.grad is not None and p.grad.any()}
    return {"critic" if name in ("q1", "q2", "critic2") else name for name in names}


@pytest.mark.parametrize(("cls", "space"), [(SAC, DISCRETE), (SAC, BOX), (TD3, BOX)])
def test_actor_and_critics_learn_from_their_own_terms(cls: Any, space: spaces.Space) -> None:
    """The actor climbs the critics without moving them; the critics' errors don't move the actor."""
    algorithm = build(cls, space)
    losses, _, _ = learned(algorithm, batch(algorithm, space))
    assert moved_by(algorithm, losses, "policy_loss") == {"actor", "policy"}
    assert moved_by(algorithm, losses, "q_loss") == {"critic"}
    if cls is SAC:
        assert moved_by(algorithm, losses, "alpha_loss") == {"log_alpha"}


@pytest.mark.parametrize("name", ["MSELoss", "SmoothL1Loss"])
def test_the_error_of_values_and_its_slope_are_torchs_own(name: str) -> None:
    algorithm = build(DQN)
    spec = algorithm.optim.spec
    algorithm.optim.spec = spec.model_copy(update={"loss_spec": spec.loss_spec.model_copy(update={"name": name})})
    value = torch.tensor([[-3.0, -1.0, -0.2, 0.0], [0.3, 0.9, 1.0, 4.0]], requires_grad=True)
    error, slope = algorithm.error(value, torch.full((2, 4), 0.1))
    expected = getattr(torch.nn, name)(reduction="none")(value, torch.full((2, 4), 0.1))
    torch.testing.assert_close(error, expected)
    torch.testing.assert_close(slope, torch.autograd.grad(expected.sum(), value)[0])


def test_sac_actor_weighs_value_against_entropy() -> None:
    """Discrete: Σ π (α log π − min Q), both critics as they are now."""
    algorithm = build(SAC, DISCRETE, temperature=0.7)
    losses, _, out = learned(algorithm, batch(algorithm, DISCRETE))
    log_prob = out.heads["policy"].log_probs
    least = torch.minimum(out.heads["q1"], out.heads["q2"])
    expected = (log_prob.exp() * (0.7 * log_prob - least)).sum(dim=-1)
    torch.testing.assert_close(losses.terms["policy_loss"], expected)


def test_td3_actor_climbs_the_first_critic_every_other_step() -> None:
    algorithm = build(TD3, BOX)
    rows = batch(algorithm, BOX)
    losses, _, out = learned(algorithm, rows)
    expected = -algorithm.net.read("q1", out.features, out.heads["policy"].mode())
    torch.testing.assert_close(losses.terms["policy_loss"], expected)
    trained = []
    for _ in range(6):
        trained.append("policy_loss" in algorithm.update(rows, 0).metrics)
    assert trained == [True, False] * 3


@pytest.mark.parametrize(("space", "target"), [(DISCRETE, None), (BOX, None), (DISCRETE, 0.2)])
def test_the_temperature_holds_the_entropy(space: spaces.Space, target: float | None) -> None:
    """It rises while the policy is less random than wanted, falls while it is more."""
    for wanted, sign in ((50.0, 1), (-50.0, -1), (target, None)):
        algorithm = build(SAC, space, target_entropy=wanted)
        _, _, out = learned(algorithm, batch(algorithm, space))
        before = float(algorithm.alpha)
        algorithm.update(batch(algorithm, space), 0)
        if sign:
            assert (float(algorithm.alpha) - before) * sign > 0
        else:
            default = 0.5 * math.log(3) if space is DISCRETE else -2.0
            assert algorithm.target_entropy(out.heads["policy"]) == pytest.approx(target or default)


@pytest.mark.parametrize(("cls", "space"), KINDS)
def test_weights_reach_every_term(cls: Any, space: spaces.Space) -> None:
    """A window of weight 0 teaches nothing at all, by whatever term."""

    def weights(reward: float, given: list[float] | None) -> torch.Tensor:
        algorithm = build(cls, space)
        rows = batch(algorithm, space)
        changed, obs = rows.reward.clone(), rows.obs["obs"].clone()
        changed[1] += reward
        obs[1] += reward
        given = None if given is None else torch.tensor(given)
        algorithm.update(rows.replace(reward=changed, obs={"obs": obs}, weight=given, index=torch.arange(B)), 0)
        return torch.cat([p.detach().ravel() for p in algorithm.net.parameters()])

    assert torch.equal(weights(0.0, None), weights(0.0, [1.0] * 3))
    assert not torch.equal(weights(0.0, None), weights(1.0, None))
    torch.testing.assert_close(weights(0.0, [1.0, 0.0, 1.0]), weights(1.0, [1.0, 0.0, 1.0]), atol=1e-7, rtol=0)


@pytest.mark.parametrize(("cls", "space"), KINDS)
def test_priorities_are_the_errors_of_each_window(cls: Any, space: spaces.Space) -> None:
    """0.9 of the largest |δ| and 0.1 of the mean, of rows that count; of a single row its own."""
    algorithm = build(cls, space)
    rows = batch(algorithm, space).replace(weight=torch.ones(B), index=torch.arange(B))
    rows.mask[2] = torch.tensor([False, False, False, True])
    torch_state = algorithm.rng.torch.get_state()
    losses, _, _ = learned(algorithm, rows)
    algorithm.rng.torch.set_state(torch_state)
    expected = []
    for error, mask in zip(losses.td_error.detach().abs(), rows.mask, strict=True):
        expected.append(0.9 * error[mask].max() + 0.1 * error[mask].mean())
    assert expected[2] == pytest.approx(losses.td_error[2, 3].abs().item())
    torch.testing.assert_close(algorithm.update(rows, 0).priority, torch.stack(expected), atol=1e-6, rtol=1e-5)


# --- target networks, and the agent's rounds ---


def follow(batches: int, **keys: Any) -> list[bool]:
    """After which batches the target took something over."""
    net = build(DQN).net
    target, moved = Target(net, OffPolicySpec(**keys)), []
    for p in net.parameters():
        p.detach().add_(1.0)
    for _ in range(batches):
        before = copy.deepcopy(dict(target.net.state_dict()))
        target.follow()
        after = target.net.state_dict()
        moved.append(any(not torch.equal(before[name], after[name]) for name in after))
        if moved[-1] and keys.get("update_type") != "polyak":
            assert all(torch.equal(after[name], p) for name, p in net.state_dict().items()), "a whole copy"
            for p in net.parameters():
                p.detach().add_(1.0)
    return moved


def test_targets_follow_by_frames() -> None:
    """update_frequency is in frames: a batch stands for training_frequency / training_iter of them."""
    assert follow(8, update_frequency=4) == [False, False, False, True] * 2
    assert follow(4, update_frequency=8, training_frequency=4) == [False, True] * 2
    assert follow(8, update_frequency=8, training_frequency=4, training_iter=2) == [False, False, False, True] * 2
    assert follow(3, update_frequency=1, training_frequency=4) == [True] * 3
    assert follow(3, update_type="polyak") == [True] * 3
    assert follow(6, update_type="polyak", training_frequency=3, training_iter=2) == [True] * 6


@pytest.mark.parametrize(
    ("keys", "share"),
    [
        ({}, 0.1),
        ({"training_frequency": 8}, 0.1),
        ({"training_frequency": 8, "update_frequency": 8}, 0.1),
        ({"training_frequency": 8, "update_frequency": 4}, 1 - 0.9**2),
        ({"training_frequency": 8, "training_iter": 2, "update_frequency": 1}, 1 - 0.9**4),
    ],
)
def test_polyak_takes_over_a_share(keys: dict[str, int], share: float) -> None:
    """At each batch, or for each of the updates that fall due with it."""
    net = build(DQN).net
    target = Target(net, OffPolicySpec(update_type="polyak", polyak_coef=0.1, **keys))
    before = [p.clone() for p in target.net.parameters()]
    for p in net.parameters():
        p.detach().add_(1.0)
    target.follow()
    for old, new, source in zip(before, target.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(new, (1 - share) * old + share * source)


@pytest.mark.parametrize(("frequency", "iterations"), [(1, 1), (3, 2), (7, 4), (64, 48), (8, 2)])
def test_polyak_takes_over_one_share_a_batch(frequency: int, iterations: int) -> None:
    """Seven frames for four batches were rounded down to a frame for each, and 1.75 shares taken over."""
    net = build(DQN).net
    keys = {"training_frequency": frequency, "training_iter": iterations}
    target = Target(net, OffPolicySpec(update_type="polyak", polyak_coef=0.1, **keys))
    before = [p.clone() for p in target.net.parameters()]
    for p in net.parameters():
        p.detach().add_(1.0)
    for _ in range(12):
        target.follow()
    for old, new in zip(before, target.net.parameters(), strict=True):
        torch.testing.assert_close(new, old + (1 - 0.9**12))


def agent_of(name: str, memory: str, space: spaces.Space, E: int, **keys: Any) -> Any:
    memory_spec = MEMORY.load(memory).Spec(**{**MEMORIES[memory], "max_size": 200})
    algorithm = ALGORITHM.load(name).Spec(**{**ALGORITHMS[name], **keys})
    net = MLP.Spec(hid_layers=[8], head_hid_layers=[8])
    return build_agent(AgentSpec("test", algorithm, memory_spec, net), World(E, OBS, space), seed=0)


def live(agent: Any, E: int, steps: int) -> list[int]:
    """Updates of each step."""
    worlds, counts = Worlds(OBS, E), []
    step, carry = worlds.reset(), agent.initial(E)
    for _ in range(steps):
        act = agent.act(step, carry)
        after = worlds.step(act.action)
        counts.append(len(agent.update(step, carry, act, after)))
        step, carry = after, act.carry
    return counts


@pytest.mark.parametrize("E", [1, 3, 4, 16])
@pytest.mark.parametrize(("frequency", "iterations", "gradients"), [(1, 1, 1), (4, 2, 1), (7, 1, 3)])
def test_an_agent_learns_as_often_as_it_owes(E: int, frequency: int, iterations: int, gradients: int) -> None:
    keys = {"training_frequency": frequency, "training_iter": iterations, "training_batch_iter": gradients}
    agent = agent_of("DQN", "Replay", DISCRETE, E, training_start_step=30, **keys)
    updates = sum(live(agent, E, 160 // E))
    assert updates == iterations * (max(agent.frame - 30, 0) // frequency) > 0
    assert agent.opt_step == updates * gradients
    assert not agent.memory.to_train


@pytest.mark.parametrize("memory", ["PrioritizedReplay", "SequenceReplay"])
def test_errors_come_home_to_the_windows_they_belong_to(memory: str) -> None:
    agent = agent_of("DQN", memory, DISCRETE, 3)
    agent.algorithm.update = lambda batch, frame: Learned({}, 1.0 + torch.from_numpy(batch.index).float())
    came: list[Any] = []
    feedback = agent.memory.feedback
    agent.memory.feedback = lambda index, priority: (came.append((index.copy(), priority)), feedback(index, priority))
    updates = sum(live(agent, 3, 40))
    assert len(came) == updates > 0
    for index, priority in came:
        np.testing.assert_array_equal(priority, 1.0 + index)
        assert (agent.memory.priorities.table.leaf[came[-1][0]] != 0).all()
    index = came[-1][0]
    expected = (1.0 + index + agent.memory.spec.epsilon) ** agent.memory.spec.alpha
    np.testing.assert_allclose(agent.memory.priorities.table.leaf[index], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "memory", [name for name in MEMORIES if not MEMORY.load(name).on_policy and name != "HindsightReplay"]
)
def test_gamma_has_one_source(memory: str) -> None:
    """The algorithm's: what a memory discounts by follows from it, and no target has another."""
    agent = agent_of("DQN", memory, DISCRETE, 2, gamma=0.5)
    live(agent, 2, 60)
    powers = np.float32(0.5) ** np.arange(1, 4)
    assert set(agent.memory.sample().discount.ravel().tolist()) <= set(powers.tolist())


def acted(agent: Any, explore: bool = True) -> np.ndarray:
    E = agent.memory.context.world.num_envs
    return agent.act(Worlds(OBS, E).reset(), agent.initial(E), explore).action.numpy()


def uniform(action: np.ndarray) -> bool:
    if action.dtype.kind == "i":
        return bool(stats.chisquare(np.bincount(action, minlength=3)).pvalue > 0.001)
    return bool(stats.kstest(action.ravel(), stats.uniform(-1, 2).cdf).pvalue > 0.001)


@pytest.mark.parametrize(("name", "space"), [("SAC", DISCRETE), ("SAC", BOX), ("TD3", BOX)])
def test_actions_are_uniform_until_the_first_gradient_step(name: str, space: spaces.Space) -> None:
    """However many frames have been played: of several learners each has its own. Greedy ones never are."""
    agent, at_once = (agent_of(name, "Replay", space, 2000, training_start_step=start) for start in (2000, 0))
    for one in (agent, at_once):  # a policy that differs from chance
        last = one.algorithm.net.heads["policy"].body[-1]
        last.bias.detach()[:1] += 3.0
    agent.frame = 4000
    assert uniform(acted(agent))
    assert not uniform(acted(agent, explore=False))
    assert not uniform(acted(at_once))
    agent.frame = 0
    agent.algorithm.optim.opt_step = 1
    assert not uniform(acted(agent))


@pytest.mark.parametrize(("cls", "space"), KINDS)
def test_a_bandit_is_learned(cls: Any, space: spaces.Space) -> None:
    """The smallest proof: one step, action 0 (or above 0.5) pays. Its control: a reward by chance teaches nothing."""
    one = torch.ones(64, 1, dtype=torch.bool)
    obs, first = {"obs": torch.ones(64, 2, 2)}, torch.ones(64, 2, dtype=torch.bool)
    for paid in (True, False):
        keys = {"temperature": 0.05} if cls is SAC else {}
        algorithm = build(cls, space, **keys)
        draws = torch.Generator().manual_seed(3)
        for _ in range(250):
            action = (
                torch.randint(3, (64, 1), generator=draws)
                if space is DISCRETE
                else torch.rand(64, 1, 2, generator=draws) * 2 - 1
            )
            good = action == 0 if space is DISCRETE else action[..., 0] > 0.5
            reward = good.float() if paid else torch.randint(2, (64, 1), generator=draws).float()
            carry = {part: {} for part in algorithm.net.parts}
            algorithm.update(
                Batch(obs, first, action, reward, one, ~one, one, carry, {}, discount=torch.full((64, 1), 0.9)), frame=0
            )
        act = algorithm.act({"obs": obs["obs"][:1, :1]}, first[:1, :1], carry, explore=False, frame=0)
        if paid:
            assert act.action.tolist() == [0] if space is DISCRETE else act.action[0, 0] > 0.5
        elif space is DISCRETE and cls is not SAC:
            q = algorithm.net({"obs": obs["obs"][:1, :1]}, carry, first[:1, :1]).heads["q"]
            assert q.max() - q.min() < 0.3
