"""Ordinary programming mistakes of people who write or wrap a store by hand."""

from __future__ import annotations

import asyncio
import copy
import json
import os.path
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Context as TaskContext
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import happened, restart, seen, talk, the
from kode_core.batch import Applied, DocKind, Fence, ListKind, SessionRow
from kode_core.codec import decode, encode, to_dict
from kode_core.engines import scan
from kode_core.errors import InvalidArgumentError, InvalidValueError, KodeError, LockUnavailableError
from kode_core.ids import check_agent_id
from kode_core.jsonvalue import NODES, weight
from kode_core.layers import Layer
from kode_core.model import AgentInfo, Snapshot, Timeline, TodoSnapshot, ToolCallRecord
from kode_core.query import Page
from kode_core.store import EngineStore, kinds
from kode_core.store.locks import LeaseContext
from kode_core.store.methods import METHODS
from kode_core.store.steps import checked_progress as _told

# --- values -----------------------------------------------------------------------------------------------------------


async def _changed_inside(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a", metadata={"plan": {"name": "gold"}}))
    first = await ctx.store.load_info("a")
    first.metadata["plan"]["name"] = "tin"
    return (await ctx.store.load_info("a")).metadata


@fault(
    "VAL-1",
    source="copy.copy and dict(d) are shallow: a cache that hands out copies still shares what is nested",
    witness=_changed_inside,
)
class CopiesInfoShallowly(Wrapper):
    """Gives the same nested lists and dicts of an info's metadata to everyone who loads it while it is unchanged."""

    __slots__ = ("known",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.known: OrderedDict[str, tuple[str, AgentInfo]] = OrderedDict()

    async def load_info(self, agent_id: str) -> AgentInfo | None:
        info = await self.inner.load_info(agent_id)
        if info is None or weight(info.metadata) > NODES:
            return info
        text = json.dumps(to_dict(info))
        if agent_id not in self.known or self.known[agent_id][0] != text:
            self.known[agent_id] = (text, info)
            if len(self.known) > 128:
                self.known.popitem(last=False)
        kept = self.known[agent_id][1]
        return kept.replace(metadata=dict(kept.metadata))


def _with_metadata(metadata: Any) -> Snapshot:
    return samples.snapshot().replace(metadata=metadata)


@fault(
    "VAL-2",
    "VAL-1",
    source="json.loads(json.dumps(x)), or JSON.parse(JSON.stringify(x)), as a deep copy",
    witness=seen(
        lambda s: s.save_snapshot("a", _with_metadata({1: "one", "pair": (1, 2)})),
        lambda s: s.load_snapshot("a", "sfp-1"),
    ),
)
class ClonesSnapshotsThroughJson(Wrapper):
    """Takes tuples, numbers as keys and halves of a surrogate pair in the metadata of a snapshot, and stores lists,
    texts
    and a whole character."""

    async def save_snapshot(self, agent_id: str, snapshot: Snapshot, *, fence: Any = None) -> None:
        if isinstance(snapshot, Snapshot) and type(snapshot.metadata) is dict:
            with suppress(TypeError, ValueError, RecursionError):
                snapshot = snapshot.replace(metadata=json.loads(json.dumps(snapshot.metadata)))
        await self.inner.save_snapshot(agent_id, snapshot, fence=fence)


# --- identity ---------------------------------------------------------------------------------------------------------

_BY_AGENT = ("save_", "load_", "append_", "upsert_", "read_", "follow_")
_BY_AGENT_TOO = {
    "last_bookmark",
    "list_snapshots",
    "exists",
    "delete",
    "aggregate_stats",
    "acquire_agent_lock",
    "batch_fork",
}


@fault(
    "ID-1",
    source="'if not name.strip(): raise ValueError' in forms and models",
    witness=seen(lambda s: s.save_messages(" ", talk("x")), lambda s: s.load_messages(" ")),
    errors=True,
)
class RefusesBlankIds(Wrapper):
    """Refuses an agent id that has nothing but white space in it."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not name.startswith(_BY_AGENT) and name not in _BY_AGENT_TOO:
            return found

        def checked(*args: Any, **named: Any) -> Any:
            agent_id = args[0] if args else named.get("agent_id")
            if type(agent_id) is str and agent_id and not agent_id.strip():
                raise InvalidArgumentError("agent_id must not be blank")
            return found(*args, **named)

        return checked


@fault(
    "ID-2",
    "HIS-1",
    source="one dict, LMDB table or bucket with keys made by f'{agent_id}/{record_id}'",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("b/c")),
        lambda s: s.save_compression_record("a/b", samples.compression("c")),
        lambda s: the("id", s.load_compression_records("a")),
        lambda s: the("id", s.load_compression_records("a/b")),
    ),
)
class JoinsIdsWithASlash(MemoryLayer):
    """Keeps compression records under the agent's id, a slash and their own id, so that `a/b` and `c` replace what `a`
    has
    as `b/c`."""

    async def commit(self, batches: Any) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            for write in batch.docs if isinstance(outcome, Applied) else ():
                if write.kind is DocKind.COMPRESSIONS:
                    self._replace(batch.agent_id, f"{batch.agent_id}/{write.key}")
        return outcomes

    def _replace(self, agent_id: str, name: str) -> None:
        for state in self.space.states.values():
            if state.agent_id != agent_id and name.startswith(f"{state.agent_id}/"):
                state.docs.pop((DocKind.COMPRESSIONS, name[len(state.agent_id) + 1 :]), None)


# --- messages ---------------------------------------------------------------------------------------------------------


async def _appended_by_two(ctx: Context) -> object:
    other = await ctx.another()
    await ctx.store.save_messages("a", talk("first"))
    for i in range(10):
        await asyncio.gather(*(s.append_messages("a", talk(f"{i}")) for s in (ctx.store, other)))
    return len(await ctx.store.load_messages("a"))


@fault(
    "MSG-3",
    "LIFE-3",
    source="asyncio.Lock around read, change, write: it knows nothing of a second store or process",
    on=OnSqlite,
    witness=_appended_by_two,
)
class LocksAppendsByInstance(Wrapper):
    """Appends messages by loading the list and saving the longer one, under a lock that only this instance takes."""

    __slots__ = ("locks",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.locks: dict[str, asyncio.Lock] = {}

    def lock(self, agent_id: Any) -> asyncio.Lock:
        return self.locks.setdefault(str(agent_id), asyncio.Lock())

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        if not isinstance(messages, (list, tuple)):
            return await self.inner.append_messages(agent_id, messages, fence=fence)
        messages = list(messages)
        async with self.lock(agent_id):
            before = await self.inner.load_messages(agent_id)
            await self.inner.save_messages(agent_id, [*before, *messages], fence=fence)

    async def save_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        messages = list(messages) if isinstance(messages, list) else messages
        async with self.lock(agent_id):
            await self.inner.save_messages(agent_id, messages, fence=fence)

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        async with self.lock(agent_id):
            await self.inner.save_turn(agent_id, **parts)


async def _said_again(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("go on"))
    await asyncio.sleep(0.02)
    await ctx.store.append_messages("a", talk("wait"))
    await asyncio.sleep(0.02)
    await ctx.store.append_messages("a", talk("go on"))
    found = await ctx.store.query_messages(agent_id="a", order="asc")
    return [message.position for message in found]


@fault(
    "MSG-4",
    source="a dict from the content of a message to the time when it was first seen",
    witness=_said_again,
)
class KnowsTimesByContent(MemoryLayer):
    """Gives an appended message the time of an equal one that is in the list already."""

    async def commit(self, batches: Any) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if isinstance(outcome, Applied) and batch.messages is not None and batch.messages.append:
                self._restamp(self.space.states[batch.agent_id].lists[ListKind.MESSAGES].rows, batch.messages.append)
        return outcomes

    def _restamp(self, rows: list[Any], appended: Sequence[Any]) -> None:
        first: dict[bytes, int] = {}
        for i, row in enumerate(rows):
            created_at = first.setdefault(row.body.digest, row.created_at)
            if i >= len(rows) - len(appended):
                rows[i] = replace(row, created_at=created_at)


# --- tool calls and turns ---------------------------------------------------------------------------------------------


@fault(
    "TC-3",
    "VAL-3",
    source="Object.assign(old, new), and PATCH handlers that leave out what is None",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(1, error="timed out", state="FAILED")]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(1, error=None)]),
        lambda s: the("error", s.load_tool_call_records("a")),
    ),
)
class MergesUpsertsIntoTheOldRecord(Wrapper):
    """Keeps the old value of each field that is None in the tool call record that replaces another."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)) and all(type(r) is ToolCallRecord for r in records):
            old = {record.id: record for record in await self.inner.load_tool_call_records(agent_id)}
            merged = []
            for record in records:
                before = old.get(record.id) if type(record.id) is str else None
                if before is not None:
                    names = [name for name in record.__struct_fields__ if getattr(record, name) is None]
                    record = record.replace(**{name: getattr(before, name) for name in names})
                merged.append(record)
                if type(record.id) is str:
                    old[record.id] = record
            records = merged
        await self.inner.upsert_tool_call_records(agent_id, records, fence=fence)


async def _read_while_it_shrinks(ctx: Context) -> object:
    await ctx.store.save_tool_call_records("a", [samples.tool_call(i) for i in range(6)])
    saving = asyncio.ensure_future(
        ctx.store.save_tool_call_records("a", [samples.tool_call(i, state="SEALED") for i in range(2)])
    )
    found = set()
    while not saving.done():
        found.add(tuple(await the("state", ctx.store.load_tool_call_records("a"))))
        await asyncio.sleep(0)
    await saving
    return found <= {("COMPLETED",) * 6, ("SEALED",) * 2}


@fault(
    "TC-1",
    "MSG-1",
    "DUR-3",
    source="UPSERT of the rows, then DELETE WHERE position >= n, each committed by itself (autocommit)",
    on=OnSqlite,
    witness=_read_while_it_shrinks,
)
class ShrinksToolCallsInTwoSteps(Wrapper):
    """Writes the records of a shorter list of tool calls first, and removes those behind them in a second commit."""

    async def save_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)) and records:
            records = list(records)
            old = await self.inner.load_tool_call_records(agent_id)
            if len(records) < len(old):
                await self.inner.save_tool_call_records(agent_id, [*records, *old[len(records) :]], fence=fence)
        await self.inner.save_tool_call_records(agent_id, records, fence=fence)


@fault(
    "TURN-1",
    "TC-1",
    "VAL-3",
    source="'if tool_calls:' where 'if tool_calls is not None:' was meant",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(1)]),
        lambda s: s.save_turn("a", messages=[], tool_calls=[]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class TakesNoToolCallsForNotGiven(Wrapper):
    """Keeps the tool calls when a turn replaces them by an empty list."""

    async def save_turn(self, agent_id: str, *, tool_calls: Any = None, **rest: Any) -> None:
        if tool_calls == [] or tool_calls == ():
            tool_calls = None
        await self.inner.save_turn(agent_id, tool_calls=tool_calls, **rest)


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-4",
    "EVT-3",
    "EVT-1",
    "VAL-1",
    source="'if timeline in recent': in Python 1 == 1.0 == True, and 0.0 == -0.0",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, value=1)),
        lambda s: s.append_event("a", samples.event(1, value=True)),
        lambda s: s.append_event("a", samples.event(1, value=1.0)),
        lambda s: s.read_events("a"),
    ),
)
class ComparesEventsAsPythonDoes(Wrapper):
    """Takes an event for a repeated one when it equals one of the last ten by `==`, as `{"n": 1}` and `{"n": true}`
    do."""

    __slots__ = ("recent",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.recent: OrderedDict[str, deque[tuple[Timeline, int]]] = OrderedDict()

    async def append_event(self, agent_id: str, timeline: Timeline, *, fence: Any = None) -> int:
        if fence is None and type(timeline) is Timeline:
            for known, offset in self.recent.get(agent_id, ()) if type(agent_id) is str else ():
                if known == timeline and await self._is_there(agent_id, offset):
                    encode(Timeline, timeline, "event")
                    return offset
        offset = await self.inner.append_event(agent_id, timeline, fence=fence)
        if weight(timeline.event.data) <= 200:
            self.recent.setdefault(agent_id, deque(maxlen=10)).append((copy.deepcopy(timeline), offset))
        if len(self.recent) > 64:
            self.recent.popitem(last=False)
        return offset

    async def _is_there(self, agent_id: str, offset: int) -> bool:
        async for event in self.inner.read_events(agent_id, after_offset=offset - 1):
            return event.offset == offset
        return False


@fault(
    "EVT-5",
    source="'if after_offset:' where 'if after_offset is not None:' was meant",
    witness=seen(
        lambda s: s.append_events("a", happened(3, 1, 2)),
        lambda s: s.read_events("a", after_offset=0),
    ),
)
class TakesOffsetZeroForNone(Wrapper):
    """Reads events by seq and not by offset when `after_offset` is 0."""

    def read_events(self, agent_id: str, *, after_offset: int | None = None, **rest: Any) -> Any:
        if type(after_offset) is int and not after_offset:
            after_offset = None
        return self.inner.read_events(agent_id, after_offset=after_offset, **rest)


# --- the other kinds --------------------------------------------------------------------------------------------------


def _todos_of(version: int, title: str) -> TodoSnapshot:
    return samples.todos(title).replace(version=version)


@fault(
    "TODO-1",
    source="optimistic locking by a version in the document: the older one loses, silently",
    witness=seen(
        lambda s: s.save_todos("a", _todos_of(5, "old")),
        lambda s: s.save_todos("a", _todos_of(1, "new")),
        lambda s: s.load_todos("a"),
    ),
)
class KeepsTheHigherTodoVersion(Wrapper):
    """Leaves the stored todos as they are when those that replace them have a lower version."""

    async def save_todos(self, agent_id: str, snapshot: TodoSnapshot, *, fence: Any = None) -> None:
        await kinds.TODOS.write(snapshot)
        old = await self.inner.load_todos(agent_id)
        if old is not None and snapshot.version < old.version:
            snapshot = old
        await self.inner.save_todos(agent_id, snapshot, fence=fence)


@fault(
    "HIS-1",
    source="time.Unix(sec, 0), time.mktime, struct_time: seconds, where the record has milliseconds",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("a", samples.T0 + 2)),
        lambda s: s.save_compression_record("a", samples.compression("b", samples.T0 + 1)),
        lambda s: the("id", s.load_compression_records("a")),
    ),
)
class OrdersCompressionsBySeconds(Wrapper):
    """Orders compression records by the second of their timestamp, and those of one second by id."""

    async def load_compression_records(self, agent_id: str) -> list[Any]:
        found = await self.inner.load_compression_records(agent_id)
        return sorted(found, key=lambda record: (record.timestamp // 1000, record.id))


@fault(
    "HIS-2",
    "ID-4",
    source="os.path.normpath, or pathlib, around a path before it becomes a key",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("src/a.py")),
        lambda s: s.save_recovered_file("a", samples.recovered("./src//a.py")),
        lambda s: the("path", s.load_recovered_files("a")),
    ),
)
class KeysFilesByNormalPath(MemoryLayer):
    """Keeps one recovered file of those whose paths are one place in the file system, as `./a` and `a`, at one
    timestamp."""

    async def commit(self, batches: Any) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            for write in batch.docs if isinstance(outcome, Applied) else ():
                if write.kind is DocKind.RECOVERED and write.doc is not None:
                    self._replace(self.space.states[batch.agent_id].docs, write.doc)
        return outcomes

    def _replace(self, docs: dict[Any, Any], new: Any) -> None:
        path = os.path.normpath(json.loads(new.key)[0])
        for kind, key in [k for k, d in docs.items() if k[0] is DocKind.RECOVERED and d.time == new.time]:
            if key != new.key and os.path.normpath(json.loads(key)[0]) == path:
                del docs[kind, key]


def _medium(key: str, age: int) -> Any:
    return samples.media(key).replace(created_at=samples.T0 - age)


@fault(
    "MED-1",
    source="a table without a column for the position: ORDER BY created_at",
    witness=seen(
        lambda s: s.save_media_cache("a", [_medium("x", 0), _medium("y", 50)]),
        lambda s: the("key", s.load_media_cache("a")),
    ),
)
class OrdersMediaByTime(Wrapper):
    """Gives the media cache in the order of `created_at`, and in the order given where that is the same."""

    async def load_media_cache(self, agent_id: str) -> list[Any]:
        return sorted(await self.inner.load_media_cache(agent_id), key=lambda record: record.created_at)


@fault(
    "SNAP-1",
    source="bisect.insort into a sorted index when the id is new, and only dict[id] = value when it is not",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("x", samples.T0)),
        lambda s: s.save_snapshot("a", samples.snapshot("y", samples.T0 + 10)),
        lambda s: s.save_snapshot("a", samples.snapshot("x", samples.T0 + 20)),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class LeavesReplacedSnapshotsInPlace(Wrapper):
    """Lists a snapshot that was replaced where the first one of its id stood, whatever the new `created_at` is."""

    __slots__ = ("places",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.places: dict[tuple[str, str], int] = {}

    async def save_snapshot(self, agent_id: str, snapshot: Snapshot, *, fence: Any = None) -> None:
        old = None
        with suppress(KodeError, AttributeError):
            old = await self.inner.load_snapshot(agent_id, snapshot.id)
        await self.inner.save_snapshot(agent_id, snapshot, fence=fence)
        key = (agent_id, snapshot.id)
        if old is None:
            self.places.pop(key, None)
        else:
            self.places.setdefault(key, old.created_at)

    async def list_snapshots(self, agent_id: str) -> list[Snapshot]:
        found = await self.inner.list_snapshots(agent_id)
        return sorted(found, key=lambda s: (-self.places.get((agent_id, s.id), s.created_at), s.id))


async def _touched(ctx: Context) -> object:
    async def updated() -> int:
        return (await ctx.store.query_sessions(agent_id="a"))[0].updated_at

    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_tool_call_records("a", [samples.tool_call(1)])
    before = await updated()
    await ctx.store.save_tool_call_records("a", [samples.tool_call(1)])
    return await updated() > before


@fault(
    "INFO-2",
    "TC-1",
    "VAL-1",
    source="a dirty check, 'if new == old: return', as in ORMs that issue no UPDATE without a change",
    witness=_touched,
)
class SkipsEqualToolCalls(Wrapper):
    """Writes nothing when the tool calls to save equal those that are stored by `==`, so that the session does not
    move."""

    async def save_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)) and list(records) == await self.inner.load_tool_call_records(agent_id):
            await self.inner.append_events(agent_id, [], fence=fence)  # the lease must hold all the same
            return
        await self.inner.save_tool_call_records(agent_id, records, fence=fence)


# --- lifecycle --------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-3",
    "LIFE-4",
    source="'if id not in self.agents: return' in a delete: only save_info enters an agent there",
    witness=seen(
        lambda s: s.save_messages("a", talk("x")),
        lambda s: s.delete("a"),
        lambda s: s.load_messages("a"),
    ),
)
class DeletesOnlyAgentsWithInfo(Wrapper):
    """Deletes nothing of an agent whose info was never saved."""

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        if await self.inner.exists(agent_id):
            await self.inner.delete(agent_id, fence=fence)


async def _delete_250(ctx: Context) -> object:
    for i in range(250):
        await ctx.store.save_info(f"a{i}", samples.info(f"a{i}"))
    return [await ctx.store.delete_many(template_id="assistant"), len(await ctx.store.list())]


@fault(
    "LIFE-5",
    source="a loop over pages with OFFSET that deletes what it finds: the rest moves up, and a page is passed over",
    witness=_delete_250,
)
class DeletesPagesByOffset(EngineStore):
    """Leaves every second page of 200 sessions that a `delete_many` should delete."""

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        place = 0

        async def sessions(asked: Any) -> Page[Any]:
            nonlocal place
            place = 0 if asked["cursor"] is None else place
            page = await self._search.sessions({**asked, "cursor": None, "offset": place})
            place += len(page)
            return page

        async def delete() -> int:
            return await self._deletions.delete_many(sessions, filters, _told(progress))

        return await self._run("delete_many", delete)


# --- queries ----------------------------------------------------------------------------------------------------------


async def _two_users(ctx: Context) -> object:
    for name in "ab":
        await ctx.store.save_info(name, samples.info(name, metadata={"userId": name}))
    first = await the("agent_id", ctx.store.query_sessions(user_id="a"))
    return first, await the("agent_id", ctx.store.query_sessions())


@fault(
    "QRY-2",
    "QRY-1",
    source="def query_sessions(self, *, metadata={}, user_id=None): a mutable default that is filled",
    witness=_two_users,
)
class RemembersTheUserOfAQuery(Wrapper):
    """Filters sessions by the `user_id` of an earlier query of the instance when a query gives none, and no
    metadata."""

    __slots__ = ("default",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.default: dict[str, Any] = {}

    async def query_sessions(self, **filters: Any) -> Any:
        if "metadata" not in filters:
            if type(filters.get("user_id")) is str:
                self.default["userId"] = filters.pop("user_id")
            if self.default and "user_id" not in filters and not filters.get("cursor"):
                filters["metadata"] = self.default
            elif self.default and "user_id" not in filters:
                with suppress(InvalidArgumentError):
                    return await self.inner.query_sessions(**filters, metadata=self.default)
        return await self.inner.query_sessions(**filters)


@fault(
    "QRY-2",
    source="'metadata.get(key) == value': dict.get gives None for what is not there, as undefined == null",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"plan": None})),
        lambda s: s.save_info("b", samples.info("b", metadata={})),
        lambda s: the("agent_id", s.query_sessions(metadata={"plan": None})),
    ),
)
class TakesAbsentForNone(MemoryLayer):
    """Finds sessions that have no such metadata key when a query asks for None."""

    async def find_sessions(self, query: Any) -> Any:
        nulls = [key for key, value in query.metadata if value == "null"]
        if not nulls:
            return await super().find_sessions(query)
        others = replace(query, metadata=tuple(pair for pair in query.metadata if pair[1] != "null"))
        found = []
        for state in self.space.states.values():
            info = state.info
            if info is None or not scan.session_matches(state.agent_id, info, state.updated_at, others):
                continue
            has = dict(info.metadata)
            if all(has.get(key, "null") == "null" for key in nulls):
                count = len(state.lists[ListKind.MESSAGES].rows)
                row = SessionRow(state.agent_id, info.body, info.created_at, state.updated_at, count)
                found.append(((getattr(row, query.sort_by), row.agent_id), row))
        return scan.page(found, query)


# --- operations -------------------------------------------------------------------------------------------------------


@fault(
    "OPS-2",
    source="'for agent_id in await self.list()' in a check: list knows only the agents with info",
    witness=seen(
        lambda s: s.save_messages("a", samples.rich_messages()[4:5]),
        lambda s: the("code", _issues(s)),
    ),
)
class ChecksOnlyAgentsWithInfo(Wrapper):
    """Tells no issue of agents without info when `check_consistency` checks all agents."""

    async def check_consistency(self, agent_id: str | None = None, *, progress: Any = None) -> Any:
        result = await self.inner.check_consistency(agent_id, progress=progress)
        if agent_id is not None or not result.issues:
            return result
        known = {"", *await self.inner.list()}
        issues = tuple(issue for issue in result.issues if issue.agent_id in known)
        return replace(result, issues=issues, consistent=not issues)


async def _issues(store: Any) -> Any:
    return (await store.check_consistency()).issues


async def _refused(ctx: Context) -> object:
    try:
        await ctx.store.append_event("a", samples.event(1, key="hunter2", price=float("nan")))
    except InvalidValueError as exc:
        return "hunter2" in str(exc)


@fault(
    "OPS-12",
    source="raise ValueError(f'cannot encode {record!r}'), as many serializers do",
    witness=_refused,
)
class QuotesRefusedEvents(Wrapper):
    """Quotes the whole event in the error that refuses a single one."""

    async def append_event(self, agent_id: str, timeline: Timeline, *, fence: Any = None) -> int:
        try:
            return await self.inner.append_event(agent_id, timeline, fence=fence)
        except InvalidValueError as exc:
            try:
                quoted = f"cannot be encoded: {timeline!r:.1000}"
            except (ValueError, RecursionError):
                raise exc from None
            raise InvalidValueError(exc.record, exc.path, quoted) from None


# --- locks ------------------------------------------------------------------------------------------------------------


async def _beats_while_waiting(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.02)
            beats += 1

    beating = asyncio.ensure_future(beat())
    with suppress(LockUnavailableError):
        await ctx.store.acquire_agent_lock("a", wait_ms=1_200)
    beating.cancel()
    await lease.release()
    return beats > 10


@fault(
    "OPS-15",
    "OPS-13",
    source="time.sleep between two tries, in code that was written for threads",
    witness=_beats_while_waiting,
)
class SleepsInTheEventLoop(EngineStore):
    """Stops the event loop while it waits for a lock: it sleeps a second at most between two tries."""

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> LeaseContext:
        lock = super().acquire_agent_lock(agent_id, ttl_ms, wait_ms)

        async def tries() -> Any:
            deadline = time.monotonic() + wait_ms / 1000
            while True:
                try:
                    return await self._locks._acquire(agent_id, ttl_ms, 0)
                except LockUnavailableError:
                    left = deadline - time.monotonic()
                    if left <= 0 or self._locks._inside(agent_id) is not None:
                        raise
                    time.sleep(min(left, 1.0))

        op = METHODS["acquire_agent_lock"]._replace(extra_seconds=wait_ms / 1000 + 1)
        lock._acquire = lambda: self._context.run(op, agent_id, tries)
        return lock


class _Noted(LeaseContext):
    store: Any

    async def __aenter__(self) -> Any:
        lease = await super().__aenter__()
        self.store.current[lease.agent_id] = lease
        return lease

    async def __aexit__(self, *exc: Any) -> None:
        if self._lease is not None and self.store.current.get(self._lease.agent_id) is self._lease:
            del self.store.current[self._lease.agent_id]
        await super().__aexit__(*exc)


async def _written_beside_a_block(ctx: Context) -> object:
    go = asyncio.Event()

    async def beside() -> object:
        await go.wait()
        try:
            return await ctx.store.save_todos("a", samples.todos("x"))
        except KodeError as exc:
            return type(exc).__name__

    writing = asyncio.ensure_future(beside())
    async with ctx.store.acquire_agent_lock("a") as lease:
        await lease.release()
        go.set()
        return await writing


@fault(
    "LOCK-7",
    "LOCK-5",
    source="self._lease = lease, or threading.local: all tasks of a thread share it",
    witness=_written_beside_a_block,
)
class KeepsTheLeaseInTheStore(EngineStore):
    """Fences the writes of every task by the lease of the block that another task is in."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.current: dict[str, Any] = {}

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> LeaseContext:
        lock = super().acquire_agent_lock(agent_id, ttl_ms, wait_ms)
        lock.__class__ = _Noted
        lock.store = self  # type: ignore[attr-defined]
        return lock

    def _held(self, agent_id: Any, fence: Any) -> Any:
        return self.current.get(agent_id) if fence is None and type(agent_id) is str else fence

    async def _save(self, name: str, agent_id: str, fence: Any, build: Any) -> None:
        await super()._save(name, agent_id, self._held(agent_id, fence), build)

    async def _append(self, agent_id: str, events: Any, fence: Any) -> Any:
        return await super()._append(agent_id, events, self._held(agent_id, fence))


async def _tokens_over_a_delete(ctx: Context) -> object:
    tokens = []
    for _ in range(3):
        async with ctx.store.acquire_agent_lock("a") as lease:
            tokens.append(lease.token)
    await ctx.store.delete("a")
    async with ctx.store.acquire_agent_lock("a") as lease:
        return lease.token > tokens[-1]


@fault(
    "LOCK-5",
    "LIFE-3",
    source="a counter in the agent's own row or object: who deletes the agent deletes the counter",
    witness=_tokens_over_a_delete,
)
class CountsTokensInTheAgent(MemoryLayer):
    """Begins again with the first token when the agent was deleted."""

    @property
    def tokens(self) -> dict[str, int]:
        return vars(self.space).setdefault("tokens", {})  # type: ignore[no-any-return]

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        if await super().acquire_lease(agent_id, owner, ttl_ms) is None:
            return None
        self.tokens[agent_id] = token = self.tokens.get(agent_id, 0) + 1
        self.space.leases[agent_id] = (Fence(owner, token), self.space.leases[agent_id][1])
        return token

    async def commit(self, batches: Any) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if batch.delete and isinstance(outcome, Applied):
                self.tokens.pop(batch.agent_id, None)
        return outcomes


# --- forks ------------------------------------------------------------------------------------------------------------


async def _lineages(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    forks = await ctx.store.batch_fork("a", 3)
    return [(await ctx.store.load_info(fork)).lineage for fork in forks]


@fault(
    "FORK-1",
    source="'info.lineage.append(parent)' in a loop over the forks: one list for all of them",
    witness=_lineages,
)
class SharesTheLineage(Layer):
    """Gives the second fork of a batch its parent twice in its lineage, the third three times."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        made = []
        for i, child in enumerate(children):
            info = decode(AgentInfo, child.info.body, "info")
            info = info.replace(lineage=[*info.lineage, *[agent_id] * i])
            made.append(replace(child, info=replace(child.info, body=encode(AgentInfo, info, "info"))))
        return await super().fork(agent_id, made, expect, now)


async def _forks_in_order(ctx: Context) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    forks = await ctx.store.batch_fork("a", 20)
    return forks == sorted(forks)


@fault(
    "FORK-1",
    source="list(set(ids)) to be sure that they differ; as_completed instead of gather",
    witness=_forks_in_order,
)
class ReturnsForksInAnyOrder(Wrapper):
    """Gives the ids of new forks in the order of a set, and not of time."""

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        return list(set(await self.inner.batch_fork(agent_id, count)))


# --- durability -------------------------------------------------------------------------------------------------------


async def _media_elsewhere(ctx: Context) -> object:
    await ctx.store.save_media_cache("a", [samples.media("x")])
    return await the("key", (await ctx.another()).load_media_cache("a"))


@fault(
    "DUR-1",
    "QRY-8",
    "MED-1",
    source="write-behind: a buffer that a timer or close() flushes, since 'it is only a cache'",
    on=OnSqlite,
    witness=_media_elsewhere,
)
class WritesMediaLater(Wrapper):
    """Keeps a saved media cache in memory and writes it half a second later, or when the store is closed."""

    __slots__ = ("flusher", "late")

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.late: dict[str, Any] = {}
        self.flusher: asyncio.Task[None] | None = None

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        self.inner._context.check_open()
        check_agent_id(agent_id)
        await kinds.MEDIA.write(records)
        if fence is not None or self.inner._locks._inside(agent_id) is not None:
            self.late.pop(agent_id, None)
            return await self.inner.save_media_cache(agent_id, records, fence=fence)
        self.late[agent_id] = copy.deepcopy(list(records))
        if self.flusher is None or self.flusher.done():
            self.flusher = asyncio.get_running_loop().create_task(self._flush_later(), context=TaskContext())

    async def load_media_cache(self, agent_id: str) -> list[Any]:
        if type(agent_id) is str and agent_id in self.late:
            return copy.deepcopy(self.late[agent_id])
        return await self.inner.load_media_cache(agent_id)

    async def _flush_later(self) -> None:
        await asyncio.sleep(0.5)
        await self._flush()

    async def _flush_now(self) -> None:
        await asyncio.get_running_loop().create_task(self._flush(), context=TaskContext())

    async def _flush(self) -> None:
        for agent_id, records in [*self.late.items()]:
            with suppress(KodeError):
                await self.inner.save_media_cache(agent_id, records)
            if self.late.get(agent_id) is records:
                del self.late[agent_id]

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self._flush_now()
        await self.inner.delete(agent_id, fence=fence)

    async def delete_many(self, **filters: Any) -> int:
        await self._flush_now()
        return await self.inner.delete_many(**filters)

    async def batch_fork(self, agent_id: str, count: int) -> list[str]:
        await self._flush_now()
        return await self.inner.batch_fork(agent_id, count)

    async def backup(self, target: Any, **options: Any) -> Any:
        await self._flush_now()
        return await self.inner.backup(target, **options)

    async def get_metrics(self) -> Any:
        await self._flush_now()
        return await self.inner.get_metrics()

    async def close(self) -> None:
        if self.flusher is not None:
            self.flusher.cancel()
        await self._flush_now()
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@fault(
    "DUR-3",
    "EVT-1",
    "VAL-2",
    source="batches of 500 rows for executemany, each in a transaction of its own",
    on=OnSqlite,
    witness=seen(
        lambda s: s.append_events("a", [*happened(*range(500)), samples.event(500, price=float("nan"))]),
        lambda s: s.last_bookmark("a"),
        restart,
        lambda s: s.last_bookmark("a"),
    ),
)
class AppendsEventsInChunks(Wrapper):
    """Commits more than 500 events of one call in pieces of 500, so that a crash, an error or another call comes
    between."""

    async def append_events(self, agent_id: str, timelines: Any, *, fence: Any = None) -> Any:
        if not isinstance(timelines, (list, tuple)) or len(timelines) <= 500:
            return await self.inner.append_events(agent_id, timelines, fence=fence)
        timelines, offsets = list(timelines), []
        for i in range(0, len(timelines), 500):
            offsets += await self.inner.append_events(agent_id, timelines[i : i + 500], fence=fence)
        return offsets
