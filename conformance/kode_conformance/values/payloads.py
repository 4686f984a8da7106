"""Hostile JSON values: 83 values, each with the required behaviour of a store (VAL-1, VAL-2)."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from collections import OrderedDict
from typing import Any, Final, NamedTuple

__all__ = ["PAYLOADS", "Payload"]


class Payload(NamedTuple):
    """A value and whether JSON can carry it exactly."""

    name: str
    value: Any
    is_json: bool = True


class _Text(str):
    __slots__ = ()


class _Number(int):
    pass


class _Colour(enum.StrEnum):
    RED = "red"


class _Level(enum.IntEnum):
    ONE = 1


def nested(depth: int, kind: type = list) -> Any:
    """Lists or dicts inside each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


_ZONE: Final = datetime.timezone(datetime.timedelta(hours=5, minutes=30))

_TEXTS: Final = {
    "nul_in_string": {"s": "a\0b"},
    "nul_in_key": {"a\0b": 1},
    "lone_high_surrogate": {"s": "\ud83d"},
    "lone_low_surrogate": {"s": "x\udc00y"},
    "lone_surrogate_key": {"\ud83d": 1},
    "astral": {"s": "😀𝒳", "😀": 1},
    "noncharacters": {"s": "\uffff\ufffe\U0010ffff\ufeff\u2028\u2029\x7f\x1f\x1b"},
    "nfc_and_nfd": {"é": 1, "e\u0301": 2},
    "line_breaks": {"s": "a\r\nb\rc\n", "\r\n": "\u0085"},
    "empty_string": {"s": ""},
    "long_string": {"s": "x" * 390_000},
    "very_long_string": {"s": "x" * 1_000_000},
    "huge_string": {"s": "x" * 20_000_000},
    "huge_string_of_escapes": {"s": '"\n' * 10_000_000},
}
_NUMBERS: Final = {
    "int_53_bits_and_one": {"i": 2**53 + 1},
    "int_max_64": {"i": 2**63 - 1},
    "int_min_64": {"i": -(2**63)},
    "int_63_bits": {"i": 2**63},
    "int_max_unsigned": {"i": 2**64 - 1},
    "int_64_bits": {"i": 2**64},
    "int_40_digits": {"i": 10**40},
    "int_400_digits": {"i": 10**400},
    "float_minus_zero": {"f": -0.0},
    "float_one": {"f": 1.0},
    "float_tenth": {"f": 0.1},
    "float_17_digits": {"f": 0.1 + 0.2},
    "float_1e22": {"f": 1e22},
    "float_largest": {"f": 1.7976931348623157e308},
    "float_smallest": {"f": 5e-324},
    "float_1e16": {"f": 1e16},
    "float_large_integral": {"f": 123456789012345680.0},
    "bool_beside_int": {"t": True, "o": 1, "z": False, "n": None},
}
_KEYS: Final = {
    "key_order": {"z": 1, "a": 2, "m": {"y": 1, "b": 2}, "aa": 3},
    "key_dotted": {"a.b": 1, "a": {"b": 2}},
    "key_dollar": {"$set": {"x": 1}, "$ref": "y", "a$": 1},
    "key_oid": {"x": {"$oid": "abc"}, "$date": 1},
    "key_empty": {"": 1, "a": {"": 2}},
    "key_id": {"_id": 5, "x": {"_id": 6}},
    "key_proto": {"__proto__": {"x": 1}, "constructor": 1},
    "key_long": {"k" * 70_000: 1},
    "key_blank": {" a ": 1, "\t": 2, "\n": 3},
    "key_numeric": {"0": "a", "1": "b"},
    "keys_by_case": {"Key": 1, "key": 2, "KEY": 3},
}
_SHAPES: Final = {
    "empty_list": {"l": []},
    "empty_dict": {"d": {}},
    "empty_root": {},
    "empty_things": {"l": [None, [], {}, "", 0, False]},
    "mixed_list": {"l": [1, "1", 1.5, True, None, {"a": [1]}]},
    "root_list": [1, 2, 3],
    "root_string": "hello",
    "root_null": None,
    "root_int": 5,
    "nested_31": {"v": nested(31)},
    "nested_99": {"v": nested(98)},
    "list_of_100k_ints": {"l": list(range(100_000))},
    "list_of_100k_strings": {"l": [f"item {i}" for i in range(100_000)]},
    "dict_of_100k": {"d": {f"k{i}": i for i in range(100_000)}},
}
_REFUSED: Final = {
    "split_pair": {"s": "\ud83d\ude00"},
    "split_pair_key": {"\ud83d\ude00": 1},
    "int_5000_digits": {"i": 10**5000},
    "nan": {"f": float("nan")},
    "infinity": {"f": float("inf")},
    "minus_infinity": {"f": float("-inf")},
    "nested_200": {"v": nested(200)},
    "nested_dicts_200": {"v": nested(200, dict)},
    "nested_1000": {"v": nested(1000)},
    "nested_1500": {"v": nested(1500)},
    "nested_5000": {"v": nested(5000)},
    "nested_dicts_1000": {"v": nested(1000, dict)},
    "datetime_aware": {"d": datetime.datetime(2025, 1, 2, 3, 4, 5, 123456, tzinfo=_ZONE)},
    "datetime_naive": {"d": datetime.datetime(2025, 1, 2, 3, 4, 5, 123456)},
    "date": {"d": datetime.date(2025, 1, 2)},
    "decimal": {"d": decimal.Decimal("1.10")},
    "bytes": {"b": b"\x00\xff"},
    "tuple": {"t": (1, 2)},
    "set": {"t": {1, 2}},
    "uuid": {"u": uuid.UUID(int=1)},
    "int_key": {1: "a"},
    "int_and_string_key": {1: "a", "1": "b"},
    "none_key": {None: "a"},
    "bool_key": {True: "a"},
    "subclasses": {"i": _Number(5), "s": _Text("x")},
    "enums": {"e": _Colour.RED, "i": _Level.ONE},
    "ordered_dict": {"o": OrderedDict(a=1)},
}

PAYLOADS: Final[tuple[Payload, ...]] = (
    *(Payload(name, value) for group in (_TEXTS, _NUMBERS, _KEYS, _SHAPES) for name, value in group.items()),
    *(Payload(name, value, is_json=False) for name, value in _REFUSED.items()),
)
