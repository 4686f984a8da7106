"""A web chat: post a message, and follow the answer as server-sent events.

KODE_STORE_URL=sqlite:///data/chat.db uvicorn web_chat.app:app --workers 2
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from kode_core import AgentInfo, LockUnavailableError, StorageError, create_extended_store, new_agent_id
from web_chat.answers import TEMPLATE, Answers
from web_chat.following import event_stream, some_offset

HEARTBEAT_S = float(os.environ.get("CHAT_HEARTBEAT_S", "15"))
ChatId = Annotated[str, Path(pattern=r"^agt-[0-9a-z]{26}$")]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open one store for each worker process, in that process, and close it at the end."""
    async with create_extended_store() as store:
        answers = Answers(store)
        app.state.store, app.state.answers, app.state.stopping = store, answers, asyncio.Event()
        await answers.resume()
        with on_signal(app.state.stopping):
            yield
        await answers.stop(seconds=5)


@contextmanager
def on_signal(stopping: asyncio.Event) -> Iterator[None]:
    """Set *stopping* when the server is told to stop: it waits for open streams, and they wait for this event."""
    loop = asyncio.get_running_loop()
    of_server = {sig: signal.getsignal(sig) for sig in (signal.SIGTERM, signal.SIGINT)}

    def stop(sig: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stopping.set)
        handler = of_server[signal.Signals(sig)]
        if callable(handler):
            handler(sig, frame)

    for sig in of_server:
        signal.signal(sig, stop)
    try:
        yield
    finally:
        for sig, handler in of_server.items():
            signal.signal(sig, handler)


app = FastAPI(lifespan=lifespan)


class NewMessage(BaseModel):
    id: str = Field(min_length=1, max_length=64)  # made by the browser, so that it can send the message again
    text: str = Field(min_length=1, max_length=20_000)


@app.post("/chats", status_code=201)
async def begin(request: Request) -> dict[str, str]:
    chat = new_agent_id()
    await request.app.state.store.save_info(chat, AgentInfo(agent_id=chat, template_id=TEMPLATE))
    return {"chat": chat}


@app.post("/chats/{chat}/messages", status_code=202)
async def post(chat: ChatId, message: NewMessage, request: Request) -> dict[str, bool]:
    """Save the message and begin to answer; the answer arrives at ``/chats/{chat}/events``."""
    info = await found(request, chat)
    return {"new": await request.app.state.answers.accept(info, message.id, message.text)}


@app.get("/chats/{chat}/messages")
async def messages(chat: ChatId, request: Request) -> dict[str, Any]:
    """The conversation, and the offset to follow it from: read first, so that no event in between is missed."""
    await found(request, chat)
    store = request.app.state.store
    after = await some_offset(store, chat)
    saved = await store.load_messages(chat)
    return {"after": after, "messages": [{"role": m.role, "text": m.text, **(m.metadata or {})} for m in saved]}


@app.get("/chats/{chat}/events")
async def events(
    chat: ChatId,
    request: Request,
    last_event_id: Annotated[int | None, Header(ge=0, lt=2**63)] = None,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
) -> Response:
    """Live events behind the last one that the browser has seen: an event's id is its offset in the store."""
    await found(request, chat)
    state = request.app.state
    await state.answers.begin_if_open(chat)  # the worker that had the question may have died
    offset = after if last_event_id is None else last_event_id
    events = state.store.follow_events(chat, after_offset=offset, heartbeat_ms=int(HEARTBEAT_S * 1000))
    return StreamingResponse(
        event_stream(events, state.stopping),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@app.delete("/chats/{chat}", status_code=204)
async def delete(chat: ChatId, request: Request) -> None:
    try:
        await request.app.state.answers.delete(chat)
    except LockUnavailableError:
        raise HTTPException(409, "the chat is being answered; try again") from None


@app.get("/health")
async def health(request: Request, response: Response) -> dict[str, Any]:
    status = await request.app.state.store.health_check()
    response.status_code = 200 if status.healthy else 503
    return {"healthy": status.healthy, "worker": os.getpid()}


@app.exception_handler(RequestValidationError)
async def refused(_: Request, error: RequestValidationError) -> Response:
    """The answer does not repeat the input, which may hold half a character or NaN: no JSON has them."""
    return JSONResponse({"detail": [{"loc": e["loc"], "msg": e["msg"]} for e in error.errors()]}, 422)


@app.exception_handler(StorageError)
async def storage_failed(_: Request, error: StorageError) -> Response:
    """The browser sends the message again with the same id, and it is stored once."""
    return Response(f"{type(error).__name__}: try again", 503, {"Retry-After": "2"}, media_type="text/plain")


async def found(request: Request, chat: str) -> AgentInfo:
    info: AgentInfo | None = await request.app.state.store.load_info(chat)
    if info is None:
        raise HTTPException(404, "no such chat")
    return info
