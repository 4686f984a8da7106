"""``kode plugins``: which backends there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from rich.table import Table
from rich.text import Text

from kode_core.cli.opening import JsonOption
from kode_core.cli.output import one_line, print_json, show, visible
from kode_core.cli.tables import table
from kode_core.errors import PluginError
from kode_core.plugins import FIRST_PARTY, InstalledBackend, registry

__all__ = ["EXAMPLES", "plugins"]

EXAMPLES: Final = ("kode plugins", "kode plugins --json", "KODE_DISABLE_PLUGINS=json kode plugins")

_ALL_PROTOCOLS: Final = ("Store", "QueryableStore", "ExtendedStore")


class _Backend(msgspec.Struct, frozen=True, kw_only=True):
    """A backend and what became of loading its plugin; its driver is not imported."""

    name: str
    distribution: str
    version: str
    entry_point: str
    disabled: bool
    protocols: tuple[str, ...] = ()
    summary: str = ""
    problem: str | None = None


def plugins(as_json: JsonOption = False) -> None:
    """List the backends, installed and not.

    A backend made from an engine gives all three protocols. One that brings a store of its own gives at least Store.
    """
    found = [_loaded(installed) for installed in registry.installed()]
    missing = {name: f"pip install {package}" for name, package in FIRST_PARTY.items() if name not in _names(found)}
    if as_json:
        available = [{"name": name, "install": command} for name, command in missing.items()]
        print_json({"backends": found, "available": available})
        return
    show(_table(found))
    if missing:
        show(Text(), Text("Not installed:"), *(Text(f"  {name:<10} {missing[name]}") for name in missing))


def _names(found: Sequence[_Backend]) -> set[str]:
    return {backend.name for backend in found}


def _loaded(installed: InstalledBackend) -> _Backend:
    entry = _Backend(
        name=installed.name,
        distribution=installed.distribution,
        version=installed.version,
        entry_point=installed.value,
        disabled=registry.is_disabled(installed.name),
    )
    if entry.disabled:
        return entry
    try:
        backend = registry.backend(installed.name)
    except PluginError as exc:
        return msgspec.structs.replace(entry, problem=str(exc))
    protocols = _ALL_PROTOCOLS if backend.gives == "engine" else _ALL_PROTOCOLS[:1]
    return msgspec.structs.replace(entry, protocols=protocols, summary=backend.summary)


def _table(found: Sequence[_Backend]) -> Table:
    rows = (
        (
            backend.name,
            f"{backend.distribution} {backend.version}",
            backend.entry_point,
            _gives(backend),
        )
        for backend in found
    )
    return table(("BACKEND", "DISTRIBUTION", "ENTRY POINT", "GIVES"), rows, optional=("ENTRY POINT",), wrap=True)


def _gives(backend: _Backend) -> Text:
    if backend.disabled:
        return Text("disabled by KODE_DISABLE_PLUGINS", "yellow")
    if backend.problem is not None:
        return Text(one_line(backend.problem, 500), "red")
    return Text(visible(", ".join(backend.protocols)))
