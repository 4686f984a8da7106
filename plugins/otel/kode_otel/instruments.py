"""The instruments: one of each kind in a process, or for each meter provider that a program gives."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter

from kode_core.operation import Load, OpenStore
from kode_core.report import ConnectionUse
from kode_otel.places import place_of

__all__ = ["NAME", "VERSION", "Instruments", "instruments_of"]

NAME: Final = "kode_otel"
VERSION: Final = "0.1.0"
SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
"""The buckets that the conventions recommend for ``db.client.operation.duration``."""

_Attributes = Mapping[str, Any]
_Key = frozenset[tuple[str, Any]]


class _Watched:
    """An open store, and the retries of it that were already counted."""

    __slots__ = ("attributes", "retries", "store")

    def __init__(self, store: OpenStore) -> None:
        self.store = store
        self.attributes = place_of(store.backend, store.store).attributes
        self.retries = 0


class Instruments:
    """What is measured of all stores that share a meter."""

    def __init__(self, meter: Meter) -> None:
        self._lock = threading.Lock()
        self._stores: list[_Watched] = []
        self._retries: defaultdict[_Key, int] = defaultdict(int)
        self.duration = meter.create_histogram(
            "db.client.operation.duration",
            "s",
            "Duration of the calls of stores.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self.rows = meter.create_counter("kode.operation.rows", "{row}", "Records that calls read or wrote.")
        self.bytes = meter.create_counter(
            "kode.operation.bytes", "By", "Bodies of the records that calls read or wrote."
        )
        self.conflicts = meter.create_counter(
            "kode.operation.conflicts", "{conflict}", "Writes that were refused because another writer had come first."
        )
        self._gauges(meter)

    def _gauges(self, meter: Meter) -> None:
        gauges: tuple[tuple[str, str, str, Callable[[Load], int]], ...] = (
            ("kode.store.calls", "{call}", "Calls that are running.", lambda load: load.calls),
            ("kode.store.writes", "{write}", "Writes that the engine is doing.", lambda load: load.writes),
            ("kode.store.appends", "{call}", "Calls that wait for a group commit.", lambda load: load.appends),
            ("kode.store.followers", "{follower}", "Iterators that follow events.", lambda load: load.followers),
        )
        for name, unit, description, read in gauges:
            meter.create_observable_gauge(name, [self._summed(_of_load(read))], unit, description)
        pools: tuple[tuple[str, str, str, Callable[[ConnectionUse], Iterator[tuple[_Attributes, int]]]], ...] = (
            ("count", "{connection}", "Connections by their state.", _by_state),
            ("max", "{connection}", "The most connections that calls share.", lambda use: iter([({}, use.most)])),
            (
                "pending_requests",
                "{request}",
                "Calls that wait for a connection.",
                lambda use: iter([({}, use.waiting)]),
            ),
        )
        for name, unit, description, split in pools:
            callback = self._summed(_of_connections(split))
            meter.create_observable_gauge(f"db.client.connection.{name}", [callback], unit, description)
        meter.create_observable_counter(
            "kode.store.retries", [self._counted], "{retry}", "Attempts of the engine that were repeated."
        )

    # --- stores

    def watch(self, store: OpenStore) -> None:
        """Read the load of *store* at each collection, until it is closed; it is not kept alive."""
        with self._lock:
            self._stores = [one for one in self._stores if one.store.load() is not None]
            self._stores.append(_Watched(store))

    def _loads(self) -> list[tuple[_Watched, Load]]:
        """The loads of the open stores; closed ones are forgotten."""
        with self._lock:
            stores = list(self._stores)
        found = [(one, one.store.load()) for one in stores]
        gone = {id(one) for one, load in found if load is None}
        with self._lock:
            self._stores = [one for one in self._stores if id(one) not in gone]
        return [(one, load) for one, load in found if load is not None]

    def _summed(
        self, split: Callable[[Load], Iterable[tuple[_Attributes, int]]]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        """A callback that adds up the stores with the same attributes: of two observations a reader keeps only one."""

        def callback(_: CallbackOptions) -> Iterable[Observation]:
            sums: defaultdict[_Key, int] = defaultdict(int)
            for one, load in self._loads():
                for more, number in split(load):
                    sums[frozenset({**one.attributes, **more}.items())] += number
            return [Observation(number, dict(key)) for key, number in sums.items()]

        return callback

    def _counted(self, _: CallbackOptions) -> Iterable[Observation]:
        """The retries so far, also of stores that were closed since."""
        loads = self._loads()
        with self._lock:
            for one, load in loads:
                if load.connections is not None:
                    self._retries[frozenset(one.attributes.items())] += load.connections.retries - one.retries
                    one.retries = load.connections.retries
            return [Observation(number, dict(key)) for key, number in self._retries.items()]


def _of_load(read: Callable[[Load], int]) -> Callable[[Load], Iterable[tuple[_Attributes, int]]]:
    return lambda load: [({}, read(load))]


def _of_connections(
    split: Callable[[ConnectionUse], Iterable[tuple[_Attributes, int]]],
) -> Callable[[Load], Iterable[tuple[_Attributes, int]]]:
    return lambda load: () if load.connections is None else split(load.connections)


def _by_state(use: ConnectionUse) -> Iterator[tuple[_Attributes, int]]:
    yield {"db.client.connection.state": "used"}, use.busy
    yield {"db.client.connection.state": "idle"}, max(0, use.open - use.busy)


_LOCK: Final = threading.Lock()
_OF_PROCESS: Final[list[Instruments]] = []
_OF_PROVIDERS: Final[WeakKeyDictionary[Any, Instruments]] = WeakKeyDictionary()


def instruments_of(provider: MeterProvider | None) -> Instruments:
    """The instruments of a provider; None is the process's own, which may be set later."""
    with _LOCK:
        if provider is None:
            if not _OF_PROCESS:
                _OF_PROCESS.append(Instruments(get_meter(NAME, VERSION)))
            return _OF_PROCESS[0]
        try:
            found = _OF_PROVIDERS.get(provider)
        except TypeError:  # one that has no hash, or takes no weak reference
            return Instruments(provider.get_meter(NAME, VERSION))
        if found is None:
            found = Instruments(provider.get_meter(NAME, VERSION))
            _OF_PROVIDERS[provider] = found
        return found
