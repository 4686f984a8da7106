"""Stores that take two names for one, or know the ends of names wrongly (ID clauses)."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any
from zlib import crc32

from kode_conformance.values import samples

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import seen
from kode_core.ids import MAX_KEY_BYTES
from kode_core.model import MediaCacheRecord, RecoveredFile, Snapshot
from kode_core.query import Page
from kode_core.store import EngineStore


@mutant(
    "ID-4",
    killed_by="twin_keys_are_different_keys",
    source="file systems that normalise names",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("\ufb01")),
        lambda s: s.save_snapshot("a", samples.snapshot("fi")),
        lambda s: s.load_snapshot("a", "fi"),
        lambda s: s.load_snapshot("a", "\ufb01"),
    ),
)
class FindsByNormalForm(EngineStore):
    """Gives the first snapshot whose id is the same once both are normalised."""

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Snapshot | None:
        await super().load_snapshot(agent_id, snapshot_id)
        wanted = unicodedata.normalize("NFKC", snapshot_id)
        found = await self.list_snapshots(agent_id)
        return next((one for one in found if unicodedata.normalize("NFKC", one.id) == wanted), None)


@mutant(
    "HIS-2",
    killed_by="a_path_and_a_time_do_not_mix",
    source="keys that are two texts with a dash between them",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("p-", 1)),
        lambda s: s.save_recovered_file("a", samples.recovered("p", -1)),
        lambda s: s.load_recovered_files("a"),
    ),
)
class JoinsPathAndTime(EngineStore):
    """Keeps one recovered file for each path with its time behind a dash."""

    async def load_recovered_files(self, agent_id: str) -> list[RecoveredFile]:
        found = await super().load_recovered_files(agent_id)
        return list({f"{file.path}-{file.timestamp}": file for file in found}.values())


@mutant(
    "ID-4",
    killed_by="ID-1.names_over_the_limit_are_refused",
    source="limits that count characters",
    witness=seen(lambda s: s.save_snapshot("a", samples.snapshot("x" * 4095 + "é")), lambda s: s.list_snapshots("a")),
)
class CountsCharacters(EngineStore):
    """Takes an id of more than 4,096 bytes that has no more characters, and cuts it."""

    async def save_snapshot(self, agent_id: str, snapshot: Snapshot, *, fence: Any = None) -> None:
        if len(snapshot.id) <= MAX_KEY_BYTES < len(snapshot.id.encode("utf-8", "replace")):
            snapshot = snapshot.replace(id=snapshot.id[: MAX_KEY_BYTES // 4])
        await super().save_snapshot(agent_id, snapshot, fence=fence)


@mutant(
    "ID-2",
    killed_by="twin_agents_share_nothing",
    source="one kind in files that are named by the agent, on a file system that ignores case",
    witness=seen(lambda s: s.save_media_cache("a", [samples.media()]), lambda s: s.load_media_cache("A")),
)
class MediaByCase(EngineStore):
    """Keeps the media of agents whose ids differ in case in one place."""

    async def save_media_cache(self, agent_id: str, records: Sequence[MediaCacheRecord], *, fence: Any = None) -> None:
        await super().save_media_cache(agent_id.lower(), records, fence=fence)

    async def load_media_cache(self, agent_id: str) -> list[MediaCacheRecord]:
        return await super().load_media_cache(agent_id.lower())


async def _pages_of_two(ctx: Any) -> object:
    for agent_id in ("A", "B", "b"):
        await ctx.store.save_info(agent_id, samples.info(agent_id))
    page = await ctx.store.query_sessions(limit=2, order="asc")
    return [one.agent_id for one in await ctx.store.query_sessions(order="asc", cursor=page.next_cursor)]


@mutant(
    "QRY-5",
    killed_by="twin_agents_are_all_on_some_page",
    source="cursors that are compared by a collation that ignores case",
    witness=_pages_of_two,
)
class CursorsByCase(EngineStore):
    """Leaves out the next sessions whose ids differ from that of the cursor in case only."""

    _last = ""

    async def query_sessions(self, **filters: Any) -> Any:
        found = await super().query_sessions(**filters)
        if filters.get("cursor") is not None:
            left = [one for one in found if one.agent_id.lower() != self._last.lower()]
            found = Page(left, found.next_cursor)
        self._last = found[-1].agent_id if found else ""
        return found


async def _two_locks(s: Any) -> object:
    first = await s.acquire_agent_lock("plumless")
    second = await s.acquire_agent_lock("buckeroo")
    return first.agent_id, second.agent_id


@mutant(
    "ID-2",
    killed_by="twin_agents_have_locks_of_their_own",
    source="advisory locks of PostgreSQL by a hash of 32 bits",
    witness=seen(_two_locks),
)
class LocksByChecksum(EngineStore):
    """Locks the checksum of an id."""

    def acquire_agent_lock(self, agent_id: str, ttl_ms: int = 30_000, wait_ms: int = 0) -> Any:
        super().acquire_agent_lock(agent_id)
        return super().acquire_agent_lock(f"{crc32(agent_id.encode()):08x}", ttl_ms, wait_ms)
