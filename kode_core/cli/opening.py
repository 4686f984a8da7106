"""Which store a command works on."""

from __future__ import annotations

import os
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Final

import typer

from kode_core import create_extended_store
from kode_core.config import Configured, configure, path_options
from kode_core.errors import ConfigurationError
from kode_core.factory import StoreOpening
from kode_core.plugins import registry
from kode_core.protocols import ExtendedStore

__all__ = ["JsonOption", "StoreOption", "address", "configured_store", "default_store", "open_store", "places"]

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        "-s",
        metavar="URL|NAME",
        help="A URL such as sqlite:///agents.db, or the name of a store in kode.toml.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]

default_store: Final[ContextVar[str | None]] = ContextVar("default_store", default=None)
"""What ``kode --store … COMMAND`` named, for commands that are not given ``--store`` themselves."""


def open_store(target: str | None, *, create: bool = False) -> StoreOpening[ExtendedStore]:
    """Open the store that *target* or the surroundings name.

    Without *create* a store whose file or folder is not there is refused: a look must not leave an empty one behind.
    """
    if not create:
        _refuse_missing(configured_store(target))
    return create_extended_store(target or default_store.get())


def configured_store(target: str | None) -> Configured:
    """What would be opened, and where that was said."""
    return configure(target or default_store.get(), {}, registry.backend, os.environ)


def places(configured: Configured) -> list[str]:
    """The files and folders that the backend's options name."""
    names = sorted(path_options(configured.backend.options))
    values = [getattr(configured.options, name) for name in names]
    return [value for value in values if isinstance(value, str) and not value.startswith(":")]


def address(configured: Configured) -> str | None:
    """The server and the database that the backend's options name, without a secret; None where there is no server."""
    place = getattr(configured.options, "place", None)
    return place if isinstance(place, str) else None


def _refuse_missing(configured: Configured) -> None:
    for place in places(configured):
        if not Path(place).expanduser().exists():
            raise ConfigurationError(
                f"there is no {configured.backend.name} store at {place} (from {configured.source}); "
                "name another with --store, or make one with kode import"
            )
    is_there = configured.backend.is_there
    if is_there is not None and not is_there(configured.options):
        where = ", ".join(places(configured)) or "the address"
        raise ConfigurationError(
            f"what is at {where} (from {configured.source}) is no {configured.backend.name} store of kode, and this "
            "command makes none; name another with --store"
        )
