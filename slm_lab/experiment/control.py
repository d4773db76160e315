"""What each mode of the command line does: train, dev, enjoy, plot."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rich.console import Console

from slm_lab.agent import checkpoint
from slm_lab.agent.build import build_agent
from slm_lab.env.vec import make_env
from slm_lab.experiment.analysis import analyze_session, analyze_trial
from slm_lab.experiment.display import Display
from slm_lab.experiment.evaluate import play, random_return
from slm_lab.experiment.plot import draw_run
from slm_lab.experiment.report import write_report
from slm_lab.experiment.run_dir import RunDir
from slm_lab.experiment.session import Progress
from slm_lab.experiment.trial import run_here, run_sessions
from slm_lab.lib.errors import LabError
from slm_lab.spec.lab_spec import LabSpec
from slm_lab.spec.validate import resolve

logger = logging.getLogger("slm_lab")

ENJOY_EPISODES = 10
GIF_FRAMES = 500


def train(spec: LabSpec, data: Path, console: Console) -> RunDir:
    """A new run: all sessions, then metrics, graphs and report."""
    baseline = _baseline(spec, data)
    run = RunDir.create(data, spec.name, {"name": spec.name, **spec.dump()}, "train")
    return _run_trial(spec, run, baseline, console)


def resume(run: RunDir, data: Path, console: Console) -> RunDir:
    """A run that was stopped or killed goes on from its checkpoints, with the spec it was started with."""
    facts = run.read_spec()
    spec = stored_spec(run)
    return _run_trial(spec, run, _baseline(spec, data), console, check=facts["run"]["mode"] == "dev")


def dev(spec: LabSpec, data: Path, console: Console) -> RunDir:
    """A short, checked run: one session, at most `meta.dev_max_frame` frames; says which parameters did not learn."""
    short = resolve(_shortened(spec), spec.name, check_env=False)
    baseline = _baseline(short, data)
    run = RunDir.create(data, spec.name, {"name": spec.name, **short.dump()}, "dev")
    return _run_trial(short, run, baseline, console, check=True)


def enjoy(run: RunDir, console: Console, episodes: int = ENJOY_EPISODES) -> list[float]:
    """Play the best checkpoint of a run greedily; prints returns, and records a GIF where the env can draw."""
    spec = stored_spec(run)
    session, state = _best(run, spec.meta.max_session)
    env = make_env(spec.env, num_envs=1, render_mode="rgb_array")
    try:
        agent = build_agent(spec.agent, env.obs_space, env.action_space, 1, seed=0)
        _load_best(agent, state, run)
        env.reset(0)
        env.load_wrapper_state(state["wrappers"])
        env.freeze()
        console.print(
            f"{run.path}: session {session}, best at frame {state['frame']:,} with return {state['score']:.2f}",
            highlight=False,
        )
        pictures: list[Any] = []
        played = play(
            agent,
            env,
            episodes,
            seed=0,
            on_step=lambda: pictures.extend(env.render()[:1]) if len(pictures) < GIF_FRAMES else None,
        )
    finally:
        env.close()
    for i, (total, length) in enumerate(zip(played.returns, played.lengths, strict=True)):
        console.print(f"episode {i}: return {total:.2f}, {length} steps", highlight=False)
    console.print(
        f"mean return {played.returns.mean():.2f} ± {played.returns.std():.2f} over {len(played.returns)} episodes",
        highlight=False,
    )
    _write_gif(pictures, run.graph / "enjoy.gif", console)
    return [float(total) for total in played.returns]


def finish(run: RunDir, baseline: float | None, console: Console, png: bool = True) -> None:
    """Metrics, graphs and report from what the sessions have saved. A picture that fails is a warning."""
    facts = run.read_spec()
    for session in range(facts["meta"]["max_session"]):
        if run.session_file(session, "session_df_train.csv").exists():
            analyze_session(run.path, 0, session, baseline)
    try:
        metrics = analyze_trial(run.path)
        if console.is_terminal:
            console.print("drawing graphs ...", highlight=False)
        draw_run(run.path, png=png)
    except LabError as error:
        logger.warning("%s", error)
        metrics = {}
    page = write_report(run.path)
    scalar = metrics.get("scalar", {})
    if scalar.get("final_return") is not None:
        shown = ", ".join(
            f"{name} {scalar[name]:.2f}"
            for name in ("final_return", "best_return", "strength")
            if scalar.get(name) is not None
        )
        console.print(f"{shown} (random {baseline:.2f})" if baseline is not None else shown, highlight=False)
    console.print(f"graphs:  {run.graph}\nreport:  {page}", highlight=False, soft_wrap=True)


def replot(run: RunDir, data: Path, console: Console) -> None:
    """Draw a run's graphs and report again."""
    finish(run, _baseline(stored_spec(run), data), console)


def stored_spec(run: RunDir) -> LabSpec:
    """The spec that a run was started with."""
    facts = run.read_spec()
    return resolve({key: facts[key] for key in ("agent", "env", "meta", "search") if key in facts}, facts["name"])


def _run_trial(spec: LabSpec, run: RunDir, baseline: float | None, console: Console, check: bool = False) -> RunDir:
    sessions = f"{spec.meta.max_session} session{'s' if spec.meta.max_session > 1 else ''}"
    title = (
        f"{spec.name}: {spec.agent.name} in {spec.env.name}, {sessions} of {spec.env.max_frame:,} frames → {run.path}"
    )
    findings: list[str] = []
    with Display(title, spec.meta.max_session, spec.env.max_frame, console) as display:
        if spec.meta.max_session == 1:
            progress, session = run_here(spec, run, 0, display.update, check)
            last, findings = [progress], session.check_report() if check else []
        else:
            last = run_sessions(spec, run, display.update)
    finish(run, baseline, console, spec.meta.png)
    if check:
        _print_check(findings, console)
    _print_end(last, run, console)
    return run


def _print_check(findings: list[str], console: Console) -> None:
    if not findings:
        console.print("check:   every parameter got a gradient and moved; no NaN", highlight=False)
    for finding in findings:
        console.print(f"check:   {finding}", highlight=False, markup=False)


def _print_end(last: list[Progress], run: RunDir, console: Console) -> None:
    """How to go on; raises `LabError` when sessions failed."""
    if any(p.status in ("stopped", "waiting") for p in last):
        console.print(f"stopped. Go on with: python run_lab.py train@{run.path}", highlight=False, soft_wrap=True)
    failed = [p for p in last if p.status == "failed"]
    if failed:
        reasons = "\n".join(f"session {p.session}: {p.message.strip()}" for p in failed)
        raise LabError(f"{len(failed)} of {len(last)} sessions failed; the others finished.\n{reasons}")


def _baseline(spec: LabSpec, data: Path) -> float | None:
    try:
        data.mkdir(parents=True, exist_ok=True)
        return random_return(spec, data)
    except OSError as error:
        raise LabError(
            f"can't write to {data}: {error.strerror or error}. Check its permissions and free space."
        ) from error


def _shortened(spec: LabSpec) -> dict[str, Any]:
    """The spec of a dev run: one session, capped frames, a row of metrics often enough to see something."""
    raw = spec.dump()
    max_frame = min(spec.env.max_frame, spec.meta.dev_max_frame)
    raw["env"]["max_frame"] = max_frame
    caps = {
        "log_frequency": max(1, max_frame // 50),
        "eval_frequency": max(1, max_frame // 10),
        "checkpoint_frequency": max(1, max_frame // 10),
    }
    raw["meta"] |= {"max_session": 1, **{key: min(raw["meta"][key], cap) for key, cap in caps.items()}}
    return raw


def _best(run: RunDir, sessions: int) -> tuple[int, dict[str, Any]]:
    found = {i: state for i in range(sessions) if (state := checkpoint.load(run.model, f"session{i}_best")) is not None}
    if not found:
        raise LabError(
            f"{run.path} has no best checkpoint yet: no episode was finished. Train it on with train@{run.path}."
        )
    session = max(found, key=lambda i: float(found[i]["score"]))
    return session, found[session]


def _load_best(agent: Any, state: dict[str, Any], run: RunDir) -> None:
    try:
        agent.algorithm.load_state_dict(state["algorithm"])
    except (RuntimeError, KeyError, ValueError) as error:
        raise LabError(f"the checkpoint in {run.model} doesn't fit the spec in {run.spec_file}: {error}") from error


def _write_gif(pictures: list[Any], file: Path, console: Console) -> None:
    frames = [picture for picture in pictures if getattr(picture, "ndim", 0) == 3]
    if not frames:
        console.print("this env draws no pictures, so there is no GIF", highlight=False)
        return
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(file, save_all=True, append_images=images[1:], duration=33, loop=0)
    console.print(f"film:    {file} ({len(images)} frames)", highlight=False, soft_wrap=True)
