"""`${name}` in a spec: one value, written once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from slm_lab.lib.errors import Problem, did_you_mean

_VAR = re.compile(r"\$\{([^{}]*)\}")


def substitute(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The spec without `vars`, each `${x}` filled in: from `vars`, else from the spec's own dotted path x."""
    resolver = _Variables(raw)
    spec = {key: resolver.fill(value, key, ()) for key, value in raw.items() if key != "vars"}
    return spec, resolver.problems


class _Variables:
    def __init__(self, raw: Mapping[str, Any]) -> None:
        given = raw.get("vars")
        self.raw = raw
        self.vars: Mapping[str, Any] = given if isinstance(given, dict) else {}
        self.problems: list[Problem] = []

    def fill(self, value: Any, path: str, stack: tuple[str, ...]) -> Any:
        """`value` at `path` with every `${x}` in it replaced; `stack` is the names being looked up."""
        if isinstance(value, dict):
            return {key: self.fill(child, _below(path, key, stack), stack) for key, child in value.items()}
        if isinstance(value, list):
            return [self.fill(child, _below(path, i, stack), stack) for i, child in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = _VAR.fullmatch(value)
        if whole:
            return self.look_up(whole[1], path, stack)
        text = _VAR.sub(lambda match: _as_text(self.look_up(match[1], path, stack)), value)
        if "${${" in value.replace(" ", ""):
            self.problems.append(Problem(path, f"{value!r} has a ${{...}} in another one. Write the name itself"))
        return text

    def look_up(self, name: str, path: str, stack: tuple[str, ...]) -> Any:
        """The value of a name; where it has none the `${name}` itself, and a problem."""
        found, value = (True, self.vars[name]) if name in self.vars else _dig(self.raw, name)
        if found and name not in stack:
            return self.fill(value, path, (*stack, name))
        what = "refers to itself." if found else f"has no value.{did_you_mean(name, self.vars)}"
        self.problems.append(Problem(path, f"${{{name}}} {what} Give it one in 'vars', or with --set {name}=..."))
        return f"${{{name}}}"


def _below(path: str, key: str | int, stack: tuple[str, ...]) -> str:
    """The path of a child; what was looked up keeps the path where the user wrote its name."""
    return path if stack else f"{path}.{key}"


def _dig(tree: Any, path: str) -> tuple[bool, Any]:
    """Whether there is a value at the dotted path, and that value."""
    for key in path.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return False, None
        tree = tree[key]
    return True, tree


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def reads(value: Any, name: str) -> bool:
    """Whether a `${...}` in it depends on the variable `name`, `vars.name`, or on what that lies in."""
    first, names = name.split(".")[0], _VAR.findall(json.dumps(value, default=str, ensure_ascii=False))
    return any(found.removeprefix("vars.").split(".")[0] == first for found in names)
