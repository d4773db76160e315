"""Where the time of a training goes: python -m bench.profile SPEC_FILE [SPEC_NAME] [--frames N]

The bare loop of a spec's agent and worlds (no logs, no checkpoints) under pyinstrument, of the extra `[bench]`: a tree
of calls with the seconds of each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from bench.race import LabLearner
from bench.words import count
from slm_lab.lib.errors import LabError
from slm_lab.spec.load import apply_overrides, load_file, pick
from slm_lab.spec.validate import resolve

LEAST = 0.01  # share of the whole below which a call isn't shown
EVERY = 0.0005  # seconds between looks


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 2 for what the user gave."""
    parser = argparse.ArgumentParser(prog="run_lab.py bench profile", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", metavar="SPEC_FILE")
    parser.add_argument("name", metavar="SPEC_NAME", nargs="?", help="where the file has several")
    parser.add_argument("--frames", type=count, default=10_000, metavar="N", help="default: 10,000; as many warm up")
    args = parser.parse_args(argv)
    try:
        print(profile(args.file, args.name, args.frames))
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def profile(file: str, name: str | None, frames: int) -> str:
    """The tree of calls of `frames` frames that follow as many unwatched ones. Raises `LabError`."""
    if find_spec("pyinstrument") is None:
        raise LabError("pyinstrument isn't installed: pip install -e '.[bench]'")
    import torch
    from pyinstrument import Profiler

    name, raw = pick(load_file(file), name, file)
    spec = resolve(apply_overrides(raw, [f"env.max_frame={2 * frames}"]), name)
    torch.set_num_threads(spec.meta.torch_threads)
    learner, profiler = LabLearner(spec, spec.meta.seed), Profiler(interval=EVERY)
    play(learner, frames)
    first = learner.frame, learner.agent.opt_step
    with profiler:
        play(learner, 2 * frames)
    played, updates = learner.frame - first[0], learner.agent.opt_step - first[1]
    tree: str = profiler.output_text(color=sys.stdout.isatty(), processor_options={"filter_threshold": LEAST})
    return f"{spec.name}: {played:,} frames, {updates:,} gradient steps\n{tree}"


def play(learner: LabLearner, until: int) -> None:
    while learner.frame < until:
        learner.advance(until)


if __name__ == "__main__":
    sys.exit(main())
