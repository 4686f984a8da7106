"""Totals and problems of a folder of JSON files. Everything here blocks, and changes nothing."""

from __future__ import annotations

import heapq
import os
from contextlib import suppress

from kode_core.backends.json_files.cuts import cut_files
from kode_core.backends.json_files.files import agent_of, translated
from kode_core.backends.json_files.folder import Folder
from kode_core.backends.json_files.journal import Journal
from kode_core.backends.json_files.searches import sound_briefs
from kode_core.batch import EngineIssue, Found, Totals
from kode_core.errors import CorruptRecordError, SchemaVersionError
from kode_core.ids import MAX_AGENT_ID_BYTES

__all__ = ["inspected", "leftovers", "stored_ids", "totals"]


def totals(folder: Folder) -> Totals:
    """Counts over all agents that can be read, and the size of all files."""
    agents = messages = tool_calls = 0
    left_out: list[str] = []
    is_used = False
    for _, _, found in sound_briefs(folder, left_out):
        is_used = is_used or found.has_contents
        agents += found.info is not None
        messages += found.message_count
        tool_calls += found.call_count
    size = 0
    with translated(folder.base):
        for entry in os.scandir(folder.base):
            with suppress(FileNotFoundError):
                size += entry.stat().st_size if entry.is_file() else 0
    is_used = is_used or bool(left_out)
    return Totals(agents=agents, messages=messages, tool_calls=tool_calls, size_bytes=size, is_used=is_used)


def stored_ids(folder: Folder, after: str | None, limit: int) -> Found[str]:
    """The ids of all agents that have a file, including damaged ones."""
    ids: list[str] = []
    left_out: list[str] = []
    for name in folder.names():
        agent_id = agent_of(name.removesuffix(".jsonl"))
        if agent_id is None:
            journal = folder.journal_named(name)
            try:
                with folder.scanning(journal):
                    if not folder.is_stray(journal):
                        agent_id = journal.state.agent_id
                        is_layers = not journal.state.has_contents  # documents of layers are under longer ids
                        if is_layers and len(agent_id.encode()) > MAX_AGENT_ID_BYTES:
                            continue
                    if journal.damage is not None and not agent_id:
                        raise journal.damage
            except (CorruptRecordError, SchemaVersionError):
                left_out.append(journal.label)
        if agent_id and (after is None or agent_id > after):
            ids.append(agent_id)
    return Found(heapq.nsmallest(limit, ids), left_out)


def inspected(folder: Folder, agent_id: str) -> list[EngineIssue]:
    """The problems of an agent's file."""
    journal = folder.journal(agent_id)
    issues: list[EngineIssue] = []
    try:
        with folder.scanning(journal):
            if journal.damage is not None:
                raise journal.damage
            journal.check_owner(agent_id)
            issues += _of_sound(journal, agent_id)
    except (CorruptRecordError, SchemaVersionError) as exc:
        issues.append(EngineIssue("corrupt_record", agent_id, str(exc)))
    for path in cut_files(journal.path):
        text = (
            f"{path} has the end of a write that was cut short, and never acknowledged; "
            "look at it, and move it away when it is not needed"
        )
        issues.append(EngineIssue("cut_short", agent_id, text))
    return issues


def _of_sound(journal: Journal, agent_id: str) -> list[EngineIssue]:
    issues: list[EngineIssue] = []
    if journal.end and journal.state.is_empty and journal.prepared is None:
        text = f"{journal.path.name} is left of a delete that was cut short; delete the agent again"
        issues.append(EngineIssue("half_done_delete", agent_id, text))
    repeated = journal.state.log.repeated_offset()
    if repeated is not None:
        text = f"offset {repeated} comes twice in the event log"
        issues.append(EngineIssue("repeated_offset", agent_id, text))
    return issues


def leftovers(folder: Folder) -> list[EngineIssue]:
    """Files that belong to no agent."""
    issues: list[EngineIssue] = []
    for name in folder.names():
        journal = folder.journal_named(name)
        if agent_of(name.removesuffix(".jsonl")) is not None:
            continue
        try:
            with folder.scanning(journal):
                agent_id = journal.state.agent_id
                if journal.damage is not None and not agent_id:
                    raise journal.damage
                if folder.is_stray(journal):
                    text = f"{journal.path} is not the file of agent {agent_id!r}, whose records it has; move it away"
                    issues.append(EngineIssue("stray_file", agent_id, text))
        except (CorruptRecordError, SchemaVersionError) as exc:
            issues.append(EngineIssue("corrupt_record", name, str(exc)))
    return issues
