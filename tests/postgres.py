"""A PostgreSQL server of a test's own, in a folder that is removed with it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

USER, DATABASE = "helm", "helm"
_ACCOUNT = "postgres"  # a server refuses to run as root


def _program(name: str) -> str | None:
    found = shutil.which(name)
    if found is None:  # Debian keeps them off the path
        versions = sorted(pathlib.Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: path.parts[4])
        found = str(versions[-1]) if versions else None
    return found


def _run(*command: str) -> None:
    as_server = ["runuser", "-u", _ACCOUNT, "--"] if os.geteuid() == 0 else []
    done = subprocess.run([*as_server, *command], capture_output=True, text=True, timeout=120, check=False, cwd="/")
    assert done.returncode == 0, f"{command[0]}: {done.stdout} {done.stderr}"


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class Server:
    """A server on a loopback port, with a password.

    Attributes:
        url: of its database, with the password.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder, self._data = folder, folder / "data"
        self.port, self.password = _free_port(), secrets.token_hex(8)
        self.url = f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{DATABASE}"
        (folder / "password").write_text(self.password)
        if os.geteuid() == 0:
            account = pwd.getpwnam(_ACCOUNT)
            for path in (folder, folder / "password"):
                os.chown(path, account.pw_uid, account.pw_gid)
        self._control, initdb, createdb = map(_program, ("pg_ctl", "initdb", "createdb"))
        assert initdb and createdb
        options = ("-U", USER, "-A", "scram-sha-256", f"--pwfile={folder}/password", "--no-sync", "-E", "UTF8")
        _run(initdb, "-D", str(self._data), *options)
        self.start()
        _run(
            "env",
            f"PGPASSWORD={self.password}",
            createdb,
            "-h",
            str(folder),
            "-p",
            str(self.port),
            "-U",
            USER,
            DATABASE,
        )

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self._folder} -c fsync=off"
        assert self._control is not None
        _run(self._control, "-D", str(self._data), "-l", str(self._folder / "log"), "-o", options, "-w", "start")

    def stop(self) -> None:
        assert self._control is not None
        _run(self._control, "-D", str(self._data), "-m", "immediate", "-w", "stop")


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Skips the test where there is no PostgreSQL, or no account to run it under."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    if _program("initdb") is None or _program("pg_ctl") is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(_ACCOUNT)
        except KeyError:
            pytest.skip(f"PostgreSQL does not run as root, and there is no account '{_ACCOUNT}'")
    # Not in pytest's own folder: the server's account may not enter that.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="helm-postgres-"))
    try:
        server = Server(folder)
        try:
            yield server
        finally:
            with contextlib.suppress(AssertionError):  # a test has stopped it
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
