"""Answers chats: one worker at a time for each chat, across all processes."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from kode_core import (
    AgentEvent,
    AgentInfo,
    ExtendedStore,
    LockUnavailableError,
    Message,
    TextBlock,
    Timeline,
)

TEMPLATE = "web-chat"
TTL_MS = int(os.environ.get("CHAT_LOCK_TTL_MS", "10000"))
WAIT_MS = TTL_MS + 30_000
"""Longer than the lock of a worker that crashed, so that a waiting worker takes over."""
PAUSE_S = float(os.environ.get("CHAT_PAUSE_S", "0.05"))

log = logging.getLogger("web_chat")


async def model(conversation: Sequence[Message], question: Message) -> AsyncIterator[str]:
    """Yield the words of the answer as they are generated. Call your model here."""
    asked = sum(message.role == "user" for message in conversation)
    answer = f"Of {asked} messages in this chat, yours has {len(question.text.split())} words: {question.text}"
    for word in answer.split():
        await asyncio.sleep(PAUSE_S)
        yield word + " "


class Answers:
    """The answers that this process gives, each in a task that outlives the request."""

    def __init__(self, store: ExtendedStore) -> None:
        self._store = store
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wanted: set[str] = set()

    async def accept(self, info: AgentInfo, message_id: str, text: str) -> bool:
        """Save a message, unless it is saved already, and begin to answer it; True if the message is new."""
        chat = info.agent_id
        saved = await self._store.load_messages(chat)
        is_new = message_id not in {_id(message) for message in saved}
        if is_new:
            message = Message("user", [TextBlock(text)], metadata={"id": message_id})
            said = await self._next(chat, "message", {"id": message_id, "text": text})
            await self._store.save_turn(chat, append=[message], info=info, events=[said])
        self._begin(chat)
        return is_new

    async def begin_if_open(self, chat: str) -> None:
        if _next_question(await self._store.load_messages(chat)) is not None:
            self._begin(chat)

    async def resume(self) -> None:
        """Answer the open questions of the last hour: the worker that had them may have crashed."""
        hour = datetime.now(UTC) - timedelta(hours=1)
        async for session in self._store.iter_sessions(template_id=TEMPLATE, updated_after=hour):
            await self.begin_if_open(session.agent_id)

    def _begin(self, chat: str) -> None:
        self._wanted.add(chat)
        if chat not in self._tasks:
            self._tasks[chat] = asyncio.create_task(self._answer(chat))

    async def _answer(self, chat: str) -> None:
        try:
            while chat in self._wanted:
                self._wanted.discard(chat)
                async with self._store.acquire_agent_lock(chat, ttl_ms=TTL_MS, wait_ms=WAIT_MS):
                    while await self._answer_next(chat):
                        pass
        except LockUnavailableError:
            log.info("chat %s is answered elsewhere", chat)
        except Exception:
            log.exception("no answer in chat %s: it stays open, and the next request takes it up", chat)
        finally:
            del self._tasks[chat]  # with no await since the last look at _wanted, so that no question is missed

    async def _answer_next(self, chat: str) -> bool:
        """Answer the oldest open question. Call it inside the lock: otherwise another worker may answer it, too."""
        conversation = await self._store.load_messages(chat)
        question = _next_question(conversation)
        if question is None:
            return False
        await self._store.emit(chat, "start", {"answers": _id(question), "worker": os.getpid()})
        words = []
        async for word in model(conversation, question):
            words.append(word)
            await self._store.emit(chat, "delta", {"answers": _id(question), "text": word})
        text = "".join(words).rstrip()
        answer = Message("assistant", [TextBlock(text)], metadata={"answers": _id(question)})
        done = await self._next(chat, "done", {"answers": _id(question), "text": text})
        await self._store.save_turn(chat, append=[answer], events=[done])
        return True

    async def _next(self, chat: str, kind: str, data: dict[str, Any]) -> Timeline:
        """The entry of an event that is written together with a message; others are emitted."""
        return Timeline.after(await self._store.last_bookmark(chat), AgentEvent("progress", kind, data))

    async def delete(self, chat: str) -> None:
        """Delete under the lock: otherwise an answer in progress would create the chat anew."""
        task = self._tasks.get(chat)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        async with self._store.acquire_agent_lock(chat, ttl_ms=TTL_MS, wait_ms=5_000):
            await self._store.delete(chat)

    async def stop(self, seconds: float) -> None:
        """Wait for the answers in progress. Slower ones are cancelled; their questions stay open for other workers."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks.values(), timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _id(message: Message) -> str:
    return str((message.metadata or {}).get("id", ""))


def _next_question(conversation: Sequence[Message]) -> Message | None:
    """The oldest user message that no answer names. A message that was stored twice gets one answer."""
    answered = {message.metadata.get("answers") for message in conversation if message.metadata}
    return next((m for m in conversation if m.role == "user" and _id(m) not in answered), None)
