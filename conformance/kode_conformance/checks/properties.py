"""VAL, by the thousand: hostile values, alone and put together, in every free-form field of every kind of record."""

from __future__ import annotations

import json
import time
from typing import Any

from kode_conformance.context import Context, Violation, difference
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values.free_form_fields import FIELD_USES, FieldUse, Holds
from kode_conformance.values.payloads import PAYLOADS, Payload
from kode_conformance.values.strategies import hostile_dict, hostile_text, hostile_value, is_exact_json, parts, simpler
from kode_core.errors import InvalidValueError
from kode_core.protocols import Store

_SHORTEN_SECONDS = 10.0
_LARGE = 500_000
"""Characters from which on a value is large."""
_RECORD = 5_000
"""More bytes than there are in a record around a value."""


async def _problem(ctx: Context, place: FieldUse, value: Any, agent_id: str) -> str:
    """The fault that shows when *value* is written into the field; empty when there is none."""
    if is_exact_json(value, place.inside):
        return await _not_kept(ctx.store, place, value, agent_id)
    return await _not_refused(ctx, place, value, agent_id)


async def _not_kept(store: Store, place: FieldUse, value: Any, agent_id: str) -> str:
    record = place.record(value)
    try:
        await place.save(store, agent_id, record)
        found = difference(await place.load(store, agent_id), [record])
    except Exception as exc:  # noqa: BLE001 - whatever the store raises where it should not
        return f"it raised {type(exc).__name__}: {exc!s:.300}"
    return found or ""


async def _not_refused(ctx: Context, place: FieldUse, value: Any, agent_id: str) -> str:
    old = []
    if place.replaces:
        old = [place.record("old" if place.holds is Holds.TEXT else {"old": [1, 2.0, None]})]
        await place.save(ctx.store, agent_id, old[0])
    try:
        await ctx.raises(InvalidValueError, place.save(ctx.store, agent_id, place.record(value)), "saving it")
    except Violation as exc:
        return str(exc)
    found = difference(await place.load(ctx.store, agent_id), old)
    return "" if found is None else f"it was refused, and what was there before changed: {found}"


@check("VAL-1", "VAL-2", tier=Tier.STANDARD, under=(Dimension.LOOKALIKES, Dimension.NUMBERS, Dimension.LENGTHS))
async def hostile_values_in_every_field(ctx: Context) -> None:
    """Every hostile value in every free-form field of every kind comes back exactly, or is refused without a trace."""
    await _matrix(ctx, large=False)


@check("VAL-1", "VAL-4", tier=Tier.THOROUGH, under=(Dimension.ITEMS, Dimension.LENGTHS))
async def large_values_in_every_field(ctx: Context) -> None:
    """Values of many megabytes and of a hundred thousand parts come back exactly from every free-form field."""
    await _matrix(ctx, large=True)


async def _matrix(ctx: Context, *, large: bool) -> None:
    limit = ctx.harness.limits.max_payload_bytes
    payloads = [payload for payload in PAYLOADS if _is_large(payload.value) is large and _is_within(limit, payload)]
    places = list(enumerate(FIELD_USES))
    ctx.rng.shuffle(places)
    for p, place in in_time(ctx, places):
        for i, payload in enumerate(payloads):
            value = _for_text(payload.value) if place.holds is Holds.TEXT else payload.value
            if place.holds.fits(value):
                problem = await _problem(ctx, place, value, f"{p}-{i}")
                ctx.true(not problem, f"{payload.name} in {place.name}: {problem}")
                if large:
                    await ctx.store.delete(f"{p}-{i}")


def _is_large(value: Any) -> bool:
    size = 0
    for part in parts(value):
        size += len(part) if type(part) is str else 10
        if size > _LARGE:
            return True
    return False


def _is_within(limit: int | None, payload: Payload) -> bool:
    """True if the backend's stated limit allows a record with that value; it refuses values that are no JSON anyway."""
    return limit is None or not payload.is_json or len(json.dumps(payload.value)) + _RECORD < limit


def _for_text(value: Any) -> Any:
    """The hostile string of a payload such as ``{"s": "…"}``."""
    return next((v for v in value.values() if type(v) is str), value) if type(value) is dict else value


def _random_value(ctx: Context, place: FieldUse) -> Any:
    if place.holds is Holds.TEXT:
        return hostile_text(ctx.rng)
    while True:
        value = hostile_value(ctx.rng) if place.holds is Holds.JSON else hostile_dict(ctx.rng)
        if place.holds.fits(value):
            return value


@check(
    "VAL-1",
    "VAL-2",
    "VAL-3",
    "VAL-6",
    tier=Tier.STANDARD,
    stochastic=True,
    under=(Dimension.LOOKALIKES, Dimension.NUMBERS),
)
async def random_values_in_every_field(ctx: Context) -> None:
    """Hostile values put together at random come back exactly, or are refused without a trace, from every field."""
    for i in in_time(ctx, range(ctx.effort.examples * 10)):
        place = ctx.rng.choice(FIELD_USES)
        value = _random_value(ctx, place)
        problem = await _problem(ctx, place, value, f"{i}")
        if problem:
            value = await _shortest(ctx, place, value)
            problem = await _problem(ctx, place, value, "again") or f"{problem} (not every time)"
            raise Violation(f"the value {value!a:.1000} in {place.name}: {problem}")


async def _shortest(ctx: Context, place: FieldUse, value: Any) -> Any:
    """A simpler value that goes wrong in the same field, as simple as the time allows."""
    until, count, again = time.monotonic() + _SHORTEN_SECONDS, 0, True
    while again:
        again = False
        for candidate in filter(place.holds.fits, simpler(value)):
            if time.monotonic() > until:
                return value
            count += 1
            if await _problem(ctx, place, candidate, f"s{count}"):
                value, again = candidate, True
                break
    return value


@check(
    "VAL-1",
    "DUR-1",
    needs=Capability.PERSISTENT,
    stochastic=True,
    under=(Dimension.LOOKALIKES, Dimension.NUMBERS, Dimension.INSTANCES),
)
async def random_values_survive_a_restart(ctx: Context) -> None:
    """Hostile values put together at random come back exactly after the store was closed and opened again."""
    written: list[tuple[FieldUse, Any]] = []
    while len(written) < ctx.effort.examples * 2:
        place = ctx.rng.choice(FIELD_USES)
        value = _random_value(ctx, place)
        if is_exact_json(value, place.inside):
            await place.save(ctx.store, f"{len(written)}", place.record(value))
            written.append((place, value))
    await ctx.reopen()
    for i, (place, value) in enumerate(written):
        found = difference(await place.load(ctx.store, f"{i}"), [place.record(value)])
        ctx.true(found is None, f"the value {value!a:.1000} in {place.name}, after a restart: {found}")
