"""Stores that forget what belongs to a list: times, counts, other kinds (MSG-4 to MSG-8, LIFE-4)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from kode_conformance.checks.times import by_time
from kode_conformance.context import Context
from kode_conformance.instruments.clock import clock_off
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import MemoryLayer, OnJson, mutant
from conformance.tests.zoo.witnesses import seen, talk, the
from kode_core.batch import Applied, Batch, ListKind, ListWrite, Outcome
from kode_core.codec import decode
from kode_core.errors import StorageError
from kode_core.layers import Layer
from kode_core.model import AgentInfo
from kode_core.query import SessionQuery
from kode_core.store import EngineStore

# --- times and costs --------------------------------------------------------------------------------------------------


async def _time_of_the_first(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("1"))
    (before,) = await the("created_at", ctx.store.query_messages())
    await asyncio.sleep(0.005)
    await ctx.store.save_messages("a", talk("1", "2"))
    return before in await the("created_at", ctx.store.query_messages())


@mutant(
    "MSG-4",
    killed_by="messages_keep_their_first_time",
    source="KODE SDK SqliteStore and PostgresStore: created_at = now for all rows at each save",
    witness=_time_of_the_first,
)
class Restamps(MemoryLayer):
    """Gives every message the time of the last save."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await super().commit(batches)
        for batch in batches:
            rows = self.space.state(batch.agent_id).lists[ListKind.MESSAGES].rows
            rows[:] = [replace(row, created_at=batch.now) for row in rows]
        return outcomes


async def _time_of_the_edited(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("1", "2"))
    before = await the("created_at", ctx.store.query_messages())
    await asyncio.sleep(0.005)
    await ctx.store.save_messages("a", talk("1 edited", "2"))
    return before == await the("created_at", ctx.store.query_messages())


@mutant(
    "MSG-4",
    killed_by="edited_messages_keep_their_place_in_time",
    source="INSERT OR REPLACE with created_at = now, for the messages that changed",
    witness=_time_of_the_edited,
)
class RestampsEdited(Layer):
    """Gives a message that is edited the time of the edit."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([await self._restamped(batch) for batch in batches])

    async def _restamped(self, batch: Batch) -> Batch:
        if batch.messages is None or not batch.messages.put:
            return batch
        known = {row[1] for row in (await self.inner.outline(batch.agent_id, ListKind.MESSAGES)).rows}
        put = ((i, r if r.body.digest in known else replace(r, created_at=batch.now)) for i, r in batch.messages.put)
        return replace(batch, messages=replace(batch.messages, put=tuple(put)))


async def _time_of_the_appended(ctx: Context) -> object:
    other = await ctx.another()
    await ctx.store.append_messages("a", talk("1"))
    with clock_off(-3600):
        await other.append_messages("a", talk("2"))
    return await the("position", by_time(ctx.store))


@mutant(
    "MSG-4",
    killed_by="appended_messages_are_never_older",
    source="created_at = now, whatever the clock of the machine says and those of others said",
    witness=_time_of_the_appended,
)
class AppendsOlder(MemoryLayer):
    """Appends messages at the time of the clock, though it stepped back."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await super().commit(batches)
        for batch in batches:
            if batch.messages is not None and batch.messages.append:
                rows = self.space.state(batch.agent_id).lists[ListKind.MESSAGES].rows
                rows[len(rows) - len(batch.messages.append) :] = batch.messages.append
        return outcomes


async def _size_of_the_file(ctx: Context) -> object:
    many = talk(*("x" * 500 for _ in range(200)))
    for n in range(195, 200):
        await ctx.store.save_messages("a", many[:n])
    return (await ctx.store.get_metrics()).storage.db_size_bytes > 400_000


@mutant(
    "MSG-5",
    killed_by="saving_costs_what_changed",
    on=OnJson,
    source="KODE SDK SqliteStore and PostgresStore: delete all, insert all, four times a turn",
    witness=_size_of_the_file,
    also=("MSG-5.an_append_costs_what_it_appends",),
)
class RewritesEverything(Layer):
    """Writes the whole list for one new message."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        for batch in batches:
            if batch.messages is not None:
                found = await self.inner.rows(batch.agent_id, ListKind.MESSAGES)
                waste = tuple(replace(batch.messages.append[0], body=b) for b, _ in found.rows if batch.messages.append)
                wasted = ListWrite(append=waste)
                undone = ListWrite(length=len(found.rows))
                await super().commit([replace(batch, op_id=f"{batch.op_id}w", messages=wasted, events=())])
                await super().commit([replace(batch, op_id=f"{batch.op_id}u", messages=undone, events=())])
        fresh = [replace(b, messages=replace(b.messages, expect=None)) if b.messages else b for b in batches]
        return await super().commit(fresh)


# --- counts -----------------------------------------------------------------------------------------------------------

_COUNTED = (
    lambda s: s.save_messages("a", talk("1")),
    lambda s: s.save_info("a", samples.info("a", message_count=99)),
)


@mutant(
    "MSG-6",
    killed_by="the_store_counts_messages",
    source="KODE SDK SqliteStore and PostgresStore: saveInfo overwrites message_count",
    witness=seen(*_COUNTED, lambda s: s.load_info("a")),
)
class BelievesTheInfo(EngineStore):
    """Takes message_count from the info that was saved."""

    async def load_info(self, agent_id: str) -> AgentInfo | None:
        info = await super().load_info(agent_id)
        summary = await self._context.engine.summary(agent_id)
        return info if summary is None or summary.info is None else decode(AgentInfo, summary.info.body, "info")


@mutant(
    "MSG-6",
    killed_by="sessions_count_messages",
    source="KODE SDK SqliteStore and PostgresStore: the column that saveInfo overwrites is what querySessions shows",
    witness=seen(*_COUNTED, lambda s: the("message_count", s.query_sessions())),
)
class SessionsBelieveTheInfo(Layer):
    """Shows sessions with the message_count of the info that was saved."""

    async def find_sessions(self, query: SessionQuery) -> Any:
        found = await super().find_sessions(query)
        return [replace(row, message_count=json.loads(row.info.text).get("messageCount", 0)) for row in found]


# --- kinds and their order --------------------------------------------------------------------------------------------


@mutant(
    "MSG-7",
    killed_by="any_order_of_saves_works",
    source="KODE SDK SqliteStore and PostgresStore: foreign keys to a row that saveInfo makes",
    witness=seen(lambda s: s.save_messages("a", talk("1")), lambda s: s.load_messages("a")),
    raises="FOREIGN KEY constraint failed",
)
class WantsTheInfoFirst(MemoryLayer):
    """Fails on messages, tool calls and snapshots of an agent that has no info yet."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        for batch in batches:
            child = batch.messages or batch.tool_calls or batch.docs
            if child and batch.info is None and self.space.state(batch.agent_id).info is None:
                return [StorageError("FOREIGN KEY constraint failed") for _ in batches]
        return await super().commit(batches)


@mutant(
    "MSG-8",
    killed_by="no_save_changes_another_kind",
    source="KODE SDK SqliteStore: INSERT OR REPLACE INTO agents, with ON DELETE CASCADE",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.save_messages("a", talk("1")),
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.load_messages("a"),
    ),
)
class SavingInfoCascades(MemoryLayer):
    """Loses messages, tool calls and snapshots when an info is saved again."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        for batch in batches:
            state = self.space.state(batch.agent_id)
            if batch.info is not None and state.info is not None:
                for rows in state.lists.values():
                    rows.rows.clear()
                state.docs = {key: doc for key, doc in state.docs.items() if key[0] != "snapshots"}
        return await super().commit(batches)


# --- deleted lists ----------------------------------------------------------------------------------------------------


@mutant(
    "LIFE-4",
    killed_by="who_remembers_a_deleted_agent_is_not_misled",
    source="versions that count from 1",
    witness=seen(
        lambda s, t: s.save_messages("a", talk("1", "2")),
        lambda s, t: t.delete("a"),
        lambda s, t: t.save_messages("a", talk("3")),
        lambda s, t: s.save_messages("a", talk("1", "2", "4")),
        lambda s, t: t.load_messages("a"),
    ),
)
class VersionsComeAgain(MemoryLayer):
    """Counts the versions of a list from 1, also when the agent was deleted and made again."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes = await super().commit(batches)
        return [self._counted(b, o) for b, o in zip(batches, outcomes, strict=True)]

    def _counted(self, batch: Batch, outcome: Outcome) -> Outcome:
        if not isinstance(outcome, Applied):
            return outcome
        for kind in ListKind:
            rows = self.space.state(batch.agent_id).lists[kind]
            if kind in batch.lists:
                known = rows.version - batch.lists[kind].step
                rows.version = known + 1 if 0 < known < 2**20 else 1
                outcome = replace(outcome, **{kind.value: rows.head})
        return outcome
