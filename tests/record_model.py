"""The protocol of the record engine over one agent, small enough to be searched; ``docs/record-engine.md`` explains it.

Everybody who takes part is a generator: it yields a call to the store, and is sent the answer. Between two calls anybody
else may go on, for ever when it was killed. :class:`Disk` is all that is stored, and what happened, for the judge.

Each protection of the protocol is a field of :class:`Rules`. With one of them off the search must find a fault.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from itertools import permutations
from typing import Any, Final, Literal, NamedTuple, TypeAlias

__all__ = ["Commit", "Disk", "Head", "Rules", "Write", "collect", "fork", "perform", "read", "write"]

LOST: Final = "lost"
"""The answer to a swap that does not arrive."""
BUSY: Final = "busy"
CORRUPT: Final = "corrupt"
KEYS: Final = 3
"""How many rows there are at most."""


class Rules(NamedTuple):
    """What protects the agent. The number is that of the invariant in ``docs/record-engine.md``."""

    swaps_by_rev: bool = True  # 1
    commits_on_settled: bool = True  # 2
    settles_by_rev: bool = True  # 3
    settles_durably: bool = True  # 4
    overlays: bool = True  # 5
    refuses_newer: bool = True  # 6
    puts_by_rev: bool = True  # 7
    leaves_marks: bool = True  # 8
    remembers_ops: bool = True  # 9
    names_stashes: bool = True  # 10
    dooms: bool = True  # 11
    needs_newer_head: bool = True  # 12
    notes: bool = True  # 13
    fences: bool = True  # 14
    reserves: bool = True  # 15


# --- What is stored ---------------------------------------------------------------------------------------------------


class Put(NamedTuple):
    """Puts a row; with no value it is the mark of one that was cut."""

    key: int
    rev: int
    value: str | None


class Cut(NamedTuple):
    """Cuts the rows from a key on."""

    first: int
    rev: int


Change: TypeAlias = Put | Cut
Value: TypeAlias = tuple[tuple[int, str], ...]
"""What a reader sees: the rows by their keys."""


class Head(NamedTuple):
    rev: int
    epoch: str
    count: int = 0
    ops: tuple[str, ...] = ()
    pending: tuple[Change, ...] = ()
    stash: str | None = None
    doomed: tuple[str, ...] = ()
    is_reserved: bool = False

    @property
    def is_settled(self) -> bool:
        return not (self.pending or self.stash or self.doomed or self.is_reserved)

    @property
    def done(self) -> Head:
        return self._replace(pending=(), stash=None, doomed=())


class Part(NamedTuple):
    """A stash."""

    epoch: str
    name: str
    rev: int
    changes: tuple[Change, ...]


class Commit(NamedTuple):
    """What a revision made of the agent."""

    head: Head
    value: Value
    op: str | None = None


class Disk(NamedTuple):
    """What is stored.

    Attributes:
        weak: the head that comes back when the member is lost that alone acknowledged the last settle.
        late: a call that was made already, or never answered, and arrives once more.
        notes: the epochs where something may be left.
        log: every revision; no actor sees it, but for stale reads.
    """

    head: Head
    rows: frozenset[tuple[str, Put]]
    log: tuple[Commit, ...]
    parts: frozenset[Part] = frozenset()
    notes: frozenset[str] = frozenset()
    weak: Head | None = None
    late: Call | None = None


class Heads(NamedTuple):
    """Attributes: is_current: whether the one that asks relies on what every answered swap did."""

    is_current: bool = False


class Swap(NamedTuple):
    """Commits. The rows that it adds to the agent's, or has in their place, and whose they are, is for the log alone."""

    old: int
    new: Head
    adds: Value = ()
    is_whole: bool = False
    op: str | None = None


class Settle(NamedTuple):
    head: Head
    is_durable: bool


class Row(NamedTuple):
    epoch: str
    key: int


class Apply(NamedTuple):
    epoch: str
    change: Change


class Drop(NamedTuple):
    """Removes rows and parts at an epoch."""

    epoch: str


class PutParts(NamedTuple):
    part: Part


class Parts(NamedTuple):
    epoch: str
    name: str


class DropParts(NamedTuple):
    """Removes the stashes at an epoch up to a revision, or one of them."""

    epoch: str
    rev: int
    name: str | None = None


class Note(NamedTuple):
    epoch: str


class Notes(NamedTuple):
    pass


class Choose(NamedTuple):
    """No call: the search goes on with each of them."""

    of: tuple[Any, ...]


Call: TypeAlias = Heads | Swap | Settle | Row | Apply | Drop | PutParts | Parts | DropParts | Note | Notes | Choose
Calls: TypeAlias = Generator[Call, Any, Any]


def perform(disk: Disk, call: Call, rules: Rules) -> tuple[Any, Disk]:
    """The answer to a call, and what is stored then."""
    match call:
        case Heads():
            return disk.head, disk
        case Swap(old, new, adds, is_whole, op):
            if rules.swaps_by_rev and disk.head.rev != old:
                return False, disk
            value = adds if is_whole else (*disk.log[-1].value, *adds)
            return True, disk._replace(head=new, weak=None, log=(*disk.log, Commit(new, value, op)))
        case Settle(head, is_durable):
            if rules.settles_by_rev and disk.head.rev != head.rev:
                return False, disk
            if is_durable:
                return True, disk._replace(head=head, weak=None)
            return True, disk if head == disk.head else disk._replace(head=head, weak=disk.weak or disk.head)
        case Row(epoch, key):
            return next((row for at, row in disk.rows if at == epoch and row.key == key), None), disk
        case Apply(epoch, change):
            return None, disk._replace(rows=frozenset(_applied(disk.rows, epoch, change, rules)))
        case Drop(epoch):
            rows = frozenset(row for row in disk.rows if row[0] != epoch)
            parts = frozenset(part for part in disk.parts if part.epoch != epoch)
            return None, disk._replace(rows=rows, parts=parts)
        case PutParts(part):
            return None, disk._replace(parts=disk.parts | {part})
        case Parts(epoch, name):
            return next((p.changes for p in disk.parts if (p.epoch, p.name) == (epoch, name)), None), disk
        case DropParts(epoch, rev, name):
            parts = frozenset(p for p in disk.parts if p.epoch != epoch or p.rev > rev or name not in (None, p.name))
            return None, disk._replace(parts=parts)
        case Note(epoch):
            return None, disk._replace(notes=disk.notes | {epoch})
        case Notes():
            return tuple(sorted(disk.notes)), disk
        case Choose():
            raise AssertionError("the search chooses")


def _applied(rows: Iterable[tuple[str, Put]], epoch: str, change: Change, rules: Rules) -> Iterable[tuple[str, Put]]:
    is_met = False
    for at, row in rows:
        if at != epoch:
            yield at, row
        elif isinstance(change, Cut):
            if row.value is None or row.key < change.first or row.rev >= change.rev:
                yield at, row
            elif rules.leaves_marks:
                yield at, Put(row.key, change.rev, None)
        elif row.key != change.key:
            yield at, row
        else:
            is_met = True
            is_older = row.rev < change.rev or (row.rev == change.rev and row.value is None)
            yield at, change if is_older or not rules.puts_by_rev else row
    if isinstance(change, Put) and not is_met:
        yield epoch, change


# --- Settling ---------------------------------------------------------------------------------------------------------


def _apply(epoch: str, changes: Sequence[Change]) -> Calls:
    left = tuple(changes)
    if len(left) > 1:
        left = yield Choose(tuple(permutations(left)))
    while left:
        yield Apply(epoch, left[0])
        left = left[1:]


def settle(head: Head, rules: Rules) -> Calls:
    """The head with all that was pending done, by whoever comes first; None when another one was faster."""
    if head.is_settled:
        return head
    if head.is_reserved:
        after = Head(head.rev + 1, f"given-up-{head.rev}", ops=head.ops, doomed=(*head.doomed, head.epoch))
        if (yield Swap(head.rev, after)) is not True:
            return None
        return (yield from _settled(after, rules))
    changes = head.pending
    if head.stash is not None:
        changes = yield Parts(head.epoch, head.stash)
        if changes is None:
            return None
    yield from _apply(head.epoch, changes)
    return (yield from _settled(head, rules))


def _settled(head: Head, rules: Rules) -> Calls:
    for epoch in head.doomed:
        yield from _remove(epoch, rules)
    yield from _tell(head.done, rules, is_durable=head.stash is not None and rules.settles_durably)
    if head.stash is not None:
        yield DropParts(head.epoch, head.rev)
    return head.done


def _tell(head: Head, rules: Rules, *, is_durable: bool = False) -> Calls:
    """Write that a head is settled. What was applied to an agent that was deleted meanwhile is removed again."""
    if not (yield Settle(head, is_durable)):
        yield from _leave(head, rules)


def _leave(head: Head, rules: Rules) -> Calls:
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
    """

    op: str
    save: int | None = None
    append: int = 0
    is_large: bool = False
    is_delete: bool = False

    def plan(self, old: Head, rules: Rules) -> tuple[Head, tuple[Change, ...]]:
        rev, ops = old.rev + 1, (*old.ops, self.op) if rules.remembers_ops else ()
        if self.is_delete:
            doomed = (*old.doomed, old.epoch) if rules.dooms else ()
            return Head(rev, f"{self.op}-{rev}", ops=ops, doomed=doomed), ()
        first, last = (0, self.save) if self.save is not None else (old.count, old.count + self.append)
        puts = [Put(key, rev, self.op) for key in range(first, last)]
        cuts = [Cut(last, rev)] if last < old.count else []
        return Head(rev, old.epoch, last, ops), (*cuts, *puts)


class Wrote(NamedTuple):
    """The operations that a writer was told are done."""

    ops: tuple[str, ...]


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
                if not old.is_settled and (old.is_reserved or not one.is_delete) and rules.commits_on_settled:
                    old = yield from settle(old, rules)
                    if old is None:
                        continue
            if one.op in old.ops:
                break
            known = yield from _commit(old, one, attempt, rules)
            if known is not None:
                untold = None if one.is_large or one.is_delete else known
                break
        else:
            return BUSY
    if untold is not None:
        yield from _tell(untold, rules)
    return Wrote(tuple(one.op for one in writes))


def _commit(old: Head, one: Write, attempt: int, rules: Rules) -> Calls:
    """One swap, and what follows it; None when it failed, or nobody knows."""
    new, changes = one.plan(old, rules)
    adds = tuple((change.key, change.value or "") for change in changes if isinstance(change, Put))
    if one.is_large:
        stash = f"{one.op}-{attempt}" if rules.names_stashes else "stash"
        new = new._replace(stash=stash)
        if rules.notes:
            yield Note(new.epoch)
        yield PutParts(Part(new.epoch, stash, new.rev, changes))
    else:
        new = new._replace(pending=changes)
    answer = yield Swap(old.rev, new, adds, one.is_delete or one.save is not None, one.op)
    if answer is False and new.stash is not None:
        yield DropParts(new.epoch, new.rev, new.stash)
    if answer is not True:
        return None
    yield from _apply(new.epoch, changes)
    return (yield from _settled(new, rules)) if new.doomed or new.stash else new.done


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
        for key in range(head.count if how == "list" else KEYS):
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
        if how == "list" and len(value) != head.count:
            missed = head
            continue
        if how == "documents" and (yield Heads(is_current=True)).epoch != head.epoch:
            continue
        return Saw(began, value)
    return BUSY


def collect(rules: Rules) -> Calls:
    """Remove what no head refers to, at every place that was noted. The head is settled first, as queries do, too."""
    head = yield Heads()
    if (yield from settle(head, rules)) is None:
        return BUSY
    noted = yield Notes()
    for epoch in noted:
        head = yield Heads()
        head = yield from settle(head, rules)
        if head is None:
            return BUSY
        fence = head._replace(rev=head.rev + 1)
        if rules.fences and (yield Swap(head.rev, fence)) is not True:
            return BUSY
        yield Drop(epoch) if epoch != fence.epoch else DropParts(epoch, fence.rev)
    return Wrote(())


def fork(rules: Rules, value: Value) -> Calls:
    """Makes the agent a copy of another one."""
    old = yield Heads()
    old = yield from settle(old, rules)
    if old is None:
        return BUSY
    doomed = (old.epoch,) if rules.dooms else ()
    head = Head(old.rev + 1, "fork", ops=old.ops, doomed=doomed, is_reserved=True)
    if not rules.reserves:
        head = head._replace(is_reserved=False, count=len(value))
    if (yield Swap(old.rev, head, () if rules.reserves else value, is_whole=True)) is not True:
        return BUSY
    for key, text in value:
        yield Apply(head.epoch, Put(key, head.rev + 1, text))
    forked = head._replace(rev=head.rev + 1, count=len(value), is_reserved=False)
    answer = yield Swap(head.rev, forked, value, is_whole=True)
    if answer == LOST:
        now = yield Heads(is_current=True)
        answer = now == forked
    if not answer:
        yield from _leave(head, rules)
        return BUSY
    yield from settle(forked, rules)
    return Wrote(())
