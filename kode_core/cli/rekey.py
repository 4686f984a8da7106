"""``kode rekey``: put the records of an encrypted store under its first key."""

from __future__ import annotations

from typing import Annotated, Final

import typer
from rich.text import Text

from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.output import count, fail, print_json, show, visible, watched, wire
from kode_core.cli.queries import run
from kode_core.report import RekeyResult

__all__ = ["EXAMPLES", "rekey"]

EXAMPLES: Final = (
    "kode rekey --dry-run",
    "kode rekey --store 'sqlite:///agents.db?encryption_key_file=keys'",
    "kode rekey --store 'sqlite:///agents.db?encryption_key_file=keys&encryption_plaintext=read'",
)


def rekey(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count the records that are not under the first key, and write nothing.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put every record of an encrypted store under the first of its keys, while programs go on with their work.

    First give the new key, in front of the old ones, to all programs. The command can be interrupted and begun again.
    With encryption_plaintext=read it also encrypts the records that are stored as plain text. At the end it names the
    keys under which records are left, with exit code 1 if there are any.
    """
    result = run(_rekey(store, dry_run=dry_run))
    if as_json:
        print_json(wire(result))
    else:
        _show(result, dry_run=dry_run)
    if result.left and not dry_run:
        raise typer.Exit(1)


def _show(result: RekeyResult, *, dry_run: bool) -> None:
    verb = "would be" if dry_run else "was" if result.records == 1 else "were"
    plain = f", {result.plain:,} of them from plain text" if result.plain else ""
    records = count(result.records, "record")
    show(Text(f"{count(result.agents, 'agent')}: {records} {verb} put under the first key{plain}"))
    for key_id, number in result.left.items():
        called = "are plain text" if key_id == "plain" else f"are under the key {visible(key_id)}"
        show(Text(f"{count(number, 'record')} {called}{'' if dry_run else ' still'}"))
    for name in result.unreadable:
        fail(f"{name} cannot be read")


async def _rekey(target: str | None, *, dry_run: bool) -> RekeyResult:
    from kode_core.rekeying import rekey as put_under

    async with open_store(target) as store:
        with watched("agents") as progress:
            return await put_under(store, dry_run=dry_run, progress=progress)
