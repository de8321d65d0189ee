"""What a user's tools see of the packages."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

import helm_gym

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("helm_gym", "real_backend", "surrogate_backend", "agents", "baselines", "leaderboard")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_say_that_they_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_the_version_is_said_once_more_where_it_was_released() -> None:
    assert f"\n## [{helm_gym.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {helm_gym.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'version = "{helm_gym.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.long
def test_a_users_type_checker_sees_our_types(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.py").write_text("from helm_gym.tasks import find_task\n\nfind_task(3)\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "mine.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": ""},
        capture_output=True,
        text=True,
    )
    assert 'incompatible type "int"; expected "str"' in done.stdout


def test_onnxruntime_reports_nothing_to_its_makers() -> None:
    """It starts a thread for that at its import."""
    code = "import os, {}onnxruntime, time; time.sleep(0.3); print(len(os.listdir('/proc/self/task')))"
    env = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    threads = [
        int(subprocess.check_output([sys.executable, "-c", code.format(first)], env=env, cwd=ROOT, text=True))
        for first in ("", "helm_gym, ")
    ]
    assert threads[1] == 1, threads
