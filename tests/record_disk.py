"""What is stored of one agent in the model of the record engine, and the calls that change it: a ``RecordStore``.

Each protection of the protocol is a field of :class:`Rules`. With one of them off the search must find a fault.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, Final, NamedTuple, TypeAlias

__all__ = [
    "LOST",
    "Apply",
    "Call",
    "Calls",
    "Change",
    "Choose",
    "Commit",
    "Cut",
    "Disk",
    "Drop",
    "DropParts",
    "Head",
    "Heads",
    "Note",
    "Notes",
    "Part",
    "Parts",
    "Put",
    "PutParts",
    "Row",
    "Rules",
    "Settle",
    "Swap",
    "Value",
    "perform",
]

LOST: Final = "lost"
"""The answer to a swap that does not arrive."""


class Rules(NamedTuple):
    """What protects the agent. The number is that of the invariant in ``docs/record-engine.md``."""

    swaps_by_rev: bool = True  # 1
    commits_on_settled: bool = True  # 2
    settles_by_rev: bool = True  # 3
    settles_durably: bool = True  # 4
    overlays: bool = True  # 5
    refuses_newer: bool = True  # 6
    puts_by_rev: bool = True  # 7
    leaves_tombstones: bool = True  # 8
    remembers_ops: bool = True  # 9
    names_stashes: bool = True  # 10
    dooms: bool = True  # 11
    needs_newer_head: bool = True  # 12
    notes: bool = True  # 13
    barriers: bool = True  # 14
    reserves: bool = True  # 15
    demands_at_head: bool = True  # 21
    cleans_up: bool = True  # this and the next two only save time and room
    drops_stashes: bool = True
    takes_over: bool = True


# --- What is stored ---------------------------------------------------------------------------------------------------


class Put(NamedTuple):
    """Puts a row; with no value it is the tombstone of one that was cut."""

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
    length: int = 0
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
    absent: int | None = None


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
    """Commits. The rows that it adds to the agent's, or has in their place, and whose they are, are for the log.

    So is the key that its writer demands to be absent.
    """

    old: int
    new: Head
    adds: Value = ()
    is_whole: bool = False
    op: str | None = None
    absent: int | None = None


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
        case Swap(old, new, adds, is_whole, op, absent):
            if rules.swaps_by_rev and disk.head.rev != old:
                return False, disk
            value = adds if is_whole else (*disk.log[-1].value, *adds)
            return True, disk._replace(head=new, weak=None, log=(*disk.log, Commit(new, value, op, absent)))
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
            elif rules.leaves_tombstones:
                yield at, Put(row.key, change.rev, None)
        elif row.key != change.key:
            yield at, row
        else:
            is_met = True
            is_older = row.rev < change.rev or (row.rev == change.rev and row.value is None)
            yield at, change if is_older or not rules.puts_by_rev else row
    if isinstance(change, Put) and not is_met:
        yield epoch, change
