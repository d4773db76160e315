"""The speed benchmark: who did how much, what a ratio is, and that a peer who isn't there is never beaten."""

from __future__ import annotations

import json
import os
import sys
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from bench import memories, profile, speed, trainings
from bench.commit import machine
from bench.speed import Found, main, page
from bench.turn import workloads
from bench.workload import Sample, Side, Workload

NONE = Side(lambda share: Sample(1.0))
RACE = Workload("race", "a race", "frames/s", {"ours": NONE, "slow": NONE, "fast": NONE}, ratio=2.0)
LIGHT = Workload("light", "RAM", "MB", {"ours": NONE, "peer": NONE}, most=28.0, less=True, missed="it is heavy")
LONELY = Workload("lonely", "alone", "frames/s", {"ours": NONE, "peer": Side(NONE.run, "no_such_package")}, ratio=3.0)
SIZES = Workload("sizes", "it grows", "ms", {"16": NONE, "64": NONE}, axis="delay", less=True)
KNOWN = {workload.name: workload for workload in (RACE, LIGHT, LONELY, SIZES)}


def samples(workload: Workload, work: dict[str, dict[str, float]] | None = None, **values: Any) -> list[dict[str, Any]]:
    """side=[value of each turn]; `work` of a side, all alike where it isn't given."""
    told = {"version": "1.0", "commit": "abc", "date": "2026-11-23", "workload": workload.name}
    done = {"frames": 1000, "updates": 100}
    return [
        {**told, "side": side, "turn": n, "value": value, "work": (work or {}).get(side, done)}
        for side, turns in values.items()
        for n, value in enumerate(turns)
    ]


def test_the_ratio_is_that_to_the_fastest_peer_turn_by_turn() -> None:
    found = Found(RACE, samples(RACE, ours=[30, 10, 60], slow=[1, 1, 1], fast=[10, 10, 15]))
    assert found.best == "fast"
    assert found.ratio is not None and sorted(found.ratio.values) == [1.0, 3.0, 4.0]
    assert str(found.ratio) == "3 (1 – 4)"
    assert found.reached is True
    assert Found(RACE, samples(RACE, ours=[19], fast=[10])).reached is False


def test_where_less_is_better_the_smallest_is_the_best_and_the_ratio_turns_round() -> None:
    found = Found(LIGHT, samples(LIGHT, ours=[25.0], peer=[50.0]))
    assert found.ratio is not None and found.ratio.middle == 2.0
    assert found.reached is True
    assert Found(LIGHT, samples(LIGHT, ours=[28.5])).reached is False, "an absolute bar needs no peer"


def test_an_absent_peer_is_never_beaten() -> None:
    away = speed.turn(LONELY, "peer", 0, 1.0, 0)
    assert away == {"workload": "lonely", "side": "peer", "turn": 0, "absent": "no_such_package"}
    found = Found(LONELY, [*samples(LONELY, ours=[1e9]), away])
    assert (found.ratio, found.reached) == (None, None)
    assert speed.row(found)[2:] == ("peer absent", "–", "≥ 3 times", "–")
    gone = {"workload": "race", "side": "fast", "turn": 0, "absent": "no_such_package"}
    assert Found(RACE, [*samples(RACE, ours=[30], slow=[1]), gone]).reached is None, "the absent one might be faster"
    assert Found(RACE, [*samples(RACE, ours=[1], slow=[1]), gone]).reached is False
    broke = {"workload": "race", "side": "fast", "turn": 0, "failed": "it broke"}
    found = Found(RACE, [*samples(RACE, ours=[30], slow=[1]), broke])
    assert found.reached is None, "nor is one that failed"
    assert "fast failed" in speed.row(found)[2]


def test_a_side_that_did_other_work_is_named() -> None:
    less = {"fast": {"frames": 1000, "updates": 90}, "slow": {"frames": 3000, "updates": 303}}
    assert Found(RACE, samples(RACE, less, ours=[1], slow=[1], fast=[1])).work == (
        "1,000 frames, 100 updates; **fast 1,000 frames, 90 updates**"
    ), "slow played longer, with as many updates to a frame"
    assert Found(RACE, samples(RACE, ours=[1], fast=[1])).work == "1,000 frames, 100 updates; all sides alike"
    other = {"peer": {"rows": 9}, "ours": {"rows": 10}}
    assert "**peer 9 rows**" in Found(LIGHT, samples(LIGHT, other, ours=[1], peer=[1])).work


def test_the_page_tells_all_that_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SAMPLES", "PAGE", "PICTURE"):
        monkeypatch.setattr(speed, name, tmp_path / getattr(speed, name).name)
    drawn: list[str] = []

    def draw(figures: dict[Path, str]) -> list[Path]:
        drawn.extend(figures.values())
        return [path for path in figures if path.write_text("a picture")]

    monkeypatch.setattr(speed, "write_pngs", draw)
    kept = samples(RACE, ours=[12345, 12345], slow=[1000, 1000], fast=[2000, 1000])
    kept += samples(SIZES, **{"16": [1.5], "64": [1.6]}) + samples(LIGHT, ours=[28.5], peer=[29])
    kept = [{**x, "machine": machine()} if x["workload"] == "race" else x for x in kept]
    assert speed.save(kept, KNOWN)
    text = (tmp_path / "speed.md").read_text()
    assert (
        "| race | 12,300 (12,300 – 12,300) frames/s | slow 1,000 (1,000 – 1,000); fast 1,500 (1,000 – 2,000) |" in text
    )
    assert "| 9.26 (6.17 – 12.3) | ≥ 2 times | yes |" in text
    assert "| ours ≤ 28 MB | **no** |" in text
    assert "| delay | ms |\n|---|---|\n| 16 | 1.5 (1.5 – 1.5) |\n| 64 | 1.6 (1.6 – 1.6) |" in text
    assert f"\n- {machine()}: race.\n" in text and "\n- not noted: light, " in text
    assert "lonely" not in text, "never run"
    assert "it grows (1 turn, commit abc, 2026-11-23):" in text and "2 turns, commit abc, 2026-11-23." in text
    assert "## What is missed, and why\n\n- **light**: it is heavy.\n\n##" in text
    assert (tmp_path / "speed.png").read_text() == "a picture" and len(list(tmp_path.iterdir())) == 3
    figure = json.loads(drawn[0])
    assert [bar["y"] for bar in figure["data"]] == [["light (peer)"], ["race (fast)"]], "what has no ratio has no bar"
    (tmp_path / "speed.md").unlink()
    monkeypatch.setattr(speed, "workloads", lambda: KNOWN)
    assert main(["--page"]) == 0
    assert (tmp_path / "speed.md").read_text() == text == page(json.loads((tmp_path / "speed.json").read_text()), KNOWN)
    monkeypatch.setattr(speed, "write_pngs", lambda figures: [])
    assert main(["--page"]) == 1, "no picture"
    assert (tmp_path / "speed.png").exists(), "the old one stays"


def test_what_has_no_target_is_told_and_not_drawn_beside_what_has() -> None:
    aside = Workload("aside", "no race", "frames/s", {"ours": NONE, "peer": NONE})
    both = [Found(aside, samples(aside, ours=[90], peer=[1])), Found(RACE, samples(RACE, ours=[3], fast=[1]))]
    assert [bar.y for bar in speed.graph(both).data] == [("race (fast)",)]
    assert speed.row(both[0])[3:] == ("90 (90 – 90)", "–", "–")


def test_sides_take_turns_and_what_is_run_anew_replaces_its_old_samples_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("SAMPLES", "PAGE", "PICTURE"):
        monkeypatch.setattr(speed, name, tmp_path / getattr(speed, name).name)
    monkeypatch.setattr(speed, "write_pngs", lambda figures: None)
    monkeypatch.setattr(speed, "workloads", lambda: KNOWN)
    speed.save(samples(RACE, ours=[1]) + samples(LIGHT, ours=[7]), KNOWN)
    run: list[tuple[str, int]] = []

    def fake(workload: Workload, side: str, number: int, share: float, core: int) -> dict[str, Any]:
        run.append((side, number))
        if side == "slow":
            raise speed.LabError("it broke")
        return samples(workload, **{side: [0.0, 0.0]})[number] | {"value": 5.0 * share}

    monkeypatch.setattr(speed, "turn", fake)
    assert main(["race", "--turns", "2"]) == 1, "one failed"
    assert run == [("ours", 0), ("slow", 0), ("fast", 0), ("ours", 1), ("slow", 1), ("fast", 1)]
    kept = json.loads((tmp_path / "speed.json").read_text())
    assert [(x["workload"], x["side"], x.get("value", x.get("failed"))) for x in kept] == [
        ("light", "ours", 7),
        *(2 * [("race", "ours", 5.0), ("race", "slow", "it broke"), ("race", "fast", 5.0)]),
    ]
    assert main(["light", "--quick"]) == 0
    assert json.loads((tmp_path / "speed.json").read_text()) == kept, "a quick run keeps nothing"
    assert main(["rase"]) == 2
    said = capsys.readouterr()
    assert "FAILED: race, slow: it broke" in said.out
    assert "Did you mean 'race'?" in said.err


def test_a_turn_has_one_thread_and_one_core_and_its_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    core = min(os.sched_getaffinity(0))
    asks = "import os; print(os.sched_getaffinity(0), os.environ['OMP_NUM_THREADS'])"
    assert speed.alone([sys.executable, "-c", asks], core) == f"{{{core}}} 1\n"
    with pytest.raises(speed.LabError, match="it broke"):
        speed.alone([sys.executable, "-c", "raise SystemExit('it broke')"], core)
    monkeypatch.setattr(speed, "PATIENCE", 0.1)
    with pytest.raises(speed.LabError, match=r"not done after 0\.1 s"):
        speed.alone([sys.executable, "-c", "import time; time.sleep(9)"], core)


def test_every_workload_has_ours_first_and_a_target_or_is_a_table_of_sizes() -> None:
    for workload in workloads().values():
        if workload.axis:
            assert (workload.ratio, workload.most) == (None, None)
        else:
            assert next(iter(workload.sides)) == "ours"
            targets = (workload.ratio is not None) + (workload.most is not None)
            assert targets == (workload.name != "strategic"), f"{workload.name}: other algorithms are no race"


def test_a_memory_is_filled_with_episodes_as_worlds_play_them() -> None:
    rows = list(islice(memories.steps(worlds=4), 300))
    assert sum(int(row.terminated.sum()) for row in rows) > 3
    for before, row in pairwise(rows):
        assert (row.is_first == before.next_is_first).all()
        assert (row.next_is_first == before.terminated).all(), "the row after an end is masked"
        assert (row.obs["obs"] == before.next_obs["obs"]).all()


def test_a_small_turn_of_ours_counts_its_work() -> None:
    drawn = memories.draw(memories.Ours, 8, 100, 0.5, rows=256)
    judged = memories.draw_and_judge(memories.OURS_PER, 8, 100, 0.5, rows=256)
    assert drawn.work == judged.work == {"batches": 50}
    assert min(drawn.value, judged.value) > 0
    light = trainings.ppo_spec(4, time_horizon=32, training_epoch=1)
    work = trainings.ours(light, warm=100, frames=1000, share=0.1).work
    assert work["updates"] == 1 and 100 <= work["frames"] <= 4 * 32, "a tenth of the frames, up to the next update"


def test_a_profile_names_where_the_time_goes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyinstrument")
    assert profile.main(["specs/benchmark/cartpole.json", "ppo_cartpole", "--frames", "600"]) == 0
    said = capsys.readouterr().out
    assert "ppo_cartpole: " in said and "PPO.update" in said
    assert profile.main(["specs/benchmark/cartpole.json", "ppo_cartpool"]) == 2
