"""Every free-form field of every kind of record: how to write a value into it, and how to read it back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from kode_conformance.values import fields
from kode_conformance.values.fields import Field, alone, fields_of, of_agent
from kode_conformance.values.kinds import Gives, Kind, kinds
from kode_core.model import AgentInfo
from kode_core.protocols import Store

__all__ = ["FIELD_USES", "FieldUse", "Holds"]


class Holds(Enum):
    """The values that a field takes."""

    JSON = "any JSON value"
    DICT = "a dict"
    TEXT = "a string"

    def fits(self, value: Any) -> bool:
        """True if the field's type allows the value."""
        if self is Holds.JSON:
            return True
        return type(value) is (str if self is Holds.TEXT else dict)


class FieldUse(NamedTuple):
    """A free-form field, and the kind of record that it is in.

    Attributes:
        inside: how many dicts around the value are the caller's as well, and count for its depth.
    """

    field: Field
    kind: Kind
    holds: Holds
    inside: int = 0

    @property
    def name(self) -> str:
        """As in ``Message.content[5].input``."""
        return self.field.name

    @property
    def replaces(self) -> bool:
        """True if a record takes the place of the one that was saved before."""
        return not any(reader.gives is Gives.STREAM for reader in self.kind.readers)

    def record(self, value: Any) -> Any:
        """A record that holds a value there, and little else."""
        return alone(self.field, {"newer": value} if self.inside else value)

    async def save(self, store: Store, agent_id: str, record: Any) -> None:
        """Save a record, in place of an old one where the kind replaces."""
        writer = next(writer for writer in self.kind.writers if writer.method.startswith(("save_", "append_event")))
        await getattr(store, writer.method)(agent_id, **writer.given(of_agent(record, agent_id)))

    async def load(self, store: Store, agent_id: str) -> Sequence[Any]:
        """All records of the kind."""
        reader = self.kind.whole
        found = getattr(store, reader.method)(agent_id)
        if isinstance(found, AsyncIterator):
            return [event async for event in found]
        loaded = await found
        if reader.gives is Gives.LIST:
            return list(loaded)
        if isinstance(loaded, AgentInfo):
            return [loaded.replace(agent_id="a")]
        return [] if loaded is None else [loaded]


_HOLDS: Final = {
    fields.Holds.JSON: Holds.JSON,
    fields.Holds.DICT: Holds.DICT,
    fields.Holds.TEXT: Holds.TEXT,
    fields.Holds.SPREAD: Holds.JSON,
}


def _places() -> Iterator[FieldUse]:
    """One for each field of each record type, and for what each kind of value is inside of records in records."""
    seen = set()
    for kind in kinds().values():
        for field in fields_of(kind.record):
            nested = field.path[0] in ("messages", "events")
            key = (kind.record, field.path[0], field.holds) if nested else field.place
            if field.holds in _HOLDS and key not in seen:
                seen.add(key)
                yield FieldUse(field, kind, _HOLDS[field.holds], int(field.holds is fields.Holds.SPREAD))


FIELD_USES: Final[tuple[FieldUse, ...]] = tuple(_places())
"""All places."""
