"""Numbers that are changed in place: each is kept in two slots, so that a torn write of one slot leaves the other.

A slot is ``<15 digits> <8 characters> <checksum>``. The characters say how far the number may be relied on: ``SYNCED``
if everything that it stands for is on the device, otherwise the boot of the host in which it was written.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, NamedTuple
from zlib import crc32

from kode_core.authoring.clock import host_clock

__all__ = [
    "BLANK",
    "PAIR_SIZE",
    "SYNCED",
    "UNRELIABLE",
    "Mark",
    "pair_bytes",
    "pair_from",
    "slot_at",
    "slot_bytes",
    "this_boot",
]

SYNCED: Final = "--------"
UNRELIABLE: Final = "????????"
_SIZE: Final = 33
PAIR_SIZE: Final = 2 * _SIZE + 1


class Mark(NamedTuple):
    """A number, and how far it may be relied on."""

    number: int
    word: str = SYNCED

    @property
    def is_reliable(self) -> bool:
        """True if the number can be relied on: no loss of power can have undone the writes that it counts."""
        return self.word in (SYNCED, this_boot()) and self.word != UNRELIABLE


BLANK: Final = Mark(0)


@functools.cache
def this_boot() -> str:
    """The word for this boot of the host; unreliable if the system does not identify its boots."""
    boot, _ = host_clock()
    return blake2b(boot.encode(), digest_size=4).hexdigest() if boot else UNRELIABLE


def slot_bytes(mark: Mark, seed: int) -> bytes:
    """The bytes of a slot; *seed* ties it to its place."""
    text = b"%015d %b" % (mark.number, mark.word.encode())
    return b"%b %08x" % (text, crc32(text, seed))


def pair_bytes(marks: Sequence[Mark], seed: int) -> bytes:
    """The bytes of two slots."""
    return b" ".join(slot_bytes(mark, seed) for mark in marks)


def pair_from(raw: bytes, seed: int) -> list[Mark | None]:
    """Both marks; None for a slot that is torn or damaged."""
    return [_mark(raw[at : at + _SIZE], seed) for at in (0, _SIZE + 1)]


def _mark(slot: bytes, seed: int) -> Mark | None:
    if not slot[:15].isdigit():
        return None
    try:
        mark = Mark(int(slot[:15]), slot[16:24].decode("ascii"))
    except UnicodeDecodeError:
        return None
    return mark if slot_bytes(mark, seed) == slot else None


def worth(mark: Mark | None) -> tuple[bool, int]:
    """The order in which marks are kept: synced marks first, then the later one."""
    return (False, -1) if mark is None else (mark.word == SYNCED, mark.number)


def slot_at(index: int) -> int:
    """The position of slot *index* in a pair."""
    return index * (_SIZE + 1)
