"""A conversation as one file: HTML that needs nothing else, or JSON."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from typing import Any

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from kode_core import ExtendedStore, ImageBlock, Json, KodeError, Session, to_dict
from kode_core.cli.output import wire
from kode_inspector.conversation import PAGE, behind, load_part
from kode_inspector.pages.agents import IMAGES, agent_of
from kode_inspector.rendering import STATIC, Inspector, inspector_of, render_part

__all__ = ["as_html", "as_json"]


def _attachment(session: Session, ending: str) -> dict[str, str]:
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", session.agent_id)[:80].strip("._") or "agent"
    return {"content-disposition": f'attachment; filename="{name}.{ending}"'}


async def as_html(request: Request) -> Response:
    """The conversation as one HTML file, without a script; pages of it are read while it is sent."""
    inspector = inspector_of(request)
    session = await agent_of(inspector, request.query_params.get("id", ""))
    return StreamingResponse(
        _html(inspector, session), media_type="text/html; charset=utf-8", headers=_attachment(session, "html")
    )


async def _html(inspector: Inspector, session: Session) -> AsyncIterator[bytes]:
    style = (STATIC / "style.css").read_text()
    digest = b64encode(sha256(style.encode()).digest()).decode()
    given: dict[str, Any] = {
        "session": session,
        "style": Markup(style),  # noqa: S704 - a file of this package
        "digest": digest,
    }
    yield _bytes(render_part("export_begin.html", inspector, **given))
    try:
        for first in range(0, session.message_count, PAGE):
            part = await load_part(
                inspector.store, session.agent_id, session.message_count, session.tool_call_count, first
            )
            pictures = await _pictures(inspector.store, session.agent_id, first)
            yield _bytes(render_part("export_part.html", inspector, session=session, part=part, pictures=pictures))
    except KodeError as exc:
        yield _bytes(render_part("export_problem.html", inspector, problem=f"{type(exc).__name__}: {exc}"))
    yield b"</main></html>\n"


async def _pictures(store: ExtendedStore, agent_id: str, first: int) -> dict[tuple[int, int], str]:
    """The inline images of a part, as addresses that hold them."""
    found: dict[tuple[int, int], str] = {}
    page = await store.load_messages(agent_id, after=behind(first), before=first + PAGE, on_corrupt="skip")
    if page.left_out:  # positions are not known
        return found
    for i, message in enumerate(page):
        for number, block in enumerate(message.content):
            if not isinstance(block, ImageBlock) or block.mime_type not in IMAGES:
                continue
            inline = block.base64
            if inline and re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", inline):
                found[first + i, number] = f"data:{block.mime_type};base64,{inline}"
    return found


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")


async def as_json(request: Request) -> Response:
    """The agent's info, messages, tool calls and events as JSON, read while it is sent."""
    inspector = inspector_of(request)
    session = await agent_of(inspector, request.query_params.get("id", ""))
    info = await inspector.store.load_info(session.agent_id)
    begin = {"agentId": session.agent_id, "info": None if info is None else to_dict(info)}
    return StreamingResponse(
        _json(inspector.store, session, begin), media_type="application/json", headers=_attachment(session, "json")
    )


async def _json(store: ExtendedStore, session: Session, begin: dict[str, Json]) -> AsyncIterator[bytes]:
    agent_id = session.agent_id
    yield json.dumps(begin).encode()[:-1]
    parts: tuple[tuple[str, Callable[[], AsyncIterator[Any]]], ...] = (
        ("messages", lambda: store.read_messages(agent_id)),
        ("toolCalls", lambda: store.iter_tool_calls(agent_id=agent_id, order="asc")),
        ("events", lambda: store.read_events(agent_id, after_offset=0)),
    )
    problems: list[str] = []
    for name, read in parts:
        yield b', "%s": [' % name.encode()
        separator = b"\n"
        try:
            async for record in read():
                yield separator + json.dumps(wire(record)).encode()
                separator = b",\n"
        except KodeError as exc:
            problems.append(f"{name}: {type(exc).__name__}: {exc}")
        yield b"\n]"
    if problems:
        yield b', "problems": ' + json.dumps(problems).encode()
    yield b"}\n"
