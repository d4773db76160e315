"""What is learned beside the policy: with every kind of algorithm, saved and resumed; each part against its own claim."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from small_specs import raw_spec
from test_agent import live, parts
from worlds import IMAGE_SPACES, OBS_SPACES, Worlds, world

from slm_lab.agent import checkpoint
from slm_lab.agent.agent import Agent
from slm_lab.agent.algorithm.base import _joined, without_last
from slm_lab.agent.algorithm.policy_gradient import drawn_steps
from slm_lab.agent.auxiliary.base import Auxiliary, AuxiliaryContext
from slm_lab.agent.auxiliary.confidence import ConfidenceHead
from slm_lab.agent.auxiliary.cue import CueHead
from slm_lab.agent.auxiliary.rnd import RND
from slm_lab.agent.build import build_agent
from slm_lab.agent.net.conv import Conv
from slm_lab.agent.net.core.base import take
from slm_lab.agent.net.mlp import MLP
from slm_lab.agent.net.net import NetOut
from slm_lab.env.base import World
from slm_lab.lib.errors import SpecError
from slm_lab.lib.reduce import Losses, reduce_losses
from slm_lab.lib.tree import tree_leaves, tree_map
from slm_lab.lib.types import Batch
from slm_lab.spec.parts import AUXILIARY
from slm_lab.spec.validate import resolve

E = 3
AGENTS = [
    ("PPO", "OnPolicyBatchReplay", "none"),
    ("PPO", "OnPolicyBatchReplay", "GRU"),
    ("REINFORCE", "OnPolicyReplay", "GRU"),
    ("SARSA", "OnPolicyBatchReplay", "none"),
    ("DQN", "SequenceReplay", "GRU"),
    ("SAC", "PrioritizedReplay", "none"),
]
COMBINATIONS = [(name, *agent) for name in AUXILIARY for agent in AGENTS if name != "CueHead" or agent[2] == "GRU"]


def build(name: str, algorithm: str, memory: str, core: str, **keys: Any) -> Agent:
    spec = dataclasses.replace(parts(algorithm, memory, core), auxiliary=(AUXILIARY.load(name).Spec(**keys),))
    return build_agent(spec, world("vector", "discrete", E), seed=0)


@pytest.mark.parametrize(("name", "algorithm", "memory", "core"), COMBINATIONS)
def test_learns_beside_every_kind_of_algorithm(name: str, algorithm: str, memory: str, core: str) -> None:
    agent = build(name, algorithm, memory, core)
    before = {key: p.detach().clone() for key, p in agent.named_parameters()}
    metrics = live(agent, Worlds(OBS_SPACES["vector"], E), 40)
    loss = {"RND": "rnd_loss", "CueHead": "cue_loss", "ConfidenceHead": "confidence_loss"}[name]
    assert all(np.isfinite(v) for row in metrics for key, v in row.items() if key != "explained_variance")
    assert all(loss in row for row in metrics if "loss" in row)
    assert [key for key, p in agent.named_parameters() if torch.equal(p, before[key])] == []
    assert any(key.startswith(f"auxiliaries.{name}.") for key in before)


@pytest.mark.parametrize("name", AUXILIARY)
@pytest.mark.parametrize("agent", [AGENTS[1], AGENTS[4]], ids=lambda agent: agent[0])
def test_saved_and_loaded_it_goes_on_alike(name: str, agent: tuple[str, str, str], tmp_path: Path) -> None:
    one, two = build(name, *agent), build(name, *agent)
    live(one, Worlds(OBS_SPACES["vector"], E), 30)
    checkpoint.save(tmp_path, "agent", one.state_dict(), one.frame)
    two.load_state_dict(checkpoint.load(tmp_path, "agent"))
    for agent_ in (one, two):
        live(agent_, Worlds(OBS_SPACES["vector"], E, seed=5), 20)
    for (key, a), (_, b) in zip(tree_leaves(one.state_dict()), tree_leaves(two.state_dict()), strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b)), key


def test_first_weights_of_the_agent_are_the_same_with_and_without() -> None:
    plain = build_agent(parts("PPO"), world("vector", "discrete", E), seed=0)
    beside = dict(build("RND", *AGENTS[0]).named_parameters())
    assert all(torch.equal(p, beside[key]) for key, p in plain.named_parameters())


def test_a_target_network_has_no_copy_of_it() -> None:
    algorithm: Any = build("RND", *AGENTS[4]).algorithm
    assert not algorithm.target.net.auxiliaries
    assert len(list(algorithm.target.net.parameters())) == len(algorithm.target.followed)


# --- the update loop ---


class Diary(Auxiliary):
    """Notes what is asked of it; its bonus is 10 a step and its loss that of a row of its own."""

    def __init__(self) -> None:
        super().__init__(None, context(OBS_SPACES["vector"]))
        self.asked: list[str] = []
        self.ends: list[torch.Tensor] = []  # reward and target [2, n] of rows that end an episode
        self.x = torch.nn.Parameter(torch.ones(()))

    def bonus(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        self.asked.append("bonus")
        self.paid = batch.reward + 10.0
        return batch.replace(reward=self.paid), {"diary_bonus": 10.0}

    def prepare(self, batch: Batch, net: Any) -> tuple[Batch, dict[str, float]]:
        self.asked.append("prepare")
        self.ends.append(torch.stack([self.paid, batch.extras["target"]])[:, batch.terminated])
        return batch, {}

    def losses(self, batch: Batch, out: NetOut, net: Any) -> Losses:
        self.asked.append("losses")
        rows = torch.tensor([3.0, 1000.0]).expand(len(batch.mask), 2)
        return Losses({"diary_loss": self.x * rows}, mask=rows < 1000, weight=batch.weight)

    def after_update(self) -> None:
        self.asked.append("after")


def test_the_loop_asks_in_order_and_reduces_each_with_its_own_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = build_agent(parts("DQN", "Replay"), world("vector", "discrete", E), seed=0)
    diary, draw = Diary(), agent.memory.sample
    agent.algorithm.net.auxiliaries["diary"] = diary
    agent.algorithm.spec = agent.algorithm.spec.model_copy(update={"training_batch_iter": 2})
    monkeypatch.setattr(agent.memory, "sample", lambda: draw().replace(weight=np.full(8, 0.5, np.float32)))
    row = live(agent, Worlds(OBS_SPACES["vector"], E), 40)[0]
    assert diary.asked[:5] == ["bonus", "prepare", "losses", "losses", "after"]
    assert row["diary_bonus"] == 10.0
    assert row["diary_loss"] == pytest.approx(1.5), "the batch's weights go with it, the masked row doesn't"
    assert row["loss"] == pytest.approx(row["q_loss"] + row["diary_loss"])
    reward, target = torch.cat(diary.ends, dim=1)
    assert len(target) > 0
    torch.testing.assert_close(target, reward)  # nothing follows an end: the bonus is all


def test_weights_of_rows_or_of_windows() -> None:
    term, mask = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[True, True], [True, False]])
    total, _ = reduce_losses(Losses({"a": term}), mask, torch.tensor([[1.0, 0.0], [2.0, 9.0]]))
    assert total.value == pytest.approx((1 + 6) / 3)
    total, _ = reduce_losses(Losses({"a": term}), mask, torch.tensor([1.0, 2.0]))
    assert total.value == pytest.approx((1 + 2 + 6) / 3)
    with pytest.raises(AssertionError, match="weight"):
        reduce_losses(Losses({"a": term}), mask, torch.ones(2, 1))


def test_rows_of_its_own_have_no_weights_of_the_batch() -> None:
    batch = windows(torch.zeros(1, 3, 2)).replace(weight=torch.full((1, 2), 9.0))
    own = Losses({"own_loss": torch.tensor([[2.0, 7.0]])}, mask=torch.tensor([[True, False]]))
    total, _ = _joined([own], batch, {}, 0)
    assert total.value == 2.0


@pytest.mark.parametrize("early", [True, False])
def test_how_many_of_its_own_steps_are_drawn_changes_nothing(early: bool) -> None:
    """The cue is told after step 10 alone; more is drawn of before, or of after."""
    batch, steps = windows(torch.zeros(300, 21, 1)), torch.arange(20).expand(300, 20)
    own = {"seen": torch.ones(300, 20, 1), "later": steps > 10}
    large = ((steps <= 10) == early).float()
    batch = without_last(batch).replace(extras={"cue": own, "advantage": large})
    head = CueHead(CueHead.Spec(), context({"obs": spaces.Box(-1, 1, (1,))}, shared=1))
    with torch.no_grad():
        head.heads["shared"].weight.zero_()
        head.heads["shared"].bias.zero_()
    drawn = drawn_steps(batch, 6, torch.Generator().manual_seed(0))
    out = NetOut({}, {"shared": torch.zeros(300, 6, 1)}, {}, {}, {}, {})
    assert _joined([head.losses(drawn, out, None)], drawn, {}, 0)[0].value == pytest.approx(1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["CueHead", "RND"])
def test_drawn_steps_teach_what_all_would(name: str) -> None:
    """More of those are drawn at which the error is large, and their weights make up for it."""
    g = torch.Generator().manual_seed(0)
    batch = windows(torch.randint(8, (1, 21), generator=g).repeat(3000, 1))
    batch.is_first[:, 0] = True
    features = torch.randn(1, 20, 5, generator=g).repeat(3000, 1, 1)
    auxiliary: Auxiliary = rnd(NOVEL["discrete"], share=1.0)
    if name == "CueHead":
        auxiliary = CueHead(CueHead.Spec(), context(NOVEL["discrete"], shared=5))
    batch, _ = auxiliary.prepare(auxiliary.bonus(batch)[0], None)  # type: ignore[arg-type]
    batch = without_last(batch).replace(extras={k: tree_map(lambda x: x[:, :20], v) for k, v in batch.extras.items()})

    def taught(batch: Batch) -> tuple[torch.Tensor, float]:
        out = NetOut({}, {"shared": take(features, batch.at)}, {}, {}, {}, {})
        found = auxiliary.losses(batch, out, None)  # type: ignore[arg-type]
        (error,) = found.terms.values()
        return error.detach(), _joined([found], batch, {}, 0)[0].value

    error, whole = taught(batch)
    large = torch.where(error > 0.9 * error.max(), 1.0, 0.0)
    often, part = taught(drawn_steps(batch.replace(extras={**batch.extras, "advantage": large}), 5, g))
    assert float(often.mean()) > 1.1 * whole
    assert part == pytest.approx(whole, rel=0.05)


# --- RND ---


def context(obs_space: dict[str, spaces.Space], **features: int) -> AuxiliaryContext:
    images = any(len(space.shape or ()) > 1 for space in obs_space.values())
    net = Conv.Spec(conv_hid_layers=[[4, 3, 2]], fc_hid_layers=[16]) if images else MLP.Spec(hid_layers=[16])
    return AuxiliaryContext(World(2, obs_space, spaces.Discrete(2)), net, features, gamma=0.9)


def rnd(obs_space: dict[str, spaces.Space], **keys: Any) -> RND:
    torch.manual_seed(0)
    return RND(RND.Spec(**keys), context(obs_space))


def windows(obs: torch.Tensor, **fields: Any) -> Batch:
    """Windows of obs [B, T+1, *O] in which nothing else happens."""
    shape = (obs.shape[0], obs.shape[1] - 1)
    no = torch.zeros(shape, dtype=torch.bool)
    first = torch.zeros(obs.shape[:2], dtype=torch.bool)
    empty = Batch({"obs": obs}, first, torch.zeros(shape), torch.zeros(shape), no, no.clone(), ~no, {}, {})
    return empty.replace(**fields)


def learn(auxiliary: Any, batch: Batch, steps: int) -> None:
    optim = torch.optim.Adam(auxiliary.parameters(), lr=1e-2)
    for _ in range(steps):
        found = auxiliary.losses(batch, NetOut({}, {}, {}, {}, {}, {}), None)
        loss, _ = reduce_losses(found, found.mask)
        optim.zero_grad()
        loss.backward()
        optim.step()


def paid(auxiliary: RND, batch: Batch) -> torch.Tensor:
    return auxiliary.bonus(batch)[0].reward


NOVEL: dict[str, dict[str, spaces.Space]] = {"discrete": {"obs": spaces.Discrete(8)}, "image": IMAGE_SPACES["HWC"]}


@pytest.mark.parametrize("kind", NOVEL)
def test_what_was_seen_is_worth_less_than_what_was_not(kind: str) -> None:
    if kind == "discrete":
        all_ = torch.arange(8).reshape(1, 8)
    else:
        all_ = torch.randint(0, 256, (1, 8, 12, 12, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    auxiliary, known, unknown = rnd(NOVEL[kind], share=1.0), windows(all_[:, :5]), windows(all_[:, 3:])
    before = paid(auxiliary, known).mean()
    fixed = [x.clone() for x in auxiliary.random.buffers()]
    learn(auxiliary, auxiliary.bonus(known)[0], 200)
    assert all(torch.equal(a, b) for a, b in zip(fixed, auxiliary.random.buffers(), strict=True))
    assert not list(auxiliary.random.parameters())
    after, new = paid(auxiliary, known).mean(), paid(auxiliary, unknown)[0, 1:].mean()
    assert after < 0.1 * before
    assert new > 5 * after


def test_the_bonus_is_of_the_observation_a_row_led_to_the_last_one_too() -> None:
    """A window's last observation is in no row of its own: unless it is learned as an outcome it stays new for ever."""
    auxiliary = rnd(NOVEL["discrete"], share=1.0)
    batch = windows(torch.tensor([[0, 1, 2, 7]]))
    learn(auxiliary, auxiliary.bonus(batch)[0], 200)
    bonus = paid(auxiliary, windows(torch.tensor([[3, 7, 3, 0]])))[0]
    assert bonus[0] < 0.05 * bonus[1], "7 was led to, 3 was not"
    assert bonus[0] < 0.05 * bonus[2], "0 was seen, but nothing led to it"


def test_a_row_that_no_one_played_earns_nothing_and_coef_0_pays_nothing() -> None:
    obs = torch.tensor([[0, 1, 2, 3]])
    mask = torch.tensor([[True, False, True]])
    batch = windows(obs, mask=mask)
    reward = paid(rnd(NOVEL["discrete"]), batch)
    assert (reward[0, [0, 2]] > 0).all() and reward[0, 1] == 0 and (batch.reward == 0).all()
    assert (paid(rnd(NOVEL["discrete"], coef=0.0), batch) == 0).all()


def test_the_bonus_is_scaled_by_the_deviation_of_its_discounted_sums() -> None:
    auxiliary = rnd(NOVEL["discrete"])
    batch = windows(torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]]))
    error = auxiliary.error(auxiliary.bonus(batch)[0].extras["rnd"]).detach().numpy()  # [2, 3]
    sums = np.stack([sum(error[:, t + k] * 0.9**k for k in range(3 - t)) for t in range(3)], axis=1)
    np.testing.assert_allclose(paid(auxiliary, batch), error / sums.std(), rtol=1e-4)


def test_rows_that_all_led_to_one_observation_are_paid_a_bonus_of_bounded_size() -> None:
    """There is no deviation to measure by yet."""
    assert paid(rnd(NOVEL["discrete"]), windows(torch.tensor([[0, 3]] * 8))).max() < 10.01


def test_of_n_step_windows_the_bonus_is_of_where_the_n_steps_led_to() -> None:
    auxiliary, batch = rnd(NOVEL["discrete"]), windows(torch.tensor([[0, 1, 2, 3, 4]]))
    one, two = (auxiliary.bonus(batch.replace(after=after))[0] for after in (None, torch.tensor([[1, 2, 3, 3]])))
    assert one.extras["rnd"]["obs"].tolist() == [[1, 2, 3, 4]]
    assert two.extras["rnd"]["obs"].tolist() == [[2, 3, 4, 4]]


def test_observations_are_normalised_and_clipped() -> None:
    auxiliary = rnd({"obs": spaces.Box(-np.inf, np.inf, (2,))})
    obs = torch.randn(4, 200, 2) * torch.tensor([100.0, 0.01]) + torch.tensor([1000.0, 0.0])
    auxiliary.bonus(windows(obs))
    normal = auxiliary._normal("obs", obs[:, 1:])
    torch.testing.assert_close(normal.mean(dim=(0, 1)), torch.zeros(2), atol=0.02, rtol=0)
    torch.testing.assert_close(normal.std(dim=(0, 1)), torch.ones(2), atol=0.02, rtol=0)
    assert auxiliary._normal("obs", torch.full((1, 1, 2), 1e9)).max() == 5.0


# --- the cue head ---


@pytest.mark.parametrize("step", [0, 2])
def test_the_cue_is_that_of_the_rows_own_episode(step: int) -> None:
    """Against a plain loop; of episodes that began before the window nothing is told."""
    B, T = 4, 12
    g = torch.Generator().manual_seed(step)
    is_first = torch.rand(B, T, generator=g) < 0.2
    batch = windows(torch.randn(B, T + 1, 3, generator=g))
    batch = batch.replace(obs={"obs": batch.obs["obs"][:, :T]}, is_first=is_first)
    head = CueHead(CueHead.Spec(step=step), context(OBS_SPACES["vector"], shared=5))
    cue = head.prepare(batch, None)[0].extras["cue"]  # type: ignore[arg-type]
    for b in range(B):
        began = None
        for t in range(T):
            began = t if is_first[b, t] else began
            later = began is not None and t > began + step
            assert cue["later"][b, t] == later
            if later:
                torch.testing.assert_close(cue["seen"][b, t], batch.obs["obs"][b, began + step])


def test_the_cue_is_told_only_by_features_that_hold_it() -> None:
    """Half of the features hold the first observation at every step: told to the end. Control: those of now alone."""
    obs = torch.randn(64, 9, 3, generator=torch.Generator().manual_seed(0))
    batch = windows(obs, is_first=torch.zeros(64, 8, dtype=torch.bool))
    batch.is_first[:, 0] = True
    batch = batch.replace(obs={"obs": obs[:, :8]})
    error = {}
    for kind, features in {"kept": obs[:, :1].expand(64, 8, 3), "now": obs[:, :8]}.items():
        head = CueHead(CueHead.Spec(), context(OBS_SPACES["vector"], shared=3))
        ready = head.prepare(batch, None)[0]  # type: ignore[arg-type]
        optim = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(150):
            found = head.losses(ready, NetOut({}, {"shared": features}, {}, {}, {}, {}), None)  # type: ignore[arg-type]
            loss, _ = reduce_losses(found, found.mask)  # type: ignore[arg-type]
            optim.zero_grad()
            loss.backward()
            optim.step()
        error[kind] = loss.value
    assert error["kept"] < 0.02 and error["now"] > 0.8  # the variance of what is told is 1


# --- the confidence head ---


@pytest.mark.parametrize("told", [True, False])
def test_it_knows_where_the_error_is_large(told: bool) -> None:
    """Errors of scale 0.1 or 2, by what the features show: calibrated, and better than one constant. Control: features
    that don't show which."""
    g = torch.Generator().manual_seed(0)
    noisy = torch.rand(64, 8, generator=g) < 0.5
    error = torch.randn(64, 8, generator=g) * torch.where(noisy, 2.0, 0.1)
    shown = noisy if told else torch.rand(64, 8, generator=g) < 0.5
    features = torch.stack([shown.float(), torch.ones(64, 8)], dim=-1).requires_grad_()
    batch = windows(torch.zeros(64, 9, 3), extras={"td_error": error})
    head = ConfidenceHead(ConfidenceHead.Spec(), context(OBS_SPACES["vector"], actor=7, critic=2))
    optim = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(300):
        found = head.losses(batch, NetOut({}, {"critic": features}, {}, {}, {}, {}), None)  # type: ignore[arg-type]
        loss, means = reduce_losses(found, batch.mask)
        optim.zero_grad()
        loss.backward()
        optim.step()
    assert features.grad is None, "it reads, and leaves the features alone"
    assert means["confidence_ratio"] == pytest.approx(1.0, abs=0.05)
    gain = float(means["confidence_gain"])
    assert gain > 0.5 if told else abs(gain) < 0.05


def test_where_errors_are_0_the_confidence_head_comes_to_rest() -> None:
    """Its loss had no least value there: it ran off until 0 · inf was NaN, and that ended the session."""
    features = torch.ones(8, 4, 2)
    batch = windows(torch.zeros(8, 5, 3), extras={"td_error": torch.zeros(8, 4)})
    head = ConfidenceHead(ConfidenceHead.Spec(), context(OBS_SPACES["vector"], actor=7, critic=2))
    optim = torch.optim.Adam(head.parameters(), lr=0.5)
    for _ in range(300):
        found = head.losses(batch, NetOut({}, {"critic": features}, {}, {}, {}, {}), None)  # type: ignore[arg-type]
        assert all(torch.isfinite(term).all() for term in found.terms.values())
        loss, _ = reduce_losses(found, batch.mask)
        optim.zero_grad()
        loss.backward()
        optim.step()
    assert torch.allclose(head.log_scale(features), torch.tensor(1e-6).log(), atol=0.5)


# --- specs ---


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"agent__auxiliary": {"name": "RND"}}, "agent.auxiliary", "is no list (expected: list of mappings"),
        ({"agent__auxiliary": [{"name": "RMD"}]}, "agent.auxiliary.0.name", "Did you mean 'RND'?"),
        ({"agent__auxiliary": ["RND"]}, "agent.auxiliary.0", "write {name: RND}"),
        ({"agent__auxiliary": [{"name": "RND", "coeff": 1.0}]}, "agent.auxiliary.0.coeff", "Did you mean 'coef'?"),
        ({"agent__auxiliary": [{"name": "RND", "share": 0.0}]}, "agent.auxiliary.0.share", "0.0 isn't above 0"),
        ({"agent__auxiliary": [{"name": "RND"}, {"name": "RND"}]}, "agent.auxiliary.1.name", "RND is there already"),
        (
            {"agent__auxiliary": [{"name": "RND"}], "agent__algorithm": {"name": "Random"}},
            "agent.auxiliary",
            "Random learns nothing",
        ),
        (
            {"agent__auxiliary": [{"name": "RND"}, {"name": "CueHead", "step": 15}]},
            "agent.auxiliary.1.step",
            "windows of 16 steps (expected: at most 14)",
        ),
        (
            {"agent__auxiliary": [{"name": "CueHead", "step": 8}], "env__name": "MemoryTask", "env__delay": 8},
            "agent.auxiliary.0.step",
            "episodes of 8 steps (expected: at most 6)",
        ),
        (
            {
                "agent__auxiliary": [{"name": "CueHead"}],
                "agent__algorithm": {"name": "DQN", "training_start_step": 100},
                "agent__memory": {"name": "Replay"},
            },
            "agent.memory.name",
            "Replay gives single steps; CueHead tells of one what an earlier one showed. Use SequenceReplay",
        ),
    ],
)
def test_bad_specs_are_told_in_one_line(changes: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        resolve(raw_spec(**changes), "test")
    problem = next(problem for problem in error.value.problems if problem.path == path)
    assert message in problem.message and "\n" not in problem.message


def test_a_resolved_spec_resolves_to_the_same() -> None:
    raw = raw_spec(agent__auxiliary=[{"name": "RND", "coef": 0.5}, {"name": "CueHead", "step": 3}])
    spec = resolve(raw, "test")
    assert [part.name for part in spec.agent.auxiliary] == ["RND", "CueHead"]
    assert resolve(spec.dump(), "test") == spec
