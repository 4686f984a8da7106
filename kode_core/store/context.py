"""What all parts of a store share: the engine, the clock, the deadline, and the book of what was done."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
import warnings
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from kode_core.batch import Applied, Batch, Fence, Outcome, Refused
from kode_core.engine import Engine
from kode_core.errors import (
    KodeError,
    LockLostError,
    OutcomeUnknownError,
    StorageError,
    StoreClosedError,
    StoreTimeoutError,
)
from kode_core.store.book import Book, Op

__all__ = ["Context", "Opener"]

P = ParamSpec("P")
T = TypeVar("T")

Opener = Callable[[], Awaitable[Engine]]

_IN_DOUBT = "_kode_in_doubt"


class Context:
    """One store's engine and book; every public call runs through :meth:`run`."""

    def __init__(self, opener: Opener, *, timeout_ms: int, clock: Callable[[], int], book: Book) -> None:
        self.timeout = timeout_ms / 1000
        self.now = clock
        self.book = book
        self._opener = opener
        self._engine: Engine | None = None
        self._opening: asyncio.Task[Engine] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None
        self.closing = asyncio.Event()
        self._active = 0
        self._idle = asyncio.Event()
        self._op_ids = itertools.count()
        self._op_prefix = secrets.token_hex(6)

    def __repr__(self) -> str:
        if self._closing is not None:
            return "closed"
        return "not open yet" if self._engine is None else repr(self._engine)

    # --- opening and closing

    @property
    def engine(self) -> Engine:
        """The engine, which :meth:`open` has opened."""
        assert self._engine is not None
        return self._engine

    async def open(self) -> Engine:
        """Open the engine unless it is open; concurrent calls open it once."""
        if self._engine is None:
            self.check_open()
            if self._opening is None:
                self._loop = asyncio.get_running_loop()
                self._opening = self._loop.create_task(self._open())
            try:
                self._engine = await asyncio.shield(self._opening)
            except Exception:
                self._opening = None
                raise
        return self._engine

    async def _open(self) -> Engine:
        return await self._opener()

    def check_open(self) -> None:
        """Raise unless the store can be used, here and now."""
        if self._closing is not None:
            raise StoreClosedError("this store is closed; open a new one")
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise KodeError("this store was opened in another event loop; open one store in each loop")

    async def close(self, before: Callable[[], Awaitable[None]]) -> None:
        """Wait for what was accepted, call *before*, close the engine. A second call waits for the first."""
        if self._closing is None:
            self.check_open()
            self._closing = asyncio.get_running_loop().create_task(self._close(before))
            self.closing.set()
        await asyncio.shield(self._closing)

    async def _close(self, before: Callable[[], Awaitable[None]]) -> None:
        """A task of its own: a caller that is cancelled does not stop half-way."""
        while self._active:
            self._idle.clear()
            await self._idle.wait()
        await before()
        if self._opening is not None:
            with suppress(Exception):
                self._engine = await self._opening
        if self._engine is not None:
            await self._engine.close()

    @property
    def is_closed(self) -> bool:
        return self._closing is not None

    def warn_if_open(self) -> None:
        """Called when the store is forgotten: an open one is a leak."""
        if self._engine is not None and self._closing is None:
            warnings.warn(
                f"a {self._engine.name} store was not closed; use 'async with' or 'await store.close()'",
                ResourceWarning,
                stacklevel=2,
            )

    # --- running calls

    async def run(self, op: Op, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what a public method does: open the store, keep the deadline, write the book."""
        self.check_open()
        start = time.perf_counter()
        self._active += 1
        error: BaseException | None = None
        try:
            async with asyncio.timeout(self.timeout + op.extra_seconds):
                if self._engine is None:
                    await self.open()
                return await call(*args, **kwargs)
        except TimeoutError as exc:
            error = exc if isinstance(exc, KodeError) else self._overdue(op, exc)
            raise error from exc.__cause__
        except BaseException as exc:
            error = exc
            raise
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()
            self.book.enter(op, time.perf_counter() - start, error)

    def _overdue(self, op: Op, exc: TimeoutError) -> StorageError:
        after = f"{op.name} was not done after {self.timeout + op.extra_seconds:g} s"
        if getattr(exc.__cause__, _IN_DOUBT, False):
            return OutcomeUnknownError(
                f"{after}, in the middle of a write: it is there whole, or not at all; read first"
            )
        return StoreTimeoutError(f"{after}; nothing was written")

    # --- writing

    def batch(self, agent_id: str, *, fence: Fence | None = None, **contents: Any) -> Batch:
        """A batch of this moment."""
        op_id = f"{self._op_prefix}-{next(self._op_ids)}"
        return Batch(agent_id=agent_id, op_id=op_id, now=self.now(), fence=fence, **contents)

    async def commit_all(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        """The engine's commit."""
        return await self.in_doubt(self.engine.commit(batches))

    async def in_doubt(self, write: Awaitable[T]) -> T:
        """Await a write; a cancellation in the middle leaves its outcome in doubt."""
        try:
            return await write
        except asyncio.CancelledError as exc:
            setattr(exc, _IN_DOUBT, True)
            raise

    async def commit(self, batch: Batch) -> Applied | Refused:
        """Commit one batch; a lost lease and a storage error are raised, other refusals returned."""
        (outcome,) = await self.commit_all([batch])
        return settled(batch, outcome)


def settled(batch: Batch, outcome: Outcome) -> Applied | Refused:
    """The outcome, unless it is one that the caller of the store must hear of."""
    if isinstance(outcome, KodeError):
        raise outcome
    if isinstance(outcome, Refused) and outcome.by == "fence":
        raise LockLostError(batch.agent_id, "the lease of this write has ended; nothing was written")
    return outcome
