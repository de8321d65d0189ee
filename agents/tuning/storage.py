"""Where an Optuna study is kept: a database or a journal file, shared by processes that may die at any moment."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import random
import re
import sqlite3
import time
import urllib.parse
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from helm_gym.errors import InvalidInputError

if TYPE_CHECKING:
    import sqlalchemy

_JOURNAL = (".journal", ".log")
_SQLITE_HEADER = b"SQLite format 3\0"
_OWN_TABLES = {"studies", "version_info", "alembic_version"}
_RECORD = b'{"op_code":'  # how every line of a journal begins
_LONGEST = 2**24  # bytes of a journal's line
_BLOCK = 2**16
_PATIENCE_S = 60.0  # for another process's transaction, or its line of a journal
_TRIES = 20  # to make the tables, while others make them
# Of libpq, for servers that answer no more.
_CONNECTION = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
_LONGEST_REASON = 200
_JITTER = random.Random()  # the module's own generator is the trainings'
_GIVE = "give a URL such as sqlite:///tune.db, or a file that ends in .journal"


class StorageError(InvalidInputError):
    """A storage that cannot be used, or no more."""


def locate(text: str) -> str:
    """The URL, or the journal file's path, with no path that depends on the folder that a process runs in.

    Raises:
        StorageError: neither a URL nor a journal file.
    """
    import sqlalchemy.exc

    if is_journal(text):
        return str(pathlib.Path(text).expanduser().absolute())
    try:
        url = sqlalchemy.make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:  # whose texts may hold the password
        raise StorageError(f"--storage {hide_password(text)} cannot be opened; {_GIVE}.") from error
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:") or url.database.startswith("file:"):
            raise StorageError(f"--storage {text} cannot be opened: a search is kept in a file; {_GIVE}.")
        url = url.set(database=str(pathlib.Path(url.database).expanduser().absolute()))
    return url.render_as_string(hide_password=False)


def beside(folder: pathlib.Path) -> str:
    """The URL of the SQLite database of a run folder."""
    import sqlalchemy

    url = sqlalchemy.URL.create("sqlite", database=str(folder.absolute() / "study.db"))
    return url.render_as_string(hide_password=False)


def is_journal(text: str) -> bool:
    return "://" not in text and pathlib.Path(text).suffix in _JOURNAL


def hide_password(text: str) -> str:
    """The URL as it may be shown and kept."""
    import sqlalchemy.exc

    try:
        url = sqlalchemy.make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return re.sub(r"//.*@", "//***@", text)
    hidden = {name: "hidden" for name in url.query if "password" in name}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def open_storage(text: str) -> BaseStorage:
    """A database by its URL (``sqlite:///tune.db``, ``postgresql://...``), or a journal file by its path.

    Raises:
        StorageError: it cannot be opened or is damaged, or a library is missing.
    """
    place = locate(text)
    try:
        with naming(place, "cannot be opened"):
            return _open_journal(pathlib.Path(place)) if is_journal(place) else _open_database(place)
    except ImportError as error:
        raise StorageError(
            f"--storage {hide_password(place)} needs a library that is missing ({error}); for PostgreSQL install "
            "helm-gym[postgres]."
        ) from error
    # Optuna's own complaints, and those of the code that replays a journal whose records make no sense.
    except (OSError, ValueError, RuntimeError, AssertionError, KeyError, TypeError, sqlite3.Error) as error:
        raise StorageError(f"--storage {_sentence(place, 'cannot be opened', error)}") from error


@contextlib.contextmanager
def naming(place: str, what: str = "failed") -> Iterator[None]:
    """Makes a sentence, which names the storage, of what a database has to say.

    Raises:
        StorageError: what the body raised.
    """
    import sqlalchemy.exc

    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        raise StorageError(f"--storage {_sentence(place, what, error)}") from error


def _sentence(place: str, what: str, error: BaseException) -> str:
    import sqlalchemy

    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    cause = getattr(cause, "orig", None) or cause
    reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause) or type(cause).__name__
    reason = reason.strip().partition("\n")[0].rstrip(" .")[:_LONGEST_REASON]
    todo = "move the file away, or give another --storage"
    if isinstance(cause, OSError) or re.search("readonly|unable to open|disk is full", reason):
        todo = "give a --storage that can be read and written"
    if not is_journal(place):
        url = sqlalchemy.make_url(place)
        if url.password:
            reason = reason.replace(str(url.password), "***")
        if url.get_backend_name() != "sqlite":
            todo = "check that the server runs, and the URL's user, password, host and database"
    return f"{hide_password(place)} {what} ({reason}); {todo}."


def _check_file(path: pathlib.Path) -> bool:
    """Whether there is a file, its folder made; raises ValueError for what is there and is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise ValueError("it is a folder" if path.is_dir() else "it is no regular file")
    return path.exists()


def _open_database(place: str) -> BaseStorage:
    import sqlalchemy

    url = sqlalchemy.make_url(place)
    options: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        _check_sqlite(pathlib.Path(str(url.database)))
        options = {"connect_args": {"timeout": _PATIENCE_S}}
    elif url.get_backend_name() == "postgresql":
        options = {"connect_args": {name: value for name, value in _CONNECTION.items() if name not in url.query}}
        options |= {"pool_pre_ping": True}  # a trial may be longer than a connection lives
    storage = _make_tables(place, options)
    if url.get_backend_name() == "sqlite":
        _one_writer(storage)
    return storage


def _make_tables(place: str, options: dict[str, Any]) -> RDBStorage:
    """Optuna's storage, its tables made; others that make them at the same moment get into one another's way."""
    import sqlalchemy.exc
    from optuna.storages._rdb import models  # public nowhere

    template = place.replace("{", "{{").replace("}", "}}")  # Optuna takes a URL for a format string
    for tries_left in reversed(range(_TRIES)):
        try:
            storage = RDBStorage(template, engine_kwargs=dict(options))
            # SQLite makes a table and its indices one by one: a process may have been killed in between.
            for table in models.BaseModel.metadata.tables.values():
                for index in table.indexes:
                    index.create(storage.engine, checkfirst=True)
            return storage
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError, AssertionError):
            if not tries_left:
                raise
        except sqlalchemy.exc.OperationalError as error:
            if "already exists" not in str(error) or not tries_left:
                raise
        time.sleep(_JITTER.uniform(0.05, 0.3))
    raise AssertionError("unreachable")


def _one_writer(storage: RDBStorage) -> None:
    """Has every transaction of SQLite wait for the one before it.

    Left alone, two processes may read that a trial is free before either writes that it is taken.
    """
    import sqlalchemy

    def connect(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # the module begins no transaction of its own

    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    storage.engine.dispose()
    sqlalchemy.event.listen(storage.engine, "connect", connect)
    sqlalchemy.event.listen(storage.engine, "begin", begin)


def _check_sqlite(path: pathlib.Path) -> None:
    """Raises ValueError for a file that is no database of Optuna's: its tables would be put among another's."""
    if not _check_file(path) or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        if file.read(len(_SQLITE_HEADER)) != _SQLITE_HEADER:
            raise ValueError("it is no SQLite database")
    uri = f"file:{urllib.parse.quote(str(path))}?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_PATIENCE_S)) as connection:
        (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if state != "ok":
            raise ValueError(f"it is damaged: {state}")
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if names and not names & _OWN_TABLES:
        raise ValueError(f"it is another program's database, with a table '{min(names)}'")


def _open_journal(path: pathlib.Path) -> BaseStorage:
    if _check_file(path):
        _check_records(path)
    return JournalStorage(_Journal(path))


def _check_records(path: pathlib.Path) -> None:
    """Raises ValueError that names the first line that is none of a journal's; the last one may be cut off."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST):
            number += 1
            if not line.endswith(b"\n") and _RECORD.startswith(line[: len(_RECORD)]) and len(line) < _LONGEST:
                break
            try:
                record = json.loads(line)
                whole = line.endswith(b"\n") and type(record["op_code"]) is int and type(record["worker_id"]) is str
            except (ValueError, TypeError, KeyError, RecursionError):
                whole = False
            if not whole:
                raise ValueError(f"line {number} is no record of Optuna's")


class _Journal(JournalFileBackend):
    """A journal file whose lock is the kernel's, on the file itself.

    Optuna's locks are files, which outlive a process that is killed.
    """

    def __init__(self, path: pathlib.Path):
        super().__init__(str(path))
        self._path = path

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        with self._naming():
            yield from super().read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        content = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._naming(), self._path.open("r+b") as file:
            _lock(file)
            file.truncate(_end_of_last_line(file))  # what a process that was killed at it has written of a line
            file.seek(0, os.SEEK_END)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise StorageError(f"--storage {_sentence(str(self._path), 'failed', error)}") from error


def _lock(file: BinaryIO) -> None:
    """Locks a file until it is closed; raises TimeoutError where another process does not let go of it."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError(0, f"another process has held its lock for {_PATIENCE_S:.0f} s") from None
        time.sleep(_JITTER.uniform(0.001, 0.02))


def _end_of_last_line(file: BinaryIO) -> int:
    """The size of a file up to the last end of a line."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
