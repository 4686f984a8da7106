"""Stores that take an argument for something else than it says (LIFE-2, ID-2, EVT-5, QRY-5)."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import AsyncIterator
from typing import Any

from kode_conformance.values import samples

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import each, seen, the
from kode_core.model import Snapshot, StoredEvent
from kode_core.query import Page
from kode_core.store import EngineStore


@mutant(
    "LIFE-2",
    killed_by="every_prefix_means_itself",
    source="text that is normalised where requests come in",
    witness=seen(
        lambda s: s.save_info("é", samples.info("é")),
        lambda s: s.list("e\u0301"),
    ),
)
class NormalisesPrefixes(EngineStore):
    """Composes the characters of a prefix."""

    async def list(self, prefix: str = "") -> Any:
        return await super().list(unicodedata.normalize("NFC", prefix))


@mutant(
    "ID-2",
    killed_by="no_text_finds_another_name",
    source="a path that is put together and normalised",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("b")),
        lambda s: s.load_snapshot("a", "b/"),
    ),
)
class NormalisesSnapshotIds(EngineStore):
    """Finds a snapshot by any path that leads to its id."""

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Snapshot | None:
        return await super().load_snapshot(agent_id, posixpath.normpath(snapshot_id) if snapshot_id else snapshot_id)


@mutant(
    "EVT-5",
    killed_by="events_from_every_number_on",
    source="events[after_offset:]",
    witness=seen(
        lambda s: s.append_events("a", samples.events(3)),
        lambda s: the("offset", _all(s.read_events("a", after_offset=-1))),
    ),
)
class CountsFromTheEnd(EngineStore):
    """Takes a negative offset for a number of events at the end."""

    async def read_events(self, agent_id: str, **asked: Any) -> AsyncIterator[StoredEvent]:  # type: ignore[override]
        found = [event async for event in super().read_events(agent_id, **asked)]
        after = asked.get("after_offset")
        for event in found[after:] if after is not None and after < 0 else found:
            yield event


async def _all(stream: AsyncIterator[Any]) -> list[Any]:
    return [one async for one in stream]


@mutant(
    "QRY-4",
    killed_by="QRY-5.filters_pages_and_orders_together",
    source="a filter that the database cannot do, applied to the page that it gave",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(0), samples.tool_call(1, is_error=True)]),
        lambda s: each(*(_ids(s, limit=1, offset=i) for i in (0, 1))),
    ),
)
class FiltersThePage(EngineStore):
    """Looks for errors among approved calls in a page that is cut already."""

    async def query_tool_calls(self, **filters: Any) -> Any:
        is_late = "is_error" in filters and "has_approval" in filters
        is_error = filters.pop("is_error") if is_late else None
        page = await super().query_tool_calls(**filters)
        kept = [call for call in page if not is_late or bool(call.is_error) is is_error]
        return Page(kept, page.next_cursor, page.left_out)


async def _ids(store: Any, **paging: int) -> list[str]:
    found = await store.query_tool_calls(is_error=False, has_approval=False, order="desc", **paging)
    return [call.id for call in found]
