"""``helm-gym warm`` leaves nothing to be compiled, and says what it did."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from helm_gym import registry, warm
from helm_gym.cli.common import Progress
from helm_gym.cli.main import app
from helm_gym.errors import IncompatibleError
from helm_gym.kernels import kernel_cache

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESET = """
import sys
import gymnasium
import helm_gym
from helm_gym.kernels import kernel_cache

def use(env):
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()

use(gymnasium.make("helm/Burst-v0"))
first = len(kernel_cache.compiled)
if sys.argv[1:]:
    use(gymnasium.make("helm/Burst-v0", backend="modelled"))
    use(gymnasium.make_vec("helm/Mixed-v0", num_envs=2))
    use(gymnasium.make_vec("helm/Trend-v0", num_envs=2, backend="modelled"))
    for backend in ("surrogate", "modelled"):
        use(gymnasium.make("helm/Cluster-v0", backend=backend))
print(first, kernel_cache.compiled)
"""


def python(cache: pathlib.Path, *arguments: str) -> tuple[str, str]:
    environment = {k: v for k, v in os.environ.items() if k != kernel_cache.QUIET}
    environment |= {"PYTHONPATH": str(ROOT), "HELM_GYM_CACHE": str(cache)}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.long
def test_after_warming_environments_of_all_kinds_compile_nothing(tmp_path):
    """A first reset says that it compiles; once all is warm, nothing does, and nothing is said."""
    out, told = python(tmp_path, "-c", RESET)
    assert int(out.split()[0]) > 50 and told.count("Compiling kernels for this machine") == 1
    out, told = python(tmp_path, "-m", "helm_gym.cli.main", "warm", "--json", "--quiet")
    warmed = json.loads(out)
    assert warmed["compiled"] > 100 and warmed["folder"] == str(tmp_path / "kernels") and not warmed["failed"]
    assert "helm-gym:" not in told
    out, told = python(tmp_path, "-c", RESET, "more")
    assert out == "0 []\n" and "helm-gym:" not in told
    assert "already" in python(tmp_path, "-m", "helm_gym.cli.main", "warm")[0]


def test_every_backend_is_a_part_alone_and_as_a_cluster():
    backends = registry.listed("backend")
    without_kernels_of_their_own = {"real-ray", "surrogate-measured"}
    assert {name for name in warm.PARTS if name in backends} == set(backends) - without_kernels_of_their_own
    clusters = [part for part in warm.PARTS.values() if getattr(part, "keywords", {}).get("cluster")]
    assert {part.args[0] for part in clusters} == {"surrogate", "modelled", "real"}


def test_a_part_that_this_machine_cannot_use_is_told_and_the_others_go_on(monkeypatch):
    def fail() -> None:
        raise IncompatibleError("No such library; install it.")

    monkeypatch.setitem(warm.PARTS, "real", fail)
    monkeypatch.setattr(kernel_cache, "silent", False)
    assert warm._use("real") == ([], "No such library; install it.")
    assert warm._use("workload")[1] == ""


def test_the_command_says_what_was_compiled_and_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HELM_GYM_CACHE", str(tmp_path))
    kernel_cache._folders.cache_clear()
    found = warm.Warmed(["a", "b"], 70.4, {"real": "No such library."})
    monkeypatch.setattr(warm, "warm", lambda progress: found)
    try:
        told = CliRunner().invoke(app, ["warm"])
        assert told.stdout == f"Compiled 2 kernels in 70 s; they are kept in {tmp_path}/kernels.\n"
        assert "cannot use it: real. No such library." in told.stderr
        told = CliRunner().invoke(app, ["warm", "--json"])
        assert json.loads(told.stdout)["failed"] == {"real": "No such library."}
        monkeypatch.setattr(kernel_cache, "_candidates", lambda: iter([pathlib.Path("/dev/null/a")]))
        kernel_cache._folders.cache_clear()
        told = CliRunner().invoke(app, ["warm"])
        assert told.exit_code == 2 and told.stderr.startswith("Error: Compiled kernels cannot be kept in /dev/null/a")
    finally:
        kernel_cache._folders.cache_clear()


def test_quiet_commands_compile_in_silence(monkeypatch):
    monkeypatch.setenv(kernel_cache.QUIET, "")  # so that it is put back
    monkeypatch.delenv(kernel_cache.QUIET)
    Progress(quiet=False)
    assert kernel_cache.QUIET not in os.environ
    Progress(quiet=True)
    assert os.environ[kernel_cache.QUIET]
