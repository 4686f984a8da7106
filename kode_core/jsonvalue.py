r"""Free-form JSON values to text and back, exactly or not at all (VAL-1, VAL-2).

A value is proved exact before anything is written: what comes back from its text must be the same value of the same
builtin types. The text is UTF-8 unless a string holds a lone surrogate, which UTF-8 cannot carry; then the same JSON
is written with ``\u`` escapes.
"""

from __future__ import annotations

import json
import marshal
import re
from collections.abc import Callable
from math import isfinite
from typing import Final, NoReturn

import msgspec

from kode_core.errors import InvalidValueError
from kode_core.model.base import Json

__all__ = ["MAX_DEPTH", "MAX_INT_DIGITS", "decode_json", "encode_json"]

MAX_DEPTH: Final = 100
"""How deep lists and dicts may nest in a free-form value."""
MAX_INT_DIGITS: Final = 4300
"""How many decimal digits an integer may have: CPython's own limit for turning them into text."""

_MAX_INT: Final = 10**MAX_INT_DIGITS
_SURROGATE_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_FEW: Final = 8
_SMALL: Final = 2**63
_RECORD_DEPTH: Final = 16  # how deep records nest around a free-form value
_MARSHAL: Final = 2  # the last format without references: equal values of equal types have equal bytes
SCALARS: Final[frozenset[type]] = frozenset({str, bool, type(None)})
"""Types whose values need no look: strings are checked when they are turned into text."""


class Problem(Exception):
    """Something that cannot be encoded, with the path to it; the path grows on the way out."""

    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.path = path

    def under(self, step: str | int) -> Problem:
        return Problem(self.what, f"{_step(step)}{self.path}")


def _step(key: object) -> str:
    if isinstance(key, str) and key.isidentifier():
        return f".{key}"
    return f"[{key!r}]" if isinstance(key, str | int) else f"[{type(key).__name__}]"


_encoder = msgspec.json.Encoder()
_to_json: Callable[[object], bytes] = _encoder.encode
_from_json: Callable[[str], Json] = msgspec.json.Decoder().decode
_NOT_ENCODABLE = (ValueError, TypeError, OverflowError, RecursionError, NotImplementedError, msgspec.MsgspecError)


def check_json(value: Json) -> None:
    """Raise Problem unless *value* is JSON that comes back exactly."""
    if type(value) in SCALARS:
        return
    if type(value) is dict and len(value) <= _FEW and _is_flat(value):
        return
    try:
        text = _to_json(value)
        exact = marshal.dumps(_from_json(text), _MARSHAL) == marshal.dumps(value, _MARSHAL)  # type: ignore[arg-type]
        if exact and text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
            return
    except _NOT_ENCODABLE:
        pass
    _walk(value)


def _is_flat(value: dict[Json, Json]) -> bool:
    """The common case: a few strings, booleans and small numbers."""
    for key, item in value.items():
        kind = type(item)
        if type(key) is not str or not (kind in SCALARS or (kind is int and -_SMALL < item < _SMALL)):
            return False
    return True


def _walk(root: Json, max_depth: int = MAX_DEPTH) -> None:
    """The slow check, which knows where the problem is."""
    stack: list[tuple[Json, tuple[object, ...]]] = [(root, ())]
    while stack:
        value, path = stack.pop()
        problem = _problem_of(value)
        if problem is None and type(value) in (dict, list):
            if len(path) >= max_depth:
                problem = f"nested deeper than {MAX_DEPTH} levels"
            elif type(value) is dict:
                for key, item in value.items():
                    if type(key) is not str:
                        problem = f"a key is of type {type(key).__name__}; JSON keys are str"
                        break
                    problem = _problem_of(key)
                    if problem is not None:
                        break
                    stack.append((item, (*path, key)))
            else:
                stack.extend((item, (*path, i)) for i, item in enumerate(value))
        if problem is not None:
            steps = path if len(path) <= 12 else (*path[:9], "…", *path[-2:])
            raise Problem(problem, "".join(map(_step, steps)))


def _problem_of(value: Json) -> str | None:
    kind = type(value)
    if kind is str:
        if _SURROGATE_PAIR.search(value):
            return "two adjacent surrogates form one character; write the character itself"
        return None
    if kind is float:
        return None if isfinite(value) else f"{value} is not a JSON number; use None or a string"
    if kind is int:
        return None if abs(value) < _MAX_INT else f"an integer of more than {MAX_INT_DIGITS} digits"
    if kind in (dict, list) or kind is bool or value is None:
        return None
    return f"{type_name(kind)} is not a JSON type; convert it first (JSON has None, bool, int, float, str, list, dict)"


def type_name(kind: type) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def dump(wire: Json) -> bytes:
    """JSON text of checked data."""
    try:
        return _to_json(wire)
    except _NOT_ENCODABLE:
        _walk(wire, MAX_DEPTH + _RECORD_DEPTH)  # strings and integers of typed fields were not looked at before
        return json.dumps(wire, ensure_ascii=True, separators=(",", ":"), check_circular=False).encode()


def encode_json(value: Json, label: str) -> str:
    """The JSON text of a free-form value.

    Raises:
        InvalidValueError: it is not JSON that comes back exactly; names *label* and the path.
    """
    try:
        check_json(value)
        return dump(value).decode()
    except Problem as problem:
        raise InvalidValueError(label, f"${problem.path}", problem.what) from None


def decode_json(text: str) -> Json:
    """The value of JSON text that :func:`encode_json` wrote; ValueError when it is not JSON."""
    try:
        return _from_json(text)
    except msgspec.DecodeError:  # escaped lone surrogates, or no JSON at all
        return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
