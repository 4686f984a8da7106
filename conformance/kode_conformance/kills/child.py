"""The process that dies at the kill points: ``python -m kode_conformance.kills.child HARNESS`` does one write for each
request.

Requests are JSON lines. Where there is ``fork`` each is done in a copy of this process, which has imported everything
and has one thread only; elsewhere this process does it, and dies of it, and is started again. A write is killed at
the n-th call that is made inside the store's own code, whatever thread makes it.
"""

from __future__ import annotations

import asyncio
import dis
import functools
import importlib
import itertools
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, cast

from kode_conformance.harness import Handle, StoreHarness, judging, load_harness
from kode_conformance.kills.bigwrites import BIG, BIG_IMPORT
from kode_conformance.kills.writes import add_writes, portrait, seed, write_named
from kode_conformance.processes.scripts import tell
from kode_core.protocols import ExtendedStore

__all__ = ["CAN_FORK", "Counter", "main"]

CAN_FORK: Final = hasattr(os, "fork") and sys.platform != "darwin"
"""True if a copy of a process may go on by itself; on macOS its system libraries may not."""

_SECONDS: Final = 30
"""A copy that lives longer hangs."""

_OF_FILES: Final = frozenset({"write_text", "write_bytes", "open", "touch", "copyfileobj", "copyfile", "move"})
_CHANGES: Final = frozenset(
    {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"}
)
_TO_WRITE: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_FILE_MODULES: Final = ("pathlib", "shutil", "tempfile")


def _die() -> None:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


@functools.cache
def _calls_in(code: CodeType) -> frozenset[int]:
    names = ("CALL", "CALL_FUNCTION_EX")
    return frozenset(i.offset for i in dis.get_instructions(code) if i.opname in names)


class Effects:
    """Counts what this process does to files, as far as the interpreter and the system tell.

    Between two calls with the same number nothing has changed that outlives the process, so that it does not matter
    at which of them it dies.
    """

    def __init__(self) -> None:
        self._audited = 0
        self._io: int | None = None
        with suppress(OSError):
            self._io = os.open("/proc/self/io", os.O_RDONLY)
        sys.addaudithook(self._heard)

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            self._io = None  # data sent to a server is not counted
        elif event in _CHANGES or (event == "open" and args[2] & _TO_WRITE):
            self._audited += 1

    def number(self) -> tuple[int, bytes] | None:
        """Grows with every change; None when changes cannot be told."""
        if self._io is None:
            return None
        written = [line for line in os.pread(self._io, 500, 0).splitlines() if line.startswith((b"wchar", b"syscw"))]
        return self._audited, b"".join(written)


class Counter:
    """Counts calls in some code, and kills the process at one of them.

    Args:
        code: files, and folders, which end with a separator.
        point: which call to die at; 0 for none.
        effects: where to see after which calls something has changed.
    """

    def __init__(self, code: Sequence[str], point: int, effects: Effects | None = None) -> None:
        self._code = tuple(code)
        self._point = point
        self._effects = effects
        self._last: object = ()
        self._numbers = itertools.count(1)  # one step, so that two threads never count one call
        self._known: dict[CodeType, bool | None] = {}
        self._armed = False
        self._never_again: object = None
        self.count = 0
        self.changed: list[int] = []
        files = [sys.modules[name].__file__ or "" for name in _FILE_MODULES if name in sys.modules]
        self._of_files = tuple(str(Path(file).parent if "__init__" in file else file) for file in files)

    def install(self) -> None:
        """Begin to look, in all threads that are started from now on."""
        if sys.version_info >= (3, 12):
            tool, event = sys.monitoring.DEBUGGER_ID, sys.monitoring.events.CALL
            self._never_again = sys.monitoring.DISABLE
            sys.monitoring.use_tool_id(tool, "kode-conformance")
            sys.monitoring.register_callback(tool, event, self._monitored)
            sys.monitoring.set_events(tool, event)
        else:
            threading.settrace(self._entered)
            sys.settrace(self._entered)

    def arm(self) -> None:
        """Begin to count."""
        self._armed = True

    def disarm(self) -> None:
        """Stop counting."""
        self._armed = False

    def _counts(self, frame: FrameType | None) -> bool:
        """True if the code is the store's own, or code of the standard library that writes a file for it."""
        while frame is not None:
            known = self._is_own(frame.f_code)
            if known is not None:
                return known
            frame = frame.f_back
        return False

    def _is_own(self, code: CodeType) -> bool | None:
        """None: it is if its caller is."""
        if code not in self._known:
            file = code.co_filename
            writes_files = code.co_name in _OF_FILES and file.startswith(self._of_files)
            self._known[code] = None if writes_files else file.startswith(self._code)
        return self._known[code]

    def _called(self, code: CodeType, line: int | None) -> None:
        self.count = number = next(self._numbers)
        if self._effects is not None:
            seen = self._effects.number()
            if seen is None or seen != self._last:
                self.changed.append(number)
            self._last = seen
        if number == self._point:
            tell(killed=f"{Path(code.co_filename).name}:{line or code.co_firstlineno} {code.co_qualname}")
            _die()

    def _monitored(self, code: CodeType, offset: int, function: object, argument: object) -> object:
        if self._is_own(code) is False:
            return self._never_again
        if self._armed and self._counts(sys._getframe(1)):
            self._called(code, _line_at(code, offset))
        return None

    def _entered(self, frame: FrameType, event: str, argument: object) -> Any:
        if not self._counts(frame):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = self._armed, not self._armed
        return self._traced

    def _traced(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode" and self._armed and frame.f_lasti in _calls_in(frame.f_code):
            self._called(frame.f_code, frame.f_lineno)
        elif event == "line" and self._armed:
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._traced


def _line_at(code: CodeType, offset: int) -> int | None:
    return next((line for start, end, line in code.co_lines() if start <= offset < end), None)


# --- One request ------------------------------------------------------------------------------------------------------


async def _attempt(harness: StoreHarness, request: dict[str, Any]) -> None:
    """Do the write and say so; the counter covers the write, or the opening as well."""
    effects = None if request["point"] else Effects()
    counter = Counter(request["code"], request["point"], effects)
    counter.install()
    if request["from_open"]:
        counter.arm()
    store = cast(ExtendedStore, await harness.open(request["handle"]))
    write = request["write"] and write_named(request["write"])
    if request["seed"]:
        await write.prepare(store, request["agent"])
    counter.arm()
    if write is None:
        await portrait(store, request["agent"])
        result = None
    else:
        result = await write.act(store, request["agent"])
    counter.disarm()
    tell(acknowledged=result if isinstance(result, list) else None, calls=counter.count, changed=counter.changed)
    _die()


def _do(harness: StoreHarness, request: dict[str, Any]) -> None:
    """Do the request, and die."""
    with suppress(AttributeError):
        signal.alarm(_SECONDS)
    try:
        asyncio.run(_attempt(harness, request))
    except BaseException:  # noqa: BLE001 - whatever it is, the parent tells it
        tell(error=traceback.format_exc()[-2000:])
    os._exit(1)


async def _rehearse(harness: StoreHarness, handle: Handle, agent_id: str) -> Sequence[str]:
    """Use the store once, so that all is imported and cached in what will be copied; returns its code."""
    store = cast(ExtendedStore, await harness.open(handle))
    await seed(store, agent_id)
    await portrait(store, agent_id)
    code = harness.code_of(store)
    close = getattr(store, "close", None)
    if close is not None:
        await close()
    return code


def _prepare(harness: StoreHarness, request: dict[str, Any]) -> None:
    """Make this process ready to be copied, and say whether it may: a copy has none of its other threads."""
    for name in request["modules"]:
        with suppress(Exception):
            importlib.import_module(name)
    if not request["modules"]:
        try:
            code = asyncio.run(_rehearse(harness, request["handle"], request["agent"]))
            tell(code=list(code), modules=sorted(sys.modules), is_alone=threading.active_count() == 1)
        except Exception:  # noqa: BLE001 - whatever it is, the parent tells it
            tell(error=traceback.format_exc()[-2000:])
    tell(ended=0)


def _requests() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def main() -> None:
    """Answer requests until there are no more."""
    add_writes((*BIG, BIG_IMPORT))
    harness = load_harness(sys.argv[1])
    judging(harness)
    for request in _requests():
        if "modules" in request:
            _prepare(harness, request)
            continue
        if not request["fork"]:
            _do(harness, request)
        pid = os.fork()
        if pid == 0:
            _do(harness, request)
        _, status = os.waitpid(pid, 0)
        tell(ended=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
