"""Why stores failed a check before: the faults of the stores that the suite is itself tested with, by check."""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from typing import Final

import msgspec

from kode_core.protocols import ExtendedStore
from kode_core.query import MessageFilter, SessionFilter, ToolCallFilter

__all__ = ["Cause", "causes_of", "likely"]

_METHODS: Final = frozenset(name for name in dir(ExtendedStore) if not name.startswith("_"))
_FILTERS: Final = frozenset(
    name for kind in (MessageFilter, SessionFilter, ToolCallFilter) for name in kind.__annotations__
) | {"since", "after_offset", "channel"}
_KINDS: Final = (
    *("address", "approval", "audit", "bookmark", "breakpoint", "clock", "cursor", "document", "fence", "follower"),
    *("lease", "lineage", "page", "parent", "path", "seq", "statistics", "template", "threshold", "time", "token"),
    *("totals", "user", "version"),
)
"""Subjects of findings and causes that no method or filter names."""
_RECORDS: Final = frozenset(
    {"message", "call", "event", "todo", "window", "compression", "file", "medium", "snapshot", "info"}
)
"""Words for the kinds of records."""
_OF_ALL: Final = frozenset({"agent", "id", "at", "by", "is", "has", "many", "after", "before"})
_WORD: Final = re.compile(r"[A-Za-z]+")
_NAME: Final = re.compile(r"\w+")


class Cause(msgspec.Struct, frozen=True):
    """Faults that made a check fail.

    Attributes:
        stores: how many faulty stores broke this clause when the check failed on them.
        clause: the clause that they broke.
        wrong: what one of them does, in a sentence.
        source: where such a fault comes from; empty where it was thought out.
    """

    stores: int
    clause: str
    wrong: str
    source: str = ""


@functools.cache
def _known() -> dict[str, tuple[Cause, ...]]:
    raw = files("kode_conformance").joinpath("causes.json").read_bytes()
    return msgspec.json.decode(raw, type=dict[str, tuple[Cause, ...]])


def causes_of(check_id: str) -> tuple[Cause, ...]:
    """The causes of a failure, the most frequent first; none for a check that found no faulty store yet."""
    return _known().get(check_id, ())


def likely(check_id: str, found: str) -> list[Cause]:
    """The known causes that fit *found*, the likeliest first.

    Causes are sorted by the number of words for methods, filters and kinds that they share with *found*, most first. A
    cause that names another method, filter or kind of record is left out.
    """
    words = _words(found)
    known = [cause for cause in causes_of(check_id) if not _is_of_another(cause.wrong, found)]
    return sorted(known, key=lambda cause: -len(_words(cause.wrong) & words))


def _is_of_another(wrong: str, found: str) -> bool:
    pairs = [(_named(names, wrong), _named(names, found)) for names in (_METHODS, _FILTERS)]
    pairs.append((_words(wrong) & _RECORDS, _words(found) & _RECORDS))
    return any(said and seen and not said & seen for said, seen in pairs)


def _named(names: frozenset[str], text: str) -> set[str]:
    """The names that occur in a text; English words, such as ``list`` and ``state``, do not count."""
    return {word for word in _NAME.findall(text) if word in names and "_" in word and word != "agent_id"}


def _words(text: str) -> set[str]:
    """The words of a text that a method, a filter or a kind of record is named by, in the singular."""
    return {word for one in _WORD.findall(text.lower()) if (word := _singular(one)) in _vocabulary()}


@functools.cache
def _vocabulary() -> frozenset[str]:
    named = [word for name in (*_METHODS, *_FILTERS) for word in name.split("_")]
    return frozenset(_singular(word) for word in (*named, *_KINDS)) - _OF_ALL


def _singular(word: str) -> str:
    """As in ``medium``, ``query`` and ``message``."""
    if word == "media":
        return "medium"
    return f"{word[:-3]}y" if word.endswith("ies") else word.removesuffix("s")
