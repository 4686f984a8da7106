"""Indexed values as tokens: names of tools, values of metadata, and the terms of documents' tags."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from kode_core.batch import Batch, Child, DocQuery, FoundDoc, FoundRow, Info, ListWrite, Row, SessionRow, ToolCallIndex
from kode_core.codec import Body
from kode_core.engine import Engine, check_any_of
from kode_core.found import Found
from kode_core.layers.bodies import BodyLayer
from kode_core.layers.encryption.ciphers import Secrets
from kode_core.query import AgentStats, Grouping, GroupRows, RowQuery, SessionQuery, Wanted, values_of

__all__ = ["Blinding"]

_TOOL: str = "tool_name"


class Blinding(BodyLayer):
    """Stores indexed values as keyed tokens, in which equal values stay equal, and gives the values back.

    Terms of tags are always keyed: they are hashes that anyone could compute. If records may be stored as plain text, a
    filter finds both the token and the plain value.
    """

    def __init__(self, inner: Engine, *, is_blind: bool, is_mixed: bool) -> None:
        super().__init__(inner)
        self.secrets: Secrets | None = None
        self._is_blind = is_blind
        self._finds_plain = is_mixed

    async def needed_secrets(self) -> Secrets:
        """The secret of tokens, which is made if there is none."""
        raise NotImplementedError

    async def known_secrets(self) -> Secrets | None:
        """The secret of tokens; None if nothing was encrypted yet."""
        raise NotImplementedError

    # --- writes

    async def stored(self, batch: Batch) -> Batch:
        batch = await super().stored(batch)
        if any(write.doc is not None and write.doc.terms for write in batch.docs):
            known = await self.needed_secrets()
            docs = tuple(
                write
                if write.doc is None or not write.doc.terms
                else replace(write, doc=replace(write.doc, terms=tuple(map(known.term, write.doc.terms))))
                for write in batch.docs
            )
            batch = replace(batch, docs=docs)
        if not self._is_blind or (batch.info is None and batch.tool_calls is None):
            return batch
        known = await self.needed_secrets()
        info = None if batch.info is None else _blind_info(known, batch.info)
        calls = None if batch.tool_calls is None else _blind_calls(known, batch.tool_calls)
        return replace(batch, info=info, tool_calls=calls)

    async def fork(self, agent_id: str, children: Sequence[Child], expect: Body, now: int) -> bool:
        if self._is_blind and children:
            known = await self.needed_secrets()
            children = [replace(child, info=_blind_info(known, child.info)) for child in children]
        return await super().fork(agent_id, children, expect, now)

    # --- queries

    async def _blind_query(self, query: SessionQuery | RowQuery) -> SessionQuery | RowQuery:
        known = await self.known_secrets() if self._is_blind else None
        if known is None:
            return query
        if isinstance(query, SessionQuery):
            if not query.metadata:
                return query
            metadata = tuple(
                (key, self._wanted(wanted, {one: known.value(key, one) for one in values_of(wanted)}))
                for key, wanted in query.metadata
            )
            query = replace(query, metadata=metadata)
        elif any(column == _TOOL for column, _ in query.where):
            where = tuple(
                (column, self._wanted(wanted, {one: known.name(_TOOL, one) for one in values_of(wanted)}))
                if column == _TOOL and not isinstance(wanted, bool)
                else (column, wanted)
                for column, wanted in query.where
            )
            query = replace(query, where=where)
        check_any_of(self.inner, query)
        return query

    def _wanted(self, wanted: Wanted, tokens: dict[str, str]) -> Wanted:
        found = sorted({*tokens.values(), *(values_of(wanted) if self._finds_plain else ())})
        return found[0] if len(found) == 1 else tuple(found)

    async def find_sessions(self, query: SessionQuery) -> Sequence[SessionRow]:
        blind = await self._blind_query(query)
        assert isinstance(blind, SessionQuery)
        return await super().find_sessions(blind)

    async def find_rows(self, query: RowQuery) -> Sequence[FoundRow]:
        blind = await self._blind_query(query)
        assert isinstance(blind, RowQuery)
        return await super().find_rows(blind)

    async def count(self, query: SessionQuery | RowQuery) -> int:
        return await super().count(await self._blind_query(query))

    async def group(self, query: SessionQuery | RowQuery, grouping: Grouping) -> GroupRows:
        found = await super().group(await self._blind_query(query), grouping)
        known = await self.known_secrets() if self._is_blind and _TOOL in grouping.by else None
        if known is None:
            return found
        place = grouping.by.index(_TOOL)
        merged: dict[tuple[str | bool | int, ...], int] = {}
        for values, number in found:
            shown = (*values[:place], known.named(_TOOL, str(values[place])), *values[place + 1 :])
            merged[shown] = merged.get(shown, 0) + number
        return Found(merged.items(), getattr(found, "left_out", ()))

    async def stats(self, agent_id: str) -> AgentStats:
        found = await super().stats(agent_id)
        known, names = await self.known_secrets() if self._is_blind else None, dict[str, int]()
        if known is None:
            return found
        for token, number in found.tool_calls_by_name.items():
            name = known.named(_TOOL, token)
            names[name] = names.get(name, 0) + number
        return replace(found, tool_calls_by_name=names)

    async def find_docs(self, query: DocQuery) -> Sequence[FoundDoc]:
        known = await self.known_secrets()
        if known is None:
            return await super().find_docs(query)
        terms = tuple(map(known.term, query.terms))
        return await super().find_docs(replace(query, terms=(*terms, *query.terms) if self._finds_plain else terms))


def _blind_info(known: Secrets, info: Info) -> Info:
    return replace(info, metadata=tuple((key, known.value(key, value)) for key, value in info.metadata))


def _blind_calls(known: Secrets, write: ListWrite) -> ListWrite:
    def blind(row: Row) -> Row:
        assert isinstance(row.index, ToolCallIndex)
        return replace(row, index=replace(row.index, tool_name=known.name(_TOOL, row.index.tool_name)))

    put = tuple((position, blind(row)) for position, row in write.put)
    return replace(write, put=put, append=tuple(map(blind, write.append)))
