"""``kode demo``: a store with 200 recorded runs of an agent, in a browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote

import typer
from rich.progress import track

from kode_core import ExtendedStore, create_extended_store
from kode_core.cli.output import console, holdings, print_note
from kode_core.cli.queries import run
from kode_core.formats.openai_chat import ChatConverter, import_conversation, read_conversations
from kode_inspector.serving import serve
from kode_inspector.web import HostOption, OpenOption, PortOption

__all__ = ["EXAMPLES", "RUNS", "demo"]

EXAMPLES: Final = {"demo": ("kode demo", "kode demo --file /tmp/demo.db --open", "kode demo --no-serve")}

RUNS: Final = Path(__file__).parent / "recorded" / "gpt-4o-airline.json.gz"
"""200 runs of tau-bench's airline agent, under the MIT licence; the folder has it."""


def demo(
    file: Annotated[
        Path, typer.Option(metavar="FILE", help="The SQLite database; it is created, or gone on with.")
    ] = Path("kode-demo.db"),
    serving: Annotated[bool, typer.Option("--serve/--no-serve", help="Serve the pages afterwards.")] = True,
    host: HostOption = "127.0.0.1",
    port: PortOption = None,
    open_browser: OpenOption = False,
) -> None:
    """Import 200 recorded conversations into a new SQLite database, and show them in a browser.

    The runs are of an airline's agent, from tau-bench, and were recorded with GPT-4o; the MIT licence covers them. A
    second call stores nothing twice.
    """
    run(_demo(file, serving, host, port, open_browser))


async def _demo(file: Path, serving: bool, host: str, port: int | None, open_browser: bool) -> None:
    async with create_extended_store(f"sqlite:///{quote(str(file))}") as store:
        await _import(store)
        print_note(f"{file.resolve()} holds {holdings((await store.get_metrics()).storage)}")
        if serving:
            await serve(store, where=f"sqlite, {file}", host=host, port=port, open_browser=open_browser)


async def _import(store: ExtendedStore) -> None:
    converter = ChatConverter(template="tau-airline", prefix="tau")
    runs = track(
        read_conversations(RUNS),
        "importing",
        total=200,
        transient=True,
        console=console(sys.stderr),
        disable=not sys.stderr.isatty(),
    )
    for raw in runs:
        await import_conversation(store, converter.convert(raw))
