"""Calls that wait for a decision: from this process, from another one, in time, late, twice, and never."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kode_agent import (
    Agent,
    AgentInterruptedError,
    ApprovalError,
    ScriptedProvider,
    Template,
    call,
    decide,
    open_questions,
    tool,
)

from kode_core import AgentNotFoundError, ExtendedStore, StoreClosedError, ToolResultBlock, create_extended_store

RAN: list[str] = []


@tool(needs_approval=True)
def remove(path: str) -> str:
    """Remove a file."""
    RAN.append(path)
    return "removed"


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


async def made(store: ExtendedStore, *script: Any, **options: Any) -> Agent:
    template = Template("assistant", "", [remove], **options)
    return await Agent.create(provider=ScriptedProvider(script), store=store, template=template)


async def question(agent: Agent) -> str:
    async for stored in agent.events("control", after_offset=0):
        if stored.event.type == "permission_required":
            return str(stored.event.data["call"]["id"])
    raise AssertionError


async def result(agent: Agent) -> Any:
    (block,) = (b for m in await agent.messages() for b in m.content if isinstance(b, ToolResultBlock))
    return block.content


async def test_an_allowed_call_runs(store: ExtendedStore) -> None:
    """The question has the arguments, nothing runs before the decision, and the record keeps who decided."""
    agent = await made(store, call("remove", path="a"), "Done.")
    sending = asyncio.create_task(agent.send("Remove a."))
    call_id = await question(agent)
    status = await agent.status()
    assert (status.state, [q.input for q in status.questions], RAN) == ("PAUSED", [{"path": "a"}], [])
    await agent.decide(call_id, "allow", by="ann", note="fine")
    assert await sending == "Done."
    assert RAN == ["a"]
    (record,) = await store.load_tool_call_records(agent.id)
    approval = record.approval
    assert (approval.required, approval.decision, approval.decided_by, approval.note) == (True, "allow", "ann", "fine")
    assert [e.state for e in record.audit_trail] == ["APPROVAL_REQUIRED", "EXECUTING", "COMPLETED"]
    assert len(await store.query_tool_calls(has_approval=True)) == 1


async def test_a_denied_call_does_not_run(store: ExtendedStore) -> None:
    """The model reads who denied the call, and why."""
    agent = await made(store, call("remove", path="a"), "Pity.")
    sending = asyncio.create_task(agent.send("Remove a."))
    await agent.decide(await question(agent), "deny", by="ann", note="not that one")
    assert await sending == "Pity."
    assert RAN == []
    assert await result(agent) == "the call was denied by ann: not that one"
    assert [r.state for r in await store.load_tool_call_records(agent.id)] == ["DENIED"]


async def test_the_first_decision_counts(store: ExtendedStore) -> None:
    """Of ten decisions at once one is accepted, and the others are told that they came too late."""
    agent = await made(store, call("remove", path="a"), "Done.")
    sending = asyncio.create_task(agent.send("Remove a."))
    call_id = await question(agent)
    choices: list[Any] = ["allow", "deny"] * 5
    tried = await asyncio.gather(*(agent.decide(call_id, c) for c in choices), return_exceptions=True)
    accepted = [choice for choice, error in zip(choices, tried, strict=True) if error is None]
    assert len(accepted) == 1
    assert all(isinstance(error, ApprovalError) for error in tried if error is not None)
    await sending
    assert (["a"] if accepted == ["allow"] else []) == RAN
    with pytest.raises(ApprovalError, match="waits for a decision"):
        await agent.decide(call_id, "allow")


async def test_a_decision_before_the_question_is_refused(store: ExtendedStore) -> None:
    """A decision on a call that nobody asked about raises, and one that was written anyhow decides nothing."""
    agent = await made(store, call("remove", path="a").replace(id="call-with-a-known-id"), "Done.")
    with pytest.raises(ApprovalError, match="no call 'call-with-a-known-id' waits"):
        await decide(store, agent.id, "call-with-a-known-id", "allow")
    early = {"callId": "call-with-a-known-id", "decision": "allow"}
    await store.emit(agent.id, "permission_decided", early, channel="control")
    sending = asyncio.create_task(agent.send("Remove a."))
    call_id = await question(agent)
    assert call_id == "call-with-a-known-id"
    await asyncio.sleep(0.1)
    assert RAN == []
    odd = {"callId": call_id, "decision": "perhaps"}
    await store.emit(agent.id, "permission_decided", odd, channel="control")
    await agent.decide(call_id, "allow")
    assert await sending == "Done."
    with pytest.raises(ApprovalError, match="'allow' or 'deny'"):
        await agent.decide(call_id, "maybe")  # type: ignore[arg-type]


async def test_a_decision_while_the_model_answers_is_too_early(store: ExtendedStore) -> None:
    """A decision on a call whose id was guessed, written before the question, decides nothing."""
    known = "call-with-a-known-id"

    class Guessed(ScriptedProvider):
        async def stream(self, *args: Any) -> AsyncIterator[Any]:
            (agent_id,) = await store.list()
            await store.emit(agent_id, "permission_decided", {"callId": known, "decision": "allow"}, channel="control")
            await asyncio.sleep(0.1)
            async for part in super().stream(*args):
                yield part

    template = Template("assistant", "", [remove])
    provider = Guessed([call("remove", path="a").replace(id=known), "Pity."])
    agent = await Agent.create(provider=provider, store=store, template=template)
    sending = asyncio.create_task(agent.send("Remove a."))
    assert await question(agent) == known
    await asyncio.sleep(0.1)
    assert RAN == []
    await agent.decide(known, "deny")
    assert await sending == "Pity."
    assert RAN == []


async def test_a_decision_that_never_comes(store: ExtendedStore) -> None:
    """approval_timeout_ms denies a call; a decision after that is refused."""
    agent = await made(store, call("remove", path="a"), "Pity.", approval_timeout_ms=100)
    assert await agent.send("Remove a.") == "Pity."
    assert RAN == []
    assert await result(agent) == "the call was denied by timeout: no decision came in 100 ms"
    assert await open_questions(store, agent.id) == []


async def test_many_questions_of_one_answer(store: ExtendedStore) -> None:
    """However many calls wait, each is listed and can be decided; the oldest one last."""
    count = 230
    calls = [call("remove", path=str(number)) for number in range(count)]
    agent = await made(store, calls, "Done.")
    sending = asyncio.create_task(agent.send("Remove them all."))
    await question(agent)
    questions = await open_questions(store, agent.id)
    assert [each.input for each in questions] == [{"path": str(number)} for number in range(count)]
    assert len((await agent.status()).questions) == count
    await agent.decide(questions[0].id, "allow")
    await agent.decide(questions[1].id, "deny")
    while len(await open_questions(store, agent.id)) > count - 2:
        await asyncio.sleep(0.05)
    assert RAN == ["0"]
    await agent.interrupt()
    with pytest.raises(AgentInterruptedError):
        await sending
    assert await open_questions(store, agent.id) == []


async def test_many_decisions_that_never_come(store: ExtendedStore) -> None:
    """All of them are denied when their time is over, and the run goes on."""
    calls = [call("remove", path=str(number)) for number in range(230)]
    agent = await made(store, calls, "Pity.", approval_timeout_ms=100)
    assert await asyncio.wait_for(agent.send("Remove them all."), 60) == "Pity."
    states = [record.state for record in await store.load_tool_call_records(agent.id)]
    assert (states, RAN) == (["DENIED"] * 230, [])


async def test_an_interrupted_question_is_closed(store: ExtendedStore) -> None:
    """A call that waits for its decision when the run is interrupted is sealed as not run."""
    agent = await made(store, call("remove", path="a"), "Fine.")
    sending = asyncio.create_task(agent.send("Remove a."))
    call_id = await question(agent)
    await agent.interrupt()
    with pytest.raises(AgentInterruptedError):
        await sending
    assert await result(agent) == "The tool was not run: the run was interrupted before."
    with pytest.raises(ApprovalError):
        await agent.decide(call_id, "allow")
    assert await agent.send("Never mind.") == "Fine."
    assert RAN == []


async def test_an_agent_that_is_deleted_while_it_waits(store: ExtendedStore) -> None:
    """A run that waits for a decision ends when its agent is deleted, and leaves nothing behind."""
    agent = await made(store, call("remove", path="a"), "never")
    sending = asyncio.create_task(agent.send("Remove a."))
    await question(agent)
    await store.delete(agent.id)
    with pytest.raises(AgentNotFoundError):
        await sending
    assert await store.list(include_without_info=True) == []


async def test_a_store_that_is_closed_while_it_waits(store: ExtendedStore) -> None:
    """A run that waits for a decision ends when its store is closed."""
    agent = await made(store, call("remove", path="a"), "never")
    sending = asyncio.create_task(agent.send("Remove a."))
    await question(agent)
    await store.close()
    with pytest.raises(StoreClosedError):
        await sending


OTHER = """
import asyncio, sys
from kode_agent import decide, interrupt, open_questions
from kode_core import create_extended_store

async def main(url, agent_id, what):
    async with create_extended_store(url) as store:
        if what == "interrupt":
            await interrupt(store, agent_id, note="from outside")
            return
        (question,) = await open_questions(store, agent_id)
        await decide(store, agent_id, question.id, what, by="other process")

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("backend", ["sqlite", "json"])
async def test_another_process_decides_and_interrupts(backend: str, tmp_path: Path) -> None:
    """A decision, and an interruption, by a process that only has the store's URL and the agent's id."""
    url = f"{backend}:///{tmp_path}/store"

    async def other(what: str) -> None:
        done = await asyncio.to_thread(
            subprocess.run, (sys.executable, "-c", OTHER, url, agent.id, what), capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()

    async with create_extended_store(url) as store:
        agent = await made(store, call("remove", path="a"), "Done.", call("remove", path="b"))
        sending = asyncio.create_task(agent.send("Remove a."))
        await question(agent)
        await other("allow")
        assert await sending == "Done."
        (record,) = await store.load_tool_call_records(agent.id)
        assert (RAN, record.approval.decided_by) == (["a"], "other process")
        sending = asyncio.create_task(agent.send("Remove b."))
        while not await open_questions(store, agent.id):
            await asyncio.sleep(0.01)
        await other("interrupt")
        with pytest.raises(AgentInterruptedError, match="from outside"):
            await sending
        assert RAN == ["a"]
