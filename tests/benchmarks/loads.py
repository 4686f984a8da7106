"""Reading a whole conversation: the first load of it, which the store remembers for the next save."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from kode_core import ExtendedStore
from tests.benchmarks.backends import Backend, floor_at, opened
from tests.benchmarks.floor import Floor
from tests.benchmarks.measure import Report, Row, interleaved
from tests.benchmarks.peers import INSTALL, OpenAISession, has_modules, session_engine
from tests.benchmarks.workload import LENGTHS, FloorAgent, four_messages

ROUNDS = 15
_PEER = ("agents", "sqlalchemy")
_MOST_OF_PEER = 0.5
_MOST_OF_FLOOR = 2.0


async def run(report: Report, backend: Backend) -> None:
    """Measure milliseconds of ``load_messages``, beside bare rows with ``json.loads`` and a peer where it is there."""
    report.title("All messages of a conversation, read as objects")
    has_peer = has_modules(_PEER)
    if not has_peer:
        print(f"OpenAI Agents is left out, it is not installed; run: {INSTALL}")
    for length in LENGTHS:
        async with AsyncExitStack() as stack:
            contestants = await _contestants(stack, backend, length, has_peer=has_peer)
            times = await interleaved(ROUNDS, **contestants)
        ours, bare = times["ours"], times["floor"]
        report.add(
            Row(f"load_messages of {length:,}", ours * 1000, "ms", ours / bare, "bare rows, json.loads", _MOST_OF_FLOOR)
        )
        report.add(Row(f"  bare {backend.driver}, json.loads", bare * 1000, "ms"))
        if has_peer:
            peer = times["peer"]
            of = "OpenAI Agents, get_items"
            report.add(Row(f"  the same beside it, {length:,}", peer * 1000, "ms", ours / peer, of, _MOST_OF_PEER))


async def _contestants(
    stack: AsyncExitStack, backend: Backend, length: int, *, has_peer: bool
) -> dict[str, Callable[[int], Awaitable[object]]]:
    """Who reads, each from a place of its own with *length* messages."""
    store = await stack.enter_async_context(opened(await stack.enter_async_context(backend.space())))
    options = await stack.enter_async_context(backend.space())
    floor = await stack.enter_async_context(floor_at(options, backend.floors[-1]))
    found = {"ours": await _ours(store, length), "floor": await _bare(floor, length)}
    if has_peer:
        engine = await stack.enter_async_context(session_engine(await stack.enter_async_context(backend.space())))
        peer = OpenAISession(engine, "session")
        await peer.start(length)
        found["peer"] = peer.load
    return found


async def _ours(store: ExtendedStore, length: int) -> Callable[[int], Awaitable[object]]:
    await store.append_messages("agt", [message for n in range(length // 4) for message in four_messages(n)])
    return lambda _: store.load_messages("agt")


async def _bare(floor: Floor, length: int) -> Callable[[int], Awaitable[object]]:
    await FloorAgent(floor, "agt", length).start()
    return lambda _: floor.load("agt")
