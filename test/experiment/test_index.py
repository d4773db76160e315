"""`data/index.html`: all runs on one page."""

from __future__ import annotations

from made_runs import log_rows
from test_report import Page

from slm_lab.experiment.index import write_index

CURVE = "t0_trial_graph_mean_returns_ma_vs_frames.png"


def test_runs_newest_first_with_their_agent_return_and_picture(make_run):
    older = make_run([log_rows(0, 30)], name="older", core="GRU")
    newer = make_run([log_rows(1, 30), log_rows(2, 30)], name="newer <b>")
    newer.rename(newer.with_name(newer.name.replace("01_02", "01_03")))
    (older / "graph").mkdir()
    (older / "graph" / f"older_{CURVE}").write_bytes(b"")
    (older / "report.html").write_text("")
    write_index(older.parent)
    html = (older.parent / "index.html").read_text()
    page = Page(html)
    assert page.open == []
    assert page.text.index("newer <b>") < page.text.index("older")
    assert "newer <b>" not in html
    assert "PPO, OnPolicyReplay in Recall-v0, 102,400 frames" in page.text
    assert "PPO, OnPolicyReplay, core GRU in Recall-v0" in page.text
    assert "final return, 2 sessions of" in page.text
    assert page.text.count("no picture yet") == 1
    assert {f"{older.name}/report.html", f"{older.name}/graph/older_{CURVE}"} <= set(page.addresses)


def test_a_run_that_cannot_be_read_is_told_beside_the_others(make_run):
    good, bad = make_run([log_rows(0, 30)], name="good"), make_run([log_rows(0, 30)], name="bad")
    (bad / "spec.json").write_text("{")
    write_index(good.parent)
    text = Page((good.parent / "index.html").read_text()).text
    assert "unreadable" in text
    assert bad.name in text
    assert "final return" in text


def test_a_run_that_broke_off_says_why(make_run):
    crash = [{"session": 0, "error": "Traceback ...\n  line 3\nValueError: <boom>"}]
    dead = make_run([], failures=crash, name="dead")
    make_run([log_rows(0, 30), log_rows(1, 30)], failures=crash, name="half")
    make_run([], failures=[{"session": 0, "error": ""}], name="mute")
    write_index(dead.parent)
    html = (dead.parent / "index.html").read_text()
    text = Page(html).text
    assert text.count("1 session failed: ValueError: <boom>") == 2 and "<boom>" not in html
    assert text.count("1 session failed") == 3 and "no episode has ended yet" not in text and "final return, 1" in text


def test_an_index_of_someone_elses_is_left_alone(make_run, caplog):
    data = make_run([log_rows(0)]).parent
    (data / "index.html").write_text("<html>my own page</html>")
    write_index(data)
    assert (data / "index.html").read_text() == "<html>my own page</html>"
    assert "isn't the lab's: left as it is" in caplog.text


def test_a_folder_in_the_way_of_the_index_is_a_warning(make_run, caplog):
    data = make_run([log_rows(0)]).parent
    (data / "index.html").mkdir()
    write_index(data)
    assert "index.html not written" in caplog.text
