"""The tools of a check: the store, more instances of it, and strict comparisons."""

from __future__ import annotations

import asyncio
import json
import marshal
import operator
import os
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec

from kode_conformance.harness import BorrowedClient, Costs, Handle, HarnessError, Space, StoreHarness, judging
from kode_conformance.instruments.layering import layers_put
from kode_conformance.instruments.patience import SOON_S, ended, within
from kode_conformance.settings import Settings
from kode_core.plugins import EngineLayer
from kode_core.protocols import ExtendedStore

__all__ = ["Context", "Unverified", "Violation", "difference", "prepared"]

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

_DEFAULT = Settings()


class Violation(AssertionError):
    """The store does not do what a clause says."""


class Unverified(Exception):
    """A check lacks something that it needs to judge: a hook of the harness, or a counter of the system."""


class Context:
    """One check's view of one store, provisioned for it alone.

    ``store`` is typed as an ExtendedStore; a check that needs more than ``Store`` says so when it is registered.

    Attributes:
        effort: how often to repeat random steps.
        rng: where everything random comes from, so that a run can be repeated.
    """

    def __init__(
        self, harness: StoreHarness, handle: Handle, folder: Path, settings: Settings = _DEFAULT, check_id: str = ""
    ) -> None:
        self.harness = harness
        self.handle = handle
        self.folder = folder
        self.settings = settings
        self.effort = settings.effort
        self.rng = settings.rng(check_id)
        self._open: list[ExtendedStore] = []
        self._processes: list[Process] = []

    async def start(self) -> None:
        """Open the check's store."""
        self.store = await self.another()

    async def another(self, layer: EngineLayer | None = None, **options: Any) -> ExtendedStore:
        """One more instance of the same store; closed at the end of the check.

        Args:
            layer: goes around its engine.
            options: of the core, as the harness's ``open_with`` takes them.

        Raises:
            Unverified: the store takes no layers, or the harness has no such hook.
        """
        if layer is None:
            store = await self._opened(options)
        else:
            with layers_put(layer) as was_put:
                store = await self._opened(options)
            if not was_put():
                await self.close(store)
                raise Unverified("the store is not over an engine that create_store opens: it takes no layer")
        if self.harness.has("wait_until_queries_see_all"):
            _wait_before_queries(store, lambda: self.harness.wait_until_queries_see_all(self.handle))
        self._open.append(store)
        return store

    async def restored(self, paths: Sequence[Path]) -> ExtendedStore:
        """The store that a backup made, opened."""
        handle = await self.harness.restored(self.handle, paths)
        store = cast(ExtendedStore, await self.harness.open(handle))
        self._open.append(store)
        return store

    async def _opened(self, options: dict[str, Any]) -> ExtendedStore:
        if not options:
            return cast(ExtendedStore, await self.harness.open(self.handle))
        if not self.harness.has("open_with"):
            raise Unverified("the harness has no hook open_with")
        return cast(ExtendedStore, await self.harness.open_with(self.handle, **options))

    async def reopen(self) -> ExtendedStore:
        """Close the store and open it again."""
        await self.close(self.store)
        self.store = await self.another()
        return self.store

    async def close(self, store: ExtendedStore) -> None:
        """Close an instance before the end of the check."""
        close = getattr(store, "close", None)
        if close is not None:
            await close()
        self._open = [other for other in self._open if other is not store]

    def leave(self, store: ExtendedStore) -> None:
        """Do not close an instance at the end: the check closed it, or tried to."""
        self._open = [other for other in self._open if other is not store]

    async def finish(self) -> None:
        """End the processes that still run, and close the stores that are still open."""
        for process in self._processes:
            await process.end()
        for store in reversed(list(self._open)):
            await self.close(store)

    # --- other processes

    async def process(self, script: str, *args: Any) -> Process:
        """Start a process that opens the same store and runs *script*, a function of
        ``kode_conformance.processes.scripts``.

        Where one process at a time may use a store, the instances of this one are closed before.
        """
        if "CROSS_PROCESS" in self.harness.lacks:
            for store in list(self._open):
                await self.close(store)
        call = json.dumps({"harness": self.harness.spec, "handle": self.handle, "script": script, "args": args})
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "kode_conformance.processes.scripts",
            call,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        process = Process(child, self.harness.patience)
        self._processes.append(process)
        return process

    # --- hooks that give something

    async def costs(self) -> Costs:
        """The counters of the backend; only where the harness has the hook."""
        found: Any = await self.harness.costs(self.handle)
        if not isinstance(found, Costs) or any(n is not None and (type(n) is not int or n < 0) for n in found):
            raise HarnessError(f"its hook costs gave {found!r:.100}; it has to give Costs, of whole numbers or None")
        return found

    async def borrowed(self) -> BorrowedClient:
        """A store over a pool or client that was passed in; only where the harness has the hook."""
        found: Any = await self.harness.open_borrowed(self.handle)
        if not isinstance(found, BorrowedClient):
            raise HarnessError(
                f"its hook open_borrowed gave {found!r:.100}; it has to give BorrowedClient(store, use, end)"
            )
        return found

    # --- judging

    def equal(self, got: object, want: object, what: str) -> None:
        """*got* must be *want*: the same values of the same types, in the same order."""
        found = difference(got, want)
        if found is not None:
            raise Violation(f"{what}: {found}")

    def true(self, condition: object, what: str) -> None:
        """*what* must hold."""
        if not condition:
            raise Violation(what)

    async def raises(self, kind: type[E], call: Awaitable[object], what: str, *, match: str = "") -> E:
        """*call* must raise exactly *kind* or a subclass, with *match* in its message; returns the error."""
        try:
            result = await call
        except kind as exc:
            if match not in str(exc):
                raise Violation(f"{what}: the message does not say {match!r}: {exc}") from exc
            return exc
        except Exception as exc:
            raise Violation(f"{what}: expected {kind.__name__}, got {type(exc).__name__}: {exc}") from exc
        raise Violation(f"{what}: expected {kind.__name__}, but it returned {result!r:.200}")

    async def eventually(self, holds: Callable[[], Awaitable[object]], what: str, seconds: float = 10.0) -> None:
        """*holds* must become true in time: in so many seconds, and more where the harness is patient."""
        try:
            async with self.within(seconds):
                while not await holds():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise Violation(f"{what}: still not after {seconds * self.harness.patience:g} s") from None

    # --- time

    def within(self, seconds: float = SOON_S) -> AbstractAsyncContextManager[None]:
        """Raise TimeoutError unless the block ends in so many seconds, or more where the harness is patient. Time in
        which this process stood still does not count.
        """
        return within(seconds * self.harness.patience)

    async def ended(self, tasks: Collection[asyncio.Future[Any]], seconds: float = SOON_S) -> bool:
        """Wait for tasks for as long as ``within`` allows; true if all have ended. None of them is cancelled."""
        return await ended(tasks, seconds * self.harness.patience)


_LAGGING: Final = (
    *("query_sessions", "query_messages", "query_tool_calls"),
    *("count_sessions", "count_messages", "count_tool_calls"),
    *("group_sessions", "group_messages", "group_tool_calls"),
    *("aggregate_stats", "list", "get_metrics", "delete_many"),
)
_LAGGING_ITERATORS: Final = ("iter_sessions", "iter_messages", "iter_tool_calls")


def _wait_before_queries(store: Any, wait: Callable[[], Awaitable[None]]) -> None:
    """Let the reads that may lag behind (QRY-8) wait on this instance until they do not."""

    def awaited(read: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def after_lag(*args: Any, **filters: Any) -> Any:
            await wait()
            return await read(*args, **filters)

        return after_lag

    def iterated(read: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        async def after_lag(*args: Any, **filters: Any) -> AsyncIterator[Any]:
            await wait()
            async for record in read(*args, **filters):
                yield record

        return after_lag

    for names, wrap in ((_LAGGING, awaited), (_LAGGING_ITERATORS, iterated)):
        for name in names:
            if hasattr(store, name):
                setattr(store, name, wrap(getattr(store, name)))


class Process:
    """A process of a check. It reports by printing lines of JSON.

    Its methods wait for as long as they say, and longer where the harness is patient.
    """

    def __init__(self, child: asyncio.subprocess.Process, patience: float = 1.0) -> None:
        self._child = child
        self._patience = patience

    async def line(self, seconds: float = 60.0) -> Any:
        """The next thing the process tells."""
        assert self._child.stdout is not None
        assert self._child.stderr is not None
        async with _patience(seconds * self._patience, "said nothing"):
            raw = await self._child.stdout.readline()
            if not raw:
                err = await self._child.stderr.read()
                raise Violation(f"a process that used the store ended too soon: {err.decode()[-2000:]}")
        return json.loads(raw)

    async def lines(self, seconds: float = 60.0) -> list[Any]:
        """All the process tells until it ends well."""
        async with _patience(seconds * self._patience, "did not end"):
            out, err = await self._child.communicate()
        if self._child.returncode != 0:
            raise Violation(f"a process that used the store failed: {err.decode()[-2000:]}")
        return [json.loads(raw) for raw in out.splitlines()]

    def kill(self) -> None:
        """SIGKILL."""
        with suppress(ProcessLookupError):
            self._child.kill()

    async def end(self) -> None:
        """Kill it if it still runs, and drop its unread output."""
        self.kill()
        with suppress(RuntimeError):  # a task that the check left behind reads from it
            await self._child.communicate()
        await self._child.wait()

    async def gone(self) -> list[Any]:
        """The lines that were not read yet, once it has ended; an incomplete last line does not count."""
        assert self._child.stdout is not None
        raw = await self._child.stdout.read()
        await self._child.wait()
        return [json.loads(line) for line in raw.split(b"\n")[:-1]]


@asynccontextmanager
async def _patience(seconds: float, failing: str) -> AsyncIterator[None]:
    try:
        async with within(seconds):
            yield
    except TimeoutError:
        raise Violation(f"a process that used the store {failing} for {seconds:g} s") from None


@asynccontextmanager
async def prepared(harness: StoreHarness, settings: Settings = _DEFAULT, check_id: str = "") -> AsyncIterator[Context]:
    """A context on a store of its own, taken down at the end whatever happens."""
    judging(harness)
    with tempfile.TemporaryDirectory(prefix="kode-conf-", ignore_cleanup_errors=True) as folder:
        space = Space(f"conf_{uuid.uuid4().hex[:16]}", Path(folder))
        handle = await harness.provision(space)
        context = Context(harness, handle, space.folder, settings, check_id)
        try:
            await context.start()
            try:
                yield context
            finally:
                await context.finish()
        finally:
            await harness.destroy(handle)


# --- Strict comparison ------------------------------------------------------------------------------------------------


def difference(got: object, want: object, path: str = "") -> str | None:
    """Where two values differ in value, type or order; None when they do not."""
    return None if _is_same(got, want) else _difference(got, want, path)


_PLAIN: Final = frozenset((str, int, bool, type(None)))
_MARSHAL: Final = 2  # the last format without references: equal bytes for equal values of equal builtin types only


def _is_same(got: Any, want: Any) -> bool:
    """True if the two values certainly do not differ. It is fast, since it compares millions of values."""
    if got is want:
        return True
    kind = type(want)
    if type(got) is not kind:
        return False
    if kind in _PLAIN:
        return bool(got == want)
    if kind is list or kind is tuple:
        return len(got) == len(want) and all(map(_is_same, got, want))
    if isinstance(want, msgspec.Struct):
        values = _values_of(kind)
        return all(map(_is_same, values(got), values(want)))
    try:
        return marshal.dumps(got, _MARSHAL) == marshal.dumps(want, _MARSHAL)
    except ValueError:  # something inside is no plain JSON
        return False


_VALUES: Final[dict[type[msgspec.Struct], Callable[[object], Sequence[object]]]] = {}


def _values_of(kind: type[msgspec.Struct]) -> Callable[[object], Sequence[object]]:
    """A function that gives the values of a struct of this kind."""
    found = _VALUES.get(kind)
    if found is None:
        names = kind.__struct_fields__
        found = operator.attrgetter(*names) if len(names) > 1 else lambda one: [getattr(one, name) for name in names]
        _VALUES[kind] = found
    return found


def _difference(got: object, want: object, path: str = "") -> str | None:
    if isinstance(want, msgspec.Struct) and isinstance(got, msgspec.Struct):
        if not isinstance(got, type(want)):
            return f"{path or 'it'} is a {type(got).__name__}, expected a {type(want).__name__}"
        fields = type(want).__struct_fields__
        return _first(difference(getattr(got, f), getattr(want, f), f"{path}.{f}") for f in fields)
    if isinstance(want, (list, tuple)) and isinstance(got, (list, tuple)):
        if len(got) != len(want):
            return f"{path or 'it'} has {len(got)} items, expected {len(want)}"
        pairs = enumerate(zip(got, want, strict=True))
        return _first(difference(g, w, f"{path}[{i}]") for i, (g, w) in pairs)
    if type(got) is not type(want):
        return f"{path or 'it'} is {_typed(got)}, expected {_typed(want)}"
    if isinstance(want, dict) and isinstance(got, dict):
        if list(got) != list(want):
            lost = [key for key in want if key not in got]
            rest = f", without {_shown(lost)}" if lost and len(want) > _MANY else ""
            return f"{path or 'it'} has the keys {_shown(list(got))}, expected {_shown(list(want))} in this order{rest}"
        return _first(difference(got[k], want[k], f"{path}[{k!r}]") for k in want)
    if isinstance(want, float) and repr(got) != repr(want):  # tells -0.0 from 0.0
        return f"{path or 'it'} is {got!r}, expected {want!r}"
    return None if got == want else f"{path or 'it'} is {_shown(got)}, expected {_shown(want)}"


def _first(found: Any) -> str | None:
    return next((problem for problem in found if problem is not None), None)


_SHOWN: Final = 120
_MANY: Final = 10


def _shown(value: Any) -> str:
    text = ascii(value)
    if len(text) < _SHOWN:
        return text
    length = f" ({len(value)} characters)" if isinstance(value, str) else ""
    return f"{text[: _SHOWN - 3]}...{length}"


def _typed(value: Any) -> str:
    """With its type, unless that can be seen."""
    return _shown(value) if value is None else f"{_shown(value)} ({type(value).__name__})"
