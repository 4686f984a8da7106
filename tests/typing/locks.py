"""Locks, and writes that need them."""

from __future__ import annotations

from typing import assert_type

from kode_core import ExtendedStore, Lease, LockUnavailableError, Message


async def held(store: ExtendedStore) -> None:
    async with store.acquire_agent_lock("agt-1", ttl_ms=10_000, wait_ms=500) as lease:
        assert_type(lease, Lease)
        await store.append_messages("agt-1", [Message.user("hi")])
        await lease.renew()
    try:
        lease = await store.acquire_agent_lock("agt-2")
    except LockUnavailableError as exc:
        print(exc)
        return
    await store.append_messages("agt-2", [Message.user("hi")], fence=lease)
    assert_type(lease.token, int)
    await lease.release()

    await store.append_messages("agt-2", [], fence=lease.token)  # refused: arg-type
    await store.append_messages("agt-2", [], lease)  # refused: call-arg
    lease.token = 7  # refused: misc
    with store.acquire_agent_lock("agt-1"):  # refused: attr-defined
        pass
    async with store.acquire_agent_lock("agt-1", ttl="10 s"):  # refused: call-arg
        pass
