"""``kode web``: pages that show what the agents of a store did."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from kode_core.cli.opening import StoreOption, address, configured_store, open_store, places
from kode_core.cli.queries import run
from kode_inspector.serving import PORT, serve

__all__ = ["EXAMPLES", "HostOption", "OpenOption", "PortOption", "web"]

EXAMPLES: Final = {
    "web": (
        "kode web",
        "kode web --store postgres://localhost/agents --open",
        "kode web --store sqlite:///data/agents.db --port 8000 --allow-delete",
    )
}

HostOption = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Where to listen; 127.0.0.1 is reached from this machine alone.")
]
PortOption = Annotated[
    int | None,
    typer.Option(min=0, max=65_535, metavar="N", help=f"The port; {PORT} if it is free, and else any that is."),
]
OpenOption = Annotated[bool, typer.Option("--open", help="Open the address in the browser of this machine.")]


def web(
    host: HostOption = "127.0.0.1",
    port: PortOption = None,
    open_browser: OpenOption = False,
    allow_delete: Annotated[
        bool, typer.Option("--allow-delete", help="Let the pages delete agents; otherwise they only read.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Show sessions, conversations, tool calls, live events and figures of a store in a browser.

    The command prints an address with a random token: a browser needs the whole of it once. Ctrl-C ends the server.
    The pages load nothing from elsewhere, and only read unless --allow-delete is given.
    """
    configured = configured_store(store)
    where = ", ".join((address(configured) or configured.backend.name, *places(configured)))
    run(_web(store, where, host, port, allow_delete, open_browser))


async def _web(
    target: str | None, where: str, host: str, port: int | None, allow_delete: bool, open_browser: bool
) -> None:
    async with open_store(target) as store:
        await serve(store, where=where, host=host, port=port, allow_delete=allow_delete, open_browser=open_browser)
