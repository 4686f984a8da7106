"""OPS-17: whatever is given to a method, every error that reaches the caller is an error of this library."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from kode_conformance.calls.methods import calls_of
from kode_conformance.context import Context, Violation, difference
from kode_conformance.dimensions import Dimension
from kode_conformance.kills.writes import portrait
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.junk import forged_cursors, junk_for, parameters, variants
from kode_core.errors import KodeError
from kode_core.protocols import ExtendedStore, Store

_E = Capability.EXTENDED
_OTHERS: Final = frozenset(
    {"batch_fork", "fork", "list", "delete_many", "check_consistency", "iter_consistency", "backup"}
)
"""Methods that write nothing to the agent they are given."""

_Save = Callable[[str, Any], Awaitable[object]]
_Load = Callable[[str], Awaitable[object]]


async def _outcome(name: str, call: Callable[[], Any]) -> BaseException | None:
    """Make the call and consume its result; return the error, if there is one."""
    try:
        result = call()
        if hasattr(result, "__aiter__"):
            with suppress(TimeoutError):
                async with asyncio.timeout(0.01 if name == "follow_events" else None):
                    async for _ in result:
                        break
        else:
            found = await result
            if hasattr(found, "release"):
                await found.release()
    except Exception as exc:  # noqa: BLE001 - the kind of error is judged
        return exc
    return None


@check("OPS-17", needs=_E, tier=Tier.STANDARD, under=(Dimension.NUMBERS, Dimension.LOOKALIKES))
async def wrong_arguments_raise_errors_of_this_library(ctx: Context) -> None:
    """For every parameter of every method, wrong types and impossible values are either accepted or refused with an
    error of this library, and nothing of a refused call is written.
    """
    await ctx.store.save_info("parent", samples.info("parent"))
    nothing = await portrait(ctx.store, "nobody")
    wrong: list[str] = []
    every = 2 if ctx.settings.tier is Tier.QUICK else 1
    for number, parameter in enumerate(parameters()):
        agent_id = f"{parameter.method}-{parameter.name}"
        known = "parent" if parameter.method in ("batch_fork", "fork") else agent_id
        calls = calls_of(ctx.store, known, str(ctx.folder / agent_id))
        if parameter.method not in calls:  # the store lacks a capability that it needs
            continue
        method, given = calls[parameter.method]
        for value in itertools.islice(junk_for(parameter, str(ctx.folder)), number % every, None, every):
            arguments = {**given, parameter.name: value}
            error = await _outcome(parameter.method, lambda method=method, arguments=arguments: method(**arguments))  # type: ignore[misc]
            _note(wrong, f"{parameter.method}({parameter.name}={value!r:.60})", error)
            if error is None and parameter.method not in _OTHERS:
                await _forget(ctx.store, agent_id, value)
        if parameter.method not in _OTHERS:
            left = difference(await portrait(ctx.store, agent_id), nothing)
            ctx.true(left is None, f"{parameter.method} refused {parameter.name}, and wrote something: {left}")
    _judge(wrong)
    ctx.equal(await ctx.store.exists("parent"), True, "whether an agent is there that was saved before all that")


def _note(wrong: list[str], what: str, error: BaseException | None) -> None:
    """Note an error that is none of this library."""
    if error is not None and not isinstance(error, KodeError):
        wrong.append(f"{what} raised {type(error).__name__}: {error!s:.160}")


def _judge(wrong: list[str]) -> None:
    if wrong:
        first = "; ".join({text.partition("=")[0]: text for text in reversed(wrong)}.values())
        raise Violation(f"{len(wrong)} calls raised what is no error of this library: {first:.1200}")


async def _forget(store: Store, agent_id: str, value: Any) -> None:
    """Delete an accepted value: accepting it is no fault here."""
    await store.delete(agent_id)
    with suppress(KodeError):
        await store.delete(value)


@check("OPS-17", "VAL-2", under=(Dimension.NUMBERS, Dimension.LOOKALIKES))
async def wrong_fields_raise_errors_of_this_library(ctx: Context) -> None:
    """A record of any kind with any field of a wrong type, also deep inside, is refused with an error of this library,
    and nothing is written; or it is stored and comes back as it was given.
    """
    wrong: list[str] = []
    for kind, (record, save, load) in _kinds(ctx.store).items():
        for number, (path, changed) in enumerate(variants(record)):
            agent_id, what = f"{kind}-{number}", f"saving a {kind} with {path}="
            error = await _outcome("save", lambda: save(agent_id, changed))  # noqa: B023 - it is awaited here
            _note(wrong, what, error)
            if error is None:
                wrong += [f"{what}, and loading it, {end}" for end in await _loaded(load, agent_id)]
            elif number % 16 == 0:
                ctx.true(await load(agent_id) in ([], None), f"{what} was refused, and is stored: {error}")
    _judge(wrong)


async def _loaded(load: _Load, agent_id: str) -> list[str]:
    """The problems with loading a record that the store accepted."""
    try:
        found = await load(agent_id)
    except Exception as exc:  # noqa: BLE001 - an accepted record must come back
        return [f"raised {type(exc).__name__}: {exc!s:.160}"]
    return ["gave nothing"] if found in ([], None) else []


def _kinds(store: ExtendedStore) -> dict[str, tuple[Any, _Save, _Load]]:
    """A record of each kind, with how it is saved and loaded."""

    async def save_call(agent_id: str, record: Any) -> None:
        await store.upsert_tool_call_records(agent_id, [record])

    async def events(agent_id: str) -> list[Any]:
        return [event async for event in store.read_events(agent_id)]

    messages = samples.rich_messages()
    kinds: dict[str, tuple[Any, _Save, _Load]] = {
        f"message {i}": (message, lambda a, r: store.save_messages(a, [r]), store.load_messages)
        for i, message in enumerate(messages[1:6])
    }
    kinds |= {
        "appended message": (samples.message(), lambda a, r: store.append_messages(a, [r]), store.load_messages),
        "tool call": (samples.approved_call(), save_call, store.load_tool_call_records),
        "saved tool call": (
            samples.tool_call(),
            lambda a, r: store.save_tool_call_records(a, [r]),
            store.load_tool_call_records,
        ),
        "event": (samples.event(1), store.append_event, events),
        "todo snapshot": (samples.todos("x"), store.save_todos, store.load_todos),
        "history window": (samples.window(), store.save_history_window, store.load_history_windows),
        "compression": (samples.compression(), store.save_compression_record, store.load_compression_records),
        "recovered file": (samples.recovered(), store.save_recovered_file, store.load_recovered_files),
        "media cache record": (samples.media(), lambda a, r: store.save_media_cache(a, [r]), store.load_media_cache),
        "snapshot": (samples.snapshot(), store.save_snapshot, store.list_snapshots),
    }
    return kinds


@check("OPS-17", "QRY-5", needs=Capability.QUERYABLE, under=(Dimension.LOOKALIKES,))
async def forged_cursors_raise_errors_of_this_library(ctx: Context) -> None:
    """A cursor that no page gave, damaged or made up, with parts of any type, is refused with an error of this library;
    a cursor of another query is refused.
    """
    for agent_id in ("a", "b", "c"):
        await ctx.store.save_turn(
            agent_id, append=samples.messages(2), tool_calls=[samples.tool_call(0)] * 2, info=samples.info(agent_id)
        )
    queries: dict[str, Callable[..., Awaitable[Any]]] = {
        "query_sessions": ctx.store.query_sessions,
        "query_messages": ctx.store.query_messages,
        "query_tool_calls": ctx.store.query_tool_calls,
    }
    wrong: list[str] = []
    given = {name: (await query(limit=1)).next_cursor for name, query in queries.items()}
    for name, query in queries.items():
        ctx.true(given[name], f"{name} of several records with limit=1 must give a cursor")
        for cursor in forged_cursors(given[name], name):
            error = await _outcome(name, lambda query=query, cursor=cursor: query(limit=1, cursor=cursor))  # type: ignore[misc]
            _note(wrong, f"{name}(cursor={cursor!r})", error)
        for other in given.keys() - {name}:
            await ctx.raises(KodeError, query(limit=1, cursor=given[other]), f"{name} with a cursor of {other}")
    _judge(wrong)
