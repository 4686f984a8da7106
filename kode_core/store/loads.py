"""The load of a store, for observers that read it now and then."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from kode_core.engine import connection_use
from kode_core.operation import Load

if TYPE_CHECKING:
    from kode_core.store.context import Context

__all__ = ["load_of"]


def load_of(context: Context) -> Callable[[], Load | None]:
    """A function that gives the load, and None once the store is closed or gone; it does not keep *context* alive."""
    reference = weakref.ref(context)

    def load() -> Load | None:
        found = reference()
        return None if found is None or found.is_closed else _now(found)

    return load


def _now(context: Context) -> Load:
    calls, engine = context.running
    appends, followers = context.event_load()
    return Load(
        calls=calls,
        writes=context.underway.count,
        appends=appends,
        followers=followers,
        connections=None if engine is None else connection_use(engine),
    )
