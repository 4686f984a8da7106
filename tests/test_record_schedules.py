"""The record engine itself, run by lot: which call to the store is next, who dies, what arrives late or never."""

from __future__ import annotations

import asyncio
import random
import selectors
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest
from kode_conformance.values import samples

from kode_core import CorruptRecordError, KodeError, OutcomeUnknownError
from kode_core.batch import Fence, ListKind
from kode_core.engines.record.engine import RecordEngine
from kode_core.engines.record.state import OpenedHead, Step, row_key
from kode_core.engines.record.store import Change, Cut, HeadRecord, Item, ItemsPlace, Note
from kode_core.store import EngineStore
from tests.memory_records import Contents, MemoryRecords, TogetherHarness

OPTIONS: dict[str, dict[str, Any]] = {"tight": {}, "together": dict(TogetherHarness.options)}
SEEDS = 25
LEAST_CALLS = 40
"""How many calls a schedule has at least."""

_decode = msgspec.msgpack.Decoder(tuple[Step, ...]).decode


class World:
    """Draws who goes on, and remembers what every revision made of the agent."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.contents = Contents()
        self.clock = 1e6
        self.calls = 0
        self.waiting: list[asyncio.Future[None]] = []
        self.late: list[Callable[[], Awaitable[None]]] = []
        self.jobs: list[asyncio.Future[None]] = []
        self.weak: dict[str, HeadRecord] = {}
        self.log: list[dict[str, str]] = [{}]

    def chance(self, of: float) -> bool:
        return self.rng.random() < of

    def go_on(self) -> bool:
        """Let one go on; False when time has to pass."""
        if self.late and self.chance(0.05):
            self.jobs.append(asyncio.ensure_future(self.late.pop(self.rng.randrange(len(self.late)))()))
            return True
        if self.weak and self.chance(0.05):
            self.lose_member()
        self.waiting = [turn for turn in self.waiting if not turn.done()]
        if not self.waiting or self.chance(0.1):
            return False
        self.calls += 1
        self.waiting.pop(self.rng.randrange(len(self.waiting))).set_result(None)
        return True

    def lose_member(self) -> None:
        for agent_id, head in self.weak.items():
            self.contents.heads[agent_id] = head
        self.weak.clear()

    def committed(self, old: HeadRecord | None, new: HeadRecord, items: Sequence[Item]) -> None:
        self.weak.pop(new.agent_id, None)
        state = OpenedHead(new).state
        changes: Sequence[Step] = (*items, *state.pending)
        if state.stash is not None:
            changes = _decode(b"".join(self.contents.parts[new.place][state.stash.key, new.rev]))
        value = dict(self.log[-1]) if old is not None and old.epoch == new.epoch else {}
        for change in changes:
            if isinstance(change, Cut):
                value = {k: text for k, text in value.items() if not change.first <= k <= change.last}
        value |= {change.key: change.body.text for change in changes if isinstance(change, Item)}
        self.log.append(value)

    def lists(self) -> list[list[str]]:
        """The messages of every revision."""
        rows = [[text for key, text in sorted(value.items()) if key.startswith("m/")] for value in self.log]
        return [[msgspec.json.decode(text)["content"][0]["text"] for text in texts] for texts in rows]


class Selector(selectors.SelectSelector):
    """Time passes when nobody can go on."""

    world: World

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout != 0 and not self.world.go_on():
            assert timeout is not None or self.world.waiting, "nobody goes on, and nobody waits for time"
            self.world.clock += min(timeout or 0.01, 0.01) if self.world.waiting else timeout or 0
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    def __init__(self, world: World) -> None:
        selector = Selector()
        selector.world = self.world = world
        super().__init__(selector)

    def time(self) -> float:
        return self.world.clock


class Process(MemoryRecords):
    """One process over the store: slow, interrupted, and killed."""

    def __init__(self, world: World, **options: Any) -> None:
        super().__init__(world.contents, **options)
        self.world = world
        self.is_dead = False

    async def step(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        if not self.is_dead:
            self.world.waiting.append(turn)
        await turn
        if self.is_dead:
            await asyncio.Event().wait()

    async def heads(self, agent_ids: Sequence[str]) -> list[HeadRecord]:
        found = await super().heads(agent_ids)
        return [self.world.weak.get(head.agent_id, head) if self.world.chance(0.2) else head for head in found]

    async def swap(self, old: HeadRecord | None, new: HeadRecord, fence: Fence | None, items: Sequence[Item]) -> bool:
        how = self.world.rng.choices(["", "before", "after"], [90, 5, 5])[0]
        await self.step()
        if how == "before":
            raise OutcomeUnknownError("the connection broke")
        now = self.contents.heads.get(new.agent_id)
        if (now and now.rev) != (old and old.rev) or not self._is_held(new.agent_id, fence):
            return False
        self.contents.heads[new.agent_id] = new
        self._put(new.place, items)
        self.world.committed(now, new, items)
        await self.step()
        if how == "after":
            raise OutcomeUnknownError("the connection broke")
        return True

    async def settle(self, head: HeadRecord, *, lasting: bool = False) -> bool:
        await self.step()
        now = self.contents.heads[head.agent_id]
        if now.rev != head.rev:
            return False
        self.contents.heads[head.agent_id] = head
        if lasting:
            self.world.weak.pop(head.agent_id, None)
        else:
            self.world.weak.setdefault(head.agent_id, now)
        return True

    async def apply(self, place: ItemsPlace, changes: Sequence[Change], *, fresh: bool = False) -> None:
        await super().apply(place, changes, fresh=fresh)
        if self.world.chance(0.2):
            again = MemoryRecords(self.contents, swap_items=self.swap_items, part_bytes=self.part_bytes)
            self.world.late.append(lambda: again.apply(place, changes))

    async def forget(self, note: Note) -> None:
        """Notes are young while others may go on."""


class WithoutLasting(Process):
    """A store that takes no care of what must last."""

    async def settle(self, head: HeadRecord, *, lasting: bool = False) -> bool:
        return await super().settle(head)


class WithoutMarks(Process):
    """A store that leaves nothing where something was removed."""

    async def apply(self, place: ItemsPlace, changes: Sequence[Change], *, fresh: bool = False) -> None:
        await super().apply(place, changes, fresh=fresh)
        items = self.contents.items[place]
        for key in [key for key, item in items.items() if item.is_removed]:
            del items[key]


class WithoutNotes(Process):
    """A store that forgets its notes."""

    async def note(self, note: Note) -> None:
        await self.step()


# --- Those who take part ----------------------------------------------------------------------------------------------


class Run:
    """Five processes, which do what they do until they end or die."""

    def __init__(self, seed: int, options: dict[str, Any], process: type[Process] = Process) -> None:
        self.world = World(seed)
        self.options = options
        self.records = process
        self.problems: list[str] = []
        self.stores: list[EngineStore] = []

    async def store(self, records: MemoryRecords) -> tuple[EngineStore, RecordEngine]:
        engine = RecordEngine(records)

        async def opened() -> RecordEngine:
            return engine

        store = await EngineStore(opened).open()
        self.stores.append(store)
        return store, engine

    async def process(self, act: Callable[[EngineStore, RecordEngine], Awaitable[None]], lives: float) -> None:
        records = self.records(self.world, **self.options)
        store, engine = await self.store(records)
        doing = asyncio.ensure_future(self.doing(act, store, engine))
        await asyncio.wait([doing], timeout=lives)
        records.is_dead = not doing.done()
        if not records.is_dead:
            await doing
            await store.close()

    async def doing(self, act: Callable[..., Awaitable[None]], store: EngineStore, engine: RecordEngine) -> None:
        try:
            await act(store, engine)
        except CorruptRecordError as exc:
            self.problems.append(f"unreadable: {exc}")

    async def writes(self, store: EngineStore, engine: RecordEngine) -> None:
        rng = self.world.rng
        for _ in range(8):
            name, size = f"{rng.randrange(10**6)}", rng.choice([10, 10, 400])
            messages = [samples.message(n, f"{name}/{n}".ljust(size, ".")) for n in range(rng.randrange(1, 4))]
            try:
                if rng.random() < 0.5:
                    await store.append_messages("a", messages)
                else:
                    await store.save_messages("a", messages)
            except CorruptRecordError:
                raise
            except KodeError:
                continue

    async def deletes(self, store: EngineStore, engine: RecordEngine) -> None:
        for _ in range(3):
            await asyncio.sleep(self.world.rng.random() / 10)
            try:
                await store.delete("a")
            except CorruptRecordError:
                raise
            except KodeError:
                continue

    async def reads(self, store: EngineStore, engine: RecordEngine) -> None:
        for _ in range(12):
            began = len(self.world.log) - 1
            try:
                seen = [message.text for message in await store.load_messages("a")]
            except CorruptRecordError:
                raise
            except KodeError:
                continue
            if seen not in self.world.lists()[began:]:
                self.problems.append(f"torn: {seen} is none of {self.world.lists()[began:]}")

    async def sweeps(self, store: EngineStore, engine: RecordEngine) -> None:
        for _ in range(3):
            await engine.sweep()
            await store.query_sessions()

    async def all(self) -> None:
        rng, acts = self.world.rng, [self.writes, self.writes, self.deletes, self.reads, self.sweeps]
        await asyncio.gather(*(self.process(act, rng.choice([0.1, 0.3, 1.0, 60.0])) for act in acts))
        await asyncio.gather(*self.world.jobs, *(call() for call in self.world.late))
        self.world.lose_member()
        try:
            await self.afterwards()
        except CorruptRecordError as exc:
            self.problems.append(f"unreadable: {exc}")

    async def afterwards(self) -> None:
        """All are dead, and some time has passed."""
        contents = self.world.contents
        store, engine = await self.store(MemoryRecords(contents, **self.options))
        async with store:
            seen = [message.text for message in await store.load_messages("a")]
            if seen != self.world.lists()[-1]:
                self.problems.append(f"lost: {seen} is seen, and the agent is {self.world.lists()[-1]}")
            await store.query_sessions()
            await engine.sweep()
            await store.append_messages("a", [samples.message(0, "last")])
            await asyncio.sleep(1)
            if [message.text for message in await store.load_messages("a")] != [*seen, "last"]:
                self.problems.append("lost: what is written next")
        doubled = [text for value in self.world.lists() for text, n in Counter(value).items() if n > 1]
        self.problems += [f"doubled: {text}" for text in doubled]
        self.problems += [
            f"left: {what}" for what in left(contents, {*self.world.log[-1], row_key(ListKind.MESSAGES, len(seen))})
        ]


def left(contents: Contents, keys: set[str]) -> list[str]:
    """All that no head refers to, and all that was removed."""
    head = OpenedHead(contents.heads["a"])
    found = [f"items of {place}" for place, items in contents.items.items() if items and place != head.record.place]
    items = contents.items[head.record.place]
    found += [f"item {key}" for key, item in items.items() if not item.is_removed and key not in keys]
    named = {(item.key, item.rev) for item in items.values() if item.parts}
    for place, parts in contents.parts.items():
        found += [f"parts {key} of {place}" for key in parts if place != head.record.place or key not in named]
    return found


def drawn(run: Run, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The problems of a schedule. Time is the world's: nobody waits for a clock."""
    loop = Loop(run.world)
    random.seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", loop.time)
        patch.setattr("kode_core.engines.record.io.LEFT_SECONDS", -60)
        try:
            loop.run_until_complete(run.all())
        finally:
            while others := asyncio.all_tasks(loop):
                for task in others:
                    task.cancel()
                loop.run_until_complete(asyncio.wait(others, timeout=1))
            loop.close()
    for store in run.stores:
        store._context.closing.set()  # a process that died warns of no store that is still open
    return run.problems


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_schedules_drawn_by_lot(seed: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writers, a reader, a deleter and a sweeper: nothing is unreadable, torn, lost, doubled or left behind."""
    run = Run(seed, options)
    assert drawn(run, monkeypatch) == [], f"after {run.world.calls} calls"
    assert run.world.calls >= LEAST_CALLS


@pytest.mark.parametrize(
    ("process", "problem"), [(WithoutLasting, "unreadable"), (WithoutMarks, "left: item m/"), (WithoutNotes, "left: ")]
)
def test_a_store_that_promises_less_is_found(
    process: type[Process], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same schedules show it."""
    for seed in range(100):
        if any(one.startswith(problem) for one in drawn(Run(seed, {}, process), monkeypatch)):
            return
    raise AssertionError("a hundred schedules, and nothing was found")
