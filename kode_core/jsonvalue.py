r"""Convert free-form JSON values to text and back, exactly or not at all (VAL-1, VAL-2).

A value is proved exact before anything is written: its text must decode to the same value of the same builtin types.
The text is UTF-8 unless a string holds a lone surrogate, which UTF-8 cannot carry; then the same JSON is written with
``\u`` escapes.
"""

from __future__ import annotations

import itertools
import json
import marshal
import re
from collections.abc import Callable, Iterator
from math import isfinite
from typing import Final, NoReturn, TypeAlias

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
_FLAT_DEPTH: Final = 3
LONG: Final = 2**16
"""A longer string is large."""
NODES: Final = 2_000
"""A value with more items is large: this many are encoded in one or two milliseconds."""
_CHARS_A_NODE: Final = 128
_LONG_INT: Final = 1_024
"""An integer with more bits takes as much work as many items."""
_STEPS: Final = 2_000
_SHOWN: Final = 100
_MANY: Final = 2**22
_OFTEN: Final = 16
_RECORD_DEPTH: Final = 16  # how deep records nest around a free-form value
_MARSHAL: Final = 2  # the last format without references: equal values of equal types have equal bytes
_BRACKETS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
SCALARS: Final[frozenset[type]] = frozenset({str, bool, type(None)})
"""Types whose values need no check: strings are checked when they are encoded."""


class Problem(Exception):
    """A value that cannot be encoded, with the path to it; the path grows as the exception propagates."""

    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.path = path

    def under(self, key: str | int) -> Problem:
        return Problem(self.what, f"{path_step(key)}{self.path}")


def path_step(key: object) -> str:
    """One step of a path, as in ``.name`` or ``[3]``; a long key is cut."""
    if type(key) is str:
        shown = key if len(key) <= _SHOWN else f"{key[:_SHOWN]}…"
        return f".{key}" if shown is key and key.isidentifier() else f"[{shown!r}]"
    return f"[{key}]" if type(key) is int and -_SMALL < key < _SMALL else f"[{type(key).__name__}]"


to_json: Callable[[object], bytes] = msgspec.json.Encoder().encode
_from_json: Callable[[str], Json] = msgspec.json.Decoder().decode
NOT_ENCODABLE: Final = (Exception,)
"""msgspec also encodes values that are not JSON, and runs code of others for it, such as a time zone's."""


def check_json(value: Json) -> None:
    """Raise Problem unless *value* is JSON that comes back exactly."""
    if is_flat(value):
        return
    if is_tangled(value):
        walk_through(value)
    else:
        check_deep(value)


def check_deep(value: Json) -> None:
    """The same, for a value that is neither flat nor tangled."""
    if type(value) not in SCALARS and exact_text(value) is None:
        walk_through(value)


def is_tangled(value: Json) -> bool:
    """True if *value* nests too deep, as cycles do, or if its text would be far longer than its contents.

    For example, ninety lists that each hold the next one twice give a text of more than 2**90 characters.
    """
    if weight(value) <= NODES:
        return False
    total, seen = 0, 0
    level: dict[int, tuple[Json, int]] = {id(value): (value, 1)}
    for _ in range(MAX_DEPTH + 1):
        below: dict[int, tuple[Json, int]] = {}
        for part, times in level.values():
            if type(part) is not dict and type(part) is not list:
                continue
            seen += len(part)
            total += len(part) * times
            for item in part.values() if type(part) is dict else part:
                if type(item) is dict or type(item) is list:
                    _, before = below.get(id(item), (item, 0))
                    below[id(item)] = item, before + times
        level = below
    return bool(level) or (total > _MANY and total > _OFTEN * seen)


def exact_text(value: Json, max_depth: int = MAX_DEPTH) -> tuple[bytes, bytes] | None:
    """The text and the exact bytes of *value* if the text is proved exact; None if it needs a closer check."""
    try:
        text = to_json(value)
        expected = exact_bytes(value)
        if exact_bytes(_from_json(text)) == expected:  # type: ignore[arg-type]
            few = text.count(b"[") + text.count(b"{") <= max_depth
            return (text, expected) if few or _is_within(value, max_depth) else None
    except NOT_ENCODABLE:
        pass
    return None


def exact_bytes(value: Json) -> bytes:
    """Bytes that are equal only for equal values of equal types in equal order.

    Call it only for a value that was weighed: it takes time for the whole text, and a cycle with two branches has no
    end.

    Raises:
        ValueError: the value contains something that is not even close to JSON.
    """
    return marshal.dumps(value, _MARSHAL)


def _is_within(value: Json, max_depth: int) -> bool:
    """True if lists and dicts nest no deeper; checked level by level, which is fast."""
    level = [value]
    for _ in range(max_depth + 1):
        level = [item for item in level if type(item) is dict or type(item) is list]
        if not level:
            return True
        level = [item for part in level for item in (part.values() if type(part) is dict else part)]
    return False


def is_flat(value: Json, depth: int = _FLAT_DEPTH) -> bool:
    """True for the common case: a dict of a few strings, booleans and small numbers, or of a few such dicts."""
    if type(value) is not dict or len(value) > _FEW:
        return False
    for key, item in value.items():
        kind = type(item)
        if type(key) is not str:
            return False
        if kind is str:
            if len(item) > LONG:
                return False
        elif not (
            kind is bool
            or item is None
            or (kind is int and -_SMALL < item < _SMALL)
            or (kind is dict and depth > 1 and is_flat(item, depth - 1))
        ):
            return False
    return True


def weight(value: Json) -> int:
    """The cost of encoding *value*: about the number of items in it. More than NODES is not counted to the end."""
    count = 0
    todo = [value]
    for item in todo:
        kind = type(item)
        if kind is str:
            count += len(item) // _CHARS_A_NODE
        elif kind is int:
            if item.bit_length() > _LONG_INT:  # writing one takes the square of its length
                count += min((item.bit_length() // 64) ** 2 // 64, NODES - 1)  # a single number cannot be split
        elif kind is dict or kind is list:
            count += len(item)
            if count <= NODES:
                todo.extend(item.values() if kind is dict else item)
        if count > NODES:
            break
    return count


_Level: TypeAlias = tuple[Json, Iterator[tuple[object, Json]], tuple[object, ...] | None]
"""A dict or list, its members that were not checked yet, and its path, None above the root."""


_NOWHERE: Final = (-1, None)


def walk_through(root: Json, max_depth: int = MAX_DEPTH) -> None:
    """Raise the Problem of *root*, if it has one."""
    for _ in walk(root, max_depth):
        pass


def walk(root: Json, max_depth: int = MAX_DEPTH) -> Iterator[None]:
    """The slow check, which finds the place of a problem and raises it; yields now and then.

    It checks a list or dict that stands in several places once, and again only if the next place is deeper.
    """
    levels: list[_Level] = [([root], iter([(None, root)]), None)]
    sound: dict[int, tuple[int, Json]] = {}
    for steps in itertools.count(1):
        if not levels:
            return
        if steps % _STEPS == 0:
            yield
        holder, members, above = levels[-1]
        path = above or ()
        member = next(members, None)
        if member is None:
            levels.pop()
            sound[id(holder)] = len(path), holder
            continue
        key, value = member
        problem = _problem_of_key(key) if type(holder) is dict else None
        if problem is None:
            path = () if above is None else (*above, key)
            problem = problem_of(value)
            if problem is None and type(value) in (dict, list):
                if len(path) < max_depth:
                    if sound.get(id(value), _NOWHERE)[0] < len(path):
                        levels.append((value, _members(value), path))
                else:
                    problem = f"nested deeper than {MAX_DEPTH} levels"
        if problem is not None:
            shown = path if len(path) <= 12 else (*path[:9], "…", *path[-2:])
            raise Problem(problem, "".join(map(path_step, shown)))


def _members(value: Json) -> Iterator[tuple[object, Json]]:
    """The members of a dict at this moment, or of a list."""
    return iter(tuple(value.items())) if type(value) is dict else enumerate(value)


def _problem_of_key(key: object) -> str | None:
    if type(key) is not str:
        return f"a key is of type {type(key).__name__}; JSON keys are str"
    return problem_of(key)


def problem_of(value: Json) -> str | None:
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
    return (
        f"{type_name(kind)} is not a JSON type; convert it first, with kode_core.to_jsonable "
        "(JSON has None, bool, int, float, str, list, dict)"
    )


def type_name(kind: type) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def dump(wire: Json) -> bytes:
    """JSON text of checked data."""
    try:
        return to_json(wire)
    except NOT_ENCODABLE:
        walk_through(wire, MAX_DEPTH + _RECORD_DEPTH)  # strings and integers of typed fields were not checked before
        return escaped(wire)


def escaped(value: Json) -> bytes:
    """JSON text that is ASCII, which can hold lone surrogates."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), check_circular=False).encode()


def encode_json(value: Json, label: str) -> str:
    """The JSON text of a free-form value.

    Raises:
        InvalidValueError: it is not JSON that comes back exactly; names *label* and the path.
    """
    try:
        check_json(value)
        if is_tangled(value):
            raise Problem("the same lists and dicts stand in it so often that its text would have no end")
        return dump(value).decode()
    except Problem as problem:
        raise InvalidValueError(label, f"${problem.path}", problem.what) from None


def decode_json(text: str) -> Json:
    """The value of JSON text that :func:`encode_json` wrote; raises ValueError if it is not JSON."""
    try:
        return _from_json(text)
    except msgspec.DecodeError:  # escaped lone surrogates, or no JSON at all
        return json.loads(text, parse_constant=_refuse_constant)


def is_too_deep(text: str) -> bool:
    """True if JSON text nests more deeply than any record that a store writes."""
    depth = 0
    for match in _BRACKETS.finditer(text):
        depth += match[0] in "[{"
        depth -= match[0] in "]}"
        if depth > MAX_DEPTH + _RECORD_DEPTH:
            return True
    return False


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
