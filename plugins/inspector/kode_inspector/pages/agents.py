"""One agent: its conversation, a record as it is stored, its media, and its deletion."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from kode_core import (
    ExtendedStore,
    ImageBlock,
    InvalidArgumentError,
    KodeError,
    Message,
    Session,
    UnsupportedError,
)
from kode_core.nearby import agent_not_found
from kode_inspector.conversation import PAGE, behind, load_part
from kode_inspector.rendering import Inspector, inspector_of, render
from kode_inspector.text import cut, link
from kode_inspector.trees import as_text, tree

__all__ = ["IMAGES", "agent_of", "ask_delete", "conversation", "delete", "media", "raw"]

IMAGES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_SHOWN_RAW: Final = 200_000


async def agent_of(inspector: Inspector, agent_id: str) -> Session:
    """The agent of a page; raises AgentNotFoundError."""
    session = await inspector.store.load_session(agent_id) if agent_id else None
    if session is None:
        raise await agent_not_found(inspector.store, agent_id)
    return session


def position_of(text: str | None, what: str = "at") -> int | None:
    """A position in a list, or an offset, of an address."""
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text[:20]) >= 2**63:
        raise InvalidArgumentError(f"{what} is a position in a list, such as 0, not {text[:40]!r}")
    return int(text)


async def conversation(request: Request) -> Response:
    """A part of the conversation: the one with the message ``at``, or else the end."""
    inspector = inspector_of(request)
    agent_id = request.query_params.get("id", "")
    at = position_of(request.query_params.get("at"))
    session = await agent_of(inspector, agent_id)
    total = session.message_count
    if at is not None and total and at >= total:
        raise InvalidArgumentError(f"the agent has {total:,} messages, and at={at} names none of them")
    first = max(0, total - 1) // PAGE * PAGE if at is None else at // PAGE * PAGE
    part = await load_part(inspector.store, agent_id, total, session.tool_call_count, first)
    todos, todos_problem = await _todos(inspector.store, agent_id)
    return render(
        request,
        "agent.html",
        session=session,
        part=part,
        at=at,
        size=PAGE,
        tab="conversation",
        metadata=tree(session.metadata) if session.metadata else None,
        todos=todos,
        todos_problem=todos_problem,
        images=IMAGES,
    )


async def _todos(store: ExtendedStore, agent_id: str) -> tuple[Any, str | None]:
    try:
        found = await store.load_todos(agent_id)
    except UnsupportedError:
        return (), None
    except KodeError as exc:
        return (), f"{type(exc).__name__}: {exc}"
    return (found.todos[:100] if found else ()), None


async def raw(request: Request) -> Response:
    """A record as it is stored: a message, a tool call, or the agent's info."""
    inspector = inspector_of(request)
    given = request.query_params
    agent_id, kind = given.get("id", ""), given.get("kind", "message")
    at = position_of(given.get("at"))
    record = await _record(inspector.store, agent_id, kind, at)
    text = await asyncio.to_thread(as_text, record)
    if given.get("whole"):
        return PlainTextResponse(text.encode(errors="backslashreplace"), media_type="text/plain; charset=utf-8")
    shown, left_out = cut(text, _SHOWN_RAW)
    whole = link("/agent/raw", id=agent_id, kind=kind, at=at, whole=1)
    name = kind if at is None else f"{kind} {at}"
    session = await agent_of(inspector, agent_id)
    return render(
        request, "raw.html", session=session, name=name, shown=shown, left_out=left_out, whole=whole, at=at, kind=kind
    )


async def _record(store: ExtendedStore, agent_id: str, kind: str, at: int | None) -> object:
    record: object = None
    if kind == "info":
        record = await store.load_info(agent_id)
    elif kind in ("message", "call") and at is not None:
        load: Any = store.load_messages if kind == "message" else store.load_tool_call_records
        found = await load(agent_id, after=behind(at), before=at + 1)
        record = found[0] if found else None
    else:
        raise InvalidArgumentError("name a record: kind=message or kind=call with a position, or kind=info")
    if record is None:
        raise await agent_not_found(store, agent_id)
    return record


async def media(request: Request) -> Response:
    """An image that is stored inline, of one of the kinds that cannot run anything."""
    given = request.query_params
    at, number = position_of(given.get("at")) or 0, position_of(given.get("block"), "block") or 0
    found = await inspector_of(request).store.load_messages(given.get("id", ""), after=behind(at), before=at + 1)
    message: Message | None = found[0] if found else None
    block = message.content[number] if message is not None and number < len(message.content) else None
    if not isinstance(block, ImageBlock) or block.mime_type not in IMAGES or not block.base64:
        return PlainTextResponse("there is no such image", status_code=404)
    try:
        content = await asyncio.to_thread(base64.b64decode, block.base64, validate=True)
    except (binascii.Error, ValueError):
        return PlainTextResponse("the image is not in base64", status_code=404)
    return Response(content, media_type=block.mime_type, headers={"content-security-policy": "sandbox"})


async def ask_delete(request: Request) -> Response:
    """Ask whether to delete the agent."""
    inspector = inspector_of(request)
    _check_delete(inspector)
    session = await agent_of(inspector, request.query_params.get("id", ""))
    return render(request, "delete.html", session=session)


async def delete(request: Request) -> Response:
    """Delete the agent."""
    inspector = inspector_of(request)
    _check_delete(inspector)
    session = await agent_of(inspector, request.query_params.get("id", ""))
    await inspector.store.delete(session.agent_id)
    if "hx-request" in request.headers:
        return Response(status_code=204, headers={"hx-redirect": "/"})
    return RedirectResponse("/", status_code=303)


class DeleteNotAllowedError(UnsupportedError):
    """This server only reads."""


def _check_delete(inspector: Inspector) -> None:
    if not inspector.allow_delete:
        raise DeleteNotAllowedError("these pages only read; kode web --allow-delete lets them delete agents")
