"""QRY-5, QRY-6: cursors and iterators while rows before and behind the place are written and deleted."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NamedTuple

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.many import at_once, same
from kode_core.model import Message, TextBlock
from kode_core.protocols import ExtendedStore

_Q = Capability.QUERYABLE
_STAY: Final = 14
_ORDERS: Final = ("asc", "desc")


async def _save(store: ExtendedStore, agent: str, mark: str, time: int) -> None:
    """Save an agent with an info, two messages and two calls, all with the mark, and with a time that several agents
    share.
    """
    calls = [samples.tool_call(i, name=mark, created_at=time, audit_trail=[]) for i in range(2)]
    info = samples.info(agent, template_id=mark, created_at=time)
    messages = [Message(mark, [TextBlock(f"{i}")]) for i in range(2)]
    await store.save_turn(agent, info=info, messages=messages, tool_calls=calls)


class _Kind(NamedTuple):
    """A kind of record to search for.

    Attributes:
        by: the filter that finds the mark.
        each: the number of records of an agent.
    """

    name: str
    by: str
    sort: dict[str, str]
    each: int


_KINDS: Final = (
    _Kind("sessions", "template_id", {"sort_by": "created_at"}, 1),
    _Kind("messages", "role", {}, 2),
    _Kind("sessions", "template_id", {"sort_by": "updated_at"}, 1),
    _Kind("tool_calls", "tool_name", {}, 2),
    _Kind("sessions", "template_id", {"sort_by": "message_count"}, 1),
)


def _key(record: Any) -> tuple[str, int]:
    return record.agent_id, getattr(record, "position", 0)


class _Others:
    """Agents that come and go while others stay unchanged.

    Attributes:
        mark: the value that finds all of them.
    """

    def __init__(self, ctx: Context, store: ExtendedStore, mark: str) -> None:
        self._ctx = ctx
        self._store = store
        self.mark = mark
        self._gone = iter(range(_STAY))
        self._new = itertools.count()
        self._left = 0

    @property
    def stay(self) -> list[str]:
        """The ids of the agents that stay."""
        return [f"{self.mark}{i:02d}-stays" for i in range(_STAY)]

    async def begin(self) -> None:
        """Save the agents that stay, and between them as many that will go."""
        ids = [f"{self.mark}{i:02d}-{what}" for i in range(_STAY) for what in ("goes", "stays")]
        await at_once((_save(self._store, a, self.mark, samples.T0 + i // 12) for i, a in enumerate(ids)), 8)

    def begin_to_read(self) -> None:
        """Wait until some more changes were made."""
        self._left = _STAY // 2

    async def change(self) -> None:
        """Delete an agent, and save one that is before or behind all others of its time."""
        if not self._left:
            return
        self._left -= 1
        n, number = next(self._gone), next(self._new)
        await self._store.delete(f"{self.mark}{(n * 7) % _STAY:02d}-goes")
        await _save(self._store, f"{'!~'[number % 2]}{self.mark}{number}", self.mark, samples.T0 + number % 3)


async def _read(
    ctx: Context, kind: _Kind, filters: dict[str, Any], size: int, change: Callable[[], Awaitable[None]]
) -> AsyncIterator[Any]:
    """Follow cursors, with changes between the pages; a size of 0 is the iterator, with changes now and then."""
    if not size:
        seen = 0
        async for record in getattr(ctx.store, f"iter_{kind.name}")(**filters):
            yield record
            seen += 1
            if seen % 5 == 1:
                await change()
        return
    query, pages = getattr(ctx.store, f"query_{kind.name}"), 0
    cursor: dict[str, str] = {}
    while True:
        page = await query(limit=size, **filters, **cursor)
        for record in page:
            yield record
        if page.next_cursor is None:
            return
        cursor, pages = {"cursor": page.next_cursor}, pages + 1
        ctx.true(pages < 400, f"the cursors of query_{kind.name} come to no end")
        await change()


@check(
    "QRY-5",
    "QRY-6",
    "QRY-3",
    needs=_Q,
    tier=Tier.STANDARD,
    under=(Dimension.COMPANY, Dimension.EQUALS, Dimension.CHANGES),
)
async def pages_while_agents_come_and_go(ctx: Context) -> None:
    """Cursors and iterators of sessions, messages and tool calls, in every order and both ways, give each record that
    exists throughout exactly once, and none twice, while agents of the same times are deleted and saved before and
    behind the place.
    """
    other = await ctx.another()
    for n in in_time(ctx, range(5 if ctx.settings.tier is Tier.QUICK else 20)):
        others = _Others(ctx, other, f"r{n}")
        await others.begin()
        orders = _ORDERS if n // 5 % 2 else _ORDERS[::-1]
        for size, order in zip(((3, 1, 7)[n % 3], 0), orders if n % 2 else orders[::-1], strict=True):
            await _see_those_that_stay(ctx, _KINDS[n % 5], others, order, size)


async def _see_those_that_stay(ctx: Context, kind: _Kind, others: _Others, order: str, size: int) -> None:
    filters = {kind.by: others.mark, "order": order, **kind.sort}
    others.begin_to_read()
    found = [record async for record in _read(ctx, kind, filters, size, others.change)]
    how = f"pages of {size}" if size else "the iterator"
    what = f"{how} of {kind.name}, {filters}, while agents came and went"
    keys = [_key(record) for record in found]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    ctx.true(not twice, f"{what}: these came twice: {twice[:5]}")
    wanted = [(agent, i) for agent in others.stay for i in range(kind.each)]
    stayed = [key for key in keys if key[0] in set(others.stay)]
    same(ctx, sorted(stayed), wanted, f"{what}: those that were there throughout")
    if kind.sort.get("sort_by") != "updated_at" and kind.name != "messages":
        same(ctx, stayed, _in_order(wanted, kind, order), f"{what}: the order of those that were there throughout")


def _in_order(wanted: list[tuple[str, int]], kind: _Kind, order: str) -> list[tuple[str, int]]:
    """By the time that :class:`_Others` gave them, then by agent and position; counts are all the same."""
    by_count = kind.sort.get("sort_by") == "message_count"
    times = {agent: 0 if by_count else (2 * (i // kind.each) + 1) // 12 for i, (agent, _) in enumerate(wanted)}
    return sorted(wanted, key=lambda key: (times[key[0]], *key), reverse=order == "desc")


@check("QRY-5", "QRY-3", needs=_Q, under=(Dimension.COMPANY, Dimension.ITEMS, Dimension.CHANGES))
async def pages_while_a_list_grows(ctx: Context) -> None:
    """Cursors through a long list, by position both ways, give each record that exists throughout once while the list
    grows at its end, some records are replaced and upserted, and it shrinks behind the place.
    """
    other = await ctx.another()
    calls = [samples.tool_call(i, created_at=samples.T0 + i // 100, audit_trail=[]) for i in range(350)]
    for order in _ORDERS:
        how = f"in pages, {order}, as the list grew"
        await other.save_messages("m", samples.messages(350))
        await other.save_tool_call_records("m", calls)
        messages, records = await _two_streams(ctx, other, order)
        wanted = [*range(300)][:: 1 if order == "asc" else -1]
        same(ctx, [i for i in messages if i < 300], wanted, f"positions of messages {how}")
        same(ctx, [i for i in records if i < 300], wanted, f"positions of calls {how}")


async def _two_streams(ctx: Context, other: ExtendedStore, order: str) -> tuple[list[int], list[int]]:
    """Positions of messages and of calls, in pages of 60, while the lists change."""
    found: dict[str, list[int]] = {}
    for name in ("messages", "tool_calls"):
        found[name] = []
        cursor: dict[str, str] = {}
        for n in itertools.count():
            query = getattr(ctx.store, f"query_{name}")
            page = await query(agent_id="m", order=order, limit=60, **cursor)
            found[name] += [record.position for record in page]
            if page.next_cursor is None or n > 50:
                break
            cursor = {"cursor": page.next_cursor}
            if n == 1:
                await other.append_messages("m", samples.messages(40, 1000))
                new = [samples.tool_call(900 + i, created_at=samples.T0 + 900) for i in range(40)]
                await other.upsert_tool_call_records("m", new)
            if n == 2:
                same_time = {"created_at": samples.T0 + 1, "audit_trail": [], "result": "again"}
                await other.upsert_tool_call_records("m", [samples.tool_call(150, **same_time)])
                changed = await other.load_messages("m")
                changed[150] = samples.message(text="replaced")
                await other.save_messages("m", changed)
            if n == 3:
                await other.save_messages("m", (await other.load_messages("m"))[:300])
                await other.save_tool_call_records("m", (await other.load_tool_call_records("m"))[:300])
    return found["messages"], found["tool_calls"]
