"""Users and items of any kind of id: nobody is mixed up, and what was forgotten is asked for again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helm_gym.errors import InvalidInputError
from real_backend.serving.item_index import ItemIndex, NoRowLeftError
from real_backend.serving.user_index import HistoryRequiredError, NoPlaceLeftError, UserIndex, first_seen

USERS = st.sampled_from(["a", "1", 1, -1, 2**64 - 1, "ä", "", "a\x00"])
MOST = 6


def test_the_first_event_seen_moves_by_halves_and_follows_from_the_number_alone() -> None:
    for most in (1, 2, 5, 6, 640):
        last = 0
        for total in range(5 * most):
            first = first_seen(total, most)
            assert first >= last and (first - last) in (0, max(1, most // 2))
            assert 0 <= total - first <= most
            assert total == 0 or total > first
            last = first


@given(
    st.lists(
        st.tuples(
            USERS,
            st.sampled_from(["delta", "whole", "again", "late", "other", "lie", "leave"]),
            st.lists(st.integers(0, 8), min_size=1, max_size=9),
        ),
        max_size=60,
    ),
    st.booleans(),
)
def test_a_request_reads_its_own_users_history_until_it_is_answered(operations: list, trimmed: bool) -> None:  # type: ignore[type-arg]
    """Whatever is sent: either the service asks for the history, or the place holds exactly what the user did."""
    items = ItemIndex(1000, trained=False)
    index = UserIndex(np.full((3, MOST), -1, np.int32), items)
    truth: dict[object, list[int]] = {}
    under_way: list[tuple[int, int, list[int]]] = []

    def reads_right() -> None:
        for place, _, expected in under_way:
            assert index.histories[place, : len(expected)].tolist() == expected

    for user, kind, events in operations:
        if kind == "leave":
            if under_way:
                index.leave(under_way.pop(0)[0])
            continue
        mine = truth.get(user, [])
        start, sent = len(mine), events
        whole = mine + events
        if kind == "whole":
            start, sent = 0, whole
        elif kind == "again" and mine:
            start, sent, whole = max(0, len(mine) - 2), mine[-2:], mine
        elif kind == "late" and len(mine) > 1:
            start, sent, whole = 0, mine[:-1], mine[:-1]
        elif kind == "other":
            start, sent, whole = 0, [9, *events], [9, *events]
        elif kind == "lie":
            start = len(mine) + 3
        try:
            skipped = index.unseen(start, len(sent)) if trimmed else 0
            visit = index.visit(user, start, np.array(sent[skipped:], np.int32), skipped)
        except HistoryRequiredError as error:
            assert start > 0 and error.have == index.total(user)
            assert kind != "whole"
            continue
        except NoPlaceLeftError:
            assert len({place for place, _, _ in under_way}) == 3
            continue
        assert kind != "lie"
        if index.total(user) == len(whole):  # else it came late, and the service knows more
            truth[user] = whole
        assert visit.total == len(whole)
        expected = whole[first_seen(len(whole), MOST) :]
        assert visit.length == len(expected) and visit.delta <= visit.length
        under_way.append((visit.place, visit.version, expected))
        reads_right()
        assert len(index) <= 3
        assert index.total(user) == len(truth[user])
    by_version: dict[tuple[int, int], list[int]] = {}
    for place, version, expected in under_way:
        longer, shorter = sorted((by_version.setdefault((place, version), expected), expected), key=len)[::-1]
        assert longer[: len(shorter)] == shorter, "under one version all are prefixes of one history"


def test_a_user_who_was_forgotten_must_send_the_whole_history() -> None:
    index = UserIndex(np.zeros((2, MOST), np.int32), ItemIndex(10, trained=True))
    for user in ("a", "b"):
        index.leave(index.visit(user, 0, np.array([1, 2], np.int32)).place)
    index.leave(index.visit("a", 2, np.array([3], np.int32)).place)
    index.leave(index.visit("c", 0, np.array([4], np.int32)).place)  # b was there least recently
    with pytest.raises(HistoryRequiredError, match="send the whole history") as raised:
        index.visit("b", 2, np.array([5], np.int32))
    assert raised.value.have == 0
    assert index.total("a") == 3 and index.total("c") == 1


def test_who_has_a_request_under_way_is_not_forgotten() -> None:
    index = UserIndex(np.zeros((1, MOST), np.int32), ItemIndex(10, trained=True))
    place = index.visit("a", 0, np.array([1], np.int32)).place
    with pytest.raises(NoPlaceLeftError):
        index.visit("b", 0, np.array([1], np.int32))
    index.leave(place)
    assert index.visit("b", 0, np.array([1], np.int32)).place == place


@given(st.lists(st.lists(st.one_of(st.integers(-3, 40), st.text(max_size=2)), max_size=6), max_size=30), st.data())
def test_items_share_no_row_while_they_are_known_or_in_a_history(calls: list, data: st.DataObject) -> None:  # type: ignore[type-arg]
    index, held = ItemIndex(12, trained=False), {}
    for ids in calls:
        try:
            rows = index.rows(ids)
        except NoRowLeftError:
            assert len(held) + len(set(ids)) > 12
            continue
        assert ((rows >= 0) & (rows < 12)).all()
        assert len(set(rows.tolist())) == len(set(ids))
        for item, row in zip(ids, rows.tolist(), strict=True):
            assert held.get(item, row) == row, "what a history has keeps its row"
            assert all(other == item or taken != row for other, taken in held.items())
        if ids and len(held) < 6 and data.draw(st.booleans()) and ids[0] not in held:
            held[ids[0]] = int(rows[0])
            index.hold(rows[:1])


def test_numbers_of_a_drawn_table_have_their_own_rows_and_a_number_is_no_text() -> None:
    index = ItemIndex(100, trained=False)
    assert index.rows([7, 99, 0]).tolist() == [7, 99, 0]
    number, text = index.rows([7, "7"]).tolist()
    assert number == 7 and text != 7


def test_a_trained_table_knows_its_rows_and_no_others() -> None:
    index = ItemIndex(100, trained=True)
    assert index.rows([5, 99]).tolist() == [5, 99]
    for wrong in (100, -1, "5"):
        with pytest.raises(InvalidInputError, match="no item"):
            index.rows([1, wrong])
