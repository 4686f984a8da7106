"""Stores over an ORM, Lua scripts, a service with retries, caches, projections and shards, each wrong at one edge."""

from __future__ import annotations

import asyncio
import heapq
import json
import re
import time
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from itertools import accumulate
from typing import Any

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnSqlite, Wrapper
from conformance.tests.zoo.rounds import fault
from conformance.tests.zoo.witnesses import happened, seen, talk, the
from kode_core.batch import DocKind, DocSpan, DocWrite
from kode_core.errors import AgentDeletedError, ConflictError, InvalidArgumentError, KodeError
from kode_core.jsonvalue import encode_json
from kode_core.layers import Layer
from kode_core.model import ABSENT, AgentRecords, AppendedMessage, Message, PutDocument, ToolUseBlock
from kode_core.query import Page
from kode_core.store import EngineStore
from kode_core.store.documents import stored_documents
from kode_core.store.emitting import Emitter
from kode_core.store.versions import check_version
from kode_core.texts import texts_of

# --- documents --------------------------------------------------------------------------------------------------------


def _swapped(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("reverse") is not True:
        return given
    # no key lies between a key and the same with U+0001 behind it
    return {
        name: f"{value}\x01" if name in ("start", "stop") and type(value) is str and 0 < len(value) <= 90 else value
        for name, value in given.items()
    }


async def _three(s: Any) -> Any:
    for key in ("k1", "k2", "k3"):
        await s.put_document("a", "notes", key, key)
    return await s.list_document_keys("a", "notes", start="k1", stop="k3", reverse=True)


@fault(
    "DOC-4",
    source="Redis: ZREVRANGEBYLEX takes the greater bound first, and '[' and '(' stay with the places, not the bounds",
    witness=seen(_three),
)
class VolReverseBounds(Wrapper):
    """Lists documents in reverse without the one at ``start``, and with the one at ``stop``."""

    async def list_documents(self, agent_id: str, collection: str, **given: Any) -> Any:
        return await self.inner.list_documents(agent_id, collection, **_swapped(given))

    async def list_document_keys(self, agent_id: str, collection: str, **given: Any) -> Any:
        return await self.inner.list_document_keys(agent_id, collection, **_swapped(given))

    def iter_documents(self, agent_id: str, collection: str, **given: Any) -> Any:
        return self.inner.iter_documents(agent_id, collection, **_swapped(given))


async def _put_again(s: Any) -> Any:
    await s.put_document("a", "flags", "k", {"on": 1, "by": [0.0]})
    await s.put_document("a", "flags", "k", {"on": True, "by": [-0.0]}, tags={"t": "x"})
    found = await s.load_document("a", "flags", "k")
    return found.value, found.tags


@fault(
    "DOC-1",
    "VAL-1",
    source="SQLAlchemy leaves a JSON column out of the UPDATE if old == new, and in Python 1 == 1.0 == True",
    witness=seen(_put_again),
)
class VolDirtyDocument(Wrapper):
    """Keeps the old value of a document that is replaced by one that Python calls equal, as ``True`` for 1; the tags
    and the version are new."""

    async def put_document(self, agent_id: str, collection: str, key: str, value: Any, **given: Any) -> str:
        value = await self._kept(agent_id, collection, key, value)
        return await self.inner.put_document(agent_id, collection, key, value, **given)

    async def write_documents(self, agent_id: str, documents: Any, *, fence: Any = None) -> Any:
        if isinstance(documents, (list, tuple)):
            documents = [
                replace(one, value=await self._kept(agent_id, one.collection, one.key, one.value))
                if type(one) is PutDocument
                else one
                for one in documents
            ]
        return await self.inner.write_documents(agent_id, documents, fence=fence)

    async def _kept(self, agent_id: str, collection: str, key: str, value: Any) -> Any:
        try:
            encode_json(value, "the value")
            stored = await self.inner.load_document(agent_id, collection, key)
        except KodeError:  # it is refused, or the put raises the same
            return value
        return stored.value if stored is not None and stored.value == value else value


async def _deleted_twice(s: Any) -> Any:
    version = await s.put_document("a", "jobs", "k", 1)
    await s.delete_document("a", "jobs", "k")
    return await s.delete_document("a", "jobs", "k", expect=version)


@fault(
    "DOC-2",
    source="a REST client that takes the 404 of a DELETE for success, since the resource is gone, as was wanted",
    witness=seen(_deleted_twice),
)
class VolDeleteGone(Wrapper):
    """Deletes a document that is gone without an error also when the call demands a version of it."""

    async def delete_document(
        self, agent_id: str, collection: str, key: str, *, expect: Any = None, fence: Any = None
    ) -> None:
        try:
            await self.inner.delete_document(agent_id, collection, key, expect=expect, fence=fence)
        except ConflictError as exc:
            if exc.version != ABSENT:
                raise


async def _merged(s: Any) -> Any:
    for key, value in {"k9": "x", "k5": "x", "k7": "y", "k1": "y"}.items():
        await s.put_document("a", "jobs", key, None, tags={"state": value})
    return await the("key", s.query_documents("jobs", {"state": ["x", "y"]}, reverse=True))


@fault(
    "DOC-8",
    source="a gateway before shards: heapq.merge(*pages), without reverse=True for the descending ones",
    witness=seen(_merged),
)
class VolMergeDescending(Layer):
    """Merges the documents of several listed values as if they came in ascending order, also in the reverse one."""

    async def find_docs(self, query: Any) -> Any:
        if len(query.terms) < 2 or not query.descending:
            return await super().find_docs(query)
        pages = [await super(VolMergeDescending, self).find_docs(replace(query, terms=(t,))) for t in query.terms]
        return [*heapq.merge(*pages, key=lambda one: (one.agent_id, one.doc.key))][: query.limit]


async def _three_tags(s: Any) -> Any:
    await s.save_info("a", samples.info("a"))
    await s.put_document("a", "jobs", "k", 1, tags={"team": "x", "state": "open", "kind": "bug"})
    await s.fork("a", "b", documents=True)
    found = []
    for tags in ({"team": "x"}, {"team": "x", "state": "open"}, {"team": "x", "state": "open", "kind": "bug"}):
        found.append(await the("agent_id", s.query_documents("jobs", tags)))
    return found


@fault(
    "DOC-7",
    "DOC-8",
    "LIFE-8",
    source="a copy job that fills the side table of tags and pairs of tags, from before there were four of them",
    witness=seen(_three_tags),
)
class VolCopiedTagPairs(Layer):
    """Finds the documents of forks and imported agents by one tag or two, and not by three or four."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([self._cut(batch) if batch.expect_nothing else batch for batch in batches])

    def _cut(self, batch: Any) -> Any:
        most = {7: 6, 15: 10}

        def cut(write: Any) -> Any:
            if write.doc is None or len(write.doc.terms) not in most:
                return write
            return replace(write, doc=replace(write.doc, terms=write.doc.terms[: most[len(write.doc.terms)]]))

        return replace(batch, docs=tuple(map(cut, batch.docs)))


async def _worked_off(s: Any) -> Any:
    for i in range(120):
        await s.put_document("a", "queue", f"job-{i:03}", i)
    done = []
    async for job in s.iter_documents("a", "queue"):
        done.append(job.value)
        await s.delete_document("a", "queue", job.key)
    return len(done)


@fault(
    "DOC-4",
    source="an ORM's iterator over a query in pages by LIMIT and OFFSET, which walks on while rows are deleted",
    witness=seen(_worked_off),
)
class VolIterOffset(Wrapper):
    """Iterates over documents in pages of 50 by their number, so that it passes over some when others before them are
    deleted meanwhile."""

    def iter_documents(self, agent_id: str, collection: str, **given: Any) -> AsyncIterator[Any]:
        self.inner.iter_documents(agent_id, collection, **given)  # checks the arguments
        return self._pages(agent_id, collection, given)

    async def _pages(self, agent_id: str, collection: str, given: dict[str, Any]) -> AsyncIterator[Any]:
        done = 0
        while True:
            page, place = list[Any](), 0
            async with aclosing(self.inner.iter_documents(agent_id, collection, **given)) as stream:
                async for one in stream:
                    place += 1
                    if place > done:
                        page.append(one)
                    if len(page) == 50:
                        break
            for one in page:
                yield one
            if len(page) < 50:
                return
            done += 50


async def _two_versions(s: Any) -> Any:
    first, second = await s.write_documents("a", [PutDocument("notes", "b", 1), PutDocument("notes", "a", 2)])
    b, a = await s.load_document("a", "notes", "b"), await s.load_document("a", "notes", "a")
    return first == b.version, second == a.version


@fault(
    "DOC-3",
    "DOC-2",
    source="rows are sorted by key before the statement, against deadlocks, and RETURNING gives that order",
    witness=seen(_two_versions),
)
class VolVersionsSorted(Wrapper):
    """Returns the versions of ``write_documents`` in the order of the keys, not in the order of the call."""

    async def write_documents(self, agent_id: str, documents: Any, *, fence: Any = None) -> Any:
        versions = await self.inner.write_documents(agent_id, documents, fence=fence)
        keys = [(one.collection, one.key) for one in documents]
        return [version for _, version in sorted(zip(keys, versions, strict=True))]


# --- versions and conditions ------------------------------------------------------------------------------------------


async def _stale_turn(s: Any) -> Any:
    version = await s.load_version("a")
    await s.append_messages("a", talk("one"))
    return list(await s.save_turn("a", todos=samples.todos("x"), events=happened(1), expect=version))


@fault(
    "VER-2",
    "TURN-1",
    source="JPA's @Version: the version is compared in the UPDATE of the entity, which only a changed one has",
    witness=seen(_stale_turn, lambda s: s.load_todos("a")),
    on=OnSqlite,
)
class VolCleanEntity(Wrapper):
    """Ignores the demanded version of a turn that has only todos, events or documents."""

    async def save_turn(self, agent_id: str, *, expect: Any = None, **given: Any) -> Any:
        changed = any(given.get(name) is not None for name in ("messages", "tool_calls", "info"))
        if expect is not None and not (changed or given.get("append") or given.get("upsert_tool_calls")):
            check_version(expect)
            expect = None
        return await self.inner.save_turn(agent_id, expect=expect, **given)


async def _stale_cut(s: Any) -> Any:
    version = await s.load_version("a")
    await s.append_messages("a", talk("one", "two"))
    return await s.truncate_messages("a", 2, expect=version)


@fault(
    "VER-2",
    "MSG-11",
    "LOCK-5",
    source="an early return for an edit with nothing to do, before the transaction with its checks begins",
    witness=seen(_stale_cut),
)
class VolShortAlready(Wrapper):
    """Returns 0 from ``truncate_messages`` of a list that is short enough, whatever version or lease it demands."""

    async def truncate_messages(self, agent_id: str, length: int, *, expect: Any = None, fence: Any = None) -> int:
        if type(length) is int and 0 < length < 2**31:
            check_version(expect)
            if not await self.inner.load_messages(agent_id, after=length - 1, last=1):
                return 0
        return await self.inner.truncate_messages(agent_id, length, expect=expect, fence=fence)


# --- searches ---------------------------------------------------------------------------------------------------------


class _Finds(Wrapper):
    """Leaves out some of the messages that are found."""

    def fits(self, message: Any, filters: dict[str, Any]) -> bool:
        raise NotImplementedError

    async def query_messages(self, **filters: Any) -> Any:
        page = await self.inner.query_messages(**filters)
        return Page((m for m in page if self.fits(m, filters)), page.next_cursor, page.left_out)

    def iter_messages(self, **filters: Any) -> AsyncIterator[Any]:
        return self._fitting(self.inner.iter_messages(**filters), filters)

    async def _fitting(self, found: Any, filters: dict[str, Any]) -> AsyncIterator[Any]:
        async with aclosing(found) as stream:
            async for message in stream:
                if self.fits(message, filters):
                    yield message

    async def count_messages(self, **filters: Any) -> int:
        count = await self.inner.count_messages(**filters)
        return count - sum([not self.fits(m, filters) async for m in self.inner.iter_messages(**filters)])


_ASCII = str.maketrans({chr(c): chr(c + 32) for c in range(ord("A"), ord("Z") + 1)})


@fault(
    "QRY-12",
    source="SQLite: a trigram index cannot find texts of less than three characters, and LIKE folds ASCII alone",
    witness=seen(
        lambda s: s.append_messages("a", talk("\u00c4nderung", "ANfang", "STRA\u00dfE")),
        lambda s: s.count_messages(contains="\u00e4n"),
        lambda s: s.count_messages(contains="an"),
        lambda s: s.count_messages(contains="\u00e4nd"),
        lambda s: the("position", s.query_messages(contains="ss")),
    ),
    on=OnSqlite,
)
class VolShortNeedle(_Finds):
    """Finds texts of one or two characters with only the letters of ASCII folded; longer ones with all letters."""

    def fits(self, message: Any, filters: dict[str, Any]) -> bool:
        needle = filters.get("contains")
        if type(needle) is not str or len(needle) > 2:
            return True
        return any(needle.translate(_ASCII) in text.translate(_ASCII) for text in texts_of(message))


def _sorted_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _tagged(**metadata: Any) -> Message:
    return Message("user", "x", metadata)


@fault(
    "QRY-13",
    "QRY-2",
    source="generated columns for the top level, and JSON.stringify with sorted keys for what lies below it",
    witness=seen(
        lambda s: s.append_messages("a", [_tagged(n=1, at={"x": 1, "y": [2.0]})]),
        lambda s: s.count_messages(metadata={"n": 1.0}),
        lambda s: s.count_messages(metadata={"at": {"y": [2.0], "x": 1}}),
        lambda s: s.count_messages(metadata={"at": {"x": 1.0, "y": [2]}}),
    ),
)
class VolNestedNumbers(_Finds):
    """Compares the numbers inside the objects and lists of messages' metadata as they are written, so that 1 is not
    1.0 there; at the top level they are compared by value."""

    def fits(self, message: Any, filters: dict[str, Any]) -> bool:
        wanted = filters.get("metadata") or {}
        nested = {key: value for key, value in wanted.items() if isinstance(value, (dict, list))}
        stored = message.metadata or {}
        return all(_sorted_text(stored[key]) == _sorted_text(value) for key, value in nested.items())


@fault(
    "QRY-13",
    source="PostgreSQL: metadata @> '{}' is NULL, and not true, where the column is NULL",
    witness=seen(
        lambda s: s.append_messages("a", [*talk("one"), _tagged(n=1), _tagged()]),
        lambda s: the("position", s.query_messages(metadata={}, order="asc")),
        lambda s: s.count_messages(metadata={}),
    ),
)
class VolNullContains(_Finds):
    """Leaves out the messages without metadata when the filter ``metadata`` is empty."""

    def fits(self, message: Any, filters: dict[str, Any]) -> bool:
        return message.metadata is not None or filters.get("metadata") is None


_SIGNED = re.compile(r"(.*)\.([0-9a-f]{8})", re.DOTALL)


def _signature(filters: dict[str, Any]) -> str:
    lists = {
        name: [*value]
        for name, value in filters.items()
        if isinstance(value, (list, tuple, set, frozenset)) and len(value) > 1
    }
    return f"{zlib.crc32(repr(sorted(lists.items())).encode(errors='replace')):08x}" if lists else ""


async def _turned(s: Any) -> Any:
    for name in "abc":
        await s.save_info(name, samples.info(name, template_id=name))
    page = await s.query_sessions(template_id=["a", "b", "c"], limit=2)
    more = await s.query_sessions(template_id=("c", "b", "a", "c"), limit=2, cursor=page.next_cursor)
    return [x.agent_id for x in [*page, *more]]


@fault(
    "QRY-2",
    "QRY-5",
    source="a page token that holds a checksum of the request's parameters, as Google's AIP-158 proposes",
    witness=seen(_turned),
    errors=True,
)
class VolListCursor(Wrapper):
    """Refuses the cursor of a query of sessions when the same values of a filter are listed in another order, or one of
    them twice."""

    async def query_sessions(self, **filters: Any) -> Any:
        signature, cursor = _signature(filters), filters.get("cursor")
        signed = _SIGNED.fullmatch(cursor) if type(cursor) is str else None
        if signed is not None:
            if signed[2] != signature:
                raise InvalidArgumentError("cursor belongs to another query")
            filters["cursor"] = signed[1]
        page = await self.inner.query_sessions(**filters)
        if page.next_cursor is not None and signature:
            page.next_cursor = f"{page.next_cursor}.{signature}"
        return page


async def _offset(s: Any) -> Any:
    for agent in ("a", "b"):
        calls = [samples.tool_call(i, created_at=samples.T0 + i) for i in range(3)]
        await s.save_tool_call_records(agent, calls)
    found = await s.query_tool_calls(agent_id=["a", "b"], offset=2, order="asc")
    return [(call.agent_id, call.position) for call in found]


@fault(
    "QRY-4",
    "QRY-2",
    source="a proxy before shards that hands OFFSET down to each of them, as it does LIMIT",
    witness=seen(_offset),
)
class VolOffsetPushed(Layer):
    """Leaves out, of messages and tool calls of several listed agents, the first ``offset`` of each agent."""

    async def find_rows(self, query: Any) -> Any:
        if not query.offset or not isinstance(query.agent_id, tuple):
            return await super().find_rows(query)
        rows = list[Any]()
        for agent_id in query.agent_id:
            rows += await super().find_rows(replace(query, agent_id=agent_id))
        rows.sort(key=lambda row: (row.created_at, row.agent_id, row.position), reverse=query.descending)
        return rows[: query.limit]


def _one_user(filters: dict[str, Any]) -> dict[str, Any]:
    metadata = filters.get("metadata")
    if "user_id" not in filters or not isinstance(metadata, Mapping) or "userId" not in metadata:
        return filters
    return {**filters, "metadata": {key: value for key, value in metadata.items() if key != "userId"}}


@fault(
    "QRY-1",
    "QRY-2",
    source="where = {**metadata, 'userId': user_id}: of two conditions on one key the later one stays",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: the("agent_id", s.query_sessions(user_id="u-1", metadata={"userId": "u-2", "plan": "gold"})),
        lambda s: s.count_sessions(user_id="u-1", metadata={"userId": "u-2"}),
    ),
)
class VolOneUser(Wrapper):
    """Ignores ``userId`` in the filter ``metadata`` of sessions when there is a ``user_id``."""

    async def query_sessions(self, **filters: Any) -> Any:
        return await self.inner.query_sessions(**_one_user(filters))

    def iter_sessions(self, **filters: Any) -> Any:
        return self.inner.iter_sessions(**_one_user(filters))

    async def count_sessions(self, **filters: Any) -> int:
        return await self.inner.count_sessions(**_one_user(filters))


_HOUR = 3_600_000
_EVENING = samples.T0 + 9 * _HOUR + 45 * 60_000
"""2026-01-01 18:45 UTC."""


@fault(
    "QRY-11",
    source="DATE_ADD(created_at, INTERVAL ? HOUR), with the minutes DIV 60",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", created_at=_EVENING)),
        lambda s: s.group_sessions("day", utc_offset_minutes=330),
        lambda s: s.group_sessions("day", utc_offset_minutes=360),
        lambda s: s.group_sessions("day", utc_offset_minutes=300),
    ),
)
class VolWholeHours(Layer):
    """Groups by days at an offset from UTC of whole hours: of 5:30 it takes 5."""

    async def group(self, query: Any, grouping: Any) -> Any:
        hours = abs(grouping.offset_ms) // _HOUR * _HOUR
        return await super().group(query, replace(grouping, offset_ms=hours if grouping.offset_ms > 0 else -hours))


# --- messages ---------------------------------------------------------------------------------------------------------


@fault(
    "MSG-12",
    source="the positions are the length before the insert plus the index in the request, known keys counted in",
    witness=seen(
        lambda s: s.append_messages_once("a", {"k1": samples.message(1)}),
        lambda s: s.append_messages_once("a", {"k1": samples.message(1), "k2": samples.message(2)}),
        lambda s: s.append_messages_once("a", {"k2": samples.message(2)}),
    ),
)
class VolPlaceInCall(Wrapper):
    """Gives a new key that stands behind known ones in its call too high a position; a later call gives the right
    one."""

    async def append_messages_once(self, agent_id: str, messages: Any, *, fence: Any = None) -> Any:
        placed, known = [], 0
        for one in await self.inner.append_messages_once(agent_id, messages, fence=fence):
            placed.append(AppendedMessage(one.position + known, True) if one.is_new else one)
            known += not one.is_new
        return placed


async def _forked_key(s: Any) -> Any:
    await s.save_info("a", samples.info("a"))
    await s.append_messages_once("a", {"k": samples.message(1)})
    await s.append_messages("a", talk("two"))
    for child, documents in (("b", False), ("c", True)):
        await s.fork("a", child, documents=documents)
    return [await s.append_messages_once(child, {"k": samples.message(1)}) for child in "bc"]


@fault(
    "MSG-12",
    "DOC-5",
    "FORK-2",
    source="idempotency keys in the table of documents, which INSERT … SELECT copies for a fork",
    witness=seen(_forked_key),
)
class VolForkTakesKeys(EngineStore):
    """Takes the keys of messages along in a fork with documents."""

    async def fork(self, agent_id: str, new_id: Any = None, *, documents: Any = False, **given: Any) -> str:
        child = await super().fork(agent_id, new_id, documents=documents, **given)
        if documents:
            keys = [doc async for doc in stored_documents(self._context.engine, agent_id, of_core=True)]
            if keys:
                writes = tuple(DocWrite(DocKind.DOCUMENTS, doc.key, doc) for doc in keys)
                await self._context.commit(self._context.batch(child, docs=writes))
        return child


def _by_length(value: Any) -> Any:
    if type(value) is list:
        return [_by_length(one) for one in value]
    if type(value) is not dict or not all(type(key) is str for key in value):
        return value
    keys = sorted((key.encode(errors="surrogatepass"), key) for key in value)
    keys.sort(key=lambda pair: len(pair[0]))
    return {key: _by_length(value[key]) for _, key in keys}


@fault(
    "VAL-1",
    "MSG-11",
    source="MySQL's JSON_REPLACE: the binary form of an object has its keys by length, then by bytes",
    witness=seen(
        lambda s: s.append_messages("a", [_tagged(zeta=1, b=2)]),
        lambda s: s.load_messages("a"),
        lambda s: s.replace_message("a", 0, _tagged(zeta=1, b=2)),
        lambda s: s.load_messages("a"),
    ),
)
class VolReplaceKeyOrder(Wrapper):
    """Orders the keys of a message's metadata and of the inputs of its tools by length when it is replaced, and keeps
    their order when it is saved or appended."""

    async def replace_message(self, agent_id: str, position: int, message: Any, **given: Any) -> None:
        if isinstance(message, Message):
            try:
                encode_json(message.metadata, "metadata")
                content = [
                    replace(block, input=_by_length(block.input))
                    if isinstance(block, ToolUseBlock) and encode_json(block.input, "input")
                    else block
                    for block in message.content
                ]
            except (KodeError, TypeError):  # it is refused below
                pass
            else:
                message = replace(message, content=content, metadata=_by_length(message.metadata))
        await self.inner.replace_message(agent_id, position, message, **given)


# --- agents as wholes -------------------------------------------------------------------------------------------------


async def _begun_anew(s: Any) -> Any:
    await s.append_messages_once("a", {"k": samples.message(1)})
    await s.pop_messages("a")
    gone = await s.load_agent("a")
    await s.import_agent("a", AgentRecords(agent_id="a", messages=talk("one", "two"), message_times=[1, 2]))
    return gone, await s.append_messages_once("a", {"k": samples.message(1)})


@fault(
    "LIFE-8",
    "MSG-12",
    source="a Redis set of seen keys with a name of its own, which the import, that finds no agent, does not clear",
    witness=seen(_begun_anew),
)
class VolImportKeepsKeys(Layer):
    """Leaves an agent of which all records were removed the keys of its messages when an agent is imported there."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([await self._with_keys(batch) for batch in batches])

    async def _with_keys(self, batch: Any) -> Any:
        if not (batch.expect_nothing and batch.delete):
            return batch
        span = DocSpan(start="~messages/", stop="~messages0", limit=100_000)
        written = {write.key for write in batch.docs if write.kind == DocKind.DOCUMENTS}
        keys = [doc for doc in await self.docs_in(batch.agent_id, span) if doc.key not in written]
        return replace(batch, docs=(*batch.docs, *(DocWrite(DocKind.DOCUMENTS, doc.key, doc) for doc in keys)))


async def _moved(s: Any) -> Any:
    times = [samples.T0 + 5, samples.T0, samples.T0 + 9]
    await s.import_agent("a", AgentRecords(agent_id="a", messages=talk("one", "two", "three"), message_times=times))
    return (await s.load_agent("a")).message_times


@fault(
    "LIFE-8",
    "MSG-4",
    source="a trigger that keeps created_at from falling, made for appends, fires for the rows of an import as well",
    witness=seen(_moved),
)
class VolImportMonotone(Wrapper):
    """Gives an imported message that is older than one before it the time of that one."""

    async def import_agent(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        if isinstance(records, AgentRecords) and all(type(one) is int for one in records.message_times):
            records = replace(records, message_times=[*accumulate(records.message_times, max)])
        await self.inner.import_agent(agent_id, records, fence=fence)


async def _imported(s: Any, info: Any) -> Any:
    given = AgentRecords(
        agent_id="a", info=info, messages=talk("one"), message_times=[samples.T0], updated_at=samples.T0 + 7
    )
    await s.import_agent("b", given)
    updated_at = (await s.load_agent("b")).updated_at
    await s.delete("b")
    return updated_at == samples.T0 + 7


@fault(
    "LIFE-8",
    "LIFE-7",
    source="updated_at is a column of the table of sessions; a row that the first message makes has DEFAULT now()",
    witness=seen(lambda s: _imported(s, samples.info("a")), lambda s: _imported(s, None)),
)
class VolUpdatedAtOfInfo(Layer):
    """Gives an imported agent without info the present time as ``updated_at``."""

    async def commit(self, batches: Any) -> Any:
        now = time.time_ns() // 1_000_000
        return await super().commit(
            [replace(b, now=max(b.now, now)) if b.expect_nothing and b.info is None else b for b in batches]
        )


async def _late_prune(s: Any) -> Any:
    await s.append_events("a", happened(1, 2, 3))
    lease = await s.acquire_agent_lock("a", ttl_ms=5000)
    await lease.release()
    try:
        await s.prune("a", events_before_offset=10**9, fence=lease)
    except KodeError as exc:
        return type(exc).__name__, len([event async for event in s.read_events("a")])
    return len([event async for event in s.read_events("a")])


@fault(
    "LOCK-5",
    "LIFE-6",
    source="retention runs as DROP PARTITION, or a TTL delete, beside the writes that carry the fencing token",
    witness=seen(_late_prune),
)
class VolPruneUnfenced(Layer):
    """Prunes events under a lease that has ended, if there are events to remove; snapshots and a prune of nothing are
    fenced."""

    async def commit(self, batches: Any) -> Any:
        return await super().commit([replace(b, fence=None) if b.drop_events else b for b in batches])


async def _tied(s: Any) -> Any:
    for name in ("s1", "s2", "s3"):
        await s.save_snapshot("a", samples.snapshot(name))
    return await s.prune("a", keep_snapshots=2), await the("id", s.list_snapshots("a"))


@fault(
    "LIFE-6",
    "SNAP-1",
    source="DELETE … ORDER BY created_at, id LIMIT n: the order of the list turned round, though its ids ascend",
    witness=seen(_tied),
)
class VolPruneTies(Wrapper):
    """Keeps of snapshots with one time those with the greatest ids, where the list has the least ids first."""

    async def prune(
        self, agent_id: str, *, keep_snapshots: Any = None, dry_run: Any = False, fence: Any = None, **given: Any
    ) -> Any:
        doomed = list[Any]()
        if type(keep_snapshots) is int and keep_snapshots >= 0 and dry_run is False:
            listed = await self.inner.list_snapshots(agent_id)
            doomed = sorted(listed, key=lambda one: (one.created_at, one.id))[: max(len(listed) - keep_snapshots, 0)]
            if {one.id for one in doomed} == {one.id for one in listed[keep_snapshots:]}:
                doomed = []
        if not doomed:
            return await self.inner.prune(
                agent_id, keep_snapshots=keep_snapshots, dry_run=dry_run, fence=fence, **given
            )
        result = await self.inner.prune(agent_id, keep_snapshots=len(listed), fence=fence, **given)
        for one in doomed:
            if await self.inner.load_snapshot(agent_id, one.id) == one:
                await self.inner.delete_snapshot(agent_id, one.id, fence=fence)
        return replace(result, snapshots=len(doomed))


async def _unknown_then_saved(s: Any, t: Any) -> Any:
    before = await s.load_snapshot("a", "s1")
    await t.save_snapshot("a", samples.snapshot("s1"))
    return before, await s.load_snapshot("a", "s1") is not None, await the("id", s.list_snapshots("a"))


@fault(
    "SNAP-1",
    "QRY-8",
    source="negative caching: a CDN before an object store answers the 404 of a key again for a few seconds",
    witness=seen(_unknown_then_saved),
    on=OnSqlite,
)
class VolNegativeCache(Wrapper):
    """Does not find, for five seconds after it was asked for in vain, a snapshot that another instance has saved."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.missing: dict[tuple[str, str], float] = {}

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        found = await self.inner.load_snapshot(agent_id, snapshot_id)
        key, now = (agent_id, snapshot_id), time.monotonic()
        if now < self.missing.get(key, 0.0):
            return None
        if found is None:
            if len(self.missing) >= 1000:
                self.missing.clear()
            self.missing[key] = now + 5
        return found

    async def save_snapshot(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        await self.inner.save_snapshot(agent_id, snapshot, fence=fence)
        self.missing.pop((agent_id, snapshot.id), None)

    async def import_agent(self, agent_id: str, records: Any, *, fence: Any = None) -> None:
        await self.inner.import_agent(agent_id, records, fence=fence)
        self.missing.clear()

    async def fork(self, agent_id: str, *args: Any, **given: Any) -> str:
        child: str = await self.inner.fork(agent_id, *args, **given)
        self.missing.clear()
        return child


# --- info -------------------------------------------------------------------------------------------------------------


def _lua(value: Any) -> Any:
    if type(value) is list:
        return [_lua(one) for one in value] if value else {}
    return {key: _lua(one) for key, one in value.items()} if type(value) is dict else value


@fault(
    "INFO-5",
    "VAL-1",
    source="a Lua script in Redis: cjson decodes [] to an empty table, and encodes that as {}",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", metadata={"tools": [], "limits": {"hosts": [[]], "n": 1}})),
        lambda s: s.update_info("a", {"plan": []}),
        lambda s: s.load_info("a"),
    ),
)
class VolLuaEmptyList(Wrapper):
    """Makes the empty lists in the other keys of the metadata empty objects when ``update_info`` sets or removes a
    key."""

    async def update_info(self, agent_id: str, metadata: Any, *, remove: Any = (), fence: Any = None) -> Any:
        info = await self.inner.load_info(agent_id)
        if info is not None and isinstance(metadata, Mapping) and isinstance(remove, (list, tuple)):
            others = {
                key: _lua(value)
                for key, value in (info.metadata or {}).items()
                if key not in metadata and key not in remove and _lua(value) != value
            }
            metadata = {**others, **metadata} if others else metadata
        return await self.inner.update_info(agent_id, metadata, remove=remove, fence=fence)


# --- events -----------------------------------------------------------------------------------------------------------


class _Reconnecting:
    def __init__(self, store: Any, agent_id: str, given: dict[str, Any]) -> None:
        self.store = store
        self.agent_id = agent_id
        self.given = given
        self.stream = store.follow_events(agent_id, **given)
        self.is_closed = False

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        while True:
            try:
                item = await self.stream.__anext__()
            except AgentDeletedError:
                if self.is_closed or await self.store.last_bookmark(self.agent_id) is None:
                    raise
                self.stream = self.store.follow_events(self.agent_id, **self.given)
            else:
                self.given = {**self.given, "after_offset": item.offset}
                return item

    async def aclose(self) -> None:
        self.is_closed = True
        await self.stream.aclose()


async def _next_agent(s: Any) -> Any:
    await s.append_event("a", samples.event(1))
    async with aclosing(s.follow_events("a")) as stream:
        first = await anext(stream)
        await s.delete("a")
        await s.append_event("a", samples.event(7))
        return first.bookmark.seq, (await asyncio.wait_for(anext(stream), 10)).bookmark.seq


@fault(
    "EVT-10",
    source="EventSource: a client that lost its stream connects again by itself, with the Last-Event-ID",
    witness=seen(_next_agent),
)
class VolReconnects(Wrapper):
    """Goes on with the events of the next agent of an id when the one that is followed was deleted, if that one has
    events by then; otherwise it raises as it must."""

    def follow_events(self, agent_id: str, **given: Any) -> Any:
        return _Reconnecting(self.inner, agent_id, given)


class _Counter(Emitter):
    async def _next_seq(self, agent_id: str, number: Any, fence: Any) -> int:
        is_known = number.next is not None and number.read_at > 0 and number.users == 1
        if is_known and (fence is None or fence == number.fence):
            return int(number.next)
        return await super()._next_seq(agent_id, number, fence)


async def _emitted(s: Any, t: Any) -> Any:
    first = await s.emit("a", "started")
    await t.append_event("a", samples.event(50))
    await asyncio.sleep(1.2)
    return first.bookmark.seq, (await s.emit("a", "done")).bookmark.seq


@fault(
    "EVT-8",
    source="an IDENTITY or INCR counter that starts at MAX(seq) + 1, and knows nothing of explicit values later on",
    witness=seen(_emitted),
)
class VolSeqCounter(EngineStore):
    """Numbers the events that an instance emits without a lock one after the other from its first one on, whatever
    higher seqs other instances have stored long since."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._emitter = _Counter(self._context, self._appender, self._locks)


# --- locks and tenants ------------------------------------------------------------------------------------------------


def _seconds(ttl_ms: int) -> int:
    return ttl_ms if ttl_ms < 1000 else ttl_ms // 1000 * 1000


async def _taken_early(s: Any, t: Any) -> Any:
    lease = await s.acquire_agent_lock("a", ttl_ms=2999)
    await asyncio.sleep(2.15)
    try:
        await t.acquire_agent_lock("a", ttl_ms=1000)
    finally:
        await lease.release()
    return "taken"


@fault(
    "LOCK-3",
    "LOCK-1",
    source="SET key NX EX takes whole seconds: Math.floor(ttl / 1000), and PX only below one second",
    witness=seen(_taken_early),
)
class VolLeaseSeconds(Layer):
    """Ends a lease after the whole seconds of its time: one of 2.999 seconds after two."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> Any:
        return await super().acquire_lease(agent_id, owner, _seconds(ttl_ms))

    async def renew_lease(self, agent_id: str, fence: Any, ttl_ms: int) -> bool:
        return await super().renew_lease(agent_id, fence, _seconds(ttl_ms))


async def _last_of_tenant(s: Any) -> Any:
    acme, other = s.scoped("acme"), s.scoped("zeta")
    for view in (acme, other):
        for key in ("k1", "k2", "k3"):
            await view.put_document("a", "jobs", key, key, tags={"state": "open"})
    ascending = await the("key", acme.query_documents("jobs", {"state": "open"}, limit=1))
    return ascending, await the("key", acme.query_documents("jobs", {"state": "open"}, limit=1, reverse=True))


@fault(
    "SCOPE-1",
    "DOC-8",
    source="a scan backwards from the end of the index, whose rows of other tenants a filter takes out behind it",
    witness=seen(_last_of_tenant),
)
class VolReverseTenant(Layer):
    """Searches a tenant's documents in reverse from the end of all tenants' documents, so that a page of other tenants
    is an empty last page."""

    async def find_docs(self, query: Any) -> Any:
        if query.descending and query.after is not None and not query.after[1]:
            query = replace(query, after=None)
        return await super().find_docs(query)
