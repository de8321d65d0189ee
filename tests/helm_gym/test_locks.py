"""Locks on folders: who holds one, who waits for it, and what a process that is killed leaves of it."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from helm_gym.cli.common import check_writable
from helm_gym.errors import HelmError, InvalidInputError
from helm_gym.locks import FOLDER_LOCK, alone, lock
from tests.helm_gym.test_cli import helm

HOLD = """
import pathlib, sys, time
from helm_gym.locks import alone
with alone(pathlib.Path(sys.argv[1]), ""):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: pathlib.Path) -> subprocess.Popen:
    """Another process that has the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_folder_is_one_process_s_until_that_ends_however_it_does(tmp_path: pathlib.Path) -> None:
    other, waited = hold(tmp_path / "new"), []
    try:
        with pytest.raises(HelmError, match="It is busy"), alone(tmp_path / "new", "It is busy."):
            pass

        def waiting() -> None:
            waited.append(True)
            if len(waited) == 3:
                other.kill()

        with alone(tmp_path / "new", "", waiting):
            assert (tmp_path / "new" / FOLDER_LOCK).exists()
    finally:
        other.kill()
        other.wait()
    assert len(waited) >= 3 and not list((tmp_path / "new").iterdir())


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(tmp_path: pathlib.Path) -> None:
    first = lock(tmp_path / "x")
    assert first is not None and lock(tmp_path / "x") is None
    (tmp_path / "x").unlink()
    second = lock(tmp_path / "x")
    assert second is not None
    first.close()
    assert lock(tmp_path / "x") is None
    second.close()


def test_a_folder_that_cannot_be_is_a_sentence(tmp_path: pathlib.Path) -> None:
    sentence = r"/dev/null/x/\.lock cannot be locked: Not a directory"
    with pytest.raises(InvalidInputError, match=sentence), alone(pathlib.Path("/dev/null/x"), ""):
        pass


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("reproduce", "fig4"), "Another process reproduces into"),
        (("fit", "log"), "Another process fits into"),
        (("train", "pid"), "Another process is training into"),
    ],
)
def test_commands_do_not_fill_one_folder_together(
    command: tuple[str, ...], sentence: str, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "x"
    if command[0] == "train":
        helm(*command, "--out", out)
    with alone(out, ""):
        if command[0] == "train":
            (out / "run.json").write_text((out / "run.json").read_text().replace('"done"', '"training"'))
        done = helm(*command, "--out", out, "--quiet")
    assert done.exit_code == 2 and sentence in done.stderr, done.output


def test_looking_whether_a_file_can_be_written_leaves_none(tmp_path: pathlib.Path) -> None:
    """Not even for a moment, in which a kill would leave an empty one."""
    check_writable("--out", tmp_path / "new" / "run.json")
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "there").write_text("kept")
    check_writable("--out", tmp_path / "there")
    assert (tmp_path / "there").read_text() == "kept"
    for path in (pathlib.Path("/dev/null/x"), tmp_path / ("x" * 300), tmp_path):
        with pytest.raises(InvalidInputError, match=r"--out .* (cannot be written|is no file)"):
            check_writable("--out", path)
