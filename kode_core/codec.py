"""Records to their stored form and back (VAL-1, VAL-2, VAL-6).

The stored form of a record is its JSON text, with a digest of that text. Known fields are checked by the record's
annotations, free-form ones by :mod:`kode_core.jsonvalue`; fields and block types that this version does not know
pass through.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple, TypeVar, cast

import msgspec

from kode_core.errors import CorruptRecordError, InvalidValueError
from kode_core.ids import quoted
from kode_core.jsonvalue import SCALARS, Problem, check_json, decode_json, dump, type_name
from kode_core.model import Json, Message, Record, Timeline, UnknownBlock

__all__ = ["Body", "decode", "decode_list", "digest", "encode", "encode_list", "from_dict", "to_dict"]

R = TypeVar("R", bound=Record)


class Body(NamedTuple):
    """A record as it is stored: its JSON text and the digest of that text."""

    text: str
    digest: bytes


class _Shape(NamedTuple):
    """How the values of an annotation are written and read. Values of ``plain`` types are both as they are."""

    plain: frozenset[type]
    write: Callable[[Any], Json]
    read: Callable[[Any], Any]
    optional: bool = False


class _Field(NamedTuple):
    attr: str
    wire: str
    required: bool
    shape: _Shape


class _Plan(NamedTuple):
    cls: type
    tag: str | None
    fields: tuple[_Field, ...]
    spread: str | None
    names: frozenset[str]


@functools.cache
def _plan(cls: type) -> _Plan:
    hints = typing.get_type_hints(cls)
    config = cls.__struct_config__  # type: ignore[attr-defined]
    fields = []
    spread = None
    for f in msgspec.structs.fields(cls):
        if f.encode_name.startswith("__"):  # spread over the record
            spread = f.name
        else:
            fields.append(_Field(f.name, f.encode_name, f.required, _shape(hints[f.name])))
    tag = config.tag
    names = {f.wire for f in fields} | ({config.tag_field} if tag else set())
    return _Plan(cls, tag, tuple(fields), spread, frozenset(names))


_NOTHING_PLAIN: Final[frozenset[type]] = frozenset()


def _shape(hint: Any) -> _Shape:
    if hint is Any:
        return _Shape(SCALARS, _write_json, _same, optional=True)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union_shape(tuple(a for a in args if a is not types.NoneType), types.NoneType in args)
    if origin is typing.Literal:
        check = functools.partial(_one_of, args)
        return _Shape(_NOTHING_PLAIN, check, check)
    if origin is dict:
        return _Shape(_NOTHING_PLAIN, _write_dict, functools.partial(_expect, (dict,), "an object"))
    if origin is Sequence:
        item = _shape(args[0])
        return _Shape(_NOTHING_PLAIN, functools.partial(_write_list, item), functools.partial(_read_list, item))
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        read = functools.partial(_read_struct, hint)
        return _Shape(_NOTHING_PLAIN, functools.partial(_write_struct, hint), read)
    kind: type = hint
    noun = {str: "a string", int: "an integer", bool: "true or false"}[kind]
    refuse = functools.partial(_expect, (kind,), noun)
    plain: frozenset[type] = frozenset((kind,))
    return _Shape(plain, refuse, refuse)


def _union_shape(kinds: tuple[Any, ...], optional: bool) -> _Shape:
    if set(kinds) == {int, float}:
        expect = functools.partial(_expect, (int, float), "a number")
        return _Shape(frozenset({int}), _write_number, expect, optional)
    if len(kinds) > 1:
        return _Shape(_NOTHING_PLAIN, _write_block, _read_block, optional)
    shape = _shape(kinds[0])
    if not optional:
        return shape
    return shape._replace(read=functools.partial(_read_optional, shape.read), optional=True)


def _expect(kinds: tuple[type, ...], noun: str, value: Any) -> Any:
    if type(value) in kinds:
        return value
    raise Problem(f"expected {noun}, got {type_name(type(value))}")


def _same(value: Any) -> Any:
    return value


def _one_of(options: tuple[str, ...], value: Any) -> Any:
    if type(value) is str and value in options:
        return value
    raise Problem(f"expected one of {', '.join(options)}, got {quoted(value)}")


def _write_json(value: Any) -> Json:
    check_json(value)
    return value


def _write_dict(value: Any) -> Json:
    _expect((dict,), "a dict", value)
    check_json(value)
    return value


def _write_number(value: Any) -> Json:
    _expect((int, float), "a number", value)
    check_json(value)
    return value


def _write_list(shape: _Shape, value: Any) -> Json:
    if type(value) is not tuple and type(value) is not list:
        raise Problem(f"expected a list or tuple, got {type_name(type(value))}")
    out = []
    for i, item in enumerate(value):
        try:
            out.append(item if type(item) in shape.plain else shape.write(item))
        except Problem as problem:
            raise problem.under(i) from None
    return out


def _write_struct(cls: type, value: Any) -> Json:
    if type(value) is not cls and not isinstance(value, cls):
        raise Problem(f"expected {cls.__name__}, got {type_name(type(value))}")
    return _to_wire(_plan(cls), value)


def _write_block(value: Any) -> Json:
    kind: type = type(value)
    if kind in _BLOCKS_BY_CLASS:
        return _to_wire(_plan(kind), value)
    if kind is UnknownBlock:
        check_json(value.data)
        if type(value.data) is dict and type(value.data.get("type")) is str:
            return value.data
        raise Problem("an UnknownBlock needs a dict with a str under 'type'")
    raise Problem(f"expected a content block such as TextBlock, got {type_name(kind)}")


def _to_wire(plan: _Plan, record: Any) -> dict[str, Json]:
    wire: dict[str, Json] = {}
    if plan.tag is not None:
        wire["type"] = plan.tag
    for attr, name, required, shape in plan.fields:
        value = getattr(record, attr)
        if value is None and shape.optional and not required:
            continue
        if type(value) in shape.plain:
            wire[name] = value
            continue
        try:
            wire[name] = shape.write(value)
        except Problem as problem:
            raise problem.under(name) from None
    if plan.spread is not None:
        spread = getattr(record, plan.spread)
        if spread:
            _write_spread(plan, spread, wire)
    return wire


def _write_spread(plan: _Plan, spread: Any, wire: dict[str, Json]) -> None:
    _expect((dict,), "a dict", spread)
    check_json(spread)
    clash = plan.names.intersection(spread)
    if clash:
        name = min(clash)
        raise Problem(f"{name!r} is a field of {plan.cls.__name__}: give it there, not in {plan.spread}")
    wire.update(spread)


def _read_optional(read: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else read(value)


def _read_list(shape: _Shape, value: Any) -> Any:
    _expect((list,), "a list", value)
    out = []
    for i, item in enumerate(value):
        try:
            out.append(shape.read(item))
        except Problem as problem:
            raise problem.under(i) from None
    return tuple(out)


def _read_block(value: Any) -> Any:
    kind = _expect((dict,), "an object", value).get("type")
    cls = _BLOCKS_BY_TAG.get(_expect((str,), "a string under 'type'", kind))
    return UnknownBlock(value) if cls is None else _read_struct(cls, value)


def _read_struct(cls: type, value: Any) -> Any:
    plan = _plan(cls)
    _expect((dict,), "an object", value)
    known: dict[str, Any] = {}
    for attr, name, required, shape in plan.fields:
        if name in value:
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
    return cls(**known)


_BLOCKS: Final[tuple[type, ...]] = typing.get_args(typing.get_args(typing.get_type_hints(Message)["content"])[0])
_BLOCKS_BY_CLASS: Final = frozenset(_BLOCKS)
_BLOCKS_BY_TAG: Final = {_plan(cls).tag: cls for cls in _BLOCKS}


# --- Records ----------------------------------------------------------------------------------------------------------


def digest(raw: bytes) -> bytes:
    """16 bytes that stand for *raw*: to find what changed, and to see whether stored text is still what was written."""
    return blake2b(raw, digest_size=16).digest()


def encode(cls: type[Record], record: Record, label: str) -> Body:
    """The stored form of *record*.

    Raises:
        InvalidValueError: it is no *cls*, a field has the wrong type, or a free-form value is not exact JSON;
            names *label* and the path.
    """
    try:
        raw = dump(_write_struct(cls, record))
    except Problem as problem:
        raise InvalidValueError(label, f"${problem.path}", problem.what) from None
    return Body(raw.decode(), digest(raw))


def encode_list(cls: type[Record], records: Sequence[Record], label: str) -> Body:
    """The stored form of a list of records that is kept as one."""
    try:
        raw = dump(_write_list(_shape(cls), records))
    except Problem as problem:
        raise InvalidValueError(label, f"${problem.path}", problem.what) from None
    return Body(raw.decode(), digest(raw))


@functools.cache
def _decoder(shape: type) -> Callable[[str], Any]:
    return msgspec.json.Decoder(shape).decode


def decode(cls: type[R], body: Body, label: str) -> R:
    """The record that :func:`encode` stored.

    Raises:
        CorruptRecordError: the text is not what was written.
    """
    return cast(R, _decode(cls, functools.partial(_read_struct, cls), body, label))


def decode_list(cls: type[R], body: Body, label: str) -> list[R]:
    """The records that :func:`encode_list` stored; raises as :func:`decode` does."""
    return list(_decode(list[cls], functools.partial(_read_list, _shape(cls)), body, label))  # type: ignore[valid-type]


def _decode(shape: type, read: Callable[[Any], Any], body: Body, label: str) -> Any:
    if digest(body.text.encode()) != body.digest:
        raise CorruptRecordError(label, "the stored text does not match its checksum")
    if shape is not Timeline:  # an event's fields are always spread
        try:
            return _decoder(cast(Any, shape))(body.text)
        except msgspec.MsgspecError:
            pass
    return _read(read, body.text, label)


def _read(read: Callable[[Any], Any], text: str, label: str) -> Any:
    try:
        return read(decode_json(text))
    except Problem as problem:
        raise CorruptRecordError(label, f"${problem.path}: {problem.what}") from None
    except ValueError as exc:
        raise CorruptRecordError(label, f"not JSON: {exc}") from None


def from_dict(cls: type[R], wire: Json, label: str = "") -> R:
    """A record from a dict in the KODE SDK's JSON shape; *label* is what errors call it, the class unless given.

    Raises:
        InvalidValueError: it does not fit *cls*.
    """
    try:
        check_json(wire)
        return cast(R, _read_struct(cls, wire))
    except Problem as problem:
        raise InvalidValueError(label or cls.__name__, f"${problem.path}", problem.what) from None


def to_dict(record: Record) -> dict[str, Json]:
    """*record* as a dict in the KODE SDK's JSON shape; raises as :func:`encode` does."""
    cls = type(record)
    try:
        return cast("dict[str, Json]", _write_struct(cls, record))
    except Problem as problem:
        raise InvalidValueError(cls.__name__, f"${problem.path}", problem.what) from None
