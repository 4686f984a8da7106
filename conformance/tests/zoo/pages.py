"""Stores that order, page and count wrongly (QRY-3 to QRY-8)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.queries import CALLS, Rows, Sessions, sessions
from conformance.tests.zoo.witnesses import seen, talk, the
from kode_core.batch import Batch, ListKind, ListRows, Outcome
from kode_core.engine import Engine
from kode_core.errors import InvalidArgumentError, StorageError
from kode_core.layers import Layer
from kode_core.query import AgentStats, Page, RowQuery, SessionQuery
from kode_core.store import EngineStore

# --- order ------------------------------------------------------------------------------------------------------------


@mutant(
    "QRY-3",
    killed_by="sessions_in_a_total_order",
    source="KODE SDK SqliteStore: ORDER BY created_at DESC without a tie-break",
    witness=sessions({}, a={}, b={}),
)
class TiesOfSessionsAnyhow(Layer):
    """Gives sessions of one time in the same order both ways."""

    async def find_sessions(self, query: SessionQuery) -> Any:
        found = await super().find_sessions(query)
        if not query.descending:
            return found
        return sorted(found, key=lambda row: (-getattr(row, query.sort_by), row.agent_id))


@mutant(
    "QRY-3",
    killed_by="sessions_in_a_total_order",
    source="KODE SDK SqliteStore and PostgresStore: sortBy updated_at fails with `no such column`",
    witness=sessions({"sort_by": "updated_at"}, a={}),
    raises="no such column",
)
class NoUpdatedAt(Sessions):
    """Fails when sessions are to be sorted by updated_at."""

    def asked(self, query: SessionQuery) -> SessionQuery:
        if query.sort_by == "updated_at":
            raise StorageError("no such column: updated_at")
        return query


@mutant(
    "QRY-3",
    killed_by="rows_in_a_total_order",
    source="KODE SDK SqliteStore: messages of one save come back as 1, 2, 3, 4, 0",
    witness=seen(
        lambda s: s.save_messages("a", talk("0", "1", "2")),
        lambda s: the("position", s.query_messages()),
    ),
)
class TiesOfRowsAnyhow(Layer):
    """Gives rows of one time in another order than that of their positions."""

    async def find_rows(self, query: RowQuery) -> Any:
        found = list(await super().find_rows(query))
        return [*found[1:], found[0]] if found and found[0].created_at == found[-1].created_at else found


# --- pages ------------------------------------------------------------------------------------------------------------


class _PagesMessages(EngineStore):
    """Pages through messages in its own way."""

    def paged(self, filters: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    async def query_messages(self, **filters: Any) -> Any:
        return await super().query_messages(**self.paged(filters))


def _positions(**paging: Any) -> Any:
    return seen(
        lambda s: s.save_messages("a", talk("0", "1", "2")),
        lambda s: the("position", s.query_messages(**paging)),
    )


@mutant(
    "QRY-4",
    killed_by="limit_and_offset",
    source="KODE SDK SqliteStore and PostgresStore: `if (limit)`, so that 0 means all",
    witness=_positions(limit=0),
)
class ZeroMeansAll(_PagesMessages):
    """Takes a limit of 0 for none."""

    def paged(self, filters: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in filters.items() if name != "limit" or value != 0}


@mutant(
    "QRY-4",
    killed_by="limit_and_offset",
    source="KODE SDK SqliteStore and PostgresStore: an offset without a limit is ignored",
    witness=_positions(offset=1),
)
class OffsetsWantLimits(_PagesMessages):
    """Ignores an offset without a limit."""

    def paged(self, filters: dict[str, Any]) -> dict[str, Any]:
        return filters if "limit" in filters else {k: v for k, v in filters.items() if k != "offset"}


@mutant(
    "QRY-4",
    killed_by="limit_and_offset",
    source="KODE SDK SqliteStore: LIMIT -1",
    witness=_positions(limit=-1),
)
class NegativeMeansAll(_PagesMessages):
    """Takes a negative limit for none."""

    def paged(self, filters: dict[str, Any]) -> dict[str, Any]:
        limit = filters.get("limit")
        negative = type(limit) is int and limit < 0
        return {**filters, "limit": 10_000} if negative else filters


async def _in_pages(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("0", "1", "2", "3"))
    first = await ctx.store.query_messages(limit=2)
    second = await ctx.store.query_messages(limit=2, cursor=first.next_cursor)
    return [m.position for m in (*first, *second)]


@mutant(
    "QRY-5",
    killed_by="cursors_give_everything_once",
    source="KODE SDK PostgresStore: 5 pages of 10 over 50 messages of one save gave 49 different ones",
    witness=_in_pages,
)
class PagesByTimeOnly(Rows):
    """Goes on behind the time of a page's last row, and loses the rows of that time."""

    def asked(self, query: RowQuery) -> RowQuery:
        if query.after is None:
            return query
        edge = ("", -1) if query.descending else ("\U0010ffff", 10**9)
        return replace(query, after=(query.after[0], *edge))


async def _in_pages_amid_writes(ctx: Context) -> object:
    for i in range(4):
        await ctx.store.save_info(f"a{i}", samples.info(f"a{i}", created_at=i))
    first = await ctx.store.query_sessions(limit=2)
    await ctx.store.save_info("new", samples.info("new", created_at=100))
    second = await ctx.store.query_sessions(limit=2, cursor=first.next_cursor)
    return [s.agent_id for s in (*first, *second)]


@mutant(
    "QRY-5",
    killed_by="cursors_while_others_write",
    source="KODE SDK database guide: pages by offset",
    witness=_in_pages_amid_writes,
)
class CursorsAreOffsets(EngineStore):
    """Counts how many sessions it gave, and goes on behind as many."""

    async def query_sessions(self, **filters: Any) -> Any:
        cursor = filters.pop("cursor", None)
        if cursor is not None:
            filters["offset"] = int(cursor)
        page = await super().query_sessions(**filters)
        following = None if page.next_cursor is None else str(filters.get("offset", 0) + len(page))
        return Page(page, following)


@mutant(
    "QRY-5",
    killed_by="cursors_are_checked",
    source="`except ValueError: cursor = None`",
    witness=seen(
        lambda s: s.save_messages("a", talk("0")),
        lambda s: the("position", s.query_messages(cursor="x")),
    ),
)
class BadCursorsStartAgain(EngineStore):
    """Starts from the beginning when it cannot read a cursor."""

    async def query_messages(self, **filters: Any) -> Any:
        try:
            return await super().query_messages(**filters)
        except InvalidArgumentError:
            if filters.pop("cursor", None) is None:
                raise
            return await super().query_messages(**filters)


async def _count(records: AsyncIterator[Any]) -> int:
    return len([record async for record in records])


@mutant(
    "QRY-6",
    killed_by="iterators_give_everything",
    source="for message in (await query()).results",
    witness=seen(
        lambda s: s.save_messages("a", talk(*map(str, range(600)))),
        lambda s: _count(s.iter_messages(agent_id="a")),
    ),
)
class IteratesOnePage(EngineStore):
    """Ends an iteration after the first page."""

    async def iter_messages(self, **filters: Any) -> AsyncIterator[Any]:
        count = 0
        async for message in super().iter_messages(**filters):
            count += 1
            if count > 500:
                return
            yield message


# --- statistics and currency ------------------------------------------------------------------------------------------


@mutant(
    "QRY-7",
    killed_by="stats_count_what_is_there",
    source="KODE SDK guide: toolCallsByState['completed'], where states are upper case",
    witness=seen(lambda s: s.save_tool_call_records("a", CALLS), lambda s: s.aggregate_stats("a")),
)
class StatesInLowerCase(Layer):
    """Counts states under names in lower case."""

    async def stats(self, agent_id: str) -> AgentStats:
        found = await super().stats(agent_id)
        states = {state.lower(): count for state, count in found.tool_calls_by_state.items()}
        return replace(found, tool_calls_by_state=states)


@mutant(
    "QRY-7",
    killed_by="stats_count_what_is_there",
    source="counters kept beside the rows, and objects of JavaScript as maps",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(name="__proto__")]),
        lambda s: s.aggregate_stats("a"),
    ),
)
class ObjectsAsMaps(Layer):
    """Does not count a tool that is called __proto__."""

    async def stats(self, agent_id: str) -> AgentStats:
        found = await super().stats(agent_id)
        names = {name: count for name, count in found.tool_calls_by_name.items() if name != "__proto__"}
        return replace(found, tool_calls_by_name=names)


@mutant(
    "QRY-8",
    killed_by="every_instance_is_current",
    source="caches of what was read, which only the own writes renew",
    witness=seen(
        lambda s, t: s.save_messages("a", talk("1")),
        lambda s, t: t.load_messages("a"),
        lambda s, t: s.save_messages("a", talk("1", "2")),
        lambda s, t: t.load_messages("a"),
    ),
)
class CachesWhatItRead(Layer):
    """Gives what it read before, as long as it wrote nothing itself."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._read: dict[tuple[str, ListKind], ListRows] = {}

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        if (agent_id, kind) not in self._read:
            self._read[agent_id, kind] = await super().rows(agent_id, kind)
        return self._read[agent_id, kind]

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        for batch in batches:
            for kind in ListKind:
                self._read.pop((batch.agent_id, kind), None)
        return await super().commit(batches)
