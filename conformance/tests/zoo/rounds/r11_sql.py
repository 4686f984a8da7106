"""Stores over SQL and document databases, each with one thing wrong as such systems invite it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnSqlite
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import happened, seen, talk, the
from kode_core.batch import (
    Applied,
    Batch,
    Doc,
    DocKind,
    DocWrite,
    EventRange,
    Fence,
    ListKind,
)
from kode_core.codec import Body, decode, digest, encode
from kode_core.errors import KodeError, StoreClosedError
from kode_core.ids import check_agent_id
from kode_core.layers import Layer
from kode_core.model import (
    AgentInfo,
    HistoryWindow,
    Message,
    TextBlock,
    TodoItem,
    TodoSnapshot,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
)
from kode_core.store import EngineStore, kinds, rows

T0 = samples.T0


def _parsed(text: str) -> Any:
    """The JSON object, None if the text is damaged: the next reader reports the damage."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


# --- values -----------------------------------------------------------------------------------------------------------


def _noted(**fields: Any) -> TodoSnapshot:
    return TodoSnapshot(todos=[TodoItem(id="t", title="x", created_at=T0, updated_at=T0, **fields)], updated_at=T0)


@fault(
    "VAL-3",
    "VAL-1",
    "TODO-1",
    source="Oracle: a VARCHAR2 that is '' is NULL, and the ORM gives None for it",
    witness=seen(lambda s: s.save_todos("a", _noted(notes="", assignee="")), lambda s: s.load_todos("a")),
)
class SqEmptyNotesAreNull(EngineStore):
    """Gives None for the notes and the assignee of a todo that were saved as empty strings."""

    async def load_todos(self, agent_id: str) -> Any:
        found = await super().load_todos(agent_id)
        if found is None:
            return None
        todos = [t.replace(notes=t.notes or None, assignee=t.assignee or None) for t in found.todos]
        return found.replace(todos=tuple(todos))


@fault(
    "VAL-1",
    "HIS-1",
    source="SQLite: REAL affinity turns the integer 1 into 1.0 when it is stored",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression().replace(ratio=1)),
        lambda s: s.load_compression_records("a"),
    ),
)
class SqRatioIsReal(EngineStore):
    """Gives the ratio of a compression record as a float, also where it was saved as an int."""

    async def load_compression_records(self, agent_id: str) -> Any:
        found = await super().load_compression_records(agent_id)
        return [r.replace(ratio=float(r.ratio)) if abs(r.ratio) < 2**53 else r for r in found]


def _jsonb(value: Any, depth: int = 0) -> Any:
    """As PostgreSQL's jsonb and MySQL's JSON keep objects: shorter keys first."""
    if depth > 101:
        return value
    if type(value) is list:
        return [_jsonb(item, depth + 1) for item in value]
    if type(value) is dict and all(type(key) is str for key in value):
        keys = sorted(value, key=lambda k: (len(k), k.encode("utf-8", "surrogatepass")))
        return {key: _jsonb(value[key], depth + 1) for key in keys}
    return value


def _with_jsonb(records: Any) -> Any:
    if not isinstance(records, (list, tuple)):
        return records
    found = []
    for r in records:
        if isinstance(r, ToolCallRecord) and type(getattr(r.approval, "meta", None)) is dict:
            r = r.replace(approval=r.approval.replace(meta=_jsonb(r.approval.meta)))
        found.append(r)
    return found


def _key_order(calls: Any) -> Any:
    return [list(call.approval.meta) for call in calls]


async def _approval_keys(s: Any) -> Any:
    call = samples.approved_call()
    call = call.replace(approval=call.approval.replace(meta={"zeta": 1, "a": 2}))
    await s.save_tool_call_records("a", [call])
    return _key_order(await s.load_tool_call_records("a"))


@fault(
    "VAL-1",
    "TC-1",
    source="PostgreSQL jsonb and MySQL JSON: keys of an object are sorted by length, then bytes",
    witness=seen(_approval_keys),
)
class SqJsonbApprovalMeta(EngineStore):
    """Sorts the keys of the meta of a tool call's approval by their length, the rest being kept as text."""

    async def save_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await super().save_tool_call_records(agent_id, _with_jsonb(records), fence=fence)

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await super().upsert_tool_call_records(agent_id, _with_jsonb(records), fence=fence)

    async def save_turn(self, agent_id: str, **given: Any) -> None:
        for name in ("tool_calls", "upsert_tool_calls"):
            if name in given:
                given[name] = _with_jsonb(given[name])
        await super().save_turn(agent_id, **given)


# --- identity ---------------------------------------------------------------------------------------------------------


@fault(
    "ID-4",
    "ID-1",
    "HIS-1",
    source="MySQL PAD SPACE collations and SQL Server: 'w' = 'w ' in a primary key",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w")),
        lambda s: s.save_history_window("a", samples.window("w ", T0 + 1)),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class SqPaddedWindowIds(Layer):
    """Takes two ids of history windows for the same when they differ only in spaces at the end."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([self._padded(batch) for batch in batches])

    def _padded(self, batch: Batch) -> Batch:
        docs = []
        for write in batch.docs:
            key = write.key.rstrip(" ")
            if write.kind == DocKind.WINDOWS and key != write.key:
                write = DocWrite(write.kind, key, None if write.doc is None else replace(write.doc, key=key))
            docs.append(write)
        return replace(batch, docs=tuple(docs))


async def _lock_two_long(ctx: Context) -> Any:
    first, second = "tenant-" + "x" * 60 + "-1", "tenant-" + "x" * 60 + "-2"
    other = await ctx.another()
    async with ctx.store.acquire_agent_lock(first):
        return await seen(lambda s: _locked(other, second))(ctx)


async def _locked(s: Any, agent_id: str) -> str:
    async with s.acquire_agent_lock(agent_id):
        return "held"


@fault(
    "ID-2",
    "LOCK-1",
    "OPS-13",
    source="MySQL GET_LOCK: names have at most 64 characters, so the id is cut to fit",
    witness=_lock_two_long,
    errors=True,
)
class SqLockNamesOf64(Layer):
    """Lets agents whose ids have the same first 64 characters share one lock."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.names: dict[tuple[str, Fence], Fence] = {}

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        token = await super().acquire_lease(agent_id, owner, ttl_ms)
        if token is None or len(agent_id) < 64:
            return token
        name = await super().acquire_lease("lock:" + agent_id[:64], owner, ttl_ms)
        fence = Fence(owner, token)
        if name is None:
            await super().release_lease(agent_id, fence)
            return None
        self.names[agent_id, fence] = Fence(owner, name)
        return token

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        name = self.names.get((agent_id, fence))
        if name is not None:
            await super().renew_lease("lock:" + agent_id[:64], name, ttl_ms)
        return await super().renew_lease(agent_id, fence, ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        name = self.names.pop((agent_id, fence), None)
        if name is not None:
            await super().release_lease("lock:" + agent_id[:64], name)
        await super().release_lease(agent_id, fence)


# --- messages ---------------------------------------------------------------------------------------------------------


def _plain_texts(message: Any) -> Any:
    if type(message) is not Message or message.metadata or message.extra or not isinstance(message.content, tuple):
        return None
    if not all(type(b) is TextBlock and not b.meta and not b.extra and type(b.text) is str for b in message.content):
        return None
    return (message.role, *(b.text for b in message.content)) if type(message.role) is str else None


def _once(messages: Any) -> Any:
    if not isinstance(messages, (list, tuple)):
        return messages
    found, known = [], set()
    for message in messages:
        key = _plain_texts(message)
        if key is None or key not in known:
            found.append(message)
        known.add(key)
    return found


@fault(
    "MSG-3",
    "MSG-2",
    source="INSERT IGNORE under UNIQUE (agent, hash of the content, created_at), so that a retry is harmless",
    witness=seen(lambda s: s.append_messages("a", talk("ok", "go on", "ok")), lambda s: s.load_messages("a")),
)
class SqIgnoresEqualRows(EngineStore):
    """Keeps only the first of several equal text messages of one append."""

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        await super().append_messages(agent_id, _once(messages), fence=fence)

    async def save_turn(self, agent_id: str, **given: Any) -> None:
        if "append" in given:
            given["append"] = _once(given["append"])
        await super().save_turn(agent_id, **given)


def _written() -> int:
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("wchar"))


async def _cost_of_append(ctx: Context) -> Any:
    await ctx.store.save_messages("a", talk(*("x" * 4000 + str(i) for i in range(500))))
    before = _written()
    await ctx.store.append_messages("a", talk("one more"))
    return _written() - before > 1_000_000


@fault(
    "MSG-5",
    source="a FULLTEXT column (or an embedded array, rewritten by $set) with the whole conversation in the agent's row",
    on=OnSqlite,
    witness=_cost_of_append,
)
class SqMirrorsTheTranscript(Layer):
    """Writes with every append a copy of the whole conversation, for the full-text search, next to the rows."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([await self._mirrored(batch) for batch in batches])

    async def _mirrored(self, batch: Batch) -> Batch:
        write = batch.messages
        if write is None or not write.append or write.is_editing:
            return batch
        stored = await self.inner.rows(batch.agent_id, ListKind.MESSAGES)
        texts = [body.text for body, _ in stored.rows] + [row.body.text for row in write.append]
        text = "[" + ",".join(texts) + "]"
        body = Body(text, digest(text.encode()))
        doc = DocWrite(DocKind.LAYER, "transcript", Doc("transcript", 0, body))
        return replace(batch, docs=(*batch.docs, doc))


@fault(
    "MSG-6",
    source="MySQL without strict mode: a SMALLINT counter stays at 32,767 with a warning",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_messages("a", [samples.message()] * 32_768),
        lambda s: _count_of(s),
    ),
)
class SqCountIsSmall(EngineStore):
    """Says that an agent has 32,767 messages when it has more."""

    async def load_info(self, agent_id: str) -> Any:
        info = await super().load_info(agent_id)
        return info and info.replace(message_count=min(info.message_count, 32_767))

    async def query_sessions(self, **filters: Any) -> Any:
        page = await super().query_sessions(**filters)
        page[:] = [replace(s, message_count=min(s.message_count, 32_767)) for s in page]
        return page


async def _count_of(s: Any) -> Any:
    return (await s.load_info("a")).message_count


# --- tool calls, turns ------------------------------------------------------------------------------------------------


async def _upsert_many(ctx: Context) -> Any:
    calls = [samples.tool_call(i, state="EXECUTING") for i in range(1000)]
    await ctx.store.save_tool_call_records("a", calls)
    await ctx.reopen()
    await ctx.store.upsert_tool_call_records("a", [samples.tool_call(i) for i in range(1000)])
    return [(c.id, c.state) for c in await ctx.store.load_tool_call_records("a")]


@fault(
    "TC-3",
    "VAL-4",
    source="SQLite: at most 999 variables in an IN (...), so only so many ids are looked up",
    witness=_upsert_many,
)
class SqLooksUp999Ids(Layer):
    """Takes the tool call records of an upsert behind the 999th for new ones when it has to look up their ids."""

    async def outline(self, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Any:
        return await super().outline(agent_id, kind, None if keys is None else keys[:999])


@fault(
    "TURN-1",
    "VAL-2",
    source="events go through an outbox table that is filled after the transaction of the turn",
    witness=seen(
        lambda s: s.save_turn("a", append=talk("x"), events=[samples.event(1, bad=float("nan"))]),
        lambda s: s.load_messages("a"),
    ),
)
class SqOutboxAfterTheTurn(EngineStore):
    """Commits the events of a turn after the rest, which stays when they are refused."""

    async def save_turn(self, agent_id: str, *, events: Any = (), **given: Any) -> None:
        await super().save_turn(agent_id, **given)
        if events:
            await self._append(agent_id, await rows.event_writes(events), given.get("fence"))


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-6",
    source="SELECT MAX(seq), MAX(timestamp) FROM events: each of another row",
    witness=seen(
        lambda s: s.append_events("a", [_late(1, T0 + 900), _late(2, T0 + 5)]), lambda s: s.last_bookmark("a")
    ),
)
class SqMaxOfEachColumn(EngineStore):
    """Gives as the last bookmark the highest seq with the latest time of any event."""

    async def last_bookmark(self, agent_id: str) -> Any:
        last = await super().last_bookmark(agent_id)
        if last is None:
            return None
        latest, after = last.timestamp, None
        while page := await self._context.engine.events(agent_id, EventRange(order="offset", after=after, limit=500)):
            events = [_parsed(row.body.text) for row in page]
            latest = max([latest, *(event["bookmark"]["timestamp"] for event in events if event is not None)])
            after = (0, page[-1].offset)
        return last.replace(timestamp=latest)


def _late(seq: int, timestamp: int) -> Any:
    event = samples.event(seq)
    return event.replace(bookmark=event.bookmark.replace(timestamp=timestamp))


def _numeric(value: Any) -> Any:
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is list:
        return [_numeric(item) for item in value]
    return {key: _numeric(item) for key, item in value.items()} if type(value) is dict else value


@fault(
    "EVT-4",
    "EVT-1",
    "EVT-3",
    source="PostgreSQL: '1'::jsonb = '1.0'::jsonb, and the order of keys does not count",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, cost=1)),
        lambda s: s.append_event("a", samples.event(1, cost=1.0)),
        lambda s: s.read_events("a"),
    ),
)
class SqJsonbEqualEvents(Layer):
    """Takes an event for the identical one of the same bookmark when only the type of a number or the order of keys
    differs.
    """

    async def commit(self, batches: Any) -> Any:
        return await super().commit([await self._same(batch) for batch in batches])

    async def _same(self, batch: Batch) -> Batch:
        events: list[Any] = []
        for event in batch.events:
            rivals = [other.body for other in events if other.seq == event.seq]
            if event.seq > -(2**63):
                span = EventRange(since_seq=event.seq - 1, limit=20)
                stored = await self.inner.events(batch.agent_id, span)
                rivals = [row.body for row in stored if row.seq == event.seq] + rivals
            if rivals and all(body.digest != event.body.digest for body in rivals):
                mine = json.dumps(_numeric(_parsed(event.body.text)), sort_keys=True)
                for body in rivals:
                    if json.dumps(_numeric(_parsed(body.text)), sort_keys=True) == mine:
                        event = replace(event, body=body)
                        break
            events.append(event)
        return replace(batch, events=tuple(events))


@fault(
    "EVT-5",
    "EVT-3",
    source="keyset pages with WHERE seq > :last in place of (seq, offset) > (:last, :offset)",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(7, i=i) for i in range(70)]),
        lambda s: s.read_events("a"),
    ),
)
class SqKeysetOnSeq(Layer):
    """Skips the events that have the seq of the last one of a page and stand behind it."""

    async def events(self, agent_id: str, span: EventRange) -> Any:
        if span.order == "seq" and span.after is not None:
            since = span.after[0] if span.since_seq is None else max(span.since_seq, span.after[0])
            span = replace(span, after=None, since_seq=since)
        return await super().events(agent_id, span)


# --- todos, history, media, snapshots ---------------------------------------------------------------------------------


def _unique(todos: Any) -> Any:
    if type(todos) is not TodoSnapshot or not isinstance(todos.todos, tuple):
        return todos
    if not all(type(item) is TodoItem and type(item.id) is str for item in todos.todos):
        return todos
    return todos.replace(todos=tuple({item.id: item for item in todos.todos}.values()))


@fault(
    "TODO-1",
    "VAL-1",
    source="a table of todos with PRIMARY KEY (agent, todo_id) and INSERT OR REPLACE",
    witness=seen(lambda s: s.save_todos("a", _twice()), lambda s: s.load_todos("a")),
)
class SqTodoIdIsKey(EngineStore):
    """Keeps only the last of the todos of a list that have the same id."""

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await super().save_todos(agent_id, _unique(snapshot), fence=fence)

    async def save_turn(self, agent_id: str, *, todos: Any = None, **given: Any) -> None:
        await super().save_turn(agent_id, todos=_unique(todos), **given)


def _twice() -> Any:
    both = samples.todos("x", "y")
    return both.replace(todos=tuple(item.replace(id="t") for item in both.todos))


@fault(
    "HIS-2",
    source="SQL Server, Java and JavaScript order strings by UTF-16 code units: U+1F600 before U+FF21",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("\uff21.md")),
        lambda s: s.save_recovered_file("a", samples.recovered("\U0001f600.md")),
        lambda s: the("path", s.load_recovered_files("a")),
    ),
)
class SqUtf16Paths(EngineStore):
    """Orders recovered files of one time by the UTF-16 code units of their paths."""

    async def load_recovered_files(self, agent_id: str) -> Any:
        found = await super().load_recovered_files(agent_id)
        return sorted(found, key=lambda file: (file.timestamp, file.path.encode("utf-16-be")))


@fault(
    "HIS-1",
    "VAL-1",
    source="a child table of events that a relationship loads with order_by=seq",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window().replace(events=tuple(happened(3, 1, 2)))),
        lambda s: s.load_history_windows("a"),
    ),
)
class SqWindowEventsBySeq(EngineStore):
    """Gives the events of a history window in the order of their seq, whatever order they were in."""

    async def load_history_windows(self, agent_id: str) -> list[HistoryWindow]:
        found = await super().load_history_windows(agent_id)
        return [w.replace(events=tuple(sorted(w.events, key=lambda e: e.bookmark.seq))) for w in found]


def _concat(paths: Sequence[str]) -> tuple[str, ...]:
    kept, room = [], 1024
    for path in paths:
        if room <= 0:
            break
        kept.append(path[:room])
        room -= len(path) + 1
    return tuple(kept)


@fault(
    "HIS-1",
    "VAL-1",
    "VAL-2",
    source="MySQL: GROUP_CONCAT gives at most group_concat_max_len = 1024 characters, with a warning",
    witness=seen(
        lambda s: s.save_compression_record(
            "a", samples.compression().replace(recovered_files=tuple(f"src/module_{i:04}.py" for i in range(60)))
        ),
        lambda s: s.load_compression_records("a"),
    ),
)
class SqGroupConcat(EngineStore):
    """Cuts the list of recovered files of a compression record at 1,024 characters in all."""

    async def load_compression_records(self, agent_id: str) -> Any:
        found = await super().load_compression_records(agent_id)
        return [r.replace(recovered_files=_concat(r.recovered_files)) for r in found]


@fault(
    "MED-1",
    "VAL-1",
    source="MongoDB from a shell or driver that makes doubles of numbers, Elasticsearch's aggregations: 53 bits",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media().replace(size_bytes=2**53 + 1)]),
        lambda s: s.load_media_cache("a"),
    ),
)
class SqSizeIsDouble(EngineStore):
    """Gives sizes of media beyond 2**53 as the nearest double has them."""

    async def load_media_cache(self, agent_id: str) -> Any:
        return [r.replace(size_bytes=int(float(r.size_bytes))) for r in await super().load_media_cache(agent_id)]


@fault(
    "SNAP-1",
    source="MongoDB: the first batch of a cursor has 101 documents, and nobody calls getMore",
    witness=seen(lambda s: _many_snapshots(s), lambda s: the("id", s.list_snapshots("a"))),
)
class SqFirstBatch(EngineStore):
    """Lists the newest 101 snapshots of an agent and no more."""

    async def list_snapshots(self, agent_id: str) -> Any:
        return (await super().list_snapshots(agent_id))[:101]


async def _many_snapshots(s: Any) -> None:
    for i in range(103):
        await s.save_snapshot("a", samples.snapshot(f"s{i:03}", T0 + i))


# --- info, lifecycle --------------------------------------------------------------------------------------------------


@fault(
    "INFO-1",
    "VAL-1",
    "QRY-2",
    source="ON CONFLICT DO UPDATE SET with all columns but created_at; an ORM's updatable=False",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_info("a", samples.info("a", created_at=T0 + 5)),
        lambda s: s.load_info("a"),
    ),
)
class SqCreatedAtIsNotUpdated(Layer):
    """Keeps the created_at of the first info when another one replaces it."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([await self._kept(batch) for batch in batches])

    async def _kept(self, batch: Batch) -> Batch:
        if batch.info is None or batch.delete:
            return batch
        summary = await self.inner.summary(batch.agent_id)
        if summary is None or summary.info is None or summary.info.created_at == batch.info.created_at:
            return batch
        info = decode(AgentInfo, batch.info.body, "info").replace(created_at=summary.info.created_at)
        return replace(
            batch, info=replace(batch.info, created_at=summary.info.created_at, body=encode(AgentInfo, info, "info"))
        )


@fault(
    "LIFE-3",
    "LIFE-4",
    "MSG-7",
    source="foreign keys with ON DELETE CASCADE from the row of the agent, which there is only with info",
    witness=seen(
        lambda s: s.append_messages("a", talk("x")),
        lambda s: s.append_events("a", happened(1)),
        lambda s: s.delete("a"),
        lambda s: s.load_messages("a"),
        lambda s: s.last_bookmark("a"),
    ),
)
class SqCascadesFromInfo(Layer):
    """Deletes nothing of an agent that has no info."""

    async def commit(self, batches: Any) -> Any:
        outcomes = []
        for batch in batches:
            if batch.delete and batch.is_empty and batch.fence is None:
                summary = await self.inner.summary(batch.agent_id)
                if summary is None or summary.info is None:
                    outcomes.append(Applied())
                    continue
            outcomes += await super().commit([batch])
        return outcomes


@fault(
    "LIFE-5",
    "QRY-2",
    source="DELETE ... WHERE created_at BETWEEN :after AND :before, which takes in both ends",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", created_at=T0)),
        lambda s: s.save_info("b", samples.info("b", created_at=T0 + 1)),
        lambda s: s.delete_many(created_before=T0 + 1),
        lambda s: s.list(),
    ),
)
class SqDeletesBetween(EngineStore):
    """Deletes with ``delete_many`` also the sessions that were created or updated exactly at *before*."""

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        for name in ("created_before", "updated_before"):
            if type(filters.get(name)) is int:
                filters[name] += 1
            elif hasattr(filters.get(name), "utcoffset"):
                filters[name] += timedelta(milliseconds=1)
        return await super().delete_many(progress=progress, **filters)


# --- queries ----------------------------------------------------------------------------------------------------------


@fault(
    "QRY-2",
    "QRY-5",
    "QRY-6",
    source="JOIN blocks ON ... WHERE blocks.type = :type, without DISTINCT",
    witness=seen(
        lambda s: s.save_messages("a", [Message("user", [TextBlock("x"), TextBlock("y")]), samples.message()]),
        lambda s: _positions(s),
    ),
)
class SqJoinsBlocks(Layer):
    """Finds a message by its content type once for each block of that type."""

    async def find_rows(self, query: Any) -> Any:
        found = await super().find_rows(query)
        wanted = dict(query.where).get("content_type")
        if wanted is None:
            return found
        joined = []
        for row in found:
            blocks = (_parsed(row.body.text) or {}).get("content") or []
            times = sum(isinstance(b, dict) and b.get("type") == wanted for b in blocks)
            joined += [row] * max(1, times)
        found[:] = joined[: query.limit]
        return found


async def _positions(s: Any) -> Any:
    return [m.position for m in await s.query_messages(content_type="text", agent_id="a")]


async def _equal_counts(s: Any) -> Any:
    for i in range(5):
        await s.save_info(f"a{i}", samples.info(f"a{i}"))
        await s.save_messages(f"a{i}", samples.messages(2))
    found, cursor = [], None
    while True:
        page = await s.query_sessions(sort_by="message_count", limit=2, cursor=cursor)
        found += [session.agent_id for session in page]
        cursor = page.next_cursor
        if cursor is None:
            return found


@fault(
    "QRY-5",
    "QRY-3",
    "QRY-6",
    source="keyset pages with WHERE message_count < :last, which is right only for unique columns",
    witness=seen(_equal_counts),
)
class SqKeysetOnCount(Layer):
    """Leaves out behind a cursor by message_count the sessions that have as many messages as the last one shown."""

    async def find_sessions(self, query: Any) -> Any:
        if query.sort_by == "message_count" and query.after is not None:
            edge = "" if query.descending else "\U0010ffff" * 64
            query = replace(query, after=(query.after[0], edge))
        return await super().find_sessions(query)


@fault(
    "QRY-7",
    source="GROUP BY in MySQL's utf8mb4_0900_ai_ci or SQL Server's CI_AS: one group for search and Search",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0), samples.tool_call(1, name="Search")]),
        lambda s: s.aggregate_stats("a"),
    ),
)
class SqGroupsByFoldedName(Layer):
    """Counts tool calls together whose names differ only in upper and lower case."""

    async def stats(self, agent_id: str) -> Any:
        stats = await super().stats(agent_id)
        first: dict[str, str] = {}
        counts: dict[str, int] = {}
        for name, count in stats.tool_calls_by_name.items():
            shown = first.setdefault(name.lower(), name)
            counts[shown] = counts.get(shown, 0) + count
        return replace(stats, tool_calls_by_name=counts)


# --- operations -------------------------------------------------------------------------------------------------------


async def _after_close(ctx: Context) -> Any:
    store = await ctx.another()
    await store.save_snapshot("a", samples.snapshot())
    await store.load_snapshot("a", "sfp-1")
    await ctx.close(store)
    try:
        return await store.load_snapshot("a", "sfp-1")
    except StoreClosedError:
        return "closed"


@fault(
    "OPS-5",
    source="the identity map of an ORM's session, which is looked into before the connection is asked for",
    witness=_after_close,
)
class SqIdentityMap(EngineStore):
    """Gives the snapshot that was loaded last also after the store was closed."""

    last: Any = None

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        try:
            found = await super().load_snapshot(agent_id, snapshot_id)
        except StoreClosedError:
            if self.last is None or self.last[0] != (agent_id, snapshot_id):
                raise
            return self.last[1]
        self.last = None if found is None else ((agent_id, snapshot_id), found)
        return found


def _used(call_id: str) -> Message:
    return Message("assistant", [ToolUseBlock(id=call_id, name="f", input={})])


def _result(call_id: str) -> Message:
    return Message("user", [ToolResultBlock(tool_use_id=call_id, content="x")])


@fault(
    "OPS-2",
    "TC-2",
    source="LEFT JOIN uses ON uses.id = results.tool_use_id, without the agent in the condition",
    witness=seen(
        lambda s: s.save_messages("a", [_result("call_0")]),
        lambda s: s.save_messages("b", [_used("call_0"), _result("call_0")]),
        lambda s: _codes(s),
    ),
)
class SqPairsOverAllAgents(EngineStore):
    """Finds nothing wrong with a tool result without its use when another agent has a use of that id."""

    async def _uses_elsewhere(self, agent_id: str) -> set[str]:
        engine, found, after = self._context.engine, set(), None
        while ids := await engine.stored_ids(after, 500):
            for other in ids:
                if other != agent_id:
                    for body, _ in (await engine.rows(other, ListKind.MESSAGES)).rows:
                        found |= set(_use_ids(body.text))
            after = ids[-1]
        return found

    async def _is_told(self, issue: Any) -> bool:
        if issue.code != "result_without_use" or "not asked for" not in issue.message:
            return True
        return not any(repr(i) in issue.message for i in await self._uses_elsewhere(issue.agent_id))

    async def check_consistency(self, agent_id: str | None = None, *, progress: Any = None) -> Any:
        result = await super().check_consistency(agent_id, progress=progress)
        issues = tuple([issue for issue in result.issues if await self._is_told(issue)])
        return replace(result, issues=issues, consistent=not issues)

    def iter_consistency(self, agent_id: str | None = None, *, progress: Any = None) -> AsyncIterator[Any]:
        found = super().iter_consistency(agent_id, progress=progress)

        async def told() -> AsyncIterator[Any]:
            async for issue in found:
                if await self._is_told(issue):
                    yield issue

        return told()


def _use_ids(text: str) -> list[str]:
    try:
        blocks = json.loads(text)["content"]
        return [str(b["id"]) for b in blocks if b.get("type") == "tool_use"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


async def _codes(s: Any) -> Any:
    return sorted((issue.agent_id, issue.code) for issue in (await s.check_consistency()).issues)


# --- locks and forks --------------------------------------------------------------------------------------------------


async def _waits(ctx: Context) -> Any:
    other = await ctx.another()
    await other.acquire_agent_lock("a", ttl_ms=300)
    try:
        await (await ctx.store.acquire_agent_lock("a", wait_ms=950)).release()
    except Exception as exc:
        return type(exc).__name__
    return "held"


@fault(
    "LOCK-2",
    source="MySQL GET_LOCK(name, timeout) and the command timeouts of ADO.NET: whole seconds",
    witness=_waits,
)
class SqWaitsWholeSeconds(EngineStore):
    """Waits for a held lock only the whole seconds of ``wait_ms``, and not at all for less than one."""

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> Any:
        if type(wait_ms) is int and wait_ms > 0:
            wait_ms -= wait_ms % 1000
        return super().acquire_agent_lock(agent_id, ttl_ms, wait_ms)


async def _late_delete(ctx: Context) -> Any:
    await ctx.store.save_info("a", samples.info("a"))
    lease = await ctx.store.acquire_agent_lock("a", ttl_ms=60)
    await asyncio.sleep(0.15)
    try:
        await ctx.store.delete("a", fence=lease)
    except Exception as exc:
        return type(exc).__name__, await ctx.store.exists("a")
    return "deleted", await ctx.store.exists("a")


@fault(
    "LOCK-5",
    source="the condition on the token is in every UPDATE and INSERT, but DELETE has a statement of its own",
    witness=_late_delete,
)
class SqDeletesUnfenced(Layer):
    """Deletes an agent also under a lease that has ended."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([replace(b, fence=None) if b.delete else b for b in batches])


async def _media_of_fork(ctx: Context) -> Any:
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_media_cache("a", [samples.media("k1")])
    (child,) = await ctx.store.batch_fork("a", 1)
    await ctx.store.save_media_cache("a", [samples.media("k2")])
    return await the("key", ctx.store.load_media_cache(child))


@fault(
    "FORK-2",
    "FORK-1",
    source="copy on write: the rows of the fork are a view on the parent's until the fork writes",
    witness=_media_of_fork,
)
class SqForksShareMedia(EngineStore):
    """Shows the media cache of a fork's parent as it is now until the fork has saved one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.parents: dict[str, str] = {}

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        made = await super().batch_fork(agent_id, count)
        self.parents.update(dict.fromkeys(made, self.parents.get(agent_id, agent_id)))
        return made

    async def load_media_cache(self, agent_id: str) -> Any:
        return await super().load_media_cache(self.parents.get(agent_id, agent_id))

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await super().save_media_cache(agent_id, records, fence=fence)
        self.parents.pop(agent_id, None)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        self.parents.pop(agent_id, None)


@fault(
    "DUR-1",
    "QRY-8",
    "HIS-2",
    source="MongoDB with write concern w=0, an asynchronous insert buffer as ClickHouse's wait_for_async_insert=0",
    witness=seen(
        lambda s, t: s.save_recovered_file("a", samples.recovered()),
        lambda s, t: t.load_recovered_files("a"),
        lambda s, t: s.load_recovered_files("a"),
    ),
)
class SqUnacknowledged(EngineStore):
    """Returns from saving a recovered file before it is written, a twentieth of a second later."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.buffered: set[asyncio.Task[None]] = set()

    async def _flush(self) -> None:
        if self.buffered:
            await asyncio.wait(list(self.buffered))

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        try:
            check_agent_id(agent_id)
            await kinds.RECOVERED.write(file)
            is_sound = not self._context.is_closed
        except KodeError:
            is_sound = False  # is refused as ever
        if not is_sound or self._locks.fence(agent_id, fence) is not None:
            return await super().save_recovered_file(agent_id, file, fence=fence)
        saved = super().save_recovered_file

        async def later() -> None:
            await asyncio.sleep(0.05)
            await saved(agent_id, file)

        task = asyncio.create_task(later())
        self.buffered.add(task)
        task.add_done_callback(self.buffered.discard)

    async def load_recovered_files(self, agent_id: str) -> Any:
        await self._flush()
        return await super().load_recovered_files(agent_id)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self._flush()
        await super().delete(agent_id, fence=fence)

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        await self._flush()
        return await super().delete_many(progress=progress, **filters)

    async def close(self) -> None:
        await self._flush()
        await super().close()
