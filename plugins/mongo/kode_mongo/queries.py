"""Queries as MongoDB's filters and orders. A page continues after the last key of the page before."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from kode_core.engines.record.terms import DocSearch
from kode_core.query import Range, RowQuery, SessionQuery, Wanted, Within
from kode_mongo.connection import Document
from kode_mongo.documents import metadata_pairs
from kode_mongo.schema import BY_KEY, in_ranges

__all__ = ["docs_wanted", "rows_wanted", "sessions_wanted"]

Sort: TypeAlias = list[tuple[str, int]]

_SORTED_BY: Final = {"created_at": "created_at", "updated_at": "updated_at", "message_count": "messages.count"}
_PREFIX: Final = {"messages": "m/", "tool_calls": "t/"}


def sessions_wanted(query: SessionQuery) -> tuple[Document, Sort]:
    """The filter and the order of a query of heads."""
    wanted: Document = {"listed": True}
    if query.agent_id is not None:
        wanted["_id"] = _one_of(query.agent_id)
    if query.template_id is not None:
        wanted["template_id"] = _one_of(query.template_id)
    single = [(key, value) for key, value in query.metadata if isinstance(value, str)]
    listed = [(key, values) for key, values in query.metadata if isinstance(values, tuple)]
    if single:
        wanted["metadata"] = {"$all": metadata_pairs(single)}
    for key, values in listed:  # at most one: the filter of the user
        wanted["metadata"] = {**wanted.get("metadata", {}), "$in": metadata_pairs([(key, one) for one in values])}
    wanted |= _within("created_at", query.created) | _within("updated_at", query.updated)
    fields = (_SORTED_BY[query.sort_by], "_id")
    return _paged(wanted, fields, query.after, descending=query.descending)


def rows_wanted(query: RowQuery) -> tuple[Document, Sort]:
    """The filter and the order of a query of items."""
    wanted: Document = {"list": query.kind}
    if query.agent_id is not None:
        wanted["agent_id"] = _one_of(query.agent_id)
    alternatives: list[Document] = [{}]
    for name, value in query.where:
        field = "index.content_types" if name == "content_type" else f"index.{name}"
        groups = in_ranges(field, value) if isinstance(value, tuple) else []
        if len(groups) > 1 and len(alternatives) == 1:
            # Only of an alternative that is a whole query does the server see that an index of rare values has all.
            alternatives = [{field: _one_of(tuple(group))} for group in groups]
        else:
            wanted[field] = _one_of(value)
    wanted |= _within("time", query.created)
    after: Any = None
    if query.after is not None:
        time, agent_id, position = query.after
        after = (time, agent_id, f"{_PREFIX[query.kind]}{position:012d}")
    fields = ("time", "agent_id", "key")
    pages = [_paged({**wanted, **one}, fields, after, descending=query.descending) for one in alternatives]
    sort = pages[0][1]
    return ({"$or": [page for page, _ in pages]} if len(pages) > 1 else pages[0][0]), sort


def docs_wanted(search: DocSearch) -> tuple[Document, Sort]:
    """The filter and the order of a search for documents.

    It has an alternative for each range of the index that the page may reach: the server merges these in their order.
    """
    beyond = "$lt" if search.descending else "$gt"
    ranges: list[Document] = [{}]
    if search.agent_id is not None:
        ranges = [{"agent_id": search.agent_id}]
    if search.after is not None:
        agent_id, key, epoch = search.after
        rest: list[Document] = [
            {"agent_id": agent_id, "key": key, "epoch": {beyond: epoch}},
            {"agent_id": agent_id, "key": {beyond: key}},
        ]
        ranges = rest if search.agent_id is not None else [*rest, {"agent_id": {beyond: agent_id}}]
    ways = [{"terms": term, **one} for term in search.terms for one in ranges]
    sort = [(field, -1 if search.descending else 1) for field in BY_KEY]
    return (ways[0] if len(ways) == 1 else {"$or": ways}), sort


def _one_of(wanted: Wanted | Within | bool) -> Any:
    if isinstance(wanted, Within):
        return {"$gte": wanted.prefix, "$lt": wanted.end}
    return {"$in": list(wanted)} if isinstance(wanted, tuple) else wanted


def _within(field: str, span: Range) -> Document:
    bounds = {"$gte": span.start, "$lt": span.end}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    return {field: given} if given else {}


def _paged(wanted: Document, fields: tuple[str, ...], after: Any, *, descending: bool) -> tuple[Document, Sort]:
    """The filter for documents after *after*, with a bound on the first field for the index."""
    sort = [(field, -1 if descending else 1) for field in fields]
    if after is None:
        return wanted, sort
    beyond = "$lt" if descending else "$gt"
    ways = []
    for i, field in enumerate(fields):
        ways.append({**dict(zip(fields[:i], after, strict=False)), field: {beyond: after[i]}})
    bound = {fields[0]: {f"{beyond}e": after[0]}}
    return {"$and": [wanted, bound, {"$or": ways}]}, sort
