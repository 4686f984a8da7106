"""Calls of tools: their records, the decisions on them, and running them."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from kode_agent.control import Inbox, tell
from kode_agent.journal import Journal, event
from kode_agent.results import brief, kept_result, text_of_error
from kode_agent.template import Template
from kode_agent.tools import Tool, ToolContext
from kode_agent.watching import AgentStep, watched
from kode_core import (
    InvalidArgumentError,
    Json,
    Message,
    ToolCallApproval,
    ToolCallAuditEntry,
    ToolCallRecord,
    ToolUseBlock,
    now_ms,
)

__all__ = ["Calls", "with_fresh_ids"]

_SHORT: Final = 16
_LONGEST_ID: Final = 200


def with_fresh_ids(message: Message, seen: Iterable[str]) -> Message:
    """*message* with ids of tool uses that no other call of the agent has.

    The store keeps one record for an id, and some servers count their calls from 0 in each answer.
    """
    known = set(seen)
    blocks = []
    for block in message.content:
        if isinstance(block, ToolUseBlock):
            if block.id in known or not _SHORT <= len(block.id) <= _LONGEST_ID or not block.id.isascii():
                kept = "".join(c for c in block.id if c.isascii() and (c.isalnum() or c in "_-"))[:40]
                block = block.replace(id=f"{kept or 'call'}-{secrets.token_hex(8)}")
            known.add(block.id)
        blocks.append(block)
    return message.replace(content=tuple(blocks))


def moved(record: ToolCallRecord, state: str, **changes: Any) -> ToolCallRecord:
    """The record in its next state."""
    at = now_ms()
    trail = (*record.audit_trail, ToolCallAuditEntry(state, at))
    return record.replace(state=state, updated_at=at, audit_trail=trail, **changes)


class Calls:
    """The calls of one answer of the model."""

    def __init__(
        self, journal: Journal, template: Template, inbox: Inbox, message: Message, *, is_cut: bool = False
    ) -> None:
        self._is_cut = is_cut
        self._journal = journal
        self._template = template
        self._inbox = inbox
        self._bound: dict[str, tuple[Tool, dict[str, Any]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.records = [self._first(block) for block in message.content if isinstance(block, ToolUseBlock)]
        self._running = sum(record.state != "FAILED" for record in self.records)

    def _first(self, use: ToolUseBlock) -> ToolCallRecord:
        """The record of a call before anything runs: EXECUTING, APPROVAL_REQUIRED, or FAILED."""
        record = ToolCallRecord(id=use.id, name=use.name, input=use.input)
        if self._is_cut:
            return _failed(record, "the tool was not run: the answer reached its limit of tokens and may be incomplete")
        tool = self._template.by_name.get(use.name)
        if tool is None:
            names = ", ".join(self._template.by_name) or "none"
            return _failed(record, f"there is no tool {use.name!r:.80}; the tools are: {names}")
        try:
            context = ToolContext(self._journal.agent_id, use.id, self._journal.store)
            self._bound[use.id] = (tool, tool.bind(use.input, context))
        except ValueError as exc:
            return _failed(record, f"the tool was not run, since its arguments do not fit: {exc}")
        except BaseException as exc:  # noqa: BLE001 - of a class of the caller's, which its parameters name
            return _failed(record, f"the tool was not run, since its arguments cannot be made: {text_of_error(exc)}")
        if tool.needs_approval:
            return moved(record, "APPROVAL_REQUIRED", approval=ToolCallApproval(required=True))
        return moved(record, "EXECUTING", started_at=now_ms())

    def asked(self, seq: int) -> None:
        """Note the seq of the first question in the records: decisions look for their question from there."""
        meta: dict[str, Json] = {"seq": seq}
        self.records = [
            r.replace(approval=r.approval.replace(meta=meta)) if r.state == "APPROVAL_REQUIRED" else r
            for r in self.records
        ]

    async def run(self, offset: int) -> list[ToolCallRecord]:
        """Run the calls at once, and return those whose end is not stored yet.

        Decisions have a greater offset than *offset*: an earlier one decides nothing.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(record, offset)) for record in self.records]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        self.records = [task.result()[0] for task in tasks]
        return [record for record, is_stored in (task.result() for task in tasks) if not is_stored]

    def stop(self) -> None:
        """Cancel the asynchronous tools that run; the others go on in their threads."""
        for task in self._tasks:
            task.cancel()

    async def _one(self, record: ToolCallRecord, offset: int) -> tuple[ToolCallRecord, bool]:
        if record.state == "FAILED":
            return record, True
        if record.state == "APPROVAL_REQUIRED":
            record = await self._decided(record, offset)
        if record.state == "EXECUTING":
            record = await self._run(record)
        self._running -= 1
        if self._running:  # others may take long: this result is not lost with them
            await self._journal.commit(*ended(record), calls=[record])
        return record, bool(self._running)

    async def _decided(self, record: ToolCallRecord, offset: int) -> ToolCallRecord:
        """The record after the decision, which is stored before the tool runs."""
        data = await self._decision(record, offset)
        approval = record.approval.replace(
            decision=data["decision"],
            decided_by=_text(data.get("decidedBy")),
            note=_text(data.get("note")),
            decided_at=now_ms(),
        )
        if data["decision"] == "deny":
            why = f": {approval.note}" if approval.note else ""
            error = f"the call was denied{f' by {approval.decided_by}' if approval.decided_by else ''}{why}"
            return moved(record, "DENIED", approval=approval, is_error=True, error=error, completed_at=now_ms())
        record = moved(record, "EXECUTING", approval=approval, started_at=now_ms())
        await self._journal.commit(
            event("progress", "tool:start", call=brief(record)), calls=[record], breakpoint="TOOL_EXECUTING"
        )
        return record

    async def _decision(self, record: ToolCallRecord, offset: int) -> dict[str, Json]:
        limit = self._template.approval_timeout_ms
        try:
            async with asyncio.timeout(None if limit is None else limit / 1000):
                return await self._inbox.decision(record.id, offset)
        except TimeoutError:
            journal = self._journal
            note = f"no decision came in {limit} ms"
            await tell(journal.store, journal.agent_id, record.id, "deny", by="timeout", note=note)
            # one that came at the last moment was first, and counts
            return await self._inbox.decision(record.id, offset)

    async def _run(self, record: ToolCallRecord) -> ToolCallRecord:
        """The record after the run of its tool."""
        journal = self._journal
        step = AgentStep("tool", journal.agent_id, self._template.id, tool=record.name, call_id=record.id)
        with watched(journal.store, step):
            ended = await self._ran(record)
            step.error = "tool_error" if ended.is_error else None
        return ended

    async def _ran(self, record: ToolCallRecord) -> ToolCallRecord:
        tool, arguments = self._bound[record.id]
        limit = tool.timeout_ms or self._template.tool_timeout_ms
        began = time.monotonic()
        task = asyncio.create_task(_called(tool.run, arguments))
        self._tasks.add(task)
        try:
            done, _ = await asyncio.wait({task}, timeout=limit / 1000)
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            self._tasks.discard(task)
        took = round((time.monotonic() - began) * 1000, 3)
        if not done:
            task.cancel()
            return _failed(record, f"the tool did not end in {limit} ms; it may still take effect", took)
        if task.cancelled():
            return _failed(record, "the tool was cancelled from inside; it may have taken effect", took)
        error = task.exception()
        if error is not None:
            return _failed(record, text_of_error(error), took)
        try:
            result = await asyncio.to_thread(kept_result, task.result())
        except InvalidArgumentError as exc:
            return _failed(record, f"the tool ran, but it returned what is no JSON: {exc}", took)
        except Exception as exc:  # noqa: BLE001 - a class of the caller's
            return _failed(record, f"the tool ran, but its result cannot be read: {text_of_error(exc)}", took)
        return moved(record, "COMPLETED", result=result, completed_at=now_ms(), duration_ms=took)


def ended(record: ToolCallRecord) -> tuple[Any, ...]:
    """The events of a call that has ended."""
    call = brief(record)
    if record.is_error:
        first = event("progress", "tool:error", call=call, error=call.get("error"))
    else:
        first = event("progress", "tool:end", call=call)
    return first, event("monitor", "tool_executed", call=call)


def _failed(record: ToolCallRecord, error: str, took: float | None = None) -> ToolCallRecord:
    return moved(record, "FAILED", is_error=True, error=error, completed_at=now_ms(), duration_ms=took)


def _text(value: Json) -> str | None:
    return value if isinstance(value, str) else None


class _ToolExit(Exception):
    """A tool raised what would end the program."""


async def _called(run: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        if inspect.iscoroutinefunction(run) or inspect.iscoroutinefunction(getattr(run, "__call__", None)):  # noqa: B004
            return await run(**arguments)
        result = await _in_thread(run, arguments)
        return await result if inspect.isawaitable(result) else result
    except (SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration) as exc:
        raise _ToolExit(text_of_error(exc)) from None


async def _in_thread(run: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call *run* in a thread of its own, which does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def tell(value: Any, error: BaseException | None) -> None:
        if not outcome.done():
            outcome.set_result((value, error))

    def work() -> None:
        value, error = None, None
        try:
            value = context.run(lambda: run(**arguments))
        except BaseException as exc:  # noqa: BLE001 - raised where the call is awaited
            error = exc
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(tell, value, error)

    threading.Thread(target=work, name=f"tool-{getattr(run, '__name__', '')}", daemon=True).start()
    value, error = await outcome
    if error is not None:
        raise error
    return value
