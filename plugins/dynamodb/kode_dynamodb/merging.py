"""Partitions of an index, read in parallel and merged in their order."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final, TypeAlias

from kode_core.authoring.parallel import each
from kode_dynamodb.connection import ALL, Connection, Record, Sizes
from kode_dynamodb.values import NO_FILTER, Filter, hexed, place_of

__all__ = ["Partition", "merged"]

Partition: TypeAlias = tuple[str, tuple[str, str]]
"""The name of a partition, and the first and the last key to be read there, both inclusive."""

_KEYS: Final = {
    "by_time": ("pk", "ts"),
    "rows": ("rb", "row"),
    "agents": ("nb", "hx"),
    "created": ("nb", "cr"),
    "updated": ("hb", "up"),
}


class _Bucket:
    """One partition of an index, read page by page on demand."""

    def __init__(self, connection: Connection, arguments: Record, sizes: Sizes) -> None:
        self._connection = connection
        self._arguments = {**arguments, "Limit": sizes.first}
        self._later = sizes.later
        self._entries: list[Record] = []
        self._at = 0
        self._is_done = False

    async def next(self) -> Record | None:
        """The next entry; None after the last one."""
        while self._at == len(self._entries):
            if self._is_done:
                return None
            found = await self._connection.read("query", **self._arguments)
            self._entries, self._at = found["Items"], 0
            start = found.get("LastEvaluatedKey")
            self._is_done = not start
            self._arguments |= {"ExclusiveStartKey": start, "Limit": self._later}
        self._at += 1
        return self._entries[self._at - 1]


class _Ordered:
    """An entry with its key in a merge."""

    __slots__ = ("bucket", "entry", "is_reversed", "key")

    def __init__(self, key: str, entry: Record, bucket: _Bucket, *, is_reversed: bool) -> None:
        self.key, self.entry, self.bucket, self.is_reversed = key, entry, bucket, is_reversed

    def __lt__(self, other: _Ordered) -> bool:
        return self.key > other.key if self.is_reversed else self.key < other.key


async def merged(
    connection: Connection,
    index: str,
    partitions: Iterable[Partition],
    *,
    descending: bool = False,
    sizes: Sizes = ALL,
    filtered: Filter = NO_FILTER,
    key_of: Callable[[str, Record], str] | None = None,
) -> AsyncIterator[Record]:
    """The entries of partitions of an index in their order, or in the order of *key_of* their index and themselves."""
    pk, sk = _KEYS[index]
    key_in = key_of or _key_in

    def bucket(partition: Partition) -> _Bucket:
        name, (first, last) = partition
        arguments: Record = {
            "IndexName": index,
            "KeyConditionExpression": "#pk = :pk AND #sk BETWEEN :first AND :last",
            "ExpressionAttributeNames": {"#pk": pk, "#sk": sk},
            "ExpressionAttributeValues": {":pk": {"S": name}, ":first": {"S": first}, ":last": {"S": last}},
            "ScanIndexForward": not descending,
            "ConsistentRead": pk == "pk",
        }
        return _Bucket(connection, filtered.added_to(arguments), sizes)

    async def step(of: _Bucket) -> _Ordered | None:
        entry = await of.next()
        if entry is None:
            return None
        return _Ordered(key_in(index, entry), entry, of, is_reversed=descending)

    firsts = await each(step, [bucket(one) for one in partitions if one[1][0] <= one[1][1]])
    heap = [first for first in firsts if first is not None]
    heapq.heapify(heap)
    while heap:
        least = heap[0]
        yield least.entry
        following = await step(least.bucket)
        if following is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, following)


def _key_in(index: str, entry: Record) -> str:
    """The key of an entry in a merge: rows of several agents are ordered by time, agent and position. "" if damaged."""
    key = str(entry[_KEYS[index][1]].get("S", ""))
    if index != "by_time":
        return key
    _, _, row = key.partition("/")
    time, _, position = row.partition("/")
    return f"{time}/{hexed(place_of(entry).agent_id)}!{position}"
