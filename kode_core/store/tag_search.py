"""Searches for documents by their tags, over all agents (DOC-8)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from typing import Any

import msgspec

from kode_core.batch import Doc, DocKind, DocQuery, Found, FoundDoc
from kode_core.cursors import is_agent_id, make_cursor, parse_cursor
from kode_core.engine import Engine
from kode_core.errors import CorruptRecordError, InvalidArgumentError
from kode_core.ids import check_agent_id, check_collection, quoted
from kode_core.model import FoundDocument
from kode_core.pace import Pace
from kode_core.query import DEFAULT_LIMIT, MAX_LIMIT, MAX_VALUES, Page, different_values
from kode_core.store.context import Context
from kode_core.store.documents import decoded_document, is_engine_key
from kode_core.store.parts import checked_number
from kode_core.store.steps import checked_flag
from kode_core.store.tags import checked_names, checked_tag, term_of, terms_of
from kode_core.tagged import check_finds_docs, find_docs, finds_docs

__all__ = ["TaggedDocuments", "is_found"]


class _Wanted(msgspec.Struct, frozen=True):
    """A checked query, without its place and limit: two equal queries have cursors in common."""

    collection: str
    tags: tuple[tuple[str, tuple[str, ...]], ...]
    agent_id: str | None
    descending: bool
    values: bool

    def terms(self) -> Iterator[str]:
        """The terms of which a document must have one."""
        names = [name for name, _ in self.tags]
        for values in product(*(values for _, values in self.tags)):
            yield term_of(self.collection, list(zip(names, values, strict=True)))

    def is_key(self, key: Any) -> bool:
        """Whether a part of a cursor can be an engine's key of a document of the collection."""
        return type(key) is str and key.startswith(f"{self.collection}/") and is_engine_key(key)


def _any_of(name: str, given: Any) -> tuple[str, ...]:
    """The values of a tag of which a document must have one, in the form that equal lists have."""
    what = f"the tag {name!r:.80}"
    if type(given) is str:
        return (checked_tag(given, what),)
    return tuple(sorted(different_values(what, given, lambda each, one: checked_tag(one, each))))


def _wanted(collection: Any, tags: Any, agent_id: Any, reverse: Any, values: Any) -> _Wanted:
    check_collection(collection)
    named = sorted(checked_names(tags, "tags").items())
    given = tuple((name, _any_of(name, wanted)) for name, wanted in named)
    if not given:
        raise InvalidArgumentError("tags must have at least one tag: documents are found by their tags")
    count = prod(len(some) for _, some in given)
    if count > MAX_VALUES:
        raise InvalidArgumentError(
            f"tags stands for {count} combinations of values, of which {MAX_VALUES} can be looked for at a time"
        )
    whose = None if agent_id is None else check_agent_id(agent_id)
    return _Wanted(collection, given, whose, checked_flag(reverse, "reverse"), checked_flag(values, "values"))


class TaggedDocuments:
    """Finds documents by their tags."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def query(
        self,
        collection: Any,
        tags: Any,
        agent_id: Any,
        reverse: Any = False,
        values: Any = True,
        limit: Any = DEFAULT_LIMIT,
        cursor: Any = None,
    ) -> Page[FoundDocument]:
        """A page of documents; in place of damaged ones, which are named, others are read."""
        wanted = _wanted(collection, tags, agent_id, reverse, values)
        most = checked_number(limit, "limit")
        if most is None or most > MAX_LIMIT:
            raise InvalidArgumentError(f"limit is from 0 to {MAX_LIMIT}, got {quoted(limit)}; follow next_cursor")
        after = None
        if cursor is not None:
            if type(cursor) is not str:
                raise InvalidArgumentError(f"cursor must be a str, got {type(cursor).__name__}")
            after = parse_cursor(cursor, wanted, (is_agent_id, wanted.is_key))
        engine = self._context.engine
        check_finds_docs(engine)
        query = DocQuery(
            terms=tuple(sorted(wanted.terms())),
            agent_id=wanted.agent_id,
            descending=wanted.descending,
            after=after,
            limit=most + 1,
            bodies=wanted.values,
        )
        page, left_out, pace = Page[FoundDocument](), list[str](), Pace()
        while True:
            found = await find_docs(engine, query) if query.terms and most else Found[FoundDoc]()
            left_out += found.left_out if isinstance(found, Found) else ()
            for one in found:
                if len(page) == most:
                    page.next_cursor = make_cursor(wanted, query.after or ())
                    break
                query = msgspec.structs.replace(query, after=(one.agent_id, one.doc.key))
                try:
                    page.append(await _document(one, wanted.values, pace))
                except CorruptRecordError as exc:
                    left_out.append(exc.record)
            if page.next_cursor is not None or len(found) < query.limit:
                break
            query = msgspec.structs.replace(query, limit=most - len(page) + 1)
        page.left_out = tuple(left_out)
        return page


async def _document(found: FoundDoc, values: bool, pace: Pace) -> FoundDocument:
    doc, value, tags = found.doc, None, None
    if values:
        whole = await decoded_document(found.agent_id, doc, pace)
        value, tags = whole.value, whole.tags
    collection, _, key = doc.key.partition("/")
    return FoundDocument(
        agent_id=found.agent_id,
        collection=collection,
        key=key,
        value=value,
        version=doc.body.digest.hex(),
        updated_at=doc.time,
        tags=tags,
    )


async def is_found(engine: Engine, agent_id: str, doc: Doc, tags: Mapping[str, str] | None) -> bool:
    """Whether a document that was read is found by each combination of its tags, unless it has changed since."""
    for term in terms_of(doc.key.partition("/")[0], tags or {}) if finds_docs(engine) else ():
        # no other key is between these two
        place = (agent_id, f"{doc.key}\x01")
        query = DocQuery(terms=(term,), agent_id=agent_id, descending=True, after=place, limit=1, bodies=False)
        for _ in range(2):
            if any(one.doc.key == doc.key for one in await find_docs(engine, query)):
                break
            there = await engine.docs(agent_id, DocKind.DOCUMENTS, doc.key)
            if [one.body.digest for one in there] != [doc.body.digest]:
                return True
        else:
            return False
    return True
