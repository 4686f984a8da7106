"""Searches for messages by their contents: how much one call reads, how it goes on, and what it tells (QRY-12)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from kode_core import MemoryStore, metadata
from kode_core.authoring.texts import indexed_text, needle_grams
from kode_core.batch import FoundRow
from kode_core.codec import Body, encode
from kode_core.engine import Engine
from kode_core.errors import InvalidArgumentError
from kode_core.layers import Layer
from kode_core.model import Message, TextBlock, ToolResultBlock, ToolUseBlock, UnknownBlock
from kode_core.pace import Pace
from kode_core.query import RowQuery
from kode_core.searched import finds_text
from kode_core.store import message_search
from kode_core.texts import contains_text, folded, indexed_form, texts_of

MANY = 2_500


class Counted(Layer):
    """Counts the rows that searches read."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.pages: list[int] = []

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        assert type(query) is RowQuery, "an engine without an index gets an ordinary query"
        found = await super().find_rows(query)
        self.pages.append(len(found))
        return found


async def test_one_call_reads_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page ends when the bound is reached, short or empty, and its cursor leads on to everything that matches."""
    monkeypatch.setattr(message_search, "MOST_SCANNED", 1_000)
    layers: list[Counted] = []

    def counted(engine: Engine) -> Engine:
        layers.append(Counted(engine))
        return layers[-1]

    async with MemoryStore(layers=[counted]) as store:
        rare = {0, 1, 999, 1_000, 1_001, 2_400}
        await store.save_messages("a", [Message.user("rare" if i in rare else "common") for i in range(MANY)])
        for limit, offset in ((100, 0), (1, 0), (2, 3), (100, 5), (100, 6), (100, 7)):
            found, cursor, lengths, first = list[int](), None, list[int](), True
            while cursor is not None or first:
                layers[0].pages.clear()
                given: Any = {"offset": offset} if first else {"cursor": cursor}
                page = await store.query_messages(contains="RARE", order="asc", limit=limit, **given)
                assert sum(layers[0].pages) <= 1_000
                assert len(page) <= limit
                found += [message.position for message in page]
                lengths.append(len(page))
                cursor, first = page.next_cursor, False
            assert found == sorted(rare)[offset:], (limit, offset)
            if limit == 100:
                assert len(lengths) == 3
        assert [m.position async for m in store.iter_messages(contains="rare", order="asc")] == sorted(rare)
        assert await store.count_messages(contains="rare") == len(rare)
        assert await store.count_messages(contains="COMMON", metadata={"k": 1}) == 0


async def test_the_loop_stays_free() -> None:
    """Other tasks run while many messages and a large one are searched."""
    turns = 0

    async def turning() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with MemoryStore() as store:
        await store.save_messages("a", [Message.user("é" * 4_000_000), *(Message.user(f"{i}") for i in range(5_000))])
        task = asyncio.create_task(turning())
        try:
            before = turns
            assert len(await store.query_messages(contains="not there")) == 0
            assert turns - before > 20
        finally:
            task.cancel()


async def test_messages_that_cannot_be_read_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """A damaged message is named by the page that met it, and by counts in the log, and the others are found."""

    class Damaging(Layer):
        async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
            found = await super().find_rows(query)
            return [replace(row, body=Body("{", row.body.digest)) if row.position == 2 else row for row in found]

    async with MemoryStore(layers=[Damaging]) as store:
        await store.save_messages("a", [Message.user(f"text {i}") for i in range(4)])
        page = await store.query_messages(contains="text", order="asc")
        assert [message.position for message in page] == [0, 1, 3]
        assert page.left_out == ("message 2 of agent 'a'",)
        with caplog.at_level(logging.ERROR):
            assert await store.count_messages(contains="text") == 3
            assert [group.count for group in await store.group_messages("role", contains="text")] == [3]
        assert caplog.text.count("message 2 of agent 'a' is damaged and was left out") == 2


async def test_layers_that_change_bodies_have_no_index() -> None:
    """An index that an engine makes of bodies is not asked through a layer that may have changed them."""

    class Indexed(Layer):
        finds_text = True

    class Reads(Layer):
        async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
            return await super().find_rows(query)

    class Writes(Layer):
        async def commit(self, batches: Any) -> Any:
            return await super().commit(batches)

    class Neither(Layer):
        pass

    engines: list[Engine] = []

    def first(engine: Engine) -> Engine:
        engines.append(Indexed(engine))
        return engines[-1]

    async with MemoryStore(layers=[first]):
        (inner,) = engines
        assert [finds_text(kind(inner)) for kind in (Neither, Reads, Writes)] == [True, False, False]
        assert finds_text(Neither(Neither(inner)))


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 131_071, 131_072, 200_000])
async def test_every_place_of_a_long_text_is_searched(size: int) -> None:
    """A text is found wherever it begins, whatever its length, also where folding makes the text longer."""
    for fill in ("x", "ß"):
        text = fill * size + "Needle" + fill * 70_000
        message = Message("user", [ToolResultBlock("t", text)])
        for needle in (
            "needle",
            folded(fill) + "needle" + folded(fill),
            folded(fill * size)[:9_000],
            "needle" + "s" * 3,
        ):
            assert await contains_text(message, needle, Pace()) == (needle in text.casefold()), (fill, needle[:20])


def test_texts_are_those_of_the_contract() -> None:
    """Strings at any depth count, and keys, numbers, ids and types do not."""
    message = Message(
        "user",
        [
            TextBlock("a", meta={"no": "no"}),
            ToolUseBlock("no", "no", {"no": ["b", {"no": "c"}, 5, None, True]}),
            ToolResultBlock("no", "d"),
            UnknownBlock({"type": "no", "no": {"no": "e"}}),
        ],
        metadata={"no": "no"},
    )
    assert sorted(texts_of(message)) == ["a", "b", "c", "d", "e"]


def test_what_an_index_has_is_in_every_text_that_contains() -> None:
    """The indexed text of a message has each part of a text that it contains, whatever characters these have."""
    said = ["Straße \0 \ud83d! İ ﬁ 👩‍👩‍👧 e\u0301", "NUL\0\0end", "ŉ ǰ ΐ ẞ"]
    for text in said:
        kept = indexed_text(encode(Message, Message("user", [TextBlock(text), TextBlock("next")]), "m"))
        assert kept is not None
        for start in range(len(text)):
            for end in range(start + 1, len(text) + 1):
                needle = folded(text[start:end].swapcase())
                if needle in folded(text):
                    assert indexed_form(needle) in kept
                    assert all(gram in kept for gram in needle_grams(needle))
    assert needle_grams("ab") == []
    assert len(needle_grams("".join(map(chr, range(1_000, 11_000))))) <= 24
    assert indexed_text(Body("{", b"")) is None


async def test_a_search_by_metadata_reads_the_keys_that_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other values of a message's metadata, which may be large, are not encoded; nor any where a key is absent."""
    read, encoded = metadata._canonical_text, list[Any]()

    def noted(value: Any, label: str) -> Iterator[str]:
        if label == "the metadata of a message":
            encoded.append(value)
        return read(value, label)

    monkeypatch.setattr(metadata, "_canonical_text", noted)
    async with MemoryStore() as store:
        many = {f"k{i}": [i] * 100 for i in range(50)}
        of = [{**many, "run": "r1", "n": i} for i in range(3)]
        await store.save_messages("a", [Message.user("x").replace(metadata=one) for one in (*of, {**many, "n": 1})])
        found = await store.query_messages(metadata={"run": "r1", "n": 1.0})
    assert [one.position for one in found] == [1]
    assert sorted(map(str, encoded)) == ["0", "1", "2", "r1", "r1", "r1"]


async def test_texts_and_metadata_that_are_none_are_refused() -> None:
    """Objects of a program's own, and objects that raise, are refused with what was wrong."""

    class Text(str):
        pass

    class Raises(dict[str, Any]):
        def items(self) -> Any:
            raise RuntimeError("own")

    async with MemoryStore() as store:
        bad: list[tuple[str, Any, str]] = [
            ("contains", Text("x"), "contains must be a str, got Text"),
            ("contains", "", "contains is empty"),
            ("contains", "x" * 10_001, "at most 10,000 characters, got 10,001"),
            ("metadata", Raises(), "metadata cannot be read: reading it raised RuntimeError"),
            ("metadata", {"k": float("nan")}, "k"),
        ]
        for name, value, says in bad:
            with pytest.raises(InvalidArgumentError, match=says):
                await store.query_messages(**{name: value})
