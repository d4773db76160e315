"""The memory x-ray, with a core that shows what it recalls: the last K steps, or for ever the first of an episode."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any, Literal

import numpy as np
import pytest
import torch
from rich.console import Console
from small_specs import make_spec
from torch import Tensor

from slm_lab.agent.build import build_agents
from slm_lab.agent.net.core.base import Core, CoreOut, take
from slm_lab.env.vec import make_env
from slm_lab.experiment import evaluate, xray
from slm_lab.experiment.analysis import load_run
from slm_lab.experiment.enjoy import enjoy
from slm_lab.experiment.evaluate import play, random_agent
from slm_lab.experiment.plot import draw_run
from slm_lab.experiment.report import write_report
from slm_lab.experiment.run_dir import RunDir
from slm_lab.experiment.session import Session
from slm_lab.experiment.xray import COLUMNS, EARLIER, EMPTY, Xray, load_episodes, sentences
from slm_lab.experiment.xray_plot import _attention, _retention, _worth, xray_builders
from slm_lab.lib.errors import LabError
from slm_lab.lib.types import ActOut, Step, Tree
from slm_lab.spec.model import SpecModel
from slm_lab.spec.parts import CORE

DELAY, K = 9, 4


class Shelf(Core):
    """Shows the steps that it would hold, the newest with half of the attention; its features are what came in."""

    class Spec(SpecModel):
        name: Literal["Shelf"] = "Shelf"
        keep_first: bool = False
        persist: bool = False

    def __init__(self, spec: Spec, in_size: int) -> None:
        super().__init__()
        self.keep_first, self.persist, self.out_size = spec.keep_first, spec.persist, in_size

    def initial(self, B: int) -> Tree:
        return {"t": torch.full((B,), -1), "begin": torch.zeros(B, dtype=torch.int64), "held": torch.full((B, K), -1)}

    def forward(self, x: Tensor, carry: Tree, is_first: Tensor, at: Any = None, rng: Any = None) -> CoreOut:
        t, begin, held, shown, begins = carry["t"], carry["begin"], carry["held"], [], []
        for first in is_first.unbind(1):
            emptied = first & (not self.persist)
            t, held = torch.where(emptied, 0, t + 1), torch.where(emptied[:, None], -1, held)
            begin = torch.where(first, t, begin)
            place = t % K if not self.keep_first else torch.where(t == begin, 0, 1 + t % (K - 1))
            held = held.scatter(1, place[:, None], t[:, None])
            shown.append(held)
            begins.append(begin)
        step = torch.stack(shown, dim=1)  # [B, T, K]
        weight = torch.where(step >= 0, 1.0, 0.0) + (step == step.amax(2, keepdim=True)) * (step >= 0).sum(2, True)
        extras = {"recall_step": step, "recall_weight": weight / weight.sum(2, True), "recall_worth": -step.float()}
        if self.persist:
            extras["recall_begin"] = torch.stack(begins, dim=1)
        carry = {"t": t, "begin": begin, "held": held}
        return CoreOut(take(x, at), carry, {key: take(leaf, at) for key, leaf in extras.items()})


@pytest.fixture(autouse=True)
def shelf(monkeypatch):
    monkeypatch.setattr(CORE, "_table", {**CORE, "Shelf": f"{__name__}:Shelf"})


MEMORY_TASK = {"name": "MemoryTask", "delay": DELAY}


def trained(tmp_path, core: dict, env: dict | None = None) -> RunDir:
    """A session of 300 frames with an evaluation of 12 episodes at its end."""
    spec = make_spec(
        agent__net={"name": "MLP", "hid_layers": [4], "core": core},
        env={**(env or MEMORY_TASK), "num_envs": 4, "max_frame": 300},
        meta__rigorous_eval=12,
        meta__eval_frequency=300,
    )
    run = RunDir.create(tmp_path, spec.name, {"name": spec.name, **spec.dump()}, "train")
    Session(spec, run, 0, lambda progress: None).run()
    return run


FIFO, FIRST = {"name": "Shelf"}, {"name": "Shelf", "keep_first": True}


@pytest.mark.parametrize(("core", "kept", "attention"), [(FIFO, 0.0, 0.0), (FIRST, 1.0, 1 / 8)])
def test_figures_of_the_last_evaluation(tmp_path, core, kept, attention):
    run = trained(tmp_path, core)
    found = json.loads((run.info / "test_t0_s0_session_xray.json").read_text())
    cue = found["cue"]
    assert (found["episodes"], found["slots"], cue["episodes"]) == (12, K, 12)
    assert (cue["kept"], cue["attention"]) == pytest.approx((kept, attention))
    assert (cue["kept_by_chance"], cue["attention_if_even"]) == pytest.approx((K / DELAY, 1 / K))
    assert set(cue["by_target"]) == {"0", "1"}
    assert sum(one["episodes"] for one in cue["by_target"].values()) == 12
    row = load_run(run.path).evaluation[0].iloc[-1]
    assert (row["cue_kept"], row["cue_attention"]) == pytest.approx((kept, attention))


def test_what_outlives_the_episode_is_no_step_of_this_one(tmp_path):
    run = trained(tmp_path, {**FIRST, "persist": True})
    file = run.info / "test_t0_s0_session_xray.json"
    cue = json.loads(file.read_text())["cue"]
    assert (cue["kept"], cue["attention"]) == pytest.approx((1.0, 1 / 8))
    begins = DELAY + 1  # a row more, in which the next episode begins
    chance = np.mean([K / (begin + DELAY) for begin in (0, begins, 2 * begins)])
    assert cue["kept_by_chance"] == pytest.approx(chance)
    assert draw_run(run.path, png=False)


def test_slots_of_strategic_memory_that_outlive_the_episode():
    spec = make_spec(
        agent__memory={"name": "StrategicMemory", "slots": 2 * DELAY, "retention": "fifo", "persist": True},
        agent__net={"name": "MLP", "hid_layers": [4], "shared": True},
        env={**MEMORY_TASK, "num_envs": 4, "max_frame": 300},
    )
    env, seen = make_env(spec.env), Xray()
    play(build_agents(spec.agent, env.world, seed=0), env, 12, seed=0, xray=seen)
    assert seen.figures()["cue"]["kept"] == 1.0


def test_episodes_are_told_step_by_step(tmp_path):
    run = trained(tmp_path, FIFO)
    episodes = load_episodes(run.info / "test_t0_s0_session_xray.json")
    assert {episode.target for episode in episodes} == {0, 1}  # one of each right answer
    for episode in episodes:
        assert episode.at.tolist() == list(range(DELAY))
        assert sorted(episode.step[0]) == [-1, -1, -1, 0]
        assert sorted(episode.step[-1]) == [5, 6, 7, 8]
        assert (episode.cue == 0).all()
        assert episode.total in (-1.0, 1.0)


def test_pictures_and_report(tmp_path):
    run = trained(tmp_path, FIRST)
    graphs = {path.stem for path in draw_run(run.path, png=False)}
    expected = {f"test_t0_s0_session_graph_xray_{kind}" for kind in ("retention", "attention", "worth")}
    assert expected <= graphs
    page = write_report(run.path).read_text()
    assert "Memory x-ray" in page
    assert "100 % of the cues" in page
    assert all(name in page for name in expected)
    traces = {key: build() for key, build in xray_builders(load_run(run.path)).items()}
    kept = traces["test_t0_s0_session_graph_xray_retention"]
    assert {trace.name for trace in kept.data if trace.mode != "text"} == {"now", "an entry", "the cue, held"}
    lines = next(trace for trace in kept.data if trace.name == "an entry")
    last = load_episodes(run.info / "test_t0_s0_session_xray.json")[0].step[-1]
    assert {f"the entry of step {step}, in slot {slot}" for slot, step in enumerate(last)} <= set(lines.text)
    numbers = next(trace for trace in kept.data if trace.mode == "text")
    held = {(step, slot) for slot, step in enumerate(last)}
    assert held <= {(y, int(text)) for y, text in zip(numbers.y, numbers.text, strict=True)}
    attention = next(t for t in traces["test_t0_s0_session_graph_xray_attention"].data if t.marker.coloraxis)
    assert len(attention.x) == 1 + 2 + 3 + K * (DELAY - 3)  # each entry held at each step


def test_slots_are_told_in_long_episodes_where_numbers_have_room(tmp_path):
    run = trained(tmp_path, FIRST, {"name": "MemoryTask", "delay": 200})
    kept = xray_builders(load_run(run.path))["test_t0_s0_session_graph_xray_retention"]()
    numbers = next(trace for trace in kept.data if trace.mode == "text")
    told = dict(zip(numbers.y, numbers.text, strict=True))
    assert told[0].strip("\u00a0") == "0", "the cue is held longest"
    assert len([y for y in told if y > 190]) == 1, "the newest lie too close for a number each"


def test_a_lost_cue_is_shown_as_lost(tmp_path):
    run = trained(tmp_path, FIFO)
    traces = {key: build() for key, build in xray_builders(load_run(run.path)).items()}
    lost = [t for t in traces["test_t0_s0_session_graph_xray_retention"].data if t.name == "the cue, not held"]
    assert [list(trace.x) for trace in lost] == [list(range(K, DELAY))] * 2


@pytest.mark.parametrize("core", [{"name": "none"}, {"name": "GRU", "hidden_size": 4}])
def test_nothing_of_a_core_that_shows_nothing(tmp_path, core):
    run = trained(tmp_path, core)
    draw_run(run.path, png=False)
    assert "x-ray" not in write_report(run.path).read_text()
    assert not [path for path in run.path.rglob("*") if "xray" in path.name]
    assert not [column for column in load_run(run.path).evaluation[0] if "cue" in column]


def test_a_task_without_a_cue(tmp_path):
    run = trained(tmp_path, FIFO, env={"name": "CartPole-v1"})
    assert json.loads((run.info / "test_t0_s0_session_xray.json").read_text())["cue"] is None
    assert len(load_episodes(run.info / "test_t0_s0_session_xray.json")) == 1
    draw_run(run.path, png=False)
    assert "doesn&#x27;t say what must be remembered" in write_report(run.path).read_text()


def test_enjoy_has_one_too(tmp_path, monkeypatch):
    monkeypatch.setattr("slm_lab.experiment.plot.write_pngs", lambda pictures, timeout: [])
    run, out = trained(tmp_path, FIRST), StringIO()
    enjoy(run, Console(file=out, width=1000), episodes=5)
    assert "100 % of the cues" in out.getvalue()
    assert "test_t0_s0_enjoy_graph_xray_attention.html" in out.getvalue()
    assert "played by enjoy" in write_report(run.path).read_text()


class World:
    """Two worlds with `C` cues, the answer `bit`, and no more than an x-ray asks for."""

    agents: tuple[str, ...] = ()
    num_envs = 2

    def __init__(self, cue: list[list[int]], bit: list[int]) -> None:
        self.cue, self.bit = np.array(cue), np.array(bit)

    def cue_steps(self) -> np.ndarray:
        return self.cue

    def target(self) -> np.ndarray:
        return self.bit


def watch(length: int, cue: list[list[int]], bit: list[int], held: list[list[int]], begin: int = 0) -> Xray:
    """An episode of two worlds in which the same entries are held all along; it began at the count `begin`."""
    seen, world = Xray(), World(cue, bit)
    step = torch.tensor(held)
    shown = {"recall_step": step, "recall_weight": torch.full(step.shape, 0.25), "recall_worth": step.float()}
    shown["recall_begin"] = torch.full((2,), begin)
    for t in range(length):
        ended = np.full(2, t == length - 1)
        seen.look(ActOut(None, {}, {"actor": {"recall_step": 0}, "critic": shown}), world)
        seen.follow(Step({}, np.zeros(2), np.zeros(2, bool), ended, ended, np.zeros(2)), ended, np.ones(2))
    return seen


def test_a_world_that_waits_while_the_last_episode_worth_keeping_ends():
    """Of answers that nobody tells one is kept; then no world is followed any more, that one neither."""
    seen, world = Xray(), World([[], []], [0, 0])
    world.target = lambda: None
    shown = {name: torch.zeros(2, 1) for name in ("recall_step", "recall_weight", "recall_worth")}
    for waits, ends in ((False, False), (True, True), (False, True)):
        seen.look(ActOut(None, {}, {"actor": {**shown, "recall_begin": torch.zeros(2, dtype=torch.int64)}}), world)
        ended, first = np.array([ends, False]), np.array([False, waits])
        seen.follow(Step({}, np.zeros(2), first, ended, np.zeros(2, bool), np.zeros(2)), ended, np.ones(2))
    assert len(seen.episodes) == 1 and seen.count == 2


def test_several_cues_and_those_still_to_come():
    seen = watch(6, cue=[[1, 3, 9], [0, 2, -1]], bit=[0, 1], held=[[1, 3, -1, -1], [2, 4, 1, 3]])
    cue = seen.figures()["cue"]
    assert cue["by_target"] == {
        "0": {"episodes": 1, "kept": 1.0, "attention": 0.5},  # 9 hasn't been shown yet
        "1": {"episodes": 1, "kept": 0.5, "attention": 0.25},
    }
    assert cue["kept"] == 0.75
    assert cue["kept_by_chance"] == pytest.approx((2 / 6 + 4 / 6) / 2)


def test_entries_of_earlier_episodes_are_drawn_apart():
    episode = watch(6, cue=[[0], [0]], bit=[0, 1], held=[[0, 19, 23, -1], [20, 21, 22, 23]], begin=20).episodes
    assert episode[0].step[5].tolist() == [EARLIER, EARLIER, 3, EMPTY]
    assert episode[1].step[5].tolist() == [0, 1, 2, 3]
    for draw, shares in ((_retention, None), (_attention, [0.5] * 6)):
        below = [trace for trace in draw(episode[0], 400) if len(trace.y) and trace.y[0] < 0]
        assert [list(trace.x) for trace in below] == [list(range(6))]
        assert shares is None or list(below[0].marker.color) == shares
        assert not [trace for trace in draw(episode[1], 400) if len(trace.y) and trace.y[0] < 0]
    assert [trace.x for trace in _worth(episode[0], 400) if len(trace.x)] == [(3,)]


def test_an_answer_told_by_absence():
    seen = watch(6, cue=[[0], [0]], bit=[0, 1], held=[[0, 4], [3, 4]])
    assert "can only be told by its absence" in " ".join(sentences(seen.figures()))
    seen = watch(6, cue=[[0], [0]], bit=[0, 1], held=[[0, 4], [0, 4]])
    assert "absence" not in " ".join(sentences(seen.figures()))


def test_long_episodes_are_thinned_out_but_for_the_last_decision():
    length = 9 * COLUMNS + 4
    (episode, _) = watch(length, cue=[[0], [0]], bit=[0, 1], held=[[0], [1]]).episodes
    assert COLUMNS <= len(episode.at) <= 2 * COLUMNS
    assert (episode.at[0], episode.at[-1]) == (0, length - 1)
    assert len(set(np.diff(episode.at)[:-1])) == 1


def test_a_spoilt_file_is_named(tmp_path):
    run = trained(tmp_path, FIFO)
    file = run.info / "test_t0_s0_session_xray.json"
    file.with_suffix(".npz").write_bytes(b"PK no zip")
    with pytest.raises(LabError, match=r"session_xray\.npz can't be read"):
        load_episodes(file)
    draw_run(run.path, png=False)  # only a warning: a picture is never worth a run


def test_an_episode_may_be_as_long_as_its_world_says(monkeypatch):
    monkeypatch.setattr(evaluate, "LONGEST", 50)
    env = make_env(
        make_spec(env={"name": "MemoryTask", "delay": 120, "frame_stack": 2, "max_frame": 1}).env, num_envs=2
    )
    played = play(random_agent(env), env, 4, seed=0, explore=True)
    assert played.lengths.tolist() == [120] * 4
    assert make_env(make_spec(env={"name": "CartPole-v1", "max_t": 77, "max_frame": 1}).env).max_length == 77
    assert (
        make_env(make_spec(env={"name": "CartPole-v1", "vectorization": "sync", "max_frame": 1}).env).max_length == 500
    )


def test_an_endless_world_ends(monkeypatch, caplog):
    monkeypatch.setattr(evaluate, "LONGEST", 50)
    env = make_env(make_spec(env={"name": "MemoryTask", "delay": 120, "max_frame": 1}).env, num_envs=2)
    env.max_length = None
    assert play(random_agent(env), env, 4, seed=0, explore=True).lengths.max() <= 51
    assert "ended at an episode of 50 steps" in caplog.text
    assert xray.percent(0.985) == "98.5 %"
