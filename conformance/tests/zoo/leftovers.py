"""Stores that hold too much, leave resources behind, or close the resources of others: LOCK-6, OPS-5."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, cast

from kode_conformance import Handle
from kode_conformance.context import Context
from kode_conformance.harness import BorrowedClient
from kode_sqlite.engine import SqliteEngine
from kode_sqlite.options import SqliteOptions

from conformance.tests.zoo.base import OnJson, OnMemory, OnSqlite, mutant
from conformance.tests.zoo.witnesses import talk
from kode_core import Store
from kode_core.batch import Fence
from kode_core.errors import KodeError
from kode_core.layers import Layer
from kode_core.store import EngineStore


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def _grown(ctx: Context, use: Callable[[Any], Awaitable[object]], *, is_closed: bool = True) -> bool:
    """True if there are more descriptors after some uses."""
    await ctx.store.save_messages("a", talk("1"))
    before = _descriptors()
    for _ in range(30):
        store = await ctx.another() if is_closed else ctx.store
        await use(store)
        if is_closed:
            await ctx.close(store)
    return _descriptors() > before + 20


async def _lock_some(store: Any) -> None:
    await store.acquire_agent_lock(os.urandom(4).hex())


@mutant(
    "LOCK-6",
    killed_by="a_thousand_locks_cost_nothing",
    on=OnJson,
    source="flock on a file of its own, which is held open as long as the lock",
    witness=lambda ctx: _grown(ctx, _lock_some, is_closed=False),
)
class LocksHoldFiles(Layer):
    """Holds a file open for each lock."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._files: dict[str, int] = {}

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        token = await super().acquire_lease(agent_id, owner, ttl_ms)
        if token is not None and agent_id not in self._files:
            self._files[agent_id] = os.open(os.devnull, os.O_RDONLY)
        return token

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await super().release_lease(agent_id, fence)
        self._let_go(agent_id)

    def _let_go(self, agent_id: str) -> None:
        file = self._files.pop(agent_id, None)
        if file is not None:
            os.close(file)

    async def close(self) -> None:
        for agent_id in list(self._files):
            self._let_go(agent_id)
        await super().close()


@mutant(
    "OPS-5",
    killed_by="nothing_is_left_of_streams_and_locks",
    on=OnJson,
    source="flock on a file of its own, which release closes and nobody else",
    witness=lambda ctx: _grown(ctx, _lock_some),
)
class ClosesNoLocks(LocksHoldFiles):
    """Holds a file open for each lock that was not given back, also when it is closed."""

    async def close(self) -> None:
        await self.inner.close()


async def _refused(store: Any) -> None:
    with suppress(KodeError):
        await store.save_messages("a", [object()])


@mutant(
    "OPS-5",
    killed_by="nothing_is_left_of_a_closed_store",
    source="a connection that is taken before the arguments are looked at, and given back behind the call",
    witness=lambda ctx: _grown(ctx, _refused),
)
class RefusalsKeepFiles(EngineStore):
    """Keeps a file open for each call that was refused."""

    async def save_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        file = os.open(os.devnull, os.O_RDONLY)
        await super().save_messages(agent_id, messages, fence=fence)
        os.close(file)


async def _fail_to_open(ctx: Context) -> bool:
    await ctx.close(ctx.store)
    await ctx.harness.raise_version(ctx.handle)
    before = _descriptors()
    for _ in range(30):
        with suppress(KodeError):
            await ctx.harness.open(ctx.handle)
    return _descriptors() > before + 20


@mutant(
    "OPS-5",
    killed_by="failed_opens_leave_nothing",
    on=OnSqlite,
    source="a connection that is closed by close(), which nobody calls when the migration fails",
    witness=_fail_to_open,
)
class FailedOpensKeepFiles(SqliteEngine):
    """Keeps a file open when it could not be opened."""

    @classmethod
    async def open(cls, options: SqliteOptions) -> SqliteEngine:
        file = os.open(os.devnull, os.O_RDONLY)
        engine = await super().open(options)
        os.close(file)
        return engine


async def _cancel_an_open(ctx: Context) -> bool:
    before = _descriptors()
    for _ in range(30):
        opening = asyncio.ensure_future(ctx.harness.open(ctx.handle))
        await asyncio.sleep(0.002)
        opening.cancel()
        with suppress(asyncio.CancelledError):
            await cast(Any, await opening).close()
    return _descriptors() > before + 20


@mutant(
    "OPS-9",
    killed_by="cancelled_opens_leave_nothing",
    source="a connection that is made, and an await behind it, without try",
    witness=_cancel_an_open,
)
class CancelledOpensKeepFiles(EngineStore):
    """Keeps a file open when its opening was cancelled."""

    async def open(self) -> Self:
        file = os.open(os.devnull, os.O_RDONLY)
        await asyncio.sleep(0.02)
        os.close(file)
        return await super().open()


class _Client:
    """A client that can be passed to a store over memory."""

    is_open = True

    async def use(self) -> None:
        if not self.is_open:
            raise RuntimeError("the client is closed")

    async def close(self) -> None:
        self.is_open = False


class GivenAClient(OnMemory):
    """Over memory, and a client that is passed in."""

    async def open_borrowed(self, handle: Handle) -> BorrowedClient:
        client = _Client()

        async def opened() -> Any:
            return await self.sound(handle)

        kind = self.part if issubclass(self.part, _OverAClient) else _OverAClient
        store = await kind(opened, client=client).open()
        return BorrowedClient(cast(Store, store), client.use, client.close)


class _OverAClient(EngineStore):
    """Is given a client."""

    def __init__(self, opener: Any, *, client: Any = None, **options: Any) -> None:
        super().__init__(opener, **options)
        self._client = client


async def _used_after_close(ctx: Context) -> object:
    if not ctx.harness.has("open_borrowed"):
        return None
    given = await ctx.harness.open_borrowed(ctx.handle)
    await cast(Any, given.store).close()
    try:
        return await given.use()
    except RuntimeError as exc:
        return str(exc)


@mutant(
    "OPS-5",
    killed_by="what_was_passed_in_stays_open",
    on=GivenAClient,
    source="KODE SDK PostgresStore: close ends the pool, whosever it is",
    witness=_used_after_close,
    raises="the client is closed",
)
class ClosesWhatItWasGiven(_OverAClient):
    """Closes the client that it was given."""

    async def close(self) -> None:
        await super().close()
        if self._client is not None:
            await self._client.close()
