"""The cost of encryption and compression: appends, loads of 1,000 messages and stored bytes, as ratios to neither."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

from kode_core import ExtendedStore, Message, create_extended_store
from kode_core.engine import Engine
from kode_core.layers import Layer
from kode_core.layers.compression import compressed
from kode_core.layers.encryption import encrypted
from tests.benchmarks.backends import Backend
from tests.benchmarks.measure import Report, Row, interleaved

_ROUNDS: Final = 9
_APPENDS: Final = 40
_MESSAGES: Final = 1000
_TEXT: Final = "I would like to change my reservation to the flight on the next morning, if there is a seat. " * 15
_KEYS: Final = {"k": b"k" * 32}
_LAYERS: Final[Mapping[str, list[Any]]] = {
    "none": [],
    "encrypted": [encrypted(_KEYS)],
    "encrypted, blind": [encrypted(_KEYS, blind=True)],
    "compressed": [compressed()],
    "both": [encrypted(_KEYS), compressed()],
}


class _Sizes(Layer):
    """Counts the bytes of the bodies that reach the engine."""

    def __init__(self, inner: Engine, counts: dict[str, int], name: str) -> None:
        super().__init__(inner)
        self._counts, self._name = counts, name

    async def commit(self, batches: Any) -> Any:
        for batch in batches:
            for row in batch.messages.append if batch.messages else ():
                self._counts[self._name] += len(row.body.text) + len(row.body.digest)
        return await super().commit(batches)


async def run(report: Report, backend: Backend) -> None:
    """Microseconds of an append and of a load of 1,000 messages of 1.4 kB, and the bytes that are stored for one."""
    report.title("Layers")
    counts = dict.fromkeys(_LAYERS, 0)
    async with AsyncExitStack() as stack:
        stores: dict[str, ExtendedStore] = {}
        for name, layers in _LAYERS.items():
            options = await stack.enter_async_context(backend.space())
            sizes: Callable[[Engine], Engine] = lambda engine, name=name: _Sizes(engine, counts, name)  # type: ignore[misc]  # noqa: E731
            store = await stack.enter_async_context(create_extended_store(dict(options), layers=[sizes, *layers]))
            await store.append_messages("loaded", [Message.user(f"{i} {_TEXT}") for i in range(_MESSAGES)])
            stores[name] = store
        _add(
            report,
            f"append of one message, {backend.name}",
            await interleaved(_ROUNDS, **_each(stores, _append)),
            _APPENDS,
        )
        _add(
            report,
            f"load of {_MESSAGES:,} messages, {backend.name}",
            await interleaved(_ROUNDS, **_each(stores, _load)),
            1,
        )
        for name in stores:
            ratio = None if name == "none" else counts[name] / counts["none"]
            report.add(Row(f"bytes of a message, layers: {name}", counts[name] / _written(counts), "B", ratio, "none"))


def _written(counts: Mapping[str, int]) -> int:
    return _MESSAGES + _ROUNDS * _APPENDS


def _add(report: Report, what: str, found: Mapping[str, float], calls: int) -> None:
    for name, seconds in found.items():
        ratio = None if name == "none" else seconds / found["none"]
        report.add(Row(f"{what}, layers: {name}", seconds / calls * 1e6, "us", ratio, "none"))


def _each(
    stores: Mapping[str, ExtendedStore], of: Callable[[ExtendedStore], Callable[[int], Awaitable[None]]]
) -> dict[str, Callable[[int], Awaitable[None]]]:
    return {name: of(store) for name, store in stores.items()}


def _append(store: ExtendedStore) -> Callable[[int], Awaitable[None]]:
    async def many(_: int) -> None:
        for i in range(_APPENDS):
            await store.append_messages("appended", [Message.user(f"{i} {_TEXT}")])

    return many


def _load(store: ExtendedStore) -> Callable[[int], Awaitable[None]]:
    async def one(_: int) -> None:
        await store.load_messages("loaded")

    return one
