"""Mode enjoy: the best checkpoint of a run, played greedily and filmed where the env can draw."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from slm_lab.agent import checkpoint
from slm_lab.agent.agent import Agent
from slm_lab.agent.build import build_agents
from slm_lab.agent.multi import MultiAgent
from slm_lab.env.vec import VecEnv, make_env
from slm_lab.experiment.display import say
from slm_lab.experiment.evaluate import Played, play
from slm_lab.experiment.plot import draw_enjoyed
from slm_lab.experiment.run_dir import RunDir, unwritable
from slm_lab.experiment.xray import Xray, sentences
from slm_lab.lib.errors import LabError, plural
from slm_lab.lib.rng import world_seed
from slm_lab.spec.lab_spec import LabSpec
from slm_lab.spec.parts import TASK

logger = logging.getLogger("slm_lab")

ENJOY_EPISODES = 10
GIF_FRAMES = 500
ENJOY_WORLDS = 4  # a stream of seeds that neither training nor evaluation has seen


def enjoy(run: RunDir, console: Console, episodes: int = ENJOY_EPISODES) -> list[float]:
    """Play the best checkpoint of a run greedily; prints returns, and records a GIF where the env can draw."""
    spec = run.stored_spec()
    session, state = best(run, range(spec.meta.max_session))
    film = _Film()
    env, xray = _watchable(spec), Xray()
    try:
        agent = build_agents(spec.agent, env.world, seed=0)
        step_into(agent, env, state, run)
        score = f"best at frame {state['frame']:,}, return {state['score']:.2f}"
        say(console, f"{run.path}: session {session}, {score}")
        first = world_seed(spec.meta.seed, ENJOY_WORLDS)
        played = play(agent, env, episodes, first, on_step=lambda: film.shoot(env), xray=xray)
    finally:
        env.close()
    _print_episodes(played, console)
    film.write(run.graph / "enjoy.gif", console)
    _write_xray(xray, run, session, int(state["frame"]), console)
    return [float(total) for total in played.returns]


def step_into(agent: Agent | MultiAgent, env: VecEnv, state: dict[str, Any], run: RunDir) -> None:
    """Give agent and wrappers what the best checkpoint holds. Raises `LabError` where it is of another spec."""
    try:
        if state.get("fingerprint", run.fingerprint()) != run.fingerprint():
            raise ValueError("another spec")
        agent.load_learned(state["algorithm"])
        env.reset(0)
        env.load_wrapper_state(state["wrappers"])
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise LabError(
            f"the best checkpoint in {run.model} isn't of the spec in {run.spec_file}, or of other code. "
            "Restore the files, or train a new run."
        ) from error
    env.freeze()


def best(run: RunDir, sessions: Iterable[int]) -> tuple[int, dict[str, Any]]:
    """The best session of these and its best checkpoint; one lucky episode never stands against a full mean. Raises
    `LabError` where there is none.
    """
    found: dict[int, dict[str, Any]] = {}
    for i in sessions:
        state = checkpoint.load(run.model, f"session{i}_best")
        if state is None:
            continue
        if not {"score", "frame", "algorithm", "wrappers"} <= state.keys():
            raise LabError(f"{run.model / f'session{i}_best.json'} isn't a best checkpoint. Restore it, or train anew.")
        found[i] = state
    if not found:
        raise LabError(
            f"{run.path} has no best checkpoint: no episode has ended yet. Train it on with: {run.command('train')}"
        )
    session = max(found, key=lambda i: (bool(found[i].get("sure", True)), float(found[i]["score"])))
    return session, found[session]


def _watchable(spec: LabSpec) -> VecEnv:
    """One world that draws pictures, or one that doesn't where it can't. No display is needed for it."""
    if spec.env.name in TASK:  # they draw none, and tell their cues to the x-ray
        return make_env(spec.env, num_envs=1)
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return make_env(spec.env, num_envs=1, render_mode="rgb_array")
        except LabError:
            return make_env(spec.env, num_envs=1)


def _print_episodes(played: Played, console: Console) -> None:
    for i, (total, length) in enumerate(zip(played.returns, played.lengths, strict=True)):
        say(console, f"episode {i}: return {total:.2f}, {length} steps")
    mean, std = played.returns.mean(), played.returns.std()
    say(console, f"mean return {mean:.2f} ± {std:.2f} over {plural(len(played.returns), 'episode')}")


def _write_xray(xray: Xray, run: RunDir, session: int, frame: int, console: Console) -> None:
    """What was remembered meanwhile, in words and pictures, if the core shows it."""
    figures = xray.figures()
    if figures is None:
        return
    for told in sentences(figures):
        say(console, f"memory   {told}")
    try:
        xray.write(run.session_file(session, "enjoy_xray.json"), frame=frame)
        written = draw_enjoyed(run.path, run.trial)
    except OSError as error:
        logger.warning("no memory x-ray: %s", unwritable(run.path, error))
        return
    for file in written:
        say(console, f"x-ray    {file}")


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
            say(console, f"no GIF: {self.problem}")
            return
        from PIL import Image

        try:
            images = [Image.fromarray(picture) for picture in self.pictures]
            images[0].save(file, save_all=True, append_images=images[1:], duration=33, loop=0)
        except OSError as error:
            logger.warning("no GIF: %s", unwritable(file, error))
            return
        except (TypeError, ValueError) as error:  # numbers that are no colours
            say(console, f"no GIF: what the env draws is no picture of bytes [H, W, 3]: {error}")
            return
        say(console, f"film     {file} ({len(images)} frames)")
