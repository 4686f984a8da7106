"""The lists that a store used last, remembered in a bounded number of bytes (OPS-14)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from kode_core.batch import ListKind
from kode_core.store.remembered import UNTAKEN, Remembered

__all__ = ["ListMemory"]

_LIST_BYTES: Final = 1_500
_RECORD_BYTES: Final = 240
_PROOF_BYTES: Final = 180
_KEY_BYTES: Final = 160
_CHAR_BYTES: Final = 4


def size_of(remembered: Remembered) -> int:
    """The bytes that a remembered list takes; the records themselves are not held."""
    count = len(remembered)
    proofs = count - remembered.proofs.count(None) - remembered.proofs.count(UNTAKEN)
    keys = count - remembered.keys.count(None)
    characters = sum(map(len, filter(None, remembered.keys))) if keys else 0
    return _LIST_BYTES + count * _RECORD_BYTES + proofs * _PROOF_BYTES + keys * _KEY_BYTES + characters * _CHAR_BYTES


class ListMemory:
    """Remembered lists by agent, up to a number of bytes; the least recently used are dropped first.

    Args:
        limit: in bytes; with 0 nothing is remembered.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lists: OrderedDict[tuple[str, ListKind], tuple[Remembered, int]] = OrderedDict()
        self._size = 0

    @property
    def size(self) -> int:
        """The bytes that all remembered lists take."""
        return self._size

    def get(self, agent_id: str, kind: ListKind) -> Remembered | None:
        """The remembered list."""
        found = self._lists.get((agent_id, kind))
        if found is None:
            return None
        self._lists.move_to_end((agent_id, kind))
        return found[0]

    def put(self, agent_id: str, kind: ListKind, remembered: Remembered | None) -> None:
        """Remember a list; None forgets it."""
        _, size = self._lists.pop((agent_id, kind), (None, 0))
        self._size -= size
        if remembered is None:
            return
        size = size_of(remembered) + len(agent_id) * _CHAR_BYTES
        if size > self._limit:
            return
        self._lists[agent_id, kind] = (remembered, size)
        self._size += size
        while self._size > self._limit:
            _, (_, oldest) = self._lists.popitem(last=False)
            self._size -= oldest

    def forget(self, agent_id: str) -> None:
        """Forget the lists of an agent."""
        for kind in ListKind:
            self.put(agent_id, kind, None)

    def scoped(self, prefix: str) -> ListMemory:
        """This memory, for a view that knows the agents whose ids have this prefix without it."""
        return _Scoped(self, prefix)


class _Scoped(ListMemory):
    """A part of another memory: a store and its views share their bytes, and what they know of one agent."""

    def __init__(self, whole: ListMemory, prefix: str) -> None:
        super().__init__(0)
        self._whole = whole
        self._prefix = prefix

    @property
    def size(self) -> int:
        return self._whole.size

    def get(self, agent_id: str, kind: ListKind) -> Remembered | None:
        return self._whole.get(self._prefix + agent_id, kind)

    def put(self, agent_id: str, kind: ListKind, remembered: Remembered | None) -> None:
        self._whole.put(self._prefix + agent_id, kind, remembered)
