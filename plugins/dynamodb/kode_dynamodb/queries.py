"""Queries over many agents: the partitions of a global index are read in parallel and merged in order.

A global index lags behind the table. Its entries are looked up in the table, and outdated ones are left out.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from msgspec.structs import replace

from kode_core.authoring.matching import page, row_matches, session_matches
from kode_core.authoring.reading import unless_damaged
from kode_core.batch import Found, SessionRow, Totals
from kode_core.engines.record.store import FoundItem, ItemsPlace
from kode_core.query import Range, RowQuery, SessionQuery, Within, values_of
from kode_dynamodb.connection import LOOKING, Connection, Record, first_of
from kode_dynamodb.merging import Partition, merged
from kode_dynamodb.values import (
    INDEX_PREFIX,
    NO_FILTER,
    agent_of,
    buckets,
    filed_counts,
    filed_row,
    found_head,
    found_item,
    found_meta,
    head_key,
    hexed,
    index_filter,
    items_pk,
    moment,
    place_of,
    position_key,
    row_key,
    within_filter,
)

__all__ = ["Queries"]


_PAGE: Final = 100
_FIRST, _END = "!", "~"


class Queries:
    """The queries over many agents."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # --- sessions

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> list[str]:
        """As ``Engine.agent_ids``."""
        first = max(hexed(prefix), "" if after is None else f"{hexed(after)}!") or _FIRST
        found: list[str] = []
        async for entry in merged(
            self._connection, "agents", _all_of("h", (first, f"{hexed(prefix)}{_END}")), sizes=first_of(limit)
        ):
            found.append(agent_of(entry))
            if len(found) == limit:
                break
        return found

    async def stored_ids(self, after: str | None, limit: int) -> list[str]:
        """As ``Engine.stored_ids``. The index with all agents is not ordered by id, so this reads all of it."""
        least: list[str] = []
        async for entry in merged(self._connection, "updated", _all_of("h", (_FIRST, _END))):
            agent_id = agent_of(entry)
            if after is None or agent_id > after:
                least.append(agent_id)
            if len(least) >= 4 * limit:
                least = heapq.nsmallest(limit, set(least))
        return heapq.nsmallest(limit, set(least))

    async def find_sessions(self, query: SessionQuery) -> list[SessionRow]:
        """As ``Engine.find_sessions``."""
        left_out = list[str]()
        if isinstance(query.agent_id, Within):
            return Found(page(_keyed(await self._of_range(query, query.agent_id, left_out), query), query), left_out)
        if query.agent_id is not None:
            entries_of = [{"pk": head_key(agent_id)["pk"]} for agent_id in values_of(query.agent_id)]
            rows = await self._sessions(entries_of, query, set(), left_out)
            return Found(page(_keyed(rows, query), query), left_out)
        if query.sort_by == "message_count":
            return Found(page(_keyed(await self._all_sessions(query, left_out), query), query), left_out)
        index = "created" if query.sort_by == "created_at" else "updated"
        span = _span(query.created if index == "created" else query.updated, query.after, descending=query.descending)
        most, found, some, seen = query.offset + query.limit, list[SessionRow](), list[Record](), set[str]()
        sizes = LOOKING if _is_looking(query, index) else first_of(min(most, _PAGE))
        entries = merged(self._connection, index, _all_of("h", span), descending=query.descending, sizes=sizes)
        async for entry in entries:
            some.append(entry)
            if len(some) == min(most - len(found), _PAGE):
                found += await self._sessions(some, query, seen, left_out)
                some = []
                if len(found) >= most:
                    break
        found += await self._sessions(some, query, seen, left_out)
        return Found(found[query.offset : most], left_out)

    async def _all_sessions(self, query: SessionQuery, left_out: list[str]) -> list[SessionRow]:
        """All sessions that match, for an order that no index has."""
        return await self._every(merged(self._connection, "updated", _all_of("h", (_FIRST, _END))), query, left_out)

    async def _of_range(self, query: SessionQuery, within: Within, left_out: list[str]) -> list[SessionRow]:
        """All sessions of a range of agents that match: an index has them in the order of their ids alone."""
        first = hexed(within.prefix)
        return await self._every(
            merged(self._connection, "agents", _all_of("h", (first, f"{first}{_END}"))), query, left_out
        )

    async def _every(self, found: AsyncIterator[Record], query: SessionQuery, left_out: list[str]) -> list[SessionRow]:
        entries = [entry async for entry in found]
        pieces, seen = (entries[i : i + _PAGE] for i in range(0, len(entries), _PAGE)), set[str]()
        return [row for piece in pieces for row in await self._sessions(piece, query, seen, left_out)]

    async def _sessions(
        self, entries: Sequence[Record], query: SessionQuery, seen: set[str], left_out: list[str]
    ) -> list[SessionRow]:
        """The sessions of the entries that match, in their order, with their infos from the table.

        A lagging index may have two entries of one agent: the one that agrees with the table counts, or else the
        first. Agents in *seen* are left out, and returned ones are added to it. The names of damaged ones go to
        *left_out* (QRY-9).
        """
        wanted = [entry for entry in entries if unless_damaged(left_out, _may_match, entry, query)]
        heads = await self._connection.get_all([head_key(agent_of(entry)) for entry in wanted]) if wanted else []
        by_agent = {agent_of(head): head for head in heads}
        found, chosen = list[tuple[Record, SessionRow]](), dict[str, Record]()
        for entry in wanted:
            stored = by_agent.get(agent_of(entry))
            row = unless_damaged(left_out, _session, entry, stored, query)
            if stored is None or row is None or row.agent_id in seen:
                continue
            found.append((entry, row))
            if row.agent_id not in chosen or entry.items() <= stored.items():
                chosen[row.agent_id] = entry
        seen.update(chosen)
        return [row for entry, row in found if chosen[row.agent_id] is entry]

    async def totals(self) -> Totals:
        """As ``Engine.totals``, from the index that has all agents."""
        agents = messages = calls = used = 0
        async for entry in merged(self._connection, "updated", _all_of("h", (_FIRST, _END))):
            counts = unless_damaged([], filed_counts, entry)
            agents += "meta" in entry
            messages += counts.messages if counts else 0
            calls += counts.tool_calls if counts else 0
            used += 1
        return Totals(agents=agents, messages=messages, tool_calls=calls, is_used=used > 0)

    # --- rows

    async def find_items(self, query: RowQuery, places: Sequence[ItemsPlace] | None) -> list[FoundItem]:
        """As ``RecordStore.find_items``, for the *places* of some agents, or for all agents."""
        kind, descending = INDEX_PREFIX[query.kind], query.descending
        sizes, filtered = first_of(query.limit), NO_FILTER
        if query.where:
            sizes, filtered = LOOKING, index_filter(query.kind, query.where)
        within = query.agent_id if isinstance(query.agent_id, Within) else None
        if within is not None:
            sizes, filtered = LOOKING, within_filter(within, filtered)
        how: dict[str, Any] = {"descending": descending, "sizes": sizes, "filtered": filtered}
        if places is None:
            span = _span(query.created, query.after, descending=descending)
            entries = merged(self._connection, "rows", _all_of(kind, span), **how)
        else:
            spans = {items_pk(place)["S"]: _span_of(query, place.agent_id) for place in places}
            of_agents = [(pk, (f"{kind}/{first}", f"{kind}/{last}")) for pk, (first, last) in spans.items()]
            entries = merged(self._connection, "by_time", of_agents, **how)
        found, chosen, left_out = list[FoundItem](), list[Record](), list[str]()
        async for entry in entries:
            if within is not None and place_of(entry).agent_id not in within:
                continue
            filed = unless_damaged(left_out, filed_row, entry)
            if filed is not None and row_matches(filed[0], filed[1], query):
                chosen.append(entry)
            if len(found) + len(chosen) == query.limit:
                found += await self._rows(chosen, query, left_out)
                chosen = []
                if len(found) == query.limit:
                    return Found(found, left_out)
        return Found(found + await self._rows(chosen, query, left_out), left_out)

    async def _rows(self, entries: Sequence[Record], query: RowQuery, left_out: list[str]) -> list[FoundItem]:
        """The rows of entries, from the table. Rows that have moved or no longer match are left out.

        The names of damaged rows go to *left_out* (QRY-9).
        """
        if not entries:
            return []
        keys = [{"pk": entry["pk"], "sk": entry["sk"]} for entry in entries]
        by_key = {(item["pk"]["S"], item["sk"]["S"]): item for item in await self._connection.get_all(keys)}
        found = []
        for entry in entries:
            stored = by_key.get((entry["pk"]["S"], entry["sk"]["S"]))
            if stored is None:
                continue
            item = unless_damaged(left_out, found_item, stored)
            if item is not None and item.time == int(entry["t"]["N"]) and row_matches(item.time, item.index, query):
                found.append(FoundItem(place_of(stored), item))
        return found


def _is_looking(query: SessionQuery, index: str) -> bool:
    """Whether a query filters sessions within its span of the index."""
    other = query.updated if index == "created" else query.created
    return query.template_id is not None or bool(query.metadata) or other != Range()


def _span(times: Range, after: tuple[Any, ...] | None, *, descending: bool) -> tuple[str, str]:
    """The first and the last key of an index over all agents."""
    return _bounds(times, None if after is None else position_key(*after), descending=descending)


def _span_of(query: RowQuery, agent_id: str) -> tuple[str, str]:
    """The first and the last key among the rows of one agent, of those that follow the page before."""
    times = query.created
    if query.after is None:
        return _bounds(times, None, descending=query.descending)
    time, last_agent, position = query.after
    if agent_id == last_agent:
        return _bounds(times, row_key(time, position), descending=query.descending)
    # Rows of the time at which the page ended come before or after it by their agent.
    bound = time + (agent_id < last_agent)
    if query.descending:
        times = replace(times, end=bound if times.end is None else min(times.end, bound))
    else:
        times = replace(times, start=bound if times.start is None else max(times.start, bound))
    return _bounds(times, None, descending=query.descending)


def _all_of(kind: str, span: tuple[str, str]) -> list[Partition]:
    """All partitions of a global index, for one kind of item, with the same first and last key."""
    return [(name, span) for name in buckets(kind)]


def _bounds(times: Range, after: str | None, *, descending: bool) -> tuple[str, str]:
    """The first and the last key within a range of times and after *after*."""
    first = "" if times.start is None else moment(times.start)
    last = _END if times.end is None else moment(times.end)  # sorts before all keys of that moment
    if after is not None and descending:
        last = min(last, _before(after))
    elif after is not None:
        first = max(first, f"{after}{_END}")
    return first or _FIRST, last


def _before(key: str) -> str:
    """A text between *key* and all lesser keys. Keys are ASCII and end with a digit or ``!``."""
    return f"{key[:-1]}{chr(ord(key[-1]) - 1)}{_END}"


def _keyed(rows: Sequence[SessionRow], query: SessionQuery) -> list[tuple[tuple[int, str], SessionRow]]:
    return [((getattr(row, query.sort_by), row.agent_id), row) for row in rows]


def _may_match(entry: Record, query: SessionQuery) -> bool:
    """Whether the session of an entry may match, as far as the index knows."""
    info = found_meta(entry)
    if info is None:
        return "hb" not in entry  # the index of updates has agents without info, too; they are no sessions
    counts = filed_counts(entry)
    open_query = query if counts else replace(query, updated=Range())
    return session_matches(agent_of(entry), info, counts.updated_at if counts else 0, open_query)


def _session(entry: Record, stored: Record | None, query: SessionQuery) -> SessionRow | None:
    """The session of an entry: its times from the index, the rest from the table. None if it is outdated."""
    head = None if stored is None else found_head(stored)
    if stored is None or head is None or head.info is None:
        return None
    if "cr" in entry and entry["cr"] != stored.get("cr"):
        return None  # the entry is outdated
    counts = filed_counts(entry)
    updated_at = counts.updated_at if counts else head.updated_at
    count = counts.messages if counts else head.messages.count
    if not session_matches(head.agent_id, head.info, updated_at, query):
        return None
    return SessionRow(head.agent_id, head.info.body, head.info.created_at, updated_at, count)
