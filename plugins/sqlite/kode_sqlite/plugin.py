"""The plugin of the SQLite backend. It imports no driver."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from msgspec.structs import replace

from kode_core.authoring.paths import local_path
from kode_core.authoring.values import path_from_url
from kode_core.plugins import Backend, TextIndexAction, hookimpl
from kode_sqlite.options import SqliteOptions

if TYPE_CHECKING:
    from kode_core.authoring.foreign_tables import ForeignTables
    from kode_core.authoring.sdk_tables import SdkTables
    from kode_core.engine import Progress
    from kode_sqlite.engine import SqliteEngine


async def _open(options: SqliteOptions) -> SqliteEngine:
    import sqlite3

    from kode_sqlite.connection import see_version
    from kode_sqlite.engine import SqliteEngine
    from kode_sqlite.readonly import ReadOnlyEngine

    see_version(sqlite3.sqlite_version_info)
    if options.db_path != ":memory:":  # readers are opened later, perhaps from another working directory
        options = replace(options, db_path=str(local_path(options.db_path, "db_path")))
        given_up = threading.Event()
        try:
            may_only_read = await asyncio.to_thread(_looked_at, options, given_up)
        finally:
            given_up.set()
        if may_only_read:
            return await ReadOnlyEngine.open(options)
    return await SqliteEngine.open(options)


def _looked_at(options: SqliteOptions, given_up: threading.Event) -> bool:
    """Refuse a damaged log and a database of another project; return whether this process may only read the file."""
    from kode_sqlite.foreign import refuse_foreign
    from kode_sqlite.log import see_log
    from kode_sqlite.readonly import may_only_read

    see_log(options.db_path, is_durable=options.durability == "full", given_up=given_up)
    refuse_foreign(options.db_path)
    return may_only_read(options.db_path)


def _is_there(options: SqliteOptions) -> bool:
    """If the file cannot be read as a database, return True: ``open`` then reports the problem."""
    import sqlite3

    from kode_sqlite.foreign import refuse_foreign
    from kode_sqlite.looking import looking

    path = str(local_path(options.db_path, "db_path"))
    refuse_foreign(path)
    try:
        with looking(path) as db:
            return db.execute("SELECT 1 FROM sqlite_master WHERE lower(name) = 'kode_meta'").fetchone() is not None
    except (sqlite3.Error, OSError):
        return True


def _schema(options: SqliteOptions) -> str:
    from kode_sqlite.migrations import script

    return script(str(local_path(options.db_path, "db_path")))


@asynccontextmanager
async def _sdk_tables(options: SqliteOptions) -> AsyncIterator[SdkTables]:
    from kode_sqlite.sdk import open_sdk_tables

    async with open_sdk_tables(str(local_path(options.db_path, "db_path"))) as tables:
        yield tables


@asynccontextmanager
async def _foreign_tables(options: SqliteOptions) -> AsyncIterator[ForeignTables]:
    from kode_sqlite.foreign_tables import open_tables

    async with open_tables(str(local_path(options.db_path, "db_path"))) as tables:
        yield tables


async def _text_index(options: SqliteOptions, action: TextIndexAction, progress: Progress) -> int | None:
    from kode_sqlite.texts import change_index

    engine = await _open(replace(options, text_index=False))
    try:
        return await change_index(engine, action, progress)
    finally:
        await asyncio.shield(engine.close())


@hookimpl
def kode_store_backend() -> Backend:
    return Backend(
        name="sqlite",
        options=SqliteOptions,
        open=_open,
        from_url=path_from_url("db_path"),
        variables={"KODE_SQLITE_PATH": "db_path"},
        is_there=_is_there,
        schema=_schema,
        sdk_tables=_sdk_tables,
        foreign_tables=_foreign_tables,
        text_index=_text_index,
        summary="one file, no server",
    )
