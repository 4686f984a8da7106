"""Queries as MongoDB's filters and orders. A page continues after the last key of the page before."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from kode_core.query import Range, RowQuery, SessionQuery
from kode_mongo.connection import Document
from kode_mongo.documents import metadata_pairs

__all__ = ["rows_wanted", "sessions_wanted"]

Sort: TypeAlias = list[tuple[str, int]]

_SORTED_BY: Final = {"created_at": "created_at", "updated_at": "updated_at", "message_count": "messages.count"}
_PREFIX: Final = {"messages": "m/", "tool_calls": "t/"}


def sessions_wanted(query: SessionQuery) -> tuple[Document, Sort]:
    """The filter and the order of a query of heads."""
    wanted: Document = {"listed": True}
    if query.agent_id is not None:
        wanted["_id"] = query.agent_id
    if query.template_id is not None:
        wanted["template_id"] = query.template_id
    if query.metadata:
        wanted["metadata"] = {"$all": metadata_pairs(query.metadata)}
    wanted |= _within("created_at", query.created) | _within("updated_at", query.updated)
    fields = (_SORTED_BY[query.sort_by], "_id")
    return _paged(wanted, fields, query.after, descending=query.descending)


def rows_wanted(query: RowQuery) -> tuple[Document, Sort]:
    """The filter and the order of a query of items."""
    wanted: Document = {"list": query.kind}
    if query.agent_id is not None:
        wanted["agent_id"] = query.agent_id
    for name, value in query.where:
        wanted["index.content_types" if name == "content_type" else f"index.{name}"] = value
    wanted |= _within("time", query.created)
    after: Any = None
    if query.after is not None:
        time, agent_id, position = query.after
        after = (time, agent_id, f"{_PREFIX[query.kind]}{position:012d}")
    return _paged(wanted, ("time", "agent_id", "key"), after, descending=query.descending)


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
