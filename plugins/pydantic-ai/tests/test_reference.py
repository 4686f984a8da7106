"""The store beside the reference of Pydantic AI, ``InMemoryConversationStore``, call by call."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kode_pydantic_ai import KodeConversationStore
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationEntry,
    ConversationRecord,
    ConversationStore,
    InMemoryConversationStore,
)
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.usage import RunUsage

HOSTILE = ["a", "a/b", "a:b", "", "../..", "%", "ü" * 300, "a\x00b", "\ud800", "pydantic-ai:a", " "]


def message(draw: random.Random) -> ModelMessage:
    text = draw.choice(["hi", "", "a\x00b", "\ud800", "\U0001f600" * 50])
    call_id = f"call-{draw.randrange(4)}"
    return draw.choice(
        [
            ModelRequest(parts=[UserPromptPart(content=text)]),
            ModelRequest(parts=[ToolReturnPart(tool_name="f", content={"a": [1.0, None, text]}, tool_call_id=call_id)]),
            ModelResponse(parts=[TextPart(content=text), ToolCallPart("f", '{"a": NaN', tool_call_id=call_id)]),
        ]
    )


class Both:
    """Two stores that are given the same calls; their answers must be the same."""

    def __init__(self, ours: ConversationStore) -> None:
        self.ours, self.theirs = ours, InMemoryConversationStore()

    async def call(self, ask: Callable[[ConversationStore], Awaitable[Any]]) -> Any:
        answers = []
        for store in (self.theirs, self.ours):
            try:
                answers.append(await ask(store))
            except ConversationConflict as exc:
                answers.append(("conflict", exc.conversation_id))
            except LookupError:
                answers.append("no such entry")
            except UserError as exc:
                answers.append(str(exc))
        assert answers[1] == answers[0]
        return answers[0]


class Walk:
    """A random sequence of calls, as an application and as several of them at once would make them."""

    def __init__(self, ours: ConversationStore, seed: str) -> None:
        self.both, self.draw = Both(ours), random.Random(seed)
        self.entries: list[str] = ["none such"]
        self.revisions: list[str] = ["stale"]
        self.time = datetime.now(UTC) - timedelta(days=1)

    async def step(self) -> None:
        name = self.draw.choice(HOSTILE)
        stored = await self.both.call(lambda store: store.read_record(name))
        kinds = [self.save, self.save, self.save, self.branch, self.fork, self.delete, self.read, self.listing]
        await self.draw.choice(kinds)(name, stored)

    def revision(self, stored: ConversationRecord | None) -> str | None:
        right = stored.revision if stored else None
        return right if self.draw.random() < 0.8 else self.draw.choice([None, *self.revisions])

    async def write(self, record: ConversationRecord, new: list[ConversationEntry], expected: str | None) -> None:
        self.time += timedelta(seconds=1)
        record.updated_at = self.time
        record.usage = RunUsage(requests=self.draw.randrange(5), details={"x": 1})
        self.entries += [entry.id for entry in new]
        self.revisions.append(record.revision)
        await self.both.call(lambda store: store.write_record(record, new_entries=new, expected_revision=expected))

    async def save(self, name: str, stored: ConversationRecord | None) -> None:
        parent, new = stored.head_id if stored else None, []
        for _ in range(self.draw.randrange(4)):
            new.append(ConversationEntry(parent_id=parent, message=message(self.draw)))
            parent = new[-1].id
        scope = self.draw.choice([None, "ada", "bob", ""])
        branches = list(stored.branches) if stored else []
        record = ConversationRecord(conversation_id=name, head_id=parent, scope=scope, branches=branches)
        await self.write(record, new, self.revision(stored))

    async def branch(self, name: str, stored: ConversationRecord | None) -> None:
        """Go back within a history, or to a branch that was left, and go on there."""
        if stored is None or stored.head_id is None:
            return
        tip = self.draw.choice([stored.head_id, *stored.branches])
        history = await self.both.theirs.read_history(tip)
        head = self.draw.choice(history).id
        left = [tip for tip in [*stored.branches, stored.head_id] if tip != head]
        new = [ConversationEntry(parent_id=head, message=message(self.draw))] if self.draw.random() < 0.5 else []
        last = new[-1].id if new else head
        record = ConversationRecord(conversation_id=name, head_id=last, branches=[*dict.fromkeys(left)])
        await self.write(record, new, self.revision(stored))

    async def fork(self, name: str, stored: ConversationRecord | None) -> None:
        """Begin a conversation at an entry of another one, or at one that is no more."""
        head = self.draw.choice(self.entries[-20:])
        left = [*stored.branches, *([stored.head_id] if stored.head_id else [])] if stored else []
        record = ConversationRecord(
            conversation_id=name, head_id=head, forked_from="a", forked_at=head, branches=[*dict.fromkeys(left)]
        )
        await self.write(record, [], None if self.draw.random() < 0.8 else self.revision(stored))

    async def delete(self, name: str, stored: ConversationRecord | None) -> None:
        expected = self.revision(stored) or "none"
        await self.both.call(lambda store: store.delete_record(name, expected_revision=expected))

    async def read(self, name: str, stored: ConversationRecord | None) -> None:
        limit = self.draw.choice([None, 0, 1, 2, 5, 100])
        head = self.draw.choice([stored.head_id if stored else None, *self.entries[-20:]])
        await self.both.call(lambda store: store.read_history(head, limit=limit))
        entry = self.draw.choice(self.entries)
        await self.both.call(lambda store: store.read_entry(entry))

    async def listing(self, name: str, stored: ConversationRecord | None) -> None:
        scope, limit = self.draw.choice([None, "ada", "", "none"]), self.draw.choice([None, 0, 1, 3])
        await self.both.call(lambda store: store.read_records(scope=scope, limit=limit))


@pytest.mark.parametrize("seed", ["one", "two", "three"])
async def test_every_answer_is_the_reference_s(store: KodeConversationStore, url: Any, seed: str) -> None:
    walk = Walk(store, seed)
    for _ in range(150 if isinstance(url, str) else 40):  # emulators are slow
        await walk.step()
    for entry_id in walk.entries:
        await walk.both.call(lambda store, id_=entry_id: store.read_entry(id_))  # type: ignore[misc]


async def test_a_long_history_that_branched(store: KodeConversationStore) -> None:
    """Windows across a branch point, which are not one piece of the list."""
    both, new, parent = Both(store), [], None
    for i in range(300):
        new.append(ConversationEntry(parent_id=parent, message=ModelRequest(parts=[UserPromptPart(content=f"{i}")])))
        parent = new[-1].id
    first = ConversationRecord(conversation_id="c", head_id=parent)
    await both.call(lambda s: s.write_record(first, new_entries=new, expected_revision=None))
    other = [ConversationEntry(parent_id=new[99].id, message=ModelRequest(parts=[UserPromptPart(content="other")]))]
    back = ConversationRecord(conversation_id="c", head_id=other[0].id, branches=[new[-1].id])
    await both.call(lambda s: s.write_record(back, new_entries=other, expected_revision=first.revision))
    for head, limit in [(other[0].id, None), (other[0].id, 1), (other[0].id, 50), (new[-1].id, 20), (new[-1].id, None)]:
        await both.call(lambda s, h=head, n=limit: s.read_history(h, limit=n))  # type: ignore[misc]
    assert len(await store.read_history(other[0].id)) == 101


async def test_a_limited_list_ends_early(store: KodeConversationStore) -> None:
    for i in range(12):
        await store.write_record(ConversationRecord(conversation_id=f"{i}", head_id=None), expected_revision=None)
    newest = await store.read_records(limit=3)
    assert [record.conversation_id for record in newest] == ["11", "10", "9"]
    assert len(await store.read_records()) == 12
    with pytest.raises(UserError, match="negative"):
        await store.read_records(limit=-1)
