"""Make, fill and remove the index of texts, next to the writers (QRY-12).

Each step is a transaction that indexes some messages, under an advisory lock that one store has at a time. A process
that is killed leaves nothing behind: the next store that writes messages goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum, auto
from typing import Any, Final

from kode_core.codec import Body
from kode_core.engine import Progress
from kode_core.errors import KodeError, StoreReadOnlyError, StoreUnavailableError
from kode_core.plugins import TextIndexAction
from kode_postgres.connection import Connections
from kode_postgres.schema import Tables
from kode_postgres.session import Session
from kode_postgres.text_tables import drop_statements, make_statements, see_texts
from kode_postgres.texts import PAGE, TextSearches, bodies_of, grams_as_text

__all__ = ["Indexing"]

log = logging.getLogger("kode_postgres")

_STEP_S: Final = 60.0
_CHANGE_S: Final = 600.0
_PAUSE_S: Final = 0.2
_STEPS_SHOWN: Final = 16


class _Done(Enum):
    """The result of a step."""

    SOME = auto()
    ALL = auto()
    BUSY = auto()
    """Another store has the lock, or the rows."""
    NO_INDEX = auto()


class Indexing:
    """The index of one store: its steps, which a task of its own takes after writes, and its changes."""

    def __init__(self, connections: Connections, tables: Tables, searches: TextSearches) -> None:
        self._connections = connections
        self._tables = tables
        self._searches = searches
        self._seen = searches.seen
        self._seen.wake = self._wake
        self._key = f"kode texts {tables.identity}"
        self._task: asyncio.Task[None] | None = None
        self._has_more = self._is_over = False

    # --- after writes

    def written(self) -> None:
        """Note that messages were written. A store that saw no index looks again after a minute."""
        if self._seen.has or not self._seen.is_recent:
            self._wake()

    def _wake(self) -> None:
        self._has_more = True
        if self._task is None and not self._is_over:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        """Index until nothing is left. An error ends it, and the next write begins anew: no write depends on it."""
        try:
            while self._has_more and not self._is_over:
                self._has_more = False
                done = await self.step()
                if done is _Done.BUSY:
                    await asyncio.sleep(_PAUSE_S)
                self._has_more |= done in (_Done.SOME, _Done.BUSY)
        except StoreReadOnlyError:
            self._is_over = True
            log.warning("the user of this store may not write to the index of texts, and leaves that to other stores")
        except KodeError as exc:
            log.info("messages were not put into the index of texts: %s", exc)
        finally:
            self._task = None

    async def close(self) -> None:
        """End the present step, which leaves nothing behind."""
        self._is_over = True
        if (task := self._task) is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    # --- steps

    async def step(self) -> _Done:
        """Index some of the messages that wait, the newest first, and some of those from before the index was made."""
        return await self._connections.write(self._step, self._connections.answer_s + _STEP_S)

    async def _step(self, session: Session) -> _Done:
        t = self._tables
        if not await self._searches.has_texts(session):
            return _Done.NO_INDEX
        if not await self._locks(session):
            return _Done.BUSY
        if not await self._searches.has_texts(session):
            return _Done.NO_INDEX
        noted = await self._index_noted(session)
        state = await session.fetchrow(f"SELECT is_filled, agent_id, position FROM {t.text_index}")
        if state is not None and not state[0]:
            await self._fill(session, state[1:])
            return _Done.SOME
        return noted

    async def _locks(self, session: Session) -> bool:
        row = await session.fetchrow("SELECT pg_try_advisory_xact_lock(hashtextextended($1, 21))", self._key)
        return bool(row[0])

    async def _index_noted(self, session: Session) -> _Done:
        t, on = self._tables, "m.agent_id = t.agent_id AND m.position = t.position"
        rows = (
            "SELECT t.id, t.agent_id, t.position, m.body, m.digest FROM (SELECT id, agent_id, position"
            f" FROM {t.texts} WHERE is_noted ORDER BY id DESC LIMIT {PAGE}) t LEFT JOIN LATERAL"
            f" (SELECT body, digest FROM {t.messages} m WHERE {on} OFFSET 0) m ON true"
        )
        found = await session.fetch(bodies_of("id, agent_id, position", rows, "id DESC"))
        if not found:
            return _Done.ALL
        columns = [[row[i] for row in found] for i in range(3)]
        grams = await asyncio.to_thread(_all_grams, found)
        gone = [row[4] is None for row in found]
        same = "t.agent_id = n.agent_id AND t.position = n.position AND t.id = n.id"
        done = await session.fetchrow(
            "WITH n AS MATERIALIZED (SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[],"
            " $5::boolean[]) n (id, agent_id, position, grams, is_gone)), free AS MATERIALIZED (SELECT n.*"
            f" FROM {t.texts} t JOIN n ON {same} FOR UPDATE OF t SKIP LOCKED),"
            f" gone AS (DELETE FROM {t.texts} t USING free n WHERE {same} AND n.is_gone), indexed AS"
            f" (UPDATE {t.texts} t SET is_noted = false, grams = n.grams::integer[] FROM free n"
            f" WHERE {same} AND NOT n.is_gone) SELECT count(*) FROM free",
            *columns,
            grams,
            gone,
        )
        return _Done.SOME if done[0] else _Done.BUSY

    async def _fill(self, session: Session, after: Sequence[Any]) -> None:
        """Index the next messages in the order of the primary key.

        They stay locked against deletes until the commit, so that none leaves a row here; one that was changed
        meanwhile has been noted.
        """
        t = self._tables
        rows = (
            f"SELECT agent_id, position, body, digest FROM {t.messages} WHERE (agent_id, position) > ($1, $2)"
            f" ORDER BY agent_id, position LIMIT {PAGE}"
        )
        found = await session.fetch(bodies_of("0, agent_id, position", rows, "agent_id, position"), *after)
        if not found:
            await session.fetch(f"UPDATE {t.text_index} SET is_filled = true")
            return
        grams = await asyncio.to_thread(_all_grams, found)
        await session.fetch(
            f"INSERT INTO {t.texts} (agent_id, position, is_noted, grams) SELECT m.agent_id, m.position, false,"
            " n.grams::integer[] FROM unnest($1::text[], $2::bigint[], $3::bytea[], $4::text[])"
            f" n (agent_id, position, digest, grams) JOIN {t.messages} m ON m.agent_id = n.agent_id"
            " AND m.position = n.position AND m.digest = n.digest FOR KEY SHARE OF m ON CONFLICT DO NOTHING",
            [row[1] for row in found],
            [row[2] for row in found],
            [row[4] for row in found],
            grams,
        )
        await session.fetch(f"UPDATE {t.text_index} SET agent_id = $1, position = $2", found[-1][1], found[-1][2])

    # --- changes

    async def add(self, *, create: bool) -> None:
        """Make the index if there is none; its messages come afterwards.

        Raises:
            StoreUnavailableError: there is none, and *create* forbids to make it; or tables of it are missing.
            StoreReadOnlyError: the user may make no tables or no triggers.
        """

        async def call(session: Session) -> None:
            await self._lock(session)  # another store may just make it
            await see_texts(session, self._tables, self._connections.address)
            if await self._searches.has_texts(session):
                return
            if not create:
                raise StoreUnavailableError(
                    f"{self._connections.address}: there is no index of texts, and create is off; {self._remedy}"
                )
            await self._change(session, make_statements(self._tables))

        await self._changing(call)

    async def drop(self) -> None:
        """Remove the index."""
        await self._changing(lambda session: self._change(session, drop_statements(self._tables)))

    async def rebuild(self) -> None:
        """Remove the index, and make it anew, empty."""
        both = [*drop_statements(self._tables), *make_statements(self._tables)]
        await self._changing(lambda session: self._change(session, both))

    @property
    def _remedy(self) -> str:
        return (
            "let the tables' owner run kode text-index add, or what kode schema 'postgres:?text_index=true'"
            " --from VERSION --print prints"
        )

    async def _changing(self, call: Any) -> None:
        try:
            await self._connections.write(call, self._connections.answer_s + _CHANGE_S)
        except StoreReadOnlyError as exc:
            raise StoreReadOnlyError(f"{exc}; {self._remedy}") from exc

    async def _lock(self, session: Session) -> None:
        await session.fetch("SELECT pg_advisory_xact_lock(hashtextextended($1, 21))", self._key)

    async def _change(self, session: Session, statements: Sequence[str]) -> None:
        await self._lock(session)
        for statement in statements:
            await session.fetch(statement)
        await self._searches.has_texts(session)

    async def change(self, action: TextIndexAction, progress: Progress, *, create: bool) -> int | None:
        """Do what ``kode text-index`` asks, and index all messages; a caller that does not wait loses nothing."""
        if action == "add":
            await self.add(create=create)
        elif action == "rebuild":
            await self.rebuild()
        elif action == "drop":
            await self.drop()
        try:
            waiting = total = await self._connections.read(self._searches.waiting)
        except StoreReadOnlyError as exc:
            raise StoreReadOnlyError(
                f"{exc}; there is an index of texts, whose state takes the right to SELECT from kode_texts and"
                " kode_text_index"
            ) from exc
        steps = 0
        while waiting and total and action != "status":
            done = await self.step()
            if done is _Done.BUSY:
                await asyncio.sleep(_PAUSE_S)
            steps += 1
            if done is not _Done.SOME or steps % _STEPS_SHOWN == 0:
                waiting = await self._connections.read(self._searches.waiting)
                total = max(total, waiting or 0)
                progress(total - (waiting or 0), total)
        return waiting


def _all_grams(rows: Sequence[Any]) -> list[str | None]:
    """The hashes of messages whose last columns are the body and the digest."""
    return [grams_as_text(None if row[-2] is None else Body(row[-2], row[-1])) for row in rows]
