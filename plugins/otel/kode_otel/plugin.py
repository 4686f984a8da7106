"""The entry point: observes every store of a process in which the settings enable it."""

from __future__ import annotations

import msgspec

from kode_core.plugins import Observer, hookimpl
from kode_otel.settings import read_settings

__all__ = ["plugin"]


class OtelPlugin:
    """Gives each store that is opened an observer, if the settings enable it; otherwise the stores have none."""

    @hookimpl
    def kode_store_observer(self, options: msgspec.Struct) -> Observer | None:
        """The observer of a store."""
        settings = read_settings()
        if not settings.enabled:
            return None
        from kode_otel.observer import OpenTelemetry

        return OpenTelemetry(agents=settings.agents, agent_key=settings.agent_key)


plugin = OtelPlugin()
