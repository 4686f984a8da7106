"""The stripes of agents: a lock for writers, and a number that only grows, for each stripe.

A stripe's lock is held for the duration of a write. Its number is at least as great as every token given out and every
offset of a deleted agent of the stripe, so that none of them is used again (LOCK-5, EVT-2).
"""

from __future__ import annotations

import logging
import os
import time
from hashlib import blake2b
from pathlib import Path
from typing import Final
from zlib import crc32

from kode_core.backends.json_files.files import read_at, sync_file, write_all
from kode_core.backends.json_files.marks import Mark, slot_bytes

__all__ = ["STRIPES", "Stripe", "stripe_bytes", "stripe_name", "stripe_of"]

_log = logging.getLogger("kode_core.json")

STRIPES: Final = 32


def stripe_of(agent_id: str) -> int:
    """The stripe that *agent_id* belongs to."""
    return blake2b(agent_id.encode(), digest_size=1).digest()[0] % STRIPES


def stripe_name(index: int) -> str:
    """The name of a stripe's lock file."""
    return f"{index:02d}"


def stripe_bytes(name: str, number: int) -> bytes:
    """The contents of the lock file with that name."""
    title = b"stripe %b " % name.encode()
    return title + slot_bytes(Mark(number), crc32(title)) + b"\n"


class Stripe:
    """A stripe whose lock is held."""

    def __init__(self, path: Path, fd: int, *, durable: bool) -> None:
        self.path = path
        self.fd = fd
        self._durable = durable

    def begin(self) -> None:
        """Write the number of a new folder's stripe, unless it has one."""
        if not os.fstat(self.fd).st_size:
            self.begin_from(0)

    def begin_from(self, number: int) -> None:
        """Set the number, whatever is stored."""
        self._write(number)

    @property
    def number(self) -> int:
        """The number. A lost or damaged number is replaced by the time in milliseconds, which is greater."""
        raw = read_at(self.fd, 100, 0)
        digits = raw[10:25]
        if digits.isdigit() and raw == stripe_bytes(self.path.name, int(digits)):
            return int(digits)
        number = time.time_ns() // 1_000_000
        _log.warning("%s was damaged: the numbers of its agents go on from %d", self.path, number)
        self._write(number)
        return number

    def raise_to(self, number: int) -> None:
        """Raise the number to at least *number*."""
        if number > self.number:
            self._write(number)

    def _write(self, number: int) -> None:
        data = stripe_bytes(self.path.name, number)
        write_all(self.fd, data, 0)
        os.ftruncate(self.fd, len(data))
        if self._durable:
            sync_file(self.fd)
