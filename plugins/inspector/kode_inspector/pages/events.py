"""The events of an agent: its last ones, a page of the stored ones, and a live stream."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from kode_core import (
    AgentNotFoundError,
    Bookmark,
    CorruptRecordError,
    ExtendedStore,
    InvalidArgumentError,
    KodeError,
    StoredEvent,
)
from kode_core.ids import check_agent_id
from kode_inspector.pages.agents import agent_of, position_of
from kode_inspector.rendering import Inspector, inspector_of, render, render_part
from kode_inspector.trees import tree

__all__ = ["events", "stream"]

_LAST: Final = 50
_PAGE: Final = 100
_MOST_STREAMS: Final = 100
_AGAIN_S: Final = 2.0
_LEAST_SEQ: Final = -(2**63)


async def events(request: Request) -> Response:
    """The last events, which go on live; or, with ``after``, a page of the stored ones."""
    inspector = inspector_of(request)
    session = await agent_of(inspector, request.query_params.get("id", ""))
    after = position_of(request.query_params.get("after"), "after")
    store, agent_id = inspector.store, session.agent_id
    more = False
    problem = None
    try:
        if after is None:
            found = await _last(store, agent_id)
        else:
            found, more = await _page(store, agent_id, after)
    except CorruptRecordError as exc:
        found, problem = [], str(exc)
    last = max((event.offset for event in found), default=after or 0)
    return render(
        request,
        "events.html",
        session=session,
        tab="events",
        events=found,
        live=after is None and problem is None,
        last=last,
        more=more,
        problem=problem,
        tree=tree,
    )


async def _last(store: ExtendedStore, agent_id: str) -> list[StoredEvent]:
    """About the last 50 events by seq, in the order of their offsets."""
    end = await store.last_bookmark(agent_id)
    if end is None:
        return []
    kept: deque[StoredEvent] = deque(maxlen=4 * _LAST)
    since = Bookmark(max(_LEAST_SEQ, end.seq - _LAST), 0)
    async with aclosing(store.read_events(agent_id, since=since)) as found:  # type: ignore[type-var]
        async for event in found:
            kept.append(event)
    return sorted(kept, key=lambda event: event.offset)


async def _page(store: ExtendedStore, agent_id: str, after: int) -> tuple[list[StoredEvent], bool]:
    kept: list[StoredEvent] = []
    async with aclosing(store.read_events(agent_id, after_offset=after)) as found:  # type: ignore[type-var]
        async for event in found:
            if len(kept) == _PAGE:
                return kept, True
            kept.append(event)
    return kept, False


async def stream(request: Request) -> Response:
    """Events as they are stored, as server-sent events whose ids are offsets.

    A browser that reconnects sends the last id that it has, and the stream goes on behind it.
    """
    inspector = inspector_of(request)
    agent_id = check_agent_id(request.query_params.get("id", ""))
    given = request.headers.get("last-event-id") or request.query_params.get("after") or "0"
    after = position_of(given, "after") or 0
    if inspector.state.get("streams", 0) >= _MOST_STREAMS:
        return PlainTextResponse(f"more than {_MOST_STREAMS} live pages are open; close some", status_code=503)
    if request.method == "HEAD":  # has no body that could go on
        return Response(media_type="text/event-stream")
    return _Stream(inspector, _sent(inspector, agent_id, after))


class _Stream(EventSourceResponse):
    """A live stream, which counts from the moment at which it was admitted."""

    def __init__(self, inspector: Inspector, sent: AsyncIterator[ServerSentEvent]) -> None:
        super().__init__(sent, ping=15, send_timeout=60)
        self._state = inspector.state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._state["streams"] = self._state.get("streams", 0) + 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._state["streams"] -= 1


async def _sent(inspector: Inspector, agent_id: str, after: int) -> AsyncIterator[ServerSentEvent]:
    async with aclosing(inspector.store.follow_events(agent_id, after_offset=after)) as found:
        while True:
            try:
                event = await anext(found)
            except StopAsyncIteration:
                return
            except AgentNotFoundError as exc:
                yield _note("gone", str(exc))
                return
            except InvalidArgumentError:
                raise
            except KodeError as exc:
                yield _note("problem", f"{type(exc).__name__}: {exc}")
                await asyncio.sleep(_AGAIN_S)
                continue
            html = render_part("_event.html", inspector, event=event, tree=tree, fresh=True)
            yield ServerSentEvent(data=json.dumps({"html": html}), id=str(event.offset), event="stored")


def _note(kind: str, text: str) -> ServerSentEvent:
    return ServerSentEvent(data=json.dumps({"text": text}), event=kind)
