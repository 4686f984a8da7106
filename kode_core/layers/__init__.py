"""Layers: engines that wrap engines. Policy goes here, not into the backends."""

from __future__ import annotations

from kode_core.layers.base import Layer

__all__ = ["Layer"]
