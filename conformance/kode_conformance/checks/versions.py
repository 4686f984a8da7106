"""VER, INFO-4, INFO-5, SNAP-2 and FORK-4: versions and the writes that demand one, and agents made next to others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from kode_conformance.calls.fenced import FENCED_METHODS, FencedWrite, fenced_writes, idle_writes
from kode_conformance.calls.methods import calls_of, drive_pages
from kode_conformance.checks.forks import see_forks_after_edits
from kode_conformance.checks.lifecycle import fill
from kode_conformance.checks.messages import dump
from kode_conformance.checks.metadata_updates import keep_names, keep_values
from kode_conformance.context import Context, Violation
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.errors import AgentNotFoundError, ConflictError, InvalidArgumentError, KodeError
from kode_core.model import Message, ToolUseBlock
from kode_core.protocols import ExtendedStore

_E = Capability.EXTENDED
_D = Dimension
_RIVALS: Final = 6
_EACH: Final = {Tier.QUICK: 4, Tier.STANDARD: 20, Tier.THOROUGH: 60}
_MOVING: Final = frozenset({"messages", "append", "tool_calls", "upsert_tool_calls", "info"})
_LISTS: Final = ("messages", "tool_call_records", "info", "message")


def _moves(write: FencedWrite) -> bool:
    """True if the write changes messages, tool calls or info."""
    if write.method == "save_turn":
        return bool(_MOVING & write.arguments.keys())
    moving = write.method in ("delete", "append_messages_once")
    return moving or any(write.method.endswith(f"_{kind}") for kind in _LISTS)


@check("VER-1", needs=_E, under=(_D.CHANGES, _D.INSTANCES, _D.EQUALS))
async def versions_change_with_every_write_and_never_return(ctx: Context) -> None:
    """The version changes with every write of messages, tool calls or info, even of the same contents, and with no
    other call. Every instance gives the same one. After a deletion the same contents have a new one.
    """
    other, seen = await ctx.another(), dict[str, str]()
    absent = await ctx.store.load_version("a")
    for round_ in ("", ", once more"):
        await fill(ctx.store, "a")
        for write in fenced_writes("a", edits=True):
            before = await ctx.store.load_version("a")
            seen[before] = "an earlier state"
            await write.act(ctx.store, "a")
            after = await other.load_version("a")
            told = f"the version after {write.name}{round_}"
            ctx.equal(await ctx.store.load_version("a"), after, f"{told}, in the instance that wrote")
            if not _moves(write):
                ctx.equal(after, before, told)
            elif write.method == "delete":
                ctx.equal(after, absent, told)
            else:
                ctx.true(after not in seen and after != absent, f"{told} was there before: {seen.get(after)}")
    session = await other.load_session("a")
    ctx.equal(session, None, "the session of an agent that was deleted")


@check("VER-1", "INFO-2", needs=_E, under=(_D.ORDERS, _D.INSTANCES))
async def calls_that_write_nothing_leave_the_version(ctx: Context) -> None:
    """A call of every method that reads, forks, copies or finds nothing to delete, a create_agent and an import_agent
    that are refused, and a lease that is taken, renewed and released leave the version of an agent and its updated_at.
    """
    other = await ctx.another()
    await fill(ctx.store, "a")

    async def see_none(what: str) -> None:
        session = await other.load_session("a")
        found = (await ctx.store.load_version("a"), session and session.version, session and session.updated_at)
        ctx.equal(found, before, f"the version, that of the session and updated_at after {what}")

    first = await other.load_session("a")
    assert first is not None
    before = (first.version, first.version, first.updated_at)
    for number, store in enumerate((ctx.store, other)):
        lease = await store.acquire_agent_lock("a", ttl_ms=600_000)
        await see_none("its lock was taken")
        for _ in range(2):
            await lease.renew()
            await see_none("its lease was renewed")
        await lease.release()
        await see_none("its lease was released")
        async with store.acquire_agent_lock("a", ttl_ms=600_000) as inside:
            await inside.renew()
        await see_none("the block of its lease")
        for name, call in calls_of(store, "a", str(ctx.folder / f"copy-{number}")).items():
            if name in (*_WRITING, "acquire_agent_lock", "follow_events") or (number and not name.startswith("load")):
                continue
            with suppress(KodeError):
                await drive_pages(call.method, call.arguments)
            await see_none(name)


_WRITING: Final = frozenset(FENCED_METHODS) - {"create_agent", "import_agent"}


@check("VER-1", "MSG-6", needs=_E, under=(_D.CHANGES, _D.INSTANCES))
async def a_session_is_that_of_a_query(ctx: Context) -> None:
    """load_session gives the session of query_sessions, with the number of tool calls and the version."""
    other = await ctx.another()
    await fill(ctx.store, "a")
    session = await other.load_session("a")
    (found,) = await ctx.store.query_sessions(agent_id="a")
    assert session is not None
    for name in found.__struct_fields__:
        ctx.equal(getattr(session, name), getattr(found, name), f"{name} of the session")
    ctx.equal(session.tool_call_count, 1, "the number of tool calls")
    ctx.equal(session.version, await ctx.store.load_version("a"), "the version of the session")
    await ctx.store.append_messages("b", samples.messages(1))
    ctx.equal(await other.load_session("b"), None, "the session of an agent without info")


def _demanding() -> Mapping[str, tuple[str, dict[str, Any]]]:
    """Calls of every method that takes a version."""
    calls: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, write in {write.name: write for write in fenced_writes("a", edits=True)}.items():
        if write.takes_version:
            calls[name] = (write.method, dict(write.arguments))
    return calls


@check("VER-2", needs=_E, under=(_D.CHANGES, _D.INSTANCES, _D.ORDERS))
async def a_write_that_demands_an_older_version_is_refused(ctx: Context) -> None:
    """Every method that takes a version refuses one that the agent had before any change, by whichever instance, names
    the present one and writes nothing, also where it would find nothing to do; with the present version it writes.
    """
    stores = [ctx.store, await ctx.another()]
    changes: list[Callable[[ExtendedStore], Awaitable[object]]] = [
        lambda store: store.append_messages("a", samples.messages(1, 500)),
        lambda store: store.upsert_tool_call_records("a", [samples.tool_call(501)]),
        lambda store: store.update_info("a", {"by": "another"}),
    ]
    for number, (name, (method, given)) in enumerate(_demanding().items()):
        one, two = stores[number % 2], stores[1 - number % 2]
        await fill(ctx.store, "a")
        for i, change in enumerate(changes):
            stale = await one.load_version("a")
            await change((one, two)[(number + i) % 2])
            before = await dump(ctx, "a")
            told = f"{name} with the version of before"
            error = await ctx.raises(ConflictError, getattr(one, method)("a", **given, expect=stale), told)
            present = await two.load_version("a")
            ctx.equal(getattr(error, "version", None), present, f"the version that the error of {told} has")
            ctx.equal(await dump(ctx, "a"), before, f"the agent after {told}")
        await getattr(two, method)("a", **given, expect=await one.load_version("a"))
        if method != "save_turn" or _MOVING & given.keys():
            ctx.true(await one.load_version("a") != present, f"{name} with the present version must write")
    await _refuse_idle(ctx, stores)
    for wrong in ("", "x y", 7, b"0", True):
        refused = ctx.store.save_messages("a", [], expect=wrong)  # type: ignore[arg-type]
        await ctx.raises(InvalidArgumentError, refused, f"expect={wrong!r}")


async def _refuse_idle(ctx: Context, stores: Sequence[ExtendedStore]) -> None:
    """An older version is refused by calls that find nothing to do, of an agent with all kinds, one without messages
    and one that was deleted; the present one is taken.
    """
    begun = time.monotonic()
    await fill(ctx.store, "full")
    for agent_id in ("bare", "gone"):
        await ctx.store.save_info(agent_id, samples.info(agent_id))
    for agent_id in ("full", "bare", "gone"):
        stale = await stores[1].load_version(agent_id)
        await stores[0].upsert_tool_call_records(agent_id, [samples.tool_call(501)])
        if agent_id == "gone":
            await stores[1].delete("gone")
        before, present = await dump(ctx, agent_id), await stores[1].load_version(agent_id)
        writes = [w for w in idle_writes(agent_id, without=agent_id != "full") if w.takes_version]
        for number, write in enumerate(in_time(ctx, writes, begun=begun)):
            told = f"{write.name} of the agent {agent_id!r} with the version of before"
            error = await ctx.raises(
                ConflictError, write.act(stores[number % 2], agent_id, expect=stale), f"{told}, which has nothing to do"
            )
            ctx.equal(getattr(error, "version", None), present, f"the version that the error of {told} has")
        ctx.equal(await dump(ctx, agent_id), before, f"the agent {agent_id!r} after calls with nothing to do")
        for number, write in enumerate(in_time(ctx, writes, begun=begun)):
            now = await stores[1].load_version(agent_id)
            await write.act(stores[number % 2], agent_id, expect=now)


@check("VER-2", "VER-1", needs=_E, under=(_D.COMPANY, _D.INSTANCES, _D.CHANGES))
async def one_of_those_that_demand_a_version_wins(ctx: Context) -> None:
    """If several writes demand the same version at once, by several instances and methods, one succeeds; an agent that
    does not exist has a version as well.
    """
    stores = [ctx.store, await ctx.another(), await ctx.another()]
    for round_ in range(_EACH[ctx.settings.tier]):
        version = await stores[round_ % 3].load_version("a")
        calls = [_rival(stores[i % 3], i, version, round_) for i in range(_RIVALS)]
        won = [i for i, error in enumerate(await asyncio.gather(*calls)) if error is None]
        ctx.equal(len(won), 1, f"how many of {_RIVALS} writes that demand one version succeed, in round {round_}")
        (message,) = (await stores[0].load_messages("a"))[-1:]
        ctx.equal(message.text, f"{round_}-{won[0]}", "the last message, which the winner wrote")


async def _rival(store: ExtendedStore, number: int, version: str, round_: int) -> KodeError | None:
    new = [samples.message(text=f"{round_}-{number}")]
    try:
        if number % 2:
            await store.save_turn("a", append=new, expect=version)
        else:
            await store.save_messages("a", new, expect=version)
    except ConflictError as exc:
        return exc
    return None


@check("INFO-4", needs=_E, under=(_D.COMPANY, _D.INSTANCES, _D.CHANGES))
async def one_of_several_creators_wins(ctx: Context) -> None:
    """create_agent makes an agent once: of several at once one succeeds and its info stays; an agent with lists but no
    info can be created, and one that was deleted can be again.
    """
    stores = [ctx.store, await ctx.another(), await ctx.another()]

    async def create(number: int, agent_id: str) -> int | None:
        info = samples.info(agent_id, metadata={"by": number})
        try:
            await stores[number % 3].create_agent(agent_id, info)
        except ConflictError:
            return None
        return number

    for round_ in range(_EACH[ctx.settings.tier]):
        agent_id = f"a{round_}"
        if round_ % 2:
            await ctx.store.append_messages(agent_id, samples.messages(2))
        won = [n for n in await asyncio.gather(*(create(n, agent_id) for n in range(_RIVALS))) if n is not None]
        ctx.equal(len(won), 1, "how many of several creators succeed")
        info = await stores[1].load_info(agent_id)
        ctx.equal(info and info.metadata, {"by": won[0]}, "the info that is stored")
        ctx.equal(len(await stores[2].load_messages(agent_id)), 2 * (round_ % 2), "the messages of before")
    await ctx.raises(ConflictError, ctx.store.create_agent("a0", samples.info("a0")), "creating it again")
    await ctx.store.delete("a0")
    await ctx.store.create_agent("a0", samples.info("a0"))
    ctx.equal(await stores[1].exists("a0"), True, "an agent that was created again")
    await ctx.raises(InvalidArgumentError, ctx.store.create_agent("b", samples.info("c")), "an info of another agent")


@check("INFO-5", needs=_E, under=(_D.COMPANY, _D.INSTANCES, _D.CHANGES))
async def updates_of_the_info_lose_nothing(ctx: Context) -> None:
    """Concurrent updates of different keys all stay, next to appends; other keys and fields do not change, whatever
    values they hold, keys can be set to any value and removed, and the result is the stored info.
    """
    stores = [ctx.store, await ctx.another()]
    info = samples.info("a", metadata={"kept": [1], "gone": 1, "userId": "u"}, lineage=["g"])
    await ctx.store.create_agent("a", info)

    async def update(number: int) -> None:
        for i in range(_EACH[ctx.settings.tier]):
            await stores[number % 2].update_info("a", {f"{number}": i})
            await stores[(number + 1) % 2].append_messages("a", samples.messages(1))

    await asyncio.gather(*map(update, range(_RIVALS)))
    last = _EACH[ctx.settings.tier] - 1
    wanted = {"kept": [1], "gone": 1, "userId": "u", **{f"{n}": last for n in range(_RIVALS)}}
    found = await stores[1].load_info("a")
    ctx.equal(found and dict(sorted(found.metadata.items())), dict(sorted(wanted.items())), "the metadata")
    told = await ctx.store.update_info("a", {"kept": None, "userId": "v"}, remove=["gone", "never"])
    stored = await stores[1].load_info("a")
    ctx.equal(told, stored, "the info that update_info returned")
    del wanted["gone"]
    ctx.equal(told.metadata["kept"], None, "a key that was set to null")
    ctx.equal(sorted(told.metadata), sorted(wanted), "the keys after one was removed")
    ctx.equal(
        (told.lineage, told.template_id, told.created_at), (("g",), info.template_id, info.created_at), "the rest"
    )
    (session,) = await stores[1].query_sessions(user_id="v")
    ctx.equal(session.agent_id, "a", "the session that a query finds by the new value")
    await ctx.raises(AgentNotFoundError, ctx.store.update_info("nobody", {}), "an update of an absent agent")
    ctx.equal(await stores[1].exists("nobody"), False, "whether the refused update made an agent")
    await keep_values(ctx, stores)
    await keep_names(ctx, stores)


@check("SNAP-2", needs=_E, under=(_D.CHANGES, _D.INSTANCES))
async def a_snapshot_can_be_deleted(ctx: Context) -> None:
    """delete_snapshot removes the snapshot of that id alone, and does nothing if there is none."""
    other = await ctx.another()
    for name in ("s", "S", "s "):
        await ctx.store.save_snapshot("a", samples.snapshot(name))
    await other.delete_snapshot("a", "S")
    await ctx.store.delete_snapshot("a", "S")
    await ctx.store.delete_snapshot("nobody", "s")
    ctx.equal(sorted(s.id for s in await ctx.store.list_snapshots("a")), ["s", "s "], "the snapshots that stay")
    ctx.equal(await ctx.store.load_snapshot("a", "S"), None, "the deleted snapshot")
    await ctx.store.save_snapshot("a", samples.snapshot("S"))
    ctx.equal(len(await other.list_snapshots("a")), 3, "the number after it was saved again")


@check("FORK-4", "FORK-1", "TC-2", needs=_E, under=(_D.CHANGES, _D.INSTANCES, _D.ITEMS, _D.EQUALS))
async def a_fork_begins_where_it_is_told(ctx: Context) -> None:
    """A fork of the first messages, or of a snapshot, that may have none, has these with their times, all tool calls
    whose ids they use, however often an id repeats, and the documents, also after any edit of the list since; a fork
    without either has everything.
    """
    other = await ctx.another()
    use = Message("assistant", [ToolUseBlock("used", "t", {})])
    messages = [samples.message(0), use, *samples.messages(70, 2), use]
    await fill(ctx.store, "p")
    ids = ("used", "late", "used", "late", "used")
    calls = [samples.tool_call(i, id=name) for i, name in enumerate(ids)]
    calls.insert(4, calls[2])
    snapshot = samples.snapshot("s").replace(messages=messages[:3])
    await ctx.store.save_turn("p", messages=messages, tool_calls=calls)
    await ctx.store.save_snapshot("p", snapshot)
    await ctx.store.save_snapshot("p", samples.snapshot("none", count=0))
    times = [one.created_at async for one in other.read_messages("p")]
    for n, length in enumerate((0, 1, 2, 65, len(messages))):
        child = await ctx.store.fork("p", f"c{n}", length=length)
        ctx.equal(child, f"c{n}", "the id of the fork")
        ctx.equal(await other.load_messages(child), messages[:length], f"the first {length} messages")
        found = [one.created_at async for one in other.read_messages(child)]
        ctx.equal(found, times[:length], f"the times of the first {length}")
        used = [call for call in calls if call.id == "used" and length > 1]
        ctx.equal(await other.load_tool_call_records(child), used, f"the calls that the first {length} use")
    for name, wanted in (("s", messages[:3]), ("none", [])):
        taken = await other.fork("p", snapshot_id=name)
        ctx.equal(await ctx.store.load_messages(taken), wanted, f"the messages of the snapshot {name!r}")
        used = [call for call in calls if call.id == "used" and wanted]
        ctx.equal(await ctx.store.load_tool_call_records(taken), used, f"the calls that the snapshot {name!r} uses")
    whole = await other.fork("p", "whole")
    mine, its = await dump(ctx, "p"), await dump(ctx, whole)
    for kind in ("messages", "tool calls", "todos", "media", "snapshot"):
        ctx.equal(its[kind], mine[kind], f"the {kind} of a whole fork")
    info = await ctx.store.load_info(whole)
    ctx.equal(info and (info.lineage[-1], info.agent_id, info.last_bookmark), ("p", "whole", None), "its info")
    ctx.equal(its["event"], [], "the events of a fork")
    await ctx.store.append_messages(whole, samples.messages(1))
    ctx.equal(await other.load_messages("p"), messages, "the parent after its fork changed")
    await see_forks_after_edits(ctx, other, messages, snapshot)


@check("FORK-4", needs=_E, under=(_D.COMPANY, _D.NUMBERS))
async def a_fork_replaces_nothing(ctx: Context) -> None:
    """A fork to an id that exists is refused and changes neither; of several forks to one id one succeeds; an agent or
    snapshot that does not exist, and more messages than there are, are refused.
    """
    other = await ctx.another()
    await fill(ctx.store, "p")
    await fill(ctx.store, "there")
    await ctx.store.append_event("events only", samples.event(0))
    await ctx.store.save_todos("todos only", samples.todos())
    await ctx.store.save_history_window("windows only", samples.window("w"))
    before = await dump(ctx, "there")
    for taken in ("there", "events only", "todos only", "windows only"):
        await ctx.raises(ConflictError, ctx.store.fork("p", taken), f"a fork to {taken!r}")
    ctx.equal(await dump(ctx, "there"), before, "the agent whose id was asked for")
    calls = [store.fork("p", "one") for store in (ctx.store, other) * 2]
    made = [one for one in await asyncio.gather(*calls, return_exceptions=True) if one == "one"]
    ctx.equal(len(made), 1, "how many forks to one id succeed")
    wrong: Mapping[str, Any] = {
        "itself": {"new_id": "p"},
        "more than there are": {"length": 4},
        "both": {"length": 1, "snapshot_id": "sfp-1"},
        "no such snapshot": {"snapshot_id": "none"},
        "a negative length": {"length": -1},
    }
    for what, given in wrong.items():
        await ctx.raises(InvalidArgumentError, ctx.store.fork("p", **{"new_id": "new", **given}), what)
    await ctx.raises(AgentNotFoundError, ctx.store.fork("nobody", "new"), "a fork of nobody")
    if await ctx.store.exists("new"):
        raise Violation("a fork that was refused was made")
