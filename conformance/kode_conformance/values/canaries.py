"""Records whose contents can be recognised wherever they turn up: every free text in them says so."""

from __future__ import annotations

import itertools
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec

__all__ = ["CANARY", "marked", "overheard", "spoiled", "told_by"]

CANARY: Final = "canary-7f3e"

_NAMES: Final = frozenset(
    {
        *("id", "agent_id", "window_id", "tool_use_id", "key", "path", "filename", "name", "lineage"),
        *("role", "type", "state", "status", "channel", "kind", "decision", "template_id", "breakpoint"),
        *("created_at", "recovered_files", "config_version", "collection", "expect"),
    }
)
"""Fields that name a record, or by which it is found: errors and logs may contain these."""


def marked(value: Any) -> Any:
    """The same record with the canary in every text that is content: in fields, in blocks, and in JSON values.

    Keys of dicts stay as they are, since they are in JSON paths.
    """
    if isinstance(value, str):
        return f"{CANARY} {value}"
    if isinstance(value, msgspec.Struct):
        fields = {name: getattr(value, name) for name in value.__struct_fields__ if name not in _NAMES}
        return msgspec.structs.replace(value, **{name: marked(field) for name, field in fields.items()})
    if isinstance(value, dict):
        return {key: marked(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(marked, value))
    return value


def spoiled(value: Any) -> Iterator[Any]:
    """Yield copies of a record, each with one of its contents replaced by a value that no store can keep."""
    bad = itertools.cycle((math.nan, f"{CANARY}".encode(), {CANARY}, f"\ud83d\ude00{CANARY}", (CANARY,), {5: CANARY}))
    yield from _spoiled(value, lambda: next(bad))


def _spoiled(value: Any, bad: Callable[[], Any]) -> Iterator[Any]:
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            if name not in _NAMES:
                for one in _spoiled(getattr(value, name), bad):
                    yield msgspec.structs.replace(value, **{name: one})
    elif isinstance(value, dict):
        for key in value:
            for one in _spoiled(value[key], bad):
                yield {**value, key: one}
    elif isinstance(value, (list, tuple)):
        for i in range(min(2, len(value))):
            for one in _spoiled(value[i], bad):
                yield type(value)([*value[:i], one, *value[i + 1 :]])
    else:
        yield bad()


@contextmanager
def overheard(own: Sequence[str] = ("",)) -> Iterator[list[str]]:
    """Collect all warnings and log records. Records below INFO are collected only from the code in *own*, by default
    all code.

    A driver may log more for developers who debug it.
    """
    texts: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.INFO or record.pathname.startswith(tuple(own)):
                texts.append(self.format(record))

    root, listener = logging.getLogger(), Listener(logging.NOTSET)
    level = root.level
    root.addHandler(listener)
    root.setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield texts
            texts += [str(warning.message) for warning in caught]
    finally:
        root.removeHandler(listener)
        root.setLevel(level)


def told_by(error: BaseException) -> str:
    """All that a program would print or log of an error, with its causes; of the code, only the places."""
    parts: list[str] = []
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        parts += [str(one), repr(one), *map(str, one.args), *getattr(one, "__notes__", ())]
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return "\n".join([*parts, *map(str, vars(error).values())])
