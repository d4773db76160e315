"""Every kind of space, both ways, in its own dtype."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_lab.env.action import ActionUnits
from slm_lab.env.base import EnvError, leaf_arrays, leaf_spaces


def test_nested_spaces_become_dotted_keys(build):
    env = build("test/Nested-v0", 2)
    dtypes = {"body.bits": np.int8, "body.place": np.float64, "eye.0": np.uint8, "eye.1": np.int64, "pair": np.int64}
    assert set(env.obs_space) == set(dtypes)
    env.reset(0)
    step = env.step(np.array([1, 1]))
    for key, dtype in dtypes.items():
        assert step.obs[key].dtype == dtype
        assert step.obs[key].shape == (2, *env.obs_space[key].shape)
        assert all(env.obs_space[key].contains(value) for value in step.obs[key])
    assert step.obs["eye.0"][0, 0, 0, 0] == 101
    assert step.obs["eye.1"].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["FrozenLake-v1", "RepeatFirst"])
def test_discrete_observations_given_as_python_ints(build, name):
    step = build(name, 3).reset(0)
    assert step.obs["obs"].shape == (3,)
    assert step.obs["obs"].dtype == np.int64


def test_large_numbers_keep_their_dtype():
    space = spaces.Box(0, 2**40, (1,), np.float64)
    assert leaf_arrays(space, np.array([[70000.25]]), 1)["obs"][0, 0] == 70000.25


def test_keys_that_would_collide_are_refused():
    box = spaces.Box(0, 1, (1,))
    with pytest.raises(EnvError, match=r"same dotted path 'a\.b'"):
        leaf_spaces(spaces.Dict({"a.b": box, "a": spaces.Dict({"b": box})}))


def echoed(build, kind, action):
    env = build("test/Echo-v0", len(action), kind=kind)
    env.reset(0)
    return env.step(np.array(action)).obs["obs"]


def test_bounded_box_dimensions_are_minus_one_to_one(build):
    got = echoed(build, "box", [[-1.0, 7.0, 0.0], [1.0, -7.0, 9.0], [-5.0, 0.0, 0.5]])
    np.testing.assert_allclose(got, [[0, 7, 2], [1, -7, 6], [0, 0, 4]])


def test_half_bounded_dimensions_pass_through_up_to_their_bound(build):
    np.testing.assert_allclose(echoed(build, "half", [[-3.0, 4.0, 1.0], [5.0, -4.0, -1.0]]), [[0, 1, 6], [5, -4, -2]])


def test_integer_boxes_are_rounded(build):
    np.testing.assert_array_equal(echoed(build, "whole", [[-1.0, 0.0, 0.99]]), [[0, 5, 10]])


def test_discrete_actions_count_from_zero(build):
    np.testing.assert_array_equal(echoed(build, "discrete", [0, 3])[:, 0], [-2, 1])
    np.testing.assert_array_equal(echoed(build, "multi", [[0, 0, 0], [1, 2, 3]]), [[5, 0, -1], [6, 2, 2]])


def test_the_policys_space_is_what_step_takes(build):
    box = build("test/Echo-v0", kind="box").action_space
    assert box.low.tolist() == [-1, -np.inf, -1]
    assert box.high.tolist() == [1, np.inf, 1]
    assert box.dtype == np.float32
    assert build("test/Echo-v0", kind="discrete").action_space == spaces.Discrete(4)
    assert build("test/Echo-v0", kind="multi").action_space == spaces.MultiDiscrete([2, 3, 4])


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e6, 1e6, width=32), st.floats(0, 1e6, width=32), st.lists(st.floats(-2, 2), min_size=1, max_size=5))
def test_a_stretched_action_never_leaves_the_box(low, width, actions):
    low, high = np.float32(low), np.float32(np.float32(low) + np.float32(width))
    world = spaces.Box(np.array([low]), np.array([high]))
    units = ActionUnits(world)
    got = units.to_world(np.array(actions)[:, None])
    assert all(world.contains(one) for one in got)
    assert units.to_world(np.array([[-1.0], [1.0]])).ravel().tolist() == [low, high]


@pytest.mark.parametrize(
    ("kind", "action", "message"),
    [
        ("discrete", [4], "whole numbers from 0 to 3"),
        ("discrete", [-1], "whole numbers from 0 to 3"),
        ("discrete", [0.5], "whole numbers from 0 to 3"),
        ("discrete", [[0]], r"has shape \(1,\)"),
        ("box", [[0.0, np.nan, 0.0]], "not all finite"),
        ("box", [[0.0, 0.0]], r"has shape \(2,\), \(3,\) was expected"),
    ],
)
def test_actions_that_mean_nothing_are_refused(build, kind, action, message):
    with pytest.raises(EnvError, match=message):
        echoed(build, kind, action)
