"""Openings of an engine that may take longer than a call, such as one that migrates the stored data (OPS-8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Final

__all__ = ["hearing", "without_deadline"]

_WITHOUT: Final[ContextVar[Callable[[], AbstractContextManager[None]]]] = ContextVar("without", default=nullcontext)


def without_deadline() -> AbstractContextManager[None]:
    """Suspend the deadline of the store's opening, and of the calls that wait for it.

    Meant for a ``Backend.open`` that migrates. The deadline starts again at the end. Closing the store cancels the
    opening.
    """
    return _WITHOUT.get()()


@contextmanager
def hearing(without: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Make :func:`without_deadline` return *without* inside."""
    token = _WITHOUT.set(without)
    try:
        yield
    finally:
        _WITHOUT.reset(token)
