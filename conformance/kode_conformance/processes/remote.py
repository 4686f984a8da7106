"""A store in another process, called as if it were in this one."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final

import kode_core.errors
from kode_conformance.context import Violation
from kode_conformance.harness import Handle, StoreHarness
from kode_conformance.instruments.patience import within

__all__ = ["RemoteStore", "another_process", "serve"]

_STREAMS: Final = (
    *("read_events", "read_messages", "iter_sessions", "iter_messages", "iter_tool_calls", "iter_documents"),
    "iter_consistency",
)
_LINE: Final = 2**27
_SECONDS: Final = 60.0


class RemoteStore:
    """The store that a process opened; its streams come whole."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in _STREAMS:
            return lambda *args, **kwargs: self._stream(name, args, kwargs)
        return lambda *args, **kwargs: self._call(name, args, kwargs)

    async def _stream(self, name: str, args: Any, kwargs: Any) -> AsyncIterator[Any]:
        for record in await self._call(name, args, kwargs):
            yield record

    async def _call(self, name: str, args: Any, kwargs: Any) -> Any:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        assert self._child.stderr is not None
        self._child.stdin.write(base64.b64encode(pickle.dumps((name, args, kwargs))) + b"\n")
        try:
            async with within(_SECONDS):
                raw = await self._child.stdout.readline()
        except TimeoutError:
            raise Violation(f"{name} in another process did not end within {_SECONDS:g} s") from None
        if not raw:
            err = await self._child.stderr.read()
            raise Violation(f"a process that used the store ended too soon: {err.decode()[-2000:]}")
        answer = pickle.loads(base64.b64decode(json.loads(raw)["answer"]))  # noqa: S301 - our own process wrote it
        if answer[0] == "gives":
            return answer[1]
        raise _error(*answer[1:])

    async def close(self) -> None:
        """Close the store, and end the process."""
        if self._child.returncode is None:
            with suppress(ConnectionError, Violation):
                await self._call("close", (), {})
            with suppress(ProcessLookupError):
                self._child.kill()
        await self._child.communicate()


def _error(name: str, text: str, fields: dict[str, Any]) -> Exception:
    kind = getattr(kode_core.errors, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        made: Exception = kind.__new__(kind, text)
        vars(made).update(fields)
        return made
    return RuntimeError(f"{name}: {text}")


async def another_process(harness: StoreHarness, handle: Handle) -> RemoteStore:
    """Start a process that opens the store."""
    call = json.dumps({"harness": harness.spec, "handle": handle, "script": "serve", "args": []})
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kode_conformance.processes.scripts", call),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_LINE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    return RemoteStore(child)


async def serve(store: Any, tell: Callable[..., None]) -> None:
    """Answer the calls of a :class:`RemoteStore` until it closes the store."""
    loop, name = asyncio.get_running_loop(), ""
    while name != "close":
        line = await loop.run_in_executor(None, sys.stdin.readline)
        if not line:
            return
        name, args, kwargs = pickle.loads(base64.b64decode(line))  # noqa: S301 - our own process wrote it
        answer: tuple[Any, ...]
        try:
            if name in _STREAMS:
                answer = "gives", [record async for record in getattr(store, name)(*args, **kwargs)]
            else:
                answer = "gives", await getattr(store, name)(*args, **kwargs)
        except Exception as exc:  # noqa: BLE001 - it is raised over there
            known = next((k.__name__ for k in type(exc).__mro__ if hasattr(kode_core.errors, k.__name__)), None)
            fields = {name: value for name, value in vars(exc).items() if value is None or isinstance(value, str)}
            answer = "raises", known or type(exc).__name__, str(exc), fields
        tell(answer=base64.b64encode(pickle.dumps(answer)).decode())
