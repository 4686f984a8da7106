"""``kode export``: the agents of a store in files of their own, for another store or for analysts."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final

import typer

from kode_core.cli.known import require_agents
from kode_core.cli.moving import ReportOption, Told, UpdatedAfter, UpdatedBefore, agent_filters
from kode_core.cli.opening import StoreOption, configured_store, open_store
from kode_core.cli.options import (
    AgentsOption,
    CreatedAfter,
    CreatedBefore,
    MetadataOption,
    PrefixOption,
    TemplatesOption,
    UsersOption,
)
from kode_core.cli.queries import run
from kode_core.errors import InvalidArgumentError
from kode_core.formats.parquet import export_parquet
from kode_core.moving import CopyReport, export_archive

__all__ = ["EXAMPLES", "export"]

EXAMPLES: Final = (
    "kode export agents.jsonl",
    "kode export agents.jsonl.zst --prefix tau- --updated-after 7d",
    "kode export - | ssh other kode import - --store production",
    "kode export --format parquet ./tables --template tau-airline",
)

_JSONL: Final = "jsonl"
_PARQUET: Final = "parquet"


def export(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="The file to create, - for stdout; of parquet the folder.")
    ],
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help=f"{_JSONL} or {_PARQUET}.")] = _JSONL,
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
    store: StoreOption = None,
) -> None:
    """Write agents to a file, everything of each, from which kode import brings them into any store.

    The file is an archive of JSON Lines with digests; with the suffix .zst or .gz it is compressed. It appears once it
    is complete. An agent that cannot be read is reported and left out, and the exit code is 1.

    --format parquet writes a folder of tables for analysts, which DuckDB, pandas and polars read, and kode import does
    not.
    """
    times = (created_after, created_before, updated_after, updated_before)
    filters = agent_filters(agent, prefix, template, user, metadata, *times)
    if form not in (_JSONL, _PARQUET):
        raise InvalidArgumentError(f"format {form!r:.40} is not known; known are {_JSONL} and {_PARQUET}")
    if form == _PARQUET and target == "-":
        raise InvalidArgumentError("tables of parquet are files of a folder, and cannot go to stdout; name a folder")
    told = Told("exported", report, quiet=target == "-")
    write = _archive if form == _JSONL else _parquet
    told.end(run(write(store, target, told, filters)))


async def _archive(name: str | None, target: str, told: Told, filters: dict[str, Any]) -> CopyReport:
    backend = configured_store(name).backend.name
    async with open_store(name) as store:
        with told.progress() as progress:
            await require_agents(store, filters.get("agent_id", ()))
            where: Any = sys.stdout.buffer if target == "-" else target
            return await export_archive(
                store, where, backend=backend, on_agent=told.agent, progress=progress, **filters
            )


async def _parquet(name: str | None, directory: str, told: Told, filters: dict[str, Any]) -> CopyReport:
    async with open_store(name) as store:
        with told.progress() as progress:
            await require_agents(store, filters.get("agent_id", ()))
            return await export_parquet(store, directory, on_agent=told.agent, progress=progress, **filters)
