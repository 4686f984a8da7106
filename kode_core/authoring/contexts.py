"""Tasks that work for many callers, one after the other."""

from __future__ import annotations

from contextvars import Context

__all__ = ["adopt"]


def adopt(context: Context) -> None:
    """Give the context variables of the running task the values that they have in *context*.

    A task that writes for many callers calls it before each write with the context of the write's caller. The driver's
    spans are then children of that caller's span, and not of the span of the call that began the task.
    """
    for variable, value in context.items():
        if variable.get(None) is not value:
            variable.set(value)
