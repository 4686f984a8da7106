"""Documents of the caller's own: put, load, delete, and list in ranges of keys (DOC clauses).

An engine knows a document by one key, ``COLLECTION/KEY``: a collection has no slash, so that the documents of one
collection are a range of keys. The version of a document is the digest of its stored form, which has a nonce.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from kode_core.batch import ABSENT_DOC, CORE_KEYS, Doc, DocKind, DocSpan, DocWrite, Fence
from kode_core.codec import Body
from kode_core.cursors import make_cursor, parse_cursor
from kode_core.engine import Engine, check_documents, docs_in, keeps_documents
from kode_core.errors import CorruptRecordError, InvalidArgumentError
from kode_core.ids import check_collection, check_document_key, prefix_end, quoted
from kode_core.jsonvalue import type_name
from kode_core.large import decode_in_slices, write_body
from kode_core.metadata import elements_of
from kode_core.model import ABSENT, DeleteDocument, Document, DocumentWrite, PutDocument
from kode_core.model.documents import StoredDocument
from kode_core.pace import Pace
from kode_core.query import MAX_LIMIT, Page
from kode_core.store.context import Context
from kode_core.store.methods import METHODS
from kode_core.store.pages import FIRST_PAGE, next_limit
from kode_core.store.parts import checked_number
from kode_core.store.rows import INT64, records_of
from kode_core.store.steps import checked_flag
from kode_core.store.tags import checked_tags, terms_of
from kode_core.store.writer import Rest, TurnWrites, Writer
from kode_core.tagged import check_finds_docs

__all__ = [
    "WITH_CORE_KEYS",
    "DocPages",
    "DocRange",
    "Documents",
    "check_docs",
    "decoded_document",
    "documents_of",
    "imported_documents",
    "is_engine_key",
    "name_of",
    "stored_documents",
]

_VERSION: Final = re.compile("[0-9a-f]{32}")


def _key_of(collection: Any, key: Any) -> str:
    """The engine's key of a document."""
    return f"{check_collection(collection)}/{check_document_key(key)}"


def _expected(expect: Any) -> Body | None:
    """The precondition of a write that demands a version."""
    if expect is None:
        return None
    if type(expect) is not str:
        raise InvalidArgumentError(f"expect must be a version, a str, got {type(expect).__name__}")
    if expect == ABSENT:
        return ABSENT_DOC
    if _VERSION.fullmatch(expect) is None:
        raise InvalidArgumentError(
            "expect is no version of a document: pass one that a load or a put returned, or ABSENT"
        )
    return Body("", bytes.fromhex(expect))


def _version_of(doc: Doc | None) -> str:
    """The version of a document."""
    return ABSENT if doc is None else doc.body.digest.hex()


def documents_of(documents: Any) -> tuple[DocumentWrite, ...]:
    """The documents of a call as a tuple, because the caller's list may change meanwhile."""
    taken = elements_of(documents, "documents")
    for i, given in enumerate(taken):
        if type(given) not in (PutDocument, DeleteDocument):
            raise InvalidArgumentError(
                f"documents[{i}] must be a PutDocument or a DeleteDocument, got {type_name(type(given))}"
            )
    return taken


async def _writes_of(documents: Sequence[DocumentWrite], now: int) -> tuple[DocWrite, ...]:
    """The checked writes of one call, of which no two are of one document."""
    pace, writes = Pace(), dict[str, DocWrite]()
    for given in documents:
        key = _key_of(given.collection, given.key)
        if key in writes:
            raise InvalidArgumentError(f"document {key!r:.80} is written twice in one call")
        doc = None
        if type(given) is PutDocument:
            doc = await _put(key, given.value, checked_tags(given.tags), now, pace)
        writes[key] = DocWrite(DocKind.DOCUMENTS, key, doc, _expected(given.expect))
        await pace.yield_to_loop()
    return tuple(writes.values())


async def imported_documents(documents: Any) -> tuple[DocWrite, ...]:
    """The checked writes of documents of an agent that does not exist, at their own times."""
    pace, writes = Pace(), dict[str, DocWrite]()
    for i, given in enumerate(records_of(Document, documents, "records.documents")):
        key = _key_of(given.collection, given.key)
        if key in writes:
            raise InvalidArgumentError(f"records.documents[{i}] has the key of another document: {key!r:.80}")
        if type(given.updated_at) is not int or given.updated_at not in INT64:
            raise InvalidArgumentError(f"records.documents[{i}].updated_at must be an integer of 64 bits")
        # no document is replaced that another writer puts meanwhile
        tags = checked_tags(given.tags, f"records.documents[{i}].tags")
        doc = await _put(key, given.value, tags, given.updated_at, pace)
        writes[key] = DocWrite(DocKind.DOCUMENTS, key, doc, ABSENT_DOC)
        await pace.yield_to_loop()
    return tuple(writes.values())


async def _put(key: str, value: Any, tags: dict[str, str], time: int, pace: Pace) -> Doc:
    """The stored form of a value, with a version of its own."""
    stored = StoredDocument(tags=tags or None, value=value, nonce=secrets.token_hex(8))
    body = await write_body(StoredDocument, stored, f"document {key!r:.80}", pace)
    return Doc(key, time, body, terms_of(key.partition("/")[0], tags))


def check_docs(engine: Engine, writes: Sequence[DocWrite]) -> None:
    """Raise UnsupportedError if *engine* does not keep the documents of *writes*, or not their tags."""
    if writes:
        check_documents(engine)
    if any(write.doc is not None and write.doc.terms for write in writes):
        check_finds_docs(engine)


class DocRange(msgspec.Struct, frozen=True):
    """The documents that a call lists.

    Attributes:
        start: the engine's least key, inclusive.
        stop: the engine's keys are below this one.
    """

    collection: str
    start: str
    stop: str
    descending: bool

    @classmethod
    def of(cls, collection: Any, prefix: Any, start: Any, stop: Any, reverse: Any) -> DocRange:
        """The checked arguments of a call."""
        check_collection(collection)
        if type(prefix) is not str:
            raise InvalidArgumentError(f"prefix must be a str, got {type(prefix).__name__}")
        if prefix:
            check_document_key(prefix, "prefix")
        whole = f"{collection}/"
        least, below = whole + prefix, prefix_end(whole + prefix) or ""
        if start is not None:
            least = max(least, whole + check_document_key(start, "start"))
        if stop is not None:
            below = min(below, whole + check_document_key(stop, "stop"))
        return cls(collection, least, below, checked_flag(reverse, "reverse"))

    def span(self, limit: int, *, bodies: bool) -> DocSpan:
        """The range as an engine gets it."""
        return DocSpan(start=self.start, stop=self.stop, descending=self.descending, limit=limit, bodies=bodies)

    def at(self, agent_id: str, cursor: Any) -> DocRange:
        """The rest of the range from a cursor of the agent's on."""
        if cursor is None:
            return self
        if type(cursor) is not str:
            raise InvalidArgumentError(f"cursor must be a str, got {type(cursor).__name__}")
        return self.rest(parse_cursor(cursor, _Listing(agent_id, self), (self._is_key,))[0])

    def rest(self, key: str) -> DocRange:
        """The rest of the range: from *key* on, or below *key* in descending order."""
        if self.descending:
            return msgspec.structs.replace(self, stop=key)
        return msgspec.structs.replace(self, start=key)

    def _is_key(self, key: Any) -> bool:
        if type(key) is not str or not self.start <= key < self.stop:
            return False
        try:
            return bool(check_document_key(key[len(self.collection) + 1 :]))
        except InvalidArgumentError:
            return False


class _Listing(msgspec.Struct, frozen=True):
    """The documents that a cursor leads through."""

    agent_id: str
    given: DocRange


_EVERYTHING: Final = DocRange("", "", CORE_KEYS, False)
"""All documents of an agent but the core's."""
WITH_CORE_KEYS: Final = DocRange("", "", "\x7f", False)
"""All documents of an agent, the core's too."""
_OF_CORE: Final = DocRange("", CORE_KEYS, "\x7f", False)
"""All documents of the core."""


class Documents:
    """Reads and writes the documents of one agent."""

    def __init__(self, context: Context, writer: Writer) -> None:
        self._context = context
        self._writer = writer

    async def write(self, agent_id: str, fence: Fence | None, documents: Sequence[DocumentWrite]) -> list[str]:
        """Write several documents in one commit; returns the versions after it, ABSENT for deleted documents."""
        self.check_supported()
        writes = await self.writes(documents_of(documents))

        async def rest() -> Rest:
            return Rest(docs=writes)

        if writes:
            await self._writer.write(agent_id, lambda: TurnWrites(encode_rest=rest), fence)
        else:
            await self._writer.check_held(agent_id, fence)
        return [_version_of(write.doc) for write in writes]

    async def writes(self, documents: Sequence[DocumentWrite]) -> tuple[DocWrite, ...]:
        """The checked writes of one call, which the store's engine can make."""
        writes = await _writes_of(documents, self._context.now())
        check_docs(self._context.engine, writes)
        return writes

    def check_supported(self) -> None:
        """Raise UnsupportedError if the store's engine keeps no documents."""
        check_documents(self._context.engine)

    async def load(self, agent_id: str, collection: str, key: str) -> Document | None:
        """The document under a key."""
        engine_key = _key_of(collection, key)
        self.check_supported()
        for doc in await self._context.engine.docs(agent_id, DocKind.DOCUMENTS, engine_key):
            if doc.key != engine_key:
                raise CorruptRecordError(name_of(agent_id, engine_key), "another document stands in its place")
            return await decoded_document(agent_id, doc, Pace())
        return None

    async def page(self, agent_id: str, given: Sequence[Any], limit: Any, cursor: Any) -> Page[Document]:
        """A page of documents, and the names of damaged ones; *given* has the arguments of :meth:`DocRange.of`."""
        found, next_cursor = await self._page(agent_id, DocRange.of(*given), limit, cursor, bodies=True)
        pace, page = Pace(), Page[Document]((), next_cursor)
        left_out = []
        for doc in found:
            try:
                page.append(await decoded_document(agent_id, doc, pace))
            except CorruptRecordError as exc:
                left_out.append(exc.record)
        page.left_out = tuple(left_out)
        return page

    async def key_page(self, agent_id: str, given: Sequence[Any], limit: Any, cursor: Any) -> Page[str]:
        """A page of keys; *given* as for :meth:`page`."""
        found, next_cursor = await self._page(agent_id, DocRange.of(*given), limit, cursor, bodies=False)
        return Page([doc.key.partition("/")[2] for doc in found], next_cursor)

    async def _page(
        self, agent_id: str, given: DocRange, limit: Any, cursor: Any, *, bodies: bool
    ) -> tuple[Sequence[Doc], str | None]:
        most = checked_number(limit, "limit")
        if most is None or most > MAX_LIMIT:
            raise InvalidArgumentError(f"limit is from 0 to {MAX_LIMIT}, got {quoted(limit)}; follow next_cursor")
        part = given.at(agent_id, cursor)
        if not most or part.start >= part.stop:
            self.check_supported()
            return (), None
        found = await docs_in(self._context.engine, agent_id, part.span(most + 1, bodies=bodies))
        if len(found) <= most:
            return found, None
        key = found[most - 1 if given.descending else most].key
        return found[:most], make_cursor(_Listing(agent_id, given), (key,))

    async def stream(
        self, run: Callable[..., Awaitable[Any]], agent_id: str, given: DocRange
    ) -> AsyncIterator[Document]:
        """The documents of a range, one after the other; *run* makes the call that reads a page."""

        async def read(span: DocSpan) -> Sequence[Doc]:
            return await docs_in(self._context.engine, agent_id, span)

        pace, pages = Pace(), DocPages(partial(run, METHODS["iter_documents"], agent_id, read), given)
        while found := await pages.next():
            found.reverse()
            while found:  # a document is released as soon as the caller is done with it
                yield await decoded_document(agent_id, found.pop(), pace)


class DocPages:
    """Reads a range of documents in pages of about the same memory.

    Args:
        read: reads the documents of a span.
        given: the range; all documents of the caller's without it.
        bodies: False to leave out the texts.
    """

    def __init__(
        self,
        read: Callable[[DocSpan], Awaitable[Sequence[Doc]]],
        given: DocRange = _EVERYTHING,
        *,
        bodies: bool = True,
    ) -> None:
        self._read = read
        self._rest = given
        self._bodies = bodies
        self._limit = FIRST_PAGE

    async def next(self) -> list[Doc]:
        """The next page; empty at the end of the range."""
        rest, limit = self._rest, self._limit
        if rest.start >= rest.stop:
            return []
        found = list(await self._read(rest.span(limit + 1, bodies=self._bodies)))
        if len(found) > limit:
            following = found.pop()
            self._rest = rest.rest(found[-1].key if rest.descending else following.key)
        else:
            self._rest = msgspec.structs.replace(rest, stop=rest.start)
        self._limit = next_limit(len(found), sum(len(doc.body.text) for doc in found))
        return found


async def stored_documents(
    engine: Engine, agent_id: str, *, bodies: bool = True, of_core: bool = False
) -> AsyncIterator[Doc]:
    """All documents of the caller's, or those of the core, in their stored form; none if the engine keeps none."""
    if keeps_documents(engine):
        pages = DocPages(partial(docs_in, engine, agent_id), _OF_CORE if of_core else _EVERYTHING, bodies=bodies)
        while found := await pages.next():
            for doc in found:
                yield doc


def name_of(agent_id: str, engine_key: str) -> str:
    """The name of a document in errors."""
    return f"document {engine_key!r:.80} of agent {agent_id!r}"


def is_engine_key(engine_key: str) -> bool:
    """Whether a document may be stored under this key of an engine."""
    collection, _, key = engine_key.partition("/")
    try:
        return _key_of(collection, key) == engine_key
    except InvalidArgumentError:
        return False


async def decoded_document(agent_id: str, doc: Doc, pace: Pace) -> Document:
    """The document with its version."""
    stored = await decode_in_slices(StoredDocument, doc.body, name_of(agent_id, doc.key), pace)
    collection, _, key = doc.key.partition("/")
    return Document(
        collection=collection,
        key=key,
        value=stored.value,
        version=_version_of(doc),
        updated_at=doc.time,
        tags=stored.tags or {},
    )
