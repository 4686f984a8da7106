"""ID-2, ID-4: keys that are put together from several names; OPS-15: waits that leave the loop to others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from kode_conformance.context import Context
from kode_conformance.dimensions import SEPARATORS, Dimension
from kode_conformance.harness import keeps_documents
from kode_conformance.instruments.pace import Suspected, in_time, judged
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.errors import LockUnavailableError
from kode_core.protocols import ExtendedStore

_SEPARATORS: Final = (*SEPARATORS, "::", "__", "%2F", "\n", "\x01", "\x7f", "\uffff", "\U0010ffff")

Save = Callable[[ExtendedStore, str, str, int], Awaitable[object]]
Load = Callable[[ExtendedStore, str], Awaitable[list[Any]]]


async def _snapshots(store: ExtendedStore, agent_id: str) -> list[Any]:
    """Each snapshot, loaded by its id: a list may be right although an id leads to another agent's snapshot."""
    return [await store.load_snapshot(agent_id, one.id) for one in await store.list_snapshots(agent_id)]


_KEYED: Final[tuple[tuple[str, Save, Load], ...]] = (
    (
        "history windows",
        lambda s, a, k, i: s.save_history_window(a, samples.window(k, i)),
        lambda s, a: s.load_history_windows(a),
    ),
    (
        "compression records",
        lambda s, a, k, i: s.save_compression_record(a, samples.compression(k, i)),
        lambda s, a: s.load_compression_records(a),
    ),
    (
        "recovered files",
        lambda s, a, k, i: s.save_recovered_file(a, samples.recovered(k, 1, f"{i}")),
        lambda s, a: s.load_recovered_files(a),
    ),
    (
        "snapshots",
        lambda s, a, k, i: s.save_snapshot(a, samples.snapshot(k, i)),
        lambda s, a: _snapshots(s, a),
    ),
    (
        "tool calls",
        lambda s, a, k, i: s.upsert_tool_call_records(a, [samples.tool_call(id=k, error=f"{i}")]),
        lambda s, a: s.load_tool_call_records(a),
    ),
    (
        "keys of messages",
        lambda s, a, k, i: s.append_messages_once(a, {k: samples.message(text=k)}),
        lambda s, a: s.load_messages(a),
    ),
    (
        "media",
        lambda s, a, k, i: s.save_media_cache(a, [samples.media(k).replace(size_bytes=i)]),
        lambda s, a: s.load_media_cache(a),
    ),
)


@check("ID-2", "ID-4", "HIS-1", "HIS-2", "SNAP-1", "TC-3", "LIFE-3", under=(Dimension.TWINS, Dimension.CHANGES))
async def an_agent_and_a_key_do_not_run_together(ctx: Context) -> None:
    """An agent ``x`` with a key ``y-z`` and an agent ``x-y`` with a key ``z`` share nothing, whatever stands for the
    dash: each has its own record of each kind, also when the other's is replaced, and when the other is deleted.
    """
    other = await ctx.another()
    for name, save, load in in_time(ctx, ctx.rng.sample(_KEYED, len(_KEYED))):
        if name == "keys of messages" and not keeps_documents():
            continue
        pairs = [
            (f"{name[0]}x{i}", f"y{dash}z", f"{name[0]}x{i}{dash}y", "z", dash) for i, dash in enumerate(_SEPARATORS)
        ]
        await asyncio.gather(*(save(ctx.store, short, long_key, 1) for short, long_key, *_ in pairs))
        await asyncio.gather(*(save(other, long, key, 2) for _, _, long, key, _ in pairs))
        await asyncio.gather(*(save(ctx.store, long, key, 3) for _, _, long, key, _ in pairs))
        alone = dict[tuple[str, int], Any]()
        for i, (short, long_key, long, key, dash) in enumerate(pairs):
            for agent, its, number in ((short, long_key, 1), (long, key, 3)):
                if (its, number) not in alone:
                    await save(ctx.store, f"{i}-{number}", its, number)
                    alone[its, number] = await load(ctx.store, f"{i}-{number}")
                wanted = alone[its, number]
                ctx.equal(len(wanted), 1, f"how many {name} an agent of its own has")
                found = await load(other, agent)
                ctx.equal(
                    found, wanted, f"the {name} of {agent!a}; another agent's id and key, joined by {dash!a}, are its"
                )
        ends = [(short, long) if i % 2 else (long, short) for i, (short, _, long, *_) in enumerate(pairs)]
        wanted = [await load(ctx.store, stays) for stays, _ in ends]
        await asyncio.gather(*(ctx.store.delete(goes) for _, goes in ends))
        for (stays, goes), before in zip(ends, wanted, strict=True):
            ctx.equal(await load(other, stays), before, f"the {name} of {stays!a} after {goes!a} was deleted")
            ctx.equal(await load(other, goes), [], f"the {name} of {goes!a}, which was deleted")


@check("OPS-15", "OPS-13", needs=Capability.EXTENDED, under=(Dimension.COMPANY, Dimension.COSTS))
async def waits_leave_the_loop_to_others(ctx: Context) -> None:
    """While a call waits, for a lock that is held, for an event that does not come, or for the store to close, other
    tasks of the loop get their turns.
    """
    store, other = ctx.store, await ctx.another()
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    async def follow() -> None:
        async for _ in store.follow_events("a"):
            return

    async def wait_for_the_lock(waiter: ExtendedStore, seconds: float) -> None:
        lock = waiter.acquire_agent_lock("a", wait_ms=int(1000 * seconds))
        await ctx.raises(LockUnavailableError, lock, "a held lock")

    async def wait_for_an_event(seconds: float) -> None:
        following = asyncio.ensure_future(follow())
        await asyncio.wait({following}, timeout=seconds)
        following.cancel()
        await asyncio.wait({following})

    waits: dict[str, Callable[[float], Awaitable[None]]] = {
        "a lock that this store holds": partial(wait_for_the_lock, store),
        "a lock that another store holds": partial(wait_for_the_lock, other),
        "an event that does not come": wait_for_an_event,
    }

    async def see_turns(what: str, longer: int) -> None:
        nonlocal turns
        turns, seconds = 0, 0.4 * longer
        await waits[what](seconds)
        if turns < 4:
            told = f"the loop was held during a wait of {seconds:g} s for {what}: it had {turns} turns of 10 ms"
            raise Suspected(told)

    lease = await store.acquire_agent_lock("a", ttl_ms=600_000)
    ticking = asyncio.ensure_future(tick())
    try:
        for what in waits:
            await judged(partial(see_turns, what))
    finally:
        ticking.cancel()
        await lease.release()
