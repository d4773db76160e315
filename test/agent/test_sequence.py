"""Replay of sequences: which windows there are, what they hold, and that a net sees in them what it saw when acting."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from small_specs import make_spec
from test_replay import n_steps
from worlds import Lives, Worlds, replay

from slm_lab.agent.algorithm.base import Learned
from slm_lab.agent.algorithm.dqn import DQN
from slm_lab.agent.build import build_agent
from slm_lab.agent.memory.replay import Drawn
from slm_lab.agent.memory.sequence import SequenceReplay
from slm_lab.agent.net.mlp import MLP
from slm_lab.env.base import World
from slm_lab.lib.errors import SpecError
from slm_lab.lib.tree import map_batch
from slm_lab.spec.lab_spec import AgentSpec

EPSILON = 0.01


def sequences(E: int = 2, **keys: Any) -> Any:
    about = {
        "max_size": 24 * E,
        "batch_size": 400,
        "sequence_length": 6,
        "carry_every": 4,
        "burn_in": 2,
        **({"epsilon": EPSILON} if keys.get("prioritized") else {}),
    }
    return replay(SequenceReplay, E, **{**about, **keys})


def windows(memory: Any) -> set[tuple[int, int]]:
    """(first row, world) of all that begin at a stored carry and lie within what is held."""
    spec, rows = memory.spec, memory.rows
    begin = [t for t in range(0, rows.count, spec.carry_every) if rows.first <= t <= rows.count - spec.sequence_length]
    return {(t, e) for t in begin for e in range(memory.context.world.num_envs)}


def teaching(memory: Any, lives: Lives) -> set[tuple[int, int]]:
    """Those of them with a played row after the burn-in."""
    spec = memory.spec
    return {(t, e) for t, e in windows(memory) if any(lives.lived[e][t + spec.burn_in : t + spec.sequence_length])}


def pairs(memory: Any, drawn: Any) -> list[tuple[int, int]]:
    return list(zip(*(x.tolist() for x in memory.where(drawn.at)), strict=True))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from([1, 4]), st.integers(1, 7), st.integers(1, 5), st.integers(0, 3), st.integers(0, 12), st.integers(1, 90),
    st.booleans(), st.integers(1, 90), st.integers(0, 99),
)  # fmt: skip
def test_windows_hold_consecutive_rows_from_a_stored_carry(
    E: int, length: int, every: int, burn_in: int, spare: int, steps: int, prioritized: bool, lost: int, seed: int
) -> None:
    """Never beyond the write head nor before the oldest row, after any number of wraps and when worlds were lost."""
    burn_in = min(burn_in, length - 1)
    every = min(every, length - burn_in)
    room = length + every + spare
    lives, shown = Lives(E, seed, longest=8), []
    memory = sequences(
        E,
        max_size=room * E,
        sequence_length=length,
        carry_every=every,
        burn_in=burn_in,
        prioritized=prioritized,
        seed=seed,
    )
    for step in range(steps):
        shown.append(lives.row())
        memory.update(shown[-1])
        if step == lost:
            shown.append(lives.interrupt())
            memory.interrupt(shown[-1])
    expected = windows(memory) if prioritized else teaching(memory, lives)
    if not expected:
        return
    assert set(pairs(memory, memory.draw(400))) == expected
    keys = sorted(expected)
    batch = memory.batch(Drawn(memory.index(*np.array(keys).T)))
    assert batch.burn_in == burn_in
    assert batch.mask.shape == (len(keys), length)
    for b, (t, e) in enumerate(keys):
        rows = shown[t : t + length]
        np.testing.assert_array_equal(batch.carry["h"][b], rows[0].carry["h"][e])
        np.testing.assert_array_equal(
            batch.obs["obs"][b], [row.obs["obs"][e] for row in rows] + [rows[-1].next_obs["obs"][e]]
        )
        np.testing.assert_array_equal(
            batch.is_first[b], [row.is_first[e] for row in rows] + [rows[-1].next_is_first[e]]
        )
        np.testing.assert_array_equal(batch.mask[b], [i >= burn_in and row.mask[e] for i, row in enumerate(rows)])
        for name in ("action", "reward", "terminated"):
            np.testing.assert_array_equal(getattr(batch, name)[b], [getattr(row, name)[e] for row in rows])
        lived = lives.lived[e][t : t + length]
        np.testing.assert_array_equal(batch.truncated[b], [bool(row and row.truncated) for row in lived])
    assert (batch.discount == np.float32(0.99)).all()


def test_windows_are_drawn_uniformly() -> None:
    lives, memory = Lives(2, seed=1, longest=3), sequences(burn_in=5, carry_every=1)
    for _ in range(70):
        memory.update(lives.row())
    expected = teaching(memory, lives)
    assert expected < windows(memory), "some have nothing to learn from"
    counts = dict.fromkeys(expected, 0)
    for key in pairs(memory, memory.draw(5000)):
        counts[key] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


def test_where_no_window_teaches_anything_a_batch_is_masked() -> None:
    """An agent that waits for its world, for longer than the memory reaches back."""
    lives, memory = Lives(1), sequences(1, batch_size=4)
    for _ in range(40):
        memory.update(dataclasses.replace(lives.row(), next_is_first=np.ones(1, bool)))
    assert not memory.sample().mask.any()


REPLAYED = {"agent__algorithm": {"name": "DQN", "training_start_step": 100}, "agent__memory__name": "SequenceReplay"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"carry_every": 6, "burn_in": 15}, r"carry_every 6 is more than the 5 steps .*\(sequence_length 20 - burn_in 15\).*at most 5"),
        ({"carry_every": 50, "sequence_length": 5}, "carry_every 50 is more than the 5 steps"),
        ({"batch_size": 101}, "training_start_step: 100 frames of warm-up hold no batch of 101: at least 101"),
        ({"sequence_length": 26, "batch_size": 200}, "hold no 26 steps of each of 4 worlds: at least 200"),
    ],
)  # fmt: skip
def test_what_can_not_be_learned_from_is_refused(changes: dict[str, Any], message: str) -> None:
    make_spec(**REPLAYED, agent__memory__carry_every=5, agent__memory__burn_in=15)
    with pytest.raises(SpecError, match=message):
        make_spec(**REPLAYED, **{f"agent__memory__{key}": value for key, value in changes.items()})


@pytest.mark.parametrize(("every", "size"), [(1, 2 * 4 * 64), (10, 2 * 4 * 64 // 10)])
def test_the_forecast_counts_the_carries(every: int, size: int) -> None:
    """An LSTM's are two of float32 [64]."""
    spec = make_spec(**REPLAYED, agent__memory__carry_every=every, agent__net__core={"name": "LSTM", "hidden_size": 64})
    world = World(4, {"obs": spaces.Box(-1, 1, (4,))}, spaces.Discrete(2))
    assert SequenceReplay.beside(spec, world) == size + 1


@pytest.mark.parametrize("n", [1, 3, 5])
def test_n_steps_end_with_episode_and_window(n: int) -> None:
    """For each row to be learned from: sum, discount, and where in the window the value after is read."""
    gamma, lives = 0.9, Lives(2, seed=n, longest=9)
    memory = sequences(n_step=n, gamma=gamma, sequence_length=8)
    cut = 0
    for step in range(60):
        if step == 30:
            memory.interrupt(lives.interrupt())
            continue
        memory.update(lives.row())
        if step % 9 != 8 or not teaching(memory, lives):
            continue
        drawn = memory.draw(60)
        batch = memory.batch(drawn)
        assert (batch.after is None) == (n == 1)
        for b, i in np.argwhere(batch.mask).tolist():
            t, e = (int(x[b]) for x in memory.where(drawn.at))
            total, m, terminated, truncated = n_steps(lives.lived[e], t + i, n, gamma, end=t + 8)
            assert batch.reward[b, i] == pytest.approx(total, rel=1e-6)
            assert batch.discount[b, i] == np.float32(gamma**m)
            assert (batch.terminated[b, i], batch.truncated[b, i]) == (terminated, truncated)
            after = i if batch.after is None else batch.after[b, i]
            assert after + 1 == i + m
            cut += m < n and not (terminated or truncated)
    assert n == 1 or cut


# --- by priority ---


def weight_of(memory: Any, t: int, env: int) -> float:
    return float(memory.priorities.table.leaf[memory.index(np.array(t), np.array(env))])


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_windows_are_drawn_in_proportion(alpha: float) -> None:
    lives, memory = Lives(3, seed=1), sequences(3, prioritized=True, alpha=alpha, beta=0.7, beta_end=0.7)
    for _ in range(75):
        memory.update(lives.row())
    keys = sorted(windows(memory))
    error = np.random.default_rng(0).exponential(size=len(keys))
    memory.feedback(memory.index(*np.array(keys).T), error)
    chance = (error + EPSILON) ** alpha / ((error + EPSILON) ** alpha).sum()
    drawn = [memory.draw(20) for _ in range(1000)]
    counts = dict.fromkeys(keys, 0)
    for one in drawn:
        for key in pairs(memory, one):
            counts[key] += 1
    assert stats.chisquare(list(counts.values()), 20_000 * chance).pvalue > 0.001
    of = dict(zip(keys, chance, strict=True))
    raw = np.array([(len(keys) * of[key]) ** -0.7 for key in pairs(memory, drawn[0])])
    np.testing.assert_allclose(memory.batch(drawn[0]).weight, raw / raw.max(), rtol=1e-5)


@pytest.mark.parametrize("every", [1, 3, 4])
def test_new_windows_enter_at_the_largest_and_old_ones_go(every: int) -> None:
    E, rng = 2, np.random.default_rng(0)
    lives, memory = Lives(E, seed=1), sequences(E, prioritized=True, alpha=1.0, carry_every=every)
    known: dict[tuple[int, int], float] = {}
    for _ in range(150):
        memory.update(lives.row())
        now = windows(memory)
        kept = {key: weight for key, weight in known.items() if key in now}
        before = max(known.values(), default=1.0)  # the evicted counted still, when all entered in the same step
        for key in now - set(known):
            assert weight_of(memory, *key) in (pytest.approx(max(kept.values(), default=1.0)), pytest.approx(before))
        known = {key: weight_of(memory, *key) for key in now}
        leaf = memory.priorities.table.leaf.copy()
        for key in known:
            leaf[memory.index(*map(np.array, key))] = 0.0
        assert not leaf.any(), "nothing that is gone keeps a weight"
        if known:
            drawn = memory.draw(3)
            error = rng.exponential(size=3)
            memory.feedback(drawn.at, error)
            known = {key: weight_of(memory, *key) for key in now}
            changed = dict(zip(pairs(memory, drawn), error + EPSILON, strict=True))
            assert all(
                known[key] == pytest.approx(changed[key]) for key in changed if pairs(memory, drawn).count(key) == 1
            )


# --- what a net sees ---


class Spy(DQN):
    """Notes the values it acts by, and changes no weight."""

    def act(self, obs: Any, is_first: Any, carry: Any, explore: bool, frame: int) -> Any:
        self.seen = self.net(obs, carry, is_first).heads["q"][:, 0].detach()  # [E, A]
        return super().act(obs, is_first, carry, explore, frame)

    def update(self, batch: Any, frame: int) -> Learned:
        warm = self._warmed(batch)
        q = self.net(warm.obs, warm.carry, warm.is_first, go_on=False).heads["q"].detach()
        self.replayed.append((batch, q))
        return Learned({})


@pytest.mark.parametrize("burn_in", [0, 3])
@pytest.mark.parametrize("core", ["LSTM", "GRU"])
def test_replayed_values_equal_those_acted_by(core: str, burn_in: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With frozen weights, from the stored carry, over ends of episodes, to 1e-6: the hidden state is the acting one."""
    monkeypatch.setattr("slm_lab.agent.algorithm.dqn.DQN", Spy)
    E = 3
    world = World(E, {"obs": spaces.Box(-1, 1, (3,))}, spaces.Discrete(2))
    memory = SequenceReplay.Spec(max_size=90, batch_size=6, sequence_length=9, carry_every=4, burn_in=burn_in)
    algorithm = DQN.Spec(training_frequency=12, training_start_step=40)
    net = MLP.Spec(hid_layers=[8], core={"name": core, "hidden_size": 5})
    agent = build_agent(AgentSpec("test", algorithm, memory, net), world, seed=0)
    agent.algorithm.replayed = []
    worlds = Worlds(world.obs_space, E, end=0.1)
    step, carry, acted = worlds.reset(), agent.initial(E), {}
    for _ in range(100):
        act = agent.act(step, carry)
        for e in range(E):
            acted[step.obs["obs"][e].tobytes()] = agent.algorithm.seen[
                e
            ]  # observations are told apart by their numbers
        after = worlds.step(act.action)
        agent.update(step, carry, act, after)
        step, carry = after, act.carry
    assert len(agent.algorithm.replayed) > 10
    for batch, q in agent.algorithm.replayed:
        assert q.shape[:2] == (6, 10 - burn_in)
        shown = batch.obs["obs"][:, burn_in:-1].flatten(0, 1).numpy()  # of all but the last the agent acted on each
        expected = torch.stack([acted[one.tobytes()] for one in shown]).view(6, 9 - burn_in, 2)
        torch.testing.assert_close(q[:, :-1], expected, atol=1e-6, rtol=0)
    assert any(batch.is_first[:, 1:].any() for batch, _ in agent.algorithm.replayed)
    assert any(batch.carry["critic"]["h"].abs().sum() > 0 for batch, _ in agent.algorithm.replayed)


def test_burn_in_teaches_nothing_but_warms_the_carry() -> None:
    """Rewards of burnt-in steps don't matter, what was seen in them does."""
    lives = Lives(2, seed=2, longest=30)
    memory = replay(SequenceReplay, 2, batch_size=8, sequence_length=8, burn_in=3, carry_every=4)
    net = MLP.Spec(hid_layers=[8], core={"name": "GRU", "hidden_size": 5})
    spec = AgentSpec("test", DQN.Spec(), memory.spec, net)
    for _ in range(40):
        row = lives.row()
        memory.update(row)
    found = map_batch(torch.as_tensor, memory.sample())

    def weights(batch: Any) -> torch.Tensor:
        agent = build_agent(spec, memory.context.world, seed=0)
        carry = {
            part: {name: torch.zeros(8, *leaf.shape[1:]) for name, leaf in held.items()}
            for part, held in agent.initial(8).items()
        }
        agent.algorithm.update(batch.replace(carry=carry), 0)
        return torch.cat([p.detach().ravel() for p in agent.algorithm.net.parameters()])

    plain, reward, obs = weights(found), found.reward.clone(), found.obs["obs"].clone()
    reward[:, :3] += 100
    obs[:, :3] += 1
    assert torch.equal(weights(found.replace(reward=reward)), plain)
    assert not torch.equal(weights(found.replace(obs={"obs": obs})), plain)
