"""Which store a command works on."""

from __future__ import annotations

import os
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from kode_core import create_extended_store
from kode_core.authoring.values import path_options
from kode_core.config import Configured, configure
from kode_core.errors import ConfigurationError
from kode_core.factory import StoreOpening
from kode_core.plugins import registry
from kode_core.protocols import ExtendedStore
from kode_core.sources.files import named_stores

__all__ = [
    "JsonOption",
    "StoreOption",
    "address",
    "complete_store",
    "configured_store",
    "default_store",
    "default_tenant",
    "open_store",
    "places",
    "refuse_missing",
    "store_argument",
]


def complete_store(incomplete: str) -> list[str]:
    """The stores of the configuration file, and the beginnings of URLs, that begin so."""
    try:
        names = sorted(named_stores(os.environ))
        urls = [f"{name}:" if name == "memory" else f"{name}://" for name in registry.names()]
    except Exception:  # noqa: BLE001 - a shell has no use for errors between two keys
        return []
    return [name for name in (*names, *urls) if name.startswith(incomplete)]


StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        "-s",
        metavar="URL|NAME",
        help="A URL such as sqlite:///agents.db, or the name of a store in kode.toml.",
        autocompletion=complete_store,
    ),
]


def store_argument(metavar: str, what: str) -> Any:
    """An argument that names a store, which shells complete."""
    return typer.Argument(metavar=metavar, help=what, autocompletion=complete_store)


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]

default_store: Final[ContextVar[str | None]] = ContextVar("default_store", default=None)
"""The store named by ``kode --store … COMMAND``, for commands without ``--store`` of their own."""


default_tenant: Final[ContextVar[str | None]] = ContextVar("default_tenant", default=None)
"""The tenant named by ``kode --tenant … COMMAND``: the command sees its agents alone."""


def open_store(target: str | None, *, create: bool = False) -> StoreOpening[ExtendedStore]:
    """Open the store named by *target*, or by the environment without one.

    Without *create*, a store whose file or folder does not exist is refused: a command that only reads must not leave
    an empty store behind.
    """
    if not create:
        refuse_missing(configured_store(target))
    return create_extended_store(_named(target), **_options())


def configured_store(target: str | None) -> Configured:
    """The store that would be opened, and the source of its configuration."""
    return configure(_named(target), _options(), registry.backend, os.environ)


def _options() -> dict[str, Any]:
    """The options that the command line gives; an empty tenant, as of a variable that is not set, is not everybody."""
    tenant = default_tenant.get()
    if tenant == "":
        raise ConfigurationError("--tenant is empty; name a tenant, or leave --tenant out for the whole store")
    return {} if tenant is None else {"tenant": tenant}


def _named(target: str | None) -> str | None:
    """The store that the command line names; an empty name, as of a variable that is not set, is not the default."""
    named = default_store.get() if target is None else target
    if named == "":
        raise ConfigurationError("--store is empty; name a store, or leave --store out for the default")
    return named


def places(configured: Configured) -> list[str]:
    """The files and folders that the backend's options name."""
    names = sorted(path_options(configured.backend.options))
    values = [getattr(configured.options, name) for name in names]
    return [value for value in values if isinstance(value, str) and not value.startswith(":")]


def address(configured: Configured) -> str | None:
    """The server and the database that the backend's options name, without a secret; None if there is no server."""
    shown = getattr(configured.options, "address", None)
    return shown if isinstance(shown, str) else None


def refuse_missing(configured: Configured) -> None:
    for path in places(configured):
        if not Path(path).expanduser().exists():
            raise ConfigurationError(
                f"there is no {configured.backend.name} store at {path} (from {configured.source}); "
                "name another, as with --store, or create one with kode import"
            )
    is_there = configured.backend.is_there
    if is_there is not None and not is_there(configured.options):
        where = ", ".join(places(configured)) or "the address"
        raise ConfigurationError(
            f"{where} (from {configured.source}) is not a {configured.backend.name} store of kode, and this command "
            "does not create one; name another, as with --store; the tables of a server may be in another schema"
        )
