"""Notes of places that may hold records without a head: in partitions of their own, by agent and by time."""

from __future__ import annotations

from typing import Final

from kode_core.authoring.parallel import each
from kode_core.engines.record.store import ItemsPlace, Note
from kode_dynamodb.connection import Connection, Record
from kode_dynamodb.values import bucket_of, buckets, hexed

__all__ = ["Notes"]

_KIND: Final = "left"
_BY_TIME: Final = "by_time"


class Notes:
    """See ``RecordStore.note``. A place keeps only its last note. All reads are consistent, and none is a scan."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def add(self, note: Note) -> None:
        """See ``RecordStore.note``."""
        await self._connection.repeat("put_item", Item={**_key(note), "ts": {"S": _time(note.at)}})

    async def until(self, at: int, limit: int) -> list[Note]:
        """See ``RecordStore.notes``."""

        async def of(bucket: str) -> list[Record]:
            return await self._connection.query(
                IndexName=_BY_TIME,
                KeyConditionExpression="pk = :pk AND ts <= :at",
                ExpressionAttributeValues={":pk": {"S": bucket}, ":at": {"S": _time(at)}},
                ConsistentRead=True,
                limit=limit,
            )

        found = [_found(entry) for entries in await each(of, buckets(_KIND)) for entry in entries]
        return sorted(found, key=lambda note: note.at)[:limit]

    async def of(self, agent_id: str) -> list[Note]:
        """See ``RecordStore.notes_of``. No index shows a place without a note."""
        values = {":pk": bucket_of(_KIND, agent_id), ":agent": {"S": f"{hexed(agent_id)}/"}}
        found = await self._connection.query(
            KeyConditionExpression="pk = :pk AND begins_with(sk, :agent)",
            ExpressionAttributeValues=values,
            ConsistentRead=True,
        )
        return [_found(entry) for entry in found]

    async def remove(self, note: Note) -> None:
        """See ``RecordStore.forget``."""
        await self._connection.repeat(
            "delete_item",
            Key=_key(note),
            ConditionExpression="ts = :at",
            ExpressionAttributeValues={":at": {"S": _time(note.at)}},
        )


def _time(at: int) -> str:
    return f"{at:015d}"


def _key(note: Note) -> Record:
    agent_id, epoch = note.place
    return {"pk": bucket_of(_KIND, agent_id), "sk": {"S": f"{hexed(agent_id)}/{epoch}"}}


def _found(entry: Record) -> Note:
    agent_id, _, epoch = entry["sk"]["S"].partition("/")
    return Note(ItemsPlace(bytes.fromhex(agent_id).decode(), epoch), int(entry["ts"]["S"]))
