"""The application: the addresses, the functions that answer them, and the pages of errors."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from kode_core import (
    AgentNotFoundError,
    ExtendedStore,
    InvalidArgumentError,
    KodeError,
    Retry,
    UnsupportedError,
)
from kode_inspector.pages import agents, dashboard, events, export, family, health, lists
from kode_inspector.patience import is_frame, patient
from kode_inspector.rendering import STATIC, Inspector, compile_templates, render
from kode_inspector.security import Guard

__all__ = ["create_app"]

_logger: Final = logging.getLogger("kode_inspector")

_ROUTES: Final = [
    Route("/", patient(lists.sessions)),
    Route("/now", lists.now),
    Route("/templates", lists.templates),
    Route("/calls", patient(lists.calls)),
    Route("/search", patient(lists.messages)),
    Route("/agent", agents.conversation),
    Route("/agent/raw", agents.raw),
    Route("/agent/media", agents.media),
    Route("/agent/events", events.events),
    Route("/agent/stream", events.stream),
    Route("/agent/family", family.family),
    Route("/agent/forks", family.forks),
    Route("/agent/delete", agents.ask_delete, methods=["GET"]),
    Route("/agent/delete", agents.delete, methods=["POST"]),
    Route("/agent/export.html", export.as_html),
    Route("/agent/export.json", export.as_json),
    Route("/compare", family.compare),
    Route("/dashboard", dashboard.dashboard),
    Route("/dashboard/figures", dashboard.figures),
    Route("/health", health.health),
    Route("/health/check", health.progress, methods=["GET"]),
    Route("/health/check", health.begin, methods=["POST"]),
    Route("/health/stop", health.stop, methods=["POST"]),
    Mount("/static", StaticFiles(directory=STATIC)),
]


def create_app(
    store: ExtendedStore,
    *,
    where: str = "",
    token: str | None = None,
    allow_delete: bool = False,
    hosts: Collection[str] = (),
) -> Starlette:
    """The inspector as an ASGI application over an open store.

    Args:
        store: the store that the pages show.
        where: the store's address, as the pages show it; it must have no secret.
        token: a text that a browser brings, as ``?token=…`` of its first address. Without it the token is random, and
            ``app.state.inspector.token`` has it.
        allow_delete: let the pages delete agents; otherwise they only read.
        hosts: names of this server in a Host header; ``localhost`` and the loopback addresses are always known. With
            an address among them, as of a server that listens on a network, every address is.
    """
    compile_templates()
    inspector = Inspector(store, where, allow_delete=allow_delete)
    if token is not None:
        inspector.token = token
    app = Starlette(
        routes=_ROUTES,
        middleware=[Middleware(Guard, token=inspector.token, hosts=hosts)],
        exception_handlers={KodeError: _of_kode, HTTPException: _of_http, Exception: _unexpected},
    )
    app.state.inspector = inspector
    return app


def _status(exc: KodeError) -> int:
    if isinstance(exc, AgentNotFoundError):
        return 404
    if isinstance(exc, agents.DeleteNotAllowedError):
        return 403
    if isinstance(exc, InvalidArgumentError):
        return 400
    if isinstance(exc, UnsupportedError):
        return 501
    return 503 if exc.retry is Retry.LATER else 500


async def _of_kode(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, KodeError)
    status = _status(exc)
    title = {
        404: "No such agent",
        400: "This address has a mistake",
        403: "Not allowed",
        503: "The store does not answer",
    }
    name, text = type(exc).__name__, str(exc)
    return _problem(request, status, title.get(status, "This cannot be shown"), name, text)


async def _of_http(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    title = "No such page" if exc.status_code == 404 else "Not allowed"
    return _problem(request, exc.status_code, title, "", "The address leads to no page of the inspector.")


async def _unexpected(request: Request, exc: Exception) -> Response:
    _logger.error("%s %s failed", request.method, request.url.path, exc_info=exc)
    return _problem(request, 500, "This page failed", type(exc).__name__, "The log of the server says more.")


def _problem(request: Request, status: int, title: str, name: str, text: str) -> Response:
    part = "hx-request" in request.headers and not is_frame(request)
    template = "_problem.html" if part else "problem.html"
    return render(request, template, status=status, title=title, name=name, text=text, status_code=status)
