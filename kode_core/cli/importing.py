"""``kode import``: archives of ``kode export``, conversations recorded elsewhere, and stores of the KODE SDK."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from kode_core.cli import importing_archive as archive
from kode_core.cli import importing_sdk as sdk
from kode_core.cli.moving import ExistingOption
from kode_core.cli.opening import StoreOption, open_store
from kode_core.cli.output import console, count, show, visible
from kode_core.cli.queries import run
from kode_core.errors import InvalidArgumentError
from kode_core.formats.importing import find_importer
from kode_core.formats.openai_chat import (
    ChatConverter,
    ImportedConversation,
    RawConversation,
    import_conversation,
    read_conversations,
)
from kode_core.formats.recognising import recognise
from kode_core.moving.placing import OF_ONE_AGENT

__all__ = ["EXAMPLES", "import_file"]

EXAMPLES: Final = (
    "kode import agents.jsonl.zst --existing skip",
    "kode import conversations.jsonl.gz",
    "kode import gpt-4o-airline.json.gz --template tau-airline --prefix tau --store sqlite:///demo.db",
    "kode import --from kode-sdk ./old/agents.db --files ./old/store --store postgres://localhost/agents",
    "kode import --from langgraph ./checkpoints.db --dry-run --report report.jsonl",
)

_SHOWN: Final = 20
"""The conversations that are left out of which the reason is printed."""
_ARCHIVE: Final = "archive"
_CHAT: Final = "openai-chat"
_SDK: Final = "kode-sdk"
_GRAPH: Final = "langgraph"

_FORMATS: Final = f"{_ARCHIVE}, which is recognised, {_CHAT}, {_SDK}, {_GRAPH}, or another that is installed."


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
        return f"{', '.join(held)}{known}"


def import_file(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A file, JSON or JSON Lines, gzipped or not; or a store of the SDK.")
    ],
    form: Annotated[
        str | None,
        typer.Option("--from", "--format", metavar="FORMAT", help=_FORMATS),
    ] = None,
    template: Annotated[
        str | None, typer.Option(metavar="ID", help=f"Template of the agents; {_CHAT} without it.")
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Start of ids for conversations that have none; else the file's name."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace agents that exist already and differ.")] = False,
    existing: ExistingOption = None,
    files: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with the files of the SDK's database store.")
    ] = None,
    no_files: Annotated[
        bool, typer.Option("--no-files", help="Import the tables of the SDK's database store alone.")
    ] = False,
    recover: Annotated[
        bool,
        typer.Option("--recover-from-snapshots", help="Take the newest snapshot where the SDK has lost the messages."),
    ] = False,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Import the rest of agents with records that cannot be read.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read the source and report; no store is opened or written.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the outcome of each agent of an archive or of the SDK, as JSON Lines."
        ),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Store the agents of an archive, the conversations of a file, or the agents of a store of the KODE SDK.

    An archive of kode export, or - for one on stdin, is recognised by its first line. Its agents keep all they have.
    A source of another program that is known is not imported without --from: an error says which.

    Importing the same source again writes nothing. If a conversation or an agent cannot be read, or its agent exists
    already and differs, it is reported and left out. The others are imported, and the exit code is 1.

    Messages and conversations that say when they were created keep their times. If the file has no times, all
    times begin at 2025-01-01, the same each time, except for the time of the last change, which is the import's.

    --from kode-sdk reads the folder of a JSONStore, the file of a SqliteStore, or the database of a PostgresStore, and
    changes nothing in it. Stop the programs that write to it before.

    --from langgraph reads the checkpoints that LangGraph's savers keep in SQLite or PostgreSQL: the newest messages of
    each thread, or, with kode-langgraph, all checkpoints, so that graphs go on.

    Importers of other formats come with other distributions: openai-agents with kode-openai-agents, and adk with
    kode-adk, which read the databases of their sessions; claude with kode-claude-agent, which reads a transcript
    or a folder of them.
    """
    if form in (None, _ARCHIVE):
        _refuse_pipes(source)
    form = form or (_ARCHIVE if archive.is_archive(source) else _chat(source))
    if form == _ARCHIVE:
        sdk_options = {"files": files is not None, "no_files": no_files, "recover_from_snapshots": recover}
        _refuse(form, template=template is not None, prefix=prefix is not None, **sdk_options)
        if existing is None:
            existing = "replace" if replace else "refuse"
        elif replace:
            raise InvalidArgumentError("--existing says what --replace says: give one of them")
        archive.import_agents(source, store, report, existing=existing, skip_damaged=skip_damaged, dry_run=dry_run)
        return
    _refuse(form, existing=existing is not None)
    if form == _SDK:
        _refuse(form, template=template is not None, prefix=prefix is not None)
        how = {"recover_from_snapshots": recover, "skip_damaged": skip_damaged, "replace": replace}
        sdk.import_store(source, store, files, report, without_files=no_files, dry_run=dry_run, how=how)
        return
    if form != _CHAT:
        importer = find_importer(form, (_CHAT, _SDK, _ARCHIVE))
        sdk_options = {"files": files is not None, "no_files": no_files, "recover_from_snapshots": recover}
        _refuse(form, template=template is not None, prefix=prefix is not None, **sdk_options)
        how = {"dry_run": dry_run, "skip_damaged": skip_damaged, "replace": replace}
        sdk.import_others(importer, source, store, report, **how)
        return
    given = {"no_files": no_files, "files": files is not None, "report": report is not None}
    _refuse(form, recover_from_snapshots=recover, skip_damaged=skip_damaged, **given)
    conversations = _opened(Path(source))  # checked before an empty store is created
    counts = run(_import(store, conversations, ChatConverter(template or _CHAT, prefix), replace, dry_run))
    show(Text(f"{'would import' if dry_run else 'imported'} {counts}"))
    if counts.refused:
        seen = "see above" if counts.refused <= _SHOWN else f"of which the first {_SHOWN} are above"
        show(Text(f"left out {count(counts.refused, 'conversation')}, {seen}", "red"))
        raise typer.Exit(1)


def _refuse_pipes(source: str) -> None:
    """Refuse a source that cannot be looked at first and read then; opening one may also block."""
    try:
        mode = Path(source).stat().st_mode
    except (OSError, ValueError):  # it is the place of a database, or no file, which is said later
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InvalidArgumentError(
            f"{source} is a pipe or a device, and would be read twice: write it into a file, or give - as the source"
            " for an archive on stdin"
        )


def _chat(source: str) -> str:
    """The format of chats, unless the source is seen to be another program's."""
    found = run(recognise(source))
    if found is not None:
        place = "the source" if "://" in source else source  # a URL may have a password
        raise InvalidArgumentError(f"{place} {found.described}: {found.advice}")
    return _CHAT


def _refuse(form: str, **given: bool) -> None:
    """Refuse the options of other formats."""
    for name, is_given in given.items():
        if is_given:
            raise InvalidArgumentError(f"--{name.replace('_', '-')} is not an option of --from {form}")


def _opened(file: Path) -> Iterator[RawConversation]:
    """The conversations of the file; raises InvalidArgumentError if there are none."""
    conversations = read_conversations(file)
    first = next(conversations, None)
    if first is None:
        raise InvalidArgumentError(f"there is no conversation in {file}")
    return chain((first,), conversations)


async def _import(
    target: str | None,
    conversations: Iterable[RawConversation],
    converter: ChatConverter,
    replace: bool,
    dry_run: bool,
) -> _Counts:
    counts = _Counts()
    async with nullcontext() if dry_run else open_store(target, create=True) as store:
        with _progress() as progress:
            for raw in _tracked(progress, conversations):
                try:
                    conversation = converter.convert(raw)
                    if store is None or await import_conversation(store, conversation, replace=replace):
                        counts.add(conversation)
                    else:
                        counts.known += 1
                except OF_ONE_AGENT as exc:
                    counts.refused += 1
                    if counts.refused > _SHOWN:
                        continue
                    where = "" if isinstance(exc, InvalidArgumentError) else f"{raw.place}: "
                    progress.console.print(Text(f"error: {visible(f'{where}{exc}')}"), soft_wrap=True)
    return counts


def _progress() -> Progress:
    columns = (TextColumn("importing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console(sys.stderr), transient=True, disable=not sys.stderr.isatty())


def _tracked(progress: Progress, conversations: Iterable[RawConversation]) -> Iterable[RawConversation]:
    task = progress.add_task("importing", total=None)
    for raw in conversations:
        yield raw
        progress.update(task, advance=1, total=raw.document.total)
