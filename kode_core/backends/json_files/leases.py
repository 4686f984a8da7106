"""The leases of the JSON files engine: one file for each held lease."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

from kode_core.authoring.clock import host_clock
from kode_core.backends.json_files.files import file_name, replace_file
from kode_core.batch import Fence

__all__ = ["LeaseFiles"]

_log: Final = logging.getLogger("kode_core.json")


class _StoredLease(msgspec.Struct, frozen=True):
    owner: str
    token: int
    expires: int
    boot: str

    def held(self) -> bool:
        boot, now = host_clock()
        return self.boot == boot and self.expires > now


def _check(path: Path, text: bytes) -> bytes:
    return b"%08x\n" % crc32(text, crc32(path.name.encode()))


_lease_from = msgspec.json.Decoder(_StoredLease).decode


class LeaseFiles:
    """Reads and writes leases. Writers hold the lock of the agent's stripe."""

    def __init__(self, folder: Path, mode: int) -> None:
        self._folder = folder
        self._mode = mode

    def _path(self, agent_id: str) -> Path:
        return self._folder / f"{file_name(agent_id)}.json"

    def current(self, agent_id: str) -> _StoredLease | None:
        """The lease that is held now.

        A lease whose file is damaged has ended: the writes of its holder are refused (LOCK-5).
        """
        path = self._path(agent_id)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        text, _, check = raw.partition(b"\n")
        if check != _check(path, text):
            _log.warning("%s was damaged: the lease of agent %r has ended", path, agent_id)
            return None
        lease = _lease_from(text)
        return lease if lease.held() else None

    def holds(self, agent_id: str, fence: Fence) -> bool:
        """True if the lease is held by that owner with that token."""
        lease = self.current(agent_id)
        return lease is not None and (lease.owner, lease.token) == (fence.owner, fence.token)

    def write(self, agent_id: str, fence: Fence, ttl_ms: int) -> None:
        """Record that the lease is held for *ttl_ms* from now."""
        boot, now = host_clock()
        path = self._path(agent_id)
        text = msgspec.json.encode(_StoredLease(fence.owner, fence.token, now + ttl_ms, boot))
        replace_file(path, iter([text + b"\n" + _check(path, text)]), durable=False, mode=self._mode)

    def remove(self, agent_id: str) -> None:
        """End the lease."""
        self._path(agent_id).unlink(missing_ok=True)
