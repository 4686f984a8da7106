"""Threads for blocking calls that do not keep a process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from kode_core.errors import StoreUnavailableError

__all__ = ["Threads"]

T = TypeVar("T")

_MOST: Final = 8


class Threads:
    """A few daemon threads, started when they are needed.

    A process does not wait for them when it ends (OPS-11): their unfinished writes are then complete or absent, as
    after a kill.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._idle = 0
        self._count = 0
        self._closed = False

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Run the call in a thread. The call runs to its end even if its caller is cancelled."""
        return await self._start(call, *args)

    async def run_whole(self, call: Callable[..., T], *args: Any, undo: Callable[[T], object] | None = None) -> T:
        """Run the call in a thread; a cancelled caller first waits for the end of the call, and undoes it."""
        done = self._start(call, *args)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.wait([done])
            if done.exception() is None and undo is not None:
                await self.run_whole(undo, done.result())
            raise

    def _start(self, call: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            try:
                result = call(*args)
            except BaseException as exc:  # noqa: BLE001 - raised where the call was made
                _tell(loop, done, None, exc)
            else:
                _tell(loop, done, result, None)

        self._submit(job)
        return done

    def _submit(self, job: Callable[[], None]) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("the threads of this engine have ended")
            self._jobs.append(job)
            if self._idle >= len(self._jobs) or self._count == _MOST:
                self._lock.notify()
                return
            self._count += 1
        try:
            threading.Thread(target=self._work, name=f"{self._name}-{self._count}", daemon=True).start()
        except RuntimeError as exc:  # the system has no room for one more; the existing threads take the call
            with self._lock:
                self._count -= 1
                if self._count or job not in self._jobs:
                    return
                self._jobs.remove(job)
            raise StoreUnavailableError("the system starts no more threads; raise its limit of them") from exc

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
                while not self._jobs and not self._closed:
                    self._lock.wait()
                self._idle -= 1
                if not self._jobs:
                    return
                job = self._jobs.popleft()
            job()

    def close(self) -> None:
        """Let the threads end once all calls are done."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()


def _tell(
    loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any], result: object, error: BaseException | None
) -> None:
    def settle() -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    try:
        loop.call_soon_threadsafe(settle)
    except RuntimeError:
        return  # the loop is closed: no caller is waiting any more
