"""The faster queries of the emulator: they find the same items as moto's own, in the same order and pages."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from kode_dynamodb.testing import faster
from moto.dynamodb.models.dynamo_type import DynamoType
from moto.dynamodb.models.table import Table


def key(name: str, kind: str) -> dict[str, str]:
    return {"AttributeName": name, "KeyType": kind}


def a_table(rng: random.Random) -> Table:
    """400 items of five keys, some of them in an index."""
    index = {"IndexName": "by_t", "KeySchema": [key("g", "HASH"), key("t", "RANGE")]}
    made = Table(
        *("t", "1" * 12, "us-east-1"),
        schema=[key("pk", "HASH"), key("sk", "RANGE")],
        attr=[{"AttributeName": name, "AttributeType": "N" if name == "t" else "S"} for name in ("pk", "sk", "g", "t")],
        global_indexes=[index | {"Projection": {"ProjectionType": "ALL"}}],
        billing_mode="PAY_PER_REQUEST",
    )
    for _ in range(400):
        item = {"pk": {"S": f"p{rng.randrange(5)}"}, "sk": {"S": rng.choice("aäzA𐀀") * rng.randint(1, 9)}}
        if rng.random() < 0.7:
            item |= {"g": {"S": f"g{rng.randrange(3)}"}, "t": {"N": str(rng.randrange(30))}}
        made.put_item(item)
    return made


def pages(table: Table, query: Callable[..., Any], *args: Any, limit: int, **of: Any) -> list[list[dict[str, Any]]]:
    """All pages, the empty ones as well."""
    found, after = list[list[dict[str, Any]]](), None
    while True:
        items, _, after = query(table, *args, limit, after, of["forward"], None, of.get("index"), False, **of["keys"])
        found.append([item.to_json()["Attributes"] for item in items])
        if after is None:
            return found


BOUNDS = [(None, []), ("BEGINS_WITH", ["a"]), ("BETWEEN", ["A", "z"]), (">", ["aa"]), ("<=", ["zz"])]


@pytest.mark.parametrize("seed", range(4))
def test_queries_find_the_same(seed: int) -> None:
    rng = random.Random(seed)
    table = a_table(rng)
    for comparison, texts in BOUNDS:
        bounds = [DynamoType({"S": text}) for text in texts]
        for number in range(6):
            given = (DynamoType({"S": f"p{number}"}), comparison, bounds)
            how: dict[str, Any] = {"limit": rng.randint(1, 40), "forward": rng.random() < 0.5, "keys": {}}
            assert pages(table, faster._query_of_few, *given, **how) == pages(table, faster._query, *given, **how)
    for number in range(4):
        group = DynamoType({"S": f"g{number}"})
        how = {"limit": rng.randint(1, 40), "forward": rng.random() < 0.5, "index": "by_t"}
        how["keys"] = {"hash_key_conditions": [("g", group)]}
        assert pages(table, faster._query_of_few, group, None, [], **how) == pages(
            table, faster._query, group, None, [], **how
        )
    assert "all_items" not in vars(table)
