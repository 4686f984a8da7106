"""The event log of a chat, as an agent of the KODE SDK would have written it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from kode_core.formats.chat_calls import ChatCall
from kode_core.model import AgentChannel, AgentEvent, Bookmark, Json, Message, Timeline, ToolCallRecord

__all__ = ["chat_events"]


def chat_events(
    messages: Sequence[Message], calls: Sequence[ChatCall], records: Sequence[ToolCallRecord], times: Sequence[int]
) -> list[Timeline]:
    """The events of a conversation, with ``seq`` from 0. *records* belong to *calls*, and *times* to *messages*.

    A step is one message of the assistant: its text, the start of each of its answered calls, and its end. The end of a
    call is at the place of its answer.
    """
    log = _Log()
    started: defaultdict[int, list[ToolCallRecord]] = defaultdict(list)
    ended: dict[int, ToolCallRecord] = {}
    for call, record in zip(calls, records, strict=True):
        if call.answered is not None:
            started[call.asked].append(record)
            ended[call.answered] = record
    step = 0
    for i, (message, time) in enumerate(zip(messages, times, strict=True)):
        if message.role == "assistant":
            log.step(step, message.text, started[i], time)
            step += 1
        elif i in ended:
            log.call_ended(ended[i], time)
    waiting = any(record.state == "PENDING" for record in records)
    log.add("progress", "done", times[-1], step=step, reason="interrupted" if waiting else "completed")
    return log.events


class _Log:
    def __init__(self) -> None:
        self.events: list[Timeline] = []

    def add(self, channel: AgentChannel, kind: str, time: int, **data: Json) -> None:
        seq = len(self.events)
        data["bookmark"] = {"seq": seq, "timestamp": time}
        self.events.append(Timeline(seq, Bookmark(seq, time), AgentEvent(channel, kind, data)))

    def step(self, step: int, text: str, started: Sequence[ToolCallRecord], time: int) -> None:
        if text:
            self.add("progress", "text_chunk_end", time, step=step, text=text)
        for record in started:
            self.add("progress", "tool:start", time, call=_brief(record, "EXECUTING"))
        self.add("monitor", "step_complete", time, step=step)

    def call_ended(self, record: ToolCallRecord, time: int) -> None:
        call = _brief(record, record.state)
        if record.is_error:
            self.add("progress", "tool:error", time, call=call, error=record.error)
        else:
            self.add("progress", "tool:end", time, call=call)


def _brief(record: ToolCallRecord, state: str) -> dict[str, Json]:
    return {"id": record.id, "name": record.name, "state": state, "approval": {"required": record.approval.required}}
