"""Queries of the record engine over many agents: what an index finds, as far as the heads still know it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar, cast

from msgspec.structs import replace

from kode_core.authoring.matching import row_matches
from kode_core.authoring.parallel import each
from kode_core.batch import DocKind, DocQuery, Found, FoundDoc, FoundRow, SessionRow, Totals
from kode_core.engines.record.doc_keys import own_key
from kode_core.engines.record.docs import OwnDocs, doc_of
from kode_core.engines.record.io import MovedError, RecordIO
from kode_core.engines.record.reads import Instant, RecordReads
from kode_core.engines.record.recovery import RecordRecovery
from kode_core.engines.record.state import OpenedHead, Overlay, list_head, list_of, position_of
from kode_core.engines.record.store import FoundItem
from kode_core.engines.record.terms import DocSearch, FindsDocItems, terms_of_item
from kode_core.errors import CorruptRecordError
from kode_core.query import RowQuery, SessionQuery

__all__ = ["RecordQueries"]

T = TypeVar("T")
F = TypeVar("F")

_SEARCH_AGAIN: Final = 20
_MOST_ASKED: Final = 1000
_WAITS: Final = 20


class RecordQueries:
    """Queries over many agents."""

    def __init__(self, io: RecordIO, reads: RecordReads, recovery: RecordRecovery) -> None:
        self._io = io
        self._reads = reads
        self._recovery = recovery

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> Sequence[str]:
        return await self._io.store.agent_ids(prefix, after, limit)

    async def stored_ids(self, after: str | None, limit: int) -> Sequence[str]:
        """See ``Engine.stored_ids``. A head does not count documents: whether an agent still has some is read."""
        found, store = list[str](), self._io.store
        while len(found) < limit:
            asked = limit - len(found)
            ids = await store.stored_ids(after, asked)
            listed = set(await store.agent_ids("", after, asked)) if ids else set()
            others = [one for one in ids if one not in listed]
            heads, _ = await self._io.readable_heads(others)
            bare = [head.record.agent_id for head in heads if _has_documents_at_most(head)]
            empty = {one for one, has in zip(bare, await each(self._has_documents, bare), strict=True) if not has}
            found += [one for one in ids if one not in empty]
            if len(ids) < asked:
                break
            after = ids[-1]
        return found

    async def _has_documents(self, agent_id: str) -> bool:
        """Whether an agent has a document, or one that cannot be read; documents of layers do not count."""

        async def read(instant: Instant) -> bool:
            docs = OwnDocs(self._io.store, *instant)
            for kind in (DocKind.DOCUMENTS, *DocKind):
                if kind is not DocKind.LAYER and await docs.has_any(kind, of_core=True):
                    return True
            await self._reads.still(instant)
            return False

        try:
            return await self._reads.at_once(agent_id, read, False)
        except CorruptRecordError:
            return True

    async def totals(self) -> Totals:
        return await self._io.store.totals()

    # --- sessions

    async def find_sessions(self, query: SessionQuery) -> Sequence[SessionRow]:
        """The sessions that match. In place of those whose info cannot be read, others are read."""
        await self._recovery.recover()
        found, left_out = list[SessionRow](), dict[str, None]()
        asked = query
        while asked.limit > 0:
            rows = await self._io.store.find_sessions(asked)
            names = _left_out(rows)
            is_last = len(rows) + len(names) < asked.limit
            whole = await each(self._whole_session, rows)
            found += [row for row in whole if isinstance(row, SessionRow)]
            left_out |= dict.fromkeys([*names, *(row for row in whole if isinstance(row, str))])
            if is_last or len(found) >= query.limit:
                break
            if rows:
                last = (getattr(rows[-1], query.sort_by), rows[-1].agent_id)
                asked = replace(asked, after=last, offset=0, limit=query.limit - len(found))
            else:
                asked = replace(asked, limit=2 * asked.limit)  # all that were looked at are damaged
        return Found(found[: query.limit], left_out)

    async def _whole_session(self, row: SessionRow) -> SessionRow | str:
        """The session with the whole text of its info, or the name of the damaged record."""
        if row.info.text:
            return row
        try:
            summary = await self._reads.summary(row.agent_id)
        except CorruptRecordError as exc:
            return exc.record
        return row if summary is None or summary.info is None else replace(row, info=summary.info.body)

    # --- rows and documents

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        """The rows that match. Rows of a single agent are read at one instant: no write shows in part (MSG-1)."""
        most = query.offset + query.limit

        async def page(limit: int, last: FoundItem | None) -> Sequence[FoundItem]:
            after = query.after
            if last is not None:
                after = (last.item.time, last.place.agent_id, position_of(last.item.key))
            return await self._io.store.find_items(replace(query, offset=0, limit=limit, after=after))

        async def row(instant: Instant, found: FoundItem) -> FoundRow | None:
            item = instant.overlay.current(found.item)
            kind, position = list_of(found.item.key), position_of(found.item.key)
            if item is None or kind is None or position >= list_head(instant.head.record, kind).count:
                return None
            if item is not found.item and not row_matches(item.time, item.index, query):
                return None
            (item,) = await self._io.whole(found.place, [item])
            return FoundRow(found.place.agent_id, position, item.time, item.body)

        found = await self._searched(query.agent_id, lambda: self._search(most, page, row))
        return Found(found[query.offset :], found.left_out)

    async def find_docs(self, query: DocQuery) -> Sequence[FoundDoc]:
        """See :meth:`kode_core.tagged.FindsDocs.find_docs`. Documents of one agent are of one instant."""
        store = cast(FindsDocItems, self._io.store)
        begin: tuple[str, str, str] | None = None
        if query.after is not None:  # behind this document at any epoch
            begin = query.after[0], own_key(query.after[1]), "" if query.descending else "~"
        search = DocSearch(
            terms=query.terms,
            agent_id=query.agent_id,
            descending=query.descending,
            limit=query.limit,
            bodies=query.bodies,
        )

        async def page(limit: int, last: FoundItem | None) -> Sequence[FoundItem]:
            after = begin if last is None else (last.place.agent_id, last.item.key, last.place.epoch)
            return await store.find_docs(replace(search, after=after, limit=limit))

        async def doc(instant: Instant, found: FoundItem) -> FoundDoc | None:
            item = instant.overlay.current(found.item)
            if item is None:
                return None
            if item.rev < found.item.rev:  # the head was read late
                item = found.item
            if item is not found.item and not set(query.terms) & set(terms_of_item(item)):
                return None
            if query.bodies:
                (item,) = await self._io.whole(found.place, [item])
            return FoundDoc(found.place.agent_id, doc_of(item))

        return await self._searched(query.agent_id, lambda: self._search(query.limit, page, doc))

    async def _searched(self, agent_id: Any, search: Callable[[], Awaitable[Found[T]]]) -> Found[T]:
        """The results of a search; those of a single agent at one instant."""
        await self._recovery.recover()
        if not isinstance(agent_id, str):
            return await search()

        async def read(instant: Instant) -> Found[T]:
            await self._end_of_write(instant)
            found = await search()
            now = await self._io.head(instant.place.agent_id)
            if now is None or (now.record.epoch, now.record.rev) != (instant.place.epoch, instant.head.record.rev):
                raise MovedError
            return found

        return await self._reads.at_once(agent_id, read, Found[T]())

    async def _end_of_write(self, instant: Instant) -> None:
        """Wait until the head is settled, because indexes do not know pending changes.

        After a while this settles the head itself, in case its writer has died.

        Raises:
            MovedError: changes were pending, so the instant is over.
        """
        head = instant.head
        if head.state.is_settled:
            return
        for attempt in range(_WAITS):
            await asyncio.sleep(random.uniform(0, attempt + 1) / 1000)  # noqa: S311
            now = await self._io.head(head.record.agent_id)
            if now is None or now.record != head.record:
                raise MovedError
        await self._io.redo(head)
        raise MovedError

    async def _search(
        self,
        most: int,
        page: Callable[[int, FoundItem | None], Awaitable[Sequence[FoundItem]]],
        result: Callable[[Instant, FoundItem], Awaitable[F | None]],
    ) -> Found[F]:
        """The first results of a search, as far as the heads of their agents still know them.

        *page* reads a page of an index after an item, and *result* makes a result of an item, or None.
        """
        found, left_out, last = list[F](), dict[str, None](), cast(FoundItem | None, None)
        asked = 0
        while len(found) < most:
            asked = max(min(most - len(found) + _SEARCH_AGAIN, _MOST_ASKED), asked)
            items = await page(asked, last)
            known, damaged = await self._known(items, result)
            found += known
            left_out |= dict.fromkeys((*_left_out(items), *damaged))
            if len(items) + len(_left_out(items)) < asked:
                break
            asked = 0 if items else 2 * asked  # or all that were looked at are damaged
            last = items[-1] if items else last
        return Found(found[:most], left_out)

    async def _known(
        self, page: Sequence[FoundItem], result: Callable[[Instant, FoundItem], Awaitable[F | None]]
    ) -> tuple[list[F], list[str]]:
        """The results of items that their heads know, and the names of damaged heads (QRY-9)."""
        heads, damaged = await self._io.readable_heads(list(dict.fromkeys(found.place.agent_id for found in page)))
        instants = dict[str, Instant]()
        for head in heads:
            try:
                instants[head.record.agent_id] = Instant(head, await self._overlay(head))
            except CorruptRecordError as exc:
                damaged.append(exc.record)

        async def known(found: FoundItem) -> F | None:
            instant = instants.get(found.place.agent_id)
            if instant is None or instant.place != found.place or instant.head.state.reserved:
                return None
            try:
                return await result(instant, found)
            except MovedError:
                return None

        return [one for one in await each(known, page) if one is not None], damaged

    async def _overlay(self, head: OpenedHead) -> Overlay:
        try:
            return await self._io.overlay(head)
        except MovedError:
            return Overlay()  # the head was settled meanwhile


def _has_documents_at_most(head: OpenedHead) -> bool:
    """Whether an agent has nothing, unless it has documents."""
    record = head.record
    has_more = record.info is not None or record.messages.version or record.tool_calls.version
    return not has_more and head.state.last_seq is None


def _left_out(found: Sequence[object]) -> Sequence[str]:
    """The names of the records that a store could not read."""
    return found.left_out if isinstance(found, Found) else ()
