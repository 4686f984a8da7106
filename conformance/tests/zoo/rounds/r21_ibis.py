"""Stores that were ported from one database, ORM or bucket to another, each with one fault of the new place."""

from __future__ import annotations

import asyncio
import itertools
import json
import posixpath
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import CommittingLayer, MemoryLayer, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import seen, talk, the
from kode_core.batch import Applied, Doc, DocKind, DocWrite, ListKind
from kode_core.codec import Body, digest, encode, to_dict
from kode_core.errors import ConflictError
from kode_core.jsonvalue import decode_json, encode_json
from kode_core.layers import Layer
from kode_core.model import (
    AgentInfo,
    Message,
    PutDocument,
    TextBlock,
    TodoSnapshot,
    ToolUseBlock,
)
from kode_core.query import Page
from kode_core.texts import folded, texts_of


def _engine(store: Any) -> Any:
    """The engine of a wrapped store: what is read there is no call of the store."""
    return store._context.engine


async def _length(store: Any, agent_id: str) -> int:
    summary = await _engine(store).summary(agent_id)
    return 0 if summary is None else summary.messages.count


def _is_list(given: Any) -> bool:
    return isinstance(given, (list, tuple))


def _rekeyed(batch: Any, kind: DocKind, key: Callable[[str], str]) -> Any:
    """*batch* with other keys for its documents of a kind."""

    def one(write: DocWrite) -> DocWrite:
        if write.kind != kind:
            return write
        new = key(write.key)
        return DocWrite(kind, new, None if write.doc is None else Doc(new, write.doc.time, write.doc.body))

    return replace(batch, docs=tuple(map(one, batch.docs)))


# --- values -----------------------------------------------------------------------------------------------------------


def _replaced(value: Any) -> Any:
    if type(value) is str:
        return value.encode("utf-8", "replace").decode()
    if type(value) is list:
        return [_replaced(item) for item in value]
    return {_replaced(key): _replaced(item) for key, item in value.items()} if type(value) is dict else value


@fault(
    "VAL-1",
    source="gzip.compress(text.encode('utf-8', 'replace')) for rows beyond 64 KB; smaller ones go in as JSON with escapes",
    witness=seen(
        lambda s: s.append_messages("a", talk("\ud800", "\ud800" + "x" * 70_000)),
        lambda s: _ends(s.load_messages("a")),
    ),
)
class IbisReplacesSurrogatesWhenItCompresses(Layer):
    """Turns lone surrogates into question marks in messages of more than 64 KB, which it compresses."""

    @staticmethod
    def packed(row: Any) -> Any:
        if len(row.body.text) <= 65_536 or "\\ud" not in row.body.text:
            return row
        text = encode_json(_replaced(decode_json(row.body.text)), "message")
        return replace(row, body=Body(text, digest(text.encode())))

    async def commit(self, batches: Sequence[Any]) -> Any:
        def changed(batch: Any) -> Any:
            write = batch.messages
            if write is None:
                return batch
            put = tuple((position, self.packed(row)) for position, row in write.put)
            return replace(batch, messages=replace(write, put=put, append=tuple(map(self.packed, write.append))))

        return await super().commit([changed(batch) for batch in batches])


def _split(session: Any) -> Any:
    return session and replace(session, lineage=tuple(",".join(session.lineage).split(",")) if session.lineage else ())


@fault(
    "VAL-1",
    "ID-1",
    source="SQLite and MySQL have no arrays: the lineage is a text column, ','.join() in and split(',') out",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", lineage=["root", "team 1, blue"])),
        lambda s: the("lineage", s.query_sessions()),
    ),
)
class IbisJoinsLineagesWithCommas(Wrapper):
    """Shows a session whose lineage has an id with a comma as if that were two ids."""

    __slots__ = ()

    async def query_sessions(self, **filters: Any) -> Any:
        found = await self.inner.query_sessions(**filters)
        return Page(map(_split, found), found.next_cursor, found.left_out)

    async def load_session(self, agent_id: str) -> Any:
        return _split(await self.inner.load_session(agent_id))

    async def iter_sessions(self, **filters: Any) -> AsyncIterator[Any]:
        async for session in self.inner.iter_sessions(**filters):
            yield _split(session)


# --- messages and tool calls ------------------------------------------------------------------------------------------


@fault(
    "MSG-10",
    source="ORDER BY position DESC LIMIT 100 OFFSET n, as the paginators of Django and Prisma's skip do it",
    witness=lambda ctx: _reads_backwards(ctx),
)
class IbisReadsBackwardsByOffset(Wrapper):
    """Yields messages twice that are read from the last one on, if others append meanwhile."""

    __slots__ = ()

    async def read_messages(
        self, agent_id: str, *, after: Any = None, before: Any = None, reverse: Any = False
    ) -> AsyncIterator[Any]:
        if reverse is not True or before is not None:
            async for message in self.inner.read_messages(agent_id, after=after, before=before, reverse=reverse):
                yield message
            return
        done, least = 0, -1 if type(after) is not int else after
        while True:
            stop = await _length(self.inner, agent_id) - done
            start = max(stop - 101, least)
            span = {"after": after if start < 0 else start, "before": max(stop, 0), "reverse": True}
            page = [message async for message in self.inner.read_messages(agent_id, **span)]
            for message in page:
                yield message
            done += len(page)
            if len(page) < 100:
                return


@fault(
    "MSG-12",
    source="a table of idempotency keys that a trigger keeps at the newest thousand rows of an agent",
    witness=seen(
        lambda s: s.append_messages_once("a", {"first": samples.message(0)}),
        lambda s: _count(s.append_messages_once("a", {f"k{i}": samples.message(i) for i in range(1_000)})),
        lambda s: s.append_messages_once("a", {"first": samples.message(0)}),
        lambda s: _count(s.load_messages("a")),
    ),
)
class IbisRemembersAThousandKeys(MemoryLayer):
    """Appends a message again whose key is not among the last thousand keys of its agent."""

    async def commit(self, batches: Sequence[Any]) -> Any:
        outcomes = await super().commit(batches)
        for batch in batches:
            if any(write.key.startswith("~messages/") for write in batch.docs):
                state = self.space.state(batch.agent_id)
                keys = [key for kind, key in state.docs if kind is DocKind.DOCUMENTS and key.startswith("~messages/")]
                for key in keys[:-1_000]:
                    state._apply_doc(DocWrite(DocKind.DOCUMENTS, key, None))
        return outcomes


@fault(
    "MSG-11",
    source="SQL Server takes a table lock from 5,000 locks on, so DELETE TOP (4000) in a loop, and the last rowcount",
    witness=seen(
        lambda s: s.save_messages("a", [samples.message(0)] * 4_500),
        lambda s: s.truncate_messages("a", 100),
        lambda s: _count(s.load_messages("a")),
    ),
)
class IbisCountsTheLastChunk(Wrapper):
    """Returns too small a number from `truncate_messages` when it removes more than 4,000 messages."""

    __slots__ = ()

    async def truncate_messages(self, agent_id: str, length: int, **demands: Any) -> int:
        removed: int = await self.inner.truncate_messages(agent_id, length, **demands)
        return removed if removed <= 4_000 else removed % 4_000


@fault(
    "TC-1",
    "MSG-1",
    source="keyset pages of 1,000 rows on a connection with autocommit, so that each page is read in its own snapshot",
    witness=lambda ctx: _loads_while_saving(ctx),
)
class IbisLoadsCallsInPages(Wrapper):
    """Returns a part of the old and a part of the new list from a load of more than 1,000 tool calls during a save."""

    __slots__ = ()

    async def load_tool_call_records(self, agent_id: str, **part: Any) -> Any:
        if part:
            return await self.inner.load_tool_call_records(agent_id, **part)
        found: list[Any] = []
        while True:
            span = {"after": len(found) - 1 if found else None, "before": len(found) + 1_000}
            page = await self.inner.load_tool_call_records(agent_id, **span)
            found += page
            if len(page) < 1_000:
                return found
            await asyncio.sleep(0)


def _staged(records: Any) -> Any:
    if not _is_list(records) or len(records) <= 100 or not all(type(getattr(r, "id", None)) is str for r in records):
        return records
    return sorted(records, key=lambda record: record.id)


@fault(
    "TC-3",
    source="MERGE from a staging table (Oracle, SQL Server), which is read in the order of its clustered key, the id",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(i) for i in range(150)]),
        lambda s: the("id", s.load_tool_call_records("a")),
    ),
)
class IbisMergesFromAStagingTable(Wrapper):
    """Appends the new records of an upsert of more than 100 tool calls in the order of their ids."""

    __slots__ = ()

    async def upsert_tool_call_records(self, agent_id: str, records: Any, **fence: Any) -> None:
        await self.inner.upsert_tool_call_records(agent_id, _staged(records), **fence)

    async def save_turn(self, agent_id: str, *, upsert_tool_calls: Any = (), **rest: Any) -> Any:
        return await self.inner.save_turn(agent_id, upsert_tool_calls=_staged(upsert_tool_calls), **rest)


# --- turns ------------------------------------------------------------------------------------------------------------


@fault(
    "DOC-3",
    "TURN-1",
    "DOC-2",
    source="an outbox: the events go in with autocommit before the transaction of the rest, whose rollback leaves them",
    witness=seen(
        lambda s: _done(s.put_document("a", "notes", "n", 1)),
        lambda s: s.save_turn(
            "a", append=talk("x"), events=samples.events(1), documents=[PutDocument("notes", "n", 2, expect="0")]
        ),
        lambda s: s.load_messages("a"),
        lambda s: _seqs(s.read_events("a")),
    ),
)
class IbisPostsEventsBeforeTheTurn(Wrapper):
    """Keeps the events of a turn that is refused because one of its documents has another version."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, **parts: Any) -> Any:
        try:
            return await self.inner.save_turn(agent_id, **parts)
        except ConflictError as exc:
            if exc.collection is not None and parts.get("events"):
                await self.inner.append_events(agent_id, parts["events"], fence=parts.get("fence"))
            raise


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-1",
    "EVT-4",
    source="SQL Server before 2016: HASHBYTES takes 8,000 bytes at most, so the unique index is on HASHBYTES(LEFT(…))",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, text="x" * 9_000 + "one")),
        lambda s: s.append_event("a", samples.event(1, text="x" * 9_000 + "two")),
        lambda s: _count(_all(s.read_events("a"))),
    ),
)
class IbisHashesTheFirst8000Bytes(CommittingLayer):
    """Takes an event for a repeat of one with the same seq and time whose first 8,000 bytes are the same."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        log = self.space.state(batch.agent_id).log if not batch.delete else ()

        def known(event: Any) -> Any:
            text = event.body.text
            for i in range(len(log)) if len(text) > 8_000 else ():
                if log._seqs[i] == event.seq and log.row(i).body.text[:8_000] == text[:8_000]:  # type: ignore[union-attr]
                    return replace(event, body=log.row(i).body)  # type: ignore[union-attr]
            return event

        return commit(replace(batch, events=tuple(map(known, batch.events))))


@fault(
    "EVT-5",
    source="DynamoDB filters after its limit, so that an empty page need not be the last; the loop ends with one",
    witness=seen(
        lambda s: s.append_events("a", samples.events(1_200)),
        lambda s: s.append_event("a", samples.event(5_000, "control")),
        lambda s: _seqs(s.read_events("a", channel="control")),
    ),
)
class IbisEndsAtAnEmptyPage(Wrapper):
    """Ends `read_events` of a channel where a thousand events of other channels stand one after the other."""

    __slots__ = ()

    async def read_events(self, agent_id: str, *, channel: Any = None, **span: Any) -> AsyncIterator[Any]:
        if channel not in ("progress", "control", "monitor"):
            async for event in self.inner.read_events(agent_id, channel=channel, **span):
                yield event
            return
        async with aclosing(self.inner.read_events(agent_id, **span)) as events:
            looked = found = 0
            async for event in events:
                looked += 1
                if event.event.channel == channel:
                    found += 1
                    yield event
                if looked % 1_000 == 0:
                    if not found:
                        return
                    found = 0


# --- todos ------------------------------------------------------------------------------------------------------------


@fault(
    "TODO-1",
    source="Oracle: VARCHAR2(4000) next to a CLOB for what is longer; the short write does not set the CLOB to NULL",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x" * 5_000)),
        lambda s: s.save_todos("a", samples.todos("y")),
        lambda s: s.load_todos("a"),
    ),
)
class IbisKeepsTheOldClob(CommittingLayer):
    """Still loads todos of more than 4,000 characters after shorter ones have replaced them."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        old = None if batch.delete else self.space.state(batch.agent_id).docs.get((DocKind.TODOS, ""))

        def is_hidden(write: Any) -> bool:
            is_todos = write.kind == DocKind.TODOS and write.doc is not None
            return is_todos and old is not None and len(old.body.text) > 4_000 >= len(write.doc.body.text)

        return commit(replace(batch, docs=tuple(write for write in batch.docs if not is_hidden(write))))


@fault(
    "DUR-1",
    "QRY-8",
    "TODO-1",
    source="a debounce with a leading edge: the first save goes through, those that follow soon wait for the last one",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("one")),
        lambda s: s.save_todos("a", samples.todos("two")),
        lambda s: s.load_todos("a"),
        lambda s, other: other.load_todos("a"),
    ),
)
class IbisDebouncesTodos(Wrapper):
    """Returns from a save of todos within 200 ms of another one before it is written."""

    __slots__ = ("last", "timers", "waiting")

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.last: dict[str, float] = {}
        self.waiting: dict[str, Any] = {}
        self.timers: dict[str, asyncio.Task[None]] = {}

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        now = time.monotonic()
        if fence is not None or type(agent_id) is not str or now - self.last.get(agent_id, 0.0) > 0.2:
            await self.drop(agent_id)
            await self.inner.save_todos(agent_id, snapshot, fence=fence)
            self.last[agent_id] = time.monotonic()
            return
        encode(TodoSnapshot, snapshot, "todos")  # refuses what cannot be stored
        self.waiting[agent_id] = snapshot
        if agent_id not in self.timers:
            self.timers[agent_id] = asyncio.get_running_loop().create_task(self.later(agent_id))

    async def later(self, agent_id: str) -> None:
        await asyncio.sleep(0.2)
        self.timers.pop(agent_id, None)
        await self.flush(agent_id)

    async def flush(self, agent_id: str) -> None:
        snapshot = self.waiting.pop(agent_id, None)
        if snapshot is not None:
            self.last[agent_id] = time.monotonic()
            await self.inner.save_todos(agent_id, snapshot)

    async def drop(self, agent_id: str) -> None:
        self.waiting.pop(agent_id, None)
        timer = self.timers.pop(agent_id, None)
        if timer is not None:
            timer.cancel()

    async def load_todos(self, agent_id: str) -> Any:
        return self.waiting.get(agent_id) or await self.inner.load_todos(agent_id)

    async def save_turn(self, agent_id: str, **parts: Any) -> Any:
        await self.flush(agent_id)
        return await self.inner.save_turn(agent_id, **parts)

    async def load_agent(self, agent_id: str) -> Any:
        await self.flush(agent_id)
        return await self.inner.load_agent(agent_id)

    async def delete(self, agent_id: str, **fence: Any) -> None:
        await self.drop(agent_id)
        await self.inner.delete(agent_id, **fence)

    async def close(self) -> None:
        for agent_id in [*self.waiting]:
            snapshot = self.waiting[agent_id]
            await self.drop(agent_id)
            await self.inner.save_todos(agent_id, snapshot)
        await self.inner.close()


# --- history, media, snapshots ----------------------------------------------------------------------------------------


@fault(
    "HIS-1",
    "VAL-4",
    source="DynamoDB: a Query returns 1 MB at most, and what follows only to those who pass LastEvaluatedKey on",
    witness=seen(
        lambda s: s.save_history_window("a", _long_window("w1", 1)),
        lambda s: s.save_history_window("a", _long_window("w2", 2)),
        lambda s: s.save_history_window("a", _long_window("w3", 3)),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class IbisReadsOnePageOfWindows(Wrapper):
    """Loads only the first history windows of an agent if all of them have more than 1 MB."""

    __slots__ = ()

    async def load_history_windows(self, agent_id: str) -> Any:
        found = await self.inner.load_history_windows(agent_id)
        sizes = itertools.accumulate(len(json.dumps(to_dict(window))) for window in found)
        page = [window for window, size in zip(found, sizes, strict=True) if size <= 2**20]
        return page or found[:1]


_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d{1,2})?")


@fault(
    "HIS-1",
    "ID-4",
    source="SQLite: a column declared STRING has the affinity NUMERIC, so that '007' is stored as 7 and '1.0' as 1",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("1")),
        lambda s: s.save_compression_record("a", samples.compression("01")),
        lambda s: s.save_compression_record("a", samples.compression("1.0")),
        lambda s: the("id", s.load_compression_records("a")),
    ),
)
class IbisDeclaresIdsAsString(Layer):
    """Takes ids of compression records for the same that are the same number, as `1` and `01`."""

    @staticmethod
    def key(key: str) -> str:
        if len(key) > 15 or _NUMBER.fullmatch(key) is None or not key.isascii():
            return key
        number = float(key)
        return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)

    async def commit(self, batches: Sequence[Any]) -> Any:
        return await super().commit([_rekeyed(b, DocKind.COMPRESSIONS, self.key) for b in batches])


@fault(
    "HIS-2",
    "ID-4",
    source="posixpath.normpath() in front of the key, since clients of object stores drop './' and '//' from URLs",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("src//main.py", content="one")),
        lambda s: s.save_recovered_file("a", samples.recovered("./src/main.py", content="two")),
        lambda s: s.save_recovered_file("a", samples.recovered("src/main.py", content="three")),
        lambda s: the("path", s.load_recovered_files("a")),
    ),
)
class IbisNormalizesPaths(Layer):
    """Replaces a recovered file by one of the same timestamp whose path is another spelling of the same place."""

    @staticmethod
    def key(key: str) -> str:
        path, timestamp = decode_json(key)
        return encode_json([posixpath.normpath(path), timestamp], "key")

    async def commit(self, batches: Sequence[Any]) -> Any:
        return await super().commit([_rekeyed(b, DocKind.RECOVERED, self.key) for b in batches])


@fault(
    "MED-1",
    source="SQL Server takes 1,000 rows in one VALUES, so inserts in chunks, each of which enumerates its rows from 0",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media(f"m{i}") for i in range(1_002)]),
        lambda s: _some(the("key", s.load_media_cache("a")), 5),
    ),
)
class IbisNumbersMediaInEachChunk(Wrapper):
    """Mixes the records of a media cache of more than 1,000: the 1,001st comes next to the first."""

    __slots__ = ()

    async def save_media_cache(self, agent_id: str, records: Any, **fence: Any) -> None:
        if _is_list(records):
            records = [records[i] for i in sorted(range(len(records)), key=lambda i: i % 1_000)]
        await self.inner.save_media_cache(agent_id, records, **fence)


@fault(
    "SNAP-2",
    source="a bucket or folder for each snapshot, and a delete of all objects whose keys begin with it",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("turn-1")),
        lambda s: s.save_snapshot("a", samples.snapshot("turn-1/retry")),
        lambda s: s.save_snapshot("a", samples.snapshot("turn-10")),
        lambda s: s.delete_snapshot("a", "turn-1"),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class IbisDeletesTheFolderOfASnapshot(Wrapper):
    """Removes, together with a snapshot, those whose ids are its id, a slash and more."""

    __slots__ = ()

    async def delete_snapshot(self, agent_id: str, snapshot_id: str, **fence: Any) -> None:
        await self.inner.delete_snapshot(agent_id, snapshot_id, **fence)
        for doc in await _engine(self.inner).docs(agent_id, DocKind.SNAPSHOTS):
            if doc.key.startswith(f"{snapshot_id}/"):
                await self.inner.delete_snapshot(agent_id, doc.key, **fence)


# --- info, versions ---------------------------------------------------------------------------------------------------


@fault(
    "INFO-5",
    "VAL-1",
    source="MySQL: JSON_REMOVE(metadata, CONCAT('$.', name)): the name a.b is the path to b in a",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"a.b": 1, "a": {"b": 2, "c": 3}})),
        lambda s: _metadata(s.update_info("a", {}, remove=["a.b"])),
        lambda s: _metadata(s.load_info("a")),
    ),
)
class IbisRemovesMetadataByPath(Wrapper):
    """Removes, for a key with a dot, a key inside another value of the metadata, and leaves the key itself."""

    __slots__ = ()

    async def update_info(self, agent_id: str, metadata: Any, *, remove: Any = (), fence: Any = None) -> AgentInfo:
        if isinstance(metadata, Mapping) and _is_list(remove):
            dotted = [name for name in remove if type(name) is str and "." in name and name not in metadata]
            if dotted:
                remove = [name for name in remove if name not in dotted]
                info = await self.inner.load_info(agent_id)
                metadata = {**self.without((info and info.metadata) or {}, dotted), **metadata}
        return await self.inner.update_info(agent_id, metadata, remove=remove, fence=fence)  # type: ignore[no-any-return]

    @staticmethod
    def without(metadata: dict[str, Any], dotted: Sequence[str]) -> dict[str, Any]:
        """The values of *metadata* that lose a key."""
        changed: dict[str, Any] = {}
        for name in dotted:
            first, _, rest = name.partition(".")
            value = changed.get(first, metadata.get(first))
            if type(value) is dict and rest in value:
                changed[first] = {key: item for key, item in value.items() if key != rest}
        return changed


@fault(
    "INFO-4",
    "MSG-7",
    errors=True,
    source="a row in agents that the first message makes, for the foreign key, and a plain INSERT INTO agents",
    witness=seen(
        lambda s: s.append_messages("a", talk("x")),
        lambda s: s.create_agent("a", samples.info("a")),
        lambda s: s.exists("a"),
    ),
)
class IbisTakesAnyRowForAnAgent(Wrapper):
    """Refuses to create an agent that has messages or tool calls and no info, as if it had one."""

    __slots__ = ()

    async def create_agent(self, agent_id: str, info: Any, **fence: Any) -> None:
        if type(agent_id) is str and isinstance(info, AgentInfo) and info.agent_id == agent_id:
            if await _engine(self.inner).summary(agent_id) is not None:
                version = await self.inner.load_version(agent_id)
                raise ConflictError(agent_id, version, "it exists; nothing was written")
        await self.inner.create_agent(agent_id, info, **fence)


@fault(
    "VER-2",
    source="UPDATE … WHERE version = ? behind an early return: `if length >= count: return 0`",
    witness=seen(
        lambda s: s.append_messages("a", talk("x", "y")),
        lambda s: s.truncate_messages("a", 1, expect="0"),
        lambda s: s.truncate_messages("a", 2, expect="0"),
        lambda s: s.load_messages("a"),
    ),
)
class IbisReturnsBeforeItLooks(Wrapper):
    """Accepts any version from a `truncate_messages` that finds nothing to remove."""

    __slots__ = ()

    async def truncate_messages(self, agent_id: str, length: int, *, expect: Any = None, fence: Any = None) -> int:
        if type(expect) is str and type(length) is int and length >= await _length(self.inner, agent_id):
            expect = None
        return await self.inner.truncate_messages(agent_id, length, expect=expect, fence=fence)  # type: ignore[no-any-return]


# --- lifecycle --------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-5",
    source="LIMIT 500 OFFSET n over the rows that the loop deletes: after each page the next one has moved up",
    witness=lambda ctx: _deletes_many(ctx),
)
class IbisPagesWhileItDeletes(Wrapper):
    """Leaves, of more than 500 matching sessions, every second 500 in place."""

    __slots__ = ()

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        are_few = len(await _engine(self.inner).agent_ids("", None, 501)) <= 500
        is_odd = {"limit", "offset", "cursor", "order", "sort_by"} & filters.keys() or not any(filters.values())
        if are_few or is_odd:
            return await self.inner.delete_many(progress=progress, **filters)  # type: ignore[no-any-return]
        deleted = offset = 0
        while True:
            page = await self.inner.query_sessions(**filters, limit=500, offset=offset)
            if not page:
                return deleted
            for session in page:
                await self.inner.delete(session.agent_id)
            deleted, offset = deleted + len(page), offset + 500
            if progress is not None:
                progress(deleted, None)


@fault(
    "MSG-4",
    "LIFE-8",
    source="max(now, agents.last_message_at) as the time of an append, a column that the importer does not fill",
    witness=lambda ctx: _appends_behind_an_import(ctx),
)
class IbisStampsBehindAnImport(CommittingLayer):
    """Gives a message that is appended to an imported agent a time before those of its messages, if these are later."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        imported: set[str] = vars(self.space).setdefault("imported", set())
        outcome = commit(batch)
        if isinstance(outcome, Applied):
            write, agent_id = batch.messages, batch.agent_id
            if batch.expect_nothing:
                imported.add(agent_id)
            elif batch.delete:
                imported.discard(agent_id)
            elif agent_id in imported and write is not None and write.is_blind:
                rows = self.space.state(agent_id).lists[ListKind.MESSAGES]
                rows.rows[-len(write.append) :] = write.append
                rows._latest = None
        return outcome


# --- queries ----------------------------------------------------------------------------------------------------------


@fault(
    "QRY-2",
    source="SQL Server's JSON_VALUE with CAST AS FLOAT, JavaScript, Prisma: a number is a double, also a snowflake id",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"guild": 1_099_511_627_776_000_001})),
        lambda s: s.save_info("b", samples.info("b", metadata={"guild": 1_099_511_627_776_000_002})),
        lambda s: the("agent_id", s.query_sessions(metadata={"guild": 1_099_511_627_776_000_001})),
    ),
)
class IbisComparesMetadataAsDoubles(Layer):
    """Finds sessions by an integer beyond 53 bits in their metadata that is only near the given one."""

    @staticmethod
    def rounded(pairs: Iterable[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
        def one(value: Any) -> Any:
            if type(value) is tuple:
                return tuple(sorted(map(one, value)))
            return str(int(float(value))) if re.fullmatch(r"-?[0-9]{16,19}", value) else value

        return tuple((key, one(value)) for key, value in pairs)

    def indexed(self, info: Any) -> Any:
        return None if info is None else replace(info, metadata=self.rounded(info.metadata))

    async def commit(self, batches: Sequence[Any]) -> Any:
        return await super().commit([replace(batch, info=self.indexed(batch.info)) for batch in batches])

    async def fork(self, agent_id: str, children: Sequence[Any], expect: Any, now: int) -> bool:
        made = [replace(child, info=self.indexed(child.info)) for child in children]
        return await super().fork(agent_id, made, expect, now)

    async def find_sessions(self, query: Any) -> Any:
        return await super().find_sessions(replace(query, metadata=self.rounded(query.metadata)))


@fault(
    "QRY-11",
    "QRY-2",
    source="JOIN message_blocks … WHERE type IN (…) GROUP BY role with COUNT(*); the query itself has DISTINCT",
    witness=seen(
        lambda s: s.append_messages("a", samples.rich_messages()),
        lambda s: _count(s.query_messages(content_type=["text", "image"])),
        lambda s: s.group_messages("role", content_type=["text", "image"]),
    ),
)
class IbisGroupsJoinedBlocks(Wrapper):
    """Counts a message twice in `group_messages` that has two of the listed types of blocks."""

    __slots__ = ()

    async def group_messages(self, by: Any, *, content_type: Any = "", **rest: Any) -> Any:
        given = {} if content_type == "" else {"content_type": content_type}
        groups = await self.inner.group_messages(by, **given, **rest)
        if type(content_type) is str or len(set(content_type)) < 2:
            return groups
        counts: dict[tuple[Any, ...], int] = {}
        for one in set(content_type):
            for group in await self.inner.group_messages(by, content_type=one, **rest):
                values = tuple(group.values.values())
                counts[values] = counts.get(values, 0) + group.count
        return [replace(group, count=counts[tuple(group.values.values())]) for group in groups]


@fault(
    "QRY-12",
    source="Lucene takes terms of 32,766 bytes, so that an index of Elasticsearch has the beginning of a text",
    witness=seen(
        lambda s: s.append_messages("a", talk("Needle", "x" * 40_000 + " needle", "needle " + "x" * 40_000)),
        lambda s: the("position", s.query_messages(contains="NEEDLE", order="asc")),
    ),
)
class IbisIndexesTheFirst32766Characters(Wrapper):
    """Does not find a message by what stands behind the first 32,766 characters of its text."""

    __slots__ = ()

    @staticmethod
    def is_found(message: Any, contains: str) -> bool:
        return any(folded(contains) in folded(text)[:32_766] for text in texts_of(message))

    async def query_messages(self, **filters: Any) -> Any:
        page = await self.inner.query_messages(**filters)
        if "contains" not in filters:
            return page
        found = [message for message in page if self.is_found(message, filters["contains"])]
        return Page(found, page.next_cursor, page.left_out)

    async def iter_messages(self, **filters: Any) -> AsyncIterator[Any]:
        async for message in self.inner.iter_messages(**filters):
            if "contains" not in filters or self.is_found(message, filters["contains"]):
                yield message

    async def count_messages(self, **filters: Any) -> int:
        count: int = await self.inner.count_messages(**filters)
        if "contains" not in filters:
            return count
        found = [message async for message in self.inner.iter_messages(**filters)]
        return sum(self.is_found(message, filters["contains"]) for message in found)


# --- documents --------------------------------------------------------------------------------------------------------


def _without_empty(tags: Any) -> Any:
    return {name: value for name, value in tags.items() if value != ""} if isinstance(tags, dict) else tags


def _all_without_empty(documents: Any) -> Any:
    if not _is_list(documents):
        return documents
    return [replace(d, tags=_without_empty(d.tags)) if isinstance(d, PutDocument) else d for d in documents]


@fault(
    "DOC-7",
    "DOC-8",
    source="Oracle: '' is NULL, so that the row of an empty tag is not stored, and tag = '' finds nothing",
    witness=seen(
        lambda s: _done(s.put_document("a", "tasks", "t1", 1, tags={"owner": "", "state": "open"})),
        lambda s: the("tags", _listed_one(s.load_document("a", "tasks", "t1"))),
        lambda s: the("key", s.query_documents("tasks", {"owner": ""})),
    ),
)
class IbisLosesEmptyTags(Wrapper):
    """Stores a document without those of its tags whose text is empty."""

    __slots__ = ()

    async def put_document(
        self, agent_id: str, collection: str, key: str, value: Any, *, tags: Any = None, **demands: Any
    ) -> Any:
        tags = _without_empty(tags)
        return await self.inner.put_document(agent_id, collection, key, value, tags=tags, **demands)

    async def write_documents(self, agent_id: str, documents: Any, **fence: Any) -> Any:
        return await self.inner.write_documents(agent_id, _all_without_empty(documents), **fence)

    async def save_turn(self, agent_id: str, *, documents: Any = (), **rest: Any) -> Any:
        return await self.inner.save_turn(agent_id, documents=_all_without_empty(documents), **rest)


@fault(
    "DOC-4",
    source="the idiom of Firestore and Firebase for prefixes: startAt(prefix).endAt(prefix + '\\uf8ff')",
    witness=seen(
        lambda s: _done(
            *(s.put_document("a", "files", f"doc {x}", 1) for x in ("1", "\u00e9", "\uff21", "\U0001f4cc"))
        ),
        lambda s: the("key", s.list_documents("a", "files", prefix="doc ")),
        lambda s: _count(s.list_document_keys("a", "files", prefix="doc ")),
    ),
)
class IbisEndsPrefixesAtF8FF(Wrapper):
    """Leaves documents out of a list by prefix in whose keys an emoji, or a letter from U+F8FF on, follows the prefix."""

    __slots__ = ()

    @staticmethod
    def ended(span: dict[str, Any]) -> dict[str, Any]:
        prefix, stop = span.get("prefix"), span.get("stop")
        if type(prefix) is not str or not prefix or len(prefix) > 100 or type(stop) not in (str, type(None)):
            return span
        end = f"{prefix}\uf8ff"
        return {**span, "stop": end if stop is None else min(stop, end)}

    async def list_documents(self, agent_id: str, collection: str, **span: Any) -> Any:
        return await self.inner.list_documents(agent_id, collection, **self.ended(span))

    async def list_document_keys(self, agent_id: str, collection: str, **span: Any) -> Any:
        return await self.inner.list_document_keys(agent_id, collection, **self.ended(span))

    def iter_documents(self, agent_id: str, collection: str, **span: Any) -> Any:
        return self.inner.iter_documents(agent_id, collection, **self.ended(span))


# --- operations, locks, forks -----------------------------------------------------------------------------------------


@fault(
    "OPS-2",
    source="ListObjectsV2 of S3 returns 1,000 keys, and the check does not ask for the next ones",
    witness=lambda ctx: _checks_many(ctx),
)
class IbisChecksTheFirstThousandAgents(Wrapper):
    """Looks, in a check of the whole store, at the first 1,000 agents only."""

    __slots__ = ()

    async def first(self) -> set[str]:
        return set(await _engine(self.inner).stored_ids(None, 1_000))

    async def check_consistency(self, agent_id: Any = None, **progress: Any) -> Any:
        result = await self.inner.check_consistency(agent_id, **progress)
        if agent_id is not None or result.agents_checked <= 1_000:
            return result
        first = await self.first()
        issues = tuple(issue for issue in result.issues if issue.agent_id in first)
        return replace(result, consistent=not issues, issues=issues, agents_checked=1_000)

    async def iter_consistency(self, agent_id: Any = None, **progress: Any) -> AsyncIterator[Any]:
        first = await self.first() if agent_id is None else {agent_id}
        async for issue in self.inner.iter_consistency(agent_id, **progress):
            if issue.agent_id in first or len(first) < 1_000:
                yield issue


@fault(
    "LOCK-3",
    source="UPDATE locks SET expires_at = expires_at + ? as the renewal, where the database's now() + ? was meant",
    witness=lambda ctx: _renews_often(ctx),
)
class IbisAddsRenewalsUp(MemoryLayer):
    """Holds a lease that was renewed several times for the sum of its times."""

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        held = self.space.leases.get(agent_id)
        is_renewed = await super().renew_lease(agent_id, fence, ttl_ms)
        if is_renewed and held is not None:
            self.space.leases[agent_id] = (fence, held[1] + ttl_ms / 1000)
        return is_renewed


@fault(
    "FORK-4",
    "TC-2",
    source="{call.id: call for call in calls}, to look up the calls that the messages of the fork use",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.append_messages("a", [Message("assistant", [ToolUseBlock("call_0", "search", {})])] * 2),
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0, result=n) for n in (1, 2)]),
        lambda s: s.fork("a", "b", length=2),
        lambda s: the("result", s.load_tool_call_records("b")),
    ),
)
class IbisForksOneCallForEachId(Wrapper):
    """Gives a fork with a part of the messages only the last tool call of each id."""

    __slots__ = ()

    async def fork(self, agent_id: str, new_id: Any = None, **cut: Any) -> str:
        child: str = await self.inner.fork(agent_id, new_id, **cut)
        if cut.get("length") is not None or cut.get("snapshot_id") is not None:
            stored = await _engine(self.inner).outline(child, ListKind.TOOL_CALLS)
            if len({key for _, _, _, key in stored.rows}) < stored.count:
                by_id = {call.id: call for call in await self.inner.load_tool_call_records(child)}
                await self.inner.save_tool_call_records(child, [*by_id.values()])
        return child


# --- witnesses --------------------------------------------------------------------------------------------------------


def _long_window(window_id: str, after: int) -> Any:
    return samples.window(window_id, samples.T0 + after).replace(messages=talk("x" * 600_000))


async def _done(*puts: Any) -> None:
    for put in puts:
        await put


async def _all(found: Any) -> list[Any]:
    return [item async for item in found]


async def _count(records: Any) -> int:
    return len(await records)


async def _seqs(events: Any) -> list[int]:
    return [event.bookmark.seq async for event in events]


async def _listed(values: Any) -> list[Any]:
    return list(await values)


async def _listed_one(value: Any) -> list[Any]:
    return [await value]


async def _some(values: Any, number: int) -> list[Any]:
    return list(await values)[:number]


async def _ends(messages: Any) -> list[str]:
    return [message.text[:2] for message in await messages]


async def _metadata(info: Any) -> Any:
    return (await info).metadata


async def _reads_backwards(ctx: Context) -> object:
    other: Any = await ctx.another()
    await ctx.store.save_messages("a", samples.messages(250))
    found: list[int] = []
    async for message in ctx.store.read_messages("a", reverse=True):
        found.append(message.position)
        if len(found) == 50:
            await other.append_messages("a", talk("x", "y", "z"))
    return len(found), len(set(found))


async def _loads_while_saving(ctx: Context) -> object:
    other: Any = await ctx.another()

    async def save(name: str) -> None:
        await other.save_tool_call_records("a", [samples.tool_call(i, name=name) for i in range(2_500)])

    await save("v0")
    is_mixed = False
    for i in range(1, 4):
        saving = asyncio.ensure_future(save(f"v{i}"))
        while not saving.done():
            is_mixed |= len({call.name for call in await ctx.store.load_tool_call_records("a")}) > 1
            await asyncio.sleep(0)
        await saving
    return is_mixed


async def _deletes_many(ctx: Context) -> object:
    for i in range(1_100):
        await ctx.store.save_info(f"a{i}", samples.info(f"a{i}"))
    return await ctx.store.delete_many(template_id="assistant"), len(await ctx.store.list())


async def _appends_behind_an_import(ctx: Context) -> object:
    await ctx.store.append_messages("a", talk("x", "y"))
    records: Any = await ctx.store.load_agent("a")
    far = 4_102_444_800_000
    await ctx.store.import_agent("b", records.replace(message_times=[far, far + 5]))
    await ctx.store.append_messages("b", talk("z"))
    times = [message.created_at async for message in ctx.store.read_messages("b")]
    return times == sorted(times)


async def _checks_many(ctx: Context) -> object:
    for i in range(1_001):
        await ctx.store.append_messages(f"a{i:04}", talk("x"))
    use = Message("assistant", [TextBlock("now"), ToolUseBlock("call_0", "search", {})])
    await ctx.store.append_messages("a1000", [use])
    found = await ctx.store.check_consistency()
    return [(issue.code, issue.agent_id) for issue in found.issues]


async def _is_free(store: Any, agent_id: str) -> bool:
    try:
        await (await store.acquire_agent_lock(agent_id)).release()
    except Exception:
        return False
    return True


async def _renews_often(ctx: Context) -> object:
    other: Any = await ctx.another()
    lease = await ctx.store.acquire_agent_lock("a", ttl_ms=400)
    for _ in range(10):
        await lease.renew()
    await asyncio.sleep(0.8)
    return await _is_free(other, "a")
