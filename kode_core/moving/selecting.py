"""Which agents of a store are moved, and in which order: ascending by id, so that a repeated one is noticed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

from kode_core.errors import InvalidArgumentError
from kode_core.jsonable import to_jsonable
from kode_core.model import Json
from kode_core.protocols import ExtendedStore
from kode_core.query import SessionConditions, session_query

__all__ = ["AT_ONCE", "AgentFilter", "Ids", "Selection", "checked_at_once", "in_order"]

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE: Final = 4
_PAGE: Final = 1_000


class AgentFilter(SessionConditions, total=False):
    """Filters of agents: the filters of ``count_sessions``, and ``prefix``, the beginning of an id.

    Without filters, or by ``agent_id`` and ``prefix`` alone, agents without info are moved as well.
    """

    prefix: str


class Ids(NamedTuple):
    """The ids that were found, and the names of records that could not be read."""

    found: list[str]
    left_out: tuple[str, ...] = ()


class Selection:
    """The agents that filters choose."""

    def __init__(self, filters: Mapping[str, Any]) -> None:
        conditions = dict(filters)
        self.prefix = conditions.pop("prefix", "")
        if type(self.prefix) is not str:
            raise InvalidArgumentError(f"prefix must be a str, got {type(self.prefix).__name__}")
        unknown = sorted(map(str, conditions.keys() - SessionConditions.__optional_keys__))
        if unknown:
            names = ", ".join(sorted(AgentFilter.__optional_keys__))
            raise InvalidArgumentError(f"{unknown[0]!r:.40} is no filter of agents; the filters are {names}")
        session_query(conditions)  # type: ignore[arg-type]
        self._conditions = conditions
        wanted = conditions.get("agent_id")
        self._ids = None if wanted is None else {wanted} if type(wanted) is str else set(wanted)

    @property
    def is_by_id(self) -> bool:
        """True if an agent is chosen by its id alone, so that none comes and goes by a change of it."""
        return not self._conditions.keys() - {"agent_id"}

    def plain(self) -> dict[str, Json]:
        """The filters as JSON."""
        given = {name: sorted(v) if isinstance(v, set | frozenset) else v for name, v in self._conditions.items()}
        if self.prefix:
            given["prefix"] = self.prefix
        plain: dict[str, Json] = to_jsonable(given, name="filters")
        return plain

    async def ids(self, store: ExtendedStore) -> Ids:
        """The ids of the agents in *store*, ascending."""
        if not self.is_by_id:
            return await self._by_sessions(store)
        if self._ids is not None:
            return Ids(sorted(one for one in self._ids if one.startswith(self.prefix)))
        return Ids(sorted(await store.list(self.prefix, include_without_info=True)))

    async def _by_sessions(self, store: ExtendedStore) -> Ids:
        found, left_out, cursor = set[str](), dict[str, None](), None
        while True:
            page = await store.query_sessions(**self._conditions, limit=_PAGE, cursor=cursor)
            found.update(one.agent_id for one in page if one.agent_id.startswith(self.prefix))
            left_out.update(dict.fromkeys(page.left_out))
            cursor = page.next_cursor
            if cursor is None:
                return Ids(sorted(found), tuple(left_out))


async def in_order(
    items: AsyncIterator[T] | Iterable[T], work: Callable[[T], Awaitable[R]], at_once: int
) -> AsyncGenerator[R]:
    """The results of *work* in the order of *items*, of which *at_once* are worked on at the same time.

    If *items* fails, the results of the items before come first.
    """
    pending = deque[asyncio.Future[R]]()
    failed: Exception | None = None
    source = aiter(items) if isinstance(items, AsyncIterator) else _each(items)
    try:
        while True:
            try:
                item = await anext(source)
            except StopAsyncIteration:
                break
            except Exception as exc:  # noqa: BLE001 - it is raised below
                failed = exc
                break
            pending.append(asyncio.ensure_future(work(item)))
            if len(pending) >= at_once:
                yield await pending.popleft()
        while pending:
            yield await pending.popleft()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    if failed is not None:
        raise failed


async def _each(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


def checked_at_once(at_once: object) -> int:
    """*at_once*, checked."""
    if type(at_once) is not int or not 1 <= at_once <= 64:
        raise InvalidArgumentError(f"at_once must be an int from 1 to 64, got {at_once!r:.40}")
    return at_once
