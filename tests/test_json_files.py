"""The JSON files engine: what its files look like, and what becomes of them when things go wrong."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import shutil
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from kode_conformance.values import samples

from kode_core import (
    CorruptRecordError,
    ExtendedStore,
    SchemaVersionError,
    StorageError,
    StoreBusyError,
    StoreFullError,
    StoreReadOnlyError,
    StoreUnavailableError,
    create_extended_store,
)
from kode_core.backends.json_files import files
from kode_core.backends.json_files.files import file_name, locked
from kode_core.backends.json_files.folder import Folder, stripe_of
from kode_core.backends.json_files.searches import searched, searched_whole
from kode_core.batch import Batch, EventRange, EventWrite
from kode_core.codec import Body, digest
from kode_core.query import SessionQuery
from tests.power_loss import Recording, recorded


def opened(base: Path | str = "store", **options: Any) -> Any:
    return create_extended_store(type="json", base_dir=str(base), **options)


# --- files ------------------------------------------------------------------------------------------------------------


async def test_files_can_be_read(tmp_path: Path) -> None:
    """An agent is one file of lines; each body is a line of JSON of its own."""
    async with opened() as store:
        await store.save_messages("agt-1", samples.messages(2))
    lines = (tmp_path / "store" / "agt-1.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["agent"] == "agt-1"
    assert json.loads(lines[3]) == {"role": "user", "content": [{"type": "text", "text": "message 0"}]}
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("agent_id", "name"),
    [
        ("agt-01j5.x_y", "agt-01j5.x_y"),
        ("Agt", "%41gt"),
        ("..", "%2e."),
        ("../x", "%2e.%2fx"),
        ("con", "%63on"),
        ("nul.txt", "%6eul.txt"),
        ("com1", "%63om1"),
        ("console", "console"),
        ("a/b", "a%2fb"),
        ("é", "%c3%a9"),
        (" ", "%20"),
    ],
)
def test_file_names_are_safe(agent_id: str, name: str) -> None:
    """A file name says whose it is, cannot leave the folder, and means the same on every file system."""
    assert file_name(agent_id) == name


def test_long_names_fit_and_differ() -> None:
    """Ids of any legal length give different names that every file system takes."""
    names = {file_name("é" * 127 + c) for c in "abcdefgh"} | {file_name("x" * n) for n in range(170, 256)}
    assert len(names) == 8 + 86
    assert max(map(len, names)) <= 190


async def test_the_file_is_compacted(tmp_path: Path) -> None:
    """A file that is mostly history is rewritten; everything stays, and offsets go on."""
    path = tmp_path / "store" / "a.jsonl"
    async with opened(durability="fast") as store, opened(durability="fast") as other:
        await store.save_turn(
            "a", messages=samples.messages(2500), events=samples.events(1200), tool_calls=[samples.tool_call()]
        )
        await store.save_snapshot("a", samples.snapshot())
        largest = 0
        for i in range(60):
            info = samples.info("a", metadata={"blob": f"{i}" + "x" * 100_000})
            await store.save_info("a", info)
            largest = max(largest, path.stat().st_size)
        assert path.stat().st_size < largest < 60 * 100_000
        for reader in (store, other):
            assert await reader.load_messages("a") == samples.messages(2500)
            assert [e async for e in reader.read_events("a")] == samples.events(1200)
            assert (await reader.load_info("a")).metadata == info.metadata
            assert await reader.load_snapshot("a", "sfp-1") == samples.snapshot()
        assert await other.append_event("a", samples.event(5000)) == 1201
        await other.save_messages("a", samples.messages(2501))
    async with opened() as store:
        assert len(await store.load_messages("a")) == 2501
        assert (await store.check_consistency()).issues == ()


async def test_leftovers_of_nothing(tmp_path: Path) -> None:
    """Reads, refused writes and deletes leave no file behind."""
    async with opened() as store:
        await store.load_messages("a")
        with pytest.raises(ValueError, match="set is not a JSON type"):
            await store.save_info("a", samples.info("a", metadata={"x": {1}}))
        await store.save_messages("b", samples.messages(1))
        await store.delete("b")
        async with store.acquire_agent_lock("c"):
            pass
    assert [p.name for p in (tmp_path / "store").iterdir()] == [".kode"]
    assert list((tmp_path / "store" / ".kode" / "leases").iterdir()) == []


async def test_a_copy_of_a_file_is_no_second_agent(tmp_path: Path) -> None:
    """A file whose name is not its agent's is left out of lists and queries, and is reported."""
    async with opened() as store:
        await store.save_info("a", samples.info("a"))
        shutil.copy(tmp_path / "store" / "a.jsonl", tmp_path / "store" / "a copy.jsonl")
        assert [session.agent_id for session in await store.query_sessions()] == ["a"]
        assert await store.list() == ["a"]
        assert (await store.get_metrics()).storage.total_agents == 1
        issues = (await store.check_consistency()).issues
        assert [(issue.code, issue.agent_id) for issue in issues] == [("stray_file", "a")]
        assert "a copy.jsonl is not the file of agent 'a'" in issues[0].message


async def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    """A half-written file that nobody has touched for an hour goes when the store is opened; a new one stays."""
    store = tmp_path / "store"
    store.mkdir()
    for name, age in (("a.jsonl.1.2.tmp", 7200), ("b.jsonl.3.4.tmp", 0)):
        (store / name).write_bytes(b"x")
        os.utime(store / name, (time.time() - age, time.time() - age))
    async with opened():
        assert [path.name for path in store.glob("*.tmp")] == ["b.jsonl.3.4.tmp"]


# --- damage -----------------------------------------------------------------------------------------------------------


async def make(base: str = "store") -> Path:
    async with opened(base) as store:
        for i in range(4):
            await store.append_messages("a", [samples.message(i)])
        await store.save_info("a", samples.info("a"))
        await store.save_info("b", samples.info("b"))
    return Path(base) / "a.jsonl"


async def unfinished() -> tuple[Path, bytes, bytes]:
    """The file before a write was begun, and the bytes that the write adds."""
    path = await make()
    before = path.read_bytes()
    async with opened() as store:
        await store.save_info("a", samples.info("a", template_id="changed"))
    return path, before, path.read_bytes()[len(before) :]


async def test_a_write_cut_short_is_dropped() -> None:
    """Wherever a crash cuts a write short, the store opens with what came before, is written, and keeps the rest."""
    path, before, added = await unfinished()
    kept = Path("store") / "a.jsonl.cut-1"
    for size in (*range(1, len(added), 37), len(added) - 1):
        path.write_bytes(before + added[:size])
        async with opened() as store:
            assert await store.load_messages("a") == samples.messages(4)
            assert await store.load_info("a") == samples.info("a").replace(message_count=4)
            await store.append_messages("a", [samples.message(9)])
            assert len(await store.load_messages("a")) == 5
            assert kept.read_bytes() == added[:size]
            issues = (await store.check_consistency("a")).issues
            assert [(issue.code, issue.agent_id) for issue in issues] == [("cut_short", "a")]
            assert "never acknowledged" in issues[0].message
        kept.unlink()


async def test_a_write_that_was_never_synced_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """A last frame with zeros where the data should be, as after a loss of power, is dropped; zeros are not kept."""
    path, before, added = await unfinished()
    for zeros in (len(added), 200, 5):
        path.write_bytes(before + added[: len(added) - zeros] + bytes(zeros))
        async with opened() as store:
            assert await store.load_messages("a") == samples.messages(4)
            assert (await store.load_info("a")).template_id == samples.info("a").template_id
            await store.append_messages("a", [samples.message(9)])
        assert len(list(Path("store").glob("*.cut-*"))) == {len(added): 0, 200: 1, 5: 2}[zeros]
    assert caplog.messages[0].startswith("agent 'a': ")
    async with opened() as store:
        await store.delete("a")
    assert not list(Path("store").glob("a.jsonl*")), "a delete removes what was cut off, too"


async def test_damage_is_reported_and_nothing_overwritten() -> None:
    """A frame that does not match its checksum makes the agent unreadable, with the place, and no write touches it."""
    path = await make()
    whole = path.read_bytes()
    for place in (whole.index(b'"op_id"') + 10, whole.rindex(b'"op_id"') + 10, whole.index(b"\n#") + 3):
        damaged = whole[:place] + (b"!" if whole[place : place + 1] != b"!" else b"?") + whole[place + 1 :]
        path.write_bytes(damaged)
        async with opened() as store:
            for call in (
                store.load_messages("a"),
                store.load_info("a"),
                store.append_messages("a", samples.messages(1)),
            ):
                with pytest.raises(CorruptRecordError, match=r"agent 'a': .*a\.jsonl is damaged at byte \d+"):
                    await call
            assert path.read_bytes() == damaged
            assert "b" in await store.list()
            assert await store.load_info("b") == samples.info("b")
            found = await store.check_consistency("a")
            assert {issue.code for issue in found.issues} == {"corrupt_record"}


async def test_a_file_of_something_else() -> None:
    """A file that is no journal is reported by its name and left alone."""
    await make()
    path = Path("store") / "x.jsonl"
    path.write_text("hello\n")
    async with opened() as store:
        with pytest.raises(
            CorruptRecordError, match=r"x\.jsonl is damaged at byte 0: the first line is not a journal's"
        ):
            await store.save_messages("x", [])
        assert await store.list() == ["a", "b"]
        assert [i.code for i in (await store.check_consistency("x")).issues] == ["corrupt_record"]
    assert path.read_text() == "hello\n"


async def test_a_newer_format_is_refused() -> None:
    """A folder or a file of a newer format is refused with what to upgrade."""
    path = await make()
    path.write_bytes(path.read_bytes().replace(b'"format":2', b'"format":9', 1))
    async with opened() as store:
        with pytest.raises(SchemaVersionError, match="has format 9, and this kode-core reads up to 2: upgrade"):
            await store.load_messages("a")
    (Path("store") / ".kode" / "format").write_text("7\n")
    with pytest.raises(SchemaVersionError, match="has layout 7, and this kode-core knows 2: upgrade"):
        await opened()


# --- the system says no -----------------------------------------------------------------------------------------------


async def test_a_folder_that_is_a_file() -> None:
    """A base folder that is a file is refused with its path."""
    Path("store").write_text("x")
    with pytest.raises(StoreUnavailableError, match="store"):
        await opened()


async def test_files_that_may_not_be_touched(unprivileged: Path) -> None:
    """Files that cannot be read or written are told, and not taken for empty."""
    async with opened(unprivileged) as store:
        await store.save_messages("a", samples.messages(1))
        path = unprivileged / "a.jsonl"
        path.chmod(0)
        with pytest.raises(StoreUnavailableError, match="cannot be read: Permission denied; give this process access"):
            await store.load_messages("a")
        path.chmod(stat.S_IRUSR)
        assert await store.load_messages("a") == samples.messages(1)
        with pytest.raises(StoreReadOnlyError, match=r"a\.jsonl: Permission denied"):
            await store.append_messages("a", samples.messages(1))
    with pytest.raises(StoreReadOnlyError, match="/nowhere"):
        await opened("/nowhere")


async def test_an_unreadable_file_is_not_taken_for_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system refuses to open an agent's file, loads say so, and saves do not write over it."""
    path = await make()
    before = path.read_bytes()
    real = os.open

    def refuse(name: Any, *rest: Any) -> int:
        if str(name).endswith("a.jsonl"):
            raise PermissionError(13, "Permission denied", str(name))
        return real(name, *rest)

    async with opened() as store:
        with monkeypatch.context() as patch:
            patch.setattr("kode_core.backends.json_files.journal.os.open", refuse)
            with pytest.raises(
                StorageError, match=r"a\.jsonl cannot be read: Permission denied; give this process access"
            ):
                await store.load_messages("a")
            with pytest.raises(StorageError, match="Permission denied"):
                await store.save_messages("a", [])
    assert path.read_bytes() == before


FULL = """
import asyncio, resource, sys
from kode_conformance.values import samples
from kode_core import StoreFullError, create_extended_store
async def main():
    async with create_extended_store(type="json", base_dir="store") as store:
        await store.save_messages("a", samples.messages(3))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        try:
            await store.save_messages("a", [*samples.messages(3), samples.message(text="x" * 200_000)])
        except StoreFullError as exc:
            print(type(exc).__name__, exc)
        assert await store.load_messages("a") == samples.messages(3)
        await store.append_messages("a", [samples.message(3)])
        assert await store.load_messages("a") == samples.messages(4)
asyncio.run(main())
"""


def test_a_full_disk() -> None:
    """When there is no room the write is refused, what was stored stays, and smaller writes go on."""
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "store/a.jsonl: File too large" in done.stdout
    assert done.stdout.startswith("StoreFullError")
    assert resource.getrlimit(resource.RLIMIT_FSIZE) != (100_000, 100_000)
    assert issubclass(StoreFullError, OSError)


async def test_a_lock_that_is_never_given_up() -> None:
    """A write waits for another process as long as it was told to, then says who it waits for."""
    async with opened(lock_wait_ms=60) as store:
        await store.save_messages("a", samples.messages(1))
        with locked(Path("store/.kode/locks") / f"{stripe_of('a'):02d}", 10):
            with pytest.raises(StoreBusyError, match="another process has held this lock for more than 60 ms"):
                await store.save_messages("a", samples.messages(2))
            assert await store.load_messages("a") == samples.messages(1)
        await store.save_messages("a", samples.messages(2))


async def test_nothing_is_said_of_a_lock_that_was_free() -> None:
    """A free lock is taken at once, and is free again afterwards."""
    for _ in range(2):
        with locked(Path("lock"), 0):
            assert files is not None


# --- loss of power ----------------------------------------------------------------------------------------------------


async def model_of(store: ExtendedStore) -> dict[str, Any]:
    """All that is stored, as plain facts."""
    facts: dict[str, Any] = {}
    for agent in ("a", "b", "c"):
        facts[agent] = (
            [m.text for m in await store.load_messages(agent)],
            [e.bookmark.seq async for e in store.read_events(agent)],
            await store.exists(agent),
            [s.id for s in await store.list_snapshots(agent)],
        )
    return facts


async def busy_life(store: ExtendedStore, recording: Recording) -> None:
    """Writes of every kind; after each, what must be there is noted."""
    rng = random.Random(5)
    recording.note(await model_of(store))
    for i in range(120):
        agent = rng.choice("abc")
        choice = rng.random()
        if choice < 0.2:
            await store.append_messages(agent, [samples.message(text=f"{i} " + "x" * rng.choice((10, 900)))])
        elif choice < 0.35:
            await store.append_events(agent, samples.events(rng.randint(1, 4), start=10 * i))
        elif choice < 0.45:
            await store.save_turn(
                agent,
                messages=samples.messages(rng.randint(0, 3)),
                info=samples.info(agent),
                events=[samples.event(10 * i + 9)],
            )
        elif choice < 0.8:
            await store.save_info(agent, samples.info(agent, metadata={"i": "y" * 2000}))
        elif choice < 0.9:
            await store.save_snapshot(agent, samples.snapshot(f"s{i % 3}"))
        else:
            await store.delete(agent)
        recording.note(await model_of(store))


async def cuts(recording: Recording, count: int, where: Path) -> int:
    """Cut the power at random places; returns how often something acknowledged was lost or unreadable."""
    rng = random.Random(11)
    bad = 0
    for n in range(count):
        cut = rng.randrange(len(recording.log))
        notes = [entry[1] for entry in recording.log[:cut] if entry[0] == "note"]
        following = next((entry[1] for entry in recording.log[cut:] if entry[0] == "note"), None)
        if not notes:
            continue
        base = where / str(n)
        for path, content in recording.after(cut, rng).items():
            target = base / Path(path).relative_to(recording.base)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        try:
            async with opened(base, durability="fast") as store:
                found = await model_of(store)
                await store.append_messages("a", samples.messages(1))
        except StorageError:
            bad += 1
            continue
        bad += found not in (notes[-1], following)
    return bad


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["full", "fast"])
async def test_loss_of_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str) -> None:
    """With durability full, no loss of power at any moment loses or tears what was acknowledged.

    The same test on durability fast, which does not sync, finds losses: it would find them.
    """
    monkeypatch.setattr("kode_core.backends.json_files.journal.COMPACT_FROM", 1_000)
    monkeypatch.setattr("kode_core.backends.json_files.folder.COMPACT_FROM", 1_000)
    base = tmp_path / "store"
    with recorded(base, monkeypatch) as recording:
        async with opened(base, durability=durability) as store:
            await busy_life(store, recording)
    compactions = sum(1 for entry in recording.log if entry[0] == "rename" and ".jsonl" in entry[2])
    assert compactions >= 2, "the test must see compactions"
    bad = await cuts(recording, 400, tmp_path / "cuts")
    assert (bad == 0) == (durability == "full"), f"{bad} of 400 losses of power did harm"


async def prepared_life(base: Path, recording: Recording) -> dict[str, bool]:
    """Prepared writes, decided and not synced then, among others; returns which of them were committed."""
    rng = random.Random(7)
    folder = Folder(base, durable=True, wait_ms=1000)
    folder.open()
    events: list[int] = []
    committed: dict[str, bool] = {}
    stripe = folder.try_stripe(stripe_of("a"))
    assert stripe is not None
    recording.note([])
    for i in range(60):
        text = f"{i}" + "x" * rng.choice((5, 900))
        body = Body(text, digest(text.encode()))
        batch = Batch(agent_id="a", op_id=f"op{i}", now=i, events=(EventWrite(i, "monitor", body),))
        if rng.random() < 0.4:
            folder.commit(stripe, [batch])
            events = [*events, i]
        else:
            folder.prepare(stripe, batch)
            committed[batch.op_id] = rng.random() < 0.7
            if committed[batch.op_id]:
                events = [*events, i]
            recording.note(events)  # the database has decided
            folder.decide(stripe, "a", committed=committed[batch.op_id])
        recording.note(events)
    folder.release_stripe(stripe)
    return committed


@pytest.mark.slow
async def test_loss_of_power_between_prepared_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What became of a prepared write is not synced: whatever of it a loss of power takes, the file is no damaged one,
    and with the word of the other store it is what it was.
    """
    with recorded(tmp_path / "store", monkeypatch) as recording:
        committed = await prepared_life(tmp_path / "store", recording)
    monkeypatch.setattr("kode_core.backends.json_files.marks.this_boot", lambda: "0" * 8)  # the host was started again
    rng = random.Random(3)
    undecided = 0
    for n in range(600):
        cut = rng.randrange(len(recording.log))
        notes = [entry[1] for entry in recording.log[:cut] if entry[0] == "note"]
        following = next((entry[1] for entry in recording.log[cut:] if entry[0] == "note"), None)
        base = tmp_path / "cuts" / str(n)
        for name, content in recording.after(cut, rng).items():
            target = base / Path(name).relative_to(recording.base)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        folder = Folder(base, durable=False, wait_ms=1000)
        if not notes:
            continue
        folder.open()
        stripe = folder.try_stripe(stripe_of("a"))
        assert stripe is not None
        batch = folder.prepared("a")
        if batch is not None:
            undecided += 1
            folder.decide(stripe, "a", committed=committed[batch.op_id])
        folder.release_stripe(stripe)
        with folder.reading("a") as (journal, _):
            found = [row.seq for row in journal.state.log.read(EventRange())]
        assert found in (notes[-1], following)
    assert undecided > 50


# --- the first format -------------------------------------------------------------------------------------------------


def in_the_first_format(base: Path) -> None:
    """Write a folder as the first format had it."""
    for path in base.glob("*.jsonl"):
        raw = path.read_bytes()
        line, _, rest = raw.partition(b"\n")
        head = json.loads(line)
        del head["marks"]
        out = json.dumps({**head, "format": 1}, separators=(",", ":")).encode() + b"\n"
        while rest:
            prefix, _, rest = rest.partition(b"\n")
            header_size, bodies_size = (int(size) for size in prefix.split()[2:])
            frame, rest = rest[: header_size + 1 + bodies_size], rest[header_size + 1 + bodies_size :]
            check = crc32(frame[: header_size + 1], crc32(b"%d %d" % (header_size, bodies_size)))
            out += b"#%08x %d %d\n" % (check, header_size, bodies_size) + frame
        path.write_bytes(out)
    for path in (base / ".kode" / "locks").iterdir():
        number = int(path.read_bytes()[10:25])
        path.write_bytes(b"%020d" % number if number else b"")
    (base / ".kode" / "format").write_text("1\n")


async def test_the_first_format_is_changed_in_place() -> None:
    """A folder of the first format is changed when it is opened, by one of many; what is damaged in it stays."""
    path = await make()
    async with opened() as store:
        await store.append_events("c", samples.events(3))
        await store.append_events("gone", samples.events(9))
        await store.delete("gone")
        expected = await model_of(store)
    in_the_first_format(Path("store"))
    path.write_bytes(path.read_bytes() + b"#00000000 1")
    b = Path("store") / "b.jsonl"
    damaged = b.read_bytes().replace(b'"op_id":"', b'"op_id":"x', 1)
    b.write_bytes(damaged)
    stores = await asyncio.gather(*(opened().__aenter__() for _ in range(5)))
    store = stores[0]
    with pytest.raises(SchemaVersionError, match="agent 'b' is in the first format, and could not"):
        await store.load_info("b")
    assert b.read_bytes() == damaged
    b.unlink()
    found = await model_of(store)
    assert {**found, "b": expected["b"]} == expected
    assert await store.append_event("gone", samples.event(1)) > 9
    await store.append_messages("a", samples.messages(1))
    assert (await store.check_consistency()).issues == ()
    for each in stores:
        await each.close()


async def test_a_search_that_fails_keeps_no_file_locked() -> None:
    """While the error of a search is held, with all that its traceback refers to, the files it looked at are free."""

    def fails(states: Any) -> Any:
        next(states)
        raise LookupError("as a search does whose query is wrong")

    async with opened() as store, opened() as other:
        await store.save_messages("a", samples.messages(1))
        engine = store._context.engine
        searches = (partial(searched, engine.folder, SessionQuery()), partial(searched_whole, engine.folder, None))
        for i, search in enumerate(searches, 2):
            with pytest.raises(LookupError) as caught:
                await engine._tried(partial(search, fails))
            async with asyncio.timeout(30):
                await other.append_messages("a", samples.messages(1))
                assert len(await store.query_messages()) == i
            assert caught.value.__traceback__ is not None
