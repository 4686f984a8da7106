"""Make moto's queries cost what they find. Its answers stay the same.

moto sorts the whole table for each query, compares each item of it with the key, and sorts again by objects that look
at their type several times for each comparison. A page of a large list then takes a second.
"""

from __future__ import annotations

import inspect
from decimal import Decimal
from functools import partial
from typing import Any, Final

from moto.dynamodb.comparisons import get_comparison_func
from moto.dynamodb.models import dynamo_type, table

__all__ = ["make_queries_faster"]

_Table: Any = table.Table
_Value: Any = dynamo_type.DynamoType
_query = _Table.query
_PARAMETERS: Final = (
    *("self", "hash_key", "range_comparison", "range_objs", "limit", "exclusive_start_key"),
    *("scan_index_forward", "projection_expressions", "index_name"),
)
_cast_value = _Value.cast_value.fget


def make_queries_faster() -> None:
    """Replace the slow methods, in this process. Queries must come one after the other.

    A moto whose methods are others stays as it is.
    """
    if tuple(inspect.signature(_query).parameters)[:9] != _PARAMETERS or not hasattr(_Table, "all_items"):
        return
    _Table.query = _query_of_few
    _Table.sorted_items = _sorted_items
    _Value.cast_value = property(_plain_value)


def _plain_value(value: Any) -> Any:
    """The value of a text or a number, the types of all keys, at once."""
    if value.type == "S":
        return value.value
    if value.type == "N":
        return Decimal(value.value)
    return _cast_value(value)


def _query_of_few(table: Any, hash_key: Any, comparison: Any, bounds: Any, *args: Any, **kwargs: Any) -> Any:
    """Query among the items that can be found. The query itself sorts them."""
    is_of_index = kwargs.get("index_name", args[4] if len(args) > 4 else None) is not None
    table.all_items = (
        partial(_all_items, table) if is_of_index else partial(_found, table, hash_key, comparison, bounds)
    )
    try:
        return _query(table, hash_key, comparison, bounds, *args, **kwargs)
    finally:
        del table.all_items


def _all_items(table: Any) -> list[Any]:
    return [item for some in table.items.values() for item in (some.values() if table.range_key_attr else [some])]


def _found(table: Any, hash_key: Any, comparison: Any, bounds: Any) -> list[Any]:
    """The items of a key in a range, and the first and the last of all: the query adds up the size of each item.

    A page that ends with the last item of the range has a key to go on from if another item of the key follows.
    """
    items = table.items.get(hash_key, {})
    if not table.range_key_attr or not comparison:
        return list(items.values()) if table.range_key_attr else [items] if items else []
    is_in, values = get_comparison_func(comparison), [one.cast_value for one in bounds]
    ends = {min(items), max(items)} if items else set()
    return [item for key, item in items.items() if key in ends or is_in(key.cast_value, *values)]


def _sorted_items(table: Any, hash_keys: list[str], range_keys: list[str | None], items: list[Any]) -> list[Any]:
    names = table._generate_attr_to_sort_by(hash_keys, range_keys)
    items.sort(key=lambda item: tuple(item.attrs[name].cast_value for name in names))
    return items
