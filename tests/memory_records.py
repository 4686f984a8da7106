"""A record store in memory, with little room, and harnesses of the engine over it."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from kode_conformance import Handle, Space, StoreHarness
from msgspec.structs import replace

from kode_core import Store
from kode_core.authoring.matching import is_wanted, page, row_matches, session_matches
from kode_core.batch import Fence, SessionRow, Totals
from kode_core.codec import Body
from kode_core.engine import Medium, Progress, Watch, unwatched
from kode_core.engines.record.engine import RecordEngine
from kode_core.engines.record.store import (
    Change,
    FoundItem,
    HeadRecord,
    Item,
    ItemsPlace,
    KeyRange,
    Note,
    Remains,
    removed,
)
from kode_core.engines.record.terms import DocSearch, terms_of_item
from kode_core.errors import UnsupportedError
from kode_core.query import RowQuery, SessionQuery
from kode_core.store import EngineStore


class Contents:
    """What several stores hold together."""

    def __init__(self) -> None:
        self.heads: dict[str, HeadRecord] = {}
        self.leases: dict[str, tuple[Fence, float]] = {}
        self.items: dict[ItemsPlace, dict[str, Item]] = defaultdict(dict)
        self.parts: dict[ItemsPlace, dict[tuple[str, int], list[bytes]]] = defaultdict(dict)
        self.notes: set[Note] = set()
        self.tokens = 0


class MemoryRecords:
    """See ``RecordStore``. Each call gives way first, as one that goes over a network does."""

    name = "records"
    finds_any_of = True

    def __init__(
        self, contents: Contents, *, swap_items: int = 0, inline_bytes: int = 600, part_bytes: int = 300
    ) -> None:
        self.contents = contents
        self.swap_items = swap_items
        self.inline_bytes = inline_bytes
        self.part_bytes = part_bytes

    async def step(self) -> None:
        """What every call begins with, and some have in their middle."""
        await asyncio.sleep(0)

    # --- heads

    async def heads(self, agent_ids: Sequence[str]) -> list[HeadRecord]:
        await self.step()
        return [self.contents.heads[agent_id] for agent_id in agent_ids if agent_id in self.contents.heads]

    async def head_now(self, agent_id: str) -> HeadRecord | None:
        await self.step()
        return self.contents.heads.get(agent_id)

    async def swap(self, old: HeadRecord | None, new: HeadRecord, fence: Fence | None, items: Sequence[Item]) -> bool:
        await self.step()
        assert len(items) <= self.swap_items
        assert len(new.state) <= self.inline_bytes + 4096
        now = self.contents.heads.get(new.agent_id)
        if (now and now.rev) != (old and old.rev) or not self._is_held(new.agent_id, fence):
            return False
        self.contents.heads[new.agent_id] = new
        self._put(new.place, items)
        await self.step()
        return True

    async def settle(self, head: HeadRecord, *, lasting: bool = False) -> bool:
        await self.step()
        if self.contents.heads[head.agent_id].rev != head.rev:
            return False
        self.contents.heads[head.agent_id] = head
        return True

    async def remains(self, agent_id: str) -> Remains | None:
        await self.step()
        head = self.contents.heads.get(agent_id)
        epochs = {place.epoch for place in (*self.contents.items, *self.contents.parts) if place.agent_id == agent_id}
        return None if head is None else Remains(agent_id, sorted(epochs), head)

    async def supplant(self, remains: Remains, new: HeadRecord, fence: Fence | None) -> bool:
        await self.step()
        if self.contents.heads.get(new.agent_id) != remains.stored or not self._is_held(new.agent_id, fence):
            return False
        self.contents.heads[new.agent_id] = new
        return True

    async def unsettled(self) -> list[str]:
        await self.step()
        return [agent_id for agent_id, head in self.contents.heads.items() if not head.is_settled]

    # --- items

    async def items(self, place: ItemsPlace, keys: KeyRange) -> list[Item]:
        await self.step()

        def key(item: Item) -> str:
            return (item.alt or "") if keys.by_alt else item.key

        found = [item for item in self.contents.items.get(place, {}).values() if keys.first <= key(item) <= keys.last]
        if keys.channel is not None:
            found = [item for item in found if getattr(item.index, "channel", None) == keys.channel]
        return sorted(found, key=key, reverse=keys.descending)[: keys.limit]

    async def apply(self, place: ItemsPlace, changes: Sequence[Change], *, fresh: bool = False) -> None:
        for change in changes:
            await self.step()
            if isinstance(change, Item):
                self._put(place, [change])
            else:
                items = self.contents.items[place]
                near = {change.first} & items.keys() if change.first == change.last else items
                for key, item in [(key, items[key]) for key in near]:
                    if change.first <= key <= change.last and item.rev < change.rev and not item.is_removed:
                        items[key] = removed(key, change.rev)

    async def erase(self, place: ItemsPlace, first: str, last: str, rev: int) -> None:
        await self.step()
        items = self.contents.items[place]
        for key in [key for key, item in items.items() if first <= key <= last and item.rev < rev]:
            del items[key]

    def _put(self, place: ItemsPlace, items: Sequence[Item]) -> None:
        for item in items:
            assert len(item.body.text.encode()) <= self.part_bytes
            there = self.contents.items[place].get(item.key)
            if there is None or there.rev < item.rev or (there.is_removed and there.rev == item.rev):
                self.contents.items[place][item.key] = item

    async def drop(self, place: ItemsPlace) -> None:
        await self.step()
        self.contents.items.pop(place, None)
        self.contents.parts.pop(place, None)

    # --- parts

    async def put_parts(self, place: ItemsPlace, key: str, rev: int, parts: Sequence[bytes]) -> None:
        await self.step()
        assert all(len(part) <= self.part_bytes for part in parts)
        self.contents.parts[place][key, rev] = list(parts)

    async def parts(self, place: ItemsPlace, key: str, rev: int) -> list[bytes]:
        await self.step()
        return self.contents.parts.get(place, {}).get((key, rev), [])

    async def drop_parts(self, place: ItemsPlace, first: str, last: str, rev: int) -> None:
        await self.step()
        parts = self.contents.parts.get(place, {})
        for key in [k for k in parts if first <= k[0] <= last and k[1] < rev]:
            del parts[key]

    async def part_keys(self, place: ItemsPlace, first: str, last: str) -> list[tuple[str, int]]:
        await self.step()
        return sorted(key for key in self.contents.parts.get(place, {}) if first <= key[0] <= last)

    # --- notes

    async def note(self, note: Note) -> None:
        await self.step()
        self.contents.notes.add(note)

    async def notes(self, until: int, limit: int) -> list[Note]:
        await self.step()
        return sorted((note for note in self.contents.notes if note.at <= until), key=lambda note: note.at)[:limit]

    async def notes_of(self, agent_id: str) -> list[Note]:
        await self.step()
        return [note for note in self.contents.notes if note.place.agent_id == agent_id]

    async def forget(self, note: Note) -> None:
        await self.step()
        self.contents.notes.discard(note)

    # --- queries

    def _known(self) -> list[HeadRecord]:
        return [head for head in self.contents.heads.values() if head.info is not None]

    async def agent_ids(self, prefix: str, after: str | None, limit: int) -> list[str]:
        await self.step()
        ids = sorted(head.agent_id for head in self._known() if head.agent_id.startswith(prefix))
        return [agent_id for agent_id in ids if after is None or agent_id > after][:limit]

    async def stored_ids(self, after: str | None, limit: int) -> list[str]:
        await self.step()
        ids = sorted(h.agent_id for h in self.contents.heads.values() if h.is_used or h.info is not None)
        return [agent_id for agent_id in ids if after is None or agent_id > after][:limit]

    async def find_sessions(self, query: SessionQuery) -> list[SessionRow]:
        await self.step()
        rows = [
            SessionRow(h.agent_id, h.info.body, h.info.created_at, h.updated_at, h.messages.count)
            for h in self._known()
            if h.info is not None and session_matches(h.agent_id, h.info, h.updated_at, query)
        ]
        return page((((getattr(row, query.sort_by), row.agent_id), row) for row in rows), query)

    async def find_items(self, query: RowQuery) -> list[FoundItem]:
        await self.step()
        prefix = "m/" if query.kind == "messages" else "t/"
        found = [
            FoundItem(place, item)
            for place, items in self.contents.items.items()
            if is_wanted(place.agent_id, query.agent_id)
            for item in items.values()
            if item.key.startswith(prefix) and not item.is_removed and row_matches(item.time, item.index, query)
        ]
        keyed = (((f.item.time, f.place.agent_id, int(f.item.key[2:])), f) for f in found)
        return page(keyed, query)

    async def find_docs(self, search: DocSearch) -> list[FoundItem]:
        await self.step()

        def key(found: FoundItem) -> tuple[str, str, str]:
            return found.place.agent_id, found.item.key, found.place.epoch

        found = [
            FoundItem(place, item)
            for place, items in self.contents.items.items()
            if search.agent_id in (None, place.agent_id)
            for item in items.values()
            if set(search.terms) & set(terms_of_item(item))
        ]
        if search.after is not None:
            after = search.after
            found = [one for one in found if (key(one) < after if search.descending else key(one) > after)]
        page = sorted(found, key=key, reverse=search.descending)[: search.limit]
        if search.bodies:
            return page
        return [FoundItem(one.place, replace(one.item, body=Body("", one.item.body.digest))) for one in page]

    async def totals(self) -> Totals:
        await self.step()
        heads = self.contents.heads.values()
        return Totals(
            agents=len(self._known()),
            messages=sum(head.messages.count for head in heads),
            tool_calls=sum(head.tool_calls.count for head in heads),
            is_used=any(head.is_used for head in heads),
        )

    # --- leases

    def _is_held(self, agent_id: str, fence: Fence | None) -> bool:
        lease = self.contents.leases.get(agent_id)
        return fence is None or (lease is not None and lease[0] == fence and lease[1] > time.monotonic())

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        await self.step()
        lease = self.contents.leases.get(agent_id)
        if lease is not None and lease[1] > time.monotonic():
            return None
        self.contents.tokens += 1
        self.contents.leases[agent_id] = Fence(owner, self.contents.tokens), time.monotonic() + ttl_ms / 1000
        return self.contents.tokens

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        await self.step()
        if not self._is_held(agent_id, fence):
            return False
        self.contents.leases[agent_id] = fence, time.monotonic() + ttl_ms / 1000
        return True

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await self.step()
        if self._is_held(agent_id, fence):
            del self.contents.leases[agent_id]

    async def holds_lease(self, agent_id: str, fence: Fence) -> bool:
        await self.step()
        return self._is_held(agent_id, fence)

    # --- operations

    def watch(self, agent_id: str, wake: Callable[[], None]) -> Watch | None:
        return None

    def probes(self) -> list[tuple[Medium, Callable[[], Awaitable[None]]]]:
        return []

    async def backup(self, target: Path, progress: Progress = unwatched) -> Sequence[Path]:
        raise UnsupportedError("a store in memory has no backup")

    async def close(self) -> None:
        return


_spaces: dict[str, Contents] = {}


class RecordsHarness(StoreHarness):
    """The engine over a store where nearly everything is too large for a record."""

    name = "records"
    lacks = frozenset({"PERSISTENT", "CROSS_PROCESS", "SCOPES"})
    options: ClassVar[dict[str, Any]] = {}

    async def provision(self, space: Space) -> Handle:
        _spaces[space.name] = Contents()
        return {"name": space.name}

    async def open(self, handle: Handle) -> Store:
        async def engine() -> RecordEngine:
            return RecordEngine(MemoryRecords(_spaces[handle["name"]], **self.options))

        return await EngineStore(engine).open()

    async def destroy(self, handle: Handle) -> None:
        _spaces.pop(handle["name"], None)

    async def raw_dump(self, handle: Handle) -> str:
        space = _spaces[handle["name"]]
        return f"{space.heads}\n{dict(space.items)}\n{dict(space.parts)}"


class TogetherHarness(RecordsHarness):
    """The engine over a store that writes a few items with a head, and has room."""

    options: ClassVar[dict[str, Any]] = {"swap_items": 9, "inline_bytes": 100_000, "part_bytes": 350_000}


class RoomyHarness(RecordsHarness):
    """The engine over a store that has room, and writes heads alone."""

    options: ClassVar[dict[str, Any]] = {"inline_bytes": 4_000_000, "part_bytes": 8_000_000}


class StopsAt(MemoryRecords):
    """Stops for ever at the n-th call, as a process does that was killed there."""

    def __init__(self, contents: Contents, n: int, **options: Any) -> None:
        super().__init__(contents, **options)
        self.left = n
        self.stopped = asyncio.Event()

    async def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.stopped.set()
            await asyncio.Event().wait()
        await super().step()
