"""ID-2, FORK-1, FORK-2, LIFE-5, OPS-11, OPS-16: names, forks, deletions and backups between two processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from kode_conformance.checks.backups import fill_much, need_restored
from kode_conformance.checks.lifecycle import fill
from kode_conformance.checks.maintenance import stepping
from kode_conformance.context import Context, Violation, difference
from kode_conformance.dimensions import Dimension, twins
from kode_conformance.kills.writes import Portrait, overwrite, portrait
from kode_conformance.processes.remote import RemoteStore, another_process
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import LockUnavailableError

_E: Final = Capability.EXTENDED
_P: Final = Capability.CROSS_PROCESS
_LONG_MS: Final = 600_000


@check("ID-2", "LOCK-1", needs=_E | _P, tier=Tier.STANDARD, under=(Dimension.PROCESSES, Dimension.TWINS))
async def twins_are_apart_for_other_processes(ctx: Context) -> None:
    """Names that are easily taken for one are locked by another process each on its own, the rest stay free, and each
    has the messages that were saved under it.
    """
    names = list(twins())
    theirs, mine = names[::2], names[1::2]
    process = await ctx.process("hold_locks", theirs, _LONG_MS)
    tokens = (await process.line(60.0))["tokens"]
    ctx.equal(len(tokens), len(theirs), "how many locks another process has")
    for name in mine:
        try:
            lease = await ctx.store.acquire_agent_lock(name, ttl_ms=_LONG_MS)
        except LockUnavailableError as exc:
            raise Violation(
                f"the lock of {name!a} is free; another process holds the locks of {theirs!a:.200}"
            ) from exc
        await ctx.store.append_messages(name, [samples.message(text=f"here: {name}")], fence=lease)
    for name in theirs:
        await ctx.raises(
            LockUnavailableError, ctx.store.acquire_agent_lock(name), f"the lock of {name!a}, held by a process"
        )
    for whose, some in (("by another process", theirs), ("here", mine)):
        for name in some:
            texts = [message.text for message in await ctx.store.load_messages(name)]
            ctx.equal(texts, [f"{whose}: {name}"], f"the messages of {name!a}, which were saved {whose}")


# --- forks and deletions ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def _remote(ctx: Context) -> AsyncIterator[RemoteStore]:
    remote = await another_process(ctx.harness, ctx.handle)
    try:
        yield remote
    finally:
        await remote.close()


@check(
    "FORK-1", "FORK-2", needs=_P, tier=Tier.STANDARD, under=(Dimension.PROCESSES, Dimension.CHANGES, Dimension.COMPANY)
)
async def processes_fork_one_parent(ctx: Context) -> None:
    """Forks that two processes make of one parent, in turns and at once, have ids of their own, which ascend over time,
    and each is whole for both; then what one process changes or deletes, the parent or a fork, is only that.
    """
    await fill(ctx.store, "parent")
    wanted = await portrait(ctx.store, "parent")
    async with _remote(ctx) as remote:
        both: Sequence[Any] = (ctx.store, remote)
        ids: list[str] = []
        for store in (*both, *both):
            ids += await store.batch_fork("parent", 2)
            await asyncio.sleep(0.005)
        ctx.equal(ids, sorted(set(ids)), "ids of forks that two processes made in turns")
        at_once = await asyncio.gather(*(store.batch_fork("parent", 3) for store in both))
        ids += [fork for forks in at_once for fork in forks]
        ctx.equal(len(set(ids)), 14, f"how many ids there are of 14 forks of two processes: {ids}")
        for fork in ids:
            for store, where in zip(both, ("here", "in another process"), strict=True):
                problem = _problem(await portrait(store, fork), wanted)
                ctx.true(problem is None, f"fork {ids.index(fork) + 1} of 14, as it is read {where}: {problem}")
        await _see_apart(ctx, remote, ids, wanted)


_NOT_FORKED: Final = ("events", "windows", "compressions", "recovered files", "documents")


def _problem(found: Portrait, wanted: Portrait) -> str | None:
    """The difference of a fork from its parent, but for its events and its origin."""
    return difference(_copied(found), _copied(wanted))


def _copied(one: Portrait) -> Portrait:
    info = one["info"]
    kept = {kind: records for kind, records in one.items() if kind not in _NOT_FORKED}
    return {**kept, "info": info and info.replace(created_at=0, lineage=[], last_bookmark=None)}


async def _see_apart(ctx: Context, remote: Any, ids: list[str], wanted: Portrait) -> None:
    await remote.delete("parent")
    ctx.equal(await ctx.store.load_messages("parent"), [], "the messages of a parent that another process deleted")
    ctx.equal(await ctx.store.exists("parent"), False, "whether a parent is there that another process deleted")
    await overwrite(remote, ids[0])
    await ctx.store.delete(ids[2])
    (again,) = await remote.batch_fork(ids[1], 1)
    await overwrite(ctx.store, ids[3])
    for fork in [*ids[4:], ids[1], again]:
        for store, where in ((ctx.store, "here"), (remote, "in another process")):
            problem = _problem(await portrait(store, fork), wanted)
            ctx.true(problem is None, f"a fork, read {where}, once processes changed the others: {problem}")
    changed = [_shown(await portrait(store, fork)) for fork in (ids[0], ids[3]) for store in (remote, ctx.store)]
    for found in changed[1:]:
        ctx.equal(found, changed[0], "forks that processes overwrote alike, as both read them")
    ctx.equal(await remote.load_messages(ids[2]), [], "the messages of a fork that this process deleted")


def _shown(found: Portrait) -> Portrait:
    return {**found, "info": None, "events": found["events"][-1:]}


@check("LIFE-5", needs=_E | _P, tier=Tier.STANDARD, under=(Dimension.PROCESSES, Dimension.CHANGES, Dimension.COMPANY))
async def what_another_process_changes_is_not_deleted(ctx: Context) -> None:
    """A session that another process changes so that the filter matches it no more, after delete_many found it, stays,
    and one that it makes anew under the id of a deleted one does, too.
    """
    for agent_id in ("a", "b", "c", "d"):
        await ctx.store.save_turn(agent_id, append=samples.messages(2), info=samples.info(agent_id))
    store, steps = await stepping(ctx)
    async with _remote(ctx) as remote:
        altered: list[asyncio.Future[None]] = []
        finding: list[str] = []

        async def alter() -> None:
            await remote.save_info("c", samples.info("c", template_id="kept"))
            await remote.delete("d")
            await remote.save_turn("d", append=samples.messages(1), info=samples.info("d", template_id="kept"))

        async def before(verb: str, _: tuple[Any, ...]) -> None:
            """Let every call after the search wait for the other process."""
            if finding and not altered:
                altered.append(asyncio.ensure_future(alter()))
            for task in altered:
                await asyncio.shield(task)
            if verb == "find_sessions":
                finding.append(verb)

        steps.before = before
        await store.delete_many(template_id="assistant")
        steps.before = None
        ctx.true(altered, "delete_many must have deleted something")
        for one, where in ((store, "the instance that deletes"), (remote, "the other process")):
            ctx.equal(
                await one.list(), ["c", "d"], f"sessions that another process changed meanwhile, as {where} lists"
            )
            counts = [len(await one.load_messages(agent_id)) for agent_id in "abcd"]
            ctx.equal(counts, [0, 0, 2, 1], f"messages of each of four sessions, as {where} loads them")


# --- backups, and processes that end ----------------------------------------------------------------------------------


@check(
    "OPS-16",
    needs=_E | _P | Capability.PERSISTENT,
    tier=Tier.STANDARD,
    stochastic=True,
    under=(Dimension.PROCESSES, Dimension.COMPANY),
)
async def a_backup_is_of_one_instant_for_other_processes_too(ctx: Context) -> None:
    """A backup that is made while another process writes to two agents by turns holds both as they were at one instant,
    and every write that was acknowledged before it.
    """
    need_restored(ctx)
    await fill_much(ctx)
    done = {"a": 0, "z": 0}
    async with _remote(ctx) as remote:
        await remote.list()  # once it answers it is at work

        async def write() -> None:
            while True:
                for agent_id in done:
                    await remote.append_messages(agent_id, samples.messages(1, done[agent_id]))
                    done[agent_id] += 1

        writer = asyncio.ensure_future(write())
        try:
            for number in range(3):
                await asyncio.sleep(ctx.rng.uniform(0.05, 0.1))
                before = dict(done)
                paths = await ctx.store.backup(ctx.folder / f"copy{number}")
                copy = await ctx.restored(paths)
                found = {agent_id: len(await copy.load_messages(agent_id)) for agent_id in done}
                await ctx.close(copy)
                is_whole = all(found[agent_id] >= before[agent_id] for agent_id in done)
                ctx.true(
                    is_whole, f"a copy has {found} messages, of {before} that were acknowledged before it was begun"
                )
                ctx.true(found["a"] - found["z"] in (0, 1), f"a copy has messages of two instants: {found}")
        finally:
            if writer.done() and not writer.cancelled():
                await writer
            writer.cancel()
            await asyncio.wait([writer])


@check(
    "OPS-11", "DUR-1", needs=Capability.PERSISTENT, tier=Tier.STANDARD, under=(Dimension.PROCESSES, Dimension.INSTANCES)
)
async def a_process_may_leave_several_open(ctx: Context) -> None:
    """A process that leaves several instances open, with readers that have begun, ends by itself, and the writes of
    each instance are stored.
    """
    await ctx.close(ctx.store)
    process = await ctx.process("leave_several_open", ctx.harness.spec, ctx.handle, 4)
    ctx.equal((await process.lines())[-1:], [{"written": 4}], "what a process told with four stores open")
    ctx.store = await ctx.another()
    for number in range(4):
        ctx.equal(await ctx.store.load_messages(f"a{number}"), samples.messages(2), f"messages by instance {number}")
        events = [event.bookmark.seq async for event in ctx.store.read_events(f"a{number}")]
        ctx.equal(events, [number], f"the events by instance {number}")
