"""Who may ask, what may be asked, and what the answers allow a browser to do."""

from __future__ import annotations

import socket

import httpx
import pytest
from kode_inspector import create_app
from kode_inspector.security import cookie_name, host_of, post_token

from plugins.inspector.tests.conftest import fill
from plugins.inspector.tests.filling import conversation
from plugins.inspector.tests.serving import TOKEN, Served, served

PATHS = (
    "/",
    "/now",
    "/calls",
    "/search",
    "/agent?id=agt-1",
    "/agent/raw?id=agt-1&at=0",
    "/agent/events?id=agt-1",
    "/agent/stream?id=agt-1",
    "/agent/export.json?id=agt-1",
    "/agent/export.html?id=agt-1",
    "/dashboard/figures",
    "/health",
    "/nothing",
)


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_shown_without_the_token(ordinary: Served, path: str) -> None:
    """A request without the token, or with another one, gets a refusal that shows nothing of the store."""
    for headers in ({}, {"authorization": "Bearer x"}, {"cookie": f"{cookie_name(TOKEN)}=x"}):
        answer = httpx.get(f"{ordinary.base}{path}", headers=headers, timeout=60)
        assert answer.status_code == 403
        assert "agt-1" not in answer.text and TOKEN not in answer.text


def test_the_token_becomes_a_cookie(ordinary: Served) -> None:
    """The address signs a browser in once, and leads on to the same page without the token."""
    with httpx.Client(base_url=ordinary.base, timeout=60) as client:
        answer = client.get("/agent", params={"id": "agt-1", "token": TOKEN})
        assert answer.status_code == 303
        assert answer.headers["location"] == "/agent?id=agt-1"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=lax" in cookie
        assert client.get("/agent", params={"id": "agt-1"}).status_code == 200


def test_the_redirect_stays_on_this_server(ordinary: Served) -> None:
    """A path that looks like another site does not lead there."""
    for path in ("//evil.example", "/\\evil.example", "///evil.example/x"):
        with socket.create_connection(("127.0.0.1", int(ordinary.base.rpartition(":")[2]))) as line:
            line.sendall(f"GET {path}?token={TOKEN} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while piece := line.recv(65_536):
                answer += piece
        location = next(row for row in answer.decode().split("\r\n") if row.lower().startswith("location:"))
        target = location.partition(": ")[2]
        assert target.startswith("/") and target[1] not in "/\\"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::2]:1"])
def test_another_host_is_refused(ordinary: Served, host: str) -> None:
    """A name that another site made lead here is refused, with the token and without it."""
    answer = httpx.get(ordinary.address, headers={"host": host}, timeout=60)
    assert answer.status_code == 421
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(("header", "name"), [("localhost:80", "localhost"), ("[::1]:80", "::1"), ("A.b", "a.b")])
def test_the_name_of_a_host_header(header: str, name: str) -> None:
    """Ports and brackets are no part of the name."""
    assert host_of(header) == name


@pytest.mark.parametrize("path", [*PATHS, "/static/app.js"])
def test_the_headers_of_security(ordinary: Served, path: str) -> None:
    """Every answer has them, and the policy allows no inline script or style and nothing from elsewhere."""
    if "stream" in path:
        return
    headers = ordinary.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "base-uri 'none'" in policy
    assert "unsafe" not in policy and "data:" not in policy and "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert "server" not in headers or "uvicorn" in headers["server"]


def test_pages_have_no_inline_script_or_style(ordinary: Served) -> None:
    """Nothing on a page needs what the policy forbids."""
    for path in PATHS:
        if "stream" in path or "export" in path:
            continue
        text = ordinary.get(path).text.lower()
        assert "<style" not in text and " style=" not in text and " onclick" not in text and "javascript:" not in text
        assert "<script>" not in text and 'src="http' not in text and 'href="http' not in text


def test_nothing_is_deleted_by_a_server_that_reads(url: str) -> None:
    """Without allow_delete a POST is refused, whatever it brings, and the page of it too."""
    fill(url, lambda store: conversation(store, "agt-1"))
    with served(url) as inspector, inspector.client(headers={"x-kode-post": post_token(TOKEN)}) as client:
        assert client.post("/agent/delete?id=agt-1").status_code == 403
        assert client.get("/agent/delete?id=agt-1").status_code == 403
        assert "/agent/delete" not in client.get("/agent?id=agt-1").text
        assert client.get("/agent?id=agt-1").status_code == 200


def test_a_post_needs_its_token(url: str) -> None:
    """With allow_delete an agent is deleted by a form of these pages, and not by another site's."""
    fill(url, lambda store: conversation(store, "agt-1"))
    good = {"x-kode-post": post_token(TOKEN)}
    with served(url, allow_delete=True) as inspector, inspector.client() as client:
        for wrong in ({}, {"x-kode-post": "x"}, good | {"origin": "https://evil.example"}, good | {"origin": "null"}):
            assert client.post("/agent/delete?id=agt-1", headers=wrong).status_code == 403
        for method in ("DELETE", "PUT", "PATCH", "OPTIONS"):
            assert client.request(method, "/agent/delete?id=agt-1", headers=good).status_code == 405
        assert client.get("/agent?id=agt-1").status_code == 200
        assert client.post("/agent/delete?id=agt-1", headers=good | {"origin": inspector.base}).status_code == 303
        assert client.get("/agent?id=agt-1").status_code == 404
        assert client.post("/agent/delete?id=agt-1", headers=good).status_code == 404


def test_a_server_on_a_network_takes_its_addresses(ordinary: Served) -> None:
    """With an address among its hosts any address is known, which no name can pretend to be; other names are not."""

    async def statuses() -> list[int]:
        app = create_app(ordinary.store, token=TOKEN, hosts=("0.0.0.0", "Shop.example"))
        found = []
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            for host in (
                "192.0.2.7:4817",
                "[2001:db8::1]",
                "shop.example",
                "localhost",
                "evil.example",
                "192.0.2.7.evil",
            ):
                found.append((await client.get("/static/app.js", headers={"host": host})).status_code)
        return found

    assert ordinary.run(statuses()) == [200, 200, 200, 200, 421, 421]


def test_files_outside_are_not_served(ordinary: Served) -> None:
    """The files of the pages are served, and no other."""
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd"):
        assert ordinary.get(path).status_code == 404
