"""Stores with faults in agents that are loaded and imported whole (LIFE-7, LIFE-8)."""

from __future__ import annotations

import asyncio
from typing import Any

from kode_conformance.context import Context
from kode_conformance.kills.writes import records_to_import
from kode_conformance.values import samples

from conformance.tests.zoo.base import OnSqlite, mutant
from conformance.tests.zoo.witnesses import seen
from kode_core.errors import ConflictError, CorruptRecordError, InvalidArgumentError
from kode_core.model import AgentRecords
from kode_core.store import EngineStore
from kode_core.store.dated import dated


def _times(*times: int) -> AgentRecords:
    return AgentRecords(
        agent_id="a", messages=samples.messages(len(times)), message_times=times, updated_at=50, info=samples.info("a")
    )


async def _piece_by_piece(store: EngineStore, agent_id: str, records: AgentRecords) -> None:
    """Import an agent with the methods that write one kind."""
    if records.info is not None:
        await store.save_info(agent_id, records.info.replace(agent_id=agent_id))
    with dated(records.message_times):
        await store.save_messages(agent_id, records.messages)
    await store.save_tool_call_records(agent_id, records.tool_calls)
    if records.todos is not None:
        await store.save_todos(agent_id, records.todos)
    for window in records.history_windows:
        await store.save_history_window(agent_id, window)
    for record in records.compression_records:
        await store.save_compression_record(agent_id, record)
    for file in records.recovered_files:
        await store.save_recovered_file(agent_id, file)
    await store.save_media_cache(agent_id, records.media_cache)
    for snapshot in records.snapshots:
        await store.save_snapshot(agent_id, snapshot)
    for one in records.documents:
        await store.put_document(agent_id, one.collection, one.key, one.value)
    await store.append_events(agent_id, records.events)


async def _stored_times(store: Any) -> list[int]:
    return [one.created_at async for one in store.read_messages("a")]


@mutant(
    "LIFE-8",
    killed_by="every_value_is_imported_and_loaded_whole",
    source="an import that saves the messages like new ones",
    witness=seen(lambda s: s.import_agent("a", _times(9, 3)), _stored_times),
)
class ImportsRaiseTimes(EngineStore):
    """Raises the times of imported messages to those of the messages before them."""

    async def import_agent(self, agent_id: str, records: AgentRecords, **how: Any) -> None:
        if type(records) is AgentRecords and type(records.message_times) is tuple:
            times = [max(records.message_times[: i + 1]) for i in range(len(records.message_times))]
            records = records.replace(message_times=times)
        await super().import_agent(agent_id, records, **how)


async def _moved_with_keys(ctx: Context) -> object:
    await ctx.store.append_messages_once("a", {"k": samples.message()})
    records = await ctx.store.load_agent("a")
    await ctx.store.import_agent("b", records)
    return await ctx.store.append_messages_once("b", {"k": samples.message()})


@mutant(
    "LIFE-8",
    killed_by="keys_go_along_with_imports",
    source="an import of the records that a user sees, without the table of idempotency keys",
    witness=_moved_with_keys,
)
class ImportsForgetKeys(EngineStore):
    """Imports agents without the keys of their messages."""

    async def import_agent(self, agent_id: str, records: AgentRecords, **how: Any) -> None:
        if type(records) is AgentRecords and type(records.message_keys) is dict:
            await super().import_agent(agent_id, records, **how)  # refuses wrong keys
            await self.delete(agent_id)
            records = records.replace(message_keys={})
        await super().import_agent(agent_id, records, **how)


@mutant(
    "LIFE-8",
    killed_by="keys_go_along_with_imports",
    source="a load of the kinds that records have, where keys are none",
    witness=_moved_with_keys,
)
class LoadsForgetKeys(EngineStore):
    """Loads agents without the keys of their messages."""

    async def load_agent(self, agent_id: str) -> AgentRecords | None:
        found = await super().load_agent(agent_id)
        return found and found.replace(message_keys={})


async def _updated_at(store: Any) -> int:
    found = await store.load_session("a")
    return 0 if found is None else int(found.updated_at)


@mutant(
    "LIFE-8",
    killed_by="a_moved_agent_goes_on",
    source="updated_at = now() in the statement of every insert",
    also=("LIFE-8.every_value_is_imported_and_loaded_whole",),
    witness=seen(lambda s: s.import_agent("a", _times(1)), lambda s: _is_recent(s)),
)
class ImportsAreNew(EngineStore):
    """Gives an imported agent the present time as its updated_at."""

    async def import_agent(self, agent_id: str, records: AgentRecords, **how: Any) -> None:
        if type(records) is AgentRecords and type(records.updated_at) is int and records.updated_at > samples.T0:
            records = records.replace(updated_at=None)
        await super().import_agent(agent_id, records, **how)


async def _is_recent(store: Any) -> bool:
    await store.import_agent(
        "b", AgentRecords(agent_id="a", tool_calls=[samples.tool_call()], updated_at=samples.T0 + 5)
    )
    found = await store.load_agent("b")
    return bool(found.updated_at != samples.T0 + 5)


@mutant(
    "LIFE-7",
    killed_by="an_agent_of_one_kind_is_whole_too",
    source="a load that begins with the info, and returns without it",
    witness=seen(lambda s: s.append_events("a", samples.events(1)), lambda s: _is_there(s)),
)
class LoadsAgentsWithInfo(EngineStore):
    """Finds nothing of an agent without info."""

    async def load_agent(self, agent_id: str) -> AgentRecords | None:
        return await super().load_agent(agent_id) if await self.exists(agent_id) else None


async def _is_there(store: Any) -> bool:
    return await store.load_agent("a") is not None


async def _turns_while_loading(ctx: Context) -> object:
    other, torn = await ctx.another(), 0
    await other.save_turn("a", todos=samples.todos("0"))
    for n in range(1, 30):
        loading = asyncio.ensure_future(ctx.store.load_agent("a"))
        await asyncio.sleep(0)
        await other.save_turn("a", todos=samples.todos(str(n)), events=samples.events(1, n))
        found = await loading
        assert found is not None and found.todos is not None
        torn += found.todos.todos[0].title != str(len(found.events))
    return torn > 0


@mutant(
    "LIFE-7",
    killed_by="an_agent_is_loaded_at_one_instant",
    source="an export that loads one kind after the other",
    witness=_turns_while_loading,
)
class LoadsOneKindAfterTheOther(EngineStore):
    """Reads the todos of an agent before the rest, and does not look at them again."""

    async def load_agent(self, agent_id: str) -> AgentRecords | None:
        todos = await self.load_todos(agent_id)
        await asyncio.sleep(0.001)
        found = await super().load_agent(agent_id)
        return None if found is None else found.replace(todos=todos)


async def _load_damaged(ctx: Context) -> object:
    from kode_conformance.checks.damage import damaging

    await ctx.store.save_todos("a", samples.todos("text"))
    await ctx.store.save_messages("a", samples.messages(1))
    store, layer = await damaging(ctx)
    layer.verbs, layer.kind = frozenset({"docs"}), "todos"
    try:
        return (await store.load_agent("a")) is not None
    except CorruptRecordError:
        return "CorruptRecordError"


@mutant(
    "LIFE-7",
    killed_by="a_damaged_part_is_named_by_load_agent",
    source="an export that goes on after an error, for the sake of the rest",
    witness=_load_damaged,
)
class LoadsAroundDamage(EngineStore):
    """Gives a damaged agent without anything that is damaged."""

    async def load_agent(self, agent_id: str) -> AgentRecords | None:
        try:
            return await super().load_agent(agent_id)
        except CorruptRecordError:
            return AgentRecords(agent_id=agent_id)


async def _imports_at_once(ctx: Context) -> object:
    other = await ctx.another()
    records = [AgentRecords(agent_id="a", events=samples.events(1, n)) for n in range(2)]
    calls = (store.import_agent("a", one) for store, one in zip((ctx.store, other), records, strict=True))
    return [type(end).__name__ for end in await asyncio.gather(*calls, return_exceptions=True)].count("NoneType")


@mutant(
    "LIFE-8",
    killed_by="one_of_several_imports_succeeds",
    source="a look whether the id is free, and then the write",
    witness=_imports_at_once,
)
class LooksBeforeItImports(EngineStore):
    """Looks whether an id is free before it imports, and not when it writes."""

    async def import_agent(self, agent_id: str, records: AgentRecords, **how: Any) -> None:
        if type(records) is not AgentRecords or records.info or records.messages or records.tool_calls:
            return await super().import_agent(agent_id, records, **how)
        there = await super().load_agent(agent_id)
        await asyncio.sleep(0.001)
        if there is not None:
            raise ConflictError(agent_id, "0", "it is there")
        try:
            await super().import_agent(agent_id, records, **how)
        except ConflictError:
            await _piece_by_piece(self, agent_id, records)


async def _import_over(ctx: Context) -> object:
    await ctx.store.save_todos("a", samples.todos())
    try:
        return await ctx.store.import_agent("a", _times(1))
    except ConflictError:
        return "refused"


@mutant("LIFE-8", killed_by="an_import_replaces_nothing", source="exists() before an import", witness=_import_over)
class ImportsOverTodos(EngineStore):
    """Removes todos that stand alone under the id of an import."""

    async def import_agent(self, agent_id: str, records: AgentRecords, **how: Any) -> None:
        try:
            await super().import_agent(agent_id, records, **how)
        except ConflictError:
            found = await self.load_agent(agent_id)
            if found is None or found != AgentRecords(agent_id=agent_id, todos=found.todos):
                raise
            await self.delete(agent_id)
            await super().import_agent(agent_id, records, **how)


async def _import_wrong(ctx: Context) -> object:
    wrong = records_to_import()
    try:
        await ctx.store.import_agent("a", wrong.replace(events=[wrong.events[0]] * 2))
    except InvalidArgumentError:
        return await ctx.store.load_agent("a") is None
    return "written"


@mutant(
    "LIFE-8",
    killed_by="a_wrong_import_writes_nothing",
    source="an import that saves the info first",
    witness=_import_wrong,
)
class ImportsPieceByPiece(EngineStore):
    """Writes what comes before a value that it refuses."""

    async def import_agent(self, agent_id: str, records: AgentRecords, **how: Any) -> None:
        try:
            await super().import_agent(agent_id, records, **how)
        except InvalidArgumentError:
            if type(records) is AgentRecords and type(records.events) is tuple and len(records.events) > 1:
                await self.save_todos(agent_id, samples.todos("left"))
            raise


async def _cancelled_import(ctx: Context) -> object:
    for steps in range(1, 60):
        call = asyncio.ensure_future(ctx.store.import_agent(f"a{steps}", records_to_import()))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        found = await ctx.store.load_agent(f"a{steps}")
        if found is not None and not found.events:
            return "a part"
    return "whole"


@mutant(
    "LIFE-8",
    killed_by="an_import_cancelled_at_any_step",
    source="an import that is a loop of saves",
    witness=_cancelled_import,
)
class ImportsEventsLast(EngineStore):
    """Imports an agent without its events, and appends these afterwards."""

    async def import_agent(self, agent_id: str, records: AgentRecords, **how: Any) -> None:
        if type(records) is not AgentRecords or not (records.info and records.events):
            return await super().import_agent(agent_id, records, **how)
        await super().import_agent(agent_id, records.replace(events=()), **how)
        await self.append_events(agent_id, records.events)


@mutant(
    "LIFE-8",
    killed_by="an_import_killed_at_its_calls",
    source="an import that is a loop of saves",
    on=OnSqlite,
    witness=_cancelled_import,
    slow=True,
)
class ImportsEventsLastInSqlite(ImportsEventsLast):
    """Imports an agent in SQLite without its events, and appends these afterwards."""


async def _cancelled_big_import(ctx: Context) -> object:
    for steps in range(1, 90):
        call = asyncio.ensure_future(ctx.store.import_agent(f"a{steps}", records_to_import(300)))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        found = await ctx.store.load_agent(f"a{steps}")
        if found is not None and not found.events:
            return "a part"
    return "whole"


@mutant(
    "LIFE-8",
    killed_by="an_import_of_many_killed_midway",
    source="an import in batches of a hundred",
    on=OnSqlite,
    witness=_cancelled_big_import,
    slow=True,
)
class ImportsManyEventsLast(EngineStore):
    """Imports an agent with more than a hundred events without them, and appends these afterwards."""

    async def import_agent(self, agent_id: str, records: AgentRecords, **how: Any) -> None:
        if type(records) is not AgentRecords or type(records.events) is not tuple or len(records.events) < 100:
            return await super().import_agent(agent_id, records, **how)
        await super().import_agent(agent_id, records.replace(events=()), **how)
        await self.append_events(agent_id, records.events)
