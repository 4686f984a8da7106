"""Stores that are right up to some number of records, and wrong beyond it (VAL-4 and others)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.lists import Writes
from kode_core.batch import Batch, Doc, DocKind, FoundRow, ListWrite, Outcome
from kode_core.layers import Layer
from kode_core.query import AgentStats, RowQuery
from kode_core.store import EngineStore

Story = Callable[[Context], Awaitable[object]]


def _calls(count: int, **changes: Any) -> list[Any]:
    return [samples.tool_call(i, audit_trail=[], **changes) for i in range(count)]


def told(write: Callable[[Any], Awaitable[object]], read: Callable[[Any], Awaitable[object]]) -> Story:
    """A witness of the result of a read after a write."""

    async def story(ctx: Context) -> object:
        await write(ctx.store)
        return await read(ctx.store)

    return story


# --- lists ------------------------------------------------------------------------------------------------------------


@mutant(
    "MSG-1",
    killed_by="lists_of_any_length_are_replaced",
    source="a bulk insert of at most 1,000 rows, whose rest nobody writes",
    witness=told(lambda s: s.save_messages("a", samples.messages(1001)), lambda s: _number(s.load_messages("a"))),
)
class SavesAThousand(EngineStore):
    """Saves the first thousand messages of a list."""

    async def save_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        await super().save_messages(agent_id, list(messages)[:1000], fence=fence)


async def _number(loaded: Awaitable[Sequence[Any]]) -> int:
    return len(await loaded)


@mutant(
    "MSG-3",
    killed_by="lists_grow_to_any_length",
    source="batches of 500 that are sent as they come",
    witness=told(
        lambda s: s.append_messages("a", samples.messages(501)),
        lambda s: s.load_messages("a"),
    ),
)
class AppendsTheRestFirst(EngineStore):
    """Appends batches of five hundred messages, the last one first."""

    async def append_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        if type(messages) is not list or len(messages) <= 500:
            return await super().append_messages(agent_id, messages, fence=fence)
        for start in reversed(range(0, len(messages), 500)):
            await super().append_messages(agent_id, messages[start : start + 500], fence=fence)


async def _replace_the_last(store: Any) -> None:
    await store.save_messages("a", samples.messages(1001))
    await store.save_messages("a", [*samples.messages(1000), samples.message(7)])


@mutant(
    "MSG-1",
    killed_by="one_is_changed_among_many",
    source="a diff of the first page of a list",
    witness=told(_replace_the_last, lambda s: s.load_messages("a")),
)
class ReplacesOnAPage(Writes):
    """Replaces messages at the first thousand places only."""

    def changed(self, write: ListWrite) -> ListWrite:
        return replace(write, put=tuple(pair for pair in write.put if pair[0] < 1000))


async def _upsert_the_first(store: Any) -> None:
    await store.save_tool_call_records("a", _calls(600))
    await store.upsert_tool_call_records("a", [samples.tool_call(0, result="again")])


@mutant(
    "TC-3",
    killed_by="upserts_find_the_last_of_an_id_among_many",
    source="a search for the id among the newest records",
    witness=told(_upsert_the_first, lambda s: _number(s.load_tool_call_records("a"))),
)
class UpsertsAmongTheNewest(EngineStore):
    """Looks for the id of a tool call among the last five hundred, and appends otherwise."""

    async def upsert_tool_call_records(self, agent_id: str, records: Sequence[Any], *, fence: Any = None) -> None:
        calls = await self.load_tool_call_records(agent_id)
        if len(calls) <= 500:
            return await super().upsert_tool_call_records(agent_id, records, fence=fence)
        for record in records:
            places = [i for i, call in enumerate(calls) if call.id == record.id and i >= len(calls) - 500]
            if places:
                calls[places[-1]] = record
            else:
                calls.append(record)
        await self.save_tool_call_records(agent_id, calls, fence=fence)


# --- documents and parts ----------------------------------------------------------------------------------------------


async def _save_windows(store: Any, count: int) -> None:
    for i in range(count):
        await store.save_history_window("a", samples.window(f"w{i}", i).replace(messages=[], events=[]))


@mutant(
    "HIS-1",
    killed_by="documents_of_any_number",
    source="a search whose result has a size of 500 unless told otherwise",
    witness=told(lambda s: _save_windows(s, 501), lambda s: _number(s.load_history_windows("a"))),
)
class GivesFiveHundredDocuments(Layer):
    """Gives five hundred documents of a kind at most."""

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        return (await super().docs(agent_id, kind, key))[:500]


async def _move_a_window(store: Any) -> None:
    await _save_windows(store, 101)
    await store.save_history_window("a", samples.window("w0", 500))


@mutant(
    "HIS-1",
    killed_by="a_document_moves_among_many",
    source="an index of times that is written when the document is made",
    witness=told(_move_a_window, lambda s: s.load_history_windows("a")),
)
class SortsByFirstTimes(Layer):
    """Sorts documents, where there are more than a hundred, by the time that each had when it was first saved."""

    _first: dict[tuple[str, str, str], int] = {}  # noqa: RUF012 - of all instances

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        for batch in batches:
            for write in batch.docs:
                if write.doc is not None:
                    self._first.setdefault((batch.agent_id, write.kind, write.key), write.doc.time)
            if batch.delete:
                self._first.clear()
        return await super().commit(batches)

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        found = await super().docs(agent_id, kind, key)
        if len(found) <= 100:
            return found
        return [replace(doc, time=self._first.get((agent_id, kind, doc.key), doc.time)) for doc in found]


_LONG_TRAIL = samples.tool_call(0, audit_trail=[samples.tool_call().audit_trail[0]] * 150)


@mutant(
    "VAL-4",
    killed_by="records_with_any_number_of_parts",
    source="an audit trail in a column of its own, with its last hundred steps",
    witness=told(lambda s: s.save_tool_call_records("a", [_LONG_TRAIL]), lambda s: s.load_tool_call_records("a")),
)
class CutsAuditTrails(EngineStore):
    """Keeps the last hundred steps of an audit trail."""

    async def save_tool_call_records(self, agent_id: str, records: Sequence[Any], *, fence: Any = None) -> None:
        cut = [record.replace(audit_trail=record.audit_trail[-100:]) for record in records]
        await super().save_tool_call_records(agent_id, cut, fence=fence)


@mutant(
    "QRY-2",
    killed_by="the_last_of_many_parts_is_found",
    source="an index with a limit of keys for each document",
    witness=told(
        lambda s: s.save_info("a", samples.info("a", metadata={f"k{i}": i for i in range(300)})),
        lambda s: _number(s.query_sessions(metadata={"k299": 299})),
    ),
)
class IndexesAHundredKeys(Layer):
    """Finds sessions by the first hundred keys of their metadata."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        cut = [
            b if b.info is None else replace(b, info=replace(b.info, metadata=b.info.metadata[:100])) for b in batches
        ]
        return await super().commit(cut)


# --- pages and statistics ---------------------------------------------------------------------------------------------


async def _page_by_page(ctx: Context) -> object:
    await ctx.store.save_messages("a", samples.messages(300))
    page = await ctx.store.query_messages(limit=101)
    page = await ctx.store.query_messages(limit=101, cursor=page.next_cursor)
    return [message.position for message in page]


@mutant(
    "QRY-5",
    killed_by="pages_of_any_size",
    source="pages that are fetched in batches of a hundred, and put together",
    witness=_page_by_page,
)
class LargePagesLoseARow(Layer):
    """Loses a row at the beginning of a page of more than a hundred."""

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        found = await super().find_rows(query)
        return found[1:] if query.after is not None and 101 < query.limit < 500 else found


@mutant(
    "QRY-4",
    killed_by="offsets_and_limits_at_every_edge",
    source="search engines whose offset and limit end at a window of results",
    witness=told(
        lambda s: s.save_messages("a", samples.messages(1001)),
        lambda s: _number(s.query_messages(offset=1001)),
    ),
)
class OffsetsEndAtAThousand(Layer):
    """Takes every offset of rows over a thousand for a thousand."""

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        return await super().find_rows(replace(query, offset=min(query.offset, 1000)))


async def _statistics(store: Any) -> object:
    return len((await store.aggregate_stats("a")).tool_calls_by_name)


@mutant(
    "QRY-7",
    killed_by="QRY-6.iterators_and_statistics_of_many",
    source="aggregations that give the most frequent terms",
    witness=told(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i, name=f"n{i}") for i in range(120)]), _statistics
    ),
)
class CountsTheMostFrequent(EngineStore):
    """Counts the hundred most frequent tools."""

    async def aggregate_stats(self, agent_id: str) -> AgentStats:
        found = await super().aggregate_stats(agent_id)
        most = sorted(found.tool_calls_by_name.items(), key=lambda pair: -pair[1])[:100]
        return replace(found, tool_calls_by_name=dict(most))


async def _delete_many(ctx: Context) -> object:
    for i in range(420):
        await ctx.store.save_info(f"{i}", samples.info(f"{i}"))
    await ctx.store.delete_many(template_id="assistant")
    return len(await ctx.store.list())


@mutant(
    "LIFE-5",
    killed_by="QRY-5.many_agents",
    source="a delete of one page of what is found",
    witness=_delete_many,
)
class DeletesAPage(EngineStore):
    """Deletes four hundred of the sessions that match."""

    async def delete_many(self, **filters: Any) -> int:
        if not filters:
            return await super().delete_many(**filters)
        found = [session.agent_id async for session in self.iter_sessions(**filters)][:400]
        for agent_id in found:
            await self.delete(agent_id)
        return len(found)


# --- deletes and forks ------------------------------------------------------------------------------------------------


async def _delete_much(store: Any) -> None:
    await store.save_tool_call_records("a", _calls(1001))
    await store.delete("a")


@mutant(
    "LIFE-3",
    killed_by="nothing_is_left_of_much",
    source="`DELETE … LIMIT 1000`, once",
    witness=told(_delete_much, lambda s: _number(s.load_tool_call_records("a"))),
)
class DeletesAThousandRows(EngineStore):
    """Deletes the first thousand tool calls of an agent."""

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        calls = await self.load_tool_call_records(agent_id)
        await super().delete(agent_id, fence=fence)
        if len(calls) > 1000:
            await super().save_tool_call_records(agent_id, calls[1000:])


async def _fork_much(ctx: Context) -> object:
    await ctx.store.save_turn("p", messages=samples.messages(1001), info=samples.info("p"))
    (fork,) = await ctx.store.batch_fork("p", 1)
    return len(await ctx.store.load_messages(fork))


@mutant("FORK-1", killed_by="forks_of_much", source="copies of what one read gives", witness=_fork_much)
class ForksAPage(EngineStore):
    """Copies the first thousand messages into a fork."""

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        forks = await super().batch_fork(agent_id, count)
        for fork in forks:
            messages = await self.load_messages(fork)
            if len(messages) > 1000:
                await self.save_messages(fork, messages[:1000])
        return forks


async def _fork_deep(ctx: Context) -> object:
    await ctx.store.save_info("p", samples.info("p"))
    last = "p"
    for _ in range(14):
        (last,) = await ctx.store.batch_fork(last, 1)
    info = await ctx.store.load_info(last)
    return info and len(info.lineage)


@mutant("FORK-1", killed_by="many_forks_and_long_lineages", source="a column for ten ids", witness=_fork_deep)
class ForgetsAncestors(EngineStore):
    """Knows the last ten ancestors of a fork."""

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        forks = await super().batch_fork(agent_id, count)
        for fork in forks:
            info = await self.load_info(fork)
            if info is not None and len(info.lineage) > 10:
                await self.save_info(fork, info.replace(lineage=info.lineage[-10:]))
        return forks
