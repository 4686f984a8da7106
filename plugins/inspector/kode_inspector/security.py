"""The guard in front of the pages: it admits requests, and limits what a browser does with the answers."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from hashlib import sha256
from ipaddress import ip_address
from typing import Final
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard", "cookie_name", "host_of", "post_token"]

_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cache-control": "no-store",
}
_REFUSED: Final = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    "<title>kode: not allowed</title><h1>{0}</h1><p>{1}</p></html>"
)


def cookie_name(token: str) -> str:
    """The cookie of one run of the server: cookies do not tell ports apart."""
    return f"kode-{sha256(token.encode()).hexdigest()[:12]}"


def post_token(token: str) -> str:
    """The secret that forms send along; another site cannot know it."""
    return sha256(b"post\0" + token.encode()).hexdigest()


def host_of(header: str) -> str:
    """The name in a Host header, without the port."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if name.count(":") == 1 else name


class Guard:
    """Lets requests pass that name a known host and have the token, and adds the headers of security.

    A page of another site that resolves its name to this machine sends its own name as Host (DNS rebinding). The token
    comes once, in the address; the browser then has it as a cookie, and the address no longer shows it.
    """

    def __init__(self, app: ASGIApp, *, token: str, hosts: Collection[str] = ()) -> None:
        self._app = app
        self._token = token
        self._hosts = _LOOPBACK | {host.lower() for host in hosts}
        self._takes_addresses = any(_is_address(host) for host in self._hosts - _LOOPBACK)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, redirect, or pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    if name not in headers:
                        headers[name] = value
            await send(message)

        refusal = self._refusal(scope)
        await (self._app if refusal is None else refusal)(scope, receive, sending)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if len(headers.getlist("host")) != 1 or not self._knows(host_of(headers["host"])):
            return _refused(421, "Unknown host", "This server answers under the address that kode web printed.")
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in pairs if name == "token"]
        if given and self._is_token(given[0]) and scope["method"] == "GET":
            rest = urlencode([pair for pair in pairs if pair[0] != "token"])
            path = "/" + scope["path"].lstrip("/")  # never //host, which is another site
            answer = RedirectResponse(f"{path}?{rest}" if rest else path, status_code=303)
            answer.set_cookie(cookie_name(self._token), self._token, httponly=True, samesite="lax")
            return answer
        cookies = cookie_parser(headers.get("cookie", ""))
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if scope["path"].startswith("/static/"):
            return None
        if not self._is_token(cookies.get(cookie_name(self._token), "")) and not self._is_token(bearer):
            return _refused(
                403, "Not signed in", "Open the whole address that kode web printed, with its token, in this browser."
            )
        return self._posted(scope, headers)

    def _posted(self, scope: Scope, headers: Headers) -> Response | None:
        """Refuse what another site has this browser send; the form's own token is checked where it is read."""
        if scope["method"] in ("GET", "HEAD"):
            return None
        if scope["method"] != "POST":
            return _refused(405, "Not allowed", "Pages are read by GET, and forms sent by POST.")
        origin = headers.get("origin")
        if origin is not None and not self._knows(host_of(origin.partition("://")[2])):
            return _refused(403, "Not allowed", "This form was sent by another site.")
        if not secrets.compare_digest(headers.get("x-kode-post", ""), post_token(self._token)):
            return _refused(403, "Not allowed", "This form has no valid token; load the page again.")
        return None

    def _knows(self, host: str) -> bool:
        """True for the names of this server. An address cannot be made to lead elsewhere, as a name can."""
        return host in self._hosts or (self._takes_addresses and _is_address(host))

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(errors="replace"), self._token.encode())


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _refused(status: int, title: str, text: str) -> Response:
    return HTMLResponse(_REFUSED.format(title, text), status_code=status)
