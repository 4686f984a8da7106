"""Opening stores: ``create_store``, ``create_extended_store``, and ``lazy_store`` for code that cannot await."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypedDict, TypeVar
from weakref import WeakKeyDictionary

from kode_core.config import Configured, configure
from kode_core.engine import Engine
from kode_core.errors import ConfigurationError, IncompatibleBackendError, KodeError, StoreUnavailableError
from kode_core.hybrid.companion import refuse_without_files
from kode_core.opened import layered_engine, opened_engine, opened_store
from kode_core.plugins import Backend, EngineLayer, registry
from kode_core.protocols import ExtendedStore, Store
from kode_core.store.dated import clock
from kode_core.store.facade import EngineStore

__all__ = [
    "BackendStore",
    "StoreKeywords",
    "StoreOpening",
    "Target",
    "configuration_of",
    "create_extended_store",
    "create_store",
    "lazy_store",
    "open_configured",
]

S = TypeVar("S", bound=Store)

Target: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | None
"""The store that a caller names; None is the one that the environment names."""

_CONFIGURED: Final[WeakKeyDictionary[EngineStore, Configured]] = WeakKeyDictionary()
"""The configuration of each store that was made here."""


class StoreOpening(Generic[S]):
    """A store about to be opened: ``await`` it, or use ``async with``, which closes it at the end."""

    def __init__(self, open_store: Callable[[], Awaitable[S]]) -> None:
        self._open = open_store
        self._store: S | None = None

    def __await__(self) -> Generator[Any, None, S]:
        return self._open().__await__()

    async def __aenter__(self) -> S:
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


def lazy_store(target: Target = None, /, **options: Any) -> ExtendedStore:
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
    configured = configure(target, options, registry.backend, os.environ)
    if configured.backend.gives == "store":
        raise IncompatibleBackendError(
            f"the backend {configured.backend.name!r} opens a whole store, which needs an event loop: open it with "
            "create_store, or with kode_core.sync.open_store"
        )
    return _over_engine(configured)


def create_store(target: Target = None, /, **options: Any) -> StoreOpening[Store]:
    """A store of any backend, as :func:`create_extended_store`; the backend may implement only ``Store``."""
    return StoreOpening(lambda: _open(target, options))


def create_extended_store(target: Target = None, /, **options: Any) -> StoreOpening[ExtendedStore]:
    """Open the store named by *target*, or by the environment without one.

    *target* is a URL (``sqlite:///agents.db``), a ``Path``, the name of a store in ``kode.toml``, or a mapping with a
    ``type``. A path of a folder, or without a suffix, is a store of JSON files; a path of a file, or with a name such
    as ``agents.db``, is a database of SQLite. Without it, :mod:`kode_core.config` looks at ``KODE_STORE_URL``,
    ``KODE_STORE_TYPE``, ``kode.toml``, and in the end
    takes SQLite at ``./data/agents.db``. Options given by name come on top; ``type=`` works here too::

        async with create_extended_store("sqlite:///agents.db", durability="fast") as store: ...
        store = await create_extended_store(type="sqlite", db_path="agents.db")

    Raises:
        ConfigurationError: the configuration is wrong; the message says what to change.
        StorageError: the store cannot be opened.
    """

    async def open_extended() -> ExtendedStore:
        return _extended(await _open(target, options))

    return StoreOpening(open_extended)


def _extended(store: Store) -> ExtendedStore:
    if not isinstance(store, ExtendedStore):
        raise IncompatibleBackendError(
            f"{type(store).__name__} has only the methods of Store; open it with create_store"
        )
    return store


async def _open(target: Target, options: Mapping[str, Any]) -> Store:
    store = await _made(configure(target, options, registry.backend, os.environ))
    if not isinstance(store, EngineStore):
        return store
    try:
        return await store.open()
    except BaseException:  # a cancelled open goes on without its caller, and its engine would never be closed
        await asyncio.shield(store.close())
        raise


async def _made(configured: Configured) -> Store:
    """The store: one over an engine, which opens at its first use, or the open one that the backend gives."""
    if configured.backend.gives == "store":
        return opened_store(configured.backend, await opened(configured))
    return _over_engine(configured)


def _over_engine(configured: Configured) -> EngineStore:
    store = EngineStore(lambda: open_engine(configured), **_settings(configured))
    _CONFIGURED[store] = configured
    return store


async def open_configured(configured: Configured) -> ExtendedStore:
    """Another store of that configuration, for :mod:`kode_core.sync`; one over an engine opens at its first use."""
    return _extended(await _made(configured))


def configuration_of(target: Target | ExtendedStore, options: Mapping[str, Any]) -> Configured:
    """The configuration that *target* names, or that the store *target* was made with; *options* come on top.

    Raises:
        ConfigurationError: the configuration is wrong, or the store was made without one, as over an engine.
    """
    if not isinstance(target, ExtendedStore):
        return configure(target, options, registry.backend, os.environ)
    configured = _CONFIGURED.get(target) if isinstance(target, EngineStore) else None
    if configured is None:
        raise ConfigurationError(
            f"this {type(target).__name__} was not made from a configuration: give SyncStore a function that opens one"
        )
    if options:
        raise ConfigurationError(f"the store has its options already, so that it takes no {min(options)}")
    return configured


def _settings(configured: Configured) -> dict[str, Any]:
    """The settings of the store over the engine."""
    registry.load_all()
    common = configured.store
    return {
        "timeout_ms": common.timeout_ms,
        "follow_poll_ms": common.follow_poll_ms,
        "memory_limit_bytes": common.memory_limit_bytes,
        "observers": registry.observers(),
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


async def open_engine(configured: Configured) -> Engine:
    """Open the engine with everything that belongs around it."""
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
    async with _closed_on_error(engine):
        for layer in registry.layers(configured.options):
            engine = _around(layer, engine)
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
    """The fields of :class:`kode_core.config.StoreOptions` as keywords, without the folder of files."""

    timeout_ms: int
    follow_poll_ms: int
    memory_limit_bytes: int


class BackendStore(EngineStore):
    """Base of the stores for direct use, such as ``SqliteStore``: one backend, its options as arguments.

    Opens at the first use, or with ``async with`` or :meth:`open`.
    """

    def __init__(self, backend: Backend, **options: Any) -> None:
        given = {name: value for name, value in options.items() if value is not None}
        configured = configure({"type": backend.name, **given}, {}, lambda _: backend, {})
        super().__init__(lambda: open_engine(configured), **_settings(configured))
        _CONFIGURED[self] = configured
