"""FastAPI: an async store, made when the module is imported, opened and closed by the lifespan."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Body, FastAPI

from kode_core import Message, lazy_store, to_dict

store = lazy_store()  # a wrong configuration fails here; each worker process opens a store of its own


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Open the store before the first request, and close it after the last one."""
    async with store:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/chats/{chat}/messages")
async def add(chat: str, text: str = Body(embed=True)) -> dict[str, int]:
    """Add a message under the lock of the chat."""
    async with store.acquire_agent_lock(chat, wait_ms=10_000):
        await store.append_messages(chat, [Message.user(text)])
        return {"count": len(await store.load_messages(chat))}


@app.get("/chats/{chat}/messages")
async def messages(chat: str) -> list[dict[str, Any]]:
    """All messages of the chat."""
    return [to_dict(message) for message in await store.load_messages(chat)]
