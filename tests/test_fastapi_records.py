"""Records and answers of stores in pydantic models and in FastAPI: validation, responses, OpenAPI."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from hypothesis import given

from kode_core import (
    AgentStats,
    ExtendedStore,
    InvalidArgumentError,
    Message,
    Page,
    SessionInfo,
    StoredEvent,
    StoredMessage,
    TextBlock,
    ToolUseBlock,
    create_extended_store,
    from_dict,
    model,
    to_dict,
    to_json,
)
from tests.test_chat_formats import MESSAGE

pydantic = pytest.importorskip("pydantic")
fastapi = pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")


class Chat(pydantic.BaseModel):
    title: str
    messages: list[Message]
    page: Page[StoredMessage] | None = None


def app_of(store: ExtendedStore) -> Any:
    app = fastapi.FastAPI()

    @app.get("/messages")
    async def messages() -> list[Message]:
        return await store.load_messages("a")

    @app.get("/pages")
    async def pages(cursor: str | None = None) -> Page[StoredMessage]:
        more = {} if cursor is None else {"cursor": cursor}
        return await store.query_messages(agent_id="a", order="asc", limit=1, **more)

    @app.get("/sessions", response_model=Page[SessionInfo])
    async def sessions() -> Any:
        return await store.query_sessions()

    @app.get("/stats")
    async def stats() -> AgentStats:
        return await store.aggregate_stats("a")

    @app.get("/events")
    async def events() -> list[StoredEvent]:
        return [event async for event in store.read_events("a")]

    @app.get("/text")
    async def text() -> fastapi.Response:
        found = {"a": await store.query_messages(agent_id="a")}
        return fastapi.Response(to_json(found), media_type="application/json")

    @app.post("/messages")
    async def post(message: Annotated[Message, fastapi.Body()]) -> Message:
        await store.append_messages("a", [message])
        return message

    @app.post("/chats")
    async def post_chat(chat: Chat) -> Chat:
        return chat

    return app


@pytest.fixture
async def client() -> AsyncIterator[Any]:
    async with create_extended_store("memory:") as store:
        await store.save_info("a", model.AgentInfo(agent_id="a", template_id="t"))
        transport = httpx.ASGITransport(app=app_of(store))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


async def test_endpoints_return_records(client: Any) -> None:
    """Lists, pages and answers are returned in their JSON form, and cursors lead to the next page."""
    wire = {"role": "user", "content": [{"type": "text", "text": "hé"}, {"type": "new", "x": 1}], "later": 2}
    posted = await client.post("/messages", json=wire)
    assert (posted.status_code, posted.json()) == (200, wire)
    await client.post("/messages", json={"role": "assistant", "content": []})
    assert (await client.get("/messages")).json()[0] == wire
    first = (await client.get("/pages")).json()
    assert (first["items"][0]["agentId"], first["items"][0]["position"], first["leftOut"]) == ("a", 0, [])
    second = (await client.get("/pages", params={"cursor": first["nextCursor"]})).json()
    assert second["items"][0]["role"] == "assistant"
    (session,) = (await client.get("/sessions")).json()["items"]
    assert (session["agentId"], session["messageCount"]) == ("a", 2)
    assert (await client.get("/stats")).json()["totalMessages"] == 2
    assert (await client.get("/events")).json() == []
    assert [row["position"] for row in (await client.get("/text")).json()["a"]["items"]] == [1, 0]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"role": "user"}, "the field 'content' is missing"),
        ({"role": "user", "content": 3}, "$.content: expected a list"),
        ({"role": 3, "content": []}, "$.role: expected a string"),
        ({"role": "user", "content": [{"type": "text"}]}, "$.content[0]: the field 'text' is missing"),
        ([], "expected an object"),
    ],
)
async def test_a_wrong_body_is_a_422(client: Any, wrong: Any, problem: str) -> None:
    """A body that is no record is answered with the path of the problem."""
    answer = await client.post("/messages", json=wrong)
    assert answer.status_code == 422
    assert problem in answer.json()["detail"][0]["msg"]


async def test_openapi_describes_records(client: Any) -> None:
    """The schema has each record once, in its JSON form; real answers fit to it."""
    schema = (await client.get("/openapi.json")).json()
    parts = schema["components"]["schemas"]
    assert {"Message", "StoredMessage", "SessionInfo", "AgentStats"} <= set(parts)
    assert list(parts["SessionInfo"]["properties"])[:2] == ["agentId", "templateId"]
    assert parts["Message"]["required"] == ["role", "content"]
    page = schema["paths"]["/pages"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert page["properties"]["items"]["items"] == {"$ref": "#/components/schemas/StoredMessage"}
    text = json.dumps(schema)
    assert "__extra__" not in text
    assert "__data__" not in text
    assert ":class:" not in text
    assert text.count('"title": "StoredMessage"') == 1


def test_models_hold_records() -> None:
    """A model takes records and their JSON form, keeps records, and dumps them as dicts and as text."""
    message = Message("assistant", [TextBlock("x"), ToolUseBlock("c", "look", {"a": [1]})])
    stored = StoredMessage("user", "x", agent_id="a", position=1, created_at=5)
    chat = Chat(title="t", messages=[message, to_dict(message), stored], page=Page([stored], "next", ("m",)))
    assert chat.messages == [message, message, stored]
    assert chat.page is not None
    assert chat.page.next_cursor == "next"
    assert chat.model_dump()["messages"][0] == to_dict(message)
    again = Chat.model_validate_json(chat.model_dump_json())
    assert again.messages[:2] == [message, message]
    assert again.page == chat.page
    assert (again.page.next_cursor, again.page.left_out) == ("next", ("m",))
    with pytest.raises(pydantic.ValidationError, match=r"\$\.content: expected a list"):
        Chat(title="t", messages=[{"role": "user", "content": {}}])
    session = pydantic.TypeAdapter(SessionInfo)
    info = SessionInfo(agent_id="a", template_id="t", created_at=1, updated_at=2, message_count=3)
    assert session.validate_json(session.dump_json(info)) == info
    with pytest.raises(pydantic.ValidationError, match="SessionInfo"):
        session.validate_python({"agentId": 1})
    with pytest.raises(pydantic.ValidationError, match="expected an object"):
        session.validate_python(3)


@given(MESSAGE)
def test_every_message_comes_back(message: Message) -> None:
    """The text that pydantic writes of a message is read as the same message, if a store could keep it."""
    adapter = pydantic.TypeAdapter(Message)
    try:
        wire = to_dict(message)
    except InvalidArgumentError:
        return
    assert adapter.validate_json(adapter.dump_json(message)) == from_dict(Message, wire)


def test_every_record_is_a_type_of_pydantic() -> None:
    """Every class of records and answers has a JSON schema."""
    names = [name for name in model.__all__ if isinstance(getattr(model, name), type)]
    records = [getattr(model, name) for name in names if issubclass(getattr(model, name), model.Record)]
    assert len(records) > 20
    for cls in records:
        if cls is not model.Record:
            schema = pydantic.TypeAdapter(cls).json_schema()
            assert "properties" in schema or "$ref" in schema, cls


def test_nothing_of_pydantic_is_imported() -> None:
    """The core is imported, and records are made and written, without pydantic."""
    script = (
        "import sys, kode_core as k; k.to_json([k.Message.user('x')]); print([m for m in sys.modules if 'pyd' in m])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
