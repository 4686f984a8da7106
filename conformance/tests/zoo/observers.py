"""Stores whose observers hear too little, too much or too late, or change calls (OPS-19, OPS-20)."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any, ClassVar

from kode_conformance.checks.observing import Spy
from kode_conformance.context import Context
from kode_conformance.values import samples

from conformance.tests.zoo.base import Witness, mutant
from kode_core.errors import ConfigurationError
from kode_core.operation import Guard, Operation
from kode_core.store import EngineStore
from kode_core.store.events import EventAppender, _Append


def _seen(*calls: Any) -> Witness:
    """A witness of what an observer sees of these calls."""

    async def witness(ctx: Context) -> object:
        spy = Spy()
        store = await ctx.another(observers=[spy])
        told = []
        for call in calls:
            try:
                await call(store)
            except Exception as exc:
                told.append(type(exc).__name__)
        return told, sorted([f"{one.name} {one.error} {one.rows} {type(error).__name__}" for one, error in spy.ended])

    return witness


async def _is_refused(ctx: Context) -> object:
    try:
        await ctx.another(observers=[5])
    except ConfigurationError as exc:
        return type(exc).__name__
    return None


class _Tampered(EngineStore):
    """An EngineStore over guards of another class."""

    guard: ClassVar[type[Guard]] = Guard

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        observing = self._context.call_metrics._observing
        if observing is not None:
            observing._guards = tuple(map(self.guard, options.get("observers", ())))


# --- what they see ----------------------------------------------------------------------------------------------------


class _OfSuccesses(Guard):
    def leave(self, manager: Any, error: BaseException | None) -> None:
        super().leave(manager, None)


@mutant(
    "OPS-20",
    killed_by="each_call_is_seen_once_with_its_outcome",
    source="`yield` of a context manager without `try`, and a span that ends as if all went well",
    witness=_seen(lambda s: s.load_messages("")),
)
class ObserversSeeNoException(_Tampered):
    """Leaves observers without the call's exception."""

    guard = _OfSuccesses


class _OfEnds(Guard):
    def leave(self, manager: Any, error: BaseException | None) -> None:
        if not isinstance(error, asyncio.CancelledError):
            super().leave(manager, error)


async def _cancelled(store: Any) -> None:
    task = asyncio.ensure_future(store.append_messages("a", samples.messages(2_000)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


@mutant(
    "OPS-20",
    killed_by="a_call_that_is_cut_short_is_left",
    source="`except Exception` around a call, which no cancellation passes",
    witness=_seen(_cancelled),
)
class ObserversMissCancellations(_Tampered):
    """Does not leave the observers of a call that is cancelled."""

    guard = _OfEnds


@mutant(
    "OPS-20",
    killed_by="each_call_is_seen_once_with_its_outcome",
    source="a facade that calls its observers, over a store that calls them, too",
    witness=_seen(lambda s: s.load_messages("a")),
)
class ObserversSeeTwice(EngineStore):
    """Surrounds each call twice with each observer."""

    def __init__(self, *args: Any, observers: Any = (), **options: Any) -> None:
        super().__init__(*args, observers=[*observers, *observers], **options)


class _CountsForTheFirst(EventAppender):
    async def _write_group(self, agent_id: str, group: list[_Append]) -> None:
        for item in group:
            item.tally = group[0].tally
        await super()._write_group(agent_id, group)


@mutant(
    "OPS-20",
    killed_by="rows_and_bytes_are_those_of_the_call",
    source="a group commit that counts where it writes, in the context of the call that began it",
    witness=_seen(
        lambda s: asyncio.gather(*(s.append_events("a", samples.events(n, 10 * n)) for n in range(1, 5))),
    ),
)
class AGroupIsOfOneCall(EngineStore):
    """Counts the events of a group for the first of its calls."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._appender.__class__ = _CountsForTheFirst


# --- what they change -------------------------------------------------------------------------------------------------


def _fails(_: object) -> None:
    raise RuntimeError("an observer that fails")


async def _with_a_failing_one(ctx: Context) -> object:
    store = await ctx.another(observers=[_fails])
    try:
        return await store.load_messages("a")
    except RuntimeError as exc:
        return type(exc).__name__


class _Unguarded(Guard):
    def leave(self, manager: Any, error: BaseException | None) -> None:
        if error is None:
            manager.__exit__(None, None, None)
        else:
            manager.__exit__(type(error), error, error.__traceback__)


@mutant(
    "OPS-20",
    killed_by="an_observer_changes_no_call",
    source="`with observer.around(operation):` around the call",
    witness=_with_a_failing_one,
)
class ObserversFailCalls(_Tampered):
    """Lets what an observer raises at the end of a call out to the caller."""

    guard = _Unguarded


class _Elsewhere(Guard):
    def enter(self, operation: Operation) -> Any:
        return contextvars.copy_context().run(super().enter, operation)


@mutant(
    "OPS-20",
    killed_by="the_engine_is_called_inside_the_observer",
    source="observers that a thread or a task of their own calls",
    witness=_seen(lambda s: s.load_messages("a")),
)
class ObserversAreElsewhere(_Tampered):
    """Enters observers in a context that is not the call's."""

    guard = _Elsewhere


# --- whose they are ---------------------------------------------------------------------------------------------------


async def _of_another(ctx: Context) -> object:
    spy = Spy()
    await ctx.another(observers=[spy])
    await (await ctx.another(observers=[Spy()])).load_messages("a")
    return [one.name for one, _ in spy.ended]


@mutant(
    "OPS-19",
    killed_by="layers_and_observers_are_of_one_store",
    source="a list of observers that is a default argument",
    witness=_of_another,
)
class ObserversAreShared(EngineStore):
    """Lets the observers of a store see the calls of the stores that are opened after it."""

    shared: ClassVar[list[Any]] = []

    def __init__(self, *args: Any, observers: Any = (), **options: Any) -> None:
        self.shared.extend(observers)
        super().__init__(*args, observers=self.shared, **options)


@mutant(
    "OPS-19",
    killed_by="wrong_layers_and_observers_are_refused",
    source="arguments that are first used when a call has ended",
    witness=_is_refused,
)
class AnyObserverWillDo(EngineStore):
    """Opens a store with observers that cannot observe."""

    def __init__(self, *args: Any, observers: Any = (), **options: Any) -> None:
        fit = [one for one in observers if callable(one) or hasattr(one, "around")] if type(observers) is list else []
        super().__init__(*args, observers=fit, **options)
