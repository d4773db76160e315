"""Every task, by being in the table: two equal faces; in memory tasks memory wins, guessing earns what was said."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from slm_lab.env.tasks.base import VecTask
from slm_lab.spec.parts import TASK

# task: arguments, mean return of a uniformly random policy, best mean return without memory (None: no memory task).
CASES = {
    "MemoryTask": ({"delay": 9}, 0.0, 0.0),
    "RepeatPrevious": ({}, -0.5, -0.5),
    "RepeatFirst": ({}, -0.5, -0.5),
    "PassiveTMaze": ({"corridor": 6}, None, 0.5),
    "MultiCueRecall": ({}, 0.25, 0.25),
    "BitFlip": ({"n": 4}, -3.4219, None),
}
MEMORY_TASKS = [name for name, (_, _, memoryless) in CASES.items() if memoryless is not None]


def test_each_task_of_the_table_has_a_case():
    assert set(CASES) == set(TASK)


@pytest.fixture(params=CASES)
def task(request):
    arguments, random_return, memoryless = CASES[request.param]
    return request.param, arguments, random_return, memoryless


memory_task = pytest.mark.parametrize("task", MEMORY_TASKS, indirect=True)


def shown_bytes(step, world):
    return b"".join(value[world].tobytes() for value in step.obs.values())


def rules(task):
    return TASK.load(task[0])(**task[1])


def returns(env, policy, episodes_each):
    """Mean return over the first episodes of each world; `policy(step, t [E])` -> actions [E]."""
    step, total = env.reset(0), 0.0
    time, played = np.zeros(env.num_envs, int), np.zeros(env.num_envs, int)
    while (played < episodes_each).any():
        step = env.step(policy(step, time))
        time = np.where(step.is_first, 0, time + 1)
        total += step.raw_reward[played < episodes_each].sum()
        played += step.terminated | step.truncated
    return total / (episodes_each * env.num_envs)


@pytest.mark.parametrize("max_t", [None, 5])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_two_faces_are_equal(build, task, num_envs, max_t):
    name, arguments, *_ = task
    native = build(name, num_envs, max_t=max_t, **arguments)
    sync = build(name, num_envs, max_t=max_t, vectorization="sync", **arguments)
    rng = np.random.default_rng(0)
    assert native.obs_space == sync.obs_space
    assert native.action_space == sync.action_space
    one, two = native.reset(3), sync.reset(3)
    for _ in range(150):
        for key in one.obs:
            np.testing.assert_array_equal(one.obs[key], two.obs[key])
            assert one.obs[key].dtype == two.obs[key].dtype == native.obs_space[key].dtype
            assert all(native.obs_space[key].contains(value) for value in one.obs[key])
        for field in ("reward", "raw_reward", "is_first", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
            assert getattr(one, field).dtype == getattr(two, field).dtype
        action = rng.integers(native.action_space.n, size=num_envs)
        one, two = native.step(action), sync.step(action)


def test_worlds_of_a_vector_are_different(build, task):
    env = build(task[0], 64, **task[1])
    env.reset(0)
    steps = [env.step(np.zeros(64, int)) for _ in range(env.rules.length)]
    targets = env.target()
    steps += [env.step(np.zeros(64, int)) for _ in range(3)]
    shown = {tuple(shown_bytes(step, world) for step in steps) for world in range(64)}
    assert len(shown) > 1 or len(set(targets.tolist())) > 1


def test_the_same_seed_gives_the_same_worlds_and_episodes_differ(build, task):
    one, two = build(task[0], 2, **task[1]), build(task[0], 2, **task[1])
    two.reset(5), two.step(np.zeros(2, int))
    one.reset(0), two.reset(0)
    classes = set()
    for _ in range(12 * (one.rules.length + 1)):
        a, b = one.step(np.zeros(2, int)), two.step(np.zeros(2, int))
        np.testing.assert_equal(a.obs, b.obs)
        classes.add(one.target()[0])
    assert len(classes - {-1}) > 1


@memory_task
def test_episodes_last_as_long_as_said_and_are_terminated(build, task):
    env = build(task[0], 3, **task[1])
    env.reset(0)
    ends = [env.step(np.zeros(3, int)).terminated.tolist() for _ in range(2 * env.rules.length + 1)]
    assert [all(end) for end in ends] == [i in (env.rules.length - 1, 2 * env.rules.length) for i in range(len(ends))]


@memory_task
def test_knowing_the_right_answer_earns_one(build, task):
    env = build(task[0], 32, **task[1])

    def knows(step, time):
        return np.maximum(env.target(), 0)  # no answer is asked for in a corridor, and 0 walks on

    assert returns(env, knows, 4) == pytest.approx(1.0)


def test_chance_earns_what_the_docstring_says(build, task):
    env, rng = build(task[0], 256, **task[1]), np.random.default_rng(0)
    if task[2] is not None:
        random = returns(env, lambda step, time: rng.integers(env.action_space.n, size=256), 8)
        assert random == pytest.approx(task[2], abs=0.07)
    if task[3] is None:
        return

    def guesses(step, time):
        if task[0] == "PassiveTMaze":
            return np.where(time < env.rules.corridor, 0, rng.choice([1, 3], size=256))
        return np.zeros(256, int)

    assert returns(env, guesses, 8) == pytest.approx(task[3], abs=0.07)


@memory_task
def test_cues_were_shown_where_cue_steps_says(build, task):
    """What the right answer is can be read from the observations at the cue steps alone."""
    name = task[0]
    env = build(name, 8, **task[1])
    shown = [env.reset(0).obs["obs"]]
    begun = env.cue_steps()
    for _ in range(env.rules.length - 1):
        assert name not in ("MemoryTask", "PassiveTMaze") or (env.target() == -1).all(), "asked at the end only"
        shown.append(env.step(np.zeros(8, int)).obs["obs"])
    for world in range(8):
        asked = env.cue_steps()[world]
        cues = [shown[step][world] for step in asked if step >= 0]
        target = env.target()[world]
        if name == "MultiCueRecall":
            size = env.rules.num_symbols
            assert [step for step in range(len(shown)) if shown[step][world][size]] == begun[world].tolist()
            query = shown[-1][world][size + 1 :].argmax()
            assert [i for i in range(len(asked)) if asked[i] >= 0] == [query], "the one asked for"
            assert asked[query] == begun[world][query] and cues[0][:size].argmax() == target
        elif name == "PassiveTMaze":
            assert target == {1.0: 1, -1.0: 3}[cues[0][1]]
        else:
            assert (cues[0] if name.startswith("Repeat") else cues[0][0]) == target


def test_the_plain_env_is_a_good_gymnasium_env(task):
    env = gymnasium.make(f"slm_lab/{task[0]}-v0", **task[1]).unwrapped
    check_env(env, skip_render_check=True)
    assert gymnasium.make(f"slm_lab/{task[0]}-v0", render_mode="ansi").unwrapped.rules.length > 0


def test_no_state_is_shared_between_vectors_of_the_same_rules(task):
    shared = rules(task)
    one, two = VecTask(shared, 2), VecTask(shared, 2)
    first, _ = one.reset(0), two.reset(1)
    one.step(np.zeros(2, int))
    np.testing.assert_equal(VecTask(shared, 2).reset(0).obs, first.obs)
