"""What a policy that has taken its process over could try; run as a process of its own, it says how each ended."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import pathlib
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from leaderboard.sandbox import confine

LIBC = ctypes.CDLL(None, use_errno=True)


def called(number: int, *arguments: Any) -> int:
    result = LIBC.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return int(result)


def with_io_uring() -> None:
    called(425, 8, ctypes.create_string_buffer(120))


ATTEMPTS: dict[str, Callable[[], Any]] = {
    "read a file": lambda: pathlib.Path("/etc/passwd").read_text(),
    "read the database": lambda: pathlib.Path(sys.argv[1]).read_text(),
    "write a file": lambda: pathlib.Path("/tmp/escaped").write_text("x"),
    "list a folder": lambda: os.listdir("/"),
    "stat a file": lambda: os.stat("/etc/passwd"),
    "remove a file": lambda: os.unlink(sys.argv[1]),
    "make a link": lambda: os.symlink("/etc/passwd", "/tmp/escaped"),
    "open a socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "open a local socket": lambda: socket.socket(socket.AF_UNIX),
    "make a pipe": os.pipe,
    "fork": os.fork,
    "run a program": lambda: os.execv("/bin/true", ["true"]),
    "signal the parent": lambda: os.kill(os.getppid(), signal.SIGTERM),
    "signal itself": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "trace the parent": lambda: called(101, 16, os.getppid(), 0, 0),
    "read the parent's memory": lambda: called(310, os.getppid(), None, 0, None, 0, 0),
    "open a handle on the parent": lambda: os.pidfd_open(os.getppid()),
    "queue calls for the kernel": with_io_uring,
    "load a filter program": lambda: called(321, 5, None, 0),
    "memory that can be run": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    "a file in memory": lambda: os.memfd_create("x"),
    "raise a limit": lambda: called(302, 0, 7, None, None),
    "change user": lambda: os.setuid(1000),
    "mount": lambda: called(165, b"none", b"/tmp", b"tmpfs", 0, None),
    "new namespaces": lambda: called(272, 0x10000000),
    "set the clock": lambda: called(227, 0, None),
}


def attempt(try_it: Callable[[], Any]) -> str:
    try:
        try_it()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "none")
    except Exception as error:
        return type(error).__name__
    return "done"


def main() -> None:
    confine.confine()
    ended = {name: attempt(try_it) for name, try_it in ATTEMPTS.items()}
    worker = threading.Thread(target=lambda: ended.__setitem__("thread", attempt(lambda: os.listdir("/"))))
    worker.start()
    worker.join()
    sys.stdout.write(json.dumps(ended))


if __name__ == "__main__":
    main()
