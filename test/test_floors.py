"""A file imports only from lower floors, or from its own folder; `env` and `store` never see each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {  # the longest matching prefix counts
    "slm_lab": 0,
    "slm_lab.lib": 0,
    "slm_lab.spec": 1,
    "slm_lab.env": 2,
    "slm_lab.store": 2,
    "slm_lab.agent.net": 3,
    "slm_lab.agent.auxiliary": 4,
    "slm_lab.agent.memory": 5,
    "slm_lab.agent.algorithm": 6,
    "slm_lab.agent": 7,
    "slm_lab.experiment": 8,
    "slm_lab.policy": 9,
    "slm_lab.cli": 9,
}
STRANGERS = [("slm_lab.env", "slm_lab.store")]


def room(module: str) -> str:
    """The prefix of FLOORS that a module lives in."""
    return max((name for name in FLOORS if module == name or module.startswith(f"{name}.")), key=len)


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and name of every lab module imported, wherever it stands, but not those for type checking only."""
    found = []
    guarded = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {id(inner) for guard in guarded for child in guard.body for inner in ast.walk(child)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("slm_lab"):
            found.append((node.lineno, node.module))
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names if alias.name.startswith("slm_lab")]
    return found


def offences(module: str, source: str) -> list[str]:
    """What a file imports from where it must not look."""
    here = room(module)
    wrong = []
    for line, name in imports(ast.parse(source)):
        there = room(name)
        strangers = any({here, there} == set(pair) for pair in STRANGERS)
        if here != there and (FLOORS[there] >= FLOORS[here] or strangers) and there != "slm_lab":
            wrong.append(f"{module}:{line} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[there]})")
    return wrong


def modules() -> list[Path]:
    return sorted((ROOT / "slm_lab").rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    assert offences(module, path.read_text()) == []


def test_offender_is_named() -> None:
    assert offences("slm_lab.env.vec", "from slm_lab.agent.agent import Agent")
    assert offences("slm_lab.env.vec", "from slm_lab.store.rows import Rows")
    assert offences("slm_lab.agent.net.mlp", "def f():\n    from slm_lab.agent.memory.rows import Rows")
    assert not offences("slm_lab.agent.net.mlp", "if TYPE_CHECKING:\n    from slm_lab.experiment.session import S")
    assert not offences("slm_lab.agent.agent", "from slm_lab.lib.types import Step")


def test_no_module_is_too_long() -> None:
    long = {str(p.relative_to(ROOT)): n for p in modules() if (n := len(p.read_text().splitlines())) > 450}
    assert not long, f"files past one sitting: {long}"
