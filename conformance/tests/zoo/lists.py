"""Stores that get the two lists wrong (MSG and TC clauses)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from kode_conformance.context import Context
from msgspec.structs import replace

from conformance.tests.zoo.base import OnSqlite, mutant
from conformance.tests.zoo.witnesses import restart, seen, talk
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.batch import Batch, ListKind, ListRows, ListWrite, Outcome, Outline, Refused
from kode_core.engine import Engine
from kode_core.errors import StorageError
from kode_core.layers import Layer
from kode_core.model import Message
from kode_core.store import EngineStore


class Writes(Layer):
    """Changes the writes of one list."""

    kind = ListKind.MESSAGES

    def changed(self, write: ListWrite) -> ListWrite:
        raise NotImplementedError

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        name = self.kind.value
        writes = [(batch, getattr(batch, name)) for batch in batches]
        changed = [b if w is None else replace(b, **{name: self.changed(w)}) for b, w in writes]
        return await super().commit(changed)


# --- replacing --------------------------------------------------------------------------------------------------------

_SHORTER = seen(
    lambda s: s.save_messages("a", talk("1", "2", "3")),
    lambda s: s.save_messages("a", talk("1")),
    lambda s: s.load_messages("a"),
)


@mutant(
    "MSG-1",
    killed_by="save_replaces_the_whole_list",
    source="upserts by index",
    witness=_SHORTER,
    also=("MSG-1.concurrent_saves_have_one_order",),
)
class KeepsTheTail(Writes):
    """Leaves the old rows behind the end of a shorter list."""

    def changed(self, write: ListWrite) -> ListWrite:
        return replace(write, length=None)


@mutant(
    "MSG-1",
    killed_by="save_replaces_the_whole_list",
    source="`if messages:`",
    witness=seen(
        lambda s: s.save_messages("a", talk("1")),
        lambda s: s.save_messages("a", []),
        lambda s: s.load_messages("a"),
    ),
)
class IgnoresEmptyLists(EngineStore):
    """Takes an empty list for nothing to save."""

    async def save_messages(self, agent_id: str, messages: Sequence[Message], *, fence: Any = None) -> None:
        if len(messages):
            await super().save_messages(agent_id, messages, fence=fence)


@mutant(
    "MSG-1",
    killed_by="save_replaces_the_whole_list",
    source="rows keyed by a hash of their contents",
    witness=seen(lambda s: s.save_messages("a", talk("1", "1")), lambda s: s.load_messages("a")),
)
class DropsDuplicates(EngineStore):
    """Keeps one of two equal messages."""

    async def save_messages(self, agent_id: str, messages: Sequence[Message], *, fence: Any = None) -> None:
        once = {repr(message): message for message in messages}
        await super().save_messages(agent_id, list(once.values()), fence=fence)


@mutant(
    "MSG-2",
    killed_by="MSG-1.save_replaces_the_whole_list",
    source="KODE SDK SqliteStore: ORDER BY created_at without a tie-break, and all rows of a save have one time",
    witness=seen(lambda s: s.save_messages("a", talk("1", "2", "3", "4")), lambda s: s.load_messages("a")),
)
class OrdersMessagesByTime(Layer):
    """Loads messages by the time they were saved, and those of one time as they come."""

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        found = await super().rows(agent_id, kind)
        if kind is ListKind.TOOL_CALLS:
            return found
        return replace(found, rows=sorted(found.rows, key=lambda row: (row[1], row[0].digest)))


@mutant(
    "MSG-1",
    killed_by="lists_survive_a_restart",
    source="stores for tests that found their way into production",
    witness=seen(lambda s: s.save_messages("a", talk("1")), restart, lambda s: s.load_messages("a")),
)
class KeepsItToItself(Layer):
    """Keeps everything in the instance."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(MemoryEngine())


async def _load_and_clear(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("1"))
    (await ctx.store.load_messages("a")).clear()
    return await ctx.store.load_messages("a")


@mutant(
    "MSG-1", killed_by="callers_keep_their_lists", source="caches that hand out what they hold", witness=_load_and_clear
)
class SharesItsLists(EngineStore):
    """Gives every caller the same list object."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._given: dict[str, list[Message]] = {}

    async def save_messages(self, agent_id: str, messages: Sequence[Message], *, fence: Any = None) -> None:
        await super().save_messages(agent_id, messages, fence=fence)
        self._given.pop(agent_id, None)

    async def load_messages(self, agent_id: str) -> list[Message]:
        if agent_id not in self._given:
            self._given[agent_id] = await super().load_messages(agent_id)
        return self._given[agent_id]


async def _read_during_a_save(ctx: Context) -> object:
    await ctx.store.save_messages("a", talk("old", "old", "old", "old"))
    reader = await ctx.another()
    save = asyncio.ensure_future(ctx.store.save_messages("a", talk("new", "new", "new", "new")))
    mixed = False
    while not save.done():
        mixed |= len({m.text for m in await reader.load_messages("a")}) > 1
        await asyncio.sleep(0)
    return mixed


@mutant(
    "MSG-1",
    killed_by="readers_see_the_old_list_or_the_new_one",
    on=OnSqlite,
    source="KODE SDK JSONStore: files that are written in place, or through one temporary name",
    witness=_read_during_a_save,
)
class TearsLists(Layer):
    """Writes a list in two steps."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        for batch in batches:
            write = batch.messages
            if write is not None and len(write.put) > 1:
                half = len(write.put) // 2
                first = replace(batch, messages=replace(write, put=write.put[:half], append=()))
                (outcome,) = await super().commit([first])
                if isinstance(outcome, Refused):
                    outcomes.append(outcome)
                    continue
                await asyncio.sleep(0.005)
                rest = replace(write, expect=None, put=write.put[half:])
                batch = replace(batch, op_id=f"{batch.op_id}b", messages=rest)
            outcomes += await super().commit([batch])
        return outcomes


# --- appending --------------------------------------------------------------------------------------------------------


class LoadsAndSaves(EngineStore):
    """Appends by loading the list and saving it with the new messages."""

    async def append_messages(self, agent_id: str, messages: Sequence[Message], *, fence: Any = None) -> None:
        known = await self.load_messages(agent_id)
        await asyncio.sleep(0.005)
        await self.save_messages(agent_id, [*known, *messages], fence=fence)


async def _append_at_once(ctx: Context) -> object:
    other = await ctx.another()
    both = (ctx.store.append_messages("a", talk("1")), other.append_messages("a", talk("2")))
    await asyncio.gather(*both)
    return len(await ctx.store.load_messages("a"))


@mutant(
    "MSG-3",
    killed_by="concurrent_appends_are_both_kept",
    source="stores with no append",
    witness=_append_at_once,
)
class AppendsByReadAndWrite(LoadsAndSaves):
    """Appends by loading the list and saving it with the new messages."""


async def _append_at_once_often(ctx: Context) -> object:
    return [await _append_at_once(ctx) for _ in range(5)][-1]


@mutant(
    "MSG-3",
    killed_by="appends_of_several_processes_are_kept",
    on=OnSqlite,
    source="stores with no append",
    witness=_append_at_once_often,
    also=("MSG-1.processes_agree_on_one_order",),
)
class AppendsByReadAndWriteInFiles(LoadsAndSaves):
    """Appends by loading the list and saving it with the new messages, from several processes."""


_TAKING_TURNS = seen(
    lambda s, t: s.save_messages("a", talk("1", "2")),
    lambda s, t: t.append_messages("a", talk("3")),
    lambda s, t: s.save_messages("a", talk("1", "2", "x")),
    lambda s, t: t.load_messages("a"),
)


@mutant(
    "MSG-3",
    killed_by="saves_and_appends_follow_each_other",
    source="diffs against what this process remembers",
    witness=_TAKING_TURNS,
)
class IgnoresVersions(Writes):
    """Writes over what another instance wrote in between."""

    def changed(self, write: ListWrite) -> ListWrite:
        return replace(write, expect=None)


@mutant(
    "MSG-3",
    killed_by="saves_and_appends_follow_each_other",
    source="outlines that are read in another transaction",
    witness=seen(
        lambda s: s.save_messages("a", talk("1", "2")),
        restart,
        lambda s: s.save_messages("a", talk("1", "2")),
        lambda s: s.load_messages("a"),
    ),
)
class StaleOutline(Layer):
    """Tells the outline of a list without its last row."""

    async def outline(self, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Outline:
        found = await super().outline(agent_id, kind, keys)
        return replace(found, rows=found.rows[:-1], count=max(0, found.count - 1))


@mutant(
    "MSG-3",
    killed_by="saves_and_appends_follow_each_other",
    source="KODE SDK PostgresStore: of two savers of one agent one fails on idx_messages_agent_seq",
    witness=_TAKING_TURNS,
    raises="idx_messages_agent_seq",
)
class ConflictsAreErrors(Layer):
    """Fails when another instance wrote in between."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        problem = StorageError("duplicate key value violates unique constraint idx_messages_agent_seq")
        found = await super().commit(batches)
        return [problem if isinstance(o, Refused) and o.by == "messages" else o for o in found]
