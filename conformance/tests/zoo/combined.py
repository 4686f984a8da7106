"""Stores that are wrong where two conditions meet: two arguments, a size and a character, an age and a word."""

from __future__ import annotations

import itertools
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kode_conformance.context import Context
from kode_conformance.dimensions import dense
from kode_conformance.instruments.clock import clock_off
from kode_conformance.values import samples

from conformance.tests.zoo.base import OnSqlite, mutant
from conformance.tests.zoo.document_ranges import put_keys
from conformance.tests.zoo.own_documents import value_of
from conformance.tests.zoo.witnesses import seen, the
from kode_core.codec import from_dict, to_dict
from kode_core.errors import PayloadTooLargeError
from kode_core.model import AppendedMessage, Bookmark, Document, PutDocument, TodoSnapshot, ToolCallRecord
from kode_core.query import Page
from kode_core.store import EngineStore

# --- arguments --------------------------------------------------------------------------------------------------------


@mutant(
    "DOC-4",
    killed_by="MSG-9.optional_arguments_hold_together",
    source="range queries of a key-value store, which take a prefix or two bounds",
    witness=seen(
        lambda s: put_keys(s, "a", "b", "c"), lambda s: s.list_document_keys("a", "c", prefix="b", start="a", stop="d")
    ),
)
class PrefixesGiveWayToBounds(EngineStore):
    """Forgets the prefix of a range that has both bounds."""

    async def list_document_keys(self, agent_id: str, collection: str, **given: Any) -> Page[str]:
        if isinstance(given.get("start"), str) and isinstance(given.get("stop"), str) and "cursor" not in given:
            given = {name: value for name, value in given.items() if name != "prefix"}
        return await super().list_document_keys(agent_id, collection, **given)


async def _three_events(store: Any) -> object:
    offsets = list(await store.append_events("a", samples.events(3)))
    asked = {"since": Bookmark(0, 0), "after_offset": offsets[0]}
    return [e.bookmark.seq async for e in store.read_events("a", **asked, channel="control")]


@mutant(
    "EVT-5",
    killed_by="MSG-9.optional_arguments_hold_together",
    source="three indexes, of which the statement for two conditions names one",
    witness=lambda ctx: _three_events(ctx.store),
)
class ChannelsGiveWayToBoth(EngineStore):
    """Reads all channels when events are read from a seq and from an offset on."""

    def read_events(self, agent_id: str, **given: Any) -> Any:
        if isinstance(given.get("since"), Bookmark) and type(given.get("after_offset")) is int:
            given = {name: value for name, value in given.items() if name != "channel"}
        return super().read_events(agent_id, **given)


@mutant(
    "OPS-21",
    killed_by="MSG-9.optional_arguments_hold_together",
    source="a list that is read whole when damage is skipped, and cut afterwards",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(i) for i in range(5)]),
        lambda s: the("id", s.load_tool_call_records("a", last=2, after=3, on_corrupt="skip")),
    ),
)
class SkippingCutsTheEndAlone(EngineStore):
    """Gives tool calls from before the part, when damage is skipped and the part has fewer of them than `last` says."""

    async def load_tool_call_records(self, agent_id: str, **part: Any) -> Any:
        if part.get("on_corrupt") == "skip" and type(part.get("last")) is int and part.get("before") is None:
            part = {name: value for name, value in part.items() if name != "after"}
        return await super().load_tool_call_records(agent_id, **part)


@mutant(
    "QRY-10",
    killed_by="QRY-5.filters_pages_and_orders_together",
    source="a table of partial counts by two columns",
    witness=seen(
        lambda s: s.save_messages("a", samples.messages(2)),
        lambda s: s.count_messages(agent_id="a", contains="message", role="tool"),
    ),
)
class CountsByTwoConditions(EngineStore):
    """Counts messages by the first two conditions alone."""

    async def count_messages(self, **filters: Any) -> int:
        some = dict(itertools.islice(filters.items(), 2))
        await super().count_messages(**filters)  # which refuses wrong ones
        return await super().count_messages(**some)


@mutant(
    "QRY-11",
    killed_by="QRY-5.filters_pages_and_orders_together",
    source="a table of groups that was made for one of the conditions",
    witness=seen(
        lambda s: s.save_messages("a", samples.messages(2)),
        lambda s: s.group_messages("role", agent_id="a", contains="nothing"),
    ),
)
class GroupsByOneCondition(EngineStore):
    """Counts groups of messages by the first condition alone, when there are several."""

    async def group_messages(self, by: Any, **given: Any) -> Any:
        await super().group_messages(by, **given)  # which refuses wrong ones
        name = next((name for name in given if name != "utc_offset_minutes"), None)
        more = {one: value for one, value in given.items() if one in (name, "utc_offset_minutes")}
        return await super().group_messages(by, **more)


async def _the_last_of_damaged(ctx: Context) -> object:
    await ctx.store.save_messages("a", samples.messages(3))
    await ctx.harness.corrupt(ctx.handle, "a")
    store = await ctx.another()
    found = await store.load_messages("a", last=2, before=2, on_corrupt="skip")
    return len(found), len(found.left_out)


@mutant(
    "OPS-21",
    killed_by="loads_step_around_what_is_damaged",
    on=OnSqlite,
    witness=_the_last_of_damaged,
    source="a part that is tried again with its damaged records taken away",
)
class ForgetsDamageBehindTwoBounds(EngineStore):
    """Leaves damaged messages out and does not name them when `last` and `before` are given."""

    async def load_messages(self, agent_id: str, **part: Any) -> Any:
        found = await super().load_messages(agent_id, **part)
        both = type(part.get("last")) is int and type(part.get("before")) is int
        return Page(found) if both and isinstance(found, Page) else found


# --- sizes and characters ---------------------------------------------------------------------------------------------

_ROW: Final = 65_536


def _of_bytes(value: Any) -> Any:
    """A value as it comes back from a file whose bytes are decoded with errors replaced."""
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(text.encode("utf-8", "replace")) if len(text) > _ROW else value


@mutant(
    "DOC-1",
    killed_by="documents_keep_any_value",
    source="a file next to the row for values that are too long for it, opened with errors='replace'",
    witness=seen(
        lambda s: s.save_turn("a", documents=[PutDocument("c", "k", ["x" * _ROW, "\ud83d"])]), lambda s: value_of(s)
    ),
)
class LosesHalvesOfLargeDocuments(EngineStore):
    """Replaces halves of pairs in documents of more than 64 KB that a turn puts."""

    async def save_turn(self, agent_id: str, **turn: Any) -> Any:
        puts = turn.get("documents")
        one = puts[0] if isinstance(puts, list) and len(puts) == 1 else None
        if isinstance(one, PutDocument) and isinstance(one.value, (str, dict, list)) and _is_sound(one.value):
            kept = PutDocument(one.collection, one.key, _of_bytes(one.value), expect=one.expect, tags=one.tags)
            turn = {**turn, "documents": [kept]}
        return await super().save_turn(agent_id, **turn)


def _is_sound(value: Any) -> bool:
    try:
        return json.loads(json.dumps(value)) == value
    except (TypeError, ValueError, RecursionError):
        return False


@mutant(
    "VAL-4",
    killed_by="every_size_replaces_another",
    source="a blob for texts that are too long for their column, encoded with errors='replace'",
    witness=seen(lambda s: s.save_todos("a", samples.todos("\ud83d" + "x" * _ROW)), lambda s: s.load_todos("a")),
)
class LosesHalvesOfLargeTodos(EngineStore):
    """Replaces halves of pairs in todos of more than 64 KB."""

    async def save_todos(self, agent_id: str, snapshot: Any, **how: Any) -> None:
        if isinstance(snapshot, TodoSnapshot) and _is_sound(to_dict(snapshot)):
            snapshot = from_dict(TodoSnapshot, _of_bytes(to_dict(snapshot)))
        await super().save_todos(agent_id, snapshot, **how)


@mutant(
    "ID-4",
    killed_by="twin_keys_are_different_keys",
    source="PostgreSQL: an index entry may have 2,704 bytes, after compression",
    witness=seen(
        lambda s: s.save_snapshot("a", samples.snapshot("s" * 4_000)),
        lambda s: s.save_snapshot("a", samples.snapshot(dense(4_000))),
        lambda s: the("id", s.list_snapshots("a")),
    ),
    raises="index row size exceeds",
)
class RefusesKeysThatDoNotCompress(EngineStore):
    """Refuses ids of snapshots that have more than 2,704 bytes when they are compressed."""

    async def save_snapshot(self, agent_id: str, snapshot: Any, **how: Any) -> None:
        key = getattr(snapshot, "id", None)
        if (
            isinstance(key, str)
            and 2_704 < len(key) <= 4_096
            and len(zlib.compress(key.encode("utf-8", "replace"))) > 2_704
        ):
            raise PayloadTooLargeError("index row size exceeds btree version 4 maximum 2704")
        await super().save_snapshot(agent_id, snapshot, **how)


# --- names ------------------------------------------------------------------------------------------------------------


@mutant(
    "ID-2",
    killed_by="an_agent_and_a_key_do_not_run_together",
    source="Redis: SETNX once:{agent}:{key}",
    witness=seen(
        lambda s: s.append_messages_once("x", {"y:z": samples.message()}),
        lambda s: s.append_messages_once("x:y", {"z": samples.message()}),
    ),
)
class JoinsAgentsAndKeysOfMessages(EngineStore):
    """Takes the key of a message for known when another agent has one that is the same with its id before it."""

    async def append_messages_once(self, agent_id: str, messages: Any, **how: Any) -> Any:
        if isinstance(messages, Mapping) and len(messages) == 1 and isinstance(key := next(iter(messages)), str):
            name = f"{agent_id}:{key}"
            for i, letter in enumerate(name):
                known = await self.load_agent(name[:i]) if letter == ":" and 0 < i < 100 else None
                if known is not None and known.agent_id != agent_id and name[i + 1 :] in known.message_keys:
                    return [AppendedMessage(known.message_keys[name[i + 1 :]], False)]
        return await super().append_messages_once(agent_id, messages, **how)


@mutant(
    "DOC-1",
    killed_by="names_of_documents_are_apart",
    source="a bucket of objects: {collection}.{key}",
    witness=seen(
        lambda s: put_keys(s, "d.k"),
        lambda s: s.save_turn("a", documents=[PutDocument("c.d", "k", 2)]),
        lambda s: value_of(s, "k", "c.d"),
    ),
)
class JoinsCollectionsAndKeys(EngineStore):
    """Gives for a document the one whose collection and key, joined by a dot, are the same."""

    async def load_document(self, agent_id: str, collection: str, key: str) -> Document | None:
        found = await super().load_document(agent_id, collection, key)
        short, dot, rest = collection.partition(".")
        if found is None or not dot or not short or len(rest) + len(key) > 99:
            return found
        return await super().load_document(agent_id, short, f"{rest}.{key}") or found


@mutant(
    "TC-2",
    killed_by="MSG-1.lists_of_any_length_are_replaced",
    source="MERGE of more than a thousand rows, which refuses a key that comes twice",
    witness=seen(
        lambda s: s.save_turn("a", tool_calls=[samples.tool_call(i % 999, audit_trail=[]) for i in range(1001)]),
        lambda s: the("id", s.load_tool_call_records("a")),
    ),
)
class MergesRepeatedIds(EngineStore):
    """Keeps the last tool call of each id when a turn replaces the list by more than a thousand."""

    async def save_turn(self, agent_id: str, *, tool_calls: Any = None, **turn: Any) -> Any:
        if isinstance(tool_calls, list) and len(tool_calls) > 1000 and _have_ids(tool_calls):
            tool_calls = list({call.id: call for call in tool_calls}.values())
        return await super().save_turn(agent_id, tool_calls=tool_calls, **turn)


def _have_ids(calls: Sequence[Any]) -> bool:
    return all(type(call) is ToolCallRecord and type(call.id) is str for call in calls)


# --- ages and words ---------------------------------------------------------------------------------------------------


async def _a_month_later(ctx: Context) -> object:
    call = samples.tool_call(state="DENIED", created_at=int(time.time() * 1000))
    await ctx.store.save_tool_call_records("a", [call])
    with clock_off(30 * 86_400):
        return len(await ctx.store.load_tool_call_records("a"))


@mutant(
    "DUR-1",
    killed_by="records_stay_whatever_they_say",
    source="a partial TTL index, of the calls that were denied",
    witness=_a_month_later,
)
class ForgetsDeniedCalls(EngineStore):
    """Does not load tool calls that were denied more than a week ago."""

    async def load_tool_call_records(self, agent_id: str, **part: Any) -> Any:
        found = await super().load_tool_call_records(agent_id, **part)
        week_ago = int(time.time() * 1000) - 7 * 86_400_000
        if isinstance(found, Page):
            return found
        return [call for call in found if call.state != "DENIED" or call.created_at >= week_ago]
