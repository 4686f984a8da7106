"""The results of searches over many agents; import them from :mod:`kode_core.batch`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

import msgspec

from kode_core.codec import Body
from kode_core.docs import Doc

__all__ = ["DocQuery", "EngineIssue", "Found", "FoundDoc", "SessionRow", "Totals"]

T = TypeVar("T")


class _Value(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    pass


class SessionRow(_Value, frozen=True):
    """A session that a query found."""

    agent_id: str
    info: Body
    created_at: int
    updated_at: int
    message_count: int


class DocQuery(_Value, frozen=True, kw_only=True):
    """Documents of the kind ``DOCUMENTS`` to find, in the order of (agent_id, key), or in reverse.

    Attributes:
        terms: the document has one of these, of which there are 1 to 100. No document has two of them.
        agent_id: only documents of this agent.
        after: (agent_id, key) of the last document on the page before.
        limit: the greatest number of documents.
        bodies: False to leave out the texts; the digests are always there.
    """

    terms: tuple[str, ...]
    agent_id: str | None = None
    descending: bool = False
    after: tuple[str, str] | None = None
    limit: int
    bodies: bool = True


class FoundDoc(_Value, frozen=True):
    """A document that a query found."""

    agent_id: str
    doc: Doc


class Found(list[T], Generic[T]):
    """The results of an engine's search, and the names of the records that it could not read.

    Attributes:
        left_out: names of the records that could not be read, as in ``agent 'a'``.
    """

    def __init__(self, items: Iterable[T] = (), left_out: Iterable[str] = ()) -> None:
        super().__init__(items)
        self.left_out = tuple(left_out)


class Totals(_Value, frozen=True, kw_only=True):
    """The totals of the whole store.

    Attributes:
        size_bytes: None if the engine cannot tell.
        is_used: True if anything at all is stored, even an event of an agent without info; documents that layers keep
            for themselves do not count.
        texts_waiting: how many messages an index of texts does not have yet; None without such an index.
        texts_of_deleted: True if the index may still have parts of deleted messages, until it is rebuilt.
        texts_hidden: True if there is an index that the engine has no right to read.
    """

    agents: int = 0
    messages: int = 0
    tool_calls: int = 0
    size_bytes: int | None = None
    is_used: bool = False
    texts_waiting: int | None = None
    texts_of_deleted: bool = False
    texts_hidden: bool = False


class EngineIssue(_Value, frozen=True):
    """A problem that only the engine can see; ``code`` as in ``ConsistencyIssue``."""

    code: str
    agent_id: str
    message: str
