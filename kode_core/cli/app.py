"""The command line application: all commands, and the handling of their errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperGroup

import kode_core
from kode_core.cli import (
    backup,
    completion,
    copying,
    delete,
    diff,
    doctor,
    documents,
    events,
    exporting,
    importing,
    locks,
    messages,
    plugins,
    prune,
    rekey,
    schema,
    sessions,
    show,
    snapshots,
    stats,
    text_index,
    tool_calls,
)
from kode_core.cli.opening import StoreOption, default_store, default_tenant
from kode_core.cli.output import fail, give_up_output, prepare_streams
from kode_core.cli.times import LocalOption, set_local
from kode_core.errors import KodeError

__all__ = ["GROUP", "app", "run"]

GROUP: Final = "kode.commands"
"""The entry point group of further commands: functions for typer. Their modules' ``EXAMPLES`` has examples for each."""
_OF_OTHERS: Final = {
    "approvals": "kode-agent",
    "approve": "kode-agent",
    "chat": "kode-agent",
    "compare": "kode-conformance",
    "conformance": "kode-conformance",
    "demo": "kode-inspector",
    "deny": "kode-agent",
    "new-store": "kode-conformance",
    "web": "kode-inspector",
}
"""Commands of distributions that not every user has installed."""


class _Command(NamedTuple):
    name: str
    call: Callable[..., Any]
    examples: tuple[str, ...] = ()


def _version(wanted: bool = True) -> None:
    if wanted:
        sys.stdout.write(f"kode-core {kode_core.__version__}\n")
        raise typer.Exit


def version() -> None:
    """Print the version of kode-core."""
    _version()


COMMANDS: Final = (
    _Command("sessions", sessions.sessions, sessions.EXAMPLES),
    _Command("show", show.show_agent, show.EXAMPLES),
    _Command("messages", messages.messages, messages.EXAMPLES),
    _Command("tool-calls", tool_calls.tool_calls, tool_calls.EXAMPLES),
    _Command("documents", documents.documents, documents.EXAMPLES),
    _Command("snapshots", snapshots.snapshots, snapshots.EXAMPLES),
    _Command("stats", stats.stats, stats.EXAMPLES),
    _Command("locks", locks.locks, locks.EXAMPLES),
    _Command("events", events.events, events.EXAMPLES),
    _Command("diff", diff.diff, diff.EXAMPLES),
    _Command("export", exporting.export, exporting.EXAMPLES),
    _Command("import", importing.import_file, importing.EXAMPLES),
    _Command("copy", copying.copy, copying.EXAMPLES),
    _Command("delete", delete.delete, delete.EXAMPLES),
    _Command("prune", prune.prune, prune.EXAMPLES),
    _Command("rekey", rekey.rekey, rekey.EXAMPLES),
    _Command("backup", backup.backup, backup.EXAMPLES),
    _Command("doctor", doctor.doctor, doctor.EXAMPLES),
    _Command("plugins", plugins.plugins, plugins.EXAMPLES),
    _Command("schema", schema.schema, schema.EXAMPLES),
    _Command("text-index", text_index.text_index, text_index.EXAMPLES),
    _Command("completion", completion.completion, completion.EXAMPLES),
    _Command("version", version),
)


class _Group(TyperGroup):
    """The commands above and the commands of other distributions, each imported on first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The built-in commands in their order, then the others by name."""
        own = super().list_commands(ctx)
        return own + sorted(entry.name for entry in entry_points(group=GROUP) if entry.name not in own)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by its name; a command that cannot be imported is reported and left out."""
        found = super().get_command(ctx, cmd_name)
        entries = tuple(entry_points(group=GROUP, name=cmd_name))
        if found is not None or not entries:
            if found is None and (owner := _OF_OTHERS.get(cmd_name)):
                fail(
                    f"kode {cmd_name} comes with {owner}, which is not installed here: pip install {owner}, "
                    f"or from a clone pip install ./plugins/{owner.removeprefix('kode-')}"
                )
                raise typer.Exit(2)
            return found
        try:
            call = entries[0].load()
        except Exception as exc:  # noqa: BLE001 - another distribution's code
            fail(f"the command {cmd_name} ({entries[0].value}) cannot be imported: {type(exc).__name__}: {exc}")
            return None
        alone = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        _add(_Command(cmd_name, call, getattr(sys.modules[call.__module__], "EXAMPLES", {}).get(cmd_name, ())), alone)
        return typer.main.get_command(alone)


app: Final = typer.Typer(
    name="kode",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _paragraphs(docstring: str | None) -> str:
    """A docstring for typer, which does not join the lines of a paragraph itself."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (docstring or "").split("\n\n"))


def _add(command: _Command, to: typer.Typer) -> None:
    examples = "\n\n".join(("[bold]Examples[/]", *command.examples)) if command.examples else None
    to.command(command.name, help=_paragraphs(command.call.__doc__), epilog=examples)(command.call)


def _kode(
    store: StoreOption = None,
    local: LocalOption = False,
    tenant: Annotated[
        str | None,
        typer.Option("--tenant", metavar="NAME", help="See and change the agents of one tenant alone."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Look into a store of agents, import into it, back it up and clean it up.

    Without [bold]--store[/] the store is the one that KODE_STORE_URL, KODE_STORE_TYPE or kode.toml name, and
    otherwise SQLite at ./data/agents.db.
    """
    default_store.set(store)
    set_local(local)
    default_tenant.set(tenant)


app.callback(help=_paragraphs(_kode.__doc__))(_kode)
for _command in COMMANDS:
    _add(_command, app)


def run() -> int:
    """Run the command and return the exit code; an error of the library is one line on stderr."""
    prepare_streams()
    if "_KODE_COMPLETE" in os.environ:
        completion.prepare_completion()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except KodeError as exc:
        if os.environ.get("KODE_DEBUG"):
            raise
        fail(str(exc))
        return 2
    except OSError as exc:
        if os.environ.get("KODE_DEBUG"):
            raise
        give_up_output()
        fail(f"the output cannot be written: {exc.strerror or exc}")
        return 2
    except MemoryError:
        if os.environ.get("KODE_DEBUG"):
            raise
        fail("there is not enough memory: a file, or one agent or record, is too large for this computer")
        return 2
    return 0
