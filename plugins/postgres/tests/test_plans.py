"""Plans of queries on a store of 200,000 rows: how many pages a query touches depends on its page, not on the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import pytest
from kode_postgres.options import PostgresOptions
from kode_postgres.reads import Reads
from kode_postgres.schema import Tables, table_names
from kode_postgres.testing.servers import Server

from kode_core.batch import EventRange, ListKind
from kode_core.query import Grouping, SessionQuery, message_query, session_query, tool_call_query
from plugins.postgres.tests.large import AGENTS, CALLS, EVENTS, MESSAGES, START, STEP, agent, fill
from plugins.postgres.tests.plans import explained, filled, touched

TABLES: Final = Tables(PostgresOptions())
READS: Final = Reads(TABLES)
LIMIT: Final = 100
AROUND: Final = 120
"""Pages that a query may touch besides those of its rows: levels of indexes, and a few looks in vain."""
HEAD: Final = 5
"""Pages for each session of a page: two rows, and the two or three levels of the index of one of them."""
MIDDLE: Final = START + AGENTS // 2 * STEP
NONE: Final = [f"none-{n}" for n in range(100)]
EACH: Final = 4
"""Pages for each value of a list: a look-up that finds nothing passes the levels of an index."""
WHEN: Final = START + MESSAGES // 2 * 1000


@pytest.fixture(scope="module")
def large(server: Server) -> Iterator[str]:
    """The address of a database with a large store."""
    with filled(server, lambda con: fill(con, TABLES)) as address:
        yield address


async def cost(con: Any, make: Callable[[Any], tuple[str, list[Any]]], query: Any, after: Any) -> tuple[int, int]:
    """How many rows a query finds and how many pages it touches, with the row by which the store looks ahead."""
    query = msgspec.structs.replace(query, limit=query.limit + 1, after=after)
    plan = await explained(con, *make(query))
    return int(plan["Actual Rows"]), touched(plan)


def values(filters: dict[str, Any]) -> int:
    """How many values the lists of the filters have."""
    return sum(len(wanted) for wanted in filters.values() if isinstance(wanted, list))


def most(filters: dict[str, Any]) -> int:
    """How many pages are merged, at most: one of each value that has rows."""
    lists = [wanted for wanted in filters.values() if isinstance(wanted, list)]
    return max((len({*wanted} - {*NONE}) for wanted in lists), default=1) or 1


_SAMPLES: Final = 3
SESSIONS: Final[tuple[tuple[dict[str, Any], int], ...]] = (
    ({}, 1),
    ({"metadata": {"plan": "gold"}}, 3),  # every third has it
    ({"metadata": {"plan": "gold"}, "sort_by": "updated_at"}, 3),
    ({"metadata": {"plan": "gold"}, "sort_by": "message_count"}, 3),
    ({"metadata": {"plan": "gold"}, "user_id": "u-7"}, 1),
    ({"metadata": {"plan": "nobody's"}}, 1),
    ({"user_id": "u-7", "sort_by": "message_count"}, 1),
    ({"updated_before": MIDDLE}, 1),
    ({"updated_before": MIDDLE, "order": "asc"}, 1),
    ({"updated_before": START + 100 * STEP}, 1),
    ({"updated_before": MIDDLE, "metadata": {"plan": "gold"}}, 3),
    ({"updated_before": MIDDLE, "template_id": "tpl-3"}, 1),
    ({"updated_before": MIDDLE, "user_id": "u-7"}, 1),
    ({"sort_by": "message_count"}, 1),
    ({"sort_by": "message_count", "order": "asc"}, 1),
    ({"sort_by": "updated_at"}, 1),
    ({"template_id": "tpl-3"}, 1),
    ({"template_id": ["tpl-3", "tpl-4"]}, 2),
    ({"template_id": ["tpl-3", *NONE[1:]], "order": "asc"}, 2),
    ({"template_id": ["tpl-3", "tpl-4"], "updated_before": MIDDLE}, 2),
    ({"template_id": ["tpl-3", "tpl-4"], "sort_by": "updated_at"}, 5),
    ({"user_id": ["u-7", "u-8"]}, 2),
    ({"user_id": NONE}, 2),
    ({"agent_id": [agent(n) for n in range(500, 600)]}, 2),
)
MESSAGE_ROWS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"role": "system"},
    {"role": "nobody"},
    {"role": "system", "content_type": "text"},
    {"role": "system", "created_before": WHEN, "order": "asc"},
    {"content_type": "image"},
    {"content_type": "file"},
    {"content_type": "file", "order": "asc"},
    {"content_type": "hologram"},
    {"content_type": "image", "role": "user"},
    {"content_type": "image", "created_after": WHEN},
    {"role": "user"},
    {"content_type": "tool_use"},
    {"agent_id": agent(77), "content_type": "image"},
    {"role": ["system", "nobody"]},
    {"role": NONE},
    {"role": ["system", "user"]},
    {"content_type": ["image", "file"]},
    {"content_type": ["image", "file", *NONE[2:]]},
    {"content_type": ["image", "text"]},
    {"agent_id": [agent(77), agent(78), *NONE[2:]]},
    {"agent_id": [agent(77), agent(78)], "role": ["system", "user"], "order": "asc"},
)
CALL_ROWS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"state": "FAILED"},
    {"state": "PENDING"},
    {"state": "COMPLETED"},
    {"has_approval": True},
    {"has_approval": True, "order": "asc"},
    {"has_approval": True, "state": "APPROVAL_REQUIRED"},
    {"has_approval": True, "tool_name": "tool_3"},
    {"state": "FAILED", "tool_name": "tool_3"},
    {"is_error": True},
    {"agent_id": agent(77), "state": "FAILED"},
    {"state": ["FAILED", "PENDING"]},
    {"state": ["FAILED", "COMPLETED"]},
    {"tool_name": ["tool_3", "tool_4"]},
    {"tool_name": ["tool_3", *NONE[1:]], "order": "asc"},
    {"tool_name": ["tool_3", "tool_4"], "state": ["FAILED", "PENDING"]},
    {"agent_id": [agent(77), agent(78)], "tool_name": ["tool_3", "tool_4"]},
)


@pytest.mark.parametrize(("filters", "share"), SESSIONS, ids=str)
async def test_sessions(con: Any, filters: dict[str, Any], share: int) -> None:
    """Sessions cost the pages of those that are shown, times how many are looked at for each that matches.

    The server knows the values of metadata by a sample: if a rare one is in it, the server takes a hundredth of all
    sessions to have it, and may look at the newest ones first. So a bad plan counts if three samples lead to it.
    """
    for limit in (LIMIT, 10):
        query = session_query({**filters, "limit": limit})  # type: ignore[typeddict-item]
        most_pages = AROUND + values(filters) * EACH + HEAD * share * (limit + 1)
        for _ in range(_SAMPLES):
            found, pages = await cost(con, READS.sessions_statement, query, None)
            await con.execute("DEALLOCATE asked")
            if pages <= most_pages:
                break
            await con.execute("ANALYZE")
        assert pages <= most_pages, found


END: Final = START + AGENTS * STEP
WINDOWS: Final[tuple[tuple[dict[str, Any], dict[str, Any]], ...]] = (
    ({"updated_after": 0}, {"updated_after": END - 5 * STEP}),
    ({"updated_after": 0, "order": "asc"}, {"updated_after": END - 5 * STEP, "order": "asc"}),
    ({"updated_after": 0, "updated_before": END * 2}, {"updated_after": MIDDLE, "updated_before": MIDDLE + 5 * STEP}),
    ({"created_after": 0, "sort_by": "updated_at"}, {"created_after": END - 5 * STEP, "sort_by": "updated_at"}),
    ({"updated_after": 0, "sort_by": "message_count"}, {"updated_after": END - 5 * STEP, "sort_by": "message_count"}),
    ({"updated_before": END, "sort_by": "message_count"}, {"updated_before": START + STEP, "sort_by": "message_count"}),
    (
        {"created_after": 0, "metadata": {"plan": "gold"}},
        {"created_after": END - 5 * STEP, "metadata": {"plan": "gold"}},
    ),
    ({"metadata": {"plan": "gold"}}, {"metadata": {"plan": "nobody's"}}),
    ({"user_id": "u-7", "metadata": {"plan": "gold"}}, {"user_id": "u-8", "metadata": {"plan": "free"}}),
)


@pytest.mark.parametrize(("often", "filters"), WINDOWS, ids=str)
async def test_a_narrow_window_after_wide_ones(con: Any, often: dict[str, Any], filters: dict[str, Any]) -> None:
    """No plan is kept from queries that match most agents for one that matches few, nor the other way round."""
    for before, now, most in ((often, filters, LIMIT), (filters, often, 3 * LIMIT)):
        (statement, others), (same, args) = (
            READS.sessions_statement(session_query({**query, "limit": limit}))  # type: ignore[typeddict-item]
            for query, limit in ((before, 10_000), (now, LIMIT))
        )
        assert same == statement
        plan = await explained(con, statement, args, others)
        assert touched(plan) <= AROUND + HEAD * most
        await con.execute("DEALLOCATE asked")


async def test_sessions_from_a_cursor_on(con: Any) -> None:
    """A page in the middle costs as much as the first, in each order."""
    for sort_by, value in (("created_at", MIDDLE), ("updated_at", MIDDLE), ("message_count", 9)):
        query = session_query({"sort_by": sort_by, "updated_before": MIDDLE + STEP})  # type: ignore[typeddict-item]
        found, pages = await cost(con, READS.sessions_statement, query, (value, agent(AGENTS // 2)))
        assert found == LIMIT + 1
        assert pages <= AROUND + 3 * HEAD * (LIMIT + 1)  # of the sorted by count, half were updated later
        await con.execute("DEALLOCATE asked")


OFFSET: Final = 2_000


@pytest.mark.parametrize(
    ("filters", "most_pages"),
    [
        ({}, OFFSET),
        ({"order": "asc"}, OFFSET),
        ({"sort_by": "updated_at"}, OFFSET),
        ({"sort_by": "message_count"}, 2 * OFFSET),
        ({"updated_before": END}, OFFSET),
        ({"template_id": ["tpl-3", "tpl-4"]}, 2 * OFFSET),
        ({"metadata": {"plan": "gold"}}, 5 * HEAD * (OFFSET + LIMIT)),  # a third have it: each info is looked at
    ],
    ids=str,
)
async def test_sessions_from_an_offset_on(con: Any, filters: dict[str, Any], most_pages: int) -> None:
    """Sessions before the page cost their own rows, and their infos where a condition needs them."""
    query = session_query({**filters, "offset": OFFSET})  # type: ignore[typeddict-item]
    found, pages = await cost(con, READS.sessions_statement, query, None)
    assert found == LIMIT + 1
    assert pages <= AROUND + HEAD * (LIMIT + 1) + most_pages, pages
    await con.execute("DEALLOCATE asked")
    rows, whole = [
        await con.fetch(statement, *args)
        for statement, args in (
            READS.sessions_statement(query),
            READS.sessions_statement(msgspec.structs.replace(query, offset=0, limit=OFFSET + LIMIT)),
        )
    ]
    assert [tuple(row) for row in rows] == [tuple(row) for row in whole][OFFSET:]


@pytest.mark.parametrize("filters", MESSAGE_ROWS, ids=str)
async def test_messages(con: Any, filters: dict[str, Any]) -> None:
    """Messages cost the pages of those that are shown, from the start and from a cursor on."""
    for after in (None, (WHEN, agent(MESSAGES // 8), 2)):
        found, pages = await cost(con, READS.rows_statement, message_query(filters), after)  # type: ignore[arg-type]
        assert pages <= AROUND + values(filters) * EACH + most(filters) * (LIMIT + 1), found
        await con.execute("DEALLOCATE asked")


@pytest.mark.parametrize("filters", CALL_ROWS, ids=str)
async def test_tool_calls(con: Any, filters: dict[str, Any]) -> None:
    """Tool calls cost the pages of those that are shown, from the start and from a cursor on."""
    for after in (None, (START + CALLS // 2 * STEP, agent(CALLS // 2), 0)):
        found, pages = await cost(con, READS.rows_statement, tool_call_query(filters), after)  # type: ignore[arg-type]
        assert pages <= AROUND + values(filters) * EACH + most(filters) * (LIMIT + 1), found
        await con.execute("DEALLOCATE asked")


COUNTS: Final = (
    session_query({"user_id": "u-7"}),
    session_query({"user_id": ["u-7", "u-8"]}),
    session_query({"template_id": NONE}),
    message_query({"role": "system"}),
    message_query({"role": ["system", *NONE[1:]]}),
    message_query({"content_type": ["image", "file"]}),
    message_query({"agent_id": [agent(77), agent(78)]}),
    tool_call_query({"state": ["FAILED", "PENDING"]}),
    tool_call_query({"agent_id": agent(77), "state": "FAILED"}),
)


@pytest.mark.parametrize("query", COUNTS, ids=lambda query: str(query)[:150])
async def test_counts(con: Any, query: Any) -> None:
    """A count along an index touches the pages of the matches, and is the number of what a query finds."""
    make = READS.sessions_statement if isinstance(query, SessionQuery) else READS.rows_statement
    statement, args = make(msgspec.structs.replace(query, limit=1_000_000))  # type: ignore[operator]
    wanted = len(await con.fetch(statement, *args))
    counting, args = READS.count_statement(query)
    assert await con.fetchval(counting, *args) == wanted
    plan = await explained(con, counting, args)
    assert touched(plan) <= AROUND + 100 * EACH + HEAD * wanted
    await con.execute("DEALLOCATE asked")


GROUPS: Final = (
    (session_query({"user_id": "u-7"}), ("template_id", "day")),
    (message_query({"role": "system"}), ("day",)),
    (message_query({"content_type": ["image", "file"]}), ("role", "day")),
    (message_query({"agent_id": [agent(77), agent(78)]}), ("agent_id", "role")),
    (tool_call_query({"state": ["FAILED", "PENDING"]}), ("state", "tool_name")),
    (tool_call_query({"agent_id": agent(77)}), ("tool_name", "state", "is_error")),
    (tool_call_query({"is_error": True}), ("tool_name", "day")),
)


@pytest.mark.parametrize(("query", "by"), GROUPS, ids=lambda one: str(one)[:150])
async def test_groups(con: Any, query: Any, by: tuple[str, ...]) -> None:
    """Groups along an index touch the pages of the matches, and have all that a count has."""
    counting, args = READS.count_statement(query)
    wanted = await con.fetchval(counting, *args)
    grouping, args = READS.count_statement(query, Grouping(by=by, offset_ms=3_600_000))
    assert sum(row[-1] for row in await con.fetch(grouping, *args)) == wanted
    plan = await explained(con, grouping, args)
    assert touched(plan) <= AROUND + 100 * EACH + HEAD * wanted
    await con.execute("DEALLOCATE asked")


async def test_groups_of_everything(con: Any) -> None:
    """All tool calls are grouped by name in an index, without a look at their rows."""
    statement, args = READS.count_statement(tool_call_query({}), Grouping(by=("tool_name",)))
    found = await con.fetch(statement, *args)
    assert sum(row[1] for row in found) == CALLS
    assert "Index Only Scan" in nodes(await explained(con, statement, args))
    await con.execute("DEALLOCATE asked")


def nodes(plan: dict[str, Any]) -> set[str]:
    """The kinds of steps that a plan has."""
    return {plan["Node Type"]}.union(*map(nodes, plan.get("Plans", ())))


@pytest.mark.parametrize("kind", ListKind)
async def test_a_list_is_read_as_it_lies(con: Any, kind: ListKind) -> None:
    """No list is sorted by the server, whose memory for that ends at 4 MB."""
    plan = await explained(con, READS.list_statement(kind), [agent(77)])
    assert plan["Actual Rows"]
    assert not {name for name in nodes(plan) if "Sort" in name}


async def test_what_is_rare_is_found(con: Any) -> None:
    """The searches above do find what there is, as a plain scan does."""
    count = "SELECT count(*) FROM kode_messages WHERE"
    for filters, where in (
        ({"role": "system"}, "role = 'system'"),
        ({"content_type": "image"}, "strpos(content_types, 'image') > 0"),
        ({"content_type": "file"}, "strpos(content_types, 'file') > 0"),
        ({"content_type": "image", "role": "assistant"}, "strpos(content_types, 'image') > 0 AND role = 'assistant'"),
    ):
        there = await con.fetchval(f"{count} {where}")
        assert there
        found, _ = await cost(con, READS.rows_statement, message_query(filters), None)  # type: ignore[arg-type]
        assert found == there
        await con.execute("DEALLOCATE asked")


@pytest.mark.parametrize("order", ["offset", "seq"])
async def test_events(con: Any, order: Any) -> None:
    """A page of events costs its rows, in both orders and wherever it begins."""
    for start in (0, EVENTS // 2, EVENTS):
        span = EventRange(order=order, after=(start, start), limit=LIMIT)
        plan = await explained(con, *READS.events_statement("ev-big", span))
        assert touched(plan) <= AROUND + LIMIT
        await con.execute("DEALLOCATE asked")


async def test_totals(con: Any) -> None:
    """The totals are counted in an index of the agents that there are; heads of deleted ones are not touched."""
    plan = await explained(con, READS.totals_statement(), ["layer", list(table_names(TABLES))])
    index = await con.fetchval("SELECT pg_relation_size('kode_agents_counts') / 8192")
    heads = await con.fetchval("SELECT pg_relation_size('kode_agents') / 8192")
    assert touched(plan) <= AROUND * 3 + index < heads / 3  # sizes of tables are looked up in catalogues
