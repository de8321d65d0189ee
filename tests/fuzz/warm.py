"""A process that has everything imported and its kernels loaded, and forks a child for each command line it is given.

Run as a script it is that process: a JSON object a line on stdin, one a line on stdout. ``Warm`` talks to it.

Long honest work (a demo, a training, an evaluation of many seeds) is not waited for: after ``PATIENCE_S`` the command
gets what Ctrl-C sends, to it and its workers, and has to end as it does for a user: quietly, with status 130.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE_S = 2.5  # then Ctrl-C
AGAIN_S = 10.0  # and again: Python loses one that comes while it collects garbage, with a message of its own
IDLE_S = 4.0  # in which no thread runs: it waits for what never comes, and Ctrl-C must not hide that
CPU_S, WALL_S = 20, 60.0  # a hang: of this process's own time, and of the clock, which others on the machine slow down
MEMORY_BYTES = 2 * 2**30

# What loads the kernels that commands use most, so that no case compiles or loads them on its own time.
_LOAD = (
    ("evaluate", "static:0.5", "pid", "three-layer-ppo", "gbdt", "oracle", "--task", "burst-v0", "--horizon", "2"),
    ("evaluate", "static:0.5", "--task", "burst-v0", "--horizon", "2", "--backend", "surrogate"),
    ("evaluate", "static:0.5+joint", "pid+learned", "--task", "burst-v0", "--horizon", "2", "--cluster", "2"),
    ("evaluate", "static:0.5", "--task", "burst-v0", "--horizon", "2", "--backend", "real"),
)
_LOST_INTERRUPT = re.compile(r"Exception ignored in:.*?KeyboardInterrupt:?", re.DOTALL)
_IMPORTED = (
    "lightgbm",
    "matplotlib.pyplot",
    "onnxruntime",
    "optuna",
    "pyarrow.parquet",
    "sb3_contrib",
    "helm_gym.policies.run_export",
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: its exit status; None where it had to be killed.
        killed: why, where it was: ``hang``, ``waits for ever`` or a signal's name.
        interrupted: whether it got Ctrl-C.
        peak_bytes: the most memory that was resident, of the process itself.
    """

    arguments: Sequence[str]
    status: int | None
    killed: str
    interrupted: bool
    seconds: float
    peak_bytes: int
    stdout: str
    stderr: str

    def complaints(self) -> list[str]:
        """What is wrong with it; nothing where it ended as a command has to, whatever it was given."""
        found = []
        if self.killed:
            found.append(f"was killed ({self.killed}) after {self.seconds:.0f} s")
        elif self.status not in ((0, 2, 130) if self.interrupted else (0, 2)):
            found.append(f"ended with status {self.status}")
        if "Traceback" in _LOST_INTERRUPT.sub("", self.stderr) or "Traceback" in self.stdout:
            found.append("shows a traceback")
        if self.peak_bytes > MEMORY_BYTES:
            found.append(f"took {self.peak_bytes / 2**30:.1f} GiB")
        for name, text in (("stdout", self.stdout), ("stderr", self.stderr)):
            raw = sorted({c for c in text if not c.isprintable() and c != "\n"})
            if raw:
                found.append(f"prints {raw} on {name} as they are")
        if self.status == 2 and self.arguments:
            found += self._complaints_of_an_error()
        helped = {"--help", "-h"} & set(self.arguments)
        if self.status == 0 and "--json" in self.arguments and not helped and not is_strict_json(self.stdout):
            found.append("prints no strict JSON")
        return found

    def _complaints_of_an_error(self) -> list[str]:
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        told = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
        if len(told) != 1 or not lines[-1].startswith("Error: "):
            return ["does not end in one sentence that starts with 'Error: '"]
        return [f"says what is wrong in {len(told[0])} characters"] if len(told[0]) > 500 else []


def is_strict_json(text: str) -> bool:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


class Warm:
    """The warm process; ``folder`` is where what commands print is kept meanwhile."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        # Files, and not pipes: nothing that a command leaves running can keep this process waiting.
        with (folder / "warm.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **threads, "MPLBACKEND": "Agg", "COLUMNS": "120"},
                cwd=folder,
                text=True,
            )
        self._answer()

    def run(self, arguments: Sequence[str], cwd: pathlib.Path, patience_s: float = PATIENCE_S) -> Outcome:
        assert self._process.stdin is not None
        asked = {"arguments": list(arguments), "cwd": str(cwd), "patience_s": patience_s}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        texts = {
            name: (self._folder / name).read_text(encoding="utf-8", errors="surrogateescape")
            for name in ("stdout", "stderr")
        }
        return Outcome(arguments, **answer, **texts)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, (self._folder / "warm.log").read_text()
        answer: dict = json.loads(line)
        return answer


def _load() -> None:
    """Imports and kernels; what the commands print goes nowhere."""
    import importlib

    from helm_gym.cli.main import app

    for name in _IMPORTED:
        importlib.import_module(name)
    with pathlib.Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        for arguments in _LOAD:
            app([*arguments, "--seeds", "1", "--quiet"], standalone_mode=False)


def _child(arguments: list[str], cwd: str, folder: pathlib.Path) -> None:
    """Becomes ``helm-gym`` with these arguments; does not return."""
    os.setsid()
    os.chdir(cwd)
    for target, name in ((0, os.devnull), (1, folder / "stdout"), (2, folder / "stderr")):
        descriptor = os.open(name, os.O_RDONLY if target == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, target)
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S + int(time.process_time()), resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1, file=2)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(k, "r" if k == 0 else "w", encoding="utf-8") for k in range(3))
    from helm_gym.cli.main import run

    status = 1
    sys.argv = ["helm-gym", *arguments]
    try:
        run()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def _is_busy(group: int) -> bool:
    """Whether a thread of the group's processes runs, could run, or is waiting for a disk."""
    for stat in pathlib.Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state in "RD":
                return True
    return False


def _serve(folder: pathlib.Path, arguments: list[str], cwd: str, patience_s: float) -> dict:
    started, interrupted, killed = time.monotonic(), 0, ""
    pid = os.fork()
    if pid == 0:
        _child(arguments, cwd, folder)
    busy = started
    while True:
        ended, code, used = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        now = time.monotonic()
        seconds, busy = now - started, now if now - started < 1.0 or _is_busy(pid) else busy
        if seconds > WALL_S or now - busy > IDLE_S:
            killed = "hang" if seconds > WALL_S else "waits for ever"
            os.kill(pid, signal.SIGUSR1)  # its threads' stacks, on stderr
            time.sleep(0.2)
            os.killpg(pid, signal.SIGKILL)
        elif seconds > patience_s + AGAIN_S * interrupted:
            interrupted += 1
            os.killpg(pid, signal.SIGINT)
        time.sleep(0.01 if seconds < 1.0 else 0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # workers that it has left behind
    if os.WIFSIGNALED(code) and not killed:
        killed = "hang" if os.WTERMSIG(code) == signal.SIGXCPU else signal.Signals(os.WTERMSIG(code)).name
    return {
        "status": None if killed else os.WEXITSTATUS(code),
        "killed": killed,
        "interrupted": interrupted > 0,
        "seconds": time.monotonic() - started,
        "peak_bytes": 1024 * used.ru_maxrss,
    }


def _main(folder: pathlib.Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _load()
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(_serve(folder, **asked)), file=answers, flush=True)


if __name__ == "__main__":
    _main(pathlib.Path(sys.argv[1]))
