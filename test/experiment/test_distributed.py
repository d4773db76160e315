"""Rollout workers: what they play is what the learner gets, whoever dies; and it is one learning path."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray
import torch
from fake_ray import Actor, FakeRay
from small_specs import MEMORIES, ROOT, make_spec

from slm_lab.agent.build import build_agent
from slm_lab.agent.memory.onpolicy import OnPolicyBatchReplay
from slm_lab.env.base import EnvError
from slm_lab.env.vec import make_env
from slm_lab.experiment.distributed import crew, replay
from slm_lab.experiment.distributed.worker import ACTS, WORLDS, Worker, joined, lived
from slm_lab.experiment.run_dir import RunDir
from slm_lab.experiment.session import TRAIN_WORLDS, Session
from slm_lab.experiment.tracker import WALL
from slm_lab.lib.errors import LabError
from slm_lab.lib.rng import Rng, world_seed
from slm_lab.lib.tree import to_numpy, tree_leaves
from slm_lab.lib.types import Row
from slm_lab.spec.lab_spec import LabSpec
from slm_lab.spec.search import check_search

WORKERS = {"meta__distributed": {"workers": 2}}
RECURRENT: dict[str, Any] = {
    **WORKERS,
    "agent__net": {"name": "MLP", "hid_layers": [8], "shared": True, "core": {"name": "GRU", "hidden_size": 8}},
    "env": {"name": "MemoryTask", "delay": 5, "num_envs": 4, "max_frame": 600, "prev_action": True},
}
EPISODIC = {
    **WORKERS,
    "agent__algorithm": {"name": "REINFORCE", "training_frequency": 3},
    "agent__memory": {"name": "OnPolicyReplay"},
}
PER: dict[str, Any] = {
    **WORKERS,
    "agent__algorithm": {"name": "DoubleDQN", "training_frequency": 4, "training_start_step": 100},
    "agent__memory": {"name": "PrioritizedReplay", "max_size": 400, "batch_size": 16, "n_step": 3},
    "env__max_frame": 900,
}
STRATEGIC: dict[str, Any] = {  # what learns beside holds more than weights, and stays with the learner
    **WORKERS,
    "agent__algorithm": {"name": "PPO", "time_horizon": 4, "minibatch_size": 16, "training_epoch": 1},
    "agent__memory": MEMORIES["StrategicMemory"],
    "agent__net": {"name": "MLP", "hid_layers": [], "shared": True},
    "agent__auxiliary": [{"name": "RND", "coef": 0.1}],
    "env": {"name": "MemoryTask", "delay": 5, "num_envs": 4, "max_frame": 600},
}
KINDS = {"recurrent": RECURRENT, "episodic": EPISODIC, "per": PER, "strategic": STRATEGIC}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers and replay in this process: the real Ray is for the tests that kill."""
    fake = FakeRay()
    monkeypatch.setattr(crew, "ray", fake)
    monkeypatch.setattr(replay, "ray", fake)


def begun(tmp_path: Path, spec: LabSpec) -> Session:
    run = RunDir.create(tmp_path, spec.name, {"name": spec.name, **spec.dump()}, "train")
    session = Session(spec, run, 0, lambda progress: None)
    session.begin()
    return session


def play_on(session: Session) -> None:
    while session.play_for(60):
        pass


def watched(session: Session) -> list[Row]:
    """The rows that the learner's memory gets from now on."""
    memory, rows = session.agent.memory, []  # type: ignore[union-attr]
    update = memory.update

    def noted(row: Row) -> None:
        rows.append(row)
        update(row)

    memory.update = noted  # type: ignore[method-assign]
    return rows


def assert_equal(a: Any, b: Any) -> None:
    mine, other = dict(tree_leaves(a)), dict(tree_leaves(b))
    assert mine.keys() == other.keys()
    for key in mine:
        np.testing.assert_array_equal(mine[key], other[key], err_msg=key)


def assert_seamless(rows: list[Row]) -> None:
    """Each row begins where the one before it has led, and after an end nobody plays until a first observation."""
    for row, following in pairwise(rows):
        assert_equal(row.next_obs, following.obs)
        np.testing.assert_array_equal(row.next_is_first, following.is_first)
        ended = row.mask & (row.terminated | row.truncated)
        assert following.next_is_first[ended].all()


# --- what a worker plays ---


def test_what_workers_play_is_what_an_agent_plays_in_their_worlds() -> None:
    """Row for row, carries included, over two chunks; joined in the order of the workers."""
    spec = make_spec(**RECURRENT)
    learner = build_agent(spec.agent, make_env(spec.env).world, seed=3)
    weights = learner.algorithm.net.state_dict()
    workers = [Worker(spec.dump(), os.getcwd(), 7, index, 0) for index in range(2)]
    for worker in workers:
        worker.begin()
    chunks = [joined([worker.play(weights, 0, 0, steps) for worker in workers]) for steps in (9, 4)]
    found = [step for chunk in chunks for step in lived(chunk)]
    assert len(found) == 13

    for index in range(2):
        env, own = make_env(spec.env, num_envs=2), slice(2 * index, 2 * index + 2)
        learner.algorithm.rng = Rng(7, index, 0, ACTS)
        step, carry = env.reset(world_seed(7, index, 0, WORLDS)), learner.initial(2)
        for seen, before, act, following in found:
            mine = learner.act(step, carry)
            next_step = env.step(mine.action.cpu().numpy())
            assert_equal({k: v[own] for k, v in seen.obs.items()}, step.obs)
            for (_, a), (_, b) in zip(tree_leaves(before), tree_leaves(carry), strict=True):
                np.testing.assert_array_equal(a[own], b)
            np.testing.assert_array_equal(act.action[own], mine.action)
            np.testing.assert_array_equal(act.extras["log_prob"][own], mine.extras["log_prob"])
            for name in ("reward", "raw_reward", "terminated", "truncated", "is_first"):
                np.testing.assert_array_equal(getattr(following, name)[own], getattr(next_step, name))
            step, carry = next_step, mine.carry


def test_a_worker_that_takes_the_place_of_another_leads_over_to_its_own_episodes() -> None:
    spec = make_spec(**RECURRENT)
    weights = build_agent(spec.agent, make_env(spec.env).world, seed=3).algorithm.net.state_dict()
    lost = Worker(spec.dump(), os.getcwd(), 7, 0, 0)
    lost.begin()
    *_, (_, _, _, last) = lived(lost.play(weights, 0, 0, 3))
    taken = list(lived(Worker(spec.dump(), os.getcwd(), 7, 0, 1).play(weights, 0, 0, 6, last)))
    assert len(taken) == 6, "as many rows as were ordered"
    step, _, _, first = taken[0]
    assert_equal(step.obs, last.obs)
    assert first.is_first.all() and not (first.terminated | first.truncated).any(), "nobody played that row"
    assert all(not leaf.any() for _, leaf in tree_leaves(taken[1][1])), "a new episode, and nothing remembered"


@pytest.mark.parametrize("name", ["SAC", "TD3"])
def test_a_worker_acts_by_chance_until_the_learner_has_learned(name: str) -> None:
    """Not for ever: a copy that acts takes no gradient steps of its own."""
    net = {"name": "MLP", "hid_layers": [16], "head_hid_layers": [16]}
    replay = {"name": "Replay", "max_size": 1000, "batch_size": 16}
    env = {"name": "Pendulum-v1", "num_envs": 2, "max_frame": 10_000}
    algorithm = {"name": name, "training_start_step": 100}
    changes = {"agent__algorithm": algorithm, "agent__memory": replay, "agent__net": net, "env": env}
    worker = Worker(make_spec(**changes, meta__distributed={"workers": 2}).dump(), os.getcwd(), 0, 0, 0)
    worker.begin()
    weights = worker.agent.algorithm.net.acting_state()
    last = [name for name in weights if name.startswith("heads.policy.") and name.endswith(".bias")][-1]
    weights[last] = torch.full_like(weights[last], 5.0)
    if name == "SAC":
        weights[last][1] = -20.0  # log deviation
    before, after = (worker.play(weights, opt_step, 200, 60)["done"]["action"] for opt_step in (0, 1))
    assert -1 <= before.min() < -0.5 and before.max() < 0.999, "uniform"
    assert (after > 0.5).mean() > 0.95, "as the weights say"


# --- sessions ---


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_equal_numbers_and_no_frame_is_lost(tmp_path: Path, here: None, kind: str) -> None:
    spec, found = make_spec(**KINDS[kind]), []
    for again in range(2):
        session = begun(tmp_path / str(again), spec)
        rows = watched(session)
        play_on(session)
        assert_seamless(rows)
        frames = sum(int(row.mask.sum()) for row in rows)
        assert session.frame == frames and spec.env.max_frame <= frames < spec.env.max_frame + spec.env.num_envs
        if kind == "per":
            memory = session.agent.memory.state_dict()  # type: ignore[union-attr]
            assert memory["rows"]["count"] == len(rows), "what was counted went in, and nothing else"
            assert session.agent.opt_step == (frames - 100) // 4, "the local gate's pace"
            assert len(np.unique(memory["priorities"])) > 50, "each learned row has a priority of its own"
        session.finish()
        (table,) = session.run_dir.info.glob("*_session_df_train.csv")
        found.append(pd.read_csv(table).drop(columns=list(WALL)))
    pd.testing.assert_frame_equal(*found, check_exact=True)
    assert found[0]["loss"].notna().any()


def test_a_round_is_what_its_workers_play_by_the_newest_weights(tmp_path: Path, here: None) -> None:
    """Two rounds: with the first weights, and with those learned from the first."""
    spec = make_spec(**RECURRENT)
    session = begun(tmp_path, spec)
    rows, horizon = watched(session), spec.agent.algorithm.time_horizon
    workers = [Worker(spec.dump(), os.getcwd(), world_seed(session.seed, TRAIN_WORLDS), index, 0) for index in range(2)]
    for worker in workers:
        worker.begin()
    expected: list[Any] = []
    for _ in range(2):
        weights = {k: v.clone() for k, v in session.agent.algorithm.net.state_dict().items()}  # type: ignore[union-attr]
        expected += lived(joined([worker.play(weights, 0, session.frame, horizon) for worker in workers]))
        before = session.agent.opt_step
        for _ in range(horizon):
            assert session.agent.opt_step == before, "it learns once the horizon is full, from that alone"
            session._advance()
        assert session.agent.opt_step > before
    for row, (_, carry, act, following) in zip(rows, expected, strict=True):
        assert_equal(row.next_obs, following.obs)
        assert_equal(row.carry, to_numpy(carry))
        np.testing.assert_array_equal(row.action, act.action)
        np.testing.assert_array_equal(row.extras["log_prob"], act.extras["log_prob"])
    assert any(not np.array_equal(row.action[:2], row.action[2:]) for row in rows), "each draws actions of its own"
    session.finish()


def played_with_a_death(session: Session, kill: Callable[[crew.Post], Any]) -> list[Row]:
    """A worker dies after frame 200 of a run, which ends as it should; the rows from then on."""
    rows = watched(session)
    while session.frame < 200 or session.source.ready:  # type: ignore[attr-defined]
        session._advance()
    before = len(rows)
    kill(session.source.posts[1])  # type: ignore[attr-defined]
    play_on(session)
    assert session.finish().status == "done"
    assert session.frame == sum(int(row.mask.sum()) for row in rows) >= session.max_frame
    assert_seamless(rows)
    assert session.tracker.epi > 0
    return rows[before:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_dies_is_replaced(tmp_path: Path, here: None, kind: str, caplog: Any) -> None:
    session = begun(tmp_path, make_spec(**KINDS[kind]))
    first, second, *_ = played_with_a_death(session, lambda post: setattr(post.actor, "dead", True))
    assert not first.mask[2:].any() and second.mask[2:].all(), "its worlds begin new episodes at once"
    assert first.mask[:2].any() or second.mask[:2].any(), "the others' go on"
    assert caplog.text.count("died: another one takes its place") == 1
    assert session.source.posts[1].life == 1  # type: ignore[attr-defined]


def test_one_that_always_dies_ends_the_run(tmp_path: Path, here: None, monkeypatch: Any) -> None:
    session = begun(tmp_path, make_spec(**WORKERS))
    monkeypatch.setattr(Actor, "dead", property(lambda actor: True, lambda actor, dead: None), raising=False)
    with pytest.raises(LabError, match="rollout worker 0 died 3 times before it sent anything"):
        session._advance()


def test_without_its_replay_a_run_goes_on_from_the_last_checkpoint(tmp_path: Path, here: None) -> None:
    session = begun(tmp_path, make_spec(**PER))
    while session.agent.opt_step < 3:
        session._advance()
    session.agent.memory.keeper.dead = True  # type: ignore[union-attr]
    with pytest.raises(LabError, match="train@latest"):
        play_on(session)


@pytest.mark.learn
@pytest.mark.timeout(900)
def test_a_process_that_is_killed_is_replaced(tmp_path: Path, caplog: Any) -> None:
    """With Ray: its start, and a worker's in its place, take most of the time."""
    session = begun(tmp_path, make_spec(**PER))
    played_with_a_death(session, lambda post: os.kill(post.pid, signal.SIGKILL))
    assert caplog.text.count("died: another one takes its place") == 1
    assert not ray.is_initialized(), "it ends with the session that started it"


@pytest.mark.parametrize("kind", ["recurrent", "per"])
def test_a_stopped_run_goes_on_with_the_learner_whole(tmp_path: Path, here: None, kind: str, caplog: Any) -> None:
    spec = make_spec(**KINDS[kind])
    session = begun(tmp_path, spec)
    while session.frame < 300:
        session._advance()
    session.stop = True
    assert session.finish().status == "stopped"
    again = Session(spec, session.run_dir, 0, lambda progress: None)
    again.begin()
    assert again.frame == session.frame and again.agent.opt_step == session.agent.opt_step > 0
    for (_, a), (_, b) in zip(again.agent.named_parameters(), session.agent.named_parameters(), strict=True):
        assert torch.equal(a, b)
    assert caplog.text.count("goes on from new episodes") == 1
    rows = watched(again)
    play_on(again)
    assert again.finish().status == "done"
    assert again.frame - session.frame == sum(int(row.mask.sum()) for row in rows)


def test_a_world_that_raises_is_told_as_it_would_be_here(tmp_path: Path, here: None, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "falling_env.py").write_text(
        "import gymnasium\n"
        "class Falls(gymnasium.Wrapper):\n"
        "    def __init__(self): super().__init__(gymnasium.make('CartPole-v1'))\n"
        "    def step(self, action): raise ValueError('the wheel fell off')\n"
        "gymnasium.register('Falls-v0', entry_point=Falls)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    session = begun(tmp_path, make_spec(**WORKERS, env__name="falling_env:Falls-v0"))
    with pytest.raises(EnvError, match="the wheel fell off") as error:
        session._advance()
    assert str(error.value).count("env: ") == 1
    session.env.close()


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"meta__distributed": {"workers": 3}},
            "meta.distributed.workers: 3 workers can't share the 4 worlds of env.num",
        ),
        ({"meta__distributed": {"workers": 8}}, "use one of 1, 2, 4"),
        ({**WORKERS, "env__normalize_obs": True}, "env.normalize_obs: true, but each of meta.distributed's workers"),
        ({"meta__distributed": True}, "give {workers: 2}"),
        ({"meta__distributed": {"workers": 0}}, "meta.distributed.workers: 0 is below 1"),
    ],
)
def test_what_workers_cannot_do_is_refused_in_a_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(LabError) as error:
        make_spec(**changes)
    assert told in str(error.value) and "1 problem" in str(error.value)


def test_worlds_of_several_agents_and_files_are_refused(tmp_path: Path) -> None:
    from slm_lab.spec.distributed import distributed_problems

    spec = make_spec(**WORKERS)
    world = make_env(spec.env).world
    several = type(world)(world.num_envs, world.obs_space, world.action_space, agents=("a", "b"))
    assert "has several" in str(distributed_problems(spec, several)[0])
    object.__setattr__(spec, "env", spec.env.model_copy(update={"dataset": "x.npz"}))
    assert "env.dataset" in str(distributed_problems(spec, world)[0])


def test_a_search_has_no_workers_to_give() -> None:
    spec = make_spec(**WORKERS)
    object.__setattr__(spec, "search", {"agent.algorithm.gamma__uniform": [0.9, 0.99]})
    with pytest.raises(LabError, match="no cores for their rollout workers"):
        check_search({**spec.dump(), "search": spec.search}, spec)


def test_a_local_run_never_imports_ray() -> None:
    code = "import sys, slm_lab.cli, slm_lab.experiment.control; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0


def test_a_horizon_says_what_is_missing() -> None:
    spec = make_spec()
    session_world = make_env(spec.env).world
    memory = build_agent(spec.agent, session_world, seed=0).memory
    assert isinstance(memory, OnPolicyBatchReplay) and memory.missing == spec.agent.algorithm.time_horizon
