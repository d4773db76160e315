"""Tables of parts, by name. Nothing is imported until a part is asked for."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slm_lab.lib.errors import LabError, did_you_mean

SOURCES = Path(__file__).parents[2]


class Registry(Mapping[str, str]):
    """A family of parts: `{name: "package.module:Class"}`.

    Being a table of strings it costs nothing to import, `grep` finds every part, and a typo is answered with the
    nearest name.

    >>> MEMORY = Registry("memory", {"OnPolicyReplay": "slm_lab.agent.memory.onpolicy:OnPolicyReplay"})
    >>> MEMORY.load("OnPolicyReplay").__name__
    'OnPolicyReplay'
    """

    def __init__(self, family: str, table: Mapping[str, str], known_as: Mapping[str, str] | None = None) -> None:
        """`known_as`: what else the field calls them, and what to write here."""
        self.family = family
        self._table = dict(table)
        self._known_as = {word.lower(): here for word, here in (known_as or {}).items()}

    def __getitem__(self, name: str) -> str:
        return self._table[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._table  # a spec may give anything for a name

    def unknown(self, name: object) -> str:
        """The message for a name that the table doesn't hold."""
        here = self._known_as.get(str(name).lower())
        cure = f" It is {here} here." if here else did_you_mean(str(name), self)
        return f"unknown {self.family} {name!r}.{cure}"

    def load(self, name: str) -> Any:
        """The class called `name`, imported now. Raises `LabError` for an unknown name."""
        if name not in self:
            raise LabError(self.unknown(name))
        module, attribute = self._table[name].split(":")
        return getattr(importlib.import_module(module), attribute)

    def classes(self) -> dict[str, Any]:
        """All classes of the family by name, imported now."""
        return {name: self.load(name) for name in self}

    def summary(self, name: str) -> str:
        """First line of the part's docstring, read from its source without importing it (so `list` needs no torch)."""
        module, attribute = self._table[name].split(":")
        source = SOURCES.joinpath(*module.split(".")).with_suffix(".py")  # find_spec would import the packages above it
        tree = ast.parse(source.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == attribute:
                return (ast.get_docstring(node) or "").split("\n")[0]
        return ""
