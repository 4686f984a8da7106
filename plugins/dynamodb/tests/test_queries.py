"""Queries over many agents, by indexes that lag behind the table."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import aioboto3
import pytest
from kode_conformance.values import samples
from kode_dynamodb import DynamoDBOptions, DynamoDBStore


@pytest.fixture
async def client(moto: DynamoDBOptions) -> AsyncIterator[Any]:
    session = aioboto3.Session(aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1")
    async with session.client("dynamodb", endpoint_url=moto.endpoint_url) as opened:
        yield opened


class Lagging:
    """Has the global indexes of a client stand still: they answer as they did the first time."""

    def __init__(self, client: Any) -> None:
        self._known: dict[str, Any] = {}
        client.meta.events.register("provide-client-params.dynamodb.Query", self._asked)
        client.meta.events.register("after-call.dynamodb.Query", self._answered)

    def _asked(self, params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        if not params.get("ConsistentRead"):
            context["asked"] = repr(sorted(params.items()))

    def _answered(self, parsed: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        if "asked" in context:
            answer = self._known.setdefault(context["asked"], dict(parsed))
            parsed.clear()
            parsed.update(answer)


async def test_an_index_that_lags_shows_nothing_that_is_gone(
    moto: DynamoDBOptions, moto_store: Callable[[], DynamoDBStore], client: Any
) -> None:
    """What the global indexes still have is looked up: deleted agents, rows and other values are left out."""
    Lagging(client)
    async with DynamoDBStore(moto.table, client=client) as store, moto_store() as other:
        for name in ("kept", "gone", "changed", "shorter"):
            info = samples.info(name, template_id="old")
            await store.save_turn(name, messages=samples.messages(3), info=info)
        assert len(await store.query_sessions(template_id="old")) == 4
        assert len(await store.query_messages()) == 12
        await other.delete("gone")
        await other.save_info("changed", samples.info("changed", template_id="new"))
        await other.save_messages("shorter", samples.messages(1))
        found = await store.query_sessions(template_id="old")
        assert {session.agent_id: session.message_count for session in found} == {"kept": 3, "shorter": 1}
        rows = await store.query_messages()
        assert sorted(row.agent_id for row in rows) == ["changed"] * 3 + ["kept"] * 3 + ["shorter"]
        assert len(await other.query_messages()) == 7


@pytest.mark.parametrize("sort_by", ["updated_at", "message_count"])
async def test_an_index_that_has_an_agent_at_two_places(moto: DynamoDBOptions, client: Any, sort_by: str) -> None:
    """Between the pages of a query an agent moves: it is found once, at the place that it has now."""

    def show_the_place_of_before(parsed: dict[str, Any], **_: Any) -> None:
        for entry in list(parsed.get("Items", ())):
            if entry["pk"]["S"] == "a#moved" and "up" in entry:
                before = {"up": {"S": "9" + entry["up"]["S"][1:]}, "u": {"N": "1"}, "mc": {"N": "9"}}
                parsed["Items"].insert(0, {**entry, **before})

    async with DynamoDBStore(moto.table, client=client) as store:
        for number, name in enumerate(("moved", "other")):
            await store.save_turn(name, messages=samples.messages(3 - number), info=samples.info(name))
        client.meta.events.register("after-call.dynamodb.Query", show_the_place_of_before)
        found = await store.query_sessions(sort_by=sort_by)
        assert sorted((row.agent_id, row.message_count) for row in found) == [("moved", 3), ("other", 2)]
