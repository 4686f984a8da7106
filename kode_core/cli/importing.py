"""``kode import``: import conversations that were recorded elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from kode_core.cli.opening import StoreOption, open_store
from kode_core.cli.output import console, count, show, visible
from kode_core.cli.queries import run
from kode_core.errors import InvalidArgumentError
from kode_core.formats.openai_chat import (
    ChatConverter,
    ImportedConversation,
    RawConversation,
    import_conversation,
    read_conversations,
)

__all__ = ["EXAMPLES", "import_file"]

EXAMPLES: Final = (
    "kode import conversations.jsonl.gz",
    "kode import gpt-4o-airline.json.gz --template tau-airline --prefix tau --store sqlite:///demo.db",
)

_FORMATS: Final = ("openai-chat",)


class _Counts:
    def __init__(self) -> None:
        self.agents = self.messages = self.tool_calls = self.failed = self.events = self.refused = self.known = 0

    def add(self, conversation: ImportedConversation) -> None:
        self.agents += 1
        self.messages += len(conversation.messages)
        self.tool_calls += len(conversation.tool_calls)
        self.failed += conversation.failed
        self.events += len(conversation.events)

    def __str__(self) -> str:
        calls = f"{count(self.tool_calls, 'tool call')} ({self.failed:,} failed)"
        held = (count(self.agents, "agent"), count(self.messages, "message"), calls, count(self.events, "event"))
        known = (
            f"; {count(self.known, 'agent')} {'was' if self.known == 1 else 'were'} there already" if self.known else ""
        )
        return f"imported {', '.join(held)}{known}"


def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON or JSON Lines, gzipped or not.")],
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="openai-chat is the only one.")] = _FORMATS[0],
    template: Annotated[str, typer.Option(metavar="ID", help="Template of the agents.")] = "openai-chat",
    prefix: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Start of ids for conversations that have none; else the file's name."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace agents that exist already and differ.")] = False,
    store: StoreOption = None,
) -> None:
    """Store the conversations of FILE, each as an agent.

    Importing the same file again writes nothing. If a conversation cannot be read, or its agent exists already and
    differs, it is reported and left out. The others are imported, and the exit code is 1.

    Messages and conversations that say when they were created keep their times. If the file has no times, records begin
    at 2025-01-01, the same each time, and messages have the time of the import.
    """
    if form not in _FORMATS:
        raise InvalidArgumentError(f"format {form!r} is not known; known are {', '.join(_FORMATS)}")
    conversations = _opened(file)  # checked before an empty store is created
    counts = run(_import(store, conversations, ChatConverter(template, prefix), replace))
    show(Text(str(counts)))
    if counts.refused:
        show(Text(f"left out {count(counts.refused, 'conversation')}, see above", "red"))
        raise typer.Exit(1)


def _opened(file: Path) -> Iterator[RawConversation]:
    """The conversations of the file; raises InvalidArgumentError if there are none."""
    conversations = read_conversations(file)
    first = next(conversations, None)
    if first is None:
        raise InvalidArgumentError(f"there is no conversation in {file}")
    return chain((first,), conversations)


async def _import(
    target: str | None, conversations: Iterable[RawConversation], converter: ChatConverter, replace: bool
) -> _Counts:
    counts = _Counts()
    async with open_store(target, create=True) as store:
        with _progress() as progress:
            for raw in _tracked(progress, conversations):
                try:
                    conversation = converter.convert(raw)
                    if await import_conversation(store, conversation, replace=replace):
                        counts.add(conversation)
                    else:
                        counts.known += 1
                except InvalidArgumentError as exc:
                    counts.refused += 1
                    progress.console.print(Text(f"error: {visible(str(exc))}"), soft_wrap=True)
    return counts


def _progress() -> Progress:
    columns = (TextColumn("importing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console(sys.stderr), transient=True, disable=not sys.stderr.isatty())


def _tracked(progress: Progress, conversations: Iterable[RawConversation]) -> Iterable[RawConversation]:
    task = progress.add_task("importing", total=None)
    for raw in conversations:
        yield raw
        progress.update(task, advance=1, total=raw.document.total)
