"""The templates, and the values that every page has."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse

from kode_core import ExtendedStore, Json, now_ms
from kode_core.query import MessageFilter
from kode_inspector.security import post_token
from kode_inspector.text import ago, bytes_text, clock, duration, finalize, ident, iso, link, preview, short

__all__ = ["STATIC", "Inspector", "compile_templates", "inspector_of", "render", "render_part"]

_HERE: Final = Path(__file__).parent
STATIC: Final = _HERE / "static"
_ENVIRONMENT: Final = Environment(
    loader=FileSystemLoader(_HERE / "templates"),
    autoescape=True,
    finalize=finalize,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)


def _time(time_ms: int | None) -> Markup:
    if time_ms is None:
        return Markup("")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(iso(time_ms), clock(time_ms), ago(time_ms))


_ENVIRONMENT.filters |= {
    "ago": ago,
    "bytes": bytes_text,
    "clock": clock,
    "duration": duration,
    "ident": ident,
    "preview": preview,
    "short": short,
    "time": _time,
}
_ENVIRONMENT.globals |= {"link": link}


@dataclass(slots=True)
class Inspector:
    """The state that the pages of one server share.

    Attributes:
        where: the store's address for people, without a secret.
        page_size: the rows of a page of a list.
        patience_s: how long a browser waits for a list, before it gets a frame that goes on waiting.
    """

    store: ExtendedStore
    where: str
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    allow_delete: bool = False
    page_size: int = 50
    patience_s: float = 1.0
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def searches_text(self) -> bool:
        """True if this version of the store finds messages by their text."""
        return "contains" in MessageFilter.__annotations__


def compile_templates() -> None:
    """Have all templates ready, so that the first page is as quick as the others."""
    for name in _ENVIRONMENT.list_templates():
        _ENVIRONMENT.get_template(name)


def inspector_of(request: Request) -> Inspector:
    """The inspector that serves the request."""
    found: Inspector = request.app.state.inspector
    return found


def render_part(template: str, inspector: Inspector, **values: Any) -> str:
    """A template as text that UTF-8 can carry."""
    given = {"inspector": inspector, "post_token": post_token(inspector.token), "now": now_ms(), "asset": _asset}
    return _ENVIRONMENT.get_template(template).render(given | values)


def render(
    request: Request, template: str, *, status: int = 200, headers: dict[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """A page, or a part of one."""
    inspector = inspector_of(request)
    text = render_part(template, inspector, path=request.url.path, **values)
    return HTMLResponse(text.encode(errors="replace"), status_code=status, headers=headers)


_VERSIONS: Final[dict[str, str]] = {}


def _asset(name: str) -> str:
    """The address of a file, which changes with its content."""
    if name not in _VERSIONS:
        _VERSIONS[name] = sha256((STATIC / name).read_bytes()).hexdigest()[:10]
    return f"/static/{name}?{_VERSIONS[name]}"


def plain(value: Json) -> str:
    """A value of metadata in a cell."""
    return preview(value, 60)


_ENVIRONMENT.filters["plain"] = plain
