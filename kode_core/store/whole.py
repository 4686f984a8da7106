"""One agent whole: everything of it is read as it was at one instant, and written in one batch (LIFE-7, LIFE-8).

No read of an engine covers all kinds. So they are read one after the other, and then looked at again: what is the same
in both readings was so in between, at the instant when the end of the event log was read. The log itself only grows at
its end; its first event shows whether events before it were removed. Keys of messages change with the messages. Todos,
media and other documents that have no versions could escape this, if they changed and changed back between the two
readings.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from kode_core.batch import (
    AgentSummary,
    Batch,
    Doc,
    DocKind,
    DocWrite,
    EventRange,
    EventRow,
    Fence,
    ListKind,
    ListWrite,
    Refused,
)
from kode_core.codec import Body, refuse_unreadable
from kode_core.engine import Engine, checks_demands
from kode_core.errors import ConflictError, CorruptRecordError, InvalidArgumentError, StoreBusyError
from kode_core.ids import check_agent_id, quoted
from kode_core.jsonvalue import type_name
from kode_core.model import AgentInfo, AgentRecords, Message, Timeline, ToolCallRecord
from kode_core.pace import Pace
from kode_core.store.context import Context
from kode_core.store.documents import check_docs, decoded_document, imported_documents, name_of, stored_documents
from kode_core.store.events import EventAppender, limit_after, stored_event
from kode_core.store.keyed import imported_keys, position_of_key
from kode_core.store.kinds import KINDS, Kind
from kode_core.store.pages import FIRST_PAGE
from kode_core.store.reader import Reader, decoded_info
from kode_core.store.rows import INT64, LISTS, check_class, event_writes, info_of, records_of
from kode_core.store.versions import head_of, unchanged, version_of
from kode_core.store.writer import Writer

__all__ = ["Wholes", "new_list", "own_are_still", "state_of", "write_new"]

_ATTEMPTS: Final = 20
_UPDATED: Final = range(1, 2**61)
"""Later writes move the time on, and a head takes it below 2 ** 62."""
_FIELDS: Final[Mapping[DocKind, str]] = {
    DocKind.TODOS: "todos",
    DocKind.WINDOWS: "history_windows",
    DocKind.COMPRESSIONS: "compression_records",
    DocKind.RECOVERED: "recovered_files",
    DocKind.SNAPSHOTS: "snapshots",
    DocKind.MEDIA: "media_cache",
}
"""The field of ``AgentRecords`` with the records of each kind."""
_PARTS: Final[tuple[tuple[Kind[Any], str], ...]] = tuple((kind, _FIELDS[kind.kind]) for kind in KINDS)


class _Instant(msgspec.Struct):
    """An agent in its stored form; the decoding takes the parts out."""

    summary: AgentSummary | None
    lists: dict[ListKind, Sequence[tuple[Body, int]]]
    docs: dict[DocKind, Sequence[Doc]]
    own: list[Doc]
    keys: list[Doc]
    events: list[EventRow]

    @property
    def is_empty(self) -> bool:
        """True if it has no record of any kind; keys of messages alone are none."""
        return not (self.has_updated_at or self.own or self.events or any(self.docs.values()))

    @property
    def has_updated_at(self) -> bool:
        """True if it has messages, tool calls or an info."""
        return (self.summary is not None and self.summary.info is not None) or any(self.lists.values())


class _Log:
    """The events of an agent, read on from time to time."""

    def __init__(self, engine: Engine, agent_id: str) -> None:
        self._engine = engine
        self._agent_id = agent_id
        self._limit = FIRST_PAGE
        self.rows: list[EventRow] = []

    async def read_on(self) -> None:
        """Read to the end of the log as it is now."""
        while True:
            found = await self._page(self.rows[-1].offset if self.rows else 0, self._limit)
            is_last = len(found) < self._limit
            self._limit = limit_after(found, self._limit)
            self.rows += found
            if is_last:
                return

    async def is_still(self) -> bool:
        """Whether the log still begins as it was read; if not, it is read anew.

        A prune removes the events from the first one on, apart from one that it keeps: one of the first two is gone.
        """
        begin = [row.offset for row in self.rows[:2]]
        if not begin or [row.offset for row in await self._page(0, len(begin))] == begin:
            return True
        self.rows = []
        return False

    async def _page(self, after: int, limit: int) -> Sequence[EventRow]:
        return await self._engine.events(self._agent_id, EventRange(order="offset", after=(0, after), limit=limit))


class Wholes:
    """Reads and writes agents whole."""

    def __init__(self, context: Context, reader: Reader, writer: Writer, appender: EventAppender) -> None:
        self._context = context
        self._reader = reader
        self._writer = writer
        self._appender = appender

    # --- reading

    async def load(self, agent_id: str) -> AgentRecords | None:
        """Everything of an agent at one instant; None if nothing is stored for it."""
        found = await self._instant(agent_id)
        if found.is_empty:
            return None
        summary, fields = found.summary, dict[str, Any]()
        if summary is not None and found.has_updated_at:
            fields["updated_at"] = summary.updated_at
        if summary is not None and summary.info is not None:
            info = await decoded_info(agent_id, summary.info.body, Pace())
            fields["info"] = replace(info, message_count=summary.messages.count)
        for kind, part in _PARTS:
            docs = found.docs.pop(kind.kind)
            if kind.is_list:
                fields[part] = await self._reader.decoded_list_doc(agent_id, kind, docs)
            elif kind.time:
                fields[part] = await self._reader.decoded_docs(agent_id, kind, docs)
            else:
                fields[part] = await self._reader.decoded_doc(agent_id, kind, docs, "")
        fields["message_times"] = [created_at for _, created_at in found.lists[ListKind.MESSAGES]]
        for kind_of_list in ListKind:
            name = kind_of_list.value
            fields[name] = await self._reader.decoded(agent_id, kind_of_list, found.lists.pop(kind_of_list), 0)
        pace = Pace()
        fields["documents"] = [await decoded_document(agent_id, doc, pace) for doc in found.own]
        fields["message_keys"] = dict([await position_of_key(agent_id, doc, pace) for doc in found.keys])
        fields["event_offsets"] = [row.offset for row in found.events]
        fields["events"] = await _timelines(agent_id, found.events)
        return AgentRecords(agent_id=agent_id, **fields)

    async def _instant(self, agent_id: str) -> _Instant:
        log = _Log(self._context.engine, agent_id)
        for _ in range(_ATTEMPTS):
            await log.read_on()  # most of it, so that the time between the two readings of the rest is short
            found = await self._read(agent_id, log.rows)
            if found is not None:
                await log.read_on()
                if await self._is_still(agent_id, found) and await log.is_still():
                    return found
            await asyncio.sleep(random.uniform(0, 0.02))  # noqa: S311
        raise StoreBusyError(
            f"agent {agent_id!r} kept changing while it was read whole; hold its lock, which writers of the agent "
            "wait for: async with store.acquire_agent_lock(…)"
        )

    async def _read(self, agent_id: str, events: list[EventRow]) -> _Instant | None:
        """One reading of everything but the events; None if the lists changed meanwhile."""
        engine = self._context.engine
        summary = await engine.summary(agent_id)
        own = [doc async for doc in stored_documents(engine, agent_id)]
        keys = [doc async for doc in stored_documents(engine, agent_id, of_core=True)]
        docs = {kind.kind: await engine.docs(agent_id, kind.kind) for kind in KINDS}
        lists = dict[ListKind, Sequence[tuple[Body, int]]]()
        for kind in ListKind:
            found = await engine.rows(agent_id, kind)
            if found.version != head_of(summary, kind).version:
                return None
            lists[kind] = found.rows
        return _Instant(summary, lists, docs, own, keys, events)

    async def _is_still(self, agent_id: str, found: _Instant) -> bool:
        """Whether the agent, apart from its events, is as it was read."""
        engine = self._context.engine
        if version_of(await engine.summary(agent_id)) != version_of(found.summary):
            return False
        for kind, docs in found.docs.items():
            if state_of(await engine.docs(agent_id, kind)) != state_of(docs):
                return False
        return await own_are_still(engine, agent_id, found.own)

    # --- writing

    async def write(self, agent_id: str, fence: Fence | None, records: AgentRecords, *, replaces: bool = False) -> None:
        """Write an agent of which nothing is stored; or, in the same write, remove all that is stored before."""
        check_class(AgentRecords, records, "records")
        updated_at = _checked(records)
        batch = self._context.batch(agent_id, fence=fence, **await self._contents(agent_id, records))
        batch = batch if updated_at is None else replace(batch, now=updated_at)
        if replaces:
            await self._appender.drain(agent_id)
        try:
            if not await write_new(self._context, batch, "import", replaces=replaces):
                raise StoreBusyError(f"agent {agent_id!r} kept changing while it was imported; nothing was written")
        except ConflictError:
            await self._writer.check_held(agent_id, fence)
            raise
        finally:
            if replaces:
                self._appender.deleted(agent_id)
        self._appender.stored(agent_id, batch.events)

    async def _contents(self, agent_id: str, records: AgentRecords) -> dict[str, Any]:
        """The contents of the batch."""
        now, info = self._context.now(), None
        if records.info is not None:
            info = await info_of(agent_id, _renamed(records, agent_id))
        docs = [write for kind, part in _PARTS for write in await _doc_writes(kind, part, getattr(records, part))]
        own = await imported_documents(records.documents)
        own = (*own, *await imported_keys(records.message_keys))
        check_docs(self._context.engine, own)
        messages = records_of(Message, records.messages, "records.messages")
        calls = records_of(ToolCallRecord, records.tool_calls, "records.tool_calls")
        times = _times(records.message_times, len(messages))
        events = await event_writes(records.events)
        if info is None and not (docs or own or messages or calls or events):
            raise InvalidArgumentError("records has nothing to import: all of its fields are empty")
        return {
            "info": info,
            # empty lists of messages as well: they let exactly one of several imports succeed
            "messages": await new_list(ListKind.MESSAGES, messages, times, now),
            "tool_calls": await new_list(ListKind.TOOL_CALLS, calls, (), now) if calls else None,
            "docs": (*docs, *own),
            "events": events,
        }


async def _timelines(agent_id: str, rows: list[EventRow]) -> list[Timeline]:
    """The events of *rows*, which is used up."""
    pace, found = Pace(), list[Timeline]()
    rows.reverse()
    while rows:  # the text of an event is released once it was decoded
        event = await stored_event(agent_id, rows.pop(), pace)
        found.append(Timeline(event.cursor, event.bookmark, event.event, extra=event.extra))
    return found


# --- shared with forks ------------------------------------------------------------------------------------------------


def state_of(docs: Sequence[Doc]) -> list[tuple[str, int, bytes]]:
    """A value that tells whether documents of one kind have changed."""
    return sorted((doc.key, doc.time, doc.body.digest) for doc in docs)


async def own_are_still(engine: Engine, agent_id: str, read: Sequence[Doc]) -> bool:
    """Whether the caller's own documents that were read are all there are, with the versions that were read.

    A version never comes back with another value, so that a document with one version in both readings had that
    value in between, too.

    Raises:
        CorruptRecordError: a document is damaged so that it has one version with its body, and another one without.
    """
    again = {doc.key: doc.body.digest async for doc in stored_documents(engine, agent_id, bodies=False)}
    before = {doc.key: doc.body.digest for doc in read}
    for key, version in before.items():
        if again.get(key, version) != version:
            await _check_changed(engine, agent_id, key, version)
    return again == before


async def _check_changed(engine: Engine, agent_id: str, key: str, before: bytes) -> None:
    """Raise if a document that is read again with its body has the version from *before*: then it has two at once."""
    for doc in await engine.docs(agent_id, DocKind.DOCUMENTS, key):
        if doc.body.digest == before:
            name = name_of(agent_id, key)
            refuse_unreadable(doc.body, name)
            raise CorruptRecordError(name, "its stored version is not the version of its value")


async def write_new(context: Context, batch: Batch, noun: str, *, replaces: bool = False) -> bool:
    """Write an agent of which nothing is stored; False if others kept changing it.

    A *noun*, which is a fork or an import, overwrites and inherits nothing. An engine that checks demands looks again
    in the atomic step of the write. Lists that are empty and have versions, since all was removed from them, are no
    contents: the write deletes them, so that the agent has the given times. If it *replaces*, it deletes everything.

    Raises:
        ConflictError: a record of some kind is stored.
    """
    engine, agent_id = context.engine, batch.agent_id
    batch = replace(batch, expect_nothing=checks_demands(engine) and not replaces)
    if replaces:  # engines check demands before the delete
        batch = replace(batch, docs=tuple(replace(write, expect=None) for write in batch.docs))
    for _ in range(_ATTEMPTS):
        summary = await engine.summary(agent_id)
        if not replaces:
            await _check_unused(engine, summary, agent_id, noun)
        demands = unchanged(summary)
        lists = zip((batch.messages, batch.tool_calls), demands["expect_lists"], strict=True)
        messages, calls = (write and replace(write, expect=version) for write, version in lists)
        attempt = replace(batch, delete=replaces or summary is not None, messages=messages, tool_calls=calls, **demands)
        if not isinstance(await context.commit(attempt), Refused):
            return True
    return False


async def _check_unused(engine: Engine, summary: AgentSummary | None, agent_id: str, noun: str) -> None:
    """Raise ConflictError for an id under which a record of some kind is stored."""
    if summary is not None and (summary.info or summary.messages.count or summary.tool_calls.count):
        raise ConflictError(agent_id, version_of(summary), f"it exists already, so that no {noun} can take its id")
    if await engine.last_event(agent_id) is not None:
        raise ConflictError(agent_id, version_of(summary), f"it has events, so that no {noun} can take its id")
    for kind in DocKind:
        if kind not in (DocKind.LAYER, DocKind.DOCUMENTS) and await engine.docs(agent_id, kind):
            problem = f"it has {kind.value}, so that no {noun} can take its id"
            raise ConflictError(agent_id, version_of(summary), problem)
    async for _ in stored_documents(engine, agent_id, bodies=False):
        raise ConflictError(agent_id, version_of(summary), f"it has documents, so that no {noun} can take its id")


async def new_list(kind: ListKind, records: Sequence[Any], times: Sequence[int], now: int) -> ListWrite:
    """The write of a list that does not exist; messages without a time in *times* are as new as *now*.

    A tool call's time is its own.
    """
    pace, rows, latest = Pace(), [], max([now, *times])
    for i, record in enumerate(records):
        one = (await LISTS[kind].row(i, record, latest, pace)).row
        rows.append(replace(one, created_at=times[i]) if i < len(times) else one)
        await pace.yield_to_loop()
    return ListWrite(expect=0, append=tuple(rows))


# --- checks of the records of an import -------------------------------------------------------------------------------


def _checked(records: AgentRecords) -> int | None:
    """The time of the last save; raises for fields that say nothing of one kind alone."""
    check_agent_id(records.agent_id)
    if records.extra is not None and not (type(records.extra) is dict and not records.extra):
        names = ", ".join(sorted(map(quoted, records.extra))) if type(records.extra) is dict else "extra"
        raise InvalidArgumentError(
            f"records has fields that this version does not know, which an import would lose: {names:.200}; "
            "install a newer kode-core, or leave them out"
        )
    updated_at = records.updated_at
    if updated_at is not None and (type(updated_at) is not int or updated_at not in _UPDATED):
        given = quoted(updated_at) if type(updated_at) is int else type_name(type(updated_at))
        raise InvalidArgumentError(
            f"records.updated_at must be milliseconds since the epoch, an int from 1 to {_UPDATED.stop - 1}, or None, "
            f"got {given}"
        )
    return updated_at


def _renamed(records: AgentRecords, agent_id: str) -> AgentInfo:
    """The info of the records under the id of the import."""
    check_class(AgentInfo, records.info, "records.info")
    assert records.info is not None
    if type(records.info.agent_id) is not str or records.info.agent_id != records.agent_id:
        raise InvalidArgumentError(
            f"records.info is of agent {quoted(records.info.agent_id)} and records of agent {records.agent_id!r:.80}: "
            "they must be the same"
        )
    return records.info.replace(agent_id=agent_id)


def _times(given: Any, count: int) -> tuple[int, ...]:
    """The times of *count* messages, in any order: a message that was moved may be older than the one before it."""
    if not isinstance(given, (list, tuple)):
        raise InvalidArgumentError(f"records.message_times must be a list of int, got {type_name(type(given))}")
    times = tuple(given)
    if len(times) != count:
        raise InvalidArgumentError(f"records has {count} messages and {len(times)} message_times: give one for each")
    for i, time in enumerate(times):
        if type(time) is not int or time not in INT64:
            what = "an integer of 64 bits" if type(time) is int else f"an int, got {type_name(type(time))}"
            raise InvalidArgumentError(f"records.message_times[{i}] must be {what}")
    return times


async def _doc_writes(kind: Kind[Any], part: str, given: Any) -> list[DocWrite]:
    """The documents of one kind, no two of which have one key."""
    if kind.is_list:
        return [await kind.write(given)] if len(records_of(kind.cls, given, f"records.{part}")) else []
    if not kind.time:
        return [] if given is None else [await kind.write(given)]
    pace, writes = Pace(), dict[str, DocWrite]()
    for i, record in enumerate(records_of(kind.cls, given, f"records.{part}")):
        write = await kind.write(record)
        if write.key in writes:
            raise InvalidArgumentError(f"records.{part}[{i}] has the key of another {kind.noun}: {write.key!r:.80}")
        writes[write.key] = write
        await pace.yield_to_loop()
    return list(writes.values())
