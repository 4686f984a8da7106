"""The tables, and their migrations from older versions.

Bodies are JSON text that PostgreSQL checks and never changes; the columns next to them serve the queries. Every unique
constraint begins with ``agent_id``, so that the tables can be partitioned or distributed by it. Texts are compared by
code point, and no indexed value is longer than an index can hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from kode_core.batch import DocKind
from kode_core.errors import InvalidArgumentError
from kode_postgres.options import PostgresOptions

__all__ = ["KEPT_OPS", "MIGRATIONS", "SCHEMA_VERSION", "Step", "Tables", "script", "statements", "steps"]

KEPT_OPS: Final = 16
"""How many ids of the last writes a head keeps, to recognise a repeated write."""

DEFAULT_PREFIX: Final = "kode_"

TABLES: Final = ("agents", "infos", "messages", "tool_calls", "docs", "doc_terms", "events", "leases", "followers")
_SINCE: Final = {"doc_terms": 4}
"""The versions that made the tables which the first one did not make."""
OF_TEXTS: Final = ("texts", "text_index")
"""Optional tables: the index of the texts of messages."""
OF_AN_AGENT: Final = ("infos", "messages", "tool_calls", "docs", "doc_terms", "events")
"""The tables that a delete empties.

The head stays behind, empty: it alone knows the last offset, and the earlier writes that may be repeated. To remove it,
all heads that are created later would have to begin beyond its offset. Open stores of an older version do not know
that, so a trigger would have to ensure it; the trigger would have to hold a lock until its commit, or another session
could create, fill, delete and remove the agent between the trigger and its row. And a write that is repeated after the
removal would bring the agent back. 380 bytes for each deleted agent are cheaper than a rule that every store must keep;
the guide has a statement for stores whose ids are never used again.

A head is not split in two to allow heap-only updates: the time and the count of messages, which session queries use,
change with each message, so a row with only these would be a second row to write, with the same indexes.
"""

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
    # An agent's head, created with the first record; created_at is NULL until info is saved.
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

# Rows with the most common values are found soon, in every store, by reading in the order of time. An index of the
# other values is small, and costs the writers of most rows nothing. Queries repeat these conditions in full, so that a
# generic plan, which does not know the requested value, can use the index too.
COMMON_ROLES: Final = ("user", "assistant")
COMMON_TYPES: Final = ("text", "tool_use", "tool_result", "reasoning")
COMMON_STATE: Final = "COMPLETED"
RARE_ROLE: Final = f"role <> ALL ('{{{','.join(COMMON_ROLES)}}}')"
RARE_TYPES: Final = rf"content_types !~ '^\n(({'|'.join(COMMON_TYPES)})\n)*$'"
RARE_STATE: Final = f"state <> '{COMMON_STATE}'"
KIND_LENGTH: Final = 200
KIND: Final = f"left(content_types, {KIND_LENGTH})"
"""A prefix of a message's types, as the index has it: it cannot hold all of them."""
UNNAMED: Final = "created_at IS NULL AND (message_version <> 0 OR tool_call_version <> 0)"
"""True for the head of an agent that has lists and no info."""
EARLY: Final = "created_at = greatest(created_at, updated_at) AND created_at <> updated_at"
"""True for the head of an agent that was updated before it was created, by clocks that differ.

The planner correctly takes it for rare; for ``created_at > updated_at`` it would expect a third of the rows.
"""
OWN_DOCS: Final = f"kind = '{DocKind.DOCUMENTS.value}'"
"""True for a document of the caller's own: only their keys are short enough for an index, and read in order."""

_INDEXES_2: Final[tuple[tuple[str, str, str], ...]] = (
    ("agents", "counts", "(message_count, agent_id) INCLUDE (tool_call_count) WHERE created_at IS NOT NULL"),
    ("agents", "unnamed", f"(agent_id) WHERE {UNNAMED}"),
    ("agents", "early", f"(created_at, agent_id) WHERE {EARLY}"),
    ("messages", "roles", f"(role, created_at, agent_id, position) WHERE {RARE_ROLE}"),
    ("messages", "types", f"({KIND}, role, created_at, agent_id, position) WHERE {RARE_TYPES}"),
    ("tool_calls", "states", f"(state, created_at, agent_id, position) WHERE {RARE_STATE}"),
    ("tool_calls", "approvals", "(created_at, agent_id, position) WHERE has_approval"),
)

_INDEXES_3: Final[tuple[tuple[str, str, str], ...]] = (("docs", "keys", f"(agent_id, key) WHERE {OWN_DOCS}"),)

_TERMS: Final = """
        agent_id text COLLATE "C" NOT NULL,
        key text COLLATE "C" NOT NULL,
        term text COLLATE "C" NOT NULL,
        key_hash bytea NOT NULL,
        digest bytea NOT NULL"""
"""The terms of documents. A row counts while the document has its digest.

A store of an older version does not remove the terms of a document that it replaces or removes, and neither does a
statement that waited for the agent's head, and sees the terms from before.
"""
_INDEXES_4: Final[tuple[tuple[str, str, str], ...]] = (("doc_terms", "found", "(term, agent_id, key)"),)


class Tables:
    """The names of the tables, quoted, as attributes: ``tables.messages``.

    Attributes:
        home: the schema that contains the tables, or will contain them, once :func:`migrate` has found it.
    """

    def __init__(self, options: PostgresOptions) -> None:
        self.schema = options.schema
        self.home = options.schema or ""
        self.prefix = options.table_prefix
        for name in (*TABLES, "meta", *OF_TEXTS):
            setattr(self, name, self.qualified(name))

    agents: str
    infos: str
    messages: str
    tool_calls: str
    docs: str
    doc_terms: str
    events: str
    leases: str
    followers: str
    meta: str
    texts: str
    text_index: str

    def qualified(self, name: str) -> str:
        """The quoted name of a table, with its schema if one was given."""
        table = f'"{self.prefix}{name}"'
        return table if self.schema is None else f'"{self.schema}".{table}'

    @property
    def identity(self) -> str:
        """An identifier of these tables among others in the same database."""
        return f"{self.home}.{self.prefix}"


class Step(NamedTuple):
    """A part of a migration, run as one transaction.

    Attributes:
        makes: the index that the step makes, whose existence shows that it was already done. None for other steps,
            which are done in the transaction that notes the version, after all others of their migration.
    """

    statements: Sequence[str]
    makes: str | None = None


def _first(tables: Tables, partitions: int) -> list[Step]:
    statements = [] if tables.schema is None else [make_schema(tables)]
    statements.append(
        f"CREATE TABLE IF NOT EXISTS {tables.meta} (key text NOT NULL PRIMARY KEY, value bigint NOT NULL)"
    )
    for name, columns in _COLUMNS.items():
        by = " PARTITION BY HASH (agent_id)" if partitions else ""
        statements.append(
            f"CREATE TABLE {tables.qualified(name)} ({columns},\n        PRIMARY KEY ({_KEYS[name]})\n    ){by}"
        )
        for part in range(partitions):
            statements.append(
                f"CREATE TABLE {tables.qualified(f'{name}_{part}')} PARTITION OF {tables.qualified(name)}"
                f" FOR VALUES WITH (MODULUS {partitions}, REMAINDER {part})"
            )
    if not partitions:
        # so that a head can be updated in place
        statements.append(f"ALTER TABLE {tables.agents} SET (fillfactor = 70)")
    for kind, indexes in (("UNIQUE INDEX", _UNIQUE), ("INDEX", _INDEXES)):
        for table, name, what in indexes:
            statements.append(f'CREATE {kind} "{tables.prefix}{table}_{name}" ON {tables.qualified(table)} {what}')
    return [Step(statements)]


def _index_steps(tables: Tables, indexes: Sequence[tuple[str, str, str]]) -> list[Step]:
    """Indexes only: an open store of an older version continues to work, and each step may be interrupted."""
    index_steps = []
    for table, name, what in indexes:
        index = f'"{tables.prefix}{table}_{name}"'
        statement = f"CREATE INDEX IF NOT EXISTS {index} ON {tables.qualified(table)} {what}"
        index_steps.append(Step([statement], index if tables.schema is None else f'"{tables.schema}".{index}'))
    return index_steps


def _second(tables: Tables, partitions: int) -> list[Step]:
    return _index_steps(tables, _INDEXES_2)


def _third(tables: Tables, partitions: int) -> list[Step]:
    return _index_steps(tables, _INDEXES_3)


def _fourth(tables: Tables, partitions: int) -> list[Step]:
    name, key = tables.qualified("doc_terms"), f'"{tables.prefix}doc_terms_key"'
    by = " PARTITION BY HASH (agent_id)" if partitions else ""
    made = [f"CREATE TABLE {name} ({_TERMS},\n        CONSTRAINT {key} PRIMARY KEY (agent_id, key, term)\n    ){by}"]
    for part in range(partitions):
        made.append(
            f"CREATE TABLE {tables.qualified(f'doc_terms_{part}')} PARTITION OF {name}"
            f" FOR VALUES WITH (MODULUS {partitions}, REMAINDER {part})"
        )
    step = Step(made, key if tables.schema is None else f'"{tables.schema}".{key}')
    return [step, *_index_steps(tables, _INDEXES_4)]


def _fifth(tables: Tables, partitions: int) -> list[Step]:
    """More values of metadata in the statistics: otherwise a rare one may be taken for a common one.

    With the default of 100, a search for a rare user had the plan for a common one in 5 of 60 samples of a table; with
    300 and more in none of 480.
    """
    infos = tables.qualified("infos")
    return [Step([f"ALTER TABLE {infos} ALTER COLUMN metadata SET STATISTICS 1000", f"ANALYZE {infos} (metadata)"])]


MIGRATIONS: Final = (_first, _second, _third, _fourth, _fifth)
"""The migrations from each version to the next. Append to it; never change a released one."""

SCHEMA_VERSION: Final = len(MIGRATIONS)


def make_schema(tables: Tables) -> str:
    """The statement that makes the schema of the tables."""
    return f'CREATE SCHEMA IF NOT EXISTS "{tables.schema}"'


def steps(tables: Tables, since: int, partitions: int = 0) -> list[Step]:
    """The steps from version *since* to this one; *partitions* is the number of partitions of each new table.

    New tables are created in one step. For existing tables, others may write between two steps.
    """
    all_steps: list[Step] = []
    for version, migration in enumerate(MIGRATIONS[since:], since + 1):
        known = (
            f"INSERT INTO {tables.meta} VALUES ('schema_version', {version})"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        )
        made = migration(tables, partitions)
        all_steps += [step for step in made if step.makes is not None]
        last = [statement for step in made if step.makes is None for statement in step.statements]
        all_steps.append(Step([*last, known]))
    return all_steps if since else [Step([statement for step in all_steps for statement in step.statements])]


def statements(tables: Tables, since: int = 0, partitions: int = 0) -> list[str]:
    """The statements of these steps."""
    return [statement for step in steps(tables, since, partitions) for statement in step.statements]


def script(options: PostgresOptions, since: int = 0) -> str:
    """The SQL that leads from version *since* to this one, to be run by hand.

    Raises:
        InvalidArgumentError: that version does not exist.
    """
    if not 0 <= since <= len(MIGRATIONS):
        raise InvalidArgumentError(
            f"the versions of the schema are 0, which has no tables, to {len(MIGRATIONS)}; there is no version {since}"
        )
    found = [step.statements for step in steps(Tables(options.resolved()), since)]
    return "".join(f"BEGIN;\n{''.join(f'{one};{chr(10)}' for one in several)}COMMIT;\n" for several in found)


def table_names(tables: Tables, version: int = SCHEMA_VERSION, *, more: Sequence[str] = ()) -> Sequence[str]:
    """All tables of a version, by their names in SQL; *more* are the optional ones that there are."""
    names = (name for name in TABLES if version >= _SINCE.get(name, 1))
    return [tables.qualified(name) for name in (*names, "meta", *more)]
