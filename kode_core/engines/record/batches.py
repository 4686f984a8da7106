"""The batches that wait for the record engine's writer: which go into one swap, and what one swap can hold."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from kode_core.batch import Batch, MessageIndex, Outcome
from kode_core.engine import Caller
from kode_core.engines.record.state import KEPT_OPS, AgentHead, Step
from kode_core.engines.record.store import Item
from kode_core.errors import OutcomeUnknownError, PayloadTooLargeError, StoreUnavailableError

__all__ = [
    "IN_DOUBT",
    "Until",
    "UnwantedError",
    "Waiting",
    "can_take_over",
    "check_indexes",
    "check_wanted",
    "is_forgotten",
    "may_supplant",
    "not_written",
    "take",
    "together",
    "together_with",
]

_GROUP: Final = KEPT_OPS // 2
_PATIENT_SHARE: Final = 1 / 3
"""How much of its caller's time a write waits for readers."""
_TURN_SHARE: Final = 2 / 3
"""How much of its caller's time a write waits for its turn: enough must be left to write."""
_MOST_TAKEN: Final = 16
"""How many changes of others a swap takes over at most: in its head they are written once more."""
_INDEX_CHARACTERS: Final = 50_000
IN_DOUBT: Final = "the connection broke, and nobody can say what became of the write: read before you repeat"


class UnwantedError(Exception):
    """Of some of the batches nobody waits for the outcome, and they were not sent yet."""


class Waiting(NamedTuple):
    batch: Batch
    caller: Caller
    since: float
    done: asyncio.Future[Outcome | Exception]


def together(group: Sequence[Waiting]) -> Caller:
    """The caller that begins the deadlines of all callers of a group anew, when a step is done.

    It holds no batch: a cancelled timer keeps the context that it was set in until its time comes.
    """
    callers = [one.caller for one in group]

    def goes_on() -> None:
        for caller in callers:
            caller.goes_on()

    return Caller(goes_on=goes_on)


def check_wanted(group: Sequence[Waiting], *, in_doubt: bool) -> None:
    """Send nothing more of what nobody waits for: who was told that it is in doubt must not wait for it for ever.

    When it is in doubt already, a batch stays together with the others that were sent with it.
    """
    wanted = [one.caller.is_waiting() for one in group]
    if in_doubt and not any(wanted):
        raise OutcomeUnknownError(IN_DOUBT)
    if not in_doubt and not all(wanted):
        raise UnwantedError


def take(queue: deque[Waiting]) -> list[Waiting]:
    """The next batches that one swap can write: under one fence, and no more than are remembered for a while."""
    group = [queue.popleft()]
    while queue and len(group) < _GROUP and queue[0].batch.fence == group[0].batch.fence:
        edited = group[-1].batch.messages
        if edited is not None and edited.is_editing:  # the time of the newest message has to be looked for after it
            break
        group.append(queue.popleft())
    return group


class Until(NamedTuple):
    """How long a write waits at most, for readers and for its turn."""

    readers: float
    turn: float

    @classmethod
    def of(cls, group: Sequence[Waiting]) -> Until:
        """For the first of those who wait that would lose patience."""
        readers = time.monotonic() + min(one.caller.patience for one in group) * _PATIENT_SHARE
        return cls(readers, min(one.since + one.caller.patience * _TURN_SHARE for one in group))


def can_take_over(head: AgentHead, batches: Sequence[Batch]) -> bool:
    """Whether a swap can say of what is pending that it is pending still, and add its own: nothing may be removed."""
    state = head.state
    if state.stash is not None or state.doomed or state.reserved or state.has_parts or len(state.pending) > _MOST_TAKEN:
        return False
    return all(
        not batch.delete
        and all(write.length is None for write in batch.lists.values())
        and all(write.doc is not None for write in batch.docs)
        for batch in batches
    )


def may_supplant(batches: Sequence[Batch]) -> bool:
    """Whether a head that cannot be read is in the way of a delete, which needs nothing of it."""
    return len(batches) == 1 and batches[0].delete and batches[0].expect_updated_at is None


def is_forgotten(head: AgentHead, batch: Batch, rev: int) -> bool:
    return not head.state.knows(batch.op_id) and head.state.may_have_forgotten(rev)


def together_with(changes: Sequence[Step], most: int, size: int) -> list[Item] | None:
    """The changes, if they are few and small enough to be written with the head."""
    items = [change for change in changes if isinstance(change, Item)]
    fits = len(items) == len(changes) <= most and sum(len(item.body.text) for item in items) <= size
    return items if fits else None


def check_indexes(changes: Sequence[Step]) -> None:
    """An item that cannot be written must not be committed to.

    Raises:
        PayloadTooLargeError: what a message is found by is too much for a record beside its text.
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
    """The error of what was in doubt before a swap: it is not the write that was asked for."""
    return StoreUnavailableError(f"nothing was written: what had to be done before failed ({exc})")
