"""From a file on disk to one raw spec: read, pick by name, override from the command line."""

from __future__ import annotations

import copy
import functools
import json
import logging
import operator
import re
from collections.abc import Iterable, Mapping
from json.decoder import JSONObject  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import yaml

from slm_lab.lib.errors import LabError, did_you_mean
from slm_lab.lib.registry import Registry
from slm_lab.lib.tree import tree_copy
from slm_lab.spec.parts import ALGORITHM, CORE, ENTRY, MEMORY, NET
from slm_lab.spec.variables import reads

logger = logging.getLogger("slm_lab")

PARTS = {
    "agent.algorithm": ALGORITHM, "agent.memory": MEMORY, "agent.memory.entry": ENTRY, "agent.net": NET,
    "agent.net.core": CORE,
}  # fmt: skip
SUFFIXES = (".json", ".yaml", ".yml")
MAX_DEPTH = 50  # deeper than any honest spec; a YAML alias to itself is endless


class _SyntaxError(Exception):
    """What a parser found, at a position counted from 0 (line None: nowhere in particular)."""

    def __init__(self, message: str, line: int | None = None, column: int = 0) -> None:
        super().__init__(message)
        self.line, self.column = line, column


# --- JSON ---


class _JsonDecoder(json.JSONDecoder):
    """Python's own JSON, with a repeated key as an error; only its pure-Python scanner can tell where."""

    def __init__(self) -> None:
        super().__init__(parse_constant=_no_constant)
        self.parse_object = self._object
        self.scan_once = py_make_scanner(self)

    @staticmethod
    def _object(s_and_end: tuple[str, int], *args: Any) -> Any:
        text, start = s_and_end
        strict, scan_once, memo = args[0], args[1], args[4]
        pairs, end = JSONObject(s_and_end, strict, scan_once, None, list, memo)
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise json.JSONDecodeError(
                    f"the key {key!r} is given twice in the mapping opened here", text, start - 1
                )
        return dict(pairs), end


def _no_constant(name: str) -> Any:
    raise _SyntaxError(f"{name} isn't JSON: write a finite number")


def _parse_json(text: str) -> Any:
    try:
        return _JsonDecoder().decode(text)
    except json.JSONDecodeError as error:
        raise _SyntaxError(error.msg, error.lineno - 1, error.colno - 1) from None


# --- YAML ---


class _YamlLoader(yaml.SafeLoader):
    """YAML as far as JSON goes: mappings with text keys (each once), lists, text, numbers, booleans, null."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.checked: set[int] = set()  # nodes; they are held by the document until it is read

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """A mapping's own keys, before those of its merges are put among them, for good."""
        if id(node) not in self.checked:
            self.checked.add(id(node))
            self._check_keys(node)
        super().flatten_mapping(node)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                raise _at(key.start_mark, f"the key {getattr(key, 'value', '?')!r} isn't text: put it in quotes")
            if key.value in seen:
                raise _at(key.start_mark, f"the key {key.value!r} is given twice in the same mapping")
            seen.add(key.value)


_YamlLoader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rsplit(":", 1)[-1] in ("null", "bool", "int", "float", "str", "seq", "map")
}
# 2024-01-01 stays the text that was typed
_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _TypedLoader(_YamlLoader):
    """For values typed on a command line: there 2e5 can only mean the number."""


_TypedLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _at(mark: yaml.Mark, message: str) -> _SyntaxError:
    return _SyntaxError(message, mark.line, mark.column)


def _parse_yaml(text: str, loader: type[_YamlLoader] = _YamlLoader) -> Any:
    try:
        return yaml.load(text, loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = error.problem or error.context or "not YAML"
        raise (_at(mark, message) if mark else _SyntaxError(message)) from None
    except yaml.YAMLError as error:
        raise _SyntaxError(str(error).split("\n")[0]) from None


# --- files ---


def load_file(path: str | Path) -> dict[str, dict[str, Any]]:
    """The raw specs of a file, `{spec_name: spec}`; raises `LabError` with file, line and column."""
    path = Path(path)
    text = _read(path)
    parse = _parse_json if path.suffix == ".json" else _parse_yaml
    try:
        specs = parse(text)
        _check_depth(specs)
        specs = tree_copy(specs)  # a YAML alias is one mapping in two places: what is set in one would be in both
    except _SyntaxError as error:
        raise LabError(_locate(path, text, error)) from None
    except (ValueError, RecursionError) as error:  # e.g. a number of 5000 digits, a thousand brackets
        raise LabError(f"{path}: can't be read: {error}") from None
    return _check_top(path, specs)


def _read(path: Path) -> str:
    """The text of a spec file; raises `LabError` when there is none."""
    if path.is_dir():
        raise LabError(f"{path} is a folder: give a spec file.{did_you_mean('', _spec_files(path))}")
    if not path.is_file():
        raise LabError(f"{path}: no such file.{_near(path)}")
    if path.suffix not in SUFFIXES:
        raise LabError(f"{path}: a spec file ends with {', '.join(SUFFIXES)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise LabError(f"{path}: can't be read: {error.strerror}") from None
    if not text.strip():
        raise LabError(f"{path}: the file is empty (expected: a mapping of spec names to specs)")
    return text


def _spec_files(folder: Path) -> list[str]:
    return sorted(str(file) for file in folder.glob("*") if file.suffix in SUFFIXES and file.name != "schema.json")


def _near(path: Path) -> str:
    """' Did you mean ...?' over the spec files of the nearest folder that exists, and of the folders in it."""
    folder = next(parent for parent in path.parents if parent.is_dir())
    names = {name: name for name in _spec_files(folder)}
    names |= {name: name for child in folder.glob("[!.]*/") for name in _spec_files(child)}
    by_file_name = {Path(name).name: name for name in reversed(names)}
    hint = did_you_mean(path.name, by_file_name)
    return next((f" Did you mean '{full}'?" for file, full in by_file_name.items() if f"'{file}'" in hint), "")


def _locate(path: Path, text: str, error: _SyntaxError) -> str:
    """`file:line:column: what`, and the line itself with a mark under the place."""
    kind = "JSON" if path.suffix == ".json" else "YAML"
    if error.line is None:
        return f"{path}: broken {kind}: {error}"
    lines = text.splitlines() or [""]
    number = min(error.line, len(lines) - 1)
    column = error.column if number == error.line else len(lines[number])
    window = max(0, column - 80)  # a file may be one long line
    shown = lines[number][window : column + 40].replace("\t", " ")
    return (
        f"{path}:{number + 1}:{column + 1}: broken {kind}: {error}\n"
        f"  {number + 1:>4} | {shown}\n       | {' ' * (column - window)}^"
    )


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise _SyntaxError(f"nested more than {MAX_DEPTH} levels deep")
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(child, depth + 1)


def _check_top(path: Path, specs: Any) -> dict[str, dict[str, Any]]:
    """The specs of a file that is a mapping of mappings; raises `LabError` otherwise."""
    expected = "expected: a mapping of spec names to specs, {my_spec: {agent: ..., env: ...}}"
    if not isinstance(specs, dict):
        raise LabError(f"{path}: holds no mapping ({expected})")
    found: dict[str, dict[str, Any]] = {name: spec for name, spec in specs.items() if name != "$schema"}
    if not found:
        raise LabError(f"{path}: holds no spec ({expected})")
    if {"agent", "env"} <= found.keys():
        raise LabError(f"{path}: a spec without its name: put it under one ({expected})")
    for name, spec in found.items():
        if not isinstance(spec, dict):
            raise LabError(f"{path}: '{name}' isn't a mapping ({expected})")
    return found


def pick(specs: Mapping[str, dict[str, Any]], name: str | None, path: str | Path) -> tuple[str, dict[str, Any]]:
    """The spec called `name`; without a name the only one, or the one called as the file. Raises `LabError`."""
    if name is None:
        name = next(iter(specs)) if len(specs) == 1 else Path(path).stem
        if name not in specs:
            raise LabError(f"{path} holds {len(specs)} specs: name one of {', '.join(specs)}")
    if name not in specs:
        raise LabError(f"{path}: unknown spec {name!r}.{did_you_mean(name, specs)}")
    return name, specs[name]


# --- overrides from the command line ---


def apply_overrides(raw: Mapping[str, Any], items: Iterable[str]) -> dict[str, Any]:
    """A copy with each `dotted.path=value` set; `name=value` gives a value to `${name}`. Raises `LabError`."""
    spec = copy.deepcopy(dict(raw))
    for item in items:
        key, equals, text = item.partition("=")
        keys = key.strip().split(".")
        if not (equals and all(keys) and text.strip()):
            raise LabError(f"--set {item!r}: expected path.to.key=value, as in agent.algorithm.gamma=0.95")
        axes = spec.get("search")
        if keys[0] == "search" and isinstance(axes, dict) and ".".join(keys[1:]) in axes:
            keys = ["search", ".".join(keys[1:])]  # an axis that is written with dots
        if len(keys) == 1 or (keys[0] == "vars" and len(keys) == 2):
            keys = ["vars", _var_name(raw, keys[-1], item)]
        try:
            value = _parse_yaml(text, _TypedLoader)
            _check_depth(value)
        except (_SyntaxError, ValueError, RecursionError) as error:
            raise LabError(f"--set {item!r}: the value can't be read: {error}") from None
        try:
            set_at(spec, keys, value)
        except LabError as error:
            raise LabError(f"--set {item!r}: {error}") from None
        if keys[-1] == "name" and (foreign := drop_foreign_keys(spec, keys[:-1], value)):
            part = ".".join(keys[:-1])
            logger.warning("%s is now %s, which has no %s: left out", part, value, ", ".join(foreign))
    return spec


def of_another(registry: Registry, name: str, key: str) -> bool:
    """Whether the part called `name` lacks the key, and another one of its family has it."""
    if key in registry.load(name).Spec.model_fields:
        return False
    return any(key in cls.Spec.model_fields for cls in registry.classes().values())


def drop_foreign_keys(spec: dict[str, Any], path: list[str], name: Any) -> list[str]:
    """A part is changed by its name alone: the keys of the old part that the new one lacks go, and are told. Those that
    none has stay: typos, and words of SLM-Lab's that are yet to be translated.
    """
    registry = PARTS.get(".".join(path))
    if registry is None or not isinstance(name, str) or name not in registry:
        return []
    part = functools.reduce(operator.getitem, path, spec)
    foreign = [key for key in part if of_another(registry, name, key)]
    for key in foreign:
        del part[key]
    return foreign


def _var_name(raw: Mapping[str, Any], name: str, item: str) -> str:
    """SLM-Lab's `env=Hopper-v5` fills in `${env}`; without such a place it would change nothing, in silence."""
    if not reads(raw, name):
        raise LabError(
            f"--set {item!r}: the spec has no ${{{name}}}; a key is set by its whole path, section.{name}=..."
        )
    return name


def get_at(tree: Any, path: str, default: Any = None) -> Any:
    """The value at a dotted path; `default` where there is none."""
    for key in path.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return default
        tree = tree[key]
    return tree


def set_at(spec: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set in place, making the mappings on the way; raises `LabError` where something else is in the way."""
    here: Any = spec
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(here, list) and key.isdecimal() and int(key) < len(here):
            index: Any = int(key)
        elif isinstance(here, dict):
            index = key
        else:
            raise LabError(f"{'.'.join(keys[:depth])} is no mapping, it has no {key!r}")
        if last:
            here[index] = value
        elif isinstance(here, dict) and here.get(index) is None:
            here[index] = {}
        here = here[index]
