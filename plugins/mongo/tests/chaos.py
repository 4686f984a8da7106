"""Writers, readers, deleters and forkers on a set whose members fail, and the judgement of what they leave."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import pymongo
from kode_conformance.values import samples
from kode_mongo.options import MongoOptions
from kode_mongo.records import MongoRecords, open_records
from kode_mongo.schema import COLLECTIONS, ITEMS, META, PARTS

from kode_core import ExtendedStore
from kode_core.engines.record.engine import RecordEngine
from kode_core.engines.record.state import OpenedHead
from kode_core.engines.record.store import ItemsPlace, KeyRange
from kode_core.errors import KodeError, Retry, StorageError

LISTS: Final = ("list-0", "list-1")
"""Agents that are written by many, followed, and forked."""
GONE: Final = ("gone-0", "gone-1")
"""Agents that are written by many, and deleted again and again."""
_LARGE: Final = 60_000


class Call(NamedTuple):
    """A write; ``returned`` is infinity where nobody knows whether it was done, or will be."""

    name: str
    called: float
    returned: float


class Whole(NamedTuple):
    """The names of an agent's turns, by each of the kinds that a turn has."""

    messages: list[str]
    tool_calls: list[str]
    events: list[str]
    info: str | None

    def torn(self, *, has_events: bool = True) -> list[str]:
        """What is there of a turn that is not there whole. A copy has no events, whose order is that of their seqs."""
        last = self.messages[-1:]
        kinds = {"tool calls": self.tool_calls == self.messages, "info": [self.info] == last or not last}
        kinds["events"] = sorted(self.events) == (sorted(self.messages) if has_events else [])
        return [f"torn: the {kind}, {self}"[:3000] for kind, is_whole in kinds.items() if not is_whole]


async def whole(store: ExtendedStore, agent_id: str) -> Whole:
    """What there is of an agent to which nobody writes."""
    info = await store.load_info(agent_id)
    calls = await store.load_tool_call_records(agent_id)
    events = [event.event.data["name"] async for event in store.read_events(agent_id)]
    last = None if info is None else info.metadata["last"]
    return Whole(names(await store.load_messages(agent_id)), [call.id for call in calls], events, last)


def names(messages: Sequence[Any]) -> list[str]:
    """The names of the turns that messages are of; two of each."""
    texts = [message.text.split(" ")[:2] for message in messages]
    firsts, seconds = texts[::2], texts[1::2]
    if any(kind != "first" for _, kind in firsts) or seconds != [[name, "second"] for name, _ in firsts]:
        raise AssertionError(f"half a turn: {texts}")
    return [name for name, _ in firsts]


class Load:
    """What is called, and what came of each call.

    Attributes:
        turns: those of each agent that were acknowledged, or are in doubt.
        refused: those that were said not to be written.
        deletes: those of each agent.
        wrong: what was seen that may never be.
    """

    def __init__(self, stores: Sequence[ExtendedStore], seed: int) -> None:
        self._stores = stores
        self._rng = random.Random(seed)
        self._numbers = itertools.count()
        self._stop = asyncio.Event()
        self.turns: dict[str, list[Call]] = defaultdict(list)
        self.refused: set[str] = set()
        self.deletes: dict[str, list[Call]] = defaultdict(list)
        self.reads: dict[str, list[list[str]]] = defaultdict(list)
        self.heard: list[str] = []
        self.forks: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    # --- calls

    async def _made(self, kind: str, call: Callable[[], Awaitable[Any]]) -> tuple[bool | None, Any]:
        """Whether a call was done, None where nobody knows, and what it returned."""
        try:
            found = await call()
        except StorageError as exc:
            self.counts[f"{kind}: {type(exc).__name__}"] += 1
            if exc.retry is Retry.NEVER:
                self.wrong.append(f"{time.monotonic():.2f} {kind} failed with {exc!r}")
            return (None if exc.retry is Retry.CHECK else False), None
        except AssertionError as exc:
            self.wrong.append(f"{kind}: {exc}")
            return False, None
        except Exception as exc:
            self.wrong.append(f"{kind} raised {exc!r}, which is no error of storage")
            return None, None
        self.counts[kind] += 1
        return True, found

    async def turn(self, agent_id: str, writer: int) -> None:
        """A turn of two messages, a tool call, an info and an event, all of one name."""
        number = next(self._numbers)
        name = f"{writer}/{number}"
        pad = "x" * (_LARGE if self._rng.random() < 0.1 else 10)
        called = time.monotonic()
        done, _ = await self._made(
            "turn",
            lambda: self._any().save_turn(
                agent_id,
                append=[samples.message(text=f"{name} {which} {pad}") for which in ("first", "second")],
                upsert_tool_calls=[samples.tool_call(0, id=name)],
                info=samples.info(agent_id, metadata={"last": name}),
                events=[samples.event(number, name=name)],
            ),
        )
        if done is False:
            self.refused.add(name)
        else:
            self.turns[agent_id].append(Call(name, called, math.inf if done is None else time.monotonic()))

    async def delete(self, agent_id: str) -> None:
        called = time.monotonic()
        done, _ = await self._made("delete", lambda: self._any().delete(agent_id))
        if done is not False:
            self.deletes[agent_id].append(Call("delete", called, math.inf if done is None else time.monotonic()))

    async def fork(self, agent_id: str) -> None:
        done, ids = await self._made("fork", lambda: self._any().batch_fork(agent_id, 2))
        if done:
            self.forks.update(dict.fromkeys(ids, agent_id))

    async def read(self, agent_id: str) -> None:
        async def names_of() -> list[str]:
            return names(await self._any().load_messages(agent_id))

        done, found = await self._made("load", names_of)
        if done and agent_id in LISTS:
            self.reads[agent_id].append(found)

    async def _follow(self) -> None:
        async for event in self._stores[0].follow_events(LISTS[0]):
            self.heard.append(event.event.data["name"])

    def _any(self) -> ExtendedStore:
        return self._rng.choice(self._stores)

    # --- all at once

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Until the block ends: five writers, two deleters, a forker, two readers, and one that follows."""
        for agent_id in LISTS:
            await self.turn(agent_id, 0)
        following = asyncio.ensure_future(self._follow())
        loops = [self._again(lambda w=w: self.turn(LISTS[w % 2], w), 0.1) for w in range(1, 4)]  # type: ignore[misc]
        loops += [self._again(lambda w=w: self.turn(GONE[w % 2], w), 0.1) for w in range(4, 6)]  # type: ignore[misc]
        loops += [self._again(lambda a=a: self.delete(a), 0.5) for a in GONE]  # type: ignore[misc]
        loops += [self._again(lambda: self.fork(self._rng.choice(LISTS)), 1.5)]
        loops += [self._again(lambda: self.read(self._rng.choice(LISTS + GONE)), 0.2) for _ in range(2)]
        tasks = [asyncio.ensure_future(loop) for loop in loops]
        try:
            yield
        finally:
            self._stop.set()
            await asyncio.gather(*tasks)
        async with asyncio.timeout(60):
            while len(self.heard) < len((await whole(self._stores[0], LISTS[0])).events):
                await asyncio.sleep(0.1)
        following.cancel()
        await asyncio.wait([following])

    async def _again(self, call: Callable[[], Awaitable[None]], pause: float) -> None:
        while not self._stop.is_set():
            await call()
            await asyncio.sleep(self._rng.uniform(0, 2 * pause))

    async def more(self, count: int) -> None:
        """Wait until so many more turns and a delete were acknowledged: everything goes on."""
        turns, deletes = self.counts["turn"] + count, self.counts["delete"] + 1
        async with asyncio.timeout(120):
            while self.counts["turn"] < turns or self.counts["delete"] < deletes:
                await asyncio.sleep(0.02)

    # --- judgement

    async def problems(self, store: ExtendedStore) -> list[str]:
        """What is wrong in the end, when nobody writes any more; nothing, if all went well."""
        found = list(self.wrong)
        ends = {agent_id: await whole(store, agent_id) for agent_id in (*LISTS, *GONE)}
        for agent_id, end in ends.items():
            found += [f"{agent_id}: {problem}" for problem in self._problems_of(agent_id, end)]
        for agent_id in [one async for one in _all(store)]:
            if agent_id not in ends:
                found += self._problems_of_fork(agent_id, await whole(store, agent_id), ends)
        missing = self.forks.keys() - {one async for one in _all(store)}
        found += [f"a fork that was acknowledged is lost: {agent_id}" for agent_id in missing]
        for agent_id in LISTS:
            end_names = ends[agent_id].messages
            found += [f"{agent_id}: a read of what never was" for r in self.reads[agent_id] if r != end_names[: len(r)]]
        there = Counter(ends[LISTS[0]].events)
        if Counter(self.heard) != there:
            found.append(f"heard of too much {Counter(self.heard) - there}, and not of {there - Counter(self.heard)}")
        return found

    def _problems_of(self, agent_id: str, end: Whole) -> list[str]:
        turns, deletes, counts = self.turns[agent_id], self.deletes[agent_id], Counter(end.messages)
        known = {turn.name for turn in turns}
        found = end.torn()
        found += [f"there {count} times: {name}" for name, count in counts.items() if count > 1]
        found += [f"refused and there: {name}" for name in counts if name in self.refused]
        found += [f"written by nobody: {name}" for name in counts if name not in known | self.refused]
        places = {name: place for place, name in enumerate(end.messages)}
        latest = -1.0
        for turn in sorted(turns, key=lambda turn: places.get(turn.name, -1)):
            may_be_gone = turn.returned == math.inf or any(one.returned > turn.called for one in deletes)
            if turn.name not in counts:
                found += [] if may_be_gone else [f"acknowledged and lost: {turn.name}"]
                continue
            if any(one.returned < math.inf and turn.returned < one.called for one in deletes):
                found.append(f"deleted and there: {turn.name}")
            if turn.returned < latest:
                found.append(f"before one that was called after it was acknowledged: {turn.name}")
            latest = max(latest, turn.called)
        return found

    def _problems_of_fork(self, agent_id: str, fork: Whole, ends: dict[str, Whole]) -> list[str]:
        sources = [self.forks[agent_id]] if agent_id in self.forks else LISTS
        count = len(fork.messages)
        found = [f"fork {agent_id}: {problem}" for problem in fork.torn(has_events=False)]
        if not count or all(fork.messages != ends[source].messages[:count] for source in sources):
            found.append(f"fork {agent_id} is of what never was: {fork.messages}")
        return found


async def _all(store: ExtendedStore) -> AsyncIterator[str]:
    for agent_id in await store.list():
        yield agent_id


async def left(uri: str, database: str) -> list[str]:
    """What is in a database after a sweep that no head refers to. ``LEFT_SECONDS`` is to be 0 by then."""
    records = await open_records(MongoOptions(uri=uri, database=database))
    engine = RecordEngine(records)
    try:
        await engine.sweep()
        return await asyncio.to_thread(_unsettled, uri, database) + await _needless(records, uri, database)
    finally:
        await engine.close()


def _unsettled(uri: str, database: str) -> list[str]:
    with pymongo.MongoClient[dict[str, Any]](uri) as client:
        (heads,) = (client[database][f"kode_{name}"] for name in COLLECTIONS if name == "heads")
        found = [f"not settled: {head['_id']}" for head in heads.find({"pending": True})]
        notes = client[database][f"kode_{META}"].find({"_id": {"$gte": "left/", "$lt": "left0"}})
        return [*found, *(f"a note: {note['_id']}" for note in notes)]


async def _needless(records: MongoRecords, uri: str, database: str) -> list[str]:
    def places() -> set[ItemsPlace]:
        with pymongo.MongoClient[dict[str, Any]](uri) as client:
            both = (client[database][f"kode_{name}"] for name in (ITEMS, PARTS))
            return {
                ItemsPlace(one["agent_id"], one["epoch"])
                for c in both
                for one in c.find({}, {"agent_id": 1, "epoch": 1})
            }

    found = []
    for place in await asyncio.to_thread(places):
        heads = await records.heads([place.agent_id])
        if not heads or heads[0].place != place:
            found.append(f"at an old place: {place}")
            continue
        items = await records.items(place, KeyRange(first="a", last="z", bodies=False))
        named = {(item.key, item.rev) for item in items if item.parts}
        info = OpenedHead(heads[0]).state.info
        named |= set() if info is None else {(f"i/{info[0]}", info[1])}
        found += [f"a part: {place} {part}" for part in await records.part_keys(place, "a", "z") if part not in named]
    return found


async def done_or_not(call: Awaitable[Any]) -> bool | None:
    """Whether a write was done; None where nobody knows. Any other error than one of ours is a failure."""
    try:
        await call
    except KodeError as exc:
        assert exc.retry is not Retry.NEVER, repr(exc)
        return None if exc.retry is Retry.CHECK else False
    return True
