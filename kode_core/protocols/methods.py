"""Makes the methods of a protocol abstract."""

from __future__ import annotations

import abc
from types import FunctionType
from typing import TypeVar

__all__ = ["to_be_implemented"]

C = TypeVar("C", bound=type)


def to_be_implemented(protocol: C) -> C:
    """Prevent subclasses of *protocol* without all of its methods: a missing one would return None and lose data."""
    for method in vars(protocol).values():
        if isinstance(method, FunctionType) and method.__doc__:
            method.__isabstractmethod__ = True  # type: ignore[attr-defined]
    abc.update_abstractmethods(protocol)
    return protocol
