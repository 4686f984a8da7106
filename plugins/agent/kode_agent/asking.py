"""One request to the provider: with its time limit, its errors translated, and its deltas as events."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from kode_agent.answers import checked, error_of
from kode_agent.errors import ProviderError, ProviderTimeoutError, ProviderUnavailableError
from kode_agent.journal import Journal, event
from kode_agent.provider import Answer, Delta, Provider, name_of, sound
from kode_agent.template import Template
from kode_agent.watching import AgentStep, watched
from kode_core import AgentEvent, Message

__all__ = ["Streamed", "ask"]

_BUFFER_SECONDS: Final = 0.05
_AHEAD: Final = 1_000
_PATIENCE: Final = 1.0


class Streamed:
    """The deltas of one answer: written as events a moment later, all that came meanwhile as one."""

    def __init__(self, journal: Journal, step: int) -> None:
        self._journal = journal
        self._step = step
        self._waiting: list[Delta] = []
        self._begun = [False, False]  # text, reasoning
        self._task: asyncio.Task[None] | None = None
        self._texts: list[str] = []
        self._ending = asyncio.Event()

    @property
    def text(self) -> str:
        """All text so far."""
        return sound("".join(self._texts))

    def add(self, delta: Delta) -> None:
        """Take a delta; raises if writing an earlier one failed."""
        self._waiting.append(delta)
        if not delta.is_reasoning:
            self._texts.append(delta.text)
        if self._task is not None and self._task.done():
            self._task.result()
            self._task = None
        if self._task is None:
            self._task = asyncio.create_task(self._later())
            self._task.add_done_callback(_looked_at)

    async def _later(self) -> None:
        try:
            async with asyncio.timeout(_BUFFER_SECONDS):
                await self._ending.wait()
        except TimeoutError:
            await self._journal.commit(*self._taken())

    async def rest(self) -> list[AgentEvent]:
        """The events of the deltas that are not written yet, and of the ends."""
        self._ending.set()
        if self._task is not None:
            await self._task
        events = self._taken()
        if self._begun[1]:
            events.append(event("progress", "think_chunk_end", step=self._step))
        if self._begun[0]:
            events.append(event("progress", "text_chunk_end", step=self._step, text=self.text))
        return events

    def stop(self) -> None:
        """Write nothing more."""
        if self._task is not None:
            self._task.cancel()

    def _taken(self) -> list[AgentEvent]:
        events: list[AgentEvent] = []
        taken, self._waiting = self._waiting, []
        for is_reasoning, kind in ((True, "think_chunk"), (False, "text_chunk")):
            text = sound("".join(delta.text for delta in taken if delta.is_reasoning is is_reasoning))
            if not text:
                continue
            if not self._begun[is_reasoning]:
                self._begun[is_reasoning] = True
                events.append(event("progress", f"{kind}_start", step=self._step))
            events.append(event("progress", kind, step=self._step, delta=text))
        return events


def _looked_at(task: asyncio.Task[None]) -> None:
    """Look at an error that came too late, so that the event loop does not report it."""
    if not task.cancelled():
        task.exception()


@dataclass(frozen=True, slots=True)
class _End:
    """The end of a provider's stream, and what the provider raised."""

    error: BaseException | None = None


async def ask(
    provider: Provider,
    template: Template,
    journal: Journal,
    messages: Sequence[Message],
    streamed: Streamed | None = None,
) -> Answer:
    """Ask the model once, for the agent of *journal*.

    Raises:
        ProviderError: whatever the provider did wrong, the limit of the template included.
    """
    step = AgentStep("model", journal.agent_id, template.id)
    step.asks(provider)
    with watched(journal.store, step):
        answer = await _answer(provider, template, messages, streamed)
        step.answered(answer)
    return answer


async def _answer(
    provider: Provider, template: Template, messages: Sequence[Message], streamed: Streamed | None
) -> Answer:
    name = name_of(provider)
    tools = [each.schema for each in template.by_name.values()]
    answer: Answer | None = None
    queue: asyncio.Queue[object] = asyncio.Queue(_AHEAD)
    gone = asyncio.Event()
    pump = asyncio.create_task(_pump(lambda: provider.stream(template.system_prompt, messages, tools), queue, gone))
    pump.add_done_callback(_looked_at)
    try:
        while not isinstance(sent := await _next(queue, name, template.provider_timeout_ms), _End):
            if answer is not None:
                raise ProviderError(f"the provider {name!r:.80} went on after its answer")
            part = checked(sent, name)
            if isinstance(part, Answer):
                answer = part
            elif streamed is not None:
                streamed.add(part)
        if sent.error is not None:
            raise error_of(sent.error, name)
    finally:
        gone.set()
        pump.cancel()
        await asyncio.wait({pump}, timeout=_PATIENCE)  # a provider that does not end by itself is left behind
    if answer is None:
        raise ProviderUnavailableError(f"the provider {name!r:.80} ended the stream without an answer; try again")
    return answer


async def _pump(
    stream: Callable[[], AsyncIterator[Delta | Answer]], queue: asyncio.Queue[object], gone: asyncio.Event
) -> None:
    """Read the provider in one task from its beginning to its end, as the libraries below it need."""
    parts: object = None
    try:
        parts = given = stream()
        async for part in given:
            await queue.put(part)
        await queue.put(_End())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as exc:  # told to the one who reads, as is a CancelledError of the provider's own
        if gone.is_set():
            raise
        await queue.put(_End(exc))
    finally:
        await _close(parts)


async def _close(parts: object) -> None:
    """Close a stream, whose errors come too late to matter; it may be no stream."""
    with suppress(Exception):
        if inspect.iscoroutine(parts):
            parts.close()
        elif (close := getattr(parts, "aclose", None)) is not None:
            await close()


async def _next(queue: asyncio.Queue[object], name: str, limit_ms: int) -> object:
    try:
        async with asyncio.timeout(limit_ms / 1000):
            return await queue.get()
    except TimeoutError:
        raise ProviderTimeoutError(
            f"the provider {name!r:.80} sent nothing for {limit_ms} ms; try again, or raise "
            "Template.provider_timeout_ms"
        ) from None
