"""Checks of the objects that backends and layers return, before they are used."""

from __future__ import annotations

from kode_core.engine import Engine
from kode_core.errors import IncompatibleBackendError
from kode_core.plugins import Backend
from kode_core.protocols import Store

__all__ = ["layered_engine", "opened_engine", "opened_store"]


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
