"""The server of ``kode web`` and ``kode demo``, which runs until it is ended."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import uvicorn

from kode_core import ConfigurationError, ExtendedStore
from kode_core.cli.output import print_note, visible
from kode_inspector.app import create_app

__all__ = ["PORT", "serve"]

PORT: Final = 4817
"""The port, if it is free and none was asked for."""


class _Server(uvicorn.Server):
    """A server whose signals this module handles: the store is closed in order."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


async def serve(
    store: ExtendedStore,
    *,
    where: str,
    host: str = "127.0.0.1",
    port: int | None = None,
    allow_delete: bool = False,
    open_browser: bool = False,
) -> None:
    """Serve the pages of *store* until Ctrl-C or SIGTERM; the address goes to stdout."""
    listener = _listen(host, port)
    app = create_app(store, where=where, allow_delete=allow_delete, hosts=(host, socket.gethostname()))
    config = uvicorn.Config(
        app, log_level="warning", server_header=False, lifespan="off", timeout_graceful_shutdown=1, access_log=False
    )
    server = _Server(config)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # streams that Ctrl-C ends are no errors
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/?token={app.state.inspector.token}"
    if not _is_loopback(host):
        print_note(
            f"other machines can reach {host}: whoever has the address can read this store, and it is not encrypted"
        )
    sys.stdout.write(f"{visible(address)}\n")
    sys.stdout.flush()
    print_note("open this address in a browser; Ctrl-C ends the server")
    if open_browser:
        await asyncio.to_thread(webbrowser.open, address)
    await _until_ended(server, listener)


async def _until_ended(server: uvicorn.Server, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError, RuntimeError, ValueError):  # on Windows, Ctrl-C ends the loop
            loop.add_signal_handler(number, server.handle_exit, number, None)
    try:
        await server.serve(sockets=[listener])
    finally:
        listener.close()


def _listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens: at *port*, or at the usual one, or at any if that is taken."""
    problem: OSError | None = None
    for number in (PORT, 0) if port is None else (port,):
        try:
            family, kind, proto, _, address = socket.getaddrinfo(
                host, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, kind, proto)
        except (OSError, UnicodeError, OverflowError) as exc:
            raise ConfigurationError(f"--host {host!r:.80} is no address of this machine: {exc}") from exc
        try:
            if sys.platform != "win32":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(100)
        except OSError as exc:
            listener.close()
            problem = exc
            continue
        return listener
    reason = problem.strerror if problem is not None else "unknown"
    raise ConfigurationError(f"the server cannot listen at {host} port {port}: {reason}; choose another with --port")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
