"""The methods of the public store for messages, tool calls and turns; :mod:`kode_core.protocols` documents them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, overload

from kode_core.batch import ListKind
from kode_core.errors import InvalidArgumentError
from kode_core.ids import check_agent_id, quoted
from kode_core.model import (
    AgentInfo,
    DocumentWrite,
    Message,
    StoredMessage,
    Timeline,
    TodoSnapshot,
    ToolCallRecord,
)
from kode_core.protocols import Lease
from kode_core.query import OnCorrupt, Page
from kode_core.store import rows
from kode_core.store.base import StoreBase
from kode_core.store.documents import documents_of
from kode_core.store.kinds import TODOS
from kode_core.store.lists import Append, Replace, Upsert
from kode_core.store.parts import Span
from kode_core.store.steps import checked_flag
from kode_core.store.writer import ListEdit, ListHow, Rest, TurnWrites

__all__ = ["ConversationMethods"]


class ConversationMethods(StoreBase):
    """The lists of one agent."""

    async def save_messages(
        self,
        agent_id: str,
        messages: Sequence[Message],
        *,
        expect: str | None = None,
        fence: Lease | None = None,
    ) -> None:
        await self._save(
            "save_messages", agent_id, fence, lambda: TurnWrites(_messages(Replace, messages), expect=expect)
        )

    async def append_messages(self, agent_id: str, messages: Sequence[Message], *, fence: Lease | None = None) -> None:
        await self._save("append_messages", agent_id, fence, lambda: TurnWrites(_messages(Append, messages)))

    @overload
    async def load_messages(
        self,
        agent_id: str,
        *,
        last: int | None = None,
        after: int | None = None,
        before: int | None = None,
        on_corrupt: Literal["raise"] = "raise",
    ) -> list[Message]: ...

    @overload
    async def load_messages(
        self,
        agent_id: str,
        *,
        last: int | None = None,
        after: int | None = None,
        before: int | None = None,
        on_corrupt: Literal["skip"],
    ) -> Page[Message]: ...

    async def load_messages(
        self,
        agent_id: str,
        *,
        last: int | None = None,
        after: int | None = None,
        before: int | None = None,
        on_corrupt: OnCorrupt = "raise",
    ) -> list[Message]:
        given = (last, after, before, on_corrupt)
        return await self._load("load_messages", agent_id, self._list, ListKind.MESSAGES, *given)

    async def _list(
        self,
        agent_id: str,
        kind: ListKind,
        last: int | None,
        after: int | None,
        before: int | None,
        on_corrupt: Any,
    ) -> list[Any]:
        span = Span.of(after, before, last)
        if type(on_corrupt) is not str or on_corrupt not in ("raise", "skip"):
            raise InvalidArgumentError(f'on_corrupt must be "raise" or "skip", got {quoted(on_corrupt)}')
        if on_corrupt == "skip":
            return await self._list_parts.load_readable(agent_id, kind, span)
        if span.is_whole:
            return await self._reader.load_list(agent_id, kind)
        return await self._list_parts.load(agent_id, kind, span)

    def read_messages(
        self, agent_id: str, *, after: int | None = None, before: int | None = None, reverse: bool = False
    ) -> AsyncIterator[StoredMessage]:
        span, backwards = Span.of(after, before), checked_flag(reverse, "reverse")
        found = self._list_parts.stream(self._context.run, check_agent_id(agent_id), span, reverse=backwards)
        return self._iterated("read_messages", agent_id, found)

    async def pop_messages(self, agent_id: str, count: int = 1, *, fence: Lease | None = None) -> list[Message]:
        return await self._fenced("pop_messages", agent_id, fence, self._edits.pop, count)

    async def truncate_messages(
        self, agent_id: str, length: int, *, expect: str | None = None, fence: Lease | None = None
    ) -> int:
        return await self._fenced("truncate_messages", agent_id, fence, self._edits.truncate, length, expect)

    async def replace_message(
        self,
        agent_id: str,
        position: int,
        message: Message,
        *,
        expect: str | None = None,
        fence: Lease | None = None,
    ) -> None:
        await self._fenced("replace_message", agent_id, fence, self._edits.replace, position, message, expect)

    async def save_tool_call_records(
        self,
        agent_id: str,
        records: Sequence[ToolCallRecord],
        *,
        expect: str | None = None,
        fence: Lease | None = None,
    ) -> None:
        await self._save(
            "save_tool_call_records", agent_id, fence, lambda: TurnWrites(_calls(Replace, records), expect=expect)
        )

    async def upsert_tool_call_records(
        self, agent_id: str, records: Sequence[ToolCallRecord], *, fence: Lease | None = None
    ) -> None:
        await self._save("upsert_tool_call_records", agent_id, fence, lambda: TurnWrites(_calls(Upsert, records)))

    @overload
    async def load_tool_call_records(
        self,
        agent_id: str,
        *,
        last: int | None = None,
        after: int | None = None,
        before: int | None = None,
        on_corrupt: Literal["raise"] = "raise",
    ) -> list[ToolCallRecord]: ...

    @overload
    async def load_tool_call_records(
        self,
        agent_id: str,
        *,
        last: int | None = None,
        after: int | None = None,
        before: int | None = None,
        on_corrupt: Literal["skip"],
    ) -> Page[ToolCallRecord]: ...

    async def load_tool_call_records(
        self,
        agent_id: str,
        *,
        last: int | None = None,
        after: int | None = None,
        before: int | None = None,
        on_corrupt: OnCorrupt = "raise",
    ) -> list[ToolCallRecord]:
        given = (last, after, before, on_corrupt)
        return await self._load("load_tool_call_records", agent_id, self._list, ListKind.TOOL_CALLS, *given)

    async def save_turn(
        self,
        agent_id: str,
        *,
        append: Sequence[Message] = (),
        messages: Sequence[Message] | None = None,
        tool_calls: Sequence[ToolCallRecord] | None = None,
        upsert_tool_calls: Sequence[ToolCallRecord] = (),
        todos: TodoSnapshot | None = None,
        info: AgentInfo | None = None,
        events: Sequence[Timeline] = (),
        documents: Sequence[DocumentWrite] = (),
        expect: str | None = None,
        fence: Lease | None = None,
    ) -> Sequence[int]:
        def build() -> TurnWrites:
            added, upserted = _given(append, "append"), _given(upsert_tool_calls, "upsert_tool_calls")
            if messages is not None and added:
                raise InvalidArgumentError("give messages, which replaces, or append, which adds; not both")
            if tool_calls is not None and upserted:
                raise InvalidArgumentError("give tool_calls, which replaces, or upsert_tool_calls; not both")
            taken = rows.records_of(Timeline, events, "events")

            own = documents_of(documents)

            async def rest() -> Rest:
                return Rest(
                    docs=(
                        *(() if todos is None else (await TODOS.write(todos),)),
                        *await self._documents.writes(own),
                    ),
                    info=None if info is None else await rows.info_of(agent_id, info),
                    events=await rows.event_writes(taken),
                )

            return TurnWrites(
                lists={
                    **({} if messages is None else _messages(Replace, messages)),
                    **(_messages(Append, append) if added else {}),
                    **({} if tool_calls is None else _calls(Replace, tool_calls)),
                    **(_calls(Upsert, upsert_tool_calls) if upserted else {}),
                },
                encode_rest=rest,
                expect=expect,
            )

        return await self._save("save_turn", agent_id, fence, build)


def _given(records: object, what: str) -> bool:
    """True if an optional list has entries."""
    if not isinstance(records, (list, tuple)):
        raise InvalidArgumentError(f"{what} must be a list, got {type(records).__name__}")
    return len(records) > 0


def _messages(how: ListHow, messages: Sequence[Message]) -> dict[ListKind, ListEdit]:
    return {ListKind.MESSAGES: ListEdit(how, rows.records_of(Message, messages, "messages"))}


def _calls(how: ListHow, records: Sequence[ToolCallRecord]) -> dict[ListKind, ListEdit]:
    return {ListKind.TOOL_CALLS: ListEdit(how, rows.records_of(ToolCallRecord, records, "records"))}
