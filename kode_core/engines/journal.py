"""One agent's file in the JSON files engine: a journal of frames, each one atomic write.

::

    {"kode":"journal","format":1,"generation":"…","agent":"…",…}        the first line
    #<crc32> <header bytes> <body bytes>                               a frame: its prefix,
    {"batch":{…},"outcome":{…}}                                        its header (all but the bodies),
    {"role":"user","content":[…]}                                      and its bodies, one a line

A frame is there when all of it is there. The checksum of the prefix covers the header; every body has a digest in
the header. What follows the last whole frame is the rest of a write that a crash cut short: it was never
acknowledged, and the next write removes it. Anything else that does not fit is damage, and is reported, not skipped.
"""

from __future__ import annotations

import os
import re
import secrets
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple, cast
from zlib import crc32

import msgspec

from kode_core.batch import Applied, Batch, DocWrite, EventWrite, ListKind, ListWrite, with_bodies
from kode_core.codec import Body
from kode_core.engines.files import read_at, replace_file, sync_file, sync_folder, write_all
from kode_core.engines.state import AgentState
from kode_core.errors import CorruptRecordError, OutcomeUnknownError, SchemaVersionError

__all__ = ["Frame", "Journal", "Reader", "write_state"]

FORMAT: Final = 1

_PREFIX: Final = re.compile(rb"#([0-9a-f]{8}) (\d{1,18}) (\d{1,18})\n")
_CHUNK_ROWS: Final = 1000

COMPACT_FROM: Final = 1 << 20
"""A file smaller than this is not worth compacting."""


class Span(NamedTuple):
    """Where a body's text is in the file."""

    start: int
    size: int


class _Spans:
    """A compact list of spans."""

    def __init__(self) -> None:
        self._starts = array("q")
        self._sizes = array("q")

    def append(self, span: Span) -> None:
        self._starts.append(span.start)
        self._sizes.append(span.size)

    def __getitem__(self, i: int) -> Span:
        return Span(self._starts[i], self._sizes[i])


class Frame(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of the journal.

    Attributes:
        phase: ``apply`` says what happened. ``prepare`` says what will happen if another store commits its part;
            the ``commit`` or ``abort`` that follows decides.
    """

    phase: Literal["apply", "prepare", "commit", "abort"] = "apply"
    batch: Batch | None = None
    outcome: Applied | None = None


class _Head(msgspec.Struct, frozen=True):
    kode: str
    format: int
    generation: str
    agent: str
    next_offset: int = 1


_frame_from = msgspec.json.Decoder(Frame).decode
_head_from = msgspec.json.Decoder(_Head).decode


class Reader:
    """The open file of a journal, to read the texts of bodies from."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def text(self, body: Body) -> Body:
        """The body with its text instead of its place; a body that has its text stays as it is."""
        span: object = body.text
        if not isinstance(span, Span):
            return body
        return Body(read_at(self._fd, span.size, span.start).decode(errors="replace"), body.digest)


class _TornError(Exception):
    """The rest of a write that was cut short."""


class Journal:
    """The state of one agent as its file tells it. Not safe for threads: the engine's locks are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.compact_at = COMPACT_FROM
        self._forget()

    def _forget(self) -> None:
        self.damage: CorruptRecordError | SchemaVersionError | None = None
        self.generation = ""
        self.end = 0
        self.state = AgentState("", 1, _Spans())
        self.prepared: Batch | None = None

    # --- reading

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """Read what was written since; inside, the state and the file that its bodies are in belong together.

        ``damage`` is set when not all of the file could be read; the state is then what came before.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            self._forget()
            yield Reader(-1)
            return
        self.damage = None
        try:
            try:
                self._catch_up(fd, os.fstat(fd).st_size)
            except (CorruptRecordError, SchemaVersionError) as exc:
                self.damage = exc
            yield Reader(fd)
        finally:
            os.close(fd)

    def refresh(self) -> None:
        """Read what was written since; raises what ``damage`` says."""
        with self.reading():
            if self.damage is not None:
                raise self.damage

    def _catch_up(self, fd: int, size: int) -> None:
        line = read_at(fd, 4096, 0)
        length = line.find(b"\n") + 1
        if not length:  # the crash came before the first line was whole
            self._forget()
            return
        head = self._head(line[:length])
        if head.generation != self.generation or size < self.end:
            self._forget()
            self.generation = head.generation
            self.state = AgentState(head.agent, head.next_offset, _Spans())
            self.end = length
        while self.end < size:
            try:
                self.end = self._read_frame(fd, self.end, size)
            except _TornError:
                return

    def _head(self, line: bytes) -> _Head:
        try:
            head = _head_from(line)
        except msgspec.MsgspecError:
            raise self._damage(0, "the first line is not a journal's") from None
        if head.format > FORMAT:
            raise SchemaVersionError(
                f"{self.path} has format {head.format}, and this kode-core reads up to {FORMAT}: upgrade kode-core"
            )
        return head

    def _read_frame(self, fd: int, start: int, size: int) -> int:
        frame, bodies, end = self._frame_at(fd, start, size)
        place = bodies

        def located(body: Body) -> Body:
            nonlocal place
            span = Span(place, int(body.text))
            place += span.size + 1
            return Body(cast(str, span), body.digest)

        batch = None if frame.batch is None else with_bodies(frame.batch, located)
        if end == size and batch is not None:
            _check_last(read_at(fd, end - bodies, bodies))
        self._apply(frame.phase, batch, frame.outcome)
        return end

    def _frame_at(self, fd: int, start: int, size: int) -> tuple[Frame, int, int]:
        """The frame at *start*, where its bodies begin, and where the next frame begins."""
        match = _PREFIX.match(read_at(fd, 64, start))
        if match is not None:
            length, bodies_size = int(match[2]), int(match[3])
            at = start + match.end()
            header = read_at(fd, length + 1, at) if length < size else b""
            if len(header) == length + 1 and _checksum(length, bodies_size, header) == match[1]:
                end = at + length + 1 + bodies_size
                if end > size:
                    raise _TornError
                return _frame_from(header), at + length + 1, end
            start_of_rest = at
        else:
            start_of_rest = start
        rest = read_at(fd, size - start_of_rest, start_of_rest)
        if b"\n" not in rest or b"\0" in rest:  # cut short, or never synced and read as zeros
            raise _TornError
        raise self._damage(start, "a frame does not match its checksum")

    def _apply(self, phase: str, batch: Batch | None, outcome: Applied | None) -> None:
        if phase == "prepare":
            self.prepared = batch
            return
        if phase in ("commit", "abort"):
            batch, self.prepared = self.prepared, None
            if phase == "abort" or batch is None:
                return
        assert batch is not None
        if batch.delete:
            self.state = AgentState(self.state.agent_id, self.state.log.next_offset, _Spans())
        self.state.apply(batch, outcome or self.state.outcome(batch))

    def _damage(self, place: int, what: str) -> CorruptRecordError:
        agent = self.state.agent_id or self.path.name
        return CorruptRecordError(
            f"agent {agent!r}", f"{self.path} is damaged at byte {place}: {what}; put back the file from a backup"
        )

    # --- writing: only under the agent's lock

    def begin(self, agent_id: str, next_offset: int) -> None:
        """Get ready to write. The offset is where the events of a new agent start."""
        self.refresh()
        if self.end:
            return
        self.generation = secrets.token_hex(8)
        self.state = AgentState(agent_id, next_offset, _Spans())
        self.end = 0

    def append(self, frame: Frame, *, durable: bool) -> None:
        """Add a frame and apply it. After an error the file is as it was.

        Raises:
            OutcomeUnknownError: it was written and could not be synced; others may have read it, so it stays.
        """
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._append(fd, frame, durable=durable)
            finally:
                os.close(fd)
        except BaseException:
            self._forget()
            raise

    def _append(self, fd: int, frame: Frame, *, durable: bool) -> None:
        first = b"" if self.end else self._first_line()
        placed, data = _frame_bytes(frame, self.end + len(first))
        if os.fstat(fd).st_size > self.end:
            os.ftruncate(fd, self.end)
        try:
            write_all(fd, first + data, self.end)
        except BaseException:
            os.ftruncate(fd, self.end)
            raise
        try:
            if durable:
                sync_file(fd)
                if self.end == 0:
                    sync_folder(self.path.parent)
        except OSError as exc:
            raise OutcomeUnknownError(
                f"{self.path} was written and could not be synced ({exc.strerror}): read first"
            ) from exc
        self.end += len(first) + len(data)
        self._apply(frame.phase, placed, frame.outcome)

    def _first_line(self) -> bytes:
        return _first_line(self.state, self.generation)

    # --- compaction

    @property
    def live_bytes(self) -> int:
        """About how large the file would be without what was replaced since."""
        return sum(cast(Span, body.text).size + 200 for body in self._bodies())

    def _bodies(self) -> Iterator[Body]:
        state = self.state
        if state.info is not None:
            yield state.info.body
        for rows in state.lists.values():
            yield from (row.body for row in rows.rows)
        yield from (doc.body for doc in state.docs.values())
        yield from (state.log.row(i).body for i in range(len(state.log)))

    def compact(self, *, durable: bool) -> None:
        """Rewrite the file with what still counts."""
        with self.reading() as reader:
            write_state(self.path, self.state, reader, durable=durable)
        self.refresh()


def _check_last(bodies: bytes) -> None:
    """Tell a last frame that was never synced from one that was damaged later: only the first has zeros."""
    if b"\0" in bodies:
        raise _TornError


def _checksum(header_size: int, bodies_size: int, header: bytes) -> bytes:
    return b"%08x" % crc32(header, crc32(b"%d %d" % (header_size, bodies_size)))


def _frame_bytes(frame: Frame, start: int) -> tuple[Batch | None, bytes]:
    """The frame's batch with its bodies placed for a frame at *start*, and the frame's bytes."""
    texts: list[bytes] = []

    def sized(body: Body) -> Body:
        texts.append(body.text.encode())
        return Body(str(len(texts[-1])), body.digest)

    batch = None if frame.batch is None else with_bodies(frame.batch, sized)
    header = msgspec.json.encode(Frame(frame.phase, batch, frame.outcome)) + b"\n"
    bodies = b"".join(text + b"\n" for text in texts)
    sizes = (len(header) - 1, len(bodies))
    prefix = b"#%b %d %d\n" % (_checksum(*sizes, header), *sizes)
    place = start + len(prefix) + len(header)

    def placed(body: Body) -> Body:
        nonlocal place
        span = Span(place, len(body.text.encode()))
        place += span.size + 1
        return Body(cast(str, span), body.digest)

    return (None if frame.batch is None else with_bodies(frame.batch, placed)), prefix + header + bodies


def _first_line(state: AgentState, generation: str) -> bytes:
    return msgspec.json.encode(_Head("journal", FORMAT, generation, state.agent_id, state.log.next_offset)) + b"\n"


def write_state(path: Path, state: AgentState, reader: Reader, *, durable: bool) -> None:
    """Put a file at *path* that says no more than *state*, whose texts *reader* has."""

    def chunks() -> Iterator[bytes]:
        yield _first_line(state, secrets.token_hex(8))
        for batch, outcome in _batches_of(state):
            yield _frame_bytes(Frame("apply", with_bodies(batch, reader.text), outcome), 0)[1]

    replace_file(path, chunks(), durable=durable)


def _batches_of(state: AgentState) -> Iterator[tuple[Batch, Applied]]:
    """Batches that together make *state*, each of a bounded size."""
    heads = Applied(state.lists[ListKind.MESSAGES].head, state.lists[ListKind.TOOL_CALLS].head)
    blank = Batch(agent_id=state.agent_id, op_id="", now=state.updated_at)
    for kind, rows in state.lists.items():
        if rows.version:
            for i in range(0, max(len(rows.rows), 1), _CHUNK_ROWS):
                write = ListWrite(append=tuple(rows.rows[i : i + _CHUNK_ROWS]))
                yield msgspec.structs.replace(blank, **{kind.value: write}), heads
    for i in range(0, len(state.log), _CHUNK_ROWS):
        events: list[EventWrite] = []
        offsets: list[int] = []
        for j in range(i, min(i + _CHUNK_ROWS, len(state.log))):
            events.append(state.log.write_of(j))
            offsets.append(state.log.row(j).offset)
        yield msgspec.structs.replace(blank, events=tuple(events)), Applied(offsets=tuple(offsets))
    for (doc_kind, key), doc in state.docs.items():
        yield msgspec.structs.replace(blank, docs=(DocWrite(doc_kind, key, doc),)), Applied()
    yield msgspec.structs.replace(blank, op_id=state.last_op, info=state.info), state.last_outcome
