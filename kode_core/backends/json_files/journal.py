"""One agent's file in the JSON files engine: a journal of frames, each one atomic write.

A frame counts only if it is complete. Once a write is done, the first line records the position up to which the file
was acknowledged. Bytes behind it that are no complete frame are the rest of a write that a crash cut short, unless a
frame follows that no writer would have put there. The next write moves them to a file of their own. Any other mismatch
is damage: it is reported, not skipped, and nothing is written to the file (OPS-4).

A file gets its name only after its first frame was written.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from kode_core.authoring.files import open_file
from kode_core.authoring.modes import PRIVATE
from kode_core.backends.json_files.byte_ranges import BodyReader, ByteRanges, bodies_of
from kode_core.backends.json_files.cuts import keep
from kode_core.backends.json_files.files import (
    agent_of,
    read_at,
    replacing,
    sync_file,
    sync_folder,
    write_all,
)
from kode_core.backends.json_files.frames import (
    FORMAT,
    PROOF,
    FirstLine,
    FoundFrame,
    Frame,
    Located,
    NoJournalError,
    OtherFormatError,
    first_line,
    frame_at,
    frame_bytes,
    frames_behind,
    parsed_line,
    read_line,
)
from kode_core.backends.json_files.marks import SYNCED, Mark, slot_at, slot_bytes, this_boot, worth
from kode_core.backends.json_files.signatures import Signature, settled
from kode_core.backends.json_files.states import write_state
from kode_core.batch import Batch
from kode_core.engines.state import AgentState
from kode_core.errors import CorruptRecordError, OutcomeUnknownError, SchemaVersionError, StorageError
from kode_core.ids import quoted

__all__ = ["COMPACT_FROM", "BodyReader", "Frame", "Journal"]

_log = logging.getLogger("kode_core.json")

COMPACT_FROM: Final = 1 << 20
"""A file smaller than this is not worth compacting."""
_PIECE: Final = 1 << 20
_EMPTY_BYTES: Final = 3_000
_ROW_BYTES: Final = 600
_EVENT_BYTES: Final = 64


class Journal:
    """The state of one agent as its file records it.

    Not thread-safe: ``turn`` is held while it is used. Writes also need the lock of the agent's stripe.
    """

    def __init__(self, path: Path, mode: int = PRIVATE) -> None:
        self.path = path
        self._mode = mode
        self.turn = threading.Lock()
        self.compact_at = COMPACT_FROM
        self.replaced_at = 0
        """The size beyond which a file that holds a replaced agent is compacted: larger after a failure."""
        self.owner = agent_of(path.name.removesuffix(".jsonl"))
        """The agent that the file's name stands for; None for a long name until a caller asks with the id."""
        self.forget()

    def forget(self) -> None:
        """Remember nothing; the file is read again when it is needed."""
        self.damage: StorageError | None = None
        self.end = 0
        self.state = AgentState("", 1, ByteRanges())
        self.prepared: Batch | None = None
        self.is_replaced = False
        self._line: FirstLine | None = None
        self._last = 0
        self._known: Signature | None = None
        self._proof = (0, b"")
        self._no_frame_behind = (0, 0)

    @property
    def generation(self) -> str:
        """Identifies the file: changes when the file is rewritten, and is empty if there is none."""
        return "" if self._line is None else self._line.generation

    @property
    def weight(self) -> int:
        """The approximate number of bytes of memory that the state takes."""
        rows = sum(len(rows.rows) for rows in self.state.lists.values()) + len(self.state.docs)
        return _EMPTY_BYTES + _ROW_BYTES * rows + _EVENT_BYTES * len(self.state.log)

    @property
    def label(self) -> str:
        """Its name in errors and reports."""
        agent_id = self.owner or self.state.agent_id
        return f"file {self.path.name!r}" if not agent_id else f"agent {agent_id!r}"

    # --- reading

    @contextmanager
    def reading(self) -> Iterator[BodyReader]:
        """Read the frames that were written since; inside, the state matches the file that contains its bodies.

        ``damage`` is set if the file could not be read to its end; the state then ends before the damage.
        """
        fd = self._open()
        if fd is None:
            self.forget()
            yield BodyReader(-1)
            return
        try:
            self._catch_up(fd)
            if self.damage is not None:  # another process may just have written: damage counts only if it is seen twice
                self.forget()
                os.close(fd)
                fd = None
                fd = self._open()
                if fd is not None:
                    self._catch_up(fd)
            yield BodyReader(-1 if fd is None else fd, self.label)
        finally:
            if fd is not None:
                os.close(fd)

    def _open(self) -> int | None:
        try:
            fd = open_file(self.path, os.O_RDONLY)
        except FileNotFoundError:
            if self.path.is_symlink():
                raise self._corrupt("is a symbolic link that leads nowhere") from None
            return None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise self._corrupt("is no regular file; move it away")
        return fd

    def refresh(self) -> None:
        """Read the frames that were written since, and raise ``damage`` if it is set."""
        with self.reading():
            if self.damage is not None:
                raise self.damage

    def _catch_up(self, fd: int) -> None:
        self.damage = None
        try:
            line = parsed_line(read_line(fd))
        except NoJournalError as exc:
            self.damage = self._damaged(0, str(exc))
            return
        except OtherFormatError as exc:
            problem = f"has format {quoted(exc.args[0])}, and this kode-core reads up to {FORMAT}: upgrade kode-core"
            if exc.args[0] < FORMAT:
                problem = "is in the first format, and could not be changed; it may be damaged"
            self.damage = SchemaVersionError(f"{self.path} of {self.label} {problem}")
            return
        now, found = time.time_ns(), os.fstat(fd)  # after the marks, which are never ahead of the size
        size, known = found.st_size, settled(found, now)
        if line.generation != self.generation or size < self.end or not self._goes_on(fd, known):
            self.forget()
            self.state = AgentState(line.agent, line.next_offset, ByteRanges())
            self.end = line.size
        self._line = line
        self._read_frames(fd, size)
        if self.end < min(size, self._acknowledged) or (self.end < size and self._goes_on_behind(fd, size)):
            self.damage = self._damaged(self.end, "a frame does not match its checksum")
        elif self.end < self._acknowledged:
            problem = f"{self._acknowledged - self.end} bytes that were acknowledged are missing"
            self.damage = self._damaged(self.end, problem)

    def _goes_on(self, fd: int, known: Signature | None) -> bool:
        """False if an older state was put back in place and others wrote since: the last batch is not where it was."""
        is_known, self._known = known is not None and known == self._known, known
        at, begin = self._proof
        return is_known or read_at(fd, len(begin), at) == begin

    def _read_frames(self, fd: int, size: int) -> None:
        assert self._line is not None
        acknowledged, proof = self._acknowledged, None
        while self.end < size:
            found = frame_at(fd, self.end, size, self._line.seed)
            if found is None or not (found.end <= acknowledged or self._is_whole(fd, found, size)):
                break
            self._apply(found.frame.phase, found.placed, found.frame)
            self._last, self.end = self.end, found.end
            proof = found if found.frame.batch is not None else proof
        if proof is not None:
            self._proof = proof.start, read_at(fd, min(PROOF, proof.end - proof.start), proof.start)

    def _is_whole(self, fd: int, found: FoundFrame, size: int) -> bool:
        """True if an unacknowledged frame is complete. A frame that other frames build on may have a damaged body."""
        assert self._line is not None
        following = frame_at(fd, found.end, size, self._line.seed)
        return (following is not None and not following.frame.unsynced) or found.is_sound(fd)

    def _goes_on_behind(self, fd: int, size: int) -> bool:
        """True if a frame behind the end shows that the end is a hole, because no writer would have put it there."""
        if self._no_frame_behind == (self.end, size):
            return False
        assert self._line is not None
        for found in frames_behind(fd, self.end, size, self._line.seed):
            if found.start - found.frame.unsynced > self.end:
                return True
        self._no_frame_behind = (self.end, size)
        return False

    @property
    def _marks(self) -> list[Mark | None]:
        return [] if self._line is None else self._line.marks

    @property
    def _acknowledged(self) -> int:
        """The position up to which everything was acknowledged; 0 if no mark can be relied on."""
        return max((mark.number for mark in self._marks if mark and mark.is_reliable), default=0)

    @property
    def _synced(self) -> int:
        """The position up to which everything is on the device."""
        return max((mark.number for mark in self._marks if mark and mark.word == SYNCED), default=0)

    def _apply(self, phase: str, batch: Batch | None, frame: Frame) -> None:
        if phase == "prepare":
            self.prepared = batch
            return
        if phase in ("commit", "abort"):
            batch, self.prepared = self.prepared, None
            if phase == "abort" or batch is None:
                return
        assert batch is not None
        if batch.delete:
            self.is_replaced = True
            self.state = AgentState(self.state.agent_id, self.state.log.next_offset, ByteRanges())
        self.state.apply(batch, frame.outcome or self.state.outcome(batch))

    def _damaged(self, place: int, what: str) -> CorruptRecordError:
        return self._corrupt(f"is damaged at byte {place}: {what}; put back the file from a backup")

    def _corrupt(self, what: str) -> CorruptRecordError:
        return CorruptRecordError(self.label, f"{self.path} {what}")

    # --- writing: only under the agent's lock

    def begin(self, agent_id: str, next_offset: int) -> None:
        """Prepare for a write. The offset is the first event offset of a new agent."""
        self.refresh()
        if self.end and not self._is_as_known():
            self.forget()
            self.refresh()
        self.check_owner(agent_id)
        if not self.end:
            self.forget()
            self.state = AgentState(agent_id, next_offset, ByteRanges())

    def check_owner(self, agent_id: str) -> None:
        """Check that the file belongs to this agent.

        Raises:
            CorruptRecordError: the file was replaced by another agent's.
        """
        if self.end and self.state.agent_id != agent_id:
            problem = f"{self.path} is a file of agent {self.state.agent_id!r}; put back the right one from a backup"
            raise CorruptRecordError(f"agent {agent_id!r}", problem)

    def _is_as_known(self) -> bool:
        """True if the last frame, and the frames that may never have reached the device, are still in place."""
        assert self._line is not None
        fd = open_file(self.path, os.O_RDONLY)
        try:
            at = min(max(self._acknowledged, self._line.size), self._last or self.end)
            while at < self.end:
                found = frame_at(fd, at, self.end, self._line.seed)
                if found is None or (at >= self._acknowledged and not found.is_sound(fd)):
                    return False
                at = found.end
            return at == self.end
        finally:
            os.close(fd)

    def append(self, frame: Frame, *, durable: bool, marked: bool = True) -> None:
        """Append a frame and apply it. After an error the file is unchanged.

        A frame that is not *marked* is not noted in the first line: losing it does no harm.

        Raises:
            OutcomeUnknownError: the frame was written but could not be synced; others may have read it, so it stays.
        """
        try:
            if self.end:
                self._extend(frame, durable=durable, marked=marked)
            else:
                self._create(frame, durable=durable)
        except BaseException:
            self.forget()
            raise

    def _create(self, frame: Frame, *, durable: bool) -> None:
        line = first_line(self.state.agent_id, self.state.log.next_offset)
        parsed = parsed_line(line)
        placed, data = frame_bytes(frame, len(line), parsed.seed)
        with replacing(self.path, durable=durable, mode=self._mode) as fd:
            write_all(fd, line + data, 0)
        self._line, self.end, self._last = parsed, len(line) + len(data), len(line)
        self._proof = len(line), data[:PROOF]
        self._apply(frame.phase, placed, frame)
        self._mark(None, durable=durable)

    def _extend(self, frame: Frame, *, durable: bool, marked: bool) -> None:
        assert self._line is not None
        fd = open_file(self.path, os.O_RDWR)
        try:
            self._cut(fd)
            start = max(self._synced, self._line.size) if durable else self.end
            frame = replace(frame, unsynced=self.end - start)
            placed, data = frame_bytes(frame, self.end, self._line.seed)
            try:
                for at in range(start, self.end, _PIECE):  # a failed sync may have dropped them: write them again
                    write_all(fd, read_at(fd, min(_PIECE, self.end - at), at), at)
                write_all(fd, data, self.end)
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(fd, self.end)
                raise
            if durable:
                self._sync(fd)
            self._last, self.end = self.end, self.end + len(data)
            if frame.batch is not None:
                self._proof = self._last, data[:PROOF]
            self._apply(frame.phase, placed, frame)
            if marked:
                self._mark(fd, durable=durable)
        finally:
            os.close(fd)

    def _sync(self, fd: int) -> None:
        try:
            sync_file(fd)
            if not self._synced:
                sync_folder(self.path.parent)
        except OSError as exc:
            raise OutcomeUnknownError(
                f"{self.path} was written and could not be synced ({exc.strerror}): read first"
            ) from exc

    def _mark(self, fd: int | None, *, durable: bool) -> None:
        """Note in the first line that the write is complete. If that fails, the file is sound, but less known.

        One of the two marks is always on the device: a loss of power cannot tear both.
        """
        assert self._line is not None
        marks = self._line.marks
        index = min((0, 1), key=lambda i: worth(marks[i]))
        marks[index] = mark = Mark(self.end, SYNCED if durable else this_boot())
        slot = slot_bytes(mark, self._line.seed)
        at = self._line.marks_at + slot_at(index)
        try:
            if fd is not None:
                write_all(fd, slot, at)
                return
            fd = open_file(self.path, os.O_RDWR)
            try:
                write_all(fd, slot, at)
            finally:
                os.close(fd)
        except OSError as exc:
            _log.warning("%s: its first line could not be written: %s", self.path, exc)

    def _cut(self, fd: int) -> None:
        """Move the bytes that a crash left behind the last frame to a separate file."""
        size = os.fstat(fd).st_size
        if size <= self.end:
            return
        if any(read_at(fd, _PIECE, at).strip(b"\0") for at in range(self.end, size, _PIECE)):
            kept = keep(fd, self.end, size, self.path)
            message = "%s: %d bytes behind the last whole write, which were never acknowledged, were moved to %s"
            _log.warning(message, self.label, size - self.end, kept)
        os.ftruncate(fd, self.end)

    # --- compaction

    @property
    def live_bytes(self) -> int:
        """The approximate size of the file without the parts that were replaced since."""
        return sum(body.size + 200 for body in bodies_of(self.state) if isinstance(body, Located))

    def compact(self, *, durable: bool) -> None:
        """Rewrite the file with its live contents only; damaged bodies stay unchanged."""
        with self.reading() as reader:
            if self.damage is not None:
                raise self.damage
            write_state(self.path, self.state, reader.raw, durable=durable)
        self.refresh()
