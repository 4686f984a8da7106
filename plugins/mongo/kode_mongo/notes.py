"""Notes of places that may hold records without a head: documents in the collection ``meta``, ordered by time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bson.int64 import Int64

from kode_core.engines.record.store import ItemsPlace, Note
from kode_mongo.connection import Connection
from kode_mongo.items import Items
from kode_mongo.schema import META

__all__ = ["Notes"]

_PREFIX: Final = "left/"
_END: Final = "left0"
"""The least text that sorts after the ids of all notes."""


class Notes:
    """See ``RecordStore.note``."""

    def __init__(self, connection: Connection, rows: Items) -> None:
        self._connection = connection
        self._meta = connection.collection(META)
        self._rows = rows

    async def add(self, note: Note) -> None:
        """See ``RecordStore.note``."""
        fields = {"agent_id": note.place.agent_id, "epoch": note.place.epoch, "at": Int64(note.at)}
        await self._connection.repeat(lambda: self._meta.replace_one({"_id": _id(note)}, fields, upsert=True))

    async def until(self, at: int, limit: int) -> list[Note]:
        """See ``RecordStore.notes``."""
        wanted = {"_id": {"$gte": _PREFIX, "$lt": f"{_PREFIX}{_time(at + 1)}"}}
        found = await self._connection.find(self._meta, wanted, sort=[("_id", 1)], limit=limit)
        return [_found(document) for document in found]

    async def of(self, agent_id: str) -> list[Note]:
        """See ``RecordStore.notes_of``. The index of agents and epochs shows every place that has records."""
        wanted = {"_id": {"$gte": _PREFIX, "$lt": _END}, "agent_id": agent_id}
        notes = [_found(document) for document in await self._connection.find(self._meta, wanted)]
        noted = {note.place.epoch for note in notes}
        left = [epoch for epoch in await self._rows.epochs(agent_id) if epoch not in noted]
        return [*notes, *(Note(ItemsPlace(agent_id, epoch), 0) for epoch in left)]

    async def remove(self, note: Note) -> None:
        """See ``RecordStore.forget``."""
        await self._connection.repeat(lambda: self._meta.delete_one({"_id": _id(note)}))


def _time(at: int) -> str:
    return f"{at:015d}"


def _id(note: Note) -> str:
    return f"{_PREFIX}{_time(note.at)}/{note.place.epoch}/{note.place.agent_id}"


def _found(document: Mapping[str, Any]) -> Note:
    return Note(ItemsPlace(document["agent_id"], document["epoch"]), int(document["at"]))
