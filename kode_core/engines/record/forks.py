"""Forks of the record engine: each child is whole or absent, and the next process removes one that is half made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from msgspec.structs import replace

from kode_core.authoring.parallel import each
from kode_core.batch import FORKED_DOCS, Child, ListHead, ListKind, first_version
from kode_core.codec import Body
from kode_core.engine import CALLER
from kode_core.engines.record.doc_keys import doc_keys
from kode_core.engines.record.io import MovedError, RecordIO, wall_clock
from kode_core.engines.record.plan import new_head, nonce
from kode_core.engines.record.reads import Instant, RecordReads
from kode_core.engines.record.recovery import FORK_DEAD_SECONDS
from kode_core.engines.record.state import KEPT_OPS, AppliedOperation, OpenedHead, State, list_head, list_of
from kode_core.engines.record.store import HeadRecord, Item
from kode_core.errors import KodeError, OutcomeUnknownError, StorageError, StoreBusyError

__all__ = ["RecordForks"]

_ATTEMPTS: Final = 5
_AT_ONCE: Final = 500
_SIGN_SECONDS: Final = FORK_DEAD_SECONDS / 6
_IN_DOUBT: Final = "an answer was lost, and the child may or may not have been made: read before you repeat it"


class _Fork(NamedTuple):
    """The parent at one instant, and the time of the fork: every child is made from these."""

    parent: HeadRecord
    items: Sequence[Item]
    now: int


class RecordForks:
    """Makes forks."""

    def __init__(self, io: RecordIO, reads: RecordReads) -> None:
        self._io = io
        self._reads = reads

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        """See ``Engine.fork``."""

        async def read(instant: Instant) -> _Fork | None:
            info = await self._io.info(instant.head)
            if info is None or info.body != expect:
                return None
            return _Fork(instant.head.record, await self._taken(instant), now)

        fork = await self._reads.at_once(agent_id, read, None)
        if fork is None:
            return False
        await each(lambda child: self._make(fork, child), children)
        return True

    async def _taken(self, instant: Instant) -> list[Item]:
        """The items that every child gets, as they were at one instant (FORK-1)."""
        items = [item for kind in ListKind for item in await self._reads.list_items(instant, kind)]
        for kind in FORKED_DOCS:
            items += await self._reads.items(instant, doc_keys(kind))
        items = await self._io.whole(instant.place, items)
        now = await self._io.head(instant.place.agent_id)
        if now is None or (now.record.epoch, now.record.rev) != (instant.place.epoch, instant.head.record.rev):
            raise MovedError
        return items

    async def _make(self, fork: _Fork, child: Child) -> None:
        """Make one child.

        Its head remembers the fork's operation id, so that a retry after a lost answer finds the child and does not
        overwrite later writes.

        Raises:
            StoreBusyError: other processes kept abandoning the fork, or wrote under the child's id first.
            OutcomeUnknownError: an answer was lost, and the child may or may not exist.
        """
        op_id, doubt = f"fork {nonce()}", OutcomeUnknownError(f"fork {child.agent_id!r}: {_IN_DOUBT}")
        in_doubt = False
        try:
            for attempt in range(_ATTEMPTS):
                with suppress(MovedError):
                    old = await self._io.head(child.agent_id)
                    if old is not None and old.state.knows(op_id):
                        return
                    if attempt and old is not None and old.record.is_used:
                        break
                    reserved = await self._filled(old, fork, child.agent_id)
                    is_done = await self._named(reserved, fork, child, op_id)
                    if is_done:
                        return
                    in_doubt = in_doubt or is_done is None
                    await self._io.remove_if_deleted(reserved.record)
        except StorageError as exc:
            if in_doubt:
                raise doubt from exc
            raise
        if in_doubt:
            raise doubt
        raise StoreBusyError(f"fork {child.agent_id!r}: another process keeps removing it, or writes under its id")

    async def _filled(self, old: OpenedHead | None, fork: _Fork, child_id: str) -> OpenedHead:
        """Reserve the child's head, and put its items at an epoch that readers do not see yet.

        Raises:
            MovedError: another writer changed the head, or an answer was lost.
        """
        has_parts = any(self._io.is_large(item.body.text) for item in fork.items)
        base, state = new_head(child_id), State(reserved=True, has_parts=has_parts)
        if old is not None:
            old = await self._io.redo(old)
            base = replace(base, rev=old.record.rev)
            doomed = (old.record.epoch,) if old.record.is_used else ()
            offset = old.state.next_offset
            state = replace(state, next_offset=offset, events_from=offset, ops=old.state.ops, doomed=doomed)
        reserved = OpenedHead.sealed(replace(base, rev=base.rev + 1, updated_at=wall_clock()), state)
        if not await self._io.swap(old, reserved):
            raise MovedError
        rev, place, shown_at = reserved.record.rev + 1, reserved.record.place, time.monotonic()
        for i in range(0, len(fork.items), _AT_ONCE):
            if time.monotonic() - shown_at > _SIGN_SECONDS:
                reserved, shown_at = await self._alive(reserved), time.monotonic()
            copies = [replace(item, rev=rev) for item in fork.items[i : i + _AT_ONCE]]
            try:
                await self._io.apply(place, copies, has_parts=has_parts, fresh=True)
                CALLER.get().goes_on()
            except OutcomeUnknownError:
                raise MovedError from None  # a late put at this epoch is never read
        return reserved

    async def _named(self, reserved: OpenedHead, fork: _Fork, child: Child, op_id: str) -> bool | None:
        """Swap the reserved head for the child's. False if the fork was abandoned, None if the answer was lost."""
        latest = max((item.time for item in fork.items if list_of(item.key) is ListKind.MESSAGES), default=None)
        messages, tool_calls = (
            _forked(list_head(fork.parent, kind)) for kind in (ListKind.MESSAGES, ListKind.TOOL_CALLS)
        )
        ops = (
            AppliedOperation(op_id, reserved.record.rev + 1, messages, tool_calls),
            *reserved.state.ops[: KEPT_OPS - 1],
        )
        state = replace(reserved.state, reserved=False, ops=ops, latest=latest, is_latest=latest is not None)
        fields = {"updated_at": fork.now, "is_used": True, "messages": messages, "tool_calls": tool_calls}
        whole = reserved.next(state, info=child.info, **fields)
        forked = await self._io.with_info_beside(whole)
        try:
            if not await self._io.store.swap(reserved.record, forked.record, None, ()):
                return False
        except OutcomeUnknownError:
            return None
        with suppress(KodeError, MovedError):  # the child exists already; the next process settles it
            await self._io.redo(forked)
        return True

    async def _alive(self, reserved: OpenedHead) -> OpenedHead:
        """Bump the revision, so that recovery sees that this fork is still alive."""
        record = reserved.record
        after = reserved.next(reserved.state, updated_at=wall_clock())
        if not await self._io.swap(reserved, after):
            await self._io.remove_if_deleted(record)
            raise MovedError
        return after


def _forked(head: ListHead) -> ListHead:
    return ListHead(head.version and first_version(), head.count)
