"""Stores on managed cloud services, by one who knows the services' limits and defaults a little too late."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from contextvars import ContextVar
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN
from decimal import Context as DecimalContext
from typing import Any

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnJson, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import each, restart, seen, talk
from kode_core.batch import Applied, DocKind, Fence, ListKind
from kode_core.codec import encode
from kode_core.errors import InvalidArgumentError, InvalidValueError, StoreClosedError
from kode_core.layers import Layer
from kode_core.model import (
    AgentEvent,
    Bookmark,
    Message,
    Timeline,
    TodoItem,
    TodoSnapshot,
    ToolCallAuditEntry,
    ToolCallRecord,
    now_ms,
)
from kode_core.query import Page
from kode_core.store import EngineStore, kinds


async def _digests(store: Any, agent_id: Any, kind: ListKind) -> list[bytes]:
    """The digests of the records of a stored list; empty when the store has none."""
    with suppress(Exception):
        return [digest for _, digest, _, _ in (await store._context.engine.outline(agent_id, kind)).rows]
    return []


async def _keys(cls: type, records: Any) -> list[bytes]:
    """The same of records that are given; raises InvalidValueError."""
    found = []
    for i, record in enumerate(records):
        found.append(encode(cls, record, "record").digest)
        if i % 64 == 63:
            await asyncio.sleep(0)
    return found


# --- values -----------------------------------------------------------------------------------------------------------

_DYNAMODB_NUMBERS = DecimalContext(prec=38, rounding=ROUND_HALF_EVEN, Emax=126, Emin=-128)


def _to_38_digits(value: Any) -> Any:
    if type(value) is int and abs(value) >= 10**38 and abs(value) < 10**126:
        return int(_DYNAMODB_NUMBERS.create_decimal(value))
    if type(value) is dict:
        return {key: _to_38_digits(item) for key, item in value.items()}
    if type(value) is list:
        return [_to_38_digits(item) for item in value]
    return value


@fault(
    "VAL-1",
    "VAL-2",
    "SNAP-1",
    source="DynamoDB numbers have 38 significant digits; a Decimal context without the Inexact trap rounds to them",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot().replace(metadata={"n": [10**38 - 1, 10**38 + 1]})),
        lambda s: s.load_snapshot("a", "sfp-1"),
    ),
)
class DecimalContextOfSnapshotMetadata(Wrapper):
    """Rounds integers of more than 38 digits in the metadata of a snapshot."""

    async def save_snapshot(self, agent_id: str, snapshot: Any, **kw: Any) -> None:
        with suppress(AttributeError, RecursionError):
            if type(snapshot.metadata) is dict:
                snapshot = snapshot.replace(metadata=_to_38_digits(snapshot.metadata))
        await self.inner.save_snapshot(agent_id, snapshot, **kw)


_in_turn: ContextVar[bool] = ContextVar("_in_turn", default=False)


async def _two_turns(ctx: Any) -> object:
    while time.time() % 1 > 0.6:
        await asyncio.sleep(0.05)
    await ctx.store.save_turn("a", append=talk("x"))
    await asyncio.sleep(0.02)
    await ctx.store.save_turn("a", append=talk("y"))
    found = await ctx.store.query_messages(agent_id="a")
    return len({message.created_at for message in found})


@fault(
    "VAL-5",
    source="Cosmos DB stamps items with _ts, in whole seconds; a transactional batch takes its time from there",
    witness=_two_turns,
)
class StampsTurnsWithUnderscoreTs(EngineStore):
    """Gives the messages that save_turn writes the time in whole seconds."""

    def __init__(self, opener: Any, **options: Any) -> None:
        clock = options.pop("clock", now_ms)
        super().__init__(opener, clock=lambda: clock() // 1000 * 1000 if _in_turn.get() else clock(), **options)

    async def save_turn(self, agent_id: str, **kw: Any) -> None:
        token = _in_turn.set(True)
        try:
            await super().save_turn(agent_id, **kw)
        finally:
            _in_turn.reset(token)


@fault(
    "VAL-6",
    "VAL-1",
    source="a Firestore data converter (toFirestore) that lists the fields of the sub-objects one by one",
    witness=seen(
        lambda s: s.save_tool_call_records(
            "a", [samples.tool_call(audit_trail=[ToolCallAuditEntry("PENDING", 1, extra={"actor": "bob"})])]
        ),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class ConvertsAuditEntriesByField(Wrapper):
    """Drops the unknown fields of the entries of a tool call's audit trail when the whole list is saved."""

    async def save_tool_call_records(self, agent_id: str, records: Any, **kw: Any) -> None:
        def plain(record: Any) -> Any:
            trail = getattr(record, "audit_trail", None)
            if type(trail) is not tuple or all(getattr(entry, "extra", None) is None for entry in trail):
                return record
            return record.replace(
                audit_trail=[e.replace(extra=None) if type(e) is ToolCallAuditEntry else e for e in trail]
            )

        if type(records) in (list, tuple):
            records = [plain(record) for record in records]
        await self.inner.save_tool_call_records(agent_id, records, **kw)


# --- identity ---------------------------------------------------------------------------------------------------------


@fault(
    "ID-2",
    "ID-4",
    "SNAP-1",
    source="single-table design in DynamoDB: the key of a snapshot is AGENT#SNAPSHOT with nothing escaped",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("b#c", count=1)),
        lambda s: s.save_snapshot("a#b", samples.snapshot("c", count=2)),
        lambda s: s.list_snapshots("a"),
    ),
)
class SingleTableHashKey(Wrapper):
    """Overwrites a snapshot of another agent when agent id, # and snapshot id are the same text together."""

    async def save_snapshot(self, agent_id: str, snapshot: Any, **kw: Any) -> None:
        await self.inner.save_snapshot(agent_id, snapshot, **kw)
        parts = f"{agent_id}#{snapshot.id}".split("#")
        for i in range(1, len(parts)):
            other, key = "#".join(parts[:i]), "#".join(parts[i:])
            if other and key and other != agent_id and len(other.encode()) <= 256 and len(key.encode()) <= 4096:
                if await self.inner.load_snapshot(other, key) is not None:
                    await self.inner.save_snapshot(other, snapshot.replace(id=key))


async def _locks_of(ctx: Any) -> object:
    tokens = []
    for length in (64, 65):
        try:
            async with ctx.store.acquire_agent_lock("x" * length):
                tokens.append("held")
        except InvalidArgumentError:
            tokens.append("refused")
    return tokens


@fault(
    "ID-1",
    "LOCK-1",
    source="Aurora MySQL: GET_LOCK takes names of at most 64 characters (ER_USER_LOCK_WRONG_NAME)",
    errors=True,
    witness=_locks_of,
)
class UserLevelLockNames(Wrapper):
    """Refuses to lock an agent whose id has more than 64 characters."""

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> Any:
        if type(agent_id) is str and len(agent_id) > 64:
            raise InvalidArgumentError("Incorrect user-level lock name")
        return self.inner.acquire_agent_lock(agent_id, ttl_ms, wait_ms)


# --- messages, tool calls, turns --------------------------------------------------------------------------------------


@fault(
    "MSG-3",
    "MSG-2",
    source="Firestore: arrayUnion adds only elements that are not in the array yet",
    witness=seen(
        lambda s: s.append_messages("a", talk("yes", "no")),
        lambda s: s.append_messages("a", talk("yes", "more")),
        lambda s: s.load_messages("a"),
    ),
)
class ArrayUnionOfMessages(Wrapper):
    """Does not append a message that equals one that the list has already."""

    async def append_messages(self, agent_id: str, messages: Any, **kw: Any) -> None:
        if type(messages) in (list, tuple) and messages:
            with suppress(InvalidValueError):
                keys = await _keys(Message, messages)
                known = set(await _digests(self.inner, agent_id, ListKind.MESSAGES))
                messages = [message for message, key in zip(messages, keys, strict=True) if key not in known]
        await self.inner.append_messages(agent_id, messages, **kw)


async def _reads_while_saving(ctx: Any) -> object:
    await ctx.store.save_messages("a", talk(*["old"] * 600))
    saving = asyncio.ensure_future(ctx.store.save_messages("a", talk(*["new"] * 600)))
    mixed = False
    while not saving.done():
        await asyncio.sleep(0)
        found = {message.text for message in await ctx.store.load_messages("a")}
        mixed = mixed or len(found) > 1
    await saving
    return mixed


@fault(
    "MSG-1",
    "VAL-2",
    "DUR-3",
    source="Firestore: a batched write holds at most 500 documents, so a longer list is committed in several",
    on=OnSqlite,
    witness=_reads_while_saving,
)
class BatchesOfFiveHundredWrites(Wrapper):
    """Replaces a list of more than 500 messages in two commits, between which readers see half of each."""

    async def save_messages(self, agent_id: str, messages: Any, **kw: Any) -> None:
        if type(messages) in (list, tuple) and len(messages) > 500:
            old = await self.inner.load_messages(agent_id)
            if len(old) > 500:
                await self.inner.save_messages(agent_id, [*messages[:500], *old[500:]], **kw)
        await self.inner.save_messages(agent_id, messages, **kw)


@fault(
    "TC-3",
    source="boto3: batch_writer(overwrite_by_pkeys=...) drops the earlier of two items with one key from its buffer",
    witness=seen(
        lambda s: s.upsert_tool_call_records(
            "a", [samples.tool_call(1), samples.tool_call(2), samples.tool_call(1, state="FAILED")]
        ),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class OverwriteByPkeys(Wrapper):
    """Puts a new record that occurs twice in one upsert where its second version stands, not where its first does."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, **kw: Any) -> None:
        if type(records) in (list, tuple):
            with suppress(InvalidValueError):
                await _keys(ToolCallRecord, records)  # all of them are sound
                last = {record.id: i for i, record in enumerate(records)}
                records = [record for i, record in enumerate(records) if last[record.id] == i]
        await self.inner.upsert_tool_call_records(agent_id, records, **kw)


async def _half_of_a_turn(ctx: Any) -> object:
    turn = ctx.store.save_turn("a", append=samples.messages(60), events=samples.events(60))
    saving, half = asyncio.ensure_future(turn), False
    while not saving.done():
        await asyncio.sleep(0)
        events = [event async for event in ctx.store.read_events("a")]
        messages = [] if events else await ctx.store.load_messages("a")
        if messages and not [event async for event in ctx.store.read_events("a")]:
            half = True
    await saving
    bad = Timeline(99, Bookmark(99, 1), AgentEvent("progress", "x", {"v": float("nan")}))
    with suppress(InvalidValueError):
        await ctx.store.save_turn("b", append=samples.messages(100), events=[bad])
    return half, len(await ctx.store.load_messages("b"))


@fault(
    "TURN-1",
    "VAL-2",
    "DUR-3",
    source="DynamoDB: TransactWriteItems takes at most 100 actions; what is beyond goes into a second transaction",
    witness=_half_of_a_turn,
)
class SecondTransactionForTheEvents(Wrapper):
    """Writes the events of a turn of more than 100 items in a second commit."""

    async def save_turn(self, agent_id: str, **kw: Any) -> None:
        events: Any = kw.get("events", ())
        lists = [kw.get(name) or () for name in ("append", "messages", "tool_calls", "upsert_tool_calls", "events")]
        if not all(type(given) in (list, tuple) for given in lists) or not events or sum(map(len, lists)) <= 100:
            await self.inner.save_turn(agent_id, **kw)
            return
        await self.inner.save_turn(agent_id, **{**kw, "events": ()})
        await self.inner.append_events(agent_id, events, fence=kw.get("fence"))


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-4",
    "EVT-1",
    source="DynamoDB: 'Provided list of item keys contains duplicates' for a batch that has one key twice",
    errors=True,
    witness=seen(
        lambda s: s.append_events("a", [samples.event(1), samples.event(2), samples.event(1, n=2)]),
        lambda s: s.read_events("a"),
    ),
)
class ItemKeysContainDuplicates(Wrapper):
    """Refuses a list of events in which two have one seq."""

    async def append_events(self, agent_id: str, timelines: Any, **kw: Any) -> Any:
        if type(timelines) in (list, tuple):
            keys: list[Any] = []
            with suppress(InvalidValueError):
                await _keys(Timeline, timelines)  # all of them are sound
                keys = [timeline.bookmark.seq for timeline in timelines]
            if len(set(keys)) < len(keys):
                raise InvalidArgumentError("ValidationException: Provided list of item keys contains duplicates")
        return await self.inner.append_events(agent_id, timelines, **kw)


@fault(
    "EVT-5",
    source="a DynamoDB sort key that is the number, padded with zeros to a text: '-2' < '-9'",
    witness=seen(
        lambda s: s.append_events("a", samples.events(6, start=-3)),
        lambda s: s.read_events("a"),
    ),
)
class PaddedSequenceNumbers(Wrapper):
    """Reads events with negative seqs in descending order of seq."""

    def read_events(self, agent_id: str, **kw: Any) -> Any:
        events = self.inner.read_events(agent_id, **kw)
        return events if kw.get("after_offset") is not None else self._as_text(events)

    async def _as_text(self, events: Any) -> Any:
        negative: list[Any] | None = []
        async for event in events:
            if negative is not None:
                if event.bookmark.seq < 0:
                    negative.append(event)
                    continue
                for early in sorted(negative, key=lambda e: -e.bookmark.seq):
                    yield early
                negative = None
            yield event
        for early in sorted(negative or (), key=lambda e: -e.bookmark.seq):
            yield early


@fault(
    "EVT-5",
    source="DynamoDB: a FilterExpression is applied after Limit, so a page may be empty with a LastEvaluatedKey",
    witness=seen(
        lambda s: s.append_event("a", samples.event(0, "control")),
        lambda s: s.append_events("a", samples.events(300, start=1)),
        lambda s: s.append_event("a", samples.event(301, "control")),
        lambda s: s.read_events("a", channel="control"),
    ),
)
class FilterAfterLimit(Wrapper):
    """Ends reading the events of a channel at the first 100 events in a row that are all of other channels."""

    def read_events(self, agent_id: str, **kw: Any) -> Any:
        channel = kw.get("channel")
        events = self.inner.read_events(agent_id, **kw)  # refuses what is wrong
        if channel not in ("progress", "control", "monitor"):
            return events
        return self._pages(self.inner.read_events(agent_id, **{**kw, "channel": None}), channel)

    async def _pages(self, events: Any, channel: str) -> Any:
        seen_of_page = found_of_page = 0
        async for event in events:
            seen_of_page += 1
            if event.event.channel == channel:
                found_of_page += 1
                yield event
            if seen_of_page == 100:
                if not found_of_page:
                    return
                seen_of_page = found_of_page = 0


async def _followed(ctx: Any) -> object:
    await ctx.store.append_events("a", samples.events(3, start=4))
    found: list[int] = []

    async def follow() -> None:
        async for event in ctx.store.follow_events("a", since=Bookmark(5, samples.T0)):
            found.append(event.bookmark.seq)
            if event.bookmark.seq == 9:
                return

    task = asyncio.ensure_future(follow())
    while not found:
        await asyncio.sleep(0.01)
    await ctx.store.append_events("a", [samples.event(2), samples.event(9)])
    await asyncio.wait_for(task, 4)
    return found


@fault(
    "EVT-7",
    source="a Cosmos DB change feed, which knows no filter, behind a first query that has one",
    witness=_followed,
)
class ChangeFeedWithoutSince(Wrapper):
    """Yields what is appended while somebody follows also when its seq is not above that of since."""

    def follow_events(self, agent_id: str, **kw: Any) -> Any:
        follow = self.inner.follow_events(agent_id, **kw)
        return follow if kw.get("since") is None else self._feed(agent_id, kw)

    async def _feed(self, agent_id: str, kw: dict[str, Any]) -> Any:
        place = kw.get("after_offset", 0)
        since, channel = kw["since"], kw.get("channel")
        async for event in self.inner.read_events(agent_id, after_offset=place):
            place = event.offset
            if event.bookmark.seq > since.seq and channel in (None, event.event.channel):
                yield event
        async for event in self.inner.follow_events(agent_id, after_offset=place, channel=channel):
            yield event


# --- the other kinds --------------------------------------------------------------------------------------------------


@fault(
    "TODO-1",
    "VAL-1",
    "VAL-3",
    source="the DynamoDB DocumentClient with convertEmptyValues: true, which makes NULL of empty strings",
    witness=seen(
        lambda s: s.save_todos(
            "a",
            TodoSnapshot(
                todos=[TodoItem(id="t", title="", notes="", assignee="x", created_at=1, updated_at=1)]
            ).replace(updated_at=1),
        ),
        lambda s: s.load_todos("a"),
    ),
)
class ConvertsEmptyNotes(Wrapper):
    """Gives None for the notes and the assignee of a todo that were saved as an empty string."""

    async def load_todos(self, agent_id: str) -> Any:
        found = await self.inner.load_todos(agent_id)
        if found is None:
            return None
        return found.replace(
            todos=[item.replace(notes=item.notes or None, assignee=item.assignee or None) for item in found.todos]
        )


@fault(
    "HIS-1",
    "VAL-4",
    source="DynamoDB: a Query reads 1 MB; LastEvaluatedKey is not followed",
    witness=seen(
        lambda s: each(
            *(
                s.save_compression_record("a", samples.compression(f"c{i}").replace(summary="x" * 300_000))
                for i in range(5)
            )
        ),
        lambda s: s.load_compression_records("a"),
    ),
)
class OnePageOfCompressions(Wrapper):
    """Loads compression records only until they are 1 MB together."""

    async def load_compression_records(self, agent_id: str) -> Any:
        size, page = 0, []
        for record in await self.inner.load_compression_records(agent_id):
            page.append(record)
            size += len(record.summary) + len(record.config.prompt) + sum(map(len, record.recovered_files)) + 200
            if size > 2**20:
                break
        return page


@fault(
    "MED-1",
    "VAL-4",
    source="Azure Table Storage and Supabase (max-rows) answer with 1,000 rows at most, whatever was asked for",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media(str(i)) for i in range(1003)]),
        lambda s: the_length(s.load_media_cache("a")),
    ),
)
class MaxRowsOfMedia(Wrapper):
    """Loads only the first 1,000 records of a media cache."""

    async def load_media_cache(self, agent_id: str) -> Any:
        return (await self.inner.load_media_cache(agent_id))[:1000]


async def the_length(found: Any) -> int:
    """How many."""
    return len(await found)


@fault(
    "SNAP-1",
    source="DynamoDB: the sort key is created_at#id, and ScanIndexForward=False turns all of it round",
    witness=seen(
        lambda s: each(
            s.save_snapshot("a", samples.snapshot("x", 5)),
            s.save_snapshot("a", samples.snapshot("y", 5)),
            s.save_snapshot("a", samples.snapshot("z", 6)),
        ),
        lambda s: s.list_snapshots("a"),
    ),
)
class ScanIndexBackward(Wrapper):
    """Lists snapshots of one created_at by id descending."""

    async def list_snapshots(self, agent_id: str) -> Any:
        found = await self.inner.list_snapshots(agent_id)
        return sorted(found, key=lambda snapshot: (snapshot.created_at, snapshot.id), reverse=True)


async def _updated(ctx: Any) -> object:
    store, calls = ctx.store, [samples.tool_call(1)]
    await store.save_info("a", samples.info("a"))
    await store.save_tool_call_records("a", calls)
    before = (await store.query_sessions(agent_id="a"))[0].updated_at
    await asyncio.sleep(0.01)
    await store.save_tool_call_records("a", calls)
    return (await store.query_sessions(agent_id="a"))[0].updated_at > before


@fault(
    "INFO-2",
    source="Supabase: a moddatetime trigger WHEN (OLD.* IS DISTINCT FROM NEW.*)",
    witness=_updated,
)
class DistinctFromTrigger(Wrapper):
    """Does not move updated_at when the list of tool calls is saved as it is."""

    async def save_tool_call_records(self, agent_id: str, records: Any, **kw: Any) -> None:
        same = False
        if type(records) in (list, tuple) and records:
            with suppress(InvalidValueError):
                keys = await _keys(ToolCallRecord, records)
                same = keys == await _digests(self.inner, agent_id, ListKind.TOOL_CALLS)
        if same:
            await self.inner.save_turn(agent_id, **kw)  # only the fence is looked at
        else:
            await self.inner.save_tool_call_records(agent_id, records, **kw)


@fault(
    "INFO-3",
    "QRY-8",
    "SNAP-1",
    source="DynamoDB Accelerator (DAX): the item cache keeps negative entries, for keys that were not there",
    on=OnJson,
    witness=seen(
        lambda s, t: s.load_snapshot("a", "sfp-1"),
        lambda s, t: t.save_snapshot("a", samples.snapshot()),
        lambda s, t: s.load_snapshot("a", "sfp-1"),
        lambda s, t: t.load_snapshot("a", "sfp-1"),
        restart,
        lambda s, t: s.load_snapshot("a", "sfp-1"),
    ),
)
class NegativeEntriesOfDax(Wrapper):
    """Remembers for five minutes that a snapshot was not there, also when another instance saves it."""

    __slots__ = ("missing",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.missing: dict[tuple[str, str], float] = {}

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        if type(snapshot_id) is not str or type(agent_id) is not str:
            return await self.inner.load_snapshot(agent_id, snapshot_id)
        key = agent_id, snapshot_id
        if self.missing.get(key, 0.0) > time.monotonic():
            await self.inner.load_todos(agent_id)  # refuses ids, and all when it is closed
            return None
        found = await self.inner.load_snapshot(agent_id, snapshot_id)
        if found is None:
            if len(self.missing) > 1000:
                self.missing.clear()
            self.missing[key] = time.monotonic() + 300
        return found

    async def save_snapshot(self, agent_id: str, snapshot: Any, **kw: Any) -> None:
        await self.inner.save_snapshot(agent_id, snapshot, **kw)
        self.missing.pop((agent_id, snapshot.id), None)


# --- lifecycle --------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-2",
    source="Firestore: the usual prefix query is startAt(prefix).endAt(prefix + '\\uf8ff')",
    witness=seen(
        lambda s: each(*(s.save_info(i, samples.info(i)) for i in ("team", "team-a", "team\uff01", "team😀"))),
        lambda s: s.list("team"),
        lambda s: s.list(),
    ),
)
class EndAtPrivateUse(Wrapper):
    """Leaves out of list(prefix) the ids that go on with a character above U+F8FF, as emojis are."""

    async def list(self, prefix: str = "") -> Any:
        found = await self.inner.list(prefix)
        return [agent_id for agent_id in found if agent_id <= prefix + "\uf8ff"] if prefix else found


async def _deleted(ctx: Any) -> object:
    files = [samples.recovered(f"f{i:04}") for i in range(1005)]
    for file in files:
        await ctx.store.save_recovered_file("a", file)
    await ctx.store.delete("a")
    return len(await ctx.store.load_recovered_files("a"))


@fault(
    "LIFE-3",
    "LIFE-4",
    source="S3: ListObjectsV2 and DeleteObjects take 1,000 keys at once; the next page is forgotten",
    witness=_deleted,
)
class DeletesOnePageOfObjects(Wrapper):
    """Leaves the recovered files beyond the first 1,000 when the agent is deleted."""

    async def delete(self, agent_id: str, **kw: Any) -> None:
        files: Any = []
        with suppress(Exception):
            files = await self.inner._reader.load_docs(agent_id, kinds.RECOVERED)
        await self.inner.delete(agent_id, **kw)
        for file in sorted(files, key=lambda file: (file.path, file.timestamp))[1000:]:
            await self.inner.save_recovered_file(agent_id, file, **kw)


async def _changed_while_deleted(ctx: Any) -> object:
    ids = [f"a{i:03}" for i in range(60)]
    for agent_id in ids:
        await ctx.store.save_info(agent_id, samples.info(agent_id, template_id="old"))
    deleting = asyncio.ensure_future(ctx.store.delete_many(template_id="old"))
    for _ in range(20):
        await asyncio.sleep(0)
    for agent_id in (ids[0], ids[-1]):
        await ctx.store.save_info(agent_id, samples.info(agent_id, template_id="new"))
    await deleting
    return [await ctx.store.exists(agent_id) for agent_id in (ids[0], ids[-1])]


@fault(
    "LIFE-5",
    source="a bulk delete of Cosmos DB or Firestore: query the ids first, then delete them in bulk",
    witness=_changed_while_deleted,
)
class BulkDeletesByOldIds(Layer):
    """Deletes with delete_many also sessions that changed after they were found and match no more."""

    async def commit(self, batches: Any) -> Any:
        return await self.inner.commit([replace(b, expect_updated_at=None) if b.delete else b for b in batches])


# --- queries ----------------------------------------------------------------------------------------------------------


@fault(
    "QRY-2",
    source="DynamoDB: a sort key takes one condition, and BETWEEN includes both ends",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i) for i in range(5)]),
        lambda s: s.query_tool_calls(created_after=samples.T0 + 1, created_before=samples.T0 + 3),
        lambda s: s.query_tool_calls(created_before=samples.T0 + 3),
    ),
)
class BetweenIncludesTheEnd(EngineStore):
    """Includes tool calls created at created_before, when created_after is given as well."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        end = filters.get("created_before")
        if "created_after" in filters and type(end) in (int, datetime):
            filters["created_before"] = end + (1 if isinstance(end, int) else timedelta(milliseconds=1))
        return await super().query_tool_calls(**filters)


@fault(
    "QRY-5",
    "QRY-4",
    source="Azure Table Storage gives at most 1,000 entities per request, also for a larger $top",
    witness=seen(
        lambda s: s.save_messages("a", samples.messages(1100)),
        lambda s: the_length(s.query_messages(agent_id="a", limit=1050)),
        lambda s: the_length(s.query_messages(agent_id="a", limit=1000)),
    ),
)
class TopIsAThousandAtMost(EngineStore):
    """Gives pages of 1,000 messages when a larger limit is asked for, although more follow."""

    async def query_messages(self, **filters: Any) -> Any:
        limit = filters.get("limit")
        if type(limit) is int and 1000 < limit <= 10_000:
            filters["limit"] = 1000
        return await super().query_messages(**filters)


@fault(
    "QRY-2",
    "VAL-3",
    source="DynamoDB: the key of a secondary index cannot be an empty string; the attribute is left out, the index sparse",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", template_id="")),
        lambda s: the_length(s.query_sessions(template_id="")),
        lambda s: the_length(s.query_sessions()),
    ),
)
class SparseTemplateIndex(EngineStore):
    """Finds no session by an empty template id."""

    async def query_sessions(self, **filters: Any) -> Any:
        found = await super().query_sessions(**filters)
        return Page() if filters.get("template_id") == "" else found


# --- operations -------------------------------------------------------------------------------------------------------


async def _operations(ctx: Any) -> object:
    await ctx.store.load_todos("nobody")
    await ctx.store.load_info("nobody")
    counts = (await ctx.store.get_metrics()).operations
    return counts.loads, counts.errors


@fault(
    "OPS-3",
    source="Cosmos DB: the client raises CosmosResourceNotFoundError (404), and the meter counts what raises",
    witness=_operations,
)
class CountsNotFoundAsErrors(Wrapper):
    """Counts a load of a todo list or an info that is not there as an error and not as a load."""

    __slots__ = ("absent",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.absent = 0

    async def load_todos(self, agent_id: str) -> Any:
        found = await self.inner.load_todos(agent_id)
        self.absent += found is None
        return found

    async def load_info(self, agent_id: str) -> Any:
        found = await self.inner.load_info(agent_id)
        self.absent += found is None
        return found

    async def get_metrics(self) -> Any:
        metrics = await self.inner.get_metrics()
        done = metrics.operations
        done = replace(done, loads=done.loads - self.absent, errors=done.errors + self.absent)
        return replace(metrics, operations=done)


async def _follows_closed(ctx: Any) -> object:
    store = ctx.store
    await store.append_event("a", samples.event(1))
    await ctx.close(store)
    try:
        return [event async for event in store.follow_events("a")]
    except StoreClosedError:
        return "closed"


@fault(
    "OPS-5",
    "EVT-7",
    source="the listen() stream of a Firestore or Supabase Realtime client, which ends quietly when the client is closed",
    witness=_follows_closed,
)
class ListenerEndsQuietly(Wrapper):
    """Ends follow_events without an error when the store is closed or was closed before."""

    def follow_events(self, agent_id: str, **kw: Any) -> Any:
        async def listen() -> Any:
            try:
                async for event in follow:
                    yield event
            except StoreClosedError:
                return

        async def nothing() -> Any:
            for event in ():
                yield event

        try:
            follow = self.inner.follow_events(agent_id, **kw)
        except StoreClosedError:
            return nothing()
        return listen()


async def _refusal(ctx: Any) -> object:
    try:
        await ctx.store.save_snapshot("a", samples.snapshot().replace(metadata={"key": b"secret-4711"}))
    except InvalidValueError as exc:
        return "4711" in str(exc)
    return None


@fault(
    "OPS-12",
    source="boto3: 'Unsupported type \"<class 'bytes'>\" for value \"...\"' of the TypeSerializer",
    witness=_refusal,
)
class UnsupportedTypeForValue(Wrapper):
    """Quotes a snapshot's metadata in the error that refuses it."""

    async def save_snapshot(self, agent_id: str, snapshot: Any, **kw: Any) -> None:
        try:
            await self.inner.save_snapshot(agent_id, snapshot, **kw)
        except InvalidValueError as exc:
            value = getattr(snapshot, "metadata", None)
            if not exc.path.startswith("$.metadata"):
                raise
            problem = f'Unsupported type "{type(value)}" for value "{value!r:.2000}"'.encode(
                "ascii", "replace"
            ).decode()
            raise InvalidValueError(exc.record, exc.path, problem) from None


# --- locks and forks --------------------------------------------------------------------------------------------------


async def _tokens(ctx: Any) -> object:
    tokens = []
    await ctx.store.save_info("a", samples.info("a"))
    for _ in range(3):
        async with ctx.store.acquire_agent_lock("a") as lease:
            tokens.append(lease.token)
    await ctx.store.delete("a")
    async with ctx.store.acquire_agent_lock("a") as lease:
        tokens.append(lease.token)
        await ctx.store.save_info("a", samples.info("a"))
    return tokens == sorted(set(tokens))


@fault(
    "LOCK-5",
    "LIFE-3",
    source="an atomic counter (ADD lease_token :one) in the agent's own DynamoDB item, which the delete takes along",
    witness=_tokens,
)
class TokenInTheAgentsItem(MemoryLayer):
    """Begins the tokens of an agent's leases again after the agent was deleted."""

    @property
    def _bases(self) -> tuple[dict[str, int], dict[str, int]]:
        return self.space.__dict__.setdefault("_bases", ({}, {}))

    def _inner_fence(self, fence: Fence) -> Fence:
        return Fence(fence.owner, fence.token + self._bases[1].get(fence.owner, 0))

    async def commit(self, batches: Any) -> Any:
        done = await self.inner.commit(
            [b if b.fence is None else replace(b, fence=self._inner_fence(b.fence)) for b in batches]
        )
        for batch, outcome in zip(batches, done, strict=True):
            if batch.delete and isinstance(outcome, Applied):
                self._bases[0][batch.agent_id] = self.space.counter
        return done

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        token = await self.inner.acquire_lease(agent_id, owner, ttl_ms)
        if token is None:
            return None
        base = self._bases[1][owner] = self._bases[0].get(agent_id, 0)
        return token - base

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await self.inner.renew_lease(agent_id, self._inner_fence(fence), ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await self.inner.release_lease(agent_id, self._inner_fence(fence))


async def _forked_while_appended(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    forking = asyncio.ensure_future(ctx.store.batch_fork("a", 60))
    n = 0
    while not forking.done():
        n += 1
        await ctx.store.append_messages("a", [samples.message(n)])
    return len({len(await ctx.store.load_messages(fork)) for fork in await forking})


@fault(
    "FORK-1",
    "FORK-3",
    source="DynamoDB: BatchWriteItem takes 25 items, so forks are made 25 at a time",
    witness=_forked_while_appended,
)
class ForksTwentyFiveAtATime(Wrapper):
    """Makes more than 25 forks in several batches, each of another instant of the parent."""

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        if type(count) is not int or not 25 < count <= 1000:
            return await self.inner.batch_fork(agent_id, count)
        ids: list[str] = []
        for start in range(0, count, 25):
            ids += await self.inner.batch_fork(agent_id, min(25, count - start))
        return ids


async def _fork_after_delete(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_snapshot("a", samples.snapshot())
    (fork,) = await ctx.store.batch_fork("a", 1)
    await ctx.store.delete("a")
    return len(await ctx.store.list_snapshots(fork))


@fault(
    "FORK-2",
    "LIFE-3",
    source="snapshots are objects in S3, and a fork copies only the pointers to them",
    witness=_fork_after_delete,
)
class ForksPointToTheSameObjects(MemoryLayer):
    """Removes with an agent the snapshots that its forks took from it."""

    async def commit(self, batches: Any) -> Any:
        docs = [
            [doc for key, doc in self.space.state(batch.agent_id).docs.items() if key[0] is DocKind.SNAPSHOTS]
            for batch in batches
        ]
        done = await self.inner.commit(batches)
        gone = [
            doc
            for batch, taken, outcome in zip(batches, docs, done, strict=True)
            if batch.delete and isinstance(outcome, Applied)
            for doc in taken
        ]
        if gone:
            shared = {id(doc) for doc in gone}
            for state in self.space.states.values():
                for key in [key for key, doc in state.docs.items() if id(doc) in shared]:
                    del state.docs[key]
        return done
