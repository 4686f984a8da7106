"""The JSON files engine among other processes, other files, and a system that says no."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.values import samples

from kode_core import (
    ConfigurationError,
    CorruptRecordError,
    InvalidArgumentError,
    KodeError,
    OutcomeUnknownError,
    StorageError,
    StoreBusyError,
    StoreUnavailableError,
    create_extended_store,
)
from kode_core.backends.json_files import journal
from kode_core.backends.json_files.folder import STRIPES, stripe_of
from kode_core.backends.json_files.plugin import JsonOptions, open_json
from kode_core.engines.event_log import EventLog

BASE = Path("store")


def opened(base: Path | str = BASE, **options: Any) -> Any:
    return create_extended_store(type="json", base_dir=str(base), **options)


def engine_of(store: Any) -> Any:
    return store._context.engine


@contextmanager
def held_elsewhere(*agents: str) -> Iterator[None]:
    """Locks of the agents' stripes, as another process holds them."""
    fds = []
    for index in {stripe_of(agent) for agent in agents}:
        fd = os.open(BASE / ".kode" / "locks" / f"{index:02d}", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        fds.append(fd)
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)


def agents_of_other_stripes(*others: str) -> list[str]:
    """One agent of each stripe that none of *others* belongs to."""
    taken = {stripe_of(agent) for agent in others}
    found: dict[int, str] = {}
    for i in range(2_000):
        found.setdefault(stripe_of(f"x{i}"), f"x{i}")
    return [agent for index, agent in found.items() if index not in taken]


# --- other files ------------------------------------------------------------------------------------------------------


async def test_files_of_others_stop_no_query(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A foreign, damaged, dangling, unreadable or blocking file in the folder fails no query; each names it."""
    async with opened() as store:
        for agent in ("a", "b", "c"):
            await store.save_turn(
                agent, append=samples.messages(2), info=samples.info(agent), tool_calls=[samples.tool_call()]
            )
        (BASE / "foreign.jsonl").write_text('{"messages": []}\n')
        (BASE / "folder.jsonl").mkdir()
        (BASE / "nowhere.jsonl").symlink_to(tmp_path / "not-there")
        os.mkfifo(BASE / "pipe.jsonl")
        (BASE / "empty.jsonl").touch()
        (BASE / "My File.jsonl").write_bytes(b"\xff\xfe\x00")
        (BASE / "deep.jsonl").write_text('{"messages": ' + "[" * 5_000 + "\n")
        others = {f"agent {name!r}" for name in ("foreign", "folder", "nowhere", "pipe", "empty", "deep")}
        others.add("file 'My File.jsonl'")
        sessions = await store.query_sessions()
        assert {session.agent_id for session in sessions} == {"a", "b", "c"}
        assert set(sessions.left_out) == others
        for page, count in ((await store.query_messages(), 6), (await store.query_tool_calls(), 3)):
            assert (len(page), set(page.left_out)) == (count, others)
        assert await store.list() == ["a", "b", "c"]
        assert (await store.get_metrics()).storage.total_messages == 6
        for name in ("foreign", "folder", "nowhere", "pipe", "empty", "deep"):
            for call in (store.load_messages(name), store.append_messages(name, samples.messages(1))):
                with pytest.raises(CorruptRecordError, match=f"agent '{name}'"):
                    await call
        issues = (await store.check_consistency()).issues
        assert {issue.agent_id for issue in issues} >= {"foreign", "folder", "nowhere", "pipe", "empty", "deep"}
        assert {issue.code for issue in issues} == {"corrupt_record"}
        caplog.clear()
        (made,) = await store.backup("copy")
        assert (made / "foreign.jsonl").read_text() == '{"messages": []}\n'
        assert (made / "My File.jsonl").read_bytes() == b"\xff\xfe\x00"
        told = [record.getMessage() for record in caplog.records if record.name == "kode_core.json"]
        assert sum("damaged" in text for text in told) == 4
        assert sum("leaves it out" in text for text in told) == 3
        assert await store.delete_many(template_id=samples.info("a").template_id) == 3
        assert await store.list() == []
    async with opened("copy") as copy:
        assert await copy.list() == ["a", "b", "c"]


async def test_a_file_in_the_place_of_another() -> None:
    """A file of another agent under an agent's name is damage of that agent, and of no other."""
    async with opened() as store:
        for agent in ("a", "b"):
            await store.save_turn(agent, append=[samples.message(text=agent)], info=samples.info(agent))
    shutil.copy(BASE / "a.jsonl", BASE / "b.jsonl")
    async with opened() as store:
        with pytest.raises(CorruptRecordError, match=r"agent 'b': .*b\.jsonl is a file of agent 'a'"):
            await store.load_messages("b")
        with pytest.raises(CorruptRecordError, match="agent 'b'"):
            await store.append_messages("b", samples.messages(1))
        page = await store.query_sessions()
        assert ([session.agent_id for session in page], page.left_out) == (["a"], ("agent 'b'",))


async def test_what_killed_processes_left_is_swept() -> None:
    """Half-written files of an hour ago are removed from all folders of the store, and copies of a day ago."""
    async with opened():
        pass
    own = BASE / ".kode"
    (own / "copies" / "old").mkdir(parents=True)
    (own / "copies" / "old" / "a.jsonl").write_bytes(b"x")
    (own / "copies" / "new").mkdir()
    left = [BASE / "a.jsonl.1.tmp", own / "leases" / "a.json.1.2.3.tmp", own / "id.0011", own / "probe.7.8"]
    for path in (*left, own / "copies" / "old"):
        if not path.exists():
            path.write_bytes(b"x")
        os.utime(path, (time.time() - 90_000, time.time() - 90_000))
    async with opened():
        assert [path for path in left if path.exists()] == []
        assert [path.name for path in (own / "copies").iterdir()] == ["new"]


async def test_files_without_permission_stop_no_query(unprivileged: Path) -> None:
    """A file that this process may not read is left out of queries and backups, and is reported."""
    base = unprivileged / "store"
    async with opened(base) as store:
        for agent in ("a", "b"):
            await store.save_turn(agent, append=samples.messages(1), info=samples.info(agent))
        (base / "b.jsonl").chmod(0)
        page = await store.query_sessions()
        assert ([session.agent_id for session in page], page.left_out) == (["a"], ("agent 'b'",))
        assert await store.list() == ["a"]
        assert {(issue.code, issue.agent_id) for issue in (await store.check_consistency()).issues} == {
            ("corrupt_record", "b")
        }
        (made,) = await store.backup(unprivileged / "copy")
        assert [path.name for path in made.glob("*.jsonl")] == ["a.jsonl"]
        (base / "b.jsonl").chmod(0o600)


async def test_what_is_remembered_of_journals_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many agents only those used last are remembered, and all are read and written as ever."""
    monkeypatch.setattr("kode_core.backends.json_files.folder._MEMORY_BYTES", 40_000)
    async with opened(durability="fast") as store:
        folder = engine_of(store).folder
        for i in range(40):
            await store.append_messages(f"a{i}", samples.messages(3))
            assert sum(each.weight for each in folder._journals.values()) <= 40_000
        assert len(await store.query_messages(limit=1000)) == 120
        assert sum(each.weight for each in folder._journals.values()) <= 40_000
        for i in range(40):
            await store.append_messages(f"a{i}", samples.messages(1))
            assert len(await store.load_messages(f"a{i}")) == 4
        await store.append_messages("large", samples.messages(500))
        assert len(await store.load_messages("large")) == 500
        await store.delete("large")
        assert sum(each.weight for each in folder._journals.values()) <= 40_000


# --- other processes --------------------------------------------------------------------------------------------------


async def test_locks_that_others_hold_hold_up_nobody_else() -> None:
    """While another process holds the locks of many agents, agents of other stripes are read and written, and those
    agents are read.
    """
    everyone = agents_of_other_stripes()
    free = everyone.pop()
    assert len(everyone) == STRIPES - 1
    async with opened(lock_wait_ms=60_000) as store:
        for agent in (*everyone, free):
            await store.append_messages(agent, [samples.message(text=agent)])
        with held_elsewhere(*everyone):
            waiting = [asyncio.ensure_future(store.append_messages(agent, samples.messages(1))) for agent in everyone]
            await asyncio.sleep(0.05)
            await store.append_messages(free, samples.messages(1))
            for agent in everyone:
                assert [message.text for message in await store.load_messages(agent)] == [agent]
            assert len(await store.query_messages(agent_id=free)) == 2
            assert (await store.health_check()).healthy
            assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting)
        assert len(await store.query_messages(limit=1000)) == 2 * STRIPES


CHILD = """
import asyncio, sys
from kode_conformance.values import samples
from kode_core import create_extended_store
async def main():
    store = await create_extended_store(type="json", base_dir="store", lock_wait_ms=120_000)
    try:
        await asyncio.wait_for(store.append_messages("a", samples.messages(1)), 0.2)
    except TimeoutError:
        print("gave up", flush=True)
asyncio.run(main())
"""


def test_a_process_ends_while_others_hold_locks() -> None:
    """A process whose write waits for a lock that another process holds ends when it wants to, without a close."""

    async def prepare() -> None:
        async with opened() as store:
            await store.save_messages("a", [])

    asyncio.run(prepare())
    with held_elsewhere("a"):
        done = subprocess.run(
            [sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30, check=False
        )
    assert done.stdout == b"gave up\n"


async def test_a_lock_file_that_lost_its_number(caplog: pytest.LogCaptureFixture) -> None:
    """Offsets of a deleted agent and tokens go on above all earlier ones after lock files were zeroed or emptied."""
    for damage in (bytes(20), b"", b"\xff" * 60, b"stripe 00 000000000000000 -------- 00000000\n"):
        async with opened() as store:
            last = await store.append_event("a", samples.event(1))
            async with store.acquire_agent_lock("a") as lease:
                token = lease.token
            await store.delete("a")
        for path in (BASE / ".kode" / "locks").iterdir():
            path.write_bytes(damage)
        async with opened() as store:
            assert await store.append_event("a", samples.event(1)) > last
            async with store.acquire_agent_lock("a") as lease:
                assert lease.token > token
    assert sum("was damaged: the numbers of its agents go on" in text for text in caplog.messages) == 4


async def test_a_damaged_lease_has_ended() -> None:
    """The holder of a lease whose file was changed is refused what it writes under it, and somebody else gets it."""
    async with opened() as store:
        lease = await store.acquire_agent_lock("a", ttl_ms=60_000)
        (path,) = (BASE / ".kode" / "leases").iterdir()
        path.write_bytes(path.read_bytes().replace(b'"token":1', b'"token":7'))
        with pytest.raises(KodeError, match="the lease of this write has ended"):
            await store.save_todos("a", samples.todos("x"), fence=lease)
        async with store.acquire_agent_lock("a") as again:
            assert again.token > lease.token


# --- a system that says no --------------------------------------------------------------------------------------------


async def test_after_a_sync_that_failed_the_frame_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may drop what it could not sync: the next write puts it on the device once more, with its own."""
    async with opened() as store:
        await store.append_messages("a", [samples.message(text="first")])
        path = BASE / "a.jsonl"
        size = path.stat().st_size

        def failing(_: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(journal, "sync_file", failing)
            with pytest.raises(OutcomeUnknownError):
                await store.append_messages("a", [samples.message(text="second")])
        doubtful = path.read_bytes()[size:]
        written: list[tuple[int, bytes]] = []
        real = journal.write_all
        monkeypatch.setattr(journal, "write_all", lambda fd, data, at: (written.append((at, data)), real(fd, data, at)))
        await store.append_messages("a", [samples.message(text="third")])
        assert (size, doubtful) in written
        monkeypatch.undo()
        assert [message.text for message in await store.load_messages("a")] == ["first", "second", "third"]


async def test_after_a_sync_that_failed_a_frame_that_is_gone_is_no_ground(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the frame that could not be synced reads as zeros later, it is left out whole, also by a store that had
    seen it, and the next write does not build on it.
    """
    async with opened() as a, opened() as b:
        await a.append_event("x", samples.event(1))
        path = BASE / "x.jsonl"
        size = path.stat().st_size

        def failing(_: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(journal, "sync_file", failing)
            with pytest.raises(OutcomeUnknownError):
                await a.append_event("x", samples.event(2))
        assert [event.bookmark.seq async for event in b.read_events("x")] == [1, 2]
        raw = path.read_bytes()
        path.write_bytes(raw[:size] + bytes(len(raw) - size))
        await b.append_event("x", samples.event(3))
        for store in (a, b):
            assert [event.bookmark.seq async for event in store.read_events("x")] == [1, 3]


async def test_no_files_left_to_open() -> None:
    """A process that has too many files open is told so, by calls of one agent and of all, and nothing is lost."""
    async with opened() as store:
        for agent in ("a", "b"):
            await store.save_turn(agent, append=samples.messages(1), info=samples.info(agent))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        fds: list[int] = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
            with pytest.raises(OSError, match="Too many open files"):
                while True:
                    fds.append(os.open(os.devnull, os.O_RDONLY))
            for call in (
                store.load_messages("a"),
                store.append_messages("a", samples.messages(1)),
                store.query_sessions(),
                store.list(),
                store.acquire_agent_lock("a"),
                store.backup("copy"),
            ):
                with pytest.raises(StorageError, match="Too many open files"):
                    await call
        finally:
            for fd in fds:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert len(await store.load_messages("a")) == 1
        assert not Path("copy").exists()


async def test_a_folder_that_is_gone() -> None:
    """When the folder was removed or emptied, no agent is taken for an empty one."""
    async with opened() as store:
        await store.save_turn("a", append=samples.messages(1), info=samples.info("a"))
        shutil.rmtree(BASE)
        for call in (store.load_messages("a"), store.save_messages("a", []), store.list(), store.query_sessions()):
            with pytest.raises(StoreUnavailableError):
                await call
        BASE.mkdir()
        with pytest.raises(StoreUnavailableError, match="is gone, or is no longer the folder of a store"):
            await store.load_messages("a")
        assert not (await store.health_check()).healthy


async def test_folders_that_cannot_be() -> None:
    """A base_dir that is no path, of an unknown user, or relative to a folder that is gone, is told as such."""
    for base_dir in ("a\0b", "~nobody-of-that-name/x", "a\udc80"):
        with pytest.raises(ConfigurationError):
            await opened(base_dir)
        with pytest.raises(ConfigurationError, match="folder|base_dir"):
            await open_json(JsonOptions(base_dir=base_dir))
    gone = Path("gone").absolute()
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigurationError, match="the working directory was removed"):
        await opened("store")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("format", b"", "format is damaged"),
        ("format", b"\xff\x00", "format is damaged"),
        ("format", b"99\n", "has layout 99"),
        ("id", b"", "id is damaged"),
        ("id", b"\xff" * 32, "id is damaged"),
        ("id", b"0" * 32, "is not the folder of"),
    ],
)
async def test_damage_of_a_folders_marks(name: str, content: bytes, match: str) -> None:
    """A folder whose version or identity is damaged is refused with the name of the file."""
    hybrid = {"type": "sqlite", "db_path": "a.db", "file_store_base_dir": str(BASE)}
    async with create_extended_store(hybrid) as store:
        await store.save_info("a", samples.info("a"))
    (BASE / ".kode" / name).write_bytes(content)
    with pytest.raises(KodeError, match=match):
        await create_extended_store(hybrid)


# --- backups ----------------------------------------------------------------------------------------------------------


async def test_a_backup_goes_on_where_the_store_was() -> None:
    """In the copy, offsets of living and of deleted agents and tokens of leases go on; leases are not copied."""
    async with opened() as store:
        await store.append_events("a", samples.events(5))
        await store.append_events("gone", samples.events(7))
        await store.delete("gone")
        lease = await store.acquire_agent_lock("gone", ttl_ms=60_000)
        await store.backup("copy")
    async with opened("copy") as copy:
        assert await copy.append_event("a", samples.event(99)) == 6
        assert await copy.append_event("gone", samples.event(1)) > 7
        async with copy.acquire_agent_lock("gone") as again:
            assert again.token > lease.token


async def test_a_backup_is_of_one_instant_while_everything_is_written() -> None:
    """While agents are appended to, rewritten, deleted and made, the copy holds one instant over all of them."""
    journal_from, journal.COMPACT_FROM = journal.COMPACT_FROM, 1_000
    try:
        async with opened(durability="fast") as store, opened(durability="fast") as other:
            for agent in ("p", "q"):
                await store.save_messages(agent, [])
            stop = False
            i = 0

            async def write() -> None:
                nonlocal i
                while not stop:
                    i += 1
                    await store.append_messages("p", [samples.message(text=f"{i}")])
                    await other.append_messages("q", [samples.message(text=f"{i}")])
                    await store.save_info("r", samples.info("r", metadata={"x": "y" * 1000, "i": i}))
                    await other.append_event("s", samples.event(i))
                    if not i % 7:
                        await other.delete("s")

            writer = asyncio.ensure_future(write())
            for n in range(8):
                await asyncio.sleep(0.05)
                before = i
                await store.backup(f"copy{n}")
                assert i > before or n, "writers go on"
                async with opened(f"copy{n}") as copy:
                    p, q = await copy.load_messages("p"), await copy.load_messages("q")
                    assert len(p) - len(q) in (0, 1)
                    info = await copy.load_info("r")
                    done = 0 if info is None else info.metadata["i"]
                    assert len(q) - done in (0, 1)
                    events = [event.bookmark.seq async for event in copy.read_events("s")]
                    assert not events or events[-1] - done in (0, -1, 1)
                    assert (await copy.check_consistency()).issues == ()
            stop = True
            await writer
    finally:
        journal.COMPACT_FROM = journal_from


async def test_a_backup_that_is_cancelled_or_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left at the target or in the store, and the next try succeeds; a target that exists is refused."""
    async with opened(durability="fast") as store:
        for i in range(120):
            await store.append_messages(f"a{i}", samples.messages(1))
        told: list[int] = []

        def stop(done: int, total: int | None) -> None:
            told.append(done)
            if len(told) == 2:
                raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await engine_of(store).backup(Path("copy").absolute(), stop)
        assert told[0] == 0
        task = asyncio.ensure_future(store.backup("copy"))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            assert not Path("copy").exists()
        else:
            shutil.rmtree("copy")
        with monkeypatch.context() as patch:
            patch.setattr("kode_core.backends.json_files.copies.sync_file", _no_room)
            with pytest.raises(StorageError, match="No space left"):
                await store.backup("copy")
        assert [path.name for path in Path().iterdir()] == ["store"]
        assert list((BASE / ".kode" / "copies").iterdir()) == []
        await store.backup("copy")
        assert len(list(Path("copy").glob("*.jsonl"))) == 120
        with pytest.raises(InvalidArgumentError, match="exists already"):
            await store.backup("copy")


def _no_room(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_backup_waits_for_one_stripe_without_holding_the_others() -> None:
    """While another process holds one lock, a backup that waits for it stops no writer of another stripe."""
    async with opened(lock_wait_ms=30_000) as store:
        await store.append_messages("a", samples.messages(1))
        others = agents_of_other_stripes("a")[:8]
        with held_elsewhere("a"):
            task = asyncio.ensure_future(store.backup("copy"))
            await asyncio.sleep(0.5)
            for agent in others:
                await store.append_messages(agent, samples.messages(1))
            assert not task.done()
        assert len(await task) == 1
    async with opened(lock_wait_ms=50) as store:
        with held_elsewhere("a"), pytest.raises(StoreBusyError):
            await store.backup("copy2")
        assert not Path("copy2").exists()


# --- events of one seq ------------------------------------------------------------------------------------------------


class CountingLog(EventLog):
    """Counts how many events are looked at."""

    __slots__ = ("looked",)
    looked: int

    def _digest(self, i: int) -> bytes:
        self.looked += 1
        return super()._digest(i)


def test_events_of_one_seq_are_found_without_looking_at_all() -> None:
    """Looking for an event among thousands of its seq looks at no more of them than among a few."""
    from kode_core.batch import EventWrite
    from kode_core.codec import Body, digest

    for order in ((0,) * 3000, (5, 0) * 1500):
        log = CountingLog()
        log.looked = 0
        bodies = [Body(f"{i}", digest(b"%d" % i)) for i in range(len(order))]
        for seq, body in zip(order, bodies, strict=True):
            (offset,) = log.offsets_for([EventWrite(seq, "progress", body)])
            log.apply([EventWrite(seq, "progress", body)], [offset])
        assert log.looked < 40 * 3000 / 10
        assert [log.find(seq, body.digest) for seq, body in zip(order, bodies, strict=True)] == list(range(1, 3001))
        assert log.find(0, digest(b"no")) is None
