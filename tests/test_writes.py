"""What a save sends to the engine: what changed, with the versions it relies on, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from kode_conformance.values import samples

from kode_core import (
    AgentInfo,
    Bookmark,
    InvalidValueError,
    KodeError,
    LockLostError,
    Message,
    OutcomeUnknownError,
    PayloadTooLargeError,
    StoreClosedError,
    StoreTimeoutError,
    StoreUnavailableError,
    ToolResultBlock,
    ToolUseBlock,
    create_extended_store,
)
from kode_core.backends.memory.engine import MemoryEngine, MemorySpace
from kode_core.batch import Batch, EventRange, EventRow, ListRows, Outcome, Refused
from kode_core.engine import Engine
from kode_core.layers import Layer
from kode_core.query import Within
from kode_core.store import EngineStore


class Spy(Layer):
    """Keeps what was committed."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.batches: list[Batch] = []
        self.calls: list[str] = []

    async def around(self, verb: str, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(verb)
        if verb == "commit":
            self.batches.extend(args[0])
        return await super().around(verb, call, *args, **kwargs)

    @property
    def last(self) -> Batch:
        return self.batches[-1]


@asynccontextmanager
async def spied(space: MemorySpace | None = None, **settings: Any) -> AsyncIterator[tuple[EngineStore, Spy]]:
    spy = Spy(MemoryEngine(space))

    async def opener() -> Engine:
        return spy

    async with EngineStore(opener, **settings) as store:
        yield store, spy


def written(batch: Batch) -> tuple[list[int], int]:
    """The positions that were put and the number of messages appended."""
    assert batch.messages is not None
    return [position for position, _ in batch.messages.put], len(batch.messages.append)


async def test_only_what_changed_is_written() -> None:
    """A save of a list writes the records that are new or changed, whether objects are the same or only equal."""
    m = samples.messages(50)
    async with spied() as (store, spy):
        await store.save_messages("a", m)
        assert written(spy.last) == ([], 50)
        await store.save_messages("a", [*m, samples.message(50)])
        assert written(spy.last) == ([], 1)
        await store.save_messages("a", samples.messages(52))
        assert written(spy.last) == ([], 1)
        changed = samples.messages(52)
        changed[7] = samples.message(99)
        await store.save_messages("a", changed)
        assert written(spy.last) == ([7], 0)
        await store.save_messages("a", changed[:10])
        assert (written(spy.last), spy.last.messages.length) == (([], 0), 10)  # type: ignore[union-attr]
        await store.save_messages("a", changed[:10])
        assert (written(spy.last), spy.last.messages.length) == (([], 0), None)  # type: ignore[union-attr]


async def test_one_read_before_the_first_save_and_none_after() -> None:
    """A list is looked at once, before the first save; later saves only write."""
    async with spied() as (store, spy):
        for i in range(1, 5):
            await store.save_messages("a", samples.messages(i))
        assert spy.calls == ["outline", *["commit"] * 4]


async def test_a_save_on_top_of_a_load_writes_what_is_new() -> None:
    """What was loaded need not be looked at again, and is not written again, with dicts inside or without."""
    space = MemorySpace()
    talk = [*samples.rich_messages(), *samples.messages(20)]
    async with spied(space) as (store, _):
        await store.save_messages("a", talk)
    async with spied(space) as (store, spy):
        loaded = await store.load_messages("a")
        await store.save_messages("a", [*loaded, samples.message(1)])
        assert (written(spy.last), spy.calls) == (([], 1), ["rows", "commit"])


async def test_changes_inside_are_found() -> None:
    """A dict changed in place, inside records that are the same objects, is found, at any time and in any of them."""
    inputs: list[dict[str, Any]] = [{"n": i, "deep": {"x": [1]}} for i in range(4)]
    talk = [Message("assistant", [ToolUseBlock(f"c{i}", "t", value)]) for i, value in enumerate(inputs)]
    async with spied() as (store, spy):
        await store.save_messages("a", talk)
        inputs[2]["deep"]["x"].append(2)
        await store.save_messages("a", talk)
        assert written(spy.last) == ([2], 0)
        inputs[1]["n"] = True
        await store.save_messages("a", [*talk, samples.message(0)])
        assert written(spy.last) == ([1], 1)
        inputs[1]["n"] = 1
        await store.save_messages("a", [*talk, samples.message(0)])
        assert written(spy.last) == ([1], 0)
        assert await store.load_messages("a") == [*talk, samples.message(0)]
        loaded = await store.load_messages("a")
        loaded[3].content[0].input["n"] = 1.0  # type: ignore[union-attr]
        await store.save_messages("a", loaded)
        assert written(spy.last) == ([3], 0)


async def test_a_change_while_a_save_is_under_way_is_found_later() -> None:
    """A dict changed while its save is being committed is written by the next save."""
    value: dict[str, Any] = {"n": 0}
    talk = [Message("assistant", [ToolUseBlock("c", "t", value)])]
    async with spied() as (store, spy):
        save = asyncio.ensure_future(store.save_messages("a", talk))
        while not spy.batches:
            await asyncio.sleep(0)
        value["n"] = 1
        await save
        assert await store.load_messages("a") == [Message("assistant", [ToolUseBlock("c", "t", {"n": 0})])]
        await store.save_messages("a", talk)
        assert await store.load_messages("a") == talk


async def test_a_refused_value_does_not_confuse_the_next_save() -> None:
    """After a save that was refused, the next one writes what is right."""
    value: dict[str, Any] = {"n": 0}
    talk = [samples.message(0), Message("user", [ToolResultBlock("c", value)])]
    async with spied() as (store, _):
        await store.save_messages("a", talk)
        value["n"] = {1}
        with pytest.raises(InvalidValueError, match=r"message 1: \$\.content\[0\]\.content\.n: set is not"):
            await store.save_messages("a", talk)
        value["n"] = [2]
        await store.save_messages("a", [*talk, samples.message(1)])
        assert await store.load_messages("a") == [*talk, samples.message(1)]


async def test_a_turn_is_one_commit() -> None:
    """save_turn is one batch, whatever it is given; an append needs no look at the list."""
    async with spied() as (store, spy):
        await store.save_turn(
            "a",
            append=samples.messages(4),
            tool_calls=[samples.tool_call()],
            todos=samples.todos("x"),
            info=samples.info("a"),
            events=samples.events(60),
        )
        await store.append_messages("b", samples.messages(1))
        assert [verb for verb in spy.calls if verb == "commit"] == ["commit"] * 2
        assert len(spy.batches[0].events) == 60


async def test_another_writers_change_is_seen_by_the_version() -> None:
    """A save that relies on an outdated version is refused by the engine, looked at again, and right in the end."""
    space = MemorySpace()
    async with spied(space) as (one, spy), spied(space) as (two, _):
        await one.save_messages("a", samples.messages(3))
        await two.save_messages("a", samples.messages(5, 10))
        await one.save_messages("a", samples.messages(4))
        assert await two.load_messages("a") == samples.messages(4)
        assert spy.calls.count("outline") == 2


class AlwaysChanged(Layer):
    """Another writer that is always faster."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if any(b.messages is not None and b.messages.expect is not None for b in batches):
            return [Refused("messages")]
        return await super().commit(batches)


async def test_a_save_gets_through_whatever_others_do() -> None:
    """A save that loses against others again and again is written whole in the end, as replacing is."""

    async def opener() -> Engine:
        return AlwaysChanged(MemoryEngine())

    async with EngineStore(opener) as store:
        await store.save_messages("a", samples.messages(3))
        assert await store.load_messages("a") == samples.messages(3)


class Slow(Layer):
    """Never answers a verb."""

    def __init__(self, inner: Engine, verb: str) -> None:
        super().__init__(inner)
        self.verb = verb

    async def around(self, verb: str, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        if verb == self.verb:
            await asyncio.sleep(3600)
        return await super().around(verb, call, *args, **kwargs)


@pytest.mark.parametrize("verb", ["rows", "outline"])
async def test_a_call_ends_at_its_deadline(verb: str) -> None:
    """A call whose read never ends raises at its deadline, and says that nothing was written."""

    async def opener() -> Engine:
        return Slow(MemoryEngine(), verb)

    async with EngineStore(opener, timeout_ms=50) as store:
        with pytest.raises(StoreTimeoutError, match=r"was not done after 0.05 s; nothing was written"):
            await (store.load_messages("a") if verb == "rows" else store.save_messages("a", samples.messages(1)))
        assert (await store.health_check()).healthy


class Held(Layer):
    """Commits once it may go on."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.begun, self.goes_on = asyncio.Event(), asyncio.Event()

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        self.begun.set()
        await self.goes_on.wait()
        return await super().commit(batches)


@pytest.mark.parametrize("agents", ["a", ["a", "b"], ["a"], Within("a"), None])
async def test_a_query_finds_what_a_caller_who_left_has_written(agents: Any) -> None:
    """Whether it names the agent, several, a range of agents or none."""
    layer = Held(MemoryEngine())

    async def opener() -> Engine:
        return layer

    async with EngineStore(opener) as store:
        left = asyncio.ensure_future(store.save_info("a", samples.info("a")))
        await layer.begun.wait()
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        filters: Any = {} if agents is None else {"agent_id": agents}
        counted = asyncio.ensure_future(store.count_sessions(**filters))
        for _ in range(100):
            await asyncio.sleep(0)
        layer.goes_on.set()
        assert await counted == 1


async def test_a_write_that_never_ends_holds_up_its_agent_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Later calls for its agent wait and then write nothing; other agents' go on; close says what it could not end."""

    async def opener() -> Engine:
        return HangsFor(MemoryEngine(), "a")

    store = await EngineStore(opener, timeout_ms=200).open()
    with pytest.raises(OutcomeUnknownError, match="in the middle of a write"):
        await store.save_messages("a", samples.messages(1))
    await store.append_event("b", samples.event(0))
    for call in (store.append_event("a", samples.event(0)), store.load_messages("a"), store.delete("a")):
        with pytest.raises(StoreTimeoutError, match="nothing was written"):
            await call
    await store.save_turn("b", append=samples.messages(1), info=samples.info("b"))
    await store.close()
    assert "was not closed after 0.2 s" in caplog.text


async def test_events_that_wait_are_taken_back() -> None:
    """An append that is given up while another one is written was never begun: it says so, and never comes."""
    engine = HangsFor(MemoryEngine(), "a", until=asyncio.Event())

    async def opener() -> Engine:
        return engine

    async with EngineStore(opener, timeout_ms=200) as store:
        first = asyncio.ensure_future(store.append_event("a", samples.event(0)))
        await asyncio.sleep(0.01)
        second = asyncio.ensure_future(store.append_event("a", samples.event(1)))
        await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(StoreTimeoutError, match="nothing was written"):
            await store.append_event("a", samples.event(2))
        with pytest.raises(OutcomeUnknownError):
            await first
        engine.until.set()
        assert [event.bookmark.seq async for event in store.read_events("a")] == [samples.event(0).bookmark.seq]


class Busy(Layer):
    """Keeps the event loop busy beyond the deadline, just before it commits."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        time.sleep(0.3)
        await asyncio.sleep(0)
        return await super().commit(batches)


async def test_an_append_is_in_doubt_when_its_deadline_passes_as_it_ends() -> None:
    """An append that was written in the moment of its deadline does not say that nothing was written."""
    engine = Busy(MemoryEngine())

    async def opener() -> Engine:
        return engine

    async with EngineStore(opener, timeout_ms=200) as store:
        with pytest.raises(OutcomeUnknownError):
            await store.append_event("a", samples.event(0))
        assert len([event async for event in store.read_events("a")]) == 1


async def test_appends_that_were_given_up_never_bring_an_agent_back() -> None:
    """A delete waits for the append that a cancelled caller began, and nothing comes after it."""
    engine = HangsFor(MemoryEngine(), "a", until=asyncio.Event())

    async def opener() -> Engine:
        return engine

    async with EngineStore(opener) as store:
        append = asyncio.ensure_future(store.append_event("a", samples.event(0)))
        await asyncio.sleep(0.01)
        append.cancel()
        delete = asyncio.ensure_future(store.delete("a"))
        await asyncio.sleep(0.01)
        engine.until.set()
        await delete
        await asyncio.sleep(0.01)
        assert [event async for event in store.read_events("a")] == []


async def test_a_failed_open_is_tried_again() -> None:
    """A store whose first call gave up while it opened, and whose opening failed then, opens with the next call."""
    attempts = 0
    failed = asyncio.Event()

    async def opener() -> Engine:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            await asyncio.sleep(0.05)
            failed.set()
            raise StoreUnavailableError("not yet")
        return MemoryEngine()

    store = EngineStore(opener)
    call = asyncio.ensure_future(store.load_messages("a"))
    await asyncio.sleep(0.01)
    call.cancel()
    await failed.wait()
    await asyncio.sleep(0.01)
    assert await store.load_messages("a") == []
    await store.close()


async def test_opening_has_a_deadline() -> None:
    """An engine that never opens ends in an error in time, and the store can be closed."""

    async def opener() -> Engine:
        await asyncio.sleep(3600)
        return MemoryEngine()

    store = EngineStore(opener, timeout_ms=50)
    with pytest.raises(StoreTimeoutError, match="was not open after 0.05 s"):
        await store.open()
    await store.close()


async def test_closing_has_a_deadline(caplog: pytest.LogCaptureFixture) -> None:
    """A store whose engine never closes is closed at the deadline, and the log says so."""

    async def opener() -> Engine:
        return Slow(MemoryEngine(), "close")

    store = await EngineStore(opener, timeout_ms=50).open()
    await store.close()
    assert "was not closed after 0.05 s" in caplog.text
    with pytest.raises(StoreClosedError):
        await store.load_messages("a")


async def test_followers_end_when_the_store_is_closed() -> None:
    """A follower that waits for events is told at once that the store was closed."""
    store = await EngineStore(opened_memory, follow_poll_ms=3_600_000).open()
    follower = asyncio.ensure_future(anext(aiter(store.follow_events("a"))))
    await asyncio.sleep(0.01)
    await store.close()
    with pytest.raises(StoreClosedError):
        await follower


class Pages(Layer):
    """Counts the events that were passed over in looking for those behind an offset."""

    last = 0
    passed = 0

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        rows = await self.inner.events(agent_id, span)
        self.passed += max(0, self.last - max(span.after[1] if span.after else 0, rows[-1].offset if rows else 0))
        return rows


@pytest.mark.parametrize("filters", [{"channel": "control"}, {"since": Bookmark(1_000_000, 0)}], ids=str)
async def test_a_follower_passes_over_an_event_once(filters: dict[str, Any]) -> None:
    """Events that a follower does not want are not looked through again each time that it looks."""
    pages = Pages(MemoryEngine())

    async def opener() -> Engine:
        return pages

    async with EngineStore(opener, follow_poll_ms=1) as store:
        offsets = await store.append_events("a", [samples.event(i, "monitor") for i in range(1_500)])
        pages.last = offsets[-1]
        follower: Any = aiter(store.follow_events("a", **filters))
        wanted = asyncio.ensure_future(anext(follower))
        await asyncio.sleep(0.3)
        assert not wanted.done()
        assert 0 < pages.passed < 3 * 1_500
        await store.append_event("a", samples.event(1_000_001, "control"))
        assert (await wanted).bookmark.seq == 1_000_001
        await follower.aclose()


async def test_an_append_that_was_accepted_opens_the_store() -> None:
    """Closing a store that was never open waits for the append that was made before."""
    async with EngineStore(opened_memory) as store:
        pass
    store = EngineStore(opened_memory)
    append = asyncio.ensure_future(store.append_event("a", samples.event(0)))
    await asyncio.sleep(0)
    await store.close()
    assert await append == 1


class HangsFor(Layer):
    """Begins to write what is for one agent, and goes on when it is told to."""

    def __init__(self, inner: Engine, agent_id: str, until: asyncio.Event | None = None) -> None:
        super().__init__(inner)
        self.agent_id = agent_id
        self.until = until or asyncio.Event()

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if any(batch.agent_id == self.agent_id for batch in batches):
            await self.until.wait()
        return await super().commit(batches)


async def opened_memory() -> Engine:
    """An engine."""
    return MemoryEngine()


class Fails(Layer):
    """Fails every commit as long as it is told to."""

    error: Exception | None = None

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if self.error is not None:
            raise self.error
        return await super().commit(batches)


async def test_a_failed_write_leaves_the_store_usable() -> None:
    """After a write that failed, saves and appends work again and build on what is stored."""
    engine = Fails(MemoryEngine())

    async def opener() -> Engine:
        return engine

    async with EngineStore(opener) as store:
        await store.save_messages("a", samples.messages(2))
        engine.error = StoreUnavailableError("the server went away")
        for call in (store.save_messages("a", samples.messages(3)), store.append_event("a", samples.event(0))):
            with pytest.raises(StoreUnavailableError, match="went away"):
                await call
        engine.error = None
        await store.save_messages("a", samples.messages(4))
        assert await store.append_event("a", samples.event(0)) == 1
        assert await store.load_messages("a") == samples.messages(4)
        metrics = await store.get_metrics()
        assert (metrics.operations.saves, metrics.operations.errors) == (3, 2)


class TooSmall(Layer):
    """Holds nothing, and says so of each batch."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return [PayloadTooLargeError("larger than this engine can hold") for _ in batches]


async def test_any_error_can_be_an_outcome() -> None:
    """What an engine says of a batch is raised at once, and not taken for a conflict that passes."""
    async with EngineStore(lambda: opened(TooSmall(MemoryEngine()))) as store:
        with pytest.raises(PayloadTooLargeError):
            await asyncio.wait_for(store.append_messages("a", [Message.user("hi")]), 30)
        with pytest.raises(PayloadTooLargeError):
            await asyncio.wait_for(store.append_event("a", samples.event(1)), 30)


async def opened(engine: Engine) -> Engine:
    return engine


async def test_opening_is_tried_again_after_a_failure() -> None:
    """A store whose engine could not be opened tries again at the next call."""
    attempts = 0

    async def opener() -> Engine:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise StoreUnavailableError("not yet")
        return MemoryEngine()

    store = EngineStore(opener)
    assert (await store.health_check()).problem == "StoreUnavailableError: not yet"
    with pytest.raises(StoreUnavailableError, match="not yet"):
        await store.list()
    await asyncio.gather(store.list(), store.list(), store.list())
    assert attempts == 3
    await store.close()


async def test_a_retry_of_an_operation_is_not_applied_twice() -> None:
    """An engine that gets the same operation again tells the same outcome and changes nothing (OPS-10)."""
    engine = MemoryEngine()
    async with spied() as (store, spy):
        await store.append_messages("a", samples.messages(2))
        await store.save_info("a", AgentInfo(agent_id="a", template_id="t"))
    first = await engine.commit([spy.batches[0]])
    assert await engine.commit([spy.batches[0]]) == first
    assert isinstance((rows := await engine.rows("a", "messages")), ListRows)  # type: ignore[arg-type]
    assert len(rows.rows) == 2


async def test_a_lost_lease_is_no_conflict() -> None:
    """A write under a lost lease is refused at once and not tried again."""
    async with spied() as (store, spy):
        lease = await store.acquire_agent_lock("a", ttl_ms=20)
        await asyncio.sleep(0.05)
        with pytest.raises(LockLostError):
            await store.save_messages("a", samples.messages(1), fence=lease)
        assert len(spy.batches) == 1


async def test_metrics_of_nothing_are_zero() -> None:
    """A store that did nothing has finite numbers."""
    async with spied() as (store, _):
        metrics = await store.get_metrics()
        assert metrics.performance.avg_latency_ms == metrics.performance.max_latency_ms == 0.0


async def test_closed_stores_say_so() -> None:
    """After close a call says that the store is closed; closing before the first use is fine."""
    async with spied() as (store, _):
        pass
    with pytest.raises(KodeError, match="this store is closed; open a new one"):
        await store.load_messages("a")
    never = EngineStore(_never)
    await never.close()
    await never.close()
    assert repr(never) == "<EngineStore closed>"


async def _never() -> Engine:
    raise AssertionError("must not be opened")


async def test_no_version_comes_back_within_a_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that is deleted and created again while the clock stands still has versions that it never had."""
    monkeypatch.setattr("time.time_ns", lambda: 1_767_258_000_000 * 10**6)
    monkeypatch.setattr("time.time", lambda: 1_767_258_000.0)
    info, seen = AgentInfo(agent_id="a", template_id="t", created_at=1), list[str]()
    async with create_extended_store("memory:") as store:
        for _ in range(20):
            for _ in range(3):
                await store.save_info("a", info)
                seen.append(await store.load_version("a"))
            await store.delete("a")
    assert len(set(seen)) == len(seen)
