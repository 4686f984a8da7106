"""OPS-20, OPS-19: what observers see of the calls of a store, and that they change nothing."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Final

from kode_conformance.calls.fenced import fenced_writes
from kode_conformance.calls.methods import calls_of, drive
from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context, Unverified, Violation
from kode_conformance.dimensions import Dimension, counts
from kode_conformance.instruments.layering import Trouble, agents_of
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_conformance.values.canaries import overheard
from kode_core.engine import Engine
from kode_core.errors import ConfigurationError, KodeError
from kode_core.layers import Layer
from kode_core.model import Message
from kode_core.operation import Observer, Operation
from kode_core.protocols import ExtendedStore

_E: Final = Capability.EXTENDED

_MINE: Final[ContextVar[str]] = ContextVar("kode_conformance_mine", default="")
_PAGES_OF: Final[Mapping[str, str]] = {
    "iter_sessions": "query_sessions",
    "iter_messages": "query_messages",
    "iter_tool_calls": "query_tool_calls",
    "iter_consistency": "check_consistency",
}
"""By iterator, the method that its pages are calls of."""


class Spy:
    """An observer that surrounds calls and notes them.

    Attributes:
        begun: by call, the operation as it was at the start, as text.
        ended: the operations that ended, with the exception that the observer was left with.
    """

    def __init__(self, mark: Callable[[Operation], str] = lambda operation: operation.name) -> None:
        self.begun: list[str] = []
        self.ended: list[tuple[Operation, BaseException | None]] = []
        self._mark = mark

    @contextmanager
    def around(self, operation: Operation) -> Iterator[None]:
        self.begun.append(operation.name)
        token = _MINE.set(self._mark(operation))
        error = None
        try:
            yield
        except BaseException as exc:
            error = exc
            raise
        finally:
            _MINE.reset(token)
            self.ended.append((operation, error))

    def taken(self) -> list[tuple[Operation, BaseException | None]]:
        """The calls that ended since the last time; every call that began must have ended."""
        ended, self.ended = self.ended, []
        begun, self.begun = self.begun, []
        if sorted(begun) != sorted(operation.name for operation, _ in ended):
            raise Violation(f"an observer was entered for {begun} and left for {[one.name for one, _ in ended]}")
        return ended


async def observed(ctx: Context, *observers: Observer, layer: Any = None) -> ExtendedStore:
    """An instance with these observers."""
    try:
        return await ctx.another(layer, observers=list(observers))
    except ConfigurationError as exc:
        raise Unverified(f"the store takes no observers: {exc}") from exc


@check("OPS-20", needs=_E, under=(Dimension.CHANGES, Dimension.ORDERS))
async def each_call_is_seen_once_with_its_outcome(ctx: Context) -> None:
    """Every call of every method is seen once by each observer, whether it is called afterwards or surrounds the call:
    with the method, the agent, the backend, the place, a duration and, if it fails, the class of the error.
    """
    spy, after = Spy(), list[Operation]()
    store = await observed(ctx, spy, after.append)
    await fill(store, "a")
    spy.taken()
    after.clear()
    for name, (method, given) in calls_of(store).items():
        if name in ("follow_events", "backup"):  # one has no end, the other no place
            continue
        parameters = inspect.signature(getattr(ExtendedStore, name)).parameters
        for changes in ({}, {"agent_id": "\0"}):
            if changes and ("agent_id" not in parameters or not inspect.iscoroutinefunction(getattr(store, name))):
                continue
            error = await _error_of(method, {**given, **changes})
            seen = spy.taken()
            told = f"what an observer saw of {name}{' for a wrong agent' if changes else ''}"
            ctx.equal([one.name for one, _ in seen], [_PAGES_OF.get(name, name)], told)
            ctx.true(after == [one for one, _ in seen], f"{told}: one that is called afterwards saw {after}")
            after.clear()
            ctx.equal([one.error for one, _ in seen], [error], f"the error in {told}")
            ctx.equal([exc and type(exc).__name__ for _, exc in seen], [error], f"the exception in {told}")
            (one, _), about = seen[0], {**given, **changes}.get("agent_id")
            ctx.equal(one.agent_id, about, f"the agent in {told}")
            ctx.true(one.backend and one.store and one.duration_ms > 0, f"{told} lacks something: {one}")


async def _error_of(method: Any, given: dict[str, Any]) -> str | None:
    try:
        await drive(method, given)
    except (KodeError, ValueError) as exc:
        return type(exc).__name__
    return None


class _Hostile:
    """An observer that fails in one way: a function is called for each operation and may raise or return anything."""

    def __init__(self, how: Callable[[Operation], Any]) -> None:
        self.around = how


class _FailsAtTheEnd(AbstractContextManager[None]):
    def __init__(self, what: Any) -> None:
        self.what = what

    def __exit__(self, *_: object) -> Any:
        if isinstance(self.what, Exception):
            raise self.what
        return self.what


def _raise(_: object) -> Any:
    raise ValueError("an observer that fails")


_FAULTS: Final[Mapping[str, Callable[[], Observer]]] = {
    "raises after the call": lambda: _raise,
    "raises before the call": lambda: _Hostile(_raise),
    "surrounds with nothing": lambda: _Hostile(lambda operation: None),
    "surrounds with what cannot surround": lambda: _Hostile(lambda operation: 5),
    "swallows errors": lambda: _Hostile(lambda operation: _FailsAtTheEnd(True)),
    "raises at the end": lambda: _Hostile(lambda operation: _FailsAtTheEnd(KeyError("x"))),
    "raises an error of the library": lambda: _Hostile(lambda operation: _FailsAtTheEnd(KodeError("x"))),
}


@check("OPS-20", needs=_E, under=(Dimension.DAMAGE, Dimension.CHANGES))
async def an_observer_changes_no_call(ctx: Context) -> None:
    """Each call has the same result or error next to observers that raise or return anything at any moment; the
    failures of each observer are logged once.
    """
    await fill(ctx.store, "a")
    wanted = await _results(ctx.store, "plain")
    for fault, make in _FAULTS.items():
        with overheard(("\0",)) as told:
            spy = Spy()
            store = await observed(ctx, make(), spy, make())
            ctx.equal(await _results(store, fault), wanted, f"the calls of a store with an observer that {fault}")
        failures = [text for text in told if "observer" in text]
        expected = 0 if fault in ("surrounds with nothing", "swallows errors") else 2
        ctx.equal(len(failures), expected, f"the reports of two observers, each of which {fault}")
        errors = [type(exc).__name__ for _, exc in spy.taken() if exc is not None]
        ctx.equal(len(errors), 4, f"the errors that an observer sees next to one that {fault}")
        await ctx.close(store)


async def _results(store: ExtendedStore, agent: str) -> list[Any]:
    """The results of calls of each kind."""
    calls: Sequence[Callable[[], Awaitable[Any]]] = (
        lambda: store.append_messages(agent, samples.messages(2)),
        lambda: store.load_messages(agent),
        lambda: _appended(store, agent),
        lambda: store.load_todos("a"),
        lambda: store.query_messages(agent_id="a", limit=2),
        lambda: store.exists("a"),
        lambda: store.load_messages(""),
        lambda: store.batch_fork("nobody", 1),
        lambda: store.query_messages(limit=-1),
        lambda: _too_late(store),
        lambda: store.delete(agent),
    )
    results: list[Any] = []
    for call in calls:
        try:
            found = await call()
        except Exception as exc:  # noqa: BLE001 - also what an observer raised, which must not come out
            results.append(type(exc).__name__)
        else:
            results.append([*found] if isinstance(found, list) else found)
    return results


async def _appended(store: ExtendedStore, agent: str) -> bool:
    return await store.append_event(agent, samples.event(1)) > 0


async def _too_late(store: ExtendedStore) -> None:
    lease = await store.acquire_agent_lock("b")
    await lease.release()
    await fenced_writes("b")[0].act(store, "b", fence=lease)


class _Hears(Layer):
    """Notes, by verb and agent, the context variable that calls of the engine see."""

    heard: list[tuple[str, frozenset[str], str]]

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self.heard.append((verb, agents_of(verb, args), _MINE.get()))
        return await call(*args, **kwargs)


_OUTSIDE: Final = ("close", "totals")


@check("OPS-20", needs=_E, under=(Dimension.COMPANY, Dimension.INSTANCES))
async def the_engine_is_called_inside_the_observer(ctx: Context) -> None:
    """A context variable that an observer sets reaches all calls of the engine for its call, also in tasks that the
    store starts, and reaches no other call, however many run at once.
    """
    heard: list[tuple[str, frozenset[str], str]] = []
    hears = type("Hears", (_Hears,), {"heard": heard})
    store = await observed(ctx, Spy(lambda operation: operation.agent_id or operation.name), layer=hears)
    agents = [f"agent-{i}" for i in range(20)]

    async def work(agent: str) -> None:
        await fill(store, agent)
        await store.load_messages(agent)
        _ = [event async for event in store.read_events(agent)]
        async with store.acquire_agent_lock(agent):
            await store.append_event(agent, samples.event(5))
        await asyncio.gather(*(store.append_event(agent, samples.event(i)) for i in range(10, 15)))
        await store.delete(agent)

    heard.clear()
    await asyncio.gather(*map(work, agents))
    ctx.true(len(heard) > len(agents), "nothing was heard of the engine")
    for verb, about, mine in heard:
        if about and verb not in _OUTSIDE:
            ctx.true(about == {mine}, f"{verb} for {sorted(about)} ran in the context of {mine!r}")
    ctx.equal(_MINE.get(), "", "what is left of an observer outside of calls")


@check("OPS-20", needs=_E, under=(Dimension.INTERRUPTIONS, Dimension.COMPANY))
async def a_call_that_is_cut_short_is_left(ctx: Context) -> None:
    """An observer of a call that is cancelled in the middle of the engine is left with that exception, at once."""
    spy = Spy()
    layers: list[Trouble] = []

    def layer(engine: Engine) -> Engine:
        layers.append(Trouble(engine))
        return layers[-1]

    store = await observed(ctx, spy, layer=layer)
    layers[-1].hanging.add("a")
    calls: tuple[tuple[str, Callable[[], Awaitable[Any]]], ...] = (
        ("load_messages", lambda: store.load_messages("a")),
        ("append_messages", lambda: store.append_messages("a", samples.messages(1))),
    )
    for name, call in calls:
        task = asyncio.ensure_future(call())
        await ctx.eventually(lambda: _true(layers[-1].under_way), f"{name} reached the engine")
        task.cancel()
        await asyncio.wait([task])
        seen = spy.taken()
        ctx.equal([(one.name, one.error) for one, _ in seen], [(name, "CancelledError")], "what the observer saw")
        ctx.true(isinstance(seen[0][1], asyncio.CancelledError), f"the observer was left with {seen[0][1]!r}")
    layers[-1].hanging.clear()
    layers[-1].let_go.set()
    await store.load_messages("a")


async def _true(value: object) -> bool:
    return bool(value)


_TEXTS: Final = ("", "x", "\u00e9" * 100, "\U0001f600" * 70_000)


@check("OPS-20", needs=_E, under=(Dimension.ITEMS, Dimension.LENGTHS, Dimension.EQUALS, Dimension.COMPANY))
async def rows_and_bytes_are_those_of_the_call(ctx: Context) -> None:
    """rows counts the records that a call writes or reads, and bytes their size in UTF-8, also where calls are written
    together; a call that only deletes, forks or locks has neither.
    """
    spy = Spy()
    store = await observed(ctx, spy)
    for count in (n for n in counts(ctx.settings.tier) if n <= 101):
        agent = f"n-{count}"
        await store.append_messages(agent, samples.messages(count))
        await store.load_messages(agent)
        (wrote, _), (read, _) = spy.taken()
        ctx.equal((wrote.rows, read.rows), (count, count), f"the rows of {count} messages, written and read")
        ctx.equal(wrote.bytes, read.bytes, f"the bytes of {count} messages, written and read")
        ctx.true((read.bytes or 0) >= count, f"{count} messages have {read.bytes} bytes")
    sizes = []
    for i, text in enumerate(_TEXTS):
        await store.append_messages(f"t-{i}", [Message.user(text)])
        await store.load_messages(f"t-{i}")
        (wrote, _), (read, _) = spy.taken()
        ctx.equal(wrote.bytes, read.bytes, f"the bytes of a text of {len(text)}, written and read")
        sizes.append((wrote.bytes or 0) - len(text.encode()))
    ctx.equal(set(sizes), {sizes[0]}, "the bytes of messages without their texts")
    numbers = range(1, 21)
    await asyncio.gather(*(store.append_events("e", samples.events(n, 100 * n)) for n in numbers))
    ctx.equal(sorted(one.rows or 0 for one, _ in spy.taken()), [*numbers], "the rows of appends at once")
    await store.save_info("e", samples.info("e"))
    await store.batch_fork("e", 1)
    await store.acquire_agent_lock("f")
    await store.delete("e")
    got = {one.name: (one.rows, one.bytes) for one, _ in spy.taken()[1:]}
    ctx.equal(set(got.values()), {(None, None)}, f"rows and bytes where no record passes: {got}")


@check("OPS-19", needs=_E, under=(Dimension.INSTANCES, Dimension.COMPANY))
async def layers_and_observers_are_of_one_store(ctx: Context) -> None:
    """Calls of a store without layers and observers, or with others, pass through none of this store's, though all
    share their contents.
    """
    heard: dict[str, list[Any]] = {"one": [], "two": []}
    spies = {name: Spy() for name in heard}
    stores = {
        name: await observed(ctx, spies[name], layer=type(name, (_Hears,), {"heard": heard[name]})) for name in heard
    }
    for notes in heard.values():
        notes.clear()
    await ctx.store.append_messages("a", samples.messages(1))
    ctx.equal(heard, {"one": [], "two": []}, "what the layers heard of a store without any")
    for name, store in stores.items():
        await store.load_messages("a")
        other = "two" if name == "one" else "one"
        ctx.equal(heard[other], [], f"what the layer of {other} heard of a call of {name}")
        ctx.equal([verb for verb, _, _ in heard[name]], ["rows"], f"what the layer of {name} heard")
        ctx.equal([one.name for one, _ in spies[name].taken()], ["load_messages"], f"what the observer of {name} saw")
        ctx.equal(spies[other].taken(), [], f"what the observer of {other} saw of a call of {name}")
        heard[name].clear()


_WRONG: Final[Sequence[Mapping[str, Any]]] = (
    {"observers": 5},
    {"observers": [5]},
    {"observers": [None]},
    {"observers": print},
    {"observers": [Spy]},
    {"observers": [_true]},
    {"layers": 5},
    {"layers": [5]},
    {"layers": Layer},
    {"layers": [_true]},
)


@check("OPS-19", needs=_E, under=(Dimension.LOOKALIKES,))
async def wrong_layers_and_observers_are_refused(ctx: Context) -> None:
    """Wrong layers and observers are refused with ConfigurationError, before the store is opened."""
    for given in _WRONG:
        try:
            store = await ctx.another(**given)
        except ConfigurationError as exc:
            ctx.true(next(iter(given)) in str(exc), f"the error about {given} does not say what is wrong: {exc}")
        else:
            await ctx.close(store)
            raise Violation(f"a store with {given} was opened")
