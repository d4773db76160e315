"""The files of a run folder that say how good the run was: log rows read back, metrics written as JSON and CSV."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from slm_lab.experiment.metrics import Metrics, clean, session_metrics, trial_metrics
from slm_lab.lib.errors import LabError
from slm_lab.lib.files import write_json, write_text

__all__ = ["Run", "analyze_session", "analyze_trial", "list_trials", "load_run", "session_metrics", "trial_metrics"]


@dataclass(frozen=True)
class Run:
    """One trial of a run folder, read back. Sessions without a log row have no entry in `train`."""

    path: Path
    name: str
    trial: int
    spec: dict[str, Any]
    max_frame: float = 0.0
    random_return: float | None = None
    train: dict[int, pd.DataFrame] = field(default_factory=dict)
    evaluation: dict[int, pd.DataFrame] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failed(self) -> set[int]:
        """Sessions that broke off."""
        return {int(failure["session"]) for failure in self.failures}

    @property
    def unfinished(self) -> set[int]:
        """Sessions that were stopped, or are on their way, while another has come to its end; none where none has."""
        last = {session: df["frame"].max() for session, df in self.train.items() if session not in self.failed}
        found = {session for session, frame in last.items() if frame < self.max_frame}
        return found if len(found) < len(last) else set()

    @property
    def left_out(self) -> set[int]:
        """Sessions that no mean is over."""
        return self.failed | self.unfinished

    def ended(self, session: int) -> str:
        """What is said after its number of a session that no mean is over."""
        return " (failed)" if session in self.failed else " (unfinished)" if session in self.unfinished else ""

    @property
    def whole(self) -> list[pd.DataFrame]:
        """Log rows of the sessions that ran to their end (as far as they are, where none has)."""
        return [df for session, df in self.train.items() if session not in self.left_out]

    @property
    def last_evaluation(self) -> float | None:
        """Mean return of their last greedy evaluations."""
        tables = [df["total_reward"].dropna() for s, df in self.evaluation.items() if s not in self.left_out]
        last = [float(returns.iloc[-1]) for returns in tables if len(returns)]
        return sum(last) / len(last) if last else None

    def stem(self, session: int | None = None) -> str:
        """What the trial's files (or a session's) begin with."""
        return f"{self.name}_t{self.trial}" + ("" if session is None else f"_s{session}")

    def metrics(self) -> Metrics:
        """The trial's metrics, over the sessions that ran to their end."""
        sessions = [session_metrics(df, self.random_return) for df in self.whole]
        return trial_metrics(sessions, num_failed=len(self.failed))


def load_run(run_dir: str | Path, trial: int = 0) -> Run:
    """Read a trial of a run folder. LabError where there is no readable `spec.json`."""
    path = Path(run_dir)
    try:
        spec = json.loads((path / "spec.json").read_text())
    except (OSError, ValueError) as error:
        raise LabError(f"{path} isn't the folder of a run: can't read its spec.json ({error})") from error
    run = Run(path, str(spec.get("name", path.name)), trial, spec)
    own = _read_json(path / "info" / f"{run.stem()}_spec.json", spec)  # of a search's trial
    max_frame = float(own.get("env", {}).get("max_frame") or 0.0)
    train, evaluation = (_read_sessions(run, mode) for mode in ("train", "eval"))
    failures = [f for f in _read_json(path / "info" / "failures.json", []) if f.get("trial", 0) == trial]
    known = [_read_json(p, {}) for p in sorted((path / "info").glob(f"{run.stem()}_s*_session_metrics_train.json"))]
    baselines = [b for m in known if (b := m.get("scalar", {}).get("random_return")) is not None]
    baseline = baselines[0] if baselines else None
    return Run(path, run.name, trial, spec, max_frame, baseline, train, evaluation, failures)


def list_trials(run_dir: str | Path) -> list[int]:
    """Trials that left log rows in a run folder."""
    found = (re.search(r"_t(\d+)_s\d+_session_df_train$", p.stem) for p in Path(run_dir, "info").glob("*_train.csv"))
    return sorted({int(match[1]) for match in found if match})


def analyze_session(run_dir: str | Path, trial: int, session: int, random_return: float | None) -> Metrics:
    """Compute a session's metrics from its log rows and write `info/*_session_metrics_train.json`."""
    run = load_run(run_dir, trial)
    metrics = session_metrics(run.train.get(session, pd.DataFrame()), random_return)
    write_json(run.path / "info" / f"{run.stem(session)}_session_metrics_train.json", metrics)
    return metrics


def analyze_trial(run_dir: str | Path, trial: int = 0) -> Metrics:
    """Compute a trial's metrics from the log rows; write `info/*_trial_metrics.json`, `.csv` (sessions, then mean)."""
    run = load_run(run_dir, trial)
    metrics = run.metrics()
    scalars = {s: session_metrics(df, run.random_return)["scalar"] for s, df in run.train.items()}
    rows = [
        {"session": s, "failed": int(s in run.failed), "unfinished": int(s in run.unfinished), **scalar}
        for s, scalar in scalars.items()
    ]
    info = run.path / "info"
    write_json(info / f"{run.stem()}_trial_metrics.json", metrics)
    table = pd.DataFrame([*rows, {"session": "mean", **metrics["scalar"]}])
    write_text(info / f"{run.stem()}_trial_metrics.csv", table.to_csv(index=False))
    return metrics


def _damaged(path: Path, error: Exception) -> LabError:
    what = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    cure = f"Restore it, or train on (train@{path.parent.parent}): it is written again."
    return LabError(f"{path} is damaged: {what[0]}. {cure}")


def _read_json(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text()) if path.exists() else default
    except ValueError as error:
        raise _damaged(path, error) from error


def _read_sessions(run: Run, mode: str) -> dict[int, pd.DataFrame]:
    """{session: log rows}, in order; a file that its session died before filling is left out."""
    sessions = {}
    for path in (run.path / "info").glob(f"{run.stem()}_s*_session_df_{mode}.csv"):
        match = re.search(rf"_s(\d+)_session_df_{mode}$", path.stem)
        try:
            df = clean(pd.read_csv(path)) if match and path.stat().st_size > 1 else pd.DataFrame()
        except (ValueError, KeyError, TypeError) as error:  # pandas' own errors are ValueErrors
            raise _damaged(path, error) from error
        if match and len(df):
            sessions[int(match[1])] = df
    return dict(sorted(sessions.items()))
