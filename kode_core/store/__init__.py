"""The single implementation of the store protocols, over any engine."""

from kode_core.store.facade import EngineStore

__all__ = ["EngineStore"]
