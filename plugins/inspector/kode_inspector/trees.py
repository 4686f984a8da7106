"""JSON values as trees of bounded size, and whole values as text."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Final

from kode_core import Json
from kode_core.cli.output import wire
from kode_inspector.text import cut, preview, short

__all__ = ["Node", "as_text", "tree"]

_NODES: Final = 400
_DEPTH: Final = 12
_STRING: Final = 4_000


@dataclass(slots=True)
class Node:
    """A value in a tree: a leaf with its text, or a list or object with its items.

    Attributes:
        left_out: characters of a leaf, or items of a list or object, that the page does not show.
    """

    key: str | None
    kind: str
    text: str = ""
    items: list[Node] = field(default_factory=list)
    left_out: int = 0


class _Budget:
    def __init__(self) -> None:
        self.nodes = _NODES


def tree(value: Json) -> Node:
    """*value* as a tree of at most some hundred nodes."""
    return _node(None, value, _Budget(), 0)


def _node(key: str | None, value: Json, budget: _Budget, depth: int) -> Node:
    budget.nodes -= 1
    if isinstance(value, dict | list) and value:
        return _branch(key, value, budget, depth)
    if isinstance(value, str):
        text, left_out = cut(value, _STRING)
        return Node(key, "string", text, left_out=left_out)
    if isinstance(value, bool) or value is None:
        return Node(key, "word", json.dumps(value))
    if isinstance(value, int | float):
        return Node(key, "number", preview(value))
    return Node(key, "empty", "{}" if isinstance(value, dict) else "[]")


def _branch(key: str | None, value: Json, budget: _Budget, depth: int) -> Node:
    is_object = isinstance(value, dict)
    node = Node(key, "object" if is_object else "list", f"{len(value)}")
    pairs = value.items() if is_object else enumerate(value)
    for name, item in pairs:
        if budget.nodes <= 0 or depth >= _DEPTH:
            break
        node.items.append(_node(short(str(name), 200), item, budget, depth + 1))
    node.left_out = len(value) - len(node.items)
    return node


def as_text(record: object) -> str:
    """A record as indented JSON; it may take long, so call it in a thread."""
    return json.dumps(wire(record), ensure_ascii=False, indent=2)
