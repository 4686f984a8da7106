"""Searches for texts by their index, over all agents, and its state (QRY-12).

``kode_texts`` has a row for each message. Triggers put it there, whichever program or version writes, and note that the
index lacks the message. The stores that know of the index add the hashes of the message's parts of three characters
afterwards. A search reads the messages that have the hashes of all its parts, and the ones without hashes; the core
compares each with the text. So it finds all of them at any time.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

import asyncpg
from msgspec.structs import replace

from kode_core.authoring.texts import MOST_INDEXED, MessageQuery, grams_of, indexed_text, needle_grams
from kode_core.batch import EngineIssue, FoundRow, Totals
from kode_core.codec import Body
from kode_core.engine import Progress, unwatched
from kode_core.query import RowQuery
from kode_postgres.doc_terms import DocTerms
from kode_postgres.queries import Arguments, page_of_rows, row_conditions
from kode_postgres.schema import OF_TEXTS, Tables, table_names
from kode_postgres.session import Session
from kode_postgres.text_tables import TRIGGERS

__all__ = ["NO_INDEX", "PAGE", "TextSearches", "TextsSeen", "bodies_of", "grams_as_text", "hashes", "looked_up"]

NO_INDEX: Final = (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError)
"""The index was removed meanwhile, or the store's user may not use it."""
_LOOK_S: Final = 60.0
_MOST: Final = 5_000
"""If more messages may have the text, reading all in their order finds a page as soon."""
_SAMPLE: Final = 5_000
PAGE: Final = 1_000
_PAGE_BYTES: Final = 2**17
"""A step ends after that many messages, or bytes, so that no writer waits long."""
_LONGEST: Final = 8 * MOST_INDEXED


class TextsSeen:
    """Whether the database had the index when this store last looked.

    Attributes:
        has: the answer.
        wake: called when a search sees messages that wait to be indexed.
    """

    def __init__(self, *, has: bool) -> None:
        self.wake: Callable[[], None] = lambda: None
        self.note(has=has)

    def note(self, *, has: bool) -> None:
        """Note an answer of the database."""
        self.has = has
        self._until = time.monotonic() + _LOOK_S

    @property
    def is_recent(self) -> bool:
        """Whether there is no need to look again."""
        return time.monotonic() < self._until


async def looked_up(con: Any, tables: Tables) -> bool:
    """Whether the database has the index."""
    # as for the version: without a table, a session may not yet know tables that another one has just created
    statement = "SELECT to_regclass($1)::text FROM pg_catalog.pg_class LIMIT 1"
    return await con.fetchval(statement, tables.text_index) is not None


def hashes(grams: Iterable[str]) -> list[int]:
    """Numbers of 32 bits in the place of parts of three characters; they are different for parts of ASCII."""
    return [zlib.crc32(gram.encode()) - 2**31 for gram in grams]


def grams_as_text(body: Body | None) -> str | None:
    """The hashes of a message as an array of SQL; None if it is not indexed."""
    text = None if body is None else indexed_text(body)
    return None if text is None else f"{{{','.join(map(str, sorted(hashes(grams_of(text)))))}}}"


def bodies_of(columns: str, rows: str, order: str) -> str:
    """The statement that reads some of these messages, not more than fit into memory; a long one has no body."""
    short = f"CASE WHEN octet_length(body::text) <= {_LONGEST} THEN body::text END"
    sized = f"SELECT r.*, sum(pg_column_size(body)) OVER (ORDER BY {order}) - pg_column_size(body) AS before"
    some = f"before < {_PAGE_BYTES} OR before IS NULL"
    return f"SELECT {columns}, {short}, digest FROM ({sized} FROM ({rows}) r) s WHERE {some} ORDER BY {order}"


class TextSearches(DocTerms):
    """The searches over one store's tables, those for texts among them."""

    def __init__(self, tables: Tables, seen: TextsSeen | None = None) -> None:
        super().__init__(tables)
        self.seen = TextsSeen(has=False) if seen is None else seen
        triggers = ", ".join(f"'{tables.prefix}texts_{of}'" for of in TRIGGERS)
        self._is_kept = (
            f"(SELECT count(*) = {len(TRIGGERS)} FROM pg_catalog.pg_trigger WHERE"
            f" tgrelid = '{tables.messages}'::regclass AND tgname IN ({triggers}) AND tgenabled = 'A')"
        )
        """Whether the index notes what is written: a restored table may lack its triggers."""

    async def has_texts(self, session: Session) -> bool:
        """Whether the database has the index."""
        row = await session.fetchrow(
            "SELECT to_regclass($1) IS NOT NULL FROM pg_catalog.pg_class LIMIT 1", self._tables.text_index
        )
        self.seen.note(has=row[0])
        return self.seen.has

    def texts_statement(self, query: RowQuery, grams: list[int]) -> tuple[str, list[Any]]:
        """The statement of a page of messages that may have a text.

        Its first row says whether the index is of no help. Candidates are looked up one by one, behind an OFFSET:
        otherwise a plan could join whole tables.
        """
        args, t = Arguments(), self._tables
        own = "" if query.agent_id is None else f" AND {args.equals('agent_id', query.agent_id)}"
        filled = f"(SELECT is_filled AND {self._is_kept} FROM {t.text_index})"
        candidates = " UNION ALL ".join(
            f"(SELECT agent_id, position FROM {t.texts} WHERE {which}{own} AND {filled} LIMIT {_MOST + 1})"
            for which in ("grams IS NULL", f"grams @> {args.mark(grams, 'integer[]')}")
        )
        conditions = row_conditions(args, query)
        behind, order, limit, offset = page_of_rows(args, query)
        where = ["m.agent_id = c.agent_id", "m.position = c.position", *conditions, *behind]
        looked_up = f"SELECT * FROM {t.messages} m WHERE {' AND '.join(where)} OFFSET 0"
        page = f"SELECT m.* FROM c CROSS JOIN LATERAL ({looked_up}) m WHERE NOT o.is_no_help {order}"
        return (
            f"WITH c AS MATERIALIZED ({candidates}), o AS MATERIALIZED (SELECT count(*) > {_MOST}"
            f" OR {filled} IS NOT TRUE AS is_no_help, EXISTS (SELECT FROM {t.texts} WHERE is_noted) AS waits FROM c)"
            " SELECT o.is_no_help, o.waits, r.agent_id, r.position, r.created_at, r.body::text, r.digest FROM o"
            f" LEFT JOIN LATERAL ({page} LIMIT {limit} OFFSET {offset}) r ON true {order}",
            args,
        )

    async def find_rows(self, session: Session, query: RowQuery) -> list[FoundRow]:
        grams = hashes(needle_grams(query.contains)) if isinstance(query, MessageQuery) else []
        if grams and (self.seen.has or await self.has_texts(session)):
            try:
                found = await session.fetch(*_called(self.texts_statement(query, grams)))
            except NO_INDEX:
                self.seen.note(has=False)
            else:
                if found[0][1] or found[0][0]:
                    self.seen.wake()
                if not found[0][0]:
                    rows = [row[2:] for row in found if row[2] is not None]
                    return [FoundRow(row[0], row[1], row[2], Body(row[3], row[4])) for row in rows]
        return await super().find_rows(session, query)

    # --- the state of the index

    async def totals(self, session: Session) -> Totals:
        names = table_names(self._tables, more=OF_TEXTS if await self.has_texts(session) else ())
        totals = await self._totals(session, names)
        if not self.seen.has:
            return totals
        try:
            return replace(totals, texts_waiting=await self.waiting(session))
        except asyncpg.InsufficientPrivilegeError:
            return replace(totals, texts_hidden=True)

    async def waiting(self, session: Session) -> int | None:
        """How many messages are not indexed yet; None without the index.

        Raises:
            InsufficientPrivilegeError: there is one, and the store's user may not read it.
        """
        if not (self.seen.has or await self.has_texts(session)):
            return None
        t = self._tables
        heads = f"FROM {t.agents} a WHERE a.agent_id"
        try:
            row = await session.fetchrow(
                f"SELECT (SELECT count(*) FROM {t.texts} WHERE is_noted), i.is_filled, CASE WHEN NOT i.is_filled THEN"
                f" (SELECT coalesce(sum(message_count), 0)::bigint {heads} > i.agent_id) + (SELECT coalesce(sum("
                f" greatest(message_count - 1 - i.position, 0)), 0)::bigint {heads} = i.agent_id) END"
                f" FROM {t.text_index} i"
            )
        except asyncpg.UndefinedTableError:
            return None
        return None if row is None else int(row[0] + (0 if row[1] else max(row[2], 1)))

    async def inspect(
        self, session: Session, agent_id: str | None, progress: Progress = unwatched
    ) -> list[EngineIssue]:
        issues = await super().inspect(session, agent_id, progress)
        if agent_id is not None and await self.has_texts(session):
            wrong = 0
            with suppress(*NO_INDEX):
                wrong = await self._disagreeing(session, agent_id)
            if wrong:
                text = f"the index of texts disagrees with {wrong} messages; kode text-index rebuild makes it anew"
                issues.append(EngineIssue("index_disagrees", agent_id, text))
        return issues

    async def _disagreeing(self, session: Session, agent_id: str) -> int:
        """How many messages disagree; of an agent with many, some thousand are compared with their texts."""
        t, on = self._tables, "m.agent_id = t.agent_id AND m.position = t.position"
        filled = "(i.is_filled OR (m.agent_id, m.position) <= (i.agent_id, i.position))"
        lacking, stray, count, is_kept = await session.fetchrow(
            f"SELECT (SELECT count(*) FROM {t.messages} m, {t.text_index} i WHERE m.agent_id = $1 AND {filled}"
            f" AND NOT EXISTS (SELECT FROM {t.texts} t WHERE {on})),"
            f" (SELECT count(*) FROM {t.texts} t WHERE t.agent_id = $1"
            f" AND NOT EXISTS (SELECT FROM {t.messages} m WHERE {on})),"
            f" (SELECT count(*) FROM {t.texts} t WHERE t.agent_id = $1), {self._is_kept}",
            agent_id,
        )
        wrong, after = lacking + stray + (0 if is_kept else max(count, 1)), -1
        rows = (
            f"SELECT t.position, t.grams, m.body, m.digest FROM {t.texts} t JOIN {t.messages} m ON {on}"
            " WHERE t.agent_id = $1 AND t.position > $2 AND t.position % $3 = 0 AND NOT t.is_noted"
            f" ORDER BY t.position LIMIT {PAGE}"
        )
        while True:
            statement = bodies_of("position, grams::text", rows, "position")
            page = await session.fetch(statement, agent_id, after, count // _SAMPLE + 1)
            for position, grams, body, digest in page:
                after = position
                wrong += grams != grams_as_text(None if body is None else Body(body, digest))
            if not page:
                return int(wrong)


def _called(asked: tuple[str, list[Any]]) -> tuple[Any, ...]:
    return (asked[0], *asked[1])
