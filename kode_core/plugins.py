"""Finding and loading backends.

A backend is a module or object that a distribution names in its entry points::

    [project.entry-points."kode.stores"]
    acme = "kode_acme.plugin"

and that implements :meth:`Hooks.kode_store_backend`. Backends are looked up by that name: only the requested one is
loaded, the others are not even imported. The entry module must not import its driver; ``Backend.open`` does.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import re
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import SplitResult

import msgspec
import pluggy

from kode_core.authoring.foreign_tables import ForeignTables
from kode_core.authoring.sdk_tables import SdkTables
from kode_core.engine import Engine, Progress
from kode_core.errors import (
    AmbiguousBackendError,
    BackendImportError,
    ConfigurationError,
    DisabledBackendError,
    IncompatibleBackendError,
    StorageError,
    UnknownBackendError,
)
from kode_core.ids import nearest
from kode_core.installed import FIRST_PARTY, InstalledPlugin, described, in_metadata, normal_name, unknown
from kode_core.operation import Load, Observer, OpenStore, Operation, Surrounds, checked_observers

__all__ = [
    "API",
    "GROUP",
    "Backend",
    "EngineLayer",
    "Hooks",
    "InstalledPlugin",
    "Load",
    "Observer",
    "OpenStore",
    "Operation",
    "Plugins",
    "Surrounds",
    "TextIndexAction",
    "hookimpl",
    "hookspec",
    "registry",
]

_log = logging.getLogger("kode_core.plugins")

GROUP: Final = "kode.stores"
"""The entry point group of backends."""
PLUGIN_GROUP: Final = "kode.plugins"
"""The entry point group of plugins that add layers or observers to every store."""
_HOOKLESS: Final = (
    "none of its methods is a hook; it needs one of kode_store_backend, kode_engine_layers, kode_store_observer and "
    "kode_operation, marked with @hookimpl"
)
API: Final = 1
"""The version of this interface; ``Backend.api`` must be the same."""
ALIASES: Final = {"postgresql": "postgres", "mongodb": "mongo"}
"""Alternative names of backends in URLs."""

hookspec = pluggy.HookspecMarker("kode")
hookimpl = pluggy.HookimplMarker("kode")

EngineLayer: TypeAlias = Callable[[Engine], Engine]

TextIndexAction: TypeAlias = Literal["status", "add", "rebuild", "drop"]
"""Commands of ``kode text-index`` for the index of texts."""


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin's contribution.

    Attributes:
        name: the same as the entry point's.
        api: :data:`API` of the kode-core it was written for.
        options: a frozen msgspec Struct that refuses unknown fields. ``extra={"path": True}`` marks a path,
            ``extra={"secret": True}`` a value that is not shown. A property ``address`` names a server without secrets.
        open: opens an engine, or a store that implements the protocols itself, from the options.
        from_url: the options that a URL of this backend stands for, without its query parameters.
        variables: environment variables that give an option besides ``KODE_<BACKEND>_<OPTION>``.
        summary: one line for lists.
        gives: ``engine`` if ``open`` returns an Engine, ``store`` if it returns a store.
        is_there: whether a store exists at the place, for commands that only read; None if that cannot be told.
        url_parameters: query parameters of a URL that are not options: ``from_url`` reads them itself.
        schema: the text for ``kode schema`` that a server needs before a store opens without the right to create
            tables; None if there is nothing to run. It connects to no server; it may read a file.
        schema_from: the same for tables of an older version, whose number it gets; None if there are none.
        sdk_tables: opens the tables of the KODE SDK for TypeScript, for ``kode import``; None if it has no such place.
        foreign_tables: opens the tables of any other program at the place, for importers; None if there are no tables.
        text_index: does what ``kode text-index`` asks; returns how many messages the index lacks.
    """

    name: str
    api: int = API
    options: type[msgspec.Struct]
    open: Callable[[Any], Awaitable[Any]]
    from_url: Callable[[SplitResult], Mapping[str, Any]] | None = None
    variables: Mapping[str, str] = {}
    summary: str = ""
    gives: Literal["engine", "store"] = "engine"
    is_there: Callable[[Any], bool] | None = None
    url_parameters: frozenset[str] = frozenset()
    schema: Callable[[Any], str] | None = None
    schema_from: Callable[[Any, int], str] | None = None
    sdk_tables: Callable[[Any], AbstractAsyncContextManager[SdkTables]] | None = None
    foreign_tables: Callable[[Any], AbstractAsyncContextManager[ForeignTables]] | None = None
    text_index: Callable[[Any, TextIndexAction, Progress], Coroutine[Any, Any, int | None]] | None = None


class Hooks:
    """The hooks that a plugin may implement, each with ``@hookimpl``."""

    @hookspec
    def kode_store_backend(self) -> Backend:
        """Return the backend. Called only on the plugin that was asked for; must not import its driver."""
        raise NotImplementedError

    @hookspec
    def kode_engine_layers(self, options: msgspec.Struct) -> EngineLayer | None:
        """Return a function that wraps an engine opened with *options*, or None.

        Layers are applied in ascending order of the plugin's ``kode_layer_order`` (0 if it has none).
        """

    @hookspec
    def kode_store_observer(self, options: msgspec.Struct) -> Observer | None:
        """Return an observer for a store opened with *options*, or None; the observer may surround calls."""

    @hookspec
    def kode_operation(self, operation: Operation) -> None:
        """Called after every operation of every store.

        It is a plain function; an exception that it raises is logged and dropped.
        """


class Plugins:
    """The backends of this process. The constructor takes the names that must not be used."""

    def __init__(self, disabled: Iterable[str] | None = None) -> None:
        self._manager = pluggy.PluginManager("kode")
        self._manager.add_hookspecs(Hooks)
        self._backends: dict[str, Backend] = {}
        self._added: dict[str, object] = {}
        self._loaded = False
        given = os.environ.get("KODE_DISABLE_PLUGINS", "").split(",") if disabled is None else disabled
        self._disabled = frozenset(filter(None, map(str.strip, given)))
        self._seen = disabled is not None or not self._disabled
        self._failed: set[str] = set()
        if os.environ.get("KODE_TRACE_PLUGINS"):
            self._manager.enable_tracing()
            self._manager.trace.root.setwriter(_write_trace)

    # --- backends

    def installed(self) -> Sequence[InstalledPlugin]:
        """All installed backends, read from metadata: nothing is imported."""
        return in_metadata(GROUP)

    def names(self) -> Sequence[str]:
        """The names of all backends that are installed or were added, including disabled ones."""
        return sorted({plugin.name for plugin in self.installed()} | self._added.keys() | FIRST_PARTY.keys())

    def is_disabled(self, name: str, distribution: str = "") -> bool:
        """True if ``KODE_DISABLE_PLUGINS`` or the constructor blocks the plugin, by its name or its distribution's."""
        return name in self._disabled or normal_name(distribution) in map(normal_name, self._disabled)

    def see_disabled(self) -> None:
        """Check that ``KODE_DISABLE_PLUGINS`` names existing plugins.

        Raises:
            UnknownBackendError: it names an unknown one; the plugin that it was meant to block would still be used.
        """
        if self._seen:
            return
        there = [*in_metadata(GROUP), *in_metadata(PLUGIN_GROUP)]
        known = {name for plugin in there for name in (plugin.name, plugin.distribution)} | set(self.names())
        known |= set(FIRST_PARTY.values()) | {name for name, _ in self._manager.list_name_plugin()}
        for name in sorted(self._disabled):
            if name not in known and normal_name(name) not in map(normal_name, known):
                near = nearest(name, sorted(known))
                hint = f"did you mean {near!r}?" if near else f"known are {', '.join(sorted(known))}"
                raise UnknownBackendError(f"KODE_DISABLE_PLUGINS names {name!r}, which is no plugin; {hint}")
        self._seen = True

    def backend(self, name: str) -> Backend:
        """The backend of that name; imports its plugin on first use.

        Raises:
            PluginError: the backend cannot be used; the message says why, and what to do.
        """
        name = ALIASES.get(name, name)
        if name not in self._backends:
            self._backends[name] = self._load(name)
        elif self.is_disabled(name):
            raise DisabledBackendError(f"backend {name!r} is disabled by KODE_DISABLE_PLUGINS")
        return self._backends[name]

    def _load(self, name: str) -> Backend:
        self.see_disabled()
        everything = self.installed()
        named = [ep for ep in everything if ep.name == name]
        found = [ep for ep in named if not self.is_disabled(name, ep.distribution)]
        if self.is_disabled(name) or (named and not found):
            raise DisabledBackendError(f"backend {name!r} is disabled by KODE_DISABLE_PLUGINS")
        if not found:
            raise unknown(name, sorted({ep.name for ep in everything} | self._added.keys()))
        if len(found) > 1:
            who = ", ".join(sorted(map(described, found)))
            first = min(ep.distribution for ep in found)
            raise AmbiguousBackendError(
                f"backend {name!r} comes from more than one distribution ({who}); uninstall all but one, or disable "
                f"the others, as in KODE_DISABLE_PLUGINS={first}"
            )
        return self._register(name, found[0])

    def _register(self, name: str, ep: InstalledPlugin) -> Backend:
        try:
            plugin = ep.load()
        except StorageError:
            raise
        except Exception as exc:
            raise BackendImportError(
                f"backend {name!r} ({described(ep)}) is installed but {ep.value!r} does not import: {exc}"
            ) from exc
        try:
            self._add(plugin, name)
            return _checked_backend(plugin, name)
        except (Exception, SystemExit) as exc:
            self._manager.unregister(name=name)  # pluggy < 1.7 leaves a refused plugin half registered
            raise IncompatibleBackendError(
                f"backend {name!r} ({described(ep)}) does not fit this kode-core: {exc}"
            ) from exc

    # --- hooks for all

    def extensions(self) -> Sequence[InstalledPlugin]:
        """All installed plugins with layers and observers, read from metadata alone."""
        return in_metadata(PLUGIN_GROUP)

    def load_all(self) -> None:
        """Load the plugins with layers and observers."""
        if self._loaded:
            return
        self.see_disabled()
        for ep in self.extensions():
            if self.is_disabled(ep.name, ep.distribution) or self._manager.has_plugin(ep.name):
                continue
            try:
                self._add(ep.load(), ep.name)
            except StorageError:
                raise
            except Exception as exc:
                raise BackendImportError(
                    f"plugin {ep.name!r} ({described(ep)}) is installed but cannot be used: {exc}; "
                    f"uninstall it, or set KODE_DISABLE_PLUGINS={ep.name}"
                ) from exc
        self._loaded = True

    def add(self, plugin: object, name: str | None = None) -> None:
        """Register a plugin object: a module or object with a backend, layers or an observer of yours.

        A backend is then found by its own name, as an installed one is; *name* is the plugin's name in traces.

        Raises:
            IncompatibleBackendError: it does not follow the interface, or a backend of that name exists.
        """
        if not hasattr(plugin, "kode_store_backend"):
            self._add(plugin, name)
            if self._manager.is_registered(plugin) and not self._manager.get_hookcallers(plugin):
                self._manager.unregister(plugin)
                raise IncompatibleBackendError(f"plugin {_called(plugin, name)} does nothing: {_HOOKLESS}")
            return
        try:
            backend = _checked_backend(plugin)
        except Exception as exc:
            raise IncompatibleBackendError(
                f"plugin {_called(plugin, name)} does not fit this kode-core: {exc}"
            ) from exc
        if backend.name in self._added or any(one.name == backend.name for one in self.installed()):
            raise IncompatibleBackendError(
                f"a backend named {backend.name!r} is there already; give yours another name"
            )
        self._add(plugin, name or f"added-{backend.name}")
        self._backends[backend.name], self._added[backend.name] = backend, plugin

    def remove(self, plugin: object) -> None:
        """Undo :meth:`add`; open stores stay as they are."""
        if self._manager.is_registered(plugin):
            self._manager.unregister(plugin)
        for name in [name for name, added in self._added.items() if added is plugin]:
            del self._added[name], self._backends[name]

    def _add(self, plugin: object, name: str | None) -> None:
        observer = getattr(plugin, "kode_operation", None)
        if observer is not None and inspect.iscoroutinefunction(observer):
            raise IncompatibleBackendError(
                "kode_operation is called from the write path and must be a plain function, not async"
            )
        if name is not None and self.is_disabled(name):
            return
        if name is not None and self._manager.has_plugin(name):
            raise IncompatibleBackendError(f"a plugin named {name!r} is there already; give yours another name")
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as exc:
            if isinstance(exc, pluggy.PluginValidationError) and self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            raise IncompatibleBackendError(
                f"plugin {_called(plugin, name)} does not fit this kode-core: {exc}"
            ) from exc

    def layers(self, options: msgspec.Struct) -> list[EngineLayer]:
        """The layers that plugins put around an engine with these options, innermost first.

        Raises:
            IncompatibleBackendError: a plugin's hook failed.
        """
        found = [
            (getattr(implementation.plugin, "kode_layer_order", 0), implementation.plugin_name, layer)
            for implementation, layer in self._given("kode_engine_layers", options)
        ]
        return [layer for _, _, layer in sorted(found, key=lambda item: item[:2])]

    def observers(self, options: msgspec.Struct) -> list[Observer]:
        """The observers that plugins give a store opened with these options.

        Raises:
            IncompatibleBackendError: a plugin's hook failed, or gave what cannot observe.
        """
        hooks = self._manager.hook.kode_operation.get_hookimpls()
        found: list[Observer] = [functools.partial(self._observe, implementation) for implementation in hooks]
        for implementation, observer in self._given("kode_store_observer", options):
            try:
                found += checked_observers([observer])
            except ConfigurationError as exc:
                problem = f"kode_store_observer of plugin {implementation.plugin_name!r}: {exc}"
                raise IncompatibleBackendError(problem) from None
        return found

    def _given(self, hook: str, options: msgspec.Struct) -> Iterator[tuple[pluggy.HookImpl, Any]]:
        """The results of a hook, each with its implementation; None is left out."""
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            self._trace(implementation)
            try:
                value = _call(implementation, options=options)
            except (Exception, SystemExit) as exc:
                problem = f"{hook} of plugin {implementation.plugin_name!r} failed: {type(exc).__name__}"
                raise IncompatibleBackendError(problem) from exc
            if value is not None:
                yield implementation, value

    def _observe(self, implementation: pluggy.HookImpl, operation: Operation) -> None:
        self._trace(implementation)
        try:
            _call(implementation, operation=operation)
        except (Exception, SystemExit, CancelledError):  # noqa: BLE001 - a plugin's code
            if implementation.plugin_name not in self._failed:
                self._failed.add(implementation.plugin_name)
                _log.exception(
                    "a kode_operation hook failed, of the plugin %s; further failures of it are not reported",
                    implementation.plugin_name,
                )

    def _trace(self, implementation: pluggy.HookImpl) -> None:
        self._manager.trace(f"{implementation.function.__name__} of {implementation.plugin_name}")


def _call(implementation: pluggy.HookImpl, **arguments: Any) -> Any:
    """Call a hook implementation with the arguments that it takes."""
    return implementation.function(*(arguments[name] for name in implementation.argnames))


def _called(plugin: object, name: str | None) -> str:
    return repr(name) if name else type(plugin).__name__


def _checked_backend(plugin: Any, name: str | None = None) -> Backend:
    """The backend that a plugin contributes; its name must be *name*."""
    backend = plugin.kode_store_backend()
    if not isinstance(backend, Backend):
        raise TypeError(f"kode_store_backend returned {type(backend).__name__}, not a Backend")
    wanted = backend.name if name is None else name
    if (backend.name, backend.api) != (wanted, API):
        raise ValueError(f"it is {backend.name!r} for API {backend.api}, wanted {wanted!r} for API {API}")
    if not re.fullmatch(r"[a-z][a-z0-9.-]*", backend.name):
        raise ValueError("its name must be lower case letters, digits, '-' and '.', as it begins URLs")
    if not (isinstance(backend.options, type) and issubclass(backend.options, msgspec.Struct)):
        raise TypeError("Backend.options is no class derived from msgspec.Struct")
    if backend.gives not in ("engine", "store"):
        raise ValueError(f"Backend.gives is {backend.gives!r}, not 'engine' or 'store'")
    return backend


def _write_trace(text: str) -> None:
    import sys

    sys.stderr.write(text)


registry: Final = Plugins()
"""The plugins of this process; ``registry.add(module)`` registers a backend, layers or observers of your own."""
