"""Edits of a list in place: take messages from its end, cut it, replace one message.

An edit is written only if the list still has the version from which it was planned, and planned anew otherwise, so that
no append of another writer is lost or edited by mistake.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from kode_core.batch import Fence, ListHead, ListKind, ListWrite
from kode_core.errors import InvalidArgumentError
from kode_core.model import Message
from kode_core.pace import Pace
from kode_core.store.context import Context
from kode_core.store.parts import checked_number, checked_position
from kode_core.store.reader import Reader
from kode_core.store.remembered import Remembered
from kode_core.store.rows import LISTS, check_class
from kode_core.store.writer import PlannedEdit, Writer

__all__ = ["MessageEdits"]

_KIND = ListKind.MESSAGES


def _required(number: int | None, name: str) -> int:
    if number is None:
        raise InvalidArgumentError(f"{name} must be an int, got None")
    return number


class MessageEdits:
    """Edits messages in place."""

    def __init__(self, context: Context, reader: Reader, writer: Writer) -> None:
        self._context = context
        self._reader = reader
        self._writer = writer

    async def pop(self, agent_id: str, fence: Fence | None, count: int) -> list[Message]:
        """Remove the last messages, and return them."""
        count = _required(checked_number(count, "count"), "count")

        async def plan(head: ListHead, known: Remembered | None) -> PlannedEdit | None:
            start = max(0, head.count - count)
            if start == head.count:
                return PlannedEdit([])
            rows = await self._context.engine.rows_at(agent_id, _KIND, start, head.count - start)
            if rows.version != head.version:
                return None
            taken = await self._reader.decoded(agent_id, _KIND, rows.rows, start)  # a damaged one is not removed
            return _cut(head, start, taken)

        popped: list[Message] = await self._writer.edit(agent_id, _KIND, plan, fence)
        return popped

    async def truncate(self, agent_id: str, fence: Fence | None, length: int, expect: str | None) -> int:
        """Cut the list to *length*, and return how many messages were removed."""
        length = _required(checked_number(length, "length"), "length")

        async def plan(head: ListHead, known: Remembered | None) -> PlannedEdit | None:
            if length >= head.count:
                return PlannedEdit(0)
            return _cut(head, length, head.count - length)

        removed: int = await self._writer.edit(agent_id, _KIND, plan, fence, expect)
        return removed

    async def replace(
        self, agent_id: str, fence: Fence | None, place: int, message: Message, expect: str | None
    ) -> None:
        """Replace the message at a position, which keeps the position's time (MSG-4)."""
        place = _required(checked_position(place, "position"), "position")
        check_class(Message, message, "message")
        one = await LISTS[_KIND].row(place, message, self._context.now(), Pace())

        async def plan(head: ListHead, known: Remembered | None) -> PlannedEdit | None:
            if place >= head.count:
                raise InvalidArgumentError(
                    f"agent {agent_id!r} has {head.count} messages and none at position {place}; "
                    "append_messages adds one at the end"
                )
            if known is not None:
                created_at = known.created[place]
            else:
                rows = await self._context.engine.rows_at(agent_id, _KIND, place, 1)
                if rows.version != head.version:
                    return None
                created_at = rows.rows[0][1]
            row = replace(one.row, created_at=created_at)

            def note(known: Remembered) -> None:
                known.hold(place, message, one.proof)
                known.put(place, row)

            return PlannedEdit(None, ListWrite(expect=head.version, put=((place, row),)), note)

        await self._writer.edit(agent_id, _KIND, plan, fence, expect)


def _cut(head: ListHead, length: int, result: Any) -> PlannedEdit:
    """The edit that cuts a list."""
    return PlannedEdit(result, ListWrite(expect=head.version, length=length), lambda known: known.cut(length))
