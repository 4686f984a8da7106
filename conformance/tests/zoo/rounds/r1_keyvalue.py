"""Stores by people who put agents into Redis, DynamoDB, Cassandra, etcd, S3, MongoDB, LMDB or Memcached."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import each, happened, restart, seen, talk, the
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.batch import Applied, Batch, Doc, DocKind, DocWrite, EventRange, Fence, SessionRow
from kode_core.codec import Body, digest
from kode_core.engines import scan
from kode_core.jsonvalue import decode_json, encode_json
from kode_core.layers import Layer
from kode_core.metadata import metadata_index
from kode_core.model import Bookmark
from kode_core.query import SessionQuery

# --- what several of them need ----------------------------------------------------------------------------------------


class Keyed(MemoryLayer):
    """A layer with something that all instances of the store share, and commits that nothing interrupts."""

    @property
    def shared(self) -> dict[Any, Any]:
        return vars(self.space).setdefault("shared", {})

    def commit_now(self, batch: Batch) -> Any:
        """Commit without giving way to others."""
        engine: MemoryEngine = self.inner  # type: ignore[assignment]
        return engine._commit(batch)

    def one(self, batch: Batch) -> Any:
        """Commit one batch."""
        return self.commit_now(batch)

    async def commit(self, batches: Sequence[Batch]) -> Any:
        await asyncio.sleep(0)
        return [self.one(batch) for batch in batches]


def with_docs(batch: Batch, kind: DocKind, key: Callable[[str], str]) -> Batch:
    """*batch* with other keys for its documents of one kind."""

    def changed(write: DocWrite) -> DocWrite:
        if write.kind != kind:
            return write
        doc = write.doc
        return DocWrite(kind, key(write.key), None if doc is None else replace(doc, key=key(doc.key)))

    return replace(batch, docs=tuple(map(changed, batch.docs)))


async def count_of(records: AsyncIterator[Any]) -> int:
    """How many there are."""
    return len([record async for record in records])


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-5",
    source="Redis sorted sets: a score is a double, so ZRANGEBYSCORE (2^53 does not find 2^53 + 1",
    witness=seen(
        lambda s: s.append_events("a", happened(2**53 - 1, 2**53, 2**53 + 1, 2**53 + 2)),
        lambda s: the("cursor", _all(s.read_events("a", since=Bookmark(2**53, 0)))),
    ),
)
class ComparesSeqsAsDoubles(Wrapper):
    """Leaves out of ``read_events(since=...)`` an event whose seq is greater, but the same number as a double."""

    __slots__ = ()

    def read_events(self, agent_id: str, *, since: Any = None, after_offset: Any = None, channel: Any = None) -> Any:
        events = self.inner.read_events(agent_id, since=since, after_offset=after_offset, channel=channel)
        return events if since is None else self._newer(events, since)

    async def _newer(self, events: Any, since: Any) -> AsyncIterator[Any]:
        async with aclosing(events):
            async for event in events:
                if float(event.bookmark.seq) > float(since.seq):
                    yield event


async def _all(records: AsyncIterator[Any]) -> list[Any]:
    return [record async for record in records]


async def _slow_follower(ctx: Any) -> object:
    store, other = ctx.store, await ctx.another()
    await store.append_event("a", samples.event(0))
    events = store.follow_events("a")
    got = [(await anext(events)).cursor]
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.05)
    await other.append_event("a", samples.event(1))
    got.append((await asyncio.wait_for(waiting, 5)).cursor)
    await other.append_events("a", samples.events(1_500, start=2))
    try:
        while True:
            got.append((await asyncio.wait_for(anext(events), 0.8)).cursor)
    except TimeoutError:
        return len(got), got[-1]


@fault(
    "EVT-7",
    source="Pub/Sub: a subscriber that is behind loses what does not fit into its buffer, as with put_nowait on "
    "asyncio.Queue(maxsize=1000)",
    witness=_slow_follower,
)
class DropsWhatAFollowerIsTooSlowFor(Wrapper):
    """Skips, for a follower that is at the live end, whatever is more than 1,000 events ahead of it."""

    __slots__ = ()

    def follow_events(self, agent_id: str, *, since: Any = None, after_offset: int = 0, channel: Any = None) -> Any:
        self.inner.follow_events(agent_id, since=since, after_offset=after_offset, channel=channel)  # checks them
        return self._follow(agent_id, since, after_offset, channel)

    async def _follow(self, agent_id: str, since: Any, place: int, channel: Any) -> AsyncIterator[Any]:
        how = {"since": since, "channel": channel}
        async for event in self.inner.read_events(agent_id, after_offset=place, **how):
            place = event.offset
            yield event
        while True:
            async with aclosing(self.inner.follow_events(agent_id, after_offset=place, **how)) as live:
                await anext(live)
            buffer: list[Any] = []
            async for event in self.inner.read_events(agent_id, after_offset=place, **how):
                place = event.offset
                if len(buffer) < 1_000:
                    buffer.append(event)
            for event in buffer:
                yield event


async def _two_producers(ctx: Any) -> object:
    store, other = ctx.store, await ctx.another()
    first = asyncio.ensure_future(store.append_events("a", samples.events(100)))
    await asyncio.sleep(0.02)
    await other.append_event("a", samples.event(200))
    seen_last = max([event.offset async for event in other.read_events("a")])
    before = await count_of(e async for e in other.read_events("a") if e.offset < seen_last)
    await first
    after = await count_of(e async for e in other.read_events("a") if e.offset < seen_last)
    return after - before


@fault(
    "EVT-2",
    "EVT-7",
    source="an atomic counter in DynamoDB or INCR in Redis gives the offsets, and the items are written afterwards",
    witness=_two_producers,
)
class CountsBeforeItWrites(Keyed):
    """Gives offsets to a call with more than 25 events (a page of BatchWriteItem) before its events can be read, while
    another process appends, and shows, later ones."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        nexts = [self.space.state(batch.agent_id).log.next_offset for batch in batches]
        outcomes = await super().commit(batches)
        hidden: list[tuple[str, int]] = []
        for batch, outcome, start in zip(batches, outcomes, nexts, strict=True):
            if isinstance(outcome, Applied) and len(batch.events) > 25 and not (batch.is_touching or batch.docs):
                hidden += [(batch.agent_id, offset) for offset in outcome.offsets if offset >= start]
        if hidden:
            self.shared.update(dict.fromkeys(hidden))
            try:
                await asyncio.sleep(min(0.02 * (len(hidden) // 25), 0.2))
            finally:
                for key in hidden:
                    self.shared.pop(key, None)
        return outcomes

    def _hidden(self, agent_id: str) -> set[int]:
        return {offset for owner, offset in self.shared if owner == agent_id}

    async def events(self, agent_id: str, span: EventRange) -> Any:
        hidden = self._hidden(agent_id)
        rows = await super().events(agent_id, replace(span, limit=span.limit + len(hidden)))
        return [row for row in rows if row.offset not in hidden][: span.limit]

    async def last_event(self, agent_id: str) -> Any:
        if not self._hidden(agent_id):
            return await super().last_event(agent_id)
        rows = await self.events(agent_id, EventRange(limit=1_000_000))
        return rows[-1] if rows else None


@fault(
    "EVT-5",
    source="DynamoDB: Limit counts what was evaluated and not what the filter lets through; an empty page is not the "
    "end, LastEvaluatedKey is",
    witness=seen(
        lambda s: s.append_event("a", samples.event(0, "control")),
        lambda s: s.append_events("a", samples.events(1_200, start=1)),
        lambda s: s.append_event("a", samples.event(1_201, "control")),
        lambda s: the("cursor", _all(s.read_events("a", channel="control"))),
    ),
)
class TakesAnEmptyPageForTheEnd(Wrapper):
    """Ends ``read_events(channel=...)`` at the first page of 500 events with none of that channel."""

    __slots__ = ()

    def read_events(self, agent_id: str, *, since: Any = None, after_offset: Any = None, channel: Any = None) -> Any:
        events = self.inner.read_events(agent_id, since=since, after_offset=after_offset, channel=channel)
        if channel is None:
            return events
        return self._filtered(self.inner.read_events(agent_id, since=since, after_offset=after_offset), channel)

    async def _filtered(self, events: Any, channel: str) -> AsyncIterator[Any]:
        evaluated, found = 0, 0
        async with aclosing(events):
            async for event in events:
                evaluated += 1
                if event.event.channel == channel:
                    found += 1
                    yield event
                if evaluated == 500:
                    if not found:
                        return
                    evaluated = found = 0


@fault(
    "EVT-1",
    source="XADD key MAXLEN 10000: a Redis stream that forgets its oldest entries",
    witness=seen(
        lambda s: s.append_events("a", samples.events(10_001)),
        lambda s: count_of(s.read_events("a")),
    ),
)
class TrimsTheStream(Keyed):
    """Keeps the last 10,000 events of an agent."""

    async def events(self, agent_id: str, span: EventRange) -> Any:
        log = self.space.state(agent_id).log
        extra = len(log) - 10_000
        if extra <= 0:
            return await super().events(agent_id, span)
        if span.order == "offset" or log._order is None:
            last = log.row(extra - 1)
            gone = (last.seq, last.offset)
            if span.after is None or (span.after[1] < gone[1] if span.order == "offset" else span.after < gone):
                span = replace(span, after=gone)
            return await super().events(agent_id, span)
        rows, gone_offset = (
            await super().events(agent_id, replace(span, limit=span.limit + extra)),
            log._offsets[extra - 1],
        )
        return [row for row in rows if row.offset > gone_offset][: span.limit]


@fault(
    "EVT-4",
    source="idempotency keys in the memory of the client, as of a Kafka producer, whose id is a new one after a restart",
    witness=seen(
        lambda s: s.append_events("a", happened(1, 2)),
        lambda s: s.append_event("a", samples.event(1)),
        lambda s: count_of(s.read_events("a")),
        restart,
        lambda s: s.append_event("a", samples.event(1)),
        lambda s: count_of(s.read_events("a")),
    ),
)
class RemembersItsOwnAppendsOnly(Keyed):
    """Stores an identical event again when it was another instance that appended the first."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.own: set[Any] = set()

    def one(self, batch: Batch) -> Any:
        find, events = self.space.state(batch.agent_id).log.find, []
        for event in batch.events:
            if (batch.agent_id, event.seq, event.body.digest) not in self.own:
                body = event.body
                while not batch.delete and find(event.seq, body.digest) is not None:  # the same value, another text
                    body = Body(body.text + " ", digest((body.text + " ").encode()))
                event = replace(event, body=body)
            events.append(event)
        outcome = self.commit_now(replace(batch, events=tuple(events)))
        if isinstance(outcome, Applied):
            if len(self.own) > 10_000:
                self.own.clear()
            self.own.update((batch.agent_id, event.seq, event.body.digest) for event in batch.events)
            self.own.update((batch.agent_id, event.seq, event.body.digest) for event in events)
        return outcome


# --- messages and tool calls ------------------------------------------------------------------------------------------


async def _two_appends(ctx: Any) -> object:
    store, other = ctx.store, await ctx.another()
    await asyncio.gather(store.append_messages("a", talk(*["x"] * 150)), other.append_messages("a", talk(*["y"] * 150)))
    texts = [message.text for message in await store.load_messages("a")]
    return len(texts), sum(a != b for a, b in itertools.pairwise(texts))


@fault(
    "MSG-3",
    source="DynamoDB: TransactWriteItems takes 100 items, so a longer append is several transactions",
    witness=_two_appends,
)
class AppendsAHundredAtATime(Keyed):
    """Appends more than 100 messages in several commits, between which another process may append its own."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return [await self._split(batch) for batch in batches]

    async def _split(self, batch: Batch) -> Any:
        write = batch.messages
        is_plain = batch.tool_calls is None and batch.info is None and not (batch.docs or batch.events or batch.delete)
        if write is None or not is_plain or not write.is_blind or write.is_editing or len(write.append) <= 100:
            return (await super().commit([batch]))[0]
        outcome: Any = None
        for i in range(0, len(write.append), 100):
            part = replace(write, append=write.append[i : i + 100])
            (outcome,) = await super().commit([replace(batch, messages=part, op_id=f"{batch.op_id}-{i}")])
            if not isinstance(outcome, Applied):
                break
            await asyncio.sleep(0)
        return outcome


async def _two_turns(ctx: Any) -> object:
    store, other = ctx.store, await ctx.another()
    await store.save_tool_call_records("a", [samples.tool_call(0, state="PENDING")])
    await asyncio.gather(
        store.save_turn("a", append=talk("x"), upsert_tool_calls=[samples.tool_call(0)]),
        other.save_turn("a", append=talk("y"), upsert_tool_calls=[samples.tool_call(1)]),
    )
    return sorted((call.id, call.state) for call in await store.load_tool_call_records("a"))


@fault(
    "TC-3",
    "TURN-1",
    source="GET, change, SET without WATCH: two clients of Redis lose one of their updates",
    witness=_two_turns,
)
class ReadsModifiesAndWritesInATurn(Wrapper):
    """Lets one of two concurrent ``save_turn(upsert_tool_calls=...)`` undo the other, which ``upsert_tool_call_records``
    does not."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        upserts = parts.get("upsert_tool_calls", ())
        if parts.get("tool_calls") is None and type(upserts) in (list, tuple) and upserts:
            calls = await self.inner.load_tool_call_records(agent_id)
            places = {call.id: i for i, call in enumerate(calls)}
            for call in parts.pop("upsert_tool_calls"):
                place = places.setdefault(getattr(call, "id", None), len(calls))
                calls[place : place + 1] = [call]
            parts["tool_calls"] = calls
        await self.inner.save_turn(agent_id, **parts)


@fault(
    "VAL-1",
    source="Lua scripts in Redis: cjson.encode(cjson.decode('[]')) is '{}' (redis/redis#856)",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0, input={"tags": []})]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(1, input={"tags": []}, result=[])]),
        lambda s: the("input", s.load_tool_call_records("a")),
        lambda s: the("result", s.load_tool_call_records("a")),
    ),
)
class UpsertsThroughLua(Wrapper):
    """Turns empty lists in the input and result of upserted tool calls into empty objects."""

    __slots__ = ()

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if type(records) in (list, tuple):
            records = [_through_cjson(record) for record in records]
        await self.inner.upsert_tool_call_records(agent_id, records, fence=fence)


def _through_cjson(record: Any) -> Any:
    def value(v: Any, depth: int = 0) -> Any:
        if depth > 100:
            return v
        if type(v) is list:
            return [value(item, depth + 1) for item in v] or {}
        return {k: value(item, depth + 1) for k, item in v.items()} if type(v) is dict else v

    if not (hasattr(record, "input") and hasattr(record, "result")):
        return record
    fields = {"input": value(record.input), "result": value(record.result)}
    same = fields["input"] == record.input and fields["result"] == record.result
    return record if same else replace(record, **fields)


async def _updated_at_moves(ctx: Any) -> object:
    store, moved = ctx.store, []
    await store.save_info("a", samples.info("a"))
    for call in (samples.tool_call(0, state="PENDING"), samples.tool_call(0, state="EXECUTING"), samples.tool_call(0)):
        (before,) = await store.query_sessions()
        await store.upsert_tool_call_records("a", [call])
        (after,) = await store.query_sessions()
        moved.append(after.updated_at > before.updated_at)
    return moved


@fault(
    "INFO-2",
    "LIFE-5",
    source="one item for each record in DynamoDB: a PutItem on a record does not touch the item of the agent",
    witness=_updated_at_moves,
)
class ReplacesACallWithoutTouchingTheSession(Keyed):
    """Does not move ``updated_at`` when tool call records are replaced in place and none is added."""

    def one(self, batch: Batch) -> Any:
        before = self.space.state(batch.agent_id).updated_at
        outcome = self.commit_now(batch)
        write = batch.tool_calls
        is_put = write is not None and write.put and not write.append and write.length is None
        if is_put and batch.messages is None and batch.info is None and isinstance(outcome, Applied):
            self.space.state(batch.agent_id).updated_at = before
        return outcome


@fault(
    "QRY-7",
    source="MongoDB: counters under $inc, in whose paths a dot has a meaning; its FAQ advised U+FF0E and U+FF04 instead",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i, name=n) for i, n in enumerate(["x", "mcp.x"])]),
        lambda s: s.aggregate_stats("a"),
    ),
)
class CountsUnderEscapedNames(Wrapper):
    """Gives the names of tools in ``aggregate_stats`` with U+FF0E for a dot and U+FF04 for a dollar sign."""

    __slots__ = ()

    async def aggregate_stats(self, agent_id: str) -> Any:
        stats = await self.inner.aggregate_stats(agent_id)
        escape = str.maketrans({".": "\uff0e", "$": "\uff04"})
        return replace(stats, tool_calls_by_name={k.translate(escape): n for k, n in stats.tool_calls_by_name.items()})


# --- lists and queries ------------------------------------------------------------------------------------------------


@fault(
    "LIFE-2",
    source="LevelDB and CouchDB: a range of a prefix from 'x' to 'x\\uffff', as their guides show it",
    witness=seen(
        lambda s: each(*[s.save_info(x, samples.info(x)) for x in ("team", "team/a", "team/é", "team/😀", "x")]),
        lambda s: s.list("team/"),
        lambda s: s.list(),
    ),
)
class EndsAPrefixAtFFFF(Wrapper):
    """Leaves out of ``list(prefix)`` the ids in which the prefix is followed by a character beyond U+FFFF."""

    __slots__ = ()

    async def list(self, prefix: str = "") -> Any:
        ids = await self.inner.list(prefix)
        return [i for i in ids if i < prefix + "\uffff"] if prefix else ids


@fault(
    "LIFE-2",
    source="etcd: ranges include their start, so the next page begins after the last key and not at it; 500 is the page "
    "of Kubernetes",
    witness=seen(
        lambda s: each(*[s.save_info(f"x{i:03}", samples.info(f"x{i:03}")) for i in range(501)]),
        lambda s: s.list("x"),
    ),
)
class BeginsAPageAtTheLastKey(Wrapper):
    """Gives an id twice in ``list`` where a page of 500 ends."""

    __slots__ = ()

    async def list(self, prefix: str = "") -> Any:
        ids = await self.inner.list(prefix)
        found, start = ids[:500], 499
        while len(ids) - start > 0 and len(ids) >= 500:
            found += ids[start : start + 500]
            start += 499 if len(ids) - start >= 500 else len(ids)
        return found


@fault(
    "QRY-2",
    source="MongoDB: {'metadata.tag': 'x'} also matches a document in which tag is an array that contains 'x'",
    witness=seen(
        lambda s: each(
            s.save_info("a", samples.info("a", metadata={"tag": "x"})),
            s.save_info("b", samples.info("b", metadata={"tag": ["x", "y"]})),
            s.save_info("c", samples.info("c", metadata={"tag": ["y"]})),
        ),
        lambda s: the("agent_id", s.query_sessions(metadata={"tag": "x"})),
    ),
)
class LooksIntoArrays(Keyed):
    """Finds, by a metadata filter, sessions in which the value is a list that contains what was asked for."""

    async def find_sessions(self, query: SessionQuery) -> Any:
        if not query.metadata:
            return await super().find_sessions(query)
        rest, found = replace(query, metadata=()), []
        for state in self.space.states.values():
            info = state.info
            if info is None or not scan.session_matches(state.agent_id, info, state.updated_at, rest):
                continue
            if not set(query.metadata) <= {*info.metadata, *_elements(info.body.text)}:
                continue
            summary: Any = state.summary()
            row = SessionRow(state.agent_id, info.body, info.created_at, state.updated_at, summary.messages.count)
            found.append(((getattr(row, query.sort_by), row.agent_id), row))
        return scan.page(found, query)


def _elements(text: str) -> list[tuple[str, str]]:
    metadata: Any = decode_json(text)
    lists = {k: v for k, v in (metadata.get("metadata") or {}).items() if type(v) is list}
    return [pair for key, value in lists.items() for item in value for pair in metadata_index({key: item})]


async def _delete_behind(ctx: Any) -> object:
    store = ctx.store
    for name in "abcde":
        await store.save_info(name, samples.info(name))
    page = await store.query_sessions(limit=2)
    got = [session.agent_id for session in page]
    await store.delete(got[-1])
    rest = await store.query_sessions(limit=2, cursor=page.next_cursor)
    return got, [session.agent_id for session in rest]


@fault(
    "QRY-5",
    "LIFE-5",
    "QRY-6",
    source="Firestore: startAfter(snapshot of the last document), which has to be loaded first; gone, nothing is after it",
    witness=_delete_behind,
)
class LooksUpTheLastOfThePage(Layer):
    """Gives no further sessions when the last one of the page before was deleted."""

    async def find_sessions(self, query: SessionQuery) -> Any:
        if query.after is not None:
            summary = await self.inner.summary(query.after[1])
            if summary is None or summary.info is None:
                return []
        return await super().find_sessions(query)


async def _message_of_a_changed_one(ctx: Any) -> object:
    store, tasks = ctx.store, []
    for i in range(60):
        await store.save_turn(f"x{i:02}", append=talk("hi"), info=samples.info(f"x{i:02}", template_id="old"))

    def progress(done: int, _: int | None) -> None:
        if not tasks:  # the oldest of the page come last
            tasks.append(asyncio.ensure_future(store.save_info("x00", samples.info("x00", template_id="new"))))

    deleted = await store.delete_many(template_id="old", progress=progress)
    await asyncio.gather(*tasks)
    return deleted, await store.list(), len(await store.load_messages("x00"))


@fault(
    "LIFE-5",
    source="Scan with a filter, then BatchWriteItem in DynamoDB, which takes no conditions",
    witness=_message_of_a_changed_one,
)
class DeletesWhatItFoundBefore(Layer):
    """Deletes in ``delete_many`` a session that does not match any more since it was found."""

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await super().commit([replace(b, expect_updated_at=None) if b.delete else b for b in batches])


# --- locks ------------------------------------------------------------------------------------------------------------


async def _locks_of(store: Any, *ids: str) -> list[Any]:
    got = []
    for agent_id in ids:
        try:
            await store.acquire_agent_lock(agent_id)
            got.append("held")
        except Exception as exc:
            got.append(type(exc).__name__)
    return got


@fault(
    "ID-2",
    "LOCK-1",
    source="Memcached: a key has 250 bytes at most, and a longer one, 'lock:' included, is cut",
    errors=True,
    witness=seen(
        lambda s: _locks_of(s, "x" * 240 + "a", "x" * 240 + "b"),
        lambda s: _locks_of(s, "y" * 254 + "a", "y" * 254 + "b"),
    ),
)
class CutsKeysOfLocks(Keyed):
    """Takes the locks of two agents for one when the first 245 bytes of their ids are the same."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        key = f"lock:{agent_id}".encode()[:250]
        if len(key) == 250:
            for other, (_, until) in list(self.space.leases.items()):
                if other != agent_id and until > time.monotonic() and f"lock:{other}".encode()[:250] == key:
                    return None
        return await super().acquire_lease(agent_id, owner, ttl_ms)


async def _tokens(ctx: Any) -> object:
    store, tokens = ctx.store, []
    for call in (None, store.save_todos("a", samples.todos("x")), store.delete("a")):
        if call is not None:
            await call
        lease = await store.acquire_agent_lock("a")
        tokens.append(lease.token)
        await lease.release()
    return [a < b for a, b in itertools.pairwise(tokens)]


@fault(
    "LOCK-5",
    source="HINCRBY agent:<id> token: the counter is a field of the hash that DEL removes with the agent",
    witness=_tokens,
)
class CountsTokensInTheAgent(Keyed):
    """Begins again with the tokens of an agent's leases when the agent was deleted."""

    def _real(self, agent_id: str, fence: Fence) -> Fence:
        token = self.shared.get((agent_id, fence.owner, fence.token))
        return fence if token is None else Fence(fence.owner, token)

    def one(self, batch: Batch) -> Any:
        if batch.fence is not None:
            batch = replace(batch, fence=self._real(batch.agent_id, batch.fence))
        outcome = self.commit_now(batch)
        if batch.delete and isinstance(outcome, Applied):
            self.shared.pop(batch.agent_id, None)
        return outcome

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        real = await super().acquire_lease(agent_id, owner, ttl_ms)
        if real is None:
            return None
        token = self.shared[agent_id] = self.shared.get(agent_id, 0) + 1
        self.shared[agent_id, owner, token] = real
        return token

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await super().renew_lease(agent_id, self._real(agent_id, fence), ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await super().release_lease(agent_id, self._real(agent_id, fence))
        self.shared.pop((agent_id, fence.owner, fence.token), None)


# --- the other kinds --------------------------------------------------------------------------------------------------


@fault(
    "ID-4",
    "HIS-1",
    source="LMDB: a key has 511 bytes at most (MDB_BAD_VALSIZE), and a longer one is cut",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w" * 600 + "1")),
        lambda s: s.save_history_window("a", samples.window("w" * 600 + "2")),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class CutsIdsOfWindows(Layer):
    """Takes two history windows for one when the first 511 bytes of their ids are the same."""

    @staticmethod
    def _cut(key: str) -> str:
        return key.encode()[:511].decode(errors="ignore")

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await super().commit([with_docs(batch, DocKind.WINDOWS, self._cut) for batch in batches])

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        if kind == DocKind.WINDOWS and key is not None:
            key = self._cut(key)
        return await super().docs(agent_id, kind, key)


@fault(
    "LIFE-3",
    "LIFE-4",
    source="S3: ListObjectsV2 and DeleteObjects take 1,000 keys, and nobody follows the continuation token",
    witness=seen(
        lambda s: each(*[s.save_recovered_file("a", samples.recovered(f"f{i:04}")) for i in range(1_001)]),
        lambda s: s.delete("a"),
        lambda s: the("path", s.load_recovered_files("a")),
    ),
)
class DeletesOnePageOfFiles(Keyed):
    """Deletes with an agent 1,000 of its recovered files, and leaves the others."""

    def one(self, batch: Batch) -> Any:
        docs = self.space.state(batch.agent_id).docs_of(DocKind.RECOVERED, None) if batch.delete else []
        outcome = self.commit_now(batch)
        left = sorted(docs, key=lambda doc: doc.key)[1_000:]
        if left and isinstance(outcome, Applied):
            again = tuple(DocWrite(DocKind.RECOVERED, doc.key, doc) for doc in left)
            self.commit_now(Batch(agent_id=batch.agent_id, op_id=secrets.token_hex(8), now=batch.now, docs=again))
        return outcome


@fault(
    "HIS-2",
    "ID-4",
    source="S3 over HTTP: a '#' in an unencoded key begins the fragment of the URL, and is not sent (BerriAI/litellm#35817)",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("notes#1.md", content="one")),
        lambda s: s.save_recovered_file("a", samples.recovered("notes#2.md", content="two")),
        lambda s: the("path", s.load_recovered_files("a")),
    ),
)
class PutsPathsIntoUrls(Layer):
    """Takes two recovered files of one timestamp for one when their paths are the same up to a number sign."""

    @staticmethod
    def _sent(key: str) -> str:
        path, timestamp = decode_json(key)  # type: ignore[misc]
        return encode_json([str(path).partition("#")[0], timestamp], "key")

    async def commit(self, batches: Sequence[Batch]) -> Any:
        return await super().commit([with_docs(batch, DocKind.RECOVERED, self._sent) for batch in batches])


async def _media_of_a_fork(ctx: Any) -> object:
    store = ctx.store
    await store.save_info("a", samples.info("a"))
    await store.save_media_cache("a", [samples.media("one")])
    (fork,) = await store.batch_fork("a", 1)
    found = [await store.load_media_cache(fork)]
    await store.save_media_cache("a", [samples.media("two")])
    found.append(await store.load_media_cache(fork))
    await store.delete("a")
    return [*found, await store.load_media_cache(fork)]


@fault(
    "FORK-2",
    "FORK-1",
    source="objects in S3 are large: a copy refers to the same key instead of copying it",
    witness=_media_of_a_fork,
)
class SharesTheMediaOfAFork(Keyed):
    """Reads the media cache of a fork from its parent for as long as the fork has not saved its own."""

    async def fork(self, agent_id: str, children: Any, expect: Body, now: int) -> bool:
        done = await super().fork(agent_id, children, expect, now)
        if done:
            self.shared.update((child.agent_id, agent_id) for child in children)
        return done

    def one(self, batch: Batch) -> Any:
        outcome = self.commit_now(batch)
        is_own = batch.delete or any(write.kind == DocKind.MEDIA for write in batch.docs)
        if is_own and isinstance(outcome, Applied):
            self.shared.pop(batch.agent_id, None)
        return outcome

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        while kind == DocKind.MEDIA and agent_id in self.shared:
            agent_id = self.shared[agent_id]
        return await super().docs(agent_id, kind, key)


@fault(
    "ID-2",
    "LIFE-3",
    source="keys like snap:<agent>:<id> in Redis or RocksDB: the range of a prefix that is deleted goes beyond the agent",
    witness=seen(
        lambda s: s.save_snapshot("user:1", samples.snapshot()),
        lambda s: s.save_snapshot("user:1:draft", samples.snapshot()),
        lambda s: s.save_snapshot("user:10", samples.snapshot()),
        lambda s: s.delete("user:1"),
        lambda s: s.list_snapshots("user:1"),
        lambda s: s.list_snapshots("user:1:draft"),
        lambda s: s.list_snapshots("user:10"),
    ),
)
class DeletesAPrefixOfKeys(Keyed):
    """Deletes with an agent the snapshots of those whose id is its own, a colon, and more."""

    def one(self, batch: Batch) -> Any:
        outcome = self.commit_now(batch)
        if batch.delete and isinstance(outcome, Applied):
            for other, state in list(self.space.states.items()):
                if other.startswith(f"{batch.agent_id}:"):
                    for key in [key for key in state.docs if key[0] == DocKind.SNAPSHOTS]:
                        del state.docs[key]
                    if state.is_empty:
                        del self.space.states[other]
        return outcome


async def _clock_behind(ctx: Any) -> object:
    ahead = await ctx.another(clock=lambda: samples.T0 + 5_000)
    behind = await ctx.another(clock=lambda: samples.T0)
    await ahead.save_todos("a", samples.todos("one"))
    await behind.save_todos("a", samples.todos("two"))
    return await ahead.load_todos("a")


@fault(
    "TODO-1",
    source="Cassandra: the write with the later timestamp of a client wins, whichever came last",
    witness=_clock_behind,
)
class LastTimestampWins(Keyed):
    """Ignores todos that are saved by a store whose clock is behind that of the last one that saved some."""

    def one(self, batch: Batch) -> Any:
        if any(write.kind == DocKind.TODOS for write in batch.docs):
            if batch.now < self.shared.get(batch.agent_id, batch.now):
                return self.commit_now(
                    replace(batch, docs=tuple(write for write in batch.docs if write.kind != DocKind.TODOS))
                )
            outcome = self.commit_now(batch)
            if isinstance(outcome, Applied):
                self.shared[batch.agent_id] = batch.now
            return outcome
        if batch.delete:
            self.shared.pop(batch.agent_id, None)
        return self.commit_now(batch)


@fault(
    "TODO-1",
    "VAL-4",
    source="Memcached: a value over 1 MiB is not set, and python-memcached says so with a 0 that nobody looks at",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("short")),
        lambda s: s.save_todos("a", samples.todos("x" * 2**20)),
        lambda s: _length(s.load_todos("a")),
    ),
)
class CachesWhatFits(Keyed):
    """Gives the todos from before out of the cache after todos of more than 1 MiB were saved."""

    def one(self, batch: Batch) -> Any:
        old = self.space.state(batch.agent_id).docs.get((DocKind.TODOS, ""))
        outcome = self.commit_now(batch)
        if isinstance(outcome, Applied):
            new = next((write.doc for write in batch.docs if write.kind == DocKind.TODOS), None)
            if batch.delete or (new is not None and _fits(new)):
                self.shared.pop(batch.agent_id, None)
            elif new is not None and old is not None and _fits(old):
                self.shared.setdefault(batch.agent_id, old)
        return outcome

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        if kind == DocKind.TODOS and agent_id in self.shared:
            return [self.shared[agent_id]]
        return await super().docs(agent_id, kind, key)


def _fits(doc: Doc) -> bool:
    return len(doc.body.text.encode()) <= 2**20


async def _length(todos: Any) -> int:
    return len((await todos).todos[0].title)
