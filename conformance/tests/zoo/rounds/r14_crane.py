"""Faults out of the bug trackers and manuals of drivers, ORMs, caches, queues and file systems."""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
import tempfile
import time
from collections import OrderedDict
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnMemory, OnSqlite, Wrapper  # noqa: F401
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import each, happened, restart, seen, talk, the
from kode_core import create_extended_store
from kode_core.batch import Applied, DocKind, DocWrite, ListKind
from kode_core.codec import Body, digest
from kode_core.errors import AgentDeletedError, InvalidArgumentError, InvalidValueError
from kode_core.ids import check_agent_id
from kode_core.layers import Layer
from kode_core.metadata import metadata_index
from kode_core.model import Message, Snapshot, ToolCallRecord, ToolResultBlock
from kode_core.query import Page
from kode_core.store import EngineStore, kinds
from kode_core.store.locks import ENTERED, LeaseContext
from kode_core.store.steps import checked_progress as _told

# --- values -----------------------------------------------------------------------------------------------------------


def _short(value: Any) -> Any:
    if type(value) is float:
        return float(f"{value:.14g}")
    if type(value) is list:
        return [_short(item) for item in value]
    if type(value) is dict:
        return {key: _short(item) for key, item in value.items()}
    return value


@fault(
    "VAL-1",
    source="lua-cjson in Redis scripts writes numbers with 14 significant digits (lua-cjson #4, sidekiq #2478)",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, score=0.1 + 0.2, half=0.5)),
        lambda s: s.read_events("a"),
    ),
)
class CraEventFloatsOf14Digits(EngineStore):
    """Gives the floats of events that are read with 14 significant digits."""

    def read_events(self, agent_id: str, **options: Any) -> Any:
        found = super().read_events(agent_id, **options)

        async def shortened() -> Any:
            async for event in found:
                yield event.replace(event=replace(event.event, data=_short(event.event.data)))

        return shortened()


async def _two_loads(ctx: Any) -> object:
    store = ctx.store
    await store.save_snapshot("a", samples.snapshot())
    one, two = await asyncio.gather(store.load_snapshot("a", "sfp-1"), store.load_snapshot("a", "sfp-1"))
    one.metadata["reason"] = "changed"
    return two.metadata


@fault(
    "VAL-1",
    source="GraphQL DataLoader gives one object to all who ask within a tick (graphql/dataloader #187)",
    witness=_two_loads,
)
class CraSharesSnapshotsOfATick(Wrapper):
    """Gives one and the same object to all who load a snapshot within one turn of the event loop."""

    __slots__ = ("waiting",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.waiting: dict[tuple[str, str], Any] = {}

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        if type(agent_id) is not str or type(snapshot_id) is not str:
            return await self.inner.load_snapshot(agent_id, snapshot_id)
        key = (agent_id, snapshot_id)

        async def load() -> Any:
            await asyncio.sleep(0)
            del self.waiting[key]
            return await self.inner.load_snapshot(agent_id, snapshot_id)

        if key not in self.waiting:
            self.waiting[key] = asyncio.ensure_future(load())
        return await asyncio.shield(self.waiting[key])

    async def close(self) -> None:
        await asyncio.gather(*self.waiting.values(), return_exceptions=True)
        await self.inner.close()


_T_US = datetime.fromtimestamp(samples.T0 / 1000, UTC) + timedelta(microseconds=1)


@fault(
    "VAL-5",
    "QRY-2",
    source="BSON dates have milliseconds: PyMongo cuts the microseconds of a filter off",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0), samples.tool_call(1)]),
        lambda s: the("id", s.query_tool_calls(agent_id="a", created_after=_T_US)),
        lambda s: the("id", s.query_tool_calls(agent_id="a", created_before=_T_US)),
    ),
)
class CraCutsMicrosecondsOfFilters(EngineStore):
    """Cuts off the microseconds of a datetime that tool calls are filtered by."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        for name in ("created_after", "created_before"):
            value = filters.get(name)
            if isinstance(value, datetime):
                filters[name] = value.replace(microsecond=value.microsecond // 1000 * 1000)
        return await super().query_tool_calls(**filters)


# --- identity ---------------------------------------------------------------------------------------------------------


async def _long_names(ctx: Any) -> object:
    lease = await ctx.store.acquire_agent_lock("x" * 64 + "1")
    try:
        other = await ctx.store.acquire_agent_lock("x" * 64 + "2")
    except Exception as exc:
        return type(exc).__name__
    finally:
        await lease.release()
    await other.release()
    return "both"


@fault(
    "ID-2",
    "OPS-13",
    "LOCK-2",
    source="MySQL GET_LOCK: names have at most 64 characters, and clients cut longer ones",
    witness=_long_names,
)
class CraLockNamesOf64(MemoryLayer):
    """Holds two agents for one in locks when the first 64 characters of their ids are the same."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> Any:
        now = time.monotonic()
        for other, (_, until) in self.space.leases.items():
            if other != agent_id and other[:64] == agent_id[:64] and until > now:
                return None
        return await self.inner.acquire_lease(agent_id, owner, ttl_ms)


@fault(
    "HIS-2",
    "ID-4",
    source="a unique key on a column prefix: InnoDB takes 3,072 bytes, which are 768 characters of utf8mb4",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("d/" * 384 + "one")),
        lambda s: s.save_recovered_file("a", samples.recovered("d/" * 384 + "two")),
        lambda s: the("path", s.load_recovered_files("a")),
    ),
)
class CraRecoveredPathPrefix(MemoryLayer):
    """Takes two recovered files of one time for the same when the first 768 characters of their paths are equal."""

    async def commit(self, batches: Any) -> Any:
        return await self.inner.commit([self._with_prefix_key(batch) for batch in batches])

    def _with_prefix_key(self, batch: Any) -> Any:
        gone = []
        for write in batch.docs:
            if write.kind != DocKind.RECOVERED or write.doc is None:
                continue
            path, at = json.loads(write.key)
            for kind, key in self.space.state(batch.agent_id).docs:
                if kind == DocKind.RECOVERED and key != write.key:
                    other, when = json.loads(key)
                    if when == at and other[:768] == path[:768]:
                        gone.append(DocWrite(kind, key, None))
        return replace(batch, docs=(*gone, *batch.docs)) if gone else batch


# --- messages, tool calls, turns --------------------------------------------------------------------------------------


async def _slow_clock(ctx: Any) -> object:
    one, two = ctx.store, await ctx.another()
    await one.append_messages("a", talk("first"))
    two._context.now = lambda: samples.T0 - 86_400_000
    await two.append_messages("a", talk("second"))
    found = await one.query_messages(agent_id="a", order="asc")
    return [message.text for message in found]


@fault(
    "MSG-4",
    "QRY-3",
    source="DEFAULT now() on servers whose clocks differ; Cassandra's client timestamps",
    witness=_slow_clock,
)
class CraAppendsAtOwnClock(MemoryLayer):
    """Gives what an instance appends to a list that it has not read the time of its own clock, however far behind."""

    async def commit(self, batches: Any) -> Any:
        return await self.inner.commit([self._unraised(batch) for batch in batches])

    def _unraised(self, batch: Any) -> Any:
        held = self.space.state(batch.agent_id).lists[ListKind.MESSAGES]
        if batch.delete or batch.messages is None or not batch.messages.is_blind or not held.version:
            return batch
        return replace(batch, messages=replace(batch.messages, expect=held.version))


async def _count_of_fork(ctx: Any) -> object:
    store = ctx.store
    await store.save_info("p", samples.info("p"))
    await store.save_messages("p", samples.messages(3))
    (child,) = await store.batch_fork("p", 1)
    (before,) = await store.query_sessions(agent_id=child)
    await store.append_messages(child, talk("x"))
    (after,) = await store.query_sessions(agent_id=child)
    return before.message_count, after.message_count


@fault(
    "MSG-6",
    "FORK-1",
    "QRY-8",
    source="Rails counter_cache: insert_all skips the callbacks that count",
    witness=_count_of_fork,
)
class CraForksAreNotCounted(MemoryLayer):
    """Shows a fork as a session without messages until its messages are saved for the first time."""

    def _uncounted(self) -> set[str]:
        return self.space.__dict__.setdefault("uncounted", set())

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        done = await self.inner.fork(agent_id, children, expect, now)
        if done:
            self._uncounted().update(child.agent_id for child in children)
        return done

    async def commit(self, batches: Any) -> Any:
        outcomes = await self.inner.commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if isinstance(outcome, Applied) and (batch.messages is not None or batch.delete):
                self._uncounted().discard(batch.agent_id)
        return outcomes

    async def find_sessions(self, query: Any) -> Any:
        found = await self.inner.find_sessions(query)
        if query.sort_by == "message_count":
            return found
        uncounted = self._uncounted()
        return [replace(row, message_count=0) if row.agent_id in uncounted else row for row in found]


@fault(
    "TURN-1",
    "TC-1",
    "VAL-3",
    source="`if tool_calls:` before the DELETE and INSERT; bulk_create([]) of ORMs does nothing",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0)]),
        lambda s: s.save_turn("a", append=talk("x"), tool_calls=[]),
        lambda s: the("id", s.load_tool_call_records("a")),
    ),
)
class CraTurnWithNoCalls(Wrapper):
    """Leaves the tool calls as they are in a turn that replaces them by an empty list."""

    async def save_turn(self, agent_id: str, *, tool_calls: Any = None, **others: Any) -> None:
        if isinstance(tool_calls, (list, tuple)) and not tool_calls and not others.get("upsert_tool_calls"):
            tool_calls = None
        await self.inner.save_turn(agent_id, tool_calls=tool_calls, **others)


@fault(
    "TC-3",
    "TC-2",
    source="a key in a case-insensitive collation: MySQL utf8mb4_0900_ai_ci, SQL Server, SQLite NOCASE",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(id="toolu_aB")]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(id="toolu_Ab")]),
        lambda s: the("id", s.load_tool_call_records("a")),
    ),
)
class CraUpsertsWhateverTheCase(EngineStore):
    """Replaces a stored tool call by an upserted one whose id differs from its id in upper and lower case only."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        is_plain = isinstance(records, (list, tuple)) and all(
            type(record) is ToolCallRecord and type(record.id) is str for record in records
        )
        if is_plain and type(agent_id) is str and await self._differs_in_case(agent_id, records):
            calls = await self.load_tool_call_records(agent_id)
            for record in records:
                key = record.id.lower()
                places = [i for i, call in enumerate(calls) if call.id.lower() == key]
                if places:
                    calls[places[-1]] = record
                else:
                    calls.append(record)
            await self.save_tool_call_records(agent_id, calls, fence=fence)
        else:
            await super().upsert_tool_call_records(agent_id, records, fence=fence)

    async def _differs_in_case(self, agent_id: str, records: Any) -> bool:
        await self.open()
        outline = await self._context.engine.outline(agent_id, ListKind.TOOL_CALLS)
        held = {str(row[3]) for row in outline.rows}
        folded = {key.lower() for key in held}
        return any(record.id not in held and record.id.lower() in folded for record in records)


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-4",
    source="INSERT ... SELECT ... WHERE NOT EXISTS of many rows: no row sees the others of its statement",
    witness=seen(
        lambda s: asyncio.gather(*(s.append_events("a", happened(n)) for n in (1, 1, 2))),
        lambda s: the_seqs(s),
        lambda s: s.append_events("a", happened(1)),
        lambda s: the_seqs(s),
    ),
)
class CraRepeatsWithinAStatement(Layer):
    """Stores an event twice when it comes twice in one call, or in calls that are written together."""

    async def commit(self, batches: Any) -> Any:
        return await self.inner.commit([self._apart(batch) for batch in batches])

    def _apart(self, batch: Any) -> Any:
        times: dict[tuple[int, bytes], int] = {}
        events = []
        for event in batch.events:
            key = (event.seq, event.body.digest)
            times[key] = times.get(key, -1) + 1
            if times[key]:
                text = event.body.text + " " * times[key]
                event = replace(event, body=Body(text, digest(text.encode())))
            events.append(event)
        return replace(batch, events=tuple(events)) if batch.events else batch


async def the_seqs(store: Any) -> list[int]:
    """The seqs of an agent's events."""
    return [event.bookmark.seq async for event in store.read_events("a")]


@fault(
    "EVT-2",
    "LOCK-5",
    "LIFE-3",
    source="InnoDB before MySQL 8.0 (bug #199): after a restart AUTO_INCREMENT goes on from the greatest id stored",
    witness=seen(
        lambda s: s.append_events("a", happened(1, 2, 3)),
        lambda s: s.delete("a"),
        restart,
        lambda s: s.append_events("a", happened(4)),
    ),
)
class CraCountsFromTheGreatestStored(MemoryLayer):
    """Goes on, when it is opened, from the greatest offset and token that are stored, so that deleted ones come again."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        offsets = [state.log.next_offset - 1 for state in self.space.states.values()]
        tokens = [fence.token for fence, _ in self.space.leases.values()]
        self.space.counter = max([0, *offsets, *tokens])


async def _order_from_zero(ctx: Any) -> object:
    await ctx.store.append_events("a", happened(5, 2, 9))
    return [event.bookmark.seq async for event in ctx.store.read_events("a", after_offset=0)]


@fault(
    "EVT-5",
    "VAL-3",
    source="`if after_offset:` where None was meant",
    witness=_order_from_zero,
)
class CraOffsetZeroIsNone(EngineStore):
    """Reads events in the order of their seq when they are asked for from the offset 0 on."""

    def read_events(self, agent_id: str, *, after_offset: Any = None, **others: Any) -> Any:
        if type(after_offset) is int:
            after_offset = after_offset or None
        return super().read_events(agent_id, after_offset=after_offset, **others)


async def _followed_over_a_delete(ctx: Any) -> object:
    store, found = ctx.store, []

    async def follow() -> None:
        try:
            async for event in store.follow_events("a"):
                found.append(event.bookmark.seq)
        except AgentDeletedError:
            found.append(-1)

    await store.append_events("a", happened(1))
    task = asyncio.create_task(follow())
    await asyncio.sleep(0.3)
    await store.delete("a")
    await store.append_events("a", happened(2))
    await asyncio.sleep(0.5)
    task.cancel()
    await asyncio.wait([task])
    return found


@fault(
    "EVT-10",
    "EVT-7",
    "LIFE-4",
    source="tail -f keeps to the open file and not to the name: a log that was removed and made again is silent",
    witness=_followed_over_a_delete,
)
class CraFollowsTheOldFile(Wrapper):
    """Yields nothing more to those who follow an agent that was deleted, and raises nothing."""

    def follow_events(self, agent_id: str, **options: Any) -> Any:
        found = self.inner.follow_events(agent_id, **options)

        async def followed() -> Any:
            try:
                async for event in found:
                    yield event
            except AgentDeletedError:
                await asyncio.Event().wait()

        return followed()


# --- the other kinds, lifecycle ---------------------------------------------------------------------------------------


async def _touched_by_fork(ctx: Any) -> object:
    store = ctx.store
    await store.save_info("p", samples.info("p"))
    (before,) = await store.query_sessions(agent_id="p")
    await asyncio.sleep(0.01)
    await store.batch_fork("p", 1)
    (after,) = await store.query_sessions(agent_id="p")
    return after.updated_at > before.updated_at


@fault(
    "INFO-2",
    "FORK-2",
    source="Rails belongs_to :parent, touch: true",
    witness=_touched_by_fork,
)
class CraForkTouchesItsParent(MemoryLayer):
    """Moves the updated_at of an agent forward when it is forked."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        done = await self.inner.fork(agent_id, children, expect, now)
        if done:
            state = self.space.state(agent_id)
            state.updated_at = max(now, state.updated_at + 1)
        return done


async def _other_caches(ctx: Any) -> object:
    one, two = ctx.store, await ctx.another()
    missing = await two.load_info("a")
    await one.save_info("a", samples.info("a"))
    return missing is None, await two.load_info("a") is None


@fault(
    "QRY-8",
    "LIFE-1",
    source="negative entries: the NFS client's attribute cache of 30 s, misses that are cached in memcached",
    on=OnSqlite,
    witness=_other_caches,
)
class CraRemembersAbsence(Wrapper):
    """Gives None, for 30 seconds, for an info that this instance once did not find and that another one has saved."""

    __slots__ = ("absent",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.absent: OrderedDict[str, float] = OrderedDict()

    async def load_info(self, agent_id: str) -> Any:
        found = await self.inner.load_info(agent_id)
        until = self.absent.get(agent_id, 0.0)
        if found is not None and until > time.monotonic():
            return None
        self.absent.pop(agent_id, None)
        if found is None:
            self.absent[agent_id] = max(until, time.monotonic() + 30)
            if len(self.absent) > 1000:
                self.absent.popitem(last=False)
        return found

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        await self.inner.save_info(agent_id, info, fence=fence)
        self.absent.pop(agent_id, None)

    async def save_turn(self, agent_id: str, **contents: Any) -> None:
        await self.inner.save_turn(agent_id, **contents)
        self.absent.pop(agent_id, None)


@fault(
    "LIFE-2",
    source="the prefix search of the Firebase manual: from 'b' to 'b' + U+F8FF",
    witness=seen(
        lambda s: each(*(s.save_info(i, samples.info(i)) for i in ("p", "pz", "p\U0001f600", "q"))),
        lambda s: s.list("p"),
    ),
)
class CraPrefixUpToF8FF(EngineStore):
    """Leaves out of the list of a prefix the ids that go on behind it with a character above U+F8FF, as an emoji."""

    async def list(self, prefix: str = "") -> Any:
        found = await super().list(prefix)
        return [agent_id for agent_id in found if agent_id <= prefix + "\uf8ff"] if prefix else found


async def _deletes_many_files(ctx: Any) -> object:
    store = ctx.store
    for i in range(1_002):
        await store.save_recovered_file("a", samples.recovered(f"f{i:05}"))
    await store.delete("a")
    return len(await store.load_recovered_files("a"))


@fault(
    "LIFE-3",
    "LIFE-4",
    source="S3 ListObjectsV2 and DeleteObjects: 1,000 keys in one answer, and IsTruncated that nobody looks at",
    witness=_deletes_many_files,
)
class CraDeletesAThousandKeys(MemoryLayer):
    """Leaves those recovered files of a deleted agent that are behind the first thousand of its keys."""

    async def commit(self, batches: Any) -> Any:
        beyond = {}
        for batch in batches:
            if batch.delete:
                docs = self.space.state(batch.agent_id).docs
                keys = sorted(key for kind, key in docs if kind == DocKind.RECOVERED)[1_000:]
                beyond[batch.agent_id] = {(DocKind.RECOVERED, key): docs[DocKind.RECOVERED, key] for key in keys}
        outcomes = await self.inner.commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if batch.delete and isinstance(outcome, Applied) and beyond[batch.agent_id]:
                state = self.space.state(batch.agent_id)
                state.docs.update(beyond[batch.agent_id])
                self.space.states[batch.agent_id] = state
        return outcomes


async def _deletes_many(ctx: Any) -> object:
    store = ctx.store
    for i in range(201):
        await store.save_info(f"a{i:03}", samples.info(f"a{i:03}", template_id="gone"))
    return await store.delete_many(template_id="gone"), len(await store.list())


@fault(
    "LIFE-5",
    source="LIMIT 100 OFFSET n in a loop that deletes what it found (Django Paginator, Rails without find_each)",
    witness=_deletes_many,
)
class CraDeletesByOffset(EngineStore):
    """Passes over every second hundred of the sessions that delete_many finds."""

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        async def found(query: Any) -> Any:
            start = int(query["cursor"] or 0)
            page = await self._search.sessions({**query, "cursor": None, "limit": 100, "offset": start})
            page.next_cursor = None if page.next_cursor is None else str(start + 100)
            return page

        async def delete() -> int:
            return await self._deletions.delete_many(found, filters, _told(progress))

        return await self._run("delete_many", delete)


# --- queries ----------------------------------------------------------------------------------------------------------


@fault(
    "QRY-2",
    source="PostgreSQL metadata->>'userId' and MySQL JSON_UNQUOTE: 7 and '7' give one text",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"userId": 7})),
        lambda s: s.save_info("b", samples.info("b", metadata={"userId": "7"})),
        lambda s: the("agent_id", s.query_sessions(user_id="7")),
        lambda s: the("agent_id", s.query_sessions(metadata={"userId": 7})),
    ),
)
class CraUserIdAsText(MemoryLayer):
    """Finds sessions whose userId is a number or a boolean by the text of it."""

    async def commit(self, batches: Any) -> Any:
        return await self.inner.commit([self._with_text(batch) for batch in batches])

    def _with_text(self, batch: Any) -> Any:
        if batch.info is None:
            return batch
        value = dict(batch.info.metadata).get("userId")
        if value is None or value[0] in '"[{n':
            return batch
        pairs = (*batch.info.metadata, *metadata_index({"userId": value}))
        return replace(batch, info=replace(batch.info, metadata=pairs))


@fault(
    "QRY-5",
    source="DynamoDB Query: Limit counts what is read, and the FilterExpression is applied behind it",
    witness=seen(
        lambda s: s.save_messages("a", [m for i in range(4) for m in (*talk(f"{i}"), Message.assistant(f"{i}"))]),
        lambda s: the("text", s.query_messages(agent_id="a", role="user", limit=3)),
    ),
)
class CraFiltersBehindTheLimit(Wrapper):
    """Gives pages of messages of a role that are shorter than their limit although more follow."""

    async def query_messages(self, **filters: Any) -> Any:
        role = filters.get("role")
        if type(role) is not str or filters.get("offset"):
            return await self.inner.query_messages(**filters)
        try:
            page = await self.inner.query_messages(**{k: v for k, v in filters.items() if k != "role"})
        except InvalidArgumentError:
            if filters.get("cursor") is None:
                raise
            return await self.inner.query_messages(**filters)
        return Page([message for message in page if message.role == role], page.next_cursor, page.left_out)


async def _cursor_elsewhere(ctx: Any) -> object:
    one, two = ctx.store, await ctx.another()
    for name in "abc":
        await one.save_info(name, samples.info(name))
    page = await one.query_sessions(limit=2)
    try:
        return [session.agent_id for session in await two.query_sessions(limit=2, cursor=page.next_cursor)]
    except InvalidArgumentError:
        return "refused"


@fault(
    "QRY-5",
    source="Elasticsearch scroll ids and MongoDB cursor ids: known to the node that gave them, at most 500",
    witness=_cursor_elsewhere,
)
class CraCursorsOfAnInstance(Wrapper):
    """Gives cursors of sessions that only the instance that gave them knows."""

    __slots__ = ("cursors",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.cursors: OrderedDict[str, str] = OrderedDict()

    async def query_sessions(self, **filters: Any) -> Any:
        cursor = filters.get("cursor")
        if type(cursor) is str:
            filters["cursor"] = self.cursors.get(cursor, cursor)
        page = await self.inner.query_sessions(**filters)
        if page.next_cursor is not None:
            name = secrets.token_urlsafe(12)
            self.cursors[name] = page.next_cursor
            if len(self.cursors) > 500:
                self.cursors.popitem(last=False)
            page.next_cursor = name
        return page


@fault(
    "QRY-7",
    source="the terms aggregation of Elasticsearch gives the ten greatest buckets unless told otherwise",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i, name=f"tool{i}") for i in range(12)]),
        lambda s: s.aggregate_stats("a"),
    ),
)
class CraTenGreatestNames(EngineStore):
    """Counts tool calls by name for the ten most frequent names only."""

    async def aggregate_stats(self, agent_id: str) -> Any:
        stats = await super().aggregate_stats(agent_id)
        greatest = sorted(stats.tool_calls_by_name.items(), key=lambda pair: (-pair[1], pair[0]))[:10]
        return replace(stats, tool_calls_by_name=dict(sorted(greatest)))


# --- operations -------------------------------------------------------------------------------------------------------


@fault(
    "OPS-2",
    source="a check that goes through the sessions table and its foreign keys: rows without a parent are never joined",
    witness=seen(
        lambda s: s.save_messages("a", [Message("user", [ToolResultBlock("call_9", "x")])]),
        lambda s: codes_of(s),
    ),
)
class CraChecksOnlySessions(Wrapper):
    """Finds nothing wrong in agents without info when all agents are checked."""

    async def _is_seen(self, issue: Any) -> bool:
        return not issue.agent_id or await self.inner._reader.exists(issue.agent_id)

    async def check_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        result = await self.inner.check_consistency(agent_id, progress=progress)
        if agent_id is not None:
            return result
        issues = tuple([issue for issue in result.issues if await self._is_seen(issue)])
        return replace(result, issues=issues, consistent=not issues)

    def iter_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        found = self.inner.iter_consistency(agent_id, progress=progress)

        async def seen_ones() -> Any:
            async for issue in found:
                if agent_id is not None or await self._is_seen(issue):
                    yield issue

        return seen_ones()


async def codes_of(store: Any) -> list[str]:
    """The codes of a store's issues."""
    return [issue.code for issue in (await store.check_consistency()).issues]


async def _two_closes(ctx: Any) -> object:
    store = await ctx.another()
    write = asyncio.create_task(store.save_messages("a", samples.messages(20_000)))
    await asyncio.sleep(0.01)
    first = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    await store.close()
    is_written = write.done()
    await asyncio.gather(write, first)
    return is_written


@fault(
    "OPS-5",
    source="`if self._closed: return` at the top of close(), as in many pools: the flag is set before the work is done",
    on=OnSqlite,
    witness=_two_closes,
)
class CraSecondCloseReturnsAtOnce(Wrapper):
    """Returns at once from a close while the first close still waits for what was accepted."""

    __slots__ = ("is_closing",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.is_closing = False

    async def close(self) -> None:
        if not self.is_closing:
            self.is_closing = True
            await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _left_snapshot(ctx: Any) -> object:
    store = ctx.store
    for i in range(5):
        one = samples.snapshot(f"s{i}", count=5_000)
        task = asyncio.create_task(store.save_snapshot("a", one))
        await asyncio.sleep(0.002)
        task.cancel()
        await asyncio.wait([task])
        at_once = await store.load_snapshot("a", one.id) is not None
        await asyncio.sleep(0.3)
        if (await store.load_snapshot("a", one.id) is not None) != at_once:
            return "it came later"
    return "as seen at once"


@fault(
    "OPS-9",
    source="asyncio.shield around the driver's call, the usual advice against broken connections after a cancellation",
    on=OnSqlite,
    witness=_left_snapshot,
)
class CraShieldsSnapshots(Wrapper):
    """Goes on with the save of a snapshot whose caller was cancelled while later calls for the agent do not wait."""

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await asyncio.shield(self.inner.save_snapshot(agent_id, snapshot, fence=fence))


async def _told_of_nan(ctx: Any) -> object:
    bad = samples.snapshot().replace(metadata={"token": "hunter2", "x": float("nan")})
    try:
        await ctx.store.save_snapshot("a", bad)
    except InvalidValueError as exc:
        return "hunter2" in str(exc)
    return "stored"


@fault(
    "OPS-12",
    source="pydantic's ValidationError says input_value=...",
    witness=_told_of_nan,
)
class CraSaysTheInputValue(Wrapper):
    """Says in the error for a snapshot that is refused what its metadata begins with."""

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        try:
            await self.inner.save_snapshot(agent_id, snapshot, fence=fence)
        except InvalidValueError as exc:
            if type(snapshot) is Snapshot:
                exc.args = (f"{exc} [input_value={repr(snapshot.metadata)[:60]}]", *exc.args[1:])
            raise


async def _behind_waiters(ctx: Any) -> object:
    store = ctx.store
    lease = await store.acquire_agent_lock("a")
    waiters = [asyncio.ensure_future(_try(store, "a", 1_500)) for _ in range(5)]
    await asyncio.sleep(0.05)
    start = time.monotonic()
    await store.save_todos("b", samples.todos("x"))
    took = time.monotonic() - start
    await asyncio.gather(*waiters)
    await lease.release()
    return took > 1


async def _try(store: Any, agent_id: str, wait_ms: int) -> None:
    try:
        await store.acquire_agent_lock(agent_id, 30_000, wait_ms)
    except Exception:
        return


@fault(
    "OPS-13",
    "LOCK-6",
    "OPS-9",
    source="pg_advisory_lock on a connection of psycopg_pool, which has four unless told otherwise",
    witness=_behind_waiters,
)
class CraWaitersHoldConnections(EngineStore):
    """Keeps one of its four connections for each call that waits for a lock, so that four of them stop all agents."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pool = asyncio.Semaphore(4)

    async def _connection(self) -> None:
        if self._pool.locked():
            async with self._pool:
                return

    async def _save(self, *args: Any) -> None:
        await self._connection()
        await super()._save(*args)

    async def _load(self, *args: Any) -> Any:
        await self._connection()
        return await super()._load(*args)

    async def _query(self, *args: Any) -> Any:
        await self._connection()
        return await super()._query(*args)

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> Any:
        lock = super().acquire_agent_lock(agent_id, ttl_ms, wait_ms)
        acquire = lock._acquire

        async def on_a_connection() -> Any:
            async with self._pool:
                return await acquire()

        lock._acquire = on_a_connection
        return lock


async def _token_in_copy(ctx: Any) -> object:
    tokens = []
    for _ in range(3):
        lease = await ctx.store.acquire_agent_lock("a")
        await lease.release()
        tokens.append(lease.token)
    with tempfile.TemporaryDirectory() as folder:
        (copy,) = await ctx.store.backup(Path(folder) / "copy.db")
        async with await create_extended_store(type="sqlite", db_path=str(copy)) as store:
            lease = await store.acquire_agent_lock("a")
            await lease.release()
    return lease.token > tokens[-1]


@fault(
    "OPS-16",
    "LOCK-5",
    source="dumps without sequences: yb_backup (yugabyte-db #13250), pg_dump --data-only with COPY, MonetDB #1235",
    on=OnSqlite,
    witness=_token_in_copy,
)
class CraBackupWithoutSequences(Layer):
    """Makes backups in which the tokens of leases begin anew."""

    async def backup(self, target: Path, *args: Any) -> Any:
        made = await self.inner.backup(target, *args)
        with closing(sqlite3.connect(made[0])) as db:
            db.execute("DELETE FROM kode_meta WHERE key = 'last_token'")
            db.commit()
        return made


async def _other_sees_media(ctx: Any) -> object:
    one, two = ctx.store, await ctx.another()
    await one.save_media_cache("a", [samples.media()])
    return len(await two.load_media_cache("a"))


@fault(
    "DUR-1",
    "MED-1",
    "QRY-8",
    source="MongoDB with w: 0, Kafka with linger.ms: the call returns before the server has the write",
    witness=_other_sees_media,
)
class CraMediaIsWrittenBehind(Wrapper):
    """Returns from save_media_cache 50 ms before the media cache is written."""

    __slots__ = ("pending",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.pending: dict[str, asyncio.Task[None]] = {}

    async def _flush(self, agent_id: Any = None) -> None:
        tasks = [task for key, task in self.pending.items() if agent_id in (None, key)]
        if tasks:
            await asyncio.wait(tasks)

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        self.inner._context.check_open()
        check_agent_id(agent_id)
        await kinds.MEDIA.write(records)
        if self.inner._locks.fence(agent_id, fence) is not None:
            await self._flush(agent_id)
            await self.inner.save_media_cache(agent_id, records, fence=fence)
            return
        before, kept = self.pending.get(agent_id), list(records)

        async def write() -> None:
            if before is not None:
                await asyncio.wait([before])
            await asyncio.sleep(0.05)
            try:
                await self.inner.save_media_cache(agent_id, kept)
            finally:
                if self.pending.get(agent_id) is asyncio.current_task():
                    del self.pending[agent_id]

        self.pending[agent_id] = asyncio.create_task(write())

    async def load_media_cache(self, agent_id: str) -> Any:
        await self._flush(agent_id)
        return await self.inner.load_media_cache(agent_id)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self._flush(agent_id)
        await self.inner.delete(agent_id, fence=fence)

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        await self._flush(agent_id)
        return await self.inner.batch_fork(agent_id, count)

    async def delete_many(self, **options: Any) -> int:
        await self._flush()
        return await self.inner.delete_many(**options)

    async def backup(self, target: Any, **options: Any) -> Any:
        await self._flush()
        return await self.inner.backup(target, **options)

    async def close(self) -> None:
        await self._flush()
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


# --- locks and forks --------------------------------------------------------------------------------------------------


class _TaskLock(LeaseContext):
    async def __aenter__(self) -> Any:
        lease = await super().__aenter__()
        lease.task = asyncio.current_task()
        return lease


async def _child_of_a_block(ctx: Any) -> object:
    store, go_on = ctx.store, asyncio.Event()

    async def write_late() -> str:
        await go_on.wait()
        try:
            await store.save_todos("a", samples.todos("late"))
        except Exception as exc:
            return type(exc).__name__
        return "written"

    async with store.acquire_agent_lock("a"):
        task = asyncio.create_task(write_late())
        await asyncio.sleep(0)
    go_on.set()
    return await task


@fault(
    "LOCK-7",
    "LOCK-5",
    source="async_scoped_session(scopefunc=asyncio.current_task) of SQLAlchemy: a child task has a scope of its own",
    witness=_child_of_a_block,
)
class CraFencesOnlyItsTask(EngineStore):
    """Fences in a block only what its own task writes, and not what the tasks write that were started inside."""

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> Any:
        lock = super().acquire_agent_lock(agent_id, ttl_ms, wait_ms)
        lock.__class__ = _TaskLock
        return lock

    async def _save(self, *args: Any) -> None:
        task, held = asyncio.current_task(), ENTERED.get()
        own = tuple(lease for lease in held if lease.locks is not self._locks or getattr(lease, "task", task) is task)
        if own == held:
            await super()._save(*args)
            return
        token = ENTERED.set(own)
        try:
            await super()._save(*args)
        finally:
            ENTERED.reset(token)


async def _fork_without_parent(ctx: Any) -> object:
    store = ctx.store
    await store.save_info("p", samples.info("p"))
    await store.save_snapshot("p", samples.snapshot())
    (child,) = await store.batch_fork("p", 1)
    await store.delete("p")
    return [snapshot.id for snapshot in await store.list_snapshots(child)]


@fault(
    "FORK-2",
    "LIFE-3",
    "MSG-8",
    source="git clone --shared: the clone borrows the objects, and they are gone with the repository they came from",
    witness=_fork_without_parent,
)
class CraForksBorrowSnapshots(MemoryLayer):
    """Deletes with an agent the snapshots that its forks have from it."""

    def _forks(self) -> dict[str, list[str]]:
        return self.space.__dict__.setdefault("forks", {})

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        done = await self.inner.fork(agent_id, children, expect, now)
        if done:
            self._forks().setdefault(agent_id, []).extend(child.agent_id for child in children)
        return done

    async def commit(self, batches: Any) -> Any:
        deleted = {b.agent_id: self.space.state(b.agent_id).docs for b in batches if b.delete}
        outcomes = await self.inner.commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if batch.delete and isinstance(outcome, Applied):
                lent = {id(doc) for (kind, _), doc in deleted[batch.agent_id].items() if kind == DocKind.SNAPSHOTS}
                for child in self._forks().pop(batch.agent_id, ()):
                    docs = self.space.state(child).docs
                    for key in [key for key, doc in docs.items() if id(doc) in lent]:
                        del docs[key]
        return outcomes
