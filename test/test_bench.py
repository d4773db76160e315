"""The benchmark of MemoryTask: a fair judge, a fair clock, and a table that says no more than was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from bench import memory_task, peers, strategic
from bench.commit import commit
from bench.memory_task import AGENTS, BUDGETS, MODES, _jobs, _parser, graph, main, summary
from bench.race import Job, Ours, Result, evaluate, race, sessions
from slm_lab.env.base import VecEnv
from slm_lab.env.vec import make_env
from slm_lab.lib.types import ActOut, Step, Tree

torch.set_num_threads(1)
JOB = Job("PPO", 4, "HARD", 0, 500, 100)
needs_peers = pytest.mark.skipif(not (find_spec("stable_baselines3") and find_spec("sb3_contrib")), reason="no [bench]")


# ---- the judge -------------------------------------------------------------------------------------------------------


class Says:
    """A learner and player who says what the first observation showed, or always `answer`."""

    def __init__(self, answer: int | None = None) -> None:
        self.answer, self.cues, self.agent = answer, [], self

    def seen(self, env: VecEnv) -> VecEnv:
        return env

    def initial(self, E: int) -> Tree:
        return {"cue": np.zeros(E, np.int64)}

    def act(self, step: Step, carry: Tree, explore: bool = True) -> ActOut:
        assert not explore
        shown = step.obs["obs"][:, 0].astype(np.int64)
        cue = np.where(step.is_first, shown, carry["cue"])
        if step.is_first.any():
            self.cues.append(shown)
        said = cue if self.answer is None else np.full_like(cue, self.answer)
        return ActOut(torch.as_tensor(said), {"cue": cue}, {})


@pytest.mark.parametrize("mode", MODES)
def test_the_judge_asks_for_each_class_equally_often(mode: str) -> None:
    job, knows = replace(JOB, mode=mode), Says()
    assert evaluate(knows, job, 0) == 1.0
    assert knows.cues[0].mean() == 0.5
    assert [evaluate(Says(answer), job, 0) for answer in (0, 1)] == [0.0, 0.0]


def test_every_evaluation_has_new_episodes_and_they_are_the_same_for_all() -> None:
    seen: list[np.ndarray] = []

    class Watches(Says):
        def act(self, step: Step, carry: Tree, explore: bool = True) -> ActOut:
            seen.append(step.obs["obs"])
            return super().act(step, carry, explore)

    for number in (0, 1, 0):
        evaluate(Watches(), JOB, number)
    first, second, again = (np.stack(seen[i : i + JOB.delay]) for i in range(0, 3 * JOB.delay, JOB.delay))
    assert not (first == second).all()
    assert (first == again).all()


# ---- the clock -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pupil:
    """An entrant who knows the task from frame `wakes` to frame `sleeps`; learns every 64 frames."""

    wakes: float = math.inf
    sleeps: float = math.inf
    fails: bool = False

    def absent(self) -> str:
        return ""

    def settings(self, job: Job) -> dict[str, Any]:
        return {"wakes": self.wakes}

    def begin(self, job: Job) -> PupilLearner:
        if self.fails:
            raise ValueError("it overslept")
        return PupilLearner(self)


class PupilLearner:
    def __init__(self, pupil: Pupil) -> None:
        self.pupil, self.frame = pupil, 0

    def seen(self, env: VecEnv) -> VecEnv:
        return env

    def advance(self, until: int) -> None:
        self.frame += 64

    @property
    def agent(self) -> Says:
        return Says() if self.pupil.wakes <= self.frame < self.pupil.sleeps else Says(1)


def frames(pupil: Pupil, job: Job = JOB) -> tuple[list[int], Result]:
    told: list[int] = []
    result = race(pupil, job, lambda frame, score: told.append(frame))
    return told, result


def test_a_session_ends_after_two_evaluations_in_a_row_that_solve() -> None:
    told, result = frames(Pupil(wakes=200))
    assert told == [128, 256, 320], "at the first update after frames 100, 200, 300"
    assert (result.reached, result.frames, result.solved) == (256, 320, True)


def test_one_that_forgets_goes_on_to_its_budget_and_has_not_solved() -> None:
    told, result = frames(Pupil(wakes=200, sleeps=300))
    assert told == [128, 256, 320, 448, 512]
    assert (result.reached, result.solved) == (256, False)


def test_one_that_never_knows_has_infinitely_many_frames() -> None:
    _, result = frames(Pupil())
    assert math.isinf(result.reached)
    assert Result.from_json(result.to_json()) == result


def test_one_that_fails_leaves_the_others_alone() -> None:
    jobs = [(Pupil(fails=True), JOB), (Pupil(wakes=0), replace(JOB, seed=1))]
    last = {job.seed: said for job, said in sessions(jobs, at_once=2)}
    assert "it overslept" in last[0]
    assert last[1].solved


# ---- the agents ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [4, 64])
def test_all_of_ours_see_the_same(delay: int) -> None:
    ours = [entrant for entrant in AGENTS.values() if isinstance(entrant, Ours)]
    worlds = [make_env(entrant._resolved(replace(JOB, delay=delay)).env) for entrant in ours]
    assert len(ours) == 4 and all(world.obs_space == worlds[0].obs_space for world in worlds)
    assert {"obs", "prev_reward"} == set(worlds[0].obs_space)


@pytest.mark.parametrize("delay", BUDGETS)
def test_a_rollout_holds_whole_episodes_at_every_delay(delay: int) -> None:
    job = replace(JOB, delay=delay, budget=12_345)
    ours = AGENTS["GRU-PPO"].settings(job)
    assert ours["env"].items() >= {**job.task, "max_frame": 12_345}.items()
    assert ours["agent"]["algorithm"]["time_horizon"] > 2 * delay
    assert AGENTS["SB3-RecurrentPPO"]._arguments(job)["n_steps"] >= 2 * delay


@pytest.mark.parametrize("name", ["PPO", "GRU-PPO", "LSTM-PPO"])
def test_our_agents_learn_in_a_race(name: str) -> None:
    told, result = frames(AGENTS[name], replace(JOB, budget=2300, every=2300))
    assert 2300 <= told[-1] < 2400
    assert result.seconds > 0


def test_ours_are_judged_through_the_wrappers_of_their_spec() -> None:
    wrapped = Ours(memory_task.SPECS, "gru_memory_task_16", lambda delay: ["env.prev_action=true"])
    learner = wrapped.begin(JOB)
    assert len(learner.env.obs_space) > 1
    assert -1 <= evaluate(learner, JOB, 0) <= 1


@needs_peers
@pytest.mark.parametrize(("name", "rollout"), [("SB3-PPO", 2048), ("SB3-RecurrentPPO", 128)])
def test_peers_go_on_with_their_episodes_and_learn(name: str, rollout: int) -> None:
    learner = AGENTS[name].begin(replace(JOB, delay=48))
    learner.model.n_epochs = 1
    before = [weight.clone() for weight in learner.model.policy.parameters()]
    learner.advance(100)
    assert learner.frame == rollout
    assert any((old != new).any() for old, new in zip(before, learner.model.policy.parameters(), strict=True))
    worlds = learner.model.get_env()
    assert worlds.envs[0].unwrapped._state["t"][0] == rollout % 48, "in the middle of an episode"
    if rollout < 1000:
        learner.advance(100)
        assert learner.frame == 2 * rollout
        assert worlds.envs[0].unwrapped._state["t"][0] == 2 * rollout % 48


@needs_peers
def test_a_peer_is_judged_with_its_own_memory_begun_anew_in_each_episode() -> None:
    peer = AGENTS["SB3-RecurrentPPO"].begin(JOB)
    obs, no = {"obs": np.ones((2, 3), np.float32)}, np.zeros(2, bool)

    def state(first: bool, carry: Tree) -> np.ndarray:
        step = Step(obs, np.zeros(2, np.float32), no | first, no, no, np.zeros(2))
        return peer.act(step, carry, explore=False).carry["state"][0]

    fresh = state(True, peer.initial(2))
    carry = {"state": (fresh, fresh)}
    assert (state(True, carry) == fresh).all()
    assert not (state(False, carry) == fresh).all()


# ---- what is said of it ----------------------------------------------------------------------------------------------


def result(agent: str, delay: int, seed: int, *scores: float) -> Result:
    curve = [((i + 1) * 100, score) for i, score in enumerate(scores)]
    return Result(Job(agent, delay, "HARD", seed, 500, 100), {}, curve, 2.0)


RESULTS = [
    *(result("GRU-PPO", 4, seed, 0.0, 0.96, 1.0) for seed in range(3)),
    result("GRU-PPO", 16, 0, 0.0, 1.0, 1.0),
    *(result("GRU-PPO", 16, seed, 0.0, 0.0, 0.1) for seed in (1, 2)),
    result("PPO", 16, 0, 0.0),
]


def test_the_table_counts_a_seed_that_never_got_there_as_infinitely_late() -> None:
    rows = summary(RESULTS, []).set_index(["agent", "delay"])
    short, long = rows.loc[("GRU-PPO", 4)], rows.loc[("GRU-PPO", 16)]
    assert (short["frames_to_95"], short["solved"], short["mean"], short["fps"]) == (200, 3, 1.0, 150)
    assert (long["frames_to_95"], long["solved"], long["seeds"]) == (math.inf, 1, 3)
    assert long["mean"] == pytest.approx(0.4)
    assert long["std"] == pytest.approx(np.std([1.0, 0.1, 0.1]))


def test_the_graph_is_logarithmic_and_crosses_stand_where_most_seeds_failed() -> None:
    figure = graph(summary(RESULTS, []))
    assert figure is not None
    assert figure.layout.xaxis.type == "log"
    lines = {trace.name: trace for trace in figure.data if trace.name}
    assert list(lines["GRU-PPO"].y) == [200, None]
    crosses = [trace for trace in figure.data if trace.mode == "markers" and trace.name is None and trace.y == (500,)]
    places = [trace.x[0] for trace in crosses]
    assert len(set(places)) == 2, "GRU-PPO and PPO at delay 16, side by side"
    assert places == pytest.approx([16, 16], rel=0.4)
    assert graph(summary([], [])) is None


def test_an_absent_peer_is_said_to_be_absent_and_gets_no_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    assert main(["--agents", "SB3-PPO,sb3-recurrentppo", "--folder", str(tmp_path), "--delays", "4"]) == 0
    said = capsys.readouterr().out
    assert "absent: SB3-PPO" in said and "pip install -e '.[bench]'" in said
    assert not any(line.startswith("│ SB3") for line in said.splitlines())
    absent = summary([], list(AGENTS))
    assert set(absent["agent"]) >= {"SB3-PPO", "SB3-RecurrentPPO"}
    assert absent["mean"].isna().all()


# ---- what is claimed of StrategicMemory ------------------------------------------------------------------------------

CLAIM = strategic.Row("task", "no file", 10, 100, seeds=2, seconds=20.0)
CONTROL = strategic.Row("task, without", "no file", 10, 100, seeds=2, most=0.3)


def found(row: strategic.Row, seed: int, score: float = 1.0, **changes: Any) -> dict[str, Any]:
    """A session that reached the bar, and in all else."""
    then = {"score": score, "kept": 1.0, "seen": 0.9}
    curve = [[25, 0.0], [50, score], [75, score], [100, score]]
    whole = {"row": row.name, "seed": seed, "curve": curve, "seconds": 20.0, "commit": "abc", "then": then}
    return whole | {"later": {**then, "score": 1.0, "frames": 9}} | changes


@pytest.mark.parametrize(
    ("row", "changes", "lacks"),
    [
        (CLAIM, {}, []),
        (CLAIM, {"score": 0.98}, ["return"]),
        (CLAIM, {"curve": [[50, 0.5], [75, 1.0], [100, 1.0]]}, ["return"]),
        (CLAIM, {"seconds": 27.0}, ["seconds"]),
        (replace(CLAIM, seconds=None), {"seconds": 27.0}, []),
        (CLAIM, {"then": {"score": 1.0, "kept": 0.98, "seen": 0.79}}, ["kept", "attended"]),
        (CLAIM, {"later": {"score": 0.4, "kept": 0.98, "seen": 0.0}}, ["kept later", "attended later", "return later"]),
        (replace(CLAIM, seeds=3), {}, ["2 of 3 seeds"]),
        (replace(CLAIM, far=True), {"far": {"1024": 1.0, "8192": 0.98}}, ["longer delays"]),
        (CONTROL, {}, ["above 0.3"]),
        (replace(CONTROL, most=None, claims=False, seeds=3), {}, ["2 of 3 seeds"]),
    ],
)
def test_a_row_is_reached_when_all_of_its_claim_holds_on_every_seed(
    row: strategic.Row, changes: dict[str, Any], lacks: list[str]
) -> None:
    far = {"far": {"1024": 1.0, "8192": 1.0}}
    sessions = [found(row, 0, **far), found(row, 1, **{**far, **changes})]
    assert strategic.missed(row, sessions) == lacks
    said = f"**no**: {', '.join(lacks)}" if lacks else "yes"
    assert strategic.line(row, sessions).split(" | ")[2] == said


@pytest.mark.parametrize(
    ("scores", "later", "fails"),
    [
        ([0.0, 0.3], 0.3, True),
        ([0.0, 0.4, 0.1, 0.3], 0.3, True),  # luck, once
        ([0.0, 0.9, 0.8, 0.1], 0.1, False),  # it had it, and lost it
        ([0.0, 0.0, 0.4], 0.0, False),
        ([0.0, 0.3], 0.9, False),
    ],
)
def test_a_control_fails_when_no_seed_is_above_chance(scores: list[float], later: float, fails: bool) -> None:
    curve = [[25 * i, score] for i, score in enumerate(scores)]
    kept = {"kept": 1.0, "seen": 1.0}
    then, after = ({**kept, "score": score} for score in (scores[-1], later))
    sessions = [found(CONTROL, 0, score=0.0), found(CONTROL, 1, curve=curve, then=then, later=after)]
    sessions[0]["later"]["score"] = 0.0
    assert strategic.missed(CONTROL, sessions) == ([] if fails else ["above 0.3"])


def test_a_row_shows_the_seed_that_speaks_most_against_it() -> None:
    for row, shown in ((CLAIM, "0.20"), (CONTROL, "0.90")):
        sessions = [found(row, 0, score=0.9), found(row, 1, score=0.2)]
        assert strategic.line(row, sessions).split(" | ")[4] == shown


def test_a_seed_that_never_got_there_counts_as_endless() -> None:
    sessions = [found(CLAIM, seed, score=float(seed)) for seed in (0, 1)]
    cells = dict(zip(strategic.COLUMNS, strategic.line(CLAIM, sessions).strip("| ").split(" | "), strict=True))
    assert [cells[name] for name in ("solved", "return", "frames", "CPU s")] == ["1/2", "0.00", "–", "–"]
    assert strategic.line(replace(CLAIM, seeds=3), [*sessions, found(CLAIM, 2)]).split(" | ")[5] == "100 (–)"


@pytest.mark.parametrize("words", [["NoSuchRow"], ["--seeds", "0"], ["--jobs", "0"], ["--jobs", "many"]])
def test_bench_strategic_refuses_what_it_cannot_run(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        strategic.main(words)
    assert words[-1] in capsys.readouterr().err


def test_a_row_is_called_by_its_whole_name_or_by_a_part() -> None:
    assert [row.name for row in strategic._named("MemoryTask 64 HARD")] == ["MemoryTask 64 HARD"]
    assert len(strategic._named("64 HARD")) > 5 and not strategic._named("nothing")


def test_the_page_is_written_from_the_sessions_and_tells_their_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategic, "SESSIONS", tmp_path / "sessions.jsonl")
    monkeypatch.setattr(strategic, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(strategic, "ROWS", [CLAIM, CONTROL])
    strategic.save({("task", 0): found(CLAIM, 0), ("task", 1): found(CLAIM, 1, commit="def-dirty")})
    page = (tmp_path / "page.md").read_text()
    assert "| mixed: abc, def-dirty |" in page and "without" not in page
    (tmp_path / "page.md").unlink()
    strategic.main(["--page"])
    assert (tmp_path / "page.md").read_text() == page
    assert sorted(file.name for file in tmp_path.iterdir()) == ["page.md", "sessions.jsonl"]


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A benchmark of 300 frames, without pictures."""
    monkeypatch.setattr(memory_task, "write_pngs", lambda figures: [])
    words = ["--agents", "gru-ppo", "--delays", "4", "--modes", "hard", "--max-frame", "300"]
    return [*words, "--folder", str(tmp_path / "out")]


def test_the_command_leaves_table_graph_and_sessions_and_goes_on_where_it_was(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "--seeds", "1"]) == 0
    said = capsys.readouterr().out
    assert "╭" in said and "│ GRU-PPO │     4 │ HARD │" in said
    out = tmp_path / "out"
    assert {file.name for file in out.iterdir()} == {"sessions.jsonl", "table.csv", "table.md", "frames_to_solve.html"}
    (line,) = (out / "sessions.jsonl").read_text().splitlines()
    assert Result.from_json(line).frames >= 300
    assert (out / "table.csv").read_text().splitlines()[1].startswith("GRU-PPO,4,HARD,")
    assert (out / "table.md").read_text().splitlines()[2].startswith("| GRU-PPO | 4 | HARD | ")

    assert main([*tiny, "--seeds", "2"]) == 0
    assert "2 sessions, 1 of them done before" in capsys.readouterr().out
    kept, added = (out / "sessions.jsonl").read_text().splitlines()
    assert (kept, Result.from_json(added).job.seed) == (line, 1)

    table = (out / "table.md").read_text()
    assert table.splitlines()[2].endswith(f"| {commit()} |")
    (out / "table.md").unlink()
    assert main(["--page", *tiny[-2:]]) == 0, "all that is there, whatever was asked for"
    assert (out / "table.md").read_text() == table

    changed = line.replace('"clip_eps_spec"', '"clip_eps"')
    (out / "sessions.jsonl").write_text(changed)
    assert main(tiny) == 2
    assert "settings changed" in capsys.readouterr().err
    (out / "sessions.jsonl").write_text("{}")
    assert main(tiny) == 2
    assert "sessions.jsonl, line 1: no session" in capsys.readouterr().err
    (out / "sessions.jsonl").write_text(line.replace('"GRU-PPO"', '"GRU"'))
    assert main(["--page", *tiny[-2:]]) == 2
    assert "there is no agent 'GRU' any more" in capsys.readouterr().err
    assert main(["--page", "--folder", str(tmp_path / "other")]) == 2
    assert "sessions.jsonl isn't there" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_runs_with_other_budgets_have_rows_of_their_own() -> None:
    cut = [replace(result, job=replace(result.job, budget=100)) for result in RESULTS]
    rows = summary([*RESULTS, *cut], [])
    assert len(rows) == 2 * len(summary(RESULTS, []))
    assert set(rows["seeds"]) == set(summary(RESULTS, [])["seeds"])


def test_the_commit_told_is_that_of_the_code_when_the_race_began(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = iter(["begun", "edited", "edited"])
    monkeypatch.setattr("bench.memory_task.commit", lambda: next(commits))
    assert main([*tiny, "--seeds", "2"]) == 0
    lines = (tmp_path / "out" / "sessions.jsonl").read_text().splitlines()
    assert {Result.from_json(line).commit for line in lines} == {"begun"}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--delays 4,x", "'x': a whole number from 1"),
        ("--delays 100000", "no budget is set"),
        ("--seeds 0", "'0': a whole number from 1"),
        ("--modes soft", "invalid choice: 'soft'"),
        ("--agents gru", "unknown agent 'gru'. Did you mean 'GRU-PPO'?"),
        ("--page", "no --folder is named"),
        ("--sedes 3", "unrecognized arguments: --sedes"),
    ],
)
def test_bad_words_are_told(words: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(words.split())
    except SystemExit as end:  # argparse
        code = int(str(end.code))
    assert code == 2
    assert part in capsys.readouterr().err


def test_all_agents_get_the_same_budget() -> None:
    jobs = _jobs(_parser().parse_args(["--delays", "4,8,64", "--seeds", "2"]), list(AGENTS))
    assert len(jobs) == 3 * 2 * 2 * len(AGENTS)
    assert {(job.delay, job.budget) for job in jobs} == {(4, 50_000), (8, 150_000), (64, 400_000)}


def test_a_failed_session_is_told_and_costs_the_exit_code(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake(jobs: list[tuple[Any, Job]], at_once: int) -> Any:
        yield jobs[0][1], (100, 0.5)
        yield jobs[0][1], "its process ended"
        yield jobs[1][1], Result(jobs[1][1], {}, [(300, 1.0)], 1.0)

    monkeypatch.setattr(memory_task, "sessions", fake)
    assert main([*tiny, "--seeds", "2"]) == 1
    said = capsys.readouterr().out
    assert "seed 0: FAILED, its process ended" in said
    assert "1/1" in said, "of those that ended"


def test_the_table_fits_a_page() -> None:
    console = Console(width=memory_task.WIDTH, record=True)
    memory_task._print(summary(RESULTS, []), console)
    assert "…" not in console.export_text()
