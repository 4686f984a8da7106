"""Each of these faults, which only an interruption shows, fails the check that is there for it."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from kode_conformance import Handle, Space, StoreHarness, Violation, load_checks, run_check
from kode_conformance.builtin import JsonHarness
from kode_conformance.context import Unverified
from kode_conformance.harness import Limits
from kode_conformance.settings import Settings, Tier
from msgspec.structs import replace

from kode_core import Store, create_extended_store
from kode_core.backends.json_files.plugin import JsonOptions, open_json
from kode_core.backends.memory.engine import MemoryEngine, MemorySpace
from kode_core.batch import Batch, ListKind, ListRows, Outcome, with_bodies
from kode_core.codec import Body
from kode_core.engine import Engine
from kode_core.errors import PayloadTooLargeError, StoreUnavailableError
from kode_core.layers import Layer
from kode_core.store import EngineStore

_spaces: dict[str, MemorySpace] = {}
_broken: set[str] = set()


# A check that fails leaves calls and stores behind that nobody waits for or closes any more.
pytestmark = [
    pytest.mark.selftest,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]


class Sound(Layer):
    """A layer over a memory engine, which can be cut off from it, and is right."""

    place = ""

    def check(self) -> None:
        if self.place in _broken:
            raise StoreUnavailableError("cut off")

    async def around(self, verb: str, call: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any:
        if verb != "close":
            self.check()
        return await call(*args, **kwargs)

    def probes(self) -> Any:
        async def probe() -> None:
            self.check()

        return [*self.inner.probes(), ("database", probe)]


class Harness(StoreHarness):
    """A memory store with a layer, and all hooks; or what the fields say."""

    name = "interrupted"
    lacks = frozenset({"CROSS_PROCESS", "PERSISTENT"})
    limits = Limits(max_payload_bytes=3000)
    secrets = ("hunter2",)
    layer: type[Sound] = Sound
    store: type[EngineStore] = EngineStore

    def __init__(self, layer: type[Sound] = Sound, store: type[EngineStore] = EngineStore) -> None:
        self.layer = layer
        self.store = store

    async def provision(self, space: Space) -> Handle:
        _spaces[space.name] = MemorySpace()
        return {"name": space.name}

    async def open(self, handle: Handle) -> Store:
        async def engine() -> Engine:
            layer = self.layer(MemoryEngine(_spaces[handle["name"]]))
            layer.place = handle["name"]
            layer.check()
            return layer

        return await self.store(engine).open()

    async def break_backend(self, handle: Handle) -> None:
        _broken.add(handle["name"])

    async def heal_backend(self, handle: Handle) -> None:
        _broken.discard(handle["name"])

    async def raw_dump(self, handle: Handle) -> str:
        return pickle.dumps(_spaces[handle["name"]]).decode("latin-1")


# --- Faults -----------------------------------------------------------------------------------------------------------


class TornByCancel(EngineStore):
    """Writes the parts of a turn one after the other: a cancellation comes between."""

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        later = {name: parts.pop(name) for name in ("events", "todos") if name in parts}
        await super().save_turn(agent_id, **parts)
        await asyncio.sleep(0)
        await super().save_turn(agent_id, **later)


class LeavesTasks(Sound):
    """Starts a task for every commit, which never ends."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        self.tasks = [*getattr(self, "tasks", ()), asyncio.ensure_future(asyncio.sleep(1000))]
        return await super().commit(batches)

    async def close(self) -> None:
        for task in getattr(self, "tasks", ()):
            task.cancel()


class LosesReaders(Sound):
    """Has four readers, and forgets to give one back when a read is cancelled."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self._free = asyncio.Semaphore(4)

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        await self._free.acquire()
        await asyncio.sleep(0)
        found = await super().rows(agent_id, kind)
        self._free.release()
        return found


class Drops(Sound):
    """Acknowledges what it does not write, once the store is being closed."""

    is_closing = False

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if not self.is_closing:
            return await super().commit(batches)
        space = pickle.loads(pickle.dumps(self.inner._space))  # type: ignore[attr-defined]
        return await MemoryEngine(space).commit(batches)


class DropsAtClose(EngineStore):
    """Tells its layer that it is being closed."""

    async def close(self) -> None:
        if not self._context.is_closed:
            self._context.engine.is_closing = True  # type: ignore[attr-defined]
        await super().close()


class SaysNothingWritten(Sound):
    """Fails after it has written, and says that nothing was."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await self.inner.commit(batches)
        self.check()
        return outcomes


class RetriesBlindly(Sound):
    """Tries again what may have been written."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if self.place not in _broken:
            return await super().commit(batches)
        await self.inner.commit(batches)
        blind = [replace(b, op_id=f"{b.op_id}-again", messages=_unconditional(b.messages)) for b in batches]
        return await self.inner.commit(blind)


def _unconditional(write: Any) -> Any:
    return None if write is None else replace(write, expect=None)


class ReadsNothing(Sound):
    """Takes a read that failed for one that found nothing."""

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        try:
            return await super().rows(agent_id, kind)
        except StoreUnavailableError:
            return ListRows(0, [])


class AlwaysWell(Sound):
    """Never looks whether it is well."""

    def probes(self) -> Any:
        return []


class Limited(Sound):
    """Refuses bodies above the limit that the harness states, and is right."""

    limit = 3000

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        def measured(body: Body) -> Body:
            if len(body.text.encode()) > self.limit:
                raise PayloadTooLargeError(f"a record of more than {self.limit} bytes")
            return body

        for batch in batches:
            with_bodies(batch, measured)
        return await super().commit(batches)


class LimitedTooSoon(Limited):
    limit = 2999


class KeepsTodos(Sound):
    """Leaves todos behind where no read finds them."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        space = self.inner._space  # type: ignore[attr-defined]
        kept = {f"\0{b.agent_id}": space.state(b.agent_id) for b in batches if b.delete}
        outcomes = await super().commit(batches)
        space.states.update(kept)
        return outcomes


class NeverFences(Sound):
    """Does not look at the fence."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([replace(batch, fence=None) for batch in batches])


class ShowsItself(EngineStore):
    def __repr__(self) -> str:
        return "<store at db://agent:hunter2@host>"


class KeepsGhosts(EngineStore):
    """A waiter that is cancelled while it is asked for keeps the lock."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._locks._take = self._take  # type: ignore[method-assign]

    async def _take(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        context = self._context
        return await context.underway.finish((agent_id,), context.engine.acquire_lease(agent_id, owner, ttl_ms))


class SlowToTake(Sound):
    """Takes its time between having a lease and saying so."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        token = await super().acquire_lease(agent_id, owner, ttl_ms)
        await asyncio.sleep(0.01)
        return token


class ReadsAllFirst(EngineStore):
    async def read_events(self, agent_id: str, **how: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        for event in [event async for event in super().read_events(agent_id, **how)]:
            yield event


class OnFiles(JsonHarness):
    """The JSON store below a layer."""

    layer: type[Sound] = Sound

    async def open(self, handle: Handle) -> Store:
        async def engine() -> Engine:
            return self.layer(await open_json(JsonOptions(base_dir=handle["base_dir"])))

        return await EngineStore(engine).open()

    async def crash_backend(self, handle: Handle) -> None:
        """A server that loses nothing."""


class OnFilesUnfenced(OnFiles):
    layer = NeverFences


class LosesTheLast(OnFiles):
    """The last message that was written is lost in a crash, and nothing in the files tells."""

    async def crash_backend(self, handle: Handle) -> None:
        async with create_extended_store(type="json", base_dir=handle["base_dir"]) as store:
            for path in Path(handle["base_dir"]).glob("a*.jsonl"):
                messages = await store.load_messages(path.stem)
                await store.save_messages(path.stem, messages[:-1])


class OpensAnything(OnFiles):
    """What a newer version wrote is opened."""

    async def raise_version(self, handle: Handle) -> None:
        pass


class LeavesThreads(OnFiles):
    async def open(self, handle: Handle) -> Store:
        threading.Thread(target=time.sleep, args=(120,), daemon=True).start()
        return await super().open(handle)


FAULTS: list[tuple[StoreHarness, str, str]] = [
    (Harness(store=TornByCancel), "a_write_cancelled_at_any_step", "save_turn, cancelled after .* neither as before"),
    (Harness(LeavesTasks), "a_write_cancelled_at_any_step", "leave tasks behind"),
    (Harness(LosesReaders), "a_read_cancelled_at_any_step", "did not end"),
    (Harness(Drops, DropsAtClose), "close_with_every_write_in_flight", "acknowledged, and is not there"),
    (Harness(SlowToTake, KeepsGhosts), "cancelled_waiters_are_no_ghosts", "never got the lock"),
    (Harness(SaysNothingWritten), "nothing_is_lost_or_doubled_in_outages", "are there, though the error says"),
    (Harness(RetriesBlindly), "nothing_is_lost_or_doubled_in_outages", "there twice"),
    (Harness(ReadsNothing), "an_outage_is_told_and_ends", "load_messages told during an outage, without an error"),
    (Harness(AlwaysWell), "an_outage_is_told_and_ends", "healthy during an outage"),
    (Harness(), "a_stated_limit_is_where_it_is_said_to_be", "expected PayloadTooLargeError, but it returned"),
    (Harness(KeepsTodos), "nothing_of_a_deleted_agent_is_stored", "still holds: message, tool call, todo"),
    (Harness(store=ShowsItself), "no_secret_is_told", "<THE SECRET>"),
    (Harness(store=ReadsAllFirst), "a_long_log_is_read_in_little_memory", "MB of memory"),
    (OnFilesUnfenced(), "a_stopped_holder_is_fenced_off", "a holder that goes on after its lease has ended"),
    (LosesTheLast(), "acknowledged_writes_survive_a_crash_of_the_server", "acknowledged and are lost"),
    (OpensAnything(), "a_newer_version_is_refused", "expected SchemaVersionError, but it returned"),
    (LeavesThreads(), "opening_and_closing_leaves_nothing", "threads"),
]

SOUND: list[StoreHarness] = [Harness(), Harness(Limited), OnFiles()]


def _run(name: str, harness: StoreHarness) -> None:
    check = next(check for check in load_checks() if check.name == name)
    run_check(check, harness, Settings(tier=Tier.STANDARD, seed=1))


def _fault(harness: StoreHarness) -> str:
    if isinstance(harness, Harness):
        return (harness.layer if harness.layer is not Sound else harness.store).__name__
    return type(harness).__name__


@pytest.mark.slow
@pytest.mark.parametrize(("harness", "name", "message"), FAULTS, ids=[_fault(harness) for harness, _, _ in FAULTS])
def test_the_fault_fails_its_check(harness: StoreHarness, name: str, message: str) -> None:
    """A store with this fault fails the check, for the reason that is the fault's."""
    with pytest.raises((Violation, AssertionError), match=f"(?s){message}"):
        _run(name, harness)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({name for _, name, _ in FAULTS}))
def test_what_is_sound_passes(name: str) -> None:
    """What the faulty stores are made of passes each of the checks, where its hooks allow to tell."""
    passed = 0
    for harness in SOUND:
        check = next(check for check in load_checks() if check.name == name)
        is_limit = name == "a_stated_limit_is_where_it_is_said_to_be"
        if any(lack in (check.needs.name or "") for lack in harness.lacks) or (
            is_limit and _fault(harness) != "Limited"
        ):
            continue
        try:
            _run(name, harness)
            passed += 1
        except Unverified:
            continue
    assert passed


def test_a_limit_that_comes_too_soon_is_found() -> None:
    """A record that is as large as the stated limit must be taken."""
    with pytest.raises(PayloadTooLargeError):
        _run("a_stated_limit_is_where_it_is_said_to_be", Harness(LimitedTooSoon))
