"""The order and the terms of the documents of the caller's own that an agent in memory has."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

from kode_core.batch import Doc, DocQuery, DocSpan

__all__ = ["OwnDocs"]


class OwnDocs:
    """The keys of an agent's documents of the kind DOCUMENTS."""

    __slots__ = ("_keys", "_tagged")

    def __init__(self) -> None:
        self._keys: list[str] = []
        """All keys in their order."""
        self._tagged: dict[str, list[str]] = {}
        """For each term, the keys of the documents that have it, in their order."""

    def note(self, key: str, old: Doc | None, new: Doc | None) -> None:
        """A document takes the place of another; None is no document."""
        if old is None and new is not None:
            insort(self._keys, key)
        elif new is None and old is not None:
            del self._keys[bisect_left(self._keys, key)]
        before, after = () if old is None else old.terms, () if new is None else new.terms
        if before == after:
            return
        for term in before:
            keys = self._tagged[term]
            del keys[bisect_left(keys, key)]
            if not keys:
                del self._tagged[term]
        for term in after:
            insort(self._tagged.setdefault(term, []), key)

    def count_below(self, key: str) -> int:
        """The number of documents with lesser keys."""
        return bisect_left(self._keys, key)

    def within(self, span: DocSpan) -> list[str]:
        """The keys of a range, in its order."""
        first, end = bisect_left(self._keys, span.start), bisect_left(self._keys, span.stop)
        if span.descending:
            return self._keys[max(first, end - span.limit) : end][::-1]
        return self._keys[first : min(end, first + span.limit)]

    def found(self, agent_id: str, query: DocQuery) -> list[str]:
        """The keys of the agent's documents on the page of a query that has reached the agent, in its order."""
        found = list[str]()
        for keys in filter(None, map(self._tagged.get, query.terms)):
            first, end = 0, len(keys)
            if query.after is not None and query.after[0] == agent_id:
                if query.descending:
                    end = bisect_left(keys, query.after[1])
                else:
                    first = bisect_right(keys, query.after[1])
            if query.descending:
                first = max(first, end - query.limit)
            found += keys[first : min(end, first + query.limit)]
        return sorted(found, reverse=query.descending)[: query.limit]
