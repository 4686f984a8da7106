"""The common base of all records."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeAlias

import msgspec
from msgspec import field
from msgspec.structs import force_setattr

Json: TypeAlias = Any
"""None, bool, int, float, str, or a list or str-keyed dict of these: exact builtin types only (VAL-1, VAL-2)."""

# Fields that are spread over their record on the wire. No decoder ever accepts one from the wire (the length is
# impossible): a record that has such fields takes the codec's second path, which fills them.
Spread = Annotated[dict[str, Json], msgspec.Meta(min_length=2**62)]


def now_ms() -> int:
    """The time of this machine's clock in milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000


if TYPE_CHECKING:
    Items: TypeAlias = Sequence
else:  # with this a decoder makes the tuple that records keep, instead of a list to convert

    class Items:
        """A list or tuple of items that a caller passes, and the tuple that the record keeps."""

        def __class_getitem__(cls, item: Any) -> Any:
            return tuple[item, ...]


def empty() -> tuple[Any, ...]:
    return ()


class Record(
    msgspec.Struct,
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
