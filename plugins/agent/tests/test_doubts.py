"""Commits whose outcome is unknown: the next send finds out, and doubles nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from kode_agent import Agent, ScriptedProvider, Template, ToolContext, call

from kode_core import Message, OutcomeUnknownError, ToolResultBlock, create_extended_store
from kode_core.batch import Batch
from kode_core.layers import Layer


class Doubt(Layer):
    """Raises OutcomeUnknownError at one commit: the write before it was applied, or it was not."""

    at = 0
    is_applied = False
    count = 0

    async def commit(self, batches: Sequence[Batch]) -> Any:
        type(self).count += 1
        if self.count == self.at:
            if self.is_applied:
                await super().commit(batches)
            raise OutcomeUnknownError("the connection broke")
        return await super().commit(batches)


def say(messages: Sequence[Message]) -> Any:
    if any(isinstance(block, ToolResultBlock) for message in messages for block in message.content):
        return "All done."
    return ["I book. ", call("book"), call("book")]


@pytest.mark.parametrize("is_applied", [True, False])
async def test_a_doubt_at_every_commit(is_applied: bool) -> None:
    """Whichever commit is in doubt, the conversation goes on, sound, and no call runs twice."""
    reached = True
    at = 1
    while reached:
        Doubt.at, Doubt.is_applied, Doubt.count = at, is_applied, 0
        ran: list[str] = []

        def book(context: ToolContext) -> str:
            ran.append(context.call_id)  # noqa: B023 - used within this round
            return "booked"

        async with create_extended_store("memory:", layers=[Doubt]) as store:
            template, provider = Template("booking", tools=[book]), ScriptedProvider(say)
            try:
                agent = await Agent.create(provider=provider, store=store, template=template, agent_id="a")
                assert await agent.send("Book.") == "All done."
                reached = Doubt.count >= at
            except OutcomeUnknownError:
                agent = await Agent.resume_or_create("a", provider=provider, store=store, template=template)
                waits = (await agent.status()).waits_for_answer
                assert await (agent.go_on() if waits else agent.send("Book.")) == "All done."
            assert len(ran) == len(set(ran))
            assert not (await store.check_consistency()).issues
            records = {record.id: record for record in await store.load_tool_call_records("a")}
            assert set(ran) <= set(records)
            for call_id in ran:
                record = records[call_id]
                assert record.state == "COMPLETED" or "may have taken effect" in str(record.error)
        at += 1
    assert at > 6
