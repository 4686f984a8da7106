"""The queue of the record engine's writer: which batches share a swap, and how much one swap can hold."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextvars import Context
from typing import Final, NamedTuple

from kode_core.batch import Batch, ListKind, MessageIndex, Outcome
from kode_core.engine import Caller
from kode_core.engines.record.io import RecordIO
from kode_core.engines.record.state import KEPT_OPS, OpenedHead, Overlay, Step, row_keys
from kode_core.engines.record.store import Item
from kode_core.errors import OutcomeUnknownError, PayloadTooLargeError, StoreUnavailableError

__all__ = [
    "FORGOTTEN",
    "IN_DOUBT",
    "Until",
    "UnwantedError",
    "Waiting",
    "can_take_over",
    "check_indexes",
    "check_wanted",
    "group_caller",
    "is_forgotten",
    "latest_time",
    "may_supplant",
    "not_written",
    "swap_items_of",
    "take",
]

_GROUP: Final = KEPT_OPS // 2
_PATIENT_SHARE: Final = 1 / 3
"""The share of its caller's time for which a write waits for readers."""
_TURN_SHARE: Final = 2 / 3
"""The share of its caller's time for which a write waits for its turn; the rest is left for the write itself."""
_MOST_TAKEN: Final = 16
"""The most pending changes of earlier writes that a swap takes over: its head stores each of them again."""
_INDEX_CHARACTERS: Final = 50_000
IN_DOUBT: Final = "the connection broke, and the write may or may not have been applied: read before you repeat it"
FORGOTTEN: Final = f"{IN_DOUBT} (later writes pushed its id out of the head)"


class UnwantedError(Exception):
    """The callers of some batches no longer wait, and those batches have not been sent."""


class Waiting(NamedTuple):
    batch: Batch
    caller: Caller
    since: float
    done: asyncio.Future[Outcome | Exception]
    context: Context


def group_caller(group: Sequence[Waiting]) -> Caller:
    """A caller for a whole group: when a step is done, the deadline of every caller in it begins anew.

    It holds no reference to a batch, because a cancelled timer keeps its context alive until the timer's time.
    """
    callers = [one.caller for one in group]

    def goes_on() -> None:
        for caller in callers:
            caller.goes_on()

    return Caller(goes_on=goes_on)


def check_wanted(group: Sequence[Waiting], *, in_doubt: bool) -> None:
    """Stop before a swap whose callers no longer wait.

    A caller that was told "in doubt" must be able to read a state that lasts, so nothing may be sent for it any more. A
    group that is in doubt already stays together, because its batches were sent in one swap.

    Raises:
        OutcomeUnknownError: the group is in doubt, and none of its callers waits.
        UnwantedError: nothing was sent, and some callers no longer wait.
    """
    wanted = [one.caller.is_waiting() for one in group]
    if in_doubt and not any(wanted):
        raise OutcomeUnknownError(IN_DOUBT)
    if not in_doubt and not all(wanted):
        raise UnwantedError


def take(queue: deque[Waiting]) -> list[Waiting]:
    """The next batches for one swap: all under one fence, and at most half as many as a head remembers."""
    group = [queue.popleft()]
    while queue and len(group) < _GROUP and queue[0].batch.fence == group[0].batch.fence:
        edited = group[-1].batch.messages
        if edited is not None and edited.is_editing:  # the next batch needs the newest time after this edit
            break
        group.append(queue.popleft())
    return group


class Until(NamedTuple):
    """When a write stops waiting for readers and for its turn, by the monotonic clock."""

    readers: float
    turn: float

    @classmethod
    def of(cls, group: Sequence[Waiting]) -> Until:
        """The limits for the least patient caller of the group."""
        readers = time.monotonic() + min(one.caller.patience for one in group) * _PATIENT_SHARE
        return cls(readers, min(one.since + one.caller.patience * _TURN_SHARE for one in group))


def can_take_over(head: OpenedHead, batches: Sequence[Batch]) -> bool:
    """Whether a swap can carry this head's pending changes along with its own. Neither may remove anything."""
    state = head.state
    if state.stash is not None or state.doomed or state.reserved or state.has_parts or len(state.pending) > _MOST_TAKEN:
        return False
    return all(
        not (batch.delete or batch.drop_events)
        and all(write.length is None for write in batch.lists.values())
        and all(write.doc is not None for write in batch.docs)
        for batch in batches
    )


def may_supplant(batches: Sequence[Batch]) -> bool:
    """Whether the group is one unconditional delete, which may replace a head that cannot be read."""
    return len(batches) == 1 and batches[0].delete and batches[0].expect_updated_at is None


def is_forgotten(head: OpenedHead, batch: Batch, rev: int) -> bool:
    return not head.state.knows(batch.op_id) and head.state.may_have_forgotten(rev)


def swap_items_of(changes: Sequence[Step], most: int, size: int) -> list[Item] | None:
    """The changes as items, if they are few and small enough to be written in one step with the head; else None."""
    items = [change for change in changes if isinstance(change, Item)]
    fits = len(items) == len(changes) <= most and sum(len(item.body.text) for item in items) <= size
    return items if fits else None


def check_indexes(changes: Sequence[Step]) -> None:
    """Refuse items that could not be written after the swap had committed to them.

    Raises:
        PayloadTooLargeError: the index columns of a message do not fit into a record next to its text.
    """
    for change in changes:
        if isinstance(change, Item) and isinstance(change.index, MessageIndex):
            size = sum(map(len, change.index.content_types))
            if size > _INDEX_CHARACTERS:
                raise PayloadTooLargeError(
                    f"a message has content blocks of so many types that their names take {size:,} characters; "
                    f"this backend can hold {_INDEX_CHARACTERS:,}"
                )


def not_written(exc: OutcomeUnknownError) -> StoreUnavailableError:
    """The error for a step before the swap that is in doubt: the caller's own write was not made."""
    return StoreUnavailableError(f"nothing was written, because a step before the write failed ({exc})")


async def latest_time(io: RecordIO, old: OpenedHead | None, batches: Sequence[Batch]) -> int | None:
    """The greatest message time, read from the items; None if the plan does not need it.

    A plan needs it for an append that may be older, if the head lacks it: after an edit or an earlier release.
    """
    if old is None or not old.record.messages.count:
        return None
    writes = [batch.messages for batch in batches if batch.messages is not None and batch.messages.is_blind]
    state, oldest = old.state, min((time for write in writes for time in write.times()), default=None)
    if oldest is None or (state.latest is not None and (state.is_latest or oldest >= state.latest)):
        return None
    keys = row_keys(ListKind.MESSAGES, last=old.record.messages.count - 1, bodies=False)
    items = [item for item in await io.store.items(old.record.place, keys) if item.rev <= old.record.rev]
    return max((item.time for item in Overlay(old.state.pending).over(items, keys)), default=None)
