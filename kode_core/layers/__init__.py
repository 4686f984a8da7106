"""Layers: engines that wrap engines. Policy goes here, not into the backends."""

from kode_core.layers.base import Layer
from kode_core.layers.hybrid import HybridEngine

__all__ = ["HybridEngine", "Layer"]
