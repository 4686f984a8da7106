"""An agent answers, runs tools, and leaves a sound conversation whatever happens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from kode_agent import (
    Agent,
    AgentBusyError,
    AgentInterruptedError,
    Answer,
    Compression,
    Delta,
    NothingToDoError,
    ProviderError,
    ProviderTimeoutError,
    ScriptedProvider,
    StepsExceededError,
    Template,
    TemplateError,
    Tool,
    ToolContext,
    Usage,
    call,
)

from kode_core import (
    AgentNotFoundError,
    ConflictError,
    ExtendedStore,
    InvalidArgumentError,
    InvalidValueError,
    Message,
    StoreClosedError,
    ToolResultBlock,
    ToolUseBlock,
)

HELLO = Template("assistant", "You are a helpful assistant.")


def results(messages: Sequence[Message]) -> list[Any]:
    return [b.content for m in messages for b in m.content if isinstance(b, ToolResultBlock)]


async def made(store: ExtendedStore, script: Any, *tools: Any, **options: Any) -> Agent:
    template = Template("assistant", "Be brief.", tools, **options)
    return await Agent.create(provider=ScriptedProvider(script), store=store, template=template)


async def is_sound(agent: Agent) -> bool:
    return not (await agent.store.check_consistency(agent.id)).issues


async def events_of(agent: Agent) -> list[tuple[str, dict[str, Any]]]:
    return [(e.event.type, e.event.data) async for e in agent.store.read_events(agent.id, after_offset=0)]


async def asked(agent: Agent) -> str:
    """The id of the call of the next question."""
    async for stored in agent.events("control", after_offset=0):
        if stored.event.type == "permission_required":
            return str(stored.event.data["call"]["id"])
    raise AssertionError


async def test_send_returns_the_answer_and_stores_it(store: ExtendedStore) -> None:
    """The first example of the guide: create, send, and both messages are in the store."""
    agent = await Agent.create(provider=ScriptedProvider(["Hello there."]), store=store, template=HELLO)
    assert await agent.send("Hello!") == "Hello there."
    assert [(m.role, m.text) for m in await store.load_messages(agent.id)] == [
        ("user", "Hello!"),
        ("assistant", "Hello there."),
    ]
    status = await agent.status()
    assert (status.state, status.message_count, status.steps, status.waits_for_answer) == ("READY", 2, 1, False)
    info = await store.load_info(agent.id)
    assert info and info.template_id == "assistant" and info.breakpoint == "READY" and info.last_sfp_index == 1


async def test_a_call_is_stored_before_its_tool_runs(store: ExtendedStore) -> None:
    """While a tool runs, its request is in the messages and its record says EXECUTING; both are one commit."""
    seen: list[Any] = []

    async def look(where: str, context: ToolContext) -> str:
        seen.append([m.role for m in await context.store.load_messages(context.agent_id)])
        seen.append([r.state for r in await context.store.load_tool_call_records(context.agent_id)])
        return f"{where} is fine"

    agent = await made(store, [["I look. ", call("look", where="Rome")], "All is well."], look)
    assert await agent.send("Look at Rome.") == "All is well."
    assert seen == [["user", "assistant"], ["EXECUTING"]]
    (record,) = await store.load_tool_call_records(agent.id)
    assert (record.state, record.result, record.is_error) == ("COMPLETED", "Rome is fine", None)
    assert [entry.state for entry in record.audit_trail] == ["EXECUTING", "COMPLETED"]
    assert results(await agent.messages()) == ["Rome is fine"]
    kinds = [kind for kind, _ in await events_of(agent)]
    for kind in ("text_chunk", "text_chunk_end", "tool:start", "tool:end", "tool_executed", "token_usage", "done"):
        assert kind in kinds
    assert await is_sound(agent)


async def test_a_turn_takes_a_commit_for_each_step() -> None:
    """A turn with a tool is four commits and what streams; deltas that come at once share an event."""
    from kode_core import create_extended_store

    names: list[str] = []
    async with create_extended_store("memory:", observers=[lambda op: names.append(op.name)]) as store:
        agent = await made(store, [["a b c d e ", call("add", a=1)], "one two three"], lambda_add)
        await agent.send("Add.")
        deltas = [data["delta"] for kind, data in await events_of(agent) if kind == "text_chunk"]
    assert "".join(deltas) == "a b c d e one two three"
    assert len(deltas) < 8
    assert names.count("save_turn") <= 4 + len(deltas)


def lambda_add(a: int, b: int = 2) -> int:
    """Add."""
    return a + b


async def test_what_is_wrong_with_a_call_is_told_to_the_model(store: ExtendedStore) -> None:
    """Unknown tools, wrong arguments, errors, results that are no JSON and tools that end the program are results."""

    def fails() -> None:
        raise RuntimeError("no such order")

    def odd() -> object:
        return object()

    def leaves() -> None:
        raise SystemExit(3)

    async def gives_up() -> None:
        raise asyncio.CancelledError

    class Hostile(Exception):
        def __str__(self) -> str:
            raise ValueError

    def hostile() -> None:
        raise Hostile

    def pair() -> str:
        return "\ud83d" + "\ude00"

    calls = [
        call("nothing"),
        call("lambda_add", a="one"),
        call("lambda_add", a=1, c=2),
        ToolUseBlock("call_0123456789abcdef", "lambda_add", "{broken"),
        *(call(name) for name in ("fails", "odd", "leaves", "gives_up", "hostile", "pair")),
    ]
    agent = await made(store, [calls, "I see."], lambda_add, fails, odd, leaves, gives_up, hostile, pair)
    assert await agent.send("Do it all.") == "I see."
    told = results(await agent.messages())
    assert told[0] == (
        "there is no tool 'nothing'; the tools are: lambda_add, fails, odd, leaves, gives_up, hostile, pair"
    )
    assert "Expected `int`, got `str` - at `$.a`" in told[1]
    assert "unknown field `c`" in told[2]
    assert "no JSON object but str" in told[3]
    assert told[4] == "RuntimeError: no such order"
    assert "returned what is no JSON" in told[5]
    assert told[6] == "_ToolExit: SystemExit: 3"
    assert "cancelled from inside" in told[7]
    assert told[8] == "Hostile"
    assert "returned what is no JSON" in told[9]
    records = await store.load_tool_call_records(agent.id)
    assert [record.state for record in records] == ["FAILED"] * 10
    assert await store.count_tool_calls(agent_id=agent.id, is_error=True) == 10
    assert await is_sound(agent)


async def test_a_large_result_is_cut_for_the_model(store: ExtendedStore) -> None:
    """The model reads the beginning and the end of a large result, and the record has it whole up to a million."""

    def large() -> list[int]:
        return list(range(100_000))

    agent = await made(store, [call("large"), "ok"], large, max_result_chars=1_000)
    await agent.send("Go.")
    (text,) = results(await agent.messages())
    assert len(text) <= 1_000 and text.startswith("[0,1,2") and text.endswith("99999]") and "left out" in text
    (record,) = await store.load_tool_call_records(agent.id)
    assert record.result == list(range(100_000))

    def huge() -> str:
        return "x" * 30_000_000

    agent = await made(store, [call("huge"), "ok"], huge)
    assert await agent.send("Go.") == "ok"
    (record,) = await store.load_tool_call_records(agent.id)
    assert len(record.result) == 1_000_000


async def test_a_tool_that_never_ends_is_left_behind(store: ExtendedStore) -> None:
    """After its time the model is told that a tool may still take effect, in the event loop and in a thread."""
    release = threading.Event()

    async def waits() -> None:
        try:
            await asyncio.sleep(1_000)
        except asyncio.CancelledError:
            await asyncio.sleep(0.2)  # it does not hurry

    def blocks() -> None:
        release.wait(30)

    tools = [Tool(waits, timeout_ms=50), Tool(blocks, timeout_ms=60)]
    agent = await made(store, [[call("waits"), call("blocks")], "ok"], *tools)
    assert await agent.send("Go.") == "ok"
    assert results(await agent.messages()) == [
        "the tool did not end in 50 ms; it may still take effect",
        "the tool did not end in 60 ms; it may still take effect",
    ]
    release.set()


async def test_ids_of_calls_are_unique(store: ExtendedStore) -> None:
    """A server that counts calls from 0 in each answer overwrites no record."""
    again = ToolUseBlock("call_0", "lambda_add", {"a": 1})
    script = [[again, again], again, ToolUseBlock("", "lambda_add", {"a": 5}), "ok"]
    agent = await made(store, script, lambda_add)
    await agent.send("Go.")
    records = await store.load_tool_call_records(agent.id)
    assert len({record.id for record in records}) == len(records) == 4
    assert await is_sound(agent)


async def test_a_failed_request_leaves_a_message_that_waits(store: ExtendedStore) -> None:
    """After an error of the provider the message stays once, and go_on has it answered."""
    agent = await made(store, [ProviderError("no"), ValueError("a fault of its own"), "Here I am."])
    with pytest.raises(ProviderError, match="no"):
        await agent.send("Hello?")
    assert (await agent.status()).waits_for_answer and (await agent.status()).state == "READY"
    with pytest.raises(ProviderError, match="raised ValueError: a fault of its own"):
        await agent.go_on()
    assert await agent.go_on() == "Here I am."
    assert [m.role for m in await agent.messages()] == ["user", "assistant"]
    with pytest.raises(NothingToDoError):
        await agent.go_on()
    errors = [data for kind, data in await events_of(agent) if kind == "error"]
    assert [data["phase"] for data in errors] == ["model", "model"]


class Silent(ScriptedProvider):
    """Says a word, and then nothing."""

    async def stream(self, *_: Any) -> AsyncIterator[Delta]:  # type: ignore[override]
        yield Delta("Well, ")
        await asyncio.sleep(1_000)


async def test_a_silent_provider_ends_in_an_error(store: ExtendedStore) -> None:
    """A provider that sends nothing for too long is given up."""
    template = Template("assistant", provider_timeout_ms=100)
    agent = await Agent.create(provider=Silent([]), store=store, template=template)
    with pytest.raises(ProviderTimeoutError, match="sent nothing for 100 ms"):
        await agent.send("Hello?")
    assert [m.role for m in await agent.messages()] == ["user"]


async def test_a_model_that_never_answers_is_stopped(store: ExtendedStore) -> None:
    """max_steps ends a model that only calls tools; its calls have results, and go_on lets it try again."""
    agent = await made(store, lambda _: call("lambda_add", a=1), lambda_add, max_steps=3)
    with pytest.raises(StepsExceededError, match="each of 3 steps"):
        await agent.send("Go.")
    assert len(await store.load_tool_call_records(agent.id)) == 3
    assert await is_sound(agent)


async def test_two_sends_at_once_are_answered_one_after_the_other(store: ExtendedStore) -> None:
    """Concurrent sends take turns; with wait_ms=0 the second is refused, and nothing of it is stored."""
    agent = await made(store, lambda messages: f"to {messages[-1].text}")
    assert sorted(await asyncio.gather(agent.send("a"), agent.send("b"))) == ["to a", "to b"]
    texts = [m.text for m in await agent.messages()]
    assert texts in (["a", "to a", "b", "to b"], ["b", "to b", "a", "to a"])
    async with store.acquire_agent_lock(agent.id):
        with pytest.raises(AgentBusyError, match="another worker"):
            await asyncio.create_task(agent.send("c", wait_ms=0))
    assert (await agent.status()).message_count == 4


async def test_a_tool_cannot_send_to_its_own_agent(store: ExtendedStore) -> None:
    """A send from inside a run is refused at once instead of waiting for itself."""
    agents: list[Agent] = []

    async def again() -> str:
        return await agents[0].send("And again.")

    agents.append(await made(store, [call("again"), "ok"], again))
    assert await agents[0].send("Go.") == "ok"
    assert "AgentBusyError" in results(await agents[0].messages())[0]


async def test_interrupt_stops_an_answer(store: ExtendedStore) -> None:
    """An interruption keeps what was said so far, marked, and the next send goes on."""
    agent = await Agent.create(provider=Silent([]), store=store, template=HELLO)
    sending = asyncio.create_task(agent.send("Talk."))
    async for stored in agent.events("progress", after_offset=0):
        if stored.event.type == "text_chunk":
            break
    await agent.interrupt(note="enough")
    with pytest.raises(AgentInterruptedError, match="enough"):
        await sending
    last = (await agent.messages())[-1]
    assert (last.role, last.text, last.metadata) == ("assistant", "Well, ", {"interrupted": True})
    assert (await agent.status()).state == "READY"
    agent.provider = ScriptedProvider(["Yes?"])
    assert await agent.send("Are you there?") == "Yes?"


async def test_interrupt_seals_calls_that_run(store: ExtendedStore) -> None:
    """Of two calls the one that ended keeps its result, and the model is told that the other may have had effects."""
    began = asyncio.Event()

    async def slow() -> None:
        began.set()
        await asyncio.sleep(1_000)

    agent = await made(store, [[call("lambda_add", a=1), call("slow")], "later"], lambda_add, slow)
    sending = asyncio.create_task(agent.send("Go."))
    await began.wait()
    while not [r for r in await store.load_tool_call_records(agent.id) if r.state == "COMPLETED"]:
        await asyncio.sleep(0.01)
    await agent.interrupt()
    with pytest.raises(AgentInterruptedError):
        await sending
    first, second = results(await agent.messages())
    assert first == "3" and "may have taken effect" in second
    assert [r.state for r in await store.load_tool_call_records(agent.id)] == ["COMPLETED", "SEALED"]
    assert await is_sound(agent)
    assert await agent.send("Go on.") == "later"


async def test_a_cancelled_send_is_sealed_by_the_next(store: ExtendedStore) -> None:
    """Cancelling a send while its tool runs leaves an agent that the next send can use."""
    began = asyncio.Event()

    async def slow() -> None:
        began.set()
        await asyncio.sleep(1_000)

    agent = await made(store, [call("slow"), "I see."], slow)
    sending = asyncio.create_task(agent.send("Go."))
    await began.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert await agent.send("And now?") == "I see."
    assert "may have taken effect" in results(await agent.messages())[0]
    assert [m.role for m in await agent.messages()] == ["user", "assistant", "user", "user", "assistant"]
    assert await is_sound(agent)


async def test_an_agent_that_is_deleted_while_it_runs_stays_deleted(store: ExtendedStore) -> None:
    """A run whose agent was deleted ends with AgentNotFoundError, and writes nothing under its id any more."""
    agents: list[Agent] = []

    async def vanish() -> str:
        await store.delete(agents[0].id)
        return "gone"

    agents.append(await made(store, [["Some words. ", call("vanish")], "never"], vanish))
    with pytest.raises(AgentNotFoundError):
        await agents[0].send("Go.")
    assert await store.list(include_without_info=True) == []
    with pytest.raises(AgentNotFoundError):
        await agents[0].send("Go.")


async def test_an_agent_that_is_deleted_while_it_streams_stays_deleted(store: ExtendedStore) -> None:
    """Deltas are not written for an agent that is gone."""
    agent = await Agent.create(provider=Silent([]), store=store, template=Template("a", provider_timeout_ms=300))
    sending = asyncio.create_task(agent.send("Talk."))
    while len(await agent.messages()) == 0:
        await asyncio.sleep(0.001)
    await store.delete(agent.id)
    with pytest.raises((AgentNotFoundError, ProviderTimeoutError)):
        await sending
    assert await store.list(include_without_info=True) == []


async def test_a_store_that_is_closed_while_it_runs(store: ExtendedStore) -> None:
    """A closed store ends the run with the store's own error."""

    async def close() -> None:
        await store.close()

    agent = await made(store, [call("close"), "never"], close)
    with pytest.raises(StoreClosedError):
        await agent.send("Go.")


async def test_what_others_write_into_the_info_stays(store: ExtendedStore) -> None:
    """A title that a program sets during a run is not lost to the run's own commits."""
    agents: list[Agent] = []

    async def title() -> str:
        await store.update_info(agents[0].id, {"title": "Rome"})
        return "ok"

    agents.append(await made(store, [call("title"), "done"], title))
    await agents[0].send("Go.")
    info = await store.load_info(agents[0].id)
    assert info and info.metadata["title"] == "Rome" and info.metadata["agent"]["steps"] == 2


async def test_resume_needs_the_same_template(store: ExtendedStore) -> None:
    """An agent is not run by a template of another id, and an unknown one is not created by resume."""
    agent = await made(store, ["a"])
    other = Template("other")
    with pytest.raises(TemplateError, match="is of the template 'assistant', not 'other'"):
        await Agent.resume(agent.id, provider=agent.provider, store=store, template=other)
    with pytest.raises(AgentNotFoundError):
        await Agent.resume("nobody", provider=agent.provider, store=store, template=other)
    with pytest.raises(ConflictError):
        await Agent.create(provider=agent.provider, store=store, template=other, agent_id=agent.id)


async def test_many_callers_create_one_agent(store: ExtendedStore) -> None:
    """resume_or_create of ten callers at once makes one agent, which answers all of them."""
    provider = ScriptedProvider(lambda messages: f"to {messages[-1].text}")

    async def one(number: int) -> str:
        agent = await Agent.resume_or_create("shared", provider=provider, store=store, template=HELLO)
        return await agent.send(str(number), wait_ms=60_000)

    assert sorted(await asyncio.gather(*map(one, range(10)))) == sorted(f"to {n}" for n in range(10))
    assert (await store.load_session("shared")).message_count == 20  # type: ignore[union-attr]


async def test_a_fork_goes_its_own_way(store: ExtendedStore) -> None:
    """A fork has the conversation of its parent, or of a snapshot, and both go on alone."""
    agent = await made(store, lambda messages: f"{len(messages)}")
    await agent.send("one")
    point = await agent.snapshot()
    await agent.send("two")
    now, then = await agent.fork("now"), await agent.fork(snapshot_id=point)
    assert (now.id, point) == ("now", "sfp-1")
    assert (await now.send("x"), await then.send("x"), await agent.send("x")) == ("5", "3", "5")
    assert (await store.load_info(then.id)).lineage == (agent.id,)  # type: ignore[union-attr]
    with pytest.raises(ConflictError):
        await agent.fork("now")


async def test_fork_and_snapshot_while_a_tool_runs(store: ExtendedStore) -> None:
    """A fork in the middle of a call has it sealed; a snapshot ends before it; the parent is not disturbed."""
    agents: list[Agent] = []

    async def split() -> str:
        agents.append(await agents[0].fork())
        return await agents[0].snapshot("mid")

    agents.append(await made(store, [call("split"), "parent", "child"], split))
    assert await agents[0].send("Go.") == "parent"
    parent, child = agents
    assert results(await parent.messages()) == ["mid"]
    assert "may have taken effect" in results(await child.messages())[0]
    assert (await child.status()).state == "READY"
    assert await child.go_on() == "child"
    snapshot = await store.load_snapshot(parent.id, "mid")
    assert snapshot and [m.text for m in snapshot.messages] == ["Go."]
    assert await is_sound(parent) and await is_sound(child)


async def test_compression_replaces_old_messages_by_a_summary(store: ExtendedStore) -> None:
    """The summary and the newest messages stay; the window has the others, and calls are not parted from results."""
    script: list[Any] = ["answer 1", call("lambda_add", a=1), "answer 2", "THE SUMMARY", "answer 3"]
    compression = Compression(threshold_tokens=1, keep_messages=2)
    agent = await made(store, script[:1], lambda_add)
    await agent.send("question 1")
    agent.provider = ScriptedProvider(script[1:3])
    await agent.send("question 2")
    agent.provider = ScriptedProvider(script[3:])
    agent.template = Template("assistant", "", [lambda_add], compression=compression)
    assert await agent.send("question 3") == "answer 3"
    messages = await agent.messages()
    assert [m.text for m in messages] == [
        "Summary of the conversation so far:\n\nTHE SUMMARY",
        "answer 2",
        "question 3",
        "answer 3",
    ]
    (window,) = await store.load_history_windows(agent.id)
    (record,) = await store.load_compression_records(agent.id)
    assert [m.text for m in window.messages] == ["question 1", "answer 1", "question 2", "", ""]
    assert (record.window_id, record.summary, record.config.threshold) == (window.id, "THE SUMMARY", 1)
    assert messages[0].metadata == {"summaryOf": window.id}
    phases = [data["phase"] for kind, data in await events_of(agent) if kind == "context_compression"]
    assert phases == ["start", "end"]
    assert await is_sound(agent)


async def test_a_failed_compression_changes_nothing(store: ExtendedStore) -> None:
    """If the summary cannot be had, the conversation goes on whole, and operators are told."""
    agent = await made(store, ["1", ProviderError("no summary"), "2"], compression=Compression(1, 1))
    await agent.send("a")
    assert await agent.send("b") == "2"
    assert [m.text for m in await agent.messages()] == ["a", "1", "b", "2"]
    assert [data["severity"] for kind, data in await events_of(agent) if kind == "error"] == ["warn"]


async def test_a_message_that_cannot_be_stored_is_refused(store: ExtendedStore) -> None:
    """A send of a text that is no JSON stores nothing, and the agent goes on."""
    agent = await made(store, ["ok"])
    with pytest.raises(InvalidValueError):
        await agent.send("\ud83d" + "\ude00")
    assert await agent.messages() == []
    assert await agent.send("fine") == "ok"


async def test_parted_surrogates_of_a_stream_are_joined(store: ExtendedStore) -> None:
    """Two pieces that each have half of a character make a text that can be stored."""

    class Halves(ScriptedProvider):
        async def stream(self, *_: Any) -> AsyncIterator[Any]:
            yield Delta("\ud83d")
            yield Delta("\ude00")
            yield Answer(Message.assistant("\N{GRINNING FACE}"))

    agent = await Agent.create(provider=Halves([]), store=store, template=HELLO)
    assert await agent.send("Smile.") == "\N{GRINNING FACE}"
    assert ("text_chunk", {"step": 0, "delta": "\N{GRINNING FACE}"}) in await events_of(agent)


@pytest.mark.parametrize("stop", ["length", "max_tokens"])
async def test_calls_of_an_answer_that_was_cut_off_do_not_run(store: ExtendedStore, stop: str) -> None:
    """Arguments may be incomplete, and still be valid, when the answer reached its limit of tokens."""

    class Cut(ScriptedProvider):
        async def stream(self, *args: Any) -> AsyncIterator[Any]:
            async for part in super().stream(*args):
                is_call = isinstance(part, Answer) and part.stop == "tool_use"
                yield replace(part, stop=stop) if is_call else part

    ran: list[str] = []

    def remove(path: str) -> None:
        ran.append(path)

    template = Template("assistant", "", [remove])
    agent = await Agent.create(provider=Cut([call("remove", path="/"), "ok"]), store=store, template=template)
    assert await agent.send("Remove /tmp/x.") == "ok"
    assert ran == []
    assert "may be incomplete" in results(await agent.messages())[0]


async def test_compression_without_counted_tokens(store: ExtendedStore) -> None:
    """Where the server counts no tokens, the length of the conversation decides."""

    class Uncounted(ScriptedProvider):
        async def stream(self, *args: Any) -> AsyncIterator[Any]:
            async for part in super().stream(*args):
                yield replace(part, usage=Usage()) if isinstance(part, Answer) else part

    template = Template("assistant", compression=Compression(threshold_tokens=1_000, keep_messages=1))
    provider = Uncounted(["1", "x" * 8_000, "THE SUMMARY", "3"])
    agent = await Agent.create(provider=provider, store=store, template=template)
    for text in ("a", "b", "c"):
        await agent.send(text)
    assert [m.text[-11:] for m in await agent.messages()] == ["THE SUMMARY", "c", "3"]


async def test_arguments_of_the_wrong_type_are_refused(store: ExtendedStore) -> None:
    """Nothing is stored for arguments that cannot work."""
    good: dict[str, Any] = {"provider": ScriptedProvider([]), "store": store, "template": HELLO}
    for bad in (
        {"provider": object()},
        {"template": "assistant"},
        {"lease_ms": 5},
        {"lease_ms": "10"},
        {"agent_id": ""},
    ):
        with pytest.raises(InvalidArgumentError):
            await Agent.create(**{**good, **bad})
    assert await store.list() == []
    agent = await Agent.create(**good)
    for content in ("", [], 3, None, [3], b"x"):
        with pytest.raises(InvalidArgumentError):
            await agent.send(content)  # type: ignore[arg-type]
    assert await agent.messages() == []


async def test_messages_that_others_write_end_the_run(store: ExtendedStore) -> None:
    """A run whose conversation another writer changed ends with ConflictError; the next send goes on with all of it."""
    agents: list[Agent] = []

    async def meddle() -> str:
        await store.append_messages(agents[0].id, [Message.user("from outside")])
        return "ok"

    agents.append(await made(store, [call("meddle"), "I see it all."], meddle))
    with pytest.raises(ConflictError, match="another writer changed its messages"):
        await agents[0].send("Go.")
    assert await agents[0].send("And now?") == "I see it all."
    messages = await agents[0].messages()
    assert [m.text for m in messages] == ["Go.", "", "", "from outside", "And now?", "I see it all."]
    assert "may have taken effect" in results(messages)[0]
    assert await is_sound(agents[0])
