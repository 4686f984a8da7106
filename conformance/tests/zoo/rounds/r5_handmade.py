"""Stores written by hand in Python, and layers put around sound ones, that forgot one thing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import traceback
from collections import OrderedDict, deque
from datetime import UTC, datetime, timedelta
from typing import Any

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnSqlite
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import seen, talk
from kode_core.batch import Applied, Batch, Doc, DocKind, DocWrite, Info, ListKind
from kode_core.codec import Body, decode, digest, encode
from kode_core.errors import KodeError
from kode_core.ids import index_text
from kode_core.layers import Layer
from kode_core.model import (
    AgentInfo,
    Bookmark,
    Message,
    Snapshot,
    ToolCallAuditEntry,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
)
from kode_core.store import EngineStore
from kode_core.store.lists import Upsert
from kode_core.store.rows import event_writes
from kode_core.store.steps import checked_progress as _told

# --- values -----------------------------------------------------------------------------------------------------------


@fault(
    "VAL-3",
    "VAL-1",
    source="the habit of writing `value or None` where a hand-written serializer meant `is not None`",
    witness=seen(
        lambda s: s.upsert_tool_call_records(
            "a", [samples.tool_call(audit_trail=[ToolCallAuditEntry("PENDING", 1, "")])]
        ),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class UpsertsEmptyNotesAsNone(EngineStore):
    """Stores the empty note of an audit entry as None when the record comes by an upsert."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)):
            records = [_without_empty_notes(record) for record in records]
        await super().upsert_tool_call_records(agent_id, records, fence=fence)


def _without_empty_notes(record: Any) -> Any:
    trail = record.audit_trail if type(record) is ToolCallRecord else None
    if not isinstance(trail, (list, tuple)):
        return record
    entries = [e.replace(note=None) if type(e) is ToolCallAuditEntry and e.note == "" else e for e in trail]
    return record.replace(audit_trail=entries)


async def _changes_loaded_metadata(ctx: Any) -> object:
    await ctx.store.save_snapshot("a", samples.snapshot())
    first = await ctx.store.load_snapshot("a", "sfp-1")
    first.metadata["mine"] = 1
    return await ctx.store.load_snapshot("a", "sfp-1")


@fault(
    "VAL-1",
    source="deduplication by interning: functools.lru_cache around json.loads gives everybody the same dict",
    witness=_changes_loaded_metadata,
)
class InternsSnapshotMetadata(EngineStore):
    """Gives all who load a snapshot with the same metadata one and the same dict, which they can change."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._interned: OrderedDict[str, Any] = OrderedDict()

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Snapshot | None:
        found = await super().load_snapshot(agent_id, snapshot_id)
        if found is None or not found.metadata:
            return found
        text = json.dumps(found.metadata)
        if len(text) > 10_000:
            return found
        shared = self._interned.setdefault(text, found.metadata)
        if len(self._interned) > 128:
            self._interned.popitem(last=False)
        return found.replace(metadata=shared)


_T0: Any = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=samples.T0)


@fault(
    "VAL-5",
    "QRY-2",
    source="int(dt.timestamp() * 1000), as everybody writes it",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0), samples.tool_call(1)]),
        lambda s: s.query_tool_calls(created_after=_T0 + timedelta(microseconds=400)),
        lambda s: s.query_tool_calls(created_before=_T0 + timedelta(microseconds=400)),
    ),
)
class CutsDatetimesToMilliseconds(EngineStore):
    """Cuts the microseconds off a datetime that tool calls are filtered by."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        for name in ("created_after", "created_before"):
            value = filters.get(name)
            if isinstance(value, datetime) and value.utcoffset() is not None:
                filters[name] = int(value.timestamp() * 1000)
        return await super().query_tool_calls(**filters)


# --- identity ---------------------------------------------------------------------------------------------------------


@fault(
    "ID-2",
    "ID-1",
    "LIFE-3",
    "OPS-4",
    source="DELETE … WHERE agent_id LIKE ? without ESCAPE, in one of seven tables",
    witness=seen(
        lambda s: s.save_recovered_file("run-1", samples.recovered()),
        lambda s: s.save_info("run_1", samples.info("run_1")),
        lambda s: s.delete("run_1"),
        lambda s: s.load_recovered_files("run-1"),
    ),
)
class DeletesRecoveredFilesByPattern(MemoryLayer):
    """Deletes with an agent the recovered files of all whose ids match its id as a LIKE pattern."""

    async def commit(self, batches: Any) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if batch.delete and isinstance(outcome, Applied) and ("_" in batch.agent_id or "%" in batch.agent_id):
                signs = {"_": ".", "%": ".*"}
                like = re.compile("".join(signs.get(c) or re.escape(c) for c in batch.agent_id), re.DOTALL)
                for agent_id, state in [*self.space.states.items()]:
                    if agent_id != batch.agent_id and like.fullmatch(agent_id):
                        state.docs = {key: doc for key, doc in state.docs.items() if key[0] != DocKind.RECOVERED}
                        if state.is_empty and not state.last_op:
                            del self.space.states[agent_id]
        return outcomes


@fault(
    "ID-4",
    "HIS-1",
    source="MySQL without strict mode: a VARCHAR(255) key column cuts off what is longer",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression("c" * 300 + "1")),
        lambda s: s.save_compression_record("a", samples.compression("c" * 300 + "2")),
        lambda s: s.load_compression_records("a"),
    ),
)
class CutsCompressionKeys(Layer):
    """Keys compression records by the first 255 characters of their ids."""

    async def commit(self, batches: Any) -> Any:
        def cut(write: DocWrite) -> DocWrite:
            if write.kind != DocKind.COMPRESSIONS:
                return write
            key = write.key[:255]
            return replace(write, key=key, doc=None if write.doc is None else replace(write.doc, key=key))

        return await super().commit([replace(batch, docs=tuple(map(cut, batch.docs))) for batch in batches])


# --- messages and tool calls ------------------------------------------------------------------------------------------


async def _times_of_equals(ctx: Any) -> object:
    for texts in (["ok"], ["ok", "hm"], ["ok", "hm", "ok"]):
        await ctx.store.save_messages("a", talk(*texts))
        await asyncio.sleep(0.02)
    found = await ctx.store.query_messages(agent_id="a", order="asc")
    times = {m.position: m.created_at for m in found}
    return [times[0] < times[1], times[1] < times[2]]


@fault(
    "MSG-4",
    source="content-addressed storage (deduplication): the row of a content is there once, with the time of its first use",
    witness=_times_of_equals,
)
class TimesMessagesByContent(MemoryLayer):
    """Gives a message that a save adds at the end the time of an older message with the same content."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([self._timed(batch) for batch in batches])

    def _timed(self, batch: Batch) -> Batch:
        write, state = batch.messages, self.space.states.get(batch.agent_id)
        if write is None or write.expect is None or not write.append or state is None:
            return batch
        wanted = {row.body.digest for row in write.append}
        times: dict[bytes, int] = {}
        for row in state.lists[ListKind.MESSAGES].rows:
            if row.body.digest in wanted:
                times.setdefault(row.body.digest, row.created_at)
        append = tuple(replace(row, created_at=times.get(row.body.digest, row.created_at)) for row in write.append)
        return replace(batch, messages=replace(write, append=append))


_USED = [
    Message.user("go"),
    Message("assistant", [ToolUseBlock("call_0", "search", {})]),
    Message("user", [ToolResultBlock("call_0", "found")]),
    Message.user("thanks"),
]


@fault(
    "MSG-8",
    "TC-1",
    source="FOREIGN KEY (tool_use_id) … ON DELETE CASCADE between the table of messages and that of tool calls",
    witness=seen(
        lambda s: s.save_messages("a", _USED),
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0), samples.tool_call(1)]),
        lambda s: s.save_messages("a", _USED[3:]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class CascadesToToolCalls(MemoryLayer):
    """Removes the record of a tool call when the message with its tool use is gone from the list, as after a compression."""

    async def commit(self, batches: Any) -> Any:
        before = {
            b.agent_id: self._rows(b.agent_id) for b in batches if b.messages is not None and b.messages.is_editing
        }
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if batch.agent_id in before and batch.tool_calls is None and isinstance(outcome, Applied):
                old, new = before[batch.agent_id], self._rows(batch.agent_id)
                gone = _uses(old[d] for d in old.keys() - new.keys()) - _uses(new[d] for d in new.keys() - old.keys())
                state = self.space.states.get(batch.agent_id)
                calls = None if state is None else state.lists[ListKind.TOOL_CALLS]
                if calls is not None and any(row.index.call_id in gone for row in calls.rows):
                    calls.rows = [row for row in calls.rows if row.index.call_id not in gone]
                    calls.version += 1
        return outcomes

    def _rows(self, agent_id: str) -> dict[bytes, str]:
        state = self.space.states.get(agent_id)
        rows = [] if state is None else state.lists[ListKind.MESSAGES].rows
        return {row.body.digest: row.body.text for row in rows}


def _uses(texts: Any) -> set[str]:
    blocks = (block for text in texts for block in json.loads(text)["content"])
    return {index_text(block["id"]) for block in blocks if block.get("type") == "tool_use"}


@fault(
    "TC-3",
    "VAL-2",
    source="DynamoDB: a transaction has at most 100 items, so a large call is cut into several",
    witness=seen(
        lambda s: s.upsert_tool_call_records(
            "a", [*map(samples.tool_call, range(150)), samples.tool_call(150, input={1})]
        ),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class UpsertsByTheHundred(EngineStore):
    """Upserts a hundred records at a time, each hundred in a commit of its own."""

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, (list, tuple)):
            while len(records) > 100:
                await super().upsert_tool_call_records(agent_id, records[:100], fence=fence)
                records = records[100:]
        await super().upsert_tool_call_records(agent_id, records, fence=fence)


class _Changed:
    def __init__(self, write: Any) -> None:
        self.write = write

    def remember(self, head: Any) -> None:
        return None


@fault(
    "TC-3",
    "TC-2",
    source="list.index(), or next(i for i, r in enumerate(records) if r.id == id), which finds the first",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0), samples.tool_call(1), samples.tool_call(0)]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(0, result="new")]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class UpsertsTheFirstOfAnId(EngineStore):
    """Replaces the first of several stored records with the same id, where it should be the last."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        plain = self._writer._change

        async def change(agent_id: str, kind: ListKind, edit: Any, *, whole: bool) -> Any:
            made = await plain(agent_id, kind, edit, whole=whole)
            if edit.how is not Upsert or not made.write.put:
                return made
            places: dict[str, int] = {}
            outline = await self._context.engine.outline(agent_id, kind)
            for place, _, _, key in outline.rows:
                places.setdefault(str(key), place)
            put = {places.get(row.index.call_id, place): row for place, row in made.write.put}
            if [*put] == [place for place, _ in made.write.put]:
                return made
            return _Changed(replace(made.write, put=tuple(sorted(put.items(), key=lambda pair: pair[0]))))

        self._writer._change = change  # type: ignore[method-assign]


# --- turns ------------------------------------------------------------------------------------------------------------


@fault(
    "TURN-1",
    "DUR-3",
    "VAL-2",
    source="an outbox that publishes the events in a transaction of its own once the state was committed",
    on=OnSqlite,
    witness=seen(
        lambda s: s.save_turn("a", append=talk("x"), events=[samples.event(1, x=float("nan"))]),
        lambda s: s.load_messages("a"),
    ),
)
class WritesEventsAfterTheTurn(EngineStore):
    """Commits the events of a turn after the rest of it, in a write of their own."""

    async def save_turn(self, agent_id: str, *, events: Any = (), fence: Any = None, **rest: Any) -> None:
        if not isinstance(events, (list, tuple)) or not events:
            await super().save_turn(agent_id, events=events, fence=fence, **rest)
            return
        await super().save_turn(agent_id, fence=fence, **rest)
        await self._append(agent_id, await event_writes(events), fence)


@fault(
    "TURN-1",
    "TC-1",
    source="`if tool_calls:` where `if tool_calls is not None:` was meant",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call()]),
        lambda s: s.save_turn("a", tool_calls=[], append=talk("x")),
        lambda s: s.load_tool_call_records("a"),
        lambda s: s.load_messages("a"),
    ),
)
class KeepsToolCallsOfAnEmptyTurn(EngineStore):
    """Takes an empty list of tool calls given to save_turn for one that was not given, and keeps the old ones."""

    async def save_turn(self, agent_id: str, *, tool_calls: Any = None, **rest: Any) -> None:
        await super().save_turn(agent_id, tool_calls=tool_calls or None, **rest)


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-4",
    source="deque(maxlen=1000) of the keys seen last, as deduplicating consumers and brokers keep a window of them",
    witness=seen(
        lambda s: s.append_event("a", samples.event(0)),
        lambda s: s.append_events("a", samples.events(1000, 1)),
        lambda s: s.append_event("a", samples.event(0)),
        lambda s: s.append_event("a", samples.event(900)),
    ),
)
class RemembersAThousandEvents(MemoryLayer):
    """Knows an event that is appended again only if it is among the last thousand."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([self._renewed(batch) for batch in batches])

    def _renewed(self, batch: Batch) -> Batch:
        state = self.space.states.get(batch.agent_id)
        if not batch.events or state is None or batch.delete:
            return batch
        log, events = state.log, []
        for event in batch.events:
            body = event.body
            while True:
                known = log.find(event.seq, body.digest)
                if known is None or log.next_offset - known <= 1000:
                    break
                text = body.text + " "  # the same JSON under another digest
                body = Body(text, digest(text.encode()))
            events.append(replace(event, body=body))
        return replace(batch, events=tuple(events))


async def _follows_since(ctx: Any) -> object:
    await ctx.store.append_events("a", samples.events(6))
    following = ctx.store.follow_events("a", since=Bookmark(4, samples.T0))
    seqs = [(await anext(following)).bookmark.seq]
    await ctx.store.append_event("a", samples.event(2, text="after a restart"))
    await ctx.store.append_event("a", samples.event(7))
    seqs.append((await asyncio.wait_for(anext(following), 5)).bookmark.seq)
    await following.aclose()
    return seqs


@fault(
    "EVT-7",
    source="catch-up from the database, then a subscription to a channel (LISTEN, Pub/Sub) that knows no filter",
    witness=_follows_since,
)
class FollowsNewEventsWithoutSince(EngineStore):
    """Leaves out `since` for the events that are appended while it follows; only the stored ones are filtered by it."""

    def follow_events(self, agent_id: str, *, since: Any = None, after_offset: Any = 0, channel: Any = None) -> Any:
        following = super().follow_events(agent_id, since=since, after_offset=after_offset, channel=channel)
        if type(since) is not Bookmark:
            return following
        return self._caught_up(agent_id, since, after_offset, channel)

    async def _caught_up(self, agent_id: str, since: Bookmark, after_offset: int, channel: Any) -> Any:
        place = after_offset
        async with contextlib.aclosing(super().read_events(agent_id, after_offset=place, channel=channel)) as stored:
            async for event in stored:
                place = event.offset
                if event.bookmark.seq > since.seq:
                    yield event
        async with contextlib.aclosing(super().follow_events(agent_id, after_offset=place, channel=channel)) as later:
            async for event in later:
                yield event


# --- the other kinds --------------------------------------------------------------------------------------------------


@fault(
    "TODO-1",
    "TURN-1",
    source="INSERT … ON CONFLICT DO UPDATE … WHERE excluded.version >= todos.version",
    witness=seen(
        lambda s: s.save_todos("a", samples.todos("x", "y")),
        lambda s: s.save_todos("a", samples.todos("z")),
        lambda s: s.load_todos("a"),
    ),
)
class KeepsTodosOfAHigherVersion(MemoryLayer):
    """Does not replace todos by those with a lower version, and says nothing."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([self._newer(batch) for batch in batches])

    def _newer(self, batch: Batch) -> Batch:
        old = self.space.state(batch.agent_id).docs.get((DocKind.TODOS, ""))

        def is_stale(write: DocWrite) -> bool:
            if write.kind != DocKind.TODOS or write.doc is None or old is None:
                return False
            return bool(_version(write.doc) < _version(old))

        return replace(batch, docs=tuple(write for write in batch.docs if not is_stale(write)))


def _version(doc: Doc) -> int:
    return int(json.loads(doc.body.text).get("version", 1))


@fault(
    "HIS-1",
    source="INSERT … ON CONFLICT (id) DO UPDATE SET body = excluded.body, the column to sort by forgotten",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window("w1", samples.T0)),
        lambda s: s.save_history_window("a", samples.window("w2", samples.T0 + 1)),
        lambda s: s.save_history_window("a", samples.window("w1", samples.T0 + 2)),
        lambda s: s.load_history_windows("a"),
    ),
)
class SortsWindowsByTheirFirstTime(MemoryLayer):
    """Leaves a history window that is replaced at the place of its first timestamp."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([self._timed(batch) for batch in batches])

    def _timed(self, batch: Batch) -> Batch:
        docs = self.space.state(batch.agent_id).docs

        def timed(write: DocWrite) -> DocWrite:
            old = docs.get((write.kind, write.key))
            if write.kind != DocKind.WINDOWS or write.doc is None or old is None:
                return write
            return replace(write, doc=replace(write.doc, time=old.time))

        return replace(batch, docs=tuple(map(timed, batch.docs)))


@fault(
    "MED-1",
    "VAL-1",
    source="a write-avoiding layer that compares what it holds by key, as a sync or an rsync by name does",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media("m")]),
        lambda s: s.save_media_cache("a", [samples.media("m").replace(file_id="file-2")]),
        lambda s: s.load_media_cache("a"),
    ),
)
class SkipsMediaWithTheSameKeys(MemoryLayer):
    """Does not write a media cache that has the keys of the stored one in the same order, whatever else changed in it."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([self._changed(batch) for batch in batches])

    def _changed(self, batch: Batch) -> Batch:
        old = self.space.state(batch.agent_id).docs.get((DocKind.MEDIA, ""))

        def is_same(write: DocWrite) -> bool:
            if write.kind != DocKind.MEDIA or write.doc is None or old is None:
                return False
            return _media_keys(write.doc) == _media_keys(old)

        return replace(batch, docs=tuple(write for write in batch.docs if not is_same(write)))


def _media_keys(doc: Doc) -> list[str]:
    return [record["key"] for record in json.loads(doc.body.text)]


@fault(
    "SNAP-1",
    "VAL-4",
    source="DynamoDB: a Query ends after 1 MB, and LastEvaluatedKey was not looked at",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("s1").replace(metadata={"x": "y" * 700_000})),
        lambda s: s.save_snapshot("a", samples.snapshot("s2").replace(metadata={"x": "y" * 700_000})),
        lambda s: _ids_of(s.list_snapshots("a")),
    ),
)
class ListsAMegabyteOfSnapshots(EngineStore):
    """Lists the newest snapshots only, as many as fit into 1 MB."""

    async def list_snapshots(self, agent_id: str) -> list[Snapshot]:
        shown: list[Snapshot] = []
        size = 0
        for snapshot in await super().list_snapshots(agent_id):
            size += len(encode(Snapshot, snapshot, "").text)
            if shown and size > 2**20:
                break
            shown.append(snapshot)
        return shown


async def _ids_of(records: Any) -> list[str]:
    return [record.id for record in await records]


@fault(
    "INFO-1",
    "VAL-3",
    source="UPDATE … SET breakpoint = COALESCE(:breakpoint, breakpoint)",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_info("a", samples.info("a", breakpoint=None, last_bookmark=None)),
        lambda s: s.load_info("a"),
    ),
)
class CoalescesInfo(MemoryLayer):
    """Keeps the old breakpoint and bookmark of an info when the new one has none."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([self._merged(batch) for batch in batches])

    def _merged(self, batch: Batch) -> Batch:
        old = self.space.state(batch.agent_id).info
        if batch.info is None or old is None:
            return batch
        new, before = decode(AgentInfo, batch.info.body, ""), decode(AgentInfo, old.body, "")
        kept = {
            name: getattr(before, name)
            for name in ("breakpoint", "last_bookmark")
            if getattr(new, name) is None and getattr(before, name) is not None
        }
        if not kept:
            return batch
        return replace(batch, info=replace(batch.info, body=encode(AgentInfo, new.replace(**kept), "")))


async def _appends_nothing(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    (before,) = await ctx.store.query_sessions()
    await ctx.store.append_messages("a", [])
    (after,) = await ctx.store.query_sessions()
    return before.updated_at < after.updated_at


@fault(
    "INFO-2",
    "ID-1",
    "OPS-5",
    "LOCK-5",
    source="`if not messages: return` as the first line, because executemany() and insert_many([]) fail on nothing",
    witness=_appends_nothing,
)
class ReturnsEarlyFromAnEmptyAppend(EngineStore):
    """Returns at once when no messages are given to append_messages, before anything is checked or updated."""

    async def append_messages(self, agent_id: str, messages: Any, *, fence: Any = None) -> None:
        if isinstance(messages, (list, tuple)) and not messages:
            return
        await super().append_messages(agent_id, messages, fence=fence)


# --- lifecycle --------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-4",
    "LIFE-3",
    "INFO-1",
    "MSG-8",
    source="soft delete: an upsert of the agent's row sets deleted_at to NULL, and its children are there again",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_history_window("a", samples.window()),
        lambda s: s.delete("a"),
        lambda s: s.load_history_windows("a"),
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.load_history_windows("a"),
    ),
)
class UndeletesHistory(MemoryLayer):
    """Hides history windows and compression records of a deleted agent, and shows them when its info is saved again."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.hidden: dict[str, dict[Any, Doc]] = {}

    async def commit(self, batches: Any) -> Any:
        docs = {batch.agent_id: dict(self.space.state(batch.agent_id).docs) for batch in batches if batch.delete}
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if not isinstance(outcome, Applied):
                continue
            if batch.delete:
                kinds = (DocKind.WINDOWS, DocKind.COMPRESSIONS)
                hidden = {key: doc for key, doc in docs[batch.agent_id].items() if key[0] in kinds}
                if hidden:
                    self.hidden[batch.agent_id] = hidden
            elif batch.info is not None and batch.agent_id in self.hidden:
                state = self.space.states[batch.agent_id]
                state.docs = {**self.hidden.pop(batch.agent_id), **state.docs}
        return outcomes


async def _deletes_many(ctx: Any) -> object:
    for i in range(210):
        await ctx.store.save_info(f"a{i}", samples.info(f"a{i}"))
    return [await ctx.store.delete_many(template_id="assistant"), len(await ctx.store.list())]


@fault(
    "LIFE-5",
    source="for page in Paginator(queryset): page.delete() - offset pages over what is being deleted (Django, SQLAlchemy)",
    witness=_deletes_many,
)
class DeletesByOffset(EngineStore):
    """Pages by offset through the sessions that it deletes, so that those of the second page move to the first unseen."""

    async def delete_many(self, *, progress: Any = None, **filters: Any) -> int:
        async def delete() -> int:
            seen = 0

            async def page_at(given: Any) -> Any:
                nonlocal seen
                if given["cursor"] is None:
                    seen = 0
                page = await self._search.sessions({**given, "cursor": None, "offset": seen})
                seen += len(page)
                return page

            return await self._deletions.delete_many(page_at, filters, _told(progress))

        return await self._run("delete_many", delete)


# --- queries ----------------------------------------------------------------------------------------------------------


@fault(
    "QRY-2",
    source="SQLite: json_extract gives true as 1; Python: True == 1",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"beta": True})),
        lambda s: s.save_info("b", samples.info("b", metadata={"beta": 1})),
        lambda s: _agents_of(s.query_sessions(metadata={"beta": 1})),
        lambda s: _agents_of(s.query_sessions(metadata={"beta": True})),
    ),
)
class TakesBooleansForNumbers(Layer):
    """Finds sessions by metadata as if true were 1 and false 0."""

    _AS_NUMBER = {"true": "1", "false": "0"}

    def _numbered(self, metadata: Any) -> Any:
        return tuple((key, self._AS_NUMBER.get(value, value)) for key, value in metadata)

    def _info(self, info: Info | None) -> Any:
        return None if info is None else replace(info, metadata=self._numbered(info.metadata))

    async def commit(self, batches: Any) -> Any:
        return await super().commit([replace(batch, info=self._info(batch.info)) for batch in batches])

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        children = [replace(child, info=self._info(child.info)) for child in children]
        return await super().fork(agent_id, children, expect, now)

    async def find_sessions(self, query: Any) -> Any:
        return await super().find_sessions(replace(query, metadata=self._numbered(query.metadata)))


async def _agents_of(page: Any) -> list[str]:
    return [session.agent_id for session in await page]


async def _goes_on_elsewhere(ctx: Any) -> object:
    for name in "abc":
        await ctx.store.save_info(name, samples.info(name))
    other = await ctx.another()
    page = await ctx.store.query_sessions(limit=2)
    try:
        return [s.agent_id for s in await other.query_sessions(limit=2, cursor=page.next_cursor)]
    except Exception as exc:
        return type(exc).__name__


@fault(
    "QRY-5",
    source="a cursor that the server keeps, as Elasticsearch's scroll ids, or a dict of tokens in a web worker",
    errors=True,
    witness=_goes_on_elsewhere,
)
class KeepsSessionCursorsInMemory(EngineStore):
    """Gives cursors of sessions that only the instance that gave them knows."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._cursors: OrderedDict[str, str] = OrderedDict()

    async def query_sessions(self, **filters: Any) -> Any:
        cursor = filters.get("cursor")
        if type(cursor) is str:
            filters["cursor"] = self._cursors.get(cursor, cursor)
        page = await super().query_sessions(**filters)
        if page.next_cursor is not None:
            token = secrets.token_urlsafe(12)
            self._cursors[token] = page.next_cursor
            page.next_cursor = token
            if len(self._cursors) > 10_000:
                self._cursors.popitem(last=False)
        return page


# --- operations -------------------------------------------------------------------------------------------------------


@fault(
    "OPS-2",
    source="a generator that was written next to the check and loops over list(), where the check loops over everything",
    witness=seen(
        lambda s: s.save_messages("a", [Message("assistant", [ToolUseBlock("call_0", "search", {})]), *talk("x")]),
        lambda s: s.iter_consistency(),
        lambda s: _issues_of(s.check_consistency()),
    ),
)
class IteratesIssuesOfKnownAgents(EngineStore):
    """Leaves out of iter_consistency what is wrong with agents that have no info."""

    def iter_consistency(self, agent_id: Any = None, *, progress: Any = None) -> Any:
        found = super().iter_consistency(agent_id, progress=progress)
        return found if agent_id is not None else self._of_known(found)

    async def _of_known(self, found: Any) -> Any:
        async with contextlib.aclosing(found):
            async for issue in found:
                if issue.agent_id in await self._reader.list_ids(issue.agent_id):
                    yield issue


async def _issues_of(check: Any) -> list[str]:
    return [issue.code for issue in (await check).issues]


async def _shows_secrets(ctx: Any) -> object:
    secret = "ab" * 10  # in no line that a traceback shows
    try:
        await ctx.store.save_tool_call_records("a", [samples.tool_call(input={"password": secret, "x": {1}})])
    except Exception as exc:
        return secret in "".join(traceback.format_exception(exc))


@fault(
    "OPS-12",
    source="an audit decorator that adds the arguments to the error (BaseException.add_note, Sentry's local variables)",
    witness=_shows_secrets,
)
class NotesWhatItRefused(EngineStore):
    """Adds the tool call records that could not be saved to the error, as a note that each traceback shows."""

    async def save_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        try:
            await super().save_tool_call_records(agent_id, records, fence=fence)
        except KodeError as exc:
            exc.add_note(f"in save_tool_call_records({agent_id!r:.80}, {records!r:.1000})")
            raise


# --- locks ------------------------------------------------------------------------------------------------------------


async def _waits_for_another(ctx: Any) -> object:
    held = await ctx.store.acquire_agent_lock("a")
    waiting = asyncio.create_task(_taken(ctx.store.acquire_agent_lock("a", wait_ms=2500)))
    await asyncio.sleep(0.1)
    start = asyncio.get_running_loop().time()
    await (await ctx.store.acquire_agent_lock("b")).release()
    took = asyncio.get_running_loop().time() - start
    await waiting
    await held.release()
    return took > 1.5


async def _taken(lock: Any) -> object:
    try:
        return await lock
    except KodeError as exc:
        return type(exc).__name__


@fault(
    "OPS-13",
    "LOCK-2",
    source="one asyncio.Lock around all that a lock manager does, its waiting included",
    witness=_waits_for_another,
)
class TakesLocksOneByOne(EngineStore):
    """Lets a call for one agent's lock wait as long as another call waits for another agent's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._one_by_one = asyncio.Lock()

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> Any:
        lock = super().acquire_agent_lock(agent_id, ttl_ms, wait_ms)
        acquire = lock._acquire

        async def acquire_alone() -> Any:
            async with self._one_by_one:
                return await acquire()

        lock._acquire = acquire_alone
        return lock


async def _deletes_too_late(ctx: Any) -> object:
    await ctx.store.save_messages("a", talk("x"))
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    try:
        await ctx.store.delete("a", fence=lease)
    except KodeError as exc:
        return type(exc).__name__, await ctx.store.load_messages("a")
    return await ctx.store.load_messages("a")


@fault(
    "LOCK-5",
    source="a layer that forwards each method by hand, and has **kwargs in all but one of them",
    witness=_deletes_too_late,
)
class DeletesWithoutTheFence(EngineStore):
    """Does not pass on the fence that is given to delete."""

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id)


# --- forks ------------------------------------------------------------------------------------------------------------


async def _forks_a_fork(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    (child,) = await ctx.store.batch_fork("a", 1)
    (grandchild,) = await ctx.store.batch_fork(child, 1)
    return [len((await ctx.store.load_info(agent_id)).lineage) for agent_id in (child, grandchild)]


@fault(
    "FORK-1",
    "FORK-2",
    source="lineage=[parent.agent_id], a parent column instead of the path to the root",
    witness=_forks_a_fork,
)
class ForgetsGrandparents(Layer):
    """Gives a fork of a fork the lineage of its parent alone."""

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        def orphaned(child: Any) -> Any:
            info = decode(AgentInfo, child.info.body, "")
            body = encode(AgentInfo, info.replace(lineage=info.lineage[-1:]), "")
            return replace(child, info=replace(child.info, body=body))

        return await super().fork(agent_id, [orphaned(child) for child in children], expect, now)


async def _changes_the_parent(ctx: Any) -> object:
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.save_todos("a", samples.todos("x"))
    (child,) = await ctx.store.batch_fork("a", 1)
    before = await ctx.store.load_todos(child)
    await ctx.store.save_todos("a", samples.todos("y"))
    return before, await ctx.store.load_todos(child)


@fault(
    "FORK-2",
    "FORK-1",
    source="copy on write that copies on the write of the fork only, not on that of the parent",
    witness=_changes_the_parent,
)
class ReadsTodosOfTheParent(MemoryLayer):
    """Reads the todos of a fork from its parent until the fork saves some, also when the parent's change meanwhile."""

    @property
    def parents(self) -> dict[str, str]:
        return self.space.__dict__.setdefault("parents", {})  # type: ignore[no-any-return]

    async def fork(self, agent_id: str, children: Any, expect: Any, now: int) -> bool:
        is_done = await super().fork(agent_id, children, expect, now)
        for child in children if is_done else ():
            self.space.states[child.agent_id].docs.pop((DocKind.TODOS, ""), None)
            self.parents[child.agent_id] = agent_id
        return is_done

    async def commit(self, batches: Any) -> Any:
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            is_own = batch.delete or any(write.kind == DocKind.TODOS for write in batch.docs)
            if is_own and isinstance(outcome, Applied):
                self.parents.pop(batch.agent_id, None)
        return outcomes

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Any:
        while kind == DocKind.TODOS and agent_id in self.parents:
            agent_id = self.parents[agent_id]
        return await super().docs(agent_id, kind, key)


# --- durability -------------------------------------------------------------------------------------------------------


async def _reads_the_dump(ctx: Any) -> object:
    await ctx.store.save_todos("a", samples.todos("x"))
    store = await ctx.reopen()
    first = await store.load_todos("a")
    await store.save_todos("a", samples.todos("y"))
    other = await ctx.another()
    return first, await other.load_todos("a")


@fault(
    "DUR-1",
    "QRY-8",
    "TODO-1",
    source="a cache that is dumped at shutdown and warmed at startup (pickle.dump in atexit, memcached's warm restart)",
    on=OnSqlite,
    witness=_reads_the_dump,
)
class WarmsTodosFromADump(Layer):
    """Keeps the todos that it saw at its last clean close, and after a start believes them more than the table, which
    may have got others since, as before a crash."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.written: set[str] = set()

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Any:
        if kind == DocKind.TODOS and agent_id not in self.written:
            dumped = await self.inner.docs(agent_id, DocKind.LAYER, "warm todos")
            if dumped:
                return [replace(dumped[0], key="")]
        return await super().docs(agent_id, kind, key)

    async def commit(self, batches: Any) -> Any:
        outcomes = await super().commit(batches)
        for batch in batches:
            if batch.delete or any(write.kind == DocKind.TODOS for write in batch.docs):
                self.written.add(batch.agent_id)
        return outcomes

    async def close(self) -> None:
        dumps: deque[Batch] = deque()
        with contextlib.suppress(KodeError):
            for agent_id in self.written:
                for doc in await self.inner.docs(agent_id, DocKind.TODOS, ""):
                    write = DocWrite(DocKind.LAYER, "warm todos", replace(doc, key="warm todos"))
                    dumps.append(Batch(agent_id=agent_id, op_id=secrets.token_hex(8), now=0, docs=(write,)))
            if dumps:
                await self.inner.commit([*dumps])
        await super().close()
