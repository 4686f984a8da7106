"""Written by ``scripts/sync_methods.py`` from ``kode_core.protocols.agents.AgentStore``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from kode_core.engine import Progress
from kode_core.model import AgentInfo, AgentRecords, AppendedMessage, Json, Message
from kode_core.query import Session, Time
from kode_core.report import PruneResult
from kode_core.sync.locks import SyncLease
from kode_core.sync.methods.document_store import DocumentStoreMethods

__all__ = ["AgentStoreMethods"]

_Ids: TypeAlias = list[str]
_Appended: TypeAlias = list[AppendedMessage]


class AgentStoreMethods(DocumentStoreMethods):
    """The methods of :class:`~kode_core.AgentStore` for synchronous code."""

    def list(self, prefix: str = "", *, include_without_info: bool = False) -> _Ids:
        """Ids of the agents with info that begin with the literal *prefix*, in code point order (LIFE-2).

        *include_without_info* adds the ids of agents that have records, such as events or documents, but no info.
        """
        return self._call(lambda store: store.list(prefix, include_without_info=include_without_info))

    def load_session(self, agent_id: str) -> Session | None:
        """The agent as ``query_sessions`` shows it, with its number of tool calls and its version, of one instant.

        None if the agent has no info.
        """
        return self._call(lambda store: store.load_session(agent_id))

    def save_info(
        self, agent_id: str, info: AgentInfo, *, expect: str | None = None, fence: SyncLease | None = None
    ) -> None:
        """Insert or replace the agent's info and nothing else (INFO-1); ``info.agent_id`` must be *agent_id* (ID-3).

        Raises:
            ConflictError: the agent has another version than *expect* (VER-2).
        """
        self._call(lambda store: store.save_info(agent_id, info, expect=expect, fence=self._fence(agent_id, fence)))

    def create_agent(self, agent_id: str, info: AgentInfo, *, fence: SyncLease | None = None) -> None:
        """Save the info of an agent that has none: of several callers exactly one creates the agent (INFO-4).

        Raises:
            ConflictError: the agent has an info.
        """
        self._call(lambda store: store.create_agent(agent_id, info, fence=self._fence(agent_id, fence)))

    def update_info(
        self, agent_id: str, metadata: Mapping[str, Json], *, remove: Sequence[str] = (), fence: SyncLease | None = None
    ) -> AgentInfo:
        """Set keys of the info's metadata, and remove others, without losing concurrent changes (INFO-5).

        *metadata* has values by top-level key: each replaces the whole value of its key, and other keys stay. Keys in
        *remove* that the metadata does not have are ignored. Returns the info as ``load_info`` would give it.

        Raises:
            AgentNotFoundError: the agent has no info.
        """
        return self._call(
            lambda store: store.update_info(agent_id, metadata, remove=remove, fence=self._fence(agent_id, fence))
        )

    def append_messages_once(
        self, agent_id: str, messages: Mapping[str, Message], *, fence: SyncLease | None = None
    ) -> _Appended:
        """Append, in their order and in one commit, the messages whose keys the agent has not seen yet (MSG-12).

        A key is a text of the caller's, such as the ``Idempotency-Key`` of a request, and names one message: not
        empty, at most 400 bytes in UTF-8, without U+0000 and lone surrogates. A known key stores nothing, whatever its
        message is by now, so that a call can be repeated after any failure, ``OutcomeUnknownError`` included. Returns
        for each key, in order, the position at which its message was appended, by this call or an earlier one; edits of
        the list may have moved or removed it since. The agent remembers a key until it is deleted, also when the
        message is edited, popped, or not in a list saved later. Forks have no keys.

        Raises:
            UnsupportedError: the backend keeps no documents, which the keys are.
        """
        return self._call(
            lambda store: store.append_messages_once(agent_id, messages, fence=self._fence(agent_id, fence))
        )

    def delete_snapshot(self, agent_id: str, snapshot_id: str, *, fence: SyncLease | None = None) -> None:
        """Remove a snapshot, if there is one of that id (SNAP-2)."""
        self._call(lambda store: store.delete_snapshot(agent_id, snapshot_id, fence=self._fence(agent_id, fence)))

    def prune(
        self,
        agent_id: str,
        *,
        events_before_offset: int | None = None,
        events_before: Time | None = None,
        keep_snapshots: int | None = None,
        keep_history_windows: int | None = None,
        keep_compression_records: int | None = None,
        keep_recovered_files: int | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
        fence: SyncLease | None = None,
    ) -> PruneResult:
        """Remove parts of an agent that are no longer needed; returns the number of removed records by kind (LIFE-6).

        *events_before_offset* removes the events with a lesser offset. *events_before* removes the events before the
        first one, by offset, whose timestamp is not earlier. If both are given, only events that both cover are
        removed. The event of ``last_bookmark`` always stays. *keep_snapshots* and the others each keep the newest N
        records of a kind, in the order in which the store loads them, and remove the older ones. Nothing else of the
        agent changes. For an unknown agent all numbers are 0. The prune goes in steps, each with a deadline of its
        own; if it ends early, a part of the records, the oldest first, is gone. *progress* is called after each step
        with the number of records that were removed so far. With *dry_run* it removes nothing, and returns the numbers
        of a prune at this moment.

        Raises:
            InvalidArgumentError: no argument says what to remove.
            UnsupportedError: the backend cannot remove a part of the events; nothing was removed.
            StoreBusyError: other calls kept removing the agent's events, or replacing its records.
        """
        return self._call(
            lambda store: store.prune(
                agent_id,
                events_before_offset=events_before_offset,
                events_before=events_before,
                keep_snapshots=keep_snapshots,
                keep_history_windows=keep_history_windows,
                keep_compression_records=keep_compression_records,
                keep_recovered_files=keep_recovered_files,
                dry_run=dry_run,
                progress=progress,
                fence=self._fence(agent_id, fence),
            )
        )

    def fork(
        self,
        agent_id: str,
        new_id: str | None = None,
        *,
        length: int | None = None,
        snapshot_id: str | None = None,
        documents: bool = False,
    ) -> str:
        """Make one fork, with an id of the caller's or from an earlier point, and return its id (FORK-4).

        The fork has the id *new_id*, under which nothing may exist, or a new one. *length* limits the messages to the
        first ones, and *snapshot_id* names a snapshot that has them. Such a fork has the tool calls that its messages
        use and no breakpoint, and its messages keep their times as far as the agent's list begins with them.
        *documents* takes the documents of all collections along (DOC-5). Without arguments the backend copies the
        agent, as for ``batch_fork``; otherwise it is held in memory meanwhile.

        Raises:
            AgentNotFoundError: the agent has no info.
            InvalidArgumentError: the agent has fewer than *length* messages, or no such snapshot.
            ConflictError: *new_id* exists; nothing was changed.
        """
        return self._call(
            lambda store: store.fork(agent_id, new_id, length=length, snapshot_id=snapshot_id, documents=documents)
        )

    def batch_fork(self, agent_id: str, count: int) -> _Ids:
        """Make *count* copies of one instant of the agent and return their new ids (FORK-1).

        Raises:
            AgentNotFoundError: the agent has no info.
        """
        return self._call(lambda store: store.batch_fork(agent_id, count))

    def load_agent(self, agent_id: str) -> AgentRecords | None:
        """Everything that is stored for an agent, of every kind, as it was at one instant (LIFE-7).

        The agent is held in memory. None if nothing is stored. The keys of ``append_messages_once`` are
        among the records.

        Raises:
            CorruptRecordError: one of its records is damaged.
            StoreBusyError: others kept writing to the agent meanwhile; hold its lock.
        """
        return self._call(lambda store: store.load_agent(agent_id))

    def import_agent(self, agent_id: str, records: AgentRecords, *, fence: SyncLease | None = None) -> None:
        """Write one agent whole, in one piece, with the times and seqs that *records* has (LIFE-8).

        *agent_id* may differ from ``records.agent_id``; the info gets it. Offsets of events, and versions, are new:
        ``records.event_offsets``, the versions of documents and ``info.message_count`` are not used.

        Raises:
            ConflictError: something is stored under *agent_id*; nothing was written.
            InvalidArgumentError: *records* is empty, has unknown fields, or has parts that do not fit together.
            UnsupportedError: *records* has documents and the backend keeps none; nothing was written.
            PayloadTooLargeError: the backend cannot write so much in one piece; nothing was written.
        """
        self._call(lambda store: store.import_agent(agent_id, records, fence=self._fence(agent_id, fence)))
