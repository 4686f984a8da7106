"""What goes wrong only when several things happen at once: cancellations, outages, races, late clocks."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from typing import Any, Final

import pytest
from kode_conformance.values import samples

from kode_core import (
    LockLostError,
    Message,
    OutcomeUnknownError,
    StorageError,
    StoreFullError,
    TodoSnapshot,
    ToolCallRecord,
    create_extended_store,
)
from kode_core.backends.json_files import folder, journal, states

SQLITE = {"type": "sqlite", "db_path": "a.db"}
JSON = {"type": "json", "base_dir": "store"}
HYBRID = {**SQLITE, "file_store_base_dir": "files"}


def busy_database() -> sqlite3.Connection:
    """Another program that holds the database's write lock until it rolls back."""
    other = sqlite3.connect("a.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    return other


# --- the hybrid layout ------------------------------------------------------------------------------------------------


async def test_hybrid_turns_of_two_stores_do_not_starve_each_other() -> None:
    """Many turns of two stores on the same agents all get through when a busy database delays them."""
    async with create_extended_store(HYBRID) as a, create_extended_store(HYBRID) as b:
        await a.save_info("agent0", samples.info("agent0"))
        with closing(busy_database()) as other:

            async def turn(store: Any, i: int) -> str:
                try:
                    await store.save_turn(f"agent{i}", append=[Message.user("x")], todos=TodoSnapshot())
                except StorageError as exc:
                    return type(exc).__name__
                return "ok"

            there, back = range(40), range(39, -1, -1)
            turns = [asyncio.ensure_future(turn(s, i)) for s, order in ((a, there), (b, back)) for i in order]
            await asyncio.sleep(0.3)
            other.rollback()
            assert Counter(await asyncio.gather(*turns)) == {"ok": 80}


LEFT: Final[list[object]] = []
"""Stores that were never closed: collected, they would warn in whatever test runs then."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning", "ignore::ResourceWarning")
def test_a_turn_that_a_dying_loop_leaves_is_not_torn() -> None:
    """What was answered as not committed is not committed later: the database's part does not come alone."""
    ready, ended = threading.Event(), threading.Event()
    blocker: list[sqlite3.Connection] = []
    found: list[tuple[bool, bool]] = []

    async def other() -> None:
        async with create_extended_store(HYBRID) as store:
            await store.save_messages("a", [])
            ready.set()
            await asyncio.to_thread(ended.wait)
            looking = asyncio.ensure_future(store.load_todos("a"))
            await asyncio.sleep(0.2)
            blocker[0].rollback()
            await looking
            await asyncio.sleep(0.5)
            found.append((await store.load_messages("a") == [], await store.load_todos("a") is None))

    async def first() -> None:
        store = await create_extended_store(HYBRID)
        LEFT.append(store)
        blocker.append(busy_database())
        write = asyncio.ensure_future(store.save_turn("a", append=[Message.user("hi")], todos=TodoSnapshot(version=7)))
        await asyncio.wait([write], timeout=0.3)  # and then the loop ends, as after Ctrl-C

    thread = threading.Thread(target=lambda: asyncio.run(other()))
    thread.start()
    ready.wait()
    asyncio.run(first())
    ended.set()
    thread.join()
    blocker[0].close()
    assert len(set(found[0])) == 1, f"messages and todos must be there together or not at all: {found}"


async def test_a_delete_does_not_take_the_next_writes_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn of another process that follows a delete at once, and is killed after its commit, is whole."""
    async with create_extended_store(HYBRID) as store:
        await store.save_turn("a", append=[Message.user("old")], todos=TodoSnapshot(version=1))
        inner = store._context.engine.inner  # type: ignore[attr-defined]
        commit = inner.commit
        child: list[subprocess.Popen[bytes]] = []

        async def slow(batches: Any) -> Any:
            if batches[0].op_id.endswith("-end"):
                child.append(subprocess.Popen([sys.executable, "-c", KILLED_AFTER_COMMIT], stdout=subprocess.PIPE))
                await asyncio.sleep(1.0)
            return await commit(batches)

        monkeypatch.setattr(inner, "commit", slow)
        await store.delete("a")
        assert child[0].stdout is not None
        assert await asyncio.to_thread(child[0].stdout.readline) == b"committed\n"
        os.kill(child[0].pid, signal.SIGKILL)
        child[0].communicate()
        todos = await store.load_todos("a")
        assert (len(await store.load_messages("a")), todos and todos.version) == (1, 7)


KILLED_AFTER_COMMIT = """
import asyncio
from kode_core import Message, TodoSnapshot, create_extended_store
from kode_core.backends.json_files.engine import PreparedWrite
async def never(self, then=None):
    print("committed", flush=True)
    await asyncio.sleep(60)
PreparedWrite.commit = never
async def main():
    store = await create_extended_store(type="sqlite", db_path="a.db", file_store_base_dir="files")
    await store.save_turn("a", append=[Message.user("tool use")], todos=TodoSnapshot(version=7))
asyncio.run(main())
"""


async def test_a_full_disk_of_the_files_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the file system is a typed one, and takes no event of another agent with it."""
    write_all = journal.write_all

    def full(fd: int, data: bytes, offset: int) -> None:
        if b'"phase":"prepare"' in data:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_all(fd, data, offset)

    async with create_extended_store(HYBRID) as store, store.acquire_agent_lock("bad") as lease:
        await store.save_messages("a", [])
        monkeypatch.setattr(journal, "write_all", full)
        with pytest.raises(StoreFullError):
            await store.save_turn("a", append=[Message.user("x")], todos=TodoSnapshot())
        bad = store.append_event("bad", samples.event(1), fence=lease)
        good = store.append_event("good", samples.event(1))
        results = await asyncio.gather(bad, good, return_exceptions=True)
        assert isinstance(results[0], StoreFullError)
        assert [event.offset async for event in store.read_events("good")] == [results[1]]
        monkeypatch.undo()


# --- JSON files -------------------------------------------------------------------------------------------------------


async def test_a_compaction_that_fails_fails_no_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that is done is acknowledged, although there is no room to rewrite the file."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with create_extended_store(JSON) as store:
        monkeypatch.setattr(states, "replace_file", full)
        for i in range(6):
            await store.save_todos("a", samples.todos("x" * 400_000).replace(version=i))
        await store.append_messages("a", samples.messages(3))
        todos = await store.load_todos("a")
        assert todos is not None
        assert (todos.version, len(await store.load_messages("a"))) == (5, 3)


async def test_a_write_that_could_not_be_synced_is_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may have read it already: it is neither said to have failed nor is its offset used again."""
    async with create_extended_store(JSON) as a, create_extended_store(JSON) as b:
        await a.append_event("x", samples.event(1))

        def failing(_: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(journal, "sync_file", failing)
        with pytest.raises(OutcomeUnknownError, match="could not be synced"):
            await a.append_event("x", samples.event(2))
        monkeypatch.undo()
        seen = [(event.offset, event.bookmark.seq) async for event in b.read_events("x")]
        assert await a.append_event("x", samples.event(3)) == 3
        assert seen == [(1, 1), (2, 2)]
        assert [(event.offset, event.bookmark.seq) async for event in b.read_events("x")] == [*seen, (3, 3)]


async def test_more_agents_than_are_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries find all of them."""
    monkeypatch.setattr(folder, "_MAX_JOURNALS", 5)
    async with create_extended_store(JSON) as store:
        for i in range(12):
            await store.save_turn(f"a{i}", append=[Message.user(f"m{i}")], info=samples.info(f"a{i}"))
        assert len(await store.query_sessions()) == 12
        assert {message.text for message in await store.query_messages()} == {f"m{i}" for i in range(12)}


async def test_a_journal_that_is_forgotten_in_the_middle_of_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write uses only the journal that it keeps others from, also when others push it out of memory meanwhile."""
    find, begin = folder.Folder.journal, folder.Journal.begin
    alone: list[bool] = []

    def pushed_out(self: folder.Folder, agent_id: str) -> folder.Journal:
        journal = find(self, agent_id)
        self._journals.clear()
        return journal

    def seen(self: folder.Journal, agent_id: str, next_offset: int) -> None:
        alone.append(self.turn.locked())
        begin(self, agent_id, next_offset)

    monkeypatch.setattr(folder.Folder, "journal", pushed_out)
    monkeypatch.setattr(folder.Journal, "begin", seen)
    async with create_extended_store(JSON) as store:
        await store.append_messages("a", samples.messages(1))
        await store.append_messages("a", samples.messages(1))
        assert len(await store.load_messages("a")) == 2
    assert alone == [True, True]


async def test_a_file_that_was_put_back_is_read_again(tmp_path: Any) -> None:
    """The store that refused the damaged file reads the sound one."""
    path = tmp_path / "store" / "a.jsonl"
    async with create_extended_store(JSON) as writer, create_extended_store(JSON) as reader:
        for i in range(5):
            await writer.append_messages("a", [samples.message(i)])
        good = path.read_bytes()
        place = good.rindex(b'"append"')
        path.write_bytes(good[: place + 1] + b"X" + good[place + 2 :])
        with pytest.raises(StorageError):
            await reader.load_messages("a")
        path.write_bytes(good)
        assert len(await reader.load_messages("a")) == 5


# --- time, cancellation, locks ----------------------------------------------------------------------------------------


async def only_threads_of(before: set[threading.Thread]) -> None:
    """Wait until connections that were opened since have ended; the last instants of a thread may come late."""
    async with asyncio.timeout(10):
        while {thread for thread in threading.enumerate() if "_connection_worker" in thread.name} - before:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("target", [SQLITE, JSON, {"type": "memory"}], ids=lambda t: t["type"])
async def test_a_late_clock_does_not_hide_a_change(target: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """updated_at moves with each save although the clock stands, so that delete_many sees that an agent was resumed."""
    async with create_extended_store(target) as store:
        monkeypatch.setattr(store._context, "now", lambda: 10_000)  # type: ignore[attr-defined]
        await store.save_info("a", samples.info("a", metadata={"state": "idle"}))
        (found,) = await store.query_sessions()
        search, resumed = store._search, []  # type: ignore[attr-defined]
        query = search.sessions

        async def resuming(filters: Any) -> Any:
            page = await query(filters)
            if not resumed:
                resumed.append(True)
                await store.save_info("a", samples.info("a", metadata={"state": "active"}))
            return page

        monkeypatch.setattr(search, "sessions", resuming)
        assert await store.delete_many(metadata={"state": "idle"}) == 0
        (session,) = await query({})
        assert session.updated_at > found.updated_at


async def test_a_fork_that_is_overdue_is_in_doubt() -> None:
    """It is not said that nothing was written when the forks may still come."""
    async with create_extended_store(SQLITE, timeout_ms=300) as store:
        await store.save_info("p", samples.info("p"))
        with closing(busy_database()) as other:
            with pytest.raises(OutcomeUnknownError, match="in the middle of a write"):
                await store.batch_fork("p", 2)
            other.rollback()


async def test_a_cancelled_close_still_closes() -> None:
    """Nothing is left open, and a second call waits for it."""
    threads = set(threading.enumerate())
    store = await create_extended_store(SQLITE)
    with closing(busy_database()) as other:
        write = asyncio.ensure_future(store.save_messages("a", samples.messages(1)))
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(store.close(), 0.05)
        other.rollback()
    await write
    await store.close()
    await only_threads_of(threads)


async def test_a_cancelled_open_leaves_nothing_open() -> None:
    """What it opens is closed, whenever the cancellation comes."""
    async with create_extended_store(SQLITE):
        threads = set(threading.enumerate())
        for steps in range(8):
            opening = asyncio.ensure_future(create_extended_store(SQLITE).__aenter__())
            for _ in range(steps):
                await asyncio.sleep(0)
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        await only_threads_of(threads)


@pytest.mark.parametrize("target", [SQLITE, JSON], ids=lambda t: t["type"])
async def test_a_cancelled_lock_is_given_back_before_the_close(target: dict[str, str]) -> None:
    """A lease that nobody knows of does not outlive the store that asked for it."""
    async with create_extended_store(target) as other:
        for steps in range(1, 8):
            store = await create_extended_store(target)
            taking = asyncio.ensure_future(store.acquire_agent_lock("a").__aenter__())
            for _ in range(steps):
                await asyncio.sleep(0)
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
            await store.close()
            await (await other.acquire_agent_lock("a")).release()


async def test_delete_many_is_fenced() -> None:
    """Inside the block of a lease that was lost, delete_many is refused as every other write is."""
    async with create_extended_store(SQLITE) as store, create_extended_store(SQLITE) as other:
        await store.save_info("a", samples.info("a"))
        async with store.acquire_agent_lock("a", ttl_ms=100):
            time.sleep(0.3)  # the loop stands still, and with it the renewal
            await other.acquire_agent_lock("a")
            with pytest.raises(LockLostError):
                await store.delete_many(agent_id="a")
        assert await store.exists("a")


async def test_an_upsert_of_very_many_ids() -> None:
    """There are more of them than an SQL statement may have variables."""
    async with create_extended_store(SQLITE) as store:
        await store.load_messages("a")
        for reader in store._context.engine._idle_readers:  # type: ignore[attr-defined]
            await reader.run(lambda db: db.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 100))
        calls = [ToolCallRecord(id=f"c{i} é\n", name="x") for i in range(300)]
        await store.save_tool_call_records("a", calls[:200])
        async with create_extended_store(SQLITE) as other:
            for reader in other._context.engine._idle_readers:  # type: ignore[attr-defined]
                await reader.run(lambda db: db.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 100))
            await other.upsert_tool_call_records("a", [call.replace(name="y") for call in calls])
        names = Counter(call.name for call in await store.load_tool_call_records("a"))
        assert names == {"y": 300}
