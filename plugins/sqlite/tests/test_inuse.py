"""Files that this process has open: what one of them makes wait holds up no other."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from kode_conformance.values import samples
from kode_sqlite import SqliteStore, inuse
from kode_sqlite.connection import open_connection
from kode_sqlite.options import SqliteOptions


async def test_a_file_that_does_not_answer_holds_up_no_other(tmp_path: Path) -> None:
    """While somebody looks at one file, stores of other files open, read over new connections, and close."""
    looked_at, answers = threading.Event(), threading.Event()

    def look() -> None:
        with inuse.unused(str(tmp_path / "silent.db")):
            looked_at.set()
            answers.wait(20)

    well = await SqliteStore(str(tmp_path / "well.db")).open()
    thread = threading.Thread(target=look)
    thread.start()
    try:
        looked_at.wait()
        await well.save_messages("a", samples.messages(2))
        assert len(await well.load_messages("a")) == 2
        async with SqliteStore(str(tmp_path / "other.db")) as other:
            assert await other.load_messages("a") == []
        await well.close()
        assert not answers.is_set()
        assert thread.is_alive()
    finally:
        answers.set()
        thread.join()


async def test_a_look_waits_for_who_opens_and_who_opens_for_a_look(tmp_path: Path) -> None:
    """No connection to a file is opened while somebody looks at it, and it counts until it is closed."""
    path = str(tmp_path / "a.db")
    with inuse.unused(path) as is_unused:
        assert is_unused
        opening = asyncio.ensure_future(asyncio.to_thread(inuse.note_open, path))
        await asyncio.sleep(0.05)
        assert not opening.done()
    file = await opening
    with inuse.unused(path) as is_unused:
        assert not is_unused
    inuse.note_closed(file)
    with inuse.unused(path) as is_unused:
        assert is_unused
    assert os.path.realpath(path) not in inuse._FILES


async def test_a_file_is_in_use_until_it_is_closed(tmp_path: Path) -> None:
    """Also when the caller who closes it is cancelled meanwhile, once or twice."""
    path = str(tmp_path / "a.db")
    await (await SqliteStore(path).open()).close()
    connection = await open_connection(SqliteOptions(db_path=path))
    gate = threading.Event()
    working = asyncio.ensure_future(connection.run(lambda db: gate.wait()))
    await asyncio.sleep(0)
    for _ in range(2):
        closing = asyncio.ensure_future(connection.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        with inuse.unused(path) as is_unused:
            assert not is_unused
    gate.set()
    await working
    await asyncio.to_thread(connection._thread.join)
    with inuse.unused(path) as is_unused:
        assert is_unused


async def test_an_opening_that_is_given_up_leaves_nothing_open(tmp_path: Path) -> None:
    """The connection that its thread makes later is closed, and no longer counts."""
    path = str(tmp_path / "a.db")
    await (await SqliteStore(path).open()).close()
    with inuse.unused(path):
        opening = asyncio.ensure_future(open_connection(SqliteOptions(db_path=path)))
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await opening
    with inuse.unused(path) as is_unused:
        assert is_unused
    assert os.path.realpath(path) not in inuse._FILES
