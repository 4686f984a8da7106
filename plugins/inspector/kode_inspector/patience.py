"""Pages that take long: the browser gets a frame at once, which fetches the page when it is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Final, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from kode_inspector.rendering import inspector_of, render

__all__ = ["is_frame", "patient"]

Page: TypeAlias = Callable[[Request], Awaitable[Response]]

_MOST: Final = 50


def is_frame(request: Request) -> bool:
    """True if a frame asks, which shows the main part of the answer, whatever its status."""
    return request.headers.get("hx-request") == "true" and request.headers.get("hx-target") == "main"


def patient(page: Page) -> Page:
    """Answer a browser that goes to *page* within ``Inspector.patience_s``, with a frame if the page is not ready.

    The frame asks for the same address again, and gets the page whose making goes on meanwhile. A program
    waits for its answer, and the frame does, too.
    """

    @wraps(page)
    async def answer(request: Request) -> Response:
        fetches = is_frame(request)
        if not fetches and request.headers.get("sec-fetch-dest") != "document":
            return await page(request)
        inspector = inspector_of(request)
        late: dict[str, asyncio.Task[Response]] = inspector.state.setdefault("late", {})
        address = f"{request.url.path}?{request.url.query}"
        task = late.pop(address, None)
        if fetches:
            return await (page(request) if task is None else task)
        if task is None or task.done():
            task = asyncio.ensure_future(page(request))
        done, _ = await asyncio.wait({task}, timeout=inspector.patience_s)
        if done:
            return task.result()
        late[address] = task
        task.add_done_callback(_looked_at)
        while len(late) > _MOST:
            late.pop(next(iter(late)))
        return render(request, "waiting.html", address=address)

    return answer


def _looked_at(task: asyncio.Task[Response]) -> None:
    """Look at an error that no frame came for, so that the event loop does not report it."""
    if not task.cancelled():
        task.exception()
