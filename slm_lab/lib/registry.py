"""Tables of parts, by name. Nothing is imported until a part is asked for."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from slm_lab.lib.errors import LabError, did_you_mean

SOURCES = Path(__file__).parents[2]
OWN = r"\w+(\.\w+)*:\w+"  # module:Class
PYPI_NAMES = {"ale_py": "ale-py", "cv2": "opencv-python", "pettingzoo": '-e ".[multiagent]"'}


def imported(module: str, install: str = "") -> ModuleType:
    """The module of that name, of the user's own or of a package (then `install` is what to give pip). Raises
    `LabError` that says why it can't be imported.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # the user's own module may raise anything
        raise LabError(f"can't import {module}: {_why(module, install, error)}") from error


def _why(module: str, install: str, error: Exception) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
    if not f"{module}.".startswith(f"{missing}."):  # it is there, but raises
        cure = f". If that is a package: pip install {PYPI_NAMES.get(missing, missing)}" if missing else ""
        return f"{own_place(error)}{type(error).__name__}: {error}{cure}"
    near = did_you_mean(missing, [file.stem for file in Path.cwd().glob("*.py")])
    near = near if near.startswith(" Did") else ""
    install = install or PYPI_NAMES.get(missing, "")
    package = f" A package: pip install {install}" if install else " No package of that name is installed."
    here = f"there is no {missing.replace('.', '/')}.py in {Path.cwd()}."
    return f"{here}{near} A file of yours: start the lab in the folder where it lies.{package}"


def own_place(error: BaseException) -> str:
    """'file:line: ' of the user's own code that raised `error`; '' where none did."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: "
    here = Path.cwd()
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        ours = any(SOURCES / folder in file.parents for folder in ("slm_lab", "bench"))
        if file.is_relative_to(here) and not ours and "site-packages" not in file.parts:
            return f"{file.relative_to(here)}:{frame.lineno}: "
    return ""


class Registry(Mapping[str, str]):
    """A family of parts: `{name: "package.module:Class"}`.

    Being a table of strings it costs nothing to import, `grep` finds every part, and a typo is answered with the
    nearest name. Where there is a `base`, a name may itself be a row, `module:Class`: a part of the user's own, of a
    module in the folder that the lab was started in.

    >>> MEMORY = Registry("memory", {"OnPolicyReplay": "slm_lab.agent.memory.onpolicy:OnPolicyReplay"})
    >>> MEMORY.load("OnPolicyReplay").__name__
    'OnPolicyReplay'
    """

    def __init__(
        self, family: str, table: Mapping[str, str], known_as: Mapping[str, str] | None = None, base: str = ""
    ) -> None:
        """`known_as`: what else the field calls them, and what to write here; `base`: what all of them derive from."""
        self.family, self.base = family, base
        self._table = dict(table)
        self._known_as = {word.lower(): here for word, here in (known_as or {}).items()}

    def __getitem__(self, name: str) -> str:
        return name if self.is_own(name) else self._table[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._table or self.is_own(name))  # a spec may give anything

    def is_own(self, name: str) -> bool:
        """Whether it names a part of the user's own; if there is one is known when it is loaded."""
        return bool(self.base and re.fullmatch(OWN, name))

    def unknown(self, name: object) -> str:
        """The message for a name that the table doesn't hold."""
        here = self._known_as.get(str(name).lower())
        cure = f" It is {here} here." if here else did_you_mean(str(name), self)
        plain = bool(self.base) and isinstance(name, str) and name.isidentifier()
        own = f" One of your own: module:{name}." if plain and cure.startswith(" Options") else ""
        return f"unknown {self.family} {name!r}.{cure}{own}"

    def load(self, name: str) -> Any:
        """The class called `name`, imported now. Raises `LabError` for an unknown name."""
        if name not in self:
            raise LabError(self.unknown(name))
        module, attribute = self[name].split(":")
        if self.is_own(name):
            return self._own(name, imported(module), attribute)
        return getattr(importlib.import_module(module), attribute)

    def _own(self, name: str, module: ModuleType, attribute: str) -> Any:
        """A class of the user's own. Its Spec gets the name that leads to it, so that a saved spec does."""
        cls = self._fitting(name, module, attribute)
        known = cls.Spec.model_fields.get("name")
        if known is None or known.default != name:
            from pydantic import create_model

            field: Any = (Literal[name], name)
            cls.Spec = create_model("Spec", __base__=cls.Spec, __module__=cls.__module__, name=field)
            cls.Spec.__qualname__ = f"{cls.__qualname__}.Spec"  # where pickle finds it
        return cls

    def _fitting(self, name: str, module: ModuleType, attribute: str) -> Any:
        """The class; raises `LabError` where it can't be such a part."""
        cls, file = getattr(module, attribute, None), module.__file__ or module.__name__
        if not inspect.isclass(cls):
            classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
            raise LabError(f"{file} has no class {attribute!r}.{did_you_mean(attribute, classes)}")
        for known, row in self._table.items():
            if row == f"{cls.__module__}:{cls.__name__}":
                raise LabError(f"{name} is a part of the lab: write {known}")
        base_module, base = self.base.split(":")
        if not issubclass(cls, getattr(importlib.import_module(base_module), base)):
            raise LabError(f"{file}: {attribute} is no {self.family}: it must derive from {base} of {base_module}")
        spec = getattr(cls, "Spec", None)
        if not (inspect.isclass(spec) and hasattr(spec, "model_validate")):
            what = "must be a class that derives from SpecModel of slm_lab.spec.model, or from another part's Spec"
            raise LabError(f"{file}: {attribute} has no Spec: {what}")
        return cls

    def classes(self) -> dict[str, Any]:
        """All classes of the family by name, imported now."""
        return {name: self.load(name) for name in self}

    def summary(self, name: str) -> str:
        """First line of the part's docstring, read from its source without importing it (so `list` needs no torch)."""
        module, attribute = self[name].split(":")
        file = Path(*module.split(".")).with_suffix(".py")  # find_spec would import the packages above it
        source = next((path for folder in (str(SOURCES), *sys.path) if (path := Path(folder, file)).is_file()), None)
        for node in ast.parse(source.read_text(encoding="utf-8")).body if source else ():
            if isinstance(node, ast.ClassDef) and node.name == attribute:
                return (ast.get_docstring(node) or "").split("\n")[0]
        return ""
