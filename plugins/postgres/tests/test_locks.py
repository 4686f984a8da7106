"""Leases, over processes that are killed and stopped in the middle of what they do under them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest
from kode_conformance.values import samples
from kode_postgres.leases import Leases
from kode_postgres.testing.servers import LocalServer, Server

from kode_core import create_extended_store
from kode_core.errors import LockUnavailableError
from plugins.postgres.tests.lock_workers import AGENT

WORKERS = Path(__file__).with_name("lock_workers.py")
TTL_MS = 300


class Workers:
    """Four workers, and what they told."""

    def __init__(self, server: Server, schema: str, *, fenced: bool) -> None:
        self._command = [str(WORKERS), server.dsn, schema, str(TTL_MS), "fenced" if fenced else "unfenced"]
        self.told: list[dict[str, Any]] = []
        self.kills = self.stops = 0

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *self._command, stdin=-1, stdout=-1, start_new_session=True
        )
        self._listener = asyncio.ensure_future(self._listen())
        for _ in range(4):
            self._make()
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        await self._listener

    def _make(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.told.append(json.loads(line))

    def all(self, fact: str) -> list[Any]:
        """What was told of one kind."""
        return [line[fact] for line in self.told if fact in line]

    def holder(self) -> int | None:
        """The process that has the lock, as far as is known."""
        last = next((line for line in reversed(self.told) if "acquired" in line or "released" in line), None)
        return last["pid"] if last is not None and "acquired" in last else None

    def disturb(self, pid: int, rng: random.Random) -> None:
        """Kill the process, and make another; or stop it for longer than its lease."""
        with suppress(ProcessLookupError):
            if rng.random() < 0.4:
                self.kills += 1
                os.kill(pid, signal.SIGKILL)
                self._make()
            else:
                self.stops += 1
                os.kill(pid, signal.SIGSTOP)
                later = TTL_MS / 1000 * rng.uniform(1.3, 2.5)
                asyncio.get_running_loop().call_later(later, self._go_on, pid)

    @staticmethod
    def _go_on(pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def chaos(
    server: Server, schema: str, *, fenced: bool, enough: Callable[[Workers], bool]
) -> tuple[Workers, list[tuple[int, int]], int]:
    """Disturb holders until *enough*; what the workers told, the log as (token, value), and the counter."""
    rng = random.Random(5)
    async with await create_extended_store(type="postgres", dsn=server.dsn, schema=schema) as store:
        await store.save_info(AGENT, samples.info(AGENT, metadata={"n": 0}))
        async with Workers(server, schema, fenced=fenced) as workers, asyncio.timeout(90):
            while not enough(workers):
                await asyncio.sleep(rng.uniform(0.05, 0.3))
                pid = workers.holder()
                if pid is not None:
                    workers.disturb(pid, rng)
        log = [message.text.split() for message in await store.load_messages(AGENT)]
        info = await store.load_info(AGENT)
        assert info is not None
        return workers, [(int(token), int(value)) for token, value in log], info.metadata["n"]


async def test_no_update_is_lost_to_processes_that_are_killed_and_stopped(server: Server, schema: str) -> None:
    """A holder that was stopped for longer than its lease goes on to write: it is refused (F15, F16)."""
    begin = time.monotonic()

    def enough(workers: Workers) -> bool:
        seen = len(workers.all("refused")) >= 3 and workers.kills >= 3
        return seen and time.monotonic() > begin + 4

    workers, log, counter = await chaos(server, schema, fenced=True, enough=enough)

    values, tokens = [value for _, value in log], [token for token, _ in log]
    assert values == list(range(1, len(values) + 1)), "an update was lost"
    assert counter == len(values)
    assert set(workers.all("acknowledged")) <= set(values)
    assert tokens == sorted(tokens)
    assert max(Counter(workers.all("acquired")).values()) == 1
    assert workers.all("error") == []


async def test_without_fences_updates_are_lost(server: Server, schema: str) -> None:
    """The control: the same processes, stopped and killed alike, that do not give their lease to their writes."""

    def enough(workers: Workers) -> bool:
        return max(Counter(workers.all("acknowledged")).values(), default=0) > 1

    _, log, counter = await chaos(server, schema, fenced=False, enough=enough)
    assert counter < len(log)
    assert len({value for _, value in log}) < len(log)


async def test_a_thousand_leases_cost_four_connections(own_server: LocalServer) -> None:
    """They are held by nobody else, fence writes, and are free again when they are given back (LOCK-6)."""
    options = {"type": "postgres", "dsn": own_server.dsn, "max": 4}
    async with await create_extended_store(**options) as store, await create_extended_store(**options) as other:
        leases = await asyncio.gather(*(store.acquire_agent_lock(f"a{n}", ttl_ms=600_000) for n in range(1000)))
        assert len({lease.agent_id for lease in leases}) == 1000
        for lease in leases[::100]:
            with pytest.raises(LockUnavailableError):
                await other.acquire_agent_lock(lease.agent_id)
            await store.append_messages(lease.agent_id, [samples.message()], fence=lease)
        await asyncio.gather(*(lease.renew() for lease in leases))
        rows = await own_server.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'kode'")
        assert len(rows) <= 2 * 4
        assert await own_server.execute("SELECT * FROM pg_locks WHERE locktype = 'advisory'") == []
        await asyncio.gather(*(lease.release() for lease in leases))
        for lease in leases[::100]:
            again = await other.acquire_agent_lock(lease.agent_id)
            assert again.token > lease.token


async def test_who_waits_for_a_lock_uses_no_transactions(own_server: LocalServer, monkeypatch: Any) -> None:
    """Twenty waiters look again and again at a lease that is held, and the server counts no transaction for that."""
    looks = 0
    ask = Leases.acquire

    async def counted(*args: Any) -> int | None:
        nonlocal looks
        looks += 1
        return await ask(*args)

    async def transactions() -> int:
        return int((await own_server.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text"))[0][0])

    monkeypatch.setattr(Leases, "acquire", counted)
    async with await create_extended_store(type="postgres", dsn=own_server.dsn) as store:
        lease = await store.acquire_agent_lock("a", ttl_ms=60_000)
        before, looks = await transactions(), 0
        waiting = [store.acquire_agent_lock("a", wait_ms=2000) for _ in range(20)]
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(end) for end in ends} == {LockUnavailableError}
        assert looks >= 60
        assert await transactions() - before < 5
        await lease.release()
        assert (await store.acquire_agent_lock("a")).token == lease.token + 1
