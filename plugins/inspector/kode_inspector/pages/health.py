"""The health of the store, and the check of its records with its progress."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from kode_core import ConsistencyIssue, ExtendedStore, KodeError, StoreMetrics
from kode_inspector.rendering import Inspector, inspector_of, render

__all__ = ["begin", "health", "progress", "stop"]

_SHOWN: Final = 200


@dataclass(slots=True)
class Check:
    """A check that runs, or has run."""

    done: int = 0
    total: int | None = None
    found: int = 0
    issues: list[ConsistencyIssue] = field(default_factory=list)
    problem: str | None = None
    task: asyncio.Task[None] | None = None
    stopped: bool = False

    @property
    def runs(self) -> bool:
        """True until it has ended."""
        return self.task is not None and not self.task.done()

    def advance(self, done: int, total: int | None) -> None:
        """Take note of the progress."""
        self.done, self.total = done, total

    async def run(self, store: ExtendedStore) -> None:
        """Check the whole store; the first issues are kept, and all are counted."""
        try:
            async with aclosing(store.iter_consistency(progress=self.advance)) as issues:  # type: ignore[type-var]
                async for issue in issues:
                    self.found += 1
                    if len(self.issues) < _SHOWN:
                        self.issues.append(issue)
        except asyncio.CancelledError:
            self.stopped = True
            raise
        except KodeError as exc:
            self.problem = f"{type(exc).__name__}: {exc}"


async def health(request: Request) -> Response:
    """Whether the store answers, its sizes, and the calls of this server."""
    inspector = inspector_of(request)
    status = await inspector.store.health_check()
    metrics: StoreMetrics | None = None
    problem = None
    if status.healthy:
        try:
            metrics = await inspector.store.get_metrics()
        except KodeError as exc:
            problem = f"{type(exc).__name__}: {exc}"
    return render(request, "health.html", status_=status, metrics=metrics, problem=problem, check=_check(inspector))


def _check(inspector: Inspector) -> Check | None:
    found: Check | None = inspector.state.get("check")
    return found


async def begin(request: Request) -> Response:
    """Begin a check, unless one runs."""
    inspector = inspector_of(request)
    check = _check(inspector)
    if check is None or not check.runs:
        check = Check()
        check.task = asyncio.create_task(check.run(inspector.store))
        inspector.state["check"] = check
    return render(request, "_check.html", check=check)


async def progress(request: Request) -> Response:
    """How far the check is."""
    return render(request, "_check.html", check=_check(inspector_of(request)))


async def stop(request: Request) -> Response:
    """End the check early."""
    check = _check(inspector_of(request))
    if check is not None and check.task is not None:
        check.task.cancel()
        await asyncio.wait([check.task])
    return render(request, "_check.html", check=check)
