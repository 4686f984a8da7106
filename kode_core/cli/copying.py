"""``kode copy``: the agents of one store into another one, also while the first is used."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from kode_core.cli.known import require_agents
from kode_core.cli.moving import (
    ExistingOption,
    ReportOption,
    Told,
    UpdatedAfter,
    UpdatedBefore,
    agent_filters,
)
from kode_core.cli.opening import configured_store, open_store, places, store_argument
from kode_core.cli.options import (
    AgentsOption,
    CreatedAfter,
    CreatedBefore,
    MetadataOption,
    PrefixOption,
    TemplatesOption,
    UsersOption,
)
from kode_core.cli.output import count, print_note, show_line
from kode_core.cli.queries import run
from kode_core.errors import AgentNotFoundError, InvalidArgumentError
from kode_core.moving import CopyReport, PassReport, copy_store
from kode_core.moving.copying import selected
from kode_core.moving.outcomes import checked_existing
from kode_core.protocols import ExtendedStore

__all__ = ["EXAMPLES", "copy"]

EXAMPLES: Final = (
    "kode copy sqlite:///agents.db postgres://localhost/agents --verify",
    "kode copy production ./copy.db --prefix tau- --existing replace",
    "kode copy sqlite:///agents.db postgres://localhost/agents --live --existing replace",
)


def copy(
    source: Annotated[str, store_argument("FROM", "The store to read: a URL, or a name in kode.toml.")],
    target: Annotated[str, store_argument("TO", "The store to write; it is created if it is missing.")],
    existing: ExistingOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="At the end compare both stores, all records of them.")
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Go on and copy changes, until Ctrl-C asks for a last pass.")
    ] = False,
    interval: Annotated[
        float, typer.Option(metavar="S", min=0, max=86_400, help="Seconds between two passes of a live copy.")
    ] = 1,
    delete: Annotated[bool, typer.Option("--delete", help="Delete agents of TO that FROM does not have.")] = False,
    at_once: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Agents in memory at the same time.")] = 4,
    report: ReportOption = None,
    agent: AgentsOption = None,
    prefix: PrefixOption = None,
    template: TemplatesOption = None,
    user: UsersOption = None,
    metadata: MetadataOption = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    updated_after: UpdatedAfter = None,
    updated_before: UpdatedBefore = None,
) -> None:
    """Copy the agents of one store into another one, of any backend: everything of each, with its times.

    Nothing in FROM is changed. Started again after an interruption, the command goes on and doubles nothing. An agent
    that cannot be read, or that TO has with other records, is reported and left out, and the exit code is 1.

    With --live it goes on while programs write to FROM: it copies agents that have changed, deletes agents that are
    gone, and says when both stores are equal. To move a service: stop it, press Ctrl-C here once, wait for "both stores
    are equal", and start it on the other store.
    """
    times = (created_after, created_before, updated_after, updated_before)
    filters = agent_filters(agent, prefix, template, user, metadata, *times)
    selected(filters, delete=delete)  # before an empty store is created
    how: dict[str, Any] = {
        **filters,
        "existing": checked_existing("refuse" if existing is None else existing),
        "verify": verify,
        "delete": delete,
        "interval_s": interval,
        "at_once": at_once,
    }
    _refuse_same(source, target)
    told = Told("copied", report)
    told.end(run(_copy(source, target, told, live, how)))


def _refuse_same(source: str, target: str) -> None:
    one, other = configured_store(source), configured_store(target)
    if one.backend.name != other.backend.name:
        return
    files = [[Path(path).expanduser().resolve() for path in places(found)] for found in (one, other)]
    if one.options == other.options or (files[0] and files[0] == files[1]):
        raise InvalidArgumentError("FROM and TO are the same store")


async def _copy(source: str, target: str, told: Told, live: bool, how: dict[str, Any]) -> CopyReport:
    async with open_store(source) as one:
        await _see_agents(one, how, live)
        return await _copy_into(one, target, told, live, how)


async def _see_agents(source: ExtendedStore, how: dict[str, Any], live: bool) -> None:
    """Refuse agents that FROM does not have; a live copy waits for them, and --delete may be for their sake."""
    try:
        await require_agents(source, how.get("agent_id", ()))
    except AgentNotFoundError as exc:
        if not live and not how["delete"]:
            raise
        print_note(str(exc))


async def _copy_into(one: ExtendedStore, target: str, told: Told, live: bool, how: dict[str, Any]) -> CopyReport:
    passes = _Passes() if live else None
    async with open_store(target, create=True) as other:
        with told.progress() as progress, _until_asked() if live else _never() as until:
            return await copy_store(
                one, other, until=until, on_agent=told.agent, on_pass=passes, progress=progress, **how
            )


class _Passes:
    """Tells of the passes of a live copy that found something, and of the first one that did not."""

    def __init__(self) -> None:
        self._was_equal = False

    def __call__(self, one: PassReport) -> None:
        now = time.strftime("%H:%M:%S")
        if one.is_equal and not self._was_equal:
            show_line(Text(f"{now} pass {one.number:,}: equal, {count(one.agents, 'agent')}"))
        elif not one.is_equal:
            troubles = f", {one.troubles:,} in trouble" if one.troubles else ""
            if one.changed or self._was_equal:
                show_line(Text(f"{now} pass {one.number:,}: {count(one.changed, 'agent')} changed{troubles}"))
        self._was_equal = one.is_equal


@contextmanager
def _never() -> Iterator[None]:
    yield None


@contextmanager
def _until_asked() -> Iterator[asyncio.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second one interrupts."""
    until, loop = asyncio.Event(), asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        until.set()
        print_note("a last pass; Ctrl-C again interrupts it")
        remove()

    def remove() -> None:
        for number in signals:
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)

    for number in signals:
        with suppress(NotImplementedError):  # on Windows Ctrl-C ends a live copy at once
            loop.add_signal_handler(number, stop)
    try:
        yield until
    finally:
        remove()
