"""Random JSON values of the kinds that stores get wrong, whether JSON can carry them, and shorter ones.

Values come from small parts that are hostile each by itself (the corpus of :mod:`kode_conformance.values.payloads`, and
strings of hostile characters), put together and inside each other.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from typing import Any, Final

from kode_conformance.values.payloads import PAYLOADS

__all__ = ["hostile_dict", "hostile_text", "hostile_value", "is_exact_json", "parts", "simpler"]

_CHARACTERS: Final = (
    "\0", "\ud83d", "\udc00", "\udfff", "😀", "𝒳", "é", "e\u0301", "\u2028", "\u2029", "\ufeff", "\uffff", "\x7f",
    "\x1b", "\r", "\n", "\t", " ", "'", '"', "\\", "\\u0000", "%", "_", "*", "$", ".", "{", "}", "[", ":", ",",
    "0", "a", "A", "ß",
)  # fmt: skip
_KEYS: Final = ("", "$set", "a.b", "_id", "__proto__", "0", "k", "K", "extra", "\0", "\ud83d", "é", "e\u0301", "😀")
_NUMBERS: Final = (
    0, 1, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**40, -(10**400), 10**4299,
    0.0, -0.0, 1.0, 0.1, 1 / 3, 1e16, 1e22, 5e-324, 1.7976931348623157e308, 123456789012345680.0,
)  # fmt: skip
_SINGLE: Final[tuple[Any, ...]] = (None, True, False, "", [], {})
_SMALL_BYTES: Final = 5_000
_MAX_DEPTH: Final = 100
_MAX_INT: Final = 10**4300
_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def hostile_text(rng: random.Random) -> str:
    """A string; now and then one that holds a split surrogate pair, which JSON cannot carry."""
    return "".join(rng.choices(_CHARACTERS, k=rng.choice((0, 1, 1, 2, 3, 8, 300))))


def hostile_dict(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A dict with string keys, and at most now and then something inside that is no JSON."""
    keys = (rng.choice(_KEYS) if rng.random() < 0.7 else hostile_text(rng) for _ in range(rng.randint(0, 4)))
    return {key: hostile_value(rng, depth + 1) for key in keys}


def hostile_value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value; about one in seven is none, or holds something that is none."""
    kind = rng.random()
    if kind < 0.02:
        return rng.choice(_REFUSED)
    if kind < 0.2 or depth > 4:
        return rng.choice(_SINGLE)
    if kind < 0.4:
        return rng.choice(_NUMBERS)
    if kind < 0.6:
        return hostile_text(rng)
    if kind < 0.7:
        return rng.choice(_STORED)
    if kind < 0.72:
        return _deep(rng, rng.choice((10, 50, _MAX_DEPTH - depth - 1, _MAX_DEPTH - depth, _MAX_DEPTH)))
    if kind < 0.86:
        return [hostile_value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return hostile_dict(rng, depth)


def _deep(rng: random.Random, depth: int) -> Any:
    value: Any = rng.choice(_SINGLE[:4])
    for _ in range(depth):
        value = [value] if rng.random() < 0.5 else {rng.choice(_KEYS): value}
    return value


def parts(value: Any) -> Iterator[Any]:
    """The value and everything inside it, not deeper than any check looks."""
    stack = [value]
    while stack:
        value = stack.pop()
        yield value
        if type(value) is dict:
            stack.extend(value)
            stack.extend(value.values())
        elif type(value) is list:
            stack.extend(value)


_STORED: Final = [payload.value for payload in PAYLOADS if payload.is_json and len(repr(payload.value)) < _SMALL_BYTES]
_REFUSED: Final = [payload.value for payload in PAYLOADS if not payload.is_json and "000" not in payload.name]


# --- What JSON can carry ----------------------------------------------------------------------------------------------


def is_exact_json(value: Any, inside: int = 0) -> bool:
    """True if a store must keep the value exactly (VAL-1), and False if it must refuse it (VAL-2); it is nested in
    *inside* containers.
    """
    return inside + _depth(value) <= _MAX_DEPTH and all(map(_is_exact, parts(value)))


def _is_exact(value: Any) -> bool:
    if type(value) is str:
        return _PAIR.search(value) is None
    if type(value) is float:
        return math.isfinite(value)
    if type(value) is int:
        return abs(value) < _MAX_INT
    if type(value) is dict:
        return all(type(key) is str for key in value)
    return value is None or type(value) in (list, bool)


def _depth(value: Any) -> int:
    deepest, stack = 0, [(value, 0)]
    while stack:
        value, depth = stack.pop()
        if type(value) in (dict, list):
            deepest = max(deepest, depth + 1)
            stack.extend((item, depth + 1) for item in (value.values() if type(value) is dict else value))
    return deepest


# --- Shortening -------------------------------------------------------------------------------------------------------


def simpler(value: Any) -> Iterator[Any]:
    """Values that are simpler than this one, the boldest first."""
    if type(value) in (dict, list) and value:
        yield from value.values() if type(value) is dict else value
        yield type(value)()
    if type(value) is dict:
        yield from ({k: v for k, v in value.items() if k != key} for key in value)
        yield from ({**value, key: other} for key in value for other in simpler(value[key]))
        yield from (
            {(other if k == key else k): v for k, v in value.items()} for key in value for other in simpler(key)
        )
    elif type(value) is list:
        yield from (value[:i] + value[i + 1 :] for i in range(len(value)))
        yield from ([*value[:i], other, *value[i + 1 :]] for i in range(len(value)) for other in simpler(value[i]))
    elif type(value) is str and value:
        yield from (value[: len(value) // 2], value[len(value) // 2 :], value[1:], value[:-1])
