"""The conditions of searches: filters of values, and patterns of namespaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import ge, gt, le, lt
from typing import Any, Final

from langgraph.store.base import MatchCondition

from kode_core import InvalidArgumentError

__all__ = ["check_filter", "fits", "is_matched"]

_ORDERS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {"$gt": gt, "$gte": ge, "$lt": lt, "$lte": le}


def check_filter(wanted: Mapping[str, Any] | None) -> None:
    """Raise InvalidArgumentError if a filter has an operator that does not exist."""
    for condition in (wanted or {}).values():
        if isinstance(condition, Mapping):
            if any(str(name).startswith("$") for name in condition):
                for name in condition:
                    if name not in _ORDERS and name not in ("$eq", "$ne"):
                        raise InvalidArgumentError(
                            f"a filter has the operator {name!r:.60}; there are $eq, $ne, $gt, $gte, $lt and $lte"
                        )
            else:
                check_filter(condition)


def fits(value: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> bool:
    """True if a stored value has everything that a filter demands."""
    return all(_fits(value.get(name), condition) for name, condition in (wanted or {}).items())


def _fits(value: Any, condition: Any) -> bool:
    if isinstance(condition, Mapping):
        if any(str(name).startswith("$") for name in condition):
            return all(_holds(value, name, operand) for name, operand in condition.items())
        return isinstance(value, Mapping) and fits(value, condition)
    if isinstance(condition, list | tuple):
        return isinstance(value, list) and len(value) == len(condition) and all(map(_fits, value, condition))
    return _equal(value, condition)


def _holds(value: Any, name: str, operand: Any) -> bool:
    if name == "$eq":
        return _equal(value, operand)
    if name == "$ne":
        return not _equal(value, operand)
    if isinstance(value, str) and isinstance(operand, str) and not (_is_number(value) and _is_number(operand)):
        return _ORDERS[name](value, operand)  # as texts, such as times in ISO 8601
    try:
        return _ORDERS[name](float(value), float(operand))
    except (TypeError, ValueError, OverflowError):
        return False


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _equal(value: Any, operand: Any) -> bool:
    if isinstance(value, bool) or isinstance(operand, bool):
        return value is operand
    return bool(value == operand)


def is_matched(namespace: Sequence[str], condition: MatchCondition) -> bool:
    """True if a namespace begins, or ends, with a path, in which ``*`` stands for any label."""
    path = condition.path
    if len(namespace) < len(path):
        return False
    labels = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return all(wanted in ("*", label) for wanted, label in zip(path, labels, strict=True))
