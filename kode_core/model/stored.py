"""Records that include the place where they are stored."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from kode_core.model.base import Record, Shown, to_datetime
from kode_core.model.runtime import Message, Timeline, ToolCallRecord


def _same_record(stored: Record, other: object, base: type[Record], added: Iterable[str]) -> bool:
    if not isinstance(other, base):
        return False
    names = base.__struct_fields__
    if isinstance(other, type(stored)):
        names = (*names, *added)
    return all(bool(getattr(stored, name) == getattr(other, name)) for name in names)


def _is_other(stored: Record, other: object) -> bool:
    """``!=`` of the records here: msgspec's own compares all fields, whatever ``__eq__`` says."""
    return not stored == other  # noqa: SIM201 - the other operator is this function


class AppendedMessage(Shown, frozen=True):
    """The place of a message that ``append_messages_once`` appended, in this call or an earlier one (MSG-12).

    Attributes:
        position: its index in the list when it was appended; edits of the list may have moved or removed it since.
        is_new: True if this call appended it.
    """

    position: int
    is_new: bool


class StoredMessage(Message, frozen=True, kw_only=True, eq=False):
    """A message found by a query: equal to the :class:`Message` that was saved, with its place in the store.

    Attributes:
        agent_id: the agent that it belongs to.
        position: its index in ``load_messages``.
        created_at: when the store first saw it, in milliseconds since the epoch (MSG-4).
    """

    agent_id: str
    position: int
    created_at: int

    def __eq__(self, other: object) -> bool:
        return _same_record(self, other, Message, ("agent_id", "position", "created_at"))

    __ne__ = _is_other

    @property
    def created_time(self) -> datetime:
        """``created_at`` as an aware datetime in UTC; raises as ``to_datetime`` does."""
        return to_datetime(self.created_at)


class StoredToolCall(ToolCallRecord, frozen=True, kw_only=True, eq=False):
    """A tool call found by a query: equal to the :class:`ToolCallRecord` that was saved, with its place in the store.

    Attributes:
        agent_id: the agent that it belongs to.
        position: its index in ``load_tool_call_records``.
    """

    agent_id: str
    position: int

    def __eq__(self, other: object) -> bool:
        return _same_record(self, other, ToolCallRecord, ("agent_id", "position"))

    __ne__ = _is_other


class StoredEvent(Timeline, frozen=True, kw_only=True, eq=False):
    """An event read from a store: equal to the :class:`Timeline` that was appended, with its offset.

    Attributes:
        offset: grows in the order of commit and never repeats (EVT-2); resume a reader with ``after_offset``.
    """

    offset: int

    def __eq__(self, other: object) -> bool:
        return _same_record(self, other, Timeline, ("offset",))

    __ne__ = _is_other
