"""Tags of documents: up to four texts by name, by which documents are found over all agents (DOC-7, DOC-8).

A document has a term for each combination of its tags, so that any filter is one term, or several of which a document
has at most one: every page is read from one index in its order. A term is a hash of the collection and the tags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import combinations
from typing import Any, Final

from msgspec.structs import replace

from kode_core.batch import Doc
from kode_core.errors import InvalidArgumentError
from kode_core.ids import check_text
from kode_core.large import decode_in_slices
from kode_core.metadata import mapping_of
from kode_core.model.documents import StoredDocument
from kode_core.pace import Pace

__all__ = ["MAX_TAGS", "checked_names", "checked_tag", "checked_tags", "tagged", "term_of", "terms_of"]

MAX_TAGS: Final = 4
MAX_NAME_BYTES: Final = 64
MAX_TAG_BYTES: Final = 256
_TAGS_FIRST: Final = '{"tags":'
"""The beginning of the stored form of a document with tags."""


def checked_tag(value: Any, what: str) -> str:
    """The value of a tag, called *what* in errors."""
    return check_text(value, what, MAX_TAG_BYTES)


def checked_names(given: Any, what: str) -> dict[str, Any]:
    """The tags of a call by their checked names."""
    tags = mapping_of(given, what, "a mapping of texts")
    if len(tags) > MAX_TAGS:
        raise InvalidArgumentError(f"{what} must be at most {MAX_TAGS} tags, got {len(tags)}")
    for name in tags:
        if not check_text(name, f"the name of a tag in {what}", MAX_NAME_BYTES):
            raise InvalidArgumentError(f"the name of a tag in {what} must not be empty")
    return tags


def checked_tags(given: Any, what: str = "tags") -> dict[str, str]:
    """The tags of a document to put; none for None."""
    if given is None:
        return {}
    tags = checked_names(given, what)
    return {name: checked_tag(value, f"the tag {name!r:.80} in {what}") for name, value in tags.items()}


def term_of(collection: str, tags: Sequence[tuple[str, str]]) -> str:
    """The term of tags in the order of their names. No part contains U+0000."""
    parts = [collection, *(text for tag in tags for text in tag)]
    return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def terms_of(collection: str, tags: Mapping[str, str]) -> tuple[str, ...]:
    """The terms of a document: one for each combination of its tags."""
    pairs = sorted(tags.items())
    some = (one for size in range(1, len(pairs) + 1) for one in combinations(pairs, size))
    return tuple(term_of(collection, one) for one in some)


async def tagged(name: str, doc: Doc, pace: Pace) -> Doc:
    """A document of the caller's own as it was read, with the terms of its tags."""
    if not doc.body.text.startswith(_TAGS_FIRST):
        return doc
    stored = await decode_in_slices(StoredDocument, doc.body, name, pace)
    return replace(doc, terms=terms_of(doc.key.partition("/")[0], stored.tags or {}))
