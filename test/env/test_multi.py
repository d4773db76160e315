"""Worlds of several agents: each column is what that agent alone would have lived through."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils import seeding

from slm_lab.env.base import EnvError
from slm_lab.env.vec import EnvSpec, env_problems, make_env

pettingzoo = pytest.importorskip("pettingzoo")
from pettingzoo.test import parallel_api_test  # noqa: E402

T = 60


class Duel(pettingzoo.ParallelEnv):
    """Noisy walks of agents that leave at |place| >= 3 (terminated) or together at step 7 (truncated); `c` comes late."""

    metadata = {"name": "duel"}
    possible_agents = ["a", "b", "c"]
    observation_spaces = dict.fromkeys(possible_agents, spaces.Box(1.0, 100.0, (2,), np.float32))
    action_spaces = dict.fromkeys(possible_agents, spaces.Discrete(3, start=-1))

    def __init__(self, wild=None, render_mode=None):
        self.wild, self.render_mode = wild, render_mode
        self.agents, self.place, self.number = [], {}, 0

    def observation_space(self, agent):
        return self.observation_spaces[agent]

    def action_space(self, agent):
        return self.action_spaces[agent]

    def reset(self, seed=None, options=None):
        if seed is not None:
            self.rng, _ = seeding.np_random(seed)
        self.agents, self.number = ["a", "b"], 0
        self.place = {agent: float(self.rng.normal()) for agent in self.possible_agents}
        return self.shown(self.agents), {agent: {} for agent in self.agents}

    def shown(self, agents):
        return {agent: np.array([50 + self.place[agent], 1 + self.number], np.float32) for agent in agents}

    def step(self, actions):
        assert set(actions) == set(self.agents)
        self.number += 1
        for agent, action in actions.items():
            self.place[agent] += action + float(self.rng.normal())
        dead = {agent: abs(self.place[agent]) >= 3 for agent in actions}
        late = dict.fromkeys(actions, self.number >= 7)
        self.agents = [agent for agent in actions if not dead[agent] and not late[agent]]
        if self.number == 2 and self.agents:
            self.agents.append("c")
        reward = {agent: self.place[agent] for agent in actions}
        if self.wild == "reward" and self.number == 3:
            reward[self.agents[-1]] = np.nan
        if self.wild == "raise" and self.number == 3:
            raise RuntimeError("a wheel came off")
        return self.shown({*actions, *self.agents}), reward, dead, late, {agent: {} for agent in actions}

    def render(self):
        return np.zeros((2, 2, 3), np.uint8)

    def close(self):
        pass


@pytest.fixture
def module(monkeypatch):
    """module(parallel_env) -> the env.name of a module that has it."""

    def register(parallel_env=Duel):
        made = ModuleType("worlds_of_the_test")
        made.parallel_env = parallel_env
        monkeypatch.setitem(sys.modules, made.__name__, made)
        return f"pettingzoo:{made.__name__}"

    return register


def build(name, num_envs=1, **keys):
    return make_env(EnvSpec(name=name, num_envs=num_envs, max_frame=1, **keys))


def reference(seed, actions, max_t=None):
    """One world played by a naive loop: for each agent its rows (obs, reward, terminated, truncated, is_first)."""
    env, blank, number = Duel(), np.ones(2, np.float32), 0
    obs, _ = env.reset(seed=seed)
    over, rows = False, [[(obs.get(agent, blank), 0.0, False, False, True)] for agent in env.possible_agents]
    for action in actions:
        if over or not env.agents:
            obs, _ = env.reset()
            over, number, played = False, 0, ()
        else:
            played, number = tuple(env.agents), number + 1
            chosen = {agent: action[env.possible_agents.index(agent)] - 1 for agent in played}
            obs, reward, terminated, truncated, _ = env.step(chosen)
            over = number == max_t
        for agent, told in zip(env.possible_agents, rows, strict=True):
            if agent in played:
                told.append((obs[agent], reward[agent], terminated[agent], truncated[agent] or over, False))
            else:
                told.append((obs.get(agent, blank), 0.0, False, False, True))
    return rows


def play(env, seed, actions):
    return [env.reset(seed), *(env.step(action.ravel()) for action in actions)]


def same(one, two):
    for field in one.__dataclass_fields__:
        a, b = getattr(one, field), getattr(two, field)
        np.testing.assert_array_equal(a["obs"] if field == "obs" else a, b["obs"] if field == "obs" else b)


@pytest.mark.parametrize("max_t", [None, 2, 4])
@pytest.mark.parametrize("num_envs", [1, 4])
def test_each_column_is_what_its_agent_lives_through_alone(module, num_envs, max_t):
    actions = np.random.default_rng(0).integers(3, size=(T, num_envs, 3))
    env = build(module(), num_envs, max_t=max_t)
    assert env.agents == env.world.agents == ("a", "b", "c")
    assert env.num_envs == 3 * num_envs
    steps, ends, waits = play(env, 5, actions), set(), 0
    for world in range(num_envs):
        for agent, rows in enumerate(reference(5 + world, actions[:, world], max_t)):
            for number, (step, row) in enumerate(zip(steps, rows, strict=True)):
                column = world * 3 + agent
                obs, reward, terminated, truncated, is_first = row
                np.testing.assert_array_equal(step.obs["obs"][column], obs)
                assert step.raw_reward[column] == reward
                assert step.reward[column] == np.float32(reward)
                flags = step.terminated[column], step.truncated[column], step.is_first[column]
                assert flags == (terminated, truncated, is_first)
                ends.add(flags[:2])
                waits += bool(number and is_first and rows[number - 1][4])
    assert ends >= {(True, False), (False, True)}  # both kinds of end were met
    assert waits > 10  # and agents that weren't there


def test_arrays_are_fresh(module):
    env = build(module(), 2)
    first = env.reset(0)
    before = first.obs["obs"].copy(), first.is_first.copy()
    for _ in range(20):
        env.step(np.ones(6, int))
    np.testing.assert_array_equal(first.obs["obs"], before[0])
    np.testing.assert_array_equal(first.is_first, before[1])


def test_an_agent_that_has_ended_plays_no_more_though_it_is_listed(module):
    class Two(Duel):
        def step(self, actions):
            obs, reward, dead, late, infos = {}, {}, {}, {}, {}
            for agent in ("a", "b"):
                obs[agent], reward[agent], late[agent], infos[agent] = np.ones(2, np.float32), 1.0, False, {}
                dead[agent] = agent == "a" or self.number >= 2
            self.number += 1
            return obs, reward, dead, late, infos

    steps = play(build(module(Two)), 0, np.ones((6, 1, 3), int))
    assert [step.is_first[:2].tolist() for step in steps] == [
        [True, True], [False, False], [True, False], [True, False], [True, True], [False, False], [True, False]
    ]  # fmt: skip
    assert steps[2].raw_reward.tolist() == [0.0, 1.0, 0.0]


def test_an_agent_that_is_dropped_without_a_flag_is_truncated(module):
    class Hatch(Duel):
        def step(self, actions):
            obs, reward, dead, late, infos = super().step(actions)
            return obs, reward, dict.fromkeys(dead, False), dict.fromkeys(late, False), infos

    actions = np.random.default_rng(0).integers(3, size=(T, 1, 3))
    flagged, bare = (play(build(module(cls)), 5, actions) for cls in (Duel, Hatch))
    for one, other in zip(flagged, bare, strict=True):
        np.testing.assert_array_equal(other.truncated, one.terminated | one.truncated)
        np.testing.assert_array_equal(other.is_first, one.is_first)
    assert any(step.truncated.any() for step in bare)


@pytest.mark.parametrize("stop", [3, 9, 20])
def test_saved_in_the_middle_it_goes_on_alike(module, stop):
    actions = np.random.default_rng(1).integers(3, size=(T, 4, 3))
    name = module()
    env = build(name, 4, max_t=5, prev_action=True, normalize_obs=True)
    play(env, 7, actions[:stop])
    state, other = env.state_dict(), build(name, 4, max_t=5, prev_action=True, normalize_obs=True)
    other.load_state_dict(state)
    for action in actions[stop:]:
        same(env.step(action.ravel()), other.step(action.ravel()))
    with pytest.raises(EnvError, match="4 worlds, not 2"):
        build(name, 2, max_t=5, prev_action=True, normalize_obs=True).load_state_dict(state)


def test_spaces_kept_by_agent_come_back_with_their_generators(module):
    class Own(Duel):
        def __init__(self):
            super().__init__()
            self.observation_spaces = {agent: spaces.Box(1.0, 100.0, (2,), np.float32) for agent in "abc"}
            self.observation_spaces["a"].seed(3)

    env = build(module(Own))
    env.reset(0)
    state = env.state_dict()
    expected = env._worlds[0].observation_spaces["a"].sample()
    other = build(module(Own))
    other._worlds[0].observation_spaces["a"].seed(9)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other._worlds[0].observation_spaces["a"].sample(), expected)


def test_a_wrapped_world_is_opaque(module):
    env = build(module(lambda: pettingzoo.utils.BaseParallelWrapper(Duel())))
    env.reset(0)
    assert env.state_dict() is None
    assert "BaseParallelWrapper.env" in env.opaque


def test_a_wrapper_that_passes_get_state_on_is_opaque_too(module):
    """As PettingZoo's do with whatever they lack: the state of the world within isn't theirs."""

    class Saved(Duel):
        def get_state(self):
            return {}

        def set_state(self, state):
            pass

    class Counting(pettingzoo.utils.BaseParallelWrapper):
        count = 0

    env = build(module(lambda **keys: Counting(Saved(**keys))))
    env.reset(0)
    assert env.state_dict() is None
    assert env.opaque == "Counting.env (Saved)"


def test_what_goes_wrong_names_agent_world_and_step(module):
    name = module()
    for wild, words in (
        ("reward", "the reward of agent c of world 0 is nan at step 3"),
        ("raise", r"world 0 raised RuntimeError at step 3 of its episode, with actions \{'a': .*: a wheel came off"),
    ):
        with pytest.raises(EnvError, match=words):
            play(build(name, 2, wild=wild), 4, np.ones((3, 2, 3), int))


def test_columns_that_show_no_agent_are_not_normalised_by(module):
    class Alike(Duel):
        def shown(self, agents):
            return {agent: np.full(2, 50, np.float32) for agent in agents}

    env = build(module(Alike), 2, normalize_obs=True)
    env.reset(0)
    for _ in range(T):
        step = env.step(np.zeros(6, int))
        np.testing.assert_array_equal((step.obs["obs"] == 0).all(axis=1), ~env.blank)
    assert env.blank.any()
    moments = env.wrapper_state()["normalize_obs"]["obs"]
    assert moments["mean"].tolist() == [50, 50]
    assert moments["var"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("shown", "words"),
    [(np.zeros((2, 1), np.float32), "has shape"), (np.array([True, False]) * 1j, "Cannot cast")],
)
def test_what_is_not_of_its_space_is_refused(module, shown, words):
    class Scrambled(Duel):
        def shown(self, agents):
            return dict.fromkeys(agents, shown)

    with pytest.raises(EnvError, match=rf"world 0, agent a: .*{words}"):
        build(module(Scrambled)).reset(0)


class Unequal(Duel):
    action_spaces = Duel.action_spaces | {"b": spaces.Discrete(2)}


@pytest.mark.parametrize(
    ("world", "keys", "path", "words"),
    [
        (Unequal, {}, "env.name", "action space of b is Discrete(2), of a Discrete(3, start=-1): equal spaces"),
        (Duel, {"render_mode": "human"}, "env.render_mode", "unknown key"),
        (Duel, {"wilde": 1}, "env.wilde", "Did you mean 'wild'?"),
        (Duel, {"vectorization": "native"}, "env.vectorization", "no vector of its own"),
        (None, {}, "env.name", "no parallel_env"),
    ],
)
def test_bad_worlds_are_refused(module, world, keys, path, words):
    name = module(world)
    if world is None:
        del sys.modules["worlds_of_the_test"].parallel_env
    (problem,) = env_problems(EnvSpec(name=name, max_frame=1, **keys))
    assert problem.path == path
    assert words in problem.message


@pytest.mark.parametrize(
    ("module_name", "missing", "words"),
    [
        ("slm_lab.env.tasks.mirror_cue", "pettingzoo", 'pip install -e ".[multiagent]"'),
        ("no_such_zoo.world_v1", None, "there is no no_such_zoo.py in"),
    ],
)
def test_a_missing_package_is_told_with_its_cure(monkeypatch, module_name, missing, words):
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)  # as if it were not installed
        monkeypatch.delitem(sys.modules, module_name, raising=False)
    (problem,) = env_problems(EnvSpec(name=f"pettingzoo:{module_name}", max_frame=1))
    assert problem.path == "env.name"
    assert words in problem.message


def test_worlds_are_drawn_one_by_one(module):
    env = make_env(EnvSpec(name=module(), num_envs=2, max_frame=1), render_mode="rgb_array")
    assert [picture.shape for picture in env.render()] == [(2, 2, 3)] * 2
    assert build(module()).render() == []


def test_mirror_cue_keeps_its_rules():
    from slm_lab.env.tasks.mirror_cue import parallel_env

    parallel_api_test(parallel_env(), 100)
    env = build("pettingzoo:slm_lab.env.tasks.mirror_cue", 32, delay=3)
    step = env.reset(0)
    bit = step.obs["obs"].argmax(1)
    assert env.agents == ("echo", "mirror") and set(bit) == {0, 1}
    assert (bit[0::2] == bit[1::2]).all()
    for _ in range(2):
        step = env.step(np.zeros(64, int))
        assert not step.obs["obs"].any() and not step.raw_reward.any() and not step.terminated.any()
    answer = np.where(np.arange(64) % 2, 1 - bit, bit)  # echo says the bit, mirror the other one
    answer[0] = 1 - answer[0]  # one wrong answer costs both
    step = env.step(answer)
    assert step.raw_reward[:2].tolist() == [-1.0, -1.0]
    assert (step.raw_reward[2:] == 1.0).all() and step.terminated.all()
    with pytest.raises(EnvError, match=r"env\.delay"):
        build("pettingzoo:slm_lab.env.tasks.mirror_cue", delay=0)
