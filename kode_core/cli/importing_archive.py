"""``kode import`` of an archive that ``kode export`` made."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

from kode_core.cli.moving import Told
from kode_core.cli.opening import open_store
from kode_core.cli.queries import run
from kode_core.moving import CopyReport, import_archive
from kode_core.moving.files import may_be_archive
from kode_core.moving.importing import check_header
from kode_core.moving.outcomes import checked_existing

__all__ = ["import_agents", "is_archive"]

_BEGIN: Final = b'{"kode":'


def is_archive(source: str) -> bool:
    """True for a file that begins as archives do, and for stdin."""
    if source == "-":
        return True
    try:
        return may_be_archive(Path(source), _BEGIN)
    except (OSError, UnicodeError):
        return False


def import_agents(
    source: str, target: str | None, report: Path | None, *, existing: str, skip_damaged: bool, dry_run: bool
) -> None:
    """Import the agents, and print the outcome; with *dry_run* no store is opened."""
    how = {"existing": checked_existing(existing), "skip_damaged": skip_damaged}
    if source != "-":
        run(check_header(source))  # before an empty store is created
    told = Told("would import" if dry_run else "imported", report)
    told.end(run(_import(source, target, told, how, dry_run=dry_run)))


async def _import(source: str, target: str | None, told: Told, how: dict[str, Any], *, dry_run: bool) -> CopyReport:
    async with nullcontext() if dry_run else open_store(target, create=True) as store:
        with told.progress() as progress:
            where: Any = sys.stdin.buffer if source == "-" else source
            return await import_archive(store, where, on_agent=told.agent, progress=progress, **how)
