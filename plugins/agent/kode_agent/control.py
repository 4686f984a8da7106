"""The control channel: decisions on approvals, and interruptions, from this process or any other."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import aclosing
from typing import Final, Literal, TypeAlias

from kode_agent.errors import ApprovalError
from kode_agent.finding import checked_store, unknown_agent
from kode_agent.journal import Journal
from kode_core import (
    Bookmark,
    ExtendedStore,
    Json,
    KodeError,
    Retry,
    StoredEvent,
    ToolCallRecord,
    ToolUseBlock,
)

__all__ = ["Decision", "Inbox", "decide", "interrupt", "open_questions", "tell"]

Decision: TypeAlias = Literal["allow", "deny"]
_DECISIONS: Final = ("allow", "deny")
_RECENT: Final = 200
_PAUSE: Final = 1.0


async def open_questions(store: ExtendedStore, agent_id: str) -> list[ToolCallRecord]:
    """The calls that wait for a decision, oldest first."""
    found = checked_store(store)
    last = await found.load_messages(agent_id, last=1)
    asked = sum(isinstance(block, ToolUseBlock) for message in last for block in message.content)
    records = await found.load_tool_call_records(agent_id, last=max(_RECENT, asked))
    return [record for record in records if record.state == "APPROVAL_REQUIRED"]


async def decide(
    store: ExtendedStore,
    agent_id: str,
    call_id: str,
    decision: Decision,
    *,
    by: str | None = None,
    note: str | None = None,
) -> None:
    """Answer the question whether a call may run, from any process. The first decision counts.

    *by* says who decided, and is kept with the call. *note* says why; the model reads it after a denial.

    Raises:
        ApprovalError: no call of that id waits for a decision, or another decision was first.
    """
    if decision not in _DECISIONS:
        raise ApprovalError(f"a decision is 'allow' or 'deny', got {decision!r:.40}")
    record = next((r for r in reversed(await open_questions(store, agent_id)) if r.id == call_id), None)
    seq = (record.approval.meta or {}).get("seq") if record is not None else None
    if type(seq) is not int:
        raise ApprovalError(
            f"agent {agent_id!r}: no call {call_id!r:.80} waits for a decision; open_questions lists those that do"
        )
    sent = await tell(store, agent_id, call_id, decision, by=by, note=note)
    asked = await _question(store, agent_id, call_id, seq)
    async for each in store.read_events(agent_id, after_offset=asked, channel="control"):
        if is_decision(each) and _call_of(each) == call_id:
            if each.offset != sent.offset:
                raise ApprovalError(
                    f"agent {agent_id!r}: call {call_id!r:.80} was decided before: {each.event.data.get('decision')}"
                )
            return


async def tell(
    store: ExtendedStore, agent_id: str, call_id: str, decision: Decision, *, by: str | None, note: str | None
) -> StoredEvent:
    """Send a decision, which counts if it is the first one behind the question."""
    data: dict[str, Json] = {"callId": call_id, "decision": decision}
    data |= {k: v for k, v in (("decidedBy", by), ("note", note)) if v is not None}
    return await store.emit(agent_id, "permission_decided", data, channel="control")


async def _question(store: ExtendedStore, agent_id: str, call_id: str, seq: int) -> int:
    """The offset of the question, whose seq is known; seqs of several processes may be out of order."""
    async for each in store.read_events(agent_id, since=Bookmark(seq - 1, 0), channel="control"):
        if each.event.type == "permission_required" and _call_of(each) == call_id:
            return each.offset
    raise ApprovalError(f"agent {agent_id!r}: the question of call {call_id!r:.80} is not in its events any more")


async def interrupt(store: ExtendedStore, agent_id: str, *, note: str | None = None) -> None:
    """Ask the worker that runs the agent, in any process, to stop; if none runs it, nothing happens.

    Raises:
        AgentNotFoundError: no agent has that id; the message names a near one.
    """
    if await checked_store(store).load_info(agent_id) is None:
        raise await unknown_agent(store, agent_id)
    data = {} if note is None else {"note": note}
    await store.emit(agent_id, "interrupt_requested", data, channel="control")


def is_decision(stored: StoredEvent) -> bool:
    """Whether an event decides anything; events of others may be malformed."""
    return stored.event.type == "permission_decided" and stored.event.data.get("decision") in _DECISIONS


def _call_of(stored: StoredEvent) -> Json:
    data = stored.event.data
    call = data.get("call")
    return call.get("id") if type(call) is dict else data.get("callId")


class Inbox:
    """The messages that arrive on the control channel during a run."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._decisions: defaultdict[str, list[StoredEvent]] = defaultdict(list)
        self._news = asyncio.Condition()
        self._failure: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self.interrupted: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def open(self) -> None:
        """Begin to follow, behind the newest event of the journal."""
        self._task = asyncio.create_task(self._follow(self._journal.offset))

    async def close(self) -> None:
        """Stop following."""
        self.interrupted.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def decision(self, call_id: str, after: int) -> dict[str, Json]:
        """Wait for the first decision on a call behind the offset of its question."""
        async with self._news:
            while True:
                for stored in self._decisions[call_id]:
                    if stored.offset > after:
                        return stored.event.data
                if self._failure is not None:
                    raise self._failure
                await self._news.wait()

    async def _follow(self, offset: int) -> None:
        try:
            while True:
                offset = await self._follow_once(offset)
                await asyncio.sleep(_PAUSE)
        except KodeError as exc:
            async with self._news:
                self._failure = exc
                self._news.notify_all()

    async def _follow_once(self, offset: int) -> int:
        journal = self._journal
        async with aclosing(
            journal.store.follow_events(journal.agent_id, after_offset=offset, channel="control")
        ) as stream:
            try:
                async for stored in stream:
                    offset = stored.offset
                    await self._take(stored)
            except KodeError as exc:
                if exc.retry is not Retry.LATER:
                    raise
        return offset

    async def _take(self, stored: StoredEvent) -> None:
        self._journal.seen(stored.bookmark, stored.offset)
        kind, data = stored.event.type, stored.event.data
        if kind == "interrupt_requested" and not self.interrupted.done():
            self.interrupted.set_result(str(data.get("note") or ""))
        if is_decision(stored):
            async with self._news:
                self._decisions[str(data.get("callId"))].append(stored)
                self._news.notify_all()
