"""Costs of statements on PostgreSQL: the pages that they touch, in databases with many rows."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import asyncpg
import pytest
from kode_postgres.testing.servers import Server

__all__ = ["con", "executing", "explained", "explained_again", "filled", "nodes", "touched"]


@contextmanager
def filled(server: Server, fill: Callable[[Any], Awaitable[None]]) -> Iterator[str]:
    """The address of a database of its own, which *fill* has filled through a connection."""
    name = f"kode_{secrets.token_hex(6)}"

    async def make() -> None:
        await server.execute(f"CREATE DATABASE {name}")
        con = await asyncpg.connect(server.url(name))
        await fill(con)
        await con.close()

    try:
        asyncio.run(make())
        yield server.url(name)
    finally:
        asyncio.run(server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


def executing(*statements: str) -> Callable[[Any], Awaitable[None]]:
    """What fills a database by statements."""

    async def fill(con: Any) -> None:
        for statement in statements:
            await con.execute(statement)

    return fill


@pytest.fixture
async def con(large: str) -> AsyncIterator[Any]:
    """A connection to the database of the fixture ``large``."""
    con = await asyncpg.connect(large)
    try:
        yield con
    finally:
        await con.close()


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, (bool, int)):
        return str(value)
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'::bytea"
    if isinstance(value, list) and all(one is None for one in value):
        return f"'{{{', '.join(['NULL'] * len(value))}}}'"  # of the parameter's type
    if isinstance(value, list):
        return f"ARRAY[{', '.join(map(_literal, value))}]"
    text = re.sub(r"['\\]", r"\\\g<0>", value).replace("\n", "\\n")
    return f"E'{text}'"


def _call(args: Sequence[Any]) -> str:
    return f"EXECUTE asked({', '.join(map(_literal, args))})" if args else "EXECUTE asked"


async def explained(
    con: Any, statement: str, args: Sequence[Any], before: Sequence[Any] | None = None
) -> dict[str, Any]:
    """The plan that a connection has that has sent the same often, with the same arguments unless others are given:
    the server may keep one that fits no value.
    """
    await con.execute(f"PREPARE asked AS {statement}")
    await con.execute(";".join([_call(args if before is None else before)] * 6))
    return await explained_again(con, args)


async def explained_again(con: Any, args: Sequence[Any]) -> dict[str, Any]:
    """The plan that the connection has by now for the statement of ``explained``."""
    (found,) = json.loads(await con.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {_call(args)}"))
    plan: dict[str, Any] = found["Plan"]
    return plan


def nodes(plan: dict[str, Any]) -> set[str]:
    """The kinds of steps that a plan has."""
    return {plan["Node Type"]}.union(*map(nodes, plan.get("Plans", ())))


def touched(plan: dict[str, Any]) -> int:
    """Pages, each as often as it was touched, in the server's memory or not."""
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])
