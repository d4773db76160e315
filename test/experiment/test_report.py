from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from made_runs import NAME, log_rows

from slm_lab.experiment.page import duration, number
from slm_lab.experiment.plot import draw_run
from slm_lab.experiment.report import write_report
from slm_lab.lib.errors import LabError

PNG = b"\x89PNG\r\n\x1a\n made up"


class Page(HTMLParser):
    """Tags that are open, the addresses a page asks for, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_tells_the_run_and_asks_nothing_of_the_network(make_run):
    sessions = [log_rows(seed, 30) for seed in range(3)]
    run_dir = make_run(sessions, evaluate=True, failures=[{"session": 2, "error": "Traceback\nValueError: <b>NaN</b>"}])
    draw_run(run_dir, png=False)
    (run_dir / f"graph/{NAME}_t0_trial_graph_mean_returns_ma_vs_frames.png").write_bytes(PNG)
    html = write_report(run_dir).read_text()
    page = Page(html)
    assert page.open == []
    for needed in (NAME, "seed 7", "0123abc", "torch 2.9", "final return", "mean of 2 sessions", "failed sessions"):
        assert needed in page.text
    final = np.mean([df["total_reward_ma"].iloc[-1] for df in sessions[:2]])
    assert f"{final:.3g} ± " in page.text
    for command in ("train@", "enjoy@", "plot "):
        assert f"{command}{run_dir}" in page.text
    assert "ValueError: <b>NaN</b>" in page.text
    assert "<b>NaN</b>" not in html
    assert '"gamma": 0.99' in page.text
    assert all(a.startswith(("data:image/png;base64,", "graph/")) for a in page.addresses)
    assert sum(a.startswith("data:") for a in page.addresses) == 1
    assert all((run_dir / a).exists() for a in page.addresses if a.startswith("graph/"))
    assert "plotly" not in html.lower()


def test_text_from_a_spec_is_escaped(make_run):
    run_dir = make_run([log_rows(0, 10)])
    spec = json.loads((run_dir / "spec.json").read_text())
    spec["agent"]["name"] = "<script>alert(1)</script>"
    spec["run"]["versions"] = {"torch": "<i>2</i>"}
    (run_dir / "spec.json").write_text(json.dumps(spec))
    html = write_report(run_dir).read_text()
    assert "<script" not in html
    assert "<i>" not in html
    assert "<script>alert(1)</script>" in Page(html).text


@pytest.mark.parametrize("sessions", [[], [log_rows(0, 1)], [log_rows(0, 5).assign(total_reward=np.nan)]])
def test_runs_with_next_to_nothing(make_run, sessions):
    run_dir = make_run(sessions, random_return=None, failures=[{"session": 5, "error": ""}])
    page = Page(write_report(run_dir).read_text())
    assert page.open == []
    assert not re.search(r"\b(nan|None|inf)\b", page.text.split("The resolved spec")[0])


def test_a_spec_without_the_facts_of_the_run(make_run):
    run_dir = make_run([log_rows(0, 5)])
    (run_dir / "spec.json").write_text(json.dumps({"name": NAME, "run": {"seeds": [0, 1], "git_sha": None}}))
    text = Page(write_report(run_dir).read_text()).text
    assert "seeds 0, 1" in text
    assert "git" not in text.split("Metrics")[0]


def test_no_run(tmp_path):
    with pytest.raises(LabError):
        write_report(tmp_path)


def test_numbers_for_people():
    shown = {None: "–", np.nan: "–", 0.0: "0", -0.12345: "−0.123", 123.0: "123", 123.4: "123", 999.6: "1\u2009000"}
    shown |= {-1234.5: "−1\u2009234", 1e6: "1\u2009000\u2009000", 1.5e-5: "1.5e−05"}
    assert {x: number(x) for x in shown} == shown
    assert [duration(x) for x in (np.nan, 3.21, 61, 3720)] == ["–", "3.21 s", "1 min 01 s", "1 h 02 min"]
