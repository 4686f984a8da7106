"""The tables, and how older versions of them become this one.

Bodies are JSON text that PostgreSQL checks and never changes; the columns next to them are what queries need. Every
unique constraint begins with ``agent_id``, so that the tables can be partitioned by it. Texts are compared
by code point, and no indexed value is longer than an index can hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from kode_core.errors import SchemaVersionError, StoreUnavailableError
from kode_postgres.options import PostgresOptions

__all__ = ["KEPT_OPS", "SCHEMA_VERSION", "Tables", "migrate", "script", "statements", "version_of"]

KEPT_OPS: Final = 16
"""How many of the last writes' ids a head keeps, to know a write again that is repeated."""

TABLES: Final = ("agents", "infos", "messages", "tool_calls", "docs", "events", "leases", "followers")
OF_AN_AGENT: Final = ("infos", "messages", "tool_calls", "docs", "events")
"""The tables that a delete empties. The head stays behind, empty, so that no offset comes again."""

_KEYS: Final[dict[str, str]] = {
    "agents": "agent_id",
    "infos": "agent_id",
    "messages": "agent_id, position",
    "tool_calls": "agent_id, position",
    "docs": "agent_id, kind, key_hash",
    "events": 'agent_id, "offset"',
    "leases": "agent_id",
    "followers": "agent_id",
}
_COLUMNS: Final[dict[str, str]] = {
    # An agent's head, made with whatever is written first; created_at is NULL until info is saved.
    "agents": """
        agent_id text COLLATE "C" NOT NULL,
        message_version bigint NOT NULL,
        message_count bigint NOT NULL,
        tool_call_version bigint NOT NULL,
        tool_call_count bigint NOT NULL,
        updated_at bigint NOT NULL,
        last_offset bigint NOT NULL,
        ops bigint[] NOT NULL,
        op_times bigint[] NOT NULL,
        template_id text COLLATE "C",
        created_at bigint""",
    "infos": """
        agent_id text COLLATE "C" NOT NULL,
        metadata jsonb NOT NULL,
        digest bytea NOT NULL,
        body json NOT NULL""",
    "messages": """
        agent_id text COLLATE "C" NOT NULL,
        position bigint NOT NULL,
        created_at bigint NOT NULL,
        role text COLLATE "C" NOT NULL,
        content_types text COLLATE "C" NOT NULL,
        digest bytea NOT NULL,
        body json NOT NULL""",
    "tool_calls": """
        agent_id text COLLATE "C" NOT NULL,
        position bigint NOT NULL,
        created_at bigint NOT NULL,
        call_id text COLLATE "C" NOT NULL,
        tool_name text COLLATE "C" NOT NULL,
        state text COLLATE "C" NOT NULL,
        is_error boolean NOT NULL,
        has_approval boolean NOT NULL,
        digest bytea NOT NULL,
        body json NOT NULL""",
    "docs": """
        agent_id text COLLATE "C" NOT NULL,
        kind text COLLATE "C" NOT NULL,
        key_hash bytea NOT NULL,
        key text COLLATE "C" NOT NULL,
        time bigint NOT NULL,
        digest bytea NOT NULL,
        body json NOT NULL""",
    "events": """
        agent_id text COLLATE "C" NOT NULL,
        "offset" bigint NOT NULL,
        seq bigint NOT NULL,
        channel text COLLATE "C" NOT NULL,
        digest bytea NOT NULL,
        body json NOT NULL""",
    "leases": """
        agent_id text COLLATE "C" NOT NULL,
        owner text COLLATE "C" NOT NULL,
        token bigint NOT NULL,
        expires timestamptz NOT NULL""",
    "followers": """
        agent_id text COLLATE "C" NOT NULL,
        expires timestamptz NOT NULL""",
}
_INDEXES: Final[tuple[tuple[str, str, str], ...]] = (
    ("agents", "created", "(created_at, agent_id) WHERE created_at IS NOT NULL"),
    ("agents", "updated", "(updated_at, agent_id) WHERE created_at IS NOT NULL"),
    ("agents", "template", "(template_id, created_at, agent_id) WHERE created_at IS NOT NULL"),
    ("infos", "metadata", "USING gin (metadata jsonb_path_ops)"),
    ("messages", "agent_created", "(agent_id, created_at, position)"),
    ("messages", "created", "(created_at, agent_id, position)"),
    ("tool_calls", "agent_created", "(agent_id, created_at, position)"),
    ("tool_calls", "created", "(created_at, agent_id, position)"),
    ("tool_calls", "name", "(tool_name, created_at, agent_id, position)"),
    ("tool_calls", "errors", "(created_at, agent_id, position) WHERE is_error"),
    ("tool_calls", "call", "(agent_id, call_id, position)"),
)
_UNIQUE: Final[tuple[tuple[str, str, str], ...]] = (("events", "seq", "(agent_id, seq, digest)"),)


class Tables:
    """The names of the tables, quoted, as attributes: ``tables.messages``.

    Attributes:
        home: the schema that they stand in, or are made in, once :func:`migrate` has seen it.
    """

    def __init__(self, options: PostgresOptions) -> None:
        self.schema = options.schema
        self.home = options.schema or ""
        self.prefix = options.table_prefix
        for name in (*TABLES, "meta"):
            setattr(self, name, self.qualified(name))

    agents: str
    infos: str
    messages: str
    tool_calls: str
    docs: str
    events: str
    leases: str
    followers: str
    meta: str

    def qualified(self, name: str) -> str:
        """The quoted name of a table, with its schema if one was given."""
        table = f'"{self.prefix}{name}"'
        return table if self.schema is None else f'"{self.schema}".{table}'

    @property
    def identity(self) -> str:
        """What tells these tables from others in the same database."""
        return f"{self.home}.{self.prefix}"


def _first(tables: Tables, partitions: int) -> list[str]:
    made = []
    for name, columns in _COLUMNS.items():
        by = " PARTITION BY HASH (agent_id)" if partitions else ""
        made.append(
            f"CREATE TABLE {tables.qualified(name)} ({columns},\n        PRIMARY KEY ({_KEYS[name]})\n    ){by}"
        )
        for part in range(partitions):
            made.append(
                f"CREATE TABLE {tables.qualified(f'{name}_{part}')} PARTITION OF {tables.qualified(name)}"
                f" FOR VALUES WITH (MODULUS {partitions}, REMAINDER {part})"
            )
    if not partitions:
        made.append(f"ALTER TABLE {tables.agents} SET (fillfactor = 70)")  # a head is updated where it stands
    for kind, indexes in (("UNIQUE INDEX", _UNIQUE), ("INDEX", _INDEXES)):
        for table, name, what in indexes:
            made.append(f'CREATE {kind} "{tables.prefix}{table}_{name}" ON {tables.qualified(table)} {what}')
    return made


MIGRATIONS: Final = (_first,)
"""What leads from each version to the next. Append to it; never change what was released."""

SCHEMA_VERSION: Final = len(MIGRATIONS)


def statements(tables: Tables, since: int = 0, partitions: int = 0) -> list[str]:
    """The statements that lead from version *since* to this one; *partitions* is how many of each table to make."""
    found = [statement for migration in MIGRATIONS[since:] for statement in migration(tables, partitions)]
    if not found:
        return []
    schema = [_make_schema(tables)] if tables.schema is not None and not since else []
    meta = f"CREATE TABLE IF NOT EXISTS {tables.meta} (key text NOT NULL PRIMARY KEY, value bigint NOT NULL)"
    version = (
        f"INSERT INTO {tables.meta} VALUES ('schema_version', {len(MIGRATIONS)})"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    )
    return [*schema, meta, *found, version]


def _make_schema(tables: Tables) -> str:
    return f'CREATE SCHEMA IF NOT EXISTS "{tables.schema}"'


def script(options: PostgresOptions) -> str:
    """The tables of a new database as SQL, for those who may not let a program make them."""
    lines = "".join(f"{statement};\n" for statement in statements(Tables(options.resolved())))
    return f"BEGIN;\n{lines}COMMIT;\n"


async def version_of(con: Any, tables: Tables) -> int:
    """The version of the tables, 0 when there are none."""
    # A statement with a table in it: without one, a session may not know yet of tables that another has just made.
    if await con.fetchval("SELECT to_regclass($1)::text FROM pg_catalog.pg_class LIMIT 1", tables.meta) is None:
        return 0
    return int(await con.fetchval(f"SELECT value FROM {tables.meta} WHERE key = 'schema_version'") or 0)


async def _home(con: Any, tables: Tables) -> str:
    """The schema of the tables; without one in the options it is where the search path leads."""
    if tables.schema is not None:
        return tables.schema
    found = await con.fetchval(
        "SELECT coalesce((SELECT n.nspname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n"
        " ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)), current_schema())::text",
        tables.meta,
    )
    return found or ""


async def migrate(con: Any, tables: Tables, place: str, *, create: bool) -> None:
    """Bring the tables to this version, in one transaction; many may try at once (OPS-7, OPS-8).

    Raises:
        SchemaVersionError: the tables are of a newer version; nothing is changed.
        StoreUnavailableError: something is to be made, and *create* forbids it.
    """
    async with con.transaction(isolation="read_committed"):
        tables.home = await _home(con, tables)
        version = await version_of(con, tables)
    if version == len(MIGRATIONS):
        return
    _see_newer(version, place)
    if not create:
        what = "there are no tables of kode" if not version else f"the tables are of version {version}"
        raise StoreUnavailableError(f"{place}: {what} and create is off; {_REMEDY}")
    async with con.transaction(isolation="read_committed"):
        await con.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 20))", f"kode schema {tables.identity}")
        version = await version_of(con, tables)
        _see_newer(version, place)
        schemas = "SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname = $1"
        has_schema = await con.fetchval(schemas, tables.schema)
        for statement in statements(tables, version):
            # Even with IF NOT EXISTS it asks for the right to make schemas.
            if not (has_schema and statement == _make_schema(tables)):
                await con.execute(statement)


_REMEDY: Final = "run what 'kode schema postgres --print' prints, as a user who may create tables"


def _see_newer(version: int, place: str) -> None:
    if version > len(MIGRATIONS):
        raise SchemaVersionError(
            f"{place} has schema {version}, and this kode-postgres knows up to {len(MIGRATIONS)}: "
            "run: pip install --upgrade kode-postgres"
        )


def table_names(tables: Tables) -> Sequence[str]:
    """All tables, with their names as SQL has them."""
    return [tables.qualified(name) for name in (*TABLES, "meta")]
