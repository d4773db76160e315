"""What each mode of the command line does: train, dev, enjoy, plot."""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

from rich.console import Console

from slm_lab import __version__
from slm_lab.agent import checkpoint
from slm_lab.agent.agent import Agent
from slm_lab.agent.build import build_agent
from slm_lab.env.vec import VecEnv, make_env
from slm_lab.experiment.analysis import analyze_session, analyze_trial, load_run, plural
from slm_lab.experiment.display import Display
from slm_lab.experiment.evaluate import Played, play, random_return
from slm_lab.experiment.plot import draw_run
from slm_lab.experiment.report import write_report
from slm_lab.experiment.run_dir import RunDir, unwritable
from slm_lab.experiment.session import Progress
from slm_lab.experiment.trial import run_alone, run_sessions
from slm_lab.lib.errors import LabError
from slm_lab.lib.log import log_to, note
from slm_lab.spec.lab_spec import LabSpec
from slm_lab.spec.validate import resolve

logger = logging.getLogger("slm_lab")

ENJOY_EPISODES = 10
GIF_FRAMES = 500


# ---- the modes -------------------------------------------------------------------------------------------------------


def train(spec: LabSpec, data: Path, console: Console) -> RunDir:
    """A new run: all sessions, then metrics, graphs and report."""
    baseline = _baseline(spec, data)
    run = RunDir.create(data, spec.name, {"name": spec.name, **spec.dump()}, "train")
    return _run_trial(spec, run, baseline, console)


def resume(run: RunDir, data: Path, console: Console) -> RunDir:
    """A run that was stopped or killed goes on from its checkpoints, with the spec it was started with."""
    spec = stored_spec(run)
    return _run_trial(spec, run, _baseline(spec, data), console, check=run.mode() == "dev")


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
    film = _Film()
    env = _watchable(spec)
    try:
        agent = build_agent(spec.agent, env.obs_space, env.action_space, 1, seed=0)
        _step_into(agent, env, state, run)
        score = f"best at frame {state['frame']:,}, return {state['score']:.2f}"
        _say(console, f"{run.path}: session {session}, {score}")
        played = play(agent, env, episodes, seed=0, on_step=lambda: film.shoot(env))
    finally:
        env.close()
    _print_episodes(played, console)
    film.write(run.graph / "enjoy.gif", console)
    return [float(total) for total in played.returns]


def replot(run: RunDir, data: Path, console: Console) -> None:
    """Draw a run's graphs and report again."""
    spec = stored_spec(run)
    problem = finish(run, _baseline(spec, data), console)
    if problem:
        raise problem


def stored_spec(run: RunDir) -> LabSpec:
    """The spec that a run was started with."""
    facts = run.read_spec()
    return resolve({key: facts[key] for key in ("agent", "env", "meta", "search") if key in facts}, facts["name"])


# ---- a trial ---------------------------------------------------------------------------------------------------------


def _run_trial(spec: LabSpec, run: RunDir, baseline: float | None, console: Console, check: bool = False) -> RunDir:
    many = spec.meta.max_session > 1
    sessions = plural(spec.meta.max_session, "session")
    title = f"{spec.name}: {spec.agent.name} in {spec.env.name}, {sessions} of {spec.env.max_frame:,} frames"
    found: list[str] = []
    with run.lock(), log_to(run.log / "run.log"):
        note(f"slm_lab {__version__}: {shlex.join(sys.argv)}")
        note(title)
        try:
            with Display(f"{title}\n{run.path}{_so_far(run)}", spec.meta.max_session, spec.env.max_frame, console) as d:
                if many:
                    last = run_sessions(spec, run, d.update)
                else:
                    progress, found = run_alone(spec, run, d.update, check)
                    last = [progress]
            problem = finish(run, baseline, console, spec.meta.png)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"Nothing saved is lost. Go on with: {_command('train', run)}") from None
        if check and last[0].status == "done":
            _print_check(found, console)
        elif not check:
            _warn_untrained(run, spec)
        _print_end(last, run, console, problem)
    return run


def finish(run: RunDir, baseline: float | None, console: Console, png: bool = True) -> LabError | None:
    """Metrics, graphs and report from what the sessions have saved; the error if they can't be written.

    A picture that fails is a warning.
    """
    try:
        for session in range(run.read_spec()["meta"]["max_session"]):
            if run.session_file(session, "session_df_train.csv").exists():
                analyze_session(run.path, 0, session, baseline)
        scalar = analyze_trial(run.path).get("scalar", {})
        _print_result(run, scalar, baseline, console)
        if console.is_terminal:
            _say(console, "drawing graphs ...")
        draw_run(run.path, png=png)
        page = write_report(run.path)
    except OSError as error:
        return LabError(f"{unwritable(run.path, error)} Then draw the graphs with: {_command('plot', run)}")
    except LabError as error:
        return error
    _say(console, f"report   {page}\ngraphs   {run.graph}")
    return None


def _so_far(run: RunDir) -> str:
    """' (going on from frame ...)' for a run that has checkpoints."""
    frames = []
    for pointer in run.model.glob("session*.json"):
        try:
            frames += [] if pointer.stem.endswith("_best") else [int(json.loads(pointer.read_text())["frame"])]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # the session will tell
    span = f"{min(frames, default=0):,}" + (f" to {max(frames):,}" if len(set(frames)) > 1 else "")
    return f" (going on from frame {span})" if frames else ""


def _baseline(spec: LabSpec, data: Path) -> float | None:
    """Mean return of random play; None, and a warning, where the env breaks off."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        return random_return(spec, data)
    except LabError as error:
        logger.warning("no random baseline, so no strength: %s", error)
        return None
    except OSError as error:
        raise unwritable(data, error) from error


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


# ---- what is said at the end -----------------------------------------------------------------------------------------


def _say(console: Console, text: str) -> None:
    """A line as it is: no colours in numbers, no markup, a path in one piece."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _command(mode: str, run: RunDir) -> str:
    words = ["plot", str(run.path)] if mode == "plot" else [f"{mode}@{run.path}"]
    return f"python run_lab.py {shlex.join(words)}"


def _print_result(run: RunDir, scalar: dict[str, Any], baseline: float | None, console: Console) -> None:
    """The headline: how good it is, and against what."""
    tables = load_run(run.path).evaluation.values()
    last = [float(df["total_reward"].dropna().iloc[-1]) for df in tables if df["total_reward"].notna().any()]
    if last:
        _say(console, f"eval     {sum(last) / len(last):.2f} (mean return of the last greedy evaluation)")
    known = {name: value for name, value in scalar.items() if isinstance(value, float | int) and math.isfinite(value)}
    if "final_return" not in known:
        _say(console, "return   – (no episode has ended)")
        return
    count = int(known.get("num_session", 1))
    spread = f" ± {known['final_return_std']:.2f}" if "final_return_std" in known and count > 1 else ""
    where = f", {count} sessions" if count > 1 else ""
    more = [
        f"{name} {known[key]:.2f}" for name, key in (("best", "best_return"), ("strength", "strength")) if key in known
    ]
    more += [f"random {baseline:.2f}"] if baseline is not None else []
    _say(console, f"return   {known['final_return']:.2f}{spread} (last 100 episodes{where}), {', '.join(more)}")


def _print_check(found: list[str], console: Console) -> None:
    for finding in found or ["every parameter got a gradient and moved; no NaN"]:
        _say(console, f"check    {finding}")
        note(f"check: {finding}")


def _warn_untrained(run: RunDir, spec: LabSpec) -> None:
    """A run whose frames were too few for one update has learned nothing; better said."""
    tables = load_run(run.path).train.values()
    steps = [float(df["opt_step"].max()) for df in tables if "opt_step" in df]
    if steps and max(steps) == 0 and spec.agent.algorithm.name != "Random":
        logger.warning(
            "no gradient step was taken in %s frames: give more env.max_frame, or train more often",
            f"{spec.env.max_frame:,}",
        )


def _print_end(last: list[Progress], run: RunDir, console: Console, problem: LabError | None) -> None:
    """How to go on; raises `LabError` when sessions failed or what they gave can't be written."""
    failed = [p for p in last if p.status == "failed"]
    if failed:
        raise LabError(_failures(failed, last, run))
    if problem:
        raise problem
    if any(p.status != "done" for p in last):
        _say(console, f"stopped. Go on with: {_command('train', run)}")
    elif any(run.model.glob("*_best.json")):
        _say(console, f"play it  {_command('enjoy', run)}")


def _failures(failed: list[Progress], last: list[Progress], run: RunDir) -> str:
    """Who failed of what (the same reason once), where the traceback is, how to go on."""
    reasons: dict[str, list[int]] = {}
    for p in failed:
        reasons.setdefault(p.message.strip(), []).append(p.session)
    parts = []
    for reason, sessions in reasons.items():
        who = f"session{'s' if len(sessions) > 1 else ''} {', '.join(map(str, sessions))}: "
        parts.append(f"{who if len(last) > 1 else ''}{reason}")
    if len(failed) < len(last):
        parts.insert(0, f"{len(failed)} of {len(last)} sessions failed; the others went on.")
    files = (
        [run.log / "run.log"] if len(last) == 1 else [run.log / f"session{p.session}.log" for p in failed if p.trace]
    )
    logs = [str(file) for file in files if file.exists()]
    if logs and any(p.trace for p in failed):
        parts.append(f"The traceback is in {', '.join(logs)}.")
    return "\n".join([*parts, f"When the cause is mended, go on with: {_command('train', run)}"])


# ---- playing the best checkpoint -------------------------------------------------------------------------------------


def _step_into(agent: Agent, env: VecEnv, state: dict[str, Any], run: RunDir) -> None:
    """Give agent and wrappers what the best checkpoint holds. Raises `LabError` where it is of another spec."""
    try:
        if state.get("fingerprint", run.fingerprint()) != run.fingerprint():
            raise ValueError("another spec")
        agent.algorithm.load_state_dict(state["algorithm"])
        env.reset(0)
        env.load_wrapper_state(state["wrappers"])
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise LabError(
            f"the best checkpoint in {run.model} isn't of the spec in {run.spec_file}, or of other code. "
            "Restore the files, or train a new run."
        ) from error
    env.freeze()


def _best(run: RunDir, sessions: int) -> tuple[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for i in range(sessions):
        state = checkpoint.load(run.model, f"session{i}_best")
        if state is None:
            continue
        if not {"score", "frame", "algorithm", "wrappers"} <= state.keys():
            raise LabError(f"{run.model / f'session{i}_best.json'} isn't a best checkpoint. Restore it, or train anew.")
        found[i] = state
    if not found:
        raise LabError(
            f"{run.path} has no best checkpoint: no episode has ended yet. Train it on with: {_command('train', run)}"
        )
    session = max(found, key=lambda i: float(found[i]["score"]))
    return session, found[session]


def _watchable(spec: LabSpec) -> VecEnv:
    """One world that draws pictures, or one that doesn't where it can't. No display is needed for it."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return make_env(spec.env, num_envs=1, render_mode="rgb_array")
        except LabError:
            return make_env(spec.env, num_envs=1)


def _print_episodes(played: Played, console: Console) -> None:
    for i, (total, length) in enumerate(zip(played.returns, played.lengths, strict=True)):
        _say(console, f"episode {i}: return {total:.2f}, {length} steps")
    mean, std = played.returns.mean(), played.returns.std()
    _say(console, f"mean return {mean:.2f} ± {std:.2f} over {plural(len(played.returns), 'episode')}")


class _Film:
    """Pictures of the first steps; one that can't be drawn ends the film, not the play."""

    def __init__(self) -> None:
        self.pictures: list[Any] = []
        self.problem = "this env draws no pictures"

    def shoot(self, env: VecEnv) -> None:
        if len(self.pictures) >= GIF_FRAMES:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.pictures += [picture for picture in env.render()[:1] if getattr(picture, "ndim", 0) == 3]
        except NotImplementedError:
            return
        except Exception as error:  # whatever a drawing package raises: the returns are what counts
            if "render mode" not in str(error):  # Gymnasium's words for an env that has none
                self.problem = f"the env can't draw: {error}"

    def write(self, file: Path, console: Console) -> None:
        if not self.pictures:
            _say(console, f"no GIF: {self.problem}")
            return
        from PIL import Image

        images = [Image.fromarray(picture) for picture in self.pictures]
        try:
            images[0].save(file, save_all=True, append_images=images[1:], duration=33, loop=0)
        except OSError as error:
            logger.warning("no GIF: %s", unwritable(file, error))
            return
        _say(console, f"film     {file} ({len(images)} frames)")
