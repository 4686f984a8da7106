"""Searches for documents by their terms, over all agents. Each is one statement, which sees one instant."""

from __future__ import annotations

from typing import Any

from kode_core.batch import Doc, DocQuery, FoundDoc
from kode_core.codec import Body
from kode_postgres.queries import Arguments, Queries
from kode_postgres.schema import OWN_DOCS
from kode_postgres.session import Session

__all__ = ["DocTerms"]


class DocTerms(Queries):
    """The searches over one store's tables, those for documents among them."""

    def docs_query_statement(self, query: DocQuery) -> tuple[str, list[Any]]:
        """The statement of a page of documents, and its arguments.

        Each term is looked up by itself, along its part of the index. Its documents are looked up one by one, behind an
        OFFSET: otherwise a plan could join whole tables.
        """
        args, where = Arguments(), list[str]()
        if query.agent_id is not None:
            where.append(args.equals("t.agent_id", query.agent_id))
        if query.after is not None:
            key = f"{args.mark(query.after[0], 'text')}, {args.mark(query.after[1], 'text')}"
            where.append(f"(t.agent_id, t.key) {'<' if query.descending else '>'} ({key})")
        direction = "DESC" if query.descending else "ASC"
        limit = args.mark(query.limit, "bigint")
        text = "d.body::text" if query.bodies else "''"
        own = f"d.agent_id = t.agent_id AND d.{OWN_DOCS} AND d.key_hash = t.key_hash AND d.key = t.key"
        doc = f"SELECT d.time, {text} AS body, d.digest FROM {self._tables.docs} d WHERE {own} AND d.digest = t.digest"
        pages = [
            f"(SELECT t.agent_id, t.key, d.* FROM {self._tables.doc_terms} t CROSS JOIN LATERAL ({doc} OFFSET 0) d"
            f" WHERE {' AND '.join([args.equals('t.term', term), *where])}"
            f" ORDER BY t.agent_id {direction}, t.key {direction} LIMIT {limit})"
            for term in query.terms
        ]
        every = " UNION ALL ".join(pages)
        return f"SELECT * FROM ({every}) f ORDER BY agent_id {direction}, key {direction} LIMIT {limit}", args

    async def find_docs(self, session: Session, query: DocQuery) -> list[FoundDoc]:
        statement, args = self.docs_query_statement(query)
        found = await session.fetch(statement, *args)
        return [FoundDoc(row[0], Doc(row[1], row[2], Body(row[3], row[4]))) for row in found]
