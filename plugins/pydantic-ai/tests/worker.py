"""A process of the tests: ``worker.py TASK URL …``. It prints a line of JSON for each thing that was acknowledged."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from typing import Any

from kode_pydantic_ai import KodeConversationStore
from pydantic_ai.conversation_store import ConversationConflict, ConversationEntry, ConversationRecord
from pydantic_ai.messages import ModelRequest, UserPromptPart

from kode_core import KodeError


def say(**told: Any) -> None:
    print(json.dumps(told), flush=True)


def entry(parent: str | None, text: str) -> ConversationEntry:
    return ConversationEntry(parent_id=parent, message=ModelRequest(parts=[UserPromptPart(content=text)]))


async def append(store: KodeConversationStore, name: str, rounds: str) -> None:
    """Append *rounds* entries, each after the last one that is stored; 0 never ends."""
    done = 0
    while not int(rounds) or done < int(rounds):
        record = await store.read_record("race")
        head = record.head_id if record else None
        new = [entry(head, f"{name}-{done}"), entry(None, "")]
        new[1] = entry(new[0].id, f"{name}-{done}!")
        fresh = ConversationRecord(conversation_id="race", head_id=new[-1].id)
        try:
            await store.write_record(fresh, new_entries=new, expected_revision=record.revision if record else None)
        except ConversationConflict:
            continue
        done += 1
        say(ids=[item.id for item in new])


async def churn(store: KodeConversationStore, name: str, rounds: str) -> None:
    """Save, append and delete one conversation at random; says which revision each success has replaced."""
    draw = random.Random(name)
    for step in range(int(rounds)):
        record = await store.read_record("race")
        seen = record.revision if record else None
        try:
            if record is not None and draw.random() < 0.4:
                await store.delete_record("race", expected_revision=record.revision)
                say(was=seen, now=None)
                continue
            new = entry(record.head_id if record else None, f"{name}-{step}")
            fresh = ConversationRecord(conversation_id="race", head_id=new.id)
            await store.write_record(fresh, new_entries=[new], expected_revision=seen)
        except ConversationConflict:
            continue
        say(was=seen, now=fresh.revision)


async def fork_and_delete(store: KodeConversationStore, name: str, rounds: str) -> None:
    """Fork a conversation, which others delete and create again, or delete and create it."""
    for step in range(int(rounds)):
        try:
            if name == "forks":
                fork = await store.fork("race", new_conversation_id=f"fork-{step}")
                say(fork=fork.conversation_id, count=len(fork.messages))
            else:
                await store.delete("race")
                new = entry(None, "first")
                last = entry(new.id, "second")
                record = ConversationRecord(conversation_id="race", head_id=last.id)
                await store.write_record(record, new_entries=[new, last], expected_revision=None)
        except (ConversationConflict, KodeError):
            continue
        except Exception as exc:
            if "is not in the store" not in str(exc):
                raise


async def main() -> None:
    task, url, *args = sys.argv[1:]
    print("ready", flush=True)
    sys.stdin.readline()  # all processes begin at once
    async with KodeConversationStore(url) as store:
        await {"append": append, "churn": churn, "forks": fork_and_delete}[task](store, *args)


asyncio.run(main())
