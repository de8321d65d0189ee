"""The hash of ids: the same in every process and on every machine, as Python's own is not."""

from __future__ import annotations

import hashlib


def mixed(identity: int | str) -> int:
    """64 bits of an id, evenly spread; a number and its text have different ones."""
    text = f"{'i' if isinstance(identity, int) else 's'}{identity}"
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
