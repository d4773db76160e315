"""Independent learners: each lives its own agent's life, and all of them draw the same steps."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium import spaces
from small_specs import raw_spec
from test_learn_fast import evaluated, trained

from slm_lab.agent import checkpoint
from slm_lab.agent.build import build_agents
from slm_lab.agent.multi import MultiAgent
from slm_lab.env.vec import EnvSpec, make_env
from slm_lab.experiment.run_dir import RunDir
from slm_lab.experiment.session import Session
from slm_lab.experiment.tracker import WALL, Tracker
from slm_lab.lib.errors import SpecError
from slm_lab.lib.tree import tree_leaves, tree_map
from slm_lab.lib.types import Step
from slm_lab.spec.validate import resolve

pettingzoo = pytest.importorskip("pettingzoo")

MIRROR = "pettingzoo:slm_lab.env.tasks.mirror_cue"
SPEC = "specs/multiagent/mirror_cue.json"


class Diary(pettingzoo.ParallelEnv):
    """Noise; agent `a` may end at any step, `b` after 5. Notes each agent's transitions as they happen."""

    possible_agents = ["a", "b"]

    def __init__(self) -> None:
        self.agents, self.diary = [], {"a": [], "b": []}

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(4)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.agents, self.t = ["a", "b"], 0
        self.obs = {agent: self.rng.normal(size=3) for agent in self.agents}
        return dict(self.obs), {}

    def step(self, actions: dict[str, Any]) -> Any:
        self.t += 1
        before, self.obs = self.obs, {agent: self.rng.normal(size=3) for agent in self.agents}
        reward = {agent: float(self.rng.normal()) for agent in self.agents}
        ends = {agent: self.t == 5 or (agent == "a" and self.rng.random() < 0.3) for agent in self.agents}
        for agent, action in actions.items():
            noted = (*before[agent], action, np.float32(reward[agent]), ends[agent], *self.obs[agent])
            self.diary[agent].append(noted)
        self.agents = [agent for agent in self.agents if not ends[agent]]
        return dict(self.obs), reward, ends, dict.fromkeys(ends, False), {}


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> str:
    made = ModuleType("diary_of_the_test")
    made.parallel_env = Diary  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return f"pettingzoo:{made.__name__}"


def parts(learners: str = "independent", **changes: Any) -> Any:
    changes = {"env__name": MIRROR, "env__num_envs": 2, "agent__learners": learners} | changes
    return resolve(raw_spec(**changes), "test").agent


def live(agent: Any, env: Any, steps: int, seed: int = 0) -> None:
    step, carry = env.reset(seed), agent.initial(env.num_envs)
    for _ in range(steps):
        act = agent.act(step, carry)
        after = env.step(act.action.cpu().numpy())
        agent.update(step, carry, act, after)
        step, carry = after, act.carry


def world(name: str, num_envs: int = 3) -> Any:
    return make_env(EnvSpec(name=name, num_envs=num_envs, max_frame=1))


def played(batch: Any, w: int) -> list[tuple[Any, ...]]:
    """The transitions of a world's window, as the diary notes them."""
    return [
        (
            *batch.obs["obs"][w, t],
            batch.action[w, t],
            batch.reward[w, t],
            batch.terminated[w, t],
            *batch.obs["obs"][w, t + 1],
        )
        for t in np.flatnonzero(batch.mask[w].numpy())
    ]


def watched(agent: MultiAgent) -> dict[str, list[Any]]:
    """The batches of each learner, from now on."""
    seen: dict[str, list[Any]] = {name: [] for name in agent.learners}
    for name, learner in agent.learners.items():
        update = learner.algorithm.update

        def noting(batch: Any, frame: int, name: str = name, update: Any = update) -> Any:
            seen[name].append(batch)
            return update(batch, frame)

        learner.algorithm.update = noting  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("core", ["none", "GRU"])
def test_each_learner_holds_what_its_agent_lived_through_and_no_more(diary: str, core: str) -> None:
    env = world(diary)
    agent = build_agents(parts(agent__net__core={"name": core}), env.world, seed=0)
    batches = watched(agent)
    live(agent, env, 64)  # 4 horizons of 16
    for name, held in batches.items():
        for w in range(3):
            rows = [row for batch in held for row in played(batch, w)]
            np.testing.assert_array_equal(np.array(rows), np.array(env._worlds[w].diary[name]))
    noted = {name: sum(len(world.diary[name]) for world in env._worlds) for name in "ab"}
    assert noted["a"] < 0.8 * noted["b"]  # dead agents were met
    assert agent.frame == sum(noted.values())
    assert {learner.frame for learner in agent.learners.values()} == {agent.frame}


def test_learners_begin_different_and_stay_apart() -> None:
    env = world(MIRROR)
    agent = build_agents(parts(), env.world, seed=0)
    echo, mirror = agent.learners.values()
    pairs = list(zip(echo.named_parameters(), mirror.named_parameters(), strict=True))
    assert any(not torch.equal(p, q) for (name, p), (_, q) in pairs if name.endswith("weight"))
    assert not {id(p) for (_, p), _ in pairs} & {id(q) for _, (_, q) in pairs}
    assert not torch.equal(*(torch.rand(3, generator=learner.rng.torch) for learner in (echo, mirror)))
    again = build_agents(parts(), env.world, seed=0)
    assert all(
        torch.equal(p, q) for (_, p), (_, q) in zip(agent.named_parameters(), again.named_parameters(), strict=True)
    )


def test_a_column_is_acted_as_its_learner_would_act_alone(diary: str) -> None:
    env = world(diary)
    agent = build_agents(parts(agent__net__core={"name": "GRU", "hidden_size": 4}), env.world, seed=0)
    step, carry = env.reset(0), agent.initial(env.num_envs)
    for _ in range(12):
        act = agent.act(step, carry, explore=False)
        for column in range(env.num_envs):
            w, name = column // 2, env.agents[column % 2]
            arrays = {field: getattr(step, field) for field in step.__slots__}
            own = tree_map(lambda leaf, w=w: leaf[[w]], carry[name])
            one = Step(**tree_map(lambda leaf, column=column: leaf[[column]], arrays))
            alone = agent.learners[name].act(one, own, explore=False)
            assert alone.action[0] == act.action[column]
            for (_, mine), (_, its) in zip(tree_leaves(alone.carry), tree_leaves(act.carry[name]), strict=True):
                torch.testing.assert_close(mine[0], its[w])
        step, carry = env.step(act.action.cpu().numpy()), act.carry


def test_the_table_has_the_return_of_each_agent() -> None:
    tracker, no = Tracker(4, ("a", "b")), np.zeros(4, bool)
    tracker.update(Step({}, np.zeros(4, np.float32), no, ~no, no, np.array([1.0, 2.0, 3.0, 6.0])), [])
    row = tracker.log(4, 0, 1.0)
    assert (row["total_reward"], row["total_reward_a"], row["total_reward_b"]) == (3.0, 2.0, 4.0)


def test_replays_draw_the_same_steps_of_the_same_worlds() -> None:
    changes = {
        "agent__algorithm": {"name": "DQN", "training_frequency": 4, "training_start_step": 32},
        "agent__memory": {"name": "Replay", "batch_size": 16},
    }
    env = world(MIRROR)
    agent = build_agents(parts(**changes), env.world, seed=0)
    batches = watched(agent)
    live(agent, env, 60)
    echo, mirror = batches["echo"], batches["mirror"]
    assert len(echo) == len(mirror) > 5
    for one, two in zip(echo, mirror, strict=True):
        assert np.array_equal(one.index, two.index)
        assert torch.equal(one.obs["obs"], two.obs["obs"]) and torch.equal(one.reward, two.reward)  # both see the bit
    assert any(not torch.equal(one.action, two.action) for one, two in zip(echo, mirror, strict=True))


@pytest.mark.parametrize("core", ["none", "GRU"])
def test_saved_and_loaded_it_goes_on_alike(tmp_path: Path, core: str) -> None:
    spec = parts(agent__net__core={"name": core})
    agent, other = (build_agents(spec, world(MIRROR).world, seed=0) for _ in range(2))
    live(agent, world(MIRROR), 21)
    checkpoint.save(tmp_path, "agent", agent.state_dict(), agent.frame)
    other.load_state_dict(checkpoint.load(tmp_path, "agent"))
    assert other.frame == agent.frame and other.opt_step == agent.opt_step > 0
    for one in (agent, other):
        live(one, world(MIRROR), 20, seed=5)
    for (name, a), (_, b) in zip(agent.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_in_new_worlds_no_episode_of_the_old_ones_goes_on() -> None:
    changes = {"agent__algorithm": {"name": "DQN", "training_start_step": 100}, "agent__memory": {"name": "Replay"}}
    env = world(MIRROR)
    agent = build_agents(parts(**changes), env.world, seed=0)
    live(agent, env, 6)  # one step into the second episode
    step, carry = env.step(np.zeros(6, int)), agent.initial(6)
    agent.interrupt(step, carry, env.reset(1))
    for learner in agent.learners.values():
        rows, E = learner.memory.rows, np.arange(3)
        assert rows.done(rows.place(rows.count - 2, E))["truncated"].all()
        assert not rows.played(rows.place(rows.count - 1, E)).any()


def test_a_session_dropped_and_resumed_gives_the_same_numbers(tmp_path: Path) -> None:
    keys = {"name": MIRROR, "num_envs": 4, "max_frame": 1500}
    net = {"name": "MLP", "hid_layers": [8], "core": {"name": "GRU", "hidden_size": 8}}
    spec = resolve(raw_spec(env=keys, agent__learners="independent", agent__net=net, meta__rigorous_eval=4), "test")
    runs = [RunDir.create(tmp_path / name, "test", spec.dump() | {"name": "test"}, "train") for name in "ab"]
    whole, dropped, resumed = (Session(spec, run, 0, lambda progress: None) for run in (runs[0], runs[1], runs[1]))
    dropped._begin()
    for _ in range(93):
        dropped._advance()
    dropped._save()
    for session in (whole, resumed):
        session.run()
    one, two = (pd.DataFrame(session.tracker.rows).drop(columns=list(WALL)) for session in (whole, resumed))
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert len(one) > 5 and resumed.began_at == dropped.frame > 0


def test_a_world_of_one_agent_has_no_independent_learners() -> None:
    for name, changes, words in (
        ("one", {"agent__learners": "independent"}, "agent.learners: CartPole-v1 has one agent"),
        ("typo", {"agent__learners": "independant"}, "agent.learners: unknown learners 'independant'"),
    ):
        with pytest.raises(SpecError, match=words):
            resolve(raw_spec(**changes), name)


def test_whoever_sets_the_frame_tells_each_learner(diary: str) -> None:
    """Exploration is scheduled by it, of an agent that is loaded to play too."""
    agent = build_agents(parts(), world(diary).world, seed=0)
    agent.frame = 700
    assert isinstance(agent, MultiAgent)
    assert [learner.frame for learner in agent.learners.values()] == [700, 700]


def test_a_learner_counts_its_own_frames_to_its_first_update() -> None:
    changes = {"agent__algorithm": {"name": "DQN", "training_start_step": 1000}, "agent__memory": {"name": "Replay"}}
    with pytest.raises(
        SpecError, match="training_start_step: the first update would come at frame 1,001, the run ends"
    ):
        parts(**changes)  # 2000 frames are 1000 of each
    parts(**changes, env__max_frame=2002)


def test_two_learners_solve_mirror_cue_where_its_controls_can_not(tmp_path: Path) -> None:
    short = ("env.max_frame=12000", "meta.eval_frequency=12000")

    def score(*overrides: str) -> float:
        return evaluated(trained(tmp_path, SPEC, "independent_mirror_cue", 0, *short, *overrides))

    assert score() >= 0.95
    assert score('agent.net.core={"name": "none"}') <= 0.3
    assert score("agent.learners=shared") <= -0.4
