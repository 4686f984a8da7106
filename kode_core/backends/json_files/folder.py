"""The folder of the JSON files engine: the file of each agent, and the writes to it. Everything here blocks.

::

    <base>/agt-….jsonl          one journal an agent
    <base>/agt-….jsonl.cut-1    the bytes that a crash left at the end of one
    <base>/.kode/format         the version of this layout
    <base>/.kode/id             which folder this is, for the database that it belongs to
    <base>/.kode/locks/NN       one lock file for each stripe of agents, with a number that only grows
    <base>/.kode/leases/…       one file for each lease that is held
    <base>/.kode/copies/…       links to the files that a backup copies, while it does
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from kode_core.authoring.files import system_error, unlock
from kode_core.authoring.modes import PRIVATE, create_folders
from kode_core.authoring.paths import remove_abandoned
from kode_core.backends.json_files.briefs import Briefs
from kode_core.backends.json_files.cuts import cut_files
from kode_core.backends.json_files.file_errors import UnreadableFileError, UnresolvedError
from kode_core.backends.json_files.files import (
    file_name,
    journal_names,
    locked,
    replace_file,
    sync_folder,
    translated,
    try_lock,
)
from kode_core.backends.json_files.first_format import migrate_folder
from kode_core.backends.json_files.journal import COMPACT_FROM, BodyReader, Frame, Journal
from kode_core.backends.json_files.leases import LeaseFiles
from kode_core.backends.json_files.stripes import STRIPES, Stripe, stripe_name, stripe_of
from kode_core.batch import Applied, Batch, Fence, Outcome, Refused
from kode_core.engines.state import AgentState, accepted
from kode_core.errors import CorruptRecordError, SchemaVersionError, StorageError, StoreUnavailableError

__all__ = ["FORMAT", "STRIPES", "Folder", "Stripe", "UnreadableFileError", "UnresolvedError", "stripe_of"]

_log = logging.getLogger("kode_core.json")

FORMAT: Final = 2
_MAX_JOURNALS: Final = 20_000
_MEMORY_BYTES: Final = 32 << 20
"""The most that remembered journals take (OPS-14); the journal that was used last is kept, whatever its size."""
_ABANDONED_S: Final = 3600
_ABANDONED_COPY_S: Final = 24 * 3600
_NOT_OF_THE_FILE: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors of opening a file that say nothing about the file itself."""


class Folder:
    """See the module. A writer holds the stripe of the agent, which also excludes other processes."""

    def __init__(self, base: Path, *, durable: bool, wait_ms: int, mode: int = PRIVATE) -> None:
        self.base = base
        self.mode = mode
        self.durable = durable
        self.wait_ms = wait_ms
        self.own = base / ".kode"
        self._leases = LeaseFiles(self.own / "leases", mode)
        self._journals: OrderedDict[str, Journal] = OrderedDict()
        self._weights: dict[str, int] = {}
        self._memory = 0
        self._guard = threading.Lock()
        self.briefs = Briefs()

    # --- the folder

    def open(self) -> None:
        """Create the folder if it does not exist, and check that this version can use it."""
        with translated(self.base):
            create_folders(self.base, self.mode)
            for name in ("locks", "leases"):
                create_folders(self.own / name, self.mode, like=self.base)
            format_file = self.own / "format"
            if not format_file.exists():
                self._begin_stripes()
                replace_file(format_file, iter([b"%d\n" % FORMAT]), durable=True, mode=self.mode)
            version = re.fullmatch(rb"(\d{1,9})\s?", format_file.read_bytes())
            if version is None:
                raise CorruptRecordError(
                    f"folder {str(self.base)!r}", f"{format_file} is damaged: it must say {FORMAT}"
                )
            if int(version[1]) == 1:
                places = (self.base, self.own / "locks", format_file)
                migrate_folder(*places, FORMAT, self.wait_ms, self.mode, durable=self.durable)
            elif int(version[1]) != FORMAT:
                raise SchemaVersionError(
                    f"{self.base} has layout {int(version[1])}, and this kode-core knows {FORMAT}: upgrade kode-core"
                )
            self._sweep()

    def _begin_stripes(self) -> None:
        """Give every stripe its first number, so that a stripe without a number is later known to have lost it."""
        for i in range(STRIPES):
            path = self.lock_path(i)
            with locked(path, self.wait_ms, self.mode) as fd:
                Stripe(path, fd, durable=False).begin()

    def _sweep(self) -> None:
        """Remove the files of processes that were killed while they rewrote a file or made a backup."""
        for folder in (self.base, self.own, self.own / "leases"):
            for entry in os.scandir(folder):
                if entry.name.endswith(".tmp") or (folder == self.own and entry.name.startswith(("id.", "probe."))):
                    remove_abandoned(Path(entry), _ABANDONED_S)
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.own / "copies"):
                remove_abandoned(Path(entry), _ABANDONED_COPY_S)

    def identity(self) -> str:
        """A word that identifies this folder; created on first use."""
        path = self.own / "id"
        with translated(path):
            if not path.exists():
                draft = self.own / f"id.{secrets.token_hex(8)}"
                replace_file(draft, iter([secrets.token_hex(16).encode()]), durable=True, mode=self.mode)
                with suppress(FileExistsError):
                    path.hardlink_to(draft)
                draft.unlink()
                if self.durable:
                    sync_folder(self.own)
            word = path.read_bytes()
        if not re.fullmatch(rb"[0-9a-f]{32}", word):
            raise CorruptRecordError(f"folder {str(self.base)!r}", f"{path} is damaged; put it back from a backup")
        return word.decode()

    def lock_path(self, index: int) -> Path:
        """The lock file of a stripe."""
        return self.own / "locks" / stripe_name(index)

    def try_stripe(self, index: int) -> Stripe | None:
        """Take the lock of a stripe; None if another process or call holds it."""
        path = self.lock_path(index)
        with translated(path):
            fd = try_lock(path, self.mode)
        return None if fd is None else Stripe(path, fd, durable=self.durable)

    def release_stripe(self, stripe: Stripe) -> None:
        """Release the lock of a stripe."""
        with translated(stripe.path):
            unlock(stripe.fd)

    # --- journals

    def journal(self, agent_id: str) -> Journal:
        """The agent's journal, not refreshed."""
        journal = self.journal_named(file_name(agent_id) + ".jsonl")
        journal.owner = agent_id
        return journal

    def journal_named(self, name: str) -> Journal:
        """The journal in the file of that name, not refreshed."""
        with self._guard:
            journal = self._journals.pop(name, None) or Journal(self.base / name, self.mode)
            self._journals[name] = journal
            return journal

    def _used(self, journal: Journal) -> None:
        """Count the memory of a journal, and forget the least recently used journals."""
        with self._guard:
            name = journal.path.name
            if self._journals.get(name) is not journal:
                return
            self._memory += journal.weight - self._weights.get(name, 0)
            self._weights[name] = journal.weight
            while len(self._journals) > 1 and (self._memory > _MEMORY_BYTES or len(self._journals) > _MAX_JOURNALS):
                oldest = next(iter(self._journals))
                if oldest == name:
                    self._journals.move_to_end(name)
                    continue
                del self._journals[oldest]
                self._memory -= self._weights.pop(oldest, 0)

    @contextmanager
    def reading(self, agent_id: str) -> Iterator[tuple[Journal, BodyReader]]:
        """The agent's journal, refreshed and sound, and the file that contains its texts."""
        journal = self.journal(agent_id)
        with self.scanning(journal) as reader:
            if journal.damage is not None:
                raise journal.damage
            journal.check_owner(agent_id)
            if journal.prepared is not None:
                raise UnresolvedError(journal.prepared)
            if not journal.end and not (self.own / "format").exists():
                raise StoreUnavailableError(f"{self.base} is gone, or is no longer the folder of a store")
            yield journal, reader

    @contextmanager
    def scanning(self, journal: Journal) -> Iterator[BodyReader]:
        """Refresh a journal and keep other threads from using it meanwhile; it may be damaged."""
        with journal.turn, translated(journal.path):
            reading = journal.reading()
            try:
                reader = reading.__enter__()
            except OSError as exc:
                if isinstance(exc, StorageError):
                    raise
                if exc.errno in _NOT_OF_THE_FILE:
                    raise system_error(exc, str(journal.path)) from exc
                problem = f"{journal.path} cannot be read: {exc.strerror}; give this process access to it"
                raise UnreadableFileError(journal.label, problem) from exc
            try:
                yield reader
            finally:
                reading.__exit__(None, None, None)
                self._used(journal)

    def names(self) -> list[str]:
        """The names of all files that should be journals."""
        with translated(self.base):
            return journal_names(self.base)

    def is_stray(self, journal: Journal) -> bool:
        """True if the file, once it was read, belongs to an agent whose file has another name; a copied file does."""
        agent_id = journal.state.agent_id
        return bool(agent_id) and journal.path.name != f"{file_name(agent_id)}.jsonl"

    # --- writes

    def commit(self, stripe: Stripe, batches: Sequence[Batch]) -> list[Outcome]:
        """Apply batches that all belong to one stripe."""
        outcomes: list[Outcome] = []
        for batch in batches:
            try:
                journal = self.journal(batch.agent_id)
                with journal.turn:
                    outcomes.append(self._commit(stripe, journal, batch))
                    self._used(journal)
            except StorageError as exc:
                outcomes.append(exc)
        return outcomes

    def _commit(self, stripe: Stripe, journal: Journal, batch: Batch) -> Applied | Refused:
        with translated(journal.path):
            try:
                journal.begin(batch.agent_id, stripe.number + 1)
            except CorruptRecordError as exc:
                if not self._may_remove(journal, batch, exc):
                    raise
                return self._remove_damaged(stripe, journal)
            if journal.prepared is not None:
                raise UnresolvedError(journal.prepared)
            if batch.op_id == journal.state.last_op:
                return journal.state.last_outcome
            if batch.fence is not None and not self._leases.holds(batch.agent_id, batch.fence):
                return Refused("fence")
            refusal = journal.state.refusal(batch)
            if refusal is not None:
                return refusal
            return self._apply(stripe, journal, batch)

    def _may_remove(self, journal: Journal, batch: Batch, damage: CorruptRecordError) -> bool:
        """True if a damaged file may go: the batch deletes its agent, and the file is no other agent's."""
        is_plain_delete = batch.delete and batch.is_empty and batch.expect_updated_at is None
        is_free = batch.fence is None or self._leases.holds(batch.agent_id, batch.fence)
        is_its_own = journal.state.agent_id in ("", batch.agent_id) and not isinstance(damage, UnreadableFileError)
        return is_plain_delete and is_free and is_its_own

    def _remove_damaged(self, stripe: Stripe, journal: Journal) -> Applied:
        """Remove a damaged file.

        An event takes more than one byte, so the file's size bounds the offsets in it (EVT-2).
        """
        stripe.raise_to(max(stripe.number, journal.state.log.next_offset) + journal.path.stat().st_size)
        _log.warning("%s was damaged, and was removed with its agent, which was deleted", journal.path)
        self._unlink(journal)
        return Applied()

    def _unlink_cuts(self, journal: Journal) -> None:
        for path in cut_files(journal.path):
            path.unlink(missing_ok=True)

    def _unlink(self, journal: Journal) -> None:
        self._unlink_cuts(journal)
        journal.path.unlink(missing_ok=True)
        journal.forget()
        self.briefs.drop(journal.path.name)
        if self.durable:
            sync_folder(self.base)

    def _apply(self, stripe: Stripe, journal: Journal, batch: Batch) -> Applied:
        if batch.delete and journal.end == 0:
            batch = msgspec.structs.replace(batch, delete=False)
        base = AgentState(batch.agent_id, journal.state.log.next_offset) if batch.delete else journal.state
        outcome = base.outcome(batch)
        if batch.delete or not batch.is_empty:
            journal.append(Frame("apply", base.stamped(batch), outcome), durable=self.durable)
            self.tidy(stripe, journal)
        return outcome

    def tidy(self, stripe: Stripe, journal: Journal) -> None:
        """Remove the file of an agent with no contents left; compact a file that is mostly history, or that holds an
        agent which was replaced since.

        The write before it is complete: a failure here is logged, and the work is tried again later.
        """
        try:
            self._tidy(stripe, journal)
        except (OSError, StorageError, MemoryError) as exc:
            _log.warning("%s could not be tidied: %s", journal.path, exc)
            journal.compact_at, journal.replaced_at = 2 * journal.end, journal.end + journal.end // 8

    def _tidy(self, stripe: Stripe, journal: Journal) -> None:
        if journal.prepared is not None:
            return
        log = journal.state.log
        if journal.state.is_empty:
            stripe.raise_to(journal.state.log.next_offset)
            self._unlink(journal)
        elif journal.is_replaced and journal.end > journal.replaced_at:
            journal.compact(durable=self.durable)
            journal.replaced_at = 0
            self._unlink_cuts(journal)
        elif journal.end > journal.compact_at or log.dropped > len(log):
            live = journal.live_bytes
            if journal.end > 2 * live + COMPACT_FROM:
                journal.compact(durable=self.durable)
            journal.state.log.dropped, journal.compact_at = 0, max(COMPACT_FROM, 3 * live)

    def prepare(self, stripe: Stripe, batch: Batch) -> Refused | None:
        """Write a batch to the journal without applying it, unless the files refuse it."""
        journal = self.journal(batch.agent_id)
        with journal.turn, translated(journal.path):
            journal.begin(batch.agent_id, stripe.number + 1)
            if journal.prepared is not None:
                raise UnresolvedError(journal.prepared)
            refusal = journal.state.refusal(batch)
            if refusal is None:
                journal.append(Frame("prepare", accepted(batch)), durable=self.durable)
            return refusal

    def prepared(self, agent_id: str) -> Batch | None:
        """The batch that waits for the decision of another store."""
        journal = self.journal(agent_id)
        with self.scanning(journal):
            return journal.prepared

    def decide(self, stripe: Stripe, agent_id: str, *, committed: bool) -> Applied:
        """Write the decision about the prepared write to the journal, and apply the write if it was committed."""
        journal = self.journal(agent_id)
        with journal.turn, translated(journal.path):
            journal.begin(agent_id, stripe.number + 1)
            batch = journal.prepared
            if batch is None:
                raise CorruptRecordError(f"agent {agent_id!r}", f"{journal.path}: a write that was prepared is gone")
            base = AgentState(batch.agent_id, journal.state.log.next_offset) if batch.delete else journal.state
            outcome = base.outcome(batch) if committed else None
            decision = Frame("commit" if committed else "abort", None, outcome)
            journal.append(decision, durable=False, marked=not self.durable)
            self.tidy(stripe, journal)
        return outcome or Applied()

    # --- leases

    def acquire_lease(self, stripe: Stripe, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        """The new token, or None if the lease is held."""
        with translated(self.own):
            if self._leases.current(agent_id) is not None:
                return None
            token = stripe.number + 1
            stripe.raise_to(token)
            self._leases.write(agent_id, Fence(owner, token), ttl_ms)
            return token

    def renew_lease(self, _: Stripe, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        """Prolong the lease; False if it ended."""
        with translated(self.own):
            if not self._leases.holds(agent_id, fence):
                return False
            self._leases.write(agent_id, fence, ttl_ms)
            return True

    def release_lease(self, _: Stripe, agent_id: str, fence: Fence) -> None:
        """End the lease if it is still this one."""
        with translated(self.own):
            if self._leases.holds(agent_id, fence):
                self._leases.remove(agent_id)

    # --- health

    def ping(self) -> None:
        """Write, sync and remove a file that belongs to this process."""
        probe = self.own / f"probe.{os.getpid()}.{threading.get_ident()}"
        with translated(self.base):
            try:
                replace_file(probe, iter([b"ok"]), durable=self.durable)
            finally:
                probe.unlink(missing_ok=True)
