"""The loop of a run: ask the model, store its answer, run the tools, store their results, and ask again."""

from __future__ import annotations

import time
from typing import Final

from kode_agent.asking import Streamed, ask
from kode_agent.calls import Calls, ended, with_fresh_ids
from kode_agent.compress import compress, context_tokens
from kode_agent.control import Inbox
from kode_agent.errors import AgentError, ProviderError, StepsExceededError
from kode_agent.journal import Journal, event
from kode_agent.provider import Answer, Provider, name_of
from kode_agent.results import brief, result_of, safe_text
from kode_agent.template import Template
from kode_core import AgentEvent, InvalidArgumentError, Message, PayloadTooLargeError, TextBlock, ToolUseBlock

__all__ = ["Run"]

_CUT: Final = ("length", "max_tokens")  # stop reasons of OpenAI and Anthropic: arguments may end too early


class Run:
    """The work of one ``send``, under the lease of the agent."""

    def __init__(self, journal: Journal, template: Template, provider: Provider, inbox: Inbox) -> None:
        self._journal = journal
        self._template = template
        self._provider = provider
        self._inbox = inbox
        self._calls: Calls | None = None
        self._streamed: Streamed | None = None

    async def until_answer(self) -> str:
        """Go on until the model answers without calling tools, and return its text."""
        for _ in range(self._template.max_steps):
            began, step = time.monotonic(), self._step
            await self._compressed()
            try:
                answer = await self._asked()
                message = with_fresh_ids(answer.message, await self._known_ids(answer.message))
                calls = Calls(self._journal, self._template, self._inbox, message, is_cut=answer.stop in _CUT)
                self._calls = calls
                if not calls.records:
                    await self._store_answer(message, answer, began)
                    return message.text
                offset = await self._store_calls(message, answer)
            except AgentError as exc:
                await self._failed(exc, "model")
                raise
            except (InvalidArgumentError, PayloadTooLargeError) as exc:
                refused = ProviderError(f"the answer of {name_of(self._provider)!r:.80} cannot be stored: {exc}")
                await self._failed(refused, "model")
                raise refused from exc
            unsaved = await calls.run(offset)
            results = [result_of(record, self._template.max_result_chars) for record in calls.records]
            events = [told for record in unsaved for told in ended(record)]
            await self._journal.commit(
                *events,
                event("monitor", "step_complete", step=step, durationMs=_since(began)),
                append=[Message("user", results)],
                calls=unsaved,
                breakpoint="PRE_MODEL",
            )
            self._calls = None
        error = StepsExceededError(
            f"the model called tools in each of {self._template.max_steps} steps, the limit Template.max_steps; "
            "go_on() lets it take as many more"
        )
        await self._failed(error, "model")
        raise error

    def stop(self) -> None:
        """Cancel the tasks that run next to the loop."""
        if self._calls is not None:
            self._calls.stop()
        if self._streamed is not None:
            self._streamed.stop()

    def unfinished(self) -> list[Message]:
        """The text of an answer that was streamed in part, as a message."""
        text = "" if self._streamed is None else self._streamed.text
        return [Message("assistant", [TextBlock(text)], {"interrupted": True})] if text else []

    @property
    def _step(self) -> int:
        return self._journal.numbers.get("steps", 0)

    async def _compressed(self) -> None:
        wanted = self._template.compression
        if wanted is not None and context_tokens(self._journal) > wanted.threshold_tokens:
            await compress(self._journal, self._provider, self._template, wanted)

    async def _asked(self) -> Answer:
        streamed = self._streamed = Streamed(self._journal, self._step)
        return await ask(self._provider, self._template, self._journal, self._journal.messages, streamed)

    async def _known_ids(self, message: Message) -> set[str]:
        """The ids of the agent's calls, if *message* has calls."""
        if not any(isinstance(block, ToolUseBlock) for block in message.content):
            return set()
        said = {b.id for m in self._journal.messages for b in m.content if isinstance(b, ToolUseBlock)}
        records = await self._journal.store.load_tool_call_records(self._journal.agent_id, last=1_000)
        return said | {record.id for record in records}

    async def _store_answer(self, message: Message, answer: Answer, began: float) -> None:
        step = self._step
        await self._journal.commit(
            *await self._rest(),
            _used(answer),
            event("monitor", "step_complete", step=step, durationMs=_since(began)),
            event("progress", "done", step=step, reason="completed"),
            event("monitor", "state_changed", state="READY"),
            append=[message],
            breakpoint="READY",
            usage=answer.usage,
        )
        self._streamed = None

    async def _store_calls(self, message: Message, answer: Answer) -> int:
        """Store the answer with the records of its calls, before any of them runs; returns the last offset."""
        calls = self._calls
        assert calls is not None
        rest = [*await self._rest(), _used(answer)]
        questions = [record for record in calls.records if record.state == "APPROVAL_REQUIRED"]
        if questions:
            calls.asked(self._journal.next_seq)
        events: list[AgentEvent] = []
        for record in calls.records:
            if record.state == "APPROVAL_REQUIRED":
                events.append(event("control", "permission_required", call=brief(record, whole_input=True)))
            elif record.state == "FAILED":
                events += ended(record)
            else:
                events.append(event("progress", "tool:start", call=brief(record)))
        offsets = await self._journal.commit(
            *rest,
            *events,
            append=[message],
            calls=calls.records,
            breakpoint="AWAITING_APPROVAL" if questions else "TOOL_EXECUTING",
            usage=answer.usage,
        )
        self._streamed = None
        return max(offsets)

    async def _rest(self) -> list[AgentEvent]:
        return [] if self._streamed is None else await self._streamed.rest()

    async def _failed(self, error: AgentError, phase: str) -> None:
        """Tell operators; the conversation stays as it is, with a message that waits for its answer."""
        self.stop()
        self._streamed = None
        text = safe_text(error)
        await self._journal.commit(
            event("monitor", "error", severity="error", phase=phase, error=type(error).__name__, message=text),
            event("monitor", "state_changed", state="READY"),
            breakpoint="READY",
        )


def _used(answer: Answer) -> AgentEvent:
    usage = answer.usage
    return event(
        "monitor",
        "token_usage",
        inputTokens=usage.input_tokens,
        outputTokens=usage.output_tokens,
        totalTokens=usage.total_tokens,
    )


def _since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
