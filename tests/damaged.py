"""What a store must do when a row of one agent was damaged by hand: the calls that need it fail, no others (OPS-4)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from kode_conformance.values import samples

from kode_core import CorruptRecordError, KodeError, ToolCallRecord
from kode_core.protocols import ExtendedStore

__all__ = ["ALL", "Case", "fill", "judge"]

_CALL: Final = ToolCallRecord(id="c2", name="n", created_at=5, updated_at=5)


class Case(NamedTuple):
    """A statement that damages agent ``a``.

    Attributes:
        fails: the reads of the agent that cannot be answered any more; all others give what they gave before.
        left_out: the searches that leave something out and name it.
        is_found: whether the check finds it.
        changes: reads that give something else, which nobody can tell from what was written.
    """

    statement: str
    fails: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()
    is_found: bool = True
    changes: frozenset[str] = frozenset()


async def fill(store: ExtendedStore) -> None:
    """Two agents with everything."""
    for agent_id in ("a", "b"):
        await store.save_turn(
            agent_id,
            messages=samples.messages(5),
            tool_calls=[samples.tool_call(), _CALL],
            info=samples.info(agent_id),
            todos=samples.todos(),
            events=samples.events(5),
        )
        await store.save_snapshot(agent_id, samples.snapshot())
        await store.save_media_cache(agent_id, [samples.media()])
        await store.save_history_window(agent_id, samples.window())
        await store.save_compression_record(agent_id, samples.compression())
        await store.save_recovered_file(agent_id, samples.recovered())


def _reads(store: ExtendedStore, agent_id: str) -> dict[str, Callable[[], Awaitable[Any]]]:
    async def events(**more: Any) -> list[Any]:
        return [event async for event in store.read_events(agent_id, **more)]

    return {
        "messages": lambda: store.load_messages(agent_id),
        "tool_calls": lambda: store.load_tool_call_records(agent_id),
        "info": lambda: store.load_info(agent_id),
        "exists": lambda: store.exists(agent_id),
        "todos": lambda: store.load_todos(agent_id),
        "windows": lambda: store.load_history_windows(agent_id),
        "compressions": lambda: store.load_compression_records(agent_id),
        "recovered": lambda: store.load_recovered_files(agent_id),
        "media": lambda: store.load_media_cache(agent_id),
        "snapshots": lambda: store.list_snapshots(agent_id),
        "bookmark": lambda: store.last_bookmark(agent_id),
        "events": events,
        "events_by_offset": lambda: events(after_offset=0),
        "stats": lambda: store.aggregate_stats(agent_id),
    }


ALL: Final = frozenset(("messages", "tool_calls", "info", "exists", "stats"))
"""What needs the head."""


async def _looked(store: ExtendedStore, agent_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, read in _reads(store, agent_id).items():
        try:
            found[name] = await read()
        except CorruptRecordError as exc:
            assert agent_id in exc.record, exc.record
            found[name] = CorruptRecordError
    return found


async def _searched(store: ExtendedStore) -> set[str]:
    """The searches that left something out; each finds all of ``b``."""
    left = set()
    for name, page, count in (
        ("sessions", await store.query_sessions(), 1),
        ("sessions", await store.query_sessions(order="asc", sort_by="updated_at"), 1),
        ("messages", await store.query_messages(), 5),
        ("tool_calls", await store.query_tool_calls(order="asc"), 2),
    ):
        assert sum(record.agent_id == "b" for record in page) == count, name
        if page.left_out:
            left.add(name)
    assert [session.agent_id async for session in store.iter_sessions() if session.agent_id == "b"] == ["b"]
    one_by_one = [message.position async for message in store.iter_messages(order="asc") if message.agent_id == "b"]
    assert one_by_one == [0, 1, 2, 3, 4]
    assert "b" in await store.list()
    await store.get_metrics()
    return left


async def _written(store: ExtendedStore) -> None:
    """Writes to the damaged agent are done, or refused with an error of this library; none to the other one fails."""
    for agent_id in ("a", "b"):
        for write in (
            lambda agent_id=agent_id: store.append_messages(agent_id, samples.messages(1)),
            lambda agent_id=agent_id: store.upsert_tool_call_records(agent_id, [_CALL]),
            lambda agent_id=agent_id: store.append_event(agent_id, samples.event(77)),
            lambda agent_id=agent_id: store.save_todos(agent_id, samples.todos()),
            lambda agent_id=agent_id: store.save_info(agent_id, samples.info(agent_id)),
            lambda agent_id=agent_id: store.save_messages(agent_id, samples.messages(6)),
        ):
            try:
                await write()
            except CorruptRecordError:
                assert agent_id == "a"


async def judge(
    opened: Callable[[], Any], damage: Callable[[], Awaitable[None]], case: Case, *, is_gone_with_delete: bool = True
) -> None:
    """Damage agent ``a`` of a store that was filled, and see that nothing else is any different."""
    async with opened() as store:
        before = {agent_id: await _looked(store, agent_id) for agent_id in ("a", "b")}
    await damage()
    logging.getLogger("kode_core").setLevel(logging.CRITICAL)
    try:
        async with opened() as store:
            found = await store.check_consistency()
            assert bool(found.issues) == case.is_found, found.issues
            assert "b" not in {issue.agent_id for issue in found.issues}
            after = await _looked(store, "a")
            assert {name for name, value in after.items() if value is CorruptRecordError} == case.fails
            same = {name for name in after if after[name] == before["a"][name]}
            assert after.keys() - same - case.fails == case.changes
            assert await _looked(store, "b") == before["b"]
            assert await _searched(store) == case.left_out
            assert len(await store.batch_fork("b", 1)) == 1
            await _written(store)
            assert await store.delete_many(agent_id="b") == 1
            try:
                await store.delete_many(agent_id="a")
            except KodeError as exc:
                raise AssertionError("a search that deletes leaves out what it cannot delete") from exc
            await store.delete("a")
            assert (await store.check_consistency("a")).issues[0].code == "unknown_agent"
            if is_gone_with_delete:
                assert (await store.check_consistency()).consistent
    finally:
        logging.getLogger("kode_core").setLevel(logging.NOTSET)
