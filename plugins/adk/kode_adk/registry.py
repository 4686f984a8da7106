"""The scheme ``kode:`` in ADK's registry of services, for its commands and servers."""

from __future__ import annotations

from typing import Any

from kode_adk.service import KodeSessionService

__all__ = ["register"]


def register(scheme: str = "kode") -> None:
    """Let ADK make a :class:`KodeSessionService` of a URI such as ``kode:sqlite:///data/agents.db``.

    A line of ``services.py`` next to the agents: ``from kode_adk import register; register()``.
    """
    from google.adk.cli.service_registry import get_service_registry

    def service(uri: str, **settings: Any) -> KodeSessionService:
        return KodeSessionService(uri=uri, **settings)

    get_service_registry().register_session_service(scheme, service)
