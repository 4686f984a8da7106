"""The protocol of the record engine, small enough to be searched; ``docs/record-engine.md`` explains it.

Each of those who take part is a generator: it yields a call to the store, and is sent the answer. Between two calls
anybody else may go on, and for ever where it was killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Final, Literal, NamedTuple

from tests.record_disk import (
    LOST,
    Apply,
    Calls,
    Change,
    Choose,
    Cut,
    Drop,
    DropParts,
    Head,
    Heads,
    Note,
    Notes,
    Part,
    Parts,
    Put,
    PutParts,
    Row,
    Rules,
    Settle,
    Swap,
    Value,
)

__all__ = ["BUSY", "CORRUPT", "Refused", "Saw", "Write", "Wrote", "collect", "fork", "read", "write"]

BUSY: Final = "busy"
CORRUPT: Final = "corrupt"
KEYS: Final = 3
"""How many rows there are at most."""


# --- Settling ---------------------------------------------------------------------------------------------------------


def _apply(epoch: str, changes: Sequence[Change]) -> Calls:
    left = tuple(changes)
    if len(left) > 1:
        left = yield Choose(tuple(permutations(left)))
    while left:
        yield Apply(epoch, left[0])
        left = left[1:]


def redo(head: Head, rules: Rules) -> Calls:
    """The head with all that was pending done, by whoever comes first; None when another one was faster."""
    if head.is_settled:
        return head
    if head.is_reserved:
        after = Head(head.rev + 1, f"given-up-{head.rev}", ops=head.ops, doomed=(*head.doomed, head.epoch))
        if (yield Swap(head.rev, after)) is not True:
            return None
        return (yield from _finish_redo(after, rules))
    changes = head.pending
    if head.stash is not None:
        changes = yield Parts(head.epoch, head.stash)
        if changes is None:
            return None
    yield from _apply(head.epoch, changes)
    return (yield from _finish_redo(head, rules))


def _finish_redo(head: Head, rules: Rules) -> Calls:
    for epoch in head.doomed:
        yield from _remove(epoch, rules)
    yield from _settle(head.done, rules, is_durable=head.stash is not None and rules.settles_durably)
    if head.stash is not None and rules.drops_stashes:
        yield DropParts(head.epoch, head.rev)
    return head.done


def _settle(head: Head, rules: Rules, *, is_durable: bool = False) -> Calls:
    """Write that a head is settled. What was applied to an agent that was deleted meanwhile is removed again."""
    if not (yield Settle(head, is_durable)) and rules.cleans_up:
        yield from _remove_if_deleted(head, rules)


def _remove_if_deleted(head: Head, rules: Rules) -> Calls:
    now = yield Heads()
    if now.epoch != head.epoch and (now.rev > head.rev or not rules.needs_newer_head):
        yield from _remove(head.epoch, rules)


def _remove(epoch: str, rules: Rules) -> Calls:
    if rules.notes:
        yield Note(epoch)
    yield Drop(epoch)


# --- Those who take part ----------------------------------------------------------------------------------------------


class Write(NamedTuple):
    """A call of a user.

    Attributes:
        save: the list is replaced by one of so many rows.
        append: so many rows are appended.
        is_large: what is pending does not fit into the head.
        absent: no row with this key may exist: the precondition of a document.
    """

    op: str
    save: int | None = None
    append: int = 0
    is_large: bool = False
    is_delete: bool = False
    absent: int | None = None

    def needs_settled(self, old: Head, rules: Rules) -> bool:
        """Whether what is pending has to be applied first. An append takes it over, a delete leaves the epoch."""
        if old.is_settled or not rules.commits_on_settled:
            return False
        if self.is_delete:
            return old.is_reserved
        is_plain = not (old.stash or old.doomed or old.is_reserved)
        return not (rules.takes_over and is_plain and self.save is None and not self.is_large)

    def plan(self, old: Head, rules: Rules) -> tuple[Head, tuple[Change, ...]]:
        rev, ops = old.rev + 1, (*old.ops, self.op) if rules.remembers_ops else ()
        if self.is_delete:
            doomed = (*old.doomed, old.epoch) if rules.dooms else ()
            return Head(rev, f"{self.op}-{rev}", ops=ops, doomed=doomed), ()
        first, last = (0, self.save) if self.save is not None else (old.length, old.length + self.append)
        puts = [Put(key, rev, self.op) for key in range(first, last)]
        cuts = [Cut(last, rev)] if last < old.length else []
        return Head(rev, old.epoch, last, ops), (*cuts, *puts)


class Wrote(NamedTuple):
    """The operations that a writer was told are done."""

    ops: tuple[str, ...]


class Refused(NamedTuple):
    """An operation whose precondition did not hold: the key existed at this revision."""

    op: str
    rev: int
    key: int


class Saw(NamedTuple):
    """What a reader saw, and the revision that it began with."""

    began: int
    value: Value


def write(rules: Rules, *writes: Write, attempts: int = 2) -> Calls:
    """A process that writes, one call after another. It keeps the head that it wrote."""
    known: Head | None = None
    untold: Head | None = None
    for one in writes:
        for attempt in range(attempts):
            old = known
            if old is None:
                old = yield Heads()
                if one.needs_settled(old, rules):
                    old = yield from redo(old, rules)
                    if old is None:
                        continue
            if one.op in old.ops:
                break
            if one.absent is not None:
                row = yield from _row(old, one.absent, rules)
                if row is not None and (row.rev > old.rev or known is not None):
                    known = None
                    continue
                if row is not None:
                    return Refused(one.op, old.rev, one.absent)
            known = yield from _commit(old, one, attempt, rules)
            if known is not None:
                untold = None if one.is_large or one.is_delete else known
                break
        else:
            return BUSY
    if untold is not None:
        yield from _settle(untold, rules)
    return Wrote(tuple(one.op for one in writes))


def _row(head: Head, key: int, rules: Rules) -> Calls:
    """The row with a key as the head knows it, or a newer one."""
    row = yield Row(head.epoch, key)
    if row is not None and row.rev > head.rev:
        return row
    for change in head.pending if rules.demands_at_head else ():
        if isinstance(change, Put) and change.key == key:
            row = change
        elif isinstance(change, Cut) and row is not None and key >= change.first and row.rev < change.rev:
            row = None
    return None if row is None or row.value is None else row


def _commit(old: Head, one: Write, attempt: int, rules: Rules) -> Calls:
    """One swap, and what follows it; None when it failed, or nobody knows."""
    new, changes = one.plan(old, rules)
    taken = old.pending if rules.commits_on_settled and not one.is_delete else ()
    adds = tuple((change.key, change.value or "") for change in changes if isinstance(change, Put))
    if one.is_large:
        stash = f"{one.op}-{attempt}" if rules.names_stashes else "stash"
        new = new._replace(stash=stash)
        if rules.notes:
            yield Note(new.epoch)
        yield PutParts(Part(new.epoch, stash, new.rev, changes))
    else:
        changes = (*taken, *changes)
        new = new._replace(pending=changes)
    answer = yield Swap(old.rev, new, adds, one.is_delete or one.save is not None, one.op, one.absent)
    if answer is False and new.stash is not None:
        yield DropParts(new.epoch, new.rev, new.stash)
    if answer is not True:
        return None
    yield from _apply(new.epoch, changes)
    return (yield from _finish_redo(new, rules)) if new.doomed or new.stash else new.done


def read(rules: Rules, *, how: Literal["list", "documents"], attempts: int = 2) -> Calls:
    """A reader of all rows, each in a call of its own. A list has a count in the head; documents have none."""
    missed: Head | None = None
    began: int | None = None
    for _ in range(attempts):
        head = yield Heads(is_current=True)
        began = head.rev if began is None else began
        if head == missed:
            return CORRUPT
        if head.is_reserved:
            return Saw(began, ())
        missed = None
        pending = head.pending if head.stash is None else (yield Parts(head.epoch, head.stash))
        if pending is None:
            missed = head
            continue
        rows = dict[int, Put]()
        for key in range(head.length if how == "list" else KEYS):
            row = yield Row(head.epoch, key)
            if row is not None:
                rows[key] = row
        if rules.refuses_newer and any(row.rev > head.rev for row in rows.values()):
            continue
        for change in pending if rules.overlays else ():
            if isinstance(change, Put):
                rows[change.key] = change
            else:
                rows = {k: row for k, row in rows.items() if not (k >= change.first and row.rev < change.rev)}
        value = tuple(sorted((key, row.value) for key, row in rows.items() if row.value is not None))
        if how == "list" and len(value) != head.length:
            missed = head
            continue
        if how == "documents" and (yield Heads(is_current=True)).epoch != head.epoch:
            continue
        return Saw(began, value)
    return BUSY


def collect(rules: Rules) -> Calls:
    """Remove what no head refers to, at every place that was noted. The head is settled first, as queries do, too."""
    head = yield Heads()
    if (yield from redo(head, rules)) is None:
        return BUSY
    noted = yield Notes()
    for epoch in noted:
        head = yield Heads()
        head = yield from redo(head, rules)
        if head is None:
            return BUSY
        barrier = head._replace(rev=head.rev + 1)
        if rules.barriers and (yield Swap(head.rev, barrier)) is not True:
            return BUSY
        yield Drop(epoch) if epoch != barrier.epoch else DropParts(epoch, barrier.rev)
    return Wrote(())


def fork(rules: Rules, value: Value) -> Calls:
    """Makes the agent a copy of another one."""
    old = yield Heads()
    old = yield from redo(old, rules)
    if old is None:
        return BUSY
    doomed = (old.epoch,) if rules.dooms else ()
    head = Head(old.rev + 1, "fork", ops=old.ops, doomed=doomed, is_reserved=True)
    if not rules.reserves:
        head = head._replace(is_reserved=False, length=len(value))
    if (yield Swap(old.rev, head, () if rules.reserves else value, is_whole=True)) is not True:
        return BUSY
    for key, text in value:
        yield Apply(head.epoch, Put(key, head.rev + 1, text))
    forked = head._replace(rev=head.rev + 1, length=len(value), is_reserved=False)
    answer = yield Swap(head.rev, forked, value, is_whole=True)
    if answer == LOST:
        now = yield Heads(is_current=True)
        answer = now == forked
    if not answer:
        yield from _remove_if_deleted(head, rules)
        return BUSY
    yield from redo(forked, rules)
    return Wrote(())
