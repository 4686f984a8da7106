"""Searches over all agents. Each is one statement, which sees one instant."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from msgspec.structs import replace

from kode_core.authoring.reading import MOST
from kode_core.batch import Found, FoundRow, SessionRow
from kode_core.codec import Body
from kode_core.ids import prefix_end
from kode_core.query import DAY_MS, Grouping, GroupRows, Range, RowQuery, SessionQuery, Wanted, Within, values_of
from kode_postgres.overview import Overview
from kode_postgres.schema import (
    COMMON_ROLES,
    COMMON_STATE,
    COMMON_TYPES,
    EARLY,
    KIND,
    KIND_LENGTH,
    RARE_ROLE,
    RARE_STATE,
    RARE_TYPES,
)
from kode_postgres.session import Session

__all__ = ["Arguments", "Queries", "page_of_rows", "row_conditions"]

_RARE: Final[dict[str, tuple[Sequence[str], str]]] = {
    "role": (COMMON_ROLES, RARE_ROLE),
    "state": ((COMMON_STATE,), RARE_STATE),
    "content_type": (COMMON_TYPES, RARE_TYPES),
}
"""Common values, which have no index, and a condition with an index that all other values fulfil."""

_FURTHEST: Final = 2**62
"""More rows than any store has; a limit can still be added without overflow."""

_NOTHING: Final = ", ".join(f"json_array_elements('[]') nothing_{n}" for n in range(6))
_DEAR: Final = f"(SELECT count(*) FROM {_NOTHING}) > 0"
"""Stands behind an argument that is always true, to influence the planner.

A plan for these very arguments drops the expression. In a generic plan the server expects 100 rows of each function
call, although there are none, and finds the plan too expensive to keep.
"""


class Arguments(list[Any]):
    """The arguments of a statement that is being assembled."""

    def mark(self, value: Any, kind: str) -> str:
        self.append(value)
        return f"${len(self)}::{kind}"

    def equals(self, column: str, wanted: Wanted | Within) -> str:
        if isinstance(wanted, Within):
            first, end = self.mark(wanted.prefix, "text"), self.mark(wanted.end, "text")
            return f"{column} >= {first} AND {column} < {end}"
        if isinstance(wanted, str):
            return f"{column} = {self.mark(wanted, 'text')}"
        return f"{column} = ANY({self.mark(list(wanted), 'text[]')})"

    def span(self, column: str, span: Range) -> list[str]:
        bounds = ((span.start, ">="), (span.end, "<"))
        return [f"{column} {sign} {self.mark(value, 'bigint')}" for value, sign in bounds if value is not None]


def _has_one(column: str, texts: str) -> str:
    """The condition that a column contains one of several texts."""
    return f"EXISTS (SELECT FROM unnest({texts}) s (text) WHERE strpos({column}, s.text) > 0)"


def _is_sought(query: RowQuery, name: str, wanted: Wanted) -> bool:
    """Whether rows are found by an index of rare values; an agent's rows have a separate index."""
    is_any = query.agent_id is None or isinstance(query.agent_id, Within)
    return is_any and name in _RARE and not {*_RARE[name][0]}.intersection(values_of(wanted))


def _merged(pages: Sequence[str], end: str = "") -> str:
    """The rows of several pages in any order, or up to *end*. Each is planned for its own values."""
    return f"SELECT * FROM ({' UNION ALL '.join(f'({page})' for page in pages)}) a {end}"


def _session(bodies: str) -> str:
    """The columns of a session, with the body of that alias."""
    return f"SELECT a.agent_id, {bodies}.body::text, {bodies}.digest, a.created_at, a.updated_at, a.message_count"


def _sessions_looked_up_one_by_one(query: SessionQuery) -> str | None:
    """As :func:`_rows_looked_up_one_by_one`: ``user``, ``template`` or None."""
    if query.agent_id is not None and not isinstance(query.agent_id, Within):
        return None
    if any(isinstance(wanted, tuple) for _, wanted in query.metadata):
        return "user"
    return "template" if isinstance(query.template_id, tuple) else None


def _rows_looked_up_one_by_one(query: RowQuery) -> str | None:
    """The column with several wanted values, each of which is looked up by itself, so that a page costs one of each.

    For a value that the planner does not know, or for a list, it would sometimes read all rows in the order of time.
    Where some of the values are common, rows are soon found in that order.
    """
    if isinstance(query.agent_id, tuple):
        return "agent_id"
    if query.agent_id is not None and not isinstance(query.agent_id, Within):
        return None
    lists = {name: wanted for name, wanted in query.where if isinstance(wanted, tuple)}
    for name in ("state", "role"):
        if name in lists and _is_sought(query, name, lists[name]):
            return name
    return "tool_name" if "tool_name" in lists else None


def _session_conditions(args: Arguments, query: SessionQuery, each: str | None) -> tuple[list[str], list[str]]:
    """The conditions of a query except for its cursor, and those of which each is looked up by itself."""
    where, singles = ["a.created_at IS NOT NULL"], list[str]()
    if query.agent_id is not None:
        where.append(args.equals("a.agent_id", query.agent_id))
    if query.template_id is not None and each != "template":
        where.append(args.equals("a.template_id", query.template_id))
    for key, wanted in query.metadata:  # one by one: a key may be requested twice
        pairs = [json.dumps({key: value}) for value in values_of(wanted)]
        if isinstance(wanted, str):
            where.append(f"i.metadata @> {args.mark(pairs[0], 'text')}::jsonb")
        elif each != "user":
            where.append(f"i.metadata @> ANY({args.mark(pairs, 'text[]')}::jsonb[])")
        else:
            singles = [f"i.metadata @> {args.mark(pair, 'text')}::jsonb" for pair in pairs]
    if each == "template":
        singles = [args.equals("a.template_id", value) for value in values_of(query.template_id or ())]
    where += [*args.span("a.created_at", query.created), *args.span("a.updated_at", query.updated)]
    if query.updated.end is not None:  # deleted agents have 0, which the statistics count as well
        where.append("a.updated_at > 0")
    is_range = isinstance(query.agent_id, Within)
    if query.metadata or query.created != Range() or query.updated != Range() or is_range:
        # A window of five minutes needs another index than a year, and a rare value another than a common one.
        where.append(f"({args.mark(True, 'boolean')} OR {_DEAR})")
    return where, singles


def _row_conditions(
    args: Arguments, query: RowQuery, each: str | None
) -> tuple[list[str], tuple[str, ...], str | None]:
    """The conditions of a query except for its cursor; the values of *each*; the rare types that are sought."""
    where: list[str] = []
    if isinstance(query.agent_id, Within):  # a small tenant needs another index than a large one
        where += [args.equals("agent_id", query.agent_id), f"({args.mark(True, 'boolean')} OR {_DEAR})"]
    found: list[tuple[str, Wanted | bool]] = []
    if query.agent_id is not None and not isinstance(query.agent_id, Within):
        found.append(("agent_id", query.agent_id))
    sought, values = None, tuple[str, ...]()
    for name, wanted in [*found, *query.where]:
        if isinstance(wanted, bool):
            where.append(name if wanted else f"NOT {name}")
            continue
        is_rare = _is_sought(query, name, wanted)
        where += [_RARE[name][1]] if is_rare else []
        if name == "content_type":
            mark = args.mark([f"\n{value}\n" for value in values_of(wanted)], "text[]")
            sought = mark if is_rare else None
            where.append(_has_one("content_types", mark))
        elif name == each:
            values = values_of(wanted)
        else:
            where.append(args.equals(name, wanted))
    where += args.span("created_at", query.created)
    return where, values, sought


def row_conditions(args: Arguments, query: RowQuery) -> list[str]:
    """The conditions of a query except for its cursor."""
    return _row_conditions(args, query, None)[0]


def page_of_rows(args: Arguments, query: RowQuery) -> tuple[list[str], str, str, str]:
    """The condition of the rows behind the cursor, if there is one; the order, the limit and the offset."""
    behind = list[str]()
    if query.after is not None:
        key = ", ".join(args.mark(v, k) for v, k in zip(query.after, ("bigint", "text", "bigint"), strict=True))
        behind.append(f"(created_at, agent_id, position) {'<' if query.descending else '>'} ({key})")
    direction = "DESC" if query.descending else "ASC"
    order = f"ORDER BY created_at {direction}, agent_id {direction}, position {direction}"
    return behind, order, args.mark(query.limit, "bigint"), args.mark(min(query.offset, _FURTHEST), "bigint")


def _counted(args: Arguments, grouping: Grouping | None, of: str) -> tuple[str, str]:
    """The results of a statement that counts, and its end."""
    if grouping is None:
        return "count(*)", ""
    values = [_day(args, grouping, f"{of}created_at") if by == "day" else f"{of}{by}" for by in grouping.by]
    places = ", ".join(str(place) for place, _ in enumerate(values, 1))
    return f"{', '.join(values)}, count(*)", f" GROUP BY {places} LIMIT {args.mark(grouping.limit, 'bigint')}"


def _day(args: Arguments, grouping: Grouping, time: str) -> str:
    """The number of a time's day. Division rounds towards zero, and no intermediate value exceeds 64 bits."""
    ahead = args.mark(grouping.offset_ms + 2 * DAY_MS, "bigint")
    return f"{time} / {DAY_MS} + ({time} % {DAY_MS} + {ahead}) / {DAY_MS} - 2"


class Queries(Overview):
    """The searches over one store's tables."""

    async def agent_ids(self, session: Session, prefix: str, after: str | None, limit: int) -> list[str]:
        args = Arguments()
        where = ["created_at IS NOT NULL", f"agent_id >= {args.mark(prefix, 'text')}"]
        end = prefix_end(prefix)
        if end is not None:
            where.append(f"agent_id < {args.mark(end, 'text')}")
        if after is not None:
            where.append(f"agent_id > {args.mark(after, 'text')}")
        found = await session.fetch(
            f"SELECT agent_id FROM {self._tables.agents} WHERE {' AND '.join(where)}"
            f" ORDER BY agent_id LIMIT {args.mark(limit, 'bigint')}",
            *args,
        )
        return [row[0] for row in found]

    def sessions_statement(self, query: SessionQuery) -> tuple[str, list[Any]]:
        """The statement of a session query and its arguments."""
        args = Arguments()
        where, singles = _session_conditions(args, query, _sessions_looked_up_one_by_one(query))
        column, direction = f"a.{query.sort_by}", "DESC" if query.descending else "ASC"
        if query.after is not None:
            key = f"{args.mark(query.after[0], 'bigint')}, {args.mark(query.after[1], 'text')}"
            where.append(f"({column}, a.agent_id) {'<' if query.descending else '>'} ({key})")
        order = f"ORDER BY {query.sort_by} {direction}, agent_id {direction}"
        limit, offset = args.mark(query.limit, "bigint"), args.mark(min(query.offset, _FURTHEST), "bigint")
        joined = f" LEFT JOIN {self._tables.infos} i ON i.agent_id = a.agent_id"
        # Bodies that are joined to the page cost no look-up for each agent before it: the server leaves out a join
        # inside of which no column is used.
        inside, bodies, outside = ("", "i", joined) if query.offset else (" i.body, i.digest,", "a", "")

        def page(*more: str) -> str:
            pages = [
                f"SELECT a.agent_id,{inside} a.created_at, a.updated_at, a.message_count"
                f" FROM {self._tables.agents} a{joined}"
                f" WHERE {' AND '.join([*where, *more, *single])} {order} LIMIT {limit}"
                for single in ([[one] for one in singles] or [[]])
            ]
            return (
                pages[0]
                if len(pages) == 1
                else _merged([f"{one} + {offset}" for one in pages], f"{order} LIMIT {limit}")
            )

        if query.sort_by != "created_at" or query.updated.end is None:
            return f"{_session(bodies)} FROM ({page()} OFFSET {offset}) a{outside} {order}", args
        # Agents whose last update was before a time were created before it. The search therefore starts there instead
        # of at the newest. An index covers the agents that were created later, by clocks that differ.
        end = args.mark(query.updated.end, "bigint")
        pages = (f"a.created_at < {end}",), (f"a.created_at >= {end}", EARLY)
        both = _merged([f"{page(*more)} + {offset}" for more in pages], f"{order} LIMIT {limit} OFFSET {offset}")
        return f"{_session(bodies)} FROM ({both}) a{outside} {order}", args

    async def find_sessions(self, session: Session, query: SessionQuery) -> Found[SessionRow]:
        """Sessions without info are left out, and others are returned in their place."""
        more = 0
        while True:
            statement, args = self.sessions_statement(replace(query, limit=query.limit + more))
            rows = await session.fetch(statement, *args)
            sound = [row for row in rows if row[1] is not None and 0 <= row[5] < MOST]
            found = [SessionRow(row[0], Body(row[1], row[2]), row[3], row[4], row[5]) for row in sound]
            left_out = [f"the info of agent {row[0]!r}" for row in rows if row[1] is None or not 0 <= row[5] < MOST]
            if len(rows) < query.limit + more or len(found) >= query.limit:
                return Found(found[: query.limit], left_out)
            more += query.limit - len(found)

    def rows_statement(self, query: RowQuery) -> tuple[str, list[Any]]:
        """The statement of a query over list rows and its arguments."""
        args = Arguments()
        each = _rows_looked_up_one_by_one(query)
        where, values, sought = _row_conditions(args, query, each)
        behind, order, limit, offset = page_of_rows(args, query)
        where += behind
        with_kinds, source = "", getattr(self._tables, query.kind)

        def page(*more: str) -> str:
            return f"SELECT * FROM {source} WHERE {' AND '.join([*more, *where])} {order} LIMIT {limit} + {offset}"

        if each is not None:
            source = f"({_merged([page(args.equals(each, value)) for value in values])}) r"
            where = []
        elif sought is not None:
            source = f"kinds k CROSS JOIN LATERAL ({page(f'{KIND} = k.kind', 'role = k.role')}) r"
            where = [f"({_has_one('k.kind', sought)} OR length(k.kind) = {KIND_LENGTH})"]
            with_kinds = self._kinds()
        statement = (
            f"{with_kinds}SELECT agent_id, position, created_at, body::text, digest"
            f" FROM {source} WHERE {' AND '.join(where) or 'TRUE'} {order} LIMIT {limit} OFFSET {offset}"
        )
        return statement, args

    def _kinds(self) -> str:
        """The different types of rare messages, with their roles: each takes one look into the index."""
        rows = f"SELECT {KIND} AS kind, role FROM {self._tables.messages} WHERE {RARE_TYPES}"
        one = f"ORDER BY {KIND}, role LIMIT 1"
        return (
            f"WITH RECURSIVE kinds (kind, role) AS (({rows} {one}) UNION ALL SELECT n.kind, n.role FROM kinds k"
            f" CROSS JOIN LATERAL ({rows} AND ({KIND}, role) > (k.kind, k.role) {one}) n) "
        )

    async def find_rows(self, session: Session, query: RowQuery) -> list[FoundRow]:
        statement, args = self.rows_statement(query)
        found = await session.fetch(statement, *args)
        return [FoundRow(row[0], row[1], row[2], Body(row[3], row[4])) for row in found]

    # --- counts

    def count_statement(
        self, query: SessionQuery | RowQuery, grouping: Grouping | None = None
    ) -> tuple[str, list[Any]]:
        """The statement that counts what a query finds, by values if *grouping* names some, and its arguments."""
        args = Arguments()
        if isinstance(query, SessionQuery):
            where, _ = _session_conditions(args, query, None)
            counted, end = _counted(args, grouping, "a.")
            infos = f" JOIN {self._tables.infos} i ON i.agent_id = a.agent_id" if query.metadata else ""
            return f"SELECT {counted} FROM {self._tables.agents} a{infos} WHERE {' AND '.join(where)}{end}", args
        where, _, sought = _row_conditions(args, query, None)
        counted, end = _counted(args, grouping, "r.")
        table, condition = getattr(self._tables, query.kind), " AND ".join(where) or "TRUE"
        if sought is None:
            return f"SELECT {counted} FROM {table} r WHERE {condition}{end}", args
        columns = "created_at, agent_id, role" if grouping is not None else ""
        one = f"SELECT {columns} FROM {table} WHERE {KIND} = k.kind AND role = k.role AND {condition}"
        kinds = f"({_has_one('k.kind', sought)} OR length(k.kind) = {KIND_LENGTH})"
        return f"{self._kinds()}SELECT {counted} FROM kinds k CROSS JOIN LATERAL ({one}) r WHERE {kinds}{end}", args

    async def count(self, session: Session, query: SessionQuery | RowQuery) -> int:
        statement, args = self.count_statement(query)
        found = await session.fetchrow(statement, *args)
        return int(found[0])

    async def group(self, session: Session, query: SessionQuery | RowQuery, grouping: Grouping) -> GroupRows:
        statement, args = self.count_statement(query, grouping)
        return [(tuple(values), number) for *values, number in await session.fetch(statement, *args)]
