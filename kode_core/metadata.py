"""Lists and mappings that callers give, and the index of an agent's metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kode_core.errors import InvalidArgumentError, InvalidValueError
from kode_core.ids import IndexText, index_text
from kode_core.jsonslices import JsonWriter
from kode_core.jsonvalue import NODES, Problem, encode_json, type_name, weight
from kode_core.model import Json
from kode_core.pace import Pace

__all__ = ["elements_of", "index_of_metadata", "mapping_of", "metadata_index"]


def mapping_of(given: object, name: str, wanted: str = "a mapping") -> dict[Any, Any]:
    """A copy of a mapping that a caller gave as the argument *name*; *wanted* describes it in errors.

    Raises:
        InvalidArgumentError: it is no mapping, or its own methods fail.
    """
    if not isinstance(given, Mapping):
        raise InvalidArgumentError(f"{name} must be {wanted}, got {type_name(type(given))}")
    try:
        return dict(given.items())
    except Exception as exc:
        raise InvalidArgumentError(f"{name} cannot be read: reading it raised {type(exc).__name__}") from exc


def elements_of(
    given: object, name: str, wanted: str = "a list", kinds: tuple[type[Iterable[Any]], ...] = (list, tuple)
) -> tuple[Any, ...]:
    """The elements of a list or tuple that a caller gave as the argument *name*, which may change meanwhile.

    Raises:
        InvalidArgumentError: it is none of *kinds*, or its own methods fail.
    """
    if not isinstance(given, kinds):
        raise InvalidArgumentError(f"{name} must be {wanted}, got {type_name(type(given))}")
    try:
        return tuple(given)
    except Exception as exc:
        raise InvalidArgumentError(f"{name} cannot be read: reading it raised {type(exc).__name__}") from exc


def metadata_index(metadata: Mapping[str, Json], label: str = "metadata") -> tuple[tuple[str, str], ...]:
    """The (key, value) pairs that metadata filters compare: equal JSON values give equal texts."""
    plain = dict(metadata)
    encode_json(plain, label)
    return tuple((index_text(key), _index_of(_canonical_text(value, label))) for key, value in plain.items())


async def index_of_metadata(metadata: Mapping[str, Json], label: str, pace: Pace) -> tuple[tuple[str, str], ...]:
    """The same in slices, for metadata that is known to be exact."""
    index = []
    for key, value in tuple(metadata.items()):
        text = IndexText()
        for piece in _canonical_text(value, label):
            text.add(piece)
            await pace.yield_to_loop()
        index.append((index_text(key), text.whole()))
    return tuple(index)


def _index_of(pieces: Iterable[str]) -> str:
    text = IndexText()
    for piece in pieces:
        text.add(piece)
    return text.whole()


def _canonical_text(value: Json, label: str) -> Iterator[str]:
    """Pieces of a text that is equal for equal values."""
    if weight(value) <= NODES:
        yield encode_json(_canonical(value), label)
        return
    try:
        for piece in JsonWriter(form=_canonical).write(value):
            yield piece.decode()
    except Problem as problem:  # it has changed meanwhile
        raise InvalidValueError(label, "$.metadata", problem.what) from None


def _canonical(value: Json) -> Json:
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is list:
        return [_canonical(item) for item in value]
    if type(value) is dict:
        return {key: _canonical(value[key]) for key in sorted(value)}
    return value
