"""For engines with an index of the texts of messages: its contents and look-ups (QRY-12)."""

from __future__ import annotations

from typing import Final

from kode_core.codec import Body, decode
from kode_core.errors import CorruptRecordError
from kode_core.model import Message
from kode_core.query import MessageQuery as MessageQuery
from kode_core.texts import indexed_form, searched_text

__all__ = ["GRAM", "MOST_INDEXED", "MessageQuery", "grams_of", "indexed_text", "needle_grams"]

GRAM: Final = 3
"""The length of the parts of a text that an index has; a shorter text cannot be looked up."""
MOST_INDEXED: Final = 2**18
"""The most characters of a message that are indexed: one with more is read by each search."""
_MOST_GRAMS: Final = 24


def indexed_text(body: Body) -> str | None:
    """The texts of a stored message as an index has them.

    None if the message cannot be read, or has too many characters: every search must then read it.
    """
    if len(body.text) > 8 * MOST_INDEXED:
        return None
    try:
        return searched_text(decode(Message, body, "a message"), MOST_INDEXED)
    except CorruptRecordError:
        return None


def grams_of(text: str) -> set[str]:
    """The different parts of three characters of a text in the indexed form."""
    return {text[i : i + GRAM] for i in range(len(text) - GRAM + 1)}


def needle_grams(contains: str | None) -> list[str]:
    """Parts that the indexed text of each message with the text has, in a fixed order; none if it is too short."""
    text = indexed_form(contains or "")
    every = list(dict.fromkeys(text[i : i + GRAM] for i in range(len(text) - GRAM + 1)))
    step = -(-len(every) // _MOST_GRAMS) or 1
    return every[::step]
