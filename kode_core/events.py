"""Events as they pass between the core and a storage engine; import the names from :mod:`kode_core.batch`."""

from __future__ import annotations

from typing import Literal

import msgspec

from kode_core.codec import Body

__all__ = ["EventDrop", "EventRange", "EventRow", "EventWrite"]


class _Value(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    pass


class EventRow(_Value, frozen=True):
    """An event of the log."""

    offset: int
    seq: int
    body: Body


class EventRange(_Value, frozen=True, kw_only=True):
    """Which events to read, and in which order.

    Attributes:
        order: ``seq`` for (seq, offset), ``offset`` for the order of commit.
        after: continue after this (seq, offset), exclusive; in ``offset`` order only the offset counts.
        since_seq: only events with a greater seq, whatever the order.
    """

    order: Literal["seq", "offset"] = "seq"
    after: tuple[int, int] | None = None
    since_seq: int | None = None
    channel: str | None = None
    limit: int = 500


class EventWrite(_Value, frozen=True):
    """An event to append. The same (seq, digest) again is not stored twice (EVT-4)."""

    seq: int
    channel: str
    body: Body


class EventDrop(_Value, frozen=True):
    """Events to remove: those with an offset below ``before``, but for the one with the offset ``keep``.

    Precondition: the event ``keep`` is stored. It proves that the agent was not deleted since the core read it.
    """

    before: int
    keep: int
