"""The cost of observers for the cheapest call: none, a function called afterwards, and one that surrounds calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Final

from kode_core import ExtendedStore, create_extended_store
from kode_core.operation import Operation
from tests.benchmarks.backends import Backend
from tests.benchmarks.measure import Report, Row, interleaved

_ROUNDS: Final = 15
_CALLS: Final = 200


class _Surrounds:
    @contextmanager
    def around(self, operation: Operation) -> Iterator[None]:
        yield


def _hears(operation: Operation) -> None: ...


_OBSERVERS: Final[Mapping[str, list[Any]]] = {"none": [], "a function": [_hears], "around": [_Surrounds()]}


async def run(report: Report, backend: Backend) -> None:
    """Microseconds of a call, and the ratio to a call without observers."""
    report.title("Observers")
    async with backend.space() as options, AsyncExitStack() as stack:
        stores = {
            name: await stack.enter_async_context(create_extended_store(dict(options), observers=observers))
            for name, observers in _OBSERVERS.items()
        }
        found = await interleaved(_ROUNDS, **{name: _of(store) for name, store in stores.items()})
        for name, seconds in found.items():
            ratio = None if name == "none" else seconds / found["none"]
            report.add(Row(f"exists, observers: {name}", seconds / _CALLS * 1e6, "us", ratio, "none"))


def _of(store: ExtendedStore) -> Callable[[int], Awaitable[None]]:
    async def many(_: int) -> None:
        for _ in range(_CALLS):
            await store.exists("a")

    return many
