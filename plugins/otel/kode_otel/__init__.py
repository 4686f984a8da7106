"""OpenTelemetry spans and metrics of stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kode_otel.observer import OpenTelemetry

__all__ = ["OpenTelemetry"]


def __getattr__(name: str) -> Any:
    """The observer, imported at its first use: a process in which the plugin is off does not load OpenTelemetry."""
    if name == "OpenTelemetry":
        from kode_otel.observer import OpenTelemetry

        return OpenTelemetry
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
