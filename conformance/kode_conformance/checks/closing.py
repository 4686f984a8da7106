"""OPS-5, OPS-3, ID-2: stores that are closed while they are busy, and stores that are open next to each other."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, cast

from kode_conformance.calls.methods import calls_of, drive
from kode_conformance.checks.leases import take
from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context, Violation, difference
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import Space, keeps_documents
from kode_conformance.instruments.layering import Trouble
from kode_conformance.instruments.pace import in_time
from kode_conformance.instruments.yielding import turns_pass
from kode_conformance.kills.writes import DOCUMENT_WRITES, EXTENDED_WRITES, WRITES, Write, overwrite, portrait, seed
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.engine import Engine
from kode_core.errors import KodeError, LockUnavailableError, StoreClosedError
from kode_core.protocols import ExtendedStore

_E: Final = Capability.EXTENDED
_OF_WHAT_THERE_IS: Final = ("batch_fork", "fork", "replace_message", "update_info")
_ENDLESS: Final = ("follow_events",)
"""Iterators that do not end by themselves."""


def iterators_of(store: ExtendedStore, agent_id: str) -> dict[str, Callable[[], AsyncIterator[Any]]]:
    """Every method that gives an iterator, by introspection, and reading by offset."""
    found: dict[str, Callable[[], AsyncIterator[Any]]] = {}
    for name, (method, given) in calls_of(store, agent_id).items():
        if name.startswith(("iter_", "read_", "follow_")):
            found[name] = partial(method, **given)
    found["read_events by offset"] = lambda: store.read_events(agent_id, after_offset=0)
    return found


async def _begun(ctx: Context, store: ExtendedStore) -> dict[str, AsyncIterator[Any]]:
    """One iterator of each kind, from which an item was taken if it has one."""
    begun = {}
    for name, make in iterators_of(store, "a").items():
        iterator = begun[name] = make().__aiter__()
        if name == "iter_consistency":
            continue  # it has an item only where there is an issue
        try:
            async with ctx.within():
                await anext(iterator)
        except StopAsyncIteration:
            raise Violation(f"{name} gave nothing of an agent that has everything") from None
    return begun


async def _busy(store: ExtendedStore) -> None:
    """An agent with more of each kind than one page of a store."""
    await fill(store, "a")
    await store.append_messages("a", samples.messages(600, 3))
    await store.save_tool_call_records("a", [samples.tool_call(i) for i in range(200)])
    await store.append_events("a", samples.events(700, 3))


@check(
    "OPS-5",
    "EVT-7",
    needs=_E,
    tier=Tier.STANDARD,
    under=(Dimension.INTERRUPTIONS, Dimension.COMPANY, Dimension.INSTANCES),
)
async def all_that_is_under_way_ends_when_a_store_is_closed(ctx: Context) -> None:
    """When a store is closed, twice at once, every call and every iterator that is under way in it ends, whole or with
    StoreClosedError; calls and iterators of another instance of the same store go on, and its leases stay.
    """
    await _busy(ctx.store)
    held = await ctx.store.acquire_agent_lock("b")
    follower = ctx.store.follow_events("b").__aiter__()
    for steps in in_time(ctx, (10, 0, 3, 1, 40)):
        store = await ctx.another()
        begun = await _begun(ctx, store) if steps in (0, 10) else {}
        calls = calls_of(store, f"busy {steps}", target=str(ctx.folder / f"copy {steps}"))
        tasks = {name: asyncio.ensure_future(drive(*call)) for name, call in calls.items()}
        tasks["a lock that is held"] = asyncio.ensure_future(_waiter(store))
        tasks |= {f"{name}, begun before": asyncio.ensure_future(_to_the_end(it)) for name, it in begun.items()}
        await turns_pass(steps)
        closing = [asyncio.ensure_future(store.close()) for _ in range(2)]
        await _see_ended(ctx, tasks, closing, f"closed after {steps} steps")
    arrived = asyncio.ensure_future(anext(follower))
    await ctx.store.append_event("b", samples.event(7))
    async with ctx.within():
        ctx.equal((await arrived).bookmark.seq, 7, "what a follower of another instance gets after others were closed")
    await held.renew()
    await held.release()


async def _waiter(store: ExtendedStore) -> object:
    return await store.acquire_agent_lock("b", wait_ms=60_000)


async def _to_the_end(iterator: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in iterator]


async def _see_ended(
    ctx: Context, tasks: Mapping[str, asyncio.Future[Any]], closing: list[asyncio.Task[None]], when: str
) -> None:
    await ctx.ended([*tasks.values(), *closing])
    hanging = [name for name, task in tasks.items() if not task.done()]
    for task in (*tasks.values(), *closing):
        task.cancel()
    ctx.equal(hanging, [], f"what is still under way, {when}")
    for one in closing:
        ctx.true(one.done() and not one.cancelled(), f"close must end, {when}")
        ctx.true(one.exception() is None, f"close raised {one.exception()!r}, {when}")
    for name, task in tasks.items():
        ctx.true(not task.cancelled(), f"{name} was cancelled, {when}")
        error = task.exception()
        is_fine = error is None or isinstance(error, KodeError)
        ctx.true(is_fine, f"{name} raised {type(error).__name__}: {error}, {when}")
        if name == "a lock that is held":
            ctx.true(isinstance(error, StoreClosedError), f"{name} must raise StoreClosedError, not {error!r}, {when}")


@check("OPS-5", "LOCK-5", needs=_E, under=(Dimension.INTERRUPTIONS, Dimension.ORDERS))
async def what_was_begun_before_close_is_over(ctx: Context) -> None:
    """After close an iterator that was begun before gives all there is or raises StoreClosedError, and never ends as if
    that were all. An iterator that was only made, and every lock and lease taken before, raises it, except for a
    release.
    """
    await fill(ctx.store, "a")
    await ctx.store.append_messages("a", samples.messages(700, 3))
    await ctx.store.append_events("a", samples.events(700, 3))
    whole = {name: await _count(make()) for name, make in iterators_of(ctx.store, "a").items() if name not in _ENDLESS}
    store = await ctx.another()
    begun = await _begun(ctx, store)
    made = {name: make().__aiter__() for name, make in iterators_of(store, "a").items()}
    lock, lease = store.acquire_agent_lock("b"), await store.acquire_agent_lock("a")
    await store.close()
    for name, iterator in made.items():
        await ctx.raises(StoreClosedError, anext(iterator), f"{name}, made before close and used after it")
    for name, iterator in begun.items():
        what = f"{name}, begun before close and read on after it"
        try:
            async with ctx.within():
                count = (name != "iter_consistency") + await _count(iterator)
        except StoreClosedError:
            continue
        except TimeoutError:
            raise Violation(f"{what}, does not end") from None
        if name in _ENDLESS:
            continue
        ctx.equal(count, whole[name], f"how many items came of {what}, which ended without an error")
    await ctx.raises(StoreClosedError, lock, "a lock that was asked for before close and awaited after it")
    await ctx.raises(StoreClosedError, lease.renew(), "renewing a lease after close")
    ctx.equal(lease.is_lost, True, "is_lost of a lease after close")
    await lease.release()
    write = store.save_todos("a", samples.todos("late"), fence=lease)
    await ctx.raises(StoreClosedError, write, "a write with a lease after close")
    async with ctx.within():
        await asyncio.gather(*(store.close() for _ in range(3)))


async def _count(iterator: AsyncIterator[Any]) -> int:
    return len(await _to_the_end(iterator))


@check("OPS-5", "LOCK-1", needs=_E, under=(Dimension.INSTANCES,))
async def a_closed_instance_takes_nothing_along(ctx: Context) -> None:
    """Closing one instance of a store, however it was used and closed, leaves the others as they are: every method
    works in them, and their leases are held.
    """
    await fill(ctx.store, "a")
    before = await portrait(ctx.store, "a")
    lease = await ctx.store.acquire_agent_lock("mine", ttl_ms=600_000)
    for number in range(4):
        other = await ctx.another()
        if number % 2:
            await portrait(other, "a")
            await other.acquire_agent_lock(f"theirs {number}", ttl_ms=600_000)
        await (_failing(other) if number == 3 else other.close())
        ctx.equal(await portrait(ctx.store, "a"), before, f"the agent after instance {number} was closed")
        await ctx.raises(LockUnavailableError, ctx.store.acquire_agent_lock("mine"), "the lock that is still held")
        await lease.renew()
    calls = calls_of(ctx.store, "b", target=str(ctx.folder / "copy"))
    for number, (name, call) in enumerate(calls.items()):
        if name == "import_agent":  # nothing may be stored under its id
            call.arguments["agent_id"] = "imported"
        if name in (*_OF_WHAT_THERE_IS, "backup", *_ENDLESS):
            continue  # the first need an agent that exists, the next is not for every store, the last has no end
        try:
            await drive(*call)
        except Exception as exc:
            raise Violation(f"{name}, call {number} after others were closed, raised {exc!r}") from exc
    await lease.release()


_ENDS: Final[Mapping[str, Callable[[ExtendedStore, str], Awaitable[object]]]] = {
    "overwritten": overwrite,
    "deleted": lambda store, agent_id: store.delete(agent_id),
}


@check(
    *("OPS-10", "MSG-1", "TODO-1", "LIFE-3", "DOC-1", "OPS-5"),
    needs=_E,
    under=(Dimension.INSTANCES, Dimension.CHANGES, Dimension.ORDERS),
)
async def an_instance_that_closes_writes_nothing_again(ctx: Context) -> None:
    """An instance writes every kind by every method; another one overwrites all of it, or deletes the agent. When the
    first one is closed, and the store is opened anew, all is as the other one left it, in every instance.
    """
    documents = DOCUMENT_WRITES if keeps_documents() else ()
    makes = [write for write in EXTENDED_WRITES if write.prepare is not seed]
    changes = [write for write in (*EXTENDED_WRITES, *documents, *WRITES) if write not in makes]
    for end, act in _ENDS.items():
        for made_by in (*makes, None):
            agent_id = f"{made_by.name if made_by else 'seeded'}, {end}"
            older = await ctx.another()
            await (made_by.act(older, agent_id) if made_by else seed(older, agent_id))
            for write in changes if made_by is None else ():
                if write.name != "delete":
                    await write.act(older, agent_id)
            await act(ctx.store, agent_id)
            left = await portrait(ctx.store, agent_id)
            await ctx.close(older)
            newer = await ctx.another()
            for store, where in ((newer, "a new instance"), (ctx.store, "the instance that wrote last")):
                problem = difference(await portrait(store, agent_id), left)
                what = f"an agent that was {end} by another instance than made it, once that is closed, seen by {where}"
                ctx.true(problem is None, f"{what}: {problem}")
            await ctx.close(newer)


class _CommitsHang(Trouble):
    """Lets commits alone hang: a write that has only read is not yet accepted."""

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return await (super().around(verb, call, *args, **kwargs) if verb == "commit" else call(*args, **kwargs))


_TURNS: Final = 20
"""How many turns of the event loop a call takes at most to return to its caller."""
_CLOSES: Final = ("at once", "after the first", "after a cancelled one", "by the end of its block")


@check("OPS-5", needs=_E, under=(Dimension.INTERRUPTIONS, Dimension.COMPANY, Dimension.ORDERS))
async def each_close_waits(ctx: Context) -> None:
    """Every one of several calls of close returns when the writes that were accepted have ended, and not before: those
    at the same time and later, one after a close that was cancelled, and the end of the store's block; while many
    writes are on their way, and while the commit of one, of any kind, takes long.
    """
    await _close_amid_many(ctx)
    writes = ctx.rng.sample(WRITES, len(WRITES))
    for number, way in enumerate(in_time(ctx, [*_CLOSES] * (1 if ctx.settings.tier is Tier.QUICK else 4))):
        await _close_amid_one(ctx, writes[number % len(writes)], f"a{number}", way)


async def _close_amid_many(ctx: Context) -> None:
    for first in range(2):
        store = await ctx.another()
        writes: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(store.save_messages(f"m{i}", samples.messages(20, 100 * first))) for i in range(20)
        ]
        await asyncio.sleep(0)
        closes = [asyncio.ensure_future(store.close()) for _ in range(3)]
        await closes[-1 if first else 1]
        await turns_pass(_TURNS)
        under_way = sum(not write.done() for write in writes)
        await asyncio.gather(*closes, *writes, return_exceptions=True)
        ctx.equal(under_way, 0, "how many writes were under way when a close that was not the first returned")
        for i, write in enumerate(writes):
            found = await ctx.store.load_messages(f"m{i}")
            if write.exception() is None:
                ctx.equal(found, samples.messages(20, 100 * first), "the messages that were acknowledged")


async def _close_amid_one(ctx: Context, write: Write, agent_id: str, way: str) -> None:
    layers: list[_CommitsHang] = []

    def put(engine: Engine) -> Engine:
        layers.append(_CommitsHang(engine))
        return layers[-1]

    store = await ctx.another(put)
    (trouble,) = layers
    await seed(store, agent_id)
    trouble.hanging = {agent_id}
    writing = asyncio.ensure_future(write.act(store, agent_id))
    await ctx.eventually(partial(_hangs, trouble), f"{write.name} must reach the engine")
    closing = list[asyncio.Task[int]]()
    for nth in range(3):
        by_block = nth > 0 and way == "by the end of its block"
        closing.append(asyncio.create_task(_under_way_after(store, trouble, by_block=by_block)))
        await turns_pass(0 if way == "at once" else _TURNS)
        if nth == 0 and way == "after a cancelled one":
            closing.pop().cancel()
    await turns_pass(_TURNS)
    trouble.hanging = set()
    trouble.let_go.set()
    ctx.true(await ctx.ended([writing, *closing]), f"{write.name} and close, {way}, must end")
    for one in closing:
        ctx.equal(one.result(), 0, f"how many writes were under way when a close returned that came {way}")
    ctx.true(writing.exception() is None, f"{write.name}, whose commit was under way, raised {writing.exception()!r}")


async def _hangs(trouble: Trouble) -> bool:
    return trouble.under_way > 0


async def _under_way_after(store: ExtendedStore, trouble: Trouble, *, by_block: bool) -> int:
    """Close the store; return how many engine calls hang when that is done."""
    await (store.__aexit__(None, None, None) if by_block else store.close())
    return trouble.under_way


async def _failing(store: ExtendedStore) -> None:
    """Leave its block by an error, which must come through."""
    try:
        async with store:
            raise KeyError("from the block")
    except KeyError:
        return
    raise Violation("async with swallowed the error of its block")


# --- two places -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def another_place(ctx: Context) -> AsyncIterator[Context]:
    """An empty store at a place of its own."""
    space = Space(f"place_{uuid.uuid4().hex[:16]}", ctx.folder / f"place-{uuid.uuid4().hex[:8]}")
    space.folder.mkdir()
    place = Context(ctx.harness, await ctx.harness.provision(space), space.folder, ctx.settings)
    try:
        await place.start()
        yield place
    finally:
        await place.finish()
        await ctx.harness.destroy(place.handle)


@check("ID-2", "OPS-3", "LOCK-1", "LIFE-1", needs=_E, under=(Dimension.INSTANCES, Dimension.COMPANY, Dimension.CHANGES))
async def two_stores_share_nothing(ctx: Context) -> None:
    """Two stores at different places, open in one process, know nothing of each other: no record of any kind, no lock,
    event or metric of one is seen in the other, whatever was written and deleted there.
    """
    async with another_place(ctx) as place:
        one, two = ctx.store, place.store
        nothing, idle = await portrait(two, "a"), await _counted(two)
        await fill(one, "a")
        before = await portrait(one, "a")
        (fork,) = await one.batch_fork("a", 1)
        ctx.equal(await portrait(two, "a"), nothing, "an agent of the other place")
        ctx.equal(
            (await two.list(), list(await two.query_messages())), ([], []), "agents and messages of the other place"
        )
        ctx.equal((await two.get_metrics()).storage.total_agents, 0, "how many agents this place counts")
        ctx.equal((await two.check_consistency()).agents_checked, 0, "how many agents of the other place are checked")
        lease = await one.acquire_agent_lock("a", ttl_ms=600_000)
        theirs = await take(two.acquire_agent_lock("a", ttl_ms=600_000), "the lock of the same id at another place")
        await theirs.release()
        await lease.renew()
        busy = await _counted(two)
        moved = {name: busy[name] - idle[name] for name in ("saves", "deletes", "errors")}
        ctx.equal(moved, {"saves": 0, "deletes": 0, "errors": 0}, "what a store counted that was only read")
        await two.save_messages("a", samples.messages(2, 50))
        await two.delete("a")
        await two.delete(fork)
        await two.save_todos("a", samples.todos("of the other"))
        ctx.equal(await portrait(one, "a"), before, "the agent after its namesake was written and deleted")
        ctx.equal(await one.list(), sorted(["a", fork]), "the agents after their namesakes were deleted")
        await place.close(two)
        await lease.renew()
        await one.append_event("a", samples.event(60), fence=lease)
        await lease.release()


async def _counted(store: ExtendedStore) -> dict[str, int]:
    operations = (await store.get_metrics()).operations
    return {name: cast(int, getattr(operations, name)) for name in operations.__struct_fields__}
