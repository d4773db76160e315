"""What can be wrong with an env, said so that it can be mended."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from pydantic import ValidationError

from slm_lab.env.vec import EnvError, EnvSpec, env_problems


@pytest.mark.parametrize(
    ("keys", "path", "words"),
    [
        ({"name": "CartPol-v1"}, "env.name", ["unknown env 'CartPol-v1'", "Did you mean 'CartPole-v1'?"]),
        ({"name": "MemoryTsk"}, "env.name", ["Did you mean 'MemoryTask'?"]),
        ({"name": "CartPole-v9"}, "env.name", ["Did you mean 'CartPole-v1'?"]),
        ({"name": "qqqqqqq"}, "env.name", ["unknown env", "pprint_registry"]),
        ({"name": "no_such_module:Foo-v0"}, "env.name", ["there is no no_such_module.py in"]),
        (
            {"name": "MemoryTask", "dely": 3},
            "env.dely",
            ["takes continuous, delay, difficulty", "Did you mean 'delay'?"],
        ),
        ({"name": "CartPole-v1", "fram_stack": 3}, "env.fram_stack", ["Did you mean 'frame_stack'?"]),
        ({"name": "MemoryTask", "delay": 0}, "env.delay", ["0: a whole number at least 1"]),
        ({"name": "MemoryTask", "delay": 2.5}, "env.delay", ["2.5: a whole number"]),
        ({"name": "MemoryTask", "difficulty": True}, "env.difficulty", ["from 0 to 1"]),
        ({"name": "MemoryTask", "continuous": 1}, "env.continuous", ["true or false"]),
        ({"name": "RepeatPrevious", "k": 60}, "env.k", ["from 1 to 51"]),
        ({"name": "MultiCueRecall", "length": 5}, "env.length", ["too short for 3 cues"]),
        (
            {"name": "FrozenLake-v1", "map_name": "x"},
            "env",
            ["FrozenLake-v1 can't be built", "'map_name': 'x'", "KeyError"],
        ),
        ({"name": "Pendulum-v1", "vectorization": "native"}, "env.vectorization", ["no vector of its own"]),
        ({"name": "test/Reused-v0", "vectorization": "sync"}, "env.vectorization", ["'native' or 'auto' was expected"]),
        ({"name": "FrozenLake-v1", "frame_stack": 3}, "env.frame_stack", ["needs a Box observation", "Discrete(16)"]),
        ({"name": "FrozenLake-v1", "normalize_obs": True}, "env.normalize_obs", ["needs a float Box observation"]),
        ({"name": "CartPole-v1", "hide_obs": [1, 4]}, "env.hide_obs", ["4 is outside", "'obs'", "from 0 to 3"]),
        ({"name": "FrozenLake-v1", "hide_obs": [0]}, "env.hide_obs", ["needs a float vector observation"]),
        ({"name": "BitFlip", "n": 1}, "env.n", ["1: a whole number at least 2"]),
        ({"name": "BitFlip", "normalize_obs": True}, "env.normalize_obs", ["needs a float Box observation"]),
        ({"name": "test/Text-v0"}, "env", ["Text aren't supported", "Box, Discrete, MultiDiscrete, MultiBinary"]),
        (
            {"name": "test/Echo-v0", "kind": "bits"},
            "env",
            ["MultiBinary aren't supported", "Discrete, MultiDiscrete and Box"],
        ),
    ],
)
def test_a_problem_has_a_path_and_a_cure(keys, path, words):
    problems = env_problems(EnvSpec(max_frame=1, **keys))
    assert [problem.path for problem in problems] == [path]
    assert all(word in problems[0].message for word in words), problems[0].message


@pytest.mark.parametrize(
    ("name", "package", "command"),
    [
        ("LunarLander-v3", "Box2D", 'pip install "gymnasium[box2d]"'),
        ("Ant-v5", "mujoco", 'pip install "gymnasium[mujoco]"'),
        ("ALE/Pong-v5", "ale_py", 'pip install "gymnasium[atari]"'),
        ("phys2d/CartPole-v1", "jax", "pip install jax"),
    ],
)
def test_a_missing_package_is_named_with_the_command(name, package, command):
    try:
        __import__(package)
    except ImportError:
        (problem,) = env_problems(EnvSpec(name=name, max_frame=1))
        assert problem.path == "env.name"
        assert command in problem.message
    else:
        pytest.skip(f"{package} is installed here")


def test_all_wrappers_that_do_not_fit_are_told_at_once():
    spec = EnvSpec(name="FrozenLake-v1", max_frame=1, frame_stack=2, normalize_obs=True, clip_obs=1.0, prev_action=True)
    assert [p.path for p in env_problems(spec)] == ["env.normalize_obs", "env.clip_obs", "env.frame_stack"]


@pytest.mark.parametrize(
    "keys",
    [
        {
            "name": "CartPole-v1",
            "sutton_barto_reward": True,
            "frame_stack": 4,
            "prev_action": True,
            "prev_reward": True,
        },
        {"name": "CartPole-v1", "vectorization": "native"},
        {"name": "slm_lab/MemoryTask-v0"},
        {"name": "slm_lab.env.tasks:slm_lab/MemoryTask-v0"},
        {"name": "MemoryTask", "delay": 4, "vectorization": "sync"},
        {"name": "BitFlip", "n": 5, "frame_stack": None, "prev_action": True},
        {"name": "test/WalkSameStep-v0"},
    ],
)
def test_good_specs_have_no_problem(keys):
    assert env_problems(EnvSpec(max_frame=1, **keys)) == []


def test_the_spec_checks_its_own_keys():
    for keys in (
        {"num_envs": 0},
        {"max_frame": "2e5"},
        {"clip_obs": -1.0},
        {"hide_obs": []},
        {"hide_obs": [-1]},
        {"vectorization": "async"},
        {"max_t": 1.5},
    ):
        with pytest.raises(ValidationError):
            EnvSpec(**({"name": "CartPole-v1", "max_frame": 1} | keys))
    with pytest.raises(ValidationError):
        EnvSpec(name="CartPole-v1")


def test_a_world_that_raises_is_named_with_its_step_and_cause(build):
    env = build("test/Faulty-v0", 3)
    env.reset(0)
    env.step(np.zeros(3, int)), env.step(np.zeros(3, int))
    with pytest.raises(
        EnvError, match=r"test/Faulty-v0: world 0 raised RuntimeError at step 3 .* a wheel came off"
    ) as caught:
        env.step(np.zeros(3, int))
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(EnvError, match="RuntimeError in reset: no floor"):
        build("test/Faulty-v0", 1, fault="reset").reset(0)


FAULTS = [
    ("reward", "the reward of world 0 is nan"),
    ("huge", r"the reward of world 0 is 1e\+39"),
    ("obs", "observation 'obs'"),
]


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(("fault", "words"), FAULTS)
def test_numbers_that_are_not_finite_stop_the_run(build, fault, words):
    env = build("test/Faulty-v0", 2, fault=fault)
    env.reset(0)
    env.step(np.zeros(2, int)), env.step(np.zeros(2, int))
    with pytest.raises(EnvError, match=f"{words}.* at step 3"):
        env.step(np.zeros(2, int))


def test_a_world_that_raises_when_closed_spoils_nothing(caplog):
    class Clinging(gymnasium.spec("test/Walk-v0").entry_point):
        def close(self):
            raise RuntimeError("no")

    gymnasium.register("test/Clinging-v0", entry_point=Clinging, disable_env_checker=True)
    assert env_problems(EnvSpec(name="test/Clinging-v0", max_frame=1)) == []
    assert "test/Clinging-v0: close() raised RuntimeError: no" in caplog.text
