"""Briefs: the part of each file that searches over many files look at, in a few bytes for a row.

A journal that was used last is remembered whole, and a search over many agents would push out all others. A brief has
the columns and the places of an agent's records, and no events and no documents. It is good as long as the file system
says that the file is the same; the file need not be opened.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from kode_core.backends.json_files.byte_ranges import ByteRanges
from kode_core.backends.json_files.signatures import Signature
from kode_core.batch import Index, Info, ListKind, ToolCallIndex
from kode_core.codec import Body
from kode_core.engines.state import AgentState

__all__ = ["Brief", "Briefs"]

_MEMORY_BYTES: Final = 32 << 20
"""The most that all briefs take (OPS-14). Further files are read at each search."""
_MOST_KINDS: Final = 10_000
_BRIEF_BYTES: Final = 900
_ROW_BYTES: Final = 100
_INDEX_BYTES: Final = 250


class _Columns:
    """A list: the times, the columns and the places of its rows."""

    __slots__ = ("_digests", "_indexes", "_places", "_times")

    def __init__(self) -> None:
        self._times = array("q")
        self._indexes: list[Index] = []
        self._places = ByteRanges()
        self._digests: list[bytes] = []

    def __len__(self) -> int:
        return len(self._times)

    def append(self, created_at: int, index: Index, body: Body) -> None:
        self._times.append(created_at)
        self._indexes.append(index)
        self._places.append(body)
        self._digests.append(body.digest)

    def indexed(self) -> Iterator[tuple[int, Index]]:
        return zip(self._times, self._indexes, strict=True)

    def body(self, position: int) -> Body:
        return self._places.body(position, self._digests[position])


class Brief:
    """An agent's file as searches see it; see :class:`kode_core.engines.scan.Searched`.

    ``call_id``, for which no query asks, is empty in the columns of tool calls, so that calls of one tool share them.
    """

    __slots__ = ("_lists", "agent_id", "generation", "has_contents", "info", "signature", "updated_at", "weight")

    def __init__(self, state: AgentState, generation: str, signature: Signature) -> None:
        self.agent_id = state.agent_id
        self.info: Info | None = state.info
        self.updated_at = state.updated_at
        self.has_contents = state.has_contents
        self.generation = generation
        self.signature = signature
        self.weight = _BRIEF_BYTES
        if state.info is not None:
            self.weight += sum(200 + len(key) + len(value) for key, value in state.info.metadata)
        self._lists = {kind: _Columns() for kind in ListKind}

    @property
    def message_count(self) -> int:
        """The number of messages."""
        return len(self._lists[ListKind.MESSAGES])

    @property
    def call_count(self) -> int:
        """The number of records of tool calls."""
        return len(self._lists[ListKind.TOOL_CALLS])

    def add(self, kind: ListKind, created_at: int, index: Index, body: Body) -> None:
        """Add the next row of a list."""
        self._lists[kind].append(created_at, index, body)
        self.weight += _ROW_BYTES

    def indexed(self, kind: ListKind) -> Iterator[tuple[int, Index]]:
        """The time and the columns of each row."""
        return self._lists[kind].indexed()

    def body_at(self, kind: ListKind, position: int) -> Body:
        """The body of a row, without its text."""
        return self._lists[kind].body(position)


class Briefs:
    """The briefs of a folder, by the names of the files."""

    def __init__(self) -> None:
        self._by_name: dict[str, Brief] = {}
        self._indexes: dict[Index, Index] = {}
        self._weight = 0
        self._guard = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_name)

    def known(self, name: str) -> Brief | None:
        """The brief of a file, which may have changed since."""
        return self._by_name.get(name)

    def drop(self, name: str) -> None:
        """Forget a file."""
        with self._guard:
            self._drop(name)

    def _drop(self, name: str) -> None:
        old = self._by_name.pop(name, None)
        if old is not None:
            self._weight -= old.weight

    def made(self, name: str, state: AgentState, generation: str, signature: Signature) -> None:
        """Remember a file as it is while the caller holds the journal, if there is room for it."""
        rows = sum(len(rows.rows) for rows in state.lists.values())
        with self._guard:
            self._drop(name)
            room = _MEMORY_BYTES - self._weight
            if _BRIEF_BYTES + rows * _ROW_BYTES > room:
                return
            brief = Brief(state, generation, signature)
            for kind, found in state.lists.items():
                for row in found.rows:
                    brief.add(kind, row.created_at, self._shared(row.index, brief), row.body)
            if brief.weight <= room:
                self._by_name[name] = brief
                self._weight += brief.weight

    def _shared(self, index: Index, brief: Brief) -> Index:
        """One object for all equal columns."""
        if isinstance(index, ToolCallIndex):
            index = replace(index, call_id="")
        if len(self._indexes) >= _MOST_KINDS:
            brief.weight += _INDEX_BYTES
            return self._indexes.get(index, index)
        return self._indexes.setdefault(index, index)

    def keep_only(self, names: list[str]) -> None:
        """Forget the files that are gone."""
        if len(self._by_name) > len(names):
            with self._guard:
                for name in self._by_name.keys() - set(names):
                    self._drop(name)
