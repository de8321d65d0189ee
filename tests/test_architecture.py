"""The arrows of the architecture (who may import whom) and the size of a module."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = {"helm_gym", "real_backend", "surrogate_backend", "agents", "baselines", "leaderboard"}
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_LINES = 400


def imports_at_load(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields (line, top-level package) of the imports that run when the module is loaded.

    Not those inside a function, which is how a lower layer opens a higher one by name, nor those for type checkers.
    """
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.split(".")[0]
        pending.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_keeps_the_arrows_and_the_size(path: pathlib.Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    text = path.read_text(encoding="utf-8")
    forbidden = PACKAGES - {package, "helm_gym"}
    broken = [
        f"line {line}: {package} imports {name}" for line, name in imports_at_load(ast.parse(text)) if name in forbidden
    ]
    assert not broken, f"{path.relative_to(ROOT)}: {'; '.join(broken)}"
    lines = len(text.splitlines())
    assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines; past {MAX_LINES} it should be two modules"


def test_imports_at_load_are_found() -> None:
    source = """
import agents.pid, numpy
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import real_backend
try:
    from baselines.static import Static
except ImportError:
    import surrogate_backend
class A:
    import leaderboard
def f():
    import real_backend
"""
    found = {name for _, name in imports_at_load(ast.parse(source))}
    assert found & PACKAGES == {"agents", "baselines", "surrogate_backend", "leaderboard"}
