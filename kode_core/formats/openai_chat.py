"""Conversations in the OpenAI chat format, converted to records of agents.

::

    converter = ChatConverter(template="support", prefix="run")
    for raw in read_conversations("runs.jsonl.gz"):
        await import_conversation(store, converter.convert(raw))

A file is a JSON list, JSON Lines or a single conversation, gzipped or not. A conversation is a list of chat messages,
or an object that has the list under ``messages`` or ``traj``. Each becomes one agent:

- Its id is the conversation's ``id``, ``conversation_id`` or ``session_id``. Without one it is
  ``<prefix>-<task_id>-<trial>`` for runs of tau-bench, and ``<prefix>-<hash of the messages>`` for all others.
- Each chat message is one message at the same position. A tool's answer is a user's message with a tool result, as in
  the KODE SDK. ``developer`` becomes ``system``.
- Each call of a tool is a tool call record. It FAILED when the answer begins with "Error", and is PENDING without one.
- The fields of the object, and the remaining fields of a message, are its metadata: names in camelCase, without nulls
  and without lists and objects of more than 500 characters. ``source`` is the name of the file.
- The format has no times of its own. A message takes its time from its ``created_at``, ``created`` or ``timestamp``, if
  that is understood; the first message otherwise from the object's ``created`` or ``created_at``. A message without a
  time is a second later than the one before it. Messages, tool calls, events and ``updated_at`` have these times. If
  the file has no times, they begin at 2025-01-01T00:00:00Z, but for ``updated_at``, which is the time of the import: so
  no clean-up takes an agent that is new in the store.

So the same file gives the same records each time, and importing it again writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Final, Literal, NamedTuple

from kode_core.errors import InvalidArgumentError
from kode_core.formats.chat_calls import ChatCall, call_record, is_failure, match_calls
from kode_core.formats.chat_events import chat_events
from kode_core.formats.chat_messages import ChatMessage, at, kind_of, metadata_of, read_message
from kode_core.formats.documents import Document, read_documents
from kode_core.ids import check_agent_id, quoted
from kode_core.jsonvalue import encode_json
from kode_core.model import (
    AgentInfo,
    Json,
    Message,
    Record,
    Snapshot,
    Timeline,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    now_ms,
)
from kode_core.pace import Pace
from kode_core.protocols import Store
from kode_core.store.dated import dated

__all__ = [
    "BASE_MS",
    "ChatConverter",
    "ImportedConversation",
    "RawConversation",
    "import_conversation",
    "read_conversations",
]

BASE_MS: Final = 1_735_689_600_000
"""The start of conversations without a time: 2025-01-01T00:00:00Z."""
_STEP_MS: Final = 1_000

_MESSAGES: Final = ("messages", "traj")
_IDS: Final = ("id", "conversation_id", "session_id")
_CREATED: Final = ("created", "created_at")
_MESSAGE_TIMES: Final = ("created_at", "createdAt", "created", "timestamp")


class RawConversation(NamedTuple):
    """A conversation as it is in a file, before it is converted.

    Attributes:
        place: its name in errors: the file, and its number there, from 1.
        source: the name of the file, without folders.
    """

    place: str
    source: str
    document: Document


class ImportedConversation(NamedTuple):
    """All records of a conversation.

    Attributes:
        times: when each message was written, in milliseconds since the epoch.
        has_times: whether the source tells these times; otherwise they begin at :data:`BASE_MS`.
    """

    place: str
    info: AgentInfo
    messages: Sequence[Message]
    tool_calls: Sequence[ToolCallRecord]
    events: Sequence[Timeline]
    snapshot: Snapshot
    times: Sequence[int]
    has_times: bool

    @property
    def agent_id(self) -> str:
        """The agent of the conversation."""
        return self.info.agent_id

    @property
    def failed(self) -> int:
        """The number of tool calls that failed."""
        return sum(call.state == "FAILED" for call in self.tool_calls)


def read_conversations(path: str | Path) -> Iterator[RawConversation]:
    """The conversations of a file, one at a time.

    Raises:
        InvalidArgumentError: the file cannot be read or unpacked, or is neither JSON nor JSON Lines. A problem inside a
            conversation is raised when it is converted, and the others stay readable.
    """
    path = Path(path)
    for document in read_documents(path, _is_message):
        yield RawConversation(f"{path}: conversation {document.number}", path.name, document)


def _is_message(value: Json) -> bool:
    return type(value) is dict and "role" in value and not any(name in value for name in _MESSAGES)


async def import_conversation(store: Store, conversation: ImportedConversation, *, replace: bool = False) -> bool:
    """Write a conversation: its messages, tool calls, events and info in one commit, then its snapshot.

    A conversation that is already stored unchanged is left as it is. With *replace*, the agent's former records are
    replaced, except for events: a log only grows, and existing events are not written again (EVT-4).

    Returns:
        True if anything was written.

    Raises:
        InvalidArgumentError: the agent exists and differs, or a value cannot be stored; nothing was written.
    """
    with at(conversation.place):
        there = await _there(store, conversation)
        if there == "whole":
            return False
        if there == "other" and not replace and await _is_taken(store, conversation.agent_id):
            raise InvalidArgumentError(
                f"agent {conversation.agent_id!r:.80} is there already and differs; overwrite it with replace, "
                "or give another prefix"
            )
        with dated(conversation.times, None if conversation.has_times else now_ms()):
            if there == "other":
                await store.save_turn(
                    conversation.agent_id,
                    messages=conversation.messages,
                    tool_calls=conversation.tool_calls,
                    info=conversation.info,
                    events=conversation.events,
                )
            await store.save_snapshot(conversation.agent_id, conversation.snapshot)
    return True


async def _there(store: Store, conversation: ImportedConversation) -> Literal["whole", "turn", "other"]:
    """The part of a conversation that is stored; an import that was interrupted leaves the turn without a snapshot."""
    agent_id, pace = conversation.agent_id, Pace()
    if await store.load_info(agent_id) != conversation.info:
        return "other"
    if not await _are_same(await store.load_messages(agent_id), conversation.messages, pace):
        return "other"
    if not await _are_same(await store.load_tool_call_records(agent_id), conversation.tool_calls, pace):
        return "other"
    snapshot = await store.load_snapshot(agent_id, conversation.snapshot.id)
    if snapshot is None:
        return "turn"
    if not await _are_same(snapshot.messages, conversation.snapshot.messages, pace):
        return "other"
    return "whole" if snapshot.replace(messages=()) == conversation.snapshot.replace(messages=()) else "other"


async def _are_same(stored: Sequence[Record], given: Sequence[Record], pace: Pace) -> bool:
    """True if two lists are equal; compared in slices (OPS-15)."""
    if len(stored) != len(given):
        return False
    for one, other in zip(stored, given, strict=True):
        if one != other:
            return False
        await pace.yield_to_loop()
    return True


async def _is_taken(store: Store, agent_id: str) -> bool:
    return await store.exists(agent_id) or bool(await store.load_messages(agent_id))


class ChatConverter:
    """Converts the conversations of one import to records, and makes sure that no two become the same agent.

    Args:
        template: ``template_id`` of the agents.
        prefix: the start of agent ids for conversations without an id; by default the file's name up to the first dot.
    """

    def __init__(self, template: str = "openai-chat", prefix: str | None = None) -> None:
        self._template = template
        self._prefix = prefix
        self._places: dict[str, str] = {}
        self._same: Counter[str] = Counter()

    def convert(self, raw: RawConversation) -> ImportedConversation:
        """The records of a conversation.

        Raises:
            InvalidArgumentError: it is malformed; the message names the file, the conversation and the place, as in
                ``runs.jsonl: conversation 17: message 3: role 'x' …``. Messages are counted from 0, as in the store.
        """
        with at(raw.place):
            fields, raw_messages = _opened(raw.document.value())
            chat = [_understood(message, i) for i, message in enumerate(raw_messages)]
            agent_id = self._agent_id(raw, fields, raw_messages)
            created = _created(fields)
            times = _times(created, raw_messages)
            info = AgentInfo(
                agent_id=agent_id,
                template_id=self._template,
                created_at=BASE_MS if created is None and not times else times[0],
                breakpoint="READY",
                metadata={**metadata_of(_besides(fields)), "source": raw.source},
            )
            imported = _imported(raw.place, info, chat, times)
            self._places[agent_id] = raw.place
            return imported

    def _agent_id(self, raw: RawConversation, fields: Mapping[str, Json], messages: Sequence[Json]) -> str:
        agent_id = _own_id(fields) or self._made_id(raw, fields, messages)
        if agent_id in self._places:
            raise InvalidArgumentError(
                f"its agent {agent_id!r:.80} is {self._places[agent_id]} already; give each conversation its own id"
            )
        return check_agent_id(agent_id)

    def _made_id(self, raw: RawConversation, fields: Mapping[str, Json], messages: Sequence[Json]) -> str:
        prefix = raw.source.split(".")[0] if self._prefix is None else self._prefix
        task, trial = fields.get("task_id"), fields.get("trial")
        if type(task) is int and type(trial) is int:
            return f"{prefix}-{task:03d}-{trial}"
        text = encode_json(messages, "messages")
        agent_id = f"{prefix}-{blake2b(text.encode(), digest_size=8).hexdigest()}"
        self._same[agent_id] += 1
        return agent_id if self._same[agent_id] == 1 else f"{agent_id}-{self._same[agent_id]}"


# --- A conversation and its own fields --------------------------------------------------------------------------------


def _opened(value: Json) -> tuple[dict[str, Json], list[Json]]:
    """The object's fields, empty if there is no object, and the messages."""
    fields = value if type(value) is dict else {"messages": value}
    found = [name for name in _MESSAGES if name in fields]
    if not found:
        raise InvalidArgumentError("it has no list of messages, neither under 'messages' nor under 'traj'")
    messages = fields[found[0]]
    if type(messages) is not list:
        raise InvalidArgumentError(f"{found[0]} must be a list of messages, got {kind_of(messages)}")
    if not messages:
        raise InvalidArgumentError(f"{found[0]} is empty")
    return fields, messages


def _understood(raw: Json, index: int) -> ChatMessage:
    with at(f"message {index}"):
        return read_message(raw, index)


def _own_id(fields: Mapping[str, Json]) -> str | None:
    for name in _IDS:
        value = fields.get(name)
        if type(value) is int:
            return str(value)
        if value is not None:
            with at(name):
                return check_agent_id(value)
    return None


def _besides(fields: Mapping[str, Json]) -> dict[str, Json]:
    known = (*_MESSAGES, *_IDS, *_CREATED)
    return {name: value for name, value in fields.items() if name not in known}


def _created(fields: Mapping[str, Json]) -> int | None:
    for name in _CREATED:
        if fields.get(name) is not None:
            with at(name):
                return _time_ms(fields[name])
    return None


def _times(created: int | None, messages: Sequence[Json]) -> list[int]:
    """When each message was written, as far as the source tells; empty if it tells nothing.

    A message without a time is a second later than the one before it, and no message is older than the one before it.
    """
    given = [_given_time(message) for message in messages]
    known = [time for time in given if time is not None]
    if created is None and not known:
        return []
    times = [given[0] if given[0] is not None else created if created is not None else known[0]]
    for time in given[1:]:
        times.append(times[-1] + _STEP_MS if time is None else max(time, times[-1]))
    return times


def _given_time(message: Json) -> int | None:
    """The time that a message gives for itself, in a form that is understood; other forms stay in its metadata."""
    for name in _MESSAGE_TIMES:
        value = message.get(name) if type(message) is dict else None
        if value is not None:
            with suppress(InvalidArgumentError):
                time = _time_ms(value)
                if abs(time) < _LAST_MS:
                    return time
    return None


def _time_ms(value: Json) -> int:
    """A time as seconds or milliseconds since the epoch, or in ISO 8601; without a time zone it is UTC."""
    try:
        if type(value) is str:
            moment = datetime.fromisoformat(value)
            return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return round(value if abs(value) >= _FIRST_MS else value * 1000)
    except (ValueError, OverflowError):
        pass
    raise InvalidArgumentError(f"{quoted(value)} is no time; write seconds since the epoch or 2025-01-31T12:00:00Z")


_LAST_MS: Final = 10**15  # the year 33658: greater values are not times
_FIRST_MS: Final = 100_000_000_000  # as milliseconds that is 1973, as seconds it is the year 5138


# --- Records ----------------------------------------------------------------------------------------------------------


def _imported(source: str, info: AgentInfo, chat: Sequence[ChatMessage], given: Sequence[int]) -> ImportedConversation:
    times = given or [info.created_at + i * _STEP_MS for i in range(len(chat))]
    calls = match_calls(chat)
    records = [call_record(call, chat, times) for call in calls]
    answered = {call.answered: call for call in calls}
    messages = [_message(message, answered.get(i)) for i, message in enumerate(chat)]
    events = chat_events(messages, calls, records, times)
    last, bookmark = len(messages) - 1, events[-1].bookmark
    snapshot = Snapshot(
        id=f"sfp-{last}", messages=messages, last_sfp_index=last, last_bookmark=bookmark, created_at=times[-1]
    )
    info = info.replace(message_count=len(messages), last_sfp_index=last, last_bookmark=bookmark)
    return ImportedConversation(source, info, messages, records, events, snapshot, times, bool(given))


def _message(message: ChatMessage, answers: ChatCall | None) -> Message:
    """The message; *answers* is the call whose result it carries."""
    content = [*message.blocks, *(ToolUseBlock(call.id, call.name, call.input) for call in message.requests)]
    if answers is not None and message.result is not None:
        result = message.result.content
        content.append(ToolResultBlock(answers.request.id, result, is_failure(result)))
    return Message(message.role, content, message.metadata)
