"""The last messages of short and long lists next to a whole load, an edit of each, and updates of one info by 20."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from kode_core import AgentInfo, ExtendedStore, Message, create_extended_store
from tests.benchmarks.backends import Backend
from tests.benchmarks.measure import Report, Row, interleaved

_ROUNDS: Final = 9
_CALLS: Final = 20
_LENGTHS: Final = (100, 8_000, 100_000)
_LAST: Final = 20
_WRITERS: Final = 20
_TEXT: Final = "x" * 400


async def run(report: Report, backend: Backend) -> None:
    """Milliseconds of a call, and the ratio to the same call on the shortest list, or to one writer."""
    report.title("Parts of lists")
    async with backend.space() as options, create_extended_store(dict(options)) as store:
        for length in _LENGTHS:
            for start in range(0, length, 5_000):
                some = [Message.user(f"{n} {_TEXT}") for n in range(start, min(length, start + 5_000))]
                await store.append_messages(f"a{length}", some)
        for name, call in (("last 20", _last), ("pop and append one", _pop)):
            found = await interleaved(_ROUNDS, **{f"{length}": _of(store, length, call) for length in _LENGTHS})
            for length, seconds in found.items():
                ratio = seconds / found[f"{_LENGTHS[0]}"]
                report.add(Row(f"{name} of {length}", seconds / _CALLS * 1e3, "ms", ratio, f"of {_LENGTHS[0]}"))
        whole = await interleaved(3, whole=lambda _: store.load_messages("a8000"))
        part = await interleaved(3, part=lambda _: store.load_messages("a8000", last=_LAST))
        report.add(Row("all of 8000", whole["whole"] * 1e3, "ms", whole["whole"] / part["part"], "the last 20"))
        await _updates(report, store)


async def _last(store: ExtendedStore, agent_id: str) -> None:
    assert len(await store.load_messages(agent_id, last=_LAST)) == _LAST


async def _pop(store: ExtendedStore, agent_id: str) -> None:
    await store.append_messages(agent_id, await store.pop_messages(agent_id))


def _of(
    store: ExtendedStore, length: int, call: Callable[[ExtendedStore, str], Awaitable[None]]
) -> Callable[[int], Awaitable[None]]:
    async def many(_: int) -> None:
        for _ in range(_CALLS):
            await call(store, f"a{length}")

    return many


async def _updates(report: Report, store: ExtendedStore) -> None:
    await store.create_agent("info", AgentInfo(agent_id="info", template_id="t"))

    async def update(number: int) -> None:
        await store.update_info("info", {f"{number}": number})

    async def one(_: int) -> None:
        for number in range(_WRITERS):
            await update(number)

    async def many(_: int) -> None:
        await asyncio.gather(*map(update, range(_WRITERS)))

    found = await interleaved(_ROUNDS, one=one, many=many)
    ratio = found["many"] / found["one"]
    report.add(Row("update_info, 20 writers at once", found["many"] / _WRITERS * 1e3, "ms", ratio, "one after another"))
