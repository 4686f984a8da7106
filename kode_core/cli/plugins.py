"""``kode plugins``: list the backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec
import typer
from rich.console import RenderableType
from rich.text import Text

from kode_core.cli.opening import JsonOption
from kode_core.cli.output import fail, one_line, print_json, show, visible
from kode_core.cli.tables import table
from kode_core.errors import PluginError
from kode_core.installed import FIRST_PARTY
from kode_core.plugins import InstalledPlugin, registry

__all__ = ["EXAMPLES", "plugins"]

EXAMPLES: Final = ("kode plugins", "kode plugins --json", "KODE_DISABLE_PLUGINS=json kode plugins")

P = TypeVar("P", bound="_Plugin")

_DISABLED: Final = Text("disabled by KODE_DISABLE_PLUGINS", "yellow")
_ALL_PROTOCOLS: Final = ("Store", "QueryableStore", "ExtendedStore")


class _Plugin(msgspec.Struct, frozen=True, kw_only=True):
    """An installed plugin."""

    name: str
    distribution: str
    version: str
    entry_point: str
    disabled: bool


class _Backend(_Plugin, frozen=True, kw_only=True):
    """A backend and the result of loading its plugin; its driver is not imported."""

    protocols: tuple[str, ...] = ()
    summary: str = ""
    problem: str | None = None


def plugins(as_json: JsonOption = False) -> None:
    """List the backends, installed and not, and the layers and observers that all stores get.

    A backend made from an engine gives all three protocols. One that brings a store of its own gives at least Store.
    The exit code is 1 when a plugin cannot be used.
    """
    registry.see_disabled()
    found = [_loaded(installed) for installed in registry.installed()]
    missing = {name: f"pip install {package}" for name, package in FIRST_PARTY.items() if name not in _names(found)}
    extensions = [_described(installed) for installed in registry.extensions()]
    broken = int(not _extensions_load() or any(backend.problem is not None for backend in found))
    if as_json:
        available = [{"name": name, "install": command} for name, command in missing.items()]
        print_json({"backends": found, "extensions": extensions, "available": available})
        raise typer.Exit(broken)
    show(_table(found))
    if extensions:
        heads = ("LAYERS AND OBSERVERS", "DISTRIBUTION", "ENTRY POINT", "")
        show(Text(), _rows(heads, extensions, lambda plugin: _DISABLED if plugin.disabled else Text()))
    if missing:
        show(Text(), Text("Not installed:"), *(Text(f"  {name:<10} {missing[name]}") for name in missing))
    raise typer.Exit(broken)


def _extensions_load() -> bool:
    """True if all plugins with layers and observers can be used; prints the error of the first that cannot."""
    try:
        registry.load_all()
    except PluginError as exc:
        fail(str(exc))
        return False
    return True


def _names(found: Sequence[_Backend]) -> set[str]:
    return {backend.name for backend in found}


def _described(installed: InstalledPlugin) -> _Plugin:
    return _Plugin(
        name=installed.name,
        distribution=installed.distribution,
        version=installed.version,
        entry_point=installed.value,
        disabled=registry.is_disabled(installed.name, installed.distribution),
    )


def _loaded(installed: InstalledPlugin) -> _Backend:
    entry = _Backend(**msgspec.structs.asdict(_described(installed)))
    if entry.disabled:
        return entry
    try:
        backend = registry.backend(installed.name)
    except PluginError as exc:
        return msgspec.structs.replace(entry, problem=str(exc))
    protocols = _ALL_PROTOCOLS if backend.gives == "engine" else _ALL_PROTOCOLS[:1]
    return msgspec.structs.replace(entry, protocols=protocols, summary=backend.summary)


def _table(found: Sequence[_Backend]) -> RenderableType:
    return _rows(("BACKEND", "DISTRIBUTION", "ENTRY POINT", "GIVES"), found, _gives)


def _rows(heads: Sequence[str], plugins: Sequence[P], last: Callable[[P], Text]) -> RenderableType:
    rows = ((p.name, f"{p.distribution} {p.version}", p.entry_point, last(p)) for p in plugins)
    return table(heads, rows, optional=("ENTRY POINT",), wrap=True)


def _gives(backend: _Backend) -> Text:
    if backend.disabled:
        return _DISABLED
    if backend.problem is not None:
        return Text(one_line(backend.problem, 500), "red")
    return Text(visible(", ".join(backend.protocols)))
