"""The arrows of the architecture (who may import whom), its floors, and the size of a module.

Imports inside functions count like any other: they are late, and arrows all the same. What is opened by name, through
``helm_gym.registry`` or importlib, is no arrow.
"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator, Mapping

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = {"helm_gym", "real_backend", "surrogate_backend", "agents", "baselines", "leaderboard"}
MAX_LINES = 400

# helm_gym from the ground up: a module imports its own floor and those below. A folder's name stands for all in it.
FLOORS = (
    ("text", "errors", "files", "locks", "machine_memory", "ranges", "yaml_form", "registry", "provenance"),
    ("profile", "telemetry", "reward", "tasks", "observation_schema", "kernels", "ray_connection"),
    ("actions", "observation", "policy_origin", "workload", "cluster"),
    ("policy", "backend", "control_loop"),
    ("training",),
    ("policies", "play", "envs"),
    ("evaluation", "deploy", "load"),
    ("benchmarks", "paper", "warm"),
    ("cli",),
)
FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}


def module_name(path: pathlib.Path, root: pathlib.Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields (line, name) of all imports, those in functions too, but for those of type checkers alone.

    Of ``from a import b`` the name is ``a.b``, which may be a module or something in one.
    """
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))


def graph(root: pathlib.Path) -> dict[str, dict[str, int]]:
    """Module -> modules of the packages that it imports -> a line on which it does."""
    paths = {module_name(path, root): path for package in PACKAGES for path in (root / package).rglob("*.py")}
    arrows: dict[str, dict[str, int]] = {}
    for name, path in paths.items():
        arrows[name] = {}
        for line, target in imports(ast.parse(path.read_text(encoding="utf-8"))):
            module = target if target in paths else target.rpartition(".")[0]
            if module in paths and module != name:
                arrows[name][module] = line
    return arrows


def wrong_arrows(arrows: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What goes from one package to another that is not helm_gym, and in helm_gym from a floor to one above."""
    wrong = []
    for name, targets in arrows.items():
        package, _, rest = name.partition(".")
        here = rest.partition(".")[0]
        for target, line in targets.items():
            other, _, there = target.partition(".")
            if other != package and other != "helm_gym":
                wrong.append(f"{name}, line {line}: {package} imports {other}")
            elif other == package == "helm_gym" and here and there:
                there = there.partition(".")[0]
                if FLOOR[there] > FLOOR[here]:
                    wrong.append(f"{name}, line {line}: imports {target}, which lies floors above")
    return wrong


def circles(arrows: Mapping[str, Mapping[str, int]]) -> list[set[str]]:
    """Sets of modules that import each other, directly or not."""
    reach: dict[str, set[str]] = {}
    for name in arrows:
        seen: set[str] = set()
        pending = [*arrows[name]]
        while pending:
            target = pending.pop()
            if target not in seen:
                seen.add(target)
                pending += arrows.get(target, {})
        reach[name] = seen
    found = [{other for other in reach[name] if name in reach.get(other, ())} for name in arrows if name in reach[name]]
    return [circle for number, circle in enumerate(found) if circle not in found[:number]]


ARROWS = graph(ROOT)


def test_every_module_has_a_floor() -> None:
    folders = {name.split(".")[1] for name in ARROWS if name.startswith("helm_gym.")}
    assert folders == set(FLOOR), "a new module or folder of helm_gym belongs on a floor, and an old one leaves it"


def test_arrows_point_down_and_to_helm_gym_alone() -> None:
    assert not wrong_arrows(ARROWS), "\n".join(wrong_arrows(ARROWS))


def test_nothing_imports_itself_by_way_of_others() -> None:
    assert not circles(ARROWS)


@pytest.mark.parametrize(
    "path", sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py")), ids=module_name
)
def test_a_module_is_no_longer_than_can_be_read(path: pathlib.Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines; past {MAX_LINES} it should be two modules"


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"agents/a.py": "import real_backend.b\n", "real_backend/b.py": ""}, "agents imports real_backend"),
        ({"agents/a.py": "def f():\n    from baselines import b\n", "baselines/b.py": ""}, "agents imports baselines"),
        ({"helm_gym/tasks.py": "def f():\n    import agents.a\n", "agents/a.py": ""}, "helm_gym imports agents"),
        ({"helm_gym/tasks.py": "from helm_gym.cli import c\n", "helm_gym/cli/c.py": ""}, "floors above"),
        ({"helm_gym/tasks.py": "class A:\n    import helm_gym.cli.c\n", "helm_gym/cli/c.py": ""}, "floors above"),
    ],
)
def test_a_wrong_arrow_is_found(tmp_path: pathlib.Path, files: dict[str, str], fault: str) -> None:
    write(tmp_path, files)
    (told,) = wrong_arrows(graph(tmp_path))
    assert fault in told


def test_circles_are_found_whatever_their_size_and_wherever_the_import_stands(tmp_path: pathlib.Path) -> None:
    write(
        tmp_path,
        {
            "agents/a.py": "from agents import b\n",
            "agents/b.py": "def f():\n    import agents.c\n",
            "agents/c.py": "try:\n    from agents.a import x\nexcept ImportError:\n    pass\n",
            "agents/d.py": "import agents.a\n",
        },
    )
    assert circles(graph(tmp_path)) == [{"agents.a", "agents.b", "agents.c"}]


def test_what_a_type_checker_alone_imports_is_no_arrow(tmp_path: pathlib.Path) -> None:
    write(
        tmp_path,
        {
            "agents/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import baselines.b\n",
            "baselines/b.py": "",
        },
    )
    assert not wrong_arrows(graph(tmp_path))


def write(root: pathlib.Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
