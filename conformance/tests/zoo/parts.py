"""Stores with faults in parts of lists and in edits in place (MSG-9, MSG-10, MSG-11)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.instruments.costs import memory_of
from kode_conformance.values import samples

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import seen, talk
from kode_core.batch import ListKind
from kode_core.codec import Body
from kode_core.model import Message, StoredMessage
from kode_core.store import EngineStore
from kode_core.store.parts import Parts, Span
from kode_core.store.versions import head_of


@mutant(
    "MSG-9",
    killed_by="parts_are_what_the_whole_list_has_there",
    source="WHERE position >= ?: a cursor that is not exclusive",
    witness=seen(
        lambda s: s.append_messages("a", samples.messages(3)), lambda s: s.load_tool_call_records("a", after=0),
        lambda s: s.load_messages("a", after=0),
    ),
)  # fmt: skip
class PartsBeginAtTheirBound(EngineStore):
    """Gives the message at the position *after* as well."""

    async def load_messages(
        self, agent_id: str, *, last: int | None = None, after: int | None = None, before: int | None = None
    ) -> list[Message]:
        after = None if after is None or after == 0 else after - 1
        return await super().load_messages(agent_id, last=last, after=after, before=before)


class _HastyParts(Parts):
    async def _rows(self, agent_id: str, kind: ListKind, span: Span) -> tuple[int, Sequence[tuple[Body, int]]]:
        places = span.within(head_of(await self._context.engine.summary(agent_id), kind).count)
        for _ in range(5):
            await asyncio.sleep(0)
        rows = await self._context.engine.rows_at(agent_id, kind, places.start, len(places)) if places else None
        return places.start, () if rows is None else rows.rows


async def _last_amid_a_save(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("1", "2", "3"))
    last = asyncio.ensure_future(ctx.store.load_messages("a", last=1))
    await asyncio.sleep(0)
    await ctx.store.save_messages("a", talk("4"))
    return len(await last)


@mutant(
    "MSG-9",
    killed_by="a_part_is_of_one_instant",
    source="SELECT count(*), and then LIMIT and OFFSET in a statement of its own",
    witness=_last_amid_a_save,
)
class CountsAndThenReads(EngineStore):
    """Takes the length of the list from one instant and the rows from another."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._list_parts = _HastyParts(self._context, self._reader)


async def _two_from_the_end(ctx: Context) -> object:
    await ctx.store.save_messages("a", samples.messages(4))
    return [one.position async for one in ctx.store.read_messages("a", before=2, reverse=True)]


@mutant(
    "MSG-10",
    killed_by="messages_are_streamed_with_their_places",
    source="ORDER BY position DESC LIMIT n, with the bound in the other branch only",
    witness=_two_from_the_end,
)
class BackwardsFromTheEnd(EngineStore):
    """Forgets the bounds of a stream that goes backwards."""

    def read_messages(
        self, agent_id: str, *, after: int | None = None, before: int | None = None, reverse: bool = False
    ) -> AsyncIterator[StoredMessage]:
        if reverse:
            after = before = None
        return super().read_messages(agent_id, after=after, before=before, reverse=reverse)


async def _backwards_amid_appends(ctx: Context) -> object:
    await ctx.store.save_messages("a", samples.messages(60))
    places = []
    async for one in ctx.store.read_messages("a", reverse=True):
        places.append(one.position)
        if len(places) == 1:
            await ctx.store.append_messages("a", samples.messages(5, 100))
        if len(places) > 200:
            break
    return places


@mutant(
    "MSG-10",
    killed_by="what_is_streamed_is_complete_next_to_appends",
    source="pages by OFFSET from the end of a list that grows",
    witness=_backwards_amid_appends,
)
class PagesFromTheEnd(EngineStore):
    """Counts the pages of a stream that goes backwards from the end that the list has by then."""

    def read_messages(
        self, agent_id: str, *, after: int | None = None, before: int | None = None, reverse: bool = False
    ) -> AsyncIterator[StoredMessage]:
        if not reverse:
            return super().read_messages(agent_id, after=after, before=before)
        return self._backwards(agent_id, after, before)

    async def _backwards(self, agent_id: str, after: int | None, before: int | None) -> AsyncIterator[StoredMessage]:
        given = 0
        while True:
            every = [one async for one in super().read_messages(agent_id, after=after, before=before)]
            page = every[::-1][given : given + 20]
            for one in page:
                yield one
            given += len(page)
            if not page:
                return


@mutant(
    "MSG-11",
    killed_by="edits_change_what_they_name",
    source="a DELETE that returns the new length and not the number of rows",
    witness=seen(
        lambda s: s.append_messages("a", samples.messages(5)), lambda s: s.truncate_messages("a", 1),
        lambda s: s.load_messages("a"),
    ),
)  # fmt: skip
class TruncateReturnsTheLength(EngineStore):
    """Returns how many messages stay, and not how many it removed."""

    async def truncate_messages(
        self, agent_id: str, length: int, *, expect: str | None = None, fence: Any = None
    ) -> int:
        removed = await super().truncate_messages(agent_id, length, expect=expect, fence=fence)
        return length if removed else 0


@mutant(
    "MSG-11",
    killed_by="edits_of_nothing_change_nothing",
    source="pop as load, slice and save, whatever was loaded",
    witness=seen(lambda s: s.pop_messages("a"), lambda s: s.save_info("a", samples.info("a")), lambda s: s.load_version(
        "b"), lambda s: s.pop_messages("b"), lambda s: s.load_version("b")),
)  # fmt: skip
class PopSavesNothing(EngineStore):
    """Saves the empty list that is left after nothing was popped."""

    async def pop_messages(self, agent_id: str, count: int = 1, *, fence: Any = None) -> list[Message]:
        found = await super().pop_messages(agent_id, count, fence=fence)
        if not found and count:
            await self.save_messages(agent_id, [], fence=fence)
        return found


async def _pop_amid_an_append(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("1", "2"))
    pop = asyncio.ensure_future(ctx.store.pop_messages("a"))
    await asyncio.sleep(0)
    await ctx.store.append_messages("a", talk("3"))
    return len([*await pop, *await ctx.store.load_messages("a")])


@mutant(
    "MSG-11",
    killed_by="pops_lose_no_append_and_take_nothing_twice",
    source="openai-agents adapters: pop_item as load_messages and save_messages",
    witness=_pop_amid_an_append,
)
class PopLoadsAndSaves(EngineStore):
    """Loads all messages and saves all but the last, over what others appended meanwhile."""

    async def pop_messages(self, agent_id: str, count: int = 1, *, fence: Any = None) -> list[Message]:
        found = await self.load_messages(agent_id)
        start = max(0, len(found) - count)
        if start == len(found) or type(count) is not int or count < 0:
            return await super().pop_messages(agent_id, count, fence=fence)
        for _ in range(5):
            await asyncio.sleep(0)
        await self.save_messages(agent_id, found[:start], fence=fence)
        return found[start:]


async def _memory_of_the_last(ctx: Context) -> object:
    text = "x" * 1000
    await ctx.store.save_messages("a", [samples.message(text=f"{i} {text}") for i in range(1500)])
    other = await ctx.another()
    await other.load_messages("b", last=1)
    return await memory_of(lambda: other.load_messages("a", last=1)) > 700_000


@mutant(
    "MSG-9",
    killed_by="parts_and_edits_cost_what_they_contain",
    source="LangGraph's and other adapters: load all messages, then messages[-n:]",
    witness=_memory_of_the_last,
)
class LoadsAllForTheLast(EngineStore):
    """Loads the whole list, and cuts the part out of it."""

    async def load_messages(
        self, agent_id: str, *, last: int | None = None, after: int | None = None, before: int | None = None
    ) -> list[Message]:
        if type(last) is not int or last < 0 or after is not None or before is not None:
            return await super().load_messages(agent_id, last=last, after=after, before=before)
        whole = await super().load_messages(agent_id)
        return whole[max(0, len(whole) - last) :]
