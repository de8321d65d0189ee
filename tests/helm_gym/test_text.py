"""Text from outside is shown plain and short."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from helm_gym.errors import UnknownNameError
from helm_gym.text import SENTENCE, literal, plain, sentence, shorten, shown

ANY = st.text(st.characters(codec=None))  # lone surrogates too: bytes of a file's name that are no UTF-8


@given(ANY)
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    assert plain(text).isprintable()
    assert plain(plain(text)) == plain(text)
    plain(text).encode("utf-8")


def test_escapes_direction_marks_and_bad_bytes_are_written_out() -> None:
    assert plain("\x1b[31mred\x07") == r"\x1b[31mred\x07"
    assert plain("\u202etxt.exe\u2066") == r"\u202etxt.exe\u2066"
    assert plain("a\nb\udcff\u2028\U000e0041") == r"a\nb\udcff\u2028\U000e0041"
    assert plain("Ärger – 漢字 ½") == "Ärger – 漢字 ½"


@given(ANY)
def test_what_is_literal_is_printed_as_it_stands(text: str) -> None:
    out = io.StringIO()
    Console(file=out, width=10_000, highlight=False).print(literal(text), soft_wrap=True, end="")
    assert out.getvalue() == plain(text)


@given(ANY, st.integers(4, 40))
def test_a_long_text_loses_its_middle(text: str, limit: int) -> None:
    short = shorten(text, limit)
    assert len(short) <= max(limit, 0) and (short == text or "..." in short)


@given(st.one_of(ANY, st.builds(lambda text, count: text * count, ANY, st.integers(0, 2000))))
def test_an_error_is_one_line_of_bounded_length(text: str) -> None:
    told = sentence(text)
    assert told.isprintable() and len(told) <= SENTENCE


def test_a_long_error_keeps_what_it_is_about_and_what_to_do() -> None:
    told = sentence(f"Profile {'x' * 10_000}.yaml cannot be read: File name too long; give a YAML file of text.")
    assert told.startswith("Profile xxx") and told.endswith("File name too long; give a YAML file of text.")
    assert len(sentence("a b " * 10_000_000)) <= SENTENCE


def test_values_are_shown_in_few_characters_whatever_they_are() -> None:
    nested: list = []
    nested.append(nested)
    bomb = ["x"]
    for _ in range(40):
        bomb = [bomb] * 9  # written out it would have 9**40 entries
    for value in (bomb, nested, "x" * 10**7, 10**100_000, -(10**5000), {"a": bomb}, b"x" * 10**6, [[1, 2]] * 10**5):
        assert len(shown(value)) <= 120
    assert (shown("a\x1b"), shown(0.5), shown([1, "b"]), shown(None)) == (r"'a\x1b'", "0.5", "[1, 'b']", "None")


def test_an_unknown_name_is_shortened() -> None:
    told = str(UnknownNameError("task", "x" * 10_000, ["steady-v0"]))
    assert len(told) < 200 and told.endswith("known: steady-v0.")
