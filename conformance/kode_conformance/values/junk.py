"""Arguments of wrong types for every parameter of every method, made from the signatures of the protocols."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from kode_conformance.calls.methods import PROTOCOL_METHODS
from kode_conformance.values import samples
from kode_core import query
from kode_core.cursors import make_cursor
from kode_core.protocols import ExtendedStore

__all__ = ["FIELD_JUNK", "Parameter", "forged_cursors", "junk_for", "parameters", "variants"]


class Parameter(NamedTuple):
    """A parameter of a method, or a filter that it takes."""

    method: str
    name: str


def parameters() -> Iterator[Parameter]:
    """Every parameter of every method of the protocols, with every filter, and an unknown one."""
    for method in PROTOCOL_METHODS:
        for name, parameter in inspect.signature(getattr(ExtendedStore, method)).parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                yield from (Parameter(method, one) for one in (*_filters(str(parameter.annotation)), "nonsense"))
            elif name != "self":
                yield Parameter(method, name)


def _filters(annotation: str) -> list[str]:
    found = re.fullmatch(r"Unpack\[(\w+)\]", annotation)
    return list(getattr(query, found[1]).__annotations__) if found else []


class _Strange:
    """An object that no caller should pass, and some do."""

    def __repr__(self) -> str:
        return "something strange"


_JUNK: Final[tuple[Any, ...]] = (
    None,
    True,
    -1,
    2**70,
    -(2**70),
    1.5,
    float("nan"),
    b"bytes",
    "text",
    "",
    "nul\0",
    "\ud800",
    [],
    [5],
    ["text"],
    [None],
    {},
    {"text": 1},
    {5: 1},
    {"text": float("nan")},
    (),
    {5},
    range(3),
    object(),
    _Strange(),
    int,
    len,
    datetime(2026, 1, 1),
    samples.todos("x"),
    [samples.todos("x")],
)

FIELD_JUNK: Final[tuple[Any, ...]] = (
    None,
    True,
    5,
    2**70,
    float("nan"),
    b"bytes",
    "\ud800",
    [5],
    {5: 1},
    (),
    object(),
    samples.event(0),
)
"""Wrong values for a field of a record."""


def junk_for(parameter: Parameter, folder: str) -> Iterator[Any]:
    """Values for one parameter; *folder* is where a backup may do no harm."""
    if parameter.name == "target":  # any other text would be a file where the suite runs
        yield from (value for value in _JUNK if not isinstance(value, str))
        yield from (f"{folder}/nul\0", f"{folder}/\ud800", f"{folder}/{'x' * 300}")
    elif parameter.name == "progress":  # an error of the caller's function is the caller's
        yield from (value for value in _JUNK if not callable(value))
    else:
        yield from _JUNK


def variants(value: Any) -> Iterator[tuple[str, Any]]:
    """A record with one field, of it or of a record inside it, given junk; each with the path of that field."""
    for name in value.__struct_fields__:
        inner = getattr(value, name)
        for junk in FIELD_JUNK:
            yield name, msgspec.structs.replace(value, **{name: junk})
        if isinstance(inner, msgspec.Struct):
            for path, changed in variants(inner):
                yield f"{name}.{path}", msgspec.structs.replace(value, **{name: changed})
        elif isinstance(inner, (list, tuple)) and inner and isinstance(inner[0], msgspec.Struct):
            for path, changed in variants(inner[0]):
                yield f"{name}[0].{path}", msgspec.structs.replace(value, **{name: [changed, *inner[1:]]})


_KEYS: Final[tuple[Any, ...]] = (None, True, "x", "\0", 1.5, 2**70, -(2**70), [], {}, 7)


def forged_cursors(given: str, kind: str) -> Iterator[str]:
    """Cursors that no store gave: *given* damaged, and well made ones whose parts are not what they should be.

    *kind* is the method that they are for.
    """
    yield from (
        given[:-1],
        given[1:],
        given * 2,
        given[::-1],
        given.swapcase(),
        f"{given}é",
        "W10",
        "bnVsbA",
        "====",
        "é",
    )
    yield from (given[:i] + ("A" if given[i] != "A" else "B") + given[i + 1 :] for i in range(0, len(given), 5))
    make = {
        "query_sessions": query.session_query,
        "query_messages": query.message_query,
        "query_tool_calls": query.tool_call_query,
    }[kind]
    asked: Any = make({"limit": 1})
    sound: tuple[Any, ...] = (5, "a") if kind == "query_sessions" else (5, "a", 0)
    for place in range(len(sound)):
        for key in _KEYS:
            yield make_cursor(asked, (*sound[:place], key, *sound[place + 1 :]))
    for length in range(len(sound) + 2):
        yield make_cursor(asked, (*sound, 0, 0)[:length])
