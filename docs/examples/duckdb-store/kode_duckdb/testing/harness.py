"""How the conformance suite makes, opens and looks into DuckDB stores."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, TypeVar

import duckdb
from kode_conformance import Handle, Space, StoreHarness

from kode_core import Store, create_extended_store
from kode_duckdb.schema import TABLES, Connection

__all__ = ["DuckdbHarness"]

T = TypeVar("T")


class DuckdbHarness(StoreHarness):
    """A file in the space's folder."""

    name = "duckdb"
    lacks = frozenset(
        {"CROSS_PROCESS", "DOCUMENTS", "PRUNING", "SCOPES", "TAGS"}
    )  # DuckDB lets one process at a time open a file
    versions: Mapping[str, str] = {"duckdb": duckdb.__version__, "kode-duckdb": version("kode-duckdb")}

    async def provision(self, space: Space) -> Handle:
        return {"db_path": str(space.folder / "agents.duckdb")}

    async def open(self, handle: Handle) -> Store:
        return await self.open_with(handle)

    # --- hooks

    async def open_with(self, handle: Handle, **options: Any) -> Store:
        return await create_extended_store(type="duckdb", **handle, **options)

    async def corrupt(self, handle: Handle, agent_id: str) -> None:
        damaged = "UPDATE kode_rows SET body = replace(body, 'message 0', 'message !') WHERE agent_id = ?"
        await _behind(handle, lambda db: db.execute(f"{damaged} AND kind = 'messages' AND position = 0", [agent_id]))

    async def raw_dump(self, handle: Handle) -> str:
        return await _behind(handle, lambda db: "\n".join(repr(db.execute(f"FROM {t}").fetchall()) for t in TABLES))

    async def raise_version(self, handle: Handle) -> None:
        newer = "UPDATE kode_meta SET value = 99 WHERE key = 'schema_version'"
        await _behind(handle, lambda db: db.execute(newer))


async def _behind(handle: Handle, call: Callable[[Connection], T]) -> T:
    """Do something to the database behind the store's back."""

    def run() -> T:
        with duckdb.connect(handle["db_path"]) as db:
            return call(db)

    return await asyncio.to_thread(run)
