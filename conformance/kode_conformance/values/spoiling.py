"""Changes that callers may make to their own records: every list and dict that can be reached is changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import msgspec

__all__ = ["spoil", "whole_copy"]


def spoil(*given: Any) -> int:
    """Change every list and dict in the arguments, at every depth; return their number.

    Insides change first. A list or a dict loses its items and gets others: if it only grew, a store that kept its
    length would not show the change.
    """
    changed = 0
    for part in [part for one in given for part in _mutable(one)]:
        changed += 1
        if isinstance(part, dict):
            for key in [*part]:
                part[key] = "spoilt"
            part["spoilt"] = [len(part)]
        else:
            part[:] = ["spoilt", *part[1:], "spoilt"]
    return changed


def _mutable(value: Any) -> Iterator[Any]:
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _mutable(getattr(value, name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _mutable(item)
        if isinstance(value, list):
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _mutable(item)
        yield value


def whole_copy(value: Any) -> Any:
    """A copy that shares no list, dict or record with *value*; a page is a page, as a list is a list."""
    if isinstance(value, msgspec.Struct):
        return type(value)(**{name: whole_copy(getattr(value, name)) for name in value.__struct_fields__})
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(map(whole_copy, value))
    return {key: whole_copy(item) for key, item in value.items()} if isinstance(value, dict) else copy.copy(value)
