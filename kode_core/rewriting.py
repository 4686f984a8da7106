"""An optional part of the interface between core and engine: bodies of events that take another stored form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

from kode_core.codec import Body
from kode_core.engine import Engine
from kode_core.errors import UnsupportedError

__all__ = ["EventBody", "RewritesEvents", "rewrite_events", "rewrites_events"]


class EventBody(NamedTuple):
    """A stored event that takes another body.

    Attributes:
        offset: of the event.
        seq: of the event.
        expect: the digest that its stored body has; the event stays as it is if it has another one.
        body: the new body.
    """

    offset: int
    seq: int
    expect: bytes
    body: Body


class RewritesEvents(Protocol):
    """An optional interface of an engine: it replaces the bodies of events where they stand.

    Events are otherwise never changed, so that no batch can put them under another key of encryption.
    """

    rewrites_events: bool
    """True; a layer says what the engine inside it says."""

    async def rewrite_events(self, agent_id: str, changes: Sequence[EventBody]) -> None:
        """Replace the bodies, atomically and durably. Offsets, seqs, channels and the agent's version stay.

        An engine that keeps the bodies of replaced records for a while removes the agent's, also without changes.
        """
        ...


def rewrites_events(engine: Engine) -> bool:
    """Whether *engine* has the interface :class:`RewritesEvents`."""
    return bool(getattr(engine, "rewrites_events", False))


async def rewrite_events(engine: Engine, agent_id: str, changes: Sequence[EventBody]) -> None:
    """Replace the bodies of events.

    Raises:
        UnsupportedError: *engine* never changes a stored event.
    """
    if not rewrites_events(engine):
        raise UnsupportedError(f"the backend {engine.name} never changes a stored event")
    await cast(RewritesEvents, engine).rewrite_events(agent_id, changes)
