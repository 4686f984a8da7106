"""Thirty-one clauses, each broken once by somebody who skimmed the contract."""

from __future__ import annotations

import asyncio
import json
import posixpath
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from enum import Enum
from secrets import token_urlsafe
from typing import Any

from kode_conformance.values import samples
from kode_conformance.values.samples import T0
from msgspec.structs import replace

from conformance.tests.zoo.base import CommittingLayer, MemoryLayer, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import each, happened, seen, talk, the
from kode_core.batch import Applied, DocKind, EventRange, ListKind
from kode_core.codec import decode, encode
from kode_core.engines.state import AgentState
from kode_core.errors import InvalidArgumentError
from kode_core.layers import Layer
from kode_core.model import AgentInfo, Bookmark, Message, Snapshot, ToolCallApproval, ToolResultBlock
from kode_core.store import EngineStore

# --- values -----------------------------------------------------------------------------------------------------------


@fault(
    "VAL-1",
    source="SQLite: a column of NUMERIC affinity stores 5.0 as the integer 5, where a REAL one would not",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered().replace(mtime=1700000000000.0)),
        lambda s: the("mtime", s.load_recovered_files("a")),
    ),
)
class MarNumericMtime(Wrapper):
    """Gives the ``mtime`` of a recovered file back as an integer when it was a float without a fraction."""

    __slots__ = ()

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        mtime = getattr(file, "mtime", None)
        if type(mtime) is float and mtime.is_integer() and abs(mtime) < 2**63:
            file = file.replace(mtime=int(mtime))
        await self.inner.save_recovered_file(agent_id, file, fence=fence)


class _Tier(Enum):
    GOLD = "gold"


@fault(
    "VAL-2",
    source="orjson and pydantic's model_dump(mode='json'): an Enum is written as its value, unasked",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"tier": _Tier.GOLD})),
        lambda s: s.load_info("a"),
    ),
)
class MarEnumsByValue(Wrapper):
    """Takes an Enum in the metadata of an info and stores its value."""

    __slots__ = ()

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        await self.inner.save_info(agent_id, self._plain(info), fence=fence)

    async def save_turn(self, agent_id: str, *, info: Any = None, **parts: Any) -> None:
        await self.inner.save_turn(agent_id, info=self._plain(info), **parts)

    def _plain(self, info: Any) -> Any:
        metadata = getattr(info, "metadata", None)
        if type(metadata) is dict and any(isinstance(value, Enum) for value in metadata.values()):
            plain = {k: v.value if isinstance(v, Enum) else v for k, v in metadata.items()}
            return info.replace(metadata=plain)
        return info


def _approved(**approval: Any) -> Any:
    return samples.tool_call(0, approval=ToolCallApproval(required=True, decision="deny", **approval))


@fault(
    "VAL-3",
    "VAL-1",
    source='Go: json:",omitempty" on the fields of a nested struct leaves out 0, "" and an empty map',
    witness=seen(
        lambda s: s.save_tool_call_records("a", [_approved(decided_by="", decided_at=0, note="", meta={})]),
        lambda s: the("approval", s.load_tool_call_records("a")),
    ),
)
class MarOmitsEmptyInApprovals(Wrapper):
    """Forgets an empty note, an empty name, an empty meta and the time 0 of a tool call's approval."""

    __slots__ = ()

    async def save_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await self.inner.save_tool_call_records(agent_id, self._omitted(records), fence=fence)

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await self.inner.upsert_tool_call_records(agent_id, self._omitted(records), fence=fence)

    async def save_turn(
        self, agent_id: str, *, tool_calls: Any = None, upsert_tool_calls: Any = (), **parts: Any
    ) -> None:
        await self.inner.save_turn(
            agent_id,
            tool_calls=self._omitted(tool_calls),
            upsert_tool_calls=self._omitted(upsert_tool_calls),
            **parts,
        )

    def _omitted(self, records: Any) -> Any:
        return [*map(self._one, records)] if type(records) in (list, tuple) else records

    def _one(self, record: Any) -> Any:
        approval = getattr(record, "approval", None)
        if type(approval) is not ToolCallApproval:
            return record
        empty = {"decided_by": "", "decided_at": 0, "note": "", "meta": {}}
        gone = [name for name, value in empty.items() if _is_same(getattr(approval, name), value)]
        return record.replace(approval=approval.replace(**dict.fromkeys(gone))) if gone else record


def _is_same(given: Any, value: Any) -> bool:
    return type(given) is type(value) and given == value


_AFTER_1 = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=T0 + 1, microseconds=500)


@fault(
    "VAL-5",
    "QRY-2",
    source="int(dt.timestamp() * 1000): the microseconds are cut off, so a bound between two milliseconds moves back",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i) for i in range(4)]),
        lambda s: the("id", s.query_tool_calls(created_after=_AFTER_1)),
        lambda s: the("id", s.query_tool_calls(created_before=_AFTER_1)),
    ),
)
class MarCutsMicroseconds(EngineStore):
    """Compares the times of tool calls with an aware datetime that was cut to milliseconds."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        for name in ("created_after", "created_before"):
            value = filters.get(name)
            if isinstance(value, datetime) and value.utcoffset() is not None:
                filters[name] = value.replace(microsecond=value.microsecond // 1000 * 1000)
        return await super().query_tool_calls(**filters)


# --- identity ---------------------------------------------------------------------------------------------------------


@fault(
    "ID-1",
    "QRY-1",
    source="a query builder with `if agent_id:` before each condition",
    witness=seen(
        lambda s: s.save_messages("a", talk("x")),
        lambda s: the("text", s.query_messages(agent_id="")),
    ),
)
class MarEmptyIdIsNoFilter(EngineStore):
    """Gives the messages of all agents to a query for the agent with the empty id, which is none."""

    async def query_messages(self, **filters: Any) -> Any:
        if filters.get("agent_id") == "":
            del filters["agent_id"]
        return await super().query_messages(**filters)


@fault(
    "ID-2",
    "LOCK-1",
    source="MySQL GET_LOCK(): the names of user locks are compared without regard to case",
    errors=True,
    witness=seen(
        lambda s: s.acquire_agent_lock("Agent"),
        lambda s: s.acquire_agent_lock("agent"),
    ),
)
class MarLocksWithoutCase(MemoryLayer):
    """Lets two agents whose ids differ in case alone share one lock."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        name, now = agent_id.casefold(), time.monotonic()
        for other, (_, until) in self.space.leases.items():
            if other != agent_id and until > now and other.casefold() == name:
                return None
        return await super().acquire_lease(agent_id, owner, ttl_ms)


@fault(
    "ID-4",
    "HIS-1",
    source="MySQL InnoDB: a unique index over a prefix of a long text, of at most 3,072 bytes",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w" * 4000 + "1")),
        lambda s: s.save_history_window("a", samples.window("w" * 4000 + "2")),
        lambda s: the("id", s.load_history_windows("a")),
    ),
)
class MarWindowsByPrefix(Layer):
    """Replaces a history window by another whose id has the same first 3,072 bytes."""

    async def commit(self, batches: Sequence[Any]) -> Sequence[Any]:
        return await super().commit([self._cut(batch) for batch in batches])

    def _cut(self, batch: Any) -> Any:
        if not any(doc.kind == DocKind.WINDOWS for doc in batch.docs):
            return batch
        docs = (
            replace(doc, key=doc.key.encode()[:3072].decode(errors="ignore")) if doc.kind == DocKind.WINDOWS else doc
            for doc in batch.docs
        )
        return replace(batch, docs=tuple(docs))


# --- messages, tool calls, turns --------------------------------------------------------------------------------------


async def _times(store: Any, agent_id: str = "a") -> list[int]:
    return await the("created_at", store.query_messages(agent_id=agent_id, order="asc"))


async def _edits_last(store: Any) -> object:
    await store.save_messages("a", talk("hello", "par"))
    before = await _times(store)
    await asyncio.sleep(0.02)
    await store.save_messages("a", talk("hello", "partial answer"))
    return await _times(store) == before


@fault(
    "MSG-4",
    source="INSERT ... ON CONFLICT (agent_id, position) DO UPDATE SET body = excluded.body, created_at = excluded.created_at",
    witness=seen(_edits_last),
)
class MarRestampsTheLast(CommittingLayer):
    """Gives the last message a new time when it is replaced where it stands, as a streamed answer is."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        write = batch.messages
        if write is not None and len(write.put) == 1 and not write.append:
            position, row = write.put[0]
            count = len(self.space.state(batch.agent_id).lists[ListKind.MESSAGES].rows)
            if position == count - 1 and write.length in (None, count):
                row = replace(row, created_at=max(row.created_at, batch.now))
                batch = replace(batch, messages=replace(write, put=((position, row),)))
        return commit(batch)


@fault(
    "MSG-6",
    "QRY-8",
    on=OnSqlite,
    source="a count that is cached next to the row and dropped by the own writes alone, as an ORM's session does",
    witness=seen(
        lambda s, t: s.save_info("a", samples.info("a")),
        lambda s, t: t.load_info("a"),
        lambda s, t: s.append_messages("a", talk("x", "y")),
        lambda s, t: t.load_info("a"),
    ),
)
class MarRemembersCounts(EngineStore):
    """Tells in ``load_info`` the number of messages that this instance saw, until it writes to the agent itself."""

    _counts: dict[str, int]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._counts = {}

    async def load_info(self, agent_id: str) -> Any:
        info = await super().load_info(agent_id)
        if info is None:
            self._counts.pop(agent_id, None)
            return None
        if len(self._counts) > 1000:
            self._counts.clear()
        return info.replace(message_count=self._counts.setdefault(agent_id, info.message_count))

    async def _save(self, name: str, agent_id: str, fence: Any, build: Any) -> None:
        try:
            await super()._save(name, agent_id, fence, build)
        finally:
            if type(agent_id) is str:
                self._counts.pop(agent_id, None)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        self._counts.pop(agent_id, None)


@fault(
    "MSG-8",
    "INFO-1",
    source="a trigger on the table of snapshots that keeps a denormalised column of the table of agents up to date",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_snapshot("a", samples.snapshot(count=9)),
        lambda s: s.load_info("a"),
    ),
)
class MarSnapshotMovesInfo(CommittingLayer):
    """Moves the info's last safe fork point forward when a snapshot of a later one is saved."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        outcome = commit(batch)
        state = self.space.states.get(batch.agent_id)
        if isinstance(outcome, Applied) and state is not None and state.info is not None and batch.info is None:
            info = decode(AgentInfo, state.info.body, "info")
            for write in batch.docs:
                if write.kind == DocKind.SNAPSHOTS and write.doc is not None:
                    place = decode(Snapshot, write.doc.body, "snapshot").last_sfp_index
                    if place > info.last_sfp_index:
                        info = info.replace(last_sfp_index=place)
                        state.info = replace(state.info, body=encode(AgentInfo, info, "info"))
        return outcome


@fault(
    "TC-3",
    source="PostgreSQL: 'ON CONFLICT DO UPDATE command cannot affect row a second time', cured with DISTINCT ON (id)",
    witness=seen(
        lambda s: s.save_turn(
            "a", upsert_tool_calls=[samples.tool_call(0, state="PENDING"), samples.tool_call(0, state="COMPLETED")]
        ),
        lambda s: the("state", s.load_tool_call_records("a")),
    ),
)
class MarFirstOfTwinsStays(Wrapper):
    """Keeps of two records with one id in ``upsert_tool_calls`` of a turn the earlier one."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, upsert_tool_calls: Any = (), **parts: Any) -> None:
        if type(upsert_tool_calls) in (list, tuple):
            distinct: dict[Any, Any] = {}
            for i, record in enumerate(upsert_tool_calls):
                name = getattr(record, "id", None)
                distinct.setdefault(name if type(name) is str else i, record)
            upsert_tool_calls = [*distinct.values()]
        await self.inner.save_turn(agent_id, upsert_tool_calls=upsert_tool_calls, **parts)


@fault(
    "TURN-1",
    "EVT-4",
    "VAL-2",
    source="an outbox with the wrong order: the state is committed first, and the events are published after it",
    witness=seen(
        lambda s: s.save_turn("a", append=talk("x"), events=[*happened(1), *happened(1)]),
        lambda s: s.load_messages("a"),
        lambda s: s.read_events("a"),
    ),
)
class MarEventsAfterTheTurn(Wrapper):
    """Commits the events of a turn after everything else, so that a refusal of them leaves the rest written."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, events: Any = (), fence: Any = None, **parts: Any) -> None:
        if not events or not any(value is not None and value != () for value in parts.values()):
            return await self.inner.save_turn(agent_id, events=events, fence=fence, **parts)
        await self.inner.save_turn(agent_id, fence=fence, **parts)
        await self.inner.append_events(agent_id, events, fence=fence)


# --- events -----------------------------------------------------------------------------------------------------------


async def _offset_after_delete(store: Any) -> object:
    first = await store.append_events("a", happened(1, 2, 3))
    await store.delete("a")
    return (await store.append_event("a", samples.event(9))) > max(first)


@fault(
    "EVT-2",
    "LIFE-3",
    source="SQLite: INTEGER PRIMARY KEY without AUTOINCREMENT gives the largest rowid + 1, and used ones come again",
    witness=seen(_offset_after_delete),
)
class MarOffsetsFromTheRows(CommittingLayer):
    """Begins the offsets of an agent anew after it was deleted."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        before = self.space.counter
        outcome = commit(batch)
        if batch.delete:
            self.space.counter = before
        return outcome


@fault(
    "EVT-4",
    "VAL-1",
    errors=True,
    source="Python: True == 1 == 1.0, so entries that JSON tells apart are equal dataclasses (and so in a jsonb column)",
    witness=seen(
        lambda s: s.append_events("a", [samples.event(1, step=1), samples.event(1, step=True)]),
        lambda s: s.read_events("a"),
    ),
)
class MarTwinsByEquality(Wrapper):
    """Refuses two events in one call that differ in 1 and True, or in 1 and 1.0, alone."""

    __slots__ = ()

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Any:
        places: dict[Any, list[int]] = {}
        for j, entry in enumerate(timelines if type(timelines) in (list, tuple) else ()):
            bookmark = getattr(entry, "bookmark", None)
            key = (
                getattr(bookmark, "seq", None),
                getattr(bookmark, "timestamp", None),
                repr(getattr(entry, "cursor", None)),
            )
            if type(key[0]) is not int or type(key[1]) is not int:
                continue
            same = places.setdefault(key, [])
            for i in same[-50:]:
                if timelines[i] == entry:
                    raise InvalidArgumentError(f"events[{i}] and events[{j}] are identical")
            same.append(j)
        return await self.inner.append_events(agent_id, timelines, fence=fence)


@fault(
    "EVT-5",
    source="`if after_offset:` in Python, for which an offset of 0 is none",
    witness=seen(
        lambda s: s.append_events("a", happened(5, 1, 3)),
        lambda s: the("bookmark", _read(s.read_events("a", after_offset=0))),
    ),
)
class MarZeroIsNoOffset(Wrapper):
    """Reads events by seq instead of by offset when they are read from the beginning with ``after_offset=0``."""

    __slots__ = ()

    def read_events(self, agent_id: str, *, since: Any = None, after_offset: Any = None, channel: Any = None) -> Any:
        if type(after_offset) is int and not after_offset:
            after_offset = None
        return self.inner.read_events(agent_id, since=since, after_offset=after_offset, channel=channel)


async def _read(events: AsyncIterator[Any]) -> list[Any]:
    return [event async for event in events]


def _twice_five() -> list[Any]:
    first, second = samples.event(5), samples.event(5, delta="again")
    return [first, second.replace(bookmark=Bookmark(5, T0 + 9_000))]


@fault(
    "EVT-6",
    source="max() in Python, MAX_BY and LIMIT 1 without a second sort key: of equal ones the first",
    witness=seen(
        lambda s: s.append_events("a", _twice_five()),
        lambda s: s.last_bookmark("a"),
    ),
)
class MarFirstOfTheHighest(Layer):
    """Gives as last bookmark the one that was appended first among those with the highest seq."""

    async def last_event(self, agent_id: str) -> Any:
        row = await super().last_event(agent_id)
        if row is None or row.seq == -(2**63):
            return row
        return (await self.events(agent_id, EventRange(since_seq=row.seq - 1, limit=1)))[0]


async def _followed(store: Any) -> list[int]:
    await store.append_events("a", happened(1, 7))
    seqs = []

    async def follow() -> None:
        async for event in store.follow_events("a", since=Bookmark(5, T0)):
            seqs.append(event.bookmark.seq)

    task = asyncio.create_task(follow())
    await asyncio.sleep(0.3)
    await store.append_events("a", happened(2, 8))
    await asyncio.sleep(0.5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return seqs


@fault(
    "EVT-7",
    source="a catch-up query with a WHERE clause, and then a subscription (LISTEN, change stream) that has none",
    witness=seen(_followed),
)
class MarSinceForTheStored(Wrapper):
    """Applies ``since`` to the events that are stored when following begins, and not to those that come."""

    __slots__ = ()

    def follow_events(self, agent_id: str, *, since: Any = None, after_offset: Any = 0, channel: Any = None) -> Any:
        plain = self.inner.follow_events(agent_id, since=since, after_offset=after_offset, channel=channel)
        return plain if since is None else self._follow(agent_id, since, after_offset, channel)

    async def _follow(self, agent_id: str, since: Any, after_offset: int, channel: Any) -> AsyncIterator[Any]:
        async with aclosing(self.inner.read_events(agent_id, after_offset=after_offset)) as stored:
            async for event in stored:
                after_offset = event.offset
                if event.bookmark.seq > since.seq and channel in (None, event.event.channel):
                    yield event
        live = self.inner.follow_events(agent_id, after_offset=after_offset, channel=channel)
        async with aclosing(live) as events:
            async for event in events:
                yield event


# --- the other kinds --------------------------------------------------------------------------------------------------


@fault(
    "HIS-2",
    "ID-4",
    source="os.path.normpath for the name of a blob: './a' and 'a' are one file",
    witness=seen(
        lambda s: each(*(s.save_recovered_file("a", samples.recovered(p)) for p in ("docs/a.md", "./docs//a.md"))),
        lambda s: the("path", s.load_recovered_files("a")),
    ),
)
class MarNormalisesPaths(Layer):
    """Replaces a recovered file by another of the same time whose path names the same place in a file system."""

    async def commit(self, batches: Sequence[Any]) -> Sequence[Any]:
        return await super().commit([self._normal(batch) for batch in batches])

    def _normal(self, batch: Any) -> Any:
        if not any(write.kind == DocKind.RECOVERED for write in batch.docs):
            return batch
        return replace(batch, docs=tuple(map(self._one, batch.docs)))

    def _one(self, write: Any) -> Any:
        if write.kind != DocKind.RECOVERED:
            return write
        path, timestamp = json.loads(write.key)
        return replace(write, key=json.dumps([posixpath.normpath(path), timestamp]))


async def _moves(store: Any) -> object:
    await store.save_info("a", samples.info("a"))
    await store.save_messages("a", talk("x", "y"))
    before = (await store.query_sessions())[0].updated_at
    await asyncio.sleep(0.02)
    await store.save_messages("a", talk("x", "y"))
    return (await store.query_sessions())[0].updated_at > before


@fault(
    "INFO-2",
    source="SQLAlchemy and Hibernate: a flush writes no UPDATE for what is not dirty, so onupdate=now() does not run",
    witness=seen(_moves),
)
class MarNotDirty(CommittingLayer):
    """Leaves ``updated_at`` where it is when a save of messages or tool calls changes nothing."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        state = self.space.states.get(batch.agent_id)
        before = 0 if state is None else state.updated_at
        dirty = (
            batch.info is not None or state is None or any(self._changes(state, *item) for item in batch.lists.items())
        )
        outcome = commit(batch)
        if before and not dirty and not batch.delete and state is not None and isinstance(outcome, Applied):
            state.updated_at = before
        return outcome

    def _changes(self, state: AgentState, kind: ListKind, write: Any) -> bool:
        rows = state.lists[kind]
        is_cut = write.length is not None and write.length < len(rows.rows)
        return bool(write.put or write.append or is_cut or not rows.version)


# --- lifecycle --------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-2",
    source="SQLite: LIKE 'Ab%' ESCAPE '\\' takes no account of the case of ASCII letters unless a pragma says so",
    witness=seen(
        lambda s: each(*(s.save_info(i, samples.info(i)) for i in ("Run-1", "run-2", "other"))),
        lambda s: s.list("run"),
    ),
)
class MarLikeWithoutCase(Wrapper):
    """Lists also the ids that begin with the prefix in other cases of ASCII letters."""

    __slots__ = ()

    async def list(self, prefix: str = "") -> Any:
        if type(prefix) is not str or not prefix.isascii() or "\0" in prefix:
            return await self.inner.list(prefix)
        return [
            i for i in await self.inner.list() if i[: len(prefix)].isascii() and i.lower().startswith(prefix.lower())
        ]


async def _old_times(store: Any) -> object:
    await store.save_messages("a", talk("hello"))
    before = await _times(store)
    await store.delete("a")
    await asyncio.sleep(0.02)
    await store.save_messages("a", talk("hello"))
    return await _times(store) > before


@fault(
    "LIFE-4",
    "LIFE-3",
    "MSG-4",
    source="a cache of first-seen times by (agent, hash of the message) that a delete does not empty",
    witness=seen(_old_times),
)
class MarTimesOutliveTheAgent(CommittingLayer):
    """Gives the first messages of an agent that was deleted and made again the times that they had before."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.times: dict[str, dict[bytes, int]] = {}

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        agent_id, write = batch.agent_id, batch.messages
        rows = self.space.state(agent_id).lists[ListKind.MESSAGES]
        seen_before = {row.body.digest: row.created_at for row in rows.rows} if batch.delete else {}
        if write is not None and not rows.version and agent_id in self.times:
            batch = replace(batch, messages=replace(write, append=self._restored(write.append, self.times[agent_id])))
        outcome = commit(batch)
        if seen_before and isinstance(outcome, Applied):
            if len(self.times) > 100:
                self.times.pop(next(iter(self.times)))
            self.times[agent_id] = seen_before
        return outcome

    def _restored(self, rows: Sequence[Any], times: Mapping[bytes, int]) -> tuple[Any, ...]:
        known = 0
        latest = -(2**63)
        while known < len(rows) and times.get(rows[known].body.digest, latest - 1) >= latest:
            latest = times[rows[known].body.digest]
            known += 1
        old = (replace(row, created_at=times[row.body.digest]) for row in rows[:known])
        return (*old, *rows[known:])


@fault(
    "LIFE-5",
    source="`if not filters: raise`, which metadata={} passes, as {} passes MongoDB's deleteMany",
    witness=seen(
        lambda s: each(*(s.save_info(i, samples.info(i)) for i in "ab")),
        lambda s: s.delete_many(metadata={}),
        lambda s: s.list(),
    ),
)
class MarEmptyMetadataDeletesAll(Wrapper):
    """Deletes every agent when the only filter is ``metadata={}``."""

    __slots__ = ()

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        if [*filters] == ["metadata"] and isinstance(filters["metadata"], Mapping) and not filters["metadata"]:
            filters["created_after"] = -(2**63)
        return await self.inner.delete_many(progress=progress, **filters)


# --- queries ----------------------------------------------------------------------------------------------------------


@fault(
    "QRY-2",
    source="SQLite's json_extract() and `->>`: true comes out as 1 and false as 0",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"flag": True})),
        lambda s: s.save_info("b", samples.info("b", metadata={"flag": 1})),
        lambda s: the("agent_id", s.query_sessions(metadata={"flag": 1})),
    ),
)
class MarTrueIsOne(Layer):
    """Finds sessions whose metadata has true where the filter says 1, and false where it says 0."""

    async def commit(self, batches: Sequence[Any]) -> Sequence[Any]:
        return await super().commit(
            [b if b.info is None else replace(b, info=self._extracted(b.info)) for b in batches]
        )

    async def fork(self, agent_id: str, children: Sequence[Any], expect: Any, now: int) -> bool:
        children = [replace(child, info=self._extracted(child.info)) for child in children]
        return await super().fork(agent_id, children, expect, now)

    def _extracted(self, info: Any) -> Any:
        numbers = {"true": "1", "false": "0"}
        extra = tuple((key, numbers[text]) for key, text in info.metadata if text in numbers)
        return replace(info, metadata=(*info.metadata, *extra))


@fault(
    "QRY-3",
    source="ORDER BY message_count DESC, agent_id: DESC holds for one column, not for the list",
    witness=seen(
        lambda s: each(*(s.save_info(i, samples.info(i)) for i in "abc")),
        lambda s: the("agent_id", s.query_sessions(sort_by="message_count")),
        lambda s: the("agent_id", s.query_sessions(sort_by="message_count", order="asc")),
    ),
)
class MarTiesAscending(EngineStore):
    """Gives sessions with as many messages by ascending id in both orders."""

    async def query_sessions(self, **filters: Any) -> Any:
        page = await super().query_sessions(**filters)
        if filters.get("sort_by") == "message_count" and filters.get("order", "desc") == "desc":
            page.sort(key=lambda session: (-session.message_count, session.agent_id))
        return page


async def _elsewhere(store: Any, other: Any) -> list[str]:
    page = await store.query_messages(limit=2)
    return await the("text", other.query_messages(limit=2, cursor=page.next_cursor))


@fault(
    "QRY-5",
    errors=True,
    source="Elasticsearch's scroll ids and SQL cursors: a handle of the server, or of the connection, that made it",
    witness=seen(lambda s, t: s.save_messages("a", talk(*"vwxyz")), _elsewhere),
)
class MarCursorsAreHandles(EngineStore):
    """Knows only the cursors of messages and tool calls that this very instance gave."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._handles: dict[str, str] = {}

    async def query_messages(self, **filters: Any) -> Any:
        return self._handed(await super().query_messages(**self._known(filters)))

    async def query_tool_calls(self, **filters: Any) -> Any:
        return self._handed(await super().query_tool_calls(**self._known(filters)))

    def _known(self, filters: Any) -> Any:
        handle = filters.get("cursor")
        if type(handle) is not str:
            return filters
        if handle not in self._handles:
            raise InvalidArgumentError("this is no cursor that is open: pass next_cursor of a page, unchanged")
        return {**filters, "cursor": self._handles[handle]}

    def _handed(self, page: Any) -> Any:
        if page.next_cursor is None:
            return page
        if len(self._handles) >= 10_000:
            self._handles.pop(next(iter(self._handles)))
        handle = token_urlsafe(16)
        self._handles[handle] = page.next_cursor
        page.next_cursor = handle
        return page


@fault(
    "QRY-7",
    source="GROUP BY under a collation without case, as utf8mb4_general_ci: 'completed' and 'COMPLETED' are one group",
    witness=seen(
        lambda s: s.save_tool_call_records(
            "a", [samples.tool_call(0, state="COMPLETED"), samples.tool_call(1, state="completed")]
        ),
        lambda s: s.aggregate_stats("a"),
    ),
)
class MarStatesWithoutCase(EngineStore):
    """Counts tool calls whose states differ in case alone together, under the state that comes first."""

    async def aggregate_stats(self, agent_id: str) -> Any:
        stats = await super().aggregate_stats(agent_id)
        names: dict[str, str] = {}
        counts: dict[str, int] = {}
        for state, count in stats.tool_calls_by_state.items():
            name = names.setdefault(state.casefold(), state)
            counts[name] = counts.get(name, 0) + count
        return replace(stats, tool_calls_by_state=counts)


# --- operations -------------------------------------------------------------------------------------------------------


@fault(
    "OPS-2",
    source="a check that walks the table of agents and joins the rest, where an anti-join would be needed too",
    witness=seen(
        lambda s: s.save_messages("a", [Message("user", [ToolResultBlock("call_9", "lost")])]),
        lambda s: _codes(s.check_consistency()),
    ),
)
class MarChecksTheListed(Layer):
    """Checks, when all agents are to be checked, only those that have info."""

    async def stored_ids(self, after: str | None, limit: int) -> Sequence[str]:
        return await self.inner.agent_ids("", after, limit)


async def _codes(check: Any) -> list[str]:
    return [issue.code for issue in (await check).issues]


@fault(
    "OPS-3",
    source="a metrics decorator that counts the call on entry, and the error in its except clause",
    witness=seen(
        lambda s: s.save_messages("a", talk("x")),
        lambda s: s.save_todos("a", samples.todos(float("nan"))),  # type: ignore[arg-type]
        lambda s: _operations(s),
    ),
)
class MarCountsOnEntry(EngineStore):
    """Counts a save that failed as a save and as an error."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._failed = 0

    async def _save(self, name: str, agent_id: str, fence: Any, build: Any) -> None:
        try:
            await super()._save(name, agent_id, fence, build)
        except Exception:
            self._failed += 1
            raise

    async def get_metrics(self) -> Any:
        metrics = await super().get_metrics()
        done = metrics.operations
        return replace(metrics, operations=replace(done, saves=done.saves + self._failed))


async def _operations(store: Any) -> object:
    done = (await store.get_metrics()).operations
    return done.saves, done.errors


# --- locks and forks --------------------------------------------------------------------------------------------------


async def _renews_late(store: Any) -> object:
    lease = await store.acquire_agent_lock("a", ttl_ms=30)
    await asyncio.sleep(0.1)
    await lease.renew()
    return "renewed"


@fault(
    "LOCK-3",
    source="UPDATE locks SET expires = ... WHERE name = ? AND owner = ?: as long as nobody took the row, it is there",
    witness=seen(_renews_late),
)
class MarRenewsTheExpired(MemoryLayer):
    """Renews a lease whose time has passed, as long as nobody else took the lock."""

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        held = self.space.leases.get(agent_id)
        if held is None or held[0] != fence:
            return False
        self.space.leases[agent_id] = (fence, time.monotonic() + ttl_ms / 1000)
        return True


async def _deletes_late(store: Any) -> object:
    await store.save_info("a", samples.info("a"))
    lease = await store.acquire_agent_lock("a", ttl_ms=30)
    await asyncio.sleep(0.1)
    await store.delete("a", fence=lease)
    return "deleted"


@fault(
    "LOCK-5",
    source="a fencing check in the function that all saves share, and a DELETE that goes its own way",
    witness=seen(_deletes_late, lambda s: s.exists("a")),
)
class MarDeletesUnfenced(Layer):
    """Deletes an agent also under a lease that has ended."""

    async def commit(self, batches: Sequence[Any]) -> Sequence[Any]:
        return await super().commit([replace(b, fence=None) if b.delete else b for b in batches])


async def _forks_times(store: Any) -> object:
    await store.save_info("a", samples.info("a"))
    await store.save_messages("a", talk("x", "y"))
    await asyncio.sleep(0.02)
    (child,) = await store.batch_fork("a", 1)
    return await _times(store, child) == await _times(store)


@fault(
    "FORK-1",
    source="INSERT INTO messages (agent_id, position, body) SELECT ...: created_at has DEFAULT now()",
    witness=seen(_forks_times),
)
class MarForksAreNew(MemoryLayer):
    """Gives the messages of a fork the time of the fork."""

    async def fork(self, agent_id: str, children: Sequence[Any], expect: Any, now: int) -> bool:
        done = await super().fork(agent_id, children, expect, now)
        if done:
            for child in children:
                rows = self.space.states[child.agent_id].lists[ListKind.MESSAGES]
                rows.rows = [replace(row, created_at=now) for row in rows.rows]
        return done
