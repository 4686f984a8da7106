"""Stores that raise other errors than this library's when they get wrong arguments (OPS-17)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from kode_conformance.values import samples

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import seen
from kode_core.store import EngineStore


@mutant(
    "OPS-17",
    killed_by="wrong_arguments_raise_errors_of_this_library",
    witness=seen(lambda s: s.list(5)),
    source="`LIKE prefix || '%'`, put together in the program",
)
class AddsToThePrefix(EngineStore):
    """Raises TypeError for a prefix that is no text."""

    async def list(self, prefix: str = "") -> Any:
        pattern = prefix + "%"
        return await super().list(pattern[:-1])


@mutant(
    "OPS-17",
    killed_by="wrong_arguments_raise_errors_of_this_library",
    witness=seen(
        lambda s: s.save_turn("a", info=samples.info("a"), messages=5),
        lambda s: s.exists("a"),
    ),
    source="validation in the second of two steps",
)
class WritesBeforeItLooks(EngineStore):
    """Saves the info of a turn, and then finds that the rest is wrong."""

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        if parts.get("info") is not None and "fence" not in parts:
            await self.save_info(agent_id, parts["info"])
        await super().save_turn(agent_id, **parts)


@mutant(
    "OPS-17",
    killed_by="wrong_fields_raise_errors_of_this_library",
    witness=seen(lambda s: s.save_tool_call_records("a", [samples.tool_call(id=[5])])),
    source="records that are put into a dict by their ids",
)
class KeepsRecordsInADict(EngineStore):
    """Raises TypeError for an id that cannot be hashed."""

    async def save_tool_call_records(self, agent_id: str, records: Sequence[Any], *, fence: Any = None) -> None:
        known = {getattr(record, "id", None) for record in records}
        assert len(known) <= len(records)
        await super().save_tool_call_records(agent_id, records, fence=fence)


@mutant(
    "OPS-17",
    killed_by="wrong_fields_raise_errors_of_this_library",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered().replace(content=5)),
        lambda s: s.load_recovered_files("a"),
    ),
    source="values that are turned into what they should be",
)
class DropsWhatDoesNotFit(EngineStore):
    """Says that a file was kept whose content is no text, and keeps nothing."""

    async def save_recovered_file(self, agent_id: str, file: Any, *, fence: Any = None) -> None:
        if isinstance(getattr(file, "content", ""), str):
            await super().save_recovered_file(agent_id, file, fence=fence)


@mutant(
    "OPS-17",
    killed_by="forged_cursors_raise_errors_of_this_library",
    witness=seen(lambda s: s.query_sessions(cursor="A")),
    source="cursors that are decoded and believed",
)
class BelievesCursors(EngineStore):
    """Raises an error of the decoder for a cursor that no page gave."""

    async def query_sessions(self, **filters: Any) -> Any:
        cursor = filters.get("cursor")
        if isinstance(cursor, str) and set(filters) <= {"cursor", "limit"}:
            base64.urlsafe_b64decode(cursor).decode()
        return await super().query_sessions(**filters)
