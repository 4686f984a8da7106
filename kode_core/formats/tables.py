"""Opens the tables of a database that another program wrote, and reads what importers need of them."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from kode_core.authoring.foreign_tables import ForeignTables
from kode_core.config import configure
from kode_core.errors import ConfigurationError
from kode_core.plugins import registry

__all__ = ["bare_scheme", "open_tables", "parsed", "require", "seconds_of", "time_of"]

_NO_TIME: Final = 253_402_300_800
"""The first second of the year 10000."""


@asynccontextmanager
async def open_tables(source: str) -> AsyncIterator[ForeignTables]:
    """The tables of a database that no one changes meanwhile: the path of a file of SQLite, or a URL of a server.

    A URL may name a driver, as in ``postgresql+asyncpg://``.

    Raises:
        ConfigurationError: there is no such database.
        BackendImportError: the plugin that reads it is not installed.
        StorageError: it cannot be read.
    """
    if not source:
        raise ConfigurationError("the source is empty; name a file of SQLite, or the URL of a database")
    target: str | Mapping[str, Any] = bare_scheme(source)
    if "://" not in source:
        target = {"type": "sqlite", "db_path": source}
    configured = configure(target, {}, registry.backend, os.environ)
    opened = configured.backend.foreign_tables
    if opened is None:
        raise ConfigurationError(f"tables of other programs are not read from {configured.backend.name}")
    async with opened(configured.options) as tables:
        yield tables


def bare_scheme(url: str) -> str:
    """The URL without the driver that SQLAlchemy's URLs may name."""
    scheme, found, rest = url.partition("://")
    return f"{scheme.partition('+')[0]}{found}{rest}"


async def require(tables: ForeignTables, wanted: Mapping[str, tuple[str, ...]], owner: str) -> None:
    """Check that tables have the columns that are read.

    Raises:
        ConfigurationError: one is missing.
    """
    for table, columns in wanted.items():
        found = await tables.columns(table)
        if not found:
            raise ConfigurationError(f"the database has no table {table} of {owner}")
        for column in columns:
            if column not in found:
                raise ConfigurationError(f"the table {table} has no column {column}, as {owner} makes it")


def parsed(raw: object) -> Any:
    """The JSON value of a column.

    Raises:
        ValueError: it is none that a store can keep.
        RecursionError: it is too deep.
    """
    if not isinstance(raw, str | bytes):
        raise ValueError(f"no text but {type(raw).__name__}")
    if isinstance(raw, str):
        raw.encode()  # a byte that was not UTF-8 is a surrogate here
    return json.loads(raw, parse_constant=_refused)


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def seconds_of(given: object) -> float | None:
    """The seconds of a time: a number, or an ISO text or a datetime, in UTC unless it says otherwise; None if none."""
    try:
        if isinstance(given, int | float) and not isinstance(given, bool):
            return float(given) if 0 <= given < _NO_TIME else None
        moment = datetime.fromisoformat(given) if isinstance(given, str) else given
        if not isinstance(moment, datetime):
            return None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0.0, moment.timestamp())
    except (ValueError, OverflowError):
        return None


def time_of(given: object) -> int | None:
    """The milliseconds of a time, as :func:`seconds_of` reads it."""
    seconds = seconds_of(given)
    return None if seconds is None else int(seconds * 1000)
