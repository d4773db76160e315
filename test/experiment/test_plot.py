from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_runs import NAME, log_rows
from processes import alive
from rich.console import Console

from slm_lab.experiment import plot
from slm_lab.experiment.analysis import load_run
from slm_lab.experiment.control import compare
from slm_lab.experiment.figure import PALETTE, add_band, fit_y, log_y, new_figure
from slm_lab.experiment.plot import draw_run, multi_trial_graph
from slm_lab.experiment.png import write_pngs
from slm_lab.experiment.run_dir import RunDir
from slm_lab.lib.errors import LabError

SESSION = [
    "session_graph_train_mean_returns_ma_vs_frames",
    "session_graph_train_mean_returns_vs_frames",
    "session_graph_train_variables_vs_frames",
]
TRIAL = ["mean_returns", "mean_returns_ma", "strengths", "sample_efficiencies", "training_efficiencies", "stabilities"]


def names(paths: list[Path]) -> set[str]:
    return {path.stem.removeprefix(f"{NAME}_t0_") for path in paths}


def trace_names(figure) -> list[str]:
    return [trace.name for trace in figure.data if trace.showlegend is not False]


def test_all_graphs_of_a_run_and_its_pictures(make_run):
    run_dir = make_run([log_rows(0, 30)], evaluate=True)
    written = draw_run(run_dir)
    pages, pictures = ([p for p in written if p.suffix == s] for s in (".html", ".png"))
    expected = {f"s0_{name}" for name in [*SESSION, "session_graph_eval_mean_returns_vs_frames"]}
    expected |= {f"trial_graph_{name}_vs_frames" for name in [*TRIAL, "eval_mean_returns", "variables"]}
    assert names(pages) == names(pictures) == expected
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000 for path in pictures)
    assert (run_dir / "graph/plotly.min.js").exists()
    assert max(path.stat().st_size for path in pages) < 500_000  # plotly.js lies there once, not in each
    assert not list((run_dir / "graph").glob("*.part"))


def test_every_session_gets_its_graphs(make_run):
    written = names(draw_run(make_run([log_rows(0, 30), log_rows(1, 20)]), png=False))
    expected = {f"s{s}_{name}" for s in (0, 1) for name in SESSION}
    assert written == expected | {f"trial_graph_{name}_vs_frames" for name in [*TRIAL, "consistencies", "variables"]}


def test_a_page_is_the_same_each_time(make_run):
    run_dir = make_run([log_rows(0, 20)])
    page = draw_run(run_dir, png=False)[0]
    before = page.read_text()
    draw_run(run_dir, png=False)
    assert page.read_text() == before


def test_mean_and_band_are_those_of_the_sessions(make_run):
    sessions = [log_rows(seed, 30) for seed in range(3)]
    run = load_run(make_run(sessions))
    figure = plot._trial_builders(run)[f"{NAME}_t0_trial_graph_mean_returns_ma_vs_frames"]()
    assert trace_names(figure) == ["sessions", "± 1 std", "mean of 3 sessions", "random baseline"]
    returns = np.array([df["total_reward_ma"][1:] for df in sessions])
    mean = next(trace for trace in figure.data if trace.name == "mean of 3 sessions")
    np.testing.assert_allclose(mean.y, returns.mean(0), rtol=1e-5)
    band = next(trace for trace in figure.data if trace.name == "± 1 std")
    np.testing.assert_allclose(band.y[:29], returns.mean(0) + returns.std(0, ddof=1), rtol=1e-4)


def test_a_band_does_not_bridge_a_gap():
    figure, nan = new_figure("", "", ""), np.nan
    add_band(figure, np.arange(5.0), np.array([1, 1, nan, 2, 2]), np.ones(5), PALETTE[0], None)
    assert figure.data[0].y == (2, 2, 0, 0, None, 3, 3, 1, 1, None)


ONE_POINT = log_rows(0, 3).iloc[1:2]
UNFINISHED = log_rows(0, 5).assign(total_reward=np.nan, total_reward_ma=np.nan)
CONSTANT = log_rows(0, 30).assign(total_reward=1.0, total_reward_ma=1.0, loss=0.0)
NOTHING = pd.DataFrame({"frame": [100.0], "opt_step": [1.0], "wall_t": [1.0], "loss": [np.nan]})
INFINITE = log_rows(0, 10).assign(loss=np.inf, total_reward=-np.inf)


@pytest.mark.parametrize(
    "sessions", [[ONE_POINT], [UNFINISHED], [CONSTANT], [NOTHING], [INFINITE], [ONE_POINT, CONSTANT]]
)
def test_odd_runs_are_drawn_without_a_warning(make_run, caplog, sessions):
    run_dir = make_run(sessions, random_return=None)
    written = names(draw_run(run_dir, png=False))
    assert caplog.records == []
    assert ("trial_graph_mean_returns_vs_frames" in written) == any(s is ONE_POINT or s is CONSTANT for s in sessions)
    assert ("trial_graph_variables_vs_frames" in written) == (sessions[0] is not NOTHING)


def test_the_raw_return_says_that_it_is_a_mean_over_worlds(make_run):
    run = load_run(make_run([log_rows(0, 30)]))
    session = plot._session_builders(run, 0)[f"{NAME}_t0_s0_session_graph_train_mean_returns_vs_frames"]()
    trial = plot._trial_builders(run)[f"{NAME}_t0_trial_graph_mean_returns_vs_frames"]()
    assert "mean over worlds" in trace_names(session)[0] and "mean over worlds" in trial.layout.yaxis.title.text


@pytest.mark.parametrize("count", [41, 45, 200])
def test_the_moving_average_is_centred(count):
    df = pd.DataFrame({"frame": np.arange(count) * 10.0, "loss": np.eye(count)[20]})
    _, smooth = plot._variables("", "", [df]).data
    low, high = np.flatnonzero(np.asarray(smooth.y))[[0, -1]]
    assert high > low and 20 - low == high - 20


def test_a_lone_point_is_a_marker(make_run):
    run = load_run(make_run([ONE_POINT]))
    figure = plot._session_builders(run, 0)[f"{NAME}_t0_s0_session_graph_train_mean_returns_ma_vs_frames"]()
    assert figure.data[0].mode == "markers"


def test_failed_sessions_are_drawn_apart_from_the_mean(make_run):
    sessions = [log_rows(0, 30), log_rows(1, 30), log_rows(2, 12)]
    run = load_run(make_run(sessions, failures=[{"session": 2, "error": "boom"}, {"session": 3, "error": "early"}]))
    figure = plot._trial_builders(run)[f"{NAME}_t0_trial_graph_mean_returns_vs_frames"]()
    assert trace_names(figure) == ["sessions", "± 1 std", "failed sessions", "mean of 2 sessions", "random baseline"]
    assert "4 sessions, 2 failed" in figure.layout.title.text


def test_a_run_of_failures_only(make_run, caplog):
    run_dir = make_run([log_rows(0, 12)], failures=[{"session": 0, "error": "boom"}])
    assert "trial_graph_mean_returns_vs_frames" in names(draw_run(run_dir, png=False))
    assert caplog.records == []


def test_an_empty_run_and_no_run(make_run, tmp_path):
    assert draw_run(make_run([])) == []
    with pytest.raises(LabError):
        multi_trial_graph([("x", tmp_path / "nowhere")], tmp_path, "x")


def test_no_picture_of_before_stays_beside_what_is_drawn_now(make_run):
    run = make_run([log_rows(0, count=20)])
    draw_run(run)
    assert list((run / "graph").glob("*.png"))
    draw_run(run, png=False)
    assert not list((run / "graph").glob("*.png"))


def test_a_figure_that_fails_is_a_warning(make_run, caplog, monkeypatch):
    run_dir = make_run([log_rows(0, 12)])
    monkeypatch.setattr(plot, "_variables", lambda *_: 1 / 0)
    with caplog.at_level(logging.WARNING, "slm_lab"):
        written = names(draw_run(run_dir, png=False))
    assert "s0_session_graph_train_mean_returns_vs_frames" in written
    assert len([r for r in caplog.records if "ZeroDivisionError" in r.getMessage()]) == 2


def test_runs_compared_in_one_graph(make_run, tmp_path):
    one = make_run([log_rows(0, 20), log_rows(1, 20)], name="one")
    two = make_run([log_rows(2, 20), log_rows(3, 15)], name="two")
    empty = make_run([], name="empty")
    written = multi_trial_graph(
        [("<GRU>", one), ("none", two), ("empty", empty)], tmp_path / "out", "recall", png=False
    )
    assert [path.name for path in written] == ["recall_multi_trial_graph_mean_returns_ma_vs_frames.html"]
    figure = plot._multi_trial("recall", [("<GRU>", load_run(one)), ("none", load_run(two))])
    assert trace_names(figure) == ["&lt;GRU&gt;", "none", "random baseline"]
    assert len({trace.line.color for trace in figure.data if trace.mode == "lines" and trace.fill is None}) == 3


@pytest.mark.parametrize(("count", "said"), [(0, "no graph was drawn"), (20, "_multi_trial_graph_")])
def test_runs_of_many_worlds_are_compared_or_it_is_said_that_nothing_is_to_be_seen(
    make_run, tmp_path, capsys, count, said
):
    runs = []
    for name in ("one", "two"):
        run = RunDir(make_run([log_rows(0, count)] if count else [], name=name))
        run.spec_file.write_text(run.spec_file.read_text().replace("Recall-v0", name * 60))
        runs.append(run)
    compare(runs, tmp_path, Console(width=400))
    assert said in capsys.readouterr().out


@pytest.fixture
def no_png(monkeypatch) -> None:
    monkeypatch.setattr(plot, "write_pngs", lambda *_: [])


def compared(runs: list[Path], data: Path, given: tuple[str, ...] = ()) -> str:
    """The page of a comparison."""
    before = set(data.glob("graph/*.html"))
    compare([RunDir(run) for run in runs], data, Console(quiet=True), given)
    return next(iter(set(data.glob("graph/*.html")) - before)).read_text()


def edit(run: Path, old: str, new: str) -> None:
    (run / "spec.json").write_text((run / "spec.json").read_text().replace(old, new))


@pytest.mark.usefixtures("no_png")
def test_runs_are_told_apart_by_what_differs_in_their_specs(make_run, tmp_path, caplog):
    one, two = (make_run([log_rows(i, 20)], name=f"run{i}", core=core) for i, core in enumerate(["GRU", "none"]))
    page = compared([one, two], tmp_path)
    assert '"name":"core GRU"' in page and '"name":"core none"' in page and "run0" not in page
    assert "Recall-v0: training return" in page and caplog.records == []
    for run, lr in ((one, "1" * 20), (two, "2" * 20)):  # too long with all of it: the parts
        edit(run, '"gamma": 0.99', f'"gamma": {lr}, "other": "{"x" * 40}{lr}"')
    assert '"name":"core GRU"' in compared([one, two], tmp_path / "parts")
    assert '"name":"mine"' in compared([one, two], tmp_path / "given", ("mine", ""))


@pytest.mark.usefixtures("no_png")
def test_runs_that_only_their_seeds_tell_apart_have_the_names_of_their_folders(make_run, tmp_path):
    runs = [make_run([log_rows(i, 20)], name=f"run{i}") for i in range(2)]
    page = compared(runs, tmp_path)
    assert all(f'"name":"{run.name}"' in page for run in runs)


@pytest.mark.usefixtures("no_png")
def test_runs_of_different_tasks_are_compared_with_a_warning(make_run, tmp_path, caplog):
    one, two, three = (make_run([log_rows(i, 20)], name=f"run{i}") for i in range(3))
    edit(two, '"max_frame"', '"delay": 4, "max_frame"')
    edit(three, "102400", "51200")
    compared([one, three], tmp_path)
    assert caplog.records == []
    compared([one, two], tmp_path)
    assert "they differ in env.delay" in caplog.text


@pytest.mark.usefixtures("no_png")
def test_a_comparison_overwrites_none_of_other_runs(make_run, tmp_path):
    runs = [make_run([log_rows(i, 20)], name=f"run{i}") for i in range(3)]
    for some in (runs, runs[:2], runs[::-1]):
        compare([RunDir(run) for run in some], tmp_path, Console(quiet=True))
    assert len(list(tmp_path.glob("graph/*.html"))) == 2
    with pytest.raises(LabError, match=r"run0.* is there twice"):
        compare([RunDir(run) for run in (*runs, runs[0])], tmp_path, Console(quiet=True))


@pytest.mark.usefixtures("no_png")
def test_a_comparison_says_what_each_run_came_to(make_run, tmp_path):
    last = [1.0, 0.5, 0.9]
    sessions = [log_rows(i, 20).assign(total_reward_ma=value) for i, value in enumerate(last)]
    failures = [{"session": 2, "error": "boom"}]
    one = make_run(sessions, evaluate=True, failures=failures, core="[GRU]", name="one")
    two = make_run(sessions[:1], name="two")
    screen = Console(file=io.StringIO(), width=120)
    compare([RunDir(one), RunDir(two)], tmp_path, screen)
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:5]] for line in screen.file.getvalue().splitlines()
            if len(cells := line.split("│")) > 5}  # fmt: skip
    ends = [df["total_reward"].iloc[-1] for df in load_run(one).evaluation.values()][:2]
    evaluated = f"{np.mean(ends):.2f} ± {np.std(ends, ddof=1):.2f}"
    assert rows == {"core [GRU]": ["2", "0.75 ± 0.35", evaluated], "core none": ["1", "1.00", "–"]}
    compare([RunDir(two), RunDir(make_run(sessions[:1], name="three"))], tmp_path, screen)
    assert screen.file.getvalue().count("greedy eval") == 1, "a column without a value"


def test_a_long_name_is_cut_and_what_is_drawn_stays():
    title = new_figure("n" * 200 + ": training return", "", "").layout.title.text
    assert "n…: training return</b>" in title
    assert len(title) < 200


@pytest.mark.parametrize("constant", [[0.001, 0.0010000000000000002], [-3.0, -3.0]])
def test_a_constant_is_told_apart_from_zero(constant):
    low, high = fit_y(np.array(constant))["range"]
    assert (low + high) / 2 == pytest.approx(constant[0]) and 0 in (low, high)
    assert "range" not in fit_y(np.array([0.0, 0.0])) and "range" not in fit_y(np.array([0.001, 0.0011]))


def test_logarithmic_axis_writes_out_its_steps():
    figure = new_figure("", "", "")
    figure.add_scatter(x=[1, 2], y=[1e-5, 2e-4])
    axis = log_y(figure).layout.yaxis
    assert axis.type == "log"
    assert dict(zip(axis.tickvals, axis.ticktext, strict=True))[2e-4] == "2×10<sup>−4</sup>"
    narrow = new_figure("", "", "").add_scatter(x=[1, 2], y=[1e-5, 2e-5])
    assert log_y(narrow).layout.yaxis.type is None


# ---- PNG -------------------------------------------------------------------------------------------------------------


def test_a_hanging_engine_is_stopped_and_named(tmp_path, caplog):
    done, hung = tmp_path / "done.png", tmp_path / "hung.png"
    hung.write_text("of a run before")
    # draws the first, starts a helper that ignores the polite signal, as a browser engine may, and hangs
    script = """
import json, pathlib, subprocess, sys, time
first = json.loads(pathlib.Path(sys.argv[1]).read_text())[0]
pathlib.Path(first[1]).write_bytes(b"png")
helper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", helper])
pathlib.Path(first[1] + ".pid").write_text(str(child.pid))
time.sleep(60)
"""
    start = time.monotonic()
    written = write_pngs({done: "{}", hung: "{}"}, timeout=1.5, child=[sys.executable, "-c", script])
    assert time.monotonic() - start < 10
    assert written == [done]
    assert not hung.exists()  # a stale picture would be taken for a new one
    assert "over its time of 1.5 s" in caplog.text
    assert caplog.text.strip().endswith(": hung.png")
    helper = Path("/proc") / (tmp_path / "done.png.pid").read_text() / "stat"
    while helper.exists() and not re.search(r"\) [ZX] ", helper.read_text()):  # the kernel takes a moment
        assert time.monotonic() - start < 10
        time.sleep(0.01)


def test_pages_outlive_a_hanging_engine(make_run, monkeypatch, caplog):
    run_dir = make_run([log_rows(0, 12)])
    child = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(plot, "write_pngs", lambda figures, timeout: write_pngs(figures, timeout, child))
    written = draw_run(run_dir, timeout=0.5)
    assert {path.suffix for path in written} == {".html"}
    assert all(path.exists() for path in written)
    assert f"{NAME}_t0_trial_graph_mean_returns_ma_vs_frames.png" in caplog.text


def test_a_broken_engine_tells_why(tmp_path, caplog):
    child = [sys.executable, "-c", "raise SystemExit('no engine here')"]
    assert write_pngs({tmp_path / "a.png": "{}"}, child=child) == []
    assert "no engine here" in caplog.text
    assert write_pngs({}) == []


def test_pictures_end_with_the_run_that_waits_for_them(tmp_path: Path) -> None:
    """The engine may hang: a killed run must not leave it behind."""
    hung = tmp_path / "hung.py"
    hung.write_text(
        "import os, subprocess, sys, time\nfrom slm_lab.experiment.png import end_with_parent\nend_with_parent()\n"
        "engine = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{engine.pid}}\\n')\ntime.sleep(60)\n"
    )
    run = (
        "import sys; from pathlib import Path; from slm_lab.experiment.png import write_pngs; "
        f"write_pngs({{Path('a.png'): '{{}}'}}, child=(sys.executable, {str(hung)!r}))"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", run], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)})
    pids = tmp_path / "pids"
    until(lambda: pids.exists() and pids.read_text().endswith("\n"))
    process.terminate()
    process.wait()
    until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def test_drawing_needs_no_torch():
    code = "import sys; import slm_lab.experiment.report, slm_lab.experiment.plot; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(plot.__file__).parents[2], check=False).returncode == 0
