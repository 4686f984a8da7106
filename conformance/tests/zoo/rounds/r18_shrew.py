"""Stores that were ported to pipelines, wide tables, key-value stores, replicas and functions, each with one slip."""

from __future__ import annotations

import asyncio
import secrets
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from typing import Any

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, StreamWrapper, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import happened, seen, talk, the
from kode_core.batch import CORE_KEYS, Applied, Batch, DocKind, DocWrite, ListKind, Outline, Refused, ToolCallIndex
from kode_core.codec import decode, encode
from kode_core.errors import (
    AgentDeletedError,
    ConflictError,
    CorruptRecordError,
    InvalidArgumentError,
    KodeError,
    LockLostError,
)
from kode_core.layers import Layer
from kode_core.model import (
    AppendedMessage,
    Message,
    Snapshot,
    TodoSnapshot,
    ToolResultBlock,
    UnknownBlock,
)
from kode_core.model.documents import ABSENT, PutDocument
from kode_core.query import Page
from kode_core.store import EngineStore
from kode_core.store.locks import ENTERED
from kode_core.texts import folded, texts_of

# --- documents --------------------------------------------------------------------------------------------------------


async def _tagged_empty(s: Any) -> Any:
    await s.put_document("a", "jobs", "j", 1, tags={"owner": "", "state": "open"})
    return [
        await the("key", s.query_documents("jobs", tags))
        for tags in ({"state": "open"}, {"owner": ""}, {"owner": ["", "x"]})
    ]


@fault(
    "DOC-8",
    "VAL-3",
    source="DynamoDB: a key attribute of a secondary index cannot be the empty string, so porters leave it out",
    witness=seen(_tagged_empty),
)
class ShrewEmptyTagUnindexed(Wrapper):
    """Stores a tag whose value is the empty text, and finds no document by it."""

    async def query_documents(self, collection: str, tags: Any, **given: Any) -> Any:
        if not isinstance(tags, dict):
            return await self.inner.query_documents(collection, tags, **given)
        lists = {
            name: [v for v in value if v != ""] if isinstance(value, (list, tuple, set, frozenset)) else value
            for name, value in tags.items()
        }
        page = await self.inner.query_documents(collection, lists, **given)
        return Page() if "" in [v for v in tags.values() if isinstance(v, str)] else page


async def _untagged_by_turn(s: Any) -> Any:
    await s.put_document("a", "jobs", "j", 1, tags={"state": "open"})
    await s.save_turn("a", append=talk("x"), documents=[PutDocument("jobs", "j", 2)])
    return await the("key", s.query_documents("jobs", {"state": "open"}))


@fault(
    "DOC-7",
    "DOC-8",
    "TURN-1",
    source="MongoDB's driver with ignoreUndefined: a $set of an undefined field leaves the stored one as it is",
    witness=seen(_untagged_by_turn),
)
class ShrewTurnKeepsTags(Wrapper):
    """Leaves a document its tags when a turn puts it without; ``put_document`` and ``write_documents`` take them."""

    async def save_turn(self, agent_id: str, *, documents: Any = (), **given: Any) -> Any:
        if isinstance(documents, (list, tuple)):
            documents = [await self._kept(agent_id, one) for one in documents]
        return await self.inner.save_turn(agent_id, documents=documents, **given)

    async def _kept(self, agent_id: str, write: Any) -> Any:
        if not isinstance(write, PutDocument) or write.tags:
            return write
        with suppress(KodeError):  # the turn itself says what is wrong
            stored = await self.inner.load_document(agent_id, write.collection, write.key)
            if stored is not None and stored.tags:
                return replace(write, tags=stored.tags)
        return write


async def _delete_absent(s: Any) -> Any:
    await s.put_document("a", "jobs", "j", 1)
    await s.delete_document("a", "jobs", "j", expect=ABSENT)


@fault(
    "DOC-2",
    source="HTTP clients: If-None-Match: * on a DELETE whose target exists is answered 412, and a 412 is 'nothing to do'",
    witness=seen(_delete_absent),
)
class ShrewDeleteAbsentPasses(Wrapper):
    """Takes a delete of a document that must not exist for done, though the document does exist."""

    async def delete_document(
        self, agent_id: str, collection: str, key: str, *, expect: Any = None, fence: Any = None
    ) -> None:
        try:
            await self.inner.delete_document(agent_id, collection, key, expect=expect, fence=fence)
        except ConflictError:
            if expect != ABSENT:
                raise


async def _put_again(s: Any) -> Any:
    times = []
    for _ in range(2):
        await s.put_document("a", "jobs", "j", {"n": 1})
        times.append((await s.load_document("a", "jobs", "j")).updated_at)
        await asyncio.sleep(0.02)
    return times[0] < times[1]


@fault(
    "DOC-1",
    source="MySQL: ON UPDATE CURRENT_TIMESTAMP does nothing when all other columns are set to the values they have",
    witness=seen(_put_again),
)
class ShrewEqualPutKeepsTime(MemoryLayer):
    """Leaves a document its time when an equal value is put; the version changes."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([replace(b, docs=tuple(self._timed(b, w) for w in b.docs)) for b in batches])

    def _timed(self, batch: Any, write: Any) -> Any:
        old = self.space.state(batch.agent_id).docs.get((write.kind, write.key))
        if write.kind != DocKind.DOCUMENTS or write.doc is None or old is None or write.key >= CORE_KEYS:
            return write
        values = {doc.body.text.rpartition('"nonce"')[0] for doc in (old, write.doc)}
        return replace(write, doc=replace(write.doc, time=old.time)) if len(values) == 1 else write


async def _imported_tags(s: Any) -> Any:
    await s.put_document("a", "jobs", "j", 1, tags={"state": "open"})
    await s.import_agent("b", await s.load_agent("a"))
    return await the("agent_id", s.query_documents("jobs", {"state": "open"}))


@fault(
    "DOC-7",
    "DOC-8",
    "LIFE-8",
    source="bulk loads that skip what fills the look-up table, as bcp without FIRE_TRIGGERS",
    witness=seen(_imported_tags),
)
class ShrewBulkUnindexed(Layer):
    """Gives the documents of an imported agent, and of a fork that takes them, their tags, and does not find them by
    these until they are put again."""

    async def commit(self, batches: Any) -> Any:
        def plain(write: Any) -> Any:
            return write if write.doc is None else replace(write, doc=replace(write.doc, terms=()))

        return await super().commit(
            [replace(b, docs=tuple(map(plain, b.docs))) if b.expect_nothing else b for b in batches]
        )


# --- versions ---------------------------------------------------------------------------------------------------------


async def _stale_info(s: Any) -> Any:
    await s.save_info("a", samples.info("a"))
    version = await s.load_version("a")
    await s.append_messages("a", talk("x"))
    await s.save_info("a", samples.info("a", breakpoint="PAUSED"), expect=version)


@fault(
    "VER-2",
    source="JPA: @Version of a parent does not move with its collections without OPTIMISTIC_FORCE_INCREMENT",
    witness=seen(_stale_info, lambda s: s.load_info("a")),
)
class ShrewInfoRowVersion(Wrapper):
    """Saves an info under a version that ``load_version`` gave if the info is the same, whatever messages and tool calls
    were written since."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.infos: dict[tuple[str, str], Any] = {}

    async def load_version(self, agent_id: str) -> str:
        info = await self._info(agent_id)
        version: str = await self.inner.load_version(agent_id)
        if len(self.infos) >= 1000:
            self.infos.clear()
        self.infos[agent_id, version] = info
        return version

    async def save_info(self, agent_id: str, info: Any, *, expect: Any = None, fence: Any = None) -> None:
        try:
            await self.inner.save_info(agent_id, info, expect=expect, fence=fence)
        except ConflictError as exc:
            known = (agent_id, expect)
            if known not in self.infos or self.infos[known] != await self._info(agent_id):
                raise
            await self.inner.save_info(agent_id, info, expect=exc.version, fence=fence)

    async def _info(self, agent_id: str) -> Any:
        try:
            info = await self.inner.load_info(agent_id)
        except CorruptRecordError:
            return object()  # it equals no other
        return None if info is None else replace(info, message_count=0)


# --- messages that are searched ---------------------------------------------------------------------------------------


async def _those(messages: Any, keeps: Any) -> AsyncIterator[Any]:
    async with aclosing(messages) as stream:
        async for message in stream:
            if keeps(message):
                yield message


def _strings(value: Any, leaves_out: bool) -> Iterator[str]:
    if type(value) is str:
        yield value
    elif type(value) is list:
        for one in value:
            yield from _strings(one, leaves_out)
    elif type(value) is dict:
        for key, one in value.items():
            if not (leaves_out and key == "type"):
                yield from _strings(one, leaves_out)


def _texts_without_types(message: Any) -> Iterator[str]:
    for block in message.content:
        if isinstance(block, ToolResultBlock):
            yield from _strings(block.content, True)
        elif isinstance(block, UnknownBlock):
            yield from _strings(block.data, True)
        else:
            yield from texts_of(Message("user", [block]))


@fault(
    "QRY-12",
    source="an indexer that omits 'type' by a deep walk, as a recursive lodash omit, and not from the block alone",
    witness=seen(
        lambda s: s.save_messages("a", [Message("user", [ToolResultBlock("c", {"row": {"type": "Invoice"}})])]),
        lambda s: the("position", s.query_messages(contains="invoice")),
    ),
)
class ShrewDeepTypesUnsearched(Wrapper):
    """Does not search the values of keys called ``type`` inside the contents of tool results and unknown blocks."""

    def _keeps(self, message: Any, filters: Any) -> bool:
        needle = filters.get("contains")
        return type(needle) is not str or any(folded(needle) in folded(t) for t in _texts_without_types(message))

    async def query_messages(self, **filters: Any) -> Any:
        page = await self.inner.query_messages(**filters)
        return Page([m for m in page if self._keeps(m, filters)], page.next_cursor, page.left_out)

    def iter_messages(self, **filters: Any) -> AsyncIterator[Any]:
        return _those(self.inner.iter_messages(**filters), lambda message: self._keeps(message, filters))


def _large(filters: dict[str, Any]) -> dict[str, int]:
    given = filters.get("metadata")
    if type(given) is not dict or "offset" in filters:
        return {}
    return {k: v for k, v in given.items() if type(v) is int and 2**53 < abs(v) < 2**64}


def _is_near(metadata: Any, wanted: dict[str, int]) -> bool:
    found = [(metadata or {}).get(key) for key in wanted]
    return all(
        type(f) in (int, float) and abs(f) < 2**64 and float(f) == float(w)
        for f, w in zip(found, wanted.values(), strict=True)
    )


@fault(
    "QRY-13",
    "QRY-2",
    source="a filter that went through JSON.parse, whose numbers are doubles: snowflake ids end in 00",
    witness=seen(
        lambda s: s.save_messages(
            "a", [Message("user", "x", {"post": 2**53 + 1}), Message("user", "y", {"post": 2**53})]
        ),
        lambda s: the("position", s.query_messages(metadata={"post": 2**53 + 1})),
    ),
)
class ShrewMetadataDoubles(Wrapper):
    """Compares integers beyond 2**53 in the metadata of messages as doubles."""

    async def query_messages(self, **filters: Any) -> Any:
        wanted = _large(filters)
        if not wanted:
            return await self.inner.query_messages(**filters)
        page = await self.inner.query_messages(**self._reduced(filters, wanted))
        return Page([m for m in page if _is_near(m.metadata, wanted)], page.next_cursor, page.left_out)

    def iter_messages(self, **filters: Any) -> AsyncIterator[Any]:
        wanted = _large(filters)
        if not wanted:
            return self.inner.iter_messages(**filters)
        found = self.inner.iter_messages(**self._reduced(filters, wanted))
        return _those(found, lambda message: _is_near(message.metadata, wanted))

    @staticmethod
    def _reduced(filters: dict[str, Any], wanted: dict[str, int]) -> dict[str, Any]:
        rest = {key: value for key, value in filters["metadata"].items() if key not in wanted}
        return {**filters, "metadata": rest} if rest else {k: v for k, v in filters.items() if k != "metadata"}


@fault(
    "QRY-12",
    "QRY-4",
    source="MongoDB: a pipeline with $skip before the $match of the text, which was added as the last stage",
    witness=seen(
        lambda s: s.save_messages("a", talk("red 1", "blue", "red 2", "red 3")),
        lambda s: the("position", s.query_messages(contains="red", offset=2, order="asc")),
    ),
)
class ShrewSkipBeforeMatch(Wrapper):
    """Counts in the ``offset`` of a search by ``contains`` also the messages that do not contain the text."""

    async def query_messages(self, **filters: Any) -> Any:
        needle, skip = filters.get("contains"), filters.get("offset")
        if type(needle) is not str or type(skip) is not int or skip <= 0 or filters.get("cursor") is not None:
            return await self.inner.query_messages(**filters)
        found = looked = 0
        plain = {k: v for k, v in filters.items() if k not in ("contains", "offset", "limit", "cursor")}
        async with aclosing(self.inner.iter_messages(**plain)) as stream:
            async for message in stream:
                found += any(folded(needle) in folded(text) for text in texts_of(message))
                looked += 1
                if looked == skip:
                    break
        return await self.inner.query_messages(**{**filters, "offset": found})


# --- counts, groups, lists --------------------------------------------------------------------------------------------


@fault(
    "QRY-11",
    source="calls.reduce((most, call) => Math.max(most, call.durationMs), 0), over clocks that were set back",
    witness=seen(
        lambda s: s.save_tool_call_records(
            "a", [samples.tool_call(0, duration_ms=-7), samples.tool_call(1, duration_ms=-3)]
        ),
        lambda s: s.group_tool_calls("tool_name", durations=True),
    ),
)
class ShrewMaxFromZero(Wrapper):
    """Gives 0 as the greatest duration of a group whose durations are all negative."""

    async def group_tool_calls(self, by: Any, **given: Any) -> Any:
        groups = await self.inner.group_tool_calls(by, **given)
        return [
            g if g.durations is None else replace(g, durations=replace(g.durations, max_ms=max(0, g.durations.max_ms)))
            for g in groups
        ]


def _one_user(filters: dict[str, Any]) -> dict[str, Any]:
    metadata = filters.get("metadata")
    if "user_id" not in filters or type(metadata) is not dict or "userId" not in metadata:
        return filters
    rest = {key: value for key, value in metadata.items() if key != "userId"}
    return {**filters, "metadata": rest} if rest else {k: v for k, v in filters.items() if k != "metadata"}


@fault(
    "QRY-1",
    "QRY-2",
    "QRY-10",
    source="a MongoDB filter built as one dict: the second condition on 'metadata.userId' replaces the first",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: the("agent_id", s.query_sessions(user_id="u-1", metadata={"userId": "u-2", "plan": "gold"})),
        lambda s: s.count_sessions(user_id=["u-1", "u-3"], metadata={"userId": "u-2"}),
    ),
)
class ShrewUserOverridesMetadata(Wrapper):
    """Forgets the ``userId`` in the filter ``metadata`` of sessions when ``user_id`` is given, too."""

    async def query_sessions(self, **filters: Any) -> Any:
        return await self.inner.query_sessions(**_one_user(filters))

    def iter_sessions(self, **filters: Any) -> Any:
        return self.inner.iter_sessions(**_one_user(filters))

    async def count_sessions(self, **filters: Any) -> Any:
        return await self.inner.count_sessions(**_one_user(filters))

    async def group_sessions(self, by: Any, **filters: Any) -> Any:
        return await self.inner.group_sessions(by, **_one_user(filters))


def _hash_of_lists(filters: dict[str, Any]) -> str:
    listed = [(k, v) for k, v in sorted(filters.items()) if type(v) in (list, tuple)]
    lists = {k: list(dict.fromkeys(v)) for k, v in listed if all(type(one) is str for one in v) and len({*v}) > 1}
    return f"~{zlib.crc32(repr(lists).encode()):08x}" if lists else ""


async def _pages_of_lists(s: Any) -> Any:
    await s.save_tool_call_records("a", [samples.tool_call(i) for i in range(3)])
    page = await s.query_tool_calls(state=["COMPLETED", "FAILED"], limit=1)
    more = await s.query_tool_calls(state=["FAILED", "COMPLETED"], limit=1, cursor=page.next_cursor)
    return await the("position", _given(more))


async def _given(value: Any) -> Any:
    return value


@fault(
    "QRY-2",
    "QRY-5",
    source="page tokens with a hash of the request as it was sent, as Google's AIP-158 has it",
    witness=seen(_pages_of_lists),
)
class ShrewCursorListOrder(Wrapper):
    """Refuses a cursor of tool calls when the values of a filter are listed in another order than before."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        end, cursor = _hash_of_lists(filters), filters.get("cursor")
        if end and type(cursor) is str:
            if not cursor.endswith(end):
                raise InvalidArgumentError("the cursor is of another query")
            filters["cursor"] = cursor.removesuffix(end)
        page = await self.inner.query_tool_calls(**filters)
        return Page(page, page.next_cursor and page.next_cursor + end, page.left_out)


_LISTED = ("agent_id", "template_id", "user_id", "role", "content_type", "tool_name", "state")


def _finds_nothing(filters: dict[str, Any]) -> bool:
    return any(type(filters.get(n)) in (list, tuple, set, frozenset) and not filters[n] for n in _LISTED)


@fault(
    "QRY-1",
    "QRY-10",
    "OPS-5",
    source="Django: a filter by an empty list raises EmptyResultSet inside, and the count is 0 before anything is sent",
    witness=seen(
        lambda s: s.count_messages(role=[], contians="x"),
        lambda s: s.count_messages(role=[], created_after=None),
        lambda s: s.close(),
        lambda s: s.count_messages(role=[]),
    ),
)
class ShrewEmptyListShortcut(Wrapper):
    """Counts 0 for an empty list of values before it looks at the other filters, or at whether the store is closed."""

    async def count_sessions(self, **filters: Any) -> int:
        return 0 if _finds_nothing(filters) else await self.inner.count_sessions(**filters)

    async def count_messages(self, **filters: Any) -> int:
        return 0 if _finds_nothing(filters) else await self.inner.count_messages(**filters)

    async def count_tool_calls(self, **filters: Any) -> int:
        return 0 if _finds_nothing(filters) else await self.inner.count_tool_calls(**filters)


# --- messages that are edited, and keys -------------------------------------------------------------------------------


@fault(
    "MSG-11",
    source="MongoDB: $set of 'messages.3' in an array of three adds a fourth element",
    witness=seen(
        lambda s: s.save_messages("a", talk("one", "two")),
        lambda s: s.replace_message("a", 2, Message.user("three")),
        lambda s: s.load_messages("a"),
    ),
)
class ShrewReplaceUpserts(Wrapper):
    """Appends a message that is to replace the one behind the last."""

    async def replace_message(
        self, agent_id: str, position: int, message: Any, *, expect: Any = None, fence: Any = None
    ) -> None:
        try:
            await self.inner.replace_message(agent_id, position, message, expect=expect, fence=fence)
        except InvalidArgumentError:
            if type(position) is not int or position < 1 or type(message) is not Message:
                raise
            if position != len(await self.inner.load_messages(agent_id)):
                raise
            await self.inner.save_turn(agent_id, append=[message], expect=expect, fence=fence)


@fault(
    "MSG-12",
    "MSG-11",
    source="a table of idempotency keys with a foreign key to the messages, ON DELETE CASCADE",
    witness=seen(
        lambda s: s.append_messages_once("a", {"k0": Message.user("zero"), "k1": Message.user("one")}),
        lambda s: s.pop_messages("a"),
        lambda s: s.append_messages_once("a", {"k1": Message.user("one")}),
        lambda s: s.load_messages("a"),
    ),
)
class ShrewCutForgetsKeys(MemoryLayer):
    """Forgets the keys of messages that are cut off the end of the list, as by ``pop_messages``."""

    async def commit(self, batches: Any) -> Any:
        outcomes = await super().commit(batches)
        gone = [self._forgetting(b) for b, o in zip(batches, outcomes, strict=True) if isinstance(o, Applied)]
        gone = [batch for batch in gone if batch is not None]
        if gone:
            await super().commit(gone)
        return outcomes

    def _forgetting(self, batch: Any) -> Any:
        cut = batch.messages
        if cut is None or cut.length is None or cut.put or cut.append:
            return None
        docs = tuple(
            DocWrite(kind, key, None)
            for (kind, key), doc in self.space.state(batch.agent_id).docs.items()
            if kind == DocKind.DOCUMENTS and key.startswith(CORE_KEYS) and doc.time >= cut.length
        )
        op_id = secrets.token_hex(16)
        return Batch(agent_id=batch.agent_id, op_id=op_id, now=batch.now, docs=docs) if docs else None


@fault(
    "MSG-12",
    source="INSERT … ON CONFLICT DO NOTHING: the new positions are counted over all given rows, the skipped ones too",
    witness=seen(
        lambda s: s.append_messages_once("a", {"k0": Message.user("zero")}),
        lambda s: s.append_messages_once("a", {"k0": Message.user("zero"), "k1": Message.user("one")}),
        lambda s: s.append_messages_once("a", {"k1": Message.user("one")}),
    ),
)
class ShrewPositionsCountKnown(Wrapper):
    """Counts the known keys of a call in the positions of the new ones behind them; later calls give the right ones."""

    async def append_messages_once(self, agent_id: str, messages: Any, *, fence: Any = None) -> Any:
        known, placed = 0, []
        for one in await self.inner.append_messages_once(agent_id, messages, fence=fence):
            known += not one.is_new
            placed.append(AppendedMessage(one.position + known, True) if one.is_new else one)
        return placed


async def _late_known(s: Any) -> Any:
    await s.append_messages_once("a", {"k": Message.user("x")})
    lease = await s.acquire_agent_lock("a")
    await lease.release()
    return await s.append_messages_once("a", {"k": Message.user("x")}, fence=lease)


@fault(
    "LOCK-5",
    "MSG-12",
    source="an idempotency middleware: a known key is answered from its table, before the guard of the handler runs",
    witness=seen(_late_known),
)
class ShrewKnownKeysUnfenced(Wrapper):
    """Answers a call of ``append_messages_once`` whose keys are all known also under a lease that has ended."""

    async def append_messages_once(self, agent_id: str, messages: Any, *, fence: Any = None) -> Any:
        given = dict(messages) if isinstance(messages, dict) else messages
        try:
            return await self.inner.append_messages_once(agent_id, given, fence=fence)
        except LockLostError:
            stored = await self.inner.load_agent(agent_id)
            if stored is None or not all(key in stored.message_keys for key in given):
                raise
            return [AppendedMessage(stored.message_keys[key], False) for key in given]


# --- events -----------------------------------------------------------------------------------------------------------


async def _emit_under_lock(s: Any, t: Any) -> Any:
    await s.emit("a", "step")
    await t.append_event("a", samples.event(100))
    async with s.acquire_agent_lock("a"):
        return (await s.emit("a", "step")).bookmark.seq


@fault(
    "EVT-8",
    source="a sequence with a CACHE in each session, as Oracle's: a lock does not make a session throw its numbers away",
    witness=seen(_emit_under_lock),
)
class ShrewEmitKeepsNumber(EngineStore):
    """Numbers an event that is emitted under the lock, within a second, by the numbers from before the lock."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        emitter = self._emitter
        read = emitter._next_seq
        emitter._next_seq = lambda agent_id, number, fence: read(agent_id, number, None)  # type: ignore[method-assign]


class _FromZero(StreamWrapper):
    last = 0

    async def __anext__(self) -> Any:
        item = await self.inner.__anext__()
        if hasattr(item, "event"):
            self.last = item.offset
            return item
        return replace(item, offset=self.last)


async def _first_beat(s: Any) -> Any:
    last = (await s.append_events("a", happened(1, 2)))[-1]
    async with aclosing(s.follow_events("a", after_offset=last, heartbeat_ms=20)) as stream:
        return (await anext(stream)).offset == last


@fault(
    "EVT-9",
    source="server-sent events: a keep-alive has the id of the last event of the connection, not Last-Event-ID",
    witness=seen(_first_beat),
)
class ShrewHeartbeatFromZero(Wrapper):
    """Gives a heartbeat the offset 0 until the stream has yielded an event, also with ``after_offset``."""

    def follow_events(self, agent_id: str, **given: Any) -> Any:
        stream = self.inner.follow_events(agent_id, **given)
        return stream if given.get("heartbeat_ms") is None else _FromZero(stream)


class _Quiet(StreamWrapper):
    async def __anext__(self) -> Any:
        try:
            return await self.inner.__anext__()
        except AgentDeletedError:
            raise StopAsyncIteration from None


async def _follow_deleted(s: Any) -> Any:
    await s.append_events("a", happened(1))
    async with aclosing(s.follow_events("a", channel="progress")) as stream:
        await anext(stream)
        await s.delete("a")
        return [item async for item in stream]


@fault(
    "EVT-10",
    source="MongoDB's change streams: a $match on the channel drops the invalidate event, and the cursor just ends",
    witness=seen(_follow_deleted),
)
class ShrewDeletedEndsQuietly(Wrapper):
    """Ends a stream of one channel without an error when the agent is deleted; a stream of all channels raises."""

    def follow_events(self, agent_id: str, **given: Any) -> Any:
        stream = self.inner.follow_events(agent_id, **given)
        return stream if given.get("channel") is None else _Quiet(stream)


async def _turn_offsets(s: Any) -> Any:
    await s.append_event("a", samples.event(5))
    found = await s.save_turn("a", append=talk("x"), events=happened(6, 5))
    return found[0] > found[1]


@fault(
    "TURN-2",
    "EVT-4",
    source="SELECT … WHERE id IN (…) ORDER BY id for the offsets of what an upsert has written or found",
    witness=seen(_turn_offsets),
)
class ShrewTurnOffsetsSorted(Wrapper):
    """Returns the offsets of a turn's events in ascending order, though one of them was stored before the others."""

    async def save_turn(self, agent_id: str, **given: Any) -> Any:
        found = await self.inner.save_turn(agent_id, **given)
        return type(found)(sorted(found)) if found else found


# --- forks, prune, archives -------------------------------------------------------------------------------------------


async def _part_fork(s: Any) -> Any:
    await s.save_info("a", samples.info("a"))
    await s.save_messages("a", talk("one", "two"))
    await s.fork("a", "b", length=1)
    return (await s.load_info("b")).last_bookmark


@fault(
    "FORK-4",
    "FORK-1",
    source="two copies of one thing: CREATE TABLE AS for the whole, and a hand-written INSERT … SELECT for a part",
    witness=seen(_part_fork),
)
class ShrewPartForkBookmark(Wrapper):
    """Gives a fork of a part of the messages the parent's ``last_bookmark``; a fork of the whole has none."""

    async def fork(self, agent_id: str, new_id: Any = None, **given: Any) -> str:
        child: str = await self.inner.fork(agent_id, new_id, **given)
        if given.get("length") is not None or given.get("snapshot_id") is not None:
            parent, info = await self.inner.load_info(agent_id), await self.inner.load_info(child)
            if parent is not None and info is not None and parent.last_bookmark is not None:
                await self.inner.save_info(child, replace(info, last_bookmark=parent.last_bookmark))
        return child


async def _media_of_fork(s: Any) -> Any:
    await s.save_info("a", samples.info("a"))
    await s.save_media_cache("a", [samples.media("k")])
    [child] = await s.batch_fork("a", 1)
    await s.save_media_cache("a", [samples.media("other")])
    return await the("key", s.load_media_cache(child))


@fault(
    "FORK-2",
    "FORK-1",
    "MED-1",
    source="copy on write that copies when the child writes, and not when the parent does",
    witness=seen(_media_of_fork),
)
class ShrewForkReadsThrough(Wrapper):
    """Reads the media cache of a fork from the parent, as it is by then, until the fork saves one of its own."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.parents: dict[str, str] = {}

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        children = await self.inner.batch_fork(agent_id, count)
        self.parents.update(dict.fromkeys(children, agent_id))
        return children

    async def save_media_cache(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await self.inner.save_media_cache(agent_id, records, fence=fence)
        self.parents.pop(agent_id, None)

    async def load_media_cache(self, agent_id: str) -> Any:
        own = await self.inner.load_media_cache(agent_id)
        if type(agent_id) is not str or agent_id not in self.parents or not await self.inner.exists(agent_id):
            return own
        return await self.load_media_cache(self.parents[agent_id])

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self.inner.delete(agent_id, fence=fence)
        self.parents.pop(agent_id, None)


async def _prune_ties(s: Any) -> Any:
    for name in "xyz":
        await s.save_snapshot("a", samples.snapshot(name))
    await s.prune("a", keep_snapshots=1)
    return await the("id", s.list_snapshots("a"))


@fault(
    "LIFE-6",
    "SNAP-1",
    source="a list ordered by created_at DESC, id ASC, and a clean-up ordered by (created_at, id) DESC, its index",
    witness=seen(_prune_ties),
)
class ShrewPruneTies(Wrapper):
    """Keeps, of snapshots of one time, the last ones by id and not the first ones of the list."""

    async def prune(self, agent_id: str, *, keep_snapshots: Any = None, **given: Any) -> Any:
        rest = {name: value for name, value in given.items() if name not in ("fence", "dry_run")}
        if type(keep_snapshots) is int and keep_snapshots >= 0 and not given.get("dry_run") and not rest:
            await self.inner.prune(agent_id, keep_snapshots=keep_snapshots, dry_run=True, fence=given.get("fence"))
            found = await self.inner.list_snapshots(agent_id)
            newest: list[Snapshot] = sorted(found, key=lambda x: (x.created_at, x.id), reverse=True)
            moved = newest[:keep_snapshots]
            if {x.id for x in moved} != {x.id for x in found[:keep_snapshots]}:
                total = await self.inner.prune(agent_id, keep_snapshots=keep_snapshots, dry_run=True)
                for one in reversed(newest[keep_snapshots:]):
                    await self.inner.delete_snapshot(agent_id, one.id, fence=given.get("fence"))
                return total
        return await self.inner.prune(agent_id, keep_snapshots=keep_snapshots, **given)


async def _archive(s: Any) -> Any:
    await s.append_events("a", happened(7, 8))
    await s.append_events("a", happened(1))
    return [event.bookmark.seq for event in (await s.load_agent("a")).events]


@fault(
    "LIFE-7",
    "EVT-3",
    source="a GSI on the seq, the only index there was, for an export in the order of appending",
    witness=seen(_archive),
)
class ShrewArchiveBySeq(Wrapper):
    """Gives the events of ``load_agent`` in the order of their seqs, which differs after a producer began anew."""

    async def load_agent(self, agent_id: str) -> Any:
        found = await self.inner.load_agent(agent_id)
        if found is None or not found.events:
            return found
        pairs = sorted(zip(found.events, found.event_offsets, strict=True), key=lambda p: (p[0].bookmark.seq, p[1]))
        return replace(found, events=[e for e, _ in pairs], event_offsets=[offset for _, offset in pairs])


# --- tenants ----------------------------------------------------------------------------------------------------------


class _View(Wrapper):
    def __init__(self, inner: Any, whole: Any) -> None:
        super().__init__(inner)
        self.whole = whole

    async def count_messages(self, **filters: Any) -> int:
        own: int = await self.inner.count_messages(**filters)
        return own if filters else await self.whole.count_messages()


async def _tenants_count(s: Any) -> Any:
    await s.scoped("acme").save_messages("a", talk("one", "two"))
    view = s.scoped("zeta")
    await view.save_messages("a", talk("three"))
    return await view.count_messages(), await view.count_messages(agent_id="a")


@fault(
    "SCOPE-1",
    "QRY-10",
    source="MongoDB: estimatedDocumentCount() when the filter is empty, decided before the tenant is added to it",
    witness=seen(_tenants_count),
)
class ShrewFastCount(Wrapper):
    """Counts the messages of all tenants in a view when no filter is given."""

    def scoped(self, tenant: str) -> Any:
        return _View(self.inner.scoped(tenant), self.inner)


def _bare(agent_id: str) -> str:
    return agent_id.partition("/")[2] or agent_id if agent_id.startswith("@") else agent_id


async def _tenants_lock(s: Any) -> Any:
    await s.scoped("acme").acquire_agent_lock("a", ttl_ms=60_000)
    lease = await s.scoped("zeta").acquire_agent_lock("a", ttl_ms=60_000)
    return lease.agent_id


@fault(
    "SCOPE-1",
    "LOCK-1",
    source="locks in Redis under lock:{agent_id}, from before there were tenants",
    witness=seen(_tenants_lock),
)
class ShrewTenantsShareLocks(MemoryLayer):
    """Has one lock for all agents of one id, whatever their tenants."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        return await super().acquire_lease(_bare(agent_id), owner, ttl_ms)

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        return await super().renew_lease(_bare(agent_id), fence, ttl_ms)

    async def release_lease(self, agent_id: str, fence: Any) -> None:
        await super().release_lease(_bare(agent_id), fence)

    async def commit(self, batches: Any) -> Any:
        outcomes: list[Any] = []
        for batch in batches:
            fence, name = batch.fence, _bare(batch.agent_id)
            if fence is not None and name != batch.agent_id:
                if not self.space.holds(name, fence):
                    outcomes.append(Refused("fence"))
                    continue
                batch = replace(batch, fence=None)
            outcomes += await super().commit([batch])
        return outcomes


# --- the older clauses ------------------------------------------------------------------------------------------------


def _as_object(value: Any, depth: int = 0) -> Any:
    if type(value) is list and depth < 100:
        return [_as_object(one, depth + 1) for one in value]
    if type(value) is not dict or depth >= 100:
        return value
    texts = [k for k in value if type(k) is str and k.isascii() and k.isdigit() and len(k) <= 10]
    numbers = {k for k in texts if str(int(k)) == k and int(k) < 2**32 - 1}
    names = [*sorted(numbers, key=int), *(k for k in value if k not in numbers)]
    return {name: _as_object(value[name], depth + 1) for name in names}


async def _keys_of_metadata(s: Any) -> Any:
    await s.save_snapshot("a", replace(samples.snapshot(), metadata={"b": 1, "10": {"z": 0, "7": 0}, "9": 2}))
    metadata = (await s.load_snapshot("a", "sfp-1")).metadata
    return [*metadata], [*metadata["10"]]


@fault(
    "VAL-1",
    "SNAP-1",
    source="a function in JavaScript: the keys of an object that are array indexes come first, in numeric order",
    witness=seen(_keys_of_metadata),
)
class ShrewIndexKeysFirst(Wrapper):
    """Puts the keys of a snapshot's metadata that look like integers before the others, in ascending order."""

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        if type(snapshot) is Snapshot and type(snapshot.metadata) is dict:
            snapshot = replace(snapshot, metadata=_as_object(snapshot.metadata))
        await self.inner.save_snapshot(agent_id, snapshot, fence=fence)


@fault(
    "ID-2",
    "LIFE-3",
    "HIS-2",
    source="RocksDB: DeleteRange of 'file:a:' to 'file:a;', where an id may hold the separator",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered()),
        lambda s: s.save_recovered_file("a:b", samples.recovered()),
        lambda s: s.delete("a"),
        lambda s: s.load_recovered_files("a:b"),
    ),
)
class ShrewDeleteRange(MemoryLayer):
    """Deletes with an agent the recovered files of the agents whose ids go on after a colon."""

    async def commit(self, batches: Any) -> Any:
        outcomes = await super().commit(batches)
        with self.space.lock:
            for batch, outcome in zip(batches, outcomes, strict=True):
                if batch.delete and isinstance(outcome, Applied):
                    for agent_id, state in self.space.states.items():
                        if agent_id.startswith(f"{batch.agent_id}:"):
                            for name in [n for n in state.docs if n[0] == DocKind.RECOVERED]:
                                del state.docs[name]
        return outcomes


async def _repeated_ids(s: Any, t: Any) -> Any:
    await s.save_tool_call_records("a", [samples.tool_call(0), samples.tool_call(1), samples.tool_call(0)])
    await t.upsert_tool_call_records("a", [samples.tool_call(0, state="FAILED")])
    return await the("state", s.load_tool_call_records("a"))


@fault(
    "TC-3",
    "TC-2",
    source="MongoDB's positional operator: 'calls.$' is the first element that matches",
    witness=seen(_repeated_ids),
)
class ShrewPositionalFirst(MemoryLayer):
    """Replaces the first of several records with an id when an instance upserts into a list that it did not load."""

    async def outline(self, agent_id: str, kind: ListKind, keys: Any = None) -> Outline:
        found = await super().outline(agent_id, kind, keys)
        with self.space.lock:
            rows = self.space.state(agent_id).lists[kind]
            if keys is None or not found.rows or rows.version != found.version:
                return found
            first = dict[str, Any]()
            for i, row in enumerate(rows.rows):
                if isinstance(row.index, ToolCallIndex) and row.index.call_id in keys:
                    key = row.index.call_id
                    first.setdefault(key, (i, row.body.digest, row.created_at, key))
        return replace(found, rows=[*first.values()])


async def _dotted(s: Any) -> Any:
    await s.save_info("a", samples.info("a", metadata={"plan": {"tier": 1, "seats": 2}}))
    return (await s.update_info("a", {"x": 1}, remove=["plan.tier"])).metadata


@fault(
    "INFO-5",
    source="MongoDB: $unset of 'metadata.' + key, where the key has a dot",
    witness=seen(_dotted),
)
class ShrewRemoveDotted(Wrapper):
    """Removes with the key ``a.b`` of the metadata the key ``b`` inside ``a``."""

    async def update_info(self, agent_id: str, metadata: Any, *, remove: Any = (), fence: Any = None) -> Any:
        stored = await self.inner.update_info(agent_id, metadata, remove=remove, fence=fence)
        for path in remove:
            name, dot, inside = path.partition(".")
            value = stored.metadata.get(name)
            if dot and type(value) is dict and inside in value and name not in metadata:
                rest = {k: v for k, v in value.items() if k != inside}
                stored = await self.inner.update_info(agent_id, {name: rest}, fence=fence)
        return stored


@fault(
    "DUR-1",
    "TODO-1",
    "QRY-8",
    source="a write-behind cache: the write is acknowledged when it is queued, and sent with the next one",
    witness=seen(
        lambda s, t: s.save_todos("a", samples.todos("x")),
        lambda s, t: t.load_todos("a"),
        lambda s, t: s.load_todos("a"),
    ),
)
class ShrewWriteBehindTodos(Wrapper):
    """Acknowledges todos that it holds in memory until the instance writes the agent's next todos or turn, copies or
    deletes the agent, lists agents, or closes."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.waiting: dict[str, Any] = {}

    async def _flush(self, agent_id: Any) -> None:
        if type(agent_id) is str and agent_id in self.waiting:
            body = self.waiting.pop(agent_id)
            await self.inner.save_todos(agent_id, decode(TodoSnapshot, body, "todos"))

    async def _flush_all(self) -> None:
        for agent_id in [*self.waiting]:
            await self._flush(agent_id)

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await self._flush(agent_id)
        if fence is not None or ENTERED.get() or type(snapshot) is not TodoSnapshot:
            return await self.inner.save_todos(agent_id, snapshot, fence=fence)
        await self.inner.load_todos(agent_id)
        try:
            body = encode(TodoSnapshot, snapshot, "todos")
        except KodeError:
            return await self.inner.save_todos(agent_id, snapshot)
        if len(body.text) > 65_536:
            return await self.inner.save_todos(agent_id, snapshot)
        self.waiting[agent_id] = body

    async def load_todos(self, agent_id: str) -> Any:
        stored = await self.inner.load_todos(agent_id)
        if type(agent_id) is not str or agent_id not in self.waiting:
            return stored
        return decode(TodoSnapshot, self.waiting[agent_id], "todos")

    async def save_turn(self, agent_id: str, **given: Any) -> Any:
        await self._flush(agent_id)
        return await self.inner.save_turn(agent_id, **given)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await self._flush(agent_id)
        await self.inner.delete(agent_id, fence=fence)

    async def batch_fork(self, agent_id: str, count: int) -> Any:
        await self._flush(agent_id)
        return await self.inner.batch_fork(agent_id, count)

    async def fork(self, agent_id: str, *args: Any, **given: Any) -> Any:
        await self._flush(agent_id)
        return await self.inner.fork(agent_id, *args, **given)

    async def load_agent(self, agent_id: str) -> Any:
        await self._flush(agent_id)
        return await self.inner.load_agent(agent_id)

    async def import_agent(self, agent_id: str, *args: Any, **given: Any) -> None:
        await self._flush(agent_id)
        await self.inner.import_agent(agent_id, *args, **given)

    async def delete_many(self, **given: Any) -> Any:
        await self._flush_all()
        return await self.inner.delete_many(**given)

    async def list(self, *args: Any, **given: Any) -> Any:
        await self._flush_all()
        return await self.inner.list(*args, **given)

    async def backup(self, *args: Any, **given: Any) -> Any:
        await self._flush_all()
        return await self.inner.backup(*args, **given)

    async def close(self) -> None:
        await self._flush_all()
        await self.inner.close()

    async def __aexit__(self, *_: object) -> None:
        await self.close()
