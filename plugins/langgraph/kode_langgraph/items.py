"""The log of a thread: large values and the elements of long lists, each kept once, and the head that guards them.

Collections of the thread's agent:

- ``items``: chunks of items under the position of their last one. A checkpoint refers to items by position. Each
  channel has a line of positions of its own, so that a list that grows is one run of them.
- ``thread``: the document ``head``, with the next position of each line, and the epoch.

Every commit that adds items, or refers to some, demands the head's version and puts a new head. So two processes never
give one position to two items. A removal of items begins a new epoch: others forget what they knew of the log.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from secrets import token_hex
from typing import Any, Final

from kode_core import ABSENT, CorruptRecordError, DocumentWrite, ExtendedStore, PutDocument
from kode_langgraph.keys import document_pages, part_of
from kode_langgraph.packing import Raw, Serial, digest_of, guard, pace
from kode_langgraph.projection import Calls

__all__ = [
    "HEAD",
    "ITEMS",
    "Draft",
    "Known",
    "KnownThreads",
    "load_items",
    "lost",
    "merged",
    "missing",
    "new_epoch",
    "position_key",
]

ITEMS: Final = "items"
HEAD: Final = ("thread", "head")

_CHUNK_ITEMS: Final = 64
_CHUNK_BYTES: Final = 131_072
_MOST_KNOWN: Final = 200_000
_MOST_PACKED: Final = 64
_MOST_LINES: Final = 256
_SAID: Final = "said "
_LINE: Final = 10**9
"""The positions of a line."""
_CHECKED_EVERY: Final = 32
_GAP: Final = 64
"""Positions that are read although no one asked for them, instead of beginning another read."""


class Known:
    """The known part of one thread's log.

    Attributes:
        version: the head's version; None if it must be read first.
        lines: the next free position of each line, by name.
        said: positions by digest of the messages that were projected; *held* has the positions of all other items.
        packed: large values of channels, packed, by namespace and channel, with their version.
        knows_all_said: True once all messages that were said are known, and not only a checkpoint's.
        is_learned: True once the items of a checkpoint are known, so that the next one refers to them.
    """

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.version: str | None = None
        self.lines: dict[str, int] = {}
        self.epoch = ""
        self.said: dict[bytes, int] = {}
        self.held: dict[bytes, int] = {}
        self.is_learned = False
        self.knows_all_said = False
        self.packed: dict[tuple[str, str], tuple[str, Any]] = {}
        self.calls = Calls()

    @property
    def exists(self) -> bool:
        """True if the thread has a head, and so an agent with info."""
        return self.version not in (None, ABSENT)

    async def refresh(self, store: ExtendedStore, agent_id: str) -> None:
        """Read the head, unless it is known; items of an earlier epoch are forgotten."""
        if self.version is not None:
            return
        found = await store.load_document(agent_id, *HEAD)
        lines, epoch, version = {}, "", ABSENT
        if found is not None:
            with guard(f"the head of agent {agent_id!r}"):
                head: Any = found.value
                lines, epoch, version = dict(head["lines"]), str(head["epoch"]), found.version
        if epoch != self.epoch or any(lines.get(name, 0) < position for name, position in self.lines.items()):
            self.forget()
        self.lines, self.epoch, self.version = lines, epoch, version

    def forget(self) -> None:
        """Forget all items."""
        self.said.clear()
        self.held.clear()
        self.is_learned = False
        self.knows_all_said = False
        self.packed.clear()

    def keep(self, ns: str, versions: Mapping[str, Any], values: Iterable[Sequence[Any]]) -> None:
        """Take note of the values of a checkpoint: the next one has the unchanged ones, too."""
        for channel, packed in values:
            if packed[0] != "v":
                self.packed.pop((ns, channel), None)
                self.packed[ns, channel] = str(versions.get(channel)), packed
        while len(self.packed) > _MOST_PACKED:
            del self.packed[next(iter(self.packed))]

    def kept(self, ns: str, channel: str, version: str) -> Any:
        """The value of a channel that has a version of this saver's; None if it is not known."""
        found = self.packed.get((ns, channel))
        return found[1] if found is not None and "." in version and found[0] == version else None

    async def learn_all_said(self, store: ExtendedStore, agent_id: str, serial: Serial) -> None:
        """Know all messages that were said: no checkpoint lists the messages of a DeltaChannel."""
        if not self.knows_all_said and self.exists:
            ends = [position for line, position in self.lines.items() if line.startswith(_SAID)]
            await load_items(store, agent_id, [(end - end % _LINE, end - 1) for end in ends], serial, self)
        self.knows_all_said = True

    def learn(self, position: int, raw: Raw, *, said: bool) -> None:
        """Take note of an item."""
        (self.said if said else self.held)[digest_of(raw)] = position


class KnownThreads:
    """The threads that were used last, with a bound for all their items together."""

    def __init__(self) -> None:
        self._threads: OrderedDict[str, Known] = OrderedDict()
        self._pid = os.getpid()
        self._uses = 0

    def of(self, agent_id: str) -> Known:
        """The known part of a thread's log."""
        if self._pid != os.getpid():  # a forked process: a lock may be held by a task that does not run here
            self._threads.clear()
            self._pid = os.getpid()
        known = self._threads.get(agent_id)
        if known is None:
            known = self._threads[agent_id] = Known()
        self._threads.move_to_end(agent_id)
        self._uses += 1
        if self._uses % _CHECKED_EVERY == 0:
            self._bound()
        return known

    def _bound(self) -> None:
        total = sum(len(each.said) + len(each.held) + 50 for each in self._threads.values())
        while total > _MOST_KNOWN and len(self._threads) > 1:
            _, oldest = self._threads.popitem(last=False)
            total -= len(oldest.said) + len(oldest.held) + 50

    def drop(self, agent_id: str) -> None:
        """Forget a thread."""
        self._threads.pop(agent_id, None)


class Draft:
    """The new items of one commit.

    Attributes:
        channel: the channel whose value is packed.
        is_saying: True while messages are packed that belong to the conversation, each of which is said once.
        uses: True if the commit refers to items, so that it has to demand the head.
        said: the messages that are said for the first time.
    """

    def __init__(self, known: Known, serial: Serial, *, grows: bool) -> None:
        self._known = known
        self._serial = serial
        self._grows = grows
        self._lines = dict(known.lines)
        self._epoch = known.epoch or new_epoch()
        self._new: dict[str, list[tuple[int, list[str], int]]] = {}
        self._said: dict[bytes, int] = {}
        self._held: dict[bytes, int] = {}
        self.channel = ""
        self.is_saying = False
        self.uses = False
        self.said: list[Any] = []

    def place(self, digest: bytes, raw: Raw, value: object) -> int | None:
        """The position of an item that is known, or of a new one."""
        position = self._known.said.get(digest, self._said.get(digest))
        if position is None and not self.is_saying:
            position = self._known.held.get(digest, self._held.get(digest))
        if position is None and self._grows:
            position = self._next()
            (self._said if self.is_saying else self._held)[digest] = position
            if self.is_saying:
                self.said.append(value)
            self._new.setdefault(self._line(), []).append((position, self._serial.seal(raw), len(raw[1])))
        self.uses = self.uses or position is not None
        return position

    def _line(self) -> str:
        name = f"{_SAID if self.is_saying else 'held '}{part_of(self.channel)}"
        return name if name in self._lines or len(self._lines) < _MOST_LINES else next(iter(self._lines))

    def _next(self) -> int:
        line = self._line()
        position = self._lines.get(line, len(self._lines) * _LINE)
        self._lines[line] = position + 1
        return position

    def writes(self) -> list[DocumentWrite]:
        """The chunks of the new items, and the head."""
        chunks: list[DocumentWrite] = []
        for line, new in self._new.items():
            said = line.startswith(_SAID)
            first = size = 0
            for i, (position, _, length) in enumerate(new, 1):
                size += length
                if i == len(new) or size >= _CHUNK_BYTES or i - first == _CHUNK_ITEMS:
                    sealed = [each[1] for each in new[first:i]]
                    value = {"first": new[first][0], "said": said, "items": sealed}
                    chunks.append(PutDocument(ITEMS, position_key(position), value))
                    first, size = i, 0
        head = {"lines": self._lines, "epoch": self._epoch}
        return [*chunks, PutDocument(*HEAD, head, self._known.version)]

    def accept(self, version: str | None) -> None:
        """The commit was done, and gave the head this version; None if it is not known."""
        known = self._known
        known.said |= self._said
        known.held |= self._held
        known.lines, known.epoch = self._lines, self._epoch
        known.version = version
        known.is_learned = True


def new_epoch() -> str:
    """An epoch that no log had before."""
    return token_hex(8)


def position_key(position: int) -> str:
    """The key of the chunk that ends at a position."""
    return f"{position:012}"


def merged(runs: Iterable[tuple[int, int]], gap: int = 0) -> list[tuple[int, int]]:
    """Runs of positions, in order and without overlap; those with at most *gap* positions between them are one."""
    result: list[tuple[int, int]] = []
    for first, last in sorted(runs):
        if result and first <= result[-1][1] + 1 + gap:
            result[-1] = result[-1][0], max(last, result[-1][1])
        else:
            result.append((first, last))
    return result


async def load_items(
    store: ExtendedStore, agent_id: str, runs: Sequence[tuple[int, int]], serial: Serial, known: Known | None = None
) -> dict[int, Raw]:
    """The items of some runs, by position; missing ones are left out. *known* takes note of them.

    Raises:
        CorruptRecordError: a chunk cannot be read.
    """
    found: dict[int, Raw] = {}
    for first, last in merged(runs, _GAP):
        limit = min(1_000, last - first + 1)
        async for page in document_pages(store, agent_id, ITEMS, limit=limit, start=position_key(first)):
            for document in page:
                chunk: Any = document.value
                with guard(f"document {document.key!r} of collection 'items' of agent {agent_id!r}"):
                    for position, sealed in enumerate(chunk["items"], chunk["first"]):
                        if first <= position <= last:
                            found[position] = serial.open(sealed)
                            if known is not None:
                                known.learn(position, found[position], said=chunk["said"])
                await pace(len(found))
            if page and page[-1].key >= position_key(last):
                break
    return found


def missing(runs: Iterable[tuple[int, int]], found: dict[int, Raw]) -> int | None:
    """The first position of the runs that was not found."""
    for first, last in runs:
        for position in range(first, last + 1):
            if position not in found:
                return position
    return None


def lost(agent_id: str, position: int) -> CorruptRecordError:
    """The error for an item that a checkpoint refers to, and that does not exist."""
    return CorruptRecordError(f"item {position} of the log of agent {agent_id!r}", "a checkpoint refers to it")
