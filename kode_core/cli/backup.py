"""``kode backup``: a copy of a store while it is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.text import Text

from kode_core.cli.opening import StoreOption, open_store
from kode_core.cli.output import show, visible, watched
from kode_core.cli.queries import run

__all__ = ["EXAMPLES", "backup"]

EXAMPLES: Final = ("kode backup /backups/agents-2025-01-31.db", "kode backup --store production backup.db")


def backup(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The file or folder to create; it must not exist.")],
    store: StoreOption = None,
) -> None:
    """Copy the store to TARGET while other programs use it.

    The copy shows one instant. An interrupted copy leaves nothing behind.
    """
    for path in run(_backup(store, target)):
        show(Text(visible(str(path))))


async def _backup(name: str | None, target: Path) -> Sequence[Path]:
    async with open_store(name) as store:
        with watched("copied") as progress:
            return await store.backup(target, progress=progress)
