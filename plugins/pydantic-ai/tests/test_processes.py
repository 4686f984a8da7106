"""Several processes with one conversation, and processes that are killed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

from kode_pydantic_ai import KodeConversationStore
from pydantic_ai.conversation_store import ConversationRecord

from tests.adapter_tests import begin, race, said, started

WORKER = Path(__file__).with_name("worker.py")


async def test_two_processes_append_to_one_conversation(shared_url: str) -> None:
    """Each save of a pair of entries succeeds once, and the history has all of them."""
    told = await race(*[started(WORKER, "append", shared_url, name, "20") for name in "ab"])
    async with KodeConversationStore(shared_url) as store:
        record = await store.read_record("race")
        assert record is not None
        history = [entry.id for entry in await store.read_history(record.head_id)]
        assert sorted(history) == sorted(id_ for lines in told for line in lines for id_ in line["ids"])
        assert len(history) == 80
        assert await store.store.count_messages(agent_id=store.agent_id("race")) == 80


async def test_each_revision_is_replaced_or_deleted_once(shared_url: str) -> None:
    """Three processes save, create and delete one conversation."""
    told = await race(*[started(WORKER, "churn", shared_url, name, "40") for name in "abc"])
    steps = [line for lines in told for line in lines]
    replaced = Counter(line["was"] for line in steps if line["was"] is not None)
    assert len(steps) > 20
    assert max(replaced.values()) == 1
    made = {line["now"] for line in steps} - {None}
    async with KodeConversationStore(shared_url) as store:
        record = await store.read_record("race")
        assert made - set(replaced) == ({record.revision} if record else set())  # what was not replaced is there
        if record is not None:
            assert len(await store.read_history(record.head_id)) >= 1


async def test_a_fork_is_whole_while_others_delete_its_source(shared_url: str) -> None:
    told, _ = await race(*[started(WORKER, "forks", shared_url, name, "40") for name in ("forks", "deletes")])
    async with KodeConversationStore(shared_url) as store:
        await store.delete("race")
        for line in told:
            entries = await store.load_entries(line["fork"])
            assert entries is not None
            assert len(entries) == line["count"] == 2
            assert await store.read_entry(entries[0].id) == entries[0]


async def test_a_killed_process_loses_no_save(shared_url: str) -> None:
    """Everything that was acknowledged is there, also by its id, and another process goes on."""
    process = await started(WORKER, "append", shared_url, "killed", "0")
    begin(process)
    assert process.stdout is not None
    lines = [await process.stdout.readline()]
    await asyncio.sleep(0.5)
    process.kill()
    lines += (await process.stdout.read()).splitlines()
    await process.wait()
    ids = [id_ for line in lines if line.strip().endswith(b"}") for id_ in json.loads(line)["ids"]]
    async with KodeConversationStore(shared_url) as store:
        record = await store.read_record("race")
        assert record is not None
        history = [entry.id for entry in await store.read_history(record.head_id)]
        assert history[: len(ids)] == ids
        assert len(history) - len(ids) in (0, 2)  # the save in flight is whole or absent
        for entry_id in history:
            assert (await store.read_entry(entry_id)).id == entry_id
    await said(await started(WORKER, "append", shared_url, "next", "1"))
    async with KodeConversationStore(shared_url) as store:
        record = await store.read_record("race")
        assert record is not None
        assert len(await store.read_history(record.head_id)) == len(history) + 2


async def test_the_delete_of_a_killed_process_is_finished(store: KodeConversationStore) -> None:
    """It had removed the record and the messages, and not yet the agent."""
    first = ConversationRecord(conversation_id="c", head_id=None)
    await store.write_record(first, expected_revision=None)
    await store._emptied(store.agent_id("c"), "c", first.revision)
    assert await store.read_record("c") is None
    assert await store.read_records() == []
    again = ConversationRecord(conversation_id="c", head_id=None)
    await store.write_record(again, expected_revision=None)
    assert [record.revision for record in await store.read_records(limit=5)] == [again.revision]
