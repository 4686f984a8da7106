"""What is said of a check's process that does not do what it is for."""

from __future__ import annotations

import asyncio
import sys

import pytest
from kode_conformance import Violation
from kode_conformance.context import Process


async def _process(code: str) -> Process:
    pipe = asyncio.subprocess.PIPE
    return Process(await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=pipe, stderr=pipe))


async def test_one_that_hangs() -> None:
    process = await _process("import time; time.sleep(600)")
    with pytest.raises(Violation, match=r"^a process that used the store said nothing for 0.1 s$"):
        await process.line(0.1)
    with pytest.raises(Violation, match=r"^a process that used the store did not end for 0.1 s$"):
        await process.lines(0.1)
    await process.end()


async def test_one_that_fails() -> None:
    process = await _process("raise SystemExit('out of order')")
    with pytest.raises(Violation, match=r"ended too soon: out of order"):
        await process.line()
    await process.end()
    process = await _process("raise SystemExit('out of order')")
    with pytest.raises(Violation, match=r"failed: out of order"):
        await process.lines()
