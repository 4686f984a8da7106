"""Batches with other bodies."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from kode_core.batch import Batch, DocWrite, ListWrite
from kode_core.codec import Body

__all__ = ["with_bodies"]


def with_bodies(batch: Batch, change: Callable[[Body], Body]) -> Batch:
    """*batch* with every body replaced by what *change* makes of it; bodies come in a fixed order."""

    def rows(write: ListWrite | None) -> ListWrite | None:
        if write is None:
            return None
        put = tuple((position, replace(row, body=change(row.body))) for position, row in write.put)
        return replace(write, put=put, append=tuple(replace(row, body=change(row.body)) for row in write.append))

    def doc(write: DocWrite) -> DocWrite:
        return write if write.doc is None else replace(write, doc=replace(write.doc, body=change(write.doc.body)))

    return replace(
        batch,
        info=None if batch.info is None else replace(batch.info, body=change(batch.info.body)),
        messages=rows(batch.messages),
        tool_calls=rows(batch.tool_calls),
        docs=tuple(map(doc, batch.docs)),
        events=tuple(replace(event, body=change(event.body)) for event in batch.events),
    )
