"""The common base of all records."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Self, TypeAlias

import msgspec
from msgspec import field
from msgspec.structs import force_setattr

from kode_core.errors import InvalidArgumentError

Json: TypeAlias = Any
"""None, bool, int, float, str, or a list or str-keyed dict of these: exact builtin types only (VAL-1, VAL-2)."""

# Fields that are spread over their record on the wire. No decoder ever accepts one from the wire (the length is
# impossible): a record that has such fields takes the codec's second path, which fills them.
Spread = Annotated[dict[str, Json], msgspec.Meta(min_length=2**62)]


def now_ms() -> int:
    """The time of this machine's clock in milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def to_datetime(time_ms: int) -> datetime:
    """The aware datetime, in UTC, of a time in milliseconds since the epoch; exact, also before 1970.

    Raises:
        InvalidArgumentError: *time_ms* is no int, or outside the years 1 to 9999, which a datetime can hold.
    """
    if type(time_ms) is not int:
        raise InvalidArgumentError(f"a time is milliseconds as int, got {type(time_ms).__name__}")
    try:
        return _EPOCH + timedelta(milliseconds=time_ms)
    except OverflowError:
        pass
    shown = str(time_ms) if abs(time_ms) < 10**20 else "a longer number"
    raise InvalidArgumentError(f"{shown} in milliseconds is outside the years 1 to 9999, which a datetime can hold")


def time_of_iso(text: str) -> int:
    """The milliseconds since the epoch of a time in ISO format; one without a zone is in UTC.

    Raises:
        ValueError: it is no such text.
    """
    try:
        time = datetime.fromisoformat(text)
        return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // timedelta(milliseconds=1)
    except OverflowError:
        raise ValueError("a time outside of the years 1 to 9999") from None


if TYPE_CHECKING:
    Items: TypeAlias = Sequence
else:  # with this a decoder makes the tuple that records keep, instead of a list to convert

    class Items:
        """A list or tuple of items that a caller passes, and the tuple that the record keeps."""

        def __class_getitem__(cls, item: Any) -> Any:
            return tuple[item, ...]


def empty() -> tuple[Any, ...]:
    return ()


class Shown(msgspec.Struct, frozen=True):
    """Base of the records and answers of a store that programs show, which pydantic and FastAPI take as types."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """How pydantic validates and serializes values of this class; only pydantic calls it."""
        from kode_core.schemas import core_schema

        return core_schema(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        """The JSON schema for OpenAPI; only pydantic calls it."""
        from kode_core.schemas import json_schema

        return json_schema(cls)


class Record(
    Shown,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    repr_omit_defaults=True,
    rename="camel",
    gc=False,
):
    """Base of all records.

    Python's garbage collector does not track them: they are trees, and its pauses grow with the number of objects it
    tracks. It has to track records that stand in lists, because the store refers to them weakly.

    Attributes:
        extra: fields of the stored JSON that this version does not know; None if there are none.
    """

    extra: Spread | None = field(default=None, name="__extra__")

    def replace(self, **changes: Any) -> Self:
        """A copy of this record with *changes*, as ``dataclasses.replace``."""
        return msgspec.structs.replace(self, **changes)


def freeze(record: Record, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        if type(value) is list:
            force_setattr(record, name, tuple(value))
