"""The kinds of records, found in the hints of the protocols: the methods that write each kind, and the methods that
give it back.

A method that writes takes a ``fence``, and its records by a parameter of a record type or of a sequence of such a type.
A method that gives records back has their type in its return annotation.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from kode_core.model import Record
from kode_core.protocols import EventStream, ExtendedStore
from kode_core.query import Page

__all__ = ["Gives", "Kind", "ReadMethod", "WriteMethod", "kinds"]


class WriteMethod(NamedTuple):
    """A method that writes a kind, and its parameter.

    Attributes:
        many: True if it takes a list.
        in_company: the call has a part of every other kind, too; only of a turn.
    """

    method: str
    parameter: str
    many: bool
    in_company: bool = False

    def given(self, record: Any) -> dict[str, Any]:
        """The argument that gives one record."""
        return {self.parameter: [record] if self.many else record}


class Gives(Enum):
    """How a method gives records back."""

    LIST = "all of an agent"
    ONE = "the only one of an agent"
    KEYED = "one of an agent, by its key"
    STREAM = "all of an agent, one by one"
    PAGE = "those that match, a page of them"
    FOUND = "those that match, one by one"


class ReadMethod(NamedTuple):
    """A method that gives a kind back."""

    method: str
    gives: Gives


class Kind(NamedTuple):
    """A kind of record and its methods."""

    record: type[Record]
    writers: Sequence[WriteMethod]
    readers: Sequence[ReadMethod]

    @property
    def is_single(self) -> bool:
        """True if an agent has one record of the kind at most."""
        return any(reader.gives is Gives.ONE for reader in self.readers)

    @property
    def whole(self) -> ReadMethod:
        """The method that gives all records of an agent."""
        return next(reader for reader in self.readers[::-1] if reader.gives in (Gives.LIST, Gives.ONE, Gives.STREAM))


@functools.cache
def kinds() -> Mapping[type[Record], Kind]:
    """All kinds, by their record type."""
    writers: dict[type[Record], list[WriteMethod]] = {}
    readers: list[tuple[type[Record], ReadMethod]] = []
    for name, method in inspect.getmembers(ExtendedStore, inspect.isfunction):
        if name.startswith("_") or name in _ELSEWHERE:
            continue
        hints = typing.get_type_hints(method)
        returned = hints.pop("return", None)
        if "fence" in hints:
            for parameter, hint in hints.items():
                for record, many in _records(hint):
                    writers.setdefault(record, []).append(WriteMethod(name, parameter, many))
        else:
            readers += [(record, ReadMethod(name, _gives(returned, hints))) for record, _ in _records(returned)]
    return {
        record: Kind(record, tuple(found), tuple(reader for read, reader in readers if issubclass(read, record)))
        for record, found in writers.items()
    }


_ELSEWHERE: Final = frozenset(
    {"append_messages_once", "create_agent", "replace_message", "read_messages", "load_agent", "import_agent"}
)
"""Methods with checks of their own: they write a record only where there is none, or under a key, or in the place of
another, or give only what another method gives as well.
"""
_STREAMS: Final = (AsyncIterator, EventStream)
_LISTS: Final = (list, Sequence, Page, *_STREAMS)


def _records(hint: Any) -> Iterator[tuple[type[Record], bool]]:
    """The record types in a hint, each with whether there are many of them."""
    if isinstance(hint, type) and not typing.get_args(hint):
        if issubclass(hint, Record):
            yield hint, False
        return
    many = _is_many(hint)
    for part in typing.get_args(hint):
        yield from ((record, many or inside) for record, inside in _records(part))


def _is_many(hint: Any) -> bool:
    return typing.get_origin(hint) in _LISTS


def _gives(returned: Any, hints: Mapping[str, Any]) -> Gives:
    of_one = hints.get("agent_id") is str
    if typing.get_origin(returned) in _STREAMS:
        return Gives.STREAM if of_one else Gives.FOUND
    if typing.get_origin(returned) is Page:
        return Gives.PAGE
    if _is_many(returned):
        return Gives.LIST
    return Gives.ONE if list(hints) == ["agent_id"] else Gives.KEYED
