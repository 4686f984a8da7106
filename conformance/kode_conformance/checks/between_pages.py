"""QRY-5, QRY-6, LIFE-2, DOC-4, DOC-8: writes between one page and the next, at the very place where it begins."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_tags
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.many import at_once, same
from kode_core.model import DeleteDocument, DocumentWrite, Message, PutDocument, TextBlock
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
            "the lists of the agent of the last record are emptied": self._empty,
            "agents are saved before and behind all others": self._insert_outside,
            "the agent of the last record is deleted and saved again": self._replace,
        }

    async def _delete(self, agent: str) -> None:
        self.free.add(agent)
        await self._store.delete(agent)

    async def _empty(self, agent: str) -> None:
        self.free.add(agent)
        self.moved.add(agent)
        await self._store.save_turn(agent, messages=[], tool_calls=[])

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
    """Whatever is done between two pages to the last record of the first, deleted, removed from its list, changed,
    moved in the order, or saved anew, and right before and behind it, each record that is left alone comes exactly
    once, in pages of every size, in every order.
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


# --- documents --------------------------------------------------------------------------------------------------------

_TAGS: Final = {"run": "r1"}
_OWNERS: Final = ("a", "b", "c")
_Place = tuple[str, str]


class _List(NamedTuple):
    """A method that gives pages of documents, of the agent b or of all, and the place of each that it gives."""

    name: str
    given: Mapping[str, Any]
    owners: tuple[str, ...]
    place: Callable[[Any], _Place]


_OF_B: Final = {"agent_id": "b", "collection": "c"}
_LISTS: Final = (
    _List("list_documents", _OF_B, ("b",), lambda one: ("b", one.key)),
    _List("list_document_keys", _OF_B, ("b",), lambda key: ("b", key)),
    _List("list_documents", {**_OF_B, "prefix": "k", "start": "k00", "stop": "k~"}, ("b",), lambda one: ("b", one.key)),
    _List("query_documents", {**_OF_B, "tags": _TAGS, "values": False}, ("b",), lambda one: (one.agent_id, one.key)),
    _List("query_documents", {"collection": "c", "tags": _TAGS}, _OWNERS, lambda one: (one.agent_id, one.key)),
)


def _lists() -> list[_List]:
    return [one for one in _LISTS if keeps_tags() or one.name != "query_documents"]


def _put(key: str, value: int = 0, *, is_tagged: bool = True) -> PutDocument:
    return PutDocument("c", key, value, tags=_TAGS) if is_tagged and keeps_tags() else PutDocument("c", key, value)


class _DocumentWalk:
    """The documents that a list gives, and the changes to them between its pages.

    Attributes:
        stays: the places of the documents that nothing has touched.
    """

    def __init__(self, store: ExtendedStore, owners: tuple[str, ...]) -> None:
        self._store = store
        self.stays = [(agent, f"k{i:02d}") for agent in owners for i in range(_AGENTS // len(owners))]

    async def begin(self) -> None:
        """Save the documents, and no others."""
        for agent in _OWNERS:
            await self._store.delete(agent)
        for agent, places in itertools.groupby(self.stays, key=lambda place: place[0]):
            await self._store.write_documents(agent, [_put(key) for _, key in places])

    def acts(self, came: list[_Place], is_reverse: bool) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """The changes, by name, to the last document that came and to its neighbours."""
        agent, key = came[-1]
        later = [one for one in self.stays if (one < came[-1] if is_reverse else one > came[-1])]
        behind = later[-1:] if is_reverse else later[:1]
        near = [f"{key}!", f"{key[:-1]}{chr(ord(key[-1]) - 1)}~"]
        return {
            "the last document of the page is deleted": lambda: self._delete(came[-1:]),
            "the last document of the page is put again": lambda: self._write(agent, [_put(key, 1)]),
            "all documents that came are deleted": lambda: self._delete(came),
            "the last document of the page is deleted and put again": lambda: self._replace(came[-1]),
            "the documents at the end and at the begin of the pages are deleted": lambda: self._delete(
                [*came[-1:], *behind]
            ),
            "documents are put right before and right behind the last one": lambda: self._write(
                agent, [_put(one) for one in near]
            ),
            "the last document of the page loses its tags": lambda: self._write(agent, [_put(key, 2, is_tagged=False)]),
            "documents are put before and behind all others": lambda: self._write(
                agent, [_put("k!"), _put(f"k}}{len(came)}")]
            ),
            "the document behind the last one is deleted": lambda: self._delete(behind),
        }

    async def _write(self, agent: str, writes: list[DocumentWrite]) -> None:
        await self._store.write_documents(agent, writes)

    async def _delete(self, places: list[_Place]) -> None:
        self.stays = [place for place in self.stays if place not in places]
        for agent, some in itertools.groupby(sorted({*places}), key=lambda place: place[0]):
            await self._write(agent, [DeleteDocument("c", key) for _, key in some])

    async def _replace(self, place: _Place) -> None:
        await self._delete([place])
        await self._write(place[0], [_put(place[1], 3)])


@check(
    *("DOC-4", "DOC-8"),
    needs=Capability.EXTENDED | Capability.DOCUMENTS,
    under=(_D.COMPANY, _D.CHANGES, _D.ORDERS, _D.INSTANCES),
)
async def writes_at_the_end_of_a_page_of_documents(ctx: Context) -> None:
    """Whatever is done between two pages of documents to the last one of the first, deleted, put again, without its
    tags, and right before and behind it, each document that is left alone comes exactly once, and none comes twice, in
    pages of every size, in both directions, by every list and by searches; so it is in a stream.
    """
    other = await ctx.another()
    sizes = (1, 3) if ctx.settings.tier is Tier.QUICK else (1, 2, 3, 4)
    for number, (size, one, is_reverse) in enumerate(in_time(ctx, itertools.product(sizes, _lists(), (False, True)))):
        walk, came, done = _DocumentWalk(other, one.owners), list[_Place](), list[str]()
        await walk.begin()
        there = [*walk.stays]
        cursor: str | None = None
        for step in itertools.count(number):
            page = await getattr(ctx.store, one.name)(**one.given, limit=size, reverse=is_reverse, cursor=cursor)
            came += map(one.place, page)
            cursor = page.next_cursor
            if cursor is None or len(done) > 2 * _AGENTS:
                break
            if came and len(done) < _AGENTS:
                acts = list(walk.acts(came, is_reverse).items())
                name, act = acts[step % len(acts)]
                await act()
                done.append(name)
        what = f"{one.name}({dict(one.given)}), reverse={is_reverse}, between whose pages {'; '.join(done)}"
        ctx.true(cursor is None, f"{what}: they come to no end")
        ctx.equal(came, sorted({*came}, reverse=is_reverse), f"the order of {what}")
        stays = [place for place in there if place in walk.stays]
        ctx.equal([place for place in came if place in stays], stays[:: -1 if is_reverse else 1], what)
    await _stream(ctx, other)


async def _stream(ctx: Context, other: ExtendedStore) -> None:
    keys = [f"k{i:04d}" for i in range(131 if ctx.settings.tier is Tier.QUICK else 1031)]
    for is_reverse in (False, True):
        for start in range(0, len(keys), 100):
            await other.write_documents("stream", [_put(key) for key in keys[start : start + 100]])
        streamed = list[str]()
        async for document in ctx.store.iter_documents("stream", "c", reverse=is_reverse):
            streamed.append(document.key)
            if len(streamed) in _CROSSED:
                await other.delete_document("stream", "c", document.key)
        what = f"iter_documents, reverse={is_reverse}, while the document that came last was deleted now and then"
        ctx.equal(streamed, keys[:: -1 if is_reverse else 1], what)


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
