"""An optional part of the interface between core and engine: documents that are found by their terms, over all agents.

A term stands for a combination of tags, so that every search for documents is a look-up in one index of
(term, agent_id, key), whatever the number of tags. Engines know nothing of tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from kode_core.batch import DocQuery, FoundDoc
from kode_core.engine import Engine
from kode_core.errors import UnsupportedError

__all__ = ["FindsDocs", "check_finds_docs", "find_docs", "finds_docs"]


class FindsDocs(Protocol):
    """An optional interface of an engine with :class:`~kode_core.engine.RangesDocs`: it finds documents by terms.

    ``commit`` stores ``Doc.terms`` in the same atomic step as the document. A write or a delete that replaces or
    removes the document does the same with its terms.
    """

    finds_docs: bool
    """True; a layer that changes bodies says False, unless it changes the bodies of found documents back."""

    async def find_docs(self, query: DocQuery) -> Sequence[FoundDoc]:
        """The documents that match, in the query's order, as they are stored at one instant.

        A page costs what its documents cost, once for each term. An engine without such an index says so.
        """
        ...


def finds_docs(engine: Engine) -> bool:
    """Whether *engine* has the interface :class:`FindsDocs`."""
    return bool(getattr(engine, "finds_docs", False))


def check_finds_docs(engine: Engine) -> None:
    """Raise UnsupportedError if *engine* does not find documents by terms: it would forget their tags."""
    if not finds_docs(engine):
        raise UnsupportedError(f"the backend {engine.name} keeps no tags of documents")


async def find_docs(engine: Engine, query: DocQuery) -> Sequence[FoundDoc]:
    """The documents that match.

    Raises:
        UnsupportedError: *engine* does not find documents by terms.
    """
    check_finds_docs(engine)
    return await cast(FindsDocs, engine).find_docs(query)
