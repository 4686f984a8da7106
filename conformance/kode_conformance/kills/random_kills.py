"""Killing a writer in the middle of its work, and judging the remaining data (DUR clauses)."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from kode_conformance.context import Context, Violation
from kode_conformance.values import samples
from kode_core.protocols import ExtendedStore

__all__ = ["kill_mixed", "kill_turns"]

AGENT = "agt-crash"


async def kill_turns(context: Context, rounds: int, seed: int) -> int:
    """Kill a process that writes turns, again and again on one store; returns how many turns were acknowledged.

    After each kill the store must open, and hold every turn that was acknowledged, at most one more, and each turn
    whole: a turn is stored in all kinds or in none.
    """
    rng = random.Random(seed)  # noqa: S311
    turns = 0
    for round_number in range(rounds):
        process = await context.process("write_turns", AGENT, turns, 10_000)
        reports = await process.line()
        await asyncio.sleep(rng.uniform(0, 0.05))
        process.kill()
        reports = [reports, *await process.gone()]
        acknowledged = reports[-1]["turn"] + 1
        store = await context.another()
        turns = await whole_turns(store, f"round {round_number}, killed after turn {acknowledged - 1}")
        if not acknowledged <= turns <= acknowledged + 1:
            raise Violation(f"round {round_number}: {acknowledged} turns were acknowledged, {turns} are there")
        await context.close(store)
    return turns


async def whole_turns(store: ExtendedStore, when: str) -> int:
    """The number of turns, which all kinds must agree on."""
    messages = await store.load_messages(AGENT)
    calls = await store.load_tool_call_records(AGENT)
    events = [event async for event in store.read_events(AGENT)]
    info = await store.load_info(AGENT)
    todos = await store.load_todos(AGENT)
    texts = [message.text for message in messages]
    twice = [text for text, number in Counter(texts).items() if number > 1]
    if twice:
        raise Violation(f"{when}: a turn is stored more than once: {twice[0]!r}")
    turns = len(messages) // 2
    counts = {
        "messages": len(messages) / 2,
        "tool calls": len(calls),
        "events": len(events) / 2,
        "info": info.metadata["turn"] + 1 if info else 0,
        "todos": int(todos.todos[0].title.split()[-1]) + 1 if todos else 0,
    }
    if set(counts.values()) != {turns}:
        raise Violation(f"{when}: a turn is there in part: turns by kind {counts}")
    expected = [f"turn {n} {part}" for n in range(turns) for part in ("question", "answer")]
    if texts != expected or [event.bookmark.seq for event in events] != list(range(2 * turns)):
        raise Violation(f"{when}: the records are not the ones that were written")
    return turns


async def kill_mixed(context: Context, rounds: int, seed: int) -> int:
    """Kill a process that makes single saves of many kinds; returns how many rounds of saves were acknowledged."""
    rng = random.Random(seed)  # noqa: S311
    total = 0
    for round_number in range(rounds):
        agent_id = f"{AGENT}-{round_number}"
        process = await context.process("mixed_writes", agent_id, 10_000)
        reports = await process.line()
        await asyncio.sleep(rng.uniform(0, 0.03))
        process.kill()
        reports = [reports, *await process.gone()]
        total += len(reports)
        store = await context.another()
        await _judge_mixed(store, agent_id, reports[-1]["n"])
        await context.close(store)
    return total


async def _judge_mixed(store: ExtendedStore, agent_id: str, last: int) -> None:
    """Check that every save up to *last* is stored, and of the next round only the saves before the kill."""
    messages = await store.load_messages(agent_id)
    if [m.text for m in messages] != [f"message {i}" for i in range(len(messages))]:
        raise Violation(f"{agent_id}: the list of messages is torn")
    seqs = [event.bookmark.seq async for event in store.read_events(agent_id)]
    info = await store.load_info(agent_id)
    snapshots = await store.list_snapshots(agent_id)
    newest = snapshots[0].created_at - samples.T0 if snapshots else -1
    counts = [len(messages), len(seqs), info.metadata["n"] + 1 if info else 0, newest + 1]
    if seqs != list(range(len(seqs))) or not last + 1 <= min(counts) <= max(counts) <= last + 2:
        raise Violation(f"{agent_id}: {last + 1} rounds were acknowledged, there are {counts} of each kind")
    if counts != sorted(counts, reverse=True):
        raise Violation(f"{agent_id}: a later save is there and an earlier one is not: {counts}")
