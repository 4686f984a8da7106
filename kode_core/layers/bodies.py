"""The base class of layers that store bodies in another form: every verb that has bodies, in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from kode_core.batch import (
    ABSENT_DOC,
    AgentSummary,
    Batch,
    Child,
    Doc,
    DocKind,
    DocQuery,
    DocSpan,
    EventRange,
    EventRow,
    Found,
    FoundDoc,
    FoundRow,
    ListKind,
    ListRows,
    Outcome,
    Outline,
    SessionRow,
    with_bodies,
)
from kode_core.codec import Body
from kode_core.counted import can_count, can_group
from kode_core.layers.base import Layer
from kode_core.query import RowQuery, SessionQuery
from kode_core.rewriting import EventBody

__all__ = ["EVENTS", "INFO", "BodyLayer", "Place"]

INFO = "info"
EVENTS = "events"


class Place(NamedTuple):
    """Where a body belongs.

    Attributes:
        kind: ``info``, ``events``, a ``ListKind`` or a ``DocKind``.
        key: of a document; an event's is its seq. A row of a list has none, since rows may move.
        is_demand: the body has a digest alone, which the stored record must have.
    """

    agent_id: str
    kind: str
    key: str = ""
    is_demand: bool = False


def places_of(batch: Batch) -> Iterator[Place]:
    """The places of the bodies of *batch*, in the order of :func:`~kode_core.batch.with_bodies`."""
    agent_id = batch.agent_id
    if batch.expect_info is not None and batch.expect_info != ABSENT_DOC:
        yield Place(agent_id, INFO, is_demand=True)
    if batch.info is not None:
        yield Place(agent_id, INFO)
    for kind, write in ((ListKind.MESSAGES, batch.messages), (ListKind.TOOL_CALLS, batch.tool_calls)):
        if write is not None:
            yield from (Place(agent_id, kind) for _ in range(len(write.put) + len(write.append)))
    for change in batch.docs:
        if change.expect is not None and change.expect != ABSENT_DOC:
            yield Place(agent_id, change.kind, change.key, is_demand=True)
        if change.doc is not None:
            yield Place(agent_id, change.kind, change.key)
    yield from (Place(agent_id, EVENTS, str(event.seq)) for event in batch.events)


class BodyLayer(Layer):
    """Stores bodies in another form; a subclass says how with :meth:`put_on`, :meth:`take_off` and :meth:`shown`.

    A body that cannot be read is given to the store as :class:`~kode_core.codec.Unreadable`, which reports the record
    by its name: an error of the layer's own would fail a whole page.
    """

    async def put_on(self, bodies: Sequence[tuple[Place, Body]]) -> Sequence[Body]:
        """The stored form of bodies."""
        raise NotImplementedError

    async def take_off(self, bodies: Sequence[tuple[Place, Body]]) -> Sequence[Body]:
        """The bodies that the core gave, from their stored form."""
        raise NotImplementedError

    def shown(self, place: Place, digest: bytes) -> bytes:
        """The digest that the core gave, from the stored one."""
        return digest

    async def stored(self, batch: Batch) -> Batch:
        """*batch* as the engine inside gets it."""
        bodies: list[Body] = []

        def note(body: Body) -> Body:
            bodies.append(body)
            return body

        with_bodies(batch, note)
        if not bodies:
            return batch
        changed = iter(await self.put_on(list(zip(places_of(batch), bodies, strict=True))))
        return with_bodies(batch, lambda _: next(changed))

    # --- writes

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([await self.stored(batch) for batch in batches])

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        """The engine compares stored texts, and two of one record may differ: it gets the one that is stored."""
        summary = await self.inner.summary(agent_id)
        if summary is None or summary.info is None:
            return False
        (opened,) = await self.take_off([(Place(agent_id, INFO), summary.info.body)])
        if opened != expect:
            return False
        infos = await self.put_on([(Place(child.agent_id, INFO), child.info.body) for child in children])
        pairs = zip(children, infos, strict=True)
        changed = [replace(child, info=replace(child.info, body=body)) for child, body in pairs]
        return await super().fork(agent_id, changed, summary.info.body, now)

    # --- reads of one agent

    async def summary(self, agent_id: str) -> AgentSummary | None:
        summary = await super().summary(agent_id)
        if summary is None or summary.info is None:
            return summary
        (body,) = await self.take_off([(Place(agent_id, INFO), summary.info.body)])
        return replace(summary, info=replace(summary.info, body=body))

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        return await self._list(agent_id, kind, await super().rows(agent_id, kind))

    async def rows_at(self, agent_id: str, kind: ListKind, start: int, limit: int) -> ListRows:
        return await self._list(agent_id, kind, await super().rows_at(agent_id, kind, start, limit))

    async def _list(self, agent_id: str, kind: ListKind, found: ListRows) -> ListRows:
        place = Place(agent_id, kind)
        bodies = await self.take_off([(place, body) for body, _ in found.rows])
        rows = [(body, created_at) for body, (_, created_at) in zip(bodies, found.rows, strict=True)]
        return replace(found, rows=rows)

    async def outline(self, agent_id: str, kind: ListKind, keys: Sequence[str] | None = None) -> Outline:
        found, place = await super().outline(agent_id, kind, keys), Place(agent_id, kind)
        rows = [(position, self.shown(place, digest), time, key) for position, digest, time, key in found.rows]
        return replace(found, rows=rows)

    async def docs(self, agent_id: str, kind: DocKind, key: str | None = None) -> Sequence[Doc]:
        found = await super().docs(agent_id, kind, key)
        return await self._docs([(agent_id, doc) for doc in found], kind, has_bodies=True)

    async def docs_in(self, agent_id: str, span: DocSpan) -> Sequence[Doc]:
        found = await super().docs_in(agent_id, span)
        return await self._docs([(agent_id, doc) for doc in found], DocKind.DOCUMENTS, has_bodies=span.bodies)

    async def find_docs(self, query: DocQuery) -> Sequence[FoundDoc]:
        found = await super().find_docs(query)
        pairs = [(one.agent_id, one.doc) for one in found]
        docs = await self._docs(pairs, DocKind.DOCUMENTS, has_bodies=query.bodies)
        opened = (replace(one, doc=doc) for one, doc in zip(found, docs, strict=True))
        return Found(opened, getattr(found, "left_out", ()))

    async def _docs(self, docs: Sequence[tuple[str, Doc]], kind: DocKind, *, has_bodies: bool) -> list[Doc]:
        placed = [(Place(agent_id, kind, doc.key), doc.body) for agent_id, doc in docs]
        if has_bodies:
            bodies = await self.take_off(placed)
        else:
            bodies = [Body(body.text, self.shown(place, body.digest)) for place, body in placed]
        return [replace(doc, body=body) for (_, doc), body in zip(docs, bodies, strict=True)]

    async def events(self, agent_id: str, span: EventRange) -> Sequence[EventRow]:
        return await self._events(agent_id, await super().events(agent_id, span))

    async def last_event(self, agent_id: str) -> EventRow | None:
        event = await super().last_event(agent_id)
        return None if event is None else (await self._events(agent_id, [event]))[0]

    async def rewrite_events(self, agent_id: str, changes: Sequence[EventBody]) -> None:
        """The digests that the stored bodies must have are the stored ones."""
        bodies = await self.put_on([(Place(agent_id, EVENTS, str(one.seq)), one.body) for one in changes])
        changed = [one._replace(body=body) for one, body in zip(changes, bodies, strict=True)]
        await super().rewrite_events(agent_id, changed)

    async def _events(self, agent_id: str, events: Sequence[EventRow]) -> list[EventRow]:
        bodies = await self.take_off([(Place(agent_id, EVENTS, str(event.seq)), event.body) for event in events])
        return [replace(event, body=body) for event, body in zip(events, bodies, strict=True)]

    # --- reads of many agents

    async def find_sessions(self, query: SessionQuery) -> Sequence[SessionRow]:
        found = await super().find_sessions(query)
        bodies = await self.take_off([(Place(row.agent_id, INFO), row.info) for row in found])
        rows = (replace(row, info=body) for row, body in zip(found, bodies, strict=True))
        return Found(rows, getattr(found, "left_out", ()))

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        found = await super().find_rows(query)
        bodies = await self.take_off([(Place(row.agent_id, query.kind), row.body) for row in found])
        rows = (replace(row, body=body) for row, body in zip(found, bodies, strict=True))
        return Found(rows, getattr(found, "left_out", ()))

    @property
    def can_count(self) -> bool:
        """Whether the engine inside counts records: this layer finds the records that the engine finds."""
        return can_count(self.inner)

    @property
    def can_group(self) -> bool:
        """Whether the engine inside groups records."""
        return can_group(self.inner)
