"""Stores that do wrong with one field of a record, for some of its values (VAL clauses)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kode_conformance.values import samples
from kode_conformance.values.fields import full

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import seen
from kode_core.model import (
    CompressionConfig,
    CompressionRecord,
    MediaCacheRecord,
    Message,
    Snapshot,
    ToolCallApproval,
    ToolCallAuditEntry,
    ToolCallRecord,
)
from kode_core.store import EngineStore


class _ChangesCompressions(EngineStore):
    def changed(self, record: CompressionRecord) -> CompressionRecord:
        raise NotImplementedError

    async def load_compression_records(self, agent_id: str) -> list[CompressionRecord]:
        return [self.changed(record) for record in await super().load_compression_records(agent_id)]


@mutant(
    "VAL-1",
    killed_by="every_text_in_every_field",
    source="CHAR columns, which lose the spaces at the end",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression().replace(window_id="w ")),
        lambda s: s.load_compression_records("a"),
    ),
)
class PadsWindowIds(_ChangesCompressions):
    """Loses the spaces at the end of the window's id in a compression record."""

    def changed(self, record: CompressionRecord) -> CompressionRecord:
        return record.replace(window_id=record.window_id.rstrip(" "))


_LARGE = CompressionConfig(threshold=2**53 + 1)


@mutant(
    "VAL-1",
    killed_by="every_number_in_every_field",
    source="numbers that go through JavaScript",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression().replace(config=_LARGE)),
        lambda s: s.load_compression_records("a"),
    ),
)
class ThresholdsAsDoubles(_ChangesCompressions):
    """Keeps a threshold as a double."""

    def changed(self, record: CompressionRecord) -> CompressionRecord:
        return record.replace(config=record.config.replace(threshold=int(float(record.config.threshold))))


class _ChangesUpserts(EngineStore):
    def changed(self, call: ToolCallRecord) -> ToolCallRecord:
        raise NotImplementedError

    async def upsert_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, fence: Any = None
    ) -> None:
        await super().upsert_tool_call_records(agent_id, [self.changed(call) for call in records], fence=fence)


@mutant(
    "VAL-1",
    killed_by="every_length_in_every_field",
    source="VARCHAR(255) in a database that is not strict",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(audit_trail=[ToolCallAuditEntry("x" * 256, 1)])]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class CutsStatesOfTrails(_ChangesUpserts):
    """Cuts the states of an audit trail at 255 characters, when the call is upserted."""

    def changed(self, call: ToolCallRecord) -> ToolCallRecord:
        return call.replace(audit_trail=[entry.replace(state=entry.state[:255]) for entry in call.audit_trail])


@mutant(
    "VAL-3",
    killed_by="every_field_may_stand_alone",
    source="conversions that skip an approval that is not required",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(approval=ToolCallApproval(note="x"))]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class DropsIdleApprovals(_ChangesUpserts):
    """Does not write an approval that is neither required nor decided, whatever else it says."""

    def changed(self, call: ToolCallRecord) -> ToolCallRecord:
        idle = not call.approval.required and call.approval.decision is None
        return call.replace(approval=ToolCallApproval()) if idle else call


@mutant(
    "VAL-4",
    killed_by="every_field_takes_long_texts",
    source="TEXT columns of MySQL, which end at 65,535 bytes",
    witness=seen(
        lambda s: s.save_media_cache("a", [full(MediaCacheRecord).replace(file_uri="x" * 65_536)]),
        lambda s: s.load_media_cache("a"),
    ),
)
class CutsAddresses(EngineStore):
    """Cuts the address of a medium at 65,535 characters."""

    async def load_media_cache(self, agent_id: str) -> list[MediaCacheRecord]:
        found = await super().load_media_cache(agent_id)
        return [record.replace(file_uri=record.file_uri and record.file_uri[:65_535]) for record in found]


@mutant(
    "VAL-6",
    killed_by="what_was_loaded_can_be_saved",
    source="writers that name the fields, and unknown fields that are kept where the record was read",
    witness=seen(
        lambda s: s.save_snapshot("a", full(Snapshot)),
        lambda s, t: t.list_snapshots("a"),
        lambda s, t: _again(t),
        lambda s: s.list_snapshots("b"),
    ),
)
class KnowsWhatItLoaded(EngineStore):
    """Writes no unknown fields of a snapshot that it has loaded itself."""

    _loaded: frozenset[str] = frozenset()

    async def list_snapshots(self, agent_id: str) -> list[Snapshot]:
        found = await super().list_snapshots(agent_id)
        self._loaded |= {one.id for one in found}
        return found

    async def save_snapshot(self, agent_id: str, snapshot: Snapshot, *, fence: Any = None) -> None:
        bare = snapshot.replace(extra=None) if snapshot.id in self._loaded else snapshot
        await super().save_snapshot(agent_id, bare, fence=fence)


async def _again(store: Any) -> None:
    for snapshot in await store.list_snapshots("a"):
        await store.save_snapshot("b", snapshot)


@mutant(
    "VAL-6",
    killed_by="unknown_fields_may_have_any_name",
    source="documents that hold the record's fields next to the store's own",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression().replace(extra={"_version": 2})),
        lambda s: s.load_compression_records("a"),
    ),
)
class VersionIsItsOwn(_ChangesCompressions):
    """Takes a field of a compression record that is called ``_version`` for its own, and does not give it."""

    def changed(self, record: CompressionRecord) -> CompressionRecord:
        extra = {key: value for key, value in (record.extra or {}).items() if key != "_version"}
        return record.replace(extra=extra or None)


@mutant(
    "VAL-2",
    killed_by="every_method_refuses_what_json_cannot_carry",
    source="a second code path for upserts, without the check of the first",
    witness=seen(
        lambda s: s.upsert_tool_call_records("a", [samples.tool_call(result=float("nan"))]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class UpsertsNullForNan(_ChangesUpserts):
    """Stores None for a result that is NaN, when the call is upserted."""

    def changed(self, call: ToolCallRecord) -> ToolCallRecord:
        return call.replace(result=None) if "nan" in repr(call.result) else call


@mutant(
    "MSG-3",
    killed_by="MSG-1.equal_records_are_all_kept",
    source="appends that are made safe to repeat by a look at what is at the end",
    witness=seen(
        lambda s: s.append_messages("a", samples.messages(1)),
        lambda s: s.append_messages("a", samples.messages(1)),
        lambda s: s.load_messages("a"),
    ),
)
class TakesEqualAppendsForRepeats(EngineStore):
    """Appends nothing when the same messages are at the end already."""

    async def append_messages(self, agent_id: str, messages: Sequence[Message], *, fence: Any = None) -> None:
        if messages and (await super().load_messages(agent_id))[-len(messages) :] == list(messages):
            return
        await super().append_messages(agent_id, messages, fence=fence)
