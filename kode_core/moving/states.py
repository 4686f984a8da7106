"""Whether an agent is still as it was copied, without reading its messages, tool calls and events again.

The version covers messages, tool calls and info, and the offsets cover the events: a prune removes one of the first two
of the log. Documents have versions of their own. Records of the other kinds are read and compared.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from kode_core.errors import CorruptRecordError
from kode_core.model import AgentRecords
from kode_core.moving.lines import fingerprint
from kode_core.protocols import ExtendedStore
from kode_core.query import AgentStats

__all__ = ["Seen", "is_still", "seen_of"]

_PAGE = 1_000


class Seen(msgspec.Struct, frozen=True, gc=False):
    """An agent of the source as it was copied.

    Attributes:
        version: of the time before it was read.
        apart: the digest of the records that have no versions.
        first: the offsets of its first two events.
        last: the offset of its last event, or 0.
        documents: a digest of the names and versions of the documents.
        collections: the collections that they are in.
    """

    version: str
    apart: bytes
    first: tuple[int, ...]
    last: int
    documents: int
    collections: tuple[str, ...]
    count: int


class _Rest(NamedTuple):
    collection: str
    key: str
    version: str


def seen_of(version: str, records: AgentRecords, apart: bytes) -> Seen:
    """The state of *records*, which were read after *version* was."""
    offsets = records.event_offsets
    documents = sorted(_Rest(one.collection, one.key, one.version) for one in records.documents)
    return Seen(
        version,
        apart,
        tuple(offsets[:2]),
        offsets[-1] if offsets else 0,
        hash(tuple(documents)),
        tuple(sorted({one.collection for one in documents})),
        len(documents),
    )


async def is_still(store: ExtendedStore, agent_id: str, seen: Seen) -> bool:
    """Whether nothing of the agent has changed since; damage counts as a change."""
    try:
        return (
            await store.load_version(agent_id) == seen.version
            and await _log_is_still(store, agent_id, seen)
            and await _documents_are_still(store, agent_id, seen)
            and await _apart(store, agent_id) == seen.apart
        )
    except CorruptRecordError:
        return False


async def _log_is_still(store: ExtendedStore, agent_id: str, seen: Seen) -> bool:
    if await _offsets(store, agent_id, seen.last, 1):
        return False
    return await _offsets(store, agent_id, 0, len(seen.first)) == seen.first


async def _offsets(store: ExtendedStore, agent_id: str, after: int, most: int) -> tuple[int, ...]:
    """The first offsets above *after*."""
    found = list[int]()
    if most:
        events = store.read_events(agent_id, after_offset=after)
        async for event in events:
            found.append(event.offset)
            if len(found) == most:
                break
        await events.aclose()  # type: ignore[attr-defined]
    return tuple(found)


async def _documents_are_still(store: ExtendedStore, agent_id: str, seen: Seen) -> bool:
    """Whether the collections have what they had, and no other collection has anything."""
    stats: AgentStats = await store.aggregate_stats(agent_id)
    if stats.total_documents != seen.count:
        return False
    found = list[_Rest]()
    for collection in seen.collections:
        async for one in store.iter_documents(agent_id, collection):
            found.append(_Rest(collection, one.key, one.version))
    return hash(tuple(sorted(found))) == seen.documents


async def _apart(store: ExtendedStore, agent_id: str) -> bytes:
    records = AgentRecords(
        agent_id=agent_id,
        todos=await store.load_todos(agent_id),
        history_windows=await store.load_history_windows(agent_id),
        compression_records=await store.load_compression_records(agent_id),
        recovered_files=await store.load_recovered_files(agent_id),
        media_cache=await store.load_media_cache(agent_id),
        snapshots=await store.list_snapshots(agent_id),
    )
    return (await fingerprint(records)).apart
