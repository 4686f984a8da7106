"""OPS-9: calls that the engine makes longer than their deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, cast

from kode_conformance.calls.methods import calls_of, drive
from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import Suspected, judged
from kode_conformance.instruments.patience import SOON_S
from kode_conformance.kills.writes import WRITES, expected, portrait, seed
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.batch import Batch, Outcome
from kode_core.engine import Engine
from kode_core.errors import KodeError, OutcomeUnknownError, Retry, StorageError, StoreTimeoutError
from kode_core.layers import Layer
from kode_core.protocols import ExtendedStore, Lease

_E = Capability.EXTENDED
_TIMEOUT_MS: Final = 250


class _Slow(Layer):
    """Commits in a task of its own, which goes on when its caller gives up; it begins late, or ends late."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.before = self.after = 0.0
        self.is_hanging = False
        self.let_go = asyncio.Event()
        self.closed = asyncio.Event()

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if self.is_hanging:
            await self.let_go.wait()
        return await call(*args, **kwargs)

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            self.closed.set()

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        if not (self.before or self.after):
            return await super().commit(batches)

        async def late() -> Sequence[Outcome]:
            before, after = self.before, self.after
            await asyncio.sleep(before)
            outcomes = await self.inner.commit(batches)
            await asyncio.sleep(after)
            return outcomes

        return await asyncio.shield(asyncio.ensure_future(late()))


async def slowed(ctx: Context) -> tuple[ExtendedStore, _Slow]:
    layers: list[_Slow] = []

    def put(engine: Engine) -> Engine:
        layers.append(_Slow(engine))
        return layers[-1]

    store = await hasty(ctx, put, timeout_ms=_TIMEOUT_MS)
    return store, layers[-1]


_ATTEMPTS: Final = 40


async def hasty(ctx: Context, layer: Callable[[Engine], Engine] | None = None, *, timeout_ms: int) -> ExtendedStore:
    """Another instance with that deadline, which its opening has, too: on a busy machine it may take some attempts."""
    for _ in range(_ATTEMPTS):
        with suppress(StoreTimeoutError):
            return await ctx.another(layer, timeout_ms=timeout_ms)
    return await ctx.another(layer, timeout_ms=timeout_ms)


@check("OPS-9", "OPS-10", needs=_E, tier=Tier.STANDARD, under=(Dimension.INTERRUPTIONS,))
async def a_write_beyond_its_deadline_is_told_truly(ctx: Context) -> None:
    """When the deadline of a write of any kind passes in the engine, the error says that nothing was written only if
    that is so and stays so; the first read that is answered afterwards sees how the write ended.
    """
    store, slow = await slowed(ctx)
    late = 1.6 * _TIMEOUT_MS / 1000
    wanted = {write: await expected(ctx.store, write) for write in WRITES}
    for before, after in ((late, 0.0), (0.0, late)):
        ids = {write: f"{write.name}-{before}" for write in WRITES}
        for agent_id in ids.values():
            await seed(ctx.store, agent_id)
            await store.exists(agent_id)
        slow.before, slow.after = before, after
        ends = await asyncio.gather(*(write.act(store, ids[write]) for write in WRITES), return_exceptions=True)
        slow.before = slow.after = 0.0
        # One after the other: dozens of reads at once would hold up each other beyond this deadline on a slow database.
        found = {write: await _first_portrait(ctx, store, ids[write]) for write in WRITES}
        await asyncio.sleep(late)
        for write, end in zip(WRITES, ends, strict=True):
            what = f"{write.name}, whose engine call took longer than its deadline, raised {end!r}"
            ctx.true(not isinstance(end, BaseException) or isinstance(end, StorageError), what)
            later = await portrait(ctx.store, ids[write])
            ctx.equal(found[write], later, f"{what}: what was read first, and what is there a moment later")
            is_done = not isinstance(end, BaseException)
            problem = wanted[write].problem(later, done=is_done)
            ctx.true(problem is None, f"{what}: {problem}")
            if isinstance(end, StorageError) and end.retry is not Retry.CHECK:
                problem = wanted[write]._replace(after=wanted[write].before).problem(later, done=True)
                ctx.true(problem is None, f"{what}, as if nothing were written: {problem}")


async def _first_portrait(ctx: Context, store: ExtendedStore, agent_id: str) -> Any:
    """The first answered read of the agent: a read that waits for an unfinished write has a deadline, too."""
    times = int(40 * ctx.harness.patience)
    for _ in range(times):
        try:
            return await portrait(store, agent_id)
        except StorageError as exc:
            if not isinstance(exc, TimeoutError):
                raise
    raise Violation(f"agent {agent_id!r} could not be read within {times * _TIMEOUT_MS / 1000:g} s")


@check("OPS-9", "OPS-5", needs=_E, under=(Dimension.INTERRUPTIONS,))
async def every_call_ends_though_the_engine_hangs(ctx: Context) -> None:
    """When the engine answers nothing any more every method of the protocols ends with an error of this library, and
    so do the health check, with a verdict, and close.
    """
    store, slow = await slowed(ctx)
    await seed(ctx.store, "a")
    lease = await _leased(store)
    slow.is_hanging = True
    try:
        calls = {name: drive(*call) for name, call in calls_of(store).items() if name != "backup"}  # it may take long
        calls["renew"] = lease.renew()
        for name, error in (await _ended(ctx, calls)).items():
            ctx.true(error is None or isinstance(error, KodeError), f"{name}, while the engine hangs, raised {error!r}")
        await _ended(ctx, {"health_check": store.health_check()})
        ctx.leave(store)
        (error,) = (await _ended(ctx, {"close": store.close()})).values()
        ctx.true(error is None or isinstance(error, KodeError), f"close, while the engine hung, raised {error!r}")
    finally:
        slow.let_go.set()
    await ctx.ended([asyncio.ensure_future(slow.closed.wait())])
    ctx.equal(len(await ctx.store.load_messages("a")), 3, "the messages, by another instance")


async def _leased(store: ExtendedStore) -> Lease:
    """A lease, though the deadline of a call may pass on a busy machine: then the lock may be held, and is left."""
    for number in range(_ATTEMPTS):
        with suppress(StoreTimeoutError, OutcomeUnknownError):
            return await store.acquire_agent_lock(f"held-{number}")
    return await store.acquire_agent_lock("held")


async def _ended(
    ctx: Context, calls: Mapping[str, Awaitable[Any]], seconds: float = SOON_S
) -> dict[str, BaseException | None]:
    """The errors of calls, which must end in time."""
    tasks = {name: asyncio.ensure_future(call) for name, call in calls.items()}
    await ctx.ended(tasks.values(), seconds)
    for name, task in tasks.items():
        ctx.true(task.done(), f"{name} did not end in {seconds:g} s, with a deadline of {_TIMEOUT_MS} ms")
    return {name: None if task.cancelled() else task.exception() for name, task in tasks.items()}


@check("OPS-9", "QRY-6", "MSG-10", "EVT-5", needs=_E, under=(Dimension.INTERRUPTIONS,))
async def the_pauses_of_a_reader_count_for_nothing(ctx: Context) -> None:
    """A reader of any stream that takes longer than the deadline of a call over one record gets all others: a page is a
    call, and the reader's time between two records is no part of one.
    """
    await ctx.store.save_turn(
        "a",
        info=samples.info("a"),
        messages=samples.messages(3),
        tool_calls=[samples.tool_call(i) for i in range(3)],
        events=samples.events(3),
    )
    for agent_id in ("b", "c"):
        await ctx.store.save_info(agent_id, samples.info(agent_id))

    async def attempt(longer: int) -> None:
        store = await hasty(ctx, timeout_ms=_READERS_MS * longer)
        streams: dict[str, AsyncIterator[Any]] = {
            "iter_sessions": store.iter_sessions(order="asc"),
            "iter_messages": store.iter_messages(order="asc"),
            "iter_tool_calls": store.iter_tool_calls(order="asc"),
            "read_messages": store.read_messages("a"),
            "read_events": store.read_events("a"),
            "follow_events": store.follow_events("a"),
        }
        seen = dict.fromkeys(streams, 0)
        try:
            for pause_s in (0.0, 1.3 * longer * _READERS_MS / 1000, 0.0):
                await asyncio.sleep(pause_s)
                for name, stream in streams.items():
                    seen[name] += await _is_next(stream, name)
        finally:
            for stream in streams.values():
                await cast(AsyncGenerator[Any, None], stream).aclose()
        ctx.equal(seen, dict.fromkeys(streams, 3), "how many of three records a reader got who took his time")

    await judged(attempt)


_READERS_MS: Final = 1_000


async def _is_next(stream: AsyncIterator[Any], name: str) -> int:
    try:
        return 1 if await anext(stream, None) is not None else 0
    except StoreTimeoutError as exc:
        raise Suspected(f"{name} ended after a pause of its reader that was longer than a deadline: {exc}") from exc
