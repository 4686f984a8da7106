"""Costs of statements on PostgreSQL: the pages that they touch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["explained", "explained_again", "touched"]


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, (bool, int)):
        return str(value)
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'::bytea"
    if isinstance(value, list):
        return f"ARRAY[{', '.join(map(_literal, value))}]" if value else "'{}'"
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


def touched(plan: dict[str, Any]) -> int:
    """Pages, each as often as it was touched, in the server's memory or not."""
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])
