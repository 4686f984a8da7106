"""Records of this library from one agent of the SDK, with remarks on everything that is not brought as it was."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from kode_core.codec import encode, from_dict
from kode_core.errors import InvalidValueError
from kode_core.formats.kode_sdk.raw import RawAgent, bookmark_of
from kode_core.model import (
    AgentInfo,
    AgentRecords,
    CompressionRecord,
    HistoryWindow,
    MediaCacheRecord,
    Message,
    Record,
    RecoveredFile,
    Snapshot,
    Timeline,
    TodoSnapshot,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
)
from kode_core.model.base import time_of_iso

__all__ = ["milliseconds", "records_of"]

R = TypeVar("R", bound=Record)

_OF_THE_SDK: Final = "kodeSdk"
"""The key in the metadata of an info under which the fields of the SDK's own stand."""
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_FAR: Final = 2**61
"""No time is further from the epoch."""
_NOT_BEFORE: Final = 1


def milliseconds(value: object) -> int | None:
    """A time that the SDK wrote: milliseconds, a text of them, or an ISO text; one without a zone is in UTC."""
    if type(value) is str and _NUMBER.fullmatch(value):
        value = float(value)
    if type(value) in (int, float):
        return int(value) if -_FAR < value < _FAR else None  # type: ignore[call-overload, operator]
    if type(value) is not str:
        return None
    try:
        return time_of_iso(value)
    except ValueError:
        return None


class _Reading:
    """Makes records of the values of one agent."""

    def __init__(self, raw: RawAgent) -> None:
        self._raw = raw
        self._found = raw.found
        self._time = self._earliest()

    def all(self, cls: type[R], values: Sequence[tuple[str, Any]], change: Callable[[Any, str], Any]) -> list[R]:
        """The records of *values*; ``found.damaged`` gets the others."""
        return [record for _, record in self.placed(cls, values, change)]

    def placed(
        self, cls: type[R], values: Sequence[tuple[str, Any]], change: Callable[[Any, str], Any]
    ) -> list[tuple[int, R]]:
        """As :meth:`all`, each with its index among the values."""
        found = []
        for i, (where, value) in enumerate(values):
            try:
                found.append((i, from_dict(cls, change(value, where), where)))
            except InvalidValueError as exc:
                self._found.damaged[str(exc)] += 1
        return found

    def timed(self, *names: str) -> Callable[[Any, str], Any]:
        """A change of records: the times *names* become milliseconds, and a missing one becomes the agent's time."""

        def change(value: Any, where: str) -> Any:
            if not isinstance(value, dict):
                return value
            times = dict[str, Any]()
            for name in names:
                given = value.get(name)
                if given is None:
                    self._found.changed[f"{where}: {name} was missing"] += 1
                time = self._time if given is None else milliseconds(given)
                times |= {} if time is None else {name: time}
            return {**value, **times}

        return change

    def info(self) -> AgentInfo | None:
        """The info, with the caller's metadata where queries look for it."""
        if self._raw.info is None:
            return None
        where, value = self._raw.info
        value = self.timed("createdAt")(value, where)
        if isinstance(value, dict):
            value = self._with_users_metadata(self._completed(value, where))
        found = self.all(AgentInfo, [(where, value)], _as_it_is)
        return found[0] if found else None

    def _completed(self, value: dict[str, Any], where: str) -> dict[str, Any]:
        """With the fields that the SDK sometimes leaves out."""
        given: dict[str, Any] = {"agentId": self._raw.agent_id, "metadata": {}, "lineage": [], "configVersion": ""}
        missing = {name: other for name, other in given.items() if value.get(name) is None}
        for name in sorted(missing):
            self._found.changed[f"{where}: {name} was missing"] += 1
        return {**value, **missing}

    def _with_users_metadata(self, value: dict[str, Any]) -> dict[str, Any]:
        """The SDK's ``Agent`` keeps the caller's metadata inside of its own; here it stands at the top."""
        own = value["metadata"]
        if not isinstance(own, dict) or own.get("agentId") is None or "configVersion" not in own:
            return value
        users, rest = own.get("metadata"), dict(own)
        if isinstance(users, dict):
            del rest["metadata"]
        else:
            users = {}
        name = _OF_THE_SDK
        while name in users:
            name += "_"
        self._found.changed[f"metadata: the caller's was moved to the top, the SDK's own to {name}"] += 1
        changed = {**value, "metadata": {**users, name: rest}}
        if changed.get("breakpoint") is None and isinstance(own.get("breakpoint"), str):
            changed["breakpoint"] = own["breakpoint"]
        return changed

    def _earliest(self) -> int:
        """A time for what has none, the same in each import: of the info, the first event or the folder."""
        info = self._raw.info[1] if self._raw.info is not None else None
        created = milliseconds(info.get("createdAt")) if isinstance(info, dict) else None
        if created is not None:
            return created
        first = [milliseconds(bookmark_of(entry).get("timestamp")) for _, entry in self._raw.events[:1]]
        return min([self._raw.saved_at or _NOT_BEFORE, *(time for time in first if time is not None)])

    def events(self) -> list[Timeline]:
        """The entries of the log; the same entry, which a store has once, is brought once."""
        seen, kept = set[tuple[int, bytes]](), list[Timeline]()
        for event in self.all(Timeline, self._raw.events, _as_it_is):
            key = (event.bookmark.seq, encode(Timeline, event, "an event").digest)
            if key in seen:
                self._found.changed["events: entries that were stored twice"] += 1
            else:
                seen.add(key)
                kept.append(event)
        return kept

    def keyed(self, records: list[R], key: Callable[[R], Any], noun: str) -> list[R]:
        """Records of which the newest of each key is kept."""
        last = {key(record): record for record in records}
        if len(last) < len(records):
            self._found.changed[f"{noun}: several under one id, of which the last was taken"] += len(records) - len(
                last
            )
        return list(last.values())


def _as_it_is(value: Any, where: str) -> Any:
    return value


def records_of(raw: RawAgent, *, recover: bool) -> AgentRecords:
    """The records of an agent; ``raw.found`` gets the remarks.

    With *recover*, the newest snapshot or history window replaces messages that the SDK has lost.
    """
    reading = _Reading(raw)
    info = reading.info()
    placed = reading.placed(Message, raw.messages, _as_it_is)
    messages = [message for _, message in placed]
    created, stamped = reading.timed("createdAt"), reading.timed("timestamp")
    tool_calls = reading.all(ToolCallRecord, raw.tool_calls, reading.timed("createdAt", "updatedAt"))
    snapshots = reading.keyed(reading.all(Snapshot, raw.snapshots, created), lambda one: one.id, "snapshots")
    windows = reading.keyed(reading.all(HistoryWindow, raw.windows, stamped), lambda one: one.id, "history windows")
    compressions = reading.all(CompressionRecord, raw.compressions, stamped)
    recovered = reading.all(RecoveredFile, [(at, _numbers(one)) for at, one in raw.recovered], stamped)
    media = reading.all(MediaCacheRecord, raw.media, created)
    todos = reading.all(TodoSnapshot, [raw.todos], reading.timed("updatedAt")) if raw.todos else []
    events = reading.events()
    lost = _lost(raw, info, len(raw.messages))
    if lost and recover and not messages:
        messages = _recovered(raw, snapshots, windows)
        placed = []
    updated_at = _updated_at(raw, info, tool_calls, events)
    if raw.message_times is not None and placed:
        times = [milliseconds(raw.message_times[i]) or updated_at for i, _ in placed]
    else:
        times = _estimated(messages, tool_calls, info, updated_at)
        if messages and raw.message_times is None:
            raw.found.changed["messages: the SDK kept no times; they got the times of their tool calls"] += 1
    return AgentRecords(
        agent_id=raw.agent_id,
        info=None if info is None else replace(info, message_count=len(messages)),
        updated_at=updated_at if messages or tool_calls or info is not None else None,
        messages=messages,
        message_times=times,
        tool_calls=tool_calls,
        todos=todos[0] if todos else None,
        history_windows=windows,
        compression_records=reading.keyed(compressions, lambda one: one.id, "compression records"),
        recovered_files=reading.keyed(recovered, lambda one: (one.path, one.timestamp), "recovered files"),
        media_cache=reading.keyed(media, lambda one: one.key, "media cache"),
        snapshots=snapshots,
        events=events,
    )


def _numbers(value: Any) -> Any:
    """The header of a recovered file with its numbers; the SDK writes whatever it was given there."""
    time = milliseconds(value["timestamp"])
    mtime = value["mtime"]
    number = float(mtime) if _NUMBER.fullmatch(mtime) and len(mtime) < 40 else 0
    return {**value, "timestamp": time, "mtime": int(number) if number == int(number) else number}


def _lost(raw: RawAgent, info: AgentInfo | None, stored: int) -> bool:
    """Whether the SDK has lost messages: its SQLite store removes them with each save of the info."""
    if info is None or info.message_count <= stored or any("messages" in remark for remark in raw.found.damaged):
        return False
    raw.found.lost[f"the info counts {info.message_count:,} messages, and {stored:,} are stored"] += 1
    return True


def _recovered(raw: RawAgent, snapshots: Sequence[Snapshot], windows: Sequence[HistoryWindow]) -> list[Message]:
    """The messages of the newest snapshot or window."""
    found: list[tuple[int, str, Sequence[Message]]] = [
        *((one.created_at, f"snapshot {one.id!r:.80}", one.messages) for one in snapshots if one.messages),
        *((one.timestamp, f"history window {one.id!r:.80}", one.messages) for one in windows if one.messages),
    ]
    if not found:
        raw.found.lost["no snapshot or history window has messages"] += 1
        return []
    _, what, messages = max(found, key=lambda one: (one[0], len(one[2])))
    raw.found.changed[f"messages: the {len(messages):,} of {what} replace the lost ones"] += 1
    return list(messages)


def _updated_at(
    raw: RawAgent, info: AgentInfo | None, tool_calls: Sequence[ToolCallRecord], events: Sequence[Timeline]
) -> int:
    """When the agent was last changed, as far as its records tell."""
    times = [call.updated_at for call in tool_calls] + [event.bookmark.timestamp for event in events]
    times += [time for time in map(milliseconds, raw.message_times or ()) if time is not None]
    if info is not None:
        own = raw.info[1].get("metadata") if raw.info is not None else None  # with the time of the last save
        told = milliseconds(own.get("updatedAt")) if isinstance(own, dict) else None
        times += [info.created_at, *([] if told is None else [told])]
        times += [info.last_bookmark.timestamp] if info.last_bookmark is not None else []
    return max([_NOT_BEFORE, *(time for time in times if time < _FAR)])


def _estimated(
    messages: Sequence[Message], tool_calls: Sequence[ToolCallRecord], info: AgentInfo | None, updated_at: int
) -> list[int]:
    """Times for messages that have none: the time of its tool call, or else of the message before."""
    asked = {call.id: call.created_at for call in reversed(tool_calls)}
    answered = {call.id: call.completed_at or call.updated_at for call in reversed(tool_calls)}
    time = min(info.created_at, updated_at) if info is not None else updated_at
    times = []
    for message in messages:
        for block in message.content:
            if isinstance(block, ToolUseBlock):
                time = max(time, min(asked.get(block.id, time), updated_at))
            elif isinstance(block, ToolResultBlock):
                time = max(time, min(answered.get(block.tool_use_id, time), updated_at))
        times.append(time)
    return times
