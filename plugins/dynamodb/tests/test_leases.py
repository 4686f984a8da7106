"""Leases: no clock is compared with another, and no item of one is kept for ever, or removed too early."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from kode_conformance.values import samples
from kode_dynamodb import DynamoDBOptions, DynamoDBStore
from kode_dynamodb.records import DynamoRecords, open_records
from kode_dynamodb.values import head_key

from kode_core.batch import Fence


async def test_no_clock_is_compared_with_another(moto: DynamoDBOptions) -> None:
    """A lease is taken from a holder that was silent for the whole lease, however late it was first seen."""
    holder, other = await open_records(moto), await open_records(moto)
    for ttl_ms in (400, 4_000, 20_000):  # until one is seen twice before its time is over
        agent_id = f"a{ttl_ms}"
        token = await holder.acquire_lease(agent_id, "me", ttl_ms)
        assert token is not None
        await asyncio.sleep(ttl_ms * 0.00125)
        seen_at = time.monotonic()
        assert await other.acquire_lease(agent_id, "you", ttl_ms) is None  # seen for the first time
        await asyncio.sleep(ttl_ms * 0.0005)
        taken = await other.acquire_lease(agent_id, "you", ttl_ms)
        if time.monotonic() - seen_at < ttl_ms / 1000:
            break
    assert taken is None
    await asyncio.sleep(ttl_ms * 0.00075)
    taken = await other.acquire_lease(agent_id, "you", ttl_ms)
    assert taken is not None
    assert taken > token
    assert not await holder.renew_lease(agent_id, Fence("me", token), ttl_ms)
    assert not await holder.holds_lease(agent_id, Fence("me", token))
    await holder.close()
    await other.close()


async def test_a_lease_that_is_renewed_is_never_taken(moto: DynamoDBOptions) -> None:
    """Each renewal begins the others' wait anew."""
    holder, other = await open_records(moto), await open_records(moto)
    token = await holder.acquire_lease("a", "me", 400)
    assert token is not None
    for _ in range(8):
        await asyncio.sleep(0.1)
        assert await holder.renew_lease("a", Fence("me", token), 400)
        assert await other.acquire_lease("a", "you", 400) is None
    await holder.close()
    await other.close()


# --- The time to live of an item that is nothing but a lease ----------------------------------------------------------


async def ends_at(records: DynamoRecords, agent_id: str) -> int | None:
    """When the service may remove the head's item; None for never."""
    found = await records.connection.get(head_key(agent_id))
    assert found is not None
    return int(found["ttl"]["N"]) if "ttl" in found else None


async def test_a_lock_never_dates_an_agent(
    moto: DynamoDBOptions, moto_store: Callable[[], DynamoDBStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody saves the first turn between the look and the update of who takes the lock."""
    locker = await open_records(moto)
    get, looks = locker.connection.get, 0
    async with moto_store() as writer:

        async def and_then_a_turn(key: Any, **arguments: Any) -> Any:
            nonlocal looks
            looks += 1
            found = await get(key, **arguments)
            if looks == 1:
                await writer.save_turn("a", messages=samples.messages(2), info=samples.info("a"))
            return found

        with monkeypatch.context() as patched:
            patched.setattr(locker.connection, "get", and_then_a_turn)
            assert await locker.acquire_lease("a", "me", 1000) is not None
        assert looks == 2
        assert await ends_at(locker, "a") is None
        assert len(await writer.load_messages("a")) == 2
    await locker.close()


async def test_a_lock_without_an_agent_lasts_as_long_as_it_is_renewed(
    moto: DynamoDBOptions, moto_store: Callable[[], DynamoDBStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each renewal moves the time to live, by one call; an agent that is made meanwhile gets none, and may go again."""
    records = await open_records(moto)
    token = await records.acquire_lease("a", "me", 1000)
    assert token is not None
    fence, first, calls = Fence("me", token), await ends_at(records, "a"), list[str]()
    repeat = records.connection.repeat

    async def counted(name: str, **arguments: Any) -> bool:
        calls.append(name)
        return await repeat(name, **arguments)

    async def renewals() -> int:
        monkeypatch.setattr(records.connection, "repeat", counted)
        calls.clear()
        assert await records.renew_lease("a", fence, 100_000)
        monkeypatch.undo()
        return len(calls)

    assert first is not None
    assert await renewals() == 1
    moved = await ends_at(records, "a")
    assert moved is not None
    assert moved > first + 90
    async with moto_store() as store:
        await store.append_messages("a", samples.messages(1))
        assert [await renewals(), await renewals()] == [2, 1]
        assert await ends_at(records, "a") is None
        await store.delete("a")
        assert [await renewals(), await renewals()] == [2, 1]
        assert await ends_at(records, "a") is not None
    await records.release_lease("a", fence)
    assert not await records.renew_lease("a", fence, 1000)
    await records.close()
