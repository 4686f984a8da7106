"""The health of a store (OPS-1)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from kode_core.engine import Medium
from kode_core.errors import KodeError
from kode_core.report import MediumHealth, StoreHealthStatus
from kode_core.store.context import Context

__all__ = ["health"]

_HEALTH_SECONDS = 5.0


async def health(context: Context) -> StoreHealthStatus:
    """Ask every medium."""
    try:
        async with asyncio.timeout(_HEALTH_SECONDS):
            engine = await context.open()
            context.check_open()
    except Exception as exc:  # noqa: BLE001 - a health check reports, whatever it is
        return StoreHealthStatus(healthy=False, problem=_problem(exc), checked_at=context.now())
    found: dict[Medium, MediumHealth] = {}
    for medium, probe in engine.probes():
        found[medium] = await _probe(probe)
    return StoreHealthStatus(
        healthy=all(medium.ok for medium in found.values()),
        database=found.get("database"),
        file_system=found.get("file_system"),
        checked_at=context.now(),
    )


async def _probe(probe: Callable[[], Awaitable[None]]) -> MediumHealth:
    start = time.perf_counter()
    try:
        async with asyncio.timeout(_HEALTH_SECONDS):
            await probe()
    except Exception as exc:  # noqa: BLE001 - as above
        return MediumHealth(ok=False, problem=_problem(exc))
    return MediumHealth(ok=True, latency_ms=(time.perf_counter() - start) * 1000)


def _problem(exc: Exception) -> str:
    if isinstance(exc, TimeoutError) and not isinstance(exc, KodeError):
        return f"no answer within {_HEALTH_SECONDS:g} s"
    return f"{type(exc).__name__}: {exc}"
