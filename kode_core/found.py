"""The results of searches over many agents; import them from :mod:`kode_core.batch`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

import msgspec

from kode_core.codec import Body

__all__ = ["EngineIssue", "Found", "SessionRow", "Totals"]

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
    """

    agents: int = 0
    messages: int = 0
    tool_calls: int = 0
    size_bytes: int | None = None
    is_used: bool = False


class EngineIssue(_Value, frozen=True):
    """A problem that only the engine can see; ``code`` as in ``ConsistencyIssue``."""

    code: str
    agent_id: str
    message: str
