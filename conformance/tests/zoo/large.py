"""Stores that take large records for others, or are wrong behind so many bytes, keys or messages (VAL-4, MSG-11)."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import CommittingLayer, Wrapper, mutant
from conformance.tests.zoo.witnesses import seen, the
from kode_core.batch import Applied, DocKind, ListKind
from kode_core.codec import encode
from kode_core.layers import Layer
from kode_core.model import AgentRecords, AppendedMessage, CompressionRecord, Message, RecoveredFile, Snapshot
from kode_core.store import EngineStore

_LARGE = 300_000


def _file(content: str) -> Any:
    return samples.recovered(content=content)


# --- large records ----------------------------------------------------------------------------------------------------


@mutant(
    "SNAP-1",
    killed_by="VAL-4.large_records_share_nothing",
    source="a reply of at most 1 MB, whose token for the next one nobody reads",
    witness=seen(
        *(lambda s, i=i: s.save_snapshot("a", _large_snapshot(f"s{i}")) for i in range(3)),  # type: ignore[misc]
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class ListsAMegabyte(EngineStore):
    """Lists the first snapshots of an agent, until they have a megabyte together."""

    async def list_snapshots(self, agent_id: str) -> list[Snapshot]:
        found = await super().list_snapshots(agent_id)
        sizes = itertools.accumulate(len(encode(Snapshot, one, "snapshot").text) for one in found)
        return [one for one, size in zip(found, sizes, strict=True) if size <= 2**20] or found[:1]


def _large_snapshot(snapshot_id: str) -> Snapshot:
    return samples.snapshot(snapshot_id).replace(messages=[samples.message(text="x" * 400_000)])


@mutant(
    "HIS-2",
    killed_by="VAL-4.large_records_share_nothing",
    source="large contents in files that are named by a hash, and are removed with the first record that names one",
    witness=seen(
        lambda s: s.save_recovered_file("a", _file("x" * 400_000)),
        lambda s: s.save_recovered_file("b", _file("x" * 400_000)),
        lambda s: s.save_recovered_file("b", _file("y")),
        lambda s: s.load_recovered_files("a"),
    ),
)
class SharesLargeFiles(CommittingLayer):
    """Loses a large recovered file when one of the same contents is replaced or removed, of whatever agent."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        before = self.large(batch.agent_id)
        outcome = commit(batch)
        if isinstance(outcome, Applied):
            gone = set(before.values()) - set(self.large(batch.agent_id).values())
            for state in self.space.states.values() if gone else ():
                for name in [name for name, doc in state.docs.items() if doc.body.digest in gone]:
                    del state.docs[name]
        return outcome

    def large(self, agent_id: str) -> dict[Any, bytes]:
        state = self.space.states.get(agent_id)
        docs = {} if state is None else state.docs
        is_large = {name: len(doc.body.text) > _LARGE and name[0] == DocKind.RECOVERED for name, doc in docs.items()}
        return {name: doc.body.digest for name, doc in docs.items() if is_large[name]}


@mutant(
    "TC-2",
    killed_by="VAL-4.large_records_share_nothing",
    source="a blob store next to the table, in which a large input is found by the id of its call",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(input={"q": c * 400_000}) for c in "xy"]),
        lambda s: _inputs(s.load_tool_call_records("a")),
    ),
)
class FindsLargeInputsById(Wrapper):
    """Loads the large input of the first tool call of an id for all of that id."""

    async def load_tool_call_records(self, agent_id: str, **part: Any) -> Any:
        calls, first = await self.inner.load_tool_call_records(agent_id, **part), dict[str, Any]()
        return [
            call.replace(input=first.setdefault(call.id, call.input)) if len(str(call.input)) > _LARGE else call
            for call in calls
        ]


async def _inputs(loaded: Any) -> list[Any]:
    return [call.input["q"][:1] for call in await loaded]


# --- one in the place of another --------------------------------------------------------------------------------------


@mutant(
    "HIS-1",
    killed_by="VAL-4.every_size_replaces_another",
    source="long texts in a table of their own, that a short text in the row does not delete",
    witness=seen(
        lambda s: s.save_compression_record("a", samples.compression().replace(summary="x" * 6_000)),
        lambda s: s.save_compression_record("a", samples.compression().replace(summary="y")),
        lambda s: s.load_compression_records("a"),
    ),
)
class KeepsLongTexts(EngineStore):
    """Does not replace a compression record of more than five thousand characters by a shorter one."""

    async def save_compression_record(self, agent_id: str, record: Any, *, fence: Any = None) -> None:
        if isinstance(record, CompressionRecord) and fence is None and self._size(record) <= 5_000:
            for old in await self.load_compression_records(agent_id):
                if old.id == record.id and self._size(old) > 5_000:
                    return
        await super().save_compression_record(agent_id, record, fence=fence)

    @staticmethod
    def _size(record: CompressionRecord) -> int:
        return len(encode(CompressionRecord, record, "record").text)


@mutant(
    "EVT-4",
    killed_by="VAL-4.every_size_replaces_another",
    source="a unique index of MySQL on the first 3,072 bytes of a column",
    witness=seen(
        lambda s: s.append_event("a", samples.event(1, text="x" * 4_000 + "one")),
        lambda s: s.append_event("a", samples.event(1, text="x" * 4_000 + "two")),
        lambda s: s.read_events("a"),
    ),
)
class ComparesBeginningsOfEvents(CommittingLayer):
    """Takes an event for a repeat of a stored one of its seq whose first 3,072 bytes are the same."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        state = None if batch.delete else self.space.states.get(batch.agent_id)
        stored: dict[Any, Any] = {}
        for i in range(len(state.log) if state and batch.events else 0):
            body = state.log.row(i).body  # type: ignore[union-attr]
            stored.setdefault((state.log.row(i).seq, body.text[:3_072]), body)  # type: ignore[union-attr]
        events = tuple(
            replace(event, body=stored.get((event.seq, event.body.text[:3_072]), event.body)) for event in batch.events
        )
        return commit(replace(batch, events=events))


@mutant(
    "SNAP-2",
    killed_by="a_delete_leaves_twin_keys",
    source="SCAN with MATCH snapshot:ID*, and a DEL of the keys that it finds",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("s")),
        lambda s: s.save_snapshot("a", samples.snapshot("s:1")),
        lambda s: s.delete_snapshot("a", "s"),
        lambda s: the("id", s.list_snapshots("a")),
    ),
)
class DeletesSnapshotsByPattern(EngineStore):
    """Deletes with a snapshot those whose ids are its id, a colon and more."""

    async def delete_snapshot(self, agent_id: str, snapshot_id: str, *, fence: Any = None) -> None:
        await super().delete_snapshot(agent_id, snapshot_id, fence=fence)
        for snapshot in await self.list_snapshots(agent_id):
            if snapshot.id.startswith(f"{snapshot_id}:"):
                await super().delete_snapshot(agent_id, snapshot.id, fence=fence)


# --- many -------------------------------------------------------------------------------------------------------------


@mutant(
    "MSG-11",
    killed_by="lists_are_cut_to_any_length",
    source="DELETE … LIMIT 5000 in a loop, and the number of rows of its last turn",
    witness=seen(
        lambda s: s.save_messages("a", samples.messages(5_200)), lambda s: s.truncate_messages("a", 100),
    ),
)  # fmt: skip
class CountsTheLastFiveThousand(EngineStore):
    """Returns the number of messages that the last step of a truncate removed, of five thousand each."""

    async def truncate_messages(self, agent_id: str, length: int, **how: Any) -> int:
        removed = await super().truncate_messages(agent_id, length, **how)
        return removed if removed <= 5_000 else removed % 5_000


@mutant(
    "MSG-11",
    killed_by="lists_are_cut_to_any_length",
    source="buckets of 256 messages, of which the one that a list ends in is the quotient",
    witness=seen(
        lambda s: s.save_messages("a", samples.messages(600)),
        lambda s: s.truncate_messages("a", 256),
        lambda s: _number(s.load_messages("a")),
    ),
)
class TruncatesByBuckets(EngineStore):
    """Keeps one bucket too many when a list is truncated at the end of one of 256."""

    async def truncate_messages(self, agent_id: str, length: int, **how: Any) -> int:
        is_end = type(length) is int and length and length % 256 == 0
        return await super().truncate_messages(agent_id, length + 256 if is_end else length, **how)


async def _number(loaded: Any) -> int:
    return len(await loaded)


@mutant(
    "MSG-12",
    killed_by="known_keys_append_nothing",
    source="the keys of a call that are looked up fifty at a time, of which the first fifty come back",
    witness=seen(
        lambda s: s.append_messages_once("a", {"k60": samples.message()}),
        lambda s: _number(s.append_messages_once("a", {f"k{i}": samples.message() for i in range(70)})),
        lambda s: _number(s.load_messages("a")),
    ),
)
class KnowsTheFirstFifty(Wrapper):
    """Appends a message with a known key again if all keys of its call that are known stand behind the fiftieth."""

    async def append_messages_once(self, agent_id: str, messages: Any, **how: Any) -> list[AppendedMessage]:
        found: list[AppendedMessage] = await self.inner.append_messages_once(agent_id, messages, **how)
        known = [i for i, place in enumerate(found) if not place.is_new]
        if known and known[0] >= 50 and isinstance(messages, Mapping) and len(known) < len(found):
            await self.inner.append_messages(agent_id, [[*messages.values()][i] for i in known])
        return found


@mutant(
    "MSG-12",
    killed_by="known_keys_append_nothing",
    source="a deque(maxlen=1500) of the keys that were seen",
    witness=seen(
        lambda s: s.append_messages_once("a", {"first": samples.message()}),
        lambda s: _number(s.append_messages_once("a", {f"k{i}": samples.message(i) for i in range(1_500)})),
        lambda s: s.append_messages_once("a", {"first": samples.message()}),
    ),
)
class RemembersTheLastKeys(CommittingLayer):
    """Appends a message again whose key is not among the last 1,500 of its agent."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        outcome = commit(batch)
        if isinstance(outcome, Applied) and batch.docs:
            docs = self.space.state(batch.agent_id).docs
            for name in [name for name in docs if name[1].startswith("~messages/")][:-1_500]:
                del docs[name]
        return outcome


# --- times of imports -------------------------------------------------------------------------------------------------


async def _appends_behind(ctx: Context) -> object:
    ahead = 4_102_444_800_000
    records = AgentRecords(agent_id="a", messages=samples.messages(1), message_times=[ahead], updated_at=ahead)
    await ctx.store.import_agent("a", records)
    await ctx.store.append_messages("a", samples.messages(1, 1))
    async with aclosing(ctx.store.read_messages("a")) as messages:
        return [one.created_at >= ahead async for one in messages]


@mutant(
    "MSG-4",
    killed_by="an_imported_agent_goes_on_behind_its_times",
    source="the time of an append, which is raised to the time of the last write of this store, and of no import",
    witness=_appends_behind,
)
class StampsByItsLastWrite(CommittingLayer):
    """Gives messages the time of the clock that are appended to an agent whose messages are of a time to come."""

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        outcome, write = commit(batch), batch.messages
        if isinstance(outcome, Applied) and write is not None and write.append and not batch.expect_nothing:
            rows = self.space.state(batch.agent_id).lists[ListKind.MESSAGES]
            if len(rows.rows) > len(write.append) and rows.rows[0].created_at > 4 * 10**12:
                rows.rows[-len(write.append) :] = [replace(row, created_at=1_800_000_000_000) for row in write.append]
                rows._latest = None
        return outcome


# --- one instant ------------------------------------------------------------------------------------------------------


class _Amid(Layer):
    """Does something once, before the fourth engine call from now on."""

    left = 3

    def begin(self, act: Callable[[], Awaitable[object]]) -> None:
        self.act: Callable[[], Awaitable[object]] | None = act

    async def around(self, verb: str, call: Any, /, *given: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left < 0 and getattr(self, "act", None) is not None:
            act, self.act = self.act, None
            assert act is not None
            await act()
        return await call(*given, **named)


async def _pages_amid_a_save(ctx: Context) -> object:
    layers: list[_Amid] = []

    def put(engine: Any) -> Any:
        layers.append(_Amid(engine))
        return layers[-1]

    store = await ctx.another(put)
    await ctx.store.save_messages("a", samples.messages(700))
    layers[0].left = 3
    layers[0].begin(lambda: ctx.store.save_messages("a", samples.messages(700, 1_000)))
    return len({int(message.text.split()[1]) // 1_000 for message in await store.load_messages("a")})


@mutant(
    "MSG-1",
    killed_by="a_long_list_is_loaded_at_one_instant",
    source="keyset pages of five hundred rows, each in a transaction of its own",
    witness=_pages_amid_a_save,
)
class LoadsByFiveHundreds(EngineStore):
    """Loads long lists of messages five hundred at a time, each as it is then."""

    async def load_messages(
        self, agent_id: str, *, last: int | None = None, after: int | None = None, before: int | None = None
    ) -> list[Message]:
        if (last, after, before) != (None, None, None):
            return await super().load_messages(agent_id, last=last, after=after, before=before)
        found: list[Message] = []
        while True:
            start = len(found) - 1 if found else None
            page = await super().load_messages(agent_id, after=start, before=len(found) + 500)
            found += page
            if len(page) < 500:
                return found


@mutant(
    "HIS-2",
    killed_by="HIS-1.large_records_keep_their_places",
    source="large files in a bucket, with a list that is read after the table",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("a", samples.T0, "x" * 300_000)),
        lambda s: s.save_recovered_file("a", samples.recovered("b", samples.T0 + 1)),
        lambda s: the("path", s.load_recovered_files("a")),
    ),
)
class LoadsLargeFilesLast(EngineStore):
    """Loads recovered files with more than 256 KiB behind all others."""

    async def load_recovered_files(self, agent_id: str) -> Any:
        found = await super().load_recovered_files(agent_id)
        return sorted(found, key=lambda file: len(encode(RecoveredFile, file, "file").text) > 2**18)
