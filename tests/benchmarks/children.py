"""Other processes of the benchmark: each gets a job, says when it is ready, and answers what it is told."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

__all__ = ["Child", "answer", "heard", "job"]

_ANSWER_S = 120


class Child:
    """A process that runs a module of the benchmark."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def of(cls, module: str, task: Mapping[str, Any]) -> AsyncIterator[Child]:
        """A child that has said that it is ready. Its job goes by standard input: there are passwords in it."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, stdin=pipe, stdout=pipe, limit=2**24
        )
        child = cls(process)
        try:
            await child.ask(task)
            yield child
            assert process.stdin is not None
            process.stdin.close()
            await asyncio.wait_for(process.wait(), _ANSWER_S)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def ask(self, what: object) -> Any:
        """Tell the child something and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), _ANSWER_S)
        if not line:
            raise RuntimeError("a process of the benchmark ended before its time; see above")
        return json.loads(line)


def job() -> Any:
    """In the child: what it has been told to do."""
    return json.loads(sys.stdin.readline())


def answer(what: object) -> None:
    """In the child: to what it was told last."""
    print(json.dumps(what), flush=True)


async def heard() -> AsyncIterator[Any]:
    """In the child: what it is told, until there is no more."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield json.loads(line)
