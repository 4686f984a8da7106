"""Stores whose calls wait for one another, or for ever (OPS-9 in time, OPS-13)."""

from __future__ import annotations

import asyncio
import inspect
import time
from contextlib import suppress
from typing import Any, Final

from kode_conformance.checks.deadlines import slowed
from kode_conformance.checks.isolation import troubled
from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import OnSqlite, Wrapper, mutant
from conformance.tests.zoo.witnesses import talk
from kode_core.engine import Engine
from kode_core.errors import KodeError, PayloadTooLargeError, StorageError, StoreTimeoutError, StoreUnavailableError
from kode_core.store import EngineStore

_WRITES: Final = ("save_", "append_", "upsert_", "delete", "batch_fork")

# --- in the way of other agents ---------------------------------------------------------------------------------------


class _OneCall(Wrapper):
    """Does something around every call that is awaited."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if not inspect.iscoroutinefunction(method) or name == "close":
            return method

        async def called(*args: Any, **kwargs: Any) -> Any:
            return await self.around(name, method, args, kwargs)

        return called

    async def around(self, name: str, method: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError


async def _hangs(ctx: Context, bad: str, good: str) -> object:
    store, trouble = await troubled(ctx)
    trouble.hanging = {"a"}
    calls = {
        "save": lambda agent: store.save_messages(agent, talk("1")),
        "event": lambda agent: store.append_event(agent, samples.event(1)),
        "load": store.load_messages,
    }
    hung = asyncio.ensure_future(calls[bad]("a"))
    await asyncio.sleep(0.02)
    other = asyncio.ensure_future(calls[good]("b"))
    await asyncio.wait([other], timeout=0.3)
    ended = other.done()
    trouble.let_go.set()
    await asyncio.wait([hung, other])
    return ended


@mutant(
    "OPS-13",
    killed_by="what_hangs_holds_up_no_other_agent",
    witness=lambda ctx: _hangs(ctx, "save", "save"),
    source="one lock around all writes, as around a file",
)
class SerialWritesForAllAgents(_OneCall):
    """Makes one write after the other, for all agents together."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._lock = asyncio.Lock()

    async def around(self, name: str, method: Any, args: Any, kwargs: Any) -> Any:
        if not name.startswith(_WRITES) or name == "delete_many":
            return await method(*args, **kwargs)
        async with self._lock:
            return await method(*args, **kwargs)


@mutant(
    "OPS-13",
    killed_by="what_hangs_holds_up_no_other_agent",
    witness=lambda ctx: _hangs(ctx, "event", "event"),
    source="one writer task with a queue for the events of all agents",
)
class OneQueueForAllEvents(_OneCall):
    """Appends the events of all agents one after the other."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._lock = asyncio.Lock()

    async def around(self, name: str, method: Any, args: Any, kwargs: Any) -> Any:
        if name != "append_event":
            return await method(*args, **kwargs)
        async with self._lock:
            return await method(*args, **kwargs)


async def _fails(ctx: Context) -> object:
    store, trouble = await troubled(ctx)
    trouble.failing = {"a": StoreUnavailableError("refused")}
    await asyncio.gather(*(store.load_messages("a") for _ in range(4)), return_exceptions=True)
    (found,) = await asyncio.gather(store.exists("b"), return_exceptions=True)
    return found


@mutant(
    "OPS-13",
    killed_by="what_fails_fails_no_other_agent",
    witness=_fails,
    source="a circuit breaker that counts the failures of all",
    raises="the circuit is open",
)
class OneCircuitBreaker(_OneCall):
    """Refuses all calls for a while after three have failed."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._failures = 0
        self._until = 0.0

    async def around(self, name: str, method: Any, args: Any, kwargs: Any) -> Any:
        if time.monotonic() < self._until:
            raise StoreUnavailableError("the circuit is open")
        try:
            found = await method(*args, **kwargs)
        except StorageError:
            self._failures += 1
            if self._failures >= 3:
                self._failures, self._until = 0, time.monotonic() + 0.5
            raise
        self._failures = 0
        return found


class _Groups(_OneCall):
    """Gathers the appends of an agent that come in one turn of the event loop; they have one fate."""

    refuses: type[Exception] = KodeError

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._groups: dict[str, list[asyncio.Future[Any]]] = {}

    async def around(self, name: str, method: Any, args: Any, kwargs: Any) -> Any:
        if name != "append_event" or not isinstance(args[0], str):
            return await method(*args, **kwargs)
        group = self._groups.setdefault(args[0], [])
        mine = asyncio.ensure_future(method(*args, **kwargs))
        group.append(mine)
        await asyncio.sleep(0)
        results = await asyncio.gather(*group, return_exceptions=True)
        self._groups.pop(args[0], None)
        for result in results:
            if isinstance(result, self.refuses):
                raise result
        return await mine


async def _one_of_four(ctx: Context) -> object:
    store, trouble = await troubled(ctx)
    trouble.too_large = PayloadTooLargeError("too large")
    entries = [samples.event(0, text="x" * (trouble.limit + 1)), samples.event(1), samples.event(2)]
    results = await asyncio.gather(*(store.append_event("a", entry) for entry in entries), return_exceptions=True)
    return [type(result).__name__ for result in results]


@mutant(
    "OPS-13",
    killed_by="one_append_too_large_fails_alone",
    witness=_one_of_four,
    source="a batch of inserts in one transaction",
)
class GroupsFailTogether(_Groups):
    """Fails all appends that were made at once when one of them is too large."""

    refuses = PayloadTooLargeError


async def _one_without_a_lease(ctx: Context) -> object:
    lease = await ctx.store.acquire_agent_lock("a")
    await lease.release()
    calls = (ctx.store.append_event("a", samples.event(1), fence=lease), ctx.store.append_event("a", samples.event(2)))
    return [type(result).__name__ for result in await asyncio.gather(*calls, return_exceptions=True)]


@mutant(
    "OPS-13",
    killed_by="what_is_refused_takes_nothing_along",
    witness=_one_without_a_lease,
    source="asyncio.gather over a group, without return_exceptions",
)
class RefusalsAreShared(_Groups):
    """Refuses all appends that were made at once when one of them has a lease that ended."""

    refuses = KodeError


async def _reads_meanwhile(ctx: Context) -> object:
    save = asyncio.ensure_future(ctx.store.save_messages("a", samples.messages(20_000)))
    await asyncio.sleep(0)
    await ctx.store.load_messages("b")
    early = not save.done()
    await save
    return early


@mutant(
    "OPS-13",
    killed_by="a_large_write_holds_up_no_other_agent",
    witness=_reads_meanwhile,
    on=OnSqlite,
    source="a lock for readers and writers over the whole store",
)
class ReadersWaitForWriters(_OneCall):
    """Lets nobody read while a list is saved."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._lock = asyncio.Lock()

    async def around(self, name: str, method: Any, args: Any, kwargs: Any) -> Any:
        if name not in ("save_messages", "load_messages"):
            return await method(*args, **kwargs)
        async with self._lock:
            return await method(*args, **kwargs)


# --- without an end ---------------------------------------------------------------------------------------------------


@mutant(
    "OPS-9",
    killed_by="a_write_beyond_its_deadline_is_told_truly",
    witness=lambda ctx: _told(ctx),
    source="`except TimeoutError: raise StoreTimeoutError`, whatever was under way",
)
class SaysThatNothingWasWritten(EngineStore):
    """Says of a write whose deadline passed that nothing was written, and it is there."""

    async def save_todos(self, agent_id: str, snapshot: Any, *, fence: Any = None) -> None:
        try:
            await super().save_todos(agent_id, snapshot, fence=fence)
        except StorageError as exc:
            raise StoreTimeoutError("not done in time; nothing was written") from exc


async def _told(ctx: Context) -> object:
    store, slow = await slowed(ctx)
    slow.after = 0.4
    (result,) = await asyncio.gather(store.save_todos("a", samples.todos("1")), return_exceptions=True)
    return type(result).__name__


async def _closes(ctx: Context) -> object:
    store, slow = await slowed(ctx)
    slow.is_hanging = True
    with suppress(StorageError):
        await store.append_event("a", samples.event(1))
    ctx.leave(store)
    closing = asyncio.ensure_future(store.close())
    await asyncio.wait([closing], timeout=1.5)
    ended = closing.done()
    slow.let_go.set()
    await asyncio.gather(closing, return_exceptions=True)
    return ended


@mutant(
    "OPS-9",
    killed_by="every_call_ends_though_the_engine_hangs",
    witness=_closes,
    source="close that joins its writer without a limit",
)
class ClosesWithoutADeadline(EngineStore):
    """Waits in close for as long as the engine hangs."""

    async def close(self) -> None:
        with suppress(KodeError):
            await self._hang_too()
        await super().close()

    async def _hang_too(self) -> None:
        if self._context._engine is not None:
            await self._context.engine.summary("nobody")


async def _metrics(ctx: Context) -> object:
    store, slow = await slowed(ctx)
    slow.is_hanging = True
    call = asyncio.ensure_future(store.get_metrics())
    await asyncio.wait([call], timeout=1)
    ended = call.done()
    slow.let_go.set()
    await asyncio.gather(call, return_exceptions=True)
    return ended


@mutant(
    "OPS-9",
    killed_by="every_call_ends_though_the_engine_hangs",
    witness=_metrics,
    source="a method that was written beside the way that all others go",
)
class OneCallHasNoDeadline(EngineStore):
    """Has a deadline for every call but that of its metrics."""

    async def get_metrics(self) -> Any:
        engine: Engine = await self._context.open()
        await engine.totals()
        return await super().get_metrics()
