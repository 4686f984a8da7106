"""Checks of layers before an opening, and of the objects that backends and layers return."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from kode_core.engine import Engine
from kode_core.errors import ConfigurationError, IncompatibleBackendError
from kode_core.plugins import Backend, EngineLayer
from kode_core.protocols import Store

__all__ = ["checked_layers", "layered_engine", "opened_engine", "opened_store"]


def checked_layers(layers: object) -> Sequence[EngineLayer]:
    """The layers that a caller gave, as a tuple.

    Raises:
        ConfigurationError: it is not a list, or has a member that cannot be called with an engine.
    """
    if not isinstance(layers, (list, tuple)):
        raise ConfigurationError(f"layers must be a list, got {type(layers).__name__}")
    for layer in layers:
        if not callable(layer):
            engine = "; give a function that puts it around an engine" if isinstance(layer, Engine) else ""
            raise ConfigurationError(f"layers: {type(layer).__name__} is not a function that takes an engine{engine}")
        if inspect.iscoroutinefunction(layer):
            raise ConfigurationError("layers: a layer is a plain function and must not be async")
    return tuple(layers)


def opened_store(backend: Backend, opened: object) -> Store:
    """The store that a backend opened, checked against the protocol."""
    if not isinstance(opened, Store):
        raise IncompatibleBackendError(_lacking(_opened(backend, opened), opened, Store))
    return opened


def opened_engine(backend: Backend, opened: object) -> Engine:
    """The engine that a backend opened, checked against the protocol."""
    if not isinstance(opened, Engine):
        hint = "; Backend(gives='store') is for what opens a store" if isinstance(opened, Store) else ""
        raise IncompatibleBackendError(_lacking(_opened(backend, opened), opened, Engine) + hint)
    return opened


def layered_engine(engine: Engine, around: object) -> Engine:
    """The engine that a layer made of *engine*, checked against the protocol."""
    if around is None:
        raise IncompatibleBackendError(f"a layer around {engine!r} returned None; return the engine")
    if not isinstance(around, Engine):
        what = f"a layer around {engine!r} gives a {type(around).__name__}"
        raise IncompatibleBackendError(_lacking(what, around, Engine))
    return around


def _opened(backend: Backend, opened: object) -> str:
    return f"backend {backend.name!r} opened a {type(opened).__name__}"


def _lacking(what: str, opened: object, protocol: type) -> str:
    names = {*dir(protocol), *protocol.__annotations__}
    missing = sorted(name for name in names if not name.startswith("_") and not hasattr(opened, name))
    return f"{what}, which is no {protocol.__name__}: it lacks {', '.join(missing)}"
