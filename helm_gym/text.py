"""Text from outside as it may be shown: nothing that a terminal would obey, and no longer than a person reads."""

from __future__ import annotations

import reprlib

SENTENCE = 500  # characters of an error, at most
_WORD = 100  # of one word, in an error that is too long
_VALUE = 120  # of a value within a sentence
_READ = 100_000  # of a text that is looked at, at most


def plain(text: str) -> str:
    """``text`` on one line, with what is not printable as Python's escapes have it.

    That is control characters and escape sequences, marks that turn the direction of writing, line separators, and
    bytes of a file's name that are no UTF-8.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def literal(text: str) -> str:
    """Text that Rich is to print as it stands: plain, and not read as markup, such as ``[0, 1]``."""
    from rich.markup import escape

    return escape(plain(text))


def shorten(text: str, limit: int) -> str:
    """``text`` in at most ``limit`` characters; what is left out is its middle."""
    if len(text) <= limit:
        return text
    kept = limit - 3
    return f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"


def sentence(message: object) -> str:
    """An error as it is printed: one line, plain, of at most ``SENTENCE`` characters.

    Where it is too long, long words (a path, a value) lose their middle first, so that what to do stays at its end.
    """
    text = plain(" ".join(shorten(str(message), _READ).split()))
    if len(text) > SENTENCE:
        text = " ".join(shorten(word, _WORD) for word in text.split(" "))
    return shorten(text, SENTENCE)


def shown(value: object) -> str:
    """A value within a sentence, as ``repr`` writes it, and never written out further than it is shown."""
    return shorten(_SHOWN.repr(value), _VALUE)


class _Shown(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxother = self.maxlong = 80

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write numbers of thousands of digits out, since that takes long.
        return super().repr_int(x, level) if x.bit_length() < 10_000 else f"<a number of {x.bit_length()} bits>"


_SHOWN = _Shown()
