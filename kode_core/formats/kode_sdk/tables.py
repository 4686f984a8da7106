"""Databases of the SDK: four tables, which a backend's plugin reads, and the files of the other kinds next to them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kode_core.authoring.sdk_tables import SdkTables
from kode_core.formats.kode_sdk.files import agent_folders, read_files
from kode_core.formats.kode_sdk.raw import Damage, Found, RawAgent, joined, parsed

__all__ = ["TableSource"]

_INFO: Final = {
    "agentId": "agent_id",
    "templateId": "template_id",
    "createdAt": "created_at",
    "lineage": "lineage",
    "configVersion": "config_version",
    "messageCount": "message_count",
    "lastSfpIndex": "last_sfp_index",
    "lastBookmark": "last_bookmark",
    "breakpoint": "breakpoint",
    "metadata": "metadata",
}
_MESSAGE: Final = {"role": "role", "content": "content", "metadata": "metadata"}
_CALL: Final = {
    "id": "id",
    "name": "name",
    "input": "input",
    "state": "state",
    "approval": "approval",
    "result": "result",
    "error": "error",
    "isError": "is_error",
    "startedAt": "started_at",
    "completedAt": "completed_at",
    "durationMs": "duration_ms",
    "createdAt": "created_at",
    "updatedAt": "updated_at",
    "auditTrail": "audit_trail",
}
_SNAPSHOT: Final = {
    "id": "snapshot_id",
    "messages": "messages",
    "lastSfpIndex": "last_sfp_index",
    "lastBookmark": "last_bookmark",
    "createdAt": "created_at",
    "metadata": "metadata",
}
_TABLES: Final = ("agents", "messages", "tool_calls", "snapshots")
_JSON: Final = frozenset(
    {"lineage", "last_bookmark", "metadata", "content", "input", "approval", "result", "audit_trail", "messages"}
)
"""The columns with JSON texts."""


class TableSource:
    """A database of the SDK, and the folder of its files, if there is one.

    In a folder that is *whole*, which has nothing but the files, agents without a row are read as well: the SDK removes
    the row before the files, and a crash in between leaves them.
    """

    def __init__(self, tables: SdkTables, files: Path | None, *, is_whole: bool = True) -> None:
        self._tables = tables
        self._files = files
        self._is_whole = is_whole
        self.remarks: Counter[str] = Counter()
        if files is None:
            self.remarks["without files: events, todos, history and media are not brought"] += 1

    async def agent_ids(self) -> AsyncIterator[str]:
        """The ids of all rows, and then of the folders without a row."""
        known = set[str]()
        async for agent_id in self._tables.agent_ids():
            known.add(agent_id)
            yield agent_id
        if self._files is not None and self._is_whole:
            for agent_id in await asyncio.to_thread(list, agent_folders(self._files, self.remarks)):
                if agent_id not in known:
                    yield agent_id

    async def read(self, agent_id: str) -> RawAgent:
        """The rows and the files of one agent."""
        rows = {table: await self._tables.rows(table, agent_id) for table in _TABLES}
        return await asyncio.to_thread(self._agent, agent_id, rows)

    def _agent(self, agent_id: str, rows: dict[str, Sequence[Mapping[str, Any]]]) -> RawAgent:
        agent = RawAgent(agent_id)
        found = agent.found
        infos = [_record(row, _INFO, "agents", found) for row in rows["agents"]]
        agent.info = ("agents", infos[0]) if infos and infos[0] is not None else None
        agent.message_times = []
        for row in rows["messages"]:
            where = f"messages, seq {row.get('seq')}"
            message = _record(row, _MESSAGE, where, found)
            if message is not None:
                agent.messages.append((where, message))
                agent.message_times.append(row.get("created_at"))
        for row in rows["tool_calls"]:
            agent.tool_calls += _placed(row, _CALL, f"tool_calls, id {_shown(row.get('id'))}", found)
        dropped = sum(call.get("state") == "COMPLETED" and "result" not in call for _, call in agent.tool_calls)
        if dropped:
            found.lost[
                f"{dropped:,} completed tool calls have no result, since the SDK's databases keep no empty ones"
            ] += 1
        for row in rows["snapshots"]:
            agent.snapshots += _placed(row, _SNAPSHOT, f"snapshots, id {_shown(row.get('snapshot_id'))}", found)
        if self._files is not None:
            self._read_files(self._files, agent)
        return agent

    def _read_files(self, base: Path, agent: RawAgent) -> None:
        folder, whole = base / agent.agent_id, base.resolve()
        real = folder.resolve()
        if real != whole / agent.agent_id or whole not in real.parents:
            agent.found.damaged["its folder: the id, or a link, leads out of the folder of files"] += 1
        else:
            read_files(folder, agent)


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


def _shown(value: object) -> str:
    """An id for a remark, whatever it is."""
    return repr(value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value)[:80]


def _placed(row: Mapping[str, Any], columns: Mapping[str, str], where: str, found: Found) -> list[tuple[str, Any]]:
    record = _record(row, columns, where, found)
    return [] if record is None else [(where, record)]


def _record(row: Mapping[str, Any], columns: Mapping[str, str], where: str, found: Found) -> dict[str, Any] | None:
    """The record that a row is; columns that are NULL are fields that the record does not have."""
    record = dict[str, Any]()
    for name, column in columns.items():
        value = row.get(column)
        if column not in row:
            found.changed[f"a database without the column {column}"] += 1
        if value is None:
            continue
        try:
            if column in _JSON:
                value = parsed(value)
            elif isinstance(value, bytes | str):
                value = joined(_text(value))
        except (Damage, UnicodeDecodeError) as exc:
            found.damaged[f"{where}: its {column} is {exc if isinstance(exc, Damage) else 'not UTF-8'}"] += 1
            return None
        record[name] = bool(value) if column == "is_error" else value
    return record
