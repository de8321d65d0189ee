"""The board's storage: the log and its tables in one database, files by their SHA-256 in a folder, and two keys.

    board/board.db          SQLite, unless a PostgreSQL URL is given
    board/files/ab/ab12...  submitted files and logs of development episodes
    board/keys/             the signing key, and each season's key
    board/parts/1/          references of the first season that are not finished

Records and the tables made from them change in one transaction, so that a process that is killed leaves both or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from helm_gym import files
from helm_gym.errors import HelmError, InvalidInputError
from leaderboard import records
from leaderboard.records import Record
from leaderboard.tables import LEASES, METADATA, PROJECTED, RECORDS, SEASONS, project, rows

DATABASE, FILES, KEYS, PARTS = "board.db", "files", "keys", "parts"
MAX_FILE_BYTES = 64 * 2**20  # of a file of the store; a policy has 8 MiB at most
_WRITES = "leaderboard_writes"
_LOCK_S = 60

Body = Mapping[str, Any]
Guard = Callable[[sa.Connection], None]


class StoreError(HelmError):
    """The database or the disk fails; nothing was written."""


class Store:
    """A board's records, tables and files.

    Args:
        folder: made if it is not there.
        url: of a PostgreSQL database; SQLite in the folder where not given.

    Raises:
        InvalidInputError: the folder or the URL cannot be used, or the database is another board's.
    """

    def __init__(self, folder: pathlib.Path, url: str | None = None):
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(f"{folder} cannot be made: {files.reason(error)}; give another folder.") from error
        self.signing_key = records.open_key(folder / KEYS / "signing.key")
        self.public_key = records.public_key_of(self.signing_key)
        self.engine = _open_engine(url or f"sqlite:///{(folder / DATABASE).absolute()}")
        with _database_errors():
            there = sa.inspect(self.engine).get_table_names()
            METADATA.create_all(self.engine)
        first = self.first_record()
        if first is not None and first.body["public_key"] != self.public_key:
            raise InvalidInputError(
                f"The database's log is signed by another key than {folder / KEYS}'s; put its own keys there."
            )
        if first is not None and not {table.name for table in PROJECTED} <= set(there):
            self.rebuild()  # an older version had fewer tables

    def close(self) -> None:
        self.engine.dispose()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One consistent view of the tables."""
        options = {"isolation_level": "REPEATABLE READ"} if self.engine.dialect.name == "postgresql" else {}
        with _database_errors(), self.engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that no other writer runs beside; undone where it raises."""
        with (
            _database_errors(),
            self.engine.connect().execution_options(**{_WRITES: True}) as connection,
            connection.begin(),
        ):
            if self.engine.dialect.name == "postgresql":
                connection.execute(sa.text("LOCK TABLE records IN SHARE ROW EXCLUSIVE MODE"))
            yield connection

    def append(self, entries: Iterable[tuple[str, Body]], guard: Guard | None = None) -> list[Record]:
        """Adds records, and what follows from them to the tables: all of it or none.

        Args:
            entries: (kind, body) of each.
            guard: looks at the tables first, within the same transaction; nothing is written where it raises.

        Raises:
            StoreError: the database fails, as where the disk is full.
        """
        with self.writing() as connection:
            if guard is not None:
                guard(connection)
            return self.append_within(connection, entries)

    def append_within(self, connection: sa.Connection, entries: Iterable[tuple[str, Body]]) -> list[Record]:
        """``append`` as a part of a transaction of ``writing``."""
        last = connection.execute(
            sa.select(RECORDS.c.seq, RECORDS.c.digest).order_by(RECORDS.c.seq.desc()).limit(1)
        ).first()
        seq, previous = (0, records.GENESIS) if last is None else (last.seq, last.digest)
        made: list[Record] = []
        for kind, body in entries:
            record = records.make(seq + 1, kind, body, previous, self.signing_key)
            connection.execute(
                RECORDS.insert().values(
                    seq=record.seq, text=record.text, digest=record.digest, signature=record.signature
                )
            )
            project(connection, record)
            seq, previous = record.seq, record.digest
            made.append(record)
        return made

    def log(self, after: int = 0) -> Iterator[Record]:
        """The records in their order, from the one behind ``after`` on."""
        with self.reading() as connection:
            found = connection.execution_options(stream_results=True, yield_per=500).execute(
                sa.select(RECORDS).where(RECORDS.c.seq > after).order_by(RECORDS.c.seq)
            )
            for row in found:
                yield records.parse(row.text, row.digest, row.signature, f"Record {row.seq}")

    def first_record(self) -> Record | None:
        with self.reading() as connection:
            row = connection.execute(sa.select(RECORDS).order_by(RECORDS.c.seq).limit(1)).first()
        return None if row is None else records.parse(row.text, row.digest, row.signature, "Record 1")

    def last_seq(self, connection: sa.Connection) -> int:
        return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(RECORDS.c.seq), 0))).scalar_one())

    def check(self) -> int:
        """Whether the log is sound and the tables are what it says; how many records there are.

        Raises:
            InvalidInputError: they are not, with what differs.
        """
        count = 0
        scratch = _open_engine("sqlite://")
        METADATA.create_all(scratch)
        with scratch.connect() as rebuilt:
            for record in records.check_chain(self.log(), self.public_key):
                project(rebuilt, record)
                count += 1
            with self.reading() as connection:
                here, there = rows(connection), rows(rebuilt)
        scratch.dispose()
        for name in here:
            if here[name] != there[name]:
                raise InvalidInputError(f"Table {name} is not what the log says; rebuild it with `check --rebuild`.")
        return count

    def rebuild(self) -> int:
        """Makes every table anew from the log; how many records it has."""
        with self.writing() as connection:
            for table in PROJECTED:
                connection.execute(table.delete())
            count = 0
            for row in connection.execute(sa.select(RECORDS).order_by(RECORDS.c.seq)).all():
                project(connection, records.parse(row.text, row.digest, row.signature, f"Record {row.seq}"))
                count += 1
            connection.execute(LEASES.delete())
        return count

    # Files

    def put(self, content: bytes) -> str:
        """Keeps a file; returns its SHA-256, by which it is found.

        Raises:
            StoreError: it cannot be written, as where the disk is full.
        """
        name = hashlib.sha256(content).hexdigest()
        path = self.path_of(name)
        if not path.exists():
            try:
                files.write(path, content)
            except InvalidInputError as error:
                raise StoreError(f"A file cannot be kept: {error}") from error
        return name

    def get(self, name: str) -> bytes:
        """Raises InvalidInputError where there is none, or one that was changed."""
        content = files.read_bytes(self.path_of(name), "File", MAX_FILE_BYTES)
        if hashlib.sha256(content).hexdigest() != name:
            raise InvalidInputError(f"File {name} of the store was changed.")
        return content

    def path_of(self, name: str) -> pathlib.Path:
        if len(name) != 64 or set(name) - set("0123456789abcdef"):
            raise InvalidInputError("A file of the store is named by 64 hexadecimal digits.")
        return self.folder / FILES / name[:2] / name

    def parts(self, season: int) -> pathlib.Path:
        """A folder for unfinished references of a season, which are no record yet."""
        return self.folder / PARTS / str(season)

    # Seasons

    def seasons(self, connection: sa.Connection) -> list[dict[str, Any]]:
        """Each season's record body, the newest first, with its ``key`` once that is published."""
        found = connection.execute(sa.select(SEASONS).order_by(SEASONS.c.season.desc()))
        return [json.loads(row.body) | {"key": row.key, "opened": row.opened, "closed": row.closed} for row in found]

    def season(self, connection: sa.Connection, number: int | None = None) -> dict[str, Any]:
        """The season of that number, or the newest one.

        Raises:
            InvalidInputError: there is none of that number.
        """
        for season in self.seasons(connection):
            if number in (None, season["season"]):
                return season
        raise InvalidInputError(f"This board has no season {number}.")

    def season_key(self, season: int, key_hash: str | None = None) -> bytes:
        """What the season's hidden seeds are made with. It is published when the season is closed.

        Args:
            key_hash: that the season's record names; a key is made where none is given and none is there.

        Raises:
            InvalidInputError: the key is not there, or is another one.
        """
        path = self.folder / KEYS / f"season-{season}.key"
        if key_hash is not None and (
            not path.exists() or hashlib.sha256(records.open_secret(path)).hexdigest() != key_hash
        ):
            raise InvalidInputError(f"{path} is not the key of season {season}; put the board's own back.")
        return records.open_secret(path)

    def open_board(self, name: str, profile: str, seasons: Callable[[int, str], Body]) -> None:
        """Writes the first records where there are none.

        Args:
            seasons: the body of a season's record, from its number and its key's hash.
        """

        def first(connection: sa.Connection) -> None:
            if self.last_seq(connection) == 0:
                key_hash = hashlib.sha256(self.season_key(1)).hexdigest()
                board = {"format": records.FORMAT, "name": name, "public_key": self.public_key, "profile": profile}
                self.append_within(connection, [("board", board), ("season", seasons(1, key_hash))])

        self.append((), guard=first)


def _open_engine(url: str) -> sa.Engine:
    try:
        place = sa.make_url(url)
    except exc.ArgumentError as error:
        raise InvalidInputError("The database's URL cannot be read; write postgresql://USER@HOST/DATABASE.") from error
    if place.get_backend_name() not in ("sqlite", "postgresql"):
        raise InvalidInputError(f"'{place.get_backend_name()}' is no database for a board; use postgresql, or none.")
    if place.drivername == "postgresql":
        place = place.set(drivername="postgresql+psycopg")
    if place.get_backend_name() == "postgresql":
        try:
            return sa.create_engine(place, pool_pre_ping=True)
        except ImportError as error:
            raise InvalidInputError("PostgreSQL needs psycopg; install helm-gym[postgres].") from error
    memory = {} if place.database else {"poolclass": sa.StaticPool}
    engine = sa.create_engine(place, connect_args={"timeout": _LOCK_S, "check_same_thread": False}, **memory)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, and not by the driver when it likes
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextlib.contextmanager
def _database_errors() -> Iterator[None]:
    """What a database says, in one sentence, without its statements."""
    try:
        yield
    except exc.SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise StoreError(f"The board's database fails: {files.reason(cause)}; nothing was written.") from error
