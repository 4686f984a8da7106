"""Parts of lists, edits in place, versions and forks by one call, over the memory engine and SQLite."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kode_core import (
    AgentInfo,
    AgentNotFoundError,
    ConflictError,
    ExtendedStore,
    InvalidArgumentError,
    InvalidValueError,
    LockLostError,
    Message,
    RecoveredFile,
    Snapshot,
    StoreClosedError,
    TodoItem,
    TodoSnapshot,
    create_extended_store,
)
from kode_core.batch import DocKind
from kode_core.errors import CorruptRecordError
from kode_core.layers import Layer
from kode_core.store import EngineStore


@pytest.fixture(params=["memory:", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ExtendedStore]:
    url = request.param if request.param == "memory:" else f"sqlite:///{tmp_path / 'a.db'}"
    async with await create_extended_store(url) as opened:
        yield opened


def texts(count: int, start: int = 0) -> list[Message]:
    return [Message.user(f"m{n}") for n in range(start, start + count)]


def info(agent_id: str = "a", **fields: Any) -> AgentInfo:
    return AgentInfo(agent_id=agent_id, template_id="t", **fields)


@pytest.mark.parametrize("name", ["last", "after", "before"])
@pytest.mark.parametrize("value", [-1, True, 1.0, "1", 2.5, b"", [], float("nan")])
async def test_bad_bounds_are_refused(store: ExtendedStore, name: str, value: Any) -> None:
    """Each by its name, before anything is read."""
    with pytest.raises(InvalidArgumentError, match=name):
        await store.load_messages("a", **{name: value})
    with pytest.raises(InvalidArgumentError, match=name):
        await store.load_tool_call_records("a", **{name: value})


async def test_bad_edits_are_refused(store: ExtendedStore) -> None:
    """Counts, lengths, places, messages and metadata of another type or size."""
    await store.append_messages("a", texts(3))
    await store.create_agent("a", info())
    calls = [
        store.pop_messages("a", -1),
        store.pop_messages("a", None),  # type: ignore[arg-type]
        store.truncate_messages("a", "1"),  # type: ignore[arg-type]
        store.replace_message("a", 3, Message.user("x")),
        store.replace_message("a", 10**30, Message.user("x")),
        store.replace_message("a", 0, {"role": "user"}),  # type: ignore[arg-type]
        store.update_info("a", [("x", 1)]),  # type: ignore[arg-type]
        store.update_info("a", {}, remove="x"),
        store.update_info("a", {"x": 1}, remove=["x"]),
        store.update_info("a", {}, remove=[["x"]]),  # type: ignore[list-item]
        store.update_info("a", {"x": {1, 2}}),  # type: ignore[dict-item]
        store.update_info("a", {1: 2}),  # type: ignore[dict-item]
        store.fork("a", "b\0"),
        store.fork("a", "b", length=4),
        store.delete_snapshot("a", ""),
        store.create_agent("b", info("c")),
        store.load_messages("", last=1),
    ]
    for call in calls:
        with pytest.raises(InvalidArgumentError):
            await call
    assert len(await store.load_messages("a")) == 3
    assert (await store.load_info("a") or info()).metadata == {}
    with pytest.raises(InvalidArgumentError):
        store.read_messages("a", reverse=1)  # type: ignore[arg-type]


async def test_a_message_that_json_cannot_carry_replaces_nothing(store: ExtendedStore) -> None:
    """The value is named as in any save."""
    await store.append_messages("a", texts(1))
    with pytest.raises(InvalidValueError, match=r"\$\.metadata"):
        await store.replace_message("a", 0, Message.user("x").replace(metadata={"x": float("nan")}))
    assert await store.load_messages("a") == texts(1)


async def test_saves_after_edits_write_the_right_rows(store: ExtendedStore) -> None:
    """The store remembers lists: every edit is followed by a save of all, by an append, and by a look."""
    wanted = texts(20)
    await store.save_messages("a", wanted)
    for n in range(5):
        popped = await store.pop_messages("a", 2)
        assert popped == wanted[-2:]
        wanted = wanted[:-2]
        await store.replace_message("a", n, Message.user(f"r{n}"))
        wanted[n] = Message.user(f"r{n}")
        await store.append_messages("a", texts(1, 100 + n))
        wanted += texts(1, 100 + n)
        wanted[-1] = Message.user(f"edited {n}")
        await store.save_messages("a", wanted)
        assert await store.load_messages("a") == wanted
        assert [m.position async for m in store.read_messages("a")] == [*range(len(wanted))]
    await store.truncate_messages("a", 0)
    await store.save_messages("a", texts(2))
    assert await store.load_messages("a") == texts(2)


async def test_a_lost_lease_stops_edits(store: ExtendedStore) -> None:
    """Also edits that would find nothing to do."""
    await store.create_agent("a", info())
    lease = await store.acquire_agent_lock("a")
    await lease.release()
    for call in (
        store.pop_messages("a", fence=lease),
        store.truncate_messages("a", 0, fence=lease),
        store.update_info("a", {}, fence=lease),
        store.delete_snapshot("a", "s", fence=lease),
    ):
        with pytest.raises(LockLostError):
            await call


async def test_a_lost_lease_counts_before_a_conflict(store: ExtendedStore) -> None:
    """A worker that takes ConflictError for "load again and go on" learns that it no longer holds the agent."""
    old = await store.load_version("a")
    await store.save_turn("a", info=info(), append=texts(2))
    lease, absent = await store.acquire_agent_lock("a"), await store.acquire_agent_lock("nobody")
    with pytest.raises(ConflictError):
        await store.create_agent("a", info(), fence=lease)
    await lease.release()
    await absent.release()
    for call in (
        store.create_agent("a", info(), fence=lease),
        store.update_info("nobody", {}, fence=absent),
        store.save_messages("a", [], expect=old, fence=lease),
        store.truncate_messages("a", 0, expect=old, fence=lease),
    ):
        with pytest.raises(LockLostError):
            await call


async def test_a_closed_store_says_so(store: ExtendedStore) -> None:
    """Every new call, the stream at its first message."""
    await store.close()
    with pytest.raises(StoreClosedError):
        await store.load_messages("a", last=1)
    with pytest.raises(StoreClosedError):
        await store.pop_messages("a")
    with pytest.raises(StoreClosedError):
        await store.fork("a")
    with pytest.raises(StoreClosedError):
        _ = [m async for m in store.read_messages("a")]


async def test_a_conflict_has_the_present_version(store: ExtendedStore) -> None:
    """With it the next attempt succeeds."""
    before = await store.load_version("a")
    await store.append_messages("a", texts(1))
    with pytest.raises(ConflictError) as caught:
        await store.save_turn("a", append=texts(1, 1), expect=before)
    assert (caught.value.agent_id, caught.value.version) == ("a", await store.load_version("a"))
    assert caught.value.retry.value == "never"
    await store.save_turn("a", append=texts(1, 1), expect=caught.value.version)
    assert await store.load_messages("a") == texts(2)


async def test_a_turn_of_todos_demands_a_version_too(store: ExtendedStore) -> None:
    """A turn without lists and info is refused as well."""
    before = await store.load_version("a")
    await store.append_messages("a", texts(1))
    todos = TodoSnapshot(todos=[TodoItem(id="1", title="x", status="pending")])
    with pytest.raises(ConflictError):
        await store.save_turn("a", todos=todos, expect=before)
    assert await store.load_todos("a") is None


async def test_an_agent_created_again_has_another_version() -> None:
    """Though the clock stands still, so that updated_at is the same."""
    store = EngineStore(_memory, clock=lambda: 1_000)
    async with store:
        await store.create_agent("a", info(metadata={"n": 1}))
        first = await store.load_version("a")
        await store.delete("a")
        await store.create_agent("a", info(metadata={"n": 2}))
        with pytest.raises(ConflictError):
            await store.save_info("a", info(), expect=first)


async def _memory() -> Any:
    from kode_core.backends.memory.engine import MemoryEngine, MemorySpace

    return MemoryEngine(MemorySpace())


async def test_a_fork_of_a_snapshot_takes_the_times_of_equal_messages(store: ExtendedStore) -> None:
    """Messages that the parent no longer has are as new as the fork, and none is older than the one before it."""
    await store.create_agent("a", info())
    await store.save_messages("a", texts(4))
    snapshot = Snapshot(id="s", messages=[*texts(2), Message.user("gone")])
    await store.save_snapshot("a", snapshot)
    times = [m.created_at async for m in store.read_messages("a")]
    await asyncio.sleep(0.01)
    child = await store.fork("a", snapshot_id="s")
    found = [m.created_at async for m in store.read_messages(child)]
    assert found[:2] == times[:2] and found[2] > times[1]
    assert await store.list_snapshots(child) == [snapshot]
    with pytest.raises(AgentNotFoundError):
        await store.fork("nobody")


class _Spoiled(Layer):
    """Reads of a part find it damaged."""

    async def rows_at(self, agent_id: str, kind: Any, start: int, limit: int) -> Any:
        raise CorruptRecordError("message 4 of agent 'a'", "it is not as it was written")


async def test_a_damaged_message_is_not_popped() -> None:
    """It stays for a repair."""

    async def spoiled() -> Any:
        return _Spoiled(await _memory())

    async with EngineStore(spoiled) as store:
        await store.save_messages("a", texts(5))
        with pytest.raises(CorruptRecordError):
            await store.pop_messages("a")
        assert len(await store.load_messages("a")) == 5


class _Counted(Layer):
    """Counts the rows that reads return."""

    rows_read = 0

    async def rows(self, agent_id: str, kind: Any) -> Any:
        found = await super().rows(agent_id, kind)
        _Counted.rows_read += len(found.rows)
        return found

    async def rows_at(self, agent_id: str, kind: Any, start: int, limit: int) -> Any:
        found = await super().rows_at(agent_id, kind, start, limit)
        _Counted.rows_read += len(found.rows)
        return found

    async def outline(self, agent_id: str, kind: Any, keys: Any = None) -> Any:
        found = await super().outline(agent_id, kind, keys)
        _Counted.rows_read += len(found.rows)
        return found


async def test_parts_and_edits_of_100000_messages_read_what_they_contain() -> None:
    """In rows that the engine returns."""

    async def counted() -> Any:
        return _Counted(await _memory())

    async with EngineStore(counted, memory_limit_bytes=0) as store:
        for start in range(0, 100_000, 20_000):
            await store.append_messages("a", texts(20_000, start))
        _Counted.rows_read = 0
        assert await store.load_messages("a", last=20) == texts(20, 99_980)
        assert await store.load_messages("a", after=99_990) == texts(9, 99_991)
        assert await store.pop_messages("a", 2) == texts(2, 99_998)
        await store.replace_message("a", 50_000, Message.user("x"))
        assert await store.truncate_messages("a", 99_000) == 998
        assert [m.position async for m in store.read_messages("a", after=98_989)] == [*range(98_990, 99_000)]
        assert _Counted.rows_read < 100


async def test_a_fork_takes_no_id_that_has_documents(store: ExtendedStore) -> None:
    """They would be overwritten, or become part of the fork."""
    await store.create_agent("a", info())
    mine = TodoSnapshot(todos=[TodoItem(id="1", title="mine", status="pending")])
    await store.save_todos("a", TodoSnapshot())
    await store.save_todos("b", mine)
    await store.save_recovered_file("c", RecoveredFile(path="p", content="x"))
    for taken in ("b", "c"):
        with pytest.raises(ConflictError):
            await store.fork("a", taken)
        assert not await store.exists(taken)
    assert await store.load_todos("b") == mine


async def test_a_fork_is_fenced_by_the_lock_of_its_own_id(store: ExtendedStore) -> None:
    """A fork to an id whose lease was lost changes nothing (LOCK-5)."""
    await store.create_agent("a", info())
    async with store.acquire_agent_lock("b") as lease:
        await lease.release()
        with pytest.raises(LockLostError):
            await store.fork("a", "b")
    assert not await store.exists("b")
    async with store.acquire_agent_lock("b"):
        await store.fork("a", "b")
    assert await store.exists("b")


class _Late(Layer):
    """Saves todos and a snapshot, one after the other, just before the first look at snapshots."""

    is_armed = False
    save: Any

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Any:
        if self.is_armed and agent_id == "a" and kind is DocKind.SNAPSHOTS:
            type(self).is_armed = False
            await self.save()
        return await super().docs(agent_id, kind, key)


async def test_the_documents_of_a_fork_are_of_one_instant() -> None:
    """Not the todos of before two saves with the snapshot of after (FORK-1)."""

    async def opener() -> Any:
        return _Late(await _memory())

    async with EngineStore(opener) as store:
        await store.create_agent("a", info())
        todos = TodoSnapshot(todos=[TodoItem(id="1", title="new", status="pending")])

        async def save() -> None:
            await store.save_todos("a", todos)
            await store.save_snapshot("a", Snapshot(id="s", messages=texts(1)))

        _Late.save, _Late.is_armed = staticmethod(save), True
        child = await store.fork("a", "b")
        assert len(await store.list_snapshots(child)) == 1
        assert await store.load_todos(child) == todos


async def test_a_load_steps_around_what_cannot_be_read() -> None:
    """Damaged rows are named, others come in their order; without damage nothing is named (OPS-21)."""
    async with create_extended_store("sqlite:///damaged.db") as store:
        await store.save_messages("a", [Message.user(f"message {i}") for i in range(40)])
        assert (await store.load_messages("a", on_corrupt="skip")).left_out == ()
        with closing(sqlite3.connect("damaged.db")) as db:
            db.execute("UPDATE kode_messages SET body = replace(body, 'message', 'massage') WHERE position IN (3, 20)")
            db.execute("UPDATE kode_messages SET digest = 5 WHERE position = 21")
            db.commit()
        with pytest.raises(CorruptRecordError):
            await store.load_messages("a")
        found = await store.load_messages("a", on_corrupt="skip")
        assert [message.text for message in found] == [f"message {i}" for i in range(40) if i not in (3, 20, 21)]
        assert sorted(found.left_out) == sorted(f"message {i} of agent 'a'" for i in (3, 20, 21))
        part = await store.load_messages("a", last=20, before=22, on_corrupt="skip")
        assert [message.text for message in part] == [f"message {i}" for i in range(2, 20) if i != 3]
        assert await store.load_tool_call_records("a", on_corrupt="skip") == []
        for wrong in ("no", None, 1, b"skip"):
            with pytest.raises(InvalidArgumentError, match="on_corrupt"):
                await store.load_messages("a", on_corrupt=wrong)  # type: ignore[call-overload]


@pytest.mark.parametrize("url", ["memory:", "json:///s", "sqlite:///s.db"])
async def test_agents_without_info_are_listed_when_they_are_asked_for(url: str) -> None:
    """Whatever was stored under their ids, for every prefix, and in the order of code points (LIFE-2)."""
    ids = ["a", "a\x01", "a\x01b", "ab", "ab\U0010ffff", "ac", "b", "\ue000", "\ue001x", "\ud7ff", "é", "\U0010ffff"]
    async with create_extended_store(url) as store:
        writes = itertools.cycle(
            (
                lambda one: store.append_messages(one, [Message.user("x")]),
                lambda one: store.save_todos(one, TodoSnapshot(todos=[TodoItem(id="1", title="x")])),
                lambda one: store.emit(one, "x"),
                lambda one: store.save_info(one, AgentInfo(agent_id=one, template_id="t")),
            )
        )
        for one, write in zip(ids, writes, strict=False):
            await write(one)
        for prefix in ("", *ids, "a\x02", "zz", "a" * 256, "a" * 300):
            wanted = sorted(one for one in ids if one.startswith(prefix))
            assert await store.list(prefix, include_without_info=True) == wanted, prefix
            assert await store.list(prefix) == [one for one in wanted if ids.index(one) % 4 == 3]
        await store.delete("a")
        assert "a" not in await store.list(include_without_info=True)
        with pytest.raises(InvalidArgumentError, match="include_without_info"):
            await store.list("", include_without_info=1)  # type: ignore[arg-type]
