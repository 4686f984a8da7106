"""The methods of the public store for agents as wholes; :mod:`kode_core.protocols.agents` documents them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from kode_core.batch import DocKind, DocWrite, Fence
from kode_core.engine import Progress
from kode_core.ids import check_key
from kode_core.model import AgentInfo, AgentRecords, AppendedMessage, Json, Message
from kode_core.protocols import Lease
from kode_core.query import Session, Time
from kode_core.report import PruneResult
from kode_core.store import rows
from kode_core.store.document_methods import DocumentMethods
from kode_core.store.forks import ForkCut
from kode_core.store.pruning import PruneArguments
from kode_core.store.steps import checked_progress
from kode_core.store.writer import Rest, TurnWrites

__all__ = ["AgentMethods"]

_Ids = list[str]  # the method ``list`` hides the builtin inside the class


_Appended: TypeAlias = list[AppendedMessage]


class AgentMethods(DocumentMethods):
    """Agents as wholes."""

    async def list(self, prefix: str = "", *, include_without_info: bool = False) -> _Ids:
        return await self._run("list", self._reader.list_ids, prefix, include_without_info)

    async def save_info(
        self, agent_id: str, info: AgentInfo, *, expect: str | None = None, fence: Lease | None = None
    ) -> None:
        async def rest() -> Rest:
            return Rest(info=await rows.info_of(agent_id, info))

        await self._save("save_info", agent_id, fence, lambda: TurnWrites(encode_rest=rest, expect=expect))

    async def create_agent(self, agent_id: str, info: AgentInfo, *, fence: Lease | None = None) -> None:
        await self._fenced("create_agent", agent_id, fence, self._sessions.create, info)

    async def update_info(
        self,
        agent_id: str,
        metadata: Mapping[str, Json],
        *,
        remove: Sequence[str] = (),
        fence: Lease | None = None,
    ) -> AgentInfo:
        return await self._fenced("update_info", agent_id, fence, self._sessions.update_info, metadata, remove)

    async def append_messages_once(
        self, agent_id: str, messages: Mapping[str, Message], *, fence: Lease | None = None
    ) -> _Appended:
        return await self._fenced("append_messages_once", agent_id, fence, self._keyed.append, messages)

    async def load_session(self, agent_id: str) -> Session | None:
        return await self._load("load_session", agent_id, self._sessions.load)

    async def delete_snapshot(self, agent_id: str, snapshot_id: str, *, fence: Lease | None = None) -> None:
        async def rest() -> Rest:
            return Rest(docs=(DocWrite(DocKind.SNAPSHOTS, check_key(snapshot_id, "snapshot id"), None),))

        await self._save("delete_snapshot", agent_id, fence, lambda: TurnWrites(encode_rest=rest))

    async def prune(
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
        fence: Lease | None = None,
    ) -> PruneResult:
        async def prune(agent_id: str, held: Fence | None) -> PruneResult:
            wanted = PruneArguments.of(
                events_before_offset,
                events_before,
                dry_run,
                snapshots=keep_snapshots,
                history_windows=keep_history_windows,
                compression_records=keep_compression_records,
                recovered_files=keep_recovered_files,
            )
            return await self._pruning.prune(agent_id, held, wanted, checked_progress(progress))

        return await self._fenced("prune", agent_id, fence, prune)

    async def batch_fork(self, agent_id: str, count: int) -> _Ids:
        return await self._load("batch_fork", agent_id, self._forks.fork, count)

    async def fork(
        self,
        agent_id: str,
        new_id: str | None = None,
        *,
        length: int | None = None,
        snapshot_id: str | None = None,
        documents: bool = False,
    ) -> str:
        async def fork(agent_id: str) -> str:
            cut = ForkCut.of(agent_id, new_id, length, snapshot_id, documents)
            if new_id is None and cut.is_whole and not documents:  # the backend copies it, however large
                return (await self._forks.fork(agent_id, 1))[0]
            with self._locks.fencing(cut.new_id, None) as held:
                return await self._forks.fork_to(agent_id, cut, held)

        return await self._load("fork", agent_id, fork)

    async def load_agent(self, agent_id: str) -> AgentRecords | None:
        return await self._load("load_agent", agent_id, self._wholes.load)

    async def import_agent(self, agent_id: str, records: AgentRecords, *, fence: Lease | None = None) -> None:
        await self._fenced("import_agent", agent_id, fence, self._wholes.write, records)

    async def _replace_agent(self, agent_id: str, records: AgentRecords) -> None:
        """Write an agent in the place of all that is stored under its id, in one write; for copies of stores."""
        await self._fenced("import_agent", agent_id, None, self._wholes.write, records, replaces=True)
