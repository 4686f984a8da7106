"""Layers: engines that wrap engines. Policy goes here, not into the backends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kode_core.layers.base import Layer

if TYPE_CHECKING:
    from kode_core.layers.hybrid import HybridEngine as HybridEngine
else:

    def __getattr__(name: str) -> object:
        """The hybrid layout, imported on first use, because it imports the JSON files engine."""
        if name != "HybridEngine":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from kode_core.layers.hybrid import HybridEngine

        return HybridEngine


__all__ = ["HybridEngine", "Layer"]
