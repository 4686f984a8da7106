"""An optional part of the interface between core and engine: an index of the texts of messages."""

from __future__ import annotations

from typing import Protocol, TypeVar

from kode_core.engine import Engine
from kode_core.query import MessageQuery, RowQuery, SessionQuery

__all__ = ["FindsText", "engine_query", "finds_text", "text_search"]


class FindsText(Protocol):
    """An optional interface of an engine: an index tells it which messages may contain a text.

    ``find_rows`` then takes a :class:`~kode_core.wanted.MessageQuery` and may leave out messages that do not contain
    its text, in the query's order and with its limit. It must find all that do, and may find others: the store reads
    each one and decides. Without this interface the store reads every message that the other filters leave.
    """

    finds_text: bool
    """True if there is such an index; a layer that changes bodies or queries says False."""


def finds_text(engine: Engine) -> bool:
    """Whether *engine* has the interface :class:`FindsText`, and the index."""
    return bool(getattr(engine, "finds_text", False))


def text_search(engine: Engine) -> str:
    """How messages are found by a text that they contain: ``index`` or ``scan``."""
    return "index" if finds_text(engine) else "scan"


Q = TypeVar("Q", SessionQuery, RowQuery, SessionQuery | RowQuery)


def engine_query(engine: Engine, query: Q) -> Q:
    """*query* as *engine* takes it: conditions that only the store checks are left out."""
    if not isinstance(query, MessageQuery):
        return query
    if query.contains is not None and finds_text(engine):
        return query
    plain = {name: getattr(query, name) for name in RowQuery.__struct_fields__}
    return RowQuery(**plain)
