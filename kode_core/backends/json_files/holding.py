"""Hold stripes of a folder from the event loop: waiting for another process takes no thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Concatenate, Final, ParamSpec, TypeVar

from kode_core.backends.json_files.files import held_too_long, pauses
from kode_core.backends.json_files.folder import STRIPES, Folder, stripe_of
from kode_core.backends.json_files.stripes import Stripe
from kode_core.backends.json_files.threads import Threads
from kode_core.errors import StorageError, StoreBusyError

__all__ = ["Holder"]

T = TypeVar("T")
P = ParamSpec("P")

_ROUNDS: Final = 20
_PATIENCE_S: Final = 0.1


class Holder:
    """Holds stripes for the calls of one engine. Calls of one stripe run one after the other."""

    def __init__(self, folder: Folder, threads: Threads) -> None:
        self._folder = folder
        self._threads = threads
        self._writers = [asyncio.Lock() for _ in range(STRIPES)]

    async def write(
        self, agent_id: str, call: Callable[Concatenate[Stripe, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run the call in a thread, holding the agent's stripe."""
        index = stripe_of(agent_id)

        def attempt() -> list[T]:
            stripe = self._folder.try_stripe(index)
            if stripe is None:
                return []
            try:
                return [call(stripe, *args, **kwargs)]
            finally:
                self._folder.release_stripe(stripe)

        async with self._writers[index]:
            (result,) = await self._until(index, lambda: self._threads.run(attempt))
            return result

    async def _until(self, index: int, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat *attempt* until it returns a value; the pauses are in the event loop, so that no thread waits."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._folder.wait_ms / 1000
        pause = pauses()
        while not (result := await attempt()):
            if loop.time() > deadline:
                raise held_too_long(self._folder.lock_path(index), self._folder.wait_ms)
            await asyncio.sleep(next(pause))
        return result

    @asynccontextmanager
    async def hold(self, index: int) -> AsyncIterator[Stripe]:
        """Hold a stripe."""

        async def attempt() -> Stripe | None:
            return await self._threads.run_whole(self._folder.try_stripe, index, undo=self._leave)

        async with self._writers[index]:
            stripe = await self._until(index, attempt)
            assert stripe is not None
            try:
                yield stripe
            finally:
                await self._threads.run_whole(self._folder.release_stripe, stripe)

    def _leave(self, stripe: Stripe | None) -> None:
        if stripe is not None:
            self._folder.release_stripe(stripe)

    def hold_for(self, agent_id: str) -> AbstractAsyncContextManager[Stripe]:
        """Hold the stripe of an agent."""
        return self.hold(stripe_of(agent_id))

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[list[Stripe]]:
        """Hold all stripes at once, for a moment without any writes.

        A stripe that another process holds is waited for alone, so that the others are not held meanwhile.
        """
        first = 0
        for _ in range(_ROUNDS):
            async with AsyncExitStack() as held:
                stripes: list[Stripe] = []
                for i in range(STRIPES):
                    index = (first + i) % STRIPES
                    try:
                        async with asyncio.timeout(_PATIENCE_S if i else None):
                            stripes.append(await held.enter_async_context(self.hold(index)))
                    except TimeoutError as exc:
                        if isinstance(exc, StorageError):
                            raise
                        first = index
                        break
                else:
                    yield stripes
                    return
        raise StoreBusyError(f"{self._folder.base}: other processes kept writing; nothing was copied")
