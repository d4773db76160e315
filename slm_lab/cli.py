"""The command line. Thin: it reads words, and calls what does the work; heavy packages are imported only then."""

from __future__ import annotations

import argparse
import ast
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from slm_lab import __version__
from slm_lab.lib.errors import LabError, did_you_mean
from slm_lab.lib.registry import own_place
from slm_lab.spec.parts import FAMILIES

if TYPE_CHECKING:
    from rich.console import Console

    from slm_lab.experiment.run_dir import RunDir
    from slm_lab.spec.lab_spec import LabSpec

MODES = ("dev", "train", "enjoy", "search")
RESUMED = ("train", "enjoy", "search")  # those that go on with a run: MODE@latest, MODE@RUN_DIR
SHOWN_MODES = ("dev", "train", "train@latest", "enjoy@latest", "search", "search@latest")
ENTRY = "python run_lab.py"
BENCH = Path(__file__).resolve().parents[1] / "bench"
USAGE = """python run_lab.py SPEC_FILE [SPEC_NAME] MODE [--set KEY=VALUE] ...
       python run_lab.py list [FAMILY] | check SPEC_FILE [SPEC_NAME] | show SPEC_FILE [SPEC_NAME] | plot RUN_DIR ...
       python run_lab.py bench [NAME ...]
       python run_lab.py export RUN_DIR [--format npz|hdf5] [--session N] [--episodes N [--explore]]"""
HELP = """
modes:
  dev                   short, checked run: one session, capped frames
  train                 all sessions, all frames; metrics, graphs and report in data/
  train@latest          go on with the latest run of this spec where it stopped; or train@RUN_DIR
  enjoy@latest          play the best checkpoint of the latest run; or enjoy@RUN_DIR
  search                trials over the spec's search section, by Ray Tune; table, graphs and the best spec
  search@latest         go on with the latest search where it stopped; or search@RUN_DIR; --max-trial N adds trials

other commands:
  list [FAMILY]         the parts that a spec can name: """ + ", ".join(FAMILIES) + """
  check SPEC_FILE       validate without running
  show SPEC_FILE        the resolved spec, every default written out
  plot RUN_DIR          draw the graphs and the report again from the saved metrics
  plot RUN_DIR RUN_DIR  compare runs: their returns in one graph and a table; LABEL=RUN_DIR gives its name there
  export RUN_DIR        write what its replay memory holds as a file to learn from (env.dataset), under
                        RUN_DIR/export; or with --episodes N what its best checkpoint plays
  bench [NAME ...]      run a benchmark with its own options (bench NAME --help); without a name: which there are

SPEC_NAME may be left out when the file holds one spec, or one named like the file.

examples:
  python run_lab.py specs/ppo_memory.json dev
  python run_lab.py specs/benchmark/cartpole.json ppo_cartpole train --set env.max_frame=50000
  python run_lab.py bench memory_task --delays 4,16 --seeds 3
"""  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 (also where Ctrl-C has stopped a run in good order), 2 for an error of the user
    or the machine, 130 where Ctrl-C broke it off.

    A benchmark raises SystemExit with its own.
    """
    try:
        with suppress(OSError):  # a folder that was deleted
            if os.getcwd() not in sys.path:  # for worlds and modules of the user's own; last, so that it hides nothing
                sys.path.append(os.getcwd())
        _do(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"interrupted. {error}".strip(), file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("slm_lab"):
            raise
        place = own_place(error)
        cure = f"pip install {error.name}" if place else "pip install -e ."
        ours = "" if place else "Run the lab with .venv/bin/python (make run builds it), or "
        message = f"{place}the package {error.name!r} isn't installed for {sys.executable}. {ours}type: {cure}"
        print(f"error: {message}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `run_lab.py show ... | head`: nobody reads on, so nothing is left to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # the machine refused
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    return 0


def _do(typed: list[str]) -> None:
    if typed[:1] == ["bench"]:  # its options aren't ours to read
        _bench(typed[1:])
        return
    args = _parser().parse_intermixed_args(typed)
    words = args.words
    _only_for(("export",), words[0], args, "format", "session", "episodes", "explore")
    mode, at, _ = words[-1].partition("@")
    _only_for(("search",), mode, args, "max_trial", "ray_address")
    _only_for(("search@",), mode + at, args, "force")
    if args.set and words[0] in ("list", "plot", "export"):
        raise LabError(f"--set changes a spec, and {words[0]} reads none. See {ENTRY} --help")
    if words[0] in COMMANDS:
        COMMANDS[words[0]](words[1:], args)
    else:
        _run(words, args)


class _Parser(argparse.ArgumentParser):
    """Tells its errors as the rest of the lab does."""

    def error(self, message: str) -> NoReturn:
        raise LabError(f"{message}. See {ENTRY} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="run_lab.py",
        usage=USAGE,
        description="SLM Lab: the lab for memory in reinforcement learning",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="+", metavar="SPEC_FILE [SPEC_NAME] MODE", help="what to run, or a command")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key, e.g. agent.algorithm.gamma=0.95; may be given again",
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data"), metavar="DIR", help="where runs are kept (default: data)"
    )
    parser.add_argument("--max-trial", type=int, metavar="N", help="search: how many trials, also of one to go on with")
    parser.add_argument("--ray-address", metavar="HOST:PORT", help="search: on a running Ray cluster (or $RAY_ADDRESS)")
    parser.add_argument("--force", action="store_true", default=None, help="search@: though the spec file has changed")
    parser.add_argument("--format", metavar="npz|hdf5", help="export: format of the file (default: npz)")
    parser.add_argument("--session", type=int, metavar="N", help="export: of which session (default: 0, or the best)")
    parser.add_argument("--episodes", type=int, metavar="N", help="export: new episodes, played by the best checkpoint")
    parser.add_argument("--explore", action="store_true", default=None, help="export: they explore (default: greedy)")
    parser.add_argument("--version", action="version", version=f"slm_lab {__version__}")
    return parser


def _only_for(commands: tuple[str, ...], command: str, args: argparse.Namespace, *names: str) -> None:
    """Options that another command would ignore."""
    given = [name.replace("_", "-") for name in names if getattr(args, name) is not None]
    if given and command not in commands:
        raise LabError(f"--{given[0]} is for {commands[0]}. See {ENTRY} --help")


# --- modes ---


def _run(words: list[str], args: argparse.Namespace) -> None:
    """SPEC_FILE [SPEC_NAME] MODE; for train@RUN_DIR and enjoy@ the spec file may be left out."""
    mode, at, which = words[-1].partition("@")
    if mode not in MODES:
        raise LabError(_no_mode(words))
    if len(words) > 3:
        raise LabError(f"too many words: {' '.join(words)}. Expected: {USAGE.splitlines()[0]}")
    if at and mode not in RESUMED:
        raise LabError(f"'{words[-1]}': only train, enjoy and search go on with a run. Use train@latest.")
    if (at and not which) or (mode == "enjoy" and not at):
        what = "plays" if mode == "enjoy" else "goes on with"
        raise LabError(f"{mode}@ {what} which run? Use {mode}@latest, or {mode}@RUN_DIR.")
    if not at and len(words) == 1:
        raise LabError(f"which spec? Expected: {USAGE.splitlines()[0]}")
    if mode == "search":
        if args.max_trial is not None and args.max_trial < 1:
            raise LabError(f"--max-trial {args.max_trial}: at least one trial was expected")
        _search_on(words[:-1], which, args) if at else _search(words[:-1], args)
    else:
        _go_on(words[:-1], mode, which, args) if at else _begin(words[:-1], mode, args)


def _no_mode(words: list[str]) -> str:
    """What is wrong with words that don't end with a mode."""
    last = words[-1]
    override = next((word for word in words[1:] if "=" in word), None)
    if override:
        return f"'{override}': every override needs a --set of its own: --set a.b=1 --set c.d=2"
    if last in COMMANDS:
        return f"'{last}' goes first: {ENTRY} {shlex.join([last, *words[:-1]])}"
    if words[0].partition("@")[0] in MODES and len(words) > 1:
        return f"the mode goes last: {ENTRY} {shlex.join([*words[1:], words[0]])}"
    if last.endswith((".json", ".yaml", ".yml")) or (len(words) == 2 and (Path(last).is_file() or _is_spec(*words))):
        return f"which mode? {ENTRY} {shlex.join(words)} MODE, where MODE is {', '.join(SHOWN_MODES)}."
    near = did_you_mean(last, [*SHOWN_MODES, *(COMMANDS if len(words) == 1 else ())])
    return f"unknown mode '{last}'.{near}"


def _is_spec(file: str, name: str) -> bool:
    """Whether that file holds a spec of that name."""
    from slm_lab.spec.load import load_file

    with suppress(LabError):
        return name in load_file(file)
    return False


def _begin(words: list[str], mode: str, args: argparse.Namespace) -> None:
    spec, _ = _resolved(words, args, sessions=1 if mode == "dev" else None)
    console = _console()
    from slm_lab.experiment import control

    {"dev": control.dev, "train": control.train}[mode](spec, args.data, console)


def _search(words: list[str], args: argparse.Namespace) -> None:
    """SPEC_FILE [SPEC_NAME] search"""
    spec, raw = _resolved(words, args, sessions=1)  # how many trials run at once is asked later
    from slm_lab.experiment.search import control

    control.search(spec, raw, args.data, _console(), args.max_trial, args.ray_address)


def _search_on(words: list[str], which: str, args: argparse.Namespace) -> None:
    """[SPEC_FILE [SPEC_NAME]] search@RUN_DIR; a spec that is given must be the one that it was started with."""
    name, raw = _written(words, args) if words else (None, None)
    if args.set and not words:
        raise LabError("--set belongs to a spec file: SPEC_FILE [SPEC_NAME] search@latest --set KEY=VALUE")
    from slm_lab.experiment.run_dir import RunDir

    run = RunDir.find(args.data, name, which, mode="search")
    from slm_lab.experiment.search import control

    control.resume(run, raw, bool(args.force), _console(), args.max_trial, args.ray_address)


def _go_on(words: list[str], mode: str, which: str, args: argparse.Namespace) -> None:
    if args.set:
        raise LabError(
            "--set can't change a run that was started: it goes on with the spec saved in its folder. Start a new run. "
            "Only to play for longer, write a larger env.max_frame into RUN_DIR/spec.json."
        )
    name, raw = _raw(words) if words else (None, None)
    from slm_lab.experiment.run_dir import RunDir

    run = RunDir.find(args.data, name, which, mode="train" if mode == "train" else None)
    if mode == "enjoy":
        from slm_lab.experiment import enjoy
        from slm_lab.experiment.search.ledger import best_run

        enjoy.enjoy(best_run(run), _console())
    elif run.mode() == "search":
        raise LabError(f"{run.path} is a search. Go on with: {run.command('search')}")
    else:
        from slm_lab.experiment import control

        if raw is not None:
            _tell_changes(words[0], raw, run)
        control.resume(run, args.data, _console())


def _tell_changes(file: str, raw: dict[str, Any], run: RunDir) -> None:
    """A run goes on with the spec that it was started with; what its file says otherwise by now is told."""
    from slm_lab.spec.explain import changes
    from slm_lab.spec.validate import resolve

    started = run.stored_spec()
    try:
        written = resolve(raw, started.name, check_env=False).dump()
    except LabError:
        return  # of no matter to this run
    for line in changes(started.dump(), written):
        print(f"note: {file} says otherwise, the run goes on as it was started: {line}", file=sys.stderr)


def _raw(words: list[str]) -> tuple[str, dict[str, Any]]:
    """Name and raw spec of `SPEC_FILE [SPEC_NAME]`."""
    from slm_lab.spec.load import load_file, pick

    return pick(load_file(words[0]), words[1] if len(words) > 1 else None, words[0])


def _written(words: list[str], args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Name and raw spec, with the overrides."""
    from slm_lab.spec.load import apply_overrides

    name, raw = _raw(words)
    return name, apply_overrides(raw, args.set)


def _resolved(
    words: list[str], args: argparse.Namespace, sessions: int | None = None
) -> tuple[LabSpec, dict[str, Any]]:
    """The spec, and as it is written; there must be room for so many sessions, or for all that train would run."""
    from slm_lab.spec.lab_spec import Room
    from slm_lab.spec.validate import resolve

    name, raw = _written(words, args)
    spec = resolve(raw, name, data=args.data, room=Room(sessions))
    for note in spec.notes:
        print(f"note: {note}", file=sys.stderr)
    return spec, raw


def _console() -> Console:
    """The console; the lab's log goes through it."""
    import logging

    from rich.console import Console

    from slm_lab.experiment.display import ConsoleHandler

    console = Console()
    logger = logging.getLogger("slm_lab")
    logger.handlers = [ConsoleHandler(console)]
    logger.setLevel(logging.INFO)
    return console


# --- commands ---


def _list(words: list[str], args: argparse.Namespace) -> None:
    unknown = [word for word in words if word not in FAMILIES]
    if unknown:
        raise LabError(f"unknown family '{unknown[0]}'.{did_you_mean(unknown[0], FAMILIES)}")
    for family in words or FAMILIES:
        print(family)
        for name in FAMILIES[family]:
            print(f"  {name:<20} {FAMILIES[family].summary(name)}")
    print("of your own: module:Class, of a module in this folder (docs/adding_a_part.md); a world: module:Id")


def _at_most(count: int, words: list[str]) -> None:
    if len(words) > count:
        raise LabError(f"too many words: {' '.join(words[count:])}. Expected: SPEC_FILE [SPEC_NAME]")


def _check(words: list[str], args: argparse.Namespace) -> None:
    """One spec, or without a name every spec of the file."""
    from slm_lab.spec.load import load_file
    from slm_lab.spec.search import check_search

    if not words:
        raise LabError("which spec file? Expected: check SPEC_FILE [SPEC_NAME]")
    _at_most(2, words)
    names = words[1:2] or list(load_file(words[0]))
    errors = []
    for name in names:
        try:
            spec, raw = _resolved([words[0], name], args)
            if spec.search:
                check_search(raw, spec)
            print(f"{name}: ok")
        except LabError as error:
            errors.append(str(error))
    if errors:
        raise LabError("\n".join(errors))


def _show(words: list[str], args: argparse.Namespace) -> None:
    import json

    if not words:
        raise LabError("which spec file? Expected: show SPEC_FILE [SPEC_NAME]")
    _at_most(2, words)
    spec, _ = _resolved(words, args)
    print(json.dumps({spec.name: spec.dump()}, indent=2))


def _plot(words: list[str], args: argparse.Namespace) -> None:
    """One run drawn again, or several in one graph."""
    if not words:
        raise LabError("which run? Expected: plot RUN_DIR [RUN_DIR ...]")
    from slm_lab.experiment.run_dir import RunDir

    split = [("", word) if Path(word).is_dir() else word.rpartition("=")[::2] for word in words]  # LABEL=RUN_DIR
    labels = [label for label, _ in split]
    runs = [RunDir.find(args.data, None, which) for _, which in split]
    from slm_lab.experiment import control
    from slm_lab.experiment.search import control as search

    if len(runs) == 1 and runs[0].mode() == "search":
        search.redraw(runs[0], _console())
    elif len(runs) == 1:
        control.replot(runs[0], args.data, _console())
    else:
        control.compare(runs, args.data, _console(), labels)


def _export(words: list[str], args: argparse.Namespace) -> None:
    """A run's experience as a file."""
    if len(words) != 1:
        raise LabError("which run? Expected: export RUN_DIR [--format npz|hdf5] [--session N] [--episodes N]")
    from slm_lab.experiment.run_dir import RunDir

    run = RunDir.find(args.data, None, words[0])
    from slm_lab.experiment.export import export
    from slm_lab.experiment.search.ledger import best_run

    export(best_run(run), _console(), args.format or "npz", args.session, args.episodes, bool(args.explore))


def _bench(words: list[str]) -> None:
    """A program of the folder bench, run as `python -m bench.NAME` would; without a name, which there are."""
    programs = _programs()
    if not words or words[0] in ("-h", "--help"):
        for name, what in programs.items():
            print(f"{name:<20} {what}")
        return
    if words[0] not in programs:
        raise LabError(f"unknown benchmark '{words[0]}'.{did_you_mean(words[0], programs)}")
    import runpy

    before, path = sys.argv, str(BENCH.parent)
    sys.path[:0] = [] if path in sys.path else [path]
    sys.argv = words
    try:
        runpy.run_module(f"{BENCH.name}.{words[0]}", run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before


def _programs() -> dict[str, str]:
    """Names and first lines of what can be run there; read, not imported: some need torch, some an extra."""
    if not BENCH.is_dir():
        raise LabError(f"there is no {BENCH}: benchmarks come with the repository. Run the command in a clone of it.")
    trees = {file.stem: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(BENCH.glob("*.py"))}
    return {
        name: (ast.get_docstring(tree) or "").partition("\n")[0]
        for name, tree in trees.items()
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
    }


def _bench_first(words: list[str], args: argparse.Namespace) -> None:
    """Options before the word bench would be ours, and of no use to it."""
    raise LabError(f"'bench' goes first: {ENTRY} {shlex.join(['bench', *words])}, then its own options")


COMMANDS = {"list": _list, "check": _check, "show": _show, "plot": _plot, "export": _export, "bench": _bench_first}
