"""A database and the folder beside it know each other."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.values import samples

from kode_core import (
    ConfigurationError,
    CorruptRecordError,
    StoreFullError,
    StoreUnavailableError,
    TodoSnapshot,
    create_extended_store,
)
from kode_core.backends.json_files import children
from kode_core.batch import Batch, Doc, DocKind, DocWrite, ListWrite
from kode_core.codec import encode

HYBRID = {"type": "sqlite", "db_path": "a.db", "file_store_base_dir": "files"}


async def make() -> None:
    async with create_extended_store(HYBRID) as store:
        await store.save_turn("a", append=samples.messages(1), info=samples.info("a"), events=samples.events(2))


async def test_the_files_are_not_forgotten() -> None:
    """A database that has a part of its agents in files is not opened without them."""
    await make()
    with pytest.raises(ConfigurationError, match=r"in files, which were at .*/files: give their folder as file_store_"):
        await create_extended_store("sqlite:///a.db")
    async with create_extended_store(HYBRID) as store:
        assert len([event async for event in store.read_events("a")]) == 2


async def test_the_files_are_the_right_ones() -> None:
    """Neither a new folder nor one of another store is taken for the one that belongs to the database."""
    await make()
    async with create_extended_store(type="json", base_dir="others") as other:
        await other.save_info("b", samples.info("b"))
    for folder in ("new", "others"):
        with pytest.raises(ConfigurationError, match=rf"{folder} is not the folder of .*, which was at .*/files"):
            await create_extended_store({**HYBRID, "file_store_base_dir": folder})
    with pytest.raises(ConfigurationError, match="others has agents of another store: give a new folder"):
        await create_extended_store(type="sqlite", db_path="b.db", file_store_base_dir="others")


async def test_a_database_that_has_everything_gets_no_files() -> None:
    """Its events and todos would be hidden."""
    async with create_extended_store("sqlite:///a.db") as store:
        await store.save_info("a", samples.info("a"))
    with pytest.raises(ConfigurationError, match="open it without file_store_base_dir"):
        await create_extended_store(HYBRID)
    async with create_extended_store("sqlite:///a.db") as store:
        assert await store.list() == ["a"]


async def test_a_moved_pair_and_a_backup_stay_together() -> None:
    """Both may be moved; a backup is a pair of its own that opens with its own folder."""
    await make()
    async with create_extended_store(HYBRID) as store:
        await store.backup("copy.db")
    async with create_extended_store(type="sqlite", db_path="copy.db", file_store_base_dir="copy.db.files") as copy:
        assert len([event async for event in copy.read_events("a")]) == 2
    with pytest.raises(ConfigurationError, match="file_store_base_dir"):
        await create_extended_store("sqlite:///copy.db")
    Path("files").rename("elsewhere")
    async with create_extended_store({**HYBRID, "file_store_base_dir": "elsewhere"}) as store:
        assert len([event async for event in store.read_events("a")]) == 2


async def test_many_first_opens_agree() -> None:
    """Stores that open a new pair at once all get it."""
    stores = await asyncio.gather(*(create_extended_store(HYBRID).__aenter__() for _ in range(10)))
    for i, store in enumerate(stores):
        await store.append_event("a", samples.event(i))
    assert len([event async for event in stores[0].read_events("a")]) == 10
    for store in stores:
        await store.close()


async def test_a_backup_of_a_pair_is_of_one_instant() -> None:
    """While turns that touch both halves are written, and agents deleted, the copy of a pair holds whole turns."""
    async with create_extended_store(HYBRID) as store:
        stop = False
        written = 0

        async def write() -> None:
            nonlocal written
            while not stop:
                written += 1
                info = samples.info("a", metadata={"n": written})
                events = [samples.event(written)]
                todos = samples.todos("x").replace(version=written)
                await store.save_turn("a", append=samples.messages(1), info=info, events=events, todos=todos)
                await store.append_messages("b", samples.messages(1))
                await store.append_event("b", samples.event(written))
                await store.save_turn("c", append=samples.messages(1), events=events, todos=todos)
                if not written % 3:
                    await store.delete("c")

        writer = asyncio.ensure_future(write())
        for n in range(6):
            await asyncio.sleep(0.1)
            await store.backup(f"copy{n}.db")
            target = {"type": "sqlite", "db_path": f"copy{n}.db", "file_store_base_dir": f"copy{n}.db.files"}
            async with create_extended_store(target) as copy:
                info, todos = await copy.load_info("a"), await copy.load_todos("a")
                events = [event async for event in copy.read_events("a")]
                turn = 0 if info is None else info.metadata["n"]
                assert (len(await copy.load_messages("a")), len(events), todos.version if todos else 0) == (turn,) * 3
                difference = len(await copy.load_messages("b")) - len([1 async for _ in copy.read_events("b")])
                assert difference in (0, 1), "an event without the message before it"
                of_c = len(await copy.load_messages("c")), len([1 async for _ in copy.read_events("c")])
                assert of_c[0] == of_c[1]
                assert (await copy.load_todos("c") is None) == (of_c[0] == 0)
                assert (await copy.check_consistency()).issues == ()
        stop = True
        await writer


async def test_a_backup_of_a_pair_that_fails_leaves_neither_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the files cannot be copied, the copy of the database is removed as well."""
    await make()
    async with create_extended_store(HYBRID) as store:

        def no_room(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        before = sorted(Path().iterdir())
        with monkeypatch.context() as patch:
            patch.setattr("kode_core.backends.json_files.copies.write_all", lambda *_: no_room(0))
            with pytest.raises(StoreFullError):
                await store.backup("copy.db")
        assert sorted(Path().iterdir()) == before
        assert len(await store.backup("copy.db")) == 2


async def test_a_fork_that_fails_half_way_leaves_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the files of one fork cannot be made, or the database refuses, none of the others has any."""
    async with create_extended_store(HYBRID) as store:
        await store.save_turn("a", append=samples.messages(1), info=samples.info("a"), todos=samples.todos("x"))
        before = sorted(Path("files").glob("*.jsonl"))
        made = 0

        def full(*arguments: Any, **options: Any) -> None:
            nonlocal made
            made += 1
            if made == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            write_state(*arguments, **options)

        write_state = children.write_state
        with monkeypatch.context() as patch:
            patch.setattr(children, "write_state", full)
            with pytest.raises(StoreFullError):
                await store.batch_fork("a", 5)
        assert sorted(Path("files").glob("*.jsonl")) == before

        async def refuse(*_: Any) -> bool:
            raise StoreUnavailableError("the database is gone")

        with monkeypatch.context() as patch:
            patch.setattr(store._context.engine.inner, "fork", refuse)  # type: ignore[attr-defined]
            with pytest.raises(StoreUnavailableError):
                await store.batch_fork("a", 5)
        assert sorted(Path("files").glob("*.jsonl")) == before
        assert len(await store.batch_fork("a", 5)) == 5


async def test_a_write_that_the_database_refuses_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write of both halves during an outage of the database is its own error, and leaves nothing in the files."""
    async with create_extended_store(HYBRID) as store:
        await store.save_turn("a", append=samples.messages(1), todos=samples.todos("x"))
        inner = store._context.engine.inner  # type: ignore[attr-defined]

        async def refuse(_: Any) -> Any:
            raise StoreUnavailableError("the database is gone")

        with monkeypatch.context() as patch:
            patch.setattr(inner, "commit", refuse)
            turn = store.save_turn("a", append=samples.messages(1), todos=samples.todos("y"))
            results = await asyncio.gather(turn, store.append_event("b", samples.event(1)), return_exceptions=True)
            assert isinstance(results[0], StoreUnavailableError)
            assert results[1] == 1
        assert await store.load_todos("a") == samples.todos("x")
        assert len(await store.load_messages("a")) == 1


@pytest.mark.parametrize("whose", ["pair", "agent"])
async def test_damaged_notes_of_the_pair_are_told(whose: str) -> None:
    """A note in the database whose text is not what was written is an error, and no word to go by."""
    async with create_extended_store(HYBRID) as store:
        await store.save_turn("a", append=samples.messages(1), todos=samples.todos("old"))
        files = store._context.engine.files  # type: ignore[attr-defined]
        decide = files.folder.decide
        files.folder.decide = _killed
        with pytest.raises(KeyboardInterrupt):
            await store._context.engine._commit_both(  # type: ignore[attr-defined]
                Batch(agent_id="a", op_id="op", now=1, messages=ListWrite(), docs=(_todos("new"),))
            )
        files.folder.decide = decide
    with closing(sqlite3.connect("a.db")) as db:
        (table,) = [
            name
            for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if {"kind", "body"} <= {row[1] for row in db.execute(f"PRAGMA table_info({name})")}
        ]
        agent = "agent_id = 'a'" if whose == "agent" else "agent_id <> 'a'"
        assert db.execute(f"UPDATE {table} SET body = 'x' || body WHERE kind = 'layer' AND {agent}").rowcount == 1
        db.commit()
    if whose == "pair":
        with pytest.raises(CorruptRecordError, match="note about the files"):
            await create_extended_store(HYBRID)
        return
    async with create_extended_store(HYBRID) as store:
        with pytest.raises(CorruptRecordError, match="the mark of agent 'a'"):
            await store.load_todos("a")


def _killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def _todos(title: str) -> DocWrite:
    body = encode(TodoSnapshot, samples.todos(title), "todos")
    return DocWrite(DocKind.TODOS, "", Doc("", 0, body))


async def test_a_short_page_of_ids_hides_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database gives a short page where it passes over documents of layers; the page of the files is longer."""
    monkeypatch.setattr("kode_core.store.reader._IDS_AT_ONCE", 3)
    async with create_extended_store(HYBRID) as store:
        for name in "efgh":
            await store.save_info(name, samples.info(name))
        for name in "efh":  # the files know nothing of g
            await store.append_events(name, samples.events(1))
    with closing(sqlite3.connect("a.db")) as db, db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(kode_docs)")]
        given = ", ".join({"agent_id": "?", "kind": "'layer'"}.get(name, name) for name in columns)
        db.executemany(
            f"INSERT INTO kode_docs SELECT {given} FROM kode_docs LIMIT 1", [(name,) for name in ("a", "b", "ee")]
        )
    async with create_extended_store(HYBRID) as store:
        assert await store.list(include_without_info=True) == ["e", "f", "g", "h"]
