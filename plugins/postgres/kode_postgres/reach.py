"""Connections to the first of several hosts that answers, and is what is wanted."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import asyncpg

from kode_postgres.target import Host, Target

__all__ = ["Reach"]

_NEXT: Final = (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched)
"""What leads to the next host, as with libpq; any other answer is the server's last word."""


class Reach:
    """Opens connections.

    The hosts are tried one after the other, each for its share of the time that is left, so that one that hangs is
    passed over: the driver has one limit for all of them, which the first would use up.

    Attributes:
        settings: those of the sessions.
    """

    def __init__(self, target: Target) -> None:
        self.settings = target.settings
        self._target = target
        self._seconds = target.options.connection_timeout_millis / 1000

    async def connect(self, **arguments: Any) -> Any:
        """A connection; *arguments* are the driver's that do not say where or as who."""
        deadline = asyncio.get_running_loop().time() + self._seconds
        wanted, hosts = self._target.wanted, self._target.hosts
        if wanted != "prefer-standby":
            return await self._first(hosts, wanted, deadline, 0, arguments)
        others: list[Host] = []
        try:
            return await self._first(hosts, "standby", deadline, 1, arguments, others)
        except _NEXT:
            if not others:
                raise
        return await self._first(others, "any", deadline, 0, arguments)

    async def _first(
        self,
        hosts: tuple[Host, ...] | list[Host],
        wanted: str,
        deadline: float,
        later: int,
        arguments: dict[str, Any],
        others: list[Host] | None = None,
    ) -> Any:
        """The first of the hosts that is *wanted*; those that answer and are not become *others*.

        The time for *later* hosts stays.
        """
        failed: BaseException | None = None
        for left, host in zip(range(len(hosts) + later, 0, -1), hosts, strict=False):
            share = (deadline - asyncio.get_running_loop().time()) / left
            try:
                return await asyncpg.connect(
                    **{"server_settings": dict(self.settings), **arguments, **self._target.arguments(host)},
                    target_session_attrs=wanted,
                    timeout=max(share, 0.001),
                )
            except asyncpg.TargetServerAttributeNotMatched as exc:
                failed = failed or exc
                if others is not None:
                    others.append(host)
            except (OSError, asyncpg.CannotConnectNowError) as exc:  # which say more than that a host is another one
                failed = exc
        assert failed is not None
        raise failed
