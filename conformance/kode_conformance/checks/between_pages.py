"""QRY-5, QRY-6, LIFE-2: writes between one page and the next, at the very place where the next page begins."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
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

_Q: Final = Capability.QUERYABLE
_D: Final = Dimension
_ORDERS: Final = ("asc", "desc")
_AGENTS: Final = 15


class _Query(NamedTuple):
    """A query and its order. ``each`` is how many records an agent has; ``moves`` by a change of its info."""

    name: str
    by: str
    sort: Mapping[str, str]
    each: int
    moves: bool = False


_QUERIES: Final = (
    _Query("sessions", "template_id", {"sort_by": "created_at"}, 1),
    _Query("messages", "role", {}, 2),
    _Query("sessions", "template_id", {"sort_by": "updated_at"}, 1, moves=True),
    _Query("tool_calls", "tool_name", {}, 2),
    _Query("sessions", "template_id", {"sort_by": "message_count"}, 1),
)


async def _save(store: ExtendedStore, agent: str, mark: str, time: int, version: int = 0, count: int = 2) -> None:
    """An agent with an info, two messages, or more or less, and two calls, which are found by the mark."""
    calls = [samples.tool_call(i, name=mark, created_at=time, audit_trail=[], result=version) for i in range(2)]
    info = samples.info(agent, template_id=mark, created_at=time, metadata={"version": version})
    messages = [Message(mark, [TextBlock(f"{i}")], metadata={"version": version}) for i in range(count)]
    await store.save_turn(agent, info=info, messages=messages, tool_calls=calls)


class _Walk:
    """The agents that a query finds, and the changes to them between its pages.

    Attributes:
        free: the agents that were changed: they may be found or not, but never twice unless they moved.
        moved: the agents that moved in the order.
    """

    def __init__(self, store: ExtendedStore, query: _Query, mark: str) -> None:
        self._store = store
        self._query = query
        self.mark = mark
        self.ids = [f"{mark}-{(i * 7) % _AGENTS:02d}" for i in range(_AGENTS)]
        self.times = {agent: samples.T0 + i // 6 for i, agent in enumerate(self.ids)}
        self.free: set[str] = set()
        self.moved: set[str] = set()

    async def begin(self) -> None:
        """Save the agents, several at each time."""
        await at_once((_save(self._store, agent, self.mark, self.times[agent]) for agent in self.ids), 8)

    @property
    def acts(self) -> Mapping[str, Callable[[str], Awaitable[None]]]:
        """The changes, by name, to the agent whose record is the last of a page."""
        return {
            "the agent of the last record of the page is deleted": self._delete,
            "the last record of the page is changed where it is": self._change,
            "the last record of the page goes far ahead in the order": self._move_up,
            "the last record of the page goes far back in the order": self._move_down,
            "agents are saved right before and right behind the last record": self._insert,
            "the agent behind the last record is deleted": self._delete_next,
            "agents are saved before and behind all others": self._insert_outside,
            "the agent of the last record is deleted and saved again": self._replace,
        }

    async def _delete(self, agent: str) -> None:
        self.free.add(agent)
        await self._store.delete(agent)

    async def _change(self, agent: str) -> None:
        if self._query.moves or agent not in self.times:
            self.free.add(agent)
            self.moved.add(agent)
        if agent in self.times:
            await _save(self._store, agent, self.mark, self.times[agent], 1)

    async def _move_up(self, agent: str) -> None:
        await self._move(agent, self.times.get(agent, samples.T0) + 1_000, 11)

    async def _move_down(self, agent: str) -> None:
        await self._move(agent, self.times.get(agent, samples.T0) - 1_000, 1)

    async def _move(self, agent: str, time: int, count: int) -> None:
        """Save the agent with another value of each sort key."""
        self.free.add(agent)
        self.moved.add(agent)
        await _save(self._store, agent, self.mark, time, 3, count)

    async def _insert(self, agent: str) -> None:
        time = self.times.get(agent, samples.T0)
        for name in (f"{agent}!", f"{agent[:-1]}{chr(ord(agent[-1]) - 1)}~"):
            await self._new(name, time)

    async def _insert_outside(self, agent: str) -> None:
        for end, time in (("!", samples.T0 - 1), ("~", samples.T0 + 1000), ("", samples.T0)):
            await self._new(f"{end}{agent}+", time)

    async def _new(self, agent: str, time: int) -> None:
        if agent not in self.times:
            self.free.add(agent)
            await _save(self._store, agent, self.mark, time)

    async def _delete_next(self, agent: str) -> None:
        later = [one for one in self.ids if one > agent and one not in self.free]
        if later:
            await self._delete(min(later))

    async def _replace(self, agent: str) -> None:
        self.free.add(agent)
        self.moved.add(agent)
        await self._store.delete(agent)
        await _save(self._store, agent, self.mark, self.times.get(agent, samples.T0), 2)

    def judge(self, ctx: Context, found: list[Any], what: str) -> None:
        """Check that every untouched record was found once, and that none was found twice unless it moved."""
        keys = [(record.agent_id, getattr(record, "position", 0)) for record in found]
        twice = [key for key in dict.fromkeys(keys) if keys.count(key) > 1 and key[0] not in self.moved]
        ctx.true(not twice, f"{what}: these came twice: {twice[:5]}")
        wanted = [(agent, i) for agent in sorted(set(self.ids) - self.free) for i in range(self._query.each)]
        same(
            ctx, sorted(key for key in keys if key in set(wanted)), wanted, f"{what}: those that were there throughout"
        )


@check("QRY-5", "QRY-3", needs=_Q, under=(_D.COMPANY, _D.CHANGES, _D.EQUALS, _D.ORDERS))
async def writes_at_the_end_of_a_page(ctx: Context) -> None:
    """Whatever is done between two pages to the last record of the first, deleted, changed, moved in the order, or
    saved anew, and right before and behind it, each record that is left alone comes exactly once, in pages of every
    size, in every order.
    """
    other = await ctx.another()
    cases = list(itertools.product(_QUERIES, _ORDERS))
    sizes = (1, 2, 3, 4)
    rounds = 1 if ctx.settings.tier is Tier.QUICK else len(sizes)
    for number, (turn, (query, order)) in enumerate(in_time(ctx, itertools.product(range(rounds), cases))):
        size = sizes[(number + turn + number // 2) % len(sizes)]
        walk = _Walk(other, query, f"w{number}")
        await walk.begin()
        await _walk(ctx, walk, query, {query.by: walk.mark, "order": order, "limit": size, **query.sort}, number)


async def _walk(ctx: Context, walk: _Walk, query: _Query, filters: dict[str, Any], number: int) -> None:
    found: list[Any] = []
    done: list[str] = []
    cursor: dict[str, str] = {}
    acts = list(walk.acts.items())
    for step in itertools.count(number):
        page = await getattr(ctx.store, f"query_{query.name}")(**filters, **cursor)
        found += page
        if page.next_cursor is None:
            break
        ctx.true(len(done) < 200, f"the cursors of query_{query.name}({filters}) come to no end")
        cursor = {"cursor": page.next_cursor}
        name, act = acts[step % len(acts)]
        if page and len(done) < _AGENTS:
            await act(page[-1].agent_id)
            done.append(name)
    walk.judge(ctx, found, f"query_{query.name}({filters}), between whose pages {'; '.join(dict.fromkeys(done))}")


# --- streams ----------------------------------------------------------------------------------------------------------

_CROSSED: Final = frozenset((1, 24, 25, 26, 99, 100, 101, 127, 128, 255, 256, 499, 500, 501, 999, 1000, 1001))
"""The numbers of records after which a change is made: around the page sizes of streams."""


@check("QRY-6", "QRY-5", "LIFE-2", needs=_Q, tier=Tier.STANDARD, under=(_D.COMPANY, _D.CHANGES, _D.ITEMS, _D.ORDERS))
async def writes_at_the_pages_of_a_stream(ctx: Context) -> None:
    """Iterators over more than a hundred sessions, and more than a thousand messages and tool calls, give every
    untouched record exactly once while agents around the place are deleted and saved after each usual page; so does
    list.
    """
    other, number = await ctx.another(), 111
    stay = [f"s{i:03d}" for i in range(number)]
    goes = [f"s{i:03d}-goes" for i in range(0, number, 6)]
    await at_once(_fill(ctx.store, agent) for agent in (*stay, *goes))
    for name, order in itertools.product(("sessions", "messages", "tool_calls"), _ORDERS):
        fresh, turns, left = itertools.count(), itertools.count(), [*goes] if order == "asc" else goes[::-1]
        keys: list[tuple[str, int]] = []
        async for record in getattr(ctx.store, f"iter_{name}")(order=order):
            keys.append((record.agent_id, getattr(record, "position", 0)))
            if len(keys) in _CROSSED and next(turns) % 3:  # never as many come as go
                gone = record.agent_id if record.agent_id in left else left[0]
                left.remove(gone)
                await other.delete(gone)
            elif len(keys) in _CROSSED:
                await _fill(other, f"{record.agent_id[:4]}-new{next(fresh)}", 1)
        what = f"iter_{name}, {order}, while agents came and went"
        wanted = [(agent, i) for agent in stay for i in range(1 if name == "sessions" else 10)]
        kept = set(wanted)
        same(ctx, sorted(key for key in keys if key in kept), wanted, what)
        ctx.equal(len(keys), len(set(keys)), f"how many different records {what}, gave")
        _, listed = await asyncio.gather(at_once(_fill(other, agent) for agent in goes), ctx.store.list("s"))
        ctx.equal([agent for agent in listed if len(agent) == 4], stay, "list, while agents were saved")


async def _fill(store: ExtendedStore, agent: str, each: int = 10) -> None:
    """An agent of the same time as all others."""
    calls = [samples.tool_call(i, created_at=samples.T0, audit_trail=[]) for i in range(each)]
    await store.save_turn(agent, info=samples.info(agent), messages=samples.messages(each), tool_calls=calls)
