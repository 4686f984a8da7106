"""The opening of an engine that takes longer than a call may, as one that migrates what is stored (OPS-8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Final

__all__ = ["hearing", "without_deadline"]

_WITHOUT: Final[ContextVar[Callable[[], AbstractContextManager[None]]]] = ContextVar("without", default=nullcontext)


def without_deadline() -> AbstractContextManager[None]:
    """Inside, the opening of the store's engine has no deadline, and neither have the calls that wait for it.

    For a ``Backend.open`` that migrates. It begins anew in the end. Closing the store cancels the opening.
    """
    return _WITHOUT.get()()


@contextmanager
def hearing(without: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Let :func:`without_deadline` of what is called inside be *without*."""
    token = _WITHOUT.set(without)
    try:
        yield
    finally:
        _WITHOUT.reset(token)
