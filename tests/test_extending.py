"""What others add is taken by name: by ``module:attribute``, and from a package that pip has installed."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from helm_gym import registry
from helm_gym.errors import InvalidInputError, UnknownNameError
from helm_gym.policies.opening import open_policy
from helm_gym.policies.router_opening import open_router
from helm_gym.tasks import find_task
from tests.conformance.policy import make_layout
from tests.registering import give_name

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples" / "extending").glob("*.py"))

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "helm-gym-extras"
version = "1.0"

[project.entry-points."helm_gym.policies"]
greedy = "extras.policy:GREEDY"

[project.entry-points."helm_gym.routers"]
half-rows = "extras.router:HalfRows"

[project.entry-points."helm_gym.backends"]
slow-link = "extras.backend:SlowLink"

[project.entry-points."helm_gym.regimes"]
shifts = "extras.regime:shifts"

[project.entry-points."helm_gym.tasks"]
installed-v0 = "extras.installed:TASK"

[project.entry-points."helm_gym.readers"]
gateway = "extras.reader:GATEWAY"
"""
TASK = 'from helm_gym.tasks import Task\n\nTASK = Task("installed-v0", "shifts", "of a package")\n'

# One process, since each start takes seconds.
USES = """
import json
import gymnasium
from typer.testing import CliRunner
from helm_gym.cli.main import app

def helm(*arguments):
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == 0, (arguments, result.output)
    return result.stdout

few = ("--seeds", "1", "--horizon", "4", "--quiet", "--json")
rows = json.loads(helm("evaluate", "greedy", "pid", "--task", "installed-v0", "--backend", "slow-link", *few))
assert [row["name"] for row in rows["policies"]] == ["greedy", "pid"] and rows["task"] == "installed-v0"
rows = json.loads(helm("evaluate", "greedy+half-rows", "--task", "installed-v0", "--cluster", "2", *few))
assert [row["name"] for row in rows["policies"]] == ["greedy+half-rows"]
env = gymnasium.make("helm/Partition-v0", task="installed-v0", backend="slow-link", intervals=3)
env.reset(seed=0)
assert env.step(env.action_space.sample())[1] < 0
assert gymnasium.make("helm/Partition-v0", regime="shifts", intervals=3).reset(seed=0)
helm("train", "greedy", "--task", "installed-v0", "--out", "runs/greedy", "--quiet")
helm("evaluate", "runs/greedy", "--task", "installed-v0", *few)
small = ("--trials", "1", "--seeds-a-trial", "1", "--fresh-seeds", "1", "--quiet")
helm("tune", "greedy", "--task", "burst-v0", "--out", "runs/tuned", *small)
assert "of package helm-gym-extras" in helm("agents") and "installed-v0" in helm("tasks")
open("gateway.csv", "w").write("received_ms,history,gateway\\n" + "".join(f"{7 * k},40,eu\\n" for k in range(200)))
from helm_gym.workload.traces import read_trace
assert read_trace("gateway.csv").format == "gateway log"
print("all taken")
"""


def python(*arguments: str, folder: pathlib.Path, path: str = "") -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, str(ROOT)])), "HELM_GYM_QUIET": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_runs(path: pathlib.Path) -> None:
    assert python(str(path), folder=path.parent)


def test_a_package_adds_names_by_entry_points(tmp_path: pathlib.Path) -> None:
    source, installed, folder = tmp_path / "source", tmp_path / "installed", tmp_path / "folder"
    (source / "extras").mkdir(parents=True)
    folder.mkdir()
    for path in EXAMPLES:
        shutil.copy(path, source / "extras")
    (source / "pyproject.toml").write_text(PYPROJECT + "\n[tool.setuptools]\npackages = ['extras']\n")
    (source / "extras" / "__init__.py").touch()
    (source / "extras" / "installed.py").write_text(TASK)
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(installed))
    python(*install, str(source), folder=tmp_path)
    assert python("-c", USES, folder=folder, path=str(installed)).endswith("all taken\n")


def test_the_command_line_takes_modules_of_the_current_folder(tmp_path: pathlib.Path) -> None:
    shutil.copy(ROOT / "examples" / "extending" / "policy.py", tmp_path / "mine.py")
    run = "import sys; from helm_gym.cli.main import run; sys.argv = ['helm-gym', *{}]; run()"
    arguments = ["evaluate", "mine:Greedy", "--task", "burst-v0", "--seeds", "1", "--horizon", "4"]
    told = python("-c", run.format(arguments), folder=tmp_path)
    assert "mine:Greedy" in told


def test_a_run_of_a_strange_module_imports_nothing(tmp_path: pathlib.Path) -> None:
    shutil.copy(ROOT / "examples" / "extending" / "policy.py", tmp_path / "mine.py")
    train = "from helm_gym.cli.main import app; app(['train', 'mine:GREEDY', '--task', 'burst-v0', '--out', 'x', '-q'])"
    python("-c", train, folder=tmp_path)
    sentence = "was made by 'mine:GREEDY', which has no name here; if you trust module 'mine', import it first"
    with pytest.raises(InvalidInputError, match=re.escape(sentence)):
        open_policy(str(tmp_path / "x"), make_layout())
    assert "mine" not in sys.modules


def test_what_cannot_be_opened_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = make_layout()
    with pytest.raises(UnknownNameError, match="did you mean 'static'"):
        open_policy("statik:0.5", layout)
    with pytest.raises(UnknownNameError, match="Unknown policy 'nowhere:Greedy'"):
        open_policy("nowhere:Greedy", layout)
    with pytest.raises(InvalidInputError, match="module json has no Greedy"):
        open_policy("json:Greedy", layout)
    with pytest.raises(InvalidInputError, match="cannot be opened with the layout"):
        open_policy("tests.test_extending:two", layout)
    with pytest.raises(InvalidInputError, match="has no act or initial_state"):
        open_policy("tests.test_extending:one", layout)
    with pytest.raises(InvalidInputError, match=r"see helm_gym\.cluster\.routing\.Router"):
        open_router("tests.test_extending:two", layout)
    with pytest.raises(InvalidInputError, match=r"a helm_gym\.tasks\.Task is needed"):
        find_task("json:dumps")
    give_name(monkeypatch, "policy", "broken", "tests.none_of_this:Policy")
    with pytest.raises(InvalidInputError, match=r"Policy 'broken' cannot be opened: importing tests\.none_of"):
        open_policy("broken", layout)


def test_two_packages_of_one_name_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    double = (registry.Entry("router", "joint", "other:Router", source="other-package"),)
    monkeypatch.setattr(registry, "_installed", lambda kind: double)
    with pytest.raises(InvalidInputError, match=r"other-package and baselines\.routers both name a router 'joint'"):
        registry.find("router", "joint")


def test_a_name_that_is_given_again_is_the_latter_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    give_name(monkeypatch, "policy", "own", "a:B")
    registry.register("policy", "own", "c:D")
    assert registry.find("policy", "own").target == "c:D"


def one(layout: object) -> object:
    return layout


def two(layout: object, number: float, more: object) -> object:
    return layout
