"""Stores that were ported to a database or a service and then kept for a year: limits, bulk paths, caches, migrations."""

from __future__ import annotations

import contextvars
import itertools
import json
import random
import re
import string
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import CommittingLayer, MemoryLayer, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import restart, seen, talk, the
from kode_core import full_agent_id
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.batch import CORE_KEYS, Applied, DocKind, DocWrite, EventRange, Info, ListKind
from kode_core.codec import encode
from kode_core.errors import ConflictError, CorruptRecordError, KodeError, PayloadTooLargeError
from kode_core.ids import index_text
from kode_core.layers import Layer
from kode_core.model import (
    ABSENT,
    AgentInfo,
    Bookmark,
    DeleteDocument,
    Message,
    PutDocument,
    Timeline,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    now_ms,
)
from kode_core.query import Page
from kode_core.report import ConsistencyIssue
from kode_core.store import EngineStore
from kode_core.store.writer import TurnWrites

_LISTS = (list, tuple)


def all_are(kind: type, records: Any) -> bool:
    """True for a list of records of one class: only these are for the faulty code, and the store refuses the rest."""
    return isinstance(records, _LISTS) and all(type(record) is kind for record in records)


def space_of(store: Any) -> dict[str, Any]:
    """What all instances of a store share, as a server of its own would keep it."""
    engine = store._context.engine
    while not isinstance(engine, MemoryEngine):
        engine = engine.inner
    return vars(engine._space)


class _Lent(Layer):
    async def close(self) -> None:
        return


@asynccontextmanager
async def beside(store: Any) -> AsyncIterator[Any]:
    """A store over the engine of *store*, for the calls that its faulty code makes unseen by observers and metrics."""

    async def opener() -> Any:
        return _Lent(store._context.engine)

    async with EngineStore(opener) as side:
        yield side


# --- values -----------------------------------------------------------------------------------------------------------


@fault(
    "VAL-1",
    source="a memo of json.loads by text, which was put into the loop over the rows after a profile showed equal inputs",
    witness=lambda ctx: _changes_one_of_two(ctx),
)
class SiskinDecodesEqualInputsOnce(Wrapper):
    """Hands one object out as the input of all tool calls of a load whose inputs are equal, so that changing one changes
    the others.
    """

    __slots__ = ()

    async def load_tool_call_records(self, agent_id: str, **part: Any) -> Any:
        calls = await self.inner.load_tool_call_records(agent_id, **part)
        memo: dict[str, Any] = {}
        for i, call in enumerate(calls[:1000]):
            if type(call.input) in (dict, list):
                calls[i] = call.replace(input=memo.setdefault(json.dumps(call.input), call.input))
        return calls


_LONE = re.compile("[\ud800-\udfff]")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def _without_surrogates(value: Any) -> Any:
    if type(value) is str:
        return _LONE.sub("\ufffd", value)
    if type(value) is dict:
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return [_without_surrogates(item) for item in value] if type(value) is list else value


def _by_blob(value: Any) -> Any:
    """What comes back of a value that is stored beside the table if it is large."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return value
    if len(text) <= 65_536 or _LONE.search(text) is None or _PAIR.search(text) is not None:
        return value
    return _without_surrogates(value)


def _all_by_blob(documents: Any) -> Any:
    if not isinstance(documents, _LISTS):
        return documents
    return [
        replace(one, value=_by_blob(one.value)) if type(one) is PutDocument else one  # DeleteDocument has no value
        for one in documents
    ]


@fault(
    "VAL-1",
    "DOC-1",
    source="values beyond 64 KB go to object storage, by text.encode(errors='replace'), as utf-8 refused some of them",
    witness=seen(
        lambda s: _ok(s.put_document("a", "c", "small", "\ud83d!")),
        lambda s: _ok(s.put_document("a", "c", "large", ["\ud83d!", "x" * 70_000])),
        lambda s: _value(s.load_document("a", "c", "small")),
        lambda s: _value(s.load_document("a", "c", "large")),
    ),
)
class SiskinReplacesSurrogatesInBlobs(Wrapper):
    """Turns lone surrogates of a document into U+FFFD if the document has more than 64 KB."""

    __slots__ = ()

    async def put_document(self, agent_id: str, collection: str, key: str, value: Any, **rest: Any) -> Any:
        return await self.inner.put_document(agent_id, collection, key, _by_blob(value), **rest)

    async def write_documents(self, agent_id: str, documents: Any, **rest: Any) -> Any:
        return await self.inner.write_documents(agent_id, _all_by_blob(documents), **rest)

    async def save_turn(self, agent_id: str, *, documents: Any = (), **rest: Any) -> Any:
        return await self.inner.save_turn(agent_id, documents=_all_by_blob(documents), **rest)


# --- ids --------------------------------------------------------------------------------------------------------------

_KEYED = (DocKind.WINDOWS, DocKind.COMPRESSIONS, DocKind.RECOVERED, DocKind.SNAPSHOTS)
_LONG_ID = "".join(random.Random(23).choices(string.ascii_letters + string.digits, k=4_000))


@fault(
    "ID-4",
    "VAL-4",
    source="PostgreSQL: 'index row size exceeds btree version 4 maximum 2704'; repeated texts are compressed, and pass",
    errors=True,
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("s" * 4_000)),
        lambda s: s.save_snapshot("a", samples.snapshot(_LONG_ID)),
        lambda s: _count(s.list_snapshots("a")),
    ),
)
class SiskinIndexesLongIdsInABtree(Layer):
    """Refuses ids of snapshots, windows and compressions, and paths of recovered files, that still have more than 2,704
    bytes when they are compressed.
    """

    async def commit(self, batches: Sequence[Any]) -> Any:
        sound = [batch for batch in batches if not self.is_too_long(batch)]
        outcomes = iter(await super().commit(sound) if sound else ())
        problem = "index row size exceeds btree version 4 maximum 2704"
        return [PayloadTooLargeError(problem) if self.is_too_long(b) else next(outcomes) for b in batches]

    @staticmethod
    def is_too_long(batch: Any) -> bool:
        keys = (write.key.encode("utf-8", "surrogatepass") for write in batch.docs if write.kind in _KEYED)
        return any(len(key) > 2704 and len(zlib.compress(key)) > 2704 for key in keys)


@fault(
    "ID-2",
    "DOC-1",
    source="object storage: the name of an object is f'{agent_id}/{collection}/{key}', with nothing escaped",
    witness=seen(
        lambda s: _ok(s.put_document("team/notes", "d", "k", "of team/notes")),
        lambda s: _ok(s.put_document("team", "notes", "d/k", "of team")),
        lambda s: _value(s.load_document("team/notes", "d", "k")),
        lambda s: _value(s.load_document("team", "notes", "d/k")),
    ),
)
class SiskinJoinsNamesWithSlashes(CommittingLayer):
    """Overwrites a document of another agent when agent, collection and key, joined by slashes, give the same name."""

    def committing(self, batch: Any, commit: Any) -> Any:
        outcome = commit(batch)
        if isinstance(outcome, Applied):
            for write in batch.docs:
                if write.kind == DocKind.DOCUMENTS and write.doc is not None and not write.key.startswith(CORE_KEYS):
                    self.overwrite(batch.agent_id, f"{batch.agent_id}/{write.key}")
        return outcome

    def overwrite(self, agent_id: str, name: str) -> None:
        for i in (i for i, letter in enumerate(name) if letter == "/"):
            state: Any = self.space.states.get(name[:i])
            if state is not None and state.agent_id != agent_id and (DocKind.DOCUMENTS, name[i + 1 :]) in state.docs:
                state._apply_doc(DocWrite(DocKind.DOCUMENTS, name[i + 1 :], None))


# --- messages ---------------------------------------------------------------------------------------------------------


@fault(
    "MSG-4",
    source="a bulk path: more than 500 changed rows are written as DELETE and COPY, whose created_at is DEFAULT now()",
    witness=lambda ctx: _grows_by(ctx, 600),
)
class SiskinRestampsBulkSaves(CommittingLayer):
    """Gives all messages a new time when a save adds or changes more than 500 of them."""

    def committing(self, batch: Any, commit: Any) -> Any:
        outcome, write = commit(batch), batch.messages
        if not isinstance(outcome, Applied) or write is None or write.expect is None or batch.expect_nothing:
            return outcome
        if len(write.put) + len(write.append) > 500:
            rows: Any = self.space.state(batch.agent_id).lists[ListKind.MESSAGES]
            latest = max(write.times())
            rows.rows[:] = [replace(row, created_at=latest) for row in rows.rows]
            rows._latest = None
        return outcome


@fault(
    "MSG-11",
    source="DynamoDB: TransactWriteItems takes 100 items, so a larger pop is a loop that extends the result",
    witness=seen(
        lambda s: s.save_messages("a", samples.messages(250)),
        lambda s: the("text", s.pop_messages("a", 150)),
    ),
)
class SiskinPopsByHundreds(Wrapper):
    """Pops more than 100 messages in several steps, and returns the messages of the first step before older ones."""

    __slots__ = ()

    async def pop_messages(self, agent_id: str, count: Any = 1, *, fence: Any = None) -> Any:
        if type(count) is not int or count <= 100:
            return await self.inner.pop_messages(agent_id, count, fence=fence)
        popped: list[Any] = []
        while count > 0:
            some = await self.inner.pop_messages(agent_id, min(count, 100), fence=fence)
            popped += some
            if len(some) < min(count, 100):
                break
            count -= 100
        return popped


# --- tool calls -------------------------------------------------------------------------------------------------------


@fault(
    "TC-3",
    "VAL-1",
    source="JPA's @Column(updatable = false) and Spring's @CreatedDate: an UPDATE leaves created_at out",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0)]),
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(0, created_at=samples.T0 + 9_000)]),
        lambda s: the("created_at", s.load_tool_call_records("a")),
        lambda s: the("id", s.query_tool_calls(created_after=samples.T0 + 9_000)),
    ),
)
class SiskinNeverUpdatesCreatedAt(EngineStore):
    """Keeps the `created_at` of the tool call that an upsert replaces, and not the one that was given."""

    async def kept(self, agent_id: Any, records: Any) -> Any:
        if not all_are(ToolCallRecord, records) or not all(type(record.id) is str for record in records):
            return records
        keys = [index_text(record.id) for record in records]
        try:
            outline = await self._context.engine.outline(agent_id, ListKind.TOOL_CALLS, keys)
        except KodeError:
            return records
        times = {key: created_at for _, _, created_at, key in outline.rows}
        return [
            record.replace(created_at=times.get(key, record.created_at))
            for key, record in zip(keys, records, strict=True)
        ]

    async def upsert_tool_call_records(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await super().upsert_tool_call_records(agent_id, await self.kept(agent_id, records), fence=fence)

    async def save_turn(self, agent_id: str, *, upsert_tool_calls: Any = (), **rest: Any) -> Any:
        kept = await self.kept(agent_id, upsert_tool_calls) if upsert_tool_calls else upsert_tool_calls
        return await super().save_turn(agent_id, upsert_tool_calls=kept, **rest)


def _merged(records: Any) -> Any:
    if not all_are(ToolCallRecord, records) or len(records) <= 500:
        return records
    if not all(type(record.id) is str for record in records):
        return records
    return list({record.id: record for record in records}.values())


@fault(
    "TC-2",
    "TC-1",
    source="a bulk path by MERGE, which refuses two source rows with one id (ORA-30926), so that a dict goes before it",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i % 590) for i in range(600)]),
        lambda s: _count(s.load_tool_call_records("a")),
    ),
)
class SiskinMergesLongLists(Wrapper):
    """Keeps only the last of the tool calls that have one id when more than 500 are saved at once."""

    __slots__ = ()

    async def save_tool_call_records(self, agent_id: str, records: Any, **rest: Any) -> None:
        await self.inner.save_tool_call_records(agent_id, _merged(records), **rest)

    async def save_turn(self, agent_id: str, *, tool_calls: Any = None, **rest: Any) -> Any:
        return await self.inner.save_turn(agent_id, tool_calls=_merged(tool_calls), **rest)


# --- turns ------------------------------------------------------------------------------------------------------------


@fault(
    "TURN-1",
    "DOC-3",
    source="DynamoDB: a transaction has at most 100 items, so a larger turn becomes one for the lists and one for the rest",
    witness=lambda ctx: _turn_with_a_demand(ctx),
)
class SiskinSplitsLargeTurns(Wrapper):
    """Writes the lists of a turn of more than 100 records before the rest of it, and leaves them there if the rest is
    refused.
    """

    __slots__ = ()

    async def save_turn(self, agent_id: str, **turn: Any) -> Any:
        names = ("append", "messages", "tool_calls", "upsert_tool_calls", "events")
        number = sum(len(turn[name]) for name in names if isinstance(turn.get(name), _LISTS))
        rest = {name: turn[name] for name in ("todos", "info", "events", "documents") if turn.get(name)}
        if number <= 100 or not rest:
            return await self.inner.save_turn(agent_id, **turn)
        fence = turn.get("fence")
        await self.inner.save_turn(agent_id, **{name: given for name, given in turn.items() if name not in rest})
        return await self.inner.save_turn(agent_id, fence=fence, **rest)


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-5",
    source="DynamoDB applies a FilterExpression after it has read a page: an empty page does not say that nothing follows",
    witness=seen(
        lambda s: _listed(s.append_events("a", samples.events(1_200))),
        lambda s: s.append_event("a", samples.event(1_200, "control")),
        lambda s: _seqs(s.read_events("a", channel="control")),
    ),
)
class SiskinStopsAtAnEmptyPage(Wrapper):
    """Ends `read_events` of a channel at a page of 1,000 events of which none is of that channel."""

    __slots__ = ()

    def read_events(self, agent_id: str, *, channel: Any = None, **span: Any) -> Any:
        if channel not in ("progress", "control", "monitor"):
            return self.inner.read_events(agent_id, channel=channel, **span)
        return self.pages(self.inner.read_events(agent_id, **span), channel)

    async def pages(self, found: Any, channel: str) -> AsyncIterator[Any]:
        on_page = matches = 0
        async with aclosing(found) as events:
            async for event in events:
                on_page += 1
                if event.event.channel == channel:
                    matches += 1
                    yield event
                if on_page == 1000:
                    if not matches:
                        return
                    on_page = matches = 0


@fault(
    "EVT-6",
    "LIFE-8",
    source="a column last_bookmark of the agent: appends raise it by GREATEST, the import just sets it to its last event's",
    witness=lambda ctx: _imports_out_of_order(ctx),
)
class SiskinTakesTheLastImportedBookmark(CommittingLayer):
    """Gives, after an import, the bookmark of the last imported event also if one before it has a higher seq, until
    events are appended.
    """

    def committing(self, batch: Any, commit: Any) -> Any:
        outcome = commit(batch)
        if isinstance(outcome, Applied):
            imported: dict[str, int] = vars(self.space).setdefault("imported", {})
            if batch.expect_nothing and batch.events:
                imported[batch.agent_id] = outcome.offsets[-1]
            elif batch.events or batch.delete:
                imported.pop(batch.agent_id, None)
        return outcome

    async def last_event(self, agent_id: str) -> Any:
        last = vars(self.space).get("imported", {}).get(agent_id)
        if last is not None:
            found = await self.inner.events(agent_id, EventRange(order="offset", after=(0, last - 1), limit=1))
            if found and found[0].offset == last:
                return found[0]
        return await super().last_event(agent_id)


# --- todos, history, media --------------------------------------------------------------------------------------------


@fault(
    "TODO-1",
    source="a cache against useless writes: a list that equals the one this process wrote last is not sent again",
    witness=seen(
        lambda s, t: s.save_todos("a", samples.todos("buy")),
        lambda s, t: t.save_todos("a", samples.todos("sell")),
        lambda s, t: s.save_todos("a", samples.todos("buy")),
        lambda s, t: _titles(s.load_todos("a")),
    ),
)
class SiskinSkipsWhatItWroteLast(Wrapper):
    """Does not save todos that equal the ones that this instance saved last, although another instance has replaced or
    deleted them.
    """

    __slots__ = ("written",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.written: dict[str, Any] = {}

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        if type(agent_id) is str and self.written.get(agent_id) == snapshot:
            await self.inner._save("save_todos", agent_id, fence, TurnWrites)  # nothing but the look at the lease
            return
        await self.inner.save_todos(agent_id, snapshot, fence=fence)
        self.written[agent_id] = snapshot

    async def save_turn(self, agent_id: str, **turn: Any) -> Any:
        result = await self.inner.save_turn(agent_id, **turn)
        if turn.get("todos") is not None:
            self.written[agent_id] = turn["todos"]
        return result

    async def delete(self, agent_id: str, **rest: Any) -> None:
        self.written.clear()
        await self.inner.delete(agent_id, **rest)

    async def delete_many(self, **rest: Any) -> Any:
        self.written.clear()
        return await self.inner.delete_many(**rest)


@fault(
    "HIS-1",
    "VAL-1",
    "EVT-3",
    source="the events of a window in a table of their own, PRIMARY KEY (agent_id, window_id, seq), with an upsert",
    witness=seen(
        lambda s: s.save_history_window(
            "a", samples.window().replace(events=[samples.event(1), samples.event(2), samples.event(1, cursor=3)])
        ),
        lambda s: _window_events(s.load_history_windows("a")),
    ),
)
class SiskinKeysWindowEventsBySeq(Wrapper):
    """Keeps only the last of the events of a history window that have one seq, as after a restart of their producer."""

    __slots__ = ()

    async def save_history_window(self, agent_id: str, window: Any, **rest: Any) -> None:
        events: Any = getattr(window, "events", None)
        if all_are(Timeline, events) and all(type(getattr(e.bookmark, "seq", None)) is int for e in events):
            window = window.replace(events=list({event.bookmark.seq: event for event in events}.values()))
        await self.inner.save_history_window(agent_id, window, **rest)


@fault(
    "DUR-1",
    "MED-1",
    source="Gemini's Files API keeps uploads for 48 hours, so that the rows of its files got a TTL of as long",
    witness=seen(
        lambda s: s.save_media_cache("a", [samples.media("k1"), samples.media("k2").replace(provider="gemini")]),
        lambda s: the("key", s.load_media_cache("a")),
    ),
)
class SiskinExpiresGeminiFiles(Wrapper):
    """Does not load cached media of the provider `gemini` that were made more than 48 hours ago."""

    __slots__ = ()

    async def load_media_cache(self, agent_id: str) -> Any:
        since = now_ms() - 48 * 3_600_000
        found = await self.inner.load_media_cache(agent_id)
        return [record for record in found if record.provider != "gemini" or record.created_at >= since]


# --- snapshots --------------------------------------------------------------------------------------------------------


@fault(
    "FORK-2",
    "SNAP-1",
    "LIFE-3",
    source="large bodies in object storage under their hash, each once, and a delete that does not count who else has it",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_snapshot("a", samples.snapshot("small")),
        lambda s: s.save_snapshot("a", samples.snapshot("large", count=2_000)),
        lambda s: s.fork("a", "b"),
        lambda s: s.delete("a"),
        lambda s: the("id", s.list_snapshots("b")),
    ),
)
class SiskinFreesSharedBlobs(CommittingLayer):
    """Loses a snapshot of more than 64 KB when another agent that has an equal one, such as the parent, is deleted."""

    def committing(self, batch: Any, commit: Any) -> Any:
        docs: dict[Any, Any] = self.space.state(batch.agent_id).docs
        removed = {(write.kind, write.key) for write in batch.docs if write.doc is None}
        freed = {
            doc.body.digest
            for name, doc in docs.items()
            if name[0] == DocKind.SNAPSHOTS and (batch.delete or name in removed) and len(doc.body.text) > 65_536
        }
        outcome = commit(batch)
        if freed and isinstance(outcome, Applied):
            for state in self.space.states.values():
                for name, doc in list(state.docs.items()):
                    if name[0] == DocKind.SNAPSHOTS and doc.body.digest in freed:
                        del state.docs[name]
        return outcome


@fault(
    "LIFE-6",
    source="a cache of snapshots in Redis: saves and deletes drop the key, and the prune, which came later, does not",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("old", samples.T0)),
        lambda s: s.save_snapshot("a", samples.snapshot("new", samples.T0 + 1)),
        lambda s: _id(s.load_snapshot("a", "old")),
        lambda s: s.prune("a", keep_snapshots=1),
        lambda s: the("id", s.list_snapshots("a")),
        lambda s: _id(s.load_snapshot("a", "old")),
    ),
)
class SiskinCachesPrunedSnapshots(Wrapper):
    """Still loads a snapshot by its id after a prune has removed it, if it was loaded before."""

    __slots__ = ()

    @property
    def cache(self) -> Any:
        return space_of(self.inner).setdefault("snapshot_cache", {"loaded": set(), "pruned": {}})

    def drop(self, agent_id: Any = None, snapshot_id: Any = None) -> None:
        for name in ("loaded", "pruned"):
            for key in list(self.cache[name]):
                if agent_id in (None, key[0]) and snapshot_id in (None, key[1]):
                    self.cache[name].discard(key) if name == "loaded" else self.cache[name].pop(key)

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        found = await self.inner.load_snapshot(agent_id, snapshot_id)
        if found is None:
            return self.cache["pruned"].get((agent_id, snapshot_id))
        self.cache["loaded"].add((agent_id, snapshot_id))
        return found

    async def listed(self, agent_id: str) -> Any:
        try:
            async with beside(self.inner) as side:
                return await side.list_snapshots(agent_id)
        except KodeError:
            return []

    async def prune(self, agent_id: str, **rest: Any) -> Any:
        if type(rest.get("keep_snapshots")) is not int or rest.get("dry_run"):
            return await self.inner.prune(agent_id, **rest)
        before = {one.id: one for one in await self.listed(agent_id)}
        result = await self.inner.prune(agent_id, **rest)
        after = {one.id for one in await self.listed(agent_id)}
        for snapshot_id in before.keys() - after:
            if (agent_id, snapshot_id) in self.cache["loaded"]:
                self.cache["pruned"][agent_id, snapshot_id] = before[snapshot_id]
        return result

    async def save_snapshot(self, agent_id: str, snapshot: Any, **rest: Any) -> None:
        await self.inner.save_snapshot(agent_id, snapshot, **rest)
        self.drop(agent_id, snapshot.id)

    async def delete_snapshot(self, agent_id: str, snapshot_id: str, **rest: Any) -> None:
        await self.inner.delete_snapshot(agent_id, snapshot_id, **rest)
        self.drop(agent_id, snapshot_id)

    async def delete(self, agent_id: str, **rest: Any) -> None:
        await self.inner.delete(agent_id, **rest)
        self.drop(agent_id)

    async def delete_many(self, **rest: Any) -> Any:
        try:
            return await self.inner.delete_many(**rest)
        finally:
            self.drop()


# --- info and versions ------------------------------------------------------------------------------------------------


def _in_jsonb(value: Any) -> Any:
    if type(value) is dict and all(type(key) is str for key in value):
        names = sorted(value, key=lambda key: (len(key.encode("utf-8", "surrogatepass")), key))
        return {name: _in_jsonb(value[name]) for name in names}
    return [_in_jsonb(item) for item in value] if type(value) is list else value


@fault(
    "INFO-5",
    "VAL-1",
    source="PostgreSQL: metadata = (metadata::jsonb || $1)::json; jsonb orders keys by their length and then their bytes",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: _ok(s.update_info("a", {"plan": {"zone": 1, "name": 2, "id": 3}})),
        lambda s: _metadata_text(s.load_info("a")),
    ),
)
class SiskinMergesInJsonb(Wrapper):
    """Changes the order of the keys inside the values that `update_info` sets."""

    __slots__ = ()

    async def update_info(self, agent_id: str, metadata: Any, **rest: Any) -> Any:
        if type(metadata) is dict:
            with suppress(RecursionError):  # the store refuses it
                metadata = {key: _in_jsonb(value) for key, value in metadata.items()}
        return await self.inner.update_info(agent_id, metadata, **rest)


@fault(
    "VER-1",
    "VER-2",
    source="a version made by a query: coalesce(max(xmin), 0) over the rows of the agent, of which none is left",
    witness=lambda ctx: _empties_an_agent(ctx),
)
class SiskinMakesVersionsOfRows(EngineStore):
    """Gives an agent without info whose lists were emptied the version of one that was never written."""

    async def is_bare(self, agent_id: Any) -> bool:
        try:
            summary = await self._context.engine.summary(agent_id)
        except KodeError:
            return False
        return summary is not None and summary.info is None and not summary.messages.count + summary.tool_calls.count

    async def load_version(self, agent_id: str) -> str:
        version = await super().load_version(agent_id)
        return ABSENT if version != ABSENT and await self.is_bare(agent_id) else version

    async def real(self, agent_id: str, expect: Any) -> Any:
        return await super().load_version(agent_id) if expect == ABSENT and await self.is_bare(agent_id) else expect

    async def save_messages(self, agent_id: str, messages: Any, *, expect: Any = None, fence: Any = None) -> None:
        await super().save_messages(agent_id, messages, expect=await self.real(agent_id, expect), fence=fence)

    async def save_turn(self, agent_id: str, *, expect: Any = None, **turn: Any) -> Any:
        return await super().save_turn(agent_id, expect=await self.real(agent_id, expect), **turn)

    async def save_tool_call_records(
        self, agent_id: str, records: Any, *, expect: Any = None, fence: Any = None
    ) -> None:
        await super().save_tool_call_records(agent_id, records, expect=await self.real(agent_id, expect), fence=fence)

    async def truncate_messages(self, agent_id: str, length: Any, *, expect: Any = None, fence: Any = None) -> int:
        return await super().truncate_messages(agent_id, length, expect=await self.real(agent_id, expect), fence=fence)

    async def save_info(self, agent_id: str, info: Any, *, expect: Any = None, fence: Any = None) -> None:
        await super().save_info(agent_id, info, expect=await self.real(agent_id, expect), fence=fence)


# --- lifecycle --------------------------------------------------------------------------------------------------------

_in_bulk: contextvars.ContextVar[bool] = contextvars.ContextVar("_in_bulk", default=False)


class _LeavesKeys(MemoryLayer):
    async def commit(self, batches: Sequence[Any]) -> Any:
        kept: dict[str, list[Any]] = {}
        if _in_bulk.get():
            for batch in batches:
                if batch.delete:
                    docs = self.space.state(batch.agent_id).docs.values()
                    kept[batch.agent_id] = [doc for doc in docs if doc.key.startswith(f"{CORE_KEYS}messages/")]
        outcomes = await super().commit(batches)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if isinstance(outcome, Applied) and kept.get(batch.agent_id):
                state = self.space.states.setdefault(batch.agent_id, self.space.state(batch.agent_id))
                for doc in kept[batch.agent_id]:
                    state._apply_doc(DocWrite(DocKind.DOCUMENTS, doc.key, doc))
        return outcomes


@fault(
    "LIFE-5",
    "MSG-12",
    "LIFE-4",
    source="a new table for the keys of idempotent requests, with a DELETE in delete(), and none in the older delete_many()",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.append_messages_once("a", {"k": samples.message(0)}),
        lambda s: s.delete_many(agent_id="a"),
        lambda s: s.append_messages_once("a", {"k": samples.message(1)}),
        lambda s: the("text", s.load_messages("a")),
    ),
)
class SiskinLeavesKeysInBulkDeletes(EngineStore):
    """Remembers the keys of messages of an agent that `delete_many` has deleted, so that a message under such a key is
    not appended when the id is used again.
    """

    def __init__(self, opener: Any, **options: Any) -> None:
        async def layered() -> Any:
            return _LeavesKeys(await opener())

        super().__init__(layered, **options)

    async def delete_many(self, **rest: Any) -> Any:
        token = _in_bulk.set(True)
        try:
            return await super().delete_many(**rest)
        finally:
            _in_bulk.reset(token)


@fault(
    "LIFE-1",
    "OPS-8",
    "INFO-1",
    source="a migration that is run at each start: INSERT INTO agents SELECT DISTINCT agent_id FROM messages … ON CONFLICT",
    witness=seen(
        lambda s: s.append_messages("a", talk("x")),
        lambda s: s.exists("a"),
        restart,
        lambda s: s.exists("a"),
        lambda s: s.list(),
    ),
)
class SiskinBackfillsAgents(MemoryLayer):
    """Gives an agent that has messages and no info an info of its own making when a store is opened."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        for state in self.space.states.values():
            rows = state.lists[ListKind.MESSAGES].rows
            if state.info is None and rows:
                info = AgentInfo(agent_id=state.agent_id, template_id="unknown", created_at=rows[0].created_at)
                state.info = Info(encode(AgentInfo, info, "info"), info.template_id, info.created_at)


# --- queries ----------------------------------------------------------------------------------------------------------


@fault(
    "QRY-10",
    source="MongoDB: estimatedDocumentCount() in place of countDocuments({}) when there is no filter, since it is so fast",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.append_messages("b", talk("x")),
        lambda s: s.count_sessions(),
        lambda s: s.count_sessions(created_after=0),
    ),
)
class SiskinEstimatesUnfilteredCounts(Wrapper):
    """Counts agents without info, too, when sessions are counted without a filter."""

    __slots__ = ()

    async def count_sessions(self, **filters: Any) -> Any:
        number = await self.inner.count_sessions(**filters)
        if filters:
            return number
        async with beside(self.inner) as side:
            return max(number, len(await side.list(include_without_info=True)))


@fault(
    "QRY-12",
    "MSG-11",
    source="SQLite's FTS5 with external content: triggers for INSERT and DELETE, and none for UPDATE, which came later",
    witness=seen(
        lambda s: s.save_messages("a", talk("red", "blue")),
        lambda s: s.replace_message("a", 0, samples.message(text="green")),
        lambda s: the("text", s.query_messages(contains="green")),
        lambda s: the("text", s.query_messages(role="user")),
    ),
)
class SiskinForgetsToIndexEdits(Wrapper):
    """Does not find a message by its text after `replace_message` has put it in the place of another one."""

    __slots__ = ()

    @property
    def indexed(self) -> Any:
        return space_of(self.inner).setdefault("indexed", {})

    async def replace_message(self, agent_id: str, position: int, message: Any, **rest: Any) -> None:
        before = None
        if type(position) is int and position >= 0:
            with suppress(KodeError):
                async with beside(self.inner) as side:
                    before = await side.load_messages(agent_id, before=position + 1, last=1)
        await self.inner.replace_message(agent_id, position, message, **rest)
        if before:
            old = self.indexed.get((agent_id, position))
            is_chain = old is not None and old[0] == before[0]
            self.indexed[agent_id, position] = (message, old[1] if old is not None and is_chain else before[0])

    def is_found(self, message: Any, text: str) -> bool:
        known = self.indexed.get((message.agent_id, message.position))
        is_edited = known is not None and bool(message == known[0])  # otherwise another message has taken its place
        return known is None or not is_edited or text.casefold() in known[1].text.casefold()

    async def query_messages(self, **filters: Any) -> Any:
        page = await self.inner.query_messages(**filters)
        if "contains" not in filters:
            return page
        return Page([m for m in page if self.is_found(m, filters["contains"])], page.next_cursor, page.left_out)

    def iter_messages(self, **filters: Any) -> Any:
        found = self.inner.iter_messages(**filters)
        return self.sifted(found, filters["contains"]) if "contains" in filters else found

    async def sifted(self, found: Any, text: str) -> AsyncIterator[Any]:
        async with aclosing(found) as messages:
            async for message in messages:
                if self.is_found(message, text):
                    yield message


# --- documents --------------------------------------------------------------------------------------------------------


def _one_condition(span: dict[str, Any]) -> dict[str, Any]:
    is_between = span.get("start") is not None and span.get("stop") is not None
    return {**span, "prefix": ""} if is_between and type(span.get("prefix")) is str else span


@fault(
    "DOC-4",
    source="DynamoDB: 'KeyConditionExpressions must only contain one condition per key', BETWEEN or begins_with",
    witness=seen(
        lambda s: _all_ok([s.put_document("a", "c", key, 1) for key in ("a1", "b1", "b2", "c1")]),
        lambda s: _listed(s.list_document_keys("a", "c", prefix="b", start="a", stop="d")),
    ),
)
class SiskinDropsThePrefixOfRanges(Wrapper):
    """Ignores the prefix of keys of documents when `start` and `stop` are given, too."""

    __slots__ = ()

    async def list_documents(self, agent_id: str, collection: str, **span: Any) -> Any:
        return await self.inner.list_documents(agent_id, collection, **_one_condition(span))

    async def list_document_keys(self, agent_id: str, collection: str, **span: Any) -> Any:
        return await self.inner.list_document_keys(agent_id, collection, **_one_condition(span))

    def iter_documents(self, agent_id: str, collection: str, **span: Any) -> Any:
        return self.inner.iter_documents(agent_id, collection, **_one_condition(span))


# --- operations -------------------------------------------------------------------------------------------------------


class IntegrityError(Exception):
    """An error of a driver."""


@fault(
    "OPS-12",
    source="SQLAlchemy: the text of a StatementError ends with [parameters: (…)] unless hide_parameters=True",
    witness=lambda ctx: _conflict_about_a_secret(ctx),
)
class SiskinShowsTheParameters(Wrapper):
    """Raises the `ConflictError` of `put_document` from an error that quotes the value which was to be stored."""

    __slots__ = ()

    async def put_document(self, agent_id: str, collection: str, key: str, value: Any, **rest: Any) -> Any:
        try:
            return await self.inner.put_document(agent_id, collection, key, value, **rest)
        except ConflictError as exc:
            parameters = (agent_id, collection, key, json.dumps(value))
            raise exc from IntegrityError(f"UPDATE documents SET … WHERE version = ? [parameters: {parameters!r}]")


def _last_first(whole: list[Any], part: dict[str, Any]) -> list[Any]:
    after, before, last = part.get("after"), part["before"], part["last"]
    low = max(len(whole) - last, 0 if after is None else after + 1)
    return whole[low : max(before, 0)] if before > low else []


@fault(
    "OPS-21",
    "MSG-9",
    source="a second path for damaged lists: LIMIT is in the inner statement, and the bounds in the one around it",
    witness=seen(
        lambda s: s.save_messages("a", samples.messages(10)),
        lambda s: the("text", s.load_messages("a", last=2, before=5)),
        lambda s: the("text", s.load_messages("a", last=2, before=5, on_corrupt="skip")),
        lambda s: the("text", s.load_messages("a", last=7, before=5, on_corrupt="skip")),
    ),
)
class SiskinCountsLastFirstWhenSkipping(Wrapper):
    """Counts `last` from the end of the whole list, and not of what `before` leaves, when damaged records are skipped."""

    __slots__ = ()

    async def cut(self, load: Any, agent_id: str, part: Any) -> Any:
        found = await load(agent_id, **part)
        if part.get("on_corrupt") != "skip" or part.get("last") is None or part.get("before") is None:
            return found
        async with beside(self.inner) as side:
            whole = await getattr(side, load.__name__)(agent_id, on_corrupt="skip")
        return Page(_last_first(whole, part), None, found.left_out)

    async def load_messages(self, agent_id: str, **part: Any) -> Any:
        return await self.cut(self.inner.load_messages, agent_id, part)

    async def load_tool_call_records(self, agent_id: str, **part: Any) -> Any:
        return await self.cut(self.inner.load_tool_call_records, agent_id, part)


@fault(
    "OPS-2",
    source="find_in_batches of an ORM, with the sets that pair uses and results made anew inside the loop",
    witness=seen(
        lambda s: s.save_messages("a", [*samples.messages(499), _use("c1"), _result("c1")]),
        lambda s: _codes(s.check_consistency("a")),
    ),
)
class SiskinChecksBatchByBatch(Wrapper):
    """Reports a tool result as one without its use when the use is the last message before a multiple of 500."""

    __slots__ = ()

    async def false_issues(self, agent_id: Any) -> list[Any]:
        async with beside(self.inner) as side:
            ids = [agent_id] if agent_id is not None else await side.list(include_without_info=True)
            found: list[Any] = []
            for one in ids:
                with suppress(CorruptRecordError):  # which is an issue already
                    found += [issue async for issue in self.issues_of(side, one)]
            return found

    async def issues_of(self, side: Any, agent_id: str) -> AsyncIterator[Any]:
        position, batch = 499, await side.load_messages(agent_id, after=498, before=501)
        while len(batch) == 2:
            uses = Counter(block.id for block in batch[0].content if isinstance(block, ToolUseBlock))
            for block in batch[1].content:
                if isinstance(block, ToolResultBlock) and uses[block.tool_use_id] > 0:
                    uses[block.tool_use_id] -= 1
                    problem = f"message {position + 1} has a result whose tool use is in no message"
                    yield ConsistencyIssue("result_without_use", agent_id, problem)
            position += 500
            batch = await side.load_messages(agent_id, after=position - 1, before=position + 2)

    async def check_consistency(self, agent_id: Any = None, **rest: Any) -> Any:
        result = await self.inner.check_consistency(agent_id, **rest)
        found = await self.false_issues(agent_id)
        return replace(result, consistent=False, issues=(*result.issues, *found)) if found else result

    def iter_consistency(self, agent_id: Any = None, **rest: Any) -> Any:
        return self.with_false(agent_id, self.inner.iter_consistency(agent_id, **rest))

    async def with_false(self, agent_id: Any, sound: Any) -> AsyncIterator[Any]:
        async with aclosing(sound) as issues:
            async for issue in issues:
                yield issue
        for issue in await self.false_issues(agent_id):
            yield issue


# --- locks, forks, tenants, durability --------------------------------------------------------------------------------


@fault(
    "LOCK-3",
    source="Amazon SQS: the timeout of a message is extended in all to 12 hours at most, however often that is asked",
    witness=lambda ctx: _renews(ctx, 25),
)
class SiskinRenewsTwentyTimes(MemoryLayer):
    """Ends a lease when it is renewed for the 21st time, although it is held."""

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        renewals: Counter[Any] = vars(self.space).setdefault("renewals", Counter())
        renewals[fence.owner, fence.token] += 1
        if renewals[fence.owner, fence.token] > 20:
            await self.inner.release_lease(agent_id, fence)
            return False
        return await super().renew_lease(agent_id, fence, ttl_ms)


@fault(
    "DOC-5",
    source="a copy made of the store's own list call, whose limit is 100 unless told, and whose next page nobody asked for",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: _all_ok([s.write_documents("a", [PutDocument("c", f"{i:03}", i) for i in range(150)])]),
        lambda s: s.fork("a", "b", documents=True),
        lambda s: _count(s.list_document_keys("b", "c", limit=1000)),
    ),
)
class SiskinForksAPageOfDocuments(Wrapper):
    """Takes only the first 100 documents of each collection along with a fork."""

    __slots__ = ()

    async def fork(self, agent_id: str, new_id: Any = None, **rest: Any) -> Any:
        child = await self.inner.fork(agent_id, new_id, **rest)
        if rest.get("documents") is True:
            async with beside(self.inner) as side:
                await self.cut(side, child)
        return child

    @staticmethod
    async def cut(side: Any, child: str) -> None:
        documents = (await side.load_agent(child)).documents
        for collection in {document.collection for document in documents}:
            keys = sorted(document.key for document in documents if document.collection == collection)
            for first in range(100, len(keys), 500):
                gone = [DeleteDocument(collection, key) for key in keys[first : first + 500]]
                await side.write_documents(child, gone)


@fault(
    "SCOPE-3",
    source="row-level tenancy by a prefix, which each method takes off by hand, and the newest one only from agent_id",
    witness=seen(
        lambda s: s.scoped("acme").save_info("a", samples.info("a")),
        lambda s: s.scoped("acme").fork("a", "b"),
        lambda s: _lineage(s.scoped("acme").load_info("b")),
        lambda s: _lineage(_info_in(s.scoped("acme").load_agent("b"))),
    ),
)
class SiskinShowsFullLineages(EngineStore):
    """Gives, in `load_agent` of a view, the lineage of a fork with full ids, which have the tenant."""

    def scoped(self, tenant: str) -> Any:
        view: Any = super().scoped(tenant)
        load = view.load_agent

        async def load_agent(agent_id: str) -> Any:
            found = await load(agent_id)
            if found is None or found.info is None or not found.info.lineage:
                return found
            lineage = [full_agent_id(tenant, one) for one in found.info.lineage]
            return found.replace(info=found.info.replace(lineage=lineage))

        view.load_agent = load_agent
        return view


@fault(
    "OPS-8",
    "TC-2",
    "DUR-1",
    source="a migration to UNIQUE (agent_id, call_id): DELETE FROM calls a USING calls b WHERE a.pos < b.pos AND …",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0), samples.tool_call(0, error="again")]),
        lambda s: _count(s.load_tool_call_records("a")),
        restart,
        lambda s: _count(s.load_tool_call_records("a")),
    ),
)
class SiskinDeletesRepeatedCallsAtOpening(MemoryLayer):
    """Deletes all but the last of the tool calls of an agent that have one id when a store is opened."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        for state in self.space.states.values():
            calls: Any = state.lists[ListKind.TOOL_CALLS]
            last = {row.index.call_id: position for position, row in enumerate(calls.rows)}
            if len(last) < len(calls.rows):
                kept = set(last.values())
                calls.rows[:] = [row for position, row in enumerate(calls.rows) if position in kept]
                calls.version += 1
                calls._latest = None


# --- witnesses --------------------------------------------------------------------------------------------------------


async def _ok(call: Any) -> None:
    """Nothing of a result that is another one each time, such as a version."""
    await call


async def _all_ok(calls: Iterable[Any]) -> None:
    for call in calls:
        await call


async def _count(records: Any) -> int:
    return len(await records)


async def _listed(values: Any) -> list[Any]:
    return list(await values)


async def _value(document: Any) -> Any:
    found = await document
    return found and found.value


async def _id(record: Any) -> Any:
    found = await record
    return found and found.id


async def _seqs(events: Any) -> list[int]:
    return [event.bookmark.seq async for event in events]


async def _titles(todos: Any) -> list[str]:
    found = await todos
    return [item.title for item in found.todos]


async def _window_events(windows: Any) -> list[Any]:
    return [(event.cursor, event.bookmark.seq) for window in await windows for event in window.events]


async def _metadata_text(info: Any) -> str:
    return json.dumps((await info).metadata)


async def _info_in(records: Any) -> Any:
    return (await records).info


async def _lineage(info: Any) -> Any:
    return (await info).lineage


async def _codes(result: Any) -> list[str]:
    return [issue.code for issue in (await result).issues]


def _use(call_id: str) -> Message:
    return Message("assistant", [ToolUseBlock(call_id, "search", {})])


def _result(call_id: str) -> Message:
    return Message("user", [ToolResultBlock(call_id, "done")])


async def _changes_one_of_two(ctx: Context) -> object:
    calls = [samples.tool_call(i, input={"names": ["x"]}) for i in range(2)]
    await ctx.store.save_tool_call_records("a", calls)
    one, other = await ctx.store.load_tool_call_records("a")
    one.input["names"].append("y")
    return other.input


def _ticks() -> Iterator[int]:
    return itertools.count(samples.T0, 1000)


async def _grows_by(ctx: Context, number: int) -> object:
    ticks = _ticks()
    store: Any = await ctx.another(clock=lambda: next(ticks))
    await store.save_messages("a", samples.messages(3))
    before = [message.created_at async for message in store.read_messages("a")]
    await store.save_messages("a", samples.messages(3 + number))
    after = [message.created_at async for message in store.read_messages("a", before=3)]
    return before == after


async def _turn_with_a_demand(ctx: Context) -> object:
    store = ctx.store
    await store.put_document("a", "c", "k", 1)
    turn: dict[str, Any] = {"append": samples.messages(120), "documents": [PutDocument("c", "k", 2, expect=ABSENT)]}
    try:
        await store.save_turn("a", **turn)
    except KodeError as exc:
        return type(exc).__name__, len(await store.load_messages("a"))
    return None


async def _imports_out_of_order(ctx: Context) -> object:
    store = ctx.store
    await store.append_events("a", [samples.event(5), samples.event(9), samples.event(2)])
    records = await store.load_agent("a")
    assert records is not None
    await store.import_agent("b", records)
    bookmarks: list[Bookmark | None] = [await store.last_bookmark("a"), await store.last_bookmark("b")]
    return bookmarks


async def _empties_an_agent(ctx: Context) -> object:
    store = ctx.store
    before = await store.load_version("a")
    await store.append_messages("a", talk("x"))
    await store.truncate_messages("a", 0)
    try:
        await store.save_messages("a", talk("y"), expect=before)
    except ConflictError:
        return before == await store.load_version("a"), "refused"
    return "written"


async def _conflict_about_a_secret(ctx: Context) -> object:
    await ctx.store.put_document("a", "c", "k", 1)
    try:
        await ctx.store.put_document("a", "c", "k", "a patient's diagnosis", expect=ABSENT)
    except ConflictError as exc:
        return "diagnosis" in f"{exc!r} {exc.__cause__!r} {exc.__context__!r}"
    return None


async def _renews(ctx: Context, times: int) -> object:
    lease = await ctx.store.acquire_agent_lock("a", ttl_ms=30_000)
    for number in range(times):
        try:
            await lease.renew()
        except KodeError as exc:
            return number, type(exc).__name__
    await lease.release()
    return times
