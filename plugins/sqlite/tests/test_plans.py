"""Costs of queries on SQLite: steps of its machine, counted on a large store, and the indexes that plans name."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from kode_sqlite import groups, migrations, overview, queries, reads
from kode_sqlite.ways import Merged, chosen
from msgspec.structs import replace

from kode_core.authoring.matching import is_wanted
from kode_core.batch import EventRange, Found
from kode_core.query import (
    Grouping,
    RowQuery,
    SessionQuery,
    Within,
    message_query,
    session_query,
    tool_call_query,
    values_of,
)
from plugins.sqlite.tests import large
from plugins.sqlite.tests.plans import counted, plan

PAGE: Final = 100
A_PAGE: Final = 80 * PAGE
"""Steps for a page that one index finds in its order: some dozens for a row."""
A_CHOICE: Final = 10 * A_PAGE
"""Steps for a page that several indexes could find: each is tried on a few rows."""


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A store of 200,000 rows and more."""
    with closing(sqlite3.connect(tmp_path_factory.mktemp("large") / "agents.db", isolation_level="DEFERRED")) as made:
        made.execute("PRAGMA synchronous = OFF")
        for statement in migrations.sql():
            made.execute(statement)
        made.commit()
        large.fill(made)
        made.isolation_level = None
        yield made


def plan_of(db: sqlite3.Connection, found: tuple[str, list[Any]]) -> str:
    return plan(db, *found)


HALF: Final = large.EPOCH + large.AGENTS // 2
NONE: Final = [f"none-{n}" for n in range(100)]


@pytest.mark.parametrize(
    ("filters", "index", "most"),
    [
        ({}, "kode_agents_created", A_PAGE),
        ({"order": "asc"}, "kode_agents_created", A_PAGE),
        ({"sort_by": "updated_at"}, "kode_agents_updated", A_PAGE),
        ({"sort_by": "message_count"}, "kode_agents_count", A_PAGE),
        ({"created_after": HALF, "created_before": HALF + 500}, "kode_agents_created", A_PAGE),
        ({"updated_before": HALF, "sort_by": "updated_at"}, "kode_agents_updated", A_PAGE),
        ({"template_id": "template-1"}, "kode_agents_template", A_PAGE),
        ({"template_id": "none"}, "kode_agents_template", A_PAGE),
        ({"template_id": "template-1", "sort_by": "updated_at"}, "kode_agents_updated", A_CHOICE),
        ({"template_id": "none", "sort_by": "updated_at"}, "kode_agents_template", A_CHOICE),
        ({"template_id": "template-1", "sort_by": "message_count"}, "kode_agents_count", A_CHOICE),
        ({"user_id": "u-7"}, "kode_metadata_created", A_PAGE),
        ({"user_id": "none"}, "kode_metadata_created", A_PAGE),
        ({"metadata": {"plan": "gold"}}, "kode_metadata_created", A_PAGE),
        ({"metadata": {"plan": "gold"}, "order": "asc"}, "kode_metadata_created", A_PAGE),
        ({"metadata": {"campaign": "first"}}, "kode_metadata_created", A_PAGE),
        ({"metadata": {"plan": "gold"}, "created_before": HALF}, "kode_metadata_created", A_PAGE),
        ({"metadata": {"plan": "gold"}, "sort_by": "updated_at"}, "kode_agents_updated", A_CHOICE),
        ({"metadata": {"plan": "gold"}, "sort_by": "message_count"}, "kode_agents_count", A_CHOICE),
        ({"metadata": {"plan": "gold"}, "user_id": "u-7"}, "kode_metadata_created", A_PAGE),
        ({"metadata": {"plan": "gold"}, "template_id": "template-1"}, "kode_agents_template", A_CHOICE),
        ({"metadata": {"plan": "gold"}, "user_id": "u-7", "sort_by": "updated_at"}, "kode_metadata_created", A_CHOICE),
        ({"template_id": "template-1", "user_id": "u-6"}, "kode_metadata_created", A_CHOICE),
        ({"updated_before": HALF}, "kode_agents_created", A_CHOICE),
        ({"updated_before": large.EPOCH + 50}, "kode_agents_updated", A_CHOICE),
        ({"created_before": HALF, "updated_after": HALF + 5}, "kode_agents_created", A_CHOICE),
        ({"created_before": large.EPOCH + 50, "sort_by": "updated_at"}, "kode_agents_created", A_CHOICE),
        ({"updated_before": HALF, "sort_by": "message_count"}, "kode_agents_count", A_CHOICE),
        ({"template_id": ["template-1", "template-2", "none"]}, "kode_agents_template", 3 * A_PAGE),
        ({"template_id": NONE}, "kode_agents_template", A_CHOICE),
        ({"template_id": ["template-1", "none"], "order": "asc"}, "kode_agents_template", 2 * A_PAGE),
        ({"template_id": ["template-1", "none"], "sort_by": "updated_at"}, "kode_agents_updated", 3 * A_CHOICE),
        ({"user_id": ["u-7", "u-8", "u-9", "none"]}, "kode_metadata_created", 4 * A_PAGE),
        ({"user_id": NONE}, "kode_metadata_created", A_CHOICE),
        ({"user_id": ["u-7", "u-8"], "metadata": {"plan": "gold"}}, "kode_metadata_created", 3 * A_CHOICE),
        ({"user_id": ["u-7", "u-8"], "template_id": ["template-1", "none"]}, "kode_metadata_created", 3 * A_CHOICE),
        ({"agent_id": [large.name(n) for n in range(5000, 5100)]}, "PRIMARY KEY", A_PAGE),
        ({"agent_id": large.BUSY}, "PRIMARY KEY", A_PAGE),
        ({"agent_id": large.BUSY, "user_id": "u-7", "template_id": "template-2"}, "PRIMARY KEY", A_PAGE),
        ({"agent_id": Within("agt-0051")}, "PRIMARY KEY", A_CHOICE),
        ({"agent_id": Within("agt-00510"), "sort_by": "updated_at"}, "PRIMARY KEY", A_CHOICE),
        ({"agent_id": Within("agt-0051"), "template_id": "template-1"}, "kode_agents", A_CHOICE),
        ({"agent_id": Within("agt-00510")}, "PRIMARY KEY", A_CHOICE),
        ({"agent_id": Within("agt-")}, "kode_agents_created", A_CHOICE),
        ({"agent_id": Within("zzz")}, "PRIMARY KEY", A_CHOICE),
    ],
    ids=str,
)
def test_a_page_of_sessions(db: sqlite3.Connection, filters: Any, index: str, most: int) -> None:
    """A page of sessions costs what it holds, at the start and after a cursor, and is what a look at all would give."""
    asked = session_query(filters)
    query = replace(asked, limit=PAGE)
    pages = []
    for _ in range(3):
        with counted(db) as steps:
            page = queries.find_sessions(db, query)
        assert steps[0] <= most, steps
        pages += page
        if len(page) < PAGE:
            break
        query = replace(query, after=(getattr(page[-1], query.sort_by), page[-1].agent_id))
    assert [(row.agent_id, row.updated_at) for row in pages] == _all_sessions(db, asked)[: len(pages)]
    assert len(pages) in (3 * PAGE, len(_all_sessions(db, asked)))
    way = chosen(db, queries.session_ways(replace(asked, limit=PAGE)), PAGE)
    assert index in plan_of(db, queries.sessions_statement(asked, way))


def _all_sessions(db: sqlite3.Connection, query: SessionQuery) -> list[tuple[str, int]]:
    """The answer by reading everything."""
    rows = db.execute("SELECT agent_id, template_id, created_at, updated_at, message_count FROM kode_agents").fetchall()
    pairs = "SELECT agent_id FROM kode_metadata WHERE key = ? AND value = ?"
    has = [
        {found for value in values_of(wanted) for (found,) in db.execute(pairs, (key, value))}
        for key, wanted in query.metadata
    ]
    found = [
        (
            (created, updated, count)[("created_at", "updated_at", "message_count").index(query.sort_by)],
            agent_id,
            updated,
        )
        for agent_id, template, created, updated, count in rows
        if is_wanted(agent_id, query.agent_id)
        and (query.template_id is None or template in values_of(query.template_id))
        and all(agent_id in ids for ids in has)
        and created in query.created
        and updated in query.updated
    ]
    return [(agent_id, updated) for _, agent_id, updated in sorted(found, reverse=query.descending)]


M = message_query
T = tool_call_query


@pytest.mark.parametrize(
    ("query", "index", "most"),
    [
        (M({}), "kode_messages_created", A_PAGE),
        (M({"order": "asc"}), "kode_messages_created", A_PAGE),
        (M({"role": "user"}), "kode_messages_created", A_PAGE),
        (M({"role": "system"}), "kode_messages_role", A_PAGE),
        (M({"role": "system", "order": "asc"}), "kode_messages_role", A_PAGE),
        (M({"role": "none"}), "kode_messages_role", A_PAGE),
        (M({"content_type": "text"}), "kode_messages_created", A_PAGE),
        (M({"content_type": "video"}), "SEARCH t USING PRIMARY KEY (type=?", A_PAGE),
        (M({"content_type": "none"}), "SEARCH t USING PRIMARY KEY (type=?", A_PAGE),
        (M({"content_type": "video", "role": "system"}), "kode_messages_role", A_PAGE),
        (M({"content_type": "video", "role": "assistant"}), "SEARCH t USING PRIMARY KEY (type=?", A_PAGE),
        (M({"content_type": "video", "created_after": large.NEWEST}), "SEARCH t USING PRIMARY KEY (type=?", A_PAGE),
        (M({"created_after": large.NEWEST - 9, "role": "system"}), "kode_messages_role", A_PAGE),
        (M({"agent_id": large.BUSY}), "kode_messages_agent_created", A_PAGE),
        (M({"agent_id": large.BUSY, "order": "asc"}), "kode_messages_agent_created", A_PAGE),
        (M({"agent_id": large.BUSY, "role": "user", "content_type": "text"}), "kode_messages_agent_created", A_PAGE),
        (M({"agent_id": large.BUSY, "role": "system"}), "kode_messages_role", A_CHOICE),
        (M({"agent_id": large.BUSY, "content_type": "video"}), "SEARCH t USING PRIMARY KEY (type=?", A_CHOICE),
        (M({"role": ["system", "none"]}), "kode_messages_role", 2 * A_PAGE),
        (M({"role": NONE}), "kode_messages_role", A_CHOICE),
        (M({"role": ["system", "user"]}), "kode_messages_created", A_PAGE),
        (M({"content_type": ["video", "none"]}), "SEARCH t USING PRIMARY KEY (type=?", 2 * A_PAGE),
        (M({"content_type": NONE, "order": "asc"}), "SEARCH t USING PRIMARY KEY (type=?", A_CHOICE),
        (M({"content_type": ["text", "video"]}), "kode_messages_created", A_PAGE),
        (M({"agent_id": [large.BUSY, large.name(7)]}), "kode_messages_agent_created", 2 * A_PAGE),
        (M({"agent_id": [large.BUSY, *NONE[1:]], "order": "asc"}), "kode_messages_agent_created", A_CHOICE),
        (M({"agent_id": [large.BUSY, "none"], "role": ["system", "none"]}), "kode_messages_role", 3 * A_CHOICE),
        (T({"tool_name": ["tool-3", "tool-4", "none"]}), "kode_tool_calls_name", 3 * A_PAGE),
        (T({"tool_name": NONE}), "kode_tool_calls_name", A_CHOICE),
        (T({"tool_name": ["tool-3", "tool-4"], "order": "asc"}), "kode_tool_calls_name", 2 * A_PAGE),
        (T({"state": ["PENDING", "FAILED"]}), "kode_tool_calls_state", 2 * A_PAGE),
        (T({"state": ["PENDING", "COMPLETED"]}), "kode_tool_calls_created", A_PAGE),
        (T({"state": ["PENDING", "none"], "tool_name": ["tool-3", "none"]}), "kode_tool_calls_state", 3 * A_CHOICE),
        (T({}), "kode_tool_calls_created", A_PAGE),
        (T({"tool_name": "tool-3"}), "kode_tool_calls_name", A_PAGE),
        (T({"tool_name": "none"}), "kode_tool_calls_name", A_PAGE),
        (T({"state": "COMPLETED"}), "kode_tool_calls_created", A_PAGE),
        (T({"state": "PENDING"}), "kode_tool_calls_state", A_PAGE),
        (T({"state": "none", "order": "asc"}), "kode_tool_calls_state", A_PAGE),
        (T({"is_error": True}), "kode_tool_calls_errors", A_PAGE),
        (T({"is_error": False}), "kode_tool_calls_created", A_PAGE),
        (T({"has_approval": True}), "kode_tool_calls_approval", A_PAGE),
        (T({"has_approval": False}), "kode_tool_calls_created", A_PAGE),
        (T({"has_approval": True, "state": "PENDING"}), "kode_tool_calls_state", A_PAGE),
        (T({"tool_name": "tool-3", "state": "FAILED"}), "kode_tool_calls_state", A_CHOICE),
        (T({"tool_name": "tool-4", "is_error": True}), "kode_tool_calls_errors", A_CHOICE),
        (T({"state": "PENDING", "created_after": large.EPOCH + 4}), "kode_tool_calls_state", A_PAGE),
        (T({"agent_id": large.name(4), "state": "FAILED"}), "kode_tool_calls_agent", A_PAGE),
    ],
    ids=str,
)
def test_a_page_of_rows(db: sqlite3.Connection, query: RowQuery, index: str, most: int) -> None:
    """A page of messages or tool calls costs what it holds, read in the order of an index, and is right."""
    asked, query = query, replace(query, limit=PAGE)
    pages = []
    for _ in range(3):
        with counted(db) as steps:
            page = queries.find_rows(db, query)
        assert steps[0] <= most, steps
        pages += page
        if len(page) < PAGE:
            break
        query = replace(query, after=(page[-1].created_at, page[-1].agent_id, page[-1].position))
    expected = _all_rows(db, asked)
    assert [(row.created_at, row.agent_id, row.position) for row in pages] == expected[: len(pages)]
    assert len(pages) in (3 * PAGE, len(expected))
    way = chosen(db, queries.row_ways(replace(asked, limit=PAGE)), PAGE)
    assert index in plan_of(db, queries.rows_statement(asked, way))
    for one in way.ways if isinstance(way, Merged) else [way]:
        found = plan_of(db, one.find("r.rowid", PAGE))
        assert "TEMP B-TREE" not in found, f"sorted, not read in order: {found}"


def _several(wanted: Any) -> Any:
    return wanted if isinstance(wanted, tuple) else (wanted,)


def _all_rows(db: sqlite3.Connection, query: RowQuery) -> list[tuple[int, str, int]]:
    """The answer by reading everything."""
    own = "role, content_types" if query.kind == "messages" else "tool_name, state, is_error, has_approval"
    rows = db.execute(f"SELECT created_at, agent_id, position, {own} FROM kode_{query.kind}").fetchall()
    found = []
    for created, agent_id, position, *values in rows:
        if query.kind == "messages":
            there = {"role": {values[0]}, "content_type": {*values[1].split()}}
            matches = all(there[column].intersection(_several(wanted)) for column, wanted in query.where)
        else:
            columns = dict(zip(("tool_name", "state", "is_error", "has_approval"), values, strict=True))
            matches = all(columns[column] in _several(wanted) for column, wanted in query.where)
        if matches and (query.agent_id is None or agent_id in values_of(query.agent_id)) and created in query.created:
            found.append((created, agent_id, position))
    return sorted(found, reverse=query.descending)


@pytest.mark.parametrize(
    ("query", "most"),
    [
        (session_query({"user_id": "u-7"}), 80),
        (session_query({"user_id": ["u-7", "u-8"]}), 80),
        (session_query({"template_id": "none"}), 80),
        (session_query({"template_id": NONE}), 80),
        (session_query({"user_id": "u-7", "metadata": {"plan": "gold"}}), 200),
        (M({"role": "system"}), 80),
        (M({"role": ["system", "none"], "created_after": large.EPOCH}), 80),
        (M({"content_type": ["video", "none"]}), 80),
        (M({"agent_id": [large.name(7), large.name(8)]}), 80),
        (T({"state": ["PENDING", "FAILED"]}), 80),
        (T({"tool_name": ["none", "tool-3"], "state": "PENDING"}), 80),
        (T({"agent_id": large.name(4), "state": "FAILED"}), 80),
        (M({"role": "user"}), 20),
        (T({}), 20),
    ],
    ids=str,
)
def test_a_count_costs_the_matches(db: sqlite3.Connection, query: Any, most: int) -> None:
    """A count along an index costs so many steps for each match, and is right."""
    expected = len(_all_sessions(db, query) if isinstance(query, SessionQuery) else _all_rows(db, query))
    with counted(db) as steps:
        assert queries.count(db, query) == expected
    assert steps[0] <= most * expected + A_CHOICE, steps


@pytest.mark.parametrize(
    ("query", "by", "index", "most"),
    [
        (T({}), ["tool_name"], "COVERING INDEX kode_tool_calls_name", 30),
        (T({}), ["tool_name", "day"], "COVERING INDEX kode_tool_calls_name", 60),
        (T({}), ["state", "tool_name"], "COVERING INDEX kode_tool_calls_agent", 60),
        (T({"created_after": large.EPOCH + 5}), ["state"], "COVERING INDEX kode_tool_calls_agent", 60),
        (T({}), ["day"], "COVERING INDEX kode_tool_calls_name", 50),
        (T({}), ["is_error"], "INDEX kode_tool_calls_created", 60),
        (T({"state": "FAILED"}), ["tool_name"], "INDEX kode_tool_calls_state", 80),
        (T({"tool_name": "tool-3"}), ["day"], "INDEX kode_tool_calls_name", 80),
        (T({"agent_id": large.name(7)}), ["tool_name", "state"], "INDEX kode_tool_calls_agent", 80),
        (T({"created_after": large.EPOCH + large.CALLS - 50}), ["state", "day"], "INDEX kode_tool_calls_created", 80),
        (T({"is_error": True}), ["tool_name", "state"], "INDEX kode_tool_calls_errors", 80),
        (T({"state": ["PENDING", "FAILED"]}), ["tool_name", "state"], "INDEX kode_tool_calls_state", 80),
        (M({}), ["day"], "COVERING INDEX kode_messages_created", 50),
        (M({}), ["role"], "INDEX kode_messages_created", 60),
        (M({"role": "system"}), ["day"], "INDEX kode_messages_role", 80),
        (M({"content_type": "video"}), ["role", "day"], "SEARCH t USING", 80),
        (session_query({}), ["template_id", "day"], "COVERING INDEX kode_agents_template", 70),
        (session_query({"template_id": ["template-1", "none"]}), ["day"], "INDEX kode_agents_template", 70),
        (session_query({"user_id": "u-7"}), ["template_id"], "INDEX kode_metadata_created", 80),
        (session_query({"user_id": ["u-7", "u-8"]}), ["template_id", "day"], "INDEX kode_metadata_created", 80),
    ],
    ids=str,
)
def test_groups_cost_the_matches(db: sqlite3.Connection, query: Any, by: list[str], index: str, most: int) -> None:
    """A grouping looks at the matches, in the index that has all values if no filter makes them few."""
    grouping = Grouping(by=tuple(by), offset_ms=3_600_000)
    with counted(db) as steps:
        found = groups.group(db, query, grouping)
    matching = queries.count(db, query)
    assert sum(number for _, number in found) == matching > 0
    assert steps[0] <= most * matching + A_CHOICE, steps
    assert index in plan_of(db, groups.group_statement(db, query, grouping))


def test_groups_of_values_that_were_never_written(tmp_path: Path) -> None:
    """Values of other types and damaged texts are in no group, and are named; all others are counted."""
    with closing(sqlite3.connect(tmp_path / "agents.db", isolation_level=None)) as db:
        for statement in migrations.sql():
            db.execute(statement)
        insert = "INSERT INTO kode_tool_calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        for n, (name, error) in enumerate((("x", 0), (b"x", 0), ("y", 0), ("x", 2), ("x", "no"), ("x", 1))):
            db.execute(insert, ("a", n, 5, f"c{n}", name, "COMPLETED", error, 0, "{}", b""))
        db.execute(insert, ("a", 9, "noon", "c9", "x", "COMPLETED", 0, 0, "{}", b""))
        db.execute("UPDATE kode_tool_calls SET tool_name = CAST(x'ff' AS TEXT) WHERE tool_name = 'y'")
        expected: dict[tuple[str, ...], tuple[dict[Any, int], int]] = {
            ("tool_name",): ({("x",): 5}, 2),
            ("is_error", "tool_name"): ({(False, "x"): 2, (True, "x"): 1}, 4),
            ("day",): ({(0,): 6}, 1),
        }
        for by, (wanted, damaged) in expected.items():
            found = groups.group(db, tool_call_query({}), Grouping(by=by))
            assert dict(found) == wanted
            assert isinstance(found, Found)
            assert list(found.left_out) == ["a group of 1 rows of kode_tool_calls"] * damaged


def test_a_count_looks_in_the_index_with_the_fewest(db: sqlite3.Connection) -> None:
    """Of two filters the rarer one, whichever is named first."""
    for filters in ({"tool_name": "tool-4", "state": "FAILED"}, {"state": "FAILED", "tool_name": "tool-4"}):
        with counted(db) as steps:
            assert queries.count(db, tool_call_query(filters)) == 1  # type: ignore[arg-type]
        assert steps[0] <= A_CHOICE // 8, steps


def test_an_offset_is_gone_over_one_by_one(db: sqlite3.Connection) -> None:
    """A number to begin at costs some steps for each row before it, in the index alone; a cursor costs none."""
    costs = []
    for offset in (10_000, 40_000):
        with counted(db) as steps:
            assert len(queries.find_rows(db, message_query({"offset": offset, "limit": PAGE}))) == PAGE
        costs.append(steps[0])
    assert costs[1] - costs[0] <= 5 * 30_000
    assert costs[0] >= 10_000


@pytest.mark.parametrize(
    ("agent_id", "span", "index"),
    [
        (large.BUSY, EventRange(limit=PAGE), "kode_events_seq"),
        (large.BUSY, EventRange(limit=PAGE, since_seq=20_000), "kode_events_seq"),
        (large.BUSY, EventRange(limit=PAGE, after=(20_000, 20_000)), "kode_events_seq"),
        (large.BUSY, EventRange(limit=PAGE, channel="monitor"), "kode_events_channel"),
        (large.BUSY, EventRange(limit=PAGE, channel="progress", since_seq=500), "kode_events_seq"),
        (large.BUSY, EventRange(limit=PAGE, order="offset", after=(0, 0)), "kode_events_agent"),
        (large.BUSY, EventRange(limit=PAGE, order="offset", after=(0, 20_000)), "kode_events_agent"),
        (large.BUSY, EventRange(limit=PAGE, order="offset", after=(0, large.EVENTS)), "kode_events_agent"),
        (large.BUSY, EventRange(limit=PAGE, order="offset", after=(0, 0), channel="progress"), "kode_events_agent"),
        (large.BUSY, EventRange(limit=PAGE, order="offset", after=(0, 0), channel="monitor"), "kode_events_channel"),
        (large.BUSY, EventRange(limit=PAGE, order="offset", after=(0, 60), channel="control"), "kode_events_channel"),
        (
            large.BUSY,
            EventRange(limit=PAGE, order="offset", after=(0, 0), since_seq=large.EVENTS - 9),
            "kode_events_seq",
        ),
        (large.BUSY, EventRange(limit=PAGE, order="offset", after=(0, 0), since_seq=9), "kode_events_agent"),
        (large.name(8), EventRange(limit=PAGE, order="offset", after=(0, 0)), "kode_events_agent"),
        (large.name(8), EventRange(limit=PAGE, order="offset", after=(0, large.EVENTS - 500)), "kode_events_agent"),
        (large.name(9), EventRange(limit=PAGE, order="offset", after=(0, 0)), "kode_events_agent"),
    ],
    ids=str,
)
def test_a_page_of_events(db: sqlite3.Connection, agent_id: str, span: EventRange, index: str) -> None:
    """A page of events costs what it holds, in both orders, wherever it lies and whoever else appends."""
    with counted(db) as steps:
        found = reads.events(db, agent_id, span)
    assert steps[0] <= A_CHOICE, steps
    after = -1 if span.after is None else span.after[1]
    rows = db.execute(
        'SELECT "offset" FROM kode_events WHERE agent_id = ? AND "offset" > ? AND seq > ? AND channel LIKE ?'
        ' ORDER BY "offset" LIMIT ?',
        (agent_id, after, -1 if span.since_seq is None else span.since_seq, span.channel or "%", span.limit),
    )
    assert [row.offset for row in found] == [offset for (offset,) in rows]
    way = chosen(db, reads.event_ways(agent_id, span), span.limit)
    assert index in plan_of(db, reads.events_statement(way, PAGE))


def test_all_events_by_offset_cost_the_same_for_each(db: sqlite3.Connection) -> None:
    """To read a log by offset, page after page, costs as many steps for the last event as for the first."""
    costs, offset = [], 0
    while True:
        with counted(db) as steps:
            page = reads.events(db, large.BUSY, EventRange(order="offset", after=(0, offset), limit=2000))
        if len(page) < 2000:
            break
        costs.append(steps[0])
        offset = page[-1].offset
    assert len(costs) >= 15
    assert max(costs) - min(costs) <= 100


@pytest.mark.parametrize(
    "read",
    [
        lambda db: reads.last_event(db, large.BUSY),
        lambda db: reads.summary(db, large.BUSY),
        overview.totals,
        lambda db: reads.agent_ids(db, "", None, PAGE),
        lambda db: reads.agent_ids(db, "agt-01", large.name(15_000), PAGE),
        lambda db: overview.stored_ids(db, large.name(15_000), PAGE),
        lambda db: list(overview._strange_offsets(db, large.BUSY)),
    ],
)
def test_reads_that_look_at_few_rows(db: sqlite3.Connection, read: Callable[[sqlite3.Connection], Any]) -> None:
    """The numbers that get_metrics tells, ids and heads are read without looking at everything."""
    with counted(db) as steps:
        read(db)
    assert steps[0] <= A_CHOICE, steps


def test_the_totals_are_those_of_the_heads(db: sqlite3.Connection) -> None:
    """The numbers that are kept are those that a count of everything gives."""
    told = overview.totals(db)
    counts = db.execute("SELECT count(*), sum(message_count), sum(tool_call_count) FROM kode_agents").fetchone()
    assert (told.agents, told.messages, told.tool_calls) == counts == (large.AGENTS, large.MESSAGES, large.CALLS)


def test_statistics_are_counted_from_an_index(db: sqlite3.Connection) -> None:
    """Statistics of an agent are counted from an index alone."""
    assert "COVERING INDEX kode_tool_calls_agent (agent_id=?)" in plan(db, reads.STATS, ("a",))


@pytest.mark.parametrize(
    "query",
    [
        tool_call_query({"tool_name": [f"tool-{n}" for n in range(100)]}),
        message_query({"role": [f"role-{n}" for n in range(100)], "content_type": "custom"}),
        tool_call_query({"agent_id": [large.name(n) for n in range(100)], "state": ["FAILED", "PENDING"]}),
    ],
    ids=["names", "roles", "agents"],
)
def test_the_conditions_of_many_values_are_made_once(query: RowQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up of each value of a list has the conditions of all others; they are made once, not for each value."""
    made, calls = queries._row_conditions, list[RowQuery]()

    def counted_conditions(query: RowQuery) -> Any:
        calls.append(query)
        return made(query)

    monkeypatch.setattr(queries, "_row_conditions", counted_conditions)
    assert queries.row_ways(query)
    assert len(calls) == 1
