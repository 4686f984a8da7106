"""Lists over all agents: sessions, tool calls, messages that contain a text, and present activity."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from kode_core import (
    ExtendedStore,
    InvalidArgumentError,
    Page,
    SessionInfo,
    StoredMessage,
    ToolResultBlock,
    ToolUseBlock,
    UnsupportedError,
    now_ms,
)
from kode_core.query import Within
from kode_inspector.conversation import status_of
from kode_inspector.forms import STATES, Form, call_form, message_form, session_form
from kode_inspector.rendering import inspector_of, render
from kode_inspector.text import link, preview, short

__all__ = ["calls", "messages", "now", "sessions", "templates"]

T = TypeVar("T")

_RECENT_MS: Final = 5 * 60_000
_KEPT_MS: Final = 2_000
_UNDER_WAY: Final = ("APPROVED", "EXECUTING", "PENDING")
_WAITING: Final = "APPROVAL_REQUIRED"


async def sessions(request: Request) -> Response:
    """Sessions, with filters and pages."""
    inspector = inspector_of(request)
    form = session_form(request.query_params)
    page: Page[SessionInfo] = Page()
    following: str | None = None
    if not form.errors:
        try:
            page, following = await _found(inspector.store, form, inspector.page_size)
        except InvalidArgumentError as exc:
            form.errors["form"] = str(exc)
    failed = await _counts(inspector.store, page, is_error=True)
    waiting = await _counts(inspector.store, page, state=_WAITING)
    empty = not page and not form.errors and form.is_empty and not form["cursor"]
    return render(
        request,
        "sessions.html",
        status=400 if form.errors else 200,
        form=form,
        page=page,
        following=following,
        failed=failed,
        waiting=waiting,
        nothing_stored=empty,
        has_others=empty and bool(await inspector.store.list(include_without_info=True)),
    )


async def _found(store: ExtendedStore, form: Form, size: int) -> tuple[Page[SessionInfo], str | None]:
    """A page of sessions and the address of the next one."""
    filters: dict[str, Any] = {"sort_by": "updated_at"} | form.filters
    first = filters.pop("from", 0)
    within: dict[str, Any] = {"agent_id": Within(form["id"])} if form["id"] else {}
    try:
        page = await store.query_sessions(limit=size, **within, **filters)
    except UnsupportedError:
        if not within:
            raise
        return await _found_among_ids(store, form, first, size, filters)
    return page, page.next_cursor and link("/", **form.link_values(), cursor=page.next_cursor)


async def _found_among_ids(
    store: ExtendedStore, form: Form, first: int, size: int, filters: dict[str, Any]
) -> tuple[Page[SessionInfo], str | None]:
    """A page of a store whose engine finds no ranges of agents: all ids are listed, and some of them looked up."""
    filters.pop("cursor", None)
    ids = await store.list(form["id"])
    some = ids[first : first + size]
    page = await store.query_sessions(limit=size, agent_id=some, **filters) if some else Page()
    rest = first + size < len(ids)
    return page, link("/", **form.link_values(), **{"from": first + size}) if rest else None


async def _counts(store: ExtendedStore, page: Sequence[SessionInfo], **filters: Any) -> dict[str, int]:
    """The numbers of such calls of the agents of a page."""
    ids = [session.agent_id for session in page]
    groups = await store.group_tool_calls("agent_id", agent_id=ids, **filters) if ids else []
    return {str(group.values["agent_id"]): group.count for group in groups}


async def now(request: Request) -> Response:
    """The numbers of agents and calls that are active now; pages that ask at once share an answer."""
    inspector = inspector_of(request)
    lock = inspector.state.setdefault("active_lock", asyncio.Lock())
    async with lock:
        until, found = inspector.state.get("active", (0, {}))
        if until < now_ms():
            found = await _active(inspector.store)
            inspector.state["active"] = now_ms() + _KEPT_MS, found
    return render(request, "_now.html", **found)


async def _active(store: ExtendedStore) -> dict[str, int]:
    recent, groups = await asyncio.gather(
        store.count_sessions(updated_after=now_ms() - _RECENT_MS),
        store.group_tool_calls("state", state=[*_UNDER_WAY, _WAITING]),
    )
    by_state = {str(group.values["state"]): group.count for group in groups}
    waiting = by_state.pop(_WAITING, 0)
    return {"recent": recent, "running": sum(by_state.values()), "waiting": waiting}


async def templates(request: Request) -> Response:
    """Known templates, which the field suggests."""
    groups = await inspector_of(request).store.group_sessions("template_id")
    names = Counter({str(group.values["template_id"]): group.count for group in groups})
    return render(request, "_options.html", names=[name for name, _ in names.most_common(100)])


async def _page(form: Form, query: Callable[..., Awaitable[Page[T]]], size: int) -> Page[T]:
    """A page of a query; empty if the form has errors, or the store finds one."""
    if not form.errors:
        try:
            return await query(limit=size, **form.filters)
        except InvalidArgumentError as exc:
            form.errors["form"] = str(exc)
    return Page()


async def calls(request: Request) -> Response:
    """Tool calls of all agents, with filters and pages."""
    inspector = inspector_of(request)
    form = call_form(request.query_params)
    page = await _page(form, inspector.store.query_tool_calls, inspector.page_size)
    following = page.next_cursor and link("/calls", **form.link_values(), cursor=page.next_cursor)
    return render(
        request,
        "calls.html",
        status=400 if form.errors else 200,
        form=form,
        page=page,
        following=following,
        state_options=[("", "Any"), *((state, state.lower().replace("_", " ")) for state in STATES)],
        status_of=status_of,
    )


async def messages(request: Request) -> Response:
    """Messages that contain a text."""
    inspector = inspector_of(request)
    form = message_form(request.query_params)
    page: Page[Any] = Page()
    if form["q"] and inspector.searches_text:
        page = await _page(form, inspector.store.query_messages, inspector.page_size)
    # a page without a match may have a cursor: the store bounds the search of one call
    following = page.next_cursor and link("/search", **form.link_values(), cursor=page.next_cursor)
    return render(
        request,
        "search.html",
        status=400 if form.errors else 200,
        form=form,
        page=page,
        following=following,
        excerpt=_excerpt,
    )


def _excerpt(message: StoredMessage, wanted: str) -> tuple[str, str, str]:
    """The text before the match, the match, and the text behind it; without one, the beginning of the message."""
    parts = [message.text]
    for block in message.content:
        if isinstance(block, ToolUseBlock):
            parts.append(f"{block.name}: {preview(block.input, 400)}")
        elif isinstance(block, ToolResultBlock):
            parts.append(preview(block.content, 400))
    text = " ".join(part for part in parts if part)
    at = text.lower().find(wanted.lower())
    if at < 0:
        return short(text, 300), "", ""
    start, end = max(0, at - 100), at + len(wanted)
    before = ("…" if start else "") + " ".join(text[start:at].split())
    space = " " if text[at - 1 : at].isspace() else ""
    return before + space, text[at:end], text[end : end + 200] + ("…" if len(text) > end + 200 else "")
