"""QRY-8, OPS-6, OPS-13: reads while the database is out of reach, and next to reads that are older, refused or fail."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from kode_conformance.calls.methods import calls_of, drive_pages
from kode_conformance.context import Context, Unverified, difference
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents, keeps_tags
from kode_conformance.instruments.layering import Trouble
from kode_conformance.instruments.pace import in_time
from kode_conformance.instruments.yielding import turns_pass
from kode_conformance.kills.writes import missing_kinds, overwrite, portrait, seed
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.engine import Engine
from kode_core.errors import InvalidArgumentError, StorageError, StoreBusyError, StoreUnavailableError
from kode_core.layers import Layer
from kode_core.protocols import ExtendedStore

_E: Final = Capability.EXTENDED
_D: Final = Dimension
_LAGGING: Final = ("list", "query", "iter_sessions", "iter_messages", "iter_tool_calls", "count", "group", "aggregate")
_READING: Final = ("load", "exists", "last", "read", "iter_documents", *_LAGGING)
_CURRENT: Final = ("list_snapshots", "list_document")
"""Reads of one agent, which have no lag though others of their name may."""

Reads = Mapping[str, tuple[str, Mapping[str, Any]]]


def _reads(ctx: Context, agent_id: str) -> Reads:
    """A call of every method that reads and ends, as (method, arguments); where queries lag behind, without them."""
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    lags = ctx.harness.has("wait_until_queries_see_all")
    for name, call in calls_of(ctx.store, agent_id).items():
        if not name.startswith(_READING) or (lags and name.startswith(_LAGGING) and not name.startswith(_CURRENT)):
            continue
        found[name] = name, call.arguments
        if "filters" in _parameters(name):
            found[f"{name}(agent_id={agent_id!r})"] = name, {**call.arguments, "agent_id": agent_id}
    return found


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(ExtendedStore, name)).parameters


async def _read(store: ExtendedStore, name: str, given: Mapping[str, Any]) -> Any:
    return await drive_pages(getattr(store, name), given)


async def _fill(store: ExtendedStore, agent_id: str) -> None:
    """Save records of every kind, under the names that :func:`calls_of` asks for."""
    await seed(store, agent_id)
    await overwrite(store, agent_id)
    await store.save_snapshot(agent_id, samples.snapshot("s", count=2).replace(metadata={"of": agent_id}))
    await store.append_messages(agent_id, [samples.message(text=f"of {agent_id}")])
    if keeps_documents():
        tags: Any = {"tags": {"run": "r1"}} if keeps_tags() else {}
        await store.put_document(agent_id, "c", "k", f"of {agent_id}", **tags)


# --- out of reach -----------------------------------------------------------------------------------------------------


class _Away(Layer):
    """Reaches nothing while it is away."""

    is_away = False

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if self.is_away:
            raise StoreUnavailableError("the suite keeps the database out of reach")
        return await call(*args, **kwargs)


def _writes(agent_id: str, text: str = "changed") -> list[Callable[[ExtendedStore], Awaitable[object]]]:
    """Calls that together replace every record that a read shows; another text makes others."""
    info = samples.info(agent_id, template_id=text, metadata={"userId": text})
    calls: list[Callable[[ExtendedStore], Awaitable[object]]] = [
        lambda s: s.append_messages(agent_id, [*samples.messages(1, 500), samples.message(text=text)]),
        lambda s: s.upsert_tool_call_records(agent_id, [samples.tool_call(500, result=text)]),
        lambda s: s.append_events(agent_id, [*samples.events(1, 500), samples.event(501, text=text)]),
        lambda s: s.save_todos(agent_id, samples.todos(text)),
        lambda s: s.save_info(agent_id, info),
        lambda s: s.save_snapshot(agent_id, samples.snapshot("s", count=5).replace(metadata={"of": text})),
        lambda s: s.save_history_window(agent_id, samples.window(text)),
        lambda s: s.save_compression_record(agent_id, samples.compression(text)),
        lambda s: s.save_recovered_file(agent_id, samples.recovered(text)),
        lambda s: s.save_media_cache(agent_id, [samples.media(text)]),
    ]
    if keeps_documents():
        tags: Any = {"tags": {"run": "r1"}} if keeps_tags() else {}
        calls.append(lambda s: s.put_document(agent_id, "c", "k", text, **tags))
    return calls


async def _change(store: ExtendedStore, agent_id: str) -> None:
    for write in _writes(agent_id):
        await write(store)


_CHANGES: Final[Mapping[str, Callable[[ExtendedStore, str], Awaitable[object]]]] = {
    "was saved for the first time": _fill,
    "has changed": _change,
    "was deleted": lambda store, agent_id: store.delete(agent_id),
}


@check("QRY-8", "OPS-6", needs=_E, under=(_D.DAMAGE, _D.CHANGES, _D.INSTANCES))
async def what_was_read_is_no_answer_for_what_is_out_of_reach(ctx: Context) -> None:
    """An instance that cannot reach the database raises an error of this library, by each method that reads, or gives
    the records as they are: never those that it read before another instance saved, changed or deleted some. Once it
    reaches the database again, it gives them.
    """
    layers: list[_Away] = []

    def put(engine: Engine) -> Engine:
        layers.append(_Away(engine))
        return layers[-1]

    store, reads = await ctx.another(put), _reads(ctx, "a")
    unchanged = set(reads)
    for what, change in _CHANGES.items():
        before = {name: await _read(store, *read) for name, read in reads.items()}
        await change(ctx.store, "a")
        if "deleted" not in what:
            ctx.equal(missing_kinds(await portrait(ctx.store, "a")), [], f"the kinds without records when it {what}")
        wanted = {name: await _read(ctx.store, *read) for name, read in reads.items()}
        unchanged -= {name for name in reads if difference(wanted[name], before[name]) is not None}
        layers[-1].is_away = True
        try:
            found = {name: await _outcome(_read(store, *read)) for name, read in reads.items()}
        finally:
            layers[-1].is_away = False
        for name, one in found.items():
            case = f"{name} of an agent that {what}, with the database out of reach"
            if isinstance(one, BaseException):
                ctx.true(isinstance(one, StorageError), f"{case}, raised {one!r:.300}")
            else:
                ctx.equal(one, wanted[name], f"{case}, without an error")
        for name, read in reads.items():
            ctx.equal(await _read(store, *read), wanted[name], f"{name} of an agent that {what}, within reach again")
    ctx.true(not unchanged, f"these reads tell the same whatever is saved: {sorted(unchanged)}")


async def _outcome(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except Exception as exc:  # noqa: BLE001 - the caller judges it
        return exc


# --- next to older reads ----------------------------------------------------------------------------------------------


class _Holding(Layer):
    """Holds the answer of each call of the engine, while it is to.

    Attributes:
        held: how many calls it has held.
    """

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.held = 0
        self._let_go: asyncio.Event | None = None

    def hold(self) -> None:
        """Hold the answers of all later calls."""
        self.held, self._let_go = 0, asyncio.Event()

    def read_on(self) -> asyncio.Event:
        """Hold no later call; the answers that are held go on when the event is set."""
        let_go, self._let_go = self._let_go, None
        assert let_go is not None
        return let_go

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        let_go = self._let_go
        found = await call(*args, **kwargs)
        if let_go is not None and verb != "commit":
            self.held += 1
            await let_go.wait()
        return found


async def _see_that_all_is_kept(ctx: Context) -> None:
    await _fill(ctx.store, "all")
    ctx.equal(missing_kinds(await portrait(ctx.store, "all")), [], "the kinds without records")


_HELD_S: Final = 0.2
_TURNS: Final = (0, 1, 3)
"""How many turns of the loop after the older reads went on the new ones begin."""


def _begin(store: ExtendedStore, reads: Iterable[tuple[str, Mapping[str, Any]]]) -> list[asyncio.Future[Any]]:
    """All of the reads, under way; an error is a result."""
    return [asyncio.ensure_future(_outcome(_read(store, *read))) for read in reads]


async def _held(ctx: Context, store: ExtendedStore, layer: _Holding, reads: Reads) -> list[asyncio.Future[Any]]:
    """Begin all of the reads, and wait until each of them has read, or has ended; a store may not let all of them read
    at once.
    """
    layer.hold()
    older = _begin(store, reads.values())
    begun = time.monotonic()
    while layer.held + sum(one.done() for one in older) < len(older):
        if time.monotonic() - begun > _HELD_S * ctx.harness.patience:
            break
        await asyncio.sleep(0.001)
    return older


@check("QRY-8", needs=_E, under=(_D.COMPANY, _D.CHANGES, _D.INSTANCES))
async def a_read_gives_what_was_written_before_it_began(ctx: Context) -> None:
    """A read by any method that begins after a write has returned sees it, though an older read of the same, which saw
    the records of before, is still under way in the same instance, or ends at that moment.
    """
    layers: list[_Holding] = []

    def put(engine: Engine) -> Engine:
        layers.append(_Holding(engine))
        return layers[-1]

    store, reads = await ctx.another(put), _reads(ctx, "a")
    await _see_that_all_is_kept(ctx)
    for turns in in_time(ctx, (None, *_TURNS)):
        for what, change in _CHANGES.items():
            older = await _held(ctx, store, layers[-1], reads)
            let_go = layers[-1].read_on()
            try:
                await change(ctx.store, "a")
                if turns is not None:
                    let_go.set()
                await turns_pass(turns or 0)
                newer = _begin(store, reads.values())
                await turns_pass(10 if turns is None else 0)  # they meet the older ones
            finally:
                let_go.set()
            found = await asyncio.gather(*newer)
            await asyncio.wait(older)
            wanted = [await _read(ctx.store, *read) for read in reads.values()]
            moment = "was under way" if turns is None else "came to its end"
            for name, one, expected in zip(reads, found, wanted, strict=True):
                # so many reads of one agent at once may hold each other up
                given = await _read(store, *reads[name]) if isinstance(one, StoreBusyError) else one
                ctx.equal(given, expected, f"{name} of an agent that {what} while an older read {moment}")


@check("QRY-8", needs=_E, tier=Tier.STANDARD, stochastic=True, under=(_D.COMPANY, _D.CHANGES, _D.INSTANCES))
async def a_read_among_many_gives_what_was_written_before(ctx: Context) -> None:
    """While one instance makes a read again and again, by any method, the same read that begins after a write of it, or
    of another instance, has returned sees the write, whatever it has written.
    """
    other, reads = await ctx.another(), _reads(ctx, "a")
    await _see_that_all_is_kept(ctx)
    await _fill(ctx.store, "a")
    cases = [*itertools.product(reads, range(len(_writes("a")) + 1))]
    ctx.rng.shuffle(cases)
    for number, (name, kind) in enumerate(in_time(ctx, cases)):
        writes = _writes("a", f"changed {number}")
        writes.append(lambda store: store.delete("a"))
        older = _begin(other, [reads[name]])
        await turns_pass(number % 4)  # it may have read by then
        write = asyncio.ensure_future(writes[kind]((ctx.store, other)[number % 2]))
        while not write.done():
            if older[-1].done():
                older += _begin(other, [reads[name]])
            await asyncio.sleep(0)
        write.result()
        found = await _read(other, *reads[name])
        await asyncio.gather(*older)
        case = f"{name} that began after write {number + 1}, while an older read of the same was under way"
        ctx.equal(found, await _read(ctx.store, *reads[name]), case)


# --- next to reads that are refused or fail ---------------------------------------------------------------------------


def _names_one(name: str) -> bool:
    """True if the method reads one agent, which it must name."""
    named = _parameters(name).get("agent_id")
    return named is not None and named.default is named.empty


def _wrong(name: str, given: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Arguments that are refused, each in the place of a sound one."""
    if "agent_id" in given:
        yield {**given, "agent_id": "x" * 300}
    if "filters" in _parameters(name):
        yield {**given, "unknown": "x"}
    for part, value in _WRONG.items():
        if part in _parameters(name):
            yield {**given, part: value}


_WRONG: Final[Mapping[str, Any]] = {"collection": "\ud800", "key": "\ud800", "snapshot_id": "\ud800", "prefix": 5}


@check("OPS-13", needs=_E, under=(_D.COMPANY, _D.ORDERS, _D.DAMAGE))
async def a_read_that_fails_fails_alone(ctx: Context) -> None:
    """When reads by one method are made at once, for the same agent and for others, one that is refused for its
    arguments, or whose agent cannot be read, fails alone, in whatever place it is; each of the others gets the answer
    that it gets by itself.
    """
    troubles: list[Trouble] = []

    def put(engine: Engine) -> Engine:
        troubles.append(Trouble(engine))
        return troubles[-1]

    for agent_id in ("a", "b", "bad"):
        await _fill(ctx.store, agent_id)
    ctx.equal(missing_kinds(await portrait(ctx.store, "b")), [], "the kinds without records")
    stores: list[ExtendedStore] = [ctx.store]
    try:
        stores.append(await ctx.another(put))
    except Unverified:  # it takes no layer: reads of it do not fail
        pass
    else:
        troubles[-1].failing = {"bad": StoreUnavailableError("the suite keeps this agent out of reach")}
    asked = {agent_id: _reads(ctx, agent_id) for agent_id in ("a", "b", "bad")}
    for reads in zip(*(reads.values() for reads in asked.values()), strict=True):
        name, sound = reads[0][0], [reads[0][1], reads[1][1], reads[0][1]]
        alone = [await _read(ctx.store, name, given) for given in sound]
        bad = [(ctx.store, given) for given in _wrong(name, sound[0])]
        if _names_one(name) and len(stores) > 1:
            bad.append((stores[1], reads[2][1]))
        for number, (store, given) in enumerate(bad):
            place = number % 4
            calls = [_read(store, name, one) for one in sound]
            calls.insert(place, _read(store, name, given))
            found = await asyncio.gather(*calls, return_exceptions=True)
            error = found.pop(place)
            ctx.true(isinstance(error, (InvalidArgumentError, StorageError)), f"{name} of {given} gave {error!r:.200}")
            ctx.equal(found, alone, f"{name} of two agents, next to a call that fails for {given}")
