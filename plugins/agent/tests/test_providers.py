"""The providers over real HTTP: what they send, what they read, and what becomes of faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("anthropic")

import anthropic
import openai
from kode_agent import (
    Agent,
    AnthropicProvider,
    OpenAIProvider,
    ProviderError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    Template,
    Usage,
)
from kode_agent.testing import Call, Fault, Reply, Script, ScriptedServer

from kode_core import ExtendedStore, Message, create_extended_store

SECRET = "sk-test-0123456789abcdef"
Made = Callable[..., Any]


@pytest.fixture(params=["openai", "anthropic"])
def provider(request: pytest.FixtureRequest) -> Made:
    """Makes a provider for a server, whose client tries once unless told otherwise."""

    def made(server: ScriptedServer, retries: int = 0) -> Any:
        if request.param == "openai":
            client = openai.AsyncOpenAI(base_url=server.openai_url, api_key=SECRET, max_retries=retries)
            return OpenAIProvider("m", client=client)
        other = anthropic.AsyncAnthropic(base_url=server.url, api_key=SECRET, max_retries=retries)
        return AnthropicProvider("m", client=other)

    return made


@pytest.fixture
async def store() -> AsyncIterator[ExtendedStore]:
    async with create_extended_store("memory:") as opened:
        yield opened


def look(order: str) -> dict[str, str]:
    """Look up an order."""
    return {"order": order, "state": "shipped"}


async def talked(store: ExtendedStore, provider: Any, *texts: str, **options: Any) -> tuple[Agent, list[str]]:
    template = Template("assistant", "Be brief.", [look], **options)
    agent = await Agent.create(provider=provider, store=store, template=template)
    try:
        return agent, [await agent.send(text) for text in texts]
    finally:
        await provider.aclose()


async def test_a_conversation_with_tools(store: ExtendedStore, provider: Made) -> None:
    """Text and calls stream, results go back, the next turn has it all, and tokens are counted."""
    script = [
        Reply("One moment.", [Call("look", {"order": "A-1"}), Call("look", {"order": "é"})]),
        Reply("Both are on their way."),
        Reply("You are welcome."),
    ]
    with ScriptedServer(script) as server:
        agent, answers = await talked(store, provider(server), "Where is A-1?", "Thanks.")
        assert answers == ["Both are on their way.", "You are welcome."]
        first, second, third = server.requests
        assert first.tools == ["look"]
        assert list(second.results) == ['{"order":"A-1","state":"shipped"}', '{"order":"é","state":"shipped"}']
        assert third.text == "Thanks."
    messages = await agent.messages()
    assert [m.role for m in messages] == ["user", "assistant", "user", "assistant", "user", "assistant"]
    assert messages[1].text == "One moment."
    status = await agent.status()
    assert status.usage.input_tokens > 0 and status.usage.output_tokens > 0 and status.steps == 3
    deltas = "".join([e.event.data["delta"] async for e in store.read_events(agent.id) if e.event.type == "text_chunk"])
    assert deltas == "One moment.Both are on their way.You are welcome."


async def test_the_first_message_after_a_crash_is_accepted(store: ExtendedStore, provider: Made) -> None:
    """Two messages of the user in a row, as after a failed send, are sent as they are."""
    script: Script = [Fault(400, "bad"), Reply("Now.")]
    with ScriptedServer(script) as server:
        made = provider(server)
        agent = await Agent.create(provider=made, store=store, template=Template("assistant"))
        with pytest.raises(ProviderError):
            await agent.send("one")
        assert await agent.send("two") == "Now."
        await made.aclose()
    assert [m.text for m in await agent.messages()] == ["one", "two", "Now."]


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        (400, ProviderError, "does not fit the model"),
        (401, ProviderError, "the API key is missing or wrong"),
        (404, ProviderError, "no such model"),
        (429, ProviderUnavailableError, "try again later"),
        (500, ProviderUnavailableError, "try again later"),
        (529, ProviderUnavailableError, "try again later"),
    ],
)
async def test_statuses_are_errors_without_secrets(
    store: ExtendedStore, provider: Made, status: int, kind: type[ProviderError], hint: str
) -> None:
    """Each status is an error that says what to do, and no key is in it, even if the server repeats it."""
    with ScriptedServer([Fault(status, f"Incorrect API key provided: {SECRET} Bearer abc.def")]) as server:
        with pytest.raises(kind, match=hint) as caught:
            await talked(store, provider(server), "Hello?")
        assert type(caught.value) is kind
        assert len(server.requests) == 1
    text = f"{caught.value!r} {caught.value} {caught.value.__cause__}"
    assert SECRET not in text and "abc.def" not in text and str(status) in text
    (agent_id,) = await store.list()
    async for stored in store.read_events(agent_id):
        assert SECRET not in str(stored.event.data)


async def test_the_client_tries_again_before_an_answer_begins(store: ExtendedStore, provider: Made) -> None:
    """429 and 500 are tried again by the official clients, unseen."""
    script = [Fault(429, retry_after=0.01), Fault(500, retry_after=0.01), Reply("Here.")]
    with ScriptedServer(script) as server:
        _, answers = await talked(store, provider(server, retries=2), "Hello?")
        assert (answers, len(server.requests)) == (["Here."], 3)


@pytest.mark.parametrize("cut", [0, 2, 4, 6])
async def test_a_cut_stream_is_no_answer(store: ExtendedStore, provider: Made, cut: int) -> None:
    """A stream that ends early is an error, nothing of it is in the conversation, and go_on asks again."""
    whole = Reply("a b c d e", [Call("look", {"order": "A-1"})])
    script = [Reply(whole.text, whole.calls, cut=cut), Reply("All of it.")]
    with ScriptedServer(script) as server:
        made = provider(server)
        agent = await Agent.create(provider=made, store=store, template=Template("assistant", "", [look]))
        with pytest.raises(ProviderUnavailableError):
            await agent.send("Hello?")
        assert [m.role for m in await agent.messages()] == ["user"]
        assert await agent.go_on() == "All of it."
        await made.aclose()


async def test_a_server_that_never_answers(store: ExtendedStore, provider: Made) -> None:
    """The template's time limit ends a request without an answer, and one that stops in the middle."""
    with (
        ScriptedServer([Reply("never", delay=30)]) as server,
        pytest.raises(ProviderTimeoutError, match="sent nothing for 200 ms"),
    ):
        await talked(store, provider(server), "Hello?", provider_timeout_ms=200)


async def test_a_slow_stream_is_no_timeout(store: ExtendedStore, provider: Made) -> None:
    """The limit is for silence, not for the whole answer, and slow words are seen as they come."""
    with ScriptedServer([Reply("one two three four", delay=0.12)]) as server:
        agent, answers = await talked(store, provider(server), "Count.", provider_timeout_ms=30_000)
        assert answers == ["one two three four"]
    deltas = [e.event.data["delta"] async for e in store.read_events(agent.id) if e.event.type == "text_chunk"]
    assert "".join(deltas) == "one two three four"
    assert len(deltas) > 1


async def test_a_server_that_is_not_there(store: ExtendedStore, provider: Made) -> None:
    """A connection that is refused is unavailable, and the error says which provider."""
    with ScriptedServer([Reply("")]) as server:
        made = provider(server)
    with pytest.raises(ProviderUnavailableError, match="cannot be reached"):
        await talked(store, made, "Hello?")


async def test_an_interrupted_request_is_ended(store: ExtendedStore, provider: Made) -> None:
    """An interruption in the middle of a stream ends at once and keeps the words that came."""
    with ScriptedServer([Reply("one two three four five six", delay=0.2), Reply("Yes?")]) as server:
        made = provider(server)
        agent = await Agent.create(provider=made, store=store, template=Template("assistant"))
        sending = asyncio.create_task(agent.send("Count."))
        async for stored in agent.events("progress", after_offset=0):
            if stored.event.type == "text_chunk":
                break
        await agent.interrupt()
        with pytest.raises(Exception, match="interrupted"):
            await sending
        assert (await agent.messages())[-1].text.startswith("one")
        assert await agent.send("Hello?") == "Yes?"
        await made.aclose()


async def test_arguments_that_are_no_json(store: ExtendedStore) -> None:
    """Arguments that a model breaks off are told to it as a failed call, and go back as they were."""

    script = [Reply("", [Call("look", '{"order": "A')]), Reply("Sorry.")]
    with ScriptedServer(script) as server:
        agent, answers = await talked(store, OpenAIProvider("m", base_url=server.openai_url), "Go.")
        back = server.requests[-1].body["messages"][-2]["tool_calls"][0]["function"]["arguments"]
    assert (answers, back) == (["Sorry."], '{"order": "A')
    (record,) = await store.load_tool_call_records(agent.id)
    assert record.state == "FAILED" and "no JSON object" in str(record.error)


async def test_an_agent_may_change_its_provider(store: ExtendedStore) -> None:
    """A conversation that began with one provider goes on with the other, calls included."""
    script = [Reply("Hm.", [Call("look", {"order": "A-1"})]), Reply("Here."), Reply("Still here.")]
    template = Template("assistant", "", [look])
    with ScriptedServer(script) as server:
        first = OpenAIProvider("m", base_url=server.openai_url, api_key=SECRET)
        agent = await Agent.create(provider=first, store=store, template=template)
        assert await agent.send("Where?") == "Here."
        second = AnthropicProvider("m", base_url=server.url, api_key=SECRET)
        agent = await Agent.resume(agent.id, provider=second, store=store, template=template)
        assert await agent.send("And now?") == "Still here."
        await first.aclose()
        await second.aclose()
    assert SECRET not in f"{first!r}{second!r}"


async def test_a_missing_key_is_told(monkeypatch: pytest.MonkeyPatch, store: ExtendedStore) -> None:
    """Without a key the provider says which variable to set; a server of one's own needs none."""
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ProviderError, match="OPENAI_API_KEY"):
        OpenAIProvider("m")
    with ScriptedServer([Reply("Hi.")]) as server:
        _, answers = await talked(store, OpenAIProvider("m", base_url=server.openai_url), "Hello?")
        assert answers == ["Hi."]
        with pytest.raises(ProviderError, match="ANTHROPIC_API_KEY"):
            await talked(store, AnthropicProvider("m", base_url=server.url), "Hello?")


async def test_an_option_that_the_client_does_not_have(store: ExtendedStore) -> None:
    """A misspelled option is an error that names it."""
    with ScriptedServer([Reply("Hi.")]) as server:
        for made in (
            OpenAIProvider("m", base_url=server.openai_url, temprature=0),
            AnthropicProvider("m", base_url=server.url, api_key=SECRET, temprature=0),
        ):
            with pytest.raises(ProviderError, match="is none of its client: .*'temprature'"):
                await talked(store, made, "Hello?")


async def test_answers_have_their_usage(provider: Made) -> None:
    """A provider can be asked alone; its last part is the answer."""
    with ScriptedServer([Reply("Hi.")]) as server:
        made = provider(server)
        parts = [part async for part in made.stream("", [Message.user("Hello")], ())]
        await made.aclose()
    assert parts[-1].message == Message.assistant("Hi.")
    assert isinstance(parts[-1].usage, Usage) and parts[-1].usage.total_tokens > 0
