"""The shapes of records: how each is converted to its wire form, which is plain JSON, and read from it.

Known fields are checked by the record's annotations, free-form ones by :mod:`kode_core.jsonvalue`; fields and block
types that this version does not know pass through (VAL-6).
"""

from __future__ import annotations

import functools
import operator
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, cast

import msgspec

from kode_core.jsonvalue import (
    LONG,
    SCALARS,
    Problem,
    check_deep,
    check_json,
    is_flat,
    type_name,
    weight,
)
from kode_core.model import (
    Json,
    Message,
    StoredEvent,
    StoredMessage,
    StoredToolCall,
    Timeline,
    ToolCallRecord,
    UnknownBlock,
)
from kode_core.model.content import KNOWN_BLOCKS
from kode_core.sink import PLACEHOLDER, SPREAD, Later, Sink

__all__ = [
    "Plan",
    "Shape",
    "class_of_block",
    "expected",
    "from_wire",
    "has_parts",
    "is_of",
    "plan_of",
    "read_list",
    "read_struct",
    "shape_of",
    "write_list",
    "write_struct",
]


class Shape(NamedTuple):
    """The conversion of an annotation's values to and from the wire form.

    Values of ``plain`` types are the same in both forms.

    Attributes:
        write: value and sink -> wire form. Without a sink nothing is deferred.
        is_loose: the value may be or contain a dict or list, which can change.
        item: for a list, the shape of its items.
        cls: for a record, its class.
        hint: the annotation.
    """

    plain: frozenset[type]
    write: Callable[[Any, Sink | None], Json]
    read: Callable[[Any], Any]
    optional: bool = False
    is_loose: bool = False
    item: Shape | None = None
    cls: type | None = None
    hint: Any = None

    @property
    def is_record(self) -> bool:
        """True if the shape is a record or a content block."""
        return self.cls is not None or self.write is _write_block


class _Field(NamedTuple):
    attr: str
    wire: str
    required: bool
    shape: Shape


_Step: TypeAlias = tuple[str, str, bool, frozenset[type], Callable[[Any, Sink | None], Json]]
"""The steps of writing a field: its attribute and its wire name, whether None is left out, and parts of its shape."""


class Plan(NamedTuple):
    """The conversion of a class's records to and from the wire form.

    Attributes:
        steps: the conversions of the fields, in order.
        spread: the field whose contents are spread over the record.
        names: the names in the wire form, apart from the spread ones.
        loose: returns a record's fields that are or contain dicts and lists, in the order in which they are written.
    """

    cls: type
    tag: str | None
    fields: tuple[_Field, ...]
    steps: tuple[_Step, ...]
    spread: str | None
    names: frozenset[str]
    loose: Callable[[Any], tuple[Any, ...]]


@functools.cache
def plan_of(cls: type) -> Plan:
    hints = typing.get_type_hints(cls)
    config = cls.__struct_config__  # type: ignore[attr-defined]
    fields = []
    spread = None
    for f in msgspec.structs.fields(cls):
        if f.encode_name.startswith("__"):  # spread over the record
            spread = f.name
        else:
            fields.append(_Field(f.name, f.encode_name, f.required, shape_of(hints[f.name])))
    tag = config.tag
    names = {f.wire for f in fields} | ({config.tag_field} if tag else set())
    loose = [f.attr for f in fields if f.shape.is_loose] + ([spread] if spread else [])
    steps = [(f.attr, f.wire, f.shape.optional and not f.required, f.shape.plain, f.shape.write) for f in fields]
    return Plan(cls, tag, tuple(fields), tuple(steps), spread, frozenset(names), _getter(loose))


def _getter(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return operator.attrgetter(*names)
    return lambda record: tuple(getattr(record, name) for name in names)


_NOTHING_PLAIN: Final[frozenset[type]] = frozenset()
MANY: Final = 512
"""A list of more items is large."""


def shape_of(hint: Any) -> Shape:
    if hint is Any:
        return Shape(SCALARS, _write_json, _same, optional=True, is_loose=True)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union_shape(tuple(a for a in args if a is not types.NoneType), types.NoneType in args)
    if origin is typing.Literal:
        options = frozenset(args)

        def choose(value: Any, _: Sink | None = None) -> Any:
            if type(value) is str and value in options:
                return value
            given = "another text" if type(value) is str else type_name(type(value))
            raise Problem(f"expected one of {', '.join(args)}, got {given}")

        return Shape(_NOTHING_PLAIN, choose, choose)
    if origin is dict:
        return Shape(_NOTHING_PLAIN, _write_dict, functools.partial(_expect, (dict,), "an object"), is_loose=True)
    if origin in (Sequence, tuple):
        item = shape_of(args[0])
        write, read = functools.partial(write_list, item), functools.partial(read_list, item)
        return Shape(_NOTHING_PLAIN, write, read, is_loose=item.is_loose, item=item)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        read = functools.partial(read_struct, hint)
        write = functools.partial(write_struct, hint)
        return Shape(_NOTHING_PLAIN, write, read, is_loose=True, cls=hint, hint=hint)
    kind: type = hint
    noun = {str: "a string", int: "an integer", bool: "true or false"}[kind]
    refuse = functools.partial(_expect, (kind,), noun)
    plain: frozenset[type] = frozenset((kind,))
    return Shape(plain, _checking(refuse), refuse, hint=hint)


def _checking(check: Callable[[Any], Any]) -> Callable[[Any, Sink | None], Json]:
    """A *write* that only checks."""
    return lambda value, _: check(value)


def _union_shape(kinds: tuple[Any, ...], optional: bool) -> Shape:
    if set(kinds) == {int, float}:
        expect = functools.partial(_expect, (int, float), "a number")
        return Shape(frozenset({int}), _write_number, expect, optional)
    if len(kinds) > 1:
        return Shape(
            _NOTHING_PLAIN,
            _write_block,
            _read_block,
            optional,
            is_loose=True,
            hint=functools.reduce(operator.or_, kinds),
        )
    shape = shape_of(kinds[0])  # the other one was None
    return shape._replace(read=functools.partial(_read_optional, shape.read), optional=True)


def _expect(kinds: tuple[type, ...], noun: str, value: Any) -> Any:
    if type(value) in kinds:
        return value
    raise Problem(f"expected {noun}, got {type_name(type(value))}")


def _same(value: Any) -> Any:
    return value


def _write_json(value: Any, sink: Sink | None) -> Json:
    if sink is None:
        check_json(value)
    elif not is_flat(value):
        cost = weight(value)
        if cost > sink.left and type(value) is not int:  # a number cannot be split, however long it is
            return sink.defer(Later(value))
        sink.left = max(sink.left - cost, 0)
        check_deep(value)
    if sink is not None and (type(value) is dict or type(value) is list):
        sink.parts.append(value)
    return value


def _write_dict(value: Any, sink: Sink | None) -> Json:
    if type(value) is not dict:
        _expect((dict,), "a dict", value)
    return _write_json(value, sink)


def _write_number(value: Any, sink: Sink | None) -> Json:
    _expect((int, float), "a number", value)
    check_json(value)
    return value


def write_list(shape: Shape, value: Any, sink: Sink | None) -> Json:
    if type(value) is not tuple and type(value) is not list:
        raise Problem(f"expected a list or tuple, got {type_name(type(value))}")
    if sink is not None and len(value) > MANY:
        return sink.defer(Later(tuple(value), shape))
    out = []
    for i, item in enumerate(value):
        try:
            out.append(item if type(item) in shape.plain else shape.write(item, sink))
        except Problem as problem:
            raise problem.under(i) from None
    return out


def write_struct(cls: type, value: Any, sink: Sink | None) -> Json:
    if type(value) is not cls and not is_of(cls, value):
        raise Problem(f"expected {expected(cls, type(value))}")
    return _to_wire(plan_of(cls), value, sink)


def expected(cls: type, kind: type) -> str:
    noun = f"{cls.__name__}, got {type_name(kind)}"
    return f"{noun}, a subclass, whose own fields would be lost" if issubclass(kind, cls) else noun


def _write_block(value: Any, sink: Sink | None) -> Json:
    kind: type = type(value)
    if kind in _BLOCKS_BY_CLASS:
        return _to_wire(plan_of(kind), value, sink)
    if kind is UnknownBlock:
        data = value.data
        wire = _write_json(data, sink)
        if type(data) is dict and type(data.get("type")) is str:
            return wire
        raise Problem("an UnknownBlock needs a dict with a str under 'type'")
    raise Problem(f"expected a content block such as TextBlock, got {type_name(kind)}")


def _to_wire(plan: Plan, record: Any, sink: Sink | None) -> dict[str, Json]:
    wire: dict[str, Json] = {} if plan.tag is None else {"type": plan.tag}
    for attr, name, may_be_absent, plain, write in plan.steps:
        value = getattr(record, attr)
        if value is None and may_be_absent:
            continue
        kind = type(value)
        if kind in plain:
            if kind is str and len(value) > LONG and sink is not None:
                value = sink.defer(Later(value))
            wire[name] = value
            continue
        try:
            wire[name] = write(value, sink)
        except Problem as problem:
            raise problem.under(name) from None
    if plan.spread is not None:
        spread = getattr(record, plan.spread)
        if spread is not None:
            _write_spread(plan, spread, wire, sink)
    return wire


def _write_spread(plan: Plan, spread: Any, wire: dict[str, Json], sink: Sink | None) -> None:
    written = _write_dict(spread, sink)
    if not plan.names.isdisjoint(spread):
        name = min(plan.names.intersection(spread))
        raise Problem(f"{name!r} is a field of {plan.cls.__name__}: give it there, not in {plan.spread}")
    if written is PLACEHOLDER and sink is not None:
        sink.later[-1].is_spread = True
        wire[SPREAD] = PLACEHOLDER
    else:
        wire.update(written)


def _read_optional(read: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else read(value)


def read_list(shape: Shape, value: Any) -> Any:
    _expect((list,), "a list", value)
    out = []
    for i, item in enumerate(value):
        try:
            out.append(shape.read(item))
        except Problem as problem:
            raise problem.under(i) from None
    return tuple(out)


class _Loose(dict[type, Callable[[Any], tuple[Any, ...]]]):
    def __missing__(self, cls: type) -> Callable[[Any], tuple[Any, ...]]:
        self[cls] = loose = plan_of(cast(Any, cls)).loose
        return loose


_LOOSE: Final = _Loose()


def has_parts(record: Any) -> bool:
    """True if a record contains dicts or lists, which can change while it stays the same object."""
    for value in _LOOSE[type(record)](record):
        if value is None:
            continue
        kind = type(value)
        if kind is dict or kind is list:
            return True
        if kind is tuple:
            if any(map(has_parts, value)):
                return True
        elif kind is not str and isinstance(value, msgspec.Struct) and has_parts(value):
            return True
    return False


def is_of(cls: type, record: Any) -> bool:
    """True if a record can be stored as one of *cls*: a subclass cannot, because its own fields would be lost."""
    kind = type(record)
    return kind is cls or _STORED.get(kind) is cls


def class_of_block(tag: Any) -> type | None:
    """The class of the blocks with this ``type``; None if this version has none."""
    return _BLOCKS_BY_TAG.get(tag)


def _read_block(value: Any) -> Any:
    kind = _expect((dict,), "an object", value).get("type")
    cls = _BLOCKS_BY_TAG.get(_expect((str,), "a string under 'type'", kind))
    return UnknownBlock(value) if cls is None else read_struct(cls, value)


def read_struct(cls: type, value: Any) -> Any:
    _expect((dict,), "an object", value)
    return from_wire(plan_of(cls), value)


def from_wire(plan: Plan, value: dict[str, Any], ready: Mapping[str, Any] = {}) -> Any:
    """The record for a wire form; *ready* holds fields that were already read, by their wire names."""
    known: dict[str, Any] = {}
    for attr, name, required, shape in plan.fields:
        if name in ready:
            known[attr] = ready[name]
        elif name in value:
            item = value[name]
            if type(item) in shape.plain:
                known[attr] = item
                continue
            try:
                known[attr] = shape.read(item)
            except Problem as problem:
                raise problem.under(name) from None
        elif required:
            raise Problem(f"the field {name!r} is missing")
    if plan.spread is not None and not plan.names.issuperset(value):
        known[plan.spread] = {k: v for k, v in value.items() if k not in plan.names}
    return plan.cls(**known)


_STORED: Final[dict[type, type]] = {StoredMessage: Message, StoredToolCall: ToolCallRecord, StoredEvent: Timeline}
"""Records found by a query can be saved again, without the place where they were stored."""
_BLOCKS_BY_TAG: Final[dict[Any, type]] = {cls.__struct_config__.tag: cls for cls in KNOWN_BLOCKS}
_BLOCKS_BY_CLASS: Final = frozenset(_BLOCKS_BY_TAG.values())
