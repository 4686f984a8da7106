"""The layers around the engine of a store."""

from __future__ import annotations

from kode_core.engine import Engine
from kode_core.protocols import ExtendedStore
from kode_core.store.facade import EngineStore

__all__ = ["layers_of"]


async def layers_of(store: ExtendedStore) -> list[Engine]:
    """The engine of an open store and the engines inside of it, the outermost first; none of a store without engine."""
    found: list[Engine] = []
    engine = await store._context.open() if isinstance(store, EngineStore) else None
    while engine is not None and all(engine is not one for one in found):
        found.append(engine)
        engine = getattr(engine, "inner", None)
    return found
