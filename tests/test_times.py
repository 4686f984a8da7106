"""The times that messages keep when a list is saved again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kode_core.batch import MessageIndex, Row
from kode_core.codec import Body
from kode_core.store.times import equal_ones, keep_times

NOW = 100


def saved(old: list[tuple[str, int]], new: str, now: int = NOW) -> list[int]:
    """The times of the messages *new*, a letter each, saved over *old*."""
    rows = [Row(Body(letter, letter.encode()), now, MessageIndex("user", ())) for letter in new]
    shared = min(len(old), len(new))
    put = [(i, rows[i]) for i in range(shared) if old[i][0] != new[i]]
    digests, created = [letter.encode() for letter, _ in old], [time for _, time in old]
    equal = [(i, rows[i]) for i in equal_ones(digests, [letter.encode() for letter in new])]
    put = sorted([*put, *equal], key=lambda pair: pair[0])
    changed, append = keep_times(digests, created, put, rows[shared:], shared)
    assert [row.body for _, row in changed] == [row.body for _, row in put]
    assert [row.body for row in append] == [row.body for row in rows[shared:]]
    times = created[:shared] + [row.created_at for row in append]
    for i, row in changed:
        times[i] = row.created_at
    return times


TALK = [("a", 1), ("b", 5), ("c", 9), ("d", 12)]


@pytest.mark.parametrize(
    ("new", "wanted"),
    [
        ("abcd", [1, 5, 9, 12]),
        ("abcde", [1, 5, 9, 12, NOW]),
        ("ab", [1, 5]),
        ("", []),
        ("aXcd", [1, 5, 9, 12]),  # edited
        ("aXcYe", [1, 5, 9, 12, NOW]),  # edited and appended
        ("XYZW", [1, 5, 9, 12]),
        ("cd", [9, 12]),  # trimmed
        ("cdef", [9, 12, NOW, NOW]),  # trimmed and appended
        ("Scdef", [1, 9, 12, NOW, NOW]),  # summed up and appended
        ("Scd", [1, 9, 12]),
        ("acd", [1, 9, 12]),  # one taken out
        ("abXcd", [1, 5, 9, 9, 12]),  # one put in
        ("Xabcd", [1, 1, 5, 9, 12]),
        ("dcba", [12, 9, 5, 1]),  # reordered
        ("bax", [5, 1, 9]),
        ("aab", [1, 1, 5]),  # one more of the same, and one that moved
        ("cXY", [9, 9, NOW]),  # trimmed by two, edited, appended
    ],
)
def test_times_that_are_kept(new: str, wanted: list[int]) -> None:
    """What moved keeps its time, what is edited that of its place, and what is new is later than all before it."""
    assert saved(TALK, new) == wanted


YES = [("y", 1), ("a", 2), ("y", 3), ("b", 4), ("y", 5), ("y", 6)]


@pytest.mark.parametrize(
    ("new", "wanted"),
    [
        ("yaybyyy", [1, 2, 3, 4, 5, 6, NOW]),
        ("aybyy", [2, 3, 4, 5, 6]),
        ("byy", [4, 5, 6]),
        ("byycy", [4, 5, 6, NOW, NOW]),
        ("Sbyy", [1, 4, 5, 6]),
        ("yaXbyy", [1, 2, 3, 4, 5, 6]),
        ("yy", [5, 6]),
        ("byy", [4, 5, 6]),
    ],
)
def test_equal_messages(new: str, wanted: list[int]) -> None:
    """Of equal messages each keeps its own time, with those that moved along with it."""
    assert saved(YES, new) == wanted


@given(
    st.text("yab", min_size=1, max_size=12),
    st.lists(st.integers(0, 50), min_size=12, max_size=12),
    st.integers(0, 12),
    st.integers(0, 12),
)
def test_a_part_of_the_list_keeps_its_times(letters: str, times: list[int], start: int, end: int) -> None:
    """Wherever the start and the end of a list are gone, the times are those of a part with these messages."""
    times = sorted(times)[: len(letters)]
    part = letters[start:end]
    parts = [times[i : i + len(part)] for i in range(len(letters)) if letters[i:].startswith(part)]
    assert saved([*zip(letters, times, strict=True)], part) in [*parts, []]


@given(st.text("yyab", max_size=12), st.lists(st.integers(0, 50), min_size=12, max_size=12), st.integers(0, 12))
def test_times_of_equal_messages_follow_positions(letters: str, times: list[int], gone: int) -> None:
    """Wherever the start of a list is gone, and whatever is new at its end, times do not fall along the positions."""
    talk = "".join(letter if letter == "y" else chr(ord("A") + i) for i, letter in enumerate(letters))
    old = [*zip(talk, sorted(times), strict=False), ("y", 60), ("!", 61)]
    found = saved(old, "".join(letter for letter, _ in old[gone:]) + "?yy")
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("new", "wanted"),
    [("abcdef", [1, 5, 9, 12, 12, 12]), ("cdef", [9, 12, 12, 12]), ("ef", [1, 5]), ("aXcd", [1, 5, 9, 12])],
)
def test_a_clock_that_stepped_back(new: str, wanted: list[int]) -> None:
    """What is new is not older than what is before it when the clock is behind."""
    assert saved(TALK, new, now=3) == wanted


@given(
    st.lists(st.integers(0, 50), min_size=0, max_size=8),
    st.lists(st.integers(0, 7), max_size=4),
    st.lists(st.integers(0, 9), max_size=6),
    st.integers(0, 200),
)
def test_the_order_holds(times: list[int], gone: list[int], edits: list[int], now: int) -> None:
    """Whatever is taken out, edited, put in and appended at once, times that followed positions still do so."""
    old = list(zip("abcdefgh", sorted(times), strict=False))
    kept = [letter for i, (letter, _) in enumerate(old) if i not in gone]
    for n, place in enumerate(edits):
        letter = "STUVWX"[n]
        if place % 2 and place < len(kept):
            kept[place] = letter
        else:
            kept.insert(place, letter)
    found = saved(old, "".join(kept), now)
    assert found == sorted(found)
    had = dict(old)
    assert all(time == had[letter] for letter, time in zip(kept, found, strict=True) if letter in had)
