"""Thirty stores that are right in the small, and wrong at one boundary or for two parameters at once."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from itertools import zip_longest
from typing import Any

from kode_conformance.values import samples
from kode_conformance.values.samples import T0
from msgspec.structs import replace

from conformance.tests.zoo.base import CommittingLayer, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import each, happened, seen, talk, the
from kode_core.batch import CORE_KEYS, Applied, DocKind, DocWrite, EventRange, ListKind, Outline
from kode_core.errors import ConflictError
from kode_core.layers import Layer
from kode_core.model import (
    AppendedMessage,
    Bookmark,
    Message,
    PutDocument,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from kode_core.protocols import Heartbeat
from kode_core.query import Page
from kode_core.store import EngineStore
from kode_core.store.numbers import Numbers
from kode_core.tenants import full_agent_id
from kode_core.texts import texts_of

_SEVERAL = (list, tuple, set, frozenset)


async def _done(call: Any) -> None:
    await call


async def _all(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]


# --- values and identity ----------------------------------------------------------------------------------------------


async def _changes_a_loaded_one(store: Any) -> object:
    await store.put_document("a", "state", "k", {"steps": [1]})
    (await store.load_document("a", "state", "k")).value["steps"].append(2)
    return (await store.load_document("a", "state", "k")).value


@fault(
    "VAL-1",
    source="an HTTP client's cache by ETag: 304 Not Modified gives the decoded body of the last answer, the object itself",
    witness=seen(_changes_a_loaded_one),
)
class DipOneObjectForAVersion(Wrapper):
    """Gives all who load a document at one version one and the same object, with the changes that they made to it."""

    __slots__ = ("_bodies",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._bodies: dict[tuple[str, ...], Any] = {}

    async def load_document(self, agent_id: str, collection: str, key: str) -> Any:
        document = await self.inner.load_document(agent_id, collection, key)
        if document is None:
            return None
        if len(self._bodies) > 200:
            self._bodies.clear()
        return self._bodies.setdefault((agent_id, collection, key, document.version), document)


async def _composed_or_not(store: Any) -> object:
    first = await store.append_messages_once("a", {"caf\u00e9": samples.message(text="one")})
    second = await store.append_messages_once("a", {"cafe\u0301": samples.message(text="two")})
    return first, second, await the("text", store.load_messages("a"))


@fault(
    "ID-4",
    "MSG-12",
    "ID-1",
    source="one marker file for each key: APFS and HFS+ find a name in whichever normal form it was created",
    witness=seen(_composed_or_not),
)
class DipKeysInNormalForm(Wrapper):
    """Takes two keys of messages for one if they are the same in Unicode's normal form."""

    __slots__ = ()

    async def append_messages_once(self, agent_id: str, messages: Any, *, fence: Any = None) -> Any:
        if not isinstance(messages, Mapping) or not all(type(key) is str for key in messages):
            return await self.inner.append_messages_once(agent_id, messages, fence=fence)
        files: dict[str, Any] = {}
        for key, message in messages.items():
            files.setdefault(unicodedata.normalize("NFC", key), message)
        placed = dict(
            zip(files, await self.inner.append_messages_once(agent_id, files, fence=fence), strict=True),
        )
        results = []
        for key in messages:
            name = unicodedata.normalize("NFC", key)
            results.append(placed[name])
            placed[name] = AppendedMessage(placed[name].position, False)
        return results


# --- messages ---------------------------------------------------------------------------------------------------------


async def _times(store: Any, agent_id: str = "a") -> list[int]:
    return await the("created_at", _all(store.read_messages(agent_id)))


async def _another_role(store: Any) -> object:
    await store.save_messages("a", talk("x", "y", "z"))
    before = await _times(store)
    await asyncio.sleep(0.02)
    await store.replace_message("a", 1, Message.assistant("answer"))
    return await _times(store) == before


@fault(
    "MSG-4",
    source="a table partitioned by role: an UPDATE of the partition key is a DELETE and an INSERT, with DEFAULT now()",
    witness=seen(_another_role),
)
class DipNewRoleNewTime(CommittingLayer):
    """Gives a message that is replaced at its position a new time if the new one has another role."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        write = batch.messages
        if write is not None and write.put:
            stored = self.space.state(batch.agent_id).lists[ListKind.MESSAGES].rows
            put = tuple(
                (position, replace(row, created_at=max(row.created_at, batch.now)))
                if position < len(stored) and stored[position].index.role != row.index.role
                else (position, row)
                for position, row in write.put
            )
            batch = replace(batch, messages=replace(write, put=put))
        return commit(batch)


@fault(
    "MSG-10",
    "MSG-9",
    source="Redis: XRANGE key (5 + leaves the 5 out, and XREVRANGE key + 5 was written without the parenthesis",
    witness=seen(
        lambda s: s.save_messages("a", talk(*"vwxyz")),
        lambda s: the("position", _all(s.read_messages("a", after=1, before=4, reverse=True))),
    ),
)
class DipReverseReachesAfter(Wrapper):
    """Yields also the message at ``after`` when messages are read in reverse."""

    __slots__ = ()

    def read_messages(self, agent_id: str, *, after: Any = None, before: Any = None, reverse: bool = False) -> Any:
        if reverse is True and type(after) is int and after >= 0:
            after = after - 1 if after else None
        return self.inner.read_messages(agent_id, after=after, before=before, reverse=reverse)


@fault(
    "MSG-11",
    source="messages[position:position + 1] = [message]: a slice behind the end of a list is one to append to",
    witness=seen(
        lambda s: s.save_messages("a", talk("x", "y")),
        lambda s: s.replace_message("a", 2, samples.message(text="z")),
        lambda s: the("text", s.load_messages("a")),
    ),
)
class DipReplacesBehindTheEnd(Wrapper):
    """Appends a message that should replace the one just behind the end of a list."""

    __slots__ = ()

    async def replace_message(self, agent_id: str, position: int, message: Any, **options: Any) -> None:
        if type(position) is int and position > 0 and options.get("expect") is None:
            session = await self.inner.load_session(agent_id)
            count = len(await self.inner.load_messages(agent_id)) if session is None else session.message_count
            if position == count:
                return await self.inner.append_messages(agent_id, [message], fence=options.get("fence"))
        return await self.inner.replace_message(agent_id, position, message, **options)


@fault(
    "MSG-12",
    source="message_keys (..., message_id REFERENCES messages ON DELETE CASCADE)",
    witness=seen(
        lambda s: s.append_messages_once("a", {"k1": samples.message(1), "k2": samples.message(2)}),
        lambda s: s.pop_messages("a"),
        lambda s: s.append_messages_once("a", {"k1": samples.message(1), "k2": samples.message(2)}),
        lambda s: the("text", s.load_messages("a")),
    ),
)
class DipKeysGoWithTheMessage(CommittingLayer):
    """Forgets the keys of messages that are popped or cut off the end of the list."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        outcome, write = commit(batch), batch.messages
        state = self.space.states.get(batch.agent_id)
        is_cut = write is not None and write.length is not None and not write.put and not write.append
        if is_cut and state is not None and isinstance(outcome, Applied):
            for kind, key in [*state.docs]:
                if kind is DocKind.DOCUMENTS and key.startswith(f"{CORE_KEYS}messages/"):
                    if state.docs[kind, key].time >= write.length:
                        state._apply_doc(DocWrite(kind, key, None))
        return outcome


async def _version_after_a_retry(store: Any) -> object:
    await store.append_messages_once("a", {"k": samples.message(1)})
    before = await store.load_version("a")
    await store.append_messages_once("a", {"k": samples.message(1)})
    return await store.load_version("a") == before


@fault(
    "VER-1",
    "MSG-12",
    "INFO-2",
    source="UPDATE agents SET revision = revision + 1 before INSERT INTO messages ... ON CONFLICT DO NOTHING, in one transaction",
    witness=seen(_version_after_a_retry),
)
class DipKnownKeysMoveTheVersion(Wrapper):
    """Gives the agent a new version when messages are appended whose keys are all known, so that none is stored."""

    __slots__ = ()

    async def append_messages_once(self, agent_id: str, messages: Any, *, fence: Any = None) -> Any:
        placed = await self.inner.append_messages_once(agent_id, messages, fence=fence)
        if placed and not any(one.is_new for one in placed):
            await self.inner.append_messages(agent_id, [], fence=fence)
        return placed


# --- tool calls and turns ---------------------------------------------------------------------------------------------


async def _states_by_another(store: Any, other: Any) -> object:
    await store.save_tool_call_records("a", [samples.tool_call(i, state="PENDING") for i in (0, 1, 0, 2)])
    await other.upsert_tool_call_records("a", [samples.tool_call(0, state="FAILED")])
    return await the("state", store.load_tool_call_records("a"))


@fault(
    "TC-3",
    "TC-2",
    source="next(i for i, record in enumerate(records) if record.id == id), and UPDATE ... WHERE rowid = (SELECT min(rowid) ...)",
    witness=seen(_states_by_another),
)
class DipUpsertsTheFirst(Layer):
    """Replaces the first of several records with one id, if another instance wrote the list, and not the last."""

    async def outline(self, agent_id: str, kind: Any, keys: Any = None) -> Any:
        if keys is None or kind is not ListKind.TOOL_CALLS:
            return await super().outline(agent_id, kind, keys)
        whole, wanted = await super().outline(agent_id, kind), set(keys)
        first: dict[Any, Any] = {}
        for row in whole.rows:
            if row[3] in wanted:
                first.setdefault(row[3], row)
        return Outline(whole.version, whole.count, [*first.values()])


@fault(
    "TURN-2",
    "EVT-4",
    source="PostgreSQL: INSERT ... ON CONFLICT DO NOTHING RETURNING id returns no row for a row that was there",
    witness=seen(
        lambda s: s.append_events("a", happened(1, 2)),
        lambda s: _how_many(s.save_turn("a", append=talk("x"), events=happened(2, 3, 4))),
    ),
)
class DipTurnsReturnTheNew(Wrapper):
    """Returns from a turn the offsets of those events alone that were not stored before."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, events: Any = (), **parts: Any) -> Any:
        stored = set[int]()
        seqs = [getattr(getattr(entry, "bookmark", None), "seq", None) for entry in events or ()]
        if seqs and all(type(seq) is int and -(2**63) < seq < 2**63 for seq in seqs):
            since = Bookmark(min(seqs) - 1, T0)
            async with aclosing(self.inner.read_events(agent_id, since=since)) as before:
                stored = {event.offset async for event in before}
        offsets = await self.inner.save_turn(agent_id, events=events, **parts)
        return type(offsets)(offset for offset in offsets if offset not in stored)


async def _how_many(offsets: Any) -> int:
    return len(await offsets)


# --- events -----------------------------------------------------------------------------------------------------------


@fault(
    "EVT-4",
    "LIFE-6",
    source="a Redis SET of hashes beside the stream: XTRIM shortens the stream, and nobody shortens the set",
    witness=seen(
        lambda s: s.append_events("a", happened(1, 2, 3, 4)),
        lambda s: s.prune("a", events_before=T0 + 3),
        lambda s: _how_many(s.append_events("a", happened(2, 5))),
        lambda s: the("bookmark", _all(s.read_events("a"))),
    ),
)
class DipPrunedAreStillKnown(CommittingLayer):
    """Stores nothing when an event is appended again that was pruned since, and gives it the offset that it had."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.known: dict[str, dict[tuple[int, bytes], int]] = {}

    def _events(self, agent_id: str) -> dict[tuple[int, bytes], int]:
        rows = self.space.state(agent_id).log.read(EventRange(order="offset", limit=10**9))
        return {(row.seq, row.body.digest): row.offset for row in rows}

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        if batch.delete:
            self.known.pop(batch.agent_id, None)
        if batch.drop_events is not None:
            before = self._events(batch.agent_id)
            outcome = commit(batch)
            after = self._events(batch.agent_id)
            gone = {name: offset for name, offset in before.items() if name not in after}
            self.known.setdefault(batch.agent_id, {}).update(gone)
            return outcome
        known = self.known.get(batch.agent_id, {})
        offsets = [known.get((event.seq, event.body.digest)) for event in batch.events]
        if all(offset is None for offset in offsets):
            return commit(batch)
        new = [event for event, offset in zip(batch.events, offsets, strict=True) if offset is None]
        outcome = commit(replace(batch, events=tuple(new)))
        if isinstance(outcome, Applied):
            given = iter(outcome.offsets)
            outcome = replace(outcome, offsets=tuple(next(given) if o is None else o for o in offsets))
        return outcome


class _Stream:
    """A stream of events that begins when it is first read."""

    def __init__(self, begin: Callable[[], Any]) -> None:
        self._begin = begin
        self._events: Any = None

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        if self._events is None:
            self._events = await self._begin()
        return await self._events.__anext__()

    async def aclose(self) -> None:
        if self._events is not None:
            await self._events.aclose()


async def _goes_on_behind_a_prune(store: Any) -> object:
    first = await store.append_events("a", happened(*range(8)))
    await store.prune("a", events_before_offset=first[5])
    seqs: list[int] = []
    silences = 0
    async with aclosing(store.follow_events("a", after_offset=first[1], heartbeat_ms=50)) as events:
        while silences < 20 and 7 not in seqs:
            event = await anext(events)
            if isinstance(event, Heartbeat):
                silences += 1
            else:
                seqs.append(event.bookmark.seq)
    return seqs


@fault(
    "EVT-7",
    "LIFE-6",
    source="Kafka: auto.offset.reset=latest moves a consumer whose offset is out of range to the end of the log",
    witness=seen(_goes_on_behind_a_prune),
)
class DipPrunedFollowersSkip(Wrapper):
    """Lets a follower begin at the end of the log if the events after its offset were pruned."""

    __slots__ = ("_floors",)

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._floors: dict[str, int] = {}

    async def prune(self, agent_id: str, **arguments: Any) -> Any:
        result = await self.inner.prune(agent_id, **arguments)
        if result.events and arguments.get("dry_run", False) is False:
            async with aclosing(self.inner.read_events(agent_id, after_offset=0)) as events:
                async for event in events:
                    self._floors[agent_id] = event.offset
                    break
        return result

    def follow_events(self, agent_id: str, *, after_offset: Any = 0, **options: Any) -> Any:
        async def begin() -> Any:
            last = after_offset
            async with aclosing(self.inner.read_events(agent_id, after_offset=after_offset)) as events:
                async for event in events:
                    last = event.offset
            return self.inner.follow_events(agent_id, after_offset=last, **options)

        plain = self.inner.follow_events(agent_id, after_offset=after_offset, **options)
        if type(after_offset) is int and 0 < after_offset < self._floors.get(agent_id, 0) - 1:
            return _Stream(begin)
        return plain


class _Kept(Numbers):
    def forget(self, agent_id: str) -> None:
        number = self._numbers.get(agent_id)
        if number is not None and not number.users:
            number.kept = number.next


async def _emits_anew(store: Any) -> object:
    await each(*(store.emit("a", "step") for _ in range(3)))
    await store.delete("a")
    return (await store.emit("a", "step")).bookmark.seq


@fault(
    "EVT-8",
    "LIFE-4",
    source="INCR seq:{agent} in Redis, and a DEL that has a list of the agent's keys without this one",
    witness=seen(_emits_anew),
)
class DipCountsOnAfterDelete(EngineStore):
    """Numbers the first emitted event of an agent that was deleted and is used again after the ones of before."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._appender.numbers = _Kept()


async def _goes_on_from_a_heartbeat(store: Any) -> object:
    await store.append_events("a", happened(1, 2))
    async with aclosing(store.follow_events("a", heartbeat_ms=30)) as events:
        handed_out, event = 0, None
        while handed_out < 2 or not isinstance(event, Heartbeat):
            event = await anext(events)
            handed_out += not isinstance(event, Heartbeat)
    await store.append_events("a", happened(3, 4))
    return await the("bookmark", _all(store.read_events("a", after_offset=event.offset)))


class _Positions:
    def __init__(self, events: Any) -> None:
        self._events = events
        self._is_begun = False

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        event = await self._events.__anext__()
        if isinstance(event, Heartbeat):
            return replace(event, offset=event.offset + 1) if self._is_begun else event
        self._is_begun = True
        return event

    async def aclose(self) -> None:
        await self._events.aclose()


@fault(
    "EVT-9",
    source="Kafka: a committed offset is the one of the next record to read, not of the last one that was read",
    witness=seen(_goes_on_from_a_heartbeat),
)
class DipHeartbeatsNameTheNext(Wrapper):
    """Gives heartbeats that come after an event the offset behind it, so that the next follower misses one event."""

    __slots__ = ()

    def follow_events(self, agent_id: str, *, heartbeat_ms: Any = None, **options: Any) -> Any:
        events = self.inner.follow_events(agent_id, heartbeat_ms=heartbeat_ms, **options)
        return events if heartbeat_ms is None else _Positions(events)


# --- the other kinds --------------------------------------------------------------------------------------------------


@fault(
    "HIS-1",
    source="a sort key made of f'{timestamp}#{id}', as for DynamoDB: numbers of unequal length are ordered as texts",
    witness=seen(
        lambda s: each(
            *(s.save_compression_record("a", samples.compression(f"c{t}", t)) for t in (T0, 999_999_999_999, 5))
        ),
        lambda s: the("id", s.load_compression_records("a")),
    ),
)
class DipTimesAsTexts(Wrapper):
    """Orders compression records by the digits of their timestamps, so that one of 2000 is after one of 2026."""

    __slots__ = ()

    async def load_compression_records(self, agent_id: str) -> Any:
        records = await self.inner.load_compression_records(agent_id)
        return sorted(records, key=lambda record: (str(record.timestamp), record.id))


@fault(
    "INFO-5",
    source="RFC 7396, JSON merge patch, over HTTP: a null in the patch removes the member",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.update_info("a", {"plan": None, "seats": 3}),
        lambda s: s.load_info("a"),
    ),
)
class DipMergePatch(Wrapper):
    """Removes a key of the metadata that ``update_info`` sets to None."""

    __slots__ = ()

    async def update_info(self, agent_id: str, metadata: Any, *, remove: Any = (), fence: Any = None) -> Any:
        if type(metadata) is dict and type(remove) in (list, tuple):
            nulls = [key for key, value in metadata.items() if value is None and type(key) is str]
            if nulls and not {*nulls} & {one for one in remove if type(one) is str}:
                metadata = {key: value for key, value in metadata.items() if key not in nulls}
                remove = [*remove, *nulls]
        return await self.inner.update_info(agent_id, metadata, remove=remove, fence=fence)


async def _demands_an_old_version(store: Any) -> object:
    await store.save_messages("a", talk("x"))
    old = await store.load_version("a")
    await store.append_messages("a", talk("y"))
    return await store.save_turn("a", todos=samples.todos("late"), expect=old)


@fault(
    "VER-2",
    source="SQLAlchemy's version_id_col: the version stands in the WHERE of the agent's own UPDATE, and a flush without one compares nothing",
    witness=seen(_demands_an_old_version, lambda s: s.load_todos("a")),
)
class DipComparesWhatItUpdates(Wrapper):
    """Does not look at ``expect`` of a turn that has neither messages nor tool calls nor info."""

    __slots__ = ()

    async def save_turn(self, agent_id: str, *, expect: Any = None, **parts: Any) -> Any:
        own = ("append", "messages", "tool_calls", "upsert_tool_calls", "info")
        touches = any(parts.get(name) not in (None, (), []) for name in own)
        touches = touches or any(parts.get(name) is not None for name in ("messages", "tool_calls"))
        if not touches and type(expect) is str:
            expect = None
        return await self.inner.save_turn(agent_id, expect=expect, **parts)


# --- documents of the caller's own ------------------------------------------------------------------------------------


async def _deletes_what_is_gone(store: Any) -> object:
    version = await store.put_document("a", "state", "k", 1)
    await store.delete_document("a", "state", "k")
    await store.delete_document("a", "state", "k", expect=version)
    return "deleted"


@fault(
    "DOC-2",
    source="an HTTP client for which a 404 in answer to DELETE with If-Match is success: it is gone, after all",
    witness=seen(_deletes_what_is_gone),
)
class DipGoneIsDeleted(Wrapper):
    """Lets ``delete_document`` with the version of a document succeed when another has deleted the document."""

    __slots__ = ()

    async def delete_document(
        self, agent_id: str, collection: str, key: str, *, expect: Any = None, fence: Any = None
    ) -> None:
        try:
            await self.inner.delete_document(agent_id, collection, key, expect=expect, fence=fence)
        except ConflictError:
            if await self.inner.load_document(agent_id, collection, key) is not None:
                raise


@fault(
    "DOC-5",
    source="two procedures for one call: the one that copies up to a position was written before there were documents",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_messages("a", talk("x", "y")),
        lambda s: _done(s.put_document("a", "state", "k", 1)),
        lambda s: s.fork("a", "b", length=1, documents=True),
        lambda s: s.list_document_keys("b", "state"),
    ),
)
class DipCutForksHaveNoDocuments(Wrapper):
    """Takes no documents along in a fork that has only some of the messages."""

    __slots__ = ()

    async def fork(self, agent_id: str, new_id: Any = None, **options: Any) -> str:
        if options.get("documents") is True and (options.get("length"), options.get("snapshot_id")) != (None, None):
            options["documents"] = False
        return await self.inner.fork(agent_id, new_id, **options)


@fault(
    "DOC-7",
    source="ON CONFLICT DO UPDATE SET value = excluded.value, tags = coalesce(excluded.tags, documents.tags)",
    witness=seen(
        lambda s: _done(s.put_document("a", "tickets", "k", 1, tags={"status": "open"})),
        lambda s: _done(s.write_documents("a", [PutDocument("tickets", "k", 2)])),
        lambda s: _tags(s.load_document("a", "tickets", "k")),
    ),
)
class DipKeepsTheTags(Wrapper):
    """Leaves a document its tags when ``write_documents`` puts it without any."""

    __slots__ = ()

    async def write_documents(self, agent_id: str, writes: Any, *, fence: Any = None) -> Any:
        if type(writes) in (list, tuple):
            writes = [await self._with_tags(agent_id, write) for write in writes]
        return await self.inner.write_documents(agent_id, writes, fence=fence)

    async def _with_tags(self, agent_id: str, write: Any) -> Any:
        if type(write) is not PutDocument or write.tags is not None:
            return write
        if not all(type(name) is str for name in (agent_id, write.collection, write.key)):
            return write
        try:
            stored = await self.inner.load_document(agent_id, write.collection, write.key)
        except Exception:
            return write
        return write if stored is None or not stored.tags else replace(write, tags=stored.tags)


async def _tags(document: Any) -> object:
    return (await document).tags


async def _tickets(store: Any) -> None:
    for status in ("open", "held"):
        for team in ("north", "south"):
            tags = {"status": status, "team": team}
            await store.put_document("a", "tickets", f"{status}-{team}", 1, tags=tags)


@fault(
    "DOC-8",
    source="PostgreSQL: unnest($1::text[], $2::text[]) in FROM pairs the two arrays, and does not multiply them",
    witness=seen(
        _tickets,
        lambda s: the("key", s.query_documents("tickets", {"status": ["held", "open"], "team": ["north", "south"]})),
    ),
)
class DipPairsTheLists(Wrapper):
    """Pairs the values of two tags that are lists, the first with the first, and does not combine them all."""

    __slots__ = ()

    async def query_documents(self, collection: str, tags: Any, **options: Any) -> Any:
        page = await self.inner.query_documents(collection, tags, **options)
        lists = {name: sorted({*value}) for name, value in tags.items() if type(value) in _SEVERAL and len(value) > 1}
        if len(lists) < 2:
            return page
        pairs = {*zip_longest(*lists.values())}
        kept = []
        for found in page:
            own = found.tags
            if own is None:
                stored = await self.inner.load_document(found.agent_id, collection, found.key)
                own = {} if stored is None else stored.tags
            if tuple(own.get(name) for name in lists) in pairs:
                kept.append(found)
        return Page(kept, page.next_cursor, page.left_out)


# --- lifecycle --------------------------------------------------------------------------------------------------------


@fault(
    "LIFE-6",
    source="conditions that are collected in a list and joined with ' OR ' where the list of kinds is, too",
    witness=seen(
        lambda s: _prunes(s, before_offset=2, before=T0 + 5),
        lambda s: the("bookmark", _all(s.read_events("a"))),
    ),
)
class DipEitherBoundPrunes(Wrapper):
    """Removes, given an offset and a time, the events for which one of the two holds."""

    __slots__ = ()

    async def prune(self, agent_id: str, **arguments: Any) -> Any:
        if arguments.get("events_before_offset") is None or arguments.get("events_before") is None:
            return await self.inner.prune(agent_id, **arguments)
        by_offset = {name: value for name, value in arguments.items() if name != "events_before"}
        by_time = {name: arguments[name] for name in arguments if not name.startswith(("keep_", "events_before_"))}
        await self.inner.prune(agent_id, **{**arguments, "dry_run": True, "progress": None})
        first = await self.inner.prune(agent_id, **by_offset)
        second = await self.inner.prune(agent_id, **by_time)
        both = max if arguments.get("dry_run") else sum
        return replace(first, events=both([first.events, second.events]))


async def _prunes(store: Any, before_offset: int, before: int) -> object:
    offsets = await store.append_events("a", happened(*range(1, 8)))
    return await store.prune("a", events_before_offset=offsets[before_offset], events_before=before)


async def _moved(store: Any) -> object:
    await store.append_messages_once("a", {"k1": samples.message(1), "k2": samples.message(2)})
    await store.pop_messages("a")
    await store.import_agent("b", await store.load_agent("a"))
    return await store.append_messages_once("b", {"k2": samples.message(2)})


@fault(
    "LIFE-8",
    "MSG-12",
    source="a foreign key from keys to messages, for which the import leaves out the rows that would break it",
    witness=seen(_moved),
)
class DipImportsKeysOfTheStored(Wrapper):
    """Imports only those keys of messages whose position the imported list still has."""

    __slots__ = ()

    async def import_agent(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        keys = getattr(records, "message_keys", None)
        if type(keys) is dict and any(type(place) is int and place >= len(records.messages) for place in keys.values()):
            kept = {k: place for k, place in keys.items() if type(place) is not int or place < len(records.messages)}
            records = records.replace(message_keys=kept)
        await self.inner.import_agent(agent_id, records, fence=fence)


# --- queries ----------------------------------------------------------------------------------------------------------


@fault(
    "QRY-1",
    "QRY-2",
    source="{**metadata, 'userId': user_id}: two conditions for one key of a dict",
    witness=seen(
        lambda s: each(*(s.save_info(i, samples.info(i, metadata={"userId": i})) for i in ("u1", "u2"))),
        lambda s: the("agent_id", s.query_sessions(user_id="u1", metadata={"userId": "u2"})),
        lambda s: s.count_sessions(user_id="u1", metadata={"userId": "u2"}),
    ),
)
class DipUserIdOverwrites(EngineStore):
    """Ignores ``userId`` in the filter ``metadata`` of sessions if there is a ``user_id``, too."""

    async def query_sessions(self, **filters: Any) -> Any:
        return await super().query_sessions(**self._merged(filters))

    async def count_sessions(self, **filters: Any) -> int:
        return await super().count_sessions(**self._merged(filters))

    async def group_sessions(self, by: Any, **filters: Any) -> Any:
        return await super().group_sessions(by, **self._merged(filters))

    def _merged(self, filters: Any) -> Any:
        metadata = filters.get("metadata")
        if type(filters.get("user_id")) is str and type(metadata) is dict and "userId" in metadata:
            filters = {**filters, "metadata": {key: value for key, value in metadata.items() if key != "userId"}}
        return filters


@fault(
    "QRY-11",
    source="`if record.duration_ms:` in the loop that adds them up, and NULLIF(duration_ms, 0) in SQL",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i, duration_ms=i * 10) for i in range(3)]),
        lambda s: s.group_tool_calls("tool_name", durations=True),
    ),
)
class DipZeroIsNoDuration(EngineStore):
    """Counts in the durations of a group no call that took no millisecond."""

    async def group_tool_calls(self, by: Any, *, durations: bool = False, **filters: Any) -> Any:
        groups = await super().group_tool_calls(by, durations=durations, **filters)
        names = [by] if type(by) is str else [*by]
        if durations is not True or "day" in names:
            return groups
        zeros: dict[tuple[Any, ...], int] = {}
        conditions = {name: value for name, value in filters.items() if name != "utc_offset_minutes"}
        async for call in self.iter_tool_calls(**conditions):
            if call.duration_ms is not None and not call.duration_ms:
                values = tuple(_value(call, name) for name in names)
                zeros[values] = zeros.get(values, 0) + 1
        return [self._without(group, zeros.get(tuple(group.values[name] for name in names), 0)) for group in groups]

    def _without(self, group: Any, zeros: int) -> Any:
        if group.durations is None or not zeros:
            return group
        if group.durations.count <= zeros:
            return replace(group, durations=None)
        return replace(group, durations=replace(group.durations, count=group.durations.count - zeros))


def _value(call: Any, name: str) -> Any:
    if name == "has_approval":
        return call.approval.required
    if name == "is_error":
        return bool(call.is_error)
    return getattr(call, {"tool_name": "name"}.get(name, name))


@fault(
    "QRY-12",
    "QRY-4",
    source="SQLite FTS5 over a subquery: SELECT ... FROM (SELECT ... LIMIT -1 OFFSET ?) WHERE text matches",
    witness=seen(
        lambda s: s.save_messages("a", talk("red one", "blue", "red two", "blue", "red three")),
        lambda s: the("text", s.query_messages(contains="red", order="asc", offset=2)),
    ),
)
class DipOffsetBeforeTheSearch(EngineStore):
    """Skips, with ``contains`` and ``offset``, so many messages, and not so many matches."""

    async def query_messages(self, **filters: Any) -> Any:
        needle, offset = filters.get("contains"), filters.get("offset")
        if type(needle) is not str or type(offset) is not int or offset <= 0 or "cursor" in filters:
            return await super().query_messages(**filters)
        await super().query_messages(**{**filters, "limit": 0})
        plain = {name: value for name, value in filters.items() if name not in ("contains", "offset", "limit")}
        skipped: list[Any] = []
        cursor: dict[str, str] = {}
        while len(skipped) < offset:
            page = await super().query_messages(**plain, **cursor, limit=min(offset - len(skipped), 1000))
            skipped += page
            if page.next_cursor is None:
                break
            cursor = {"cursor": page.next_cursor}
        folded = needle.casefold()
        matches = sum(any(folded in text.casefold() for text in texts_of(message)) for message in skipped)
        return await super().query_messages(**{**filters, "offset": matches})


@fault(
    "QRY-13",
    "QRY-2",
    source="json.dumps(dict(sorted(value.items()))) as the form to compare: what is inside keeps its order of keys",
    witness=seen(
        lambda s: s.save_messages("a", [Message("user", [TextBlock("x")], {"at": {"page": {"x": 1, "y": 2}}})]),
        lambda s: the("text", s.query_messages(metadata={"at": {"page": {"y": 2, "x": 1}}})),
        lambda s: s.count_messages(metadata={"at": {"page": {"y": 2, "x": 1}}}),
    ),
)
class DipSortsTheOuterKeys(EngineStore):
    """Tells values in the metadata of messages apart whose dicts, at the second level or below, differ in order."""

    async def query_messages(self, **filters: Any) -> Any:
        page = await super().query_messages(**filters)
        metadata = filters.get("metadata")
        if not isinstance(metadata, Mapping):
            return page
        wanted = {key: _orders(value, 0) for key, value in metadata.items()}
        kept = [m for m in page if all(_orders(m.metadata.get(k), 0) == orders for k, orders in wanted.items())]
        return Page(kept, page.next_cursor, page.left_out)

    async def count_messages(self, **filters: Any) -> int:
        count = await super().count_messages(**filters)
        if not isinstance(filters.get("metadata"), Mapping) or not count:
            return count
        return len(await _all(self.iter_messages(**filters)))


def _orders(value: Any, level: int) -> Any:
    """The keys of the dicts in a value, in the order in which they are written."""
    if type(value) is dict:
        names = sorted(value) if level == 0 else [*value]
        return [(name, _orders(value[name], level + 1)) for name in names]
    return [_orders(item, level + 1) for item in value] if type(value) is list else None


# --- operations -------------------------------------------------------------------------------------------------------


def _asked_twice() -> list[Any]:
    use = Message("assistant", [ToolUseBlock("call_0", "search", {"q": "x"})])
    return [use, Message("user", [ToolResultBlock("call_0", "found")]), use]


@fault(
    "OPS-2",
    "TC-2",
    source="{ids of uses} - {ids of results}, and EXCEPT in SQL, which compare sets",
    witness=seen(
        lambda s: s.save_messages("a", _asked_twice()),
        lambda s: _codes(s.check_consistency("a")),
    ),
)
class DipPairsById(Wrapper):
    """Does not find a tool use without its result if an earlier use of the same id has one."""

    __slots__ = ()

    async def check_consistency(self, agent_id: Any = None, **options: Any) -> Any:
        result = await self.inner.check_consistency(agent_id, **options)
        kept = [issue for issue in result.issues if not await self._is_answered(issue)]
        if len(kept) == len(result.issues):
            return result
        return replace(result, issues=tuple(kept), consistent=not kept)

    async def iter_consistency(self, agent_id: Any = None, **options: Any) -> Any:
        async with aclosing(self.inner.iter_consistency(agent_id, **options)) as issues:
            async for issue in issues:
                if not await self._is_answered(issue):
                    yield issue

    async def _is_answered(self, issue: Any) -> bool:
        if issue.code != "use_without_result":
            return False
        messages = await self.inner.load_messages(issue.agent_id, on_corrupt="skip")
        blocks = [block for message in messages for block in message.content]
        answered = {block.tool_use_id for block in blocks if isinstance(block, ToolResultBlock)}
        return any(repr(name)[:80] in issue.message for name in answered)


async def _codes(check: Any) -> list[str]:
    return [issue.code for issue in (await check).issues]


# --- locks, forks and tenants -----------------------------------------------------------------------------------------


async def _deletes_nothing_late(store: Any) -> object:
    await store.save_snapshot("a", samples.snapshot("sfp-1"))
    lease = await store.acquire_agent_lock("a")
    await lease.release()
    await store.delete_snapshot("a", "sfp-2", fence=lease)
    return "nothing to do"


@fault(
    "LOCK-5",
    source="SELECT first, `if row is None: return`, and the fence in the WHERE of the DELETE that is not reached",
    witness=seen(_deletes_nothing_late),
)
class DipNothingToDeleteNeedsNoLease(Wrapper):
    """Lets ``delete_snapshot`` of a snapshot that does not exist succeed under a lease that has ended."""

    __slots__ = ()

    async def delete_snapshot(self, agent_id: str, snapshot_id: str, *, fence: Any = None) -> None:
        if await self.inner.load_snapshot(agent_id, snapshot_id) is not None:
            await self.inner.delete_snapshot(agent_id, snapshot_id, fence=fence)


@fault(
    "FORK-4",
    source="`if ids: query = query.where(ToolCall.id.in_(ids))`, since IN () is a syntax error",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_messages("a", [*talk("hello"), *_asked_twice()[:2]]),
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0)]),
        lambda s: s.fork("a", "b", length=1),
        lambda s: the("id", s.load_tool_call_records("b")),
    ),
)
class DipNoUsesAllCalls(Wrapper):
    """Gives a fork with some of the messages all tool calls of the parent if these messages use no tool."""

    __slots__ = ()

    async def fork(self, agent_id: str, new_id: Any = None, **options: Any) -> str:
        child = await self.inner.fork(agent_id, new_id, **options)
        if options.get("length") is not None or options.get("snapshot_id") is not None:
            messages = await self.inner.load_messages(child)
            if not any(isinstance(block, ToolUseBlock) for message in messages for block in message.content):
                calls = await self.inner.load_tool_call_records(agent_id)
                if calls:
                    await self.inner.save_tool_call_records(child, calls)
        return str(child)


class _View(Wrapper):
    __slots__ = ("_tenant",)

    def __init__(self, inner: Any, tenant: str) -> None:
        super().__init__(inner)
        self._tenant = tenant

    async def group_messages(self, by: Any, **filters: Any) -> Any:
        return [self._full(group) for group in await self.inner.group_messages(by, **filters)]

    async def group_tool_calls(self, by: Any, **filters: Any) -> Any:
        return [self._full(group) for group in await self.inner.group_tool_calls(by, **filters)]

    def _full(self, group: Any) -> Any:
        if "agent_id" not in group.values:
            return group
        name = full_agent_id(self._tenant, group.values["agent_id"])
        return replace(group, values={**group.values, "agent_id": name})


@fault(
    "SCOPE-3",
    "QRY-11",
    source="a view that takes the prefix off the ids of records: the rows of a GROUP BY are none",
    witness=seen(
        lambda s: s.scoped("acme").save_messages("a", talk("x")),
        lambda s: s.scoped("acme").group_messages(["agent_id", "role"]),
    ),
)
class DipGroupsHaveFullIds(Wrapper):
    """Gives groups by ``agent_id`` in the view of a tenant the full ids of the agents."""

    __slots__ = ()

    def scoped(self, tenant: str) -> Any:
        return _View(self.inner.scoped(tenant), tenant)
