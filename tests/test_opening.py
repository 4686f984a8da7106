"""The deadline of opening, and what stops it."""

from __future__ import annotations

import asyncio

import pytest

from kode_core.engine import opening_within, unhurried


async def test_a_migration_has_no_deadline() -> None:
    """No deadline of opening ends what is done without hurry, an outer one as little as an inner one."""
    async with opening_within(0.02), opening_within(0.01):
        with unhurried():
            await asyncio.sleep(0.1)


async def test_deadlines_begin_anew() -> None:
    """After a migration the deadlines count again, each from its start."""
    with pytest.raises(TimeoutError):
        async with opening_within(0.02):
            with unhurried():
                await asyncio.sleep(0.1)
            await asyncio.sleep(60)


async def test_a_deadline_that_ended_is_left_alone() -> None:
    """What is unhurried after an opening that is over changes nothing, and needs none."""
    with pytest.raises(TimeoutError):
        async with opening_within(0.01):
            await asyncio.sleep(60)
    with unhurried():
        await asyncio.sleep(0)
