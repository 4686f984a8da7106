"""Opening stores: ``create_store``, ``create_extended_store``, and ``lazy_store`` for code that cannot await."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypedDict, TypeVar, cast
from weakref import WeakKeyDictionary

from kode_core.config import Configured, configure
from kode_core.engine import Engine
from kode_core.errors import ConfigurationError, IncompatibleBackendError, KodeError, StoreUnavailableError
from kode_core.hybrid.companion import refuse_without_files
from kode_core.layers.configured import own_layers
from kode_core.layers.required import refuse_without_layers, shown_layers
from kode_core.opened import checked_layers, layered_engine, opened_engine, opened_store
from kode_core.operation import Observer, checked_observers
from kode_core.plugins import Backend, EngineLayer, registry
from kode_core.protocols import ExtendedStore, ScopedStore, Store
from kode_core.store.dated import clock
from kode_core.store.facade import EngineStore

__all__ = [
    "BackendStore",
    "Extension",
    "Plan",
    "StoreKeywords",
    "StoreOpening",
    "Target",
    "create_extended_store",
    "create_store",
    "lazy_store",
    "open_planned",
    "plan_of",
]

S_co = TypeVar("S_co", bound=Store, covariant=True)

Target: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | None
"""The store that a caller names; None is the one that the environment names."""


class Extension(NamedTuple):
    """The layers and observers of one store, without the ones of plugins."""

    layers: Sequence[EngineLayer] = ()
    observers: Sequence[Observer] = ()

    @classmethod
    def checked(cls, layers: object = (), observers: object = ()) -> Extension:
        """The extension from a caller's arguments.

        Raises:
            ConfigurationError: an argument is no list, or has a member of the wrong kind.
        """
        return cls(checked_layers(layers), checked_observers(observers))


class Plan(NamedTuple):
    """A checked configuration of a store, with the layers and observers that its caller gave."""

    configured: Configured
    extension: Extension

    @classmethod
    def of(cls, target: Target, options: Mapping[str, Any], extension: Extension) -> Plan:
        """The plan for what *target* names; *options* come on top.

        Raises:
            ConfigurationError: the configuration is wrong, or the backend takes no layers and observers.
        """
        configured = configure(target, options, registry.backend, os.environ)
        if configured.backend.gives == "store" and any(extension):
            name = configured.backend.name
            raise ConfigurationError(f"backend {name!r} opens a store of its own, which takes no layers and observers")
        return cls(configured, extension)


_PLANS: Final[WeakKeyDictionary[EngineStore, Plan]] = WeakKeyDictionary()
"""The plan of each store that was made here."""


class StoreOpening(Generic[S_co]):
    """A store about to be opened: ``await`` it, or use ``async with``, which closes it at the end."""

    def __init__(self, open_store: Callable[[], Awaitable[S_co]]) -> None:
        self._open = open_store
        self._store: S_co | None = None

    def __await__(self) -> Generator[Any, None, S_co]:
        return self._open().__await__()

    async def __aenter__(self) -> S_co:
        self._store = await self._open()
        return self._store

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        close = getattr(self._store, "close", None)
        if close is not None:
            await close()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Raise an error that tells a caller who uses the store too early how to open it."""
            raise AttributeError(
                f"the store is not open, so it has no {name!r}: write 'async with create_extended_store(...) as store' "
                "or 'store = await create_extended_store(...)'"
            )


def lazy_store(
    target: Target = None,
    /,
    *,
    layers: Sequence[EngineLayer] = (),
    observers: Sequence[Observer] = (),
    **options: Any,
) -> ScopedStore:
    """A store that opens at its first use, for code that cannot await: a module, or a framework's constructor.

    Takes what :func:`create_extended_store` takes, and checks it at once. Nothing is opened or created before the
    first call, whose event loop the store then belongs to; a process that is forked before may use it, too. A store
    that cannot be opened fails that call, and the next call tries again. Close it with ``await store.close()``, or use
    ``async with store``. Code without an event loop uses :func:`kode_core.sync.open_store`::

        store = lazy_store("sqlite:///agents.db")

        async def answer(agent_id: str) -> None:
            await store.load_messages(agent_id)

    Raises:
        ConfigurationError: the configuration is wrong; the message says what to change.
        IncompatibleBackendError: the backend opens a whole store by itself, which needs an event loop.
    """
    plan = Plan.of(target, options, Extension.checked(layers, observers))
    if plan.configured.backend.gives == "store":
        raise IncompatibleBackendError(
            f"the backend {plan.configured.backend.name!r} opens a whole store, which needs an event loop: open it "
            "with create_store, or with kode_core.sync.open_store"
        )
    return _over_engine(plan)


def create_store(
    target: Target = None,
    /,
    *,
    layers: Sequence[EngineLayer] = (),
    observers: Sequence[Observer] = (),
    **options: Any,
) -> StoreOpening[Store]:
    """A store of any backend, as :func:`create_extended_store`; the backend may implement only ``Store``."""
    extension = Extension.checked(layers, observers)
    return StoreOpening(lambda: _open(target, options, extension))


def create_extended_store(
    target: Target = None,
    /,
    *,
    layers: Sequence[EngineLayer] = (),
    observers: Sequence[Observer] = (),
    **options: Any,
) -> StoreOpening[ScopedStore]:
    """Open the store named by *target*, or by the environment without one.

    *target* is a URL (``sqlite:///agents.db``), a ``Path``, the name of a store in ``kode.toml``, or a mapping with a
    ``type``. A path of a folder, or without a suffix, is a store of JSON files; a path of a file, or with a name such
    as ``agents.db``, is a database of SQLite. Without it, :mod:`kode_core.config` looks at ``KODE_STORE_URL``,
    ``KODE_STORE_TYPE``, ``kode.toml``, and in the end
    takes SQLite at ``./data/agents.db``. Options given by name come on top; ``type=`` works here too::

        async with create_extended_store("sqlite:///agents.db", durability="fast") as store: ...
        store = await create_extended_store(type="sqlite", db_path="agents.db")

    *layers* and *observers* are for this store alone. A layer is a function that puts an engine around an engine. The
    first is the innermost; all are around the layers of plugins, and those around the backend, with its folder of files
    if it has one (OPS-19). An observer is a function that is called after each call, or an object that surrounds it
    with :meth:`~kode_core.operation.Surrounds.around`. Observers of plugins are entered first, then these in
    order; all are left in the reverse order (OPS-20).

    Every store over an engine gives views of tenants; a backend that opens a whole store by itself may lack ``scoped``.

    Raises:
        ConfigurationError: the configuration is wrong; the message says what to change. A wrong layer or observer is
            refused by the call itself, before anything is opened.
        StorageError: the store cannot be opened.
    """
    extension = Extension.checked(layers, observers)

    async def open_extended() -> ScopedStore:
        return cast(ScopedStore, _extended(await _open(target, options, extension)))

    return StoreOpening(open_extended)


def _extended(store: Store) -> ExtendedStore:
    if not isinstance(store, (EngineStore, ExtendedStore)):  # to look for the methods of a protocol takes long
        raise IncompatibleBackendError(
            f"{type(store).__name__} has only the methods of Store; open it with create_store"
        )
    return store


async def _open(target: Target, options: Mapping[str, Any], extension: Extension) -> Store:
    store = await _store_of(Plan.of(target, options, extension))
    if not isinstance(store, EngineStore):
        return store
    try:
        return await store.open()
    except BaseException:  # a cancelled open goes on without its caller, and its engine would never be closed
        await asyncio.shield(store.close())
        raise


async def _store_of(plan: Plan) -> Store:
    """The store: one over an engine, which opens at its first use, or the open one that the backend gives."""
    if plan.configured.backend.gives == "store":
        return opened_store(plan.configured.backend, await opened(plan.configured))
    return _over_engine(plan)


def _over_engine(plan: Plan) -> EngineStore:
    store = EngineStore(lambda: open_engine(plan.configured, plan.extension.layers), **_settings(plan))
    _PLANS[store] = plan
    return store


async def open_planned(plan: Plan) -> ExtendedStore:
    """Another store of that plan, for :mod:`kode_core.sync`; one over an engine opens at its first use."""
    return _extended(await _store_of(plan))


def plan_of(target: Target | ExtendedStore, options: Mapping[str, Any], extension: Extension) -> Plan:
    """The plan for what *target* names, or the plan that the store *target* was made by; *options* come on top.

    Raises:
        ConfigurationError: the configuration is wrong, or the store was made without one, as over an engine.
    """
    if not isinstance(target, ExtendedStore):
        return Plan.of(target, options, extension)
    plan = _PLANS.get(target) if isinstance(target, EngineStore) else None
    if plan is None:
        raise ConfigurationError(
            f"this {type(target).__name__} was not made from a configuration: give SyncStore a function that opens one"
        )
    if options or any(extension):
        name = min(options) if options else "layers and observers"
        raise ConfigurationError(f"the store has its options already, so that it takes no {name}")
    return plan


def _settings(plan: Plan) -> dict[str, Any]:
    """The settings of the store over the engine."""
    registry.load_all()
    common = plan.configured.store
    return {
        "timeout_ms": common.timeout_ms,
        "follow_poll_ms": common.follow_poll_ms,
        "memory_limit_bytes": common.memory_limit_bytes,
        "tenant": common.tenant,
        "observers": [*registry.observers(plan.configured.options), *plan.extension.observers],
        "clock": clock,
    }


@asynccontextmanager
async def _closed_on_error(engine: Engine) -> AsyncIterator[None]:
    """Close the engine if a step after its opening fails."""
    try:
        yield
    except BaseException:
        await engine.close()
        raise


async def open_engine(configured: Configured, layers: Sequence[EngineLayer] = ()) -> Engine:
    """Open the engine with everything that belongs around it; *layers* are the store's own."""
    folder = configured.store.file_store_base_dir
    if folder is not None:
        from kode_core.backends.json_files.plugin import JsonOptions, open_json, refuse_foreign

        await asyncio.to_thread(refuse_foreign, folder)  # before an unneeded database is created
    engine = opened_engine(configured.backend, await opened(configured))
    if folder is not None:
        from kode_core.hybrid.engine import HybridEngine

        shared = {name for name in ("durability", "file_mode") if hasattr(configured.options, name)}
        async with _closed_on_error(engine):
            files = JsonOptions(base_dir=folder, **{name: getattr(configured.options, name) for name in shared})
            engine = HybridEngine(engine, await open_json(files))
        async with _closed_on_error(engine):
            await engine.bind()
    else:
        async with _closed_on_error(engine):
            await refuse_without_files(engine)
    base, around = engine, list[Engine]()
    async with _closed_on_error(engine):
        for layer in (*own_layers(configured.store), *registry.layers(configured.options), *layers):
            engine = _around(layer, engine)
            around += await shown_layers(engine, (base, *around))
        await refuse_without_layers(base, around)
    return engine


def _around(layer: EngineLayer, engine: Engine) -> Engine:
    try:
        return layered_engine(engine, layer(engine))
    except KodeError:
        raise
    except (Exception, SystemExit) as exc:
        raise IncompatibleBackendError(f"a layer cannot be put around {engine!r}: {type(exc).__name__}") from exc


async def opened(configured: Configured) -> Any:
    """Call the backend's open; an exception of its driver that it lets through is not quoted (OPS-12, OPS-17)."""
    try:
        return await configured.backend.open(configured.options)
    except KodeError:
        raise
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - a backend's code
        places = traceback.extract_tb(exc.__traceback__)
        problem = f"{type(exc).__name__} at {places[-1].filename}:{places[-1].lineno}"
    raise StoreUnavailableError(f"the backend {configured.backend.name!r} could not be opened: {problem}")


class StoreKeywords(TypedDict, total=False):
    """The fields of :class:`kode_core.config.StoreOptions` as keywords, without the folder of files.

    ``layers`` and ``observers`` are as for :func:`create_extended_store`.
    """

    timeout_ms: int
    follow_poll_ms: int
    memory_limit_bytes: int
    encryption_key_file: str | None
    encryption_key_variable: str | None
    encryption_plaintext: Literal["refuse", "read"]
    encryption_blind: bool
    compression_min_bytes: int | None
    tenant: str | None
    layers: Sequence[EngineLayer]
    observers: Sequence[Observer]


class BackendStore(EngineStore):
    """Base of the stores for direct use, such as ``SqliteStore``: one backend, its options as arguments.

    Opens at the first use, or with ``async with`` or :meth:`open`.
    """

    def __init__(self, backend: Backend, **options: Any) -> None:
        given = {name: value for name, value in options.items() if value is not None}
        extension = Extension.checked(given.pop("layers", ()), given.pop("observers", ()))
        plan = Plan(configure({"type": backend.name, **given}, {}, lambda _: backend, {}), extension)
        super().__init__(lambda: open_engine(plan.configured, extension.layers), **_settings(plan))
        _PLANS[self] = plan
