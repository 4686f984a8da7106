"""Stores that do not keep records as they are given, or take arguments that are no records (VAL-1, TC-1)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import Wrapper, mutant
from conformance.tests.zoo.witnesses import happened, seen
from kode_core import to_json
from kode_core.model import HistoryWindow, Message, TodoSnapshot, ToolCallAuditEntry, ToolCallRecord, ToolResultBlock
from kode_core.store import EngineStore

T = TypeVar("T")

# --- in whose hands they are ------------------------------------------------------------------------------------------


async def _saved_and_changed(ctx: Context) -> object:
    value = [1]
    await ctx.store.save_messages("a", [Message("user", [ToolResultBlock("c", value)])])
    value.append(2)
    return await ctx.store.load_messages("a")


@mutant(
    "VAL-1",
    killed_by="records_are_the_callers",
    source="write-through caches that keep the caller's objects",
    witness=_saved_and_changed,
)
class KeepsWhatItIsGiven(Wrapper):
    """Gives back the messages that it was given, as they are by now."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._given: dict[str, Message] = {}

    async def save_messages(self, agent_id: str, messages: Sequence[Message], *, fence: Any = None) -> None:
        await self.inner.save_messages(agent_id, messages, fence=fence)
        self._given.update((repr(message), message) for message in messages)

    async def load_messages(self, agent_id: str) -> list[Message]:
        return [self._given.get(repr(message), message) for message in await self.inner.load_messages(agent_id)]


async def _large_and_changed(ctx: Context) -> object:
    await ctx.store.save_snapshot("a", samples.snapshot("s").replace(metadata={"text": "x" * 2**17, "of": [1]}))
    for _ in range(2):
        found = await ctx.store.load_snapshot("a", "s")
        assert found is not None
        found.metadata["of"].append(2)
    return found.metadata["of"]


@mutant(
    "VAL-1",
    killed_by="every_large_answer_is_the_callers",
    source="a cache of blobs, which large values are worth, and small ones are not",
    witness=_large_and_changed,
)
class KeepsLargeSnapshotsDecoded(EngineStore):
    """Gives every caller the same snapshot if it is larger than 64 KB."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        self._decoded: dict[bytes, Any] = {}

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Any:
        found = await super().load_snapshot(agent_id, snapshot_id)
        text = to_json(found) if found is not None else b""
        return found if len(text) < 2**16 else self._decoded.setdefault(text, found)


async def _loaded_and_changed(ctx: Context) -> object:
    await ctx.store.save_tool_call_records("a", [samples.tool_call(result=[1])])
    (call,) = await ctx.store.load_tool_call_records("a")
    call.result.append(2)
    return await ctx.store.load_tool_call_records("a")


@mutant(
    "VAL-1",
    killed_by="records_are_the_callers",
    source="caches of decoded records: lru_cache around json.loads",
    witness=_loaded_and_changed,
)
class DecodesOnce(Wrapper):
    """Decodes what is stored once, and gives everybody the same object."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._decoded: dict[str, Any] = {}

    async def _once(self, load: Awaitable[list[T]]) -> list[T]:
        return [self._decoded.setdefault(repr(record), record) for record in await load]

    async def load_messages(self, agent_id: str) -> list[Message]:
        return await self._once(self.inner.load_messages(agent_id))

    async def load_tool_call_records(self, agent_id: str) -> list[ToolCallRecord]:
        return await self._once(self.inner.load_tool_call_records(agent_id))


# --- lists inside -----------------------------------------------------------------------------------------------------

_BACK = [ToolCallAuditEntry("B", 9), ToolCallAuditEntry("A", 5)]


@mutant(
    "VAL-1",
    killed_by="lists_inside_records_keep_their_order",
    source="a table of trails: ORDER BY timestamp",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(audit_trail=_BACK)]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class SortsTheTrail(EngineStore):
    """Gives the audit trail of a call in the order of its times."""

    async def load_tool_call_records(self, agent_id: str) -> list[ToolCallRecord]:
        found = await super().load_tool_call_records(agent_id)
        return [call.replace(audit_trail=sorted(call.audit_trail, key=lambda e: e.timestamp)) for call in found]


async def _todos(ctx: Context) -> object:
    first, second = samples.todos("x", "y").todos
    await ctx.store.save_todos("a", TodoSnapshot(todos=[second, first, second], updated_at=1))
    return await ctx.store.load_todos("a")


@mutant(
    "VAL-1",
    killed_by="lists_inside_records_keep_their_order",
    source="a table of todos: PRIMARY KEY (agent_id, id)",
    witness=_todos,
)
class TodosById(EngineStore):
    """Keeps one todo of each id, in the order of the ids."""

    async def load_todos(self, agent_id: str) -> TodoSnapshot | None:
        found = await super().load_todos(agent_id)
        return found and found.replace(todos=[todo for _, todo in sorted({t.id: t for t in found.todos}.items())])


@mutant(
    "VAL-1",
    killed_by="lists_inside_records_keep_their_order",
    source="a table of the events of windows: ORDER BY seq",
    witness=seen(
        lambda s: s.save_history_window("a", samples.window().replace(events=happened(2, 1))),
        lambda s: s.load_history_windows("a"),
    ),
)
class WindowEventsBySeq(EngineStore):
    """Gives the events of a window in the order of their seq."""

    async def load_history_windows(self, agent_id: str) -> list[HistoryWindow]:
        found = await super().load_history_windows(agent_id)
        return [window.replace(events=sorted(window.events, key=lambda e: e.bookmark.seq)) for window in found]


# --- arguments that are no records ------------------------------------------------------------------------------------


@mutant(
    "TC-1",
    killed_by="wrong_records_are_refused",
    source="types that nothing looks at when it runs",
    witness=seen(lambda s: s.save_todos("a", {"todos": []})),
)
class TakesAnyTodos(EngineStore):
    """Takes todos that are none, and keeps nothing of them."""

    async def save_todos(self, agent_id: str, snapshot: TodoSnapshot, *, fence: Any = None) -> None:
        if isinstance(snapshot, TodoSnapshot):
            await super().save_todos(agent_id, snapshot, fence=fence)


# --- text -------------------------------------------------------------------------------------------------------------


@mutant(
    "VAL-1",
    killed_by="any_json_value_comes_back_exactly",
    source="logs that are files opened in text mode",
    witness=seen(
        lambda s: s.append_event("a", samples.event(0, text="x\r\ny")),
        lambda s: s.read_events("a"),
    ),
)
class UnixNewlinesInEvents(EngineStore):
    """Turns CR LF and CR inside events into LF."""

    async def read_events(self, agent_id: str, **how: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        async for event in super().read_events(agent_id, **how):
            yield event.replace(event=replace(event.event, data=_unix(event.event.data)))


def _unix(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("\r", "\n")
    if isinstance(value, dict):
        return {key: _unix(inside) for key, inside in value.items()}
    return [_unix(inside) for inside in value] if isinstance(value, list) else value
