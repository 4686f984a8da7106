"""The calls of a store by name, for its metrics."""

from __future__ import annotations

from typing import Final

from kode_core.store.metrics import Group, Method

__all__ = ["METHODS"]

_GROUPS: Final[dict[Group, str]] = {
    "saves": """
        save_messages append_messages save_tool_call_records upsert_tool_call_records save_turn save_todos
        append_event append_events emit emit_many save_history_window save_compression_record save_recovered_file
        save_media_cache save_snapshot save_info batch_fork fork
        pop_messages truncate_messages replace_message create_agent update_info append_messages_once
        put_document write_documents import_agent
    """,
    "loads": """
        load_messages load_tool_call_records load_todos read_events follow_events last_bookmark
        load_history_windows load_compression_records load_recovered_files load_media_cache load_snapshot
        list_snapshots load_info exists read_messages load_session load_version load_agent
        load_document list_documents list_document_keys iter_documents
    """,
    "queries": """
        query_sessions query_messages query_tool_calls count_sessions count_messages count_tool_calls
        group_sessions group_messages group_tool_calls aggregate_stats list query_documents
    """,
    "deletes": "delete delete_many delete_snapshot delete_document prune",
    "other": "backup check_consistency repair get_metrics acquire_agent_lock renew_agent_lock release_agent_lock",
}

_IN_STEPS: Final = frozenset({"backup", "check_consistency", "delete_many", "prune", "repair"})

METHODS: Final = {
    name: Method(name, group, in_steps=name in _IN_STEPS) for group, names in _GROUPS.items() for name in names.split()
}
"""Every counted call."""
