"""Iterators that observers see from the first step to the last (OPS-20 has the calls that they make)."""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, Generic, Self, TypeAlias, TypeVar

from msgspec.structs import force_setattr

from kode_core.errors import AgentDeletedError
from kode_core.operation import Operation, WatchedSteps
from kode_core.protocols import Heartbeat

__all__ = ["Iterated"]

T = TypeVar("T")

Place: TypeAlias = Callable[[], tuple[str, str]]
"""Gives the backend and the place of the contents, which are known once the store is open."""

_ENDS: Final = (StopAsyncIteration, AgentDeletedError)


class Iterated(Generic[T]):
    """An iterator of a store, the same for its reader; observers are around each of its steps.

    A generator ends with its first error. A stream of events goes on after an error, until it is closed, its agent is
    deleted, or it is dropped.
    """

    def __init__(
        self, inner: AsyncIterator[T], operation: Operation, steps: Sequence[WatchedSteps], place: Place
    ) -> None:
        self._inner: Any = inner
        self._operation = operation
        self._steps = steps
        self._place = place
        self._ends_with_error = inspect.isasyncgen(inner)
        self._began: float | None = None
        self._count = 0
        self._is_over = False

    def __repr__(self) -> str:
        return f"<{self._operation.name} {self._inner!r}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._is_over:
            last: T = await anext(self._inner)
            return last
        if self._began is None:
            self._began = time.perf_counter()
            for step in self._steps:
                step.begin()
        entered: list[WatchedSteps] = []
        error: BaseException | None = None
        try:
            for step in self._steps:
                step.__enter__()
                entered.append(step)
            item: T = await anext(self._inner)
            if not isinstance(item, Heartbeat):
                self._count += 1
            return item
        except BaseException as exc:
            error = exc
            raise
        finally:
            while entered:
                entered.pop().__exit__(None, None, None)
            if error is not None and (self._ends_with_error or isinstance(error, _ENDS)):
                self._end(None if isinstance(error, StopAsyncIteration) else error, is_complete=True)

    async def aclose(self) -> None:
        """Close the iterator before its end."""
        try:
            await self._inner.aclose()
        finally:
            self._end(None, is_complete=False)

    def __del__(self) -> None:
        if not getattr(self, "_is_over", True):
            self._end(None, is_complete=False)

    def _end(self, error: BaseException | None, *, is_complete: bool) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._began is None:
            return  # no step was taken: nothing was begun
        backend, store = self._place()
        for name, value in (
            ("backend", backend),
            ("store", store),
            ("duration_ms", (time.perf_counter() - self._began) * 1000),
            ("error", None if error is None else type(error).__name__),
            ("rows", self._count),
        ):
            force_setattr(self._operation, name, value)
        for step in reversed(self._steps):
            step.ended(is_complete=is_complete)
