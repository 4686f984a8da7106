"""MSG-6: the number of messages, after every way to change the list, wherever it is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from kode_conformance.calls.methods import DOCUMENT_METHODS
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.model import AgentRecords
from kode_core.protocols import ExtendedStore

_D: Final = Dimension
_A: Final = "a"


class _Change(NamedTuple):
    """A call for an agent, and the number of messages after it, by the number before it."""

    method: str
    given: dict[str, Any]
    then: Callable[[int], int]


def _stays(count: int) -> int:
    return count


def _becomes(count: int) -> Callable[[int], int]:
    return lambda _: count


def _adds(count: int) -> Callable[[int], int]:
    return lambda before: max(0, before + count)


def _keyed(*keys: str) -> dict[str, Any]:
    return {"messages": {key: samples.message(text=key) for key in keys}}


_CHANGES: Final[Sequence[_Change]] = (
    _Change("save_info", {"info": samples.info(_A, message_count=99)}, _stays),
    _Change("save_messages", {"messages": samples.messages(5)}, _becomes(5)),
    _Change("append_messages", {"messages": samples.messages(3, 10)}, _adds(3)),
    _Change("truncate_messages", {"length": 2}, _becomes(2)),
    _Change("append_messages", {"messages": []}, _stays),
    _Change("save_turn", {"append": samples.messages(4, 20)}, _adds(4)),
    _Change("pop_messages", {}, _adds(-1)),
    _Change("replace_message", {"position": 0, "message": samples.message(30)}, _stays),
    _Change("append_messages_once", _keyed("k", "l"), _adds(2)),
    _Change("append_messages_once", _keyed("l", "m", "k"), _adds(1)),
    _Change("pop_messages", {"count": 2}, _adds(-2)),
    _Change("truncate_messages", {"length": 100}, _stays),
    _Change("update_info", {"metadata": {"n": 1}}, _stays),
    _Change("save_turn", {"messages": samples.messages(7, 40), "info": samples.info(_A, message_count=1)}, _becomes(7)),
    _Change("append_messages_once", _keyed("k"), _stays),
    _Change("save_messages", {"messages": samples.messages(3, 50)}, _becomes(3)),
    _Change("save_messages", {"messages": samples.messages(3, 60)}, _becomes(3)),
    _Change("truncate_messages", {"length": 0}, _becomes(0)),
    _Change("append_messages", {"messages": [samples.message()] * 4}, _adds(4)),
    _Change("pop_messages", {"count": 9}, _becomes(0)),
    _Change("save_turn", {"messages": samples.messages(2)}, _becomes(2)),
    _Change("save_turn", {"messages": []}, _becomes(0)),
    _Change("append_messages", {"messages": samples.messages(1)}, _adds(1)),
    _Change("save_messages", {"messages": []}, _becomes(0)),
    _Change("append_messages", {"messages": samples.messages(26)}, _adds(26)),
    _Change("truncate_messages", {"length": 25}, _becomes(25)),
)
"""Every way to change the list of messages, and writes that leave it alone."""


async def _info(store: ExtendedStore, agent_id: str) -> object:
    info = await store.load_info(agent_id)
    return info and info.message_count


async def _session(store: ExtendedStore, agent_id: str) -> object:
    session = await store.load_session(agent_id)
    return session and session.message_count


async def _whole(store: ExtendedStore, agent_id: str) -> object:
    records = await store.load_agent(agent_id)
    return records and (records.info and records.info.message_count, len(records.messages))


async def _stats(store: ExtendedStore, agent_id: str) -> object:
    return (await store.aggregate_stats(agent_id)).total_messages


async def _queried(store: ExtendedStore, agent_id: str) -> object:
    return [session.message_count for session in await store.query_sessions(agent_id=agent_id)]


async def _iterated(store: ExtendedStore, agent_id: str) -> object:
    return [session.message_count async for session in store.iter_sessions() if session.agent_id == agent_id]


async def _groups(store: ExtendedStore, agent_id: str) -> object:
    return [group.count for group in await store.group_messages(by="agent_id", agent_id=agent_id)]


Look = Callable[[ExtendedStore, str], Awaitable[object]]


def _looks(ctx: Context) -> Iterator[tuple[str, Look, Callable[[int], object]]]:
    """The answers that tell the number of messages, and the right ones by that number."""
    yield "message_count of load_info", _info, lambda count: count
    yield "message_count of load_session", _session, lambda count: count
    yield "message_count and messages of load_agent", _whole, lambda count: (count, count)
    yield "total_messages of aggregate_stats", _stats, lambda count: count
    if "QUERYABLE" not in ctx.harness.lacks:
        yield "message_count of query_sessions", _queried, lambda count: [count]
        yield "message_count of iter_sessions", _iterated, lambda count: [count]
        yield "count_messages", lambda s, agent_id: s.count_messages(agent_id=agent_id), lambda count: count
        yield "group_messages", _groups, lambda count: [count] if count else []


@check(
    *("MSG-6", "MSG-11", "QRY-7", "QRY-8", "QRY-10"),
    needs=Capability.EXTENDED,
    under=(_D.CHANGES, _D.ORDERS, _D.INSTANCES),
)
async def every_change_of_a_list_is_counted(ctx: Context) -> None:
    """After each way to change the messages of an agent, and of an agent that was deleted, forked or imported, the
    infos, sessions, statistics, counts and groups of every instance have the number of messages that are stored, and
    sessions are in the order of that number.
    """
    stores = (ctx.store, await ctx.another())
    for agent_id, length in (("z", 2), ("y", 6)):
        await ctx.store.save_turn(agent_id, info=samples.info(agent_id), messages=samples.messages(length))
    count = 0
    changes = [change for change in _CHANGES if keeps_documents() or change.method not in DOCUMENT_METHODS]
    for number, change in enumerate(in_time(ctx, changes)):
        await getattr(stores[number // 2 % 2], change.method)(_A, **change.given)
        before, count = count, change.then(count)
        await _see(ctx, stores, _A, count, f"after {change.method}({', '.join(change.given)}) of {before} messages")
        await _see_order(ctx, stores[number % 2], count, change.method)
    await stores[0].save_messages(_A, samples.messages(25))
    await _see_copies(ctx, stores, 25)
    await stores[1].delete(_A)
    await stores[0].save_info(_A, samples.info(_A, message_count=25))
    await _see(ctx, stores, _A, 0, "of a new agent, whose id had 25 messages before its delete")


async def _see(ctx: Context, stores: Sequence[ExtendedStore], agent_id: str, count: int, when: str) -> None:
    for where, store in zip(("", " in another instance"), stores, strict=True):
        for name, look, right in _looks(ctx):
            ctx.equal(await look(store, agent_id), right(count), f"{name}{where}, {when}")
    updated = await stores[0].update_info(agent_id, {"seen": when})
    ctx.equal(updated.message_count, count, f"message_count that update_info returned, {when}")


async def _see_order(ctx: Context, store: ExtendedStore, count: int, method: str) -> None:
    """The order of sessions by their number of messages follows each change."""
    if "QUERYABLE" in ctx.harness.lacks:
        return
    wanted = sorted([(count, _A), (2, "z"), (6, "y")])
    found = await store.query_sessions(sort_by="message_count", order="asc")
    got = [(session.message_count, session.agent_id) for session in found]
    ctx.equal(got, wanted, f"sessions by message_count after {method}")


async def _see_copies(ctx: Context, stores: Sequence[ExtendedStore], count: int) -> None:
    """Forks of an agent whose list was cut, and imports whose info has another number."""
    await stores[0].save_snapshot(_A, samples.snapshot("s", count=3))
    (whole,) = await stores[0].batch_fork(_A, 1)
    copies = {whole: count, await stores[1].fork(_A, length=4): 4, await stores[0].fork(_A, snapshot_id="s"): 3}
    info, times = samples.info("i", message_count=50), [samples.T0] * 2
    records = AgentRecords(agent_id="i", info=info, messages=samples.messages(2), message_times=times)
    await stores[1].import_agent("i", records)
    copies["i"] = 2
    for number, (agent_id, length) in enumerate(copies.items()):
        await _see(ctx, stores, agent_id, length, f"of a copy of {length} messages")
        await stores[number % 2].truncate_messages(agent_id, 1)
        await _see(ctx, stores, agent_id, 1, f"of a copy of {length} messages after truncate_messages")
    await _see(ctx, stores, _A, count, "of an agent after its copies were cut")
