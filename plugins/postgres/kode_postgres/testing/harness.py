"""Harnesses of the PostgreSQL store for kode-conformance: everything in the database, and the hybrid layout."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import asyncpg
from kode_conformance import BorrowedClient, Costs, Handle, Space, StoreHarness
from kode_conformance.context import Unverified

from kode_core import Store, create_extended_store
from kode_core.backends.json_files import files
from kode_core.hybrid import engine as hybrid
from kode_postgres import connection
from kode_postgres.options import PostgresOptions
from kode_postgres.schema import Tables, table_names
from kode_postgres.testing.servers import DSN_VARIABLE, LocalServer, shared_server

__all__ = ["PostgresHarness", "PostgresHybridHarness"]

_COSTS: Final = """
SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
       (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid())
"""


class PostgresHarness(StoreHarness):
    """Everything in the database: each space has its own schema on the server of ``shared_server``."""

    name = "postgres"

    @property
    def versions(self) -> Mapping[str, str]:  # type: ignore[override]
        """The versions of the server, the driver and the plugin."""
        server = shared_server()
        name = server.version if isinstance(server, LocalServer) else f"see {DSN_VARIABLE}"
        return {"postgres": name, "asyncpg": version("asyncpg"), "kode-postgres": version("kode-postgres")}

    @property
    def secrets(self) -> Sequence[str]:  # type: ignore[override]
        """The password of the server's user."""
        return [secret] if (secret := shared_server().password) else []

    async def provision(self, space: Space) -> Handle:
        server = shared_server()
        await server.execute(f'DROP SCHEMA IF EXISTS "{space.name}" CASCADE', f'CREATE SCHEMA "{space.name}"')
        return {"dsn": server.dsn, "schema": space.name, "connection_timeout_millis": 2000}

    async def open(self, handle: Handle) -> Store:
        return await self.open_with(handle)

    async def open_with(self, handle: Handle, **options: Any) -> Store:
        return await create_extended_store(type="postgres", **handle, **options)

    async def destroy(self, handle: Handle) -> None:
        async with _connection(handle) as con:
            await con.execute(f'DROP SCHEMA IF EXISTS "{handle["schema"]}" CASCADE')

    async def corrupt(self, handle: Handle, agent_id: str) -> None:
        damaged = "body = replace(body::text, 'message 0', 'message !')::json"
        async with _connection(handle) as con:
            done = await con.execute(
                f"UPDATE {_tables(handle).messages} SET {damaged} WHERE agent_id = $1 AND position = 0", agent_id
            )
            assert done == "UPDATE 1"

    async def made_at(self, handle: Handle) -> Sequence[Path]:
        return ()

    async def raw_dump(self, handle: Handle) -> str:
        async with _connection(handle) as con:
            lines = [
                str(row[0])
                for table in table_names(_tables(handle))
                for row in await con.fetch(f"SELECT r::text FROM {table} r ORDER BY r::text")
            ]
        return "\n".join(lines)

    async def raise_version(self, handle: Handle) -> None:
        async with _connection(handle) as con:
            await con.execute(f"UPDATE {_tables(handle).meta} SET value = 99 WHERE key = 'schema_version'")

    def code_of(self, store: Store) -> Sequence[str]:
        """The code that talks to the server: between two calls of other code nothing changes there."""
        return [connection.__file__]

    async def costs(self, handle: Handle) -> Costs:
        """The server's costs, whoever uses it: bytes of the log, transactions that wrote, connections."""
        async with _connection(handle) as con:
            return Costs(*await con.fetchrow(_COSTS))

    async def open_borrowed(self, handle: Handle) -> BorrowedClient:
        pool = await asyncpg.create_pool(handle["dsn"], min_size=1, max_size=4, timeout=30)
        store = await create_extended_store(
            type="postgres", pool=pool, **{k: handle[k] for k in handle.keys() - {"dsn"}}
        )
        return BorrowedClient(store, lambda: pool.fetchval("SELECT 1"), pool.close)

    async def break_backend(self, handle: Handle) -> None:
        await _alone(_local_server().stop, at_once=True)

    async def heal_backend(self, handle: Handle) -> None:
        await _alone(shared_server)  # it starts the server

    async def crash_backend(self, handle: Handle) -> None:
        server = _local_server()

        def crash() -> None:
            server.kill()
            server.start()

        await _alone(crash)


class PostgresHybridHarness(PostgresHarness):
    """Events, todos, history and media in files next to the database."""

    name = "postgres-hybrid"

    # If only the server is down, the parts in files keep working, so it is not an outage of the store.
    break_backend = StoreHarness.break_backend
    heal_backend = StoreHarness.heal_backend

    def code_of(self, store: Store) -> Sequence[str]:
        """The code that talks to the server, the code that changes files, and the code that connects the two."""
        return [connection.__file__, files.__file__, hybrid.__file__]

    async def provision(self, space: Space) -> Handle:
        return {**await super().provision(space), "file_store_base_dir": str(space.folder / "files")}

    async def raw_dump(self, handle: Handle) -> str:
        paths = sorted(Path(handle["file_store_base_dir"]).rglob("*"))
        texts = [path.read_text() for path in paths if path.is_file()]
        return "\n".join([await super().raw_dump(handle), *texts])


async def _alone(call: Callable[..., Any], **how: Any) -> None:
    """Run the call in a thread and to its end, so that no other call starts a server that is being stopped."""
    await asyncio.shield(asyncio.to_thread(call, **how))


def _local_server() -> LocalServer:
    server = shared_server()
    if not isinstance(server, LocalServer):
        raise Unverified(f"the server that {DSN_VARIABLE} names is not one to be stopped")
    return server


def _tables(handle: Handle) -> Tables:
    return Tables(PostgresOptions(schema=handle["schema"]))


@asynccontextmanager
async def _connection(handle: Handle) -> Any:
    con = await asyncpg.connect(handle["dsn"], timeout=30)
    try:
        yield con
    finally:
        await con.close()
