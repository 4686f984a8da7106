"""States whose bodies are in a file: the places of the bodies, and the batches that write a state again."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Final

from msgspec.structs import replace

from kode_core.backends.json_files.files import read_at
from kode_core.backends.json_files.frames import Located
from kode_core.batch import Applied, Batch, DocWrite, EventWrite, ListKind, ListWrite, with_bodies
from kode_core.codec import Body, is_intact
from kode_core.engines.state import AgentState
from kode_core.errors import CorruptRecordError

__all__ = ["BodyReader", "ByteRanges", "batches_of", "bodies_of"]

_CHUNK_ROWS: Final = 1000


class ByteRanges:
    """The places of located bodies, compactly."""

    def __init__(self) -> None:
        self._starts = array("q")
        self._sizes = array("q")

    def append(self, body: Body) -> None:
        assert isinstance(body, Located)
        self._starts.append(body.start)
        self._sizes.append(body.size)

    def body(self, i: int, digest: bytes) -> Body:
        return Located("", digest, self._starts[i], self._sizes[i])

    def put(self, i: int, body: Body) -> None:
        assert isinstance(body, Located)
        self._starts[i], self._sizes[i] = body.start, body.size

    def keep(self, kept: slice, first: int) -> None:
        self._starts[:first] = self._starts[kept]
        self._sizes[:first] = self._sizes[kept]


class BodyReader:
    """The open file of a journal, to read the texts of bodies from."""

    def __init__(self, fd: int, whose: str = "") -> None:
        self._fd = fd
        self._whose = whose

    def text(self, body: Body) -> Body:
        """A located body with its text; a body that has its text stays as it is."""
        return self._body(body, "replace")

    def raw(self, body: Body) -> Body:
        """The same; bytes that are not valid text, because of damage, can be written back unchanged."""
        return self._body(body, "surrogateescape")

    def checked(self, body: Body) -> Body:
        """The same.

        Raises:
            CorruptRecordError: the text does not match its digest.
        """
        read = self._body(body, "replace")
        if not is_intact(read.text.encode(), read.digest):
            raise CorruptRecordError(f"a record of {self._whose}", "the stored text does not match its checksum")
        return read

    def _body(self, body: Body, errors: str) -> Body:
        if not isinstance(body, Located):
            return body
        return Body(read_at(self._fd, body.size, body.start).decode(errors=errors), body.digest)


def bodies_of(state: AgentState) -> Iterator[Body]:
    """All bodies of a state."""
    if state.info is not None:
        yield state.info.body
    for rows in state.lists.values():
        yield from (row.body for row in rows.rows)
    yield from (doc.body for doc in state.docs.values())
    yield from (state.log.row(i).body for i in range(len(state.log)))


def batches_of(state: AgentState, text: Callable[[Body], Body]) -> Iterator[tuple[Batch, Applied]]:
    """Batches that together make *state*, each of a bounded number of rows, with the texts that *text* gives."""
    return ((with_bodies(batch, text), outcome) for batch, outcome in _batches_of(state))


def _batches_of(state: AgentState) -> Iterator[tuple[Batch, Applied]]:
    heads = Applied(state.lists[ListKind.MESSAGES].head, state.lists[ListKind.TOOL_CALLS].head)
    blank = Batch(agent_id=state.agent_id, op_id="", now=state.updated_at)
    for kind, rows in state.lists.items():
        if rows.version:
            for i in range(0, max(len(rows.rows), 1), _CHUNK_ROWS):
                write = ListWrite(append=tuple(rows.rows[i : i + _CHUNK_ROWS]))
                yield replace(blank, **{kind.value: write}), heads
    for i in range(0, len(state.log), _CHUNK_ROWS):
        events: list[EventWrite] = []
        offsets: list[int] = []
        for j in range(i, min(i + _CHUNK_ROWS, len(state.log))):
            events.append(state.log.write_of(j))
            offsets.append(state.log.row(j).offset)
        yield replace(blank, events=tuple(events)), Applied(offsets=tuple(offsets))
    for (doc_kind, key), doc in state.docs.items():
        yield replace(blank, docs=(DocWrite(doc_kind, key, doc),)), Applied()
    yield replace(blank, op_id=state.last_op, info=state.info), state.last_outcome
