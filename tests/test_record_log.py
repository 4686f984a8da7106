"""Pruned logs in the record engine: dead items are shown to nobody, and erased at last."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kode_conformance.suite.record_tests import Held
from kode_conformance.values import samples

from kode_core import StoreUnavailableError, UnsupportedError
from kode_core.engines.record.engine import RecordEngine
from kode_core.engines.record.store import Item, ItemsPlace
from kode_core.store import EngineStore
from tests.memory_records import Contents, MemoryRecords

ROOMY = {"inline_bytes": 4_000_000, "part_bytes": 8_000_000}
LEFT = "kode_core.engines.record.io.LEFT_SECONDS"


async def opened(records: Any) -> EngineStore:
    async def engine() -> RecordEngine:
        return RecordEngine(records)

    return await EngineStore(engine).open()


async def offsets(store: EngineStore, **how: Any) -> list[int]:
    return [event.offset async for event in store.read_events("a", **how)]


def stored(contents: Contents, prefix: str) -> list[str]:
    return sorted(key for items in contents.items.values() for key in items if key.startswith(prefix))


class CannotErase(MemoryRecords):
    """A process that dies before it erases anything."""

    async def erase(self, place: ItemsPlace, first: str, last: str, rev: int) -> None:
        raise StoreUnavailableError("it is dead")


class NeverErases(MemoryRecords):
    """A store without the interface."""

    erase = None  # type: ignore[assignment]


async def pruned_and_dead(contents: Contents, number: int = 100) -> list[int]:
    """An agent all of whose first 90 events are dead and none erased; the sixth is the last by seq."""
    async with await opened(CannotErase(contents, **ROOMY)) as store:
        entries = [samples.event(9000 if i == 5 else i % 3, cursor=i) for i in range(number)]
        found = list(await store.append_events("a", entries))
        result = await store.prune("a", events_before_offset=found[90])
        assert result.events == 89
        assert len(stored(contents, "e/")) == number
        return found


async def test_dead_events_are_shown_to_nobody() -> None:
    """A process died between the swap and the erasing: every read, bookmark and repeat is as if they were erased."""
    contents = Contents()
    given = await pruned_and_dead(contents)
    left = [given[5], *given[90:]]
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        assert await offsets(store, after_offset=0) == left
        assert sorted(await offsets(store)) == left
        assert (await store.last_bookmark("a")).seq == 9000  # type: ignore[union-attr]
        assert await offsets(store, channel="progress") == await offsets(store)
        entries = [samples.event(9000 if i == 5 else i % 3, cursor=i) for i in range(100)]
        again = list(await store.append_events("a", entries))
        assert [again[5], *again[90:]] == left
        anew = [*again[:5], *again[6:90]]
        assert min(anew) > given[-1] and len(set(anew)) == 89
        assert list(await store.append_events("a", entries)) == again
        assert (await store.check_consistency("a")).consistent


async def test_a_later_prune_erases_what_another_left() -> None:
    """Items and names of dead events go with the next prune; a name that a living event has by now stays."""
    contents = Contents()
    await pruned_and_dead(contents)
    entries = [samples.event(i % 3, cursor=i) for i in range(60) if i != 5]
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        again = list(await store.append_events("a", entries))
        last = (await offsets(store, after_offset=0))[-40]
        await store.prune("a", events_before_offset=last)
        assert len(stored(contents, "e/")) == len(await offsets(store))
        assert list(await store.append_events("a", entries))[-40:] == again[-40:]
        await store.prune("a", events_before_offset=2**62)
        assert (len(stored(contents, "e/")), stored(contents, "x/")) == (1, [])


async def test_a_sweep_erases_dead_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The place is noted before the swap, so that a sweep finds it, and erases what the dead process left."""
    contents = Contents()
    given = await pruned_and_dead(contents)
    assert contents.notes
    monkeypatch.setattr(LEFT, 0)
    engine = RecordEngine(MemoryRecords(contents, **ROOMY))
    await engine.sweep()
    await engine.close()
    assert len(stored(contents, "e/")) == 11
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        assert await offsets(store, after_offset=0) == [given[5], *given[90:]]


async def test_a_late_put_brings_no_event_back() -> None:
    """A put of an event that arrives after it was pruned and erased is shown to nobody."""
    contents = Contents()
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        given = list(await store.append_events("a", [samples.event(7, cursor=i) for i in range(30)]))
        (place,) = [place for place, items in contents.items.items() if items]
        late: list[Item] = list(contents.items[place].values())
        await store.prune("a", events_before_offset=given[20])
        assert len(stored(contents, "e/")) == 10
    slow = MemoryRecords(contents, **ROOMY)
    await slow.apply(place, late)
    assert len(stored(contents, "e/")) == 30
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        assert await offsets(store, after_offset=0) == await offsets(store) == given[20:]
        (anew,) = await store.append_events("a", [samples.event(7, cursor=3)])
        assert anew > given[-1]
        await store.prune("a", events_before_offset=given[21])
        assert len(stored(contents, "e/")) == 10
        assert list(await store.append_events("a", [samples.event(7, cursor=3)])) == [anew]


async def test_a_reader_that_is_slow_sees_one_instant() -> None:
    """The items of a reader are erased between its head and its read: it starts over, and sees the agent as it is."""
    contents = Contents()
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        given = list(await store.append_events("a", samples.events(300)))
        held = Held(MemoryRecords(contents, **ROOMY), "items")
        async with await opened(held) as reader:
            reading = asyncio.ensure_future(offsets(reader, after_offset=0))
            await held.reached.wait()
            await store.prune("a", events_before_offset=given[150])
            held.let_go.set()
            assert await reading == given[150:]


async def test_a_slow_writer_does_not_append_to_what_was_pruned() -> None:
    """A writer that read the head before a prune starts over: no event and no bound is lost."""
    contents = Contents()
    async with await opened(MemoryRecords(contents, **ROOMY)) as store:
        given = list(await store.append_events("a", samples.events(20)))
        held = Held(MemoryRecords(contents, **ROOMY), "swap")
        async with await opened(held) as slow:
            writing = asyncio.ensure_future(slow.append_events("a", [samples.event(100)]))
            await held.reached.wait()
            await store.prune("a", events_before_offset=given[10])
            held.let_go.set()
            (new,) = await writing
        assert await offsets(store, after_offset=0) == [*given[10:], new]


async def test_large_events_leave_no_parts() -> None:
    """The parts of pruned events go with them; those of the kept event stay."""
    contents = Contents()
    async with await opened(MemoryRecords(contents)) as store:
        entries = [samples.event(50 - i, text="y" * 2000) for i in range(12)]
        given = [await store.append_event("a", entry) for entry in entries]
        await store.prune("a", events_before_offset=given[10])
        left = [event async for event in store.read_events("a", after_offset=0)]
        assert [event.offset for event in left] == [given[0], *given[10:]]
        assert all(event.event.data["text"] == "y" * 2000 for event in left)
        keys = {key for parts in contents.parts.values() for key, _ in parts if key.startswith("e/")}
        assert len(keys) == 3


async def test_a_store_that_cannot_erase_refuses() -> None:
    """A record store without ``erase`` cannot remove a part of the events; the other kinds can be pruned."""
    contents = Contents()
    async with await opened(NeverErases(contents, **ROOMY)) as store:
        await store.append_events("a", samples.events(5))
        await store.save_snapshot("a", samples.snapshot())
        with pytest.raises(UnsupportedError, match="records"):
            await store.prune("a", events_before_offset=3, keep_snapshots=0)
        assert len(await store.list_snapshots("a")) == 1
        assert (await store.prune("a", keep_snapshots=0)).snapshots == 1
