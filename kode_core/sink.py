"""Notes about a record, taken while its wire form is made."""

from __future__ import annotations

import secrets
from typing import Any, Final

from kode_core.jsonvalue import NODES

__all__ = ["PLACEHOLDER", "SPREAD", "Later", "Sink"]

PLACEHOLDER: Final = f"later-{secrets.token_hex(16)}"
"""Stands in a wire form for a deferred part. It is random, so that no value equals it."""
SPREAD: Final = f"spread-{secrets.token_hex(16)}"
"""The key under which a large spread stands in a wire form."""


class Later:
    """A large part of a record whose wire form is made later; ``PLACEHOLDER`` stands in its place.

    Attributes:
        item: the shape of the items for a list of records; None for a free-form value.
        is_spread: the part stands in the record without braces of its own.
    """

    __slots__ = ("is_spread", "item", "value")

    def __init__(self, value: Any, item: Any = None, *, is_spread: bool = False) -> None:
        self.value = value
        self.item = item
        self.is_spread = is_spread


class Sink:
    """Notes about a record, taken while its wire form is made.

    Attributes:
        parts: the dicts and lists inside the record, which can change, without the deferred ones.
        left: the number of nodes that may still be written at once.
        later: the deferred large parts, in order.
    """

    __slots__ = ("later", "left", "parts")

    def __init__(self) -> None:
        self.left = NODES
        self.parts: list[Any] = []
        self.later: list[Later] = []

    def defer(self, later: Later) -> str:
        self.later.append(later)
        return PLACEHOLDER
