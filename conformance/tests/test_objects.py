"""The objects that clients change at once: which answers one order of the calls explains."""

from __future__ import annotations

from typing import Any

import pytest
from kode_conformance.histories.linearize import Call, order_problem
from kode_conformance.histories.objects import OBJECTS

_TOLD = ["refused", "v2"]


@pytest.mark.parametrize(
    ("name", "calls", "is_right"),
    [
        ("edited messages", [("append", 1, None), ("pop", [1, 0], [1]), ("read", None, [1])], True),
        ("edited messages", [("append", 1, None), ("pop", [1, 0], [1]), ("read", None, [1, 1])], False),
        ("edited messages", [("append", 1, None), ("pop", [3, 0], [1, 1]), ("pop", [1, 0], [1])], False),
        ("edited messages", [("append", 1, None), ("truncate", [1, 0], 1), ("fork", [1, 0], [1])], True),
        ("edited messages", [("append", 1, None), ("truncate", [1, 0], 0)], False),
        ("edited messages", [("append", 1, None), ("fork", [3, 0], "refused")], True),
        ("edited messages", [("append", 1, None), ("fork", [2, 0], "refused")], False),
        ("edited messages", [("append", 1, None), ("replace", [1, 7], None), ("read", None, [1, 7])], True),
        ("edited messages", [("replace", [0, 7], None)], False),
        ("an info", [("read", None, [{}, "v1"]), ("demand", [5, "v1"], None), ("read", None, [{"n": 5}, "v2"])], True),
        ("an info", [("read", None, [{}, "v1"]), ("demand", [5, "v1"], _TOLD)], False),
        ("an info", [("read", None, [{}, "v1"]), ("save", 4, None), ("demand", [5, "v1"], _TOLD)], True),
        ("an info", [("read", None, [{}, "v1"]), ("save", 4, None), ("demand", [5, "v1"], None)], False),
        ("an info", [("create", 4, None)], False),
        ("an info", [("delete", None, None), ("create", 4, None), ("create", 5, _TOLD)], True),
        ("an info", [("update", [0, 1], {"c": 1}), ("update", [1, 2], {"c": 1, "k": 2})], True),
        ("an info", [("update", [0, 1], {"c": 1}), ("update", [1, 2], {"k": 2})], False),
        ("a document", [("insert", 1, "v1"), ("insert", 2, ["refused", "v1"]), ("read", None, [1, "v1"])], True),
        ("a document", [("insert", 1, "v1"), ("insert", 2, "v2")], False),
        ("a document", [("put", 1, "v1"), ("put", 2, "v2"), ("remove", [0, "v1"], None)], False),
        ("turns with a document", [("turn", [1, "0"], None), ("read", "document", [1, "v1"])], True),
        ("turns with a document", [("turn", [1, "0"], None), ("read", "messages", [])], False),
        ("turns with a document", [("turn", [1, "0"], None), ("turn", [2, "0"], ["refused", "v1"])], True),
    ],
)
def test_one_order_explains_the_answers(name: str, calls: list[tuple[str, Any, Any]], is_right: bool) -> None:
    """Calls one after the other: each answer is the one that the object gives then, or no order is found."""
    thing = OBJECTS[name]
    made = [Call(0, op, [arg, answer], 2 * i, 2 * i + 1) for i, (op, arg, answer) in enumerate(calls)]
    assert (order_problem(made, thing.begin, thing.following) == "") is is_right


def test_a_cancelled_call_happened_or_not() -> None:
    """Both are orders, and no third one is."""
    thing = OBJECTS["edited messages"]
    for seen, is_right in (([1, 1], True), ([1], True), ([], False)):
        calls = [
            Call(0, "append", [1, None], 0, 1),
            Call(1, "pop", [[1, 0], None], 2, None),
            Call(0, "read", [None, seen], 4, 5),
        ]
        assert (order_problem(calls, thing.begin, thing.following) == "") is is_right
