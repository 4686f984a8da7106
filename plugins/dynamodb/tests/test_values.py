"""What is damaged in the table is said to be, and whose it is, whatever about it is damaged."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from kode_conformance.suite.damage_tests import Damage, check_damaged_heads
from kode_conformance.suite.record_tests import a_message
from kode_conformance.values import samples
from kode_dynamodb import DynamoDBOptions, DynamoDBStore
from kode_dynamodb.connection import Record, connect
from kode_dynamodb.values import filed_counts, filed_row, found_head, found_item, found_meta, item_values
from msgspec.structs import asdict

from kode_core.engines.record.store import ItemsPlace
from kode_core.errors import CorruptRecordError, StorageError

ITEM = item_values(ItemsPlace("a", "0" * 16), a_message(1, 5))
HEAD = {"pk": {"S": "a#a"}, "sk": {"S": "head"}}
JUNK: list[Any] = [{"B": b"junk"}, {"S": "{"}, {"N": "1.5"}, None]
COUNTS: dict[str, Any] = {**HEAD, "up": {"S": "x"}, "u": {"N": "1"}, "mc": {"N": "1"}, "tc": {"N": "1"}}


@pytest.mark.parametrize("junk", JUNK, ids=repr)
@pytest.mark.parametrize(
    ("read", "intact", "names"),
    [
        (found_item, ITEM, ["ix", "rev", "t", "h"]),
        (filed_row, ITEM, ["ix", "rev", "t"]),
        (filed_counts, COUNTS, ["u", "mc", "tc"]),
        (found_head, HEAD, ["hd"]),
        (found_meta, HEAD, ["meta"]),
    ],
)
def test_a_damaged_attribute(read: Callable[[Any], Any], intact: Any, names: list[str], junk: Any) -> None:
    """Another type, half of a value, or none: never an error that names no agent."""
    for name in names:
        if (name, junk) == ("h", {"B": b"junk"}) or (junk is None and intact is HEAD):
            continue  # another digest is found out by the core, and a head may be missing
        damaged = {key: value for key, value in {**intact, name: junk}.items() if value is not None}
        with pytest.raises(CorruptRecordError, match="agent 'a'.*damaged"):
            read(damaged)


async def test_a_query_names_a_damaged_entry_and_finds_the_others(
    moto: DynamoDBOptions, moto_store: Callable[[], DynamoDBStore]
) -> None:
    async with moto_store() as store:
        for name in ("a", "b"):
            await store.save_turn(name, messages=samples.messages(1), info=samples.info(name))
        await change(moto, "b", "SET mc = :value", {"S": "x"})
        page = await store.query_sessions(sort_by="updated_at")
        assert [one.agent_id for one in page] == ["a"]
        assert page.left_out == ("agent 'b'",)


async def change(options: DynamoDBOptions, agent_id: str, update: str, value: Record | None) -> bool:
    """Change an attribute of a head; False where the service refuses it, as one of an index has one type alone."""
    connection = await connect(options)
    how: dict[str, Any] = {} if value is None else {"ExpressionAttributeValues": {":value": value}}
    try:
        key = {"pk": {"S": f"a#{agent_id}"}, "sk": {"S": "head"}}
        return await connection.repeat("update_item", Key=key, UpdateExpression=update, **how)
    except StorageError:
        return False
    finally:
        await connection.close()


def damages(options: DynamoDBOptions) -> list[Damage]:
    """Every attribute of a head: missing, of another type, or another one that may be there."""

    def changed(name: str, value: Record | None) -> Callable[[str], Awaitable[object]]:
        update = f"REMOVE {name}" if value is None else f"SET {name} = :value"
        return lambda agent_id: change(options, agent_id, update, value)

    others: dict[str, Record] = {
        "hx": {"S": "00"}, "ep": {"S": "f" * 16}, "rev": {"N": "5"}, "u": {"N": "7"}, "mc": {"N": "1"},
        "tc": {"N": "2"}, "hb": {"S": "h0"}, "up": {"S": "0"}, "nb": {"S": "h0"}, "cr": {"S": "0"},
        "meta": {"B": b"x"}, "hd": {"B": zlib.compress(b"\x80")}, "pd": {"S": "h1"},
    }  # fmt: skip
    made = [(f"{name} missing", changed(name, None)) for name in others if name != "pd"]
    made += [(f"{name} is junk", changed(name, junk)) for name in others for junk in ({"B": b"junk"}, {"S": "{"})]
    return made + [(f"{name} is another", changed(name, value)) for name, value in others.items()]


async def test_a_damaged_head_fails_its_own_agent_alone(options: DynamoDBOptions, request: Any) -> None:
    """Whatever of it is damaged, and a delete ends it; moto is slow, and gets some of it."""
    given = {name: value for name, value in asdict(options).items() if value is not None}
    needed = {f"{name} is another" for name in ("ep", "rev", "u", "mc", "tc", "hd")}
    needed |= {"rev is junk", "hd is junk", "rev missing", "u missing", "hd missing"}
    others = {"nb missing", "meta is junk"}
    if request.node.callspec.id == "moto":
        needed, others = {"ep is another", "rev missing", "hd is junk"}, set()
    chosen = {name: damage for name, damage in damages(options) if name in needed | others}
    assert needed <= set(await check_damaged_heads(lambda: DynamoDBStore(**given), list(chosen.items())))
