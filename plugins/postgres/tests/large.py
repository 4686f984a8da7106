"""A store of hundreds of thousands of rows, made on the server in seconds."""

from __future__ import annotations

from typing import Any, Final

from kode_postgres.schema import Tables, statements

__all__ = ["AGENTS", "CALLS", "EVENTS", "MESSAGES", "START", "STEP", "agent", "fill"]

AGENTS: Final = 40_000
MESSAGES: Final = 100_000
CALLS: Final = 20_000
EVENTS: Final = 10_000
START: Final = 1_700_000_000_000
STEP: Final = 60_000
"""An agent begins each minute, and works for some minutes."""


def agent(number: int) -> str:
    """The id of an agent, numbered in the order in which they began."""
    return f"agt-01J{number:020d}"


_ID: Final = "'agt-01J' || lpad((n)::text, 20, '0')"
_HASH: Final = "decode(md5(n::text), 'hex')"

_ROWS: Final[dict[str, tuple[str, int]]] = {
    # Every tenth agent was deleted. Of the others every seventh has one message, and the rest has two to fourteen.
    "agents": (
        f"""SELECT {_ID}, v, CASE WHEN v = 0 THEN 0 WHEN n % 7 = 0 THEN 1 ELSE n * 7919 % 13 + 2 END, v, v,
        CASE v WHEN 0 THEN 0 ELSE {START} + n * {STEP}::bigint + n % 600000 END, 5,
        array_fill(n::bigint, ARRAY[16]), array_fill({START}::bigint, ARRAY[16]),
        CASE v WHEN 0 THEN NULL ELSE 'tpl-' || n % 20 END, CASE v WHEN 0 THEN NULL ELSE {START} + n * {STEP}::bigint END
        FROM (SELECT n, (n % 10 <> 0)::int AS v FROM generate_series(1, $1::bigint) n) n""",
        AGENTS,
    ),
    "infos": (
        f"""SELECT {_ID}, jsonb_build_object('userId', '"u-' || n % 5000 || '"', 'plan', CASE n % 3 WHEN 0 THEN '"gold"'
        ELSE '"free"' END), {_HASH}, '{{"some": "info"}}' FROM generate_series(1, $1::bigint) n WHERE n % 10 <> 0""",
        AGENTS,
    ),
    "messages": (
        rf"""SELECT 'agt-01J' || lpad((n / 4 + 1)::text, 20, '0'), n % 4, {START} + n * 1000,
        CASE WHEN n % 20000 = 7 THEN 'system' WHEN n % 2 = 0 THEN 'user' ELSE 'assistant' END,
        CASE WHEN n % 10000 = 3 THEN E'\nimage\n' WHEN n % 9000 = 4 THEN E'\ntext\nfile\n'
        WHEN n % 4 = 1 THEN E'\ntext\ntool_use\n' WHEN n % 4 = 2 THEN E'\ntool_result\n' ELSE E'\ntext\n' END,
        {_HASH}, json_build_object('content', repeat('word ', 30)) FROM generate_series(0, $1::bigint - 1) n""",
        MESSAGES,
    ),
    "tool_calls": (
        f"""SELECT 'agt-01J' || lpad((n + 1)::text, 20, '0'), 0, {START} + n * {STEP}::bigint, 'call-' || n,
        'tool_' || n % 8,
        CASE WHEN n % 10000 = 5 THEN 'APPROVAL_REQUIRED' WHEN n % 9000 = 6 THEN 'FAILED' ELSE 'COMPLETED' END,
        n % 9000 = 6, n % 8000 = 5, {_HASH}, '{{"some": "input"}}' FROM generate_series(0, $1::bigint - 1) n""",
        CALLS,
    ),
    "events": (
        f"""SELECT 'ev-big', n, n, 'progress', {_HASH}, '{{"an": "event"}}' FROM generate_series(1, $1::bigint) n""",
        EVENTS,
    ),
}
"""The rows of each table, and how many numbers they are made from."""


async def fill(con: Any, tables: Tables) -> None:
    """Make the tables and fill them; indexes are made faster afterwards."""
    made = statements(tables)
    late = [statement for statement in made if statement.startswith("CREATE INDEX")]
    for statement in made:
        if statement not in late:
            await con.execute(statement)
    for table, (rows, count) in _ROWS.items():
        await con.execute(f"INSERT INTO {getattr(tables, table)} {rows}", count)
    for statement in (*late, f"VACUUM {tables.agents}", "ANALYZE"):
        await con.execute(statement)
