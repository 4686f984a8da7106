"""Processes that count under a lock: ``python lock_workers.py DSN SCHEMA TTL_MS fenced|unfenced``.

The process itself only makes others, one for each line of its input, so that a new one is there at once when a test has
killed one. A worker takes the lock, adds to a counter a few times, each time reading, thinking and writing, and gives
the lock back. What it does it tells in lines of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time

from kode_conformance.values import samples

from kode_core import ExtendedStore, create_extended_store
from kode_core.errors import KodeError, LockLostError, LockUnavailableError
from kode_core.protocols import Lease

AGENT = "counter"


def tell(**facts: object) -> None:
    os.write(1, json.dumps({"pid": os.getpid(), **facts}).encode() + b"\n")


async def count(store: ExtendedStore, lease: Lease, until: float, *, fenced: bool) -> None:
    """Add to the counter while the lease holds as far as this process believes."""
    for _ in range(6):
        if time.monotonic() > until:
            return
        info = await store.load_info(AGENT)
        assert info is not None
        value = info.metadata["n"] + 1
        tell(trying=value)
        await asyncio.sleep(random.uniform(0.002, 0.015))
        await store.save_turn(
            AGENT,
            append=[samples.message(text=f"{lease.token} {value}")],
            info=info.replace(metadata={"n": value}),
            fence=lease if fenced else None,
        )
        tell(acknowledged=value, token=lease.token)


async def work(dsn: str, schema: str, ttl_ms: int, *, fenced: bool) -> None:
    store = await create_extended_store(type="postgres", dsn=dsn, schema=schema, max=2)
    while True:
        until = time.monotonic() + ttl_ms / 1000 * 0.8
        try:
            lease = await store.acquire_agent_lock(AGENT, ttl_ms=ttl_ms)
        except LockUnavailableError:
            await asyncio.sleep(random.uniform(0.005, 0.03))
            continue
        tell(acquired=lease.token)
        try:
            await count(store, lease, until, fenced=fenced)
            await lease.release()
        except LockLostError:
            tell(refused=lease.token)
        except KodeError as exc:
            tell(error=repr(exc))
        tell(released=lease.token)
        await asyncio.sleep(random.uniform(0, 0.01))


def main() -> None:
    dsn, schema, ttl_ms, mode = sys.argv[1:]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that are killed
    for _ in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asyncio.run(work(dsn, schema, int(ttl_ms), fenced=mode == "fenced"))


if __name__ == "__main__":
    main()
