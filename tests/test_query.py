"""Checking filters, and cursors."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from kode_core import InvalidArgumentError
from kode_core.ids import check_agent_id, index_text, is_shortened, new_agent_id, plain_text
from kode_core.query import MAX_LIMIT, Page, message_query, metadata_index, page_cursor, session_query, time_ms


def test_a_misspelt_filter_is_answered_with_the_right_one() -> None:
    """An unknown filter is refused, with the nearest known one."""
    with pytest.raises(
        InvalidArgumentError, match="unknown filter 'templateid' for sessions; did you mean 'template_id'"
    ):
        session_query({"templateid": "x"})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(InvalidArgumentError, match="known are agent_id, contains, content_type"):
        message_query({"zzzz": 1})  # type: ignore[typeddict-unknown-key]


def test_none_is_no_filter() -> None:
    """A filter that is None is refused: it would select everything by accident."""
    with pytest.raises(InvalidArgumentError, match="template_id is None; leave it out"):
        session_query({"template_id": None})  # type: ignore[typeddict-item]
    assert session_query({"cursor": None}).after is None


def test_limits_say_what_to_do() -> None:
    """A limit beyond the maximum is refused with the way to more."""
    assert session_query({"limit": MAX_LIMIT}).limit == MAX_LIMIT
    with pytest.raises(InvalidArgumentError, match="follow next_cursor for more"):
        session_query({"limit": MAX_LIMIT + 1})


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-12))])
def test_times_are_exact(zone: timezone) -> None:
    """A datetime becomes the millisecond it names, whatever its zone; between two, the later one."""
    moment = datetime(2026, 1, 1, 9, 0, 0, 123000, tzinfo=UTC).astimezone(zone)
    assert time_ms("t", moment) == 1_767_258_000_123
    assert time_ms("t", moment + timedelta(microseconds=1)) == 1_767_258_000_124
    assert time_ms("t", datetime(1969, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)) == -1


def test_naive_times_are_refused() -> None:
    """A datetime without a zone is refused, with what to write."""
    with pytest.raises(InvalidArgumentError, match=r"naive datetime.*datetime\.now\(timezone\.utc\)"):
        session_query({"created_after": datetime(2026, 1, 1)})


def test_equal_metadata_has_one_index() -> None:
    """Numbers compare by value, booleans are no numbers, and the order of keys does not matter."""
    assert metadata_index({"n": 1}) == metadata_index({"n": 1.0})
    assert metadata_index({"n": 1}) != metadata_index({"n": True})
    assert metadata_index({"n": 0}) == metadata_index({"n": -0.0})
    assert metadata_index({"d": {"a": 1, "b": [2.0]}}) == metadata_index({"d": {"b": [2], "a": 1.0}})
    assert metadata_index({"n": "1"}) != metadata_index({"n": 1})
    assert metadata_index({"n": None}) != metadata_index({})


def test_cursors_belong_to_their_query() -> None:
    """A cursor works with the same filters, and is refused with others or when it was changed."""
    query = session_query({"template_id": "t"})
    cursor = page_cursor(query, (5, "a"))
    assert session_query({"template_id": "t", "cursor": cursor, "limit": 3}).after == (5, "a")
    with pytest.raises(InvalidArgumentError, match="other filters"):
        session_query({"template_id": "u", "cursor": cursor})
    with pytest.raises(InvalidArgumentError, match="no cursor that a store gave"):
        session_query({"template_id": "t", "cursor": cursor[:-1]})
    with pytest.raises(InvalidArgumentError, match="not both"):
        session_query({"template_id": "t", "cursor": cursor, "offset": 1})


def test_a_page_is_a_list() -> None:
    """A page is a list with a cursor."""
    page = Page([1, 2], "c")
    assert (page == [1, 2], page.next_cursor, Page[int]().next_cursor) == (True, "c", None)


@pytest.mark.parametrize("text", ["", "plain", "a\0b", "x\\y", "\\0000", "\ud800", "a\nb", "😀", "\\#", "\\\\"])
def test_index_text_can_be_read_back(text: str) -> None:
    """The indexed form has nothing that an engine refuses, differs for different texts, and can be read back."""
    indexed = index_text(text)
    assert not set(indexed) & {"\0", "\n", "\ud800"}
    assert plain_text(indexed) == text


def test_index_text_escapes_what_engines_cannot_index() -> None:
    assert index_text("a\\\n\0\ud800é") == "a\\005c\\000a\\0000\\d800é"
    assert index_text("\n" * 1000).startswith("\\000a" * 40 + "\\#")


def test_long_index_texts_stay_different() -> None:
    """Texts of any length have an index of at most 1 KB, and different texts different ones."""
    one, two = index_text("x" * 100_000), index_text("x" * 100_001)
    assert one != two
    assert max(len(one.encode()), len(index_text("é" * 5000).encode())) <= 1024
    assert index_text("x" * 1024) == "x" * 1024
    assert [is_shortened(one) for one in (two, "x" * 1024, index_text("\\#"))] == [True, False, False]


def test_new_ids_sort_by_time() -> None:
    """New ids are legal, differ, and sort in the order they were made."""
    ids = [new_agent_id() for _ in range(5000)]
    assert ids == sorted(set(ids))
    assert all(check_agent_id(agent_id).startswith("agt-") and len(agent_id) == 30 for agent_id in ids)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (5, "must be a str, got int"),
        ("", "must not be empty"),
        ("a\0b", "U\\+0000"),
        ("\ud800", "lone surrogates"),
        ("x" * 10_000, "at most 256 bytes in UTF-8, got 10000"),
    ],
)
def test_bad_ids_say_what_is_wrong(bad: object, says: str) -> None:
    """An id that cannot be is refused in one short sentence."""
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        check_agent_id(bad)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200
