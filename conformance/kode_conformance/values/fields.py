"""Every field of every record, found in the types themselves: its path and the values that it takes, and records made
of such values.

A record type becomes a tree, and each place of it that holds no record and no list of records is a :class:`Field`. A
field that is added to a type, and a content block that is added to a message, are in it without being named anywhere.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple, cast

import msgspec

from kode_conformance.values.samples import T0
from kode_core.model import AgentInfo, UnknownBlock
from kode_core.model.content import BLOCKS

__all__ = [
    "EQUAL",
    "NEAR",
    "Field",
    "Holds",
    "Values",
    "alone",
    "fields_of",
    "full",
    "made",
    "of_agent",
    "put",
    "rows",
    "value_in",
]


class Holds(Enum):
    """The values that a field takes."""

    TEXT = "a string"
    KEY = "an id, path or key that follows ID-4"
    AGENT = "the id of the agent"
    WHOLE = "a whole number of at most 64 bits"
    NUMBER = "a number"
    TIME = "milliseconds since the epoch"
    BOOL = "true or false"
    CHOICE = "one of a few strings"
    JSON = "any JSON value"
    DICT = "a dict"
    SPREAD = "a dict whose keys stand between the fields of the record"
    COUNT = "a number that the store keeps itself"


class Field(NamedTuple):
    """A place in records of one type.

    Attributes:
        root: the record that is saved.
        owner: the record that it is a field of, at any depth.
        path: attributes and positions that lead there.
        number: counts the fields of the root.
        optional: None is allowed, and means absent (VAL-3).
        options: the values of a CHOICE, and the names that the keys of a SPREAD cannot have.
        default: the type's own default; None where that is None, depends on the time, or must be given.
    """

    root: type
    owner: type
    path: tuple[str | int, ...]
    number: int
    holds: Holds
    optional: bool = False
    options: tuple[str, ...] = ()
    default: Any = None

    @property
    def name(self) -> str:
        """As in ``Message.content[5].input``."""
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)
        return f"{self.root.__name__}{''.join(steps)}"

    @property
    def place(self) -> tuple[type, str | int]:
        """The record type and its attribute, wherever such a record stands."""
        return self.owner, next(step for step in reversed(self.path) if isinstance(step, str))


Values = Callable[[Field], Sequence[Any]]
"""The values for a field; none leaves it as it is in :func:`full`."""


# --- the tree of a type -----------------------------------------------------------------------------------------------


class _Struct(NamedTuple):
    cls: type
    parts: tuple[tuple[str, _Node], ...]


class _List(NamedTuple):
    path: tuple[str | int, ...]
    items: tuple[_Node, ...]


class _Unknown(NamedTuple):
    """A block of an unknown type: its type and its other fields."""

    type: Field
    rest: Field


_Node = _Struct | _List | _Unknown | Field
_KEYS: Final = ("id", "path", "key")


class _Tree:
    """The fields of one type, counted while they are found."""

    def __init__(self, root: type) -> None:
        self._root = root
        self.fields: list[Field] = []
        self.top = self._struct(root, ())

    def _field(self, owner: type, path: tuple[str | int, ...], holds: Holds, *more: Any) -> Field:
        self.fields.append(Field(self._root, owner, path, len(self.fields), holds, *more))
        return self.fields[-1]

    def _struct(self, cls: type, path: tuple[str | int, ...]) -> _Node:
        if cls is UnknownBlock:
            kind = self._field(cls, (*path, "data", "type"), Holds.TEXT)
            return _Unknown(kind, self._field(cls, (*path, "data"), Holds.SPREAD, False, ("type",)))
        hints = typing.get_type_hints(cls)
        known = msgspec.structs.fields(cls)
        config = cls.__struct_config__  # type: ignore[attr-defined]
        names = tuple(f.encode_name for f in known if not f.encode_name.startswith("__"))
        names += (config.tag_field,) if config.tag else ()
        parts: list[tuple[str, _Node]] = []
        for f in known:
            if f.encode_name.startswith("__"):
                spread = self._field(cls, (*path, f.name), Holds.SPREAD, f.name == "extra", names)
                parts.append((f.name, spread))
            else:
                parts.append((f.name, self._node(cls, f.name, hints[f.name], (*path, f.name))))
                if self.fields and self.fields[-1].path == (*path, f.name):
                    self.fields[-1] = self.fields[-1]._replace(default=_default(f))
                    parts[-1] = (f.name, self.fields[-1])
        return _Struct(cls, tuple(parts))

    def _node(self, owner: type, name: str, hint: Any, path: tuple[str | int, ...]) -> _Node:
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        optional = types.NoneType in args
        kinds = tuple(arg for arg in args if arg is not types.NoneType)
        if origin in (Sequence, tuple):
            items = typing.get_args(kinds[0]) or kinds[:1]
            items = BLOCKS if set(items) <= set(BLOCKS) else items
            return _List(path, tuple(self._node(owner, name, item, (*path, i)) for i, item in enumerate(items)))
        if origin is typing.Literal:
            return self._field(owner, path, Holds.CHOICE, False, args)
        if origin in (typing.Union, types.UnionType):
            if set(kinds) == {int, float}:
                return self._field(owner, path, Holds.NUMBER, optional)
            (hint,) = kinds
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            return self._struct(hint, path)
        return self._field(owner, path, self._holds(owner, name, hint), optional or hint is Any)

    def _holds(self, owner: type, name: str, hint: Any) -> Holds:
        if owner is self._root and name in (*_KEYS, "agent_id", "message_count"):
            return {"agent_id": Holds.AGENT, "message_count": Holds.COUNT}.get(name, Holds.KEY)
        if hint is int:
            return Holds.TIME if name.endswith("_at") or name == "timestamp" else Holds.WHOLE
        if typing.get_origin(hint) is dict:
            return Holds.DICT
        return {str: Holds.TEXT, bool: Holds.BOOL, Any: Holds.JSON}[hint]


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is dict:
        return {}
    return None if field.default is msgspec.NODEFAULT else field.default


@functools.cache
def _tree(root: type) -> _Tree:
    return _Tree(root)


def fields_of(root: type) -> Sequence[Field]:
    """The fields of a record type, and of all records and blocks inside it."""
    return _tree(root).fields


# --- records ----------------------------------------------------------------------------------------------------------


_Pick = Callable[[_List], Sequence[_Node]]


def _all_items(node: _List) -> Sequence[_Node]:
    return node.items


def made(root: type, value: Callable[[Field], Any], pick: _Pick = _all_items) -> Any:
    """A record with *value* in each field, and in each list one item of each kind, or the items that *pick* takes."""
    return _make(_tree(root).top, value, pick)


def _make(node: _Node, value: Callable[[Field], Any], pick: _Pick) -> Any:
    if type(node) is Field:
        return value(node)
    if type(node) is _Struct:
        return node.cls(
            **{name: value(part) if type(part) is Field else _make(part, value, pick) for name, part in node.parts}
        )
    if type(node) is _List:
        return tuple([_make(item, value, pick) for item in pick(node)])
    assert isinstance(node, _Unknown)
    return UnknownBlock({"type": value(node.type), **value(node.rest)})


_PLAIN: Final[dict[Holds, Callable[[str, int], Any]]] = {
    Holds.TEXT: lambda name, number: f"{name} {number}",
    Holds.KEY: lambda name, number: f"{name}-{number}",
    Holds.AGENT: lambda name, number: "a",
    Holds.WHOLE: lambda name, number: number,
    Holds.NUMBER: lambda name, number: number + 0.5,
    Holds.TIME: lambda name, number: T0 + number,
    Holds.BOOL: lambda name, number: True,
    Holds.COUNT: lambda name, number: 0,
}


def _plain_of(field: Field) -> Callable[[int], Any]:
    """A function of a number that gives the value of the field where no other is asked."""
    if field.holds is Holds.CHOICE:
        return lambda number: field.options[number % len(field.options)]
    name = str(field.path[-1]) if isinstance(field.path[-1], str) else str(field.path[-2])
    if field.holds not in _PLAIN:
        return lambda number: {f"of {name}": [name, number, None]}
    return functools.partial(_PLAIN[field.holds], name)


@functools.cache
def _plain_in(root: type) -> Sequence[Callable[[int], Any]]:
    return [_plain_of(field) for field in fields_of(root)]


def _plain(field: Field, number: int) -> Any:
    return _plain_in(field.root)[field.number](number)


def full(root: type, number: int = 0) -> Any:
    """A record with something in each of its fields, optional ones too; numbers tell them apart."""
    plain = _plain_in(root)
    return made(root, lambda field: plain[field.number](number))


def alone(field: Field, value: Any, number: int = 0) -> Any:
    """A record with *value* in one field and as little else as there can be."""

    def pick(node: _List) -> Sequence[_Node]:
        depth = len(node.path)
        return node.items[int(field.path[depth]) :][:1] if field.path[:depth] == node.path else ()

    def others(other: Field) -> Any:
        if other is field:
            return value
        return other.default if other.optional or other.default is not None else _plain(other, number)

    return made(field.root, others, pick)


def put(record: Any, field: Field, value: Any) -> Any:
    """A copy of a record of :func:`full` or :func:`rows` with *value* in one field."""
    return _put(record, field, value, 0)


def _put(found: Any, field: Field, value: Any, depth: int) -> Any:
    """A copy of what stands at that depth of the field's path."""
    if depth == len(field.path):
        return value
    if isinstance(found, UnknownBlock):
        is_type = field.holds is not Holds.SPREAD
        return UnknownBlock({**found.data, "type": value} if is_type else {"type": found.type, **value})
    step: Any = field.path[depth]
    if isinstance(found, tuple):
        return (*found[:step], _put(found[step], field, value, depth + 1), *found[step + 1 :])
    return msgspec.structs.replace(found, **{step: _put(getattr(found, step), field, value, depth + 1)})


def of_agent(record: Any, agent_id: str) -> Any:
    """The record, for that agent where it names one."""
    return record.replace(agent_id=agent_id) if isinstance(record, AgentInfo) else record


_ABSENT: Final = object()


def value_in(record: Any, field: Field) -> Any:
    """The value of one field of such a record; raises LookupError where the record has no such block."""
    found = record
    for step in field.path:
        if isinstance(found, (dict, tuple)):
            found = cast(Any, found)[step]
        else:
            found = getattr(found, cast(str, step), _ABSENT)
            if found is _ABSENT:
                raise LookupError(field.name)
    if field.owner is UnknownBlock and field.holds is Holds.SPREAD:
        return {key: value for key, value in found.items() if key != "type"}
    return found


def rows(root: type, values: Values, *, thin: bool = False) -> list[Any]:
    """So many records that each field has had each of its values: a covering array, where record *i* has value
    ``i + j`` in field *j*, so that no two fields show the same value at a time.

    *thin* ones hold messages of one block each, in turns, where they hold messages: a field of those has some of the
    values.
    """
    of_fields = [values(field) for field in fields_of(root)]
    count = max(map(len, of_fields), default=0)
    thin = thin and not any(field.path[0] == "content" for field in fields_of(root))
    cells = (functools.partial(_cell, of_fields, i) for i in range(count))
    return [made(root, cell, functools.partial(_in_turn, i) if thin else _all_items) for i, cell in enumerate(cells)]


def _in_turn(row: int, node: _List) -> Sequence[_Node]:
    return (node.items[row % len(node.items)],)


def _cell(of_fields: Sequence[Sequence[Any]], row: int, field: Field) -> Any:
    found = of_fields[field.number]
    if not found or (field.holds is Holds.KEY and row >= len(found)):  # each key once: a repeated one replaces
        return _plain(field, row)
    return found[(row + field.number) % len(found)]


_LONE: Final = ("x\ud83d", "x\udc00")
_COUNTS: Final[tuple[dict[str, Any], ...]] = (
    *({"y": 0, "z": 1}, {"z": 1, "y": 0}, {"z": True, "y": False}, {"z": 1.0, "y": -0.0}),
    *({"y": [text], text: 0} for text in _LONE),
)
EQUAL: Final[dict[Holds, tuple[Any, ...]]] = {
    Holds.NUMBER: (0, 0.0, -0.0, 0, 2.0**24, 2.0**24 + 1),
    Holds.JSON: (1, 1.0, True, "1", *_LONE),
    **dict.fromkeys((Holds.DICT, Holds.SPREAD), _COUNTS),
}
"""Python takes the first ones for equal, each and the next; other languages, encoders and hashes the last two."""
NEAR: Final[dict[Holds, tuple[Any, ...]]] = {
    Holds.TEXT: ("\u00e9", "e\u0301", *_LONE),
    Holds.KEY: ("\u00e9", "e\u0301", "k", "\u212a"),
    Holds.WHOLE: (2**53, 2**53 + 1, -(2**63), -(2**63) + 1),
    Holds.TIME: (2**53, 2**53 + 1, -(2**63), -(2**63) + 1),
    Holds.BOOL: (False, True, False, True),
}
"""Other languages and databases take them for equal."""
