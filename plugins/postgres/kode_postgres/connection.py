"""A pool of connections; each call has a deadline, is repeated if possible, and fails with a typed error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import asyncpg

from kode_core.errors import (
    KodeError,
    OutcomeUnknownError,
    StoreBusyError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from kode_postgres.errors import is_lost, is_read_only, to_kode_error
from kode_postgres.options import PostgresOptions
from kode_postgres.session import Doubt, ServerClock, Session
from kode_postgres.trouble import AgainError, LostError, Trouble, locked_s

__all__ = ["Connections", "ServerFacts"]

T = TypeVar("T")

_CANCEL_S: Final = 2.0
"""How long the server may take to confirm that it ended a statement."""
_RENEWED_AGAIN_S: Final = 5.0
"""How soon the connections may be replaced again because the server takes no writes."""
_MISTAKES: Final = (AttributeError, NameError, TypeError, LookupError, AssertionError)
"""Errors that no driver raises: mistakes of this package, which must not look like trouble with the server."""

Call: TypeAlias = Callable[[Session], Awaitable[T]]
Connect: TypeAlias = Callable[[], Awaitable[Any]]


class ServerFacts(NamedTuple):
    """Facts about the server's end of the connection.

    Attributes:
        clock: the server's clock.
        pooled: True if each statement needs a transaction, because a pooler is in between or sessions have another
            isolation level.
        settings: the settings of the sessions that the store opens.
        has_texts: True if the database has the index of texts.
    """

    clock: ServerClock
    pooled: bool
    settings: Mapping[str, str]
    has_texts: bool = False


class Connections:
    """A pool and the rules of its use.

    A call whose connection breaks is repeated on another one: reads can be repeated, and writes recognise themselves. A
    write that is still in doubt at the end raises OutcomeUnknownError. An abandoned statement is also cancelled on the
    server. Calls get connections in the order in which they asked.

    Attributes:
        clock: the server's clock.
        pooled: True if each statement gets an explicit transaction.
        has_texts: True if the database had the index of texts when the store was opened.
        connect: opens a connection outside the pool; None if it would be of no use.
        answer_s: how long to wait for an answer.
        connect_s: how long to wait for a server that does not answer or is starting.
        locked_s: how long to wait for an agent that another session keeps locked.
        busy: the number of connections in use.
        waiting: the number of calls that wait for a connection.
        retries: the number of repeated attempts.
    """

    def __init__(
        self, pool: Any, options: PostgresOptions, found: ServerFacts, *, connect: Connect | None = None
    ) -> None:
        self.pool = pool
        self.connect = connect
        self.clock = found.clock
        self.pooled = found.pooled
        self.has_texts = found.has_texts
        self.address = options.address
        self.max: int = pool.get_max_size()
        self.answer_s = options.command_timeout_millis / 1000
        self.locked_s = locked_s(options.lock_wait_millis, self.answer_s)
        self.busy = self.waiting = self.retries = 0
        self._owned = options.pool is None
        self.connect_s = options.connection_timeout_millis / 1000
        self._wait_s = max(self.answer_s, self.connect_s)
        self._slots = asyncio.Semaphore(self.max)
        self._giving_back: set[asyncio.Task[None]] = set()
        self._renewed_at = -_RENEWED_AGAIN_S
        self._answered_at = time.monotonic()
        self._long = 0

    async def read(self, call: Call[T], seconds: float | None = None) -> T:
        """Make a call that changes nothing; its answer may take *seconds*."""
        trouble = Trouble(self.locked_s, self.connect_s, writes=False)
        return await self._run(call, trouble, Doubt(), seconds)

    async def write(
        self, call: Call[T], seconds: float | None = None, *, doubt: Doubt | None = None, waits: bool = True
    ) -> T:
        """Make a call that may be repeated even if it was applied; its answer may take *seconds*.

        *doubt* holds the unknown outcomes of earlier attempts at the same call, and of this one. Without *waits* the
        call ends when a row is locked, or when no answer came in time; with it, both are tried again for a while.
        """
        trouble = Trouble(self.locked_s, self.connect_s, writes=True, waits=waits)
        return await self._run(call, trouble, doubt or Doubt(), seconds)

    async def probe(self, call: Call[T]) -> T:
        """Make a call once."""
        try:
            return await self._attempt(call, Doubt(), min(self.answer_s, 4.0))
        except Exception as exc:  # noqa: BLE001 - turned into an error of this library
            error = self._error(exc)
            raise error from (exc if error is not exc else None)

    async def _run(self, call: Call[T], trouble: Trouble, doubt: Doubt, seconds: float | None) -> T:
        while True:
            begun = time.monotonic()
            try:
                return await self._attempt(call, doubt, seconds or self.answer_s)
            except _MISTAKES:
                raise
            except Exception as exc:
                pause = 0.0 if is_read_only(exc) and await self._renew(begun) else trouble.record(exc)
                if pause is None:
                    error = self._error(exc)
                    if trouble.writes and doubt.since is not None and not isinstance(error, OutcomeUnknownError):
                        raise OutcomeUnknownError(f"{error}; it may have been written, or not: read first") from exc
                    raise error from (exc if error is not exc else None)
            self.retries += 1
            await asyncio.sleep(pause)

    async def _renew(self, begun: float) -> bool:
        """Replace each connection when it is next requested; False if the connection that was just used was new.

        Used when a server takes no writes any more: another server may be at its address now, which old connections do
        not lead to.
        """
        if begun > self._renewed_at:
            now = time.monotonic()
            if now - self._renewed_at < _RENEWED_AGAIN_S:
                return False
            self._renewed_at = now
            await self.pool.expire_connections()
        return True

    async def _attempt(self, call: Call[T], doubt: Doubt, seconds: float) -> T:
        con = await self._acquire()
        session = Session(con, self.clock, doubt, pooled=self.pooled, seconds=seconds)
        try:
            async with asyncio.timeout(seconds):
                result = await self._called(call, session, seconds)
        except BaseException as exc:
            # End what still runs on the server in the background: the connection may not answer, and the caller left.
            broken = not isinstance(exc, (asyncpg.PostgresError, KodeError)) or is_lost(exc)
            self._in_background(self._ended(con) if broken else self._release(con))
            if isinstance(exc, Exception) and is_lost(exc):
                if session.may_have_written:
                    doubt.note(session.sent)
                raise LostError from exc
            if not broken:
                self._answered_at = time.monotonic()
            raise
        self._answered_at = time.monotonic()
        await self._release(con)
        return result

    async def _called(self, call: Call[T], session: Session, seconds: float) -> T:
        """Call; if it may take longer than others, it runs in a transaction, which tells the server so."""
        if seconds <= self.answer_s:
            return await call(session)
        self._long += 1
        try:
            async with session.transaction():
                return await call(session)
        finally:
            self._long -= 1

    # --- connections from the pool

    async def _acquire(self) -> Any:
        self.waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await self._slots.acquire()
        except TimeoutError as exc:
            raise self._too_few() from exc
        finally:
            self.waiting -= 1
        self.busy += 1
        # A connection that has to be opened first is opened even if its caller is cancelled: the next caller gets it.
        asked = asyncio.ensure_future(self.pool.acquire(timeout=self._wait_s))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            self._in_background(self._unwanted(asked))
            raise
        except BaseException as exc:
            self._free_slot()
            if isinstance(exc, TimeoutError) and self.pool.get_size() == self.max and not self.pool.get_idle_size():
                raise self._too_few() from exc
            raise

    def _too_few(self) -> KodeError:
        held = f"{self.address}: all {self.max} connections were in use for {self._wait_s:g} s"
        if not self._long and time.monotonic() - self._answered_at >= self._wait_s:
            return StoreUnavailableError(f"{held}, and the server answered on none; check the server and the network")
        return StoreBusyError(f"{held}; raise max")

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._giving_back.add(task)
        task.add_done_callback(self._giving_back.discard)

    async def _unwanted(self, asked: asyncio.Future[Any]) -> None:
        """Give back a connection whose caller is gone."""
        try:
            con = await asked
        except Exception:  # noqa: BLE001 - there is no connection to give back
            self._free_slot()
        else:
            await self._release(con)

    async def _ended(self, con: Any) -> None:
        """End the statement of a caller that is gone; if the server does not answer, drop the connection.

        The driver asks the server to cancel a statement whose caller stopped waiting, and blocks the connection until
        the server has confirmed it.
        """
        try:
            async with asyncio.timeout(_CANCEL_S):
                await con.execute("")  # waits for the confirmation
                if con.is_in_transaction():
                    await con.execute("ROLLBACK")
        except BaseException:  # noqa: BLE001 - whatever it is, the connection is of no use
            with suppress(asyncpg.InterfaceError):  # the pool has already dropped it
                con.terminate()
        await self._release(con)

    async def _release(self, con: Any) -> None:
        try:
            with suppress(Exception):  # it was terminated
                await self.pool.release(con, timeout=_CANCEL_S)
        finally:
            self._free_slot()

    def _free_slot(self) -> None:
        self.busy -= 1
        self._slots.release()

    def _error(self, exc: BaseException) -> KodeError:
        if isinstance(exc, AgainError):
            return StoreBusyError(f"{self.address}: {exc}")
        if not isinstance(exc, LostError) or exc.__cause__ is None:
            return to_kode_error(exc, self.address)
        if isinstance(exc.__cause__, TimeoutError):
            limit = f"command_timeout_millis ({self.answer_s * 1000:g})"
            return StoreTimeoutError(f"{self.address}: no answer within {limit}; check the network and the load")
        return to_kode_error(exc.__cause__, self.address)

    async def close(self) -> None:
        """Close the pool, unless it is the caller's."""
        while self._giving_back:
            await asyncio.wait(self._giving_back)
        if not self._owned:
            return
        try:
            async with asyncio.timeout(self.answer_s):
                await self.pool.close()
        except TimeoutError:
            self.pool.terminate()
