"""The statements that create the tables, version by version.

Bodies are JSON text that SQLite never parses; the columns next to them serve the queries. All names begin with
``kode_``, so that the tables can share a database with other tables. Keys are stored unchanged, so that they can be
read in order.
"""

from __future__ import annotations

from typing import Final

__all__ = ["COMMON_TYPES", "COUNT_ALL", "MIGRATIONS", "SCHEMA_VERSION", "Step"]

Step = tuple[str, ...]
"""Statements that run in one transaction."""

_FIRST: Final[Step] = (
    # An agent's head: created with its first list or info; created_at and template_id are NULL until info is saved.
    """CREATE TABLE kode_agents (
        agent_id TEXT NOT NULL PRIMARY KEY,
        message_version INTEGER NOT NULL,
        message_count INTEGER NOT NULL,
        tool_call_version INTEGER NOT NULL,
        tool_call_count INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        last_op TEXT NOT NULL,
        template_id TEXT,
        created_at INTEGER
    ) WITHOUT ROWID""",
    "CREATE INDEX kode_agents_created ON kode_agents (created_at, agent_id) WHERE created_at IS NOT NULL",
    "CREATE INDEX kode_agents_updated ON kode_agents (updated_at, agent_id) WHERE created_at IS NOT NULL",
    """CREATE INDEX kode_agents_template ON kode_agents (template_id, created_at, agent_id)
        WHERE created_at IS NOT NULL""",
    """CREATE TABLE kode_infos (
        agent_id TEXT NOT NULL PRIMARY KEY,
        body TEXT NOT NULL,
        digest BLOB NOT NULL
    )""",
    """CREATE TABLE kode_metadata (
        agent_id TEXT NOT NULL,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (agent_id, key)
    ) WITHOUT ROWID""",
    "CREATE INDEX kode_metadata_value ON kode_metadata (key, value, agent_id)",
    """CREATE TABLE kode_messages (
        agent_id TEXT NOT NULL,
        position INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        role TEXT NOT NULL,
        content_types TEXT NOT NULL,
        body TEXT NOT NULL,
        digest BLOB NOT NULL
    )""",
    "CREATE UNIQUE INDEX kode_messages_position ON kode_messages (agent_id, position)",
    "CREATE INDEX kode_messages_agent_created ON kode_messages (agent_id, created_at, position)",
    "CREATE INDEX kode_messages_created ON kode_messages (created_at, agent_id, position)",
    """CREATE TABLE kode_tool_calls (
        agent_id TEXT NOT NULL,
        position INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        call_id TEXT NOT NULL,
        tool_name TEXT NOT NULL,
        state TEXT NOT NULL,
        is_error INTEGER NOT NULL,
        has_approval INTEGER NOT NULL,
        body TEXT NOT NULL,
        digest BLOB NOT NULL
    )""",
    "CREATE UNIQUE INDEX kode_tool_calls_position ON kode_tool_calls (agent_id, position)",
    "CREATE INDEX kode_tool_calls_agent_created ON kode_tool_calls (agent_id, created_at, position)",
    "CREATE INDEX kode_tool_calls_created ON kode_tool_calls (created_at, agent_id, position)",
    "CREATE INDEX kode_tool_calls_name ON kode_tool_calls (tool_name, created_at, agent_id, position)",
    "CREATE INDEX kode_tool_calls_errors ON kode_tool_calls (created_at, agent_id, position) WHERE is_error",
    "CREATE INDEX kode_tool_calls_stats ON kode_tool_calls (agent_id, tool_name, state)",
    "CREATE INDEX kode_tool_calls_call ON kode_tool_calls (agent_id, call_id, position)",
    """CREATE TABLE kode_docs (
        agent_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        time INTEGER NOT NULL,
        body TEXT NOT NULL,
        digest BLOB NOT NULL
    )""",
    "CREATE UNIQUE INDEX kode_docs_key ON kode_docs (agent_id, kind, key)",
    # One sequence for all agents: an append touches the end of the table and one index, whatever its agent.
    """CREATE TABLE kode_events (
        "offset" INTEGER PRIMARY KEY AUTOINCREMENT,
        agent_id TEXT NOT NULL,
        seq INTEGER NOT NULL,
        channel TEXT NOT NULL,
        body TEXT NOT NULL,
        digest BLOB NOT NULL
    )""",
    "CREATE UNIQUE INDEX kode_events_seq ON kode_events (agent_id, seq, digest)",
    """CREATE TABLE kode_leases (
        agent_id TEXT NOT NULL PRIMARY KEY,
        owner TEXT NOT NULL,
        token INTEGER NOT NULL,
        boot TEXT NOT NULL,
        expires INTEGER NOT NULL
    ) WITHOUT ROWID""",
)


# --- Version 2: a page costs what it holds, however large the store ---------------------------------------------------


def _counted(row: str, column: str) -> str:
    """A count of a head for the totals: a damaged one must not turn a sum into a float."""
    return (
        f"CASE WHEN typeof({row}.{column}) = 'integer' AND {row}.{column} BETWEEN 0 AND 1099511627775"
        f" THEN {row}.{column} ELSE 0 END"
    )


def _sum(sign: str, row: str) -> str:
    return (
        f"agents = agents {sign} ({row}.created_at IS NOT NULL),"
        f" messages = messages {sign} {_counted(row, 'message_count')},"
        f" tool_calls = tool_calls {sign} {_counted(row, 'tool_call_count')}"
    )


COUNT_ALL: Final = (
    "SELECT count(created_at), coalesce(sum({messages}), 0), coalesce(sum({tool_calls}), 0) FROM kode_agents a"
).format(messages=_counted("a", "message_count"), tool_calls=_counted("a", "tool_call_count"))

_TOTALS: Final[Step] = (
    """CREATE TABLE kode_totals (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        agents INTEGER NOT NULL,
        messages INTEGER NOT NULL,
        tool_calls INTEGER NOT NULL
    )""",
    f"""CREATE TRIGGER kode_totals_insert AFTER INSERT ON kode_agents BEGIN
        UPDATE kode_totals SET {_sum("+", "NEW")};
    END""",
    f"""CREATE TRIGGER kode_totals_delete AFTER DELETE ON kode_agents BEGIN
        UPDATE kode_totals SET {_sum("-", "OLD")};
    END""",
    f"""CREATE TRIGGER kode_totals_update AFTER UPDATE OF created_at, message_count, tool_call_count ON kode_agents
        WHEN OLD.message_count IS NOT NEW.message_count OR OLD.tool_call_count IS NOT NEW.tool_call_count
            OR (OLD.created_at IS NULL) <> (NEW.created_at IS NULL)
    BEGIN
        UPDATE kode_totals SET
            agents = agents + (NEW.created_at IS NOT NULL) - (OLD.created_at IS NOT NULL),
            messages = messages + {_counted("NEW", "message_count")} - {_counted("OLD", "message_count")},
            tool_calls = tool_calls + {_counted("NEW", "tool_call_count")} - {_counted("OLD", "tool_call_count")};
    END""",
    f"INSERT INTO kode_totals (id, agents, messages, tool_calls) SELECT 1, t.* FROM ({COUNT_ALL}) t",
)

# The agents with a value, in the order of their age. Triggers copy the age, so that writers of the version before also
# do it.
_METADATA: Final[Step] = (
    "ALTER TABLE kode_metadata ADD COLUMN created_at INTEGER",
    """CREATE TRIGGER kode_metadata_insert AFTER INSERT ON kode_metadata BEGIN
        UPDATE kode_metadata SET created_at = (SELECT created_at FROM kode_agents WHERE agent_id = NEW.agent_id)
            WHERE agent_id = NEW.agent_id AND key = NEW.key;
    END""",
    """CREATE TRIGGER kode_metadata_update AFTER UPDATE OF created_at ON kode_agents
        WHEN OLD.created_at IS NOT NEW.created_at
    BEGIN
        UPDATE kode_metadata SET created_at = NEW.created_at WHERE agent_id = NEW.agent_id;
    END""",
    """UPDATE kode_metadata SET created_at =
        (SELECT a.created_at FROM kode_agents a WHERE a.agent_id = kode_metadata.agent_id)""",
    "DROP INDEX kode_metadata_value",
    "CREATE INDEX kode_metadata_created ON kode_metadata (key, value, created_at, agent_id)",
)

COMMON_TYPES: Final = ("text", "tool_use", "tool_result")
"""Types of content that most messages have: they are found by reading messages, newest or oldest first."""

_COMMON_CONTENTS: Final = ("\ntext\n", "\ntool_result\n", "\ntext\ntool_use\n", "\ntool_use\n", "\n")


def _is_rare(row: str) -> str:
    """The condition under which a message's types are searched; one or two comparisons rule most messages out."""
    others = " AND ".join(f"{row}.content_types <> '{types}'" for types in _COMMON_CONTENTS)
    return f"typeof({row}.content_types) = 'text' AND {others}"


def _types(row: str) -> str:
    """A message's types as a JSON array: each is enclosed in newlines, and contains none."""
    within = f"substr({row}.content_types, 2, length({row}.content_types) - 2)"
    quoted = rf"""replace(replace(json_quote({within}), '\\', '\u005c'), '\n', '","')"""
    return f"json_each(CASE WHEN {_is_rare(row)} THEN '[' || {quoted} || ']' ELSE '[]' END)"


_RARE_TYPES: Final = f"j.value NOT IN ({', '.join(repr(name) for name in COMMON_TYPES)})"
_ADD_TYPES: Final = (
    "INSERT INTO kode_message_types (type, created_at, agent_id, position)"
    f" SELECT DISTINCT j.value, NEW.created_at, NEW.agent_id, NEW.position FROM {_types('NEW')} j WHERE {_RARE_TYPES}"
)
_REMOVE_TYPES: Final = (
    f"DELETE FROM kode_message_types WHERE type IN (SELECT j.value FROM {_types('OLD')} j)"
    " AND created_at = OLD.created_at AND agent_id = OLD.agent_id AND position = OLD.position"
)

# An index of messages by their types of content; a message can have several entries.
_MESSAGE_TYPES: Final[Step] = (
    """CREATE TABLE kode_message_types (
        type TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        agent_id TEXT NOT NULL,
        position INTEGER NOT NULL,
        PRIMARY KEY (type, created_at, agent_id, position)
    ) WITHOUT ROWID""",
    f"""CREATE TRIGGER kode_message_types_insert AFTER INSERT ON kode_messages WHEN {_is_rare("NEW")} BEGIN
        {_ADD_TYPES};
    END""",
    f"""CREATE TRIGGER kode_message_types_delete AFTER DELETE ON kode_messages WHEN {_is_rare("OLD")} BEGIN
        {_REMOVE_TYPES};
    END""",
    f"""CREATE TRIGGER kode_message_types_update AFTER UPDATE OF agent_id, position, created_at, content_types
        ON kode_messages WHEN ({_is_rare("OLD")}) OR ({_is_rare("NEW")})
    BEGIN
        {_REMOVE_TYPES};
        {_ADD_TYPES};
    END""",
    f"""INSERT INTO kode_message_types (type, created_at, agent_id, position)
        SELECT DISTINCT j.value, m.created_at, m.agent_id, m.position FROM kode_messages m, {_types("m")} j
            WHERE {_RARE_TYPES}""",
)

_SECOND: Final[tuple[Step, ...]] = (
    _TOTALS,
    ("CREATE INDEX kode_agents_count ON kode_agents (message_count, agent_id) WHERE created_at IS NOT NULL",),
    _METADATA,
    (
        """CREATE INDEX kode_messages_role ON kode_messages (role, created_at, agent_id, position)
            WHERE role <> 'user' AND role <> 'assistant'""",
    ),
    _MESSAGE_TYPES,
    (
        """CREATE INDEX kode_tool_calls_state ON kode_tool_calls (state, created_at, agent_id, position)
            WHERE state <> 'COMPLETED'""",
    ),
    ("CREATE INDEX kode_tool_calls_approval ON kode_tool_calls (created_at, agent_id, position) WHERE has_approval",),
    # One index instead of two: for an agent's calls in the order of time, and for its statistics.
    (
        "CREATE INDEX kode_tool_calls_agent ON kode_tool_calls (agent_id, created_at, position, tool_name, state)",
        "DROP INDEX kode_tool_calls_agent_created",
        "DROP INDEX kode_tool_calls_stats",
    ),
    # An entry of an index ends with the row's number, which is the offset.
    ("CREATE INDEX kode_events_agent ON kode_events (agent_id)",),
    ("CREATE INDEX kode_events_channel ON kode_events (agent_id, channel) WHERE channel <> 'progress'",),
)


# --- Version 3: documents are found by their terms --------------------------------------------------------------------

# A put or a removal of a document removes its terms, and a put then writes its own. Triggers remove them, so that
# writers of the version before also do it.
_REMOVE_TERMS: Final = "DELETE FROM kode_doc_terms WHERE agent_id = OLD.agent_id AND key = OLD.key"
_TERMS: Final[Step] = (
    """CREATE TABLE kode_doc_terms (
        agent_id TEXT NOT NULL,
        key TEXT NOT NULL,
        term TEXT NOT NULL,
        PRIMARY KEY (agent_id, key, term)
    ) WITHOUT ROWID""",
    "CREATE INDEX kode_doc_terms_term ON kode_doc_terms (term, agent_id, key)",
    f"""CREATE TRIGGER kode_doc_terms_delete AFTER DELETE ON kode_docs WHEN OLD.kind = 'documents' BEGIN
        {_REMOVE_TERMS};
    END""",
    f"""CREATE TRIGGER kode_doc_terms_update AFTER UPDATE OF digest ON kode_docs WHEN OLD.kind = 'documents' BEGIN
        {_REMOVE_TERMS};
    END""",
)

MIGRATIONS: Final[tuple[tuple[Step, ...], ...]] = ((_FIRST,), _SECOND, (_TERMS,))
"""The steps that lead from each version to the next. Append to it; never change a released step.

A program of an older version may still write during and after the steps of a newer one: triggers maintain the derived
data, and an index that a statement names stays.
"""

SCHEMA_VERSION: Final = len(MIGRATIONS)
