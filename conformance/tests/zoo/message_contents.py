"""Stores that find messages wrongly by a text that they contain, or by their metadata (QRY-12, QRY-13)."""

from __future__ import annotations

import itertools
import re
from typing import Any

from kode_conformance.histories.answers import texts_in

from conformance.tests.zoo.base import Wrapper, mutant
from conformance.tests.zoo.witnesses import seen, the
from kode_core.errors import InvalidArgumentError
from kode_core.model import Message, ReasoningBlock, TextBlock, ToolResultBlock, ToolUseBlock
from kode_core.query import Page


def _of(*messages: Message, **filters: Any) -> Any:
    return seen(
        lambda s: s.save_messages("a", messages),
        lambda s: the("position", s.query_messages(**filters)),
    )


async def _positions(stream: Any) -> list[int]:
    return [message.position async for message in stream]


class _Misses(Wrapper):
    """Leaves out some of the messages that contain a text."""

    def sees(self, message: Any, text: str) -> bool:
        raise NotImplementedError

    async def query_messages(self, **filters: Any) -> Any:
        page = await self.inner.query_messages(**filters)
        if "contains" not in filters:
            return page
        return Page([m for m in page if self.sees(m, filters["contains"])], page.next_cursor, page.left_out)


def _ascii(text: str) -> str:
    return "".join(c.lower() if c < "\x80" else c for c in text)


@mutant(
    "QRY-12",
    killed_by="a_text_is_found_where_it_stands",
    source="LIKE in SQLite, which knows the case of ASCII letters alone",
    witness=_of(Message.user("KÖLN"), contains="köln"),
)
class OnlyAsciiHasCase(_Misses):
    """Compares letters outside ASCII as they are."""

    def sees(self, message: Any, text: str) -> bool:
        return any(_ascii(text) in _ascii(one) for one in texts_in(message))


@mutant(
    "QRY-12",
    killed_by="a_text_is_found_where_it_stands",
    source="lower(body) LIKE lower(?)",
    witness=_of(Message.user("Straße"), contains="STRASSE"),
)
class LowerCaseInsteadOfFolding(_Misses):
    """Compares texts in lower case: ß is not SS."""

    def sees(self, message: Any, text: str) -> bool:
        return any(text.lower() in one.lower() for one in texts_in(message))


@mutant(
    "QRY-12",
    killed_by="a_text_is_found_where_it_stands",
    source="message.content[0].text",
    witness=_of(Message("user", [TextBlock("x"), TextBlock("y")]), contains="y"),
)
class OnlyTheFirstBlockIsSearched(_Misses):
    """Looks into the first block of a message alone."""

    def sees(self, message: Any, text: str) -> bool:
        first = texts_in(Message(message.role, message.content[:1]))
        return any(text.casefold() in one.casefold() for one in first)


@mutant(
    "QRY-12",
    killed_by="a_text_is_found_where_it_stands",
    source="the text of a block is what has the type text",
    witness=_of(Message("user", [ToolResultBlock("t", "y")]), contains="y"),
)
class ResultsOfToolsAreNotSearched(_Misses):
    """Looks into texts alone, and not into what tools returned."""

    def sees(self, message: Any, text: str) -> bool:
        blocks = [one for one in message.content if type(one) is not ToolResultBlock]
        return any(text.casefold() in one.casefold() for one in texts_in(Message(message.role, blocks)))


@mutant(
    "QRY-12",
    killed_by="long_texts_and_many_messages_are_searched_to_the_end",
    source="a long text is read in pieces of 65,536 characters, each by itself",
    witness=_of(Message.user("x" * 65_534 + "needle"), contains="needle"),
)
class TextsAcrossPiecesAreMissed(_Misses):
    """Misses a text that stands across the end of a piece."""

    def sees(self, message: Any, text: str) -> bool:
        pieces = (one[i : i + 65_536] for one in texts_in(message) for i in range(0, len(one), 65_536))
        return any(text.casefold() in piece.casefold() for piece in pieces)


@mutant(
    "QRY-12",
    killed_by="long_texts_and_many_messages_are_searched_to_the_end",
    source="a column of an index that is cut, where only results of tools were expected to be long",
    witness=_of(Message("assistant", [ReasoningBlock("x" * 9_000 + "needle")]), contains="needle"),
)
class LongTextsOfAgentsAreCut(_Misses):
    """Sees the first 8,191 characters of each text, but for results of tools, which it reads whole."""

    def sees(self, message: Any, text: str) -> bool:
        whole = any(type(block) is ToolResultBlock for block in message.content)
        texts = (one if whole else one[:8_191] for one in texts_in(message))
        return any(text.casefold() in one.casefold() for one in texts)


class _Finds(Wrapper):
    """Finds other messages by some texts."""

    def takes(self, text: str) -> bool:
        return True

    def sees(self, message: Any, text: str) -> bool:
        raise NotImplementedError

    async def query_messages(self, **filters: Any) -> Any:
        text = filters.get("contains")
        if type(text) is not str or not 0 < len(text) < 10_000 or filters.get("cursor") or not self.takes(text):
            return await self.inner.query_messages(**filters)
        await self.inner.query_messages(**filters)
        rest = {k: v for k, v in filters.items() if k not in ("contains", "limit", "offset")}
        found = [m async for m in self.inner.iter_messages(**{k: v for k, v in rest.items() if k != "cursor"})]
        start = filters.get("offset", 0)
        seen_of = [m for m in found if self.sees(m, text)]
        return Page(seen_of[start : start + filters.get("limit", 100)])


@mutant(
    "QRY-12",
    killed_by="a_text_is_found_where_it_stands",
    source="LIKE '%' || ? || '%' without ESCAPE",
    witness=_of(Message.user("1x0"), contains="1%0"),
)
class PercentIsAPattern(_Finds):
    """Takes % for any text, and _ for any character."""

    def takes(self, text: str) -> bool:
        return "%" in text or "_" in text

    def sees(self, message: Any, text: str) -> bool:
        pattern = re.escape(text.casefold()).replace("%", ".*").replace("_", ".")
        return any(re.search(pattern, one.casefold(), re.DOTALL) for one in texts_in(message))


@mutant(
    "QRY-12",
    killed_by="a_text_is_found_where_it_stands",
    source="the texts of all blocks, joined",
    witness=_of(Message("user", [TextBlock("al"), TextBlock("pha")]), contains="alpha"),
)
class TextsAreJoined(_Finds):
    """Finds a text that begins in one block and ends in the next."""

    def sees(self, message: Any, text: str) -> bool:
        return text.casefold() in "".join(texts_in(message)).casefold()


@mutant(
    "QRY-12",
    killed_by="a_text_is_found_where_it_stands",
    source="body LIKE ?, of the stored JSON",
    witness=_of(Message("user", [ToolUseBlock("t", "n", {"key": "x"})]), contains="key"),
)
class KeysAreTexts(_Finds):
    """Finds a message by a key of the input of its tool use."""

    def sees(self, message: Any, text: str) -> bool:
        keys = [
            key for b in message.content if isinstance(b, ToolUseBlock) and type(b.input) is dict for key in b.input
        ]
        return any(text.casefold() in one.casefold() for one in [*texts_in(message), *keys])


@mutant(
    "QRY-12",
    killed_by="texts_are_those_of_now",
    source="an index of texts that an UPDATE does not reach",
    witness=seen(
        lambda s: s.save_messages("a", [Message.user("x")]),
        lambda s: s.replace_message("a", 0, Message.user("y")),
        lambda s: the("position", s.query_messages(contains="y")),
    ),
)
class ReplacedMessagesAreForgotten(_Misses):
    """Finds no message that was replaced."""

    __slots__ = ("replaced",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.replaced: set[tuple[str, int]] = set()

    async def replace_message(self, agent_id: str, position: int, message: Message, **more: Any) -> Any:
        result = await self.inner.replace_message(agent_id, position, message, **more)
        self.replaced.add((agent_id, position))
        return result

    def sees(self, message: Any, text: str) -> bool:
        return (message.agent_id, message.position) not in self.replaced


@mutant(
    "QRY-5",
    killed_by="QRY-12.long_texts_and_many_messages_are_searched_to_the_end",
    source="`if not page: return`, in a loop over the pages that a scan reads",
    witness=seen(
        lambda s: s.save_messages("a", [Message.user("x" if i == 699 else "y") for i in range(700)]),
        lambda s: _positions(s.iter_messages(contains="x", order="asc")),
    ),
)
class AnEmptyPartEndsTheSearch(Wrapper):
    """Ends a search at the first part of the messages in which nothing is found."""

    async def iter_messages(self, **filters: Any) -> Any:
        if "contains" not in filters:
            async for message in self.inner.iter_messages(**filters):
                yield message
            return
        rest = {k: v for k, v in filters.items() if k != "contains"}
        cursor = None
        while True:
            page = await self.inner.query_messages(**rest, limit=64, cursor=cursor)
            found = [m for m in page if any(filters["contains"].casefold() in t.casefold() for t in texts_in(m))]
            for message in found:
                yield message
            cursor = page.next_cursor
            if not found or cursor is None:
                return


@mutant(
    "QRY-10",
    killed_by="QRY-12.a_text_is_found_where_it_stands",
    source="a count by the index, which knows no texts",
    witness=seen(
        lambda s: s.save_messages("a", [Message.user("x"), Message.user("y")]),
        lambda s: s.count_messages(contains="y"),
    ),
)
class CountsIgnoreTexts(Wrapper):
    """Counts the messages that the other filters leave."""

    async def count_messages(self, **filters: Any) -> Any:
        await self.inner.count_messages(**filters)
        return await self.inner.count_messages(**{k: v for k, v in filters.items() if k != "contains"})


@mutant(
    "QRY-1",
    killed_by="QRY-12.texts_to_look_for_are_checked",
    source="`if contains:`",
    witness=_of(Message.user("x"), contains=""),
)
class AnEmptyTextIsNoFilter(Wrapper):
    """Finds every message by an empty text."""

    async def query_messages(self, **filters: Any) -> Any:
        return await self.inner.query_messages(**{k: v for k, v in filters.items() if k != "contains" or v != ""})


@mutant(
    "QRY-13",
    killed_by="metadata_of_messages_compares_by_value",
    source="message.metadata.get(key) == value",
    witness=_of(Message("user", "x", metadata={"k": True}), metadata={"k": 1}),
)
class MetadataComparesAsPython(Wrapper):
    """Takes True for 1, and an absent key for None."""

    async def query_messages(self, **filters: Any) -> Any:
        wanted = filters.get("metadata")
        if type(wanted) is not dict or filters.get("cursor"):
            return await self.inner.query_messages(**filters)
        await self.inner.query_messages(**filters)
        rest = {k: v for k, v in filters.items() if k not in ("metadata", "limit", "offset", "cursor")}
        found = [
            m
            async for m in self.inner.iter_messages(**rest)
            if all((m.metadata or {}).get(key) == value for key, value in wanted.items())
        ]
        start = filters.get("offset", 0)
        return Page(found[start : start + filters.get("limit", 100)])


@mutant(
    "QRY-12",
    killed_by="texts_and_other_filters_hold_together",
    source="the search for a text replaces the other conditions of the statement",
    witness=_of(Message.user("hi"), Message("tool", "hi"), contains="hi", role="tool"),
)
class TextsReplaceTheRole(Wrapper):
    """Forgets the role that is asked for next to a text."""

    async def query_messages(self, **filters: Any) -> Any:
        if "contains" in filters:
            filters.pop("role", None)
        return await self.inner.query_messages(**filters)


async def _too_much_metadata(ctx: Any) -> object:
    try:
        await ctx.store.query_messages(metadata={f"k{i}": i for i in range(501)})
    except InvalidArgumentError:
        return "refused"
    return "taken"


@mutant(
    "QRY-13",
    killed_by="metadata_to_look_for_is_checked",
    source="a limit of parameters of a statement, by which the rest of the keys is cut",
    witness=_too_much_metadata,
)
class MuchMetadataIsCut(Wrapper):
    """Looks for the first 500 keys of a larger metadata."""

    async def query_messages(self, **filters: Any) -> Any:
        metadata = filters.get("metadata")
        if isinstance(metadata, dict) and len(metadata) > 500:
            filters["metadata"] = dict(itertools.islice(metadata.items(), 500))
        return await self.inner.query_messages(**filters)
