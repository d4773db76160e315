"""A run that was killed goes on to the bit: through a checkpoint file, into an env that was never reset."""

from __future__ import annotations

import io

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from slm_lab.env import snapshot
from slm_lab.env.base import EnvError
from slm_lab.spec.parts import TASK

CASES = [
    ("CartPole-v1", {}),
    ("CartPole-v1", {"vectorization": "native"}),
    ("Acrobot-v1", {"max_t": 30}),
    ("Pendulum-v1", {"max_t": 30}),
    ("MountainCar-v0", {"max_t": 30}),
    ("MountainCarContinuous-v0", {"max_t": 30}),
    ("FrozenLake-v1", {}),
    ("Taxi-v4", {"max_t": 30}),
    ("CliffWalking-v1", {"max_t": 30}),
    ("Blackjack-v1", {}),
    ("test/Nested-v0", {}),
    ("test/Reused-v0", {}),
    ("test/ReusedNext-v0", {}),
    *[(name, {}) for name in TASK],
    *[(name, {"vectorization": "sync"}) for name in TASK],
]


def tensors(tree):
    """As a checkpoint does: arrays become tensors, nothing else changes."""
    if isinstance(tree, dict):
        return {key: tensors(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(tensors(value) for value in tree)
    return torch.as_tensor(tree) if isinstance(tree, np.ndarray) else tree


def through_a_file(tree):
    file = io.BytesIO()
    torch.save(tensors(tree), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def play(env, actions):
    return [env.step(action) for action in actions]


def equal(one, two):
    for key in one.obs:
        assert one.obs[key].tobytes() == two.obs[key].tobytes()
        assert one.obs[key].dtype == two.obs[key].dtype
    for field in ("reward", "raw_reward", "terminated", "truncated", "is_first"):
        assert getattr(one, field).tobytes() == getattr(two, field).tobytes(), field


@pytest.mark.parametrize(("name", "keys"), CASES, ids=lambda case: str(case))
@pytest.mark.parametrize("played", [0, 31, 37])
def test_resumed_equals_never_stopped(build, name, keys, played):
    env, other = build(name, 3, **keys), build(name, 3, **keys)
    env.action_space.seed(0)
    actions = [np.stack([env.action_space.sample() for _ in range(3)]) for _ in range(played + 70)]
    env.reset(7)
    play(env, actions[:played])
    state = through_a_file(env.state_dict())
    rest = play(env, actions[played:])
    other.load_state_dict(state)
    for one, two in zip(rest, play(other, actions[played:]), strict=True):
        equal(one, two)


def test_what_can_not_be_saved_is_named(build):
    env = build("test/Simulated-v0", 2, prev_action=True)
    env.reset(0)
    assert env.state_dict() is None
    assert env.opaque == "Simulated.engine (Engine)"


def test_lunar_lander_says_that_it_can_not_be_saved(build):
    pytest.importorskip("Box2D")
    env = build("LunarLander-v3", 2)
    env.reset(0)
    assert env.state_dict() is None
    assert env.opaque == "LunarLander.world (b2World)"


def test_a_state_of_another_env_is_refused(build):
    one, two, three = build("CartPole-v1", 2), build("Acrobot-v1", 2), build("CartPole-v1", 3)
    one.reset(0)
    with pytest.raises(EnvError, match="CartPoleEnv"):
        two.load_state_dict(one.state_dict())
    with pytest.raises(EnvError, match="2 worlds, not 3"):
        three.load_state_dict(one.state_dict())


class Odd(gymnasium.Env):
    """Holds every kind of plain attribute, and draws from its spaces."""

    observation_space = action_space = spaces.Discrete(2)

    def __init__(self):
        self.observation_space = spaces.Dict({"a": spaces.Box(0, 1, (3,)), "b": spaces.Discrete(5)})
        self.rng = np.random.Generator(np.random.MT19937(3))
        self.words, self.half = np.array(["ab", "c"]), np.float16(0.1)
        self.table = {0: [(0.1, np.int32(3), True)], "x": {(1, 2): None}}
        self.callback = lambda: None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def draw(self):
        return self.rng.random(3).tolist(), self.np_random.random(), str(self.observation_space.sample())


def test_generators_spaces_text_and_nested_data_come_back():
    env, other = Odd(), Odd()
    env.reset(seed=1), env.draw()
    env.table["x"][(1, 2)] = 5
    snapshot.restore(other, through_a_file(snapshot.capture(env)))
    assert env.draw() == other.draw()
    assert other.table == env.table
    assert type(other.table[0][0][1]) is np.int32
    assert other.words.tolist() == ["ab", "c"]
    assert other.words.dtype == env.words.dtype
    assert other.half == env.half
    assert type(other.half) is np.float16


class Machine(Odd):
    """Holds what it does next as one of its methods."""

    def __init__(self):
        super().__init__()
        self.act = self.__walk

    def __walk(self):
        return "walks", self

    def wait(self):
        return "waits", self


def test_a_method_in_an_attribute_comes_back_as_the_new_envs_own():
    env, other = Machine(), Machine()
    env.act, other.act = env.act, other.wait
    snapshot.restore(other, through_a_file(snapshot.capture(env)))
    assert other.act() == ("walks", other)
    env.act = env.wait
    snapshot.restore(other, through_a_file(snapshot.capture(env)))
    assert other.act() == ("waits", other)
    env.act = [].append
    with pytest.raises(snapshot.Opaque, match=r"Machine\.act \(builtin_function_or_method\)"):
        snapshot.capture(env)


def test_shared_data_is_not_quietly_split():
    env = Odd()
    env.grid = np.zeros(4)
    env.place = env.grid[1:2]
    with pytest.raises(snapshot.Opaque, match=r"Odd\.place \(shares its data with Odd\.grid\)"):
        snapshot.capture(env)


class Engine:
    """What Python can't see into."""


def test_a_simulator_held_as_env_by_what_is_no_wrapper_is_told():
    env = Odd()
    env.env = Engine()
    with pytest.raises(snapshot.Opaque, match=r"Odd\.env \(Engine\)"):
        snapshot.capture(env)


def test_an_attribute_is_never_left_out_for_its_name():
    """A window of the last prices is no window on a screen."""
    env, other = Odd(), Odd()
    env.window_start, other.window_start = np.int64(5), np.int64(0)
    snapshot.restore(other, through_a_file(snapshot.capture(env)))
    assert other.window_start == 5
    env.clock = Engine()
    with pytest.raises(snapshot.Opaque, match=r"Odd\.clock \(Engine\)"):
        snapshot.capture(env)


class Borrowing(gymnasium.Wrapper):
    """Draws from the generator of the env that it holds."""

    def __init__(self, env):
        super().__init__(env)
        self.rng = env.unwrapped.np_random


def test_what_two_layers_share_is_not_quietly_split():
    with pytest.raises(snapshot.Opaque, match=r"Odd\._np_random \(shares its data with Borrowing\.rng\)"):
        snapshot.capture(Borrowing(Odd()))


def test_a_space_may_have_two_names():
    env = Odd()
    env.same = env.observation_space
    snapshot.restore(env, through_a_file(snapshot.capture(env)))
    assert env.same is env.observation_space


def test_a_set_state_that_raises_is_told_as_the_envs_own_fault(build):
    class Fragile(Odd):
        def get_state(self):
            return {}

        def set_state(self, state):
            return self.body.x

    with pytest.raises(EnvError, match=r"Fragile\.set_state raised AttributeError: .*body.* before any reset"):
        snapshot.restore(Fragile(), snapshot.capture(Fragile()))


def test_a_snapshot_of_arrays_changed_in_place_is_a_copy():
    env = Odd()
    env.reset(seed=1)
    env.grid = np.zeros(4)
    state = snapshot.capture(env)
    env.grid[:] = 1
    snapshot.restore(env, state)
    env.grid[1] = 2
    snapshot.restore(env, state)
    assert env.grid.tolist() == [0, 0, 0, 0]


def test_a_snapshot_is_a_copy(build):
    env = build("MemoryTask", 2)
    env.reset(0)
    state = env.state_dict()
    before = through_a_file(state)
    play(env, np.zeros((40, 2), int))
    for key, array in before["env"]["state"].items():
        np.testing.assert_array_equal(state["env"]["state"][key], array.numpy())
    assert state["env"]["rngs"] == before["env"]["rngs"]
