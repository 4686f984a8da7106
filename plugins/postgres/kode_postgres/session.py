"""One attempt at a call on a connection: its statements, its transaction, and the doubt if the connection breaks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import asyncpg

from kode_core.errors import KodeError

__all__ = ["Doubt", "ServerClock", "Session", "limits"]

_TABLE_LOCK_S: Final = 2.0
GRACE_S: Final = 1.0
"""The time after the deadline of a call in which the server may still begin or continue its statement."""


def limits(seconds: float) -> dict[str, str]:
    """Settings that let the server end statements once their client has stopped waiting.

    ``lock_timeout`` catches a locked table before a statement can set its own limit for locks.
    """
    limit = str(int((seconds + 2 * GRACE_S) * 1000))
    return {
        "statement_timeout": limit,
        "idle_in_transaction_session_timeout": limit,
        "lock_timeout": str(int(min(_TABLE_LOCK_S, seconds / 2) * 1000)),
    }


class ServerClock:
    """The server's clock in milliseconds: its last reading, plus the time that passed here since. It is never ahead."""

    def __init__(self, now: int) -> None:
        self._ahead = 0
        self.heard(now)

    def heard(self, now: int) -> None:
        """Note a reading that the server has just sent."""
        self._ahead = now - time.monotonic_ns() // 1_000_000

    def now(self) -> int:
        """The time of the server's clock, or slightly earlier."""
        return time.monotonic_ns() // 1_000_000 + self._ahead


class Doubt:
    """The unknown outcomes of attempts at one write.

    Attributes:
        since: when the first attempt with an unknown outcome was sent, by the server's clock; None while every outcome
            is known.
    """

    def __init__(self) -> None:
        self.since: int | None = None

    def note(self, sent: int) -> None:
        """Note that the outcome of an attempt, sent at *sent*, is unknown."""
        if self.since is None:
            self.since = sent


class Session:
    """A connection during one attempt at a call.

    Attributes:
        is_retry: True if an earlier attempt may have been applied, or may still be.
        since: when the first such attempt was sent, or else this one, by the server's clock.
        until: the time by which a write must have begun on the server, by the server's clock.
        may_have_written: True if a statement was sent that commits by itself.
    """

    def __init__(self, con: Any, clock: ServerClock, doubt: Doubt, *, pooled: bool, seconds: float) -> None:
        self.con = con
        self.clock = clock
        self.sent = clock.now()
        self.is_retry = doubt.since is not None
        self.since = self.sent if doubt.since is None else doubt.since
        self.until = self.sent + int((seconds + GRACE_S) * 1000)
        self.may_have_written = False
        self._limits = limits(seconds)
        self._pooled = pooled
        self._in_transaction = False

    def begin_now(self) -> None:
        """Note that the rows to write are locked, and that the server has just reported its time.

        Earlier writes of others are older, unless there was an attempt before: theirs may then be later than that
        attempt.
        """
        now = self.clock.now() + 1
        self.until += now - self.sent
        if not self.is_retry:
            self.since = now

    async def fetch(self, statement: str, *args: Any) -> Sequence[Any]:
        """Run one statement, in a transaction of its own unless one was begun.

        Behind a pooler it always runs in an explicit transaction: otherwise its parts may reach two servers.
        """
        if self._pooled and not self._in_transaction:
            async with self.transaction():
                return await self.fetch(statement, *args)
        if not self._in_transaction:
            self.may_have_written = True
        found: Sequence[Any] = await self.con.fetch(statement, *args)
        return found

    async def fetchrow(self, statement: str, *args: Any) -> Any:
        """The first row of a statement's result; None if there is none."""
        found = await self.fetch(statement, *args)
        return found[0] if found else None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """A transaction over several statements, each of which sees everything that was committed before it.

        Only its commit writes: a connection that breaks before it leaves no doubt. A cancellation leaves the
        transaction open; the connection is cleaned up later. It sets its own limits, because a session behind a pooler
        has none.
        """
        local = "".join(f"; SET LOCAL {name} = '{value}'" for name, value in self._limits.items())
        await self.con.execute(f"BEGIN ISOLATION LEVEL READ COMMITTED{local}")
        self._in_transaction = True
        try:
            yield
        except (asyncpg.PostgresError, KodeError):
            with suppress(Exception):  # if the connection is gone, so is the transaction
                await self.con.execute("ROLLBACK")
            raise
        finally:
            self._in_transaction = False
        self.may_have_written = True
        await self.con.execute("COMMIT")
