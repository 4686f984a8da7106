"""Connections to the first of several hosts that answers and has the wanted role."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import asyncpg

from kode_postgres.target import Host, Target

__all__ = ["Reach"]

_NEXT: Final = (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched)
"""Errors after which the next host is tried, as in libpq; any other answer of a server is final."""


class Reach:
    """Opens connections.

    The hosts are tried one after the other, each for its share of the remaining time, so that a host that hangs is
    skipped: the driver has one limit for all of them, which the first would use up.

    Attributes:
        settings: the settings of the sessions.
    """

    def __init__(self, target: Target) -> None:
        self.settings = target.settings
        self._target = target
        self._seconds = target.options.connection_timeout_millis / 1000

    async def connect(self, **arguments: Any) -> Any:
        """A connection; *arguments* are driver arguments other than the place and the user."""
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
        """The first of the hosts that is *wanted*; hosts that answer but are not go to *others*.

        Time for *later* hosts is kept in reserve.
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
            except (OSError, asyncpg.CannotConnectNowError) as exc:  # they say more than a wrong role
                failed = exc
        assert failed is not None
        raise failed
