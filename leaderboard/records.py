"""The log: signed JSON records, each with the hash of the one before it. Everything else is made from them.

A record is one line of canonical JSON. Its hash is SHA-256 of the line; the signature is Ed25519 over the hash, by the
key that the first record names. Whoever has the log can check it without the board; nobody can change, drop or reorder
a line without the hashes telling, nor write one without the key.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from helm_gym import files
from helm_gym.errors import InvalidInputError

FORMAT = 1
GENESIS = "0" * 64  # what the first record has for the hash of the one before it
MAX_RECORD_BYTES = 4 * 2**20
KINDS = {  # kind -> keys of its body; docs/leaderboard.md has the same table
    "board": ("format", "name", "public_key", "profile"),
    "season": ("season", "key_hash", "tasks", "development", "hidden", "confirmation", "horizon", "versions"),
    "season-closed": ("season", "key"),
    "token": ("account", "token_hash", "revoked"),
    "submission": ("submission", "account", "name", "track", "files", "reference", "tasks", "write_up"),
    "check": ("submission", "passed", "rule", "sentence", "figures", "actions"),
    "state": ("submission", "state", "reason", "fault", "detail"),
    "scores": ("submission", "season", "task", "split", "rung", "member", "episodes", "where"),
    "references": ("season", "task", "split", "rung", "episodes", "where"),
}


@dataclasses.dataclass(frozen=True)
class Record:
    """One line of the log.

    Attributes:
        seq: 1 for the first; text: the line; body: what it says.
        digest, signature: hexadecimal.
    """

    seq: int
    time: str
    kind: str
    body: Mapping[str, Any]
    text: str
    digest: str
    signature: str

    def line(self) -> str:
        """As a published log has it."""
        return canonical({"record": json.loads(self.text), "hash": self.digest, "signature": self.signature})


def canonical(value: Any) -> str:
    """JSON that is the same for the same value: keys sorted, no spaces, ASCII, nothing that is not finite."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def now() -> str:
    """The time as records have it: UTC, milliseconds."""
    return ago(0.0)


def ago(seconds: float) -> str:
    """A time that is past, as records have it."""
    when = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds(when: str) -> float:
    """A record's time in seconds since 1970."""
    return datetime.datetime.fromisoformat(when).timestamp()


def make(seq: int, kind: str, body: Mapping[str, Any], previous: str, key: Ed25519PrivateKey, time: str = "") -> Record:
    """A record that follows the one of hash ``previous``."""
    assert set(body) == set(KINDS[kind]), (kind, sorted(body))
    when = time or now()
    text = canonical({"seq": seq, "time": when, "kind": kind, "body": body, "previous": previous})
    if len(text) > MAX_RECORD_BYTES:
        raise InvalidInputError(f"A record of kind {kind} has {len(text)} bytes; at most {MAX_RECORD_BYTES} go in.")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Record(seq, when, kind, json.loads(text)["body"], text, digest, key.sign(bytes.fromhex(digest)).hex())


def open_key(path: pathlib.Path) -> Ed25519PrivateKey:
    """The board's signing key; made, for its owner's eyes only, where there is none."""
    return Ed25519PrivateKey.from_private_bytes(open_secret(path))


def open_secret(path: pathlib.Path) -> bytes:
    """32 random bytes of a file that only its owner may read; made where it is not there.

    Raises:
        InvalidInputError: the file is there and is not such a secret, or cannot be written.
    """
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            beside = files.unfinished(path)
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
            os.link(beside, path)  # whoever is first; a rename would replace the other's
            beside.unlink()
        except FileExistsError:
            pass
        except OSError as error:
            raise InvalidInputError(f"{path} cannot be written: {files.reason(error)}.") from error
    try:
        content = bytes.fromhex(files.read_bytes(path, "Key", 1024).decode("ascii"))
    except ValueError:
        content = b""
    if len(content) != 32:
        raise InvalidInputError(f"Key {path} is not one that a board wrote; put the board's own back.")
    return content


def public_key_of(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def parse(text: str, digest: str, signature: str, where: str) -> Record:
    """A record from its stored parts.

    Raises:
        InvalidInputError: it is not one, or its hash is another.
    """
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise InvalidInputError(f"{where} was changed: its hash is another.")
    value = files.parse_json(text, where)
    good = isinstance(value, dict) and set(value) == {"seq", "time", "kind", "body", "previous"}
    kind, body = (value["kind"], value["body"]) if good else ("", None)
    if not isinstance(kind, str) or kind not in KINDS or not isinstance(body, dict) or set(body) != set(KINDS[kind]):
        raise InvalidInputError(f"{where} is no record of this version of HELM-Gym.")
    return Record(value["seq"], value["time"], kind, body, text, digest, signature)


def from_line(value: Any, where: str) -> Record:
    """A record from what a line of a published log says.

    Raises:
        InvalidInputError: it is none, or was changed.
    """
    if not isinstance(value, dict) or set(value) != {"record", "hash", "signature"}:
        raise InvalidInputError(f"{where} is no record.")
    return parse(canonical(value["record"]), str(value["hash"]), str(value["signature"]), where)


def check_signature(digest: str, signature: str, key: str | None, where: str) -> None:
    """Raises InvalidInputError unless ``key`` signed this hash."""
    if key is None:
        raise InvalidInputError("The log does not start with the board's own record.")
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), bytes.fromhex(digest))
    except (InvalidSignature, ValueError) as error:
        raise InvalidInputError(f"{where} of the log is not signed by the board's key.") from error


def check_record(record: Record, seq: int, previous: str, key: str | None) -> None:
    """Raises InvalidInputError unless a record is the one of number ``seq`` behind that of hash ``previous``."""
    if key is None:
        raise InvalidInputError("The log does not start with the board's own record.")
    if record.seq != seq or json.loads(record.text)["previous"] != previous:
        raise InvalidInputError(f"The log is broken at record {seq}: one is missing, added or out of order.")
    check_signature(record.digest, record.signature, key, f"Record {seq}")


def check_chain(log: Iterable[Record], public_key: str | None = None) -> Iterator[Record]:
    """The records, each once it is found to follow the one before it and to be signed.

    Args:
        public_key: whose signatures they must be; that which the first record names where not given.

    Raises:
        InvalidInputError: a record that is missing, out of order, changed, or signed by another key.
    """
    previous, key = GENESIS, public_key
    for number, record in enumerate(log, 1):
        if number == 1 and record.kind == "board":
            key = key or str(record.body["public_key"])
        check_record(record, number, previous, key)
        previous = record.digest
        yield record
