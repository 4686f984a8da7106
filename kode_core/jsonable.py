"""Convert the values of programs to JSON on purpose, before a save: :func:`to_jsonable` and :func:`to_json`.

A save converts nothing (VAL-2): a datetime that became a text would come back as a text. So a program says where it
wants the text. Types of optional libraries are recognised only when the program has imported the library itself.
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Sequence, Set
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import islice
from math import isfinite, isnan
from pathlib import PurePath
from typing import Any, Final, Literal, TypeAlias
from uuid import UUID

import msgspec

from kode_core.errors import InvalidArgumentError, InvalidValueError
from kode_core.jsonvalue import MAX_DEPTH, dump, path_step, problem_of, type_name
from kode_core.model import AgentEvent, Json, Record, UnknownBlock
from kode_core.query import Page
from kode_core.shapes import plan_of

__all__ = ["camel", "to_json", "to_jsonable"]

Nan: TypeAlias = Literal["refuse", "null", "text"]

_MAX_ITEMS: Final = 1_000_000
_TEXTS: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_FIRST_STEPS, _LAST_STEPS = 9, 2  # what an error shows of a long path
_HINT: Final = "convert it first, or give to_jsonable a default= for it"


def to_jsonable(
    value: object,
    *,
    name: str = "value",
    nan: Nan = "refuse",
    default: Callable[[Any], object] | None = None,
    max_items: int = _MAX_ITEMS,
) -> Json:
    """*value* as a new JSON value, which a store keeps exactly: for results of tools, metadata and data of events.

    ======================================= =========================================================================
    value                                   JSON
    ======================================= =========================================================================
    ``datetime``                            ISO 8601 with its offset; a naive one is refused
    ``date``, ``time``, ``timedelta``       ISO 8601: ``2025-01-31``, ``12:00:00``, ``P1DT30S``
    ``UUID``, ``Decimal``, ``Path``         its text
    ``bytes``, ``bytearray``,               base64
    ``memoryview``
    ``Enum``                                its value, converted
    subclasses of str, int, float           the plain str, int or float
    ``tuple``, deque, range, views of dicts list
    ``set``, ``frozenset``                  list, sorted; by type and text if the items have no order of their own
    mappings                                dict; keys that are no texts become the text of their JSON
    dataclasses, attrs, pydantic, msgspec   dict of the fields; msgspec with its own names
    NumPy scalars and arrays                numbers and nested lists; masked items are null
    records and answers of a store          the dict that ``to_dict`` gives; a page is ``items``, ``nextCursor`` and
                                            ``leftOut``
    ======================================= =========================================================================

    Args:
        value: any value; it is read only, and the result shares no list and no dict with it.
        name: the name of the value in errors.
        nan: ``refuse`` NaN and infinities, or write them as ``null`` or as the ``text`` ``NaN``, ``Infinity``.
        default: is called for a value of any other type and for a naive datetime; its result is converted in turn.
        max_items: how many items the result may have at most, counted at all levels.

    Raises:
        InvalidValueError: it cannot be converted: another type, a cycle, more than 100 levels or *max_items* items, two
            keys that become one; the error names the path, such as ``$.rows[3].price``, and the type.
        InvalidArgumentError: an argument is wrong.
    """
    if nan not in ("refuse", "null", "text"):
        raise InvalidArgumentError("nan must be 'refuse', 'null' or 'text'")
    if type(max_items) is not int or max_items < 1:
        raise InvalidArgumentError("max_items must be an int of 1 or more")
    if default is not None and not callable(default):
        raise InvalidArgumentError(f"default must be a function, got {type_name(type(default))}")
    try:
        return _Converter(nan, default, max_items).convert(value)
    except _Refused as refused:
        raise InvalidValueError(name, refused.path, refused.what) from refused.__cause__


def to_json(value: object, *, nan: Nan = "refuse", default: Callable[[Any], object] | None = None) -> bytes:
    """The JSON text of a record, a page, or of lists and dicts with records in them: the body of an HTTP response.

    Values are converted as by :func:`to_jsonable`, without a limit of their number.

    Raises:
        InvalidValueError: as :func:`to_jsonable`.
        InvalidArgumentError: *nan* or *default* is wrong.
    """
    return dump(to_jsonable(value, nan=nan, default=default, max_items=sys.maxsize))


def camel(name: str) -> str:
    """A name of Python as it is written in JSON: ``created_at`` is ``createdAt``."""
    return re.sub(r"_([a-z0-9])", lambda m: m[1].upper(), name)


class _Refused(Exception):
    """A value that cannot be converted; the steps to it are collected while the exception propagates."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
        self.steps: list[object] = []

    @property
    def path(self) -> str:
        steps, most = self.steps[::-1], _FIRST_STEPS + _LAST_STEPS + 1
        shown = steps if len(steps) <= most else [*steps[:_FIRST_STEPS], "…", *steps[-_LAST_STEPS:]]
        return "$" + "".join(map(path_step, shown))


class _Converter:
    """Converts one value; its methods convert values of one kind each, and call ``convert`` for what is inside."""

    def __init__(self, nan: Nan, default: Callable[[Any], object] | None, max_items: int) -> None:
        self._nan = nan
        self._default = default
        self._max_items = max_items
        self._count = 0
        self._above: set[int] = set()

    def convert(self, value: Any) -> Json:
        kind = type(value)
        self._add(1)
        if kind is str or kind is int:
            return _sound(value)
        if kind is bool or value is None:
            return value
        if kind is float:
            return value if isfinite(value) else self._not_finite(value)
        mark = id(value)
        if mark in self._above:
            raise _Refused(f"{type_name(kind)} contains itself; JSON has no cycles")
        if len(self._above) > MAX_DEPTH:
            raise _Refused(f"nested deeper than {MAX_DEPTH} levels")
        self._above.add(mark)
        try:
            return self._other(value)
        except (_Refused, MemoryError):
            raise
        except RecursionError:
            raise _Refused("nested too deep for this point of the program") from None
        except Exception as exc:
            raise _Refused(f"the conversion of {type_name(kind)} raised {type(exc).__name__}") from exc
        finally:
            self._above.discard(mark)

    def _add(self, items: int) -> None:
        self._count += items
        if self._count > self._max_items:
            raise _Refused(f"more than {self._max_items} items; keep such a value in a file, or raise max_items")

    def _not_finite(self, value: float | Decimal) -> Json:
        text = "nan" if isnan(value) else str(float(value))
        if self._nan == "refuse":
            raise _Refused(f"{text} is not a JSON number; give to_jsonable nan='null' or nan='text'")
        return None if self._nan == "null" else _TEXTS[text]

    def _other(self, value: Any) -> Json:
        if type(value) is dict:
            return self.mapping(value)
        if type(value) is list:
            return self.items(value)
        for find in (_scalar, _container):
            rule = find(value)
            if rule is not None:
                return rule(self, value)
        if self._default is None:
            raise _Refused(_advice(value))
        return self.convert(self._default(value))

    # --- containers

    def items(self, values: Iterable[object]) -> list[Json]:
        out = []
        for i, item in enumerate(values):
            try:
                out.append(self.convert(item))
            except _Refused as refused:
                refused.steps.append(i)
                raise
        return out

    def fields(self, pairs: Iterable[tuple[str, object]]) -> dict[str, Json]:
        """The dict of *pairs*, whose keys are texts already."""
        out: dict[str, Json] = {}
        for key, item in pairs:
            if key in out:
                raise _Refused(f"two keys become {key!r:.60}; rename one of them")
            try:
                out[key] = self.convert(item)
            except _Refused as refused:
                refused.steps.append(key)
                raise
        return out

    def mapping(self, value: Mapping[Any, Any]) -> Json:
        most = min(self._max_items, sys.maxsize - 1) + 1  # a mapping of a class of its own may have no end
        taken = tuple(islice(value.items(), most))
        return self.fields([(self._key(key), item) for key, item in taken])

    def _key(self, key: object) -> str:
        if type(key) is str:
            return str(_sound(key))
        plain = self.convert(key)
        if type(plain) is str:
            return plain
        if type(plain) is list or type(plain) is dict:
            raise _Refused(f"a key is of type {type_name(type(key))}; make a text of it first")
        return dump(plain).decode()

    def set(self, value: Set[Any]) -> Json:
        out = self.items(value)
        try:
            return sorted(out)
        except TypeError:  # items of several types
            return sorted(out, key=lambda item: (type(item).__name__, dump(item)))

    def array(self, value: Any) -> Json:
        _refuse_times(value)
        self._add(int(value.size))
        self._count -= int(value.size)  # they are counted one by one
        plain = value.tolist()
        return self.items(plain) if type(plain) is list else self.convert(plain)

    def decimal(self, value: Decimal) -> Json:
        return str(value) if value.is_finite() else self._not_finite(Decimal("nan") if value.is_nan() else value)

    def datetime(self, value: datetime) -> Json:
        if value.utcoffset() is not None:
            return value.isoformat()
        if self._default is not None:
            return self.convert(self._default(value))
        raise _Refused(
            f"a naive {type_name(type(value))}; give it a zone, as in value.replace(tzinfo=UTC), or a default="
        )

    def scalar_of_numpy(self, value: Any) -> Json:
        _refuse_times(value)
        plain = value.item()
        if type(plain) is type(value) or type(plain).__module__ == "numpy":
            raise _Refused(_advice(value))
        return self.convert(plain)

    def record(self, value: Any) -> Json:
        """A record under its stored names, without the fields that are None (VAL-3)."""
        cls: type = type(value)
        plan = plan_of(cls)
        pairs: list[tuple[str, object]] = [] if plan.tag is None else [("type", plan.tag)]
        for attr, wire, may_be_absent, *_ in plan.steps:
            item = getattr(value, attr)
            if item is not None or not may_be_absent:
                pairs.append((wire, item))
        spread = getattr(value, plan.spread) if plan.spread else None
        return self.fields([*pairs, *(() if spread is None else tuple(spread.items()))])

    def answer(self, value: Any) -> Json:
        fields = msgspec.structs.asdict(value).items()
        return self.fields([(camel(name), item) for name, item in fields if item is not None])

    def page(self, value: Page[Any]) -> Json:
        left_out = list(value.left_out)
        return {"items": self.items(value), "nextCursor": value.next_cursor, "leftOut": left_out}

    def struct(self, value: Any) -> Json:
        config = type(value).__struct_config__
        fields = [(f.encode_name, getattr(value, f.name)) for f in msgspec.structs.fields(type(value))]
        tag = [] if config.tag is None else [(config.tag_field, config.tag)]
        if config.array_like:
            return self.items([item for _, item in (*tag, *fields)])
        return self.fields([*tag, *((name, item) for name, item in fields if item is not msgspec.UNSET)])

    def of_names(self, names: Iterable[str], value: object) -> Json:
        return self.fields([(name, getattr(value, name)) for name in names])


def _refuse_times(value: Any) -> None:
    """Refuse dates of NumPy, which have no time zone and of which nanoseconds would become bare numbers."""
    if value.dtype.kind in "mM":
        raise _Refused(
            f"{type_name(type(value))} of {value.dtype} has no JSON form; make texts of it: value.astype(str)"
        )


_Rule: TypeAlias = Callable[[_Converter, Any], Json]


def _sound(value: str | int) -> Json:
    problem = problem_of(value)
    if problem is not None:
        raise _Refused(problem)
    return value


def _of_library(value: object, module: str, *names: str) -> bool:
    """True if *value* is of one of these classes of a library; the library is never imported here."""
    library = sys.modules.get(module)
    classes = (getattr(library, name, None) for name in names)
    return any(isinstance(cls, type) and isinstance(value, cls) for cls in classes)


_SCALARS: Final[Sequence[tuple[type | tuple[type, ...], _Rule]]] = (
    (Enum, lambda to, value: to.convert(value.value)),
    (str, lambda to, value: to.convert(str.__str__(value))),
    (int, lambda to, value: to.convert(int.__add__(value, 0))),
    (float, lambda to, value: to.convert(float.__pos__(value))),
    (datetime, _Converter.datetime),
    ((date, time), lambda to, value: value.isoformat()),
    (timedelta, lambda to, value: msgspec.to_builtins(value)),
    (Decimal, _Converter.decimal),
    ((UUID, PurePath), lambda to, value: to.convert(str(value))),
    ((bytes, bytearray, memoryview), lambda to, value: base64.b64encode(value).decode()),
)


def _scalar(value: object) -> _Rule | None:
    if _of_library(value, "numpy", "generic"):  # before its base classes, float and str
        return _Converter.scalar_of_numpy
    return next((rule for kinds, rule in _SCALARS if isinstance(value, kinds)), None)


def _container(value: object) -> _Rule | None:
    kind = type(value)
    if isinstance(value, type):
        return None
    if isinstance(value, msgspec.Struct):
        return _rule_of_struct(kind)
    if _of_library(value, "pydantic", "BaseModel"):
        return _model
    if hasattr(kind, "__dataclass_fields__"):
        return lambda to, value: to.of_names(_dataclass_fields(value), value)
    if hasattr(kind, "__attrs_attrs__"):
        return lambda to, value: to.of_names([f.name for f in type(value).__attrs_attrs__], value)
    if _of_library(value, "numpy", "ndarray"):
        return _Converter.array
    if isinstance(value, Page):
        return _Converter.page
    if isinstance(value, Mapping):
        return _Converter.mapping
    if isinstance(value, Set) and not isinstance(value, MappingView):
        return _Converter.set
    if isinstance(value, Sequence | MappingView):
        return _Converter.items
    return None


def _rule_of_struct(kind: type) -> _Rule:
    ours = kind.__module__.partition(".")[0] == "kode_core"
    if kind is UnknownBlock:
        return lambda to, value: to.convert(value.data)
    if ours and issubclass(kind, Record | AgentEvent):
        return _Converter.record
    return _Converter.answer if ours else _Converter.struct


def _dataclass_fields(value: object) -> list[str]:
    """The names of the fields. The module of the class has imported ``dataclasses``, which this one does not."""
    return [field.name for field in sys.modules["dataclasses"].fields(value)]


def _model(to: _Converter, value: Any) -> Json:
    """A pydantic model: its fields as Python values, which are converted by the rules above."""
    return to.convert(value.model_dump() if hasattr(value, "model_dump") else value.dict())


def _advice(value: object) -> str:
    name = type_name(type(value))
    if isinstance(value, type):
        return f"the class {name if value is type else type_name(value)} itself is not a value; make an instance of it"
    if isinstance(value, Iterator):
        return f"{name} can be read only once and has no JSON; make a list of it first"
    if hasattr(type(value), "__await__"):
        return f"{name} is not awaited yet; await it first"
    return f"{name} has no JSON form here; {_HINT}"
