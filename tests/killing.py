"""Command lines that are killed: a process that has all modules and kernels loaded forks one for each.

So a command takes a second or two in place of the ten that loading takes, and many can be killed at many points.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pathlib
import random
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

ROOT = pathlib.Path(__file__).parent.parent
LONGEST_S = 240.0  # of a command that is left alone
_WRITING_S = 2.0  # that a file is waited for
_UNFINISHED = ("*.tmp", "*-journal")  # files in the middle of being written: ours, and SQLite's
_MODULES = (
    "agents.ppo",
    "agents.sb3",
    "agents.training_env",
    "agents.tuning.result",
    "helm_gym.paper.table3",
    "matplotlib.pyplot",
    "optuna.visualization.matplotlib",
    "real_backend.calibration",
    "surrogate_backend.data.collect",
    "surrogate_backend.fit",
    "tensorboard",
    "torch.utils.tensorboard",
)


class Process:
    """A command line that runs, with all processes that it starts."""

    def __init__(self, pid: int, log: pathlib.Path):
        self.pid, self._log, self._pidfd = pid, log, os.pidfd_open(pid)

    def wait(self, seconds: float) -> bool:
        """Whether it ends within as many seconds."""
        return bool(select.select([self._pidfd], [], [], seconds)[0])

    def kill(self) -> None:
        """SIGKILL for its whole group."""
        for kill in (os.kill, os.killpg):  # itself first: it may not have a group yet
            with contextlib.suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)
        assert self.wait(30)

    @property
    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def status(self) -> int:
        """The exit status, once it has ended by itself."""
        return int(self.said.rpartition("exit ")[2])


class Commands:
    """Starts command lines of helm-gym; one at a time."""

    def __init__(self, folder: pathlib.Path):
        self._folder, self._count = folder, 0
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.killing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def start(self, arguments: Sequence[str], folder: pathlib.Path, setup: str = "") -> Process:
        """Runs ``helm-gym ARGUMENTS`` in ``folder``; ``setup`` is a ``module:function`` that is called before."""
        self._count += 1
        log = self._folder / f"{self._count}.log"
        log.touch()
        order = {"arguments": list(arguments), "folder": str(folder), "log": str(log), "setup": setup}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return Process(int(self._read()), log)

    def run(self, arguments: Sequence[str], folder: pathlib.Path, setup: str = "") -> float:
        """Runs a command to its end, which must be a good one; returns how long that took (s)."""
        started = time.monotonic()
        process = self.start(arguments, folder, setup)
        try:
            assert process.wait(LONGEST_S), f"{' '.join(arguments)} hangs: {process.said[-3000:]}"
        finally:
            process.kill()
        assert process.status == 0, process.said[-3000:]
        return time.monotonic() - started

    def kill_again_and_again(
        self,
        arguments: Callable[[pathlib.Path], Sequence[str]],
        folder: Callable[[int], pathlib.Path],
        rng: random.Random,
        kills: int,
        length_s: float,
        setup: str = "",
        check: Callable[[pathlib.Path], None] = lambda folder: None,
    ) -> list[pathlib.Path]:
        """Runs a command, kills it, runs it again, until it has been killed as often as wanted and has ended at last.

        Points lie all over an unbroken run's ``length_s``; at every other one it is killed when next a file is being
        written. Where the command ends before it is killed, another folder is begun.

        Args:
            arguments: of the command in a folder.
            folder: makes the folder of that number, in which the command runs.
            check: called after each kill.

        Returns:
            The folders, in each of which the command has ended.
        """
        folders, killed, point = [folder(0)], 0, 0
        while killed < kills:
            # One in each part of the run, from its first moment to its last.
            delay_s = length_s * (point * 7 % kills + rng.random()) / kills
            point += 1
            process = self.start(arguments(folders[-1]), folders[-1], setup)
            ended = process.wait(delay_s) or (point % 2 == 0 and _wait_for_writing(process, folders[-1]))
            process.kill()
            if ended:
                assert process.status == 0, process.said[-3000:]
                folders.append(folder(len(folders)))
            else:
                killed += 1
                assert "Traceback" not in process.said, process.said[-3000:]
                check(folders[-1])
        self.run(arguments(folders[-1]), folders[-1], setup)
        return folders

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)


def _wait_for_writing(process: Process, folder: pathlib.Path) -> bool:
    """Waits until a file is being written; whether the process has ended before."""
    end = time.monotonic() + _WRITING_S
    while time.monotonic() < end:
        if process.wait(0):
            return True
        with contextlib.suppress(FileNotFoundError):  # a folder that has just been removed
            if any(next(folder.rglob(pattern), None) for pattern in _UNFINISHED):
                return False
    return False


@contextlib.contextmanager
def commands(folder: pathlib.Path) -> Iterator[Commands]:
    opened = Commands(folder)
    try:
        yield opened
    finally:
        opened.close()


def main() -> None:
    """Reads orders, a line each; forks a process for each and says its number."""
    from typer.testing import CliRunner

    from helm_gym.cli.main import app

    for module in _MODULES:
        importlib.import_module(module)
    for backend in ("modelled", "surrogate"):  # its kernels
        quick = ["evaluate", "pid", "--task", "burst-v0", "--seeds", "1", "--horizon", "4", "--backend", backend, "-q"]
        assert CliRunner().invoke(app, quick).exit_code == 0
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _run(**json.loads(line))
        print(pid, flush=True)


def _run(arguments: list[str], folder: str, log: str, setup: str) -> None:
    """Becomes the command."""
    from helm_gym.cli.main import run

    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    os.chdir(folder)
    sys.argv = ["helm-gym", *arguments]
    status = 1
    try:
        if setup:
            module, _, function = setup.partition(":")
            getattr(importlib.import_module(module), function)()
        run()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(file, f"exit {status}".encode())
    os._exit(status)  # not by way of the parent's clean-up


if __name__ == "__main__":
    main()
