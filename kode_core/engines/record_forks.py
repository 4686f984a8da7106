"""Forks of the record engine: each child is whole or absent; one that is half made is removed by whoever finds it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from msgspec.structs import replace

from kode_core.batch import FORKED_DOCS, Child, ListHead, ListKind, first_version
from kode_core.codec import Body
from kode_core.engine import CALLER
from kode_core.engines.record_io import MovedError, RecordIO, each
from kode_core.engines.record_plan import new_head
from kode_core.engines.record_reads import Instant, RecordReads
from kode_core.engines.record_recovery import FORK_DEAD_SECONDS
from kode_core.engines.record_state import AgentHead, State, count_of, doc_span, list_of, new_epoch
from kode_core.engines.records import HeadRecord, Item
from kode_core.errors import KodeError, OutcomeUnknownError, StoreBusyError

__all__ = ["RecordForks"]

_ATTEMPTS: Final = 5
_AT_ONCE: Final = 500
_SIGN_SECONDS: Final = FORK_DEAD_SECONDS / 6


class RecordForks:
    """Makes forks."""

    def __init__(self, io: RecordIO, reads: RecordReads) -> None:
        self._io = io
        self._reads = reads

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        """See ``Engine.fork``."""

        async def read(instant: Instant) -> tuple[HeadRecord, list[Item]] | None:
            info = await self._io.info(instant.head)
            if info is None or info.body != expect:
                return None
            return instant.head.record, await self._taken(instant)

        parent = await self._reads.at_once(agent_id, read, None)
        if parent is None:
            return False
        await each(lambda child: self._make(*parent, child, now), children)
        return True

    async def _taken(self, instant: Instant) -> list[Item]:
        """What a fork takes along, at one instant (FORK-1)."""
        items = [item for kind in ListKind for item in await self._reads.list_items(instant, kind)]
        for kind in FORKED_DOCS:
            items += await self._reads.items(instant, doc_span(kind))
        items = await self._io.whole(instant.place, items)
        now = await self._io.head(instant.place.agent_id)
        if now is None or (now.record.epoch, now.record.rev) != (instant.place.epoch, instant.head.record.rev):
            raise MovedError
        return items

    async def _make(self, parent: HeadRecord, items: Sequence[Item], child: Child, now: int) -> None:
        for _ in range(_ATTEMPTS):
            try:
                old = await self._io.head(child.agent_id)
                if old is not None:
                    old = await self._io.settle(old)
                if await self._made(old, parent, items, child, now):
                    return
            except MovedError:
                continue
        raise StoreBusyError(f"fork {child.agent_id!r}: somebody else keeps removing it")

    async def _made(
        self, old: AgentHead | None, parent: HeadRecord, items: Sequence[Item], child: Child, now: int
    ) -> bool:
        """Reserve the child's head, put its items where nobody looks, and let the head say that they are there."""
        base = new_head(child.agent_id) if old is None else replace(old.record, epoch=new_epoch())
        state = State(reserved=True)
        if old is not None:
            doomed = (old.record.epoch,) if old.record.is_used else ()
            state = State(next_offset=old.state.next_offset, reserved=True, doomed=doomed)
        reserved = AgentHead.sealed(replace(base, rev=base.rev + 1), state)
        if not await self._io.swap(old, reserved):
            return False
        rev, place = reserved.record.rev + 1, reserved.record.place
        has_parts = any(self._io.is_large(item.body.text) for item in items)
        copies = [replace(item, rev=rev) for item in items]
        shown_at = time.monotonic()
        for i in range(0, len(copies), _AT_ONCE):
            if time.monotonic() - shown_at > _SIGN_SECONDS:
                reserved, shown_at = await self._alive(reserved), time.monotonic()
            try:
                await self._io.apply(place, copies[i : i + _AT_ONCE], has_parts=has_parts, fresh=True)
                CALLER.get().goes_on()
            except OutcomeUnknownError:
                raise MovedError from None  # what may still arrive there is never looked at
        latest = max((item.time for item in items if list_of(item.key) is ListKind.MESSAGES), default=None)
        state = replace(state, reserved=False, has_parts=has_parts, latest=latest, is_latest=latest is not None)
        lists = {kind.value: _forked(count_of(parent, kind)) for kind in ListKind}
        whole = reserved.next(state, info=child.info, updated_at=now, is_used=True, **lists)
        forked = await self._io.with_info_beside(whole)
        if not await self._io.swap(reserved, forked):
            await self._io.leave(reserved.record)
            return False
        with suppress(KodeError, MovedError):  # it is a fork already, and who comes next does it
            await self._io.settle(forked)
        return True

    async def _alive(self, reserved: AgentHead) -> AgentHead:
        """Show those who look for what the dead left that this fork goes on."""
        record = reserved.record
        after = reserved.next(reserved.state)
        if not await self._io.swap(reserved, after):
            await self._io.leave(record)
            raise MovedError
        return after


def _forked(head: ListHead) -> ListHead:
    return ListHead(head.version and first_version(), head.count)
