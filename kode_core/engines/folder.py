"""The folder of the JSON files engine: which file is whose, and who may write it now. Everything here blocks.

::

    <base>/agt-….jsonl       one journal an agent
    <base>/.kode/format      the version of this layout
    <base>/.kode/id          which folder this is, where a database beside it must know
    <base>/.kode/locks/NN    one lock file for each stripe of agents, with a number that only grows
    <base>/.kode/leases/…    one file for each lease that is held

A stripe's lock is held for the moments that a write takes. Its number is above every token given out and every
offset of a deleted agent of the stripe, so that neither ever comes again.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from kode_core.batch import FORKED_DOCS, Applied, Batch, Child, EngineIssue, Fence, ListKind, Outcome, Refused, Totals
from kode_core.codec import Body
from kode_core.engines.files import (
    file_name,
    locked,
    os_error,
    read_at,
    replace_file,
    sync_file,
    sync_folder,
    translated,
    write_all,
)
from kode_core.engines.journal import COMPACT_FROM, Frame, Journal, Reader, write_state
from kode_core.engines.leases import LeaseFiles
from kode_core.engines.memory import forked
from kode_core.engines.state import AgentState
from kode_core.errors import SchemaVersionError, StorageError, StoreUnavailableError

__all__ = ["STRIPES", "Folder", "Stripe", "UnresolvedError", "stripe_of"]

_log = logging.getLogger("kode_core.json")

FORMAT: Final = 1
STRIPES: Final = 32
_MAX_JOURNALS: Final = 20_000
_ABANDONED_S: Final = 3600


class UnresolvedError(StorageError):
    """The agent's last write waits for the word of the store that commits the other part of it."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(
            f"agent {batch.agent_id!r}: a crash left a write whose outcome only the database knows; "
            "open this folder together with the database that it belongs to"
        )
        self.batch = batch


def stripe_of(agent_id: str) -> int:
    """The stripe that *agent_id* belongs to."""
    return blake2b(agent_id.encode(), digest_size=1).digest()[0] % STRIPES


class Stripe:
    """A stripe whose lock is held."""

    def __init__(self, fd: int, *, durable: bool) -> None:
        self._fd = fd
        self._durable = durable

    @property
    def number(self) -> int:
        return int(read_at(self._fd, 20, 0) or b"0")

    def raise_to(self, number: int) -> None:
        """Let the number be at least *number*."""
        if number > self.number:
            write_all(self._fd, b"%020d" % number, 0)
            if self._durable:
                sync_file(self._fd)


class Folder:
    """See the module. Calls for one agent must not overlap within a process; the engine sees to that."""

    def __init__(self, base: Path, *, durable: bool, wait_ms: int) -> None:
        self.base = base
        self.durable = durable
        self._own = base / ".kode"
        self._leases = LeaseFiles(self._own / "leases")
        self._wait_ms = wait_ms
        self._journals: OrderedDict[str, Journal] = OrderedDict()
        self._guard = threading.Lock()

    def open(self) -> None:
        """Make the folder if it is not there, and see that this version can use it."""
        with translated(self.base):
            for name in ("locks", "leases"):
                (self._own / name).mkdir(parents=True, exist_ok=True)
            mark = self._own / "format"
            if not mark.exists():
                replace_file(mark, iter([b"%d\n" % FORMAT]), durable=self.durable)
            version = mark.read_text().strip()
            if version != str(FORMAT):
                raise SchemaVersionError(
                    f"{self.base} has layout {version}, and this kode-core knows {FORMAT}: upgrade kode-core"
                )
            self._sweep()

    def _sweep(self) -> None:
        """Remove what processes left that were killed while they rewrote a file."""
        for entry in os.scandir(self.base):
            if entry.name.endswith(".tmp") and time.time() - entry.stat().st_mtime > _ABANDONED_S:
                with suppress(OSError):
                    Path(entry).unlink()

    def identity(self) -> str:
        """A word that tells this folder from all others, made when it is asked for first."""
        path = self._own / "id"
        with translated(path):
            if not path.exists():
                draft = self._own / f"id.{secrets.token_hex(8)}"
                replace_file(draft, iter([secrets.token_hex(16).encode()]), durable=self.durable)
                with suppress(FileExistsError):
                    path.hardlink_to(draft)
                draft.unlink()
                if self.durable:
                    sync_folder(self._own)
            return path.read_text()

    @contextmanager
    def stripe(self, agent_id: str) -> Iterator[Stripe]:
        """Hold the lock of the agent's stripe, against other processes."""
        path = self._own / "locks" / f"{stripe_of(agent_id):02d}"
        with translated(path), locked(path, self._wait_ms) as fd:
            yield Stripe(fd, durable=self.durable)

    def journal(self, agent_id: str) -> Journal:
        """The agent's journal, not refreshed."""
        return self._journal(file_name(agent_id) + ".jsonl")

    def _journal(self, name: str) -> Journal:
        with self._guard:
            journal = self._journals.pop(name, None) or Journal(self.base / name)
            self._journals[name] = journal
            if len(self._journals) > _MAX_JOURNALS:
                self._journals.popitem(last=False)
            return journal

    @contextmanager
    def reading(self, agent_id: str) -> Iterator[tuple[Journal, Reader]]:
        """The agent's journal, refreshed and sound, and the file that its texts are in."""
        journal = self.journal(agent_id)
        with self.scanning(journal) as reader:
            if journal.damage is not None:
                raise journal.damage
            if journal.prepared is not None:
                raise UnresolvedError(journal.prepared)
            yield journal, reader

    @contextmanager
    def scanning(self, journal: Journal) -> Iterator[Reader]:
        """A refreshed journal, sound or not."""
        try:
            with journal.reading() as reader:
                yield reader
        except PermissionError as exc:
            problem = f"{journal.path} cannot be read: {exc.strerror}; give this process access to it"
            raise StoreUnavailableError(problem) from exc
        except OSError as exc:
            if isinstance(exc, StorageError):
                raise
            raise os_error(exc, journal.path) from exc

    def journals(self) -> list[Journal]:
        """All journals there are, not refreshed."""
        with translated(self.base):
            names = [entry.name for entry in os.scandir(self.base) if entry.name.endswith(".jsonl")]
        return [self._journal(name) for name in names]

    def is_stray(self, journal: Journal) -> bool:
        """Whether the file, once it was read, is of an agent that has its file elsewhere, as a copy is."""
        agent_id = journal.state.agent_id
        return bool(agent_id) and journal.path.name != f"{file_name(agent_id)}.jsonl"

    # --- writes

    def commit(self, batches: Sequence[Batch]) -> list[Outcome]:
        """Apply batches that are all of one stripe."""
        outcomes: list[Outcome] = []
        with self.stripe(batches[0].agent_id) as stripe:
            for batch in batches:
                try:
                    outcomes.append(self._commit(stripe, batch))
                except StorageError as exc:
                    outcomes.append(exc)
        return outcomes

    def _commit(self, stripe: Stripe, batch: Batch) -> Applied | Refused:
        journal = self.journal(batch.agent_id)
        with translated(journal.path):
            journal.begin(batch.agent_id, stripe.number + 1)
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

    def _apply(self, stripe: Stripe, journal: Journal, batch: Batch) -> Applied:
        if batch.delete and journal.end == 0:
            batch = msgspec.structs.replace(batch, delete=False)
        base = AgentState(batch.agent_id, journal.state.log.next_offset) if batch.delete else journal.state
        outcome = base.outcome(batch)
        if _changes(batch):
            journal.append(Frame("apply", base.stamped(batch), outcome), durable=self.durable)
            self.tidy(stripe, journal)
        return outcome

    def tidy(self, stripe: Stripe, journal: Journal) -> None:
        """Remove the file of an agent that has nothing left; compact one that is mostly history.

        The write that led here is done: what fails is logged and tried again later.
        """
        try:
            self._tidy(stripe, journal)
        except (OSError, StorageError) as exc:
            _log.warning("%s could not be tidied: %s", journal.path, exc)
            journal.compact_at = 2 * journal.end

    def _tidy(self, stripe: Stripe, journal: Journal) -> None:
        if journal.state.is_empty and journal.prepared is None:
            stripe.raise_to(journal.state.log.next_offset)
            with suppress(FileNotFoundError):
                journal.path.unlink()
            if self.durable:
                sync_folder(self.base)
        elif journal.end > journal.compact_at and journal.prepared is None:
            live = journal.live_bytes
            if journal.end > 2 * live + COMPACT_FROM:
                journal.compact(durable=self.durable)
            journal.compact_at = max(COMPACT_FROM, 3 * live)

    def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        """Copy the agent. Every copy is made beside its name first, so that a failure leaves none."""
        with self.stripe(agent_id), self.reading(agent_id) as (journal, reader):
            parent = journal.state
            if parent.info is None or reader.text(parent.info.body) != expect:
                return False
            made: list[Path] = []
            try:
                for child in children:
                    path = self.base / (file_name(child.agent_id) + ".jsonl")
                    write_state(path, forked(parent, child, now, 1), reader, durable=self.durable)
                    made.append(path)
            except BaseException:
                for path in made:
                    with suppress(OSError):
                        path.unlink()
                raise
        return True

    def copy_docs(self, agent_id: str, child_ids: Sequence[str]) -> list[Path]:
        """Files for the children with the agent's documents that a fork takes along; none where it has none."""
        with self.reading(agent_id) as (journal, reader):
            made: list[Path] = []
            for child_id in child_ids:
                state = AgentState(child_id)
                state.docs = {key: doc for key, doc in journal.state.docs.items() if key[0] in FORKED_DOCS}
                if state.docs:
                    path = self.base / (file_name(child_id) + ".jsonl")
                    write_state(path, state, reader, durable=self.durable)
                    made.append(path)
        return made

    def backup(self, target: Path) -> None:
        """Copy every journal, each as it was at one instant, to a new folder that can be opened as a store."""
        with translated(target):
            (target / ".kode").mkdir(parents=True)
            for name in ("format", "id"):
                if (self._own / name).exists():
                    shutil.copy(self._own / name, target / ".kode" / name)
        for journal in self.journals():
            with self.scanning(journal):
                if journal.end:
                    with translated(target), journal.path.open("rb") as source:
                        replace_file(target / journal.path.name, iter([source.read(journal.end)]), durable=True)

    # --- leases

    def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        """The new token, or None when the lease is held."""
        with self.stripe(agent_id) as stripe:
            if self._leases.current(agent_id) is not None:
                return None
            token = stripe.number + 1
            stripe.raise_to(token)
            self._leases.write(agent_id, Fence(owner, token), ttl_ms)
            return token

    def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        """False when the lease ended."""
        with self.stripe(agent_id):
            if not self._leases.holds(agent_id, fence):
                return False
            self._leases.write(agent_id, fence, ttl_ms)
            return True

    def release_lease(self, agent_id: str, fence: Fence) -> None:
        """End the lease if it is still this one."""
        with self.stripe(agent_id):
            if self._leases.holds(agent_id, fence):
                self._leases.remove(agent_id)

    # --- health

    def ping(self) -> None:
        """Write, sync and remove a file of this process's own."""
        probe = self._own / f"probe.{os.getpid()}.{threading.get_ident()}"
        with translated(self.base):
            try:
                replace_file(probe, iter([b"ok"]), durable=self.durable)
            finally:
                probe.unlink(missing_ok=True)

    def totals(self, states: Sequence[AgentState]) -> Totals:
        """Counts over all agents, and the size of all files."""
        with translated(self.base):
            size = sum(entry.stat().st_size for entry in os.scandir(self.base) if entry.is_file())
        return Totals(
            is_used=any(not state.is_empty for state in states),
            agents=sum(state.info is not None for state in states),
            messages=sum(len(state.lists[ListKind.MESSAGES].rows) for state in states),
            tool_calls=sum(len(state.lists[ListKind.TOOL_CALLS].rows) for state in states),
            size_bytes=size,
        )

    def inspect(self, agent_id: str) -> list[EngineIssue]:
        """A file left of a delete, and offsets that do not grow."""
        journal = self.journal(agent_id)
        with self.scanning(journal):
            if journal.damage is not None:
                return [EngineIssue("corrupt_record", agent_id, str(journal.damage))]
            issues = self._left_of_delete(journal)
            repeated = journal.state.log.repeated_offset()
            if repeated is not None:
                text = f"offset {repeated} comes twice in the event log"
                issues.append(EngineIssue("repeated_offset", agent_id, text))
        return issues

    def _left_of_delete(self, journal: Journal) -> list[EngineIssue]:
        if not journal.end or not journal.state.is_empty or journal.prepared is not None:
            return []
        text = f"{journal.path.name} is left of a delete that was cut short; delete the agent again"
        return [EngineIssue("half_done_delete", journal.state.agent_id, text)]

    def leftovers(self) -> list[EngineIssue]:
        """Files that stand for no agent."""
        issues: list[EngineIssue] = []
        for journal in self.journals():
            with self.scanning(journal):
                if journal.damage is not None and not journal.state.agent_id:
                    issues.append(EngineIssue("corrupt_record", journal.path.name, str(journal.damage)))
                if self.is_stray(journal):
                    agent_id = journal.state.agent_id
                    text = f"{journal.path} is not the file of agent {agent_id!r}, whose records it has; move it away"
                    issues.append(EngineIssue("stray_file", agent_id, text))
                issues.extend(self._left_of_delete(journal))
        return issues


def _changes(batch: Batch) -> bool:
    return bool(batch.delete or batch.info or batch.messages or batch.tool_calls or batch.docs or batch.events)
