"""The scripts that other processes of a check run.

``python -m kode_conformance.processes.scripts CALL`` runs one of the scripts here.

A script reports its results as JSON lines. Each line is written after the write that it reports was acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final, cast

from kode_conformance.calls import documents
from kode_conformance.checks.leases import ENDS
from kode_conformance.harness import Handle, judging, load_harness
from kode_conformance.histories.clients import LOGS, REGISTERS, append_and_read, write_and_read
from kode_conformance.kills.writes import seed, write_named
from kode_conformance.processes import remote
from kode_conformance.processes.lookers import STEPS
from kode_conformance.values import samples
from kode_core.errors import LockError, LockLostError, LockUnavailableError
from kode_core.model import AgentInfo
from kode_core.protocols import ExtendedStore, Lease


def tell(**facts: Any) -> None:
    """One line, whole or not at all even when the process is killed."""
    os.write(1, json.dumps(facts).encode() + b"\n")


async def append_messages(store: ExtendedStore, agent_id: str, tag: str, count: int) -> None:
    """Append pairs of messages, one call at a time."""
    for i in range(count):
        pair = [samples.message(text=f"{tag} {i} {half}") for half in ("first", "second")]
        await store.append_messages(agent_id, pair)
        tell(tag=tag, n=i)


async def append_once(store: ExtendedStore, agent_id: str, tag: str, count: int, gate: str) -> None:
    """Wait for the gate, then append messages under keys that others have, too, two in a call."""
    tell(ready=tag)
    while not Path(gate).exists():
        await asyncio.sleep(0.001)
    for i in range(count):
        pair = {f"k{n}": samples.message(text=f"k{n} by {tag}") for n in (i, i + 1)}
        places = await store.append_messages_once(agent_id, pair)
        new = [key for key, place in zip(pair, places, strict=True) if place.is_new]
        tell(new=new, places={key: place.position for key, place in zip(pair, places, strict=True)})


async def append_events(store: ExtendedStore, agent_id: str, start: int, count: int, at_once: int) -> None:
    """Append events, *at_once* at a time, and tell each offset."""

    async def one(seq: int) -> None:
        tell(seq=seq, offset=await store.append_event(agent_id, samples.event(seq)))

    for i in range(start, start + count, at_once):
        await asyncio.gather(*(one(seq) for seq in range(i, i + at_once)))


async def replace_messages(store: ExtendedStore, agent_id: str, tag: str, count: int, length: int) -> None:
    """Replace the whole list again and again, each time with messages that all say which time it is."""
    for i in range(count):
        await store.save_messages(agent_id, [samples.message(text=f"{tag} {i}") for _ in range(length)])
    tell(done=tag)


async def write_turns(store: ExtendedStore, agent_id: str, start: int, count: int) -> None:
    """Write whole turns, each telling its number."""
    for n in range(start, start + count):
        await store.save_turn(
            agent_id,
            append=[samples.message(text=f"turn {n} question"), samples.message(text=f"turn {n} answer")],
            upsert_tool_calls=[samples.tool_call(n)],
            todos=samples.todos(f"turn {n}"),
            info=samples.info(agent_id, metadata={"turn": n}),
            events=[samples.event(2 * n), samples.event(2 * n + 1)],
        )
        tell(turn=n)


async def mixed_writes(store: ExtendedStore, agent_id: str, count: int) -> None:
    """Single saves of each kind, in a round, each telling its number; messages as a growing whole list."""
    history = [samples.message(text=f"message {i}") for i in range(count)]
    for n in range(count):
        await store.save_messages(agent_id, history[: n + 1])
        await store.append_event(agent_id, samples.event(n))
        await store.save_info(agent_id, samples.info(agent_id, metadata={"n": n}))
        await store.save_snapshot(agent_id, samples.snapshot(f"sfp-{n % 5}", created_at=samples.T0 + n))
        tell(n=n)


async def hold_lock(store: ExtendedStore, agent_id: str, ttl_ms: int) -> None:
    """Take the lock, tell its token, and hold it until the end of days."""
    async with store.acquire_agent_lock(agent_id, ttl_ms=ttl_ms) as lease:
        tell(token=lease.token)
        await asyncio.sleep(3600)


async def hold_locks(store: ExtendedStore, agents: list[str], ttl_ms: int) -> None:
    """Write to each of these agents under its lock, tell the tokens, and hold the locks until the end of days."""
    tokens = []
    for agent_id in agents:
        lease = await store.acquire_agent_lock(agent_id, ttl_ms=ttl_ms)
        await store.save_messages(agent_id, [samples.message(text=f"by another process: {agent_id}")], fence=lease)
        tokens.append(lease.token)
    tell(tokens=tokens)
    await asyncio.sleep(3600)


async def stopped_holder(store: ExtendedStore, agent_id: str, ttl_ms: int, in_block: bool) -> None:
    """Take the lock, stop this whole process, and, once it is continued, write under the lease and without it."""
    lock = store.acquire_agent_lock(agent_id, ttl_ms=ttl_ms)
    if in_block:
        async with lock as lease:
            await _stop_and_write(store, lease, None)
    else:
        lease = await lock
        await _stop_and_write(store, lease, lease)
    await store.save_media_cache(agent_id, [samples.media("without a fence")])
    tell(unfenced="stored")


async def _stop_and_write(store: ExtendedStore, lease: Lease, fence: Lease | None) -> None:
    tell(token=lease.token, pid=os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        await store.save_todos(lease.agent_id, samples.todos("of the old holder"), fence=fence)
        tell(fenced="stored")
    except LockLostError:
        tell(fenced="refused")


async def count_up(store: ExtendedStore, agent_id: str, rounds: int) -> None:
    """Add one to a counter under the lock, *rounds* times: read, think, write."""
    done = 0
    while done < rounds:
        try:
            async with store.acquire_agent_lock(agent_id, ttl_ms=60_000, wait_ms=600_000) as lease:
                info = cast(AgentInfo, await store.load_info(agent_id))
                n = info.metadata["n"]
                await asyncio.sleep(0.001)
                await store.save_info(agent_id, info.replace(metadata={"n": n + 1}))
                done += 1
                tell(n=n + 1, token=lease.token)
        except LockError:
            continue


async def count_documents(store: ExtendedStore, agent_id: str, tries: int, gate: str) -> None:
    """Wait for the gate, then count a document up by compare and set, and report how often it succeeded."""
    tell(ready=agent_id)
    while not Path(gate).exists():
        await asyncio.sleep(0.001)
    tell(done=await documents.count_up(store, agent_id, tries))


async def open_only(store: ExtendedStore, agent_id: str) -> None:
    """Do nothing: opening the store is enough."""
    await store.save_messages(agent_id, samples.messages(1))
    tell(opened=agent_id)


async def leave_open(store: ExtendedStore, agent_id: str) -> None:
    """Write, and end the process without closing the store (OPS-11)."""
    await store.save_messages(agent_id, samples.messages(1))
    await store.append_event(agent_id, samples.event(1))
    tell(written=agent_id)


async def leave_several_open(store: ExtendedStore, spec: str, handle: Handle, count: int) -> None:
    """Write by so many instances, each with a reader that has begun, and end the process without closing any."""
    stores = [store, *[cast(ExtendedStore, await load_harness(spec).open(handle)) for _ in range(count - 1)]]
    left_open.update(stores)
    for number, one in enumerate(stores):
        await one.save_messages(f"a{number}", samples.messages(2))
        await one.append_event(f"a{number}", samples.event(number))
        reader = one.read_events(f"a{number}").__aiter__()
        await anext(reader)
        left_open.add(reader)
    tell(written=count)


async def live_with_locks(store: ExtendedStore, held: str, ends: list[str], until: str) -> None:
    """Try a lock that another process has, let a lease of this one end in each way, and hold one until there is a file.

    Report the result of each step.
    """
    for _ in range(3):
        try:
            await store.acquire_agent_lock(held)
            tell(got=held)
        except LockUnavailableError:
            tell(refused=held)
    leases = {end.how: await end.live(store, end.how, 0) for end in ENDS if end.how in ends}
    tokens = {how: lease.token for how, lease in leases.items()}
    kept = await store.acquire_agent_lock("kept", ttl_ms=600_000)
    tell(tokens=tokens, kept=kept.token)
    while not Path(until).exists():
        await asyncio.sleep(0.005)
    late = {how: await _late(store, lease) for how, lease in leases.items()}
    await kept.release()
    tell(released="kept", late=late)
    again = {}
    for how in tokens:
        again[how] = (await store.acquire_agent_lock(how, wait_ms=20_000)).token
    tell(again=again)


async def _late(store: ExtendedStore, lease: Lease) -> list[str]:
    """The results of a release, a renewal and a write under a lease that has ended."""
    await lease.release()
    outcomes = []
    for call in (lease.renew(), store.append_event(lease.agent_id, samples.event(1), fence=lease)):
        try:
            await call
            outcomes.append("done")
        except LockLostError:
            outcomes.append("refused")
    return outcomes


async def leave_all_open(store: ExtendedStore, agent_id: str, names: list[str]) -> None:
    """Write of every kind, and end the process while locks are held and waited for, and readers have begun."""
    await seed(store, agent_id)
    released = await store.acquire_agent_lock("released", ttl_ms=600_000)
    await released.release()
    awaited = await store.acquire_agent_lock("awaited", ttl_ms=2000)
    entered = asyncio.Event()
    tokens: dict[str, int] = {"released": released.token, "awaited": awaited.token}

    async def hold() -> None:
        async with store.acquire_agent_lock(agent_id, ttl_ms=2000) as lease:
            tokens[agent_id] = lease.token
            entered.set()
            await asyncio.sleep(3600)

    async def wait() -> None:
        await store.acquire_agent_lock("held", wait_ms=3_600_000)

    async def follow() -> None:
        async for _ in store.follow_events("nobody"):
            pass

    left_open.update(asyncio.ensure_future(task) for task in (hold(), wait(), follow()))
    await entered.wait()
    tell(tokens=tokens)
    readers = [store.read_events(agent_id).__aiter__(), store.iter_messages().__aiter__()]
    for reader in readers:
        await anext(reader)
    for name in names:
        await write_named(name).act(store, agent_id)
    left_open.update(readers)
    tell(written=names)


left_open: Final[set[object]] = set()
"""Objects that stay open until the process ends."""


async def tell_events(store: ExtendedStore, agent_id: str) -> None:
    """Report the number of events."""
    tell(events=len([event async for event in store.read_events(agent_id)]))


async def big_writes(store: ExtendedStore, agents: list[str], seconds: float) -> None:
    """Make large calls on each agent, one after the other, for so many seconds about."""
    until = time.monotonic() + seconds
    for agent in agents:
        if time.monotonic() > until:
            break
        tell(agent=agent)
        for step in STEPS.values():
            await step(store, agent)
        tell(done=agent)
    tell(agent=None)


async def race(store: ExtendedStore, gate: str, number: int, seed: int, calls: int, seconds: float) -> None:
    """Wait for the gate, then be a client of every register and log, on an agent for each, and tell the calls.

    All of it takes about so many *seconds* at most.
    """
    tell(ready=number)
    while not Path(gate).exists():
        await asyncio.sleep(0.001)
    rng = random.Random(seed)  # noqa: S311
    share = seconds / (len(REGISTERS) + len(LOGS))
    for name, register in REGISTERS.items():
        until = time.monotonic() + share
        done = await write_and_read(store, name, register, number, rng, calls, cancel=False, until=until)
        tell(name=name, calls=done)
    for name, log in LOGS.items():
        until = time.monotonic() + share
        done, answered = await append_and_read(store, name, log, number, rng, calls // 2, cancel=False, until=until)
        tell(name=name, calls=done, offsets=answered)


async def serve(store: ExtendedStore) -> None:
    """Answer the calls of another process until it closes the store."""
    await remote.serve(store, tell)


SCRIPTS: Final = {
    function.__name__: function
    for function in (
        append_messages,
        append_once,
        append_events,
        replace_messages,
        write_turns,
        mixed_writes,
        hold_lock,
        hold_locks,
        stopped_holder,
        count_up,
        count_documents,
        open_only,
        leave_open,
        leave_all_open,
        leave_several_open,
        live_with_locks,
        tell_events,
        big_writes,
        race,
        serve,
    )
}


async def run(spec: str, handle: Handle, script: str, args: list[Any]) -> None:
    """Open the store and run the script."""
    harness = load_harness(spec)
    judging(harness)
    store = cast(ExtendedStore, await harness.open(handle))
    await SCRIPTS[script](store, *args)
    close = getattr(store, "close", None)
    if close is not None and not script.startswith("leave_"):
        await close()


def main() -> None:
    """Do what the one argument says."""
    call = json.loads(sys.argv[1])
    asyncio.run(run(call["harness"], call["handle"], call["script"], call["args"]))


if __name__ == "__main__":
    main()
